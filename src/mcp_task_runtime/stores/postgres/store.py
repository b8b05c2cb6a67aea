"""Tasks in PostgreSQL 14 or later: for those who have one already. Needs the extra `postgres`.

Every operation is one statement on a pooled connection, in a worker thread. A change that a condition
refused is looked at again by `core.transitions`, which knows what to say. The stored form stands in
`_schema`.

Whoever waits is woken by NOTIFY, sent in the transaction that makes the change. A process listens while
somebody waits in it, on one connection beside the pool. When that connection breaks, it is made anew and
everybody who waits looks again: waiting is level-triggered, so nothing is missed. PostgreSQL commits
transactions that notify one after the other, so a task knows which processes wait for it
(`tasks.watchers`), and a change notifies only if there are others than the one that makes it.

Use a store on one event loop at a time.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Literal, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

try:
    import psycopg
    from psycopg_pool import ConnectionPool, PoolTimeout
except ImportError as _error:
    raise ImportError("A PostgreSQL store needs its driver: pip install 'mcp-task-runtime[postgres]'") from _error
from psycopg import Connection, Cursor, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import DeadlockDetected, ForeignKeyViolation, ReadOnlySqlTransaction, SerializationFailure
from psycopg.rows import TupleRow, tuple_row
from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, create_record, finish_record, update_record
from mcp_task_runtime.core.types import Fence, LiveStatus, NewTask, Outcome, Progress, TaskPage, TaskRecord, TaskRequest
from mcp_task_runtime.errors import (
    InvalidCursorError,
    SchemaVersionError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
    TaskRuntimeError,
)
from mcp_task_runtime.stores._cursor import decode_cursor, encode_cursor
from mcp_task_runtime.stores._event_loop import start_background_task
from mcp_task_runtime.stores._threads import FORKED, Threads, event_loop
from mcp_task_runtime.stores.postgres import _schema as stored

__all__ = ["PostgresTaskMessageQueue", "PostgresTaskStore"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_Execute: TypeAlias = Callable[..., Cursor[TupleRow]]
"""Runs a statement of `_schema` with its parameters."""

_Topic: TypeAlias = Literal["task", "message", "answer"]

_TOPICS: Final[dict[str, tuple[_Topic, ...]]] = {
    "u": ("task",),
    "m": ("message",),
    "a": ("answer",),
    "c": ("message", "answer"),
    "d": ("task", "message", "answer"),
}
"""Who is woken, by the first letter of a notification; see `_schema`."""

_NO_REQUEST: Final = TaskRequest()

_OLDEST_SERVER: Final = 14_00_00
_PURGE_EVERY: Final = 16
_PURGE_MOST: Final = 8 * _PURGE_EVERY
_LARGEST_PAGE: Final = 10_000
_LARGEST_POSITION: Final = 2**63 - 1

_CONNECTION_DEFAULTS: Final = {
    "application_name": "mcp-task-runtime",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    # A server that vanished is noticed within half a minute, also by who only listens.
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_CHECKOUT_SECONDS: Final = 0.5
_RECONNECT_SECONDS: Final = 0.25
_LOOK_AGAIN_SECONDS: Final = 5.0
_DOUBTFUL_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 2.0


class _TryAgainError(Exception):
    """Nothing happened: there was no connection, or the transaction lost a race and was rolled back."""


@dataclass(frozen=True, slots=True)
class _NotYet:
    """What a look returns while there is a reason to wait.

    Attributes:
        until: When to look again at the latest.
        since: Transactions below this number came before the wait, or may have.
    """

    until: datetime | None
    since: int | None = None


class _Signal:
    """What a number of waiters wait for: one topic of one task."""

    __slots__ = ("cleared_by", "clears", "event", "waiters")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.waiters = 0
        self.clears = 0
        self.cleared_by = -1

    def fire(self) -> None:
        self.event.set()
        self.event = anyio.Event()


class _Signals:
    """All that is waited for in this process; there is nothing of what nobody waits for."""

    def __init__(self) -> None:
        self._signals: dict[tuple[_Topic, str], _Signal] = {}

    def __bool__(self) -> bool:
        return bool(self._signals)

    @contextmanager
    def watch(self, topic: _Topic, task_id: str) -> Iterator[_Signal]:
        signal = self._signals.setdefault((topic, task_id), _Signal())
        signal.waiters += 1
        try:
            yield signal
        finally:
            signal.waiters -= 1
            if not signal.waiters:
                del self._signals[topic, task_id]

    def fire(self, topic: _Topic, task_id: str) -> None:
        signal = self._signals.get((topic, task_id))
        if signal is not None:
            signal.fire()

    def fire_all(self) -> None:
        for signal in self._signals.values():
            signal.fire()

    def fire_cleared(self, task_id: str) -> None:
        """Release who waits for a message of a mailbox that this process cleared."""
        signal = self._signals.get(("message", task_id))
        if signal is not None:
            signal.clears += 1
            signal.fire()

    def notify(self, payload: str) -> None:
        """Wake whom a notification concerns."""
        head, _, task_id = payload.partition(":")
        for topic in _TOPICS.get(head[:1], ()):
            signal = self._signals.get((topic, task_id))
            if signal is not None:
                if len(head) > 1:
                    signal.cleared_by = max(signal.cleared_by, int(head[1:]))
                signal.fire()


class _Listening:
    """One time that somebody listens."""

    def __init__(self) -> None:
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.begun: anyio.Event = anyio.Event()
        self.ended: anyio.Event = anyio.Event()
        self.error: Exception | None = None


class _Here:
    """What belongs to one event loop: who waits there, whoever listens for them, and the turns of operations."""

    def __init__(self, loop: Any, slots: int) -> None:
        self.loop: Any = loop
        self.signals: _Signals = _Signals()
        self.listening: _Listening | None = None
        self.doubtful_until: float = -math.inf
        self.opening: anyio.Lock = anyio.Lock()
        # Whoever has a slot finds a connection, unless somebody else uses the pool, too.
        self.slots: anyio.Semaphore = anyio.Semaphore(slots, fast_acquire=True)


class _Database:
    """The pool, its threads and who waits: what a store and its queue share. Knows nothing of tasks."""

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None,
        schema: str,
        max_connections: int,
        timeout: float,
    ) -> None:
        if not 0 < len(schema.encode()) < 64 or "\0" in schema or "%" in schema:  # % begins a parameter
            raise ValueError("schema must be the name of a database schema, of at most 63 bytes and without %")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        if not timeout > 0:
            raise ValueError("timeout must be above 0")
        self.clock: Clock = SystemClock() if clock is None else clock
        self._number = secrets.randbits(63)
        self._schema = schema
        self._timeout = timeout
        self._queries: dict[str, bytes] = {}
        self._owns_pool = isinstance(database, str)
        self._pool = _make_pool(database, max_connections) if isinstance(database, str) else database
        self._most = self._pool.max_size or max_connections  # 0 is no limit
        self._threads = Threads("mcp-task-runtime-postgres")
        self._opened = self._closed = False
        self._process = 0
        self._current: _Here | None = None

    @property
    def here(self) -> _Here:
        """What belongs to the running event loop. What is left of another one, which has ended, is forgotten."""
        here, loop = self._current, event_loop()
        if here is None or here.loop is not loop:
            here = self._current = _Here(loop, self._most)
        return here

    @property
    def watcher(self) -> int:
        """The number of this process among those that wait; another one after a fork."""
        return self._number ^ os.getpid()

    def query(self, template: str) -> bytes:
        """Return a statement of `_schema` with the names of this database."""
        query = self._queries.get(template)
        if query is None:
            names = {name: sql.Identifier(self._schema, name) for name in ("tasks", "messages", "schema_migrations")}
            template_sql = sql.SQL(template)  # pyright: ignore[reportArgumentType]  # ours, in _schema
            query = template_sql.format(channel=sql.Literal(self._schema), **names).as_bytes(None)
            self._queries[template] = query
        return query

    async def open(self) -> None:
        """Connect and bring the schema up to date, unless that was done."""
        async with self.here.opening:
            self._check_open()
            if not self._opened:
                await self._in_thread(self._open)
                self._opened, self._process = True, os.getpid()

    async def aclose(self) -> None:
        """Close: whoever waits is woken with `StoreClosedError`."""
        self._closed = True
        if self._is_foreign:
            return
        here = self.here
        here.signals.fire_all()
        with anyio.CancelScope(shield=True):
            if here.listening is not None:
                here.listening.scope.cancel()
                await here.listening.ended.wait()
            async with here.opening:
                if self._owns_pool:
                    await self._in_thread(partial(self._pool.close, _CLOSE_SECONDS))

    async def run(self, work: Callable[[_Execute], T], *, repeatable: bool = False) -> T:
        """Return what work returns that is done with a connection, in a thread.

        Each statement is a transaction of its own. Cancelled before work has a connection, nothing happens;
        cancelled later, this waits for the end of the work, so that it happens in full (law L6).

        Args:
            work: What to do.
            repeatable: Whether it may be done again when nobody knows whether it was done.

        Raises:
            StoreClosedError: The store is closed.
            StoreUnavailableError: The server could not be reached, or did not answer in time.
            StoreError: The server refused.
        """
        if not self._opened:
            await self.open()
        attempt = partial(self._attempt, work, repeatable)
        give_up_at = math.inf
        reason: BaseException | None = None
        while True:
            self._check_open()
            async with self.here.slots:
                with anyio.move_on_after(self._timeout, shield=True) as limit:
                    give_up_at = min(give_up_at, limit.deadline)
                    try:
                        return await self._threads.run(attempt)
                    except _TryAgainError as error:
                        reason = error.__cause__
            if limit.cancelled_caught or anyio.current_time() >= give_up_at:
                raise StoreUnavailableError("PostgreSQL did not answer in time") from reason
            await anyio.lowlevel.checkpoint()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Return what work returns that is done in a thread. Cancelled, this waits for its end."""
        with anyio.CancelScope(shield=True):
            return await self._threads.run(work)
        raise AssertionError("nobody cancels this scope")

    async def change(self, task_id: str, work: Callable[[_Execute], T]) -> T:
        """Return what work returns that changes a task, in its stored form; wake who waits for it in this process."""
        here = self.here
        try:
            return await self.run(work)
        except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
            # It may happen yet, and will notify nobody here.
            here.doubtful_until = anyio.current_time() + _DOUBTFUL_SECONDS
            here.signals.fire_all()
            raise
        finally:
            here.signals.fire("task", task_id)

    async def wait(self, topic: _Topic, task_id: str, look: Callable[[_Execute], T | _NotYet]) -> T:
        """Look, and look again whenever something may have changed, until there is no reason to wait (law L3).

        An outage does not end the wait, only the first look must succeed.

        Args:
            topic: What kind of change is waited for.
            task_id: Of which task, in its stored form.
            look: Reads what is waited for.

        Raises:
            TaskNotFoundError: The task is gone, or its mailbox was cleared.
            StoreClosedError: The store was closed.
        """
        self._check_open()
        seen: T | _NotYet | None = None
        since: int | None = None
        here = self.here
        with here.signals.watch(topic, task_id) as signal:
            clears = signal.clears
            await self._listen(here)
            while True:
                event = signal.event
                try:
                    seen = await self.run(look, repeatable=True)
                except StoreUnavailableError:
                    if not isinstance(seen, _NotYet):
                        raise
                    with anyio.move_on_after(_LOOK_AGAIN_SECONDS):
                        await event.wait()
                    continue
                if not isinstance(seen, _NotYet):
                    return seen
                since = seen.since if since is None else since
                if since is not None and (signal.clears != clears or signal.cleared_by >= since):
                    raise TaskNotFoundError(stored.from_text(task_id))
                doubtful = anyio.current_time() < here.doubtful_until
                with self.clock.move_on_at(seen.until), anyio.move_on_after(_LOOK_AGAIN_SECONDS if doubtful else None):
                    await event.wait()

    async def _listen(self, here: _Here) -> None:
        """Make sure that whatever is committed from now on will be heard of."""
        if not self._opened:
            await self.open()
        listening = here.listening
        if listening is None:
            listening = here.listening = _Listening()
            start_background_task(partial(self._keep_listening, here, listening))
        await listening.begun.wait()
        if listening.error is not None:
            raise _translated(listening.error) from listening.error

    async def _keep_listening(self, here: _Here, listening: _Listening) -> None:
        try:
            with listening.scope:
                while True:
                    try:
                        await self._listen_once(here.signals, listening)
                        return
                    except Exception as error:  # whatever it is: somebody waits, and somebody must listen
                        if not listening.begun.is_set():
                            listening.error = error
                            return
                        if isinstance(error, psycopg.Error | OSError):
                            logger.warning("Lost the connection that listens to PostgreSQL; connecting again")
                        else:
                            logger.exception("Listening to PostgreSQL failed; connecting again")
                    await anyio.sleep(_RECONNECT_SECONDS)
        finally:
            here.listening = None
            listening.begun.set()
            listening.ended.set()

    async def _listen_once(self, signals: _Signals, listening: _Listening) -> None:
        """Pass on what is heard until nobody waits any more, or the connection breaks."""
        connection = await self._in_thread(self._connect_to_listen)
        try:
            listening.begun.set()
            signals.fire_all()  # nobody listened before
            server, encoding = connection.pgconn, connection.info.encoding
            while True:
                with anyio.move_on_after(_IDLE_SECONDS) as idle:
                    await anyio.wait_readable(connection)
                if idle.cancelled_caught and not signals:
                    return
                server.consume_input()
                while (notification := server.notifies()) is not None:
                    signals.notify(notification.extra.decode(encoding))
        finally:
            connection.close()

    def _connect_to_listen(self) -> Connection[Any]:
        connection = self._connect()
        try:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._schema)))
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError
        if self._is_foreign:
            raise StoreError(FORKED)

    @property
    def _is_foreign(self) -> bool:
        """Whether the connections are those of another process, of which this one is a fork."""
        return self._opened and self._process != os.getpid()

    def _connect(self) -> Connection[Any]:
        """Return a connection beside the pool, to the same server."""
        pool = self._pool
        conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
        kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
        connection: Connection[Any] = pool.connection_class.connect(conninfo, **{**(kwargs or {}), "autocommit": True})
        return connection

    def _open(self) -> None:
        try:
            if self._owns_pool:
                with self._connect() as connection:  # says at once why it cannot connect; a pool would try on
                    self._migrate(connection)
                self._pool.open()
            else:
                with self._pool.connection(self._timeout) as connection:
                    self._migrate(connection)
        except psycopg.Error as error:
            raise _translated(error) from error

    def _attempt(self, work: Callable[[_Execute], T], repeatable: bool) -> T:
        connection: Connection[Any] | None = None
        try:
            connection = self._check_out()
            with connection:
                cursor = Cursor(connection, row_factory=tuple_row)  # whatever kind the owner of a pool likes

                def execute(template: str, parameters: dict[str, Any]) -> Cursor[TupleRow]:
                    return cursor.execute(self.query(template), parameters, binary=True)

                return work(execute)
        except (PoolTimeout, SerializationFailure, DeadlockDetected) as error:
            raise _TryAgainError from error
        except (TaskRuntimeError, _TryAgainError):
            raise
        except Exception as error:  # the driver raises others than its own, too
            if repeatable and connection is not None and connection.closed:
                raise _TryAgainError from error
            if self._closed:
                raise StoreClosedError from error
            raise _translated(error) from error
        finally:
            if connection is not None:
                self._pool.putconn(connection)

    def _check_out(self) -> Connection[Any]:
        """Return a connection that the server has not closed while it was idle. Costs no round trip."""
        while True:
            connection: Connection[Any] = self._pool.getconn(_CHECKOUT_SECONDS)
            try:
                connection.pgconn.consume_input()  # what the server said last
                connection.pgconn.consume_input()  # that it hung up
            except psycopg.Error:
                self._pool.putconn(connection)
            except BaseException:
                self._pool.putconn(connection)
                raise
            else:
                return connection

    def _migrate(self, connection: Connection[Any]) -> None:
        """Bring the schema up to date, one process at a time. Nothing is ever dropped."""
        if connection.info.server_version < _OLDEST_SERVER:
            raise StoreError(f"PostgreSQL {_OLDEST_SERVER // 10_000} or later is needed")
        cursor = Cursor(connection, row_factory=tuple_row)
        autocommit = connection.autocommit
        connection.autocommit = True
        try:
            if self._version(cursor) < len(stored.MIGRATIONS):
                self._apply_migrations(connection, cursor)
        finally:
            if not connection.closed:
                connection.autocommit = autocommit

    def _apply_migrations(self, connection: Connection[Any], cursor: Cursor[TupleRow]) -> None:
        lock = int.from_bytes(blake2b(self._schema.encode(), digest_size=8, person=b"mcp-task-runtime").digest(), "big")
        with connection.transaction():
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [lock - 2**63])
            version = self._version(cursor)  # again: another process may have been first
            if version == 0:
                self._make_schema(cursor)
            for number, statements in list(enumerate(stored.MIGRATIONS, 1))[version:]:
                try:
                    cursor.execute(self.query(statements))
                except psycopg.errors.DuplicateTable as error:
                    raise StoreError(f"The schema {self._schema!r} has tables of another application") from error
                cursor.execute(self.query(stored.MIGRATED), {"version": number, "now": self.clock.now()})

    def _make_schema(self, cursor: Cursor[TupleRow]) -> None:
        # Who may use the schema need not be allowed to make one, not even IF NOT EXISTS.
        cursor.execute("SELECT FROM pg_namespace WHERE nspname = %s", [self._schema])
        if cursor.fetchone() is None:
            cursor.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
        cursor.execute(self.query(stored.MAKE_MIGRATIONS))

    def _version(self, cursor: Cursor[TupleRow]) -> int:
        """Return the version of the schema, 0 when there is none."""
        latest = len(stored.MIGRATIONS)
        # Not to_regclass: it may remember that there was none, from before the lock.
        cursor.execute(
            "SELECT FROM pg_tables WHERE schemaname = %s AND tablename = 'schema_migrations'", [self._schema]
        )
        if cursor.fetchone() is None:
            return 0
        try:
            row = cursor.execute(self.query(stored.VERSION)).fetchone()
        except psycopg.ProgrammingError as error:
            raise StoreError(f"The version of the schema {self._schema!r} cannot be read") from error
        version = None if row is None else row[0]
        if type(version) is not int or version < 1:
            raise StoreError(f"The schema {self._schema!r} does not say which version it has")
        if version > latest:
            raise SchemaVersionError(found=version, supported=latest)
        return version


def _make_pool(database: str, max_connections: int) -> ConnectionPool[Any]:
    try:
        parameters: dict[str, Any] = {**_CONNECTION_DEFAULTS, **conninfo_to_dict(database)}
    except psycopg.Error:
        raise ValueError("database must be a PostgreSQL URL or connection string") from None  # it may hold a password
    return ConnectionPool(
        make_conninfo(**parameters),
        kwargs={"autocommit": True},
        min_size=1,
        max_size=max_connections,
        open=False,
        reconnect_timeout=0,  # whoever needs a connection tries again, at once and not at growing intervals
        name="mcp-task-runtime",
    )


def _translated(error: Exception) -> StoreError:
    """Return what is raised in place of a driver's error."""
    if isinstance(error, ReadOnlySqlTransaction):  # a disk that is nearly full, or another server that takes over
        return StoreUnavailableError("PostgreSQL is read-only")
    is_too_much = isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith("54")  # and always will be
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | OSError) and not is_too_much:
        return StoreUnavailableError("PostgreSQL could not be reached")
    return StoreError("PostgreSQL refused the operation")


class _Opened:
    """What is opened and closed: a store or a queue, with its database."""

    def __init__(self, database: _Database) -> None:
        self._database = database

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._database.clock

    async def __aenter__(self) -> Self:
        """Connect, and bring the schema up to date.

        Raises:
            StoreUnavailableError: The server cannot be reached.
            SchemaVersionError: A later version of this library wrote the schema.
            StoreError: The schema is another application's, or cannot be read.
        """
        await self._database.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and its queue, which are one: whoever waits is woken with `StoreClosedError`.

        A pool that was handed in stays open.
        """
        await self._database.aclose()


class PostgresTaskStore(_Opened):
    """A `TaskStore` with `TaskLeases` in PostgreSQL. It connects when it is first used, or by `async with`."""

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None = None,
        schema: str = "mcp_task_runtime",
        max_connections: int = 10,
        timeout: float = 10.0,
    ) -> None:
        """Make a store.

        Args:
            database: URL or connection string of a database; or a pool, which stays the caller's to open and
                close. One more connection, made like the pool's, listens while somebody waits.
            clock: Where time comes from; the system's when `None`. All processes' clocks should agree.
            schema: Name of the database schema that holds the tables; made if there is none.
            max_connections: The most connections of the pool, unless one was handed in.
            timeout: Seconds that an operation waits for a connection, and for the server to answer.

        Raises:
            ValueError: An argument makes no sense; the message names it.
        """
        super().__init__(
            _Database(database, clock=clock, schema=schema, max_connections=max_connections, timeout=timeout)
        )
        self._queue = PostgresTaskMessageQueue._beside(self._database)
        self._created = 0

    @property
    def message_queue(self) -> PostgresTaskMessageQueue:
        """The queue that belongs to this store, on the same pool: a task's mailbox goes when the task goes."""
        return self._queue

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`.

        Raises:
            ValueError: `task_id` or `owner` is longer than 1024 bytes.
        """
        now = self.clock.now()
        record = create_record(new, now=now)
        parameters = stored.create_parameters(record, self._database.watcher)
        purges = self._created % _PURGE_EVERY == 0
        self._created += 1

        def create(execute: _Execute) -> TaskRecord:
            if purges:
                execute(stored.PURGE, {"now": now, "limit": _PURGE_MOST})
            while not execute(stored.CREATE, parameters).rowcount:
                if not execute(stored.DELETE_EXPIRED, parameters).rowcount:
                    raise TaskExistsError(record.task_id)
            return record

        return await self._database.run(create)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        return await self._database.run(partial(self._get, task_id), repeatable=True)

    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        progress: Progress | None = None,
        ttl_ms: int | None = None,
        if_revision: int | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord:
        """Change a live task; see `TaskStore.update_task`."""
        if progress is not None or ttl_ms is not None or fence is not None:
            raise NotImplementedError
        now = self.clock.now()
        parameters = {
            "task_id": stored.to_text(task_id),
            "now": now,
            "status": status,
            "status_message": stored.to_text(status_message),
            "if_revision": if_revision,
            "watcher": self._database.watcher,
            "sources": "{}" if status in TERMINAL_STATUSES else stored.sources(status),
        }
        apply = partial(update_record, now=now, status=status, status_message=status_message, if_revision=if_revision)
        return await self._change(task_id, stored.UPDATE, parameters, apply)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        if fence is not None:
            raise NotImplementedError
        now = self.clock.now()
        parameters = {
            "task_id": stored.to_text(task_id),
            "now": now,
            "status": outcome.status,
            "status_message": stored.to_text(outcome.status_message),
            "outcome": outcome.payload_json,
            "watcher": self._database.watcher,
            "sources": stored.sources(outcome.status),
        }
        return await self._change(task_id, stored.FINISH, parameters, partial(finish_record, outcome=outcome, now=now))

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        limit = min(limit, _LARGEST_PAGE)
        after = 0 if cursor is None else decode_cursor(cursor, owner)
        if not 0 <= after <= _LARGEST_POSITION:
            raise InvalidCursorError
        statement = stored.LIST_OF_NOBODY if owner is None else stored.LIST_OF_OWNER
        parameters = {"owner": stored.to_text(owner), "after": after, "limit": limit + 1, "now": self.clock.now()}
        rows = await self._database.run(lambda execute: execute(statement, parameters).fetchall(), repeatable=True)
        page = tuple(stored.record_of(row[1:]) for row in rows[:limit])
        return TaskPage(page, encode_cursor(rows[limit - 1][0], owner) if len(rows) > limit else None)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        parameters: dict[str, Any] = {"task_id": stored.to_text(task_id), "now": self.clock.now()}
        deleted = await self._database.run(lambda execute: execute(stored.DELETE, parameters).rowcount > 0)
        if deleted:
            self._database.here.signals.fire_cleared(parameters["task_id"])
        return deleted

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        parameters = {"task_id": stored.to_text(task_id), "watcher": self._database.watcher}

        def look(execute: _Execute) -> TaskRecord | _NotYet:
            while True:
                record = self._get(task_id, execute)
                if record is None:
                    raise TaskNotFoundError(task_id)
                if record.revision > after:
                    return record
                if not execute(stored.WATCH, parameters).rowcount:  # it was watched before this look began
                    return _NotYet(record.task.expires_at)
                # Look again, for only who changes it from now on notifies.

        return await self._database.wait("task", stored.to_text(task_id), look)

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        now = self.clock.now()
        parameters = {
            "worker": stored.to_text(worker),
            "task_ids": [stored.to_text(task_id) for task_id in task_ids],
            "now": now,
            "lease_expires_at": now + timedelta(milliseconds=lease_ms),
        }
        rows = await self._database.run(
            lambda execute: execute(stored.RENEW_LEASES, parameters).fetchall(), repeatable=True
        )
        return frozenset(stored.from_text(task_id) for (task_id,) in rows)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; see `TaskLeases.drop_leases`."""
        parameters = {
            "worker": stored.to_text(worker),
            "task_ids": [stored.to_text(task_id) for task_id in task_ids],
            "lapse": lapse,
            "now": self.clock.now(),
        }
        await self._database.run(lambda execute: execute(stored.DROP_LEASES, parameters), repeatable=True)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        parameters = {"now": self.clock.now(), "limit": min(limit, _LARGEST_PAGE)}
        rows = await self._database.run(
            lambda execute: execute(stored.LIST_LAPSED, parameters).fetchall(), repeatable=True
        )
        return tuple(stored.record_of(row) for row in rows)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; see `TaskLeases.claim_task`."""
        now = self.clock.now()
        parameters = {
            "task_id": stored.to_text(task_id),
            "worker": stored.to_text(worker),
            "now": now,
            "lease_expires_at": now + timedelta(milliseconds=lease_ms),
            "watcher": self._database.watcher,
        }
        row = await self._database.change(
            stored.to_text(task_id), lambda execute: execute(stored.CLAIM, parameters).fetchone()
        )
        return None if row is None else stored.record_of(row)

    def _get(self, task_id: str, execute: _Execute) -> TaskRecord | None:
        row = execute(stored.GET, {"task_id": stored.to_text(task_id), "now": self.clock.now()}).fetchone()
        return None if row is None else stored.record_of(row)

    async def _change(
        self, task_id: str, statement: str, parameters: dict[str, Any], apply: Callable[[TaskRecord], TaskRecord]
    ) -> TaskRecord:
        def change(execute: _Execute) -> TaskRecord:
            row = execute(statement, parameters).fetchone()
            if row is not None:
                return stored.record_of(row)
            record = self._get(task_id, execute)
            if record is None:
                raise TaskNotFoundError(task_id)
            apply(record)  # raises what refused it
            raise _TryAgainError  # unless it was changed in between

        return await self._database.change(parameters["task_id"], change)


class PostgresTaskMessageQueue(_Opened):
    """A `TaskMessageQueue` in PostgreSQL, alone or beside a `PostgresTaskStore`.

    The mailbox of a task in the same schema goes when that goes, also if it expires. Any other one is kept
    until `clear` is called for it.
    """

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None = None,
        schema: str = "mcp_task_runtime",
        max_connections: int = 10,
        timeout: float = 10.0,
    ) -> None:
        """Make a queue; the arguments are those of `PostgresTaskStore`."""
        super().__init__(
            _Database(database, clock=clock, schema=schema, max_connections=max_connections, timeout=timeout)
        )

    @classmethod
    def _beside(cls, database: _Database) -> Self:
        queue = cls.__new__(cls)
        super(PostgresTaskMessageQueue, queue).__init__(database)
        return queue

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`.

        Raises:
            ValueError: `task_id` or the message's key is longer than 1024 bytes.
        """
        parameters = {
            "task_id": stored.to_key("task_id", task_id),
            "key": None if message.key is None else stored.to_key("key", message.key),
            "method": stored.to_text(message.method),
            "params": message.params_json,
            "now": self.clock.now(),
        }

        def enqueue(execute: _Execute) -> bool:
            try:
                return execute(stored.ENQUEUE, parameters).rowcount > 0
            except ForeignKeyViolation as error:  # the task was deleted at this moment
                raise _TryAgainError from error

        return await self._database.run(enqueue)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        return await self._first(stored.DEQUEUE, task_id, repeatable=False)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        return await self._first(stored.PEEK, task_id, repeatable=True)

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return await self.peek(task_id) is None

    async def clear(self, task_id: str) -> None:
        """Forget everything of a task; see `TaskMessageQueue.clear`.

        Raises:
            ValueError: `task_id` is longer than 1024 bytes.
        """
        key = stored.to_key("task_id", task_id)
        await self._database.run(lambda execute: execute(stored.CLEAR, {"task_id": key}), repeatable=True)
        self._database.here.signals.fire_cleared(key)

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        had_task = False

        def look(execute: _Execute) -> _NotYet | None:
            nonlocal had_task
            now = self.clock.now()
            row = execute(stored.LOOK_FOR_MESSAGE, {"task_id": stored.to_text(task_id), "now": now}).fetchone()
            assert row is not None
            is_queued, has_task, expires_at, since = row
            if is_queued:
                return None
            if (had_task and not has_task) or (expires_at is not None and expires_at <= now):
                raise TaskNotFoundError(task_id)
            had_task = has_task
            return _NotYet(expires_at, since)

        await self._database.wait("message", stored.to_text(task_id), look)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        parameters = {"task_id": stored.to_text(task_id), "now": self.clock.now()}
        rows = await self._database.run(
            lambda execute: execute(stored.OUTSTANDING, parameters).fetchall(), repeatable=True
        )
        return tuple(_message(row) for row in rows)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        parameters = {
            "task_id": stored.to_text(task_id),
            "now": self.clock.now(),
            "key": stored.to_text(key),
            "answer_type": answer.type,
            "answer": answer.payload_json,
        }
        return await self._database.run(lambda execute: execute(stored.ANSWER, parameters).rowcount > 0)

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        parameters: dict[str, Any] = {"task_id": stored.to_text(task_id), "key": stored.to_text(key)}

        def look(execute: _Execute) -> Answer | _NotYet:
            row = execute(stored.LOOK_FOR_ANSWER, {**parameters, "now": self.clock.now()}).fetchone()
            if row is None:
                raise TaskNotFoundError(task_id)
            answer_type, answer, expires_at = row
            return _NotYet(expires_at) if answer_type is None else Answer(answer_type, answer)

        return await self._database.wait("answer", parameters["task_id"], look)

    async def _first(self, statement: str, task_id: str, *, repeatable: bool) -> QueuedMessage | None:
        parameters = {"task_id": stored.to_text(task_id), "now": self.clock.now()}
        row = await self._database.run(lambda execute: execute(statement, parameters).fetchone(), repeatable=repeatable)
        return None if row is None else _message(row)


def _message(row: TupleRow) -> QueuedMessage:
    _, key, method, params = row
    return QueuedMessage(
        "notification" if key is None else "request", stored.from_text(method), params, stored.from_text(key)
    )
