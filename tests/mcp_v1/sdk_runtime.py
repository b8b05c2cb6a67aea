"""The task runtime of `mcp` 1.x itself, as a `World` with the same tools: what it gets wrong can be run."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import anyio
import anyio.lowlevel
from mcp import McpError, types
from mcp.server.experimental.task_context import ServerTaskContext
from mcp.server.lowlevel import Server
from mcp.shared.experimental.tasks.in_memory_task_store import InMemoryTaskStore
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from tests.mcp_v1.raw_client import ALL_CAPABILITIES, Answer, RawClient, StreamClient, never
from tests.mcp_v1.scenarios import World, greet
from tests.mcp_v1.schemas import Wire

FORM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

Work: TypeAlias = Callable[[ServerTaskContext], Awaitable[str]]


class RemoteTaskStore(InMemoryTaskStore):
    """The SDK's store with a checkpoint in each update, as every store behind a network has one."""

    async def update_task(
        self, task_id: str, status: types.TaskStatus | None = None, status_message: str | None = None
    ) -> types.Task:
        await anyio.lowlevel.checkpoint()
        return await super().update_task(task_id, status, status_message)


class SDKTasks:
    """What the scenarios reach besides the connection, as `Tasks` has it."""

    def __init__(self, store: InMemoryTaskStore) -> None:
        self.store = store
        self.results: dict[str, str] = {}
        self.ended = anyio.Event()

    async def complete(self, task_id: str, result: object) -> None:
        """End the task of the tool `outside`."""
        self.results[task_id] = cast(str, result)
        self.ended.set()
        self.ended = anyio.Event()

    async def result(self, task_id: str) -> str:
        while task_id not in self.results:
            await self.ended.wait()
        return self.results[task_id]


def works(world: World, tasks: SDKTasks) -> dict[str, Callable[[Wire], Work]]:
    """Return the work of each tool of `scenarios.add_tools` that the faults need, for its arguments."""

    def double(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            return str(2 * arguments["x"])

        return work

    def ask(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            answer = await task.elicit("Sure?", FORM)
            return f"Sure? {answer.action} {answer.content['ok'] if answer.content else None}"

        return work

    def ask_two(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            async with anyio.create_task_group() as group:
                group.start_soon(task.elicit, "first", FORM)
                group.start_soon(task.elicit, "second", FORM)
            return "answered twice"

        return work

    def ask_and_tell(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            try:
                await task.elicit("Sure?", FORM)
            finally:
                world.left += 1
                world.tell()
            return "answered"

        return work

    def ask_often(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            for _ in range(20):
                await task.elicit("Sure?", FORM)
            return "answered"

        return work

    def carry_on(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            try:
                await task.elicit("Sure?", FORM)
            except McpError:
                world.entered += 1
                world.tell()
            await anyio.sleep_forever()
            return "never"

        return work

    def gives_up(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            await world.ask_patiently(lambda: task.elicit("Quick!", FORM))
            await anyio.sleep_forever()
            return "never"

        return work

    def boom(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            raise RuntimeError("a secret of the server")

        return work

    def refuse(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            data = {"retryAfter": 30}
            raise McpError(types.ErrorData(code=-32050, message="The quota is used up", data=data))

        return work

    def wait(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            world.entered += 1
            world.tell()
            try:
                await anyio.sleep_forever()
            finally:
                world.left += 1
                world.tell()
            return "never"

        return work

    def stubborn(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            world.entered += 1
            world.tell()
            with anyio.CancelScope(shield=True):
                await world.let_go.wait()
            world.left += 1
            world.tell()
            return "too late"

        return work

    def outside(arguments: Wire) -> Work:
        async def work(task: ServerTaskContext) -> str:
            world.detached.append(task.task_id)
            world.tell()
            return await tasks.result(task.task_id)

        return work

    made = (double, ask, ask_two, ask_and_tell, ask_often, carry_on, gives_up, boom, refuse, wait, stubborn, outside)
    return {make.__name__: make for make in made}


def text(value: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=value)])


@asynccontextmanager
async def sdk_world(*, remote_store: bool = False) -> AsyncGenerator[World, None]:
    """Run a server with the SDK's own task runtime.

    Its connections end with this block, not when their client leaves: they may hang, that is fault 18.
    """
    server: Server[Any, Any] = Server("sdk")
    store = RemoteTaskStore() if remote_store else InMemoryTaskStore()
    server.experimental.enable_tasks(store=store)
    tasks = SDKTasks(store)

    @asynccontextmanager
    async def connect(
        *, answer: Answer = never, capabilities: Wire | None = None, hello: list[Wire] | None = None
    ) -> AsyncGenerator[RawClient, None]:
        async with create_client_server_memory_streams() as ((read, write), served):

            async def serve() -> None:
                await server.run(*served, server.create_initialization_options())

            async def send(message: Wire) -> None:
                await write.send(SessionMessage(types.JSONRPCMessage.model_validate(message)))

            async def receive() -> Wire:
                received = await read.receive()
                assert isinstance(received, SessionMessage)
                wire: Wire = json.loads(received.message.model_dump_json(by_alias=True, exclude_none=True))
                return wire

            connections.start_soon(serve)
            async with anyio.create_task_group() as group:
                client = StreamClient(group, answer, send, receive)
                group.start_soon(client.read)
                await client.initialize(ALL_CAPABILITIES if capabilities is None else capabilities)
                yield client
                group.cancel_scope.cancel()

    world = World(cast(Any, tasks), connect)
    tools = works(world, tasks)

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        required = types.ToolExecution(taskSupport="required")
        plain = types.Tool(name="greet", inputSchema={"type": "object"})
        return [plain, *(types.Tool(name=name, inputSchema={"type": "object"}, execution=required) for name in tools)]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        ctx = server.request_context
        ctx.experimental.validate_task_mode("forbidden" if name == "greet" else "required")
        if name == "greet":
            return text(greet(**arguments))

        async def work(task: ServerTaskContext) -> types.CallToolResult:
            return text(await tools[name](arguments)(task))

        return await ctx.experimental.run_task(work)

    async with anyio.create_task_group() as connections:
        yield world
        connections.cancel_scope.cancel()
