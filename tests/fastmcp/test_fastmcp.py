"""A server of the package `fastmcp` 4: the same line installs tasks, for clients of both protocol revisions."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

fastmcp: Any = pytest.importorskip("fastmcp", reason="the package fastmcp is in an environment of its own")

from mcp import Client  # noqa: E402
from mcp_types import CallToolResult, ElicitResult, TextContent  # noqa: E402

from mcp_task_runtime import ProtocolError, ServerTaskContext, StoreDispatcher, open_store  # noqa: E402
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


def make_server(store: Any = None, dispatcher: Any = None) -> tuple[Any, Tasks, list[str]]:
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
    tasks = Tasks(store, dispatcher=dispatcher)
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


def test_tool_says_how_a_new_tool_is_made_here() -> None:
    _, tasks, _ = make_server()
    with pytest.raises(RuntimeError, match=r"otherwise write @mcp\.tool\(\) above @tasks\.task\(\)"):
        tasks.tool()


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


@pytest.mark.parametrize("name", ["existing", "sub_asks"])
async def test_its_tools_run_by_their_names_in_a_worker(name: str, tmp_path: Path) -> None:
    """After a restart, and elsewhere: there is no connection then that `fastmcp` could keep anything on."""
    stores = [open_store(f"sqlite:///{tmp_path}/tasks.db") for _ in range(2)]
    servers = [make_server(store, StoreDispatcher()) for store in stores]
    tasks_client = TasksClient()
    with anyio.fail_after(PATIENCE):
        async with stores[0], stores[1], servers[0][1], anyio.create_task_group() as group:
            group.start_soon(servers[1][1].work)
            client = Client(low_level(servers[0][0]), extensions=[tasks_client], elicitation_callback=accept)
            async with client:
                task = await tasks_client.start(client, name, {})
                assert isinstance(task, ClientTask)
                assert text_of(await task.wait()).startswith("accept")
            group.cancel_scope.cancel()
    assert servers[1][2] == [name]


async def test_no_client_sees_the_state_of_another_one() -> None:
    """L10: `fastmcp` keeps a client's state by a key that is on its connection; both ask at once."""
    mcp = fastmcp.FastMCP("x")
    tasks = Tasks()

    async def remember(name: str, ctx: Any) -> str:
        session = ctx.session_id
        await ctx.elicit("Who?", Name)
        seen = await ctx.get_state("name")
        await ctx.set_state("name", name)
        return f"{seen} {ctx.session_id == session}"

    remember.__annotations__["ctx"] = FastMCPContext
    mcp.tool(remember)
    tasks.install(mcp, tools=["remember"])
    started, go_on, texts = [], anyio.Event(), []

    async def answer(context: Any, params: Any) -> ElicitResult:
        await go_on.wait()
        return await accept(context, params)

    async def call(name: str) -> None:
        tasks_client = TasksClient()
        async with Client(low_level(mcp), extensions=[tasks_client], elicitation_callback=answer) as client:
            task = await tasks_client.start(client, "remember", {"name": name})
            assert isinstance(task, ClientTask)
            started.append(name)
            if len(started) == 2:
                go_on.set()
            texts.append(text_of(await task.wait()))

    with anyio.fail_after(PATIENCE):
        async with tasks, anyio.create_task_group() as group:
            group.start_soon(call, "Ada")
            group.start_soon(call, "Bob")
    assert texts == ["None True", "None True"]


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
