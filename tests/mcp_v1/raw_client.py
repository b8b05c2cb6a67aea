"""A client of protocol revision 2025-11-25 that knows no SDK: JSON-RPC as it goes over the wire.

Every message it receives is validated against the protocol's schema.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, TypeAlias

import anyio
import anyio.abc
import httpx

from tests.mcp_v1.schemas import RELATED, Wire, validate_from_server, validate_response
from tests.support.patience import PATIENCE

ALL_CAPABILITIES: Wire = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "tasks": {"requests": {"elicitation": {"create": {}}, "sampling": {"createMessage": {}}}},
}

_ids = count(1)

Answer: TypeAlias = Callable[[Wire], Awaitable["Wire | None"]]
"""Answers a request of the server with `{"result": ...}` or `{"error": ...}`; `None` for not at all."""


def accept(**content: Any) -> Wire:
    """Return the answer to a form that is filled with this content."""
    return {"result": {"action": "accept", "content": content}}


async def never(question: Wire) -> Wire | None:
    """Leave a question open."""
    return None


class RawClient:
    """One connection to a server. How messages travel is up to `send`."""

    def __init__(self, group: anyio.abc.TaskGroup, answer: Answer) -> None:
        self.answer = answer
        self.questions: list[Wire] = []
        self.notifications: list[Wire] = []
        self.group = group
        self.protocol_version = "2025-11-25"
        self.changed = anyio.Event()
        self._responses: dict[Any, Wire] = {}
        self._requests: dict[Any, Wire] = {}

    async def send(self, message: Wire) -> None:
        raise NotImplementedError

    async def start_request(self, method: str, params: Wire | None = None) -> str:
        """Send a request; return its id."""
        message: Wire = {"jsonrpc": "2.0", "id": f"raw-{next(_ids)}", "method": method}
        if params is not None:
            message["params"] = params
        self._requests[message["id"]] = message
        await self.send(message)
        identifier: str = message["id"]
        return identifier

    async def response(self, identifier: str) -> Wire:
        """Wait for the response to a request."""
        with anyio.fail_after(PATIENCE):
            while identifier not in self._responses:
                await self.changed.wait()
        message = self._responses.pop(identifier)
        validate_response(self._requests.pop(identifier), message)
        return message

    async def request(self, method: str, params: Wire | None = None) -> Wire:
        """Send a request and return its response."""
        return await self.response(await self.start_request(method, params))

    async def result(self, method: str, params: Wire | None = None) -> Wire:
        """Send a request that succeeds; return its result."""
        message = await self.request(method, params)
        assert "result" in message, message
        result: Wire = message["result"]
        return result

    async def error(self, method: str, params: Wire | None = None) -> Wire:
        """Send a request that fails; return its error."""
        message = await self.request(method, params)
        assert "error" in message, message
        error: Wire = message["error"]
        return error

    async def notify(self, method: str, params: Wire | None = None) -> None:
        """Send a notification."""
        await self.send({"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params})})

    async def initialize(self, capabilities: Wire) -> Wire:
        """Shake hands; return what the server said."""
        hello = {
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "clientInfo": {"name": "raw", "version": "1"},
        }
        result = await self.result("initialize", hello)
        self.protocol_version = result["protocolVersion"]  # mcp 1.23.0 has tasks, and knows 2025-06-18 only
        await self.notify("notifications/initialized")
        return result

    async def received(self, message: Wire) -> None:
        """Take a message from the server."""
        if "method" not in message:
            self._responses[message["id"]] = message
        elif "id" in message:
            validate_from_server(message)
            self.questions.append(message)
            self.group.start_soon(self._answer, message)
        else:
            validate_from_server(message)
            self.notifications.append(message)
        self.changed.set()
        self.changed = anyio.Event()

    async def _answer(self, question: Wire) -> None:
        answer = await self.answer(question)
        if answer is not None:
            await self.send({"jsonrpc": "2.0", "id": question["id"], **answer})

    # -- tasks

    async def start(self, tool: str, arguments: Wire | None = None, **extra: Any) -> str:
        """Call a tool as a task; return the task's id."""
        params = {"name": tool, "arguments": arguments or {}, "task": {}, **extra}
        created = await self.result("tools/call", params)
        task_id: str = created["task"]["taskId"]
        return task_id

    async def task(self, task_id: str) -> Wire:
        """Return a task as `tasks/get` shows it."""
        return await self.result("tasks/get", {"taskId": task_id})

    async def until(self, task_id: str, *statuses: str) -> Wire:
        """Poll a task until it has one of these statuses."""
        with anyio.fail_after(PATIENCE):
            while True:
                task = await self.task(task_id)
                if task["status"] in statuses:
                    return task
                await anyio.sleep(0.01)

    async def outcome(self, task_id: str) -> Wire:
        """Return the response to `tasks/result`."""
        return await self.request("tasks/result", {"taskId": task_id})

    async def text(self, task_id: str) -> str:
        """Return the text that a task ended with."""
        result = await self.result("tasks/result", {"taskId": task_id})
        assert result["_meta"][RELATED] == {"taskId": task_id}
        text: str = result["content"][0]["text"]
        return text

    async def asked(self, questions: int = 1) -> Wire:
        """Wait until the server has sent so many requests; return the last."""
        with anyio.fail_after(PATIENCE):
            while len(self.questions) < questions:
                await self.changed.wait()
        return self.questions[questions - 1]

    async def notified(self, method: str, **fields: Any) -> Wire:
        """Wait for a notification with these params; return all of them."""
        with anyio.fail_after(PATIENCE):
            while True:
                for message in self.notifications:
                    params: Wire = message.get("params", {})
                    if message["method"] == method and fields.items() <= params.items():
                        return params
                await self.changed.wait()


class HTTPClient(RawClient):
    """Speaks Streamable HTTP: one POST for each message, whose stream may bring anything."""

    def __init__(self, group: anyio.abc.TaskGroup, answer: Answer, http: httpx.AsyncClient, url: str) -> None:
        super().__init__(group, answer)
        self.session_id: str | None = None
        self._http = http
        self._url = url
        self._streams: dict[Any, anyio.CancelScope] = {}

    def headers(self) -> dict[str, str]:
        sent = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-protocol-version": self.protocol_version,
        }
        return sent if self.session_id is None else {**sent, "mcp-session-id": self.session_id}

    async def send(self, message: Wire) -> None:
        await self.group.start(self._post, message)

    def drop(self, identifier: str) -> None:
        """Lose the stream of a request, without a word to the server."""
        self._streams.pop(identifier).cancel()

    async def end_session(self) -> None:
        """Tell the server that no client will return to this session."""
        await self._http.delete(self._url, headers=self.headers())

    async def listen(self) -> None:
        """Open the connection's own stream."""
        await self.group.start(self._get)

    async def _post(self, message: Wire, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.CancelScope() as scope:
            self._streams[message.get("id")] = scope
            content = json.dumps(message).encode()
            async with self._http.stream("POST", self._url, content=content, headers=self.headers()) as response:
                self.session_id = response.headers.get("mcp-session-id", self.session_id)
                assert response.status_code in (200, 202), (response.status_code, await response.aread())
                task_status.started()
                await self._read(response)

    async def _get(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        async with self._http.stream("GET", self._url, headers=self.headers()) as response:
            assert response.status_code == 200
            task_status.started()
            await self._read(response)

    async def _read(self, response: httpx.Response) -> None:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            async for line in response.aiter_lines():
                if line.startswith("data:") and line[5:].strip():
                    await self.received(json.loads(line[5:]))
        elif body := await response.aread():
            await self.received(json.loads(body))


@asynccontextmanager
async def http_client(
    url: str,
    *,
    answer: Answer = never,
    capabilities: Wire | None = None,
    initialize: bool = True,
    headers: dict[str, str] | None = None,
    resumes: HTTPClient | None = None,
) -> AsyncGenerator[HTTPClient, None]:
    """Connect to a server that listens at a URL, maybe in the session of a client whose connection was lost."""
    fresh = httpx.Limits(max_keepalive_connections=0)  # a server may close an idle connection just as it is used again
    async with (
        httpx.AsyncClient(timeout=PATIENCE, headers=headers, limits=fresh) as http,
        anyio.create_task_group() as group,
    ):
        client = HTTPClient(group, answer, http, url)
        if resumes is not None:
            client.session_id, client.protocol_version = resumes.session_id, resumes.protocol_version
        elif initialize:
            await client.initialize(ALL_CAPABILITIES if capabilities is None else capabilities)
        try:
            yield client
        finally:
            group.cancel_scope.cancel()


class StreamClient(RawClient):
    """Speaks over a pair of functions that send and receive JSON."""

    def __init__(
        self,
        group: anyio.abc.TaskGroup,
        answer: Answer,
        send: Callable[[Wire], Awaitable[None]],
        receive: Callable[[], Awaitable[Wire]],
    ) -> None:
        super().__init__(group, answer)
        self._send = send
        self._receive = receive

    async def send(self, message: Wire) -> None:
        await self._send(message)

    async def read(self) -> None:
        """Take messages until there are no more."""
        try:
            while True:
                await self.received(await self._receive())
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return


@asynccontextmanager
async def stream_client(
    serve: Callable[[], Coroutine[Any, Any, None]],
    send: Callable[[Wire], Awaitable[None]],
    receive: Callable[[], Awaitable[Wire]],
    close: Callable[[], Awaitable[None]],
    *,
    answer: Answer = never,
    capabilities: Wire | None = None,
    hello: list[Wire] | None = None,
) -> AsyncGenerator[StreamClient, None]:
    """Connect to a server in this process, which `serve` runs until `close` was called."""
    async with anyio.create_task_group() as servers:
        servers.start_soon(serve)
        try:
            async with anyio.create_task_group() as group:
                client = StreamClient(group, answer, send, receive)
                group.start_soon(client.read)
                said = await client.initialize(ALL_CAPABILITIES if capabilities is None else capabilities)
                if hello is not None:
                    hello.append(said)
                try:
                    yield client
                finally:
                    group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await close()
