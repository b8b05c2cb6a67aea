"""Threads, group commit and wake-up: what the SQLite store stands on. Knows nothing of tasks but their ids.

An engine has two threads, each with a connection of its own; they start when they are first needed.

- The *writer* takes all requests that wait, does them in one transaction, commits once, and only then
  answers them all: group commit. When one of several fails with anything but an error of this library, or the
  commit fails, everything is rolled back and each request is done again in a transaction of its own.
- The *reader* answers requests that only look, beside the writer: with a write-ahead log neither waits for
  the other. It sees whatever was committed before the request was made.

An operation hops to a thread and back once. The way back is the event loop's own (`call_soon_threadsafe`,
`run_sync_soon`), one call for a whole batch, so one engine serves any number of event loops.

Wake-up within the process follows each commit. For commits of other processes the writer, while somebody
waits and only then, looks every `WATCH_SECONDS` at `PRAGMA data_version`, which changes when another connection has
committed; it costs some microseconds. On a change the reader looks for everybody who waits and wakes those
whose wait is over. If that takes long, because thousands wait, it is done less often.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from queue import Empty, SimpleQueue
from random import uniform
from threading import Lock, Thread
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.stores.sqlite_schema import Synchronous, open_database, to_stamp

__all__ = ["WATCH_SECONDS", "Engine", "Look", "Transaction"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_SECONDS: Final = 0.025
"""How often the commits of other processes are looked for while somebody waits."""

_BUSY_SECONDS: Final = 5.0
_BUSY_PAUSE: Final = (0.0005, 0.0035)  # seconds: from, to
_BUSY_TRIES: Final = int(2 * _BUSY_SECONDS / sum(_BUSY_PAUSE))
_IDLE_SECONDS: Final = 10.0
_SCAN_SHARE: Final = 4
_BATCH: Final = 256
_PURGE_EVERY: Final = 32
_PURGE_MOST: Final = 4 * _PURGE_EVERY
_CLOSE_SECONDS: Final = 30.0


class Transaction:
    """What an operation gets, for as long as it runs.

    Attributes:
        execute: Runs one statement.
        now: The time of the transaction.
        stamp: The same time in its stored form.
        durable: Set this when the transaction wrote what a power failure must not take back.
    """

    __slots__ = ("durable", "execute", "now", "stamp")

    def __init__(self, execute: Callable[..., sqlite3.Cursor], now: datetime) -> None:
        self.execute = execute
        self.now = now
        self.stamp = to_stamp(now)
        self.durable = False


Operation: TypeAlias = Callable[[Transaction], T]
"""What is done in a transaction.

One that writes may be done again after it failed, and raises an error of this library before it has written
anything: then it wrote nothing. One that only reads is a single statement.
"""

Look: TypeAlias = Callable[[Transaction], tuple[T | None, datetime | None]]
"""A read that somebody waits for: what it found, or `None` and the time to look again at the latest."""

_Post: TypeAlias = Callable[..., object]
_Wake: TypeAlias = tuple[_Post, anyio.Event]


def _poster() -> _Post:
    """Return what calls a function on the running event loop from any thread."""
    token = anyio.lowlevel.current_token()
    loop: Any = getattr(token, "native_token", token)  # older versions of anyio return the loop itself
    post: _Post | None = getattr(loop, "call_soon_threadsafe", None)
    return loop.run_sync_soon if post is None else post


def _set_all(events: Iterable[anyio.Event]) -> None:
    for event in events:
        event.set()


def _wake_all(wakes: Iterable[_Wake]) -> None:
    """Set events, each on its event loop; one call a loop."""
    by_loop: dict[_Post, list[anyio.Event]] = {}
    for post, event in wakes:
        by_loop.setdefault(post, []).append(event)
    for post, events in by_loop.items():
        with suppress(RuntimeError):  # that loop has ended: nobody waits there any more
            post(_set_all, events)


class _Request:
    """One operation on its way to a thread and back."""

    __slots__ = ("_ticket", "done", "error", "operation", "post", "task_id", "value")

    def __init__(self, operation: Operation[Any], task_id: str | None) -> None:
        self.operation = operation
        self.task_id = task_id
        self.value: Any = None
        self.error: Exception | None = None
        self.done = anyio.Event()
        self.post = _poster()
        self._ticket = [None]

    def take(self) -> bool:
        """Take the request, to do it or to withdraw it. Whoever is first gets it, in whatever thread."""
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _Waiter:
    """Somebody who waits for a task; `event` is replaced before each look."""

    __slots__ = ("event", "look", "post", "task_id")

    def __init__(self, task_id: str, look: Look[Any]) -> None:
        self.task_id = task_id
        self.look = look
        self.post = _poster()
        self.event = anyio.Event()


class _Waiters:
    """Everybody who waits, by task; used from all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._by_task: dict[str, set[_Waiter]] = {}
        self.rest = 0.0  # seconds between two scans
        self.is_scanning = False

    def __bool__(self) -> bool:
        return bool(self._by_task)

    def add(self, waiter: _Waiter) -> bool:
        """Add one; return whether it is the only one."""
        with self._lock:
            is_first = not self._by_task
            self._by_task.setdefault(waiter.task_id, set()).add(waiter)
            return is_first

    def discard(self, waiter: _Waiter) -> None:
        with self._lock:
            waiters = self._by_task[waiter.task_id]
            waiters.discard(waiter)
            if not waiters:
                del self._by_task[waiter.task_id]

    def of(self, task_ids: Iterable[str]) -> list[_Wake]:
        if not self._by_task:
            return []
        with self._lock:
            return [(w.post, w.event) for task_id in set(task_ids) for w in self._by_task.get(task_id, ())]

    def everybody(self) -> list[_Waiter]:
        with self._lock:
            return [waiter for waiters in self._by_task.values() for waiter in waiters]


class _Lane:
    """A thread with a connection, and the requests it is to serve in batches."""

    name = ""

    def __init__(self, connect: Callable[[], sqlite3.Connection], clock: Clock, waiters: _Waiters) -> None:
        self._connect = connect
        self._clock = clock
        self._waiters = waiters
        self._queue: SimpleQueue[_Request | None] = SimpleQueue()
        self._lock = Lock()
        self._thread: Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        self._when_closed: Callable[[], None] | None = None

    def put(self, request: _Request | None) -> None:
        """Have a request served; `None` only wakes the thread.

        Raises:
            StoreClosedError: The lane is closed.
        """
        with self._lock:
            if self._is_closed:
                raise StoreClosedError
            if self._thread is None:
                self._thread = Thread(target=self._run, name=f"mcp-task-runtime-{self.name}", daemon=True)
                self._thread.start()
            self._queue.put(request)

    def close(self, when_closed: Callable[[], None] | None = None) -> Thread | None:
        """Accept no more requests; when those there are have been served, close the connection and call back.

        Returns:
            The thread that will do so, or `None` if there is nothing to do.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._is_closed = True
            self._when_closed = when_closed
            self._queue.put(None)
            return self._thread

    def _run(self) -> None:
        try:
            while not (self._is_closed and self._queue.empty()):
                self._serve([request for request in self._take() if request.take()])
        finally:
            self._disconnect()
            if self._when_closed is not None:
                self._when_closed()

    def _take(self) -> list[_Request]:
        """Return all requests that wait, up to a limit; none if there is something else to do."""
        try:
            first = self._queue.get(timeout=self._patience())
        except Empty:
            return []
        batch = [] if first is None else [first]
        for _ in range(min(self._queue.qsize(), _BATCH)):
            request = self._queue.get_nowait()  # this thread is the only one that takes
            if request is not None:
                batch.append(request)
        return batch

    def _patience(self) -> float | None:
        """Return how many seconds to wait for a request."""
        return None

    def _serve(self, requests: list[_Request]) -> None:
        raise NotImplementedError

    def _connected(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            connection = self._connection = self._connect()
        return connection

    def _disconnect(self) -> None:
        """Close the connection, which rolls back; the next request opens another. So every fault heals."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


class _Reader(_Lane):
    name = "reader"

    def scan(self) -> None:
        """Look for everybody who waits, and wake those whose wait is over."""
        self._waiters.is_scanning = True
        with suppress(StoreClosedError):
            self.put(None)

    def _serve(self, requests: list[_Request]) -> None:
        if requests:
            is_one_snapshot = len(requests) > 1  # so that SQLite takes and frees its locks once
            for request in requests:
                self._read(request, is_one_snapshot)
            self._end_snapshot()
            _wake_all([(request.post, request.done) for request in requests])
        if self._waiters.is_scanning:
            self._scan()
            self._waiters.is_scanning = False

    def _transaction(self, is_snapshot: bool) -> Transaction:
        connection = self._connected()
        if is_snapshot and not connection.in_transaction:
            connection.execute("BEGIN")
        return Transaction(connection.execute, self._clock.now())

    def _read(self, request: _Request, is_one_snapshot: bool) -> None:
        try:
            request.value = request.operation(self._transaction(is_one_snapshot))
        except TaskRuntimeError as error:
            request.error = error
        except Exception as error:
            self._disconnect()
            request.error = _translated(error)

    def _end_snapshot(self) -> None:
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("COMMIT")
        except sqlite3.Error:
            self._disconnect()

    def _scan(self) -> None:
        begun = time.monotonic()  # paces the scans; no task's time
        wakes: list[_Wake] = []
        for waiter in self._waiters.everybody():
            event = waiter.event
            try:
                found, _ = waiter.look(self._transaction(True))
            except Exception:  # its own look tells the waiter what is wrong
                found = True
            if found is not None:
                wakes.append((waiter.post, event))
        self._end_snapshot()
        _wake_all(wakes)
        self._waiters.rest = _SCAN_SHARE * (time.monotonic() - begun)


class _Writer(_Lane):
    name = "writer"

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        clock: Clock,
        waiters: _Waiters,
        reader: _Reader,
        synchronous: Synchronous,
        purge: Callable[[Transaction, int], Collection[str]],
    ) -> None:
        super().__init__(connect, clock, waiters)
        self._reader = reader
        self._synchronous = synchronous
        self._purge = purge
        self._since_purge = 0
        self._has_more_to_purge = False
        self._next_watch = 0.0
        self._version: int | None = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._version = None
            super()._connected().execute("PRAGMA busy_timeout = 0")  # _begin waits, in shorter steps
        return super()._connected()

    def _patience(self) -> float | None:
        if self._has_more_to_purge:
            return 0
        return max(WATCH_SECONDS, self._waiters.rest) if self._waiters else _IDLE_SECONDS

    def _serve(self, requests: list[_Request]) -> None:
        if requests:
            self._write(requests)
        elif self._has_more_to_purge or not self._waiters:
            self._purge_idly()
        if self._waiters:
            self._watch()

    def _write(self, requests: list[_Request]) -> None:
        try:
            connection = self._connected()
            self._begin(connection)
        except Exception as error:
            self._fail(requests, error)
            return
        try:
            purged = self._do(connection, requests)
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests, error)
                return
            self._disconnect()
            for request in requests:
                self._write([request])
            return
        changed = [request.task_id for request in requests if request.error is None and request.task_id is not None]
        _wake_all([(request.post, request.done) for request in requests] + self._waiters.of([*changed, *purged]))

    def _begin(self, connection: sqlite3.Connection) -> None:
        # SQLite's own waiting takes up to 100 ms a step: beside a busy process that rarely gets a turn.
        for _ in range(_BUSY_TRIES):
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                last = error
                time.sleep(uniform(*_BUSY_PAUSE))
            else:
                return
        raise last

    def _do(self, connection: sqlite3.Connection, requests: list[_Request]) -> Collection[str]:
        transaction = Transaction(connection.execute, self._clock.now())
        purged: Collection[str] = ()
        self._since_purge += len(requests)
        if self._since_purge >= _PURGE_EVERY:
            purged = self._purge_some(transaction)
        for request in requests:
            request.error = None
            try:
                request.value = request.operation(transaction)
            except TaskRuntimeError as error:
                request.error = error
        self._commit(transaction)
        return purged

    def _commit(self, transaction: Transaction) -> None:
        if transaction.durable or self._synchronous == "normal":
            transaction.execute("COMMIT")
            return
        # Nothing worth waiting for the disk; the next durable commit takes it along.
        transaction.execute("COMMIT")

    def _purge_some(self, transaction: Transaction) -> Collection[str]:
        self._since_purge = 0
        purged = self._purge(transaction, _PURGE_MOST)
        self._has_more_to_purge = len(purged) == _PURGE_MOST
        return purged

    def _purge_idly(self) -> None:
        try:
            connection = self._connected()
            self._begin(connection)
            transaction = Transaction(connection.execute, self._clock.now())
            purged = self._purge_some(transaction)
            self._commit(transaction)
        except Exception:
            self._has_more_to_purge = False
            self._disconnect()
            logger.debug("Expired tasks could not be removed now", exc_info=True)
        else:
            _wake_all(self._waiters.of(purged))

    def _watch(self) -> None:
        now = time.monotonic()  # paces the watching; no task's time
        if self._waiters.is_scanning or now < self._next_watch:
            return
        try:
            (version,) = self._connected().execute("PRAGMA data_version").fetchone()
        except Exception:  # whoever calls next is told
            self._disconnect()
        else:
            if version != self._version:
                self._version = version
                self._reader.scan()
        self._next_watch = now + max(WATCH_SECONDS, self._waiters.rest)

    def _fail(self, requests: list[_Request], error: Exception) -> None:
        self._disconnect()
        for request in requests:
            request.error = _translated(error)
        _wake_all([(request.post, request.done) for request in requests])


_UNAVAILABLE: Final = {
    "database is locked": "The database stayed locked by another process",
    "database table is locked": "The database stayed locked by another process",
    "database or disk is full": "The disk is full",
    "attempt to write a readonly database": "The database is read-only",
    "unable to open database file": "The database file cannot be opened",
    "disk i/o error": "The disk failed",
}
_UNUSABLE: Final = {
    "file is not a database": "The file is not a SQLite database",
    "database disk image is malformed": "The database file is damaged",
}


def _translated(error: Exception) -> Exception:
    """Return an error of this library for whatever was raised, a new one for each caller."""
    text = str(error).lower()
    if isinstance(error, SchemaVersionError):
        return SchemaVersionError(found=error.found, supported=error.supported)
    if isinstance(error, TaskRuntimeError):
        return error
    translated: StoreError
    if text in _UNAVAILABLE:
        translated = StoreUnavailableError(_UNAVAILABLE[text])
    else:
        translated = StoreError(_UNUSABLE.get(text, "The database failed"))
    translated.__cause__ = error
    return translated


def _is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error)


class Engine:
    """One database file, as the stores and queues of one process share it."""
