"""A server of the `tasks` capability of 2025-11-25 that does as a script says: bare JSON-RPC, without an SDK.

The tests of the clients of both lines of the SDK use it: it needs neither in particular.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import anyio
import anyio.abc
import anyio.lowlevel
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from tests.mcp_v1.schemas import RELATED, validate
from tests.mcp_v2.script import CREATED_AT, POLL_INTERVAL_MS, TASK_ID, Received, Wire

_types: Any = import_module("mcp_types" if find_spec("mcp_types") else "mcp.types")
_parse: Any = (
    _types.jsonrpc_message_adapter.validate_json
    if find_spec("mcp_types")
    else _types.JSONRPCMessage.model_validate_json
)

Look: TypeAlias = Wire | Exception
"""What a request is answered with: a result, or an error."""

CAPABILITY: Wire = {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}

_REQUESTS = {
    "tools/list": "ListToolsRequest",
    "tools/call": "CallToolRequest",
    "tasks/get": "GetTaskRequest",
    "tasks/result": "GetTaskPayloadRequest",
    "tasks/cancel": "CancelTaskRequest",
    "tasks/list": "ListTasksRequest",
}


def task(status: Any = "working", **fields: Any) -> Wire:
    """Return a well-formed task; a field given as `...` is left out."""
    wire = {
        "taskId": TASK_ID,
        "status": status,
        "createdAt": CREATED_AT,
        "lastUpdatedAt": CREATED_AT,
        "ttl": None,
        "pollInterval": POLL_INTERVAL_MS,
        **fields,
    }
    return {name: value for name, value in wire.items() if value is not ...}


def result(text: str = "done", **fields: Any) -> Wire:
    """Return the result of a tool, as `tasks/result` shows it."""
    related = {RELATED: {"taskId": TASK_ID}}
    return {"content": [{"type": "text", "text": text}], "_meta": related, **fields}


def tool(mode: str | None = "optional", name: str = "work", **fields: Any) -> Wire:
    """Return a tool as `tools/list` shows it."""
    execution = {} if mode is None else {"execution": {"taskSupport": mode}}
    return {"name": name, "inputSchema": {"type": "object"}, **execution, **fields}


class ScriptedLegacyServer:
    """A server with one tool, `work`, that runs as a task.

    Attributes:
        version: The protocol revision that it speaks.
        capabilities: What it declares.
        pages: What `tools/list` shows, page by page.
        created: What a task call is answered with.
        plain: What a plain call is answered with.
        looks: What each `tasks/get` is answered with, in this order; the last one stands.
        outcomes: The same for `tasks/result`; `None` is never answered.
        cancelled: What `tasks/cancel` is answered with.
        listed: What `tasks/list` shows, page by page.
        received: Every request but `initialize`, in the order they came.
        withdrawn: The methods of the requests that the client cancelled with `notifications/cancelled`.
        reply: Called with each request before it is answered, and may wait, raise, or return another answer.
        hang_up: Ends the connection, as a server does that stops.
    """

    def __init__(self, *looks: Look) -> None:
        self.version = "2025-11-25"
        self.capabilities: Wire = {"tools": {}, "tasks": CAPABILITY}
        self.pages: list[list[Wire]] = [[tool()]]
        self.created: Look = {"task": task()}
        self.plain: Look = {"content": [{"type": "text", "text": "at once"}]}
        self.looks: list[Look] = list(looks) or [task()]
        self.outcomes: list[Look | None] = [result()]
        self.cancelled: Look = task("cancelled")
        self.listed: list[Wire] = [{"tasks": [task()]}]
        self.received: list[Received] = []
        self.withdrawn: list[str] = []
        self.reply: Callable[[Received], Awaitable[Wire | None]] | None = None
        self._changed = anyio.Event()
        self._running: dict[Any, tuple[str, anyio.CancelScope]] = {}
        self._asked: dict[Any, Wire] = {}
        self._send: Callable[[Wire], Awaitable[None]] | None = None
        self.hang_up: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    def show(self, *looks: Look) -> None:
        """Answer the next `tasks/get` with these."""
        self.looks = list(looks)

    def of(self, method: str) -> list[Received]:
        """Return the requests of a method."""
        return [request for request in self.received if request.method == method]

    @property
    def methods(self) -> list[str]:
        """The methods of the requests, without `tasks/get`, of which there may be any number."""
        return [request.method for request in self.received if request.method != "tasks/get"]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came made this true."""
        while not condition():
            await self._changed.wait()

    async def saw(self, method: str, times: int = 1) -> None:
        """Wait until a method was requested so often."""
        await self.until(lambda: len(self.of(method)) >= times)

    async def looked(self) -> None:
        """Wait until the client has looked at the task, and has had time to look at the answer too."""
        await self.saw("tasks/get", times=len(self.of("tasks/get")) + 2)

    async def ask(self, method: str, params: Wire) -> Wire:
        """Send a request to the client and return its response."""
        assert self._send is not None
        identifier = f"server-{len(self._asked)}-{len(self.received)}"
        await self._send({"jsonrpc": "2.0", "id": identifier, "method": method, "params": params})
        await self.until(lambda: identifier in self._asked)
        return self._asked[identifier]

    async def elicit(self, message: str = "Publish it?") -> Wire:
        """Ask the client's user, as `tasks/result` does, and return the response."""
        schema = {"type": "object", "properties": {}}
        params = {"message": message, "requestedSchema": schema, "_meta": {RELATED: {"taskId": TASK_ID}}}
        return await self.ask("elicitation/create", params)

    async def notify(self, method: str, params: Wire) -> None:
        """Send a notification to the client."""
        assert self._send is not None
        await self._send({"jsonrpc": "2.0", "method": method, "params": params})

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any, None]:
        """The transport to it, for a client."""
        async with create_client_server_memory_streams() as (client, (read, write)):

            async def send(message: Wire) -> None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the client has left
                    await write.send(SessionMessage(_parse(json.dumps(message))))

            async def serve() -> None:
                async for item in read:
                    assert isinstance(item, SessionMessage)
                    self._take(json.loads(item.message.model_dump_json(by_alias=True, exclude_unset=True)), group)

            self._send = send
            self.hang_up = write.aclose
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                yield client
                group.cancel_scope.cancel()

    def _take(self, message: Wire, group: anyio.abc.TaskGroup) -> None:
        if "method" not in message:
            self._asked[message["id"]] = message
        elif "id" in message:
            if message["method"] in _REQUESTS:
                validate(message, _REQUESTS[message["method"]])
            group.start_soon(self._serve, message)
        elif message["method"] == "notifications/cancelled" and message["params"]["requestId"] in self._running:
            method, scope = self._running[message["params"]["requestId"]]
            self.withdrawn.append(method)
            scope.cancel()
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _serve(self, message: Wire) -> None:
        request = Received(message["method"], message.get("params", {}), {})
        if request.method != "initialize":
            self.received.append(request)
            changed, self._changed = self._changed, anyio.Event()
            changed.set()
        response: Wire = {"jsonrpc": "2.0", "id": message["id"]}
        with anyio.CancelScope() as scope:
            self._running[message["id"]] = (request.method, scope)
            try:
                answer = None if self.reply is None else await self.reply(request)
                look = self._answer(request) if answer is None else answer
                if look is None:
                    await anyio.sleep_forever()
                if isinstance(look, Exception):
                    raise look
                response["result"] = look
            except Exception as error:
                response["error"] = _error_of(error).model_dump(exclude_none=True)
            finally:
                del self._running[message["id"]]
            assert self._send is not None
            await self._send(response)

    def _answer(self, request: Received) -> Look | None:
        cursor = int(request.params.get("cursor", 0))
        match request.method:
            case "initialize":
                info = {"name": "scripted", "version": "1"}
                return {"protocolVersion": self.version, "capabilities": self.capabilities, "serverInfo": info}
            case "tools/list":
                return _page({"tools": self.pages[cursor]}, cursor, len(self.pages))
            case "tools/call":
                return self.plain if request.params.get("task") is None else self.created
            case "tasks/get":
                return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
            case "tasks/result":
                return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
            case "tasks/cancel":
                return self.cancelled
            case "tasks/list":
                return _page(dict(self.listed[cursor]), cursor, len(self.listed))
        raise AssertionError(request.method)


def _error_of(error: Exception) -> Any:
    """Return the JSON-RPC error that the SDK's exception holds."""
    return getattr(error, "error")  # noqa: B009  # whichever SDK it is of


def _page(wire: Wire, number: int, count: int) -> Wire:
    return wire if number + 1 == count else {**wire, "nextCursor": str(number + 1)}
