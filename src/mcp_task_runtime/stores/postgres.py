"""Tasks in PostgreSQL 14 or later: for those who have one already. Needs the extra `postgres`.

Every operation is one statement on a pooled connection, in a worker thread. A change that a condition
refused is looked at again by `core.transitions`, which knows what to say. The stored form stands in
`postgres_schema`.

Whoever waits is woken by NOTIFY, sent in the transaction that makes the change. A process listens while
somebody waits in it, on one connection beside the pool, in one thread. When that connection breaks, it is
made anew and everybody who waits looks again: waiting is level-triggered, so nothing is missed.

Use a store on one event loop at a time.
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import threading
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
import anyio.to_thread
import psycopg
from psycopg import Connection, Cursor, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout
from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.cursor import decode_cursor, encode_cursor
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, finish_record, update_record
from mcp_task_runtime.core.types import Lease, LiveStatus, Outcome, Task, TaskPage, TaskRecord, TaskRequest
from mcp_task_runtime.errors import (
    InvalidCursorError,
    SchemaVersionError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores import postgres_schema as schema

__all__ = ["PostgresTaskMessageQueue", "PostgresTaskStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Execute: TypeAlias = Callable[..., Cursor[TupleRow]]
"""Runs a statement of `postgres_schema` with its parameters."""

_Topic: TypeAlias = Literal["task", "message", "answer"]

_TOPICS: Final[dict[str, tuple[_Topic, ...]]] = {
    "u": ("task",),
    "m": ("message",),
    "a": ("answer",),
    "c": ("message", "answer"),
    "d": ("task", "message", "answer"),
}
"""Who is woken, by the first letter of a notification; see `postgres_schema`."""

_NO_REQUEST: Final = TaskRequest()

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
_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 5.0
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

    def fire_all(self) -> None:
        for signal in self._signals.values():
            signal.fire()

    def fire_cleared(self, task_id: str) -> None:
        """Release who waits for a message of a mailbox that this process cleared."""
        signal = self._signals.get(("message", task_id))
        if signal is not None:
            signal.clears += 1
            signal.fire()

    def concerned(self, payload: str) -> list[_Topic]:
        """Return the topics of a notification that somebody waits for. May be called from any thread."""
        head, _, task_id = payload.partition(":")
        return [topic for topic in _TOPICS.get(head[:1], ()) if (topic, task_id) in self._signals]

    def notify(self, payloads: Collection[str]) -> None:
        for payload in payloads:
            head, _, task_id = payload.partition(":")
            for topic in self.concerned(payload):
                signal = self._signals[topic, task_id]
                if len(head) > 1:
                    signal.cleared_by = max(signal.cleared_by, int(head[1:]))
                signal.fire()


class _Listener:
    """A thread that listens for notifications on a connection of its own, for as long as somebody waits."""

    def __init__(self, connect: Callable[[], Connection[Any]], channel: str, database: _Database) -> None:
        """Begin to listen. Whatever is committed once this returns will be heard of.

        Raises:
            psycopg.Error: The server cannot be reached.
        """
        self._connect = connect
        self._listen = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
        self._database = database
        self._lock = threading.Lock()
        self._ended = False
        self._waker, self._woken = socket.socketpair()
        try:
            connection = self._open()
        except BaseException:
            self._close_sockets()
            raise
        self._thread = threading.Thread(target=self._run, args=[connection], name="mcp-task-runtime listener")
        self._thread.daemon = True
        self._thread.start()

    def is_listening(self) -> bool:
        """Whether the thread will look at the signals once more; ask after a signal is in place."""
        with self._lock:
            return not self._ended

    def stop(self) -> None:
        """End the thread, and wait for that."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._waker.send(b"\0")
        self._thread.join(_CLOSE_SECONDS)

    def _open(self) -> Connection[Any]:
        connection = self._connect()
        try:
            connection.execute(self._listen)
        except BaseException:
            connection.close()
            raise
        return connection

    def _run(self, connection: Connection[Any] | None) -> None:
        delay = _RETRY_SECONDS
        try:
            while True:
                try:
                    if connection is None:
                        connection = self._open()
                        self._database.post(self._database.signals.fire_all)
                        delay = _RETRY_SECONDS
                    if not self._hear(connection):
                        return
                except (psycopg.Error, OSError):
                    logger.warning("Lost the connection that listens to PostgreSQL; connecting again", exc_info=True)
                if connection is not None:
                    connection.close()
                    connection = None
                if self._pause(delay):
                    return
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
        finally:
            self._ended = True
            if connection is not None:
                connection.close()
            self._close_sockets()

    def _hear(self, connection: Connection[Any]) -> bool:
        """Pass on notifications; return false to stop. Raises when the connection breaks."""
        server = connection.pgconn
        encoding = connection.info.encoding
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = selector.select(_IDLE_SECONDS)
                if any(key.fileobj is self._woken for key, _ in ready) or (not ready and self._is_idle()):
                    return False
                server.consume_input()
                payloads = []
                while (notification := server.notifies()) is not None:
                    payload = notification.extra.decode(encoding)
                    if self._database.signals.concerned(payload):
                        payloads.append(payload)
                if payloads:
                    self._database.post(partial(self._database.signals.notify, payloads))

    def _is_idle(self) -> bool:
        with self._lock:
            self._ended = self._ended or not self._database.signals
            return self._ended

    def _pause(self, seconds: float) -> bool:
        """Wait; return whether to stop."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            return bool(selector.select(seconds)) or self._is_idle()

    def _close_sockets(self) -> None:
        self._waker.close()
        self._woken.close()


class _Database:
    """The pool, its threads and who waits: what a store and its queue share. Knows nothing of tasks."""

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None,
        schema_name: str,
        max_connections: int,
        timeout: float,
    ) -> None:
        if not 0 < len(schema_name.encode()) < 64 or "\0" in schema_name:
            raise ValueError("schema must be the name of a database schema: 1 to 63 bytes")
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        if not timeout > 0:
            raise ValueError("timeout must be more than 0")
        self.clock: Clock = SystemClock() if clock is None else clock
        self.signals = _Signals()
        self.post: Callable[[Callable[[], None]], Any] = _drop
        self._schema = schema_name
        self._timeout = timeout
        self._queries: dict[str, bytes] = {}
        self._opening = anyio.Lock()
        self._opened = False
        self._closed = False
        self._listener: _Listener | None = None
        self._owns_pool = isinstance(database, str)
        self._pool = _pool(database, max_connections, timeout) if isinstance(database, str) else database
        # A connection is there for whoever got a slot, unless somebody else uses the pool, too.
        self._slots = anyio.Semaphore(self._pool.max_size, fast_acquire=True)
        self._threads = anyio.CapacityLimiter(math.inf)

    async def open(self) -> None:
        """Connect and bring the schema up to date, unless that was done."""
        async with self._opening:
            self._check_open()
            if not self._opened:
                await anyio.to_thread.run_sync(self._open, limiter=self._threads)
                self._opened = True

    async def aclose(self) -> None:
        """Close; whoever waits is woken with `StoreClosedError`."""
        self._closed = True
        self.signals.fire_all()
        with anyio.CancelScope(shield=True):
            async with self._opening:
                await anyio.to_thread.run_sync(self._close, limiter=self._threads)

    async def run(self, work: Callable[[_Execute], T], *, repeatable: bool = False) -> T:
        """Do work in one transaction, or none if it has one statement only, and return what it returns.

        Cancelled, it waits for the work's end once that has begun, so it happens in full or not at all (law L6).

        Args:
            work: Called in a thread; anything but its result is thrown away with the transaction.
            repeatable: Whether it may be done again when it is not known if it was done.

        Raises:
            StoreClosedError: The store is closed.
            StoreUnavailableError: The server did not answer.
            StoreError: The server refused.
        """
        if not self._opened:
            await self.open()
        attempt = partial(self._attempt, work, repeatable)
        give_up_at: float | None = None
        while True:
            self._check_open()
            async with self._slots:
                with anyio.move_on_after(self._timeout, shield=True):
                    try:
                        return await anyio.to_thread.run_sync(
                            attempt, abandon_on_cancel=True, limiter=self._threads
                        )
                    except _TryAgainError as error:
                        reason = error.__cause__
                        if give_up_at is not None and anyio.current_time() >= give_up_at:
                            raise StoreUnavailableError("PostgreSQL could not be reached in time") from reason
                    # not reached again unless there was no connection
                if give_up_at is None:
                    give_up_at = anyio.current_time() + self._timeout
            await anyio.lowlevel.checkpoint()

    def query(self, template: str) -> bytes:
        query = self._queries.get(template)
        if query is None:
            names = {name: sql.Identifier(self._schema, name) for name in ("schema_migrations", "tasks", "messages")}
            composed = sql.SQL(template).format(channel=sql.Literal(self._schema), **names)  # type: ignore[arg-type]
            query = self._queries[template] = composed.as_bytes(None)
        return query
