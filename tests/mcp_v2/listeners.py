"""Clients that listen without any SDK, over each transport; every message they receive is validated."""

from __future__ import annotations

import json
import math
import queue
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import httpx
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectSendStream
from mcp.server import MCPServer
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from tests.mcp_v2.raw_client import (
    DECLARED,
    PROTOCOL_VERSION,
    HTTPExchange,
    RawClient,
    Reply,
    StdioServer,
)
from tests.mcp_v2.schemas import Wire, validate, validate_response
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE

SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
ENDED = {"completed", "failed", "cancelled"}

_ids = count(1)


def listen_request(notifications: Any, capabilities: Wire) -> Wire:
    """Return the request that opens a stream."""
    envelope = {
        "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    }
    return {
        "jsonrpc": "2.0",
        "id": f"listen-{next(_ids)}",
        "method": "subscriptions/listen",
        "params": {"notifications": notifications, "_meta": envelope},
    }


class Stream:
    """What comes for one `subscriptions/listen`, in order and validated.

    Attributes:
        subscription_id: The id of the request.
        agreed: What the acknowledgement agreed to, once it was received.
        response: What ended the stream, once it was received.
        seen: The params of all `notifications/tasks` so far, by task.
    """

    def __init__(self, subscription_id: str, receive: Callable[[], Any]) -> None:
        self.subscription_id = subscription_id
        self.agreed: Wire | None = None
        self.response: Wire | None = None
        self.seen: dict[str, list[Wire]] = {}
        self._receive = receive

    async def next(self) -> Wire:
        """Return the next message."""
        with anyio.fail_after(PATIENCE):
            message: Wire = await self._receive()
        assert self.response is None, f"nothing may follow the response: {message}"
        if "id" in message:
            assert message["id"] == self.subscription_id
            self.response = message
            if "error" in message:
                validate_response("subscriptions/listen", message)
            else:
                validate(message, "SubscriptionsListenResultResponse", "mcp-2026-07-28")
                assert message["result"]["_meta"][SUBSCRIPTION_ID] == self.subscription_id
            return message
        validate(message, "JSONRPCNotification", "mcp-2026-07-28")
        assert message["params"]["_meta"][SUBSCRIPTION_ID] == self.subscription_id
        assert message["method"] not in ("notifications/progress", "notifications/message"), "C11"
        if message["method"] == ACKNOWLEDGED:
            assert self.agreed is None
            validate(message, "SubscriptionsAcknowledgedNotification", "mcp-2026-07-28")
            agreed: Wire = message["params"]["notifications"]
            validate(agreed, "TaskSubscriptionAcknowledgedNotifications")
            self.agreed = agreed
            return message
        assert self.agreed is not None, "the acknowledgement comes first"
        if message["method"] == "notifications/tasks":
            validate(message, "TaskStatusNotification")
            task = {name: value for name, value in message["params"].items() if name != "_meta"}
            assert "resultType" not in task
            validate_response("tasks/get", {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete", **task}})
            assert task["taskId"] in self.agreed["taskIds"]
            states = self.seen.setdefault(task["taskId"], [])
            assert not states or states[-1]["status"] not in ENDED, "nothing may follow the end of a task"
            states.append(task)
        return message

    async def acknowledged(self) -> list[str]:
        """Receive the acknowledgement; return the ids it agrees to."""
        message = await self.next()
        assert message.get("method") == ACKNOWLEDGED, message
        assert self.agreed is not None
        task_ids: list[str] = self.agreed["taskIds"]
        return task_ids

    async def task(self) -> Wire:
        """Return the next task, which must be the next message."""
        message = await self.next()
        assert message.get("method") == "notifications/tasks", message
        return {name: value for name, value in message["params"].items() if name != "_meta"}

    async def until(self, matches: Callable[[Wire], bool]) -> Wire:
        """Return the first task from here on that matches."""
        while True:
            task = await self.task()
            if matches(task):
                return task

    async def ended(self) -> Wire:
        """Receive all up to the response, and return its result."""
        while self.response is None:
            await self.next()
        assert "result" in self.response, self.response
        result: Wire = self.response["result"]
        return result

    async def refused(self) -> Wire:
        """Return the error that the request is answered with instead of an acknowledgement."""
        message = await self.next()
        assert "error" in message, message
        error: Wire = message["error"]
        return error


@dataclass
class Connection:
    """A client and its streams.

    Attributes:
        client: Sends requests.
        open: Opens a stream for a listen request, and closes it when the block ends.
    """

    client: RawClient
    open: Callable[[Wire], AbstractAsyncContextManager[Stream]]

    def listen(
        self, *task_ids: str, capabilities: Wire | None = None, **core: Any
    ) -> AbstractAsyncContextManager[Stream]:
        """Listen to tasks, with core filters in addition."""
        return self.listen_raw({"taskIds": list(task_ids), **core}, capabilities=capabilities)

    def listen_raw(
        self, notifications: Any, *, capabilities: Wire | None = None
    ) -> AbstractAsyncContextManager[Stream]:
        """Send exactly these `notifications`."""
        return self.open(listen_request(notifications, DECLARED if capabilities is None else capabilities))


# In memory


class _Router:
    """Streams in memory, shared by requests and subscriptions as on stdio."""

    def __init__(self, send: Callable[[SessionMessage], Any]) -> None:
        self._send = send
        self._inboxes: dict[Any, MemoryObjectSendStream[Wire]] = {}

    def receive(self, message: Wire) -> None:
        key = message["id"] if "id" in message else message["params"]["_meta"][SUBSCRIPTION_ID]
        inbox = self._inboxes.get(key)
        if inbox is not None:
            inbox.send_nowait(message)

    async def send(self, message: Wire) -> None:
        await self._send(SessionMessage(jsonrpc_message_adapter.validate_json(json.dumps(message), by_name=False)))

    async def __call__(self, message: Wire, headers: Mapping[str, str | None]) -> Reply:
        async with self.open(message, cancel=False) as stream:
            return Reply(await stream._receive())

    @asynccontextmanager
    async def open(self, message: Wire, *, cancel: bool = True) -> AsyncGenerator[Stream, None]:
        inbox, messages = anyio.create_memory_object_stream[Wire](math.inf)
        with inbox, messages:
            self._inboxes[message["id"]] = inbox
            stream = Stream(message["id"], messages.receive)
            try:
                await self.send(message)
                yield stream
            finally:
                del self._inboxes[message["id"]]
                if cancel and stream.response is None:
                    with anyio.move_on_after(1, shield=True):
                        await self.send(_cancellation(message))


def _cancellation(message: Wire) -> Wire:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": message["id"]}}


@asynccontextmanager
async def memory_connection(server: MCPServer[Any]) -> AsyncGenerator[Connection, None]:
    """Connect to a server in this process, which it serves as it serves stdio."""
    inner = low_level(server)
    async with create_client_server_memory_streams() as ((read, write), server_streams):
        router = _Router(write.send)

        async def receive() -> None:
            async for item in read:
                assert isinstance(item, SessionMessage)
                router.receive(json.loads(item.message.model_dump_json(by_alias=True, exclude_unset=True)))

        async def serve() -> None:
            await inner.run(*server_streams, inner.create_initialization_options())

        failure: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            group.start_soon(serve)
            try:
                yield Connection(RawClient(router), router.open)
            except BaseException as error:  # the group would wrap it
                failure = error
            await write.aclose()
            with anyio.move_on_after(PATIENCE, shield=True):
                await server_streams[1].aclose()
        if failure is not None:
            raise failure


# Over Streamable HTTP


@asynccontextmanager
async def http_connection(url: str, **headers: str) -> AsyncGenerator[Connection, None]:
    """Connect to a server that listens, with these headers in every request."""
    async with httpx.AsyncClient(timeout=PATIENCE, headers=headers) as http:
        yield Connection(RawClient(HTTPExchange(http, url)), partial(_open_over_http, url, headers))


@asynccontextmanager
async def _open_over_http(url: str, headers: Mapping[str, str], message: Wire) -> AsyncGenerator[Stream, None]:
    async with await post(url, message, **headers) as connection:
        yield Stream(message["id"], EventReader(connection).next)


async def post(url: str, message: Wire, **more: str) -> anyio.abc.SocketStream:
    """Send a listen request over a socket of its own, without reading anything."""
    address, _, path = url.removeprefix("http://").partition("/")
    host, port = address.split(":")
    connection = await anyio.connect_tcp(host, int(port))
    body = json.dumps(message).encode()
    own = {"host": f"{host}:{port}", "content-length": str(len(body)), "connection": "close"}
    headers = {**HTTP_HEADERS, **own, **more}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await connection.send(f"POST /{path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return connection


class EventReader:
    """Reads the JSON-RPC messages of an HTTP response, an SSE stream or a single one."""

    def __init__(self, connection: anyio.abc.SocketStream) -> None:
        self._buffer = BufferedByteReceiveStream(connection)
        self._is_stream: bool | None = None
        self._text = ""

    async def next(self) -> Wire:
        """Return the next message."""
        if self._is_stream is None:
            head = (await self._buffer.receive_until(b"\r\n\r\n", 65536)).decode().lower()
            self._is_stream = "text/event-stream" in head
            if not self._is_stream:
                (length,) = (line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:"))
                single: Wire = json.loads(await self._buffer.receive_exactly(int(length)))
                return single
        while True:
            event, end, rest = self._text.partition("\n\n")
            if not end:
                size = int(await self._buffer.receive_until(b"\r\n", 100), 16)
                chunk = await self._buffer.receive_exactly(size + 2)
                if not size:
                    raise EOFError("the stream ended without a response")
                self._text += chunk[:-2].decode().replace("\r\n", "\n")
                continue
            self._text = rest
            for line in event.split("\n"):
                if line.startswith("data:") and line[5:].strip():
                    message: Wire = json.loads(line[5:])
                    return message


HTTP_HEADERS = {
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
    "mcp-protocol-version": PROTOCOL_VERSION,
    "mcp-method": "subscriptions/listen",
}


# Over stdio


class ListeningStdioServer(StdioServer):
    """A server process over whose stdout subscriptions come as well."""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            key = message["id"] if "id" in message else message["params"].get("_meta", {}).get(SUBSCRIPTION_ID)
            inbox = self._waiting.get(key)
            if inbox is not None:
                inbox.put(message)

    @asynccontextmanager
    async def open(self, message: Wire) -> AsyncGenerator[Stream, None]:
        """Send a listen request."""
        inbox: queue.SimpleQueue[Wire] = queue.SimpleQueue()
        self._waiting[message["id"]] = inbox

        async def receive() -> Wire:
            return await anyio.to_thread.run_sync(partial(inbox.get, timeout=PATIENCE), abandon_on_cancel=True)

        stream = Stream(message["id"], receive)
        try:
            await anyio.to_thread.run_sync(self._write, message)
            yield stream
        finally:
            del self._waiting[message["id"]]
            inbox.put({})  # releases a thread that still waits
            if stream.response is None:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._write, _cancellation(message))

    def connection(self) -> Connection:
        """Return a client of the process."""
        return Connection(RawClient(self), self.open)
