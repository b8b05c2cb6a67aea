"""Connections to a Redis server or cluster: `ServerLink` and `ClusterLink` send calls and return their replies.

Calls share one connection, so they are carried out in the order in which they were made. The replies may be
errors of the server's; what is raised is that there was no reply.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

import anyio
import anyio.abc
from coredis import RedisCluster
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import ConnectionError as ConnectionLostError
from coredis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError
from coredis.pool import ConnectionPool
from coredis.typing import Key

from mcp_task_runtime.stores.redis._scripts import SCRIPTS, Script
from mcp_task_runtime.stores.redis._signals import JUST_CLOSED
from mcp_task_runtime.stores.redis._watch import ServerWatch

__all__ = ["Call", "ClusterLink", "Link", "NotConnectedError", "ServerLink", "script_call"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

_FIRST_RETRY_SECONDS: Final = 0.05
_LONGEST_RETRY_SECONDS: Final = 0.5
_KEEP_ALIVE_SECONDS: Final = 15.0


class Call(NamedTuple):
    """One command, or one script."""

    command: bytes
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | int | str, ...] = ()
    script: Script | None = None
    name: str = ""

    def wire(self, *, source: bool = False) -> tuple[bytes, tuple[Any, ...]]:
        """Return the command and its arguments; of a script the digest, or the source."""
        if self.script is None:
            return self.command, (*self.keys, *self.arguments)
        command, name = (b"EVAL", self.script.source) if source else (b"EVALSHA", self.script.sha)
        return command, (name, len(self.keys), *self.keys, *self.arguments)


def script_call(name: str, keys: tuple[bytes, ...], *arguments: bytes | int | str) -> Call:
    """Return the call of a script."""
    return Call(b"EVALSHA", keys, arguments, SCRIPTS[name], name)


class NotConnectedError(Exception):
    """There is no connection, and nothing was sent; the reason is the `__cause__`."""


class Link(Protocol):
    """A way to a server or a cluster."""

    async def send(self, calls: Sequence[Call], *, seconds: float, in_order: bool = False) -> list[Any]:
        """Send calls at once and return their replies, with those of the server's errors that were replies.

        Args:
            calls: What to send.
            seconds: How long to wait for the replies.
            in_order: Whether each call needs the one before it done.

        Raises:
            NotConnectedError: Nothing was sent.
            OSError, RedisError: It is not known whether the calls were carried out.
        """
        ...

    def post(self, calls: Sequence[Call]) -> None:
        """Send calls without waiting for their replies; they are dropped without a connection."""
        ...

    async def open_connection(self) -> BaseConnection:
        """Return a connection of the caller's own, who ends it by `invalidate`."""
        ...

    async def info(self, seconds: float) -> list[Any]:
        """Return the `INFO` of each server that takes changes, or the error that it answered with.

        Raises:
            NotConnectedError, OSError, RedisError: There was no answer.
        """
        ...


class _Attempt:
    """An attempt to connect, shared by all callers that need the connection meanwhile."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.connection: BaseConnection | None = None
        self.error: BaseException | None = None


class _Connections:
    """Holds connections open: each has a task that reads and writes, and one that notices when it is dead."""

    def __init__(self, group: anyio.abc.TaskGroup, timeout: float, watch: ServerWatch) -> None:
        self._group = group
        self._timeout = timeout
        self._watch = watch
        self._running: set[BaseConnection] = set()

    async def start(self, connection: BaseConnection) -> BaseConnection:
        """Connect, and return the connection; its user ends it by `invalidate`."""
        started_at = monotonic()
        self._group.start_soon(self._limit, connection)
        try:
            await self._group.start(self._hold, connection)
        except BaseException as error:
            _close_streams(connection)  # cancelled early, the task that holds it has not begun
            if isinstance(error, Exception):
                self._watch.failed(started_at)
            raise
        self._running.add(connection)
        self._watch.succeeded()
        self._group.start_soon(self._keep_alive, connection)
        return connection

    async def _hold(self, connection: BaseConnection, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        try:
            await connection.run(task_status=task_status)
        except Exception:
            if connection not in self._running:
                raise  # to the caller of `start`
        finally:
            self._running.discard(connection)
            _close_streams(connection)

    async def _limit(self, connection: BaseConnection) -> None:
        """Close a connection whose server does not greet in time. Cancelled instead, coredis would log each time."""
        await anyio.sleep(self._timeout)
        if not connection.usable and connection.stream is not None:
            with suppress(Exception):
                await connection.stream.aclose()

    async def _keep_alive(self, connection: BaseConnection) -> None:
        while connection.usable:
            await anyio.sleep(_KEEP_ALIVE_SECONDS)
            started_at = monotonic()
            try:
                await _ask_time(connection, self._watch, self._timeout)
            except Exception:
                if connection.usable:
                    self._watch.failed(started_at)
                connection.invalidate("The server did not answer in time")


async def _ask_time(connection: BaseConnection, watch: ServerWatch, limit: float) -> None:
    """Ask a server for its time, and set the clock by it."""
    sent = watch.clock.monotonic()
    reply: Any = await connection.create_request(b"TIME", decode=False, timeout=limit)
    seconds, micros = reply
    received = watch.clock.monotonic()
    watch.clock.observe(1_000_000 * int(seconds) + int(micros), sent=sent, received=received)


def _close_streams(connection: BaseConnection) -> None:
    """Close what coredis leaves open when a connection could not be made: else Python warns of it."""
    for name in ("_write_buffer", "_push_message_buffer", "_streamed_message_buffer"):
        for end in ("in", "out"):
            stream = getattr(connection, f"{name}_{end}", None)
            if stream is not None:
                stream.close()


class ServerLink:
    """One connection to one server, shared by all calls: replies come in the order of the calls."""

    def __init__(
        self, pool: ConnectionPool[Any], group: anyio.abc.TaskGroup, *, timeout: float, watch: ServerWatch
    ) -> None:
        self._pool = pool
        self._group = group
        self._timeout = timeout
        self._watch = watch
        self._connections = _Connections(group, timeout, watch)
        self._connection: BaseConnection | None = None
        self._attempt: _Attempt | None = None
        self._pause = 0.0

    async def send(self, calls: Sequence[Call], *, seconds: float, in_order: bool = False) -> list[Any]:
        """Send calls at once; see `Link.send`."""
        deadline = anyio.current_time() + seconds
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connect(seconds)
        left = max(deadline - anyio.current_time(), 0.001)
        try:
            requests = [self._request(connection, left, *call.wire()) for call in calls]
        except JUST_CLOSED as error:
            raise NotConnectedError from error
        try:
            return [
                await self._reply(connection, call, request, left)
                for call, request in zip(calls, requests, strict=True)
            ]
        except TimeoutError:
            if left > self._timeout / 2:
                connection.invalidate("The server did not answer in time")
            raise

    async def _reply(self, connection: BaseConnection, call: Call, request: Awaitable[Any], seconds: float) -> Any:
        try:
            return await request
        except NoScriptError:  # the server's cache of scripts was emptied
            return await self._reply(
                connection, call, self._request(connection, seconds, *call.wire(source=True)), seconds
            )
        except ConnectionLostError as error:
            if connection.usable:
                return error  # "LOADING", a reply
            raise
        except RedisError as error:
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):  # another server has taken over
                connection.invalidate("The server is a replica")
            return error

    def post(self, calls: Sequence[Call]) -> None:
        """Send calls without waiting for their replies; see `Link.post`."""
        connection = self._connection
        if connection is not None and connection.usable:
            with suppress(*JUST_CLOSED):
                for call in calls:
                    _ = self._request(connection, self._timeout, *call.wire())

    async def open_connection(self) -> BaseConnection:
        """Return a connection of the caller's own; see `Link.open_connection`."""
        # The pool knows how to find its server, a sentinel's too. Its own connections are left alone.
        connection = await self._pool._construct_connection()  # pyright: ignore[reportPrivateUsage]
        return await self._connections.start(connection)

    async def info(self, seconds: float) -> list[Any]:
        """Return the `INFO` of the server; see `Link.info`."""
        return await self.send([Call(b"INFO", ())], seconds=seconds)

    def _request(
        self, connection: BaseConnection, seconds: float, command: bytes, arguments: tuple[Any, ...]
    ) -> Awaitable[Any]:
        return connection.create_request(command, *arguments, decode=False, timeout=seconds)

    async def _connect(self, seconds: float) -> BaseConnection:
        attempt = self._attempt
        if attempt is None:
            attempt = self._attempt = _Attempt()
            self._group.start_soon(self._try_to_connect, attempt)
        with anyio.move_on_after(seconds):
            await attempt.done.wait()
        if attempt.connection is None:
            raise NotConnectedError from attempt.error or TimeoutError()
        return attempt.connection

    async def _try_to_connect(self, attempt: _Attempt) -> None:
        started_at = monotonic()
        try:
            await anyio.sleep(self._pause)
            with anyio.fail_after(self._timeout + 1.0):
                connection = await self.open_connection()
                await self._prepare(connection)
            self._connection = attempt.connection = connection
            self._pause = 0.0
        except Exception as error:
            attempt.error = error
            self._watch.failed(started_at)
            longest = min(_LONGEST_RETRY_SECONDS, self._timeout / 5)  # several attempts within the patience of a call
            self._pause = min(max(2 * self._pause, _FIRST_RETRY_SECONDS), longest)
        finally:
            self._attempt = None
            attempt.done.set()

    async def _prepare(self, connection: BaseConnection) -> None:
        """Load the scripts that the server does not have, set the clock and check what may evict."""
        info = self._request(connection, self._timeout, b"INFO", (b"memory",))
        scripts = tuple(SCRIPTS.values())
        known = self._request(connection, self._timeout, b"SCRIPT EXISTS", tuple(script.sha for script in scripts))
        await _ask_time(connection, self._watch, self._timeout)
        with suppress(ResponseError):  # not every user may ask
            self._watch.check_memory(await info)
        with suppress(ResponseError):  # nor load scripts: then each is sent when it is first needed
            missing = [script for script, is_known in zip(scripts, await known, strict=True) if not is_known]
            for load in [
                self._request(connection, self._timeout, b"SCRIPT LOAD", (script.source,)) for script in missing
            ]:
                await load


class ClusterLink:
    """A caller's client of a cluster, which knows which node serves which key."""

    def __init__(
        self, client: RedisCluster[Any], group: anyio.abc.TaskGroup, *, timeout: float, watch: ServerWatch
    ) -> None:
        self._client = client
        self._group = group
        self._timeout = timeout
        self._watch = watch
        self._connections = _Connections(group, timeout, watch)
        self._is_prepared = False

    async def send(self, calls: Sequence[Call], *, seconds: float, in_order: bool = False) -> list[Any]:
        """Send calls at once, each to its node; see `Link.send`."""
        if not self._is_prepared:
            await self._prepare()
        if in_order or len(calls) == 1:
            return [await self._send_one(call, seconds) for call in calls]
        replies: list[Any] = [None] * len(calls)
        lost: list[Exception] = []

        async def send(number: int, call: Call) -> None:
            try:
                replies[number] = await self._send_one(call, seconds)
            except Exception as error:
                lost.append(error)

        async with anyio.create_task_group() as group:
            for number, call in enumerate(calls):
                group.start_soon(send, number, call)
        if lost:
            raise lost[0]
        return replies

    def post(self, calls: Sequence[Call]) -> None:
        """Send calls without waiting for their replies; see `Link.post`."""
        for call in calls:
            self._group.start_soon(self._post_one, call)

    async def open_connection(self) -> BaseConnection:
        """Return a connection to any node; see `Link.open_connection`."""
        node = self._client.connection_pool.cluster_layout.random_node(True)
        return await self._open_connection(node.host, node.port)

    async def info(self, seconds: float) -> list[Any]:
        """Return the `INFO` of each primary; see `Link.info`."""
        return [
            await self._info_of(node.host, node.port, seconds)
            for node in self._client.connection_pool.cluster_layout.primaries
        ]

    async def _info_of(self, host: str, port: int, seconds: float) -> Any:
        with anyio.fail_after(seconds):
            connection = await self._open_connection(host, port)
            try:
                return await connection.create_request(b"INFO", decode=False, timeout=seconds)
            except ResponseError as error:
                return error
            finally:
                connection.invalidate("No longer used")

    async def _open_connection(self, host: str, port: int) -> BaseConnection:
        pool = self._client.connection_pool
        return await self._connections.start(pool.connection_class(TCPLocation(host, port), **pool.connection_kwargs))

    async def _prepare(self) -> None:
        """Ask the nodes once for their time, and whether they may evict."""
        self._is_prepared = True
        self._group.start_soon(self._follow_time)  # also where the caller is cancelled below
        for node in self._client.connection_pool.cluster_layout.primaries:
            with suppress(RedisError, OSError, anyio.ClosedResourceError):
                with anyio.fail_after(self._timeout):
                    connection = await self._open_connection(node.host, node.port)
                    try:
                        await self._ask(connection)
                    finally:
                        connection.invalidate("No longer used")

    async def _ask(self, connection: BaseConnection) -> None:
        await _ask_time(connection, self._watch, self._timeout)
        info: Any = await connection.create_request(b"INFO", b"memory", decode=False, timeout=self._timeout)
        self._watch.check_memory(info)

    async def _follow_time(self) -> None:
        while True:
            await anyio.sleep(_KEEP_ALIVE_SECONDS)
            sent = self._watch.clock.monotonic()
            with suppress(RedisError, OSError, anyio.ClosedResourceError):
                now = await self._send_one(script_call("now", ()), self._timeout)
                if isinstance(now, bytes):
                    self._watch.clock.observe(int(now), sent=sent, received=self._watch.clock.monotonic())

    async def _send_one(self, call: Call, seconds: float) -> Any:
        with anyio.fail_after(seconds):
            try:
                try:
                    return await self._request(call)
                except NoScriptError:  # the node's first time
                    return await self._request(call, source=True)
            except ConnectionLostError:
                raise
            except RedisError as error:
                return error

    async def _request(self, call: Call, *, source: bool = False) -> Any:
        command, arguments = call.wire(source=source)
        routed = [Key(argument) if argument in call.keys else argument for argument in arguments]
        with self._client.decoding(False):
            return await self._client.create_request(command, *routed, callback=lambda reply, **_: reply)

    async def _post_one(self, call: Call) -> None:
        try:
            await self._send_one(call, self._timeout)
        except Exception:
            logger.debug("An index entry was left for later", exc_info=True)
