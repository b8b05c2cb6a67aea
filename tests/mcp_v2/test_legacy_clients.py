"""Clients of revision 2025-11-25 on `mcp` 2.x: what `tests/mcp_v1` proves of an `mcp` 1.x server holds here too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
from mcp.server import MCPServer, Server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
    ToolExecution,
)

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v1.raw_client import accept, never
from tests.mcp_v1.scenarios import SCENARIOS, World, add_tools, answering, greet
from tests.mcp_v1.schemas import RELATED
from tests.mcp_v2.in_process import connect_2025


def make_world(**options: Any) -> World:
    """Return a server with all the tools, to connect to in memory."""
    mcp = MCPServer("world")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05), **options)
    tasks.install(mcp)
    mcp.tool()(greet)
    world = World(tasks, partial(connect_2025, mcp))
    add_tools(world)
    return world


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
async def test_it_holds_that(scenario: Callable[[World], Awaitable[None]]) -> None:
    world = make_world()
    async with cast(Tasks, world.tasks):
        await scenario(world)


async def test_a_client_of_a_server_with_principals_of_its_own_is_asked_where_none_else_can_answer() -> None:
    """L10, L15: its connection is a pipe, which no other client can post an answer to."""
    world = make_world(principal=lambda ctx: "ada")
    async with cast(Tasks, world.tasks), world.connect(answer=answering(accept(ok=True))) as client:
        assert await client.text(await client.start("ask")) == "Sure? accept True"


async def test_what_an_undeclared_tool_asks_before_its_work_is_asked_by_the_task_that_its_client_wants() -> None:
    """B10: the call was answered with a task; so the question belongs to it, though the tool has not called `run`."""
    tasks = Tasks()

    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        mode = ToolExecution(task_support="optional")
        return ListToolsResult(tools=[Tool(name="asks", input_schema={"type": "object"}, execution=mode)])

    async def call_tool(ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        answer = await ctx.session.elicit_form("Sure?", {"type": "object", "properties": {"ok": {"type": "boolean"}}})

        async def work(task: ServerTaskContext) -> CallToolResult:
            return CallToolResult(content=[TextContent(text=answer.action)])

        return await tasks.run(work)

    server: Server[Any] = Server("undeclared", on_list_tools=list_tools, on_call_tool=call_tool)
    tasks.install(server)
    async with tasks, connect_2025(server, never) as client:
        task_id = await client.start("asks")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        assert question["params"]["_meta"] == {RELATED: {"taskId": task_id}}
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "accept"
