"""Tasks in Redis, for several machines. Needs the extra `redis`, and Redis 6.2 or later.

Every change is one script (`redis_scripts`), every operation one round trip, and what is stored has a
documented form (`redis_form`). Waiting is woken by push: one connection for each store subscribes to the
channels of the tasks that somebody waits for. A message there says only that something happened, so whoever
is woken looks again; after a lost connection everybody does.

On a cluster a task and its mailbox are in one slot, and the indexes that span tasks are in others. What a
script cannot do in one step there is made safe by order: the index is written after the task and checked
against it when it is read. So `create_task`, `list_tasks` and `list_lapsed` take two round trips on a cluster.

Redis decides how durable it all is: see its `appendonly` and `appendfsync`, and `WAIT` for replicas.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from secrets import token_hex
from types import TracebackType
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
from coredis import Redis, RedisCluster
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import (
    ClusterDownError,
    ClusterError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    TryAgainError,
)
from coredis.exceptions import (
    ConnectionError as ConnectionLostError,
)
from coredis.pool import ConnectionPool
from coredis.typing import Key
from typing_extensions import Self

from mcp_task_runtime.core.background import start_background_task
from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.cursor import decode_cursor, encode_cursor
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import is_expired, is_terminal
from mcp_task_runtime.core.types import Lease, LiveStatus, Outcome, Task, TaskPage, TaskRecord, TaskRequest
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    RevisionConflictError,
    SchemaVersionError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores.redis_form import (
    FIELDS,
    SCHEMA_VERSION,
    Keys,
    dump_answer,
    dump_message,
    dump_record,
    load_answer,
    load_message,
    load_record,
    pack,
    to_micros,
)
from mcp_task_runtime.stores.redis_scripts import FOLLOWS, SCRIPTS, UPDATES, Script

__all__ = ["RedisTaskMessageQueue", "RedisTaskStore"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NO_REQUEST: Final = TaskRequest()
_FIELDS: Final = tuple(name.encode() for name in FIELDS)

_MARGIN_MS: Final = 1_000
_FOREIGN_CLOCK_MARGIN_MS: Final = 3_600_000
"""Milliseconds that Redis keeps a task beyond its TTL, which the clock decides: much longer where the clock is
not the system's, for the two may run apart."""

_UNOWNED_MS: Final = 30 * 24 * 3_600_000
"""Milliseconds that a mailbox is kept after its last message when Redis does not hold its task."""

_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 1.0
_KEEP_ALIVE_SECONDS: Final = 15.0
_BATCH: Final = 1_000

# What a server says when it is there and cannot serve now.
_AWAY: Final = ("LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM ", "-OOM", "BUSY ", "CLUSTERDOWN")


class _Call(NamedTuple):
    """One command, or one script by its name."""

    command: bytes
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | int | str, ...] = ()
    script: Script | None = None

    def wire(self, *, source: bool = False) -> tuple[bytes, tuple[Any, ...]]:
        """Return the command and its arguments; of a script the name, or the source."""
        if self.script is None:
            return self.command, (*self.keys, *self.arguments)
        command, name = (b"EVAL", self.script.source) if source else (b"EVALSHA", self.script.sha)
        return command, (name, len(self.keys), *self.keys, *self.arguments)


def _run(name: str, keys: tuple[bytes, ...], *arguments: bytes | int | str) -> _Call:
    return _Call(b"EVALSHA", keys, arguments, SCRIPTS[name])


class _Link(Protocol):
    """The way to a server or a cluster."""

    reads_any_key: ClassVar[bool]

    async def send(self, calls: Sequence[_Call], *, in_order: bool = False) -> list[Any]:
        """Send calls at once; return their replies."""
        ...

    def post(self, calls: Sequence[_Call]) -> None:
        """Send calls, and wait for nothing."""
        ...

    async def open_connection(self) -> BaseConnection:
        """Return a connection of the caller's own, who ends it by `invalidate`."""
        ...


class _Attempt:
    """An attempt to connect, for everybody who needs the connection meanwhile."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.connection: BaseConnection | None = None
        self.error: BaseException | None = None


class _NotConnectedError(Exception):
    """There is no connection, and nothing was sent."""


class _ServerLink:
    """One connection to one server, shared by all calls: replies come in the order of the calls."""

    reads_any_key: ClassVar[bool] = True

    def __init__(self, pool: ConnectionPool[Any], group: anyio.abc.TaskGroup, timeout: float) -> None:
        self._pool = pool
        self._group = group
        self._timeout = timeout
        self._connection: BaseConnection | None = None
        self._attempt: _Attempt | None = None
        self._running: set[BaseConnection] = set()

    async def send(self, calls: Sequence[_Call], *, in_order: bool = False) -> list[Any]:
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connect()
        requests = [self._request(connection, *call.wire()) for call in calls]
        try:
            replies = []
            for call, request in zip(calls, requests, strict=True):
                try:
                    replies.append(await request)
                except NoScriptError:  # somebody emptied the server's cache of scripts
                    replies.append(await self._request(connection, *call.wire(source=True)))
            return replies
        except TimeoutError:
            connection.invalidate("The server did not answer in time")
            raise

    def post(self, calls: Sequence[_Call]) -> None:
        connection = self._connection
        if connection is not None and connection.usable:
            for call in calls:
                self._request(connection, *call.wire())

    async def open_connection(self) -> BaseConnection:
        # The pool knows how to find its server, a sentinel's too. Its own connections are left alone.
        connection: BaseConnection = await self._pool._construct_connection()
        await self._group.start(self._host, connection)
        self._running.add(connection)
        self._group.start_soon(self._keep_alive, connection)
        return connection

    def _request(self, connection: BaseConnection, command: bytes, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        return connection.create_request(command, *arguments, decode=False, timeout=self._timeout)

    async def _connect(self) -> BaseConnection:
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt()
            self._group.start_soon(self._try_to_connect, attempt)
        await attempt.done.wait()
        if attempt.connection is None:
            raise _NotConnectedError from attempt.error
        return attempt.connection

    async def _try_to_connect(self, attempt: _Attempt) -> None:
        try:
            with anyio.fail_after(self._timeout):
                connection = await self.open_connection()
                loads = [self._request(connection, b"SCRIPT LOAD", (script.source,)) for script in SCRIPTS.values()]
                for load in loads:
                    await load
            self._connection = attempt.connection = connection
        except Exception as error:
            attempt.error = error
        finally:
            self._attempt = None
            attempt.done.set()

    async def _host(self, connection: BaseConnection, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            await connection.run(task_status=task_status)
        except Exception:
            if connection not in self._running:
                raise  # to whoever starts it
        finally:
            self._running.discard(connection)

    async def _keep_alive(self, connection: BaseConnection) -> None:
        """Find out when a connection is dead and nobody said so."""
        while connection.usable:
            await anyio.sleep(_KEEP_ALIVE_SECONDS)
            try:
                await self._request(connection, b"PING", ())
            except Exception:
                connection.invalidate("The server did not answer in time")


class _ClusterLink:
    """A caller's client of a cluster, which knows which node serves which key."""

    reads_any_key: ClassVar[bool] = False

    def __init__(self, client: RedisCluster[Any], group: anyio.abc.TaskGroup, timeout: float) -> None:
        self._client = client
        self._group = group
        self._timeout = timeout

    async def send(self, calls: Sequence[_Call], *, in_order: bool = False) -> list[Any]:
        if in_order or len(calls) == 1:
            return [await self._send_one(call) for call in calls]
        replies: list[Any] = [None] * len(calls)

        async def send(number: int, call: _Call) -> None:
            try:
                replies[number] = await self._send_one(call)
            except Exception as error:
                replies[number] = error

        async with anyio.create_task_group() as group:
            for number, call in enumerate(calls):
                group.start_soon(send, number, call)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    def post(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            self._group.start_soon(self._post_one, call)

    async def open_connection(self) -> BaseConnection:
        pool = self._client.connection_pool
        node = pool.cluster_layout.random_node(True)
        connection = pool.connection_class(TCPLocation(node.host, node.port), **pool.connection_kwargs)
        await self._group.start(partial(connection.run))
        return connection

    async def _send_one(self, call: _Call) -> Any:
        with anyio.fail_after(self._timeout):
            try:
                return await self._request(call)
            except NoScriptError:  # the node's first time
                return await self._request(call, source=True)

    async def _request(self, call: _Call, *, source: bool = False) -> Any:
        command, arguments = call.wire(source=source)
        routed = [Key(argument) if argument in call.keys else argument for argument in arguments]
        with self._client.decoding(False):
            return await self._client.create_request(command, *routed, callback=lambda reply, **_: reply)

    async def _post_one(self, call: _Call) -> None:
        try:
            await self._send_one(call)
        except Exception:
            logger.debug("An index entry was left for later", exc_info=True)


class _Listener:
    """Somebody who waits for something to happen to one task."""

    __slots__ = ("channel", "cleared", "event", "is_subscribed", "kinds", "reconnected", "signals")

    def __init__(self, signals: _Signals, channel: bytes, kinds: bytes) -> None:
        self.signals = signals
        self.channel = channel
        self.kinds = kinds
        self.event = anyio.Event()
        self.is_subscribed = False
        self.cleared = False
        self.reconnected = False

    def notify(self, kind: bytes) -> None:
        if kind == b"x":
            self.cleared = True
        if kind in self.kinds:
            self.event.set()

    async def wait(self) -> None:
        """Wait until it is worth to look again. It always is when the subscription begins."""
        if not self.is_subscribed:
            self.is_subscribed = True
            self.signals.subscribe(self)
        await self.event.wait()
        self.event = anyio.Event()


class _Signals:
    """One subscribing connection for everybody who waits in this process."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, set[_Listener]] = {}
        self._subscribers: dict[bytes, int] = {}
        self._active: set[bytes] = set()
        self._told: dict[bytes, None] = {}
        self._connection: BaseConnection | None = None
        self._needed = anyio.Event()

    @contextmanager
    def listen(self, channel: bytes, kinds: bytes) -> Iterator[_Listener]:
        """Hear of some kinds of events: `t`ask, `m`essage, `a`nswer, and `x` when everything is gone."""
        listener = _Listener(self, channel, kinds)
        self._listeners.setdefault(channel, set()).add(listener)
        try:
            yield listener
        finally:
            self._leave(listener)

    def _leave(self, listener: _Listener) -> None:
        channel = listener.channel
        self._listeners[channel].discard(listener)
        if not self._listeners[channel]:
            del self._listeners[channel]
        if listener.is_subscribed:
            self._subscribers[channel] -= 1
            if not self._subscribers[channel]:
                del self._subscribers[channel]
                self._active.discard(channel)
                self._command(b"UNSUBSCRIBE", [channel])

    def subscribe(self, listener: _Listener) -> None:
        channel = listener.channel
        self._subscribers[channel] = self._subscribers.get(channel, 0) + 1
        self._needed.set()
        if self._subscribers[channel] == 1:
            self._command(b"SUBSCRIBE", [channel])
        elif channel in self._active:
            listener.event.set()

    def tell(self, channel: bytes, operation: bytes) -> None:
        """Say at once that everything of a task is gone; what Redis says of it later is no news then."""
        if channel in self._active:
            self._told[operation] = None
            if len(self._told) > _BATCH:
                del self._told[next(iter(self._told))]
        self._notify(channel, b"x")

    def wake_all(self) -> None:
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.event.set()

    async def run(self, link: _Link) -> None:
        """Receive until cancelled, on a new connection whenever the last one is lost."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            await self._needed.wait()
            try:
                self._connection = await link.open_connection()
                delay = _FIRST_RETRY_SECONDS
                await self._receive(self._connection)
            except (RedisError, OSError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
                logger.debug("The connection that waits was lost", exc_info=error)
            finally:
                self._disconnect()
            await anyio.sleep(delay)
            delay = min(2 * delay, _LONGEST_RETRY_SECONDS)

    async def _receive(self, connection: BaseConnection) -> None:
        self._command(b"SUBSCRIBE", list(self._subscribers))
        messages: AsyncGenerator[list[Any], None] = connection.push_messages  # type: ignore[assignment]
        async with aclosing(messages):
            async for kind, channel, content, *_ in messages:
                self._received(_bytes(kind), _bytes(channel), content)

    def _received(self, kind: bytes, channel: bytes, content: Any) -> None:
        if kind == b"message":
            content = _bytes(content)
            event, operation = content[:1], content[1:]
            if operation in self._told:
                del self._told[operation]
            else:
                self._notify(channel, event)
        elif kind == b"subscribe":
            if channel in self._subscribers:
                self._active.add(channel)
            for listener in self._listeners.get(channel, ()):
                listener.event.set()

    def _notify(self, channel: bytes, event: bytes) -> None:
        for listener in self._listeners.get(channel, ()):
            listener.notify(event)

    def _command(self, command: bytes, channels: list[bytes]) -> None:
        connection = self._connection
        if connection is not None and connection.usable:
            for start in range(0, len(channels), _BATCH):
                connection.send_command(command, *channels[start : start + _BATCH])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate("No longer used")
            self._connection = None
        self._active.clear()
        self._told.clear()
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.reconnected = True


def _bytes(data: Any) -> bytes:
    """Return what a connection received, which a caller's client may have decoded."""
    return data.encode() if isinstance(data, str) else bytes(data)


class _Opening:
    """One time the backend is open, on one event loop."""

    def __init__(self) -> None:
        self.loop = anyio.lowlevel.current_token()
        self.link: _Link | None = None
        self.signals = _Signals()
        self.opened = anyio.Event()
        self.closing = anyio.Event()
        self.closed = anyio.Event()


class _Backend:
    """What a store and its queue share: connections, names, clock. Open from the first use on."""

    def __init__(
        self, source: str | Redis[Any] | RedisCluster[Any], *, prefix: str, clock: Clock | None, timeout: float
    ) -> None:
        self.keys = Keys(prefix)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.margin_ms = _MARGIN_MS if isinstance(self.clock, SystemClock) else _FOREIGN_CLOCK_MARGIN_MS
        self.is_closed = False
        if not timeout > 0:
            raise ValueError("timeout must be positive")
        self._timeout = timeout
        self._source = _pool_of(source)
        self._opening: _Opening | None = None
        self._name = token_hex(8)
        self._numbers = count(1)

    def now(self) -> int:
        return to_micros(self.clock.now())

    def new_operation(self) -> str:
        """Return a name for one call that no other call of any process has."""
        return f"{self._name}.{next(self._numbers):x}"

    async def open(self) -> _Opening:
        """Return the opening on this event loop; one on another loop died with it."""
        if self.is_closed:
            raise StoreClosedError
        opening = self._opening
        if opening is None or opening.loop != anyio.lowlevel.current_token():
            opening = self._opening = _Opening()
            start_background_task(partial(self._host, opening))
        if opening.link is None:
            await opening.opened.wait()
            if opening.link is None:
                raise StoreClosedError
        return opening

    async def aclose(self) -> None:
        self.is_closed = True
        opening = self._opening
        if opening is None or opening.loop != anyio.lowlevel.current_token():
            return
        opening.signals.wake_all()
        opening.closing.set()
        with anyio.move_on_after(self._timeout, shield=True):
            await opening.closed.wait()

    async def _host(self, opening: _Opening) -> None:
        try:
            async with anyio.create_task_group() as group:
                if isinstance(self._source, RedisCluster):
                    opening.link = _ClusterLink(self._source, group, self._timeout)
                else:
                    opening.link = _ServerLink(self._source, group, self._timeout)
                group.start_soon(opening.signals.run, opening.link)
                opening.opened.set()
                await opening.closing.wait()
                group.cancel_scope.cancel()
        except Exception:
            logger.exception("The connections to Redis were lost")
        finally:
            if self._opening is opening:
                self._opening = None
            opening.signals.wake_all()
            opening.opened.set()
            opening.closed.set()

    async def send(self, *calls: _Call, again: bool = True, in_order: bool = False) -> list[Any]:
        """Send calls in one round trip; return their replies.

        Args:
            calls: What to send.
            again: Whether to send once more on a new connection when the connection was lost meanwhile.
            in_order: Whether each call needs the one before it done.
        """
        while True:
            opening = await self.open()
            assert opening.link is not None
            try:
                return await opening.link.send(calls, in_order=in_order)
            except (RedisError, OSError, _NotConnectedError, anyio.ClosedResourceError) as error:
                if self.is_closed:
                    raise StoreClosedError from error
                if not (again and isinstance(error, ConnectionLostError)):
                    raise _store_error(error) from error
                again = False

    def post(self, *calls: _Call) -> None:
        """Send calls if there is a connection, and wait for nothing: only what may as well be lost."""
        opening = self._opening
        if opening is not None and opening.link is not None:
            opening.link.post(calls)

    async def signals(self) -> _Signals:
        return (await self.open()).signals

    def task_call(self, name: str, tag: bytes, operation: str, *arguments: bytes | int | str) -> _Call:
        """Return the call of a script about one task."""
        return _run(name, self.keys.of_task(tag), self.now(), operation, self.keys.channel(tag), *arguments)

    def unindex(self, owner: str | None, members: Sequence[bytes]) -> None:
        """Remove entries of an owner's index, some time."""
        keys = self.keys.of_owner(owner)
        for start in range(0, len(members), _BATCH):
            self.post(_run("unindex", keys, self.now(), self.margin_ms, *members[start : start + _BATCH]))

    def unlease(self, *tags: bytes) -> None:
        """Remove entries of the index of leases, some time."""
        self.post(_Call(b"ZREM", (self.keys.leases,), tags))

    def forget(self, tag: bytes, owner: bytes | None, mark: bytes) -> None:
        """Remove from the indexes a task that a script found expired or deleted."""
        name = None if owner is None else owner.decode("utf-8", "surrogatepass")
        self.unindex(name, [mark + b" " + tag])
        self.unlease(tag)

    async def purge(self, tag: bytes) -> None:
        """Remove all of a task if it has expired."""
        status, *rest = (await self.send(self.task_call("purge", tag, self.new_operation())))[0]
        if status == b"expired":
            self.forget(tag, *rest)

    async def look_again(self, look: Callable[[], Awaitable[T]]) -> T:
        """Return what somebody who waits sees; while Redis is away, wait for it."""
        delay = _FIRST_RETRY_SECONDS
        while True:
            try:
                return await look()
            except StoreUnavailableError:
                await anyio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)


def _pool_of(source: str | Redis[Any] | RedisCluster[Any]) -> ConnectionPool[Any] | RedisCluster[Any]:
    if isinstance(source, RedisCluster):
        return source
    if isinstance(source, Redis):
        pool: ConnectionPool[Any] = source.connection_pool
        return pool
    if not isinstance(source, str) or source.partition("://")[0] not in ("redis", "rediss", "unix"):
        raise ValueError("source must be a redis://, rediss:// or unix:// URL, or a client of coredis")
    from_url: ConnectionPool[Any] = ConnectionPool.from_url(source, decode_components=True)
    if from_url.location is None:
        raise ValueError("source must name a host")
    return from_url


def _store_error(error: BaseException) -> StoreError:
    cause = error.__cause__ if isinstance(error, _NotConnectedError) and error.__cause__ is not None else error
    away = (ConnectionLostError, OSError, TryAgainError, ClusterDownError, ClusterError, ReadOnlyError)
    if isinstance(cause, away) or (isinstance(cause, RedisError) and any(word in str(cause) for word in _AWAY)):
        return StoreUnavailableError(f"Redis is not available: {cause}")
    return StoreError(f"Redis refused: {cause}")


class RedisTaskStore:
    """A `TaskStore` in Redis, shared by all processes that use the same Redis and prefix; it has `TaskLeases` too.

    Open it with `async with`, or just use it: it connects when it is first used. It opens two connections of
    its own, one of them only when somebody waits.
    """

    def __init__(
        self,
        source: str | Redis[Any] | RedisCluster[Any],
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a store.

        Args:
            source: A URL such as `redis://localhost:6379/0`, or a client of `coredis`, which stays the
                caller's to open and close. A client of one server lends its settings; one of a cluster must
                be open as long as the store is.
            prefix: What all names in Redis begin with.
            clock: Where time comes from; the system's when `None`.
            timeout: Seconds to wait for Redis before `StoreUnavailableError`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._backend = _Backend(source, prefix=prefix, clock=clock, timeout=timeout)
        self._keys = self._backend.keys
        self._queue = RedisTaskMessageQueue._of(self._backend)

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._backend.clock

    @property
    def message_queue(self) -> RedisTaskMessageQueue:
        """The queue that belongs to this store: a task's mailbox goes when the task goes."""
        return self._queue

    async def __aenter__(self) -> Self:
        await self._backend.send(_Call(b"PING", ()))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and its queue: whoever waits is woken with `StoreClosedError`."""
        await self._backend.aclose()

    async def create_task(
        self,
        *,
        ttl_ms: int | None,
        poll_interval_ms: int = 500,
        task_id: str | None = None,
        owner: str | None = None,
        retention_ms: int = 0,
        request: TaskRequest | None = None,
        client_capabilities_json: str = "{}",
        worker: str | None = None,
        lease_ms: int = 30_000,
    ) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        now = self.clock.now()
        record = TaskRecord(
            Task(new_task_id() if task_id is None else task_id, "working", None, now, now, ttl_ms, poll_interval_ms),
            1,
            owner,
            retention_ms,
            _NO_REQUEST if request is None else request,
            client_capabilities_json,
            None,
            None if worker is None else Lease(worker, now + timedelta(milliseconds=lease_ms)),
        )
        tag = self._keys.tag(record.task_id)
        mark = self._backend.new_operation()
        calls = self._creation(record, tag, mark)
        (status, *rest), *_ = await self._backend.send(*calls, in_order=True)
        if status == b"ok":
            if rest and rest[1] is not None:  # it took the place of one that had expired
                self._backend.forget(tag, *rest)
            return record
        self._backend.unindex(owner, [_member(mark, tag)])
        if status == b"schema":
            raise _schema_error(rest[0])
        raise TaskExistsError(record.task_id)

    def _creation(self, record: TaskRecord, tag: bytes, mark: str) -> list[_Call]:
        """Return the calls that store a task and, after it, its entries in the indexes."""
        backend, ttl_ms, now = self._backend, record.task.ttl_ms, to_micros(record.task.created_at)
        left: int | str = "" if ttl_ms is None else max(ttl_ms, 0) + backend.margin_ms
        latest: int | str = "" if ttl_ms is None else now + 1_000 * (ttl_ms + record.retention_ms + 1)
        fields = dump_record(record, mark)
        member = _member(mark, tag)
        calls = [
            backend.task_call("create", tag, mark, left, *fields),
            _run("index", self._keys.of_owner(record.owner), now, backend.margin_ms, member, latest),
        ]
        if record.lease is not None:
            keep = "" if ttl_ms is None else ttl_ms + record.retention_ms + backend.margin_ms
            calls.append(_run("lease", (self._keys.leases,), tag, to_micros(record.lease.expires_at), keep))
        return calls

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        tag = self._keys.tag(task_id)
        (values,) = await self._backend.send(_Call(b"HMGET", self._keys.of_task(tag)[:1], _FIELDS))
        record = load_record(values)
        if record is None or not is_expired(record.task, self.clock.now()):
            return record
        await self._backend.purge(tag)
        return None

    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        if_revision: int | None = None,
    ) -> TaskRecord:
        """Change a live task; see `TaskStore.update_task`."""
        status_text, message = "" if status is None else status, _optional(status_message)
        revision = "" if if_revision is None else int(if_revision)
        allowed = UPDATES.get(status, b" ")
        tag, (reply, *rest) = await self._change(task_id, "update", allowed, status_text, message, revision)
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current if status is None else status)
        if reply == b"conflict":
            raise RevisionConflictError(task_id, expected=int(if_revision or 0), current=int(rest[0]))
        return _loaded(rest[0])

    async def finish_task(self, task_id: str, outcome: Outcome) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        status, margin_ms = outcome.status, self._backend.margin_ms
        payload, message = _optional(outcome.payload_json), _optional(outcome.status_message)
        tag, (reply, *rest) = await self._change(
            task_id, "finish", FOLLOWS.get(status, b" "), status, payload, message, margin_ms
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested=status)
        if rest[1] is not None:
            self._backend.unlease(tag)
        return _loaded(rest[0])

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
        place = 0 if cursor is None else decode_cursor(cursor, owner)
        index = self._keys.of_owner(owner)[0]
        now = self.clock.now()
        found: list[tuple[int, TaskRecord]] = []
        while True:
            wanted = limit + 1 - len(found)
            page = await self._page(index, f"({place}", "+inf", wanted)
            gone: list[bytes] = []
            for member, place, mark, record in page:
                if record is None or not member.startswith(mark + b" ") or is_expired(record.task, now):
                    gone.append(member)
                else:
                    found.append((place, record))
            if gone:  # the index heals when it is read
                self._backend.unindex(owner, gone)
            if len(found) > limit or len(page) < wanted:
                break
        records = tuple(record for _, record in found[:limit])
        return TaskPage(records, encode_cursor(found[limit - 1][0], owner) if len(found) > limit else None)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        # Sent twice it could not say whether there was one.
        tag, (reply, *rest) = await self._change(task_id, "delete", again=False, missing=b"absent")
        if reply != b"ok":
            return False
        self._backend.forget(tag, rest[0], rest[1])
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self.get_task, task_id)
        with (await self._backend.signals()).listen(channel, b"tx") as listener:
            record = await look()
            while record is not None and record.revision <= after:
                with self.clock.move_on_at(record.task.expires_at):
                    await listener.wait()
                record = await self._backend.look_again(look)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        until = self._backend.now() + 1_000 * lease_ms
        held = await self._change_leases("renew", worker, task_ids, until)
        if held:
            entries = [part for tag in held for part in (until, tag)]
            self._backend.post(_Call(b"ZADD", (self._keys.leases,), (b"XX", *entries)))
        return frozenset(held.values())

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; see `TaskLeases.drop_leases`."""
        tags = [self._keys.tag(task_id) for task_id in task_ids]
        if not lapse:
            dropped = await self._change_leases("drop", worker, task_ids, 0)
            if dropped:
                self._backend.unlease(*dropped)
        elif tags:
            # An entry of the index may well be too early, so those of other workers' tasks may be lowered as well.
            now = self._backend.now()
            entries = [part for tag in tags for part in (now, tag)]
            lower = _Call(b"ZADD", (self._keys.leases,), (b"XX", b"LT", *entries))
            await self._change_leases("drop", worker, task_ids, 1, lower)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        found: dict[str, TaskRecord] = {}
        while True:
            now = self._backend.now()
            page = await self._page(self._keys.leases, "-inf", str(now), limit)
            corrections: list[bytes | int | str] = []
            for tag, score, _, record in page:
                lease = None if record is None or is_expired(record.task, self.clock.now()) else record.lease
                if record is None or lease is None:
                    corrections += tag, score, ""
                elif to_micros(lease.expires_at) > now:
                    corrections += tag, score, to_micros(lease.expires_at)
                else:
                    found[record.task_id] = record
            if corrections:  # the index heals when it is read
                await self._backend.send(_run("correct", (self._keys.leases,), *corrections))
            if not corrections or len(found) >= limit or len(page) < limit:
                return tuple(sorted(found.values(), key=_lapsed_at)[:limit])

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; see `TaskLeases.claim_task`."""
        until = self._backend.now() + 1_000 * lease_ms
        tag, (reply, *rest) = await self._change(task_id, "claim", pack(worker), until, missing=b"absent")
        if reply != b"ok":
            return None
        self._backend.post(_Call(b"ZADD", (self._keys.leases,), (b"XX", until, tag)))
        return _loaded(rest[0])

    async def _change(
        self, task_id: str, script: str, *arguments: bytes | int | str, again: bool = True, missing: bytes = b""
    ) -> tuple[bytes, list[Any]]:
        """Run a script that changes a task; return the task's tag and the reply.

        Raises:
            TaskNotFoundError: There is no such task, and `missing` is not `absent`.
            SchemaVersionError: A later version of this library stored it.
        """
        tag = self._keys.tag(task_id)
        call = self._backend.task_call(script, tag, self._backend.new_operation(), *arguments)
        (reply,) = await self._backend.send(call, again=again)
        if not self._exists(tag, reply):
            if missing != b"absent":
                raise TaskNotFoundError(task_id)
            return tag, [b"absent"]
        return tag, reply

    async def _change_leases(
        self, script: str, worker: str, task_ids: Collection[str], argument: int, *more: _Call
    ) -> dict[bytes, str]:
        """Run a script on the leases of a worker; return tag and identifier of those tasks that it changed."""
        tags = {self._keys.tag(task_id): task_id for task_id in task_ids}
        operation, name = self._backend.new_operation(), pack(worker)
        calls = [self._backend.task_call(script, tag, operation, name, argument) for tag in tags]
        replies = await self._backend.send(*calls, *more) if calls else []
        return {
            tag: task_id
            for (tag, task_id), reply in zip(tags.items(), replies, strict=False)
            if self._exists(tag, reply) and reply[0] == b"ok"
        }

    def _exists(self, tag: bytes, reply: list[Any]) -> bool:
        """Return whether a script found its task; clean up after one that it found expired."""
        if reply[0] == b"schema":
            raise _schema_error(reply[1])
        if reply[0] == b"expired":
            self._backend.forget(tag, *reply[1:])
        return reply[0] not in (b"absent", b"expired")

    async def _page(
        self, index: bytes, lowest: str, highest: str, limit: int
    ) -> list[tuple[bytes, int, bytes, TaskRecord | None]]:
        """Return entries of an index: member, score, and the task's mark and record."""
        link = (await self._backend.open()).link
        ends: tuple[bytes, bytes] = (b"", b"")
        if link is not None and link.reads_any_key:
            ends = self._keys.opening, b"}:task"
        (page,) = await self._backend.send(_run("page", (index,), lowest, highest, limit, *ends))
        if page and not ends[0]:
            tags = [member.rpartition(b" ")[2] for member, *_ in page]
            reads = [_Call(b"HMGET", self._keys.of_task(tag)[:1], _FIELDS) for tag in tags]
            values = await self._backend.send(*reads)
            page = [(member, score, record) for (member, score, _), record in zip(page, values, strict=True)]
        return [(member, int(float(score)), values[1], load_record(values)) for member, score, values in page]


class RedisTaskMessageQueue:
    """A `TaskMessageQueue` in Redis.

    Get it from a `RedisTaskStore`: then a task's mailbox goes when the task goes. Used without one, it keeps a
    mailbox until `clear` is called for it, or nothing was put in for 30 days.
    """

    def __init__(
        self,
        source: str | Redis[Any] | RedisCluster[Any],
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a queue of its own; the arguments are those of `RedisTaskStore`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._start(_Backend(source, prefix=prefix, clock=clock, timeout=timeout), owns=True)

    @classmethod
    def _of(cls, backend: _Backend) -> Self:
        queue = cls.__new__(cls)
        queue._start(backend, owns=False)
        return queue

    def _start(self, backend: _Backend, *, owns: bool) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._owns_backend = owns
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._backend.send(_Call(b"PING", ()))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the queue: whoever waits is woken with `StoreClosedError`. A store it came from stays open."""
        self._closed = True
        if self._owns_backend:
            await self._backend.aclose()
        elif not self._backend.is_closed:
            (await self._backend.signals()).wake_all()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        field = b"" if message.key is None else b"k" + pack(message.key)
        accepted, _ = await self._use("enqueue", task_id, _UNOWNED_MS, field, dump_message(message))
        return accepted == 1

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        operation = self._backend.new_operation()
        with anyio.CancelScope(shield=True):  # a message that is no longer queued must be returned
            taken, _ = await self._use("dequeue", task_id, operation=operation)
        if taken is None:
            return None
        stem = self._keys.of_task(self._keys.tag(task_id))
        self._backend.post(_Call(b"HDEL", stem[4:], (operation,)))
        return load_message(taken)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        message, _ = await self._use("peek", task_id)
        return None if message is None else load_message(message)

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        length, _ = await self._use("look", task_id)
        return length == 0

    async def clear(self, task_id: str) -> None:
        """Forget everything of a task; see `TaskMessageQueue.clear`."""
        tag, operation = self._keys.tag(task_id), self._backend.new_operation()
        await self._send(self._backend.task_call("clear", tag, operation))
        (await self._backend.signals()).tell(self._keys.channel(tag), operation.encode())

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self._use, "look", task_id)
        with (await self._backend.signals()).listen(channel, b"mx") as listener:
            length, before = await look()
            while not length:
                await listener.wait()
                length, now = await self._backend.look_again(look)
                if not length and (listener.cleared or _was_cleared(before, now, missed=listener.reconnected)):
                    raise TaskNotFoundError(task_id)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        questions, _ = await self._use("outstanding", task_id)
        return tuple(load_message(question) for question in questions)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        taken, _ = await self._use("answer", task_id, b"k" + pack(key), dump_answer(answer))
        return taken == 1

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self._use, "answer_of", task_id, b"k" + pack(key))
        with (await self._backend.signals()).listen(channel, b"ax") as listener:
            state, _ = await look()
            while state is not None and state.startswith(b"q"):
                await listener.wait()
                state, _ = await self._backend.look_again(look)
        if state is None:
            raise TaskNotFoundError(task_id)
        return load_answer(state.partition(b" ")[2])

    async def _use(
        self, script: str, task_id: str, *arguments: bytes | int | str, operation: str | None = None
    ) -> tuple[Any, Any]:
        """Run a script on a mailbox; return the value and what else it says."""
        tag = self._keys.tag(task_id)
        if operation is None:
            operation = self._backend.new_operation()
        reply = await self._send(self._backend.task_call(script, tag, operation, *arguments))
        if reply[0] == b"schema":
            raise _schema_error(reply[1])
        _, value, owner, mark, more = (*reply, None, None, None)[:5]
        if mark is not None:
            self._backend.forget(tag, owner, mark)
        return value, more

    async def _send(self, call: _Call) -> Any:
        if self._closed:
            raise StoreClosedError
        (reply,) = await self._backend.send(call)
        return reply


def _member(mark: str, tag: bytes) -> bytes:
    return mark.encode() + b" " + tag


def _optional(text: str | None) -> bytes:
    """Return text in a form that is not empty unless it is `None`."""
    return b"" if text is None else b"+" + pack(text)


def _loaded(values: list[bytes | None]) -> TaskRecord:
    record = load_record(values)
    assert record is not None
    return record


def _lapsed_at(record: TaskRecord) -> float:
    return 0.0 if record.lease is None else record.lease.expires_at.timestamp()


def _schema_error(version: bytes) -> SchemaVersionError:
    return SchemaVersionError(found=int(version), supported=SCHEMA_VERSION)


def _was_cleared(before: list[Any], now: list[Any], *, missed: bool) -> bool:
    """Return whether a mailbox was cleared between two looks, by what is there: the message may have been missed."""
    (status_before, known_before), (status, known) = before, now
    if status_before is not None and status is None:
        return True
    return bool(known_before and not known) or (missed and status is not None and is_terminal(status.decode()))
