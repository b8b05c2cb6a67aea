"""Tools that exist run as tasks on `mcp` 2.x without a change of their code: `install(tools=...)`, `adopt`."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from mcp import Client
from mcp.server import MCPServer, Server
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, Elicit, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, ElicitResult, ListToolsResult, TextContent, Tool
from pydantic import BaseModel

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.client import ClientTask, TaskFailedError, TasksClient
from mcp_task_runtime.operations import TaskInspector
from mcp_task_runtime.server import Tasks
from tests.core.leased_store import LeasedTaskStore
from tests.mcp_v1.raw_client import never
from tests.mcp_v2.in_process import connect_2025, memory_client
from tests.support.event_loops import in_virtual_time
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

MODES = ("auto", "legacy")


class Name(BaseModel):
    name: str


class Point(BaseModel):
    x: int
    state: str


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": "Ada"})


async def fetch(url: str) -> str:
    """A tool that exists already."""
    await anyio.lowlevel.checkpoint()
    return f"page of {url}"


async def asks(ctx: Context) -> str:
    await ctx.report_progress(1, 2, "asking")
    answer = await ctx.elicit("Who are you?", Name)
    return f"{answer.action} {answer.data.name if answer.action == 'accept' else None}"


def who() -> Elicit[Name]:
    return Elicit("Who are you?", Name)


async def greet(greeting: str, name: Annotated[Name, Resolve(who)]) -> str:
    return f"{greeting}, {name.name}!"


def new_tasks(**options: Any) -> Tasks:
    return Tasks(settings=TaskSettings(shutdown_grace=0), **options)


async def start(client: Client, tasks: TasksClient, name: str, arguments: dict[str, Any]) -> ClientTask:
    task = await tasks.start(client, name, arguments)
    assert isinstance(task, ClientTask)
    return task


def text_of(result: CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("tools", [["fetch"], "all"])
async def test_a_tool_runs_as_a_task_whenever_it_is_registered(mode: Any, when: str, tools: Any) -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    tasks, tasks_client = new_tasks(), TasksClient()
    if when == "before":
        mcp.tool()(fetch)
    tasks.install(mcp, tools=tools)
    if when == "after":
        mcp.tool()(fetch)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], mode=mode) as client:
            task = await start(client, tasks_client, "fetch", {"url": "x"})
            assert text_of(await task.wait()) == "page of x"


async def test_a_task_of_a_tool_that_was_never_named_can_be_retried() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    store = LeasedTaskStore()
    tasks, tasks_client = new_tasks(store=store), TasksClient()
    tasks.install(mcp, tools="all")
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client]) as client:
            task = await start(client, tasks_client, "fetch", {"url": "x"})
            await task.wait()
            again = await TaskInspector(store).retry(task.task_id)
            await tasks.runtime.get(again.task_id, owner=None)
            outcome = await tasks.runtime.result(again.task_id, owner=None)
    assert outcome.result is not None
    assert outcome.result["structuredContent"] == {"result": "page of x"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_name_that_no_tool_has_is_logged_once(mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    new_tasks().install(mcp, tools=["fetch", "fecth"])
    with anyio.fail_after(PATIENCE):
        for _ in range(2):
            async with Client(mcp, mode=mode) as client:
                assert [tool.name for tool in (await client.list_tools()).tools] == ["fetch"]
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text.partition(" was")[0] for text in said] == ["The tool 'fecth'"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_list_in_pages_says_nothing_of_tools_that_are_on_another_page(
    mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        is_first = params is None or params.cursor is None
        name, cursor = ("fetch", "2") if is_first else ("index", None)
        return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"})], next_cursor=cursor)

    async def call_tool(ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        raise NotImplementedError

    server: Server[Any] = Server("pages", on_list_tools=list_tools, on_call_tool=call_tool)
    new_tasks().install(server, tools=["fetch", "index"])
    with anyio.fail_after(PATIENCE):
        async with Client(server, mode=mode) as client:
            assert (await client.list_tools()).next_cursor == "2"
            assert (await client.list_tools(cursor="2")).next_cursor is None
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("mode", MODES)
async def test_what_frameworks_keep_of_a_session_lasts_for_the_call_and_is_no_other_clients(mode: Any) -> None:
    """L10, L14: `fastmcp` keeps the key of a client's state there, and on the session where it has no connection."""
    mcp: MCPServer[Any] = MCPServer("existing")

    @mcp.tool()
    async def meet(name: str, ctx: Context) -> str:
        session: Any = ctx.session
        state: dict[str, str] = session._connection.state
        session.noted = state["name"] = name
        await ctx.elicit("Go on?", Name)
        state = session._connection.state
        return f"{session.noted} {state.get('name')} {state.get('other')} {state.setdefault('other', name)}"

    tasks, texts = new_tasks(), {}
    tasks.install(mcp, tools=["meet"])
    go_on = anyio.Event()

    async def answer(context: Any, params: Any) -> ElicitResult:
        await go_on.wait()
        return await accept(context, params)

    async def call(name: str) -> None:
        tasks_client = TasksClient()
        async with Client(mcp, extensions=[tasks_client], mode=mode, elicitation_callback=answer) as client:
            task = await start(client, tasks_client, "meet", {"name": name})
            names.append(name)
            if len(names) == 2:
                go_on.set()
            texts[name] = text_of(await task.wait())

    names: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with tasks, anyio.create_task_group() as group:
            group.start_soon(call, "Ada")
            group.start_soon(call, "Bob")
    assert texts == {"Ada": "Ada Ada None Ada", "Bob": "Bob Bob None Bob"}


async def test_the_connection_of_a_tool_whose_request_is_over_has_all_that_the_sdks_has() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    said: list[bool] = []

    @mcp.tool()
    async def look(ctx: Context) -> None:
        session: Any = ctx.session
        before = session._connection
        await ctx.elicit("Go on?", Name)
        after = session._connection
        said.append(after is not before and {*vars(after)} <= {*vars(before)})
        await after.initialized.wait()
        after.exit_stack.callback(said.append, True)
        await after.exit_stack.aclose()
        said.append(hasattr(after, "other"))

    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp, tools=["look"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], elicitation_callback=accept) as client:
            await (await start(client, tasks_client, "look", {})).wait()
    assert said == [True, True, False]


async def test_a_tool_that_runs_by_its_name_has_a_session_of_its_own_to_keep_things_on() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")

    @mcp.tool()
    async def note(ctx: Context) -> str:
        session: Any = ctx.session
        session.noted = "x"
        return f"{session.noted} {session._connection.state.setdefault('runs', 0)}"

    store = LeasedTaskStore()
    tasks, tasks_client = new_tasks(store=store), TasksClient()
    tasks.install(mcp, tools=["note"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client]) as client:
            task = await start(client, tasks_client, "note", {})
            assert text_of(await task.wait()) == "x 0"
            again = await TaskInspector(store).retry(task.task_id)
            await tasks.runtime.get(again.task_id, owner=None)
            outcome = await tasks.runtime.result(again.task_id, owner=None)
    assert outcome.result is not None
    assert outcome.result["structuredContent"] == {"result": "x 0"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_that_is_not_named_stays_plain(mode: Any) -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    mcp.tool(name="other")(fetch)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp, tools=["other"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], mode=mode) as client:
            shown = {tool.name: tool.execution for tool in (await client.list_tools()).tools}
            assert shown["fetch"] is None
            assert text_of(await client.call_tool("fetch", {"url": "x"})) == "page of x"
    assert (await tasks.runtime.list(owner=None)).records == ()


async def test_clients_of_2025_see_the_mode_and_clients_of_2026_do_not() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    mcp.tool(name="must")(fetch)
    tasks = new_tasks()
    tasks.install(mcp, tools=["fetch"])
    tasks.adopt("must", required=True)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode="legacy") as client:
            shown = {tool.name: tool.execution for tool in (await client.list_tools()).tools}
        assert {name: execution.task_support for name, execution in shown.items() if execution is not None} == {
            "fetch": "optional",
            "must": "required",
        }
        async with Client(mcp) as client:
            assert all(tool.execution is None for tool in (await client.list_tools()).tools)


@pytest.mark.parametrize("how", ["adopt", "tool", "task"])
async def test_a_mode_that_is_not_advertised_is_accepted_all_the_same(how: str) -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    tasks = new_tasks()
    tasks.install(mcp)
    if how == "adopt":
        mcp.tool()(fetch)
        tasks.adopt("fetch", advertise=False)
    elif how == "tool":
        tasks.tool(advertise=False)(fetch)
    else:
        mcp.tool()(tasks.task(advertise=False)(fetch))
    async with tasks, connect_2025(mcp, never) as client:
        (tool,) = (await client.result("tools/list"))["tools"]
        assert "execution" not in tool
        assert await client.text(await client.start("fetch", {"url": "x"})) == "page of x"
        plain = await client.result("tools/call", {"name": "fetch", "arguments": {"url": "y"}})
        assert plain["content"][0]["text"] == "page of y"


async def test_its_options_hold_under_both_revisions() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp)
    tasks.adopt("fetch", ttl_ms=77_000, poll_interval_ms=40)
    with anyio.fail_after(PATIENCE):
        for mode in ("auto", "legacy"):
            async with Client(mcp, extensions=[tasks_client], mode=mode) as client:
                task = await start(client, tasks_client, "fetch", {"url": "x"})
                await task.wait()
                record = await tasks.runtime.store.get_task(task.task_id)
                assert record is not None
                assert record.task.poll_interval_ms == 40
                assert record.task.ttl_ms is not None
                assert record.request.name == "fetch"
                assert record.request.arguments == {"url": "x"}


@pytest.mark.parametrize("mode", MODES)
async def test_its_own_context_asks_and_reports_through_the_task(mode: Any) -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(asks)
    seen: list[str | None] = []

    async def note(snapshot: Any) -> None:
        seen.append(snapshot.status_message)

    tasks, tasks_client = new_tasks(), TasksClient(on_update=note)
    tasks.install(mcp, tools=["asks"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], mode=mode, elicitation_callback=accept) as client:
            task = await start(client, tasks_client, "asks", {})
            assert text_of(await task.wait()) == "accept Ada"
    assert "asking (1/2)" in seen


async def test_input_that_a_resolver_needs_is_asked_through_the_task() -> None:
    """Wire rule C5 is for tools that start their task themselves; an adopted one is a task before its resolvers run."""
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(greet)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp, tools=["greet"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], elicitation_callback=accept) as client:
            task = await start(client, tasks_client, "greet", {"greeting": "Hello"})
            while not (questions := (await tasks.runtime.get(task.task_id, owner=None)).questions):
                await anyio.lowlevel.checkpoint()
            assert None not in questions[0].params.values(), "what is absent is not sent as null"
            assert text_of(await task.wait()) == "Hello, Ada!"


async def test_a_quick_call_stays_an_ordinary_one_with_promote_after() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(fetch)
    tasks = new_tasks()
    tasks.install(mcp)
    tasks.adopt("fetch", promote_after=60)
    with anyio.fail_after(PATIENCE):
        async with memory_client(mcp) as client:
            result = (await client.call("fetch", {"url": "x"})).result
            assert result["resultType"] == "complete"
            wrong = (await client.call("fetch", {})).result
            assert (wrong["resultType"], wrong["isError"]) == ("complete", True)
    assert (await tasks.runtime.list(owner=None)).records == ()


async def test_a_client_that_asks_for_a_task_gets_it_at_once_whatever_promote_after_says() -> None:
    """On 2025-11-25 the client decides."""
    go_on = anyio.Event()

    async def slow() -> str:
        await go_on.wait()
        return "done"

    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(slow)
    tasks = new_tasks()
    tasks.install(mcp)
    tasks.adopt("slow", promote_after=100 * PATIENCE)
    with anyio.fail_after(PATIENCE):
        async with connect_2025(mcp, never) as client:
            task_id = await client.start("slow")
            go_on.set()
            assert await client.text(task_id) == "done"


@in_virtual_time
@pytest.mark.parametrize("mode", MODES)
async def test_the_handle_comes_before_work_that_blocks_the_event_loop(mode: Any) -> None:
    ran: list[str] = []

    async def blocks() -> str:  # as real servers do: nothing else runs meanwhile
        ran.append("blocks")
        return "done"

    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(blocks)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp, tools=["blocks"])
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client], mode=mode) as client:
            task = await start(client, tasks_client, "blocks", {})
            ran.append("client has the handle")
            assert text_of(await task.wait()) == "done"
    assert ran == ["client has the handle", "blocks"]


@pytest.mark.parametrize("mode", MODES)
async def test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there(mode: Any) -> None:
    blocks, go_on = threading.Event(), threading.Event()

    async def block(ctx: Context) -> str:
        await ctx.report_progress(1, 2, "blocking")
        blocks.set()
        go_on.wait(PATIENCE)
        answer = await ctx.elicit("Who are you?", Name)
        return f"{answer.action} {threading.get_ident() == home}"

    home = threading.get_ident()
    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(block)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp)
    tasks.adopt("block", blocking=True)
    try:
        async with Client(mcp, extensions=[tasks_client], mode=mode, elicitation_callback=accept) as client:
            task = await start(client, tasks_client, "block", {})
            assert await anyio.to_thread.run_sync(blocks.wait, PATIENCE)
            shown = await task.get()
            assert (shown.status, shown.status_message) == ("working", "blocking (1/2)")
            go_on.set()
            with anyio.fail_after(PATIENCE):
                assert text_of(await task.wait()) == "accept False"
                assert text_of(await client.call_tool("block")) == "accept False"
    finally:
        go_on.set()


async def test_a_plain_call_of_one_that_blocks_is_what_the_sdk_alone_gives() -> None:
    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncGenerator[str, None]:
        yield "state"

    async def look(number: int, ctx: Context) -> Point:
        await ctx.report_progress(number, 2)
        if number == 0:
            raise MCPError(-32050, "no luck", [1])
        return Point(x=number, state=str(ctx.request_context.lifespan_context))

    def plain(text: str) -> str:
        raise LookupError(text)

    replies: list[tuple[Any, Any]] = []
    for has_tasks in (False, True):
        mcp: MCPServer[Any] = MCPServer("existing", lifespan=lifespan)
        tasks = new_tasks()
        if has_tasks:
            tasks.install(mcp)
            tasks.adopt("look", blocking=True)
            tasks.adopt("plain", blocking=True)
        mcp.tool()(look)
        mcp.tool()(plain)
        async with connect_2025(mcp, never) as client:
            for name, arguments in (
                ("look", {"number": 1}),
                ("look", {"number": 0}),
                ("look", {}),
                ("plain", {"text": "x"}),
            ):
                params = {"name": name, "arguments": arguments, "_meta": {"progressToken": "p"}}
                reply = await client.request("tools/call", params)
                replies.append((reply.get("result"), reply.get("error")))
            replies.append(([each["method"] for each in client.notifications], None))
    assert replies[:5] == replies[5:]
    assert replies[0][0]["structuredContent"] == {"x": 1, "state": "state"}
    assert replies[1][1] == {"code": -32050, "message": "no luck", "data": [1]}


@pytest.mark.parametrize("mode", MODES)
async def test_cancelled_one_that_blocks_is_cancelled_at_its_next_await(mode: Any) -> None:
    blocks, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def block() -> str:
        blocks.set()
        go_on.wait(PATIENCE)
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        return "unreachable"

    mcp: MCPServer[Any] = MCPServer("existing")
    mcp.tool()(block)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(mcp)
    tasks.adopt("block", blocking=True)
    try:
        async with Client(mcp, extensions=[tasks_client], mode=mode) as client:
            task = await start(client, tasks_client, "block", {})
            assert await anyio.to_thread.run_sync(blocks.wait, PATIENCE)
            await task.cancel()
            assert (await task.get()).status == "cancelled"
            assert not ended.is_set()
            go_on.set()
            assert await anyio.to_thread.run_sync(ended.wait, PATIENCE)
    finally:
        go_on.set()


async def test_one_that_blocks_cannot_start_tasks_itself() -> None:
    mcp: MCPServer[Any] = MCPServer("existing")
    tasks = new_tasks()
    tasks.install(mcp)

    async def work(task: Any) -> str:
        raise AssertionError

    async def starts() -> str:
        return await tasks.run(work)

    mcp.tool()(starts)
    tasks.adopt("starts", blocking=True)
    async with memory_client(mcp) as client:
        with pytest.raises(RuntimeError, match="not in the thread of one that has blocking=True"):
            await tasks.run(work)
        result = (await client.call("starts", capabilities={})).result
        assert result["isError"]


async def test_a_tool_of_a_low_level_server_is_adopted_too() -> None:
    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name="fetch", input_schema={"type": "object"})])

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        answer = await ctx.session.elicit_form("Who?", Name.model_json_schema())
        return CallToolResult(content=[TextContent(text=f"{params.name} {answer.content}")])

    server: Server[Any] = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
    tasks, tasks_client = new_tasks(), TasksClient()
    tasks.install(server, tools=["fetch"])
    for mode in MODES:
        with anyio.fail_after(PATIENCE):
            async with Client(
                server,
                extensions=[tasks_client],
                mode=mode,
                elicitation_callback=accept,
            ) as client:
                task = await start(client, tasks_client, "fetch", {})
                assert text_of(await task.wait()) == "fetch {'name': 'Ada'}"


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda tasks: tasks.install(MCPServer("x"), tools="fetch"), TypeError, r"tools=\['fetch'\]"),
        (lambda tasks: tasks.adopt("x", required=True, advertise=False), ValueError, "advertise"),
        (lambda tasks: tasks.adopt("x", ttl_ms=0), ValueError, "ttl_ms"),
        (lambda tasks: tasks.install(object()), TypeError, r"fastmcp 4; this is builtins\.object"),
        (lambda tasks: Tasks(promote_after=-1), ValueError, "promote_after"),
    ],
)
def test_wrong_use_says_what_to_write(wrong: Callable[[Tasks], None], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        wrong(Tasks())


@pytest.mark.parametrize("as_task", [False, True], ids=["plain", "task"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", ["high", "low"])
async def test_mask_errors_holds_for_it_too(mode: Any, level: str, as_task: bool) -> None:
    async def fails(number: int) -> str:
        raise RuntimeError("a secret of the server")

    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name="fails", input_schema={"type": "object"})])

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=[TextContent(text=await fails(1))])

    tasks, tasks_client = new_tasks(mask_errors=True), TasksClient()
    server: MCPServer[Any] | Server[Any]
    if level == "high":
        mcp: MCPServer[Any] = MCPServer("existing")
        mcp.tool()(fails)
        server = mcp
    else:
        server = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
    tasks.install(server, tools=["fails"])
    said: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with Client(server, extensions=[tasks_client] if as_task else [], mode=mode) as client:
            for arguments in ({"number": 1}, {"number": "none"}):
                try:
                    if as_task:
                        said.append(str(await (await start(client, tasks_client, "fails", arguments)).wait()))
                    else:
                        said.append(str(await client.call_tool("fails", arguments)))
                except (MCPError, TaskFailedError) as error:
                    said.append(str(error))
    assert "secret" not in "".join(said)
    if level == "high":
        assert "valid integer" in said[1], "the model is to correct its arguments"
