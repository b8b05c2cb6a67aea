"""Tools of a high-level server that were not declared: a run of their own only where they may become tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer, Server
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TasksClient
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Consent(BaseModel):
    ok: bool


class World:
    """A client that takes tasks, and its server."""

    def __init__(self, tasks: Tasks, client: Client, tasks_client: TasksClient) -> None:
        self.tasks = tasks
        self._client = client
        self._tasks_client = tasks_client

    async def call(self, name: str, **arguments: Any) -> ClientTask | CallToolResult:
        return await self._tasks_client.start(self._client, name, arguments)

    async def text(self, name: str, **arguments: Any) -> str:
        """Call a tool whose call becomes no task."""
        result = await self.call(name, **arguments)
        assert isinstance(result, CallToolResult)
        assert isinstance(result.content[0], TextContent)
        return result.content[0].text


@asynccontextmanager
async def world(*, wired: str = "install", **options: Any) -> AsyncGenerator[World, None]:
    tasks = Tasks(**options)
    if wired == "install":
        mcp: MCPServer[Any] = MCPServer("undeclared")
        tasks.install(mcp)
    else:
        mcp = MCPServer("undeclared", extensions=[tasks], middleware=[tasks.middleware], lifespan=tasks.lifespan())

    @mcp.tool()
    async def runs() -> int:
        """Say how many runs there are."""
        return tasks.runtime.statistics().calls

    failed = False

    @mcp.tool()
    async def fails_once() -> int:
        nonlocal failed
        if not failed:
            failed = True
            raise ToolError("not yet")
        return tasks.runtime.statistics().calls

    @mcp.tool()
    async def sometimes(what: str) -> str:
        async def work(task: ServerTaskContext) -> str:
            return "done" if what != "ask" else (await task.elicit("Sure?", Consent)).action

        return "plain" if what == "plain" else await tasks.run(work, required=what == "required")

    @mcp.tool(name="written in the SDK's decorator")
    @tasks.task()
    async def misnamed(task: ServerTaskContext) -> str:
        return "done"

    tasks_client = TasksClient()
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client]) as client:
            yield World(tasks, client, tasks_client)


@pytest.mark.parametrize("wired", ["install", "constructor"])
async def test_a_plain_tool_costs_no_run_once_it_has_shown_that_it_is_one(wired: str) -> None:
    async with world(wired=wired) as there:
        assert [await there.text("runs") for _ in range(3)] == ["1", "0", "0"]


async def test_a_call_that_failed_says_nothing_of_the_others() -> None:
    async with world() as there:
        assert "not yet" in await there.text("fails_once")
        assert [await there.text("fails_once") for _ in range(2)] == ["1", "0"]


async def test_any_call_can_become_a_task_under_promote_after() -> None:
    async with world(promote_after=1_000.0) as there:
        assert [await there.text("runs") for _ in range(2)] == ["1", "1"]


async def test_a_tool_that_is_adopted_later_runs_as_a_task() -> None:
    async with world() as there:
        await there.text("runs")
        there.tasks.adopt("runs")
        assert isinstance(await there.call("runs"), ClientTask)


@pytest.mark.parametrize("name", ["sometimes", "written in the SDK's decorator"])
async def test_a_tool_that_always_calls_run_always_runs_as_a_task(name: str) -> None:
    async with world() as there:
        for _ in range(3):
            arguments = {"what": "run"} if name == "sometimes" else {}
            assert isinstance(await there.call(name, **arguments), ClientTask)


async def test_the_first_run_of_a_tool_that_was_plain_stays_in_its_request_and_later_ones_are_tasks() -> None:
    async with world() as there:
        assert await there.text("sometimes", what="plain") == "plain"
        assert await there.text("sometimes", what="run") == "done"
        assert isinstance(await there.call("sometimes", what="run"), ClientTask)
        assert await there.text("sometimes", what="plain") == "plain"
        assert isinstance(await there.call("sometimes", what="run"), ClientTask)


@pytest.mark.parametrize("what", ["required", "ask"])
async def test_what_needs_a_task_there_is_refused_in_a_sentence_that_says_what_to_do(what: str) -> None:
    async with world() as there:
        await there.text("sometimes", what="plain")
        with pytest.raises(MCPError, match="declare a tool that calls"):
            await there.call("sometimes", what=what)
        assert isinstance(await there.call("sometimes", what=what), ClientTask)


async def test_tools_of_a_low_level_server_say_in_each_call_whether_they_are_tasks() -> None:
    tasks = Tasks()

    async def call_tool(ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        async def work(task: ServerTaskContext) -> str:
            return "done"

        text = await tasks.run(work) if params.arguments else "plain"
        return CallToolResult(content=[TextContent(text=text)])

    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name="any", input_schema={"type": "object"})])

    server: Server[Any] = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
    tasks.install(server)
    tasks_client = TasksClient()
    with anyio.fail_after(PATIENCE):
        async with Client(server, extensions=[tasks_client]) as client:
            for arguments in ({}, {"as": "task"}, {}, {"as": "task"}):
                made = await tasks_client.start(client, "any", arguments)
                assert isinstance(made, ClientTask) == bool(arguments)
