"""A server of the package `fastmcp` 4: the same line installs tasks, for clients of both protocol revisions."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

fastmcp: Any = pytest.importorskip("fastmcp", reason="the package fastmcp is in an environment of its own")

from mcp import Client  # noqa: E402
from mcp_types import CallToolResult, ElicitResult, TextContent  # noqa: E402

from mcp_task_runtime import ProtocolError, ServerTaskContext  # noqa: E402
from mcp_task_runtime.client import ClientTask, TaskFailedError, TasksClient  # noqa: E402
from mcp_task_runtime.server import Tasks  # noqa: E402
from tests.support.low_level import low_level  # noqa: E402
from tests.support.patience import PATIENCE  # noqa: E402

pytestmark = pytest.mark.anyio

MODES = ("auto", "legacy")
FastMCPContext = fastmcp.Context


class Name(BaseModel):
    name: str


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


def make_server() -> tuple[Any, Tasks, list[str]]:
    """Return a server with tools of every kind, mounted ones too, and what its middleware has seen."""
    seen: list[str] = []
    home = threading.get_ident()

    class Notes(fastmcp.server.middleware.Middleware):  # type: ignore[misc]
        async def on_call_tool(self, context: Any, call_next: Any) -> Any:
            seen.append(context.message.name)
            return await call_next(context)

    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[dict[str, str]]:
        yield {"database": "open"}

    mcp = fastmcp.FastMCP("x", lifespan=lifespan, middleware=[Notes()])
    mounted = fastmcp.FastMCP("mounted")
    tasks = Tasks()
    tasks.install(mcp, tools=["existing", "sub_asks"])
    tasks.adopt("blocks", blocking=True)

    @mcp.tool  # type: ignore[untyped-decorator]
    @tasks.task()
    async def declared(topic: str, task: ServerTaskContext) -> str:
        answer = await task.elicit("Who?", Name)
        return f"{topic} {answer.action}"

    async def existing(ctx: Any) -> str:
        await ctx.report_progress(1, 2, "asking")
        answer = await ctx.elicit("Who?", Name)
        return f"{answer.action} {ctx.lifespan_context['database']}"

    async def blocks(ctx: Any) -> str:
        await ctx.report_progress(1, 2, "asking")
        answer = await ctx.elicit("Who?", Name)
        return f"{answer.action} {threading.get_ident() == home}"

    async def asks(ctx: Any) -> str:
        return str((await ctx.elicit("Who?", Name)).action)

    for function in (existing, blocks, asks):
        function.__annotations__["ctx"] = FastMCPContext

    @mcp.tool  # type: ignore[untyped-decorator]
    @tasks.task()
    async def refuses(task: ServerTaskContext) -> str:
        raise ProtocolError(-32050, "The quota is used up", {"n": 1})

    @mcp.tool  # type: ignore[untyped-decorator]
    async def plain(x: int) -> int:
        return x + 1

    mcp.tool(existing)
    mcp.tool(blocks)
    mounted.tool(asks)
    mcp.mount(mounted, namespace="sub")
    return mcp, tasks, seen


@asynccontextmanager
async def connected(mode: Any, tasks_client: TasksClient) -> AsyncIterator[tuple[Client, Tasks, list[str]]]:
    mcp, tasks, seen = make_server()
    with anyio.fail_after(PATIENCE):
        async with (
            tasks,
            Client(low_level(mcp), extensions=[tasks_client], mode=mode, elicitation_callback=accept) as client,
        ):
            yield client, tasks, seen


def text_of(result: Any) -> str:
    assert isinstance(result, CallToolResult)
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("declared", {"topic": "bees"}, "bees accept"),
        ("existing", {}, "accept open"),
        ("blocks", {}, "accept False"),
        ("sub_asks", {}, "accept"),
    ],
)
async def test_its_tools_run_as_tasks_and_ask_through_them(
    mode: str, name: str, arguments: dict[str, Any], text: str
) -> None:
    tasks_client = TasksClient()
    async with connected(mode, tasks_client) as (client, _, seen):
        task = await tasks_client.start(client, name, arguments)
        assert isinstance(task, ClientTask)
        assert text_of(await task.wait()) == text
        assert name in seen


@pytest.mark.parametrize("mode", MODES)
async def test_a_protocol_error_reaches_the_client_verbatim(mode: str) -> None:
    tasks_client = TasksClient()
    async with connected(mode, tasks_client) as (client, _, _):
        task = await tasks_client.start(client, "refuses", {})
        assert isinstance(task, ClientTask)
        with pytest.raises(TaskFailedError) as caught:
            await task.wait()
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32050, "The quota is used up", {"n": 1})


@pytest.mark.parametrize("mode", MODES)
async def test_a_plain_tool_stays_plain(mode: str) -> None:
    tasks_client = TasksClient()
    async with connected(mode, tasks_client) as (client, _, seen):
        answer = await tasks_client.start(client, "plain", {"x": 1})
        assert text_of(answer) == "2"
        assert seen == ["plain"]


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("declared", {"topic": "bees"}, "bees accept"),
        ("existing", {}, "accept open"),
        ("blocks", {}, "accept False"),
        ("sub_asks", {}, "accept"),
    ],
)
async def test_a_client_that_has_not_declared_the_extension_is_asked_too(
    name: str, arguments: dict[str, Any], text: str
) -> None:
    mcp, tasks, _ = make_server()
    with anyio.fail_after(PATIENCE):
        async with tasks, Client(low_level(mcp), elicitation_callback=accept) as client:
            assert text_of(await client.call_tool(name, arguments)) == text
