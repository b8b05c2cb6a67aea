"""Servers on `mcp` 2.x whose tools run as tasks, with the SDK's client in the same process."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import mcp_types as types
import pytest
from mcp import Client
from mcp.client import advertise
from mcp.server import MCPServer, Server
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, CreateMessageResult, ElicitResult, TextContent
from pydantic import BaseModel

from mcp_task_runtime import (
    InMemoryTaskStore,
    InvalidTransitionError,
    Rerun,
    ServerTaskContext,
    TaskResultHandler,
    TaskSettings,
)
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import (
    ClientTask,
    TaskCancelledError,
    TaskFailedError,
    TasksClient,
    TaskSnapshot,
    UnknownTaskError,
)
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import CapabilityError, ProtocolError, TaskNotFoundError
from mcp_task_runtime.testing.clock import FakeClock
from tests.mcp_v2.in_process import memory_client, served_over_http
from tests.mcp_v2.raw_client import DECLARED, EXTENSION_ID, http_client
from tests.support.patience import IS_LONG, PATIENCE

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

Register = Callable[[Callable[..., Any]], Callable[..., Any]]
MISSING: dict[str, Any] = {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}


class Publish(BaseModel):
    ok: bool


def server_with(*functions: Callable[..., Any], **options: Any) -> tuple[MCPServer[Any], Tasks]:
    """Return a server with these tools."""
    mcp: MCPServer[Any] = MCPServer("test")
    tasks = Tasks(options.pop("store", None), settings=options.pop("settings", None))
    tasks.install(mcp)
    for function in functions:
        tasks.tool(**options)(function)
    return mcp, tasks


@asynccontextmanager
async def connected(
    server: MCPServer[Any] | Server[Any], tasks: TasksClient | None = None, **options: Any
) -> AsyncGenerator[Client, None]:
    with anyio.fail_after(PATIENCE):
        async with Client(server, extensions=[tasks or TasksClient()], **options) as client:
            yield client


async def start(tasks: TasksClient, client: Client, tool: str, arguments: dict[str, Any] | None = None) -> ClientTask:
    task = await tasks.start(client, tool, arguments or {})
    assert isinstance(task, ClientTask)
    return task


def text_of(result: CallToolResult | ClientTask) -> str:
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def publish(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"ok": True})


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(text="written"))


class Gate:
    """Work that waits until a test lets it go on, and says how it went."""

    def __init__(self) -> None:
        self.entered = anyio.Event()
        self.open = anyio.Event()
        self.left: list[str] = []
        self.ended = anyio.Event()

    async def work(self) -> str:
        self.entered.set()
        try:
            await self.open.wait()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()  # clean-up may await
            self.left.append(type(error).__name__)
            raise
        else:
            self.left.append("returned")
            return "done"
        finally:
            self.ended.set()

    def tool(self) -> Callable[..., Any]:
        async def wait(task: ServerTaskContext) -> str:
            return await self.work()

        return wait


async def ask(task: ServerTaskContext) -> str:
    answer = await task.elicit("Publish it?", Publish)
    return f"{answer.action}: {answer.data.ok if answer.action == 'accept' else None}"


async def sample(task: ServerTaskContext) -> str:
    message = {"role": "user", "content": {"type": "text", "text": "Write."}}
    return (await task.create_message([message], max_tokens=9)).text


async def quick(task: ServerTaskContext) -> str:
    return "quick"


# The main job


async def test_a_call_becomes_a_task_that_asks_and_finishes() -> None:
    async def build_report(topic: str, task: ServerTaskContext) -> str:
        await task.update_status("Collecting sources")
        answer = await task.elicit("Publish it?", Publish)
        return f"{topic}: {answer}"

    mcp, _ = server_with(build_report)
    seen: list[str] = []

    async def note(snapshot: TaskSnapshot) -> None:
        seen.append(snapshot.status)

    async with connected(mcp, TasksClient(on_update=note), elicitation_callback=publish) as client:
        assert "Bees" in text_of(await client.call_tool("build_report", {"topic": "Bees"}))
    assert seen[0] == "working"
    assert "input_required" in seen
    assert seen[-1] == "completed"


# Plain functions


async def test_a_plain_function_runs_in_a_thread_and_reaches_its_task_from_there() -> None:
    threads: set[int] = set()

    def compute(n: int, task: ServerTaskContext) -> int:
        threads.add(threading.get_ident())
        anyio.from_thread.run(task.update_status, "half way")
        answer = anyio.from_thread.run(task.elicit, "Go on?", Publish)
        return n if answer.action == "accept" else -1

    mcp, _ = server_with(compute)
    async with connected(mcp, elicitation_callback=publish) as client:
        assert (await client.call_tool("compute", {"n": 7})).structured_content == {"result": 7}
    assert threads
    assert threading.get_ident() not in threads


async def test_a_cancelled_plain_function_sees_that_it_is_to_stop() -> None:
    started, stopped = threading.Event(), threading.Event()

    def compute(task: ServerTaskContext) -> str:
        started.set()
        while not task.is_cancelled:
            stopped.wait(0.001)
        stopped.set()
        return "too late"

    mcp, _ = server_with(compute)
    tasks = TasksClient()
    async with connected(mcp, tasks) as client:
        task = await start(tasks, client, "compute")
        await anyio.to_thread.run_sync(started.wait)
        await task.cancel()
        with pytest.raises(TaskCancelledError):
            await task.wait()
        await anyio.to_thread.run_sync(stopped.wait)


async def test_many_blocked_plain_functions_leave_threads_to_everybody_else() -> None:
    """A stdio server reads its input in a thread of the common pool, and plain tools run there too."""
    go_on = threading.Event()

    def block(task: ServerTaskContext) -> str:
        go_on.wait(PATIENCE)
        return "done"

    mcp, _ = server_with(block)
    tasks = TasksClient()
    try:
        async with connected(mcp, tasks) as client:
            blocked = [await start(tasks, client, "block") for _ in range(50)]
            with anyio.fail_after(PATIENCE / 2):
                await anyio.to_thread.run_sync(lambda: None)
            go_on.set()
            for task in blocked:
                assert text_of(await task.wait()) == "done"
    finally:
        go_on.set()


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_blocking_tool_holds_up_no_other_request(mode: Any) -> None:
    blocks, go_on = threading.Event(), threading.Event()

    async def block(task: ServerTaskContext) -> str:
        await task.update_status("blocking")
        blocks.set()
        go_on.wait(PATIENCE)
        answer = await task.elicit("Publish it?", Publish)
        return answer.action

    mcp, _ = server_with(block, blocking=True)
    tasks = TasksClient()
    try:
        async with connected(mcp, tasks, mode=mode, elicitation_callback=publish) as client:
            task = await start(tasks, client, "block")
            assert await anyio.to_thread.run_sync(blocks.wait, PATIENCE)
            shown = await task.get()
            assert (shown.status, shown.status_message) == ("working", "blocking")
            go_on.set()
            assert text_of(await task.wait()) == "accept"
    finally:
        go_on.set()


def test_a_blocking_tool_cannot_take_what_belongs_to_the_servers_event_loop() -> None:
    async def both(ctx: Context, task: ServerTaskContext) -> str:
        raise AssertionError

    with pytest.raises(TypeError, match="both cannot block and use the SDK's context"):
        server_with(both, blocking=True)


# Names that stand in one decorator and not in the other


async def test_a_name_that_tasks_task_alone_was_given_is_the_tools_name() -> None:
    mcp, tasks = server_with()
    mcp.tool()(tasks.task(name="renamed")(quick))
    async with connected(mcp, mode="legacy") as client:
        (tool,) = (await client.list_tools()).tools
        assert tool.name == "renamed"
        assert tool.execution is not None


async def test_a_name_that_the_sdks_decorator_alone_was_given_works_and_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mcp, tasks = server_with()
    mcp.tool(name="renamed")(tasks.task()(quick))
    tasks_client = TasksClient()
    async with connected(mcp, tasks_client) as client:
        task = await start(tasks_client, client, "renamed")
        assert text_of(await task.wait()) == "quick"
    async with connected(mcp, mode="legacy") as client:
        for _ in range(2):
            (tool,) = (await client.list_tools()).tools
            assert tool.execution is not None, "it was seen in a call"
    warnings = [record.getMessage() for record in caplog.records if "tasks.task(name=...)" in record.getMessage()]
    assert len(warnings) == 1
    assert "'quick'" in warnings[0]


# Clients that take no tasks


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_optional_tool_runs_within_the_call_of_a_client_that_takes_no_tasks(mode: str) -> None:
    mcp, tasks = server_with(quick)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode=mode) as client:
            assert text_of(await client.call_tool("quick")) == "quick"
    assert (await tasks.runtime.list(owner=None)).records == ()


async def test_a_legacy_client_is_asked_within_its_call() -> None:
    mcp, _ = server_with(ask, sample)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode="legacy", elicitation_callback=publish, sampling_callback=write) as client:
            assert text_of(await client.call_tool("ask")) == "accept: True"
            assert text_of(await client.call_tool("sample")) == "written"


async def test_a_legacy_client_that_declared_the_extension_still_gets_the_result() -> None:
    mcp, _ = server_with(ask)
    with anyio.fail_after(PATIENCE):
        async with Client(
            mcp, mode="legacy", elicitation_callback=publish, extensions=[advertise(EXTENSION_ID)]
        ) as client:
            assert text_of(await client.call_tool("ask")) == "accept: True"


async def test_several_questions_at_once_reach_a_legacy_client_within_its_call() -> None:
    async def ask_twice(task: ServerTaskContext) -> int:
        answers = []

        async def one(message: str) -> None:
            answers.append(await task.elicit(message, Publish))

        async with anyio.create_task_group() as group:
            group.start_soon(one, "A?")
            group.start_soon(one, "B?")
        return len(answers)

    mcp, _ = server_with(ask_twice)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode="legacy", elicitation_callback=publish) as client:
            assert (await client.call_tool("ask_twice")).structured_content == {"result": 2}


async def test_what_a_legacy_client_refuses_is_raised_in_the_work() -> None:
    async def refused(context: Any, params: Any) -> types.ErrorData:
        return types.ErrorData(code=-32000, message="not now", data={"a": 1})

    mcp, _ = server_with(ask)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode="legacy", elicitation_callback=refused) as client:
            with pytest.raises(MCPError) as caught:
                await client.call_tool("ask")
    assert (caught.value.code, caught.value.message) == (-32000, "not now")


async def test_a_malformed_answer_of_a_legacy_client_is_an_error_that_shows_no_content() -> None:
    async def nonsense(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"ok": "secret"})

    mcp, _ = server_with(ask)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode="legacy", elicitation_callback=nonsense) as client:
            with pytest.raises(MCPError) as caught:
                await client.call_tool("ask")
    assert caught.value.code == -32602
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("tool", ["ask", "sample"])
async def test_a_client_that_cannot_be_asked_gets_an_error_that_says_so(tool: str) -> None:
    mcp, _ = server_with(ask, sample)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp) as client:
            with pytest.raises(MCPError, match="cannot be asked: it declared neither elicitation") as caught:
                await client.call_tool(tool)
    assert caught.value.code == -32600


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize(("tool", "ability"), [("ask", "elicitation"), ("sample", "sampling")])
async def test_a_client_that_lacks_an_ability_gets_an_error_that_names_it(mode: str, tool: str, ability: str) -> None:
    mcp, _ = server_with(ask, sample)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode=mode, extensions=[TasksClient()]) as client:
            with pytest.raises(MCPError, match=f"Client does not support {ability} capability"):
                await client.call_tool(tool)


async def test_an_ability_that_lacks_in_one_of_several_questions_at_once_is_named_too() -> None:
    async def ask_in_group(task: ServerTaskContext) -> str:
        async with anyio.create_task_group() as group:
            group.start_soon(task.elicit, "A?", Publish)
        return "unreachable"

    mcp, _ = server_with(ask_in_group)
    async with connected(mcp) as client:
        with pytest.raises(TaskFailedError, match="Client does not support elicitation capability"):
            await client.call_tool("ask_in_group")


async def test_work_may_catch_that_it_cannot_ask_and_go_on() -> None:
    async def careful(task: ServerTaskContext) -> str:
        try:
            await task.elicit("Publish it?", Publish)
        except CapabilityError as error:
            return f"without asking: {error}"
        return "asked"

    mcp, _ = server_with(careful)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp) as client:
            assert text_of(await client.call_tool("careful")).startswith("without asking: The client cannot")


@pytest.mark.parametrize(("mode", "code", "data"), [("auto", -32021, MISSING), ("legacy", -32601, None)])
async def test_a_required_tool_says_what_a_client_is_missing(mode: str, code: int, data: object) -> None:
    """C2, B2: each protocol revision has its own error for it."""
    mcp, tasks = server_with(quick, required=True)
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode=mode) as client:
            with pytest.raises(MCPError) as caught:
                await client.call_tool("quick")
    assert caught.value.code == code
    assert caught.value.data == data
    assert (await tasks.runtime.list(owner=None)).records == ()


# The context


async def test_the_sdk_context_stands_beside_the_tasks() -> None:
    async def both(x: int, ctx: Context, task: ServerTaskContext) -> str:
        return f"{x} {ctx.request_context.params['name']} {task.task.status}"  # type: ignore[index]

    mcp, _ = server_with(both)
    async with connected(mcp) as client:
        (tool,) = (await client.list_tools()).tools
        assert set(tool.input_schema["properties"]) == {"x"}
        assert text_of(await client.call_tool("both", {"x": 1})) == "1 both working"


async def test_the_sdks_own_progress_inside_a_task_is_no_error() -> None:
    async def progress(ctx: Context, task: ServerTaskContext) -> str:
        await ctx.report_progress(1, 2, "half")
        return "done"

    mcp, _ = server_with(progress)
    async with connected(mcp) as client:
        assert text_of(await client.call_tool("progress")) == "done"


async def test_a_protocol_error_of_the_work_reaches_the_client_verbatim() -> None:
    async def fail(task: ServerTaskContext) -> str:
        raise ProtocolError(-32077, "no", {"deep": [{"a": None}]})

    mcp, _ = server_with(fail)
    async with connected(mcp) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.call_tool("fail")
        assert (caught.value.code, caught.value.message, caught.value.data) == (-32077, "no", {"deep": [{"a": None}]})
    with anyio.fail_after(PATIENCE):
        async with Client(mcp) as client:
            with pytest.raises(MCPError) as inline:
                await client.call_tool("fail")
    assert inline.value.error == caught.value.error


async def test_a_protocol_error_in_groups_reaches_the_client_verbatim() -> None:
    """What a task group of the work makes of it is no reason to mask it, in a task as in a plain call."""

    async def refuse(task: ServerTaskContext) -> str:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [ProtocolError(-32050, "used up", {"retryAfter": 30})])])

    mcp, _ = server_with(refuse)
    async with connected(mcp) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.call_tool("refuse")
    with anyio.fail_after(PATIENCE):
        async with Client(mcp) as client:
            with pytest.raises(MCPError) as inline:
                await client.call_tool("refuse")
    for error in (caught.value, inline.value):
        assert (error.code, error.message, error.data) == (-32050, "used up", {"retryAfter": 30})


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("data", [None, {"file": "\udcff"}], ids=["message", "data"])
async def test_a_protocol_error_that_no_transport_can_send_is_the_same_in_a_plain_call_and_in_a_task(
    data: Any, mode: Any
) -> None:
    """The SDK's stdio server ends when it sends a lone surrogate."""

    async def read(task: ServerTaskContext) -> str:
        raise ProtocolError(-32050, "No report" if data else "No report-\udcff.txt", data)  # logs need printable text

    mcp, _ = server_with(read)
    tasks = TasksClient()
    async with connected(mcp, tasks, mode=mode) as client:
        with pytest.raises(TaskFailedError) as caught:
            await (await start(tasks, client, "read")).wait()
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, mode=mode) as client:
            with pytest.raises(MCPError) as inline:
                await client.call_tool("read")
    expected = (-32050, "No report-\ufffd.txt") if data is None else (-32603, "Internal error")
    for error in (caught.value, inline.value):
        assert (error.code, error.message, error.data) == (*expected, None)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("options", [{}, {"promote_after": 0.0}], ids=["at once", "promoted"])
async def test_a_call_with_arguments_that_no_store_takes_is_refused(options: dict[str, Any], mode: Any) -> None:
    async def echo(task: ServerTaskContext, x: Any = None) -> str:
        return str(x)

    mcp, _ = server_with(echo, **options)
    tasks = TasksClient()
    async with connected(mcp, tasks, mode=mode) as client:
        with pytest.raises(MCPError, match=r"^Invalid arguments: text must be Unicode") as refused:
            await tasks.start(client, "echo", {"x": "\ud800"})
        assert refused.value.code == -32602
        assert text_of(await client.call_tool("echo", {"x": "a"})) == "a", "the next call is served"


async def test_a_call_whose_client_declares_what_no_store_takes_is_refused() -> None:
    async def echo(task: ServerTaskContext) -> str:
        return "echo"

    with served_over_http(lambda: server_with(echo)[0]) as url:
        async with http_client(url) as client:
            deep = json.loads("[" * 220 + "]" * 220)
            error = (await client.call("echo", capabilities={**DECLARED, "experimental": {"x": {"y": deep}}})).error
            assert error["code"] == -32602
            assert error["message"].startswith("Invalid capabilities: ")


async def test_l16_without_authentication_clients_of_2026_share_one_limit() -> None:
    gate = Gate()

    async def work(task: ServerTaskContext) -> str:
        return await gate.work()

    mcp, _ = server_with(work, settings=TaskSettings(shutdown_grace=0, max_tasks_per_owner=1))
    first, second = TasksClient(), TasksClient()
    async with connected(mcp, first) as one, connected(mcp, second) as other:
        task = await start(first, one, "work")
        with pytest.raises(MCPError, match=r"tasks at once \(at most 1\)"):
            await start(second, other, "work")
        gate.open.set()
        await task.wait()
        await (await start(second, other, "work")).wait()


# Low-level servers


async def test_a_context_over_the_sdks_own_session_tells_and_asks_the_client() -> None:
    """As the reference makes one: without `Tasks`, with the session of the request."""
    store = InMemoryTaskStore()
    handler = TaskResultHandler(store, store.message_queue)

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        record = await store.create_task(NewTask(ttl_ms=None))
        task = ServerTaskContext(
            task=record.task, store=store, session=ctx.session, queue=store.message_queue, handler=handler
        )
        await task.update_status("Asking")
        answer = await task.elicit("Publish it?", Publish)
        assert answer.action == "accept"
        await task.complete({"content": []})
        ended = await store.get_task(record.task_id)
        assert ended is not None
        return CallToolResult(content=[TextContent(text=f"{answer.data.ok} {ended.status}")])

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="ask", input_schema={"type": "object"})])

    server: Server[Any] = Server("by hand", on_call_tool=call_tool, on_list_tools=list_tools)
    with anyio.fail_after(PATIENCE):
        async with Client(server, mode="legacy", elicitation_callback=publish) as client:
            assert text_of(await client.call_tool("ask")) == "True completed"


def low_level_server(tasks: Tasks, work: Callable[[ServerTaskContext], Any], **options: Any) -> Server[Any]:
    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        if params.name == "plain":
            return CallToolResult(content=[TextContent(text="plain")])
        return CallToolResult(content=[TextContent(text=await tasks.run(work, **options))])

    async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[types.Tool(name="work", input_schema={"type": "object"})])

    server: Server[Any] = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
    tasks.install(server)
    return server


async def test_a_low_level_server_runs_work_as_a_task() -> None:
    server = low_level_server(Tasks(), ask)
    tasks = TasksClient()
    async with connected(server, tasks, elicitation_callback=publish) as client:
        assert text_of(await client.call_tool("plain")) == "plain"
        task = await start(tasks, client, "work")
        assert text_of(await task.wait()) == "accept: True"
    assert EXTENSION_ID in server.extensions


async def test_a_low_level_server_runs_work_within_the_call_of_a_client_that_takes_no_tasks() -> None:
    with anyio.fail_after(PATIENCE):
        async with Client(low_level_server(Tasks(), quick)) as client:
            assert text_of(await client.call_tool("work")) == "quick"
        async with Client(low_level_server(Tasks(), quick, required=True)) as client:
            with pytest.raises(MCPError) as caught:
                await client.call_tool("work")
    assert caught.value.data == MISSING


async def test_an_exception_in_a_low_level_task_shows_no_text() -> None:
    async def crash(task: ServerTaskContext) -> str:
        raise ValueError("secret")

    async with connected(low_level_server(Tasks(), crash)) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.call_tool("work")
    assert caught.value.code == -32603
    assert "secret" not in str(caught.value.error)


# Wiring


async def test_constructor_arguments_do_without_install() -> None:
    tasks = Tasks()
    mcp = MCPServer("wired", extensions=[tasks], middleware=[tasks.middleware], lifespan=tasks.lifespan())

    @mcp.tool()
    @tasks.task()
    async def wired(task: ServerTaskContext) -> str:
        return await ask(task)

    async with connected(mcp, elicitation_callback=publish) as client:
        assert text_of(await client.call_tool("wired")) == "accept: True"


@pytest.mark.parametrize("whole", [True, False])
async def test_a_server_that_lacks_the_middleware_is_told_once_what_it_does_without(
    whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Tasks()
    middleware = [tasks.middleware] if whole else []
    mcp = MCPServer("halfway", extensions=[tasks], middleware=middleware, lifespan=tasks.lifespan())
    mcp.tool(name="quick")(tasks.task()(quick))
    async with connected(mcp, TasksClient()) as client:
        for _ in range(2):
            assert not (await client.call_tool("quick")).is_error
    assert caplog.text.count("middleware=[tasks.middleware] is missing") == (not whole)


@pytest.mark.parametrize("wiring", ["constructor", "install"])
async def test_work_ends_before_the_lifespan_of_the_user_closes(wiring: str) -> None:
    events: list[str] = []
    gate = Gate()

    @asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[dict[str, str]]:
        yield {"database": "open"}
        events.append("closed")

    async def work(ctx: Context, task: ServerTaskContext) -> str:
        state = ctx.request_context.lifespan_context
        assert state == {"database": "open"}
        try:
            return await gate.work()
        finally:
            events.append("work ended")

    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.01))
    if wiring == "install":
        mcp: MCPServer[Any] = MCPServer("wired", lifespan=lifespan)
        tasks.install(mcp)
    else:
        mcp = MCPServer("wired", extensions=[tasks], lifespan=tasks.lifespan(lifespan))
    mcp.tool()(tasks.task()(work))
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks) as client:
        task = await start(client_tasks, client, "work")
        await gate.entered.wait()
    assert events == ["work ended", "closed"]
    record = await tasks.runtime.store.get_task(task.task_id)
    assert record is not None
    assert record.status == "failed"


async def test_work_that_ends_within_the_grace_period_completes_its_task() -> None:
    begun = anyio.Event()

    async def finish_soon(task: ServerTaskContext) -> str:
        begun.set()
        await anyio.sleep(0.05)
        return "finished"

    mcp, tasks = server_with(finish_soon, settings=TaskSettings(shutdown_grace=PATIENCE))
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks) as client:
        task = await start(client_tasks, client, "finish_soon")
        await begun.wait()
    record = await tasks.runtime.store.get_task(task.task_id)
    assert record is not None
    assert record.status == "completed"


async def test_tasks_outlive_their_client_while_the_server_runs() -> None:
    gate = Gate()
    mcp, tasks = server_with(gate.tool(), ask)
    client_tasks = TasksClient()
    async with tasks:
        async with connected(mcp, client_tasks, elicitation_callback=publish) as client:
            task_id = (await start(client_tasks, client, "wait")).task_id
            asking_id = (await start(client_tasks, client, "ask")).task_id
            await gate.entered.wait()
        gate.open.set()
        async with connected(mcp, client_tasks, elicitation_callback=publish) as client:
            assert text_of(await client_tasks.resume(client, task_id).wait()) == "done"
            assert text_of(await client_tasks.resume(client, asking_id).wait()) == "accept: True"


async def test_l13_a_client_that_leaves_touches_no_task_of_another() -> None:
    gate = Gate()
    mcp, _ = server_with(gate.tool(), ask, settings=TaskSettings(shutdown_grace=0.01))
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks, elicitation_callback=publish) as staying:
        mine = await start(client_tasks, staying, "wait")
        async with connected(mcp, client_tasks, elicitation_callback=publish) as leaving:
            await start(client_tasks, leaving, "wait")
            await start(client_tasks, leaving, "ask")
        gate.open.set()
        assert text_of(await mine.wait()) == "done"
        assert text_of(await staying.call_tool("ask")) == "accept: True"


async def test_tasks_outlive_their_client_while_another_client_stays() -> None:
    gate = Gate()
    mcp, tasks = server_with(gate.tool(), settings=TaskSettings(shutdown_grace=0.01))
    client_tasks = TasksClient()
    async with tasks, connected(mcp, client_tasks) as staying:
        async with connected(mcp, client_tasks) as leaving:
            task_id = (await start(client_tasks, leaving, "wait")).task_id
            await gate.entered.wait()
        gate.open.set()
        assert text_of(await client_tasks.resume(staying, task_id).wait()) == "done"


async def test_two_servers_in_one_process_keep_apart() -> None:
    (first, first_tasks), (second, _) = server_with(quick), server_with(quick)
    client_tasks = TasksClient()
    async with connected(first, client_tasks) as one, connected(second, client_tasks) as other:
        task = await start(client_tasks, one, "quick")
        assert text_of(await task.wait()) == "quick"
        with pytest.raises(UnknownTaskError):
            await client_tasks.resume(other, task.task_id).get()

    @second.tool()
    async def borrowed() -> str:
        return await first_tasks.run(quick)

    async with connected(second) as other:
        assert (await other.call_tool("borrowed")).is_error


async def test_a_client_in_the_same_process_has_a_lifespan_of_its_own() -> None:
    mcp, tasks = server_with(quick)
    async with connected(mcp):
        assert tasks.runtime.is_open
    assert not tasks.runtime.is_open
    async with tasks:
        async with connected(mcp):
            pass
        assert tasks.runtime.is_open


async def test_work_asks_by_hand_to_run_again_and_hears_whether_it_will() -> None:
    granted: list[tuple[int, bool]] = []

    async def again(task: ServerTaskContext) -> str:
        with pytest.raises(ValueError, match="after must not be negative"):
            task.run_again(after=-1)
        granted.append((task.attempt, task.run_again(after=0)))
        return f"attempt {task.attempt}"

    mcp, tasks = server_with(again, rerunnable=Rerun(max_attempts=3))
    client_tasks = TasksClient()
    async with tasks, connected(mcp, client_tasks) as client:
        task = await start(client_tasks, client, "again")
        assert text_of(await task.wait()) == "attempt 3"
    assert granted == [(1, True), (2, True), (3, False)]


async def test_a_server_serves_again_after_its_last_client_left() -> None:
    mcp, _ = server_with(quick)
    for _ in range(2):
        async with connected(mcp) as client:
            assert text_of(await client.call_tool("quick")) == "quick"


# Cancelling


async def test_cancelling_stops_the_work_and_runs_its_clean_up() -> None:
    gate = Gate()
    mcp, _ = server_with(gate.tool())
    tasks = TasksClient()
    async with connected(mcp, tasks) as client:
        task = await start(tasks, client, "wait")
        await gate.entered.wait()
        await task.cancel()
        await gate.ended.wait()
        assert len(gate.left) == 1
        assert "Cancelled" in gate.left[0]
        snapshot = await task.get()
        assert snapshot.status == "cancelled"
        await task.cancel()
        assert await task.get() == snapshot


async def test_cancelling_releases_a_question() -> None:
    """The work sees its cancellation, and no error of the question, although both come at once."""
    released = anyio.Event()
    raised: list[BaseException] = []

    async def asking(task: ServerTaskContext) -> str:
        try:
            return await ask(task)
        except BaseException as error:
            raised.append(error)
            raise
        finally:
            released.set()

    mcp, tasks = server_with(asking)
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks, elicitation_callback=publish) as client:
        task = await start(client_tasks, client, "asking")
        while (await task.get()).status != "input_required":  # noqa: ASYNC110
            await anyio.sleep(0.001)
        (key,) = (await task.get()).input_requests
        await task.cancel()
        await released.wait()
        assert isinstance(raised[0], anyio.get_cancelled_exc_class())
        snapshot = await task.get()
        assert snapshot.status == "cancelled"
        assert snapshot.input_requests == {}
        await task.update({key: {"action": "accept", "content": {"ok": True}}})
        assert (await task.get()) == snapshot
    assert await tasks.runtime.queue.outstanding(task.task_id) == ()


async def test_work_that_ignores_its_cancellation_changes_nothing_afterwards() -> None:
    went_on = anyio.Event()

    async def stubborn(task: ServerTaskContext) -> str:
        try:
            await anyio.sleep_forever()
        except BaseException:
            with anyio.CancelScope(shield=True):
                with pytest.raises(InvalidTransitionError):
                    await task.update_status("still here")
                with pytest.raises(InvalidTransitionError):
                    await task.complete({"content": []})
                went_on.set()
        return "late"

    mcp, _ = server_with(stubborn)
    tasks = TasksClient()
    async with connected(mcp, tasks) as client:
        task = await start(tasks, client, "stubborn")
        await task.cancel()
        await went_on.wait()
        with pytest.raises(TaskCancelledError):
            await task.wait()


async def test_cancelling_a_call_before_there_is_a_task_stops_it_and_leaves_none() -> None:
    gate = Gate()
    tasks = Tasks()
    mcp = MCPServer("slow start", extensions=[tasks], lifespan=tasks.lifespan())

    @mcp.tool()
    async def prepare() -> str:
        await gate.work()
        return await tasks.run(quick)

    async with connected(mcp) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "prepare")
            await gate.entered.wait()
            group.cancel_scope.cancel()
        await gate.ended.wait()
        assert "Cancelled" in gate.left[0]
        assert (await tasks.runtime.list(owner=None)).records == ()


# Time


async def test_l7_work_is_stopped_at_its_deadline_and_its_end_can_be_fetched_and_then_it_is_gone() -> None:
    clock = FakeClock()
    gate = Gate()
    settings = TaskSettings(retention_ms=60_000)
    async with InMemoryTaskStore(clock=clock) as store:
        mcp, _ = server_with(gate.tool(), store=store, settings=settings, ttl_ms=10_000)
        tasks = TasksClient()
        async with connected(mcp, tasks) as client:
            task = await start(tasks, client, "wait")
            await gate.entered.wait()
            clock.advance(9.9)
            await gate.ended.wait()
            with pytest.raises(TaskFailedError, match="time to live"):
                await task.wait()
            assert (await task.get()).ttl_ms == 9_900 + 60_000
            clock.advance(60)
            with pytest.raises(UnknownTaskError) as expired:
                await task.get()
            with pytest.raises(UnknownTaskError) as unknown:
                await tasks.resume(client, "no-such-task").get()
            assert expired.value.error == unknown.value.error
            with pytest.raises(UnknownTaskError):
                await task.cancel()


# Ending a task from outside


async def test_a_detached_task_is_ended_by_its_id() -> None:
    ids: list[str] = []

    async def hand_over(task: ServerTaskContext) -> str:
        task.detach()
        ids.append(task.task_id)
        return "not seen by any client"

    mcp, tasks = server_with(hand_over)
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks) as client:
        by_text, by_result, by_error, by_client = [await start(client_tasks, client, "hand_over") for _ in range(4)]
        while len(ids) < 4:
            await anyio.lowlevel.checkpoint()
        assert (await by_text.get()).status == "working"
        await tasks.complete(by_text.task_id, "from outside")
        await tasks.complete(by_result.task_id, CallToolResult(content=[], structured_content={"result": "s"}))
        await tasks.fail(by_error.task_id, "it broke")
        await by_client.cancel()
        result = await by_text.wait()
        assert (text_of(result), result.structured_content) == ("from outside", {"result": "from outside"})
        assert (await by_result.wait()).structured_content == {"result": "s"}
        with pytest.raises(TaskFailedError, match="it broke"):
            await by_error.wait()
        with pytest.raises(TaskCancelledError):
            await by_client.wait()
        for task in (by_text, by_error, by_client):
            with pytest.raises(InvalidTransitionError):
                await tasks.complete(task.task_id, "again")
        with pytest.raises(TaskNotFoundError):
            await tasks.fail("no-such-task", "x")
        with pytest.raises(ValueError, match="result"):
            await tasks.complete(by_text.task_id, ["no result"])


async def test_completing_a_task_from_outside_stops_its_work() -> None:
    gate = Gate()
    mcp, tasks = server_with(gate.tool())
    client_tasks = TasksClient()
    async with connected(mcp, client_tasks) as client:
        task = await start(client_tasks, client, "wait")
        await gate.entered.wait()
        await tasks.complete(task.task_id, "sooner")
        await gate.ended.wait()
        assert text_of(await task.wait()) == "sooner"


async def test_work_that_completes_its_own_task_gives_the_client_that_result() -> None:
    async def complete(task: ServerTaskContext) -> str:
        await task.complete({"content": [{"type": "text", "text": "mine"}], "structuredContent": {"result": "mine"}})
        return "dropped"

    mcp, _ = server_with(complete)
    async with connected(mcp) as client:
        assert text_of(await client.call_tool("complete")) == "mine"


# Wrong use


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ttl_ms", 0),
        ("ttl_ms", -1),
        ("poll_interval_ms", 0),
        ("poll_interval_ms", -5),
        ("promote_after", -0.1),
        ("promote_after", float("nan")),
    ],
)
def test_a_nonsensical_option_is_refused_by_name(option: str, value: Any) -> None:
    _, tasks = server_with()
    with pytest.raises(ValueError, match=option):
        tasks.tool(**{option: value})(quick)
    with pytest.raises(ValueError, match=option):
        tasks.task(**{option: value})


@pytest.mark.parametrize(
    "option",
    [{"principal": "alice"}, {"principal": ""}, {"credentials": "secret"}, {"inbox": -1}, {"promote_after": -1}],
    ids=str,
)
def test_a_nonsensical_option_of_a_server_is_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        Tasks(**option)


async def test_a_nonsensical_option_of_run_is_refused_by_name() -> None:
    tasks = Tasks()
    async with connected(low_level_server(tasks, quick, ttl_ms=0)) as client:
        with pytest.raises(MCPError):
            await client.call_tool("work")
    with pytest.raises(ValueError, match="poll_interval_ms"):
        await tasks.run(quick, poll_interval_ms=0)


def test_installing_twice_is_refused() -> None:
    mcp, tasks = server_with()
    with pytest.raises(RuntimeError, match="installed already"):
        tasks.install(MCPServer("another"))
    with pytest.raises(RuntimeError, match="has the extension"):
        Tasks().install(mcp)
    given = Tasks()
    MCPServer("given", extensions=[given])
    with pytest.raises(RuntimeError, match="installed already"):
        given.install(MCPServer("another"))


async def no_tool(ctx: Any, params: CallToolRequestParams) -> CallToolResult:
    raise AssertionError("not called")


def test_tool_before_install_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"needs install\(mcp\)"):
        Tasks().tool()
    low = Tasks()
    low.install(Server("low", on_call_tool=no_tool))
    with pytest.raises(RuntimeError, match=r"needs install\(mcp\)"):
        low.tool()


def test_tool_without_parentheses_says_what_to_do() -> None:
    _, tasks = server_with()
    with pytest.raises(TypeError, match=r"@tasks.tool\(\)"):
        tasks.tool(quick)  # type: ignore[arg-type]


def test_two_context_parameters_are_refused() -> None:
    async def confused(a: ServerTaskContext, b: ServerTaskContext) -> str:
        return ""

    _, tasks = server_with()
    with pytest.raises(TypeError, match=r"More than one parameter is a ServerTaskContext: a, b"):
        tasks.tool()(confused)


async def test_a_low_level_server_without_its_tool_handler_is_refused_and_left_alone() -> None:
    server: Server[Any] = Server("too early")
    tasks = Tasks()
    with pytest.raises(RuntimeError, match="tools/call handler already"):
        tasks.install(server)
    assert server.extensions == {}
    server.add_request_handler("tools/call", CallToolRequestParams, no_tool)
    tasks.install(server)


async def test_run_outside_a_tool_call_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="in a tool call of the server"):
        await Tasks().run(quick)


async def test_a_request_that_a_tool_makes_of_its_own_server_is_no_part_of_its_call() -> None:
    mcp, tasks = server_with()

    async def work(task: ServerTaskContext) -> str:
        return "run"

    @mcp.resource("test://work")
    async def runs_work() -> str:
        try:
            return await tasks.run(work)
        except RuntimeError as error:
            return str(error)

    @mcp.tool()
    async def reads() -> str:
        async with Client(mcp) as client:
            (content,) = (await client.read_resource("test://work")).contents
        assert isinstance(content, types.TextResourceContents)
        return f"{content.text}; {await tasks.run(work)}"

    async with connected(mcp) as client:
        assert text_of(await client.call_tool("reads")).startswith("run() works in a tool call of the server")
    async with Client(mcp) as client:
        assert text_of(await client.call_tool("reads")).endswith("; run")


@pytest.mark.parametrize("server", [MCPServer, Server])
async def test_a_lifespan_that_was_handed_over_uncalled_says_how_to_write_it(server: Any) -> None:
    with pytest.raises(TypeError, match=r"lifespan=tasks\.lifespan\(\)"):
        async with connected(server("test", lifespan=Tasks().lifespan)):
            pass


async def test_a_server_whose_lifespan_was_not_wrapped_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    mcp = MCPServer("unwrapped", extensions=[tasks])
    mcp.tool(name="quick")(tasks.task()(quick))
    async with connected(mcp) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("quick")
    assert caught.value.code == -32603
    assert "have the server enter its lifespan" in caplog.text


# Many at once

MANY = 1_000 if IS_LONG else 250


async def test_hundreds_of_tasks_at_once_are_all_answered() -> None:
    mcp, tasks = server_with(ask, poll_interval_ms=1_000)
    everybody_asks = anyio.Event()
    asked = 0

    async def answer(context: Any, params: Any) -> ElicitResult:
        nonlocal asked
        asked += 1
        if asked == MANY:
            everybody_asks.set()
        await everybody_asks.wait()
        return ElicitResult(action="accept", content={"ok": True})

    texts: list[str] = []
    async with Client(mcp, extensions=[TasksClient()], elicitation_callback=answer) as client:

        async def call() -> None:
            texts.append(text_of(await client.call_tool("ask")))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(MANY):
                    group.start_soon(call)
    assert texts == ["accept: True"] * MANY
    assert asked == MANY
    assert tasks.runtime.statistics().running == frozenset()


async def test_a_raw_client_over_the_same_streams_sees_the_same_tasks() -> None:
    mcp, _ = server_with(quick)
    async with memory_client(mcp) as client:
        assert (await client.until(await client.start("quick"), "completed"))["result"]["structuredContent"] == {
            "result": "quick"
        }


async def test_the_adapter_of_another_sdk_line_says_which_one_this_is_for() -> None:
    with pytest.raises(ImportError, match=r"needs mcp 1\.23 to 1\.30.*mcp<2.*mcp_v2"):
        importlib.import_module("mcp_task_runtime.adapters.mcp_v1")
