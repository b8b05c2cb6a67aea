"""The low-level `Server` of `mcp` 1.x: `tasks.run` in its handler, modes in its own list, many connections."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest
from mcp import types
from mcp.server.experimental.request_context import Experimental
from mcp.server.experimental.task_context import ServerTaskContext as SDKTaskContext
from mcp.server.fastmcp import FastMCP
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import McpError

from mcp_task_runtime import (
    CapabilityError,
    InMemoryTaskStore,
    ProtocolError,
    ServerTaskContext,
    TaskResultHandler,
    TaskSettings,
)
from mcp_task_runtime.adapters import base_tasks, mcp_v1
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.adapters.mcp_v1._connection import Connection, ending_with_connection, is_connected
from mcp_task_runtime.core.types import NewTask
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import accept
from tests.mcp_v1.schemas import Wire
from tests.support.patience import PATIENCE

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

FORM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

Work = Callable[[ServerTaskContext], Awaitable[Any]]


def make_server(tasks: Tasks, tools: dict[str, Any]) -> Server[Any, Any]:
    """Return a server with these tools: each has a mode and a handler without arguments."""
    server: Server[Any, Any] = Server("low")

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [
            types.Tool(
                name=name,
                inputSchema={"type": "object"},
                execution=None if mode is None else types.ToolExecution(taskSupport=mode),
            )
            for name, (mode, _) in tools.items()
        ]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        return await tools[name][1]()

    tasks.install(server)
    return server


def text(value: str) -> list[types.TextContent]:
    return [types.TextContent(type="text", text=value)]


def quick() -> Tasks:
    return Tasks(settings=TaskSettings(shutdown_grace=0.05))


async def test_run_makes_the_call_a_task_with_an_immediate_response_for_the_model() -> None:
    tasks = quick()

    async def work(task: ServerTaskContext) -> list[types.TextContent]:
        answer = await task.elicit("Sure?", FORM)
        return text(f"{answer.action} {answer.content}")

    async def handler() -> Any:
        return await tasks.run(
            work, required=True, ttl_ms=90_000, poll_interval_ms=50, model_immediate_response="It is on its way"
        )

    async def yes(question: Wire) -> Wire | None:
        return accept(ok=True)

    async with tasks, connect(make_server(tasks, {"ask": ("required", handler)}), yes) as client:
        created = await client.result("tools/call", {"name": "ask", "arguments": {}, "task": {}})
        assert created["_meta"] == {"io.modelcontextprotocol/model-immediate-response": "It is on its way"}
        assert (created["task"]["ttl"], created["task"]["pollInterval"]) == (90_000, 50)
        assert await client.text(created["task"]["taskId"]) == "accept {'ok': True}"
        assert (await client.error("tools/call", {"name": "ask", "arguments": {}}))["code"] == -32601


@pytest.mark.parametrize("mode", ["optional", "required"])
async def test_b3_a_slow_handler_that_never_calls_run_is_a_task_all_the_same(
    mode: Literal["optional", "required"],
) -> None:
    tasks = quick()
    go_on = anyio.Event()

    async def handler() -> Any:
        await go_on.wait()
        return text("slow")

    async with tasks, connect(make_server(tasks, {"slow": (mode, handler)})) as client:
        task_id = await client.start("slow")
        assert (await client.task(task_id))["status"] == "working"
        go_on.set()
        assert await client.text(task_id) == "slow"


@pytest.mark.parametrize("stateless", [False, True])
async def test_b1_what_a_server_said_of_itself_before_install_has_tasks_too(stateless: bool) -> None:
    tasks = quick()
    server: Server[Any, Any] = Server("late")

    @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="plain", inputSchema={"type": "object"})]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        return text("done")

    options = server.create_initialization_options()
    tasks.install(server, tools=["plain"])
    hello: list[Wire] = []
    async with tasks, connect(server, hello=hello, stateless=stateless, options=options) as client:
        declared = hello[0]["capabilities"]["tasks"]
        assert declared["requests"] == {"tools": {"call": {}}}
        assert ("list" in declared) is not stateless
        assert await client.text(await client.start("plain")) == "done"


async def test_b2_what_the_list_does_not_show_is_forbidden() -> None:
    tasks = quick()
    called = 0

    async def handler() -> Any:
        nonlocal called
        called += 1
        return text("plain")

    async with tasks, connect(make_server(tasks, {"plain": (None, handler)})) as client:
        for name in ("plain", "unknown"):
            error = await client.error("tools/call", {"name": name, "arguments": {}, "task": {}})
            assert error["code"] == -32601
        assert not called
        assert (await client.result("tools/call", {"name": "plain", "arguments": {}}))["content"][0]["text"] == "plain"


async def test_b2_a_plain_call_may_find_out_in_run_that_it_has_to_be_a_task() -> None:
    tasks = quick()

    async def work(task: ServerTaskContext) -> Any:
        raise AssertionError("it does not run")

    async def handler() -> Any:
        return await tasks.run(work, required=True)

    async with tasks, connect(make_server(tasks, {"late": ("optional", handler)})) as client:
        assert (await client.error("tools/call", {"name": "late", "arguments": {}}))["code"] == -32601


async def test_a_handler_may_catch_what_its_work_raised() -> None:
    tasks = quick()

    async def work(task: ServerTaskContext) -> Any:
        raise CapabilityError("not today")

    async def handler() -> Any:
        try:
            return await tasks.run(work)
        except CapabilityError as error:
            return text(f"caught: {error}")

    async with tasks, connect(make_server(tasks, {"careful": ("optional", handler)})) as client:
        assert await client.text(await client.start("careful")) == "caught: not today"


async def test_a_client_that_asks_for_a_task_gets_it_at_once_whatever_promote_after_says() -> None:
    tasks = quick()
    go_on = anyio.Event()

    async def work(task: ServerTaskContext) -> list[types.TextContent]:
        await go_on.wait()
        return text("slow")

    async def handler() -> Any:
        return await tasks.run(work, promote_after=3600)

    with anyio.fail_after(PATIENCE):
        async with tasks, connect(make_server(tasks, {"slow": ("optional", handler)})) as client:
            task_id = await client.start("slow")
            assert (await client.task(task_id))["status"] == "working"
            go_on.set()
            assert await client.text(task_id) == "slow"


class EndingStream:
    """A stream of messages without any, which ends when it is told to."""

    def __init__(self) -> None:
        self.end = anyio.Event()

    async def __anext__(self) -> Any:
        await self.end.wait()
        raise StopAsyncIteration


async def test_the_end_of_a_connection_ends_the_requests_that_wait_and_is_known_then() -> None:
    stream = EndingStream()
    connection = Connection(stream)
    ended: list[str] = []

    async def serve() -> None:
        with ending_with_connection():
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(5):
                        await anyio.lowlevel.checkpoint()
                ended.append("cleaned up")

    async def request() -> None:
        with pytest.raises(McpError, match="Connection closed"):
            await serve()

    with anyio.fail_after(PATIENCE), connection.current():
        async with anyio.create_task_group() as group:
            group.start_soon(request)
            group.start_soon(request)
            await anyio.wait_all_tasks_blocked()
            assert is_connected()
            stream.end.set()
            with pytest.raises(StopAsyncIteration):
                await connection.__anext__()
            assert ended == ["cleaned up", "cleaned up"]
            assert not is_connected()


@pytest.mark.parametrize(
    "shown",
    [[], ["not today"], ["It failed: ", "not today"], ["not today", "but tomorrow"], ["Come back tomorrow"]],
    ids=["nothing", "as the SDK", "two blocks", "more", "other words"],
)
async def test_a_handler_may_show_an_error_of_its_work_in_its_own_way(shown: list[str]) -> None:
    tasks = quick()

    async def work(task: ServerTaskContext) -> Any:
        raise CapabilityError("not today")

    async def handler() -> Any:
        try:
            return await tasks.run(work)
        except CapabilityError:
            return types.CallToolResult(isError=True, content=[block for each in shown for block in text(each)])

    async with tasks, connect(make_server(tasks, {"careful": ("optional", handler)})) as client:
        outcome = await client.outcome(await client.start("careful"))
    if shown == ["not today"]:  # it looks like what the SDK makes of the error itself
        assert outcome["error"]["message"] == "not today"
    else:
        assert [block["text"] for block in outcome["result"]["content"]] == shown


async def test_a_task_lives_on_when_its_connection_ends_and_nothing_holds_the_runtime() -> None:
    """The runtime is opened by the first use; no `async with tasks` stands around it."""
    store = InMemoryTaskStore()
    tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0.05))
    go_on, done = anyio.Event(), anyio.Event()
    task_ids: list[str] = []

    async def work(task: ServerTaskContext) -> Any:
        task_ids.append(task.task_id)
        await go_on.wait()
        await task.update_status("without a listener")
        done.set()
        return text("done")

    async def handler() -> Any:
        return await tasks.run(work)

    server = make_server(tasks, {"work": ("optional", handler)})
    async with connect(server) as client:
        await client.start("work")
    async with connect(server) as client:
        go_on.set()
        with anyio.fail_after(PATIENCE):
            await done.wait()
            record = await store.get_task(task_ids[0])
            while record is not None and record.outcome is None:
                record = await store.wait_for_update(task_ids[0], after=record.revision)
        assert record is not None
        assert record.status == "completed"
    async with tasks:
        pass  # closes what the first use has opened
    async with connect(server) as client:
        assert await client.text(await client.start("work")) == "done"  # and it opens again


async def test_a4_fault_22_an_unlimited_ttl_is_null_everywhere() -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05, default_ttl_ms=None, max_ttl_ms=None))

    async def work(task: ServerTaskContext) -> Any:
        await task.update_status("Working")
        return text("done")

    async def handler() -> Any:
        return await tasks.run(work)

    async with tasks, connect(make_server(tasks, {"work": ("optional", handler)})) as client:
        created = await client.result("tools/call", {"name": "work", "arguments": {}, "task": {}})
        assert created["task"]["ttl"] is None
        task_id = created["task"]["taskId"]
        assert (await client.until(task_id, "completed"))["ttl"] is None
        assert (await client.notified("notifications/tasks/status", taskId=task_id))["ttl"] is None
        assert (await client.result("tasks/list"))["tasks"][0]["ttl"] is None


async def test_a_tool_that_calls_its_own_server_makes_no_task_of_the_inner_call() -> None:
    tasks = quick()
    server: Server[Any, Any]

    async def inner_work(task: ServerTaskContext) -> Any:
        return text("inner")

    async def inner() -> Any:
        return await tasks.run(inner_work)

    async def outer_work(task: ServerTaskContext) -> Any:
        async with connect(server) as client:
            result = await client.result("tools/call", {"name": "inner", "arguments": {}})
        return text(f"outer and {result['content'][0]['text']}")

    async def outer() -> Any:
        return await tasks.run(outer_work)

    server = make_server(tasks, {"inner": ("optional", inner), "outer": ("optional", outer)})
    async with tasks, connect(server) as client:
        assert await client.text(await client.start("outer")) == "outer and inner"
        assert len((await client.result("tasks/list"))["tasks"]) == 1


async def test_a_connection_is_forgotten_when_it_ends() -> None:
    tasks = quick()

    async def handler() -> Any:
        return text("plain")

    server = make_server(tasks, {"plain": ("optional", handler)})
    async with tasks:
        for _ in range(3):
            async with connect(server) as client:
                await client.text(await client.start("plain"))
        import gc

        gc.collect()
        assert len(tasks._scopes._scopes) <= 1


def test_wrong_use_says_what_to_do() -> None:
    tasks = Tasks()
    with pytest.raises(RuntimeError, match="install"):
        tasks.tool()
    with pytest.raises(TypeError, match=r"@tasks\.tool\(\)"):
        tasks.tool(lambda: None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="list_tools and call_tool"):
        tasks.install(Server("empty"))
    mcp: FastMCP[Any] = FastMCP("x")
    tasks.install(mcp)
    with pytest.raises(RuntimeError, match="installed already"):
        tasks.install(mcp)
    with pytest.raises(RuntimeError, match="has tasks already"):
        Tasks().install(mcp)
    with pytest.raises(ValueError, match="ttl_ms"):
        tasks.tool(ttl_ms=0)(make_server)
    with pytest.raises(ValueError, match="poll_interval_ms"):
        tasks.tool(poll_interval_ms=0)(make_server)


async def test_run_outside_a_tool_call_says_so() -> None:
    async def work(task: ServerTaskContext) -> None:
        return None

    with pytest.raises(RuntimeError, match="tool call"):
        await Tasks().run(work)


async def test_a_past_limit_is_a_clear_error_and_nothing_is_lost() -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05, max_tasks_per_owner=1))

    async def work(task: ServerTaskContext) -> Any:
        await anyio.sleep_forever()

    async def handler() -> Any:
        return await tasks.run(work)

    async with tasks, connect(make_server(tasks, {"work": ("required", handler)})) as client:
        task_id = await client.start("work")
        error = await client.error("tools/call", {"name": "work", "arguments": {}, "task": {}})
        assert "at most 1" in error["message"]
        assert (await client.task(task_id))["status"] == "working"


async def test_task_under_the_servers_own_decorator_takes_the_tools_name() -> None:
    mcp: FastMCP[Any] = FastMCP("x", log_level="CRITICAL")
    tasks = quick()
    tasks.install(mcp)

    @mcp.tool(name="renamed")
    @tasks.task(name="renamed", required=True)
    async def work(x: int, task: ServerTaskContext) -> int:
        return x + 1

    async with tasks, connect(mcp) as client:
        (tool,) = (await client.result("tools/list"))["tools"]
        assert tool["execution"] == {"taskSupport": "required"}
        assert await client.text(await client.start("renamed", {"x": 1})) == "2"


@pytest.mark.parametrize(("name", "hint"), [("mcp_v2", "mcp>=2.*mcp_v1"), ("mcp_v2_client", "mcp>=2")])
async def test_the_adapter_of_another_sdk_line_says_what_it_needs(name: str, hint: str) -> None:
    with pytest.raises(ImportError, match=rf"{name} needs mcp 2\.x.*{hint}"):
        importlib.import_module(f"mcp_task_runtime.adapters.{name}")


async def test_the_text_of_an_exception_stays_in_the_server_on_demand() -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05), mask_errors=True)

    async def work(task: ServerTaskContext) -> Any:
        raise RuntimeError("a secret of the server")

    async def handler() -> Any:
        return await tasks.run(work)

    async with tasks, connect(make_server(tasks, {"breaks": ("optional", handler)})) as client:
        plain = await client.result("tools/call", {"name": "breaks", "arguments": {}})
        result = await client.result("tasks/result", {"taskId": await client.start("breaks")})
    for each in (plain, result):
        assert each["isError"] is True
        assert each["content"] == [{"type": "text", "text": "internal error"}]


def test_the_server_module_gives_the_class_of_the_installed_line() -> None:
    assert importlib.import_module("mcp_task_runtime.server").Tasks is Tasks


def test_a_server_of_another_package_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = type("FastMCP", (), {"__module__": "fastmcp.server.server"})
    monkeypatch.setattr(base_tasks, "version", lambda package: "3.4.11")
    with pytest.raises(TypeError, match=r"fastmcp 3\.4\.11 is another class.*upgrade to fastmcp 4"):
        Tasks().install(stranger())
    with pytest.raises(TypeError, match=r"this is builtins\.object"):
        Tasks().install(object())  # type: ignore[arg-type]


async def test_l10_without_sessions_a_task_outlives_its_connection_and_its_id_is_the_secret() -> None:
    tasks = Tasks()
    begun, release = anyio.Event(), anyio.Event()

    async def work(task: ServerTaskContext) -> list[types.TextContent]:
        begun.set()
        await release.wait()
        return text("done")

    server = make_server(tasks, {"slow": ("optional", lambda: tasks.run(work))})
    with anyio.fail_after(PATIENCE):
        async with tasks:
            async with connect(server, stateless=True) as client:
                task_id = await client.start("slow")
                await begun.wait()
            async with connect(server, stateless=True) as other:
                assert (await other.result("tasks/get", {"taskId": task_id}))["status"] == "working"
                release.set()
                assert (await other.result("tasks/result", {"taskId": task_id}))["content"][0]["text"] == "done"


async def test_b1_without_sessions_what_is_not_declared_is_not_served() -> None:
    tasks = Tasks()
    server = make_server(tasks, {"quick": ("optional", lambda: tasks.run(nothing))})
    async with tasks, connect(server, stateless=True) as client:
        await client.start("quick")
        hello = await client.initialize({})
        assert "list" not in hello["capabilities"]["tasks"]
        assert (await client.error("tasks/list"))["code"] == -32601


async def test_b1_without_sessions_a_server_that_knows_principals_declares_and_serves_lists() -> None:
    tasks = Tasks(principal=lambda ctx: "ada")
    server = make_server(tasks, {"quick": ("optional", lambda: tasks.run(nothing))})
    async with tasks, connect(server, stateless=True) as client:
        task_id = await client.start("quick")
        hello = await client.initialize({})
        assert "list" in hello["capabilities"]["tasks"]
        assert [task["taskId"] for task in (await client.result("tasks/list"))["tasks"]] == [task_id]


async def nothing(task: ServerTaskContext) -> list[types.TextContent]:
    return text("")


async def test_l16_without_authentication_each_session_has_a_limit_of_its_own() -> None:
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05, max_tasks_per_owner=1))

    async def work(task: ServerTaskContext) -> Any:
        await anyio.sleep_forever()

    server = make_server(tasks, {"work": ("required", lambda: tasks.run(work))})
    async with tasks, connect(server) as one, connect(server) as other:
        for client in (one, other):
            await client.start("work")
            error = await client.error("tools/call", {"name": "work", "arguments": {}, "task": {}})
            assert "tasks at once (at most 1)" in error["message"]


async def test_a_context_over_the_sdks_own_session_tells_and_asks_the_client() -> None:
    """As the reference makes one: without `Tasks`, with the session of the request."""
    store = InMemoryTaskStore()
    handler = TaskResultHandler(store, store.message_queue)
    server: Server[Any, Any] = Server("by hand")

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[types.Tool]:
        return [types.Tool(name="ask", inputSchema={"type": "object"})]

    @server.call_tool()  # type: ignore[untyped-decorator]
    async def call_tool(name: str, arguments: dict[str, Any]) -> Any:
        record = await store.create_task(NewTask(ttl_ms=None))
        session = server.request_context.session
        task = ServerTaskContext(
            task=record.task, store=store, session=session, queue=store.message_queue, handler=handler
        )
        await task.update_status("Asking")
        answer = await task.elicit("Sure?", FORM)
        await task.complete({"content": []})
        return text(f"{answer.action} {answer.content}")

    async def yes(question: Wire) -> Wire | None:
        assert question["params"]["message"] == "Sure?"
        return accept(ok=True)

    async with connect(server, yes) as client:
        result = await client.result("tools/call", {"name": "ask", "arguments": {}})
        assert result["content"][0]["text"] == "accept {'ok': True}"
        await client.notified("notifications/tasks/status", statusMessage="Asking")
        await client.notified("notifications/tasks/status", status="completed")


async def test_a_protocol_error_in_groups_reaches_the_client_verbatim() -> None:
    """What a task group of the work makes of it is no reason to mask it, in a task as in a plain call."""
    mcp: FastMCP[Any] = FastMCP("groups")
    tasks = quick()
    tasks.install(mcp)

    @tasks.tool()
    async def refuse(task: ServerTaskContext) -> str:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [ProtocolError(-32050, "used up", {"retryAfter": 30})])])

    expected = {"code": -32050, "message": "used up", "data": {"retryAfter": 30}}
    async with tasks, connect(mcp) as client:
        task_id = await client.start("refuse")
        assert await client.error("tasks/result", {"taskId": task_id}) == expected
        assert await client.error("tools/call", {"name": "refuse", "arguments": {}}) == expected


@pytest.mark.parametrize("data", [None, {"file": "\udcff"}], ids=["message", "data"])
async def test_a_protocol_error_that_no_transport_can_send_is_the_same_in_a_plain_call_and_in_a_task(data: Any) -> None:
    """The SDK's stdio server ends when it sends a lone surrogate."""
    mcp: FastMCP[Any] = FastMCP("files")
    tasks = quick()
    tasks.install(mcp)

    @tasks.tool()
    async def read(task: ServerTaskContext) -> str:
        raise ProtocolError(-32050, "No report" if data else "No report-\udcff.txt", data)  # logs need printable text

    expected = {"code": -32050, "message": "No report-\ufffd.txt"}
    if data is not None:
        expected = {"code": -32603, "message": "Internal error"}
    async with tasks, connect(mcp) as client:
        task_id = await client.start("read")
        assert await client.error("tasks/result", {"taskId": task_id}) == expected
        assert await client.error("tools/call", {"name": "read", "arguments": {}}) == expected


NO_VALUE: Wire = {"text": "\ud800"}


@pytest.mark.parametrize(
    ("params", "name"),
    [({"arguments": {"x": NO_VALUE}}, "arguments"), ({"_meta": {"progressToken": "\ud800"}}, "progressToken")],
    ids=["arguments", "progress token"],
)
async def test_a_call_with_values_that_no_store_takes_is_refused(params: Wire, name: str) -> None:
    mcp: FastMCP[Any] = FastMCP("files")
    tasks = quick()
    tasks.install(mcp)

    @tasks.tool()
    async def echo(x: Any = None) -> str:
        return str(x)

    async with tasks, connect(mcp) as client:
        error = await client.error("tools/call", {"name": "echo", "arguments": {}, "task": {}, **params})
        assert error["code"] == -32602
        assert error["message"].startswith(f"Invalid {name}: ")
        assert (await client.result("tasks/list"))["tasks"] == [], "no task was made"


async def test_each_task_of_a_client_that_declares_what_no_store_takes_is_refused() -> None:
    mcp: FastMCP[Any] = FastMCP("files")
    tasks = quick()
    tasks.install(mcp)

    @tasks.tool()
    async def echo() -> str:
        return "echo"

    async with tasks, connect(mcp, capabilities={"experimental": {"x": NO_VALUE}}) as client:
        for _ in range(2):
            error = await client.error("tools/call", {"name": "echo", "arguments": {}, "task": {}})
            assert error["code"] == -32602
            assert error["message"].startswith("Invalid capabilities: ")
        result = await client.result("tools/call", {"name": "echo", "arguments": {}})
        assert result["content"][0]["text"] == "echo", "a plain call needs no store"


@pytest.mark.parametrize("name", [name for name in vars(SDKTaskContext) if not name.startswith("_")] + ["__init__"])
def test_what_the_sdks_context_has_is_here_by_the_same_name_or_in_the_table(name: str) -> None:
    table = mcp_v1.__doc__ or ""
    assert hasattr(ServerTaskContext, name) or f"`{name}" in table
    if callable(theirs := getattr(SDKTaskContext, name)):
        ours = inspect.signature(getattr(ServerTaskContext, name)).parameters
        for parameter in inspect.signature(theirs).parameters:
            assert parameter in ours or f"{parameter}=" in table


def test_what_run_task_of_the_sdk_takes_is_in_the_table() -> None:
    names = [*inspect.signature(Experimental.run_task).parameters][2:]
    assert "task_id" in names
    assert all(f"{name}=" in (mcp_v1.__doc__ or "") for name in names)
