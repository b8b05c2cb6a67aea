"""Tools that exist run as tasks on `mcp` 1.x without a change of their code: `install(tools=...)`, `adopt`."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from mcp import types
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.lowlevel import Server
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import RawClient, accept, never
from tests.mcp_v1.schemas import Wire
from tests.support.event_loops import in_virtual_time
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE


class Name(BaseModel):
    name: str


async def say(question: Wire) -> Wire | None:
    return accept(name="Ada")


async def fetch(url: str) -> str:
    """A tool that exists already."""
    return f"page of {url}"


async def asks(ctx: Context) -> str:  # type: ignore[type-arg]
    await ctx.report_progress(1, 2, "asking")
    answer = await ctx.elicit("Who are you?", Name)
    return f"{answer.action} {answer.data.name if answer.action == 'accept' else None}"


def new_tasks(**options: Any) -> Tasks:
    return Tasks(settings=TaskSettings(shutdown_grace=0), **options)


def new_server() -> FastMCP[Any]:
    return FastMCP("existing", log_level="CRITICAL")


async def shown(client: RawClient) -> dict[str, str | None]:
    tools = (await client.result("tools/list"))["tools"]
    return {tool["name"]: tool.get("execution", {}).get("taskSupport") for tool in tools}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("tools", [["fetch"], "all"])
async def test_a_tool_runs_as_a_task_whenever_it_is_registered(when: str, tools: Any) -> None:
    mcp, tasks = new_server(), new_tasks()
    if when == "before":
        mcp.tool()(fetch)
    tasks.install(mcp, tools=tools)
    if when == "after":
        mcp.tool()(fetch)
    async with tasks, connect(mcp, never) as client:
        assert await shown(client) == {"fetch": "optional"}
        assert await client.text(await client.start("fetch", {"url": "x"})) == "page of x"
        plain = await client.result("tools/call", {"name": "fetch", "arguments": {"url": "y"}})
        assert plain["content"][0]["text"] == "page of y"


async def test_a_name_that_no_tool_has_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(fetch)
    tasks.install(mcp, tools=["fetch", "fecth"])
    async with tasks, connect(mcp, never) as client:
        for _ in range(2):
            assert await shown(client) == {"fetch": "optional"}
    said = [record.message for record in caplog.records if record.name.startswith("mcp_task_runtime")]
    assert [text.partition(" was")[0] for text in said if "declared to run" in text] == ["The tool 'fecth'"]


async def test_what_is_set_on_the_session_stays_there_for_the_call() -> None:
    mcp, tasks = new_server(), new_tasks()

    @mcp.tool()
    async def note(ctx: Context) -> str:  # type: ignore[type-arg]
        session: Any = ctx.session
        session.noted = "x"
        await ctx.elicit("Go on?", Name)
        return str(session.noted)

    tasks.install(mcp, tools=["note"])
    async with tasks, connect(mcp, say) as client:
        assert await client.text(await client.start("note")) == "x"


async def test_what_is_not_named_stays_forbidden_and_what_is_not_advertised_is_accepted() -> None:
    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(fetch)
    mcp.tool(name="quiet")(fetch)
    mcp.tool(name="must")(fetch)
    tasks.install(mcp, tools=["must"])
    tasks.adopt("must", required=True, ttl_ms=77_000, model_immediate_response="On its way")
    tasks.adopt("quiet", advertise=False)
    async with tasks, connect(mcp, never) as client:
        assert await shown(client) == {"fetch": None, "quiet": None, "must": "required"}
        arguments = {"url": "x"}
        assert await client.text(await client.start("quiet", arguments)) == "page of x"
        forbidden = {"name": "fetch", "arguments": arguments, "task": {}}
        assert (await client.error("tools/call", forbidden))["code"] == -32601
        assert (await client.error("tools/call", {"name": "must", "arguments": arguments}))["code"] == -32601
        created = await client.result("tools/call", {"name": "must", "arguments": arguments, "task": {}})
        assert created["task"]["ttl"] == 77_000
        assert created["_meta"] == {"io.modelcontextprotocol/model-immediate-response": "On its way"}


async def test_a_declared_tool_that_is_not_advertised_takes_a_task_all_the_same() -> None:
    mcp, tasks = new_server(), new_tasks()
    tasks.install(mcp)
    tasks.tool(name="quiet", advertise=False)(fetch)
    mcp.tool(name="still")(tasks.task(name="still", advertise=False)(fetch))
    async with tasks, connect(mcp, never) as client:
        assert await shown(client) == {"quiet": None, "still": None}
        for name in ("quiet", "still"):
            assert await client.text(await client.start(name, {"url": "x"})) == "page of x"


async def test_any_tool_may_be_called_as_a_task_with_promote_after() -> None:
    mcp, tasks = new_server(), new_tasks(promote_after=5)
    tasks.install(mcp)
    mcp.tool()(fetch)
    async with tasks, connect(mcp, never) as client:
        assert await shown(client) == {"fetch": "optional"}
        assert await client.text(await client.start("fetch", {"url": "x"})) == "page of x"
    with pytest.raises(ValueError, match="promote_after"):
        Tasks(promote_after=-1)


async def test_a_client_that_asks_for_a_task_has_its_handle_at_once_whatever_promote_after_says() -> None:
    go_on = anyio.Event()

    async def slow() -> str:
        await go_on.wait()
        return "done"

    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(slow)
    tasks.install(mcp)
    tasks.adopt("slow", promote_after=3600)
    with anyio.fail_after(PATIENCE):
        async with tasks, connect(mcp, never) as client:
            task_id = await client.start("slow", {})
            go_on.set()
            assert await client.text(task_id) == "done"


async def test_one_that_blocks_runs_in_a_thread_and_its_context_reaches_the_client_from_there() -> None:
    blocks, go_on = threading.Event(), threading.Event()

    async def block(ctx: Context) -> str:  # type: ignore[type-arg]
        await ctx.report_progress(1, 2, "blocking")
        await ctx.info("told")
        blocks.set()
        go_on.wait(PATIENCE)
        answer = await ctx.elicit("Who are you?", Name)
        return f"{answer.action} {threading.get_ident() == home}"

    home = threading.get_ident()
    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(block)
    tasks.install(mcp)
    tasks.adopt("block", blocking=True)
    try:
        async with tasks, connect(mcp, say) as client:
            task_id = await client.start("block")
            assert await anyio.to_thread.run_sync(blocks.wait, PATIENCE)
            task = await client.result("tasks/get", {"taskId": task_id})
            assert (task["status"], task["statusMessage"]) == ("working", "blocking (1/2)")
            go_on.set()
            assert await client.text(task_id) == "accept False"
            plain = await client.result("tools/call", {"name": "block", "arguments": {}})
            assert plain["content"][0]["text"] == "accept False"
            told = [
                each["params"]["data"] for each in client.notifications if each["method"] == "notifications/message"
            ]
            assert told == ["told", "told"]
    finally:
        go_on.set()


async def test_one_that_blocks_in_a_plain_function_holds_up_no_other_request() -> None:
    blocks, go_on = threading.Event(), threading.Event()

    def block() -> str:  # this SDK line calls it in its event loop
        blocks.set()
        go_on.wait(PATIENCE)
        return "done"

    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(block)
    mcp.tool()(fetch)
    tasks.install(mcp)
    tasks.adopt("block", blocking=True)
    try:
        async with tasks, connect(mcp, never) as client:
            task_id = await client.start("block")
            assert await anyio.to_thread.run_sync(blocks.wait, PATIENCE)
            plain = await client.result("tools/call", {"name": "fetch", "arguments": {"url": "y"}})
            assert plain["content"][0]["text"] == "page of y"
            go_on.set()
            assert await client.text(task_id) == "done"
    finally:
        go_on.set()


async def test_one_that_blocks_of_a_low_level_server_has_the_servers_context_there() -> None:
    server: Server[Any, Any] = Server("low")

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="ask", inputSchema={"type": "object"})]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> list[types.TextContent]:
        answer = await server.request_context.session.elicit("Who?", Name.model_json_schema())
        return [types.TextContent(type="text", text=f"{answer.content} {threading.get_ident() == home}")]

    home = threading.get_ident()
    tasks = new_tasks()
    tasks.install(server)
    tasks.adopt("ask", blocking=True)
    async with tasks, connect(server, say) as client:
        assert await client.text(await client.start("ask")) == "{'name': 'Ada'} False"
        plain = await client.result("tools/call", {"name": "ask", "arguments": {}})
        assert plain["content"][0]["text"] == "{'name': 'Ada'} False"


async def test_its_own_context_asks_and_reports_through_the_task() -> None:
    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(asks)
    tasks.install(mcp, tools=["asks"])
    async with tasks, connect(mcp, say) as client:
        task_id = await client.start("asks")  # without a progress token
        task = await client.until(task_id, "input_required")
        assert task["statusMessage"] == "asking (1/2)"
        assert not client.questions
        assert await client.text(task_id) == "accept Ada"
        assert not [m for m in client.notifications if m["method"] == "notifications/progress"]


@in_virtual_time
async def test_the_handle_comes_before_work_that_blocks_the_event_loop() -> None:
    ran: list[str] = []

    async def blocks() -> str:  # as real servers do: nothing else runs meanwhile
        ran.append("blocks")
        return "done"

    mcp, tasks = new_server(), new_tasks()
    mcp.tool()(blocks)
    tasks.install(mcp, tools=["blocks"])
    async with tasks, connect(mcp, never) as client:
        task_id = await client.start("blocks")
        ran.append("client has the handle")
        assert await client.text(task_id) == "done"
    assert ran == ["client has the handle", "blocks"]


async def test_a_tool_of_a_low_level_server_is_adopted_too() -> None:
    server: Server[Any, Any] = Server("low")

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="fetch", inputSchema={"type": "object"})]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        answer = await server.request_context.session.elicit("Who?", Name.model_json_schema())
        return [types.TextContent(type="text", text=f"{name} {answer.content}")]

    tasks = new_tasks()
    tasks.install(server, tools=["fetch"])
    async with tasks, connect(server, say) as client:
        assert await shown(client) == {"fetch": "optional"}
        assert await client.text(await client.start("fetch")) == "fetch {'name': 'Ada'}"


async def test_a_call_may_name_tasks_as_related_and_its_work_sees_those_that_exist() -> None:
    mcp, tasks = new_server(), new_tasks()
    tasks.install(mcp, tools=["fetch"])
    mcp.tool()(fetch)

    @tasks.tool()
    async def summary(task: ServerTaskContext) -> str:
        return str([record.request.name for record in await task.related_tasks()])

    async with connect(mcp, never) as client:
        task_id = await client.start("fetch", {"url": "x"})
        await client.text(task_id)
        related = {"io.modelcontextprotocol/relatedTaskIds": [task_id, "unknown"]}
        assert await client.text(await client.start("summary", _meta=related)) == "['fetch']"


@pytest.mark.parametrize("level", ["high", "low"])
async def test_mask_errors_holds_for_it_too(level: str) -> None:
    async def fails(number: int) -> str:
        raise RuntimeError("a secret of the server")

    tasks = new_tasks(mask_errors=True)
    if level == "high":
        mcp = new_server()
        mcp.tool()(fails)
        tasks.install(mcp, tools=["fails"])
        server = low_level(mcp)
    else:
        server = Server("low")

        @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
        async def list_tools() -> list[types.Tool]:
            schema = {"type": "object", "properties": {"number": {"type": "integer"}}}
            return [types.Tool(name="fails", inputSchema=schema)]

        @server.call_tool()  # type: ignore[untyped-decorator]
        async def call_tool(name: str, arguments: Wire) -> Any:
            return await fails(1)

        tasks.install(server, tools=["fails"])
    async with tasks, connect(server, never) as client:
        for arguments, text in (({"number": 1}, "internal error"), ({"number": "none"}, "integer")):
            plain = await client.result("tools/call", {"name": "fails", "arguments": arguments})
            result = await client.result("tasks/result", {"taskId": await client.start("fails", arguments)})
            for each in (plain, result):
                assert each["isError"] is True
                assert text in each["content"][0]["text"]
                assert "secret" not in each["content"][0]["text"]


async def test_of_two_tools_with_one_name_the_first_one_runs_and_its_result_is_made_as_its_own() -> None:
    """As the SDK does; a result has the form that its tool has."""
    mcp, tasks = new_server(), new_tasks()
    tasks.install(mcp)

    @tasks.tool(name="same")
    async def first(task: ServerTaskContext) -> int:
        return 1

    @tasks.tool(name="same", structured_output=False)
    async def second(task: ServerTaskContext) -> int:
        return 2

    async with tasks, connect(mcp, never) as client:
        task_id = await client.start("same", {})
        result = await client.result("tasks/result", {"taskId": task_id})
        assert result["structuredContent"] == {"result": 1}
