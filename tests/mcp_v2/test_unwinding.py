"""A call of a tool made with `tasks.tool()` ends its request when its work begins, and the work keeps nothing of it."""

from __future__ import annotations

import gc
import sys
import tracemalloc
import weakref
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.context import CallNext, ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context
from mcp.server.session import ServerSession
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ClientCapabilities,
    InputRequiredResult,
    RootsCapability,
    SamplingCapability,
)
from pydantic import BaseModel, Field
from typing_extensions import Unpack

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings, TaskStore, open_store
from mcp_task_runtime.client import TasksClient
from mcp_task_runtime.core.types import NewTask, NewTaskFields, TaskRecord
from mcp_task_runtime.server import Tasks
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import RawClient, accept, http_client
from tests.support.noted_connections import NotedConnections
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Name(BaseModel):
    name: str


class GatedStore(InMemoryTaskStore):
    """A store whose `create_task` waits until a test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = anyio.Event()
        self.gate = anyio.Event()
        self.created: list[str] = []

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        self.entered.set()
        await self.gate.wait()
        record = await super().create_task(new)
        self.created.append(record.task_id)
        return record


class Large(BaseModel):
    """Stands for what takes much memory."""

    text: str


def server_with(*functions: Any, store: TaskStore | None = None) -> tuple[MCPServer[Any], Tasks]:
    mcp: MCPServer[Any] = MCPServer("unwinding")
    tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0))
    tasks.install(mcp)
    for function in functions:
        tasks.tool()(function)
    return mcp, tasks


def sessions() -> list[ServerSession]:
    """Return what lives of the SDK's sessions."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is ServerSession]


def of_calls() -> list[object]:
    """Return what lives of requests for tools."""
    gc.collect()
    return [
        each
        for each in gc.get_objects()
        if isinstance(each, CallToolRequestParams)
        or (isinstance(each, ServerRequestContext) and each.method == "tools/call")
    ]


async def until_asked(client: RawClient, task_id: str) -> None:
    while not await client.asked(task_id):
        pass


async def test_work_that_waits_keeps_nothing_of_its_request() -> None:
    async def asks(topic: str, task: ServerTaskContext) -> str:
        return (await task.elicit(f"{topic}?", Name)).action

    async def asks_with_context(topic: str, ctx: Context, task: ServerTaskContext) -> str:
        return (await task.elicit(f"{topic} {ctx.request_id}?", Name)).action

    mcp, tasks = server_with(asks, asks_with_context)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            kept = len(of_calls())
            await until_asked(client, await client.start("asks", {"topic": "bees"}))
            assert len(of_calls()) <= kept  # fewer where another test of this process left some
            # Unless the author's function asked for it.
            await until_asked(client, await client.start("asks_with_context", {"topic": "bees"}))
            assert len(of_calls()) > kept


async def test_arguments_that_work_needs_at_its_beginning_alone_are_not_kept_while_it_waits() -> None:
    kept: list[weakref.ref[Large]] = []

    async def reads(large: Large, task: ServerTaskContext) -> str:
        kept.append(weakref.ref(large))
        del large
        return (await task.elicit("Sure?", Name)).action

    mcp, tasks = server_with(reads)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            await until_asked(client, await client.start("reads", {"large": {"text": "bees"}}))
            gc.collect()
            assert [each() for each in kept] == [None]


@pytest.mark.parametrize(
    ("tool", "place", "before"),
    [
        ("asks", "memory://", 17),
        ("asks", "sqlite:///{}/tasks.db", 20),
        ("asks_through_context", "memory://", 25),
        ("adopted", "memory://", 29),
    ],
)
async def test_a_task_that_waits_on_a_question_takes_little_memory(
    tool: str, place: str, before: int, tmp_path: Path, anyio_backend_name: str
) -> None:
    """Less than it took before, and never the 50 KiB that the default limits reckon with.

    Frames are larger before Python 3.11, and so are the tasks of trio. `bench_waiting_tasks` has the exact figures.
    """
    is_lean = anyio_backend_name == "asyncio" and sys.version_info >= (3, 11)

    async def asks(topic: str, task: ServerTaskContext) -> str:
        return (await task.elicit(f"{topic}?", Name)).action

    async def asks_through_context(topic: str, ctx: Context) -> str:
        return (await ctx.elicit(f"{topic}?", Name)).action

    async def start(count: int) -> None:
        for task_id in [await client.start(tool, {"topic": f"bees {number}"}) for number in range(count)]:
            await until_asked(client, task_id)
        gc.collect()

    with anyio.fail_after(2 * PATIENCE):
        async with open_store(place.format(tmp_path)) as store:
            mcp, tasks = server_with(asks, asks_through_context, store=store)
            mcp.tool("adopted")(asks_through_context)
            tasks.adopt("adopted")
            async with tasks, memory_client(mcp) as client:
                await start(10)
                tracemalloc.start()
                try:
                    await start(40)
                    taken, _ = tracemalloc.get_traced_memory()
                finally:
                    tracemalloc.stop()
    assert taken / 40 < (before if is_lean else 50) * 1024


async def test_the_sdks_own_context_asks_and_reports_through_the_task() -> None:
    async def asks(ctx: Context, task: ServerTaskContext) -> str:
        await ctx.report_progress(1, 2)
        answer = await ctx.elicit("Who?", Name)
        return f"{answer.action} {task.task.status_message}"

    mcp, tasks = server_with(asks)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            task_id = await client.start("asks")
            (key,) = await client.asked(task_id)
            await client.update(task_id, {key: accept(name="Ada")})
            task = await client.until(task_id, "completed")
            assert task["result"]["content"][0]["text"] == "accept 1/2"


@pytest.mark.parametrize("tool", ["asks", "adopted"])
async def test_work_over_http_keeps_what_its_request_says_and_not_its_connection(tool: str) -> None:
    async def asks(ctx: Context) -> str:
        await ctx.elicit("Sure?", Name)
        request: Any = ctx.request_context.request
        return f"{request.headers['x-user']} {(await request.json())['method']}"

    mcp, tasks = server_with(asks)
    mcp.tool("adopted")(asks)
    tasks.adopt("adopted")
    app = NotedConnections(mcp.streamable_http_app(stateless_http=True, json_response=True))
    with anyio.fail_after(PATIENCE):
        async with (
            mcp.session_manager.run(),
            tasks,
            http_client("http://127.0.0.1:8000/mcp", app=app, headers={"x-user": "ada"}) as client,
        ):
            task_id = await client.start(tool)
            await until_asked(client, task_id)
            await app.until_gone(0)
            (key,) = await client.asked(task_id)
            await client.update(task_id, {key: accept(name="Ada")})
            task = await client.until(task_id, "completed")
    assert task["result"]["content"][0]["text"] == "ada tools/call"


async def test_work_that_asks_through_the_sdks_context_keeps_no_session_of_its_request() -> None:
    said: list[tuple[object, ...]] = []

    def say(ctx: Context) -> None:
        session = ctx.session
        sampling = ClientCapabilities(sampling=SamplingCapability())
        roots = ClientCapabilities(roots=RootsCapability())
        said.append(
            (
                session.client_params,
                ctx.client_capabilities,
                session.protocol_version,
                ctx.protocol_version,
                session.can_send_request,
                session.check_client_capability(sampling),
                session.check_client_capability(roots),
            )
        )

    async def asks(topic: str, ctx: Context) -> str:
        say(ctx)
        answers = [await ctx.elicit(f"{topic}?", Name), await ctx.elicit("Sure?", Name)]
        say(ctx)
        return " ".join(answer.action for answer in answers)

    mcp, tasks = server_with(asks)
    mcp.tool("adopted")(asks)
    tasks.adopt("adopted")
    with anyio.fail_after(2 * PATIENCE):
        async with tasks, memory_client(mcp) as client:
            for tool in ("asks", "adopted"):
                kept = weakref.WeakSet(sessions())
                started = [await client.start(tool, {"topic": f"bees {number}"}) for number in range(5)]
                for task_id in started:
                    await until_asked(client, task_id)
                # Each task has one of a class of ours; requests that were answered may still be ending.
                while [each for each in sessions() if each not in kept]:
                    await anyio.lowlevel.checkpoint()
                for task_id in started:
                    for _ in range(2):
                        await until_asked(client, task_id)
                        (key,) = await client.asked(task_id)
                        await client.update(task_id, {key: accept(name="Ada")})
                    task = await client.until(task_id, "completed")
                    assert task["result"]["content"][0]["text"] == "accept accept"
    before = said[0]
    assert before[0] is not None
    assert before[4:] == (False, True, False)
    assert all(each == before for each in said)


async def test_the_work_gets_the_arguments_as_the_sdk_has_checked_them() -> None:
    async def declared(
        size: Annotated[int, Field(ge=1)], task: ServerTaskContext, names: list[Name] | None = None
    ) -> str:
        return f"{size + 1} {names}"

    mcp, tasks = server_with(declared)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            task_id = await client.start("declared", {"size": "3", "names": '[{"name": "Ada"}]'})
            task = await client.until(task_id, "completed")
            assert task["result"]["content"][0]["text"] == "4 [Name(name='Ada')]"
            wrong = (await client.call("declared", {"size": 0})).result
            assert (wrong["resultType"], wrong["isError"]) == ("complete", True)


async def test_interceptors_inside_see_a_result_that_reaches_no_client() -> None:
    seen: list[Any] = []

    class Other(Extension):
        identifier = "example.com/other"

        async def intercept_tool_call(self, params: CallToolRequestParams, ctx: Any, call_next: CallNext) -> Any:
            seen.append(await call_next(ctx))
            return seen[-1]

    mcp: MCPServer[Any] = MCPServer("test", extensions=[Other()])
    tasks = Tasks()
    tasks.install(mcp)

    @tasks.tool()
    async def double(number: int, task: ServerTaskContext) -> int:
        return 2 * number

    tasks_client = TasksClient()
    async with Client(mcp, extensions=[tasks_client]) as client:
        with anyio.fail_after(PATIENCE):
            result = await client.call_tool("double", {"number": 21})
            wrong = await client.call_tool("double", {"number": "many"})
    assert (result.structured_content, wrong.is_error) == ({"result": 42}, True)
    left, refused = seen
    assert (type(left), left.request_state) == (InputRequiredResult, "The call has become a task")
    assert isinstance(refused, CallToolResult), "wrong arguments are a result of the call itself"


async def test_the_work_runs_once_whatever_it_ends_with() -> None:
    runs: list[str] = []

    async def tool(how: str, task: ServerTaskContext) -> int:
        runs.append(how)
        if how == "raises":
            raise ValueError("wrong")
        return 7 if how == "returns" else "no number"  # type: ignore[return-value]

    mcp, tasks = server_with(tool)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            for how in ("returns", "raises", "lies"):
                task = await client.until(await client.start("tool", {"how": how}), "completed")
                assert task["result"]["isError"] is (how != "returns")
    assert runs == ["returns", "raises", "lies"]


async def test_a_call_that_is_cancelled_while_its_task_is_created_leaves_none_that_lives() -> None:
    """Law L6: no client has its handle."""
    ran: list[str] = []

    async def tool(task: ServerTaskContext) -> str:
        ran.append(task.task_id)
        await anyio.sleep_forever()
        return "never"

    store = GatedStore()
    mcp, tasks = server_with(tool, store=store)
    with anyio.fail_after(PATIENCE):
        async with tasks, Client(mcp, extensions=[TasksClient()]) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "tool", {})
                await store.entered.wait()
                group.cancel_scope.cancel()
                store.gate.set()
            while not store.created:
                await anyio.lowlevel.checkpoint()
            record = await store.get_task(store.created[0])
            while record is not None and record.outcome is None:
                record = await store.wait_for_update(store.created[0], after=record.revision)
            assert record is not None
            assert record.status == "cancelled"


async def test_of_two_tools_with_one_name_the_first_one_runs_and_its_result_is_made_as_its_own() -> None:
    """As the SDK does; a result has the form that its tool has."""
    mcp, tasks = server_with()

    @tasks.tool(name="same")
    async def first(task: ServerTaskContext) -> int:
        return 1

    @tasks.tool(name="same")
    async def second(task: ServerTaskContext) -> dict[str, str]:
        return {"number": "two"}

    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            ended = await client.until(await client.start("same"), "completed")
            plain = (await client.call("same", capabilities={})).result
    assert ended["result"]["structuredContent"] == plain["structuredContent"] == {"result": 1}


async def test_a_tool_of_tasks_that_replaced_another_one_runs_as_itself() -> None:
    async def tool(task: ServerTaskContext) -> int:
        return 1

    mcp, tasks = server_with(tool)
    mcp.remove_tool("tool")

    @tasks.tool(name="tool")
    async def other(task: ServerTaskContext) -> dict[str, str]:
        return {"number": "two"}

    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            ended = await client.until(await client.start("tool"), "completed")
    assert ended["result"]["structuredContent"] == {"number": "two"}


async def test_a_tool_that_replaced_one_of_tasks_is_not_taken_for_it() -> None:
    async def tool(task: ServerTaskContext) -> str:
        return "of tasks"

    async def plain() -> str:
        return "plain"

    mcp, tasks = server_with(tool)
    mcp.remove_tool("tool")
    mcp.add_tool(plain, name="tool")
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            result = (await client.call("tool")).result
            assert (result["resultType"], result["content"][0]["text"]) == ("complete", "plain")
