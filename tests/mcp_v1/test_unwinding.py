"""A call of a tool made with `tasks.tool()` ends its request when its work begins, and the work keeps nothing of it."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp import ClientSession, types
from mcp.server.fastmcp import Context, FastMCP
from mcp.shared.memory import create_connected_server_and_client_session
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Name(BaseModel):
    name: str


async def accept(context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


@asynccontextmanager
async def connected(*functions: Any) -> AsyncGenerator[ClientSession, None]:
    mcp: FastMCP[Any] = FastMCP("unwinding")
    tasks = Tasks()
    tasks.install(mcp)
    for function in functions:
        tasks.tool()(function)
    with anyio.fail_after(PATIENCE):
        async with (
            tasks,
            create_connected_server_and_client_session(mcp, elicitation_callback=accept) as client,  # type: ignore[arg-type, unused-ignore]
        ):
            yield client


async def start(client: ClientSession, name: str, arguments: dict[str, Any]) -> types.Task:
    params = types.CallToolRequestParams(name=name, arguments=arguments, task=types.TaskMetadata())
    request = types.ClientRequest(types.CallToolRequest(params=params))
    return (await client.send_request(request, types.CreateTaskResult)).task


async def status(client: ClientSession, task: types.Task) -> str:
    request = types.ClientRequest(types.GetTaskRequest(params=types.GetTaskRequestParams(taskId=task.taskId)))
    return (await client.send_request(request, types.GetTaskResult)).status


async def result(client: ClientSession, task: types.Task) -> types.CallToolResult:
    params = types.GetTaskPayloadRequestParams(taskId=task.taskId)
    request = types.ClientRequest(types.GetTaskPayloadRequest(params=params))
    return await client.send_request(request, types.CallToolResult)


def of_calls() -> int:
    gc.collect()
    return sum(isinstance(each, types.CallToolRequestParams) for each in gc.get_objects())


def text(answer: types.CallToolResult) -> str:
    content = answer.content[0]
    assert isinstance(content, types.TextContent)
    return content.text


async def test_work_that_waits_keeps_nothing_of_its_call() -> None:
    async def asks(topic: str, task: ServerTaskContext) -> str:
        answer = await task.elicit(f"{topic}?", Name)
        return f"{topic} {answer.action}"

    async with connected(asks) as client:
        kept = of_calls()
        task = await start(client, "asks", {"topic": "bees"})
        while await status(client, task) != "input_required":
            pass
        assert of_calls() == kept
        assert text(await result(client, task)) == "bees accept"


async def test_the_sdks_own_context_asks_and_reports_through_the_task() -> None:
    async def asks(ctx: Context, task: ServerTaskContext) -> str:  # type: ignore[type-arg]
        await ctx.report_progress(1, 2)
        answer = await ctx.elicit("Who?", Name)
        return f"{answer.action} {task.task.status_message}"

    async with connected(asks) as client:
        assert text(await result(client, await start(client, "asks", {}))) == "accept 1/2"


async def test_a_call_that_ends_before_its_work_begins_is_a_task_too() -> None:
    runs: list[int] = []

    async def counts(number: int, task: ServerTaskContext) -> int:
        runs.append(number)
        return number

    async with connected(counts) as client:
        answer = await result(client, await start(client, "counts", {"number": "many"}))
        assert answer.isError
        assert runs == []


@pytest.mark.parametrize(("how", "said"), [("returns", "7"), ("raises", "wrong"), ("lies", "Input should be")])
async def test_the_work_runs_once_whatever_it_ends_with(how: str, said: str) -> None:
    runs: list[str] = []

    async def tool(task: ServerTaskContext) -> int:
        runs.append(how)
        if how == "raises":
            raise ValueError("wrong")
        return 7 if how == "returns" else "no number"  # type: ignore[return-value]

    async with connected(tool) as client:
        answer = await result(client, await start(client, "tool", {}))
        assert said in text(answer)
        assert bool(answer.isError) is (how != "returns")
    assert runs == [how]
