"""`Database`: what a store and its queue share: connections, and who waits.

An operation runs in a worker thread, on a connection of a pool. A server that cannot be reached for a moment is waited
out, up to the timeout of the store: an operation that reached no server is tried again, and so is one whose connection
broke, which then finds out whether it happened (`Attempt.is_repeated`).

Waiters are woken by NOTIFY, sent in the transaction that makes the change. A process listens while a caller waits in
it, on one connection outside the pool. When that breaks, the process connects again and all waiters look
again: waiting is level-triggered, so nothing is missed. PostgreSQL commits transactions that notify one after the
other, so a task knows which processes wait for it (`tasks.watchers`), and a change notifies only if there are others
than the one that makes it.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import psycopg
from psycopg import Connection, Cursor
from psycopg.errors import DeadlockDetected, ReadOnlySqlTransaction, SerializationFailure
from psycopg.rows import tuple_row
from psycopg_pool import ConnectionPool

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.functions import do_nothing
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import (
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntimeError,
)
from mcp_task_runtime.stores._cursor import CursorKey
from mcp_task_runtime.stores._outage import Outage
from mcp_task_runtime.stores._server_clock import ServerClock
from mcp_task_runtime.stores._threads import FORKED, Threads, event_loop
from mcp_task_runtime.stores.postgres._attempt import Attempt, NotYet, Queries
from mcp_task_runtime.stores.postgres._connections import BorrowedPool, BusyError, Connections, OwnPool
from mcp_task_runtime.stores.postgres._errors import RetryError, sqlstate_of, timed_out, translated
from mcp_task_runtime.stores.postgres._listener import Listener
from mcp_task_runtime.stores.postgres._migrations import migrate
from mcp_task_runtime.stores.postgres._rows import from_text, to_text
from mcp_task_runtime.stores.postgres._signals import Signals, Topic
from mcp_task_runtime.stores.postgres._statements import SERVER_TIME, own_channel
from mcp_task_runtime.stores.postgres._statistics import PostgresStatistics
from mcp_task_runtime.stores.postgres._watching import LookAt, Watching

__all__ = ["Database"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS: Final = 0.1
_LOOK_AGAIN_SECONDS: Final = 5.0
_DOUBTFUL_SECONDS: Final = 60.0


class _LoopState:
    """State of one event loop: its waiters, what listens for them and looks for them, the slots of operations."""

    def __init__(self, loop: Any, slots: int, signals: Signals, listener: Listener, watching: Watching) -> None:
        self.loop: Any = loop
        self.signals = signals
        self.listener = listener
        self.watching = watching
        self.doubtful_until: float = -math.inf
        self.opening = anyio.Lock()
        # An operation that has a slot finds a connection, unless another application uses the pool, too.
        self.slots = anyio.Semaphore(slots, fast_acquire=True)


class Database:
    """Connections, threads and waiters of a store and its queue.

    Attributes:
        clock: Follows the server's time, unless a clock was injected.
    """

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None,
        schema: str,
        max_connections: int,
        timeout: float,
    ) -> None:
        if not 0 < len(schema.encode("utf-8", "replace")) < 64 or "\0" in schema or "%" in schema:
            raise ValueError("schema must be the name of a database schema, of at most 63 bytes and without %")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        if not 0 < timeout < math.inf:
            raise ValueError("timeout must be above 0")
        self._connections: Connections = (
            OwnPool(database, max_connections, timeout=timeout) if isinstance(database, str) else BorrowedPool(database)
        )
        server_clock = ServerClock()
        self._server_clock = server_clock if clock is None else None
        self.clock: Clock = server_clock if clock is None else clock
        self._number = secrets.randbits(63)
        self._schema = schema
        self._timeout = timeout
        self._queries = Queries(schema, clock)
        self._cursors: CursorKey | None = None
        self._threads = Threads("mcp-task-runtime-postgres")
        backend = f"PostgreSQL at {self._connections.address}"
        self._outage = Outage(logger, backend)
        self._read_only = Outage(logger, backend, ability="take changes")
        self._closed = False
        self._process = 0
        self._current: _LoopState | None = None

    # --- what statements need ---

    @property
    def watcher(self) -> int:
        """The number of this process among those that wait; another one after a fork."""
        return self._number ^ os.getpid()

    async def cursor_key(self) -> CursorKey:
        """Return what encrypts list cursors, the same in all processes."""
        if self._cursors is None:
            await self._open_in_time()
        assert self._cursors is not None
        return self._cursors

    # --- life ---

    async def open(self) -> None:
        """Connect and bring the schema up to date, unless that was done.

        Raises:
            StoreUnavailableError: The server cannot be reached; the message names host, port and database.
            SchemaVersionError: A later version of this library wrote the schema.
            StoreError: The schema is another application's, or cannot be read.
        """
        async with self._state.opening:
            self._check_open()
            if self._cursors is None:
                await self._in_thread(self._open)

    async def aclose(self) -> None:
        """Close: waiters wake with `StoreClosedError`."""
        self._closed = True
        if self._is_foreign:
            return
        state = self._state
        state.signals.fire_all()
        with anyio.CancelScope(shield=True):
            await state.watching.aclose()
            await state.listener.aclose()
            async with state.opening:
                await self._in_thread(self._connections.close)

    def statistics(self) -> PostgresStatistics:
        """Return what happens here now. Call it on the event loop that uses the store."""
        state = self._state
        in_use, idle = self._connections.counts()
        return PostgresStatistics(
            reads=self._queries.reads,
            writes=self._queries.writes,
            waiters=len(state.signals),
            is_listening=state.listener.is_on,
            connections_in_use=in_use,
            idle_connections=idle,
            free_slots=state.slots.value,
            is_unavailable=self._outage.is_on or self._read_only.is_on,
        )

    # --- operations ---

    async def read(self, work: Callable[[Attempt], T]) -> T:
        """Return what `work` reads; see `run`."""
        self._queries.count(reads=1)
        return await self.run(work)

    async def write(self, work: Callable[[Attempt], T], *, repeatable: bool = True) -> T:
        """Return what `work` returns that may write; see `run`."""
        self._queries.count(writes=1)
        return await self.run(work, writes=True, repeatable=repeatable)

    async def run(self, work: Callable[[Attempt], T], *, writes: bool = False, repeatable: bool = True) -> T:
        """Return what `work` returns that is done with a connection, in a thread.

        Cancelled before `work` has a connection, nothing happens; cancelled later, this waits for the end of
        the work, so that it happens in full (law L6).

        Args:
            work: What to do. It may be done again, see `Attempt.is_repeated`.
            writes: Whether it changes anything.
            repeatable: Whether it can be repeated when its effect is unknown.

        Raises:
            StoreClosedError: The store is closed.
            StoreUnavailableError: The server could not be reached, or did not answer, for the timeout.
            StoreError: The server refused.
        """
        if self._cursors is None:
            await self._open_in_time()
        give_up_at = math.inf
        is_repeated = False
        reason: BaseException | None = None
        while True:
            self._check_open()
            slots = await self._acquire_slot()
            try:
                started_at = monotonic()
                give_up_at = min(give_up_at, anyio.current_time() + self._timeout)
                with anyio.CancelScope(deadline=give_up_at, shield=True):
                    return await self._threads.run(partial(self._attempt, work, is_repeated, writes, repeatable))
                if reason is None:  # it had the whole timeout
                    self._outage.failed(started_at)
                raise timed_out(reason) from reason
            except RetryError as error:
                is_repeated = is_repeated or error.is_doubtful
                is_outage, reason = error.is_outage, error.__cause__
            finally:
                slots.release()
            pause = _RETRY_SECONDS if is_outage else 0
            if anyio.current_time() + pause >= give_up_at:
                raise timed_out(reason) from reason
            await anyio.sleep(pause)

    async def change(
        self,
        task_id: str,
        work: Callable[[Attempt], T],
        *,
        topics: Iterable[Topic] = ("task",),
    ) -> T:
        """Return what `work` returns that changes a task; wake its waiters in this process.

        Args:
            task_id: The task, in its stored form.
            work: What to do; see `run`.
            topics: What changes.
        """
        signals = self._state.signals
        news: TaskRecord | None = None
        try:
            result = await self.write(work)
            news = result if isinstance(result, TaskRecord) else None
            return result
        except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
            # It may happen yet, and will notify no waiter here.
            self._state.doubtful_until = until = anyio.current_time() + _DOUBTFUL_SECONDS
            signals.fire_all()
            signals.watchers.doubt(task_id, until)
            raise
        finally:
            for topic in topics:
                signals.fire(topic, task_id, news)

    def fire_cleared(self, task_id: str) -> None:
        """Wake the waiters in this process for a mailbox that it cleared, and for its task."""
        self._state.signals.fire_cleared(task_id)

    def fire_ended(self, task_id: str) -> None:
        """Wake the waiters in this process for a task that it ended or deleted."""
        self._state.signals.fire_ended(task_id)

    def watch(
        self,
        task_id: str,
        on_change: Callable[[TaskRecord | None], None],
        *,
        after: int,
        look: LookAt,
    ) -> Callable[[], None]:
        """Call a function soon after each change of a task, until the function returned is called.

        Args:
            task_id: The task, in its stored form.
            on_change: Called with the task, or with `None` where it has to look.
            after: The revision that it has already.
            look: Has this process notified of changes of tasks; see `Watching.begin`.

        Raises:
            StoreClosedError: The store is closed.
        """
        if self._closed:
            raise StoreClosedError
        state = self._state
        watcher = state.signals.watchers.add(task_id, on_change, after=after)
        state.watching.begin(look)
        return watcher

    def watch_end(self, task_id: str, on_end: Callable[[], None], *, look: LookAt) -> Callable[[], None]:
        """Call a function when a task has ended or is gone, at once if that is known.

        Args:
            task_id: The task, in its stored form; made or claimed by this process.
            on_end: What to call.
            look: As for `watch`.

        Raises:
            StoreClosedError: The store is closed.
        """
        if self._closed:
            raise StoreClosedError
        state = self._state
        watcher = state.signals.watchers.add_end(task_id, on_end)
        state.watching.begin(look)
        return do_nothing if watcher is None else watcher

    @property
    def ends_mark(self) -> int:
        """What `note_made` takes, read before a task is made or claimed."""
        return self._state.signals.watchers.ends_mark

    def note_made(self, task_id: str, mark: int) -> None:
        """Note a task that was made or claimed, in its stored form; see `Watchers.made`."""
        self._state.signals.watchers.made(task_id, mark)

    def fire_changed(self, record: TaskRecord) -> None:
        """Wake the waiters in this process for a task that it changed."""
        self._state.signals.fire("task", to_text(record.task_id), record)

    async def wait(
        self, topic: Topic, task_id: str, look: Callable[[Attempt], T | NotYet], *, writes: bool = False
    ) -> T:
        """Look, and look again whenever something may have changed, until there is no reason to wait (law L3).

        An outage does not end the wait, only the first look must succeed.

        Args:
            topic: What kind of change is waited for.
            task_id: Of which task, in its stored form.
            look: Reads what is waited for.
            writes: Whether it changes what it finds. A look that has begun is not cancelled then.

        Raises:
            TaskNotFoundError: The task is gone, or its mailbox was cleared.
            StoreClosedError: The store was closed.
        """
        seen: T | NotYet | None = None
        since: int | None = None
        state = self._state
        signal = state.signals.enter(topic, task_id)
        try:
            clears = signal.clears
            await self._listen(state.listener)
            while True:
                event = signal.event
                try:
                    seen = await (self._write_to_the_end(look) if writes else self.read(look))
                except StoreUnavailableError:
                    if not isinstance(seen, NotYet):
                        raise
                    with anyio.move_on_after(_LOOK_AGAIN_SECONDS):
                        await event.wait()
                    continue
                if not isinstance(seen, NotYet):
                    return seen
                since = seen.since if since is None else since
                if since is not None and (signal.clears != clears or signal.cleared_by >= since):
                    raise TaskNotFoundError(from_text(task_id))
                if self._server_clock is not None and seen.until is not None and seen.until <= self.clock.now():
                    self._server_clock.distrust()
                if anyio.current_time() < state.doubtful_until:
                    with self.clock.move_on_at(seen.until), anyio.move_on_after(_LOOK_AGAIN_SECONDS):
                        await event.wait()
                elif seen.until is None:  # a scope takes a kilobyte
                    await event.wait()
                else:
                    with self.clock.move_on_at(seen.until):
                        await event.wait()
        finally:
            state.signals.leave(topic, task_id)

    # --- inside ---

    async def _write_to_the_end(self, work: Callable[[Attempt], T]) -> T:
        """Return what `work` returns that may write, also when this is cancelled meanwhile."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            return await self.write(work)
        raise AssertionError("this scope is never cancelled")

    async def _listen(self, listener: Listener) -> None:
        """Hear of changes from now on; the caller waits for some."""
        self._check_open()
        if self._cursors is None:
            await self._open_in_time()
        await listener.listen(self._timeout)

    @property
    def _state(self) -> _LoopState:
        """The state of the running event loop. What is left of another one, which has ended, is dropped."""
        state, loop = self._current, event_loop()
        if state is None or state.loop is not loop:
            signals, connections = Signals(), self._connections
            channels = (self._schema, own_channel(self.watcher))
            listener = Listener(signals, connections.connect, channels, threads=self._threads, outage=self._outage)
            watching = Watching(signals.watchers, partial(self._listen, listener))
            state = self._current = _LoopState(loop, connections.maximum or 1_000, signals, listener, watching)
        return state

    @property
    def _is_foreign(self) -> bool:
        """Whether the connections are those of another process, of which this one is a fork."""
        return self._cursors is not None and self._process != os.getpid()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError
        if self._is_foreign:
            raise StoreError(FORKED)

    async def _open_in_time(self) -> None:
        """Open when the store is first used; the server is waited for as in any operation."""
        give_up_at = anyio.current_time() + self._timeout
        while True:
            started_at = monotonic()
            reason: BaseException | None = None
            try:
                with anyio.move_on_after(give_up_at - anyio.current_time()):  # others may be opening it
                    await self.open()
                    self._outage.succeeded(started_at)
                    return
            except StoreUnavailableError as error:
                self._outage.failed(started_at)
                reason = error.__cause__
            if anyio.current_time() + _RETRY_SECONDS >= give_up_at:
                raise StoreUnavailableError("PostgreSQL could not be reached") from reason
            await anyio.sleep(_RETRY_SECONDS)

    async def _acquire_slot(self) -> anyio.Semaphore:
        """Wait for a slot: as long as it takes while the server answers, up to the timeout in an outage."""
        slots = self._state.slots
        if slots.value:  # it does not wait
            await slots.acquire()
            return slots
        while True:
            with anyio.move_on_after(self._timeout):
                await slots.acquire()
                return slots
            if self._outage.is_on:
                raise StoreUnavailableError("PostgreSQL could not be reached")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Return what `work` returns that is done in a thread. Cancelled, this waits for its end."""
        with anyio.CancelScope(shield=True):
            return await self._threads.run(work)
        raise AssertionError("this scope is never cancelled")

    def _open(self) -> None:
        give_up_at = monotonic() + self._timeout
        while True:
            try:
                connection = self._connections.take()
                break
            except (BusyError, psycopg.Error, OSError) as error:
                if not isinstance(error, BusyError) or monotonic() >= give_up_at:
                    message = f"PostgreSQL at {self._connections.address} could not be reached"
                    raise StoreUnavailableError(message) from error
        try:
            secret = migrate(connection, self._schema, self._queries.query, self._queries.with_time({}))
            with self._connections.using(connection):
                self._measure_time(connection)
        except BaseException as error:
            self._connections.discard(connection)
            if isinstance(error, psycopg.Error):
                raise translated(error) from error
            raise
        self._connections.put(connection)
        self._cursors, self._process = CursorKey(secret), os.getpid()

    def _attempt(self, work: Callable[[Attempt], T], is_repeated: bool, writes: bool, repeatable: bool) -> T:
        started_at = monotonic()
        with self._connection() as connection:
            try:
                with self._connections.using(connection):
                    if self._server_clock is not None and self._server_clock.is_due:
                        self._measure_time(connection)
                    result = work(Attempt(self._queries, connection, is_repeated))
            except (TaskRuntimeError, RetryError):
                raise
            except Exception as error:  # the driver raises others than its own, too
                raise self._judged(error, connection, repeatable) from error
        self._outage.succeeded(started_at)
        if writes:
            self._read_only.succeeded()
        return result

    @contextmanager
    def _connection(self) -> Iterator[Connection[Any]]:
        """Take a connection for a block. An error without one changed nothing."""
        started_at = monotonic()
        try:
            connection = self._connections.take()
        except BusyError as error:
            raise RetryError from error
        except (psycopg.Error, OSError) as error:
            if self._closed:
                raise StoreClosedError from error
            self._outage.failed(started_at)
            raise RetryError(is_outage=True) from error
        try:
            yield connection
        finally:
            self._connections.put(connection)

    def _judged(self, error: Exception, connection: Connection[Any], repeatable: bool) -> Exception:
        """Return what is raised for an error of the driver."""
        if isinstance(error, SerializationFailure | DeadlockDetected):
            return RetryError()
        if isinstance(error, ReadOnlySqlTransaction) or sqlstate_of(error).startswith("53"):  # no room, for now
            self._read_only.failed(monotonic())
            return RetryError(is_outage=True)
        if self._closed:
            return StoreClosedError()
        if connection.closed and repeatable:
            return RetryError(is_doubtful=True)
        return translated(error)

    def _measure_time(self, connection: Connection[Any]) -> None:
        clock = self._server_clock
        if clock is None:
            return
        sent = clock.monotonic()
        row = Cursor(connection, row_factory=tuple_row).execute(SERVER_TIME).fetchone()
        assert row is not None
        clock.observe(row[0], sent=sent, received=clock.monotonic())
