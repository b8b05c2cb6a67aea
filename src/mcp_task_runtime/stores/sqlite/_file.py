"""The database file: opened, watched for being deleted or replaced, and named in every error.

A file that was open once is never made again: if it is gone, or another file has its place, everything is refused
until it is back, for what was acknowledged is in that file alone. A store that is made later takes what it finds.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from random import uniform
from threading import Lock
from typing import Final, TypeVar

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.errors import SchemaVersionError, StoreError, StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.stores.sqlite._clock import MachineClock
from mcp_task_runtime.stores.sqlite._schema import Synchronous, open_database

__all__ = ["DatabaseFile", "is_locked", "patiently"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.sqlite")

T = TypeVar("T")

_LOCKED_PAUSE: Final = (0.0005, 0.0035)  # seconds: from, to
_QUIET_SECONDS: Final = 30.0
_LOCKED: Final = "stayed locked by another process"
_UNAVAILABLE: Final = {
    "database or disk is full": "cannot grow, the disk is full",
    "attempt to write a readonly database": "is read-only",
    "disk i/o error": "cannot be read or written, the disk failed",
}
_CANNOT_OPEN: Final = "unable to open database file"
_UNUSABLE: Final = {
    "file is not a database": "is not a SQLite database",
    "database disk image is malformed": "is damaged",
}


def is_locked(error: BaseException | None) -> bool:
    """Whether this error of SQLite says that another process holds a lock."""
    # The second is what SQLite says after it has lost the race for a lock of the log for some seconds.
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or str(error) == "locking protocol")


def patiently(operation: Callable[[], T], deadline: float) -> T:
    """Repeat an operation while another process holds a lock, until `deadline` by `time.monotonic`.

    SQLite's own waiting takes up to 100 ms a step: next to a busy process that rarely gets a turn.
    """
    while True:
        try:
            return operation()
        except sqlite3.OperationalError as error:
            if not is_locked(error) or time.monotonic() >= deadline:
                raise
        time.sleep(uniform(*_LOCKED_PAUSE))


class DatabaseFile:
    """One database file, as the threads of an engine use it."""

    def __init__(self, path: str, *, clock: Clock, synchronous: Synchronous) -> None:
        """Take a path; nothing is opened yet.

        Args:
            path: The absolute path of the file.
            clock: The store's clock.
            synchronous: How safe a commit is.
        """
        self.path = path
        self.clock = clock
        self.synchronous: Synchronous = synchronous
        self._lock = Lock()
        self._identity: tuple[int, int] | None = None
        self._down: set[str] = set()  # the lanes that cannot use the file
        self._reason = ""
        self._failed_at = 0.0

    def connect(self, deadline: float) -> sqlite3.Connection:
        """Open the file, the first time also if there is none yet; wait for locks until `deadline`.

        Raises:
            StoreUnavailableError: The file that was open before is gone.
            SchemaVersionError: A later version of this library wrote it.
            StoreError: It belongs to another application, or cannot be used with a write-ahead log.
            sqlite3.Error: It cannot be opened, stays locked, or is no database.
        """
        self.check()
        try:
            connection = patiently(
                partial(open_database, self.path, synchronous=self.synchronous, create=self._identity is None), deadline
            )
        except SchemaVersionError:
            raise
        except StoreError as error:
            raise StoreError(f"{self} {error}") from error
        try:
            self._identify()
            if isinstance(self.clock, MachineClock):
                patiently(partial(self.clock.agree, connection), deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def was_opened(self) -> bool:
        """Whether the file was open once."""
        return self._identity is not None

    def check(self) -> None:
        """Refuse to go on if the path does not name the file that was opened first.

        Raises:
            StoreUnavailableError: The file was deleted or replaced, or its folder cannot be read.
        """
        if self._identity is not None and self._identity != (found := self._look()):
            raise StoreUnavailableError(f"{self} was {'deleted' if found is None else 'replaced by another'}")

    def translate(self, error: Exception) -> TaskRuntimeError:
        """Return an error of this library, a new one for each caller unless it is one already."""
        if isinstance(error, StoreUnavailableError):
            return StoreUnavailableError(str(error))
        if isinstance(error, TaskRuntimeError):
            return error
        text = str(error).lower()
        translated: StoreError
        if is_locked(error):
            translated = StoreUnavailableError(f"{self} {_LOCKED}")
        elif text == _CANNOT_OPEN:
            translated = StoreUnavailableError(f"{self} cannot be opened{_obstacle(self.path)}")
        elif text in _UNAVAILABLE:
            translated = StoreUnavailableError(f"{self} {_UNAVAILABLE[text]}")
        else:
            translated = StoreError(f"{self} {_UNUSABLE.get(text, 'failed')}")
        translated.__cause__ = error
        return translated

    def failed(self, lane: str, error: StoreUnavailableError) -> None:
        """Log an outage, once, however many operations of a lane fail in it."""
        now, reason = time.monotonic(), str(error)
        with self._lock:
            is_known = bool(self._down)
            is_new = not is_known and (reason != self._reason or now - self._failed_at > _QUIET_SECONDS)
            self._reason, self._failed_at = reason, now
            if is_known or is_new:
                self._down.add(lane)
        if is_new:
            logger.warning("%s; trying again", reason)

    def works(self, lane: str) -> None:
        """Note that a lane can use the file; log it after an outage."""
        if lane not in self._down:
            return
        with self._lock:
            self._down.discard(lane)
            is_over = not self._down
        if is_over:
            logger.warning("%s can be used again", self)

    def _identify(self) -> None:
        found = self._look()
        with self._lock:
            if self._identity is None:
                self._identity = found
        self.check()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreUnavailableError(f"{self} cannot be used: {error.strerror}") from error
        return found.st_dev, found.st_ino

    def __str__(self) -> str:
        return f"The database file {self.path}"


def _obstacle(path: str) -> str:
    """Return why a file cannot be opened, behind a colon, as far as a look at it tells.

    It is not opened for that: to close it again would release the locks that SQLite has of it in this process.
    """
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        return ": it is a folder"
    if os.path.exists(path):
        return "" if _may(path, os.R_OK | os.W_OK) else ": it may not be read and written"
    if not os.path.isdir(folder):
        return f": there is no folder {folder}"
    return "" if _may(folder, os.W_OK | os.X_OK) else f": {folder} may not be written"


def _may(path: str, mode: int) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
