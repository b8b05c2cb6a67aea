"""How the Redis store reaches its server: connections, wake-ups by push, and what happens when they are lost.

Everything of one store lives in one background task, started when the store is first used: there is nobody
else whose task group could hold the connections. Calls share one connection, so they are carried out in the
order in which they were made. Whoever waits shares another one, which subscribes to the channels of the tasks
that somebody waits for.

A call whose connection is lost is sent once more: it has a name, by which the scripts know it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any, Final, NamedTuple, Protocol, TypeVar

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

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.errors import (
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
)
from mcp_task_runtime.stores._event_loop import start_background_task
from mcp_task_runtime.stores.redis._form import (
    Keys,
    to_micros,
)
from mcp_task_runtime.stores.redis._scripts import SCRIPTS, Script

__all__ = ["Backend", "Call", "script_call"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_MARGIN_MS: Final = 1_000
_FOREIGN_CLOCK_MARGIN_MS: Final = 3_600_000
"""Milliseconds that Redis keeps a task beyond its TTL, which the clock decides: much longer where the clock is
not the system's, for the two may run apart."""

_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 1.0
_KEEP_ALIVE_SECONDS: Final = 15.0
_BATCH: Final = 1_000

_JUST_CLOSED: Final = (RedisError, anyio.ClosedResourceError, anyio.BrokenResourceError)
"""What a connection raises that is closing and does not say so yet."""

# What a server says when it is there and cannot serve now.
_READ_ONLY: Final = "READONLY"
_AWAY: Final = (_READ_ONLY, "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM ", "BUSY ", "CLUSTERDOWN")


class Call(NamedTuple):
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


def script_call(name: str, keys: tuple[bytes, ...], *arguments: bytes | int | str) -> Call:
    """Return the call of a script."""
    return Call(b"EVALSHA", keys, arguments, SCRIPTS[name])


class _Link(Protocol):
    """The way to a server or a cluster."""

    async def send(self, calls: Sequence[Call], *, in_order: bool = False) -> list[Any]:
        """Send calls at once; return their replies."""
        ...

    def post(self, calls: Sequence[Call]) -> None:
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


class _Connections:
    """Holds connections open: each has a task that reads and writes, and one that finds out when it is dead."""

    def __init__(self, group: anyio.abc.TaskGroup, timeout: float) -> None:
        self._group = group
        self._timeout = timeout
        self._running: set[BaseConnection] = set()

    async def start(self, connection: BaseConnection) -> BaseConnection:
        """Connect, and return the connection; whoever uses it ends it by `invalidate`."""
        await self._group.start(self._hold, connection)
        self._running.add(connection)
        self._group.start_soon(self._keep_alive, connection)
        return connection

    async def _hold(self, connection: BaseConnection, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            await connection.run(task_status=task_status)
        except Exception:
            if connection not in self._running:
                raise  # to whoever starts it
        finally:
            self._running.discard(connection)
            _close_streams(connection)

    async def _keep_alive(self, connection: BaseConnection) -> None:
        while connection.usable:
            await anyio.sleep(_KEEP_ALIVE_SECONDS)
            try:
                await connection.create_request(b"PING", timeout=self._timeout)
            except Exception:
                connection.invalidate("The server did not answer in time")


def _close_streams(connection: BaseConnection) -> None:
    """Close what coredis leaves open when a connection could not be made: else Python warns of it."""
    for name in ("_write_buffer", "_push_message_buffer", "_streamed_message_buffer"):
        for end in ("in", "out"):
            stream = getattr(connection, f"{name}_{end}", None)
            if stream is not None:
                stream.close()


class _ServerLink:
    """One connection to one server, shared by all calls: replies come in the order of the calls."""

    def __init__(self, pool: ConnectionPool[Any], group: anyio.abc.TaskGroup, timeout: float) -> None:
        self._pool = pool
        self._group = group
        self._timeout = timeout
        self._connections = _Connections(group, timeout)
        self._connection: BaseConnection | None = None
        self._attempt: _Attempt | None = None

    async def send(self, calls: Sequence[Call], *, in_order: bool = False) -> list[Any]:
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
        except RedisError as error:
            if _READ_ONLY in str(error) or isinstance(error, ReadOnlyError):  # another server has taken over
                connection.invalidate("The server is a replica")
            raise

    def post(self, calls: Sequence[Call]) -> None:
        connection = self._connection
        if connection is not None and connection.usable:
            with suppress(*_JUST_CLOSED):
                for call in calls:
                    _ = self._request(connection, *call.wire())

    async def open_connection(self) -> BaseConnection:
        # The pool knows how to find its server, a sentinel's too. Its own connections are left alone.
        return await self._connections.start(await self._pool._construct_connection())

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


class _ClusterLink:
    """A caller's client of a cluster, which knows which node serves which key."""

    def __init__(self, client: RedisCluster[Any], group: anyio.abc.TaskGroup, timeout: float) -> None:
        self._client = client
        self._group = group
        self._timeout = timeout
        self._connections = _Connections(group, timeout)

    async def send(self, calls: Sequence[Call], *, in_order: bool = False) -> list[Any]:
        if in_order or len(calls) == 1:
            return [await self._send_one(call) for call in calls]
        replies: list[Any] = [None] * len(calls)

        async def send(number: int, call: Call) -> None:
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

    def post(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._group.start_soon(self._post_one, call)

    async def open_connection(self) -> BaseConnection:
        pool = self._client.connection_pool
        node = pool.cluster_layout.random_node(True)
        connection = pool.connection_class(TCPLocation(node.host, node.port), **pool.connection_kwargs)
        return await self._connections.start(connection)

    async def _send_one(self, call: Call) -> Any:
        with anyio.fail_after(self._timeout):
            try:
                return await self._request(call)
            except NoScriptError:  # the node's first time
                return await self._request(call, source=True)

    async def _request(self, call: Call, *, source: bool = False) -> Any:
        command, arguments = call.wire(source=source)
        routed = [Key(argument) if argument in call.keys else argument for argument in arguments]
        with self._client.decoding(False):
            return await self._client.create_request(command, *routed, callback=lambda reply, **_: reply)

    async def _post_one(self, call: Call) -> None:
        try:
            await self._send_one(call)
        except Exception:
            logger.debug("An index entry was left for later", exc_info=True)


class _Listener:
    """Somebody who waits for something to happen to one task."""

    __slots__ = ("channel", "event", "is_subscribed", "kinds", "signals")

    def __init__(self, signals: _Signals, channel: bytes, kinds: bytes) -> None:
        self.signals = signals
        self.channel = channel
        self.kinds = kinds
        self.event = anyio.Event()
        self.is_subscribed = False

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
        messages: AsyncGenerator[list[Any], None] = connection.push_messages
        async with aclosing(messages):
            async for kind, channel, content, *_ in messages:
                self._received(_bytes(kind), _bytes(channel), content)

    def _received(self, kind: bytes, channel: bytes, content: Any) -> None:
        if kind == b"message":
            event = _bytes(content)
            for listener in self._listeners.get(channel, ()):
                if event in listener.kinds:
                    listener.event.set()
        elif kind == b"subscribe":
            if channel in self._subscribers:
                self._active.add(channel)
            for listener in self._listeners.get(channel, ()):
                listener.event.set()

    def _command(self, command: bytes, channels: list[bytes]) -> None:
        connection = self._connection
        if connection is not None and connection.usable:
            with suppress(*_JUST_CLOSED):  # the next connection subscribes to all
                for start in range(0, len(channels), _BATCH):
                    connection.send_command(command, *channels[start : start + _BATCH])

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.invalidate("No longer used")
            self._connection = None
        self._active.clear()


def _bytes(data: Any) -> bytes:
    """Return what a connection received, which a caller's client may have decoded."""
    return data.encode() if isinstance(data, str) else bytes(data)


class _Opening:
    """One time the backend is open, on one event loop."""

    def __init__(self) -> None:
        self.loop = anyio.lowlevel.current_token()
        self.link: _Link | None = None
        self.group: anyio.abc.TaskGroup | None = None
        self.signals = _Signals()
        self.in_flight = 0
        self.landed: anyio.Event | None = None
        self.opened = anyio.Event()
        self.closing = anyio.Event()
        self.closed = anyio.Event()


class Backend:
    """What a store and its queue share: connections, names, clock. Open from the first use on."""

    def __init__(
        self, source: str | Redis[Any] | RedisCluster[Any], *, prefix: str, clock: Clock | None, timeout: float
    ) -> None:
        self.keys: Keys = Keys(prefix)
        self.clock: Clock = SystemClock() if clock is None else clock
        self.margin_ms = _MARGIN_MS if isinstance(self.clock, SystemClock) else _FOREIGN_CLOCK_MARGIN_MS
        self.is_closed: bool = False
        if not timeout > 0:
            raise ValueError("timeout must be positive")
        self._timeout = timeout
        self._source = _pool_of(source)
        self.is_cluster: bool = isinstance(self._source, RedisCluster)
        self._opening: _Opening | None = None
        self._name = token_hex(8)
        self._numbers = count(1)

    def now(self) -> int:
        """Return the clock's time in microseconds."""
        return to_micros(self.clock.now())

    def new_operation(self) -> str:
        """Return a name for one call that no other call of any process has."""
        return f"{self._name}.{os.getpid():x}.{next(self._numbers):x}"  # a fork has the same name, and counts on

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
                raise StoreUnavailableError("The event loop is ending")
        return opening

    async def connect(self) -> None:
        """Make sure that Redis is there."""
        try:
            await self.send(Call(b"PING", ()))
        except BaseException:
            await self._disconnect()
            raise

    async def aclose(self) -> None:
        """Close for good: wake whoever waits, and give up the connections."""
        self.is_closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        opening = self._opening
        if opening is None or opening.loop != anyio.lowlevel.current_token():
            return
        opening.signals.wake_all()
        with anyio.move_on_after(self._timeout, shield=True):
            if self.is_cluster and opening.in_flight:  # over the caller's client, who may close that next
                opening.landed = anyio.Event()
                await opening.landed.wait()
        opening.closing.set()
        with anyio.move_on_after(self._timeout, shield=True):
            await opening.closed.wait()

    async def _host(self, opening: _Opening) -> None:
        try:
            async with anyio.create_task_group() as group:
                opening.group = group
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
            opening.group = None
            opening.signals.wake_all()
            opening.opened.set()
            opening.closed.set()

    async def send(self, *calls: Call, again: bool = True, in_order: bool = False) -> list[Any]:
        """Send calls in one round trip; return their replies.

        Args:
            calls: What to send.
            again: Whether to send once more on a new connection when the connection was lost meanwhile.
            in_order: Whether each call needs the one before it done.
        """
        while True:
            opening = await self.open()
            assert opening.link is not None
            opening.in_flight += 1
            try:
                return await opening.link.send(calls, in_order=in_order)
            except (RedisError, OSError, _NotConnectedError, anyio.ClosedResourceError) as error:
                if self.is_closed:
                    raise StoreClosedError from error
                if not (again and isinstance(error, ConnectionLostError)):
                    raise _store_error(error) from error
                again = False
            finally:
                opening.in_flight -= 1
                if opening.landed is not None and not opening.in_flight:
                    opening.landed.set()

    def post(self, *calls: Call) -> None:
        """Send calls if there is a connection, and wait for nothing: only what may as well be lost."""
        opening = self._opening
        if opening is not None and opening.link is not None:
            opening.link.post(calls)

    async def signals(self) -> _Signals:
        """Return what waits for events on this event loop."""
        return (await self.open()).signals

    def task_call(self, name: str, tag: bytes, operation: str, *arguments: bytes | int | str) -> Call:
        """Return the call of a script about one task."""
        keys: tuple[bytes, ...] = self.keys.of_task(tag)
        if not self.is_cluster:
            keys = (*keys, self.keys.leases)
        return script_call(name, keys, self.now(), operation, self.keys.channel(tag), *arguments)

    def unindex(self, owner: str | None, members: Sequence[bytes]) -> None:
        """Remove entries of an owner's index, some time."""
        keys = self.keys.of_owner(owner)
        for start in range(0, len(members), _BATCH):
            self.post(script_call("unindex", keys, self.now(), self.margin_ms, *members[start : start + _BATCH]))

    def forget(self, tag: bytes, owner: bytes | None, mark: bytes) -> None:
        """Remove from its owner's index a task that a script found expired, or deleted."""
        name = None if owner is None else owner.decode("utf-8", "surrogatepass")
        self.unindex(name, [mark + b" " + tag])

    def purge(self, tag: bytes) -> None:
        """Remove all of a task if it has expired, some time."""
        opening = self._opening
        if opening is not None and opening.group is not None:
            opening.group.start_soon(self._purge, tag)

    async def _purge(self, tag: bytes) -> None:
        try:
            ((status, *rest),) = await self.send(self.task_call("purge", tag, self.new_operation()))
        except StoreError:
            return  # Redis will do it
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
    if source.partition("://")[0] not in ("redis", "rediss", "unix"):
        raise ValueError("source must be a redis://, rediss:// or unix:// URL, or a client of coredis")
    try:
        from_url: ConnectionPool[Any] = ConnectionPool.from_url(source, decode_components=True)
    except ValueError:  # its text may show a password
        raise ValueError(
            "source cannot be read; what is special in a URL, like / in a password, is written as %2F"
        ) from None
    if from_url.location is None:
        raise ValueError("source must name a host")
    return from_url


def _store_error(error: BaseException) -> StoreError:
    cause = error.__cause__ if isinstance(error, _NotConnectedError) and error.__cause__ is not None else error
    away = (ConnectionLostError, OSError, TryAgainError, ClusterDownError, ClusterError, ReadOnlyError)
    if isinstance(cause, away) or (isinstance(cause, RedisError) and any(word in str(cause) for word in _AWAY)):
        return StoreUnavailableError("Redis is not available")
    return StoreError("Redis refused an operation")
