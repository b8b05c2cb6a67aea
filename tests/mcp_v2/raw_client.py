"""A client of protocol revision 2026-07-28 that knows no SDK: JSON-RPC as it goes over the wire.

`RawClient` speaks over anything that can exchange one request for its response: Streamable HTTP
(`HTTPExchange`), the stdio of a server process (`StdioServer`), or streams in memory (`memory_client`).
Every message it receives is validated against the protocol's schemas.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Protocol

import anyio
import anyio.to_thread
import httpx
from typing_extensions import Self

from tests.mcp_v2.schemas import Wire, validate_notification, validate_response
from tests.support.patience import PATIENCE
from tests.support.warm_processes import start_program

EXTENSION_ID = "io.modelcontextprotocol/tasks"
PROTOCOL_VERSION = "2026-07-28"
DECLARED: Wire = {"extensions": {EXTENSION_ID: {}}, "elicitation": {"form": {}, "url": {}}, "sampling": {}}
"""What a client declares that takes tasks and answers every question."""


_ids = count(1)


@dataclass(frozen=True)
class Reply:
    """What a request brought.

    Attributes:
        message: The JSON-RPC response.
        notifications: What came before it for the same request.
        http_status: The status of the HTTP response.
        content_type: The media type of the HTTP response.
    """

    message: Wire
    notifications: Sequence[Wire] = ()
    http_status: int | None = None
    content_type: str = ""

    @property
    def result(self) -> Wire:
        """The result; a request that failed is a failure of the test."""
        assert "result" in self.message, self.message
        result: Wire = self.message["result"]
        return result

    @property
    def error(self) -> Wire:
        """The error; a request that succeeded is a failure of the test."""
        assert "error" in self.message, self.message
        error: Wire = self.message["error"]
        return error


class Exchange(Protocol):
    """Sends one request and waits for its response."""

    async def __call__(self, message: Wire, headers: Mapping[str, str | None]) -> Reply:
        """Return the response. `headers` add to those of HTTP; `None` leaves one out."""
        ...


@dataclass
class RawClient:
    """Sends requests that hold exactly what a test gives.

    Attributes:
        exchange: How requests travel.
        capabilities: What each request declares, unless it says otherwise.
    """

    exchange: Exchange
    capabilities: Wire = field(default_factory=lambda: DECLARED)

    async def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        capabilities: Wire | None = None,
        meta: Wire | None = None,
        headers: Mapping[str, str | None] | None = None,
        check: bool = True,
    ) -> Reply:
        """Send a request and return what came back, validated."""
        envelope = {
            "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": self.capabilities if capabilities is None else capabilities,
            **(meta or {}),
        }
        message = {
            "jsonrpc": "2.0",
            "id": f"raw-{next(_ids)}",
            "method": method,
            "params": {**(params or {}), "_meta": envelope},
        }
        with anyio.fail_after(PATIENCE):
            reply = await self.exchange(message, headers or {})
        if check:
            assert reply.message["id"] == message["id"]
            validate_response(method, reply.message)
            for notification in reply.notifications:
                validate_notification(notification)
        return reply

    async def call(self, tool: str, arguments: Wire | None = None, /, **options: Any) -> Reply:
        """Call a tool; further members of the params go into `extra`."""
        extra = options.pop("extra", {})
        return await self.request("tools/call", {"name": tool, "arguments": arguments or {}, **extra}, **options)

    async def start(self, tool: str, arguments: Wire | None = None, /, **options: Any) -> str:
        """Call a tool that becomes a task; return the task's id."""
        handle = (await self.call(tool, arguments, **options)).result
        assert handle["resultType"] == "task", handle
        task_id: str = handle["taskId"]
        return task_id

    async def get(self, task_id: str, **options: Any) -> Wire:
        """Return the task as it stands."""
        return (await self.request("tasks/get", {"taskId": task_id}, **options)).result

    async def update(self, task_id: str, responses: Mapping[str, Any], **options: Any) -> Reply:
        """Answer questions of a task."""
        return await self.request("tasks/update", {"taskId": task_id, "inputResponses": responses}, **options)

    async def cancel(self, task_id: str, **options: Any) -> Reply:
        """Cancel a task."""
        return await self.request("tasks/cancel", {"taskId": task_id}, **options)

    async def until(self, task_id: str, *statuses: str, seen: list[Wire] | None = None) -> Wire:
        """Poll a task until it has one of these statuses; return it, and note all that was seen."""
        with anyio.fail_after(PATIENCE):
            while True:
                task = await self.get(task_id)
                if seen is not None:
                    seen.append(task)
                if task["status"] in statuses:
                    return task
                assert task["status"] in ("working", "input_required"), task
                await anyio.sleep(0.01)

    async def until_gone(self, task_id: str) -> None:
        """Poll a task until there is none any more."""
        with anyio.fail_after(PATIENCE):
            while True:
                if "error" in (await self.request("tasks/get", {"taskId": task_id})).message:
                    return
                await anyio.sleep(0.01)

    async def said(self, task_id: str, message: str) -> Wire:
        """Poll a task until it has this status message; return it."""
        with anyio.fail_after(PATIENCE):
            while True:
                task = await self.get(task_id)
                if task.get("statusMessage") == message:
                    return task
                await anyio.sleep(0.01)

    async def asked(self, task_id: str, questions: int = 1) -> Wire:
        """Poll a task until it has so many open questions; return them."""
        with anyio.fail_after(PATIENCE):
            while True:
                requests: Wire = (await self.until(task_id, "input_required"))["inputRequests"]
                if len(requests) >= questions:
                    return requests
                await anyio.sleep(0.01)


def accept(**content: Any) -> Wire:
    """Return the answer to a form that is filled with this content."""
    return {"action": "accept", "content": content}


# Over Streamable HTTP


_NAME_OF_METHOD = {"tools/call": "name", "tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId"}


class HTTPExchange:
    """Sends each request as one POST, and reads a JSON or an SSE response."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def __call__(self, message: Wire, headers: Mapping[str, str | None]) -> Reply:
        sent: dict[str, str | None] = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-protocol-version": PROTOCOL_VERSION,
            "mcp-method": message["method"],
        }
        name = message["params"].get(_NAME_OF_METHOD.get(message["method"], ""))
        if isinstance(name, str) and name.isascii() and name.isprintable() and name == name.strip():
            sent["mcp-name"] = name
        sent.update(headers)
        response = await self._http.post(
            self._url,
            content=json.dumps(message).encode(),
            headers={name: value for name, value in sent.items() if value is not None},
        )
        content_type = response.headers.get("content-type", "").partition(";")[0]
        if content_type == "text/event-stream":
            assert response.status_code == 200
            messages = list(_events(response.text))
        else:
            assert content_type == "application/json", (response.status_code, response.text)
            messages = [response.json()]
        return Reply(messages[-1], messages[:-1], response.status_code, content_type)


def _events(text: str) -> Iterable[Wire]:
    for event in text.replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:"))
        if data:
            yield json.loads(data)


@asynccontextmanager
async def http_client(
    url: str, *, app: Any = None, headers: Mapping[str, str] | None = None
) -> AsyncGenerator[RawClient, None]:
    """Connect over HTTP: to a server that listens, or to an ASGI application in this process."""
    fresh = httpx.Limits(max_keepalive_connections=0)  # a server may close an idle connection just as it is used again
    transport = httpx.AsyncHTTPTransport(limits=fresh) if app is None else httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, headers=headers, timeout=PATIENCE) as http:
        yield RawClient(HTTPExchange(http, url))


# Over stdio


class StdioServer:
    """A server process that is spoken to over its stdin and stdout, from any event loop."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._process = start_program(arguments, speaks=True)
        self._waiting: dict[str, queue.SimpleQueue[Wire]] = {}
        self._lock = threading.Lock()
        self._errors: list[bytes] = []
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, patience: float = PATIENCE) -> tuple[int, str]:
        """Close the server's input and wait until it has ended; return its exit code and stderr."""
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        stdin.close()
        try:
            code = self._process.wait(patience)
        finally:
            self._process.kill()
            self._process.wait(PATIENCE)
            for reader in self._readers:
                reader.join(PATIENCE)
            stdout.close()
            stderr.close()
        return code, b"".join(self._errors).decode()

    async def __call__(self, message: Wire, headers: Mapping[str, str | None]) -> Reply:
        inbox: queue.SimpleQueue[Wire] = queue.SimpleQueue()
        key = message["id"]
        token = message["params"]["_meta"].get("progressToken")
        self._waiting[key] = inbox
        if token is not None:
            self._waiting[token] = inbox
        try:
            await anyio.to_thread.run_sync(self._write, message, abandon_on_cancel=True)
            received: list[Wire] = []
            while not received or received[-1].get("id") != key:
                get = partial(inbox.get, timeout=PATIENCE)
                received.append(await anyio.to_thread.run_sync(get, abandon_on_cancel=True))
            return Reply(received[-1], received[:-1])
        finally:
            self._waiting.pop(key)
            self._waiting.pop(token, None)

    def _write(self, message: Wire) -> None:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            key = message.get("id", message.get("params", {}).get("progressToken"))
            inbox = self._waiting.get(key)
            if inbox is not None:
                inbox.put(message)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line)
