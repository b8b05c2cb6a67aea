"""A server of the 2026-07-28 tasks extension that does as a script says, and misbehaves on demand.

It keeps no tasks: a test says what each `tasks/get` answers, and reads back what the client sent. Run
as a program, it serves one scenario over stdio.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import anyio
import mcp_types as types
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage
from pydantic import ConfigDict

from mcp_task_runtime.adapters.mcp_v2._requests import RawMessage
from mcp_task_runtime.client import TasksClient
from tests.mcp_v2.script import CREATED_AT, POLL_INTERVAL_MS, TASK_ID, Received, Wire

EXTENSION_ID = "io.modelcontextprotocol/tasks"
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"

Look: TypeAlias = Wire | Exception
"""What a `tasks/get` answers: a result, or an error."""


def task(status: Any = "working", **fields: Any) -> Wire:
    """Return a well-formed task; a field given as `...` is left out."""
    wire = {
        "taskId": TASK_ID,
        "status": status,
        "createdAt": CREATED_AT,
        "lastUpdatedAt": CREATED_AT,
        "ttlMs": None,
        "pollIntervalMs": POLL_INTERVAL_MS,
        **fields,
    }
    return {name: value for name, value in wire.items() if value is not ...}


def working(message: str | None = None, **fields: Any) -> Wire:
    """Return a task that works, and says what it does."""
    return task(statusMessage=... if message is None else message, **fields)


def asking(**requests: Any) -> Wire:
    """Return a task with these open questions."""
    return task("input_required", inputRequests=requests)


def completed(text: str = "done", **fields: Any) -> Wire:
    """Return a task that completed with this text."""
    return task("completed", result={"content": [{"type": "text", "text": text}], **fields})


def failed(code: int, message: str, **fields: Any) -> Wire:
    """Return a task that failed with this error."""
    return task("failed", error={"code": code, "message": message, **fields})


def elicit(message: str = "Publish it?", **params: Any) -> Wire:
    """Return an elicitation that asks for nothing but consent."""
    schema = {"type": "object", "properties": {}}
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema, **params},
    }


def sample(text: str = "Write it.") -> Wire:
    """Return a sampling request."""
    messages = [{"role": "user", "content": {"type": "text", "text": text}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 10}}


def quick_client(**options: Any) -> TasksClient:
    """Return a `TasksClient` that makes no test wait longer than it must."""
    return TasksClient(**{"poll_bounds_ms": (5, 60_000), "retry_pause": 0.01, **options})


def rare_client(**options: Any) -> TasksClient:
    """Return a `TasksClient` that polls once an hour."""
    return quick_client(poll_bounds_ms=(3_600_000, 3_600_000), **options)


class _AnyParams(types.RequestParams):
    model_config = ConfigDict(extra="allow")


_Context: TypeAlias = ServerRequestContext[Any, Any]


class ScriptedServer:
    """A low-level server with one tool, `work`, that becomes a task unless the script says otherwise.

    Attributes:
        handle: What `tools/call` answers; an exception is raised.
        looks: What each `tasks/get` answers, in this order; the last one stands.
        received: Every request of the tool and the tasks, in the order they came.
        answers: What `tasks/update` brought, by key.
        reply: Called with each request before it is answered, and may wait, raise, or return another answer.
        tool: The tool as `tools/list` shows it.
        listened: The task ids of each stream that was opened.
    """

    def __init__(self, *looks: Look) -> None:
        self.handle: Look = {"resultType": "task", **task()}
        self.looks: list[Look] = list(looks) or [working()]
        self.received: list[Received] = []
        self.answers: Wire = {}
        self.reply: Callable[[Received], Awaitable[Wire | None]] | None = None
        self.tool: Wire = {"name": "work", "inputSchema": {"type": "object"}}
        self.listened: list[list[str]] = []
        self._streams: list[_Context] = []
        self._listening: list[anyio.CancelScope] = []
        self._changed = anyio.Event()
        self.server: Server[Any] = Server("scripted")
        self.server.extensions[EXTENSION_ID] = {}
        for method in ("tools/list", "tools/call", "tasks/get", "tasks/update", "tasks/cancel"):
            self.server.add_request_handler(method, _AnyParams, self._serve)

    def show(self, *looks: Look) -> None:
        """Answer the next `tasks/get` with these."""
        self.looks = list(looks)

    def serve_listen(self) -> None:
        """Acknowledge each `subscriptions/listen` and leave the stream open; `push` sends over it."""
        self.server.add_request_handler("subscriptions/listen", _AnyParams, self._listen)

    async def push(self, params: Wire) -> None:
        """Send `notifications/tasks` with these params over the newest stream."""
        context = self._streams[-1]
        await self._notify(context, "notifications/tasks", params)

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    def drop_streams(self) -> None:
        """End every stream without a word."""
        for scope in self._listening:
            scope.cancel()

    async def until_quiet(self) -> None:
        """Wait until both sides have nothing left to do."""
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.01)  # tasks that come together are gathered for a moment, which has begun
        await anyio.wait_all_tasks_blocked()

    async def listens(self, times: int = 1) -> None:
        """Wait until a stream was opened so often."""
        while len(self.listened) < times:
            await self._changed.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change of this server makes this true."""
        while not condition():
            await self._changed.wait()

    async def _listen(self, context: _Context, params: _AnyParams) -> Wire:
        wanted = dict(context.params or {})["notifications"]["taskIds"]
        await self._notify(context, "notifications/subscriptions/acknowledged", {"notifications": {"taskIds": wanted}})
        self.listened.append(wanted)
        self._streams.append(context)
        self._change()
        try:
            with anyio.CancelScope() as scope:
                self._listening.append(scope)
                await anyio.sleep_forever()
        finally:
            self._streams.remove(context)
            self._listening.remove(scope)
            self._change()
        raise MCPError(types.CONNECTION_CLOSED, "SSE stream ended without a response")

    async def _notify(self, context: _Context, method: str, params: Wire) -> None:
        message = RawMessage(method, {**params, "_meta": {SUBSCRIPTION_ID: context.request_id}})
        await context.session.send_notification(cast(Any, message), context.request_id)

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def of(self, method: str) -> list[Received]:
        """Return the requests of a method."""
        return [request for request in self.received if request.method == method]

    @property
    def methods(self) -> list[str]:
        """The methods of the requests, without `tasks/get`, of which there may be any number."""
        return [request.method for request in self.received if request.method != "tasks/get"]

    async def saw(self, method: str, times: int = 1) -> None:
        """Wait until a method was requested so often."""
        while len(self.of(method)) < times:
            await self._changed.wait()

    async def looked(self) -> None:
        """Wait until the client has looked at the task, and has had time to look at the answer too."""
        await self.saw("tasks/get", times=len(self.of("tasks/get")) + 2)

    async def _serve(self, context: _Context, params: _AnyParams) -> Wire:
        headers = {} if context.request is None else dict(context.request.headers)
        request = Received(context.method, dict(context.params or {}), headers)
        if request.method == "tools/list":
            return {"resultType": "complete", "tools": [self.tool], "ttlMs": 0, "cacheScope": "private"}
        self.received.append(request)
        self._change()
        if self.reply is not None and (reply := await self.reply(request)) is not None:
            return reply
        return self._answer(request)

    def _answer(self, request: Received) -> Wire:
        if request.method == "tasks/update":
            self.answers.update(request.params["inputResponses"])
        if request.method in ("tasks/update", "tasks/cancel"):
            return {"resultType": "complete"}
        look = self.handle
        if request.method == "tasks/get":
            look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look

    @asynccontextmanager
    async def tapped(self, sent: list[Wire]) -> AsyncGenerator[Any, None]:
        """A transport over streams that notes every message the client sends."""
        async with create_client_server_memory_streams() as (client, served), anyio.create_task_group() as group:
            group.start_soon(self.server.run, served[0], served[1], self.server.create_initialization_options())
            yield client[0], _Tap(client[1], sent)
            group.cancel_scope.cancel()


class _Tap:
    """A write stream that notes what passes."""

    def __init__(self, inner: Any, sent: list[Wire]) -> None:
        self._inner = inner
        self._sent = sent

    async def send(self, item: SessionMessage) -> None:
        self._sent.append(item.message.model_dump(by_alias=True, exclude_unset=True))
        await self._inner.send(item)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def __aenter__(self) -> _Tap:
        await self._inner.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._inner.__aexit__(*exc_info)


def asks_once() -> ScriptedServer:
    """Return a server whose task asks one question, and completes with the answer."""
    scripted = ScriptedServer(working("thinking"), asking(consent=elicit()))

    async def complete(request: Received) -> None:
        if request.method == "tasks/update":
            scripted.show(completed(request.params["inputResponses"]["consent"]["action"]))

    scripted.reply = complete
    return scripted


def error(code: int, message: str = "no", data: Any = None) -> MCPError:
    """Return a JSON-RPC error for the script."""
    return MCPError(code, message, data)


if __name__ == "__main__":
    from mcp.server.stdio import stdio_server

    async def main() -> None:
        server = asks_once().server
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(main)
