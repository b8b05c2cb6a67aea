"""A thread of an engine with a connection of its own, and the requests that it serves in batches.

An engine has two. The *writer* carries out all requests that wait in one transaction, see `_writer`; the *reader*
answers requests that only look, in parallel to the writer, see `_reader`.

A request that fails because the file is unavailable is put aside and repeated until its deadline has passed, while
others go on. Only then does the caller see the error.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import Any, Final

import anyio

from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.stores._threads import FORKED, event_loop, poster, start_thread
from mcp_task_runtime.stores.sqlite._file import DatabaseFile, is_locked
from mcp_task_runtime.stores.sqlite._transaction import Execute, Operation
from mcp_task_runtime.stores.sqlite._waiters import Waiters, Wake, wake_all

__all__ = ["Lane", "Request"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.sqlite")

_RETRY_SECONDS: Final = 0.05
_BATCH: Final = 256


class Request:
    """One operation on its way to a thread and back.

    Attributes:
        deadline: Until when it is repeated while the file is unavailable, by `time.monotonic`.
        is_opening: Whether the caller wants to know at once that the file cannot be opened; it waits for locks only.
        is_lasting: Whether a power failure must not undo it.
        is_abandoned: Whether its caller was cancelled: it is not repeated.
    """

    __slots__ = (
        "_ticket",
        "deadline",
        "error",
        "is_abandoned",
        "is_lasting",
        "is_opening",
        "is_settled",
        "operation",
        "value",
        "wake",
    )

    def __init__(
        self, operation: Operation[Any], deadline: float, *, is_lasting: bool = False, is_opening: bool = False
    ) -> None:
        self.operation = operation
        self.deadline = deadline
        self.is_lasting = is_lasting
        self.is_opening = is_opening
        self.is_abandoned = False
        self.is_settled = False
        self.value: Any = None
        self.error: Exception | None = None
        self.wake: Wake | None = None
        self._ticket = [None]

    def take(self) -> bool:
        """Take the request, to carry it out or to withdraw it. The first caller gets it, in any thread."""
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True

    def put_back(self) -> bool:
        """Allow the request to be taken again; return whether it is to be carried out later."""
        self._ticket.append(None)
        return not (self.is_abandoned and self.take())

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class _Batch:
    """Requests of one event loop, all answered by one event."""

    __slots__ = ("done", "loop", "requests")

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.requests: list[Request] = []
        self.done = anyio.Event()


class Lane:
    """A thread with a connection, and the requests it is to serve in batches."""

    name = ""

    def __init__(self, file: DatabaseFile, waiters: Waiters, timeout: float) -> None:
        self.served = 0
        self._file = file
        self._clock = file.clock
        self._waiters = waiters
        self._timeout = timeout
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._open: dict[Any, _Batch] = {}  # those in the queue that take more, by event loop
        self._aside: list[Request] = []
        self._next_try = 0.0
        self._lock = RLock()  # the garbage collector may close a lane in the middle of `put`
        self._thread: Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._known: dict[str, Any] = {}
        self._is_closed = False
        self._when_closed: Callable[[], None] | None = None

    @property
    def queued(self) -> int:
        """Number of requests that the thread has not taken, or more; those put aside are included."""
        return self._queue.qsize() + len(self._aside)

    def put(self, request: Request) -> anyio.Event:
        """Have a request served; return the event to wait for, see `later`.

        Raises:
            StoreClosedError: The lane is closed.
            StoreUnavailableError: No thread could be started.
            StoreError: The lane belongs to another process.
        """
        loop = event_loop()
        with self._lock:
            self._make_ready()
            batch = self._open.get(loop)
            if batch is None or len(batch.requests) == _BATCH:
                batch = self._open[loop] = _Batch(loop)
                self._queue.put(batch)
            batch.requests.append(request)
            return batch.done

    def later(self, request: Request) -> anyio.Event | None:
        """Return the event to wait for next, or `None` if the request was served."""
        with self._lock:
            if request.is_settled:
                return None
            event = anyio.Event()
            request.wake = (poster(event_loop()), event)
            return event

    def wake(self) -> None:
        """Have the thread see whether there is something else to do.

        Raises:
            StoreClosedError: The lane is closed.
            StoreUnavailableError: No thread could be started.
            StoreError: The lane belongs to another process.
        """
        with self._lock:
            self._make_ready()
            self._queue.put(None)

    def _make_ready(self) -> None:
        if self._is_closed:
            raise StoreClosedError
        if self._thread is not None and not self._thread.is_alive():
            raise StoreError(FORKED)
        if self._thread is None:
            self._thread = start_thread(self._run, f"mcp-task-runtime-{self.name}")

    def close(self, when_closed: Callable[[], None] | None = None) -> Thread | None:
        """Accept no more requests; when the present ones have been served, close the connection and call back.

        Returns:
            The thread that will do so, or `None` if there is nothing to do.
        """
        with self._lock:
            if self._is_closed:
                return None
            self._is_closed = True
            self._when_closed = when_closed
            self._queue.put(None)
            return self._thread if self._thread is not None and self._thread.is_alive() else None

    def _run(self) -> None:
        try:
            while not (self._is_closed and self._queue.empty() and not self._aside):
                try:
                    self._turn()
                except Exception:
                    logger.exception("A database thread failed")
                    self._disconnect()
        finally:
            self._disconnect()
            if self._when_closed is not None:
                self._when_closed()

    def _turn(self) -> None:
        batches = self._take()
        fresh = [request for batch in batches for request in batch.requests]
        requests = [*self._take_aside(), *fresh]
        wakes: list[Wake] = [(poster(batch.loop), batch.done) for batch in batches]
        try:
            if requests:
                wakes += self._serve(requests)
        except Exception as error:  # a fault of this module: no caller may hang for it
            self._disconnect()
            for request in requests:
                request.error = self._file.translate(error)
            raise
        finally:
            wakes += self._settle(requests)
            wake_all(wakes)
        self._do_rest(is_idle=not requests)

    def _take(self) -> list[_Batch]:
        """Return the batches that wait, up to a limit; none if there is something else to do."""
        try:
            batch = self._queue.get(timeout=self._patience_now())
        except Empty:
            return []
        taken: list[_Batch] = []
        size = 0
        while True:
            if batch is not None:
                with self._lock:
                    if self._open.get(batch.loop) is batch:
                        del self._open[batch.loop]
                taken.append(batch)
                size += len(batch.requests)
            if size >= _BATCH or self._queue.empty():
                return taken
            batch = self._queue.get_nowait()  # this thread is the only one that takes

    def _take_aside(self) -> list[Request]:
        """Return the requests that were put aside, if it is time to repeat them."""
        if not self._aside or time.monotonic() < self._next_try:
            return []
        aside, self._aside = self._aside, []
        return aside

    def _put_aside(self, requests: Iterable[Request]) -> None:
        self._aside.extend(requests)
        self._next_try = time.monotonic() + _RETRY_SECONDS

    def _settle(self, requests: list[Request]) -> list[Wake]:
        """Mark the requests that were served; return what wakes the callers that wait for nothing but one of them."""
        aside = set(map(id, self._aside))
        settled = [request for request in requests if id(request) not in aside] if aside else requests
        with self._lock:
            for request in settled:
                request.is_settled = True
            return [request.wake for request in settled if request.wake is not None]

    def _patience_now(self) -> float | None:
        patience = self._patience()
        if not self._aside:
            return patience
        until_next_try = max(0.0, self._next_try - time.monotonic())
        return until_next_try if patience is None else min(patience, until_next_try)

    def _patience(self) -> float | None:
        """Return how many seconds to wait for a request."""
        return None

    def _serve(self, requests: list[Request]) -> list[Wake]:
        """Give each request that was not withdrawn a value or an error, or put it aside; return whom else to wake."""
        raise NotImplementedError

    def _do_rest(self, *, is_idle: bool) -> None:
        """Do background work."""
        raise NotImplementedError

    def _connected(self, deadline: float) -> Execute:
        """Open the connection unless it is open; return what executes a statement."""
        if self._cursor is None:
            self._connection = self._file.connect(deadline)
            self._cursor = self._connection.cursor()  # one for all: a connection keeps a list of those it made
            self._prepare(self._cursor.execute)
        return self._cursor.execute

    def _prepare(self, execute: Execute) -> None:
        """Do what a new connection needs."""

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        """Give requests that were taken an error, or put them aside to be repeated."""
        self._disconnect()
        later = []
        for request in requests:
            translated = self._file.translate(error)
            if self._may_repeat(request, translated, error) and request.put_back():
                later.append(request)
            else:
                request.error = translated
        if later:
            self._put_aside(later)

    def _may_repeat(self, request: Request, translated: TaskRuntimeError, error: Exception) -> bool:
        """Whether a request that failed is repeated; logs the outage if there is one."""
        if not isinstance(translated, StoreUnavailableError):
            return False
        is_late = time.monotonic() >= request.deadline
        if request.is_opening and not is_locked(error):
            return False
        if is_late or not is_locked(error):
            self._file.failed(self.name, translated)
        return not is_late

    def _disconnect(self) -> None:
        """Close the connection, which rolls back; the next request opens another. So every fault heals."""
        connection, cursor = self._connection, self._cursor
        self._connection = self._cursor = None
        self._known = {}
        # In this order: SQLite keeps a connection, and its locks, for as long as there is a statement of it.
        for part in (cursor, connection):
            if part is not None:
                with suppress(sqlite3.Error):
                    part.close()
