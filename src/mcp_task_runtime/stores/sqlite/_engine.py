"""Threads, group commit and wake-up: what the SQLite store stands on. Knows nothing of tasks but their ids.

An engine has two threads, each with a connection of its own; they start when they are first needed.

- The *writer* takes all requests that wait, does them in one transaction, commits once, and only then
  answers them all: group commit. When one of several fails with anything but an error of this library, or the
  commit fails, everything is rolled back and each request is done again in a transaction of its own.
- The *reader* answers requests that only look, beside the writer: with a write-ahead log neither waits for
  the other. It sees whatever was committed before the request was made.

An operation hops to a thread and back once. What one event loop asks for while the thread is busy travels as one
batch, with one event; the way back is the event loop's own (`call_soon_threadsafe`, `run_sync_soon`), so one
engine serves any number of event loops.

Wake-up within the process follows each commit. For commits of other processes the writer, while somebody
waits and only then, looks every `WATCH_SECONDS` at `PRAGMA data_version`, which changes when another connection has
committed; it costs some microseconds. On a change the reader looks for everybody who waits and wakes those
whose wait is over. If that takes long, because thousands wait, it is done less often.
"""

from __future__ import annotations

import logging
import math
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
from threading import Lock, RLock, Thread
from typing import Any, Final, TypeAlias, TypeVar

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.errors import (
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskRuntimeError,
)
from mcp_task_runtime.stores._threads import FORKED, Post, event_loop, poster, set_all, start_thread
from mcp_task_runtime.stores.sqlite._schema import Synchronous, open_database, to_stamp

__all__ = ["WATCH_SECONDS", "Engine", "Look", "Transaction"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_SECONDS: Final = 0.025
"""How often the commits of other processes are looked for while somebody waits."""

_BUSY_SECONDS: Final = 5.0
_BUSY_PAUSE: Final = (0.0005, 0.0035)  # seconds: from, to
_BUSY_TRIES: Final = int(_BUSY_SECONDS / (sum(_BUSY_PAUSE) / 2))
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
        known: What operations keep for later ones on the same connection. A rollback empties it.
    """

    __slots__ = ("execute", "known", "now", "stamp")

    def __init__(self, execute: Callable[..., sqlite3.Cursor], known: dict[str, Any], now: datetime) -> None:
        self.execute: Callable[..., sqlite3.Cursor] = execute
        self.known: dict[str, Any] = known
        self.now: datetime = now
        self.stamp: int = to_stamp(now)


Operation: TypeAlias = Callable[[Transaction], T]
"""What is done in a transaction.

One that writes may be done again after it failed, and raises an error of this library before it has written
anything: then it wrote nothing. One that only reads is a single statement. There is one cursor for all: the
rows of a statement are read to the end before the next is executed.
"""

Look: TypeAlias = Callable[[Transaction], tuple[T | None, datetime | None]]
"""A read that somebody waits for: what it found, or `None` and the time to look again at the latest."""

_Execute: TypeAlias = Callable[..., sqlite3.Cursor]
_Wake: TypeAlias = tuple[Post, anyio.Event]


def _wake_all(wakes: Iterable[_Wake]) -> None:
    """Set events, each on its event loop; one call a loop."""
    by_loop: dict[Post, list[anyio.Event]] = {}
    for post, event in wakes:
        by_loop.setdefault(post, []).append(event)
    for post, events in by_loop.items():
        with suppress(RuntimeError):  # that loop has ended: nobody waits there any more
            post(set_all, events)


class _Request:
    """One operation on its way to a thread and back."""

    __slots__ = ("_ticket", "error", "lasting", "operation", "task_id", "value")

    def __init__(self, operation: Operation[Any], task_id: str | None = None, lasting: bool = False) -> None:
        self.operation = operation
        self.task_id = task_id
        self.lasting = lasting
        self.value: Any = None
        self.error: Exception | None = None
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


class _Batch:
    """Requests of one event loop, all answered by one event."""

    __slots__ = ("done", "loop", "requests")

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.requests: list[_Request] = []
        self.done = anyio.Event()


class _Waiter:
    """Somebody who waits for a task; `event` is replaced before each look."""

    __slots__ = ("event", "look", "post", "task_id")

    def __init__(self, task_id: str, look: Look[Any]) -> None:
        self.task_id = task_id
        self.look = look
        self.post = poster(event_loop())
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
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._open: dict[Any, _Batch] = {}  # those in the queue that take more, by event loop
        self._lock = RLock()  # the garbage collector may close a lane in the middle of `put`
        self._thread: Thread | None = None
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._known: dict[str, Any] = {}
        self._is_closed = False
        self._when_closed: Callable[[], None] | None = None

    def put(self, request: _Request) -> anyio.Event:
        """Have a request served; return what is set when it was.

        Raises:
            StoreClosedError: The lane is closed.
            StoreUnavailableError: There are too many threads.
            StoreError: The lane is that of another process.
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

    def wake(self) -> None:
        """Have the thread see whether there is something else to do.

        Raises:
            StoreClosedError: The lane is closed.
            StoreUnavailableError: There are too many threads.
            StoreError: The lane is that of another process.
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
            return self._thread if self._thread is not None and self._thread.is_alive() else None

    def _run(self) -> None:
        try:
            while not (self._is_closed and self._queue.empty()):
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
        requests = [request for batch in batches for request in batch.requests]
        wakes: list[_Wake] = [(poster(batch.loop), batch.done) for batch in batches]
        try:
            if requests:
                wakes += self._serve(requests)
        except Exception as error:  # a fault of this module: nobody may hang for it
            self._fail(requests, error)
            raise
        finally:
            _wake_all(wakes)
        self._do_rest(is_idle=not requests)

    def _take(self) -> list[_Batch]:
        """Return the batches that wait, up to a limit; none if there is something else to do."""
        try:
            batch = self._queue.get(timeout=self._patience())
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

    def _patience(self) -> float | None:
        """Return how many seconds to wait for a request."""
        return None

    def _serve(self, requests: list[_Request]) -> list[_Wake]:
        """Give each request that nobody withdrew a value or an error; return who else is to be woken."""
        raise NotImplementedError

    def _do_rest(self, *, is_idle: bool) -> None:
        """Do what nobody asked for."""
        raise NotImplementedError

    def _connected(self) -> _Execute:
        """Open the connection unless it is open; return what executes a statement."""
        if self._cursor is None:
            self._connection = self._connect()
            self._cursor = self._connection.cursor()  # one for all: a connection keeps a list of those it made
            self._prepare(self._cursor.execute)
        return self._cursor.execute

    def _prepare(self, execute: _Execute) -> None:
        """Do what a new connection needs."""

    def _fail(self, requests: Iterable[_Request], error: Exception) -> None:
        self._disconnect()
        for request in requests:
            request.error = _translated(error)

    def _disconnect(self) -> None:
        """Close the connection, which rolls back; the next request opens another. So every fault heals."""
        connection, cursor = self._connection, self._cursor
        self._connection = self._cursor = None
        self._known = {}
        # In this order: SQLite keeps a connection, and its locks, for as long as somebody holds a statement of it.
        for part in (cursor, connection):
            if part is not None:
                with suppress(sqlite3.Error):
                    part.close()


class _Reader(_Lane):
    name = "reader"

    def scan(self) -> None:
        """Look for everybody who waits, and wake those whose wait is over."""
        self._waiters.is_scanning = True
        with suppress(StoreClosedError):
            self.wake()

    def _prepare(self, execute: _Execute) -> None:
        # A reader waits only while the log is recovered after a crash.
        execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")

    def _serve(self, requests: list[_Request]) -> list[_Wake]:
        wanted = [request for request in requests if request.take()]
        is_one_snapshot = len(wanted) > 1  # so that SQLite takes and frees its locks once
        for request in wanted:
            self._read(request, is_one_snapshot)
        self._end_snapshot()
        return []

    def _do_rest(self, *, is_idle: bool) -> None:
        if self._waiters.is_scanning:
            try:
                self._scan()
            finally:
                self._waiters.is_scanning = False

    def _transaction(self, is_snapshot: bool) -> Transaction:
        execute = self._connected()
        if is_snapshot and not self._is_in_snapshot():
            execute("BEGIN")
        return Transaction(execute, self._known, self._clock.now())

    def _is_in_snapshot(self) -> bool:
        return self._connection is not None and self._connection.in_transaction

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
            if self._is_in_snapshot():
                self._connected()("COMMIT")
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
        self._synchronous: Synchronous = synchronous
        self._purge = purge
        self._since_purge = 0
        self._has_more_to_purge = False
        self._next_purge = 0.0
        self._next_watch = 0.0
        self._version: int | None = None
        self._current_synchronous: Synchronous | None = None

    def _prepare(self, execute: _Execute) -> None:
        self._version = self._current_synchronous = None

    def _patience(self) -> float | None:
        if self._has_more_to_purge:
            return 0
        return max(WATCH_SECONDS, self._waiters.rest) if self._waiters else _IDLE_SECONDS

    def _serve(self, requests: list[_Request]) -> list[_Wake]:
        try:
            execute = self._begin(any(request.lasting for request in requests))
        except Exception as error:
            self._fail(requests, error)
            return []
        # Taken only now: while another process holds the lock they can still be withdrawn.
        return self._do_or_retry(execute, [request for request in requests if request.take()])

    def _do_rest(self, *, is_idle: bool) -> None:
        if is_idle and not self._is_closed and (self._has_more_to_purge or time.monotonic() >= self._next_purge):
            self._purge_idly()
        if self._waiters:
            self._watch()

    def _do_or_retry(self, execute: _Execute, requests: list[_Request]) -> list[_Wake]:
        try:
            purged = self._do(execute, requests)
        except Exception as error:
            if len(requests) < 2:
                self._fail(requests, error)
                return []
            self._disconnect()
            return self._retry(requests)
        changed = [request.task_id for request in requests if request.error is None and request.task_id is not None]
        return self._waiters.of([*changed, *purged])

    def _retry(self, requests: list[_Request]) -> list[_Wake]:
        """Do each request in a transaction of its own."""
        wakes: list[_Wake] = []
        for done, request in enumerate(requests):
            try:
                execute = self._begin(request.lasting)
            except Exception as error:  # the fault of none of them
                self._fail(requests[done:], error)
                break
            wakes += self._do_or_retry(execute, [request])
        return wakes

    def _do(self, execute: _Execute, requests: list[_Request]) -> Collection[str]:
        transaction = Transaction(execute, self._known, self._clock.now())
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
        execute("COMMIT")
        return purged

    def _begin(self, lasting: bool) -> _Execute:
        """Begin a transaction; what is not `lasting` is committed without waiting for the disk."""
        execute = self._connected()
        synchronous: Synchronous = self._synchronous if lasting else "normal"
        if synchronous != self._current_synchronous:
            execute(f"PRAGMA synchronous = {synchronous}")
            self._current_synchronous = synchronous
        _patiently(partial(execute, "BEGIN IMMEDIATE"))
        return execute

    def _purge_some(self, transaction: Transaction) -> Collection[str]:
        self._since_purge = 0
        self._next_purge = time.monotonic() + _IDLE_SECONDS
        purged = self._purge(transaction, _PURGE_MOST)
        self._has_more_to_purge = len(purged) == _PURGE_MOST
        return purged

    def _purge_idly(self) -> None:
        try:
            execute = self._begin(lasting=False)
            purged = self._purge_some(Transaction(execute, self._known, self._clock.now()))
            execute("COMMIT")
        except Exception:
            self._has_more_to_purge = False
            self._next_purge = time.monotonic() + _IDLE_SECONDS
            self._disconnect()
            logger.debug("Expired tasks could not be removed now", exc_info=True)
        else:
            _wake_all(self._waiters.of(purged))

    def _watch(self) -> None:
        now = time.monotonic()  # paces the watching; no task's time
        if self._waiters.is_scanning or now < self._next_watch:
            return
        try:
            (version,) = self._connected()("PRAGMA data_version").fetchone()
        except Exception:  # whoever calls next is told
            self._disconnect()
        else:
            if version != self._version:
                self._version = version
                self._reader.scan()
        self._next_watch = now + max(WATCH_SECONDS, self._waiters.rest)


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
    if isinstance(error, TaskRuntimeError):
        return error
    translated: StoreError
    if text in _UNAVAILABLE:
        translated = StoreUnavailableError(_UNAVAILABLE[text])
    else:
        translated = StoreError(_UNUSABLE.get(text, "The database failed"))
    translated.__cause__ = error
    return translated


def _patiently(operation: Callable[[], T]) -> T:
    """Do something again while another process holds a lock, for a few seconds.

    SQLite's own waiting takes up to 100 ms a step: beside a busy process that rarely gets a turn.
    """
    for _ in range(_BUSY_TRIES):
        try:
            return operation()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        time.sleep(uniform(*_BUSY_PAUSE))
    return operation()


def _connect(path: str, synchronous: Synchronous) -> sqlite3.Connection:
    return _patiently(partial(open_database, path, synchronous=synchronous))


def _do_nothing(_: Transaction) -> None:
    pass


def _close_lanes(*lanes: _Lane) -> None:
    for lane in lanes:
        lane.close()


class Engine:
    """One database file, as a store and its queue share it.

    It opens when it is first used, and then serves whatever event loop calls. Not closed, it closes
    itself when nothing refers to it any more.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock,
        synchronous: Synchronous,
        purge: Callable[[Transaction, int], Collection[str]],
    ) -> None:
        """Make an engine; nothing is opened yet.

        Args:
            path: The database file, on a local disk.
            clock: Where time comes from; `now` is called in threads.
            synchronous: How safe a commit is.
            purge: Removes what has expired, up to a number of tasks, and returns their ids.

        Raises:
            ValueError: `path` is no file's, or `synchronous` is unknown.
        """
        name = os.fspath(path)
        if name in ("", ":memory:"):
            raise ValueError("path must name a file; use InMemoryTaskStore for tasks in memory")
        if synchronous not in ("full", "normal"):
            raise ValueError("synchronous must be 'full' or 'normal'")
        self.clock = clock
        self._waiters = _Waiters()
        connect = partial(_connect, os.path.abspath(name), synchronous)
        self._reader = _Reader(connect, clock, self._waiters)
        self._writer = _Writer(connect, clock, self._waiters, self._reader, synchronous, purge)
        weakref.finalize(self, _close_lanes, self._writer, self._reader)

    async def open(self) -> None:
        """Open the file, make sure that it can be written, and migrate it; the first use does so as well."""
        await self.write(_do_nothing, lasting=False)

    async def write(self, operation: Operation[T], *, task_id: str | None = None, lasting: bool = True) -> T:
        """Do something in a transaction that is committed, maybe together with others, before this returns.

        Cancelled, it is withdrawn if its transaction has not begun. Otherwise this returns what came of it
        as soon as that is known, and the cancellation comes at the next checkpoint: so it is never done
        later on, and no result is lost.

        Args:
            operation: What to do; it runs in a thread.
            task_id: The task it changes: whoever waits for that task is woken.
            lasting: Whether a power failure must not take it back.
        """
        request = _Request(operation, task_id, lasting)
        done = self._writer.put(request)
        try:
            await done.wait()
        except BaseException as interruption:
            if request.take():
                raise
            with anyio.CancelScope(shield=True):
                await done.wait()
            if not _comes_again(interruption):
                raise
        result: T = request.result()
        return result

    async def read(self, operation: Operation[T]) -> T:
        """Do something that changes nothing."""
        request = _Request(operation)
        done = self._reader.put(request)
        try:
            await done.wait()
        except BaseException:
            request.take()
            raise
        result: T = request.result()
        return result

    async def wait(self, task_id: str, look: Look[T]) -> T:
        """Return what a look finds as soon as it finds something; look when the task has changed, and in time."""
        waiter = _Waiter(task_id, look)
        is_first = self._waiters.add(waiter)
        try:
            if is_first:
                self._writer.wake()  # it has to watch from now on
            while True:
                waiter.event = anyio.Event()  # before the look: a change after it sets this one
                found, until = await self.read(look)
                if found is not None:
                    return found
                with self.clock.move_on_at(until):
                    await waiter.event.wait()
        finally:
            self._waiters.discard(waiter)

    def wake_waiters(self) -> None:
        """Have everybody who waits look again."""
        _wake_all([(waiter.post, waiter.event) for waiter in self._waiters.everybody()])

    async def aclose(self) -> None:
        """Do what was asked for, close the file, and wake whoever waits with `StoreClosedError`. Never cancelled."""
        post = poster(event_loop())
        closing: list[tuple[Thread, anyio.Event]] = []
        for lane in (self._writer, self._reader):
            closed = anyio.Event()
            thread = lane.close(partial(_wake_all, [(post, closed)]))
            if thread is not None:
                closing.append((thread, closed))
        self.wake_waiters()  # after the lanes are closed, so that nobody begins to wait again
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            for thread, closed in closing:
                await closed.wait()
                thread.join()  # it has nothing left to do


def _comes_again(interruption: BaseException) -> bool:
    """Whether an interruption is a cancellation that the next checkpoint raises again, and so may be dropped.

    That of a cancel scope is; asyncio's own `Task.cancel` is not.
    """
    is_cancelled = isinstance(interruption, anyio.get_cancelled_exc_class())
    return is_cancelled and anyio.current_effective_deadline() == -math.inf
