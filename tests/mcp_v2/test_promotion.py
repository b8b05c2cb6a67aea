"""`promote_after`: slow calls become tasks by themselves, quick ones stay ordinary calls (laws L6, L9 and L11)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp_types import (
    REQUEST_TIMEOUT,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel
from typing_extensions import Unpack

from mcp_task_runtime import Answer, InMemoryTaskStore, ProtocolError, ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import TaskFailedError, TasksClient, TaskSnapshot
from mcp_task_runtime.core.types import NewTask, NewTaskFields, TaskRecord
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.testing.clock import FakeClock
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import EXTENSION_ID, RawClient, accept
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

SECONDS = 5.0
"""After which calls become tasks, by a clock that stands still unless a test moves it."""

UNDECLARED: Wire = {"elicitation": {"form": {}}, "sampling": {}}


class Name(BaseModel):
    name: str


class GatedStore(InMemoryTaskStore):
    """A store whose `create_task` waits until the test lets it go on.

    Attributes:
        created: The tasks that were created.
        entered: Set when a task is being created.
        gate: What they wait for; set from the beginning.
        fails: Names of methods that fail.
    """

    def __init__(self) -> None:
        self.clock_of_test = FakeClock()
        super().__init__(clock=self.clock_of_test)
        self.created: list[str] = []
        self.fails: set[str] = set()
        self.entered = anyio.Event()
        self.gate = anyio.Event()
        self.gate.set()

    def close_gate(self) -> None:
        self.gate = anyio.Event()

    def _check(self, name: str) -> None:
        if name in self.fails:
            raise StoreUnavailableError("gone")

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        new = NewTask.of(new, fields)
        self.entered.set()
        await self.gate.wait()
        self._check("create_task")
        record = await super().create_task(new)
        self.created.append(record.task_id)
        return record

    async def delete_task(self, task_id: str) -> bool:
        self._check("delete_task")
        return await super().delete_task(task_id)

    def tasks(self) -> list[str]:
        """Return the ids of all tasks there are."""
        return list(self._entries)


class World:
    """A server of both kinds of tools, and how they are called.

    Attributes:
        go: What the slow tools wait for.
        entered: Set when a slow tool runs.
    """

    def __init__(self, *, of_server: float | None, of_tool: float | None, **options: Any) -> None:
        self.store = GatedStore()
        self.clock = self.store.clock_of_test
        self.mcp: MCPServer[Any] = MCPServer("promotion")
        self.tasks = Tasks(self.store, promote_after=of_server, settings=TaskSettings(shutdown_grace=0, **options))
        self.tasks.install(self.mcp)
        self.of_tool = of_tool
        self.go = anyio.Event()
        self.entered = anyio.Event()
        self.client: RawClient

    def add(self, function: Callable[..., Any]) -> None:
        """Make a tool of it, as this world's tools are."""
        if self.of_tool is None:
            self.mcp.tool()(function)
        else:
            self.tasks.tool(promote_after=self.of_tool)(function)

    def left(self) -> tuple[int, int, int]:
        """Count what is kept of calls that are over, besides ended tasks."""
        runtime = self.tasks.runtime
        return runtime.statistics().calls, len(runtime.statistics().running), self.store.statistics().mailboxes

    async def until_waiting(self) -> None:
        """Wait until the tool runs and the clock is watched."""
        await self.entered.wait()
        await anyio.wait_all_tasks_blocked()

    async def call_until_promoted(self, tool: str, arguments: Wire | None = None) -> str:
        """Call a tool that waits for `go`, let the time pass, and return its task."""
        task_ids: list[str] = []

        async def call() -> None:
            task_ids.append(await self.client.start(tool, arguments))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await self.until_waiting()
            assert task_ids == []
            self.clock.advance(SECONDS)
        return task_ids[0]


@asynccontextmanager
async def open_world(**options: Any) -> AsyncGenerator[World, None]:
    world = World(**options)

    async def quick(x: int = 1) -> int:
        return x + 1

    async def slow(x: int = 1) -> int:
        world.entered.set()
        await world.go.wait()
        return x + 1

    def in_a_thread(x: int = 1) -> int:
        return x + 1

    for function in (quick, slow, in_a_thread):
        world.add(function)
    with anyio.fail_after(PATIENCE):
        async with world.tasks:
            async with memory_client(world.mcp) as world.client:
                yield world
                await anyio.wait_all_tasks_blocked()
    assert world.left() == (0, 0, 0)
    assert world.clock.waiting == 0, "something still waits"


BY_SERVER = {"of_server": SECONDS, "of_tool": None}
BY_TOOL = {"of_server": None, "of_tool": SECONDS}
BY_BOTH = {"of_server": 100 * SECONDS, "of_tool": SECONDS}


@pytest.fixture(params=[BY_SERVER, BY_TOOL, BY_BOTH], ids=["server", "tool", "both"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[World, None]:
    """A world of plain tools, one of tools of tasks, and one in which a tool says something else than its server."""
    async with open_world(**request.param) as opened:
        yield opened


# --- quick and slow -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["quick", "in_a_thread"])
async def test_a_quick_call_stays_an_ordinary_call_and_leaves_no_task(world: World, tool: str) -> None:
    result = (await world.client.call(tool, {"x": 2})).result
    assert result["resultType"] == "complete"
    assert result["structuredContent"] == {"result": 3}
    assert world.store.tasks() == []
    assert world.left() == (0, 0, 0)
    created = len(world.store.created)
    world.clock.advance(100 * SECONDS)
    await anyio.wait_all_tasks_blocked()
    assert len(world.store.created) == created, "its timer is stopped"


async def test_a_slow_call_becomes_a_task_when_its_time_is_over_and_not_before(world: World) -> None:
    handles: list[Wire] = []

    async def call() -> None:
        handles.append((await world.client.call("slow", {"x": 2})).result)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await world.until_waiting()
        world.clock.advance(SECONDS - 0.1)
        await anyio.wait_all_tasks_blocked()
        assert handles == []
        world.clock.advance(0.1)
    (handle,) = handles
    assert handle["resultType"] == "task"
    task_id = handle["taskId"]
    assert (await world.client.get(task_id))["status"] == "working"
    world.go.set()
    task = await world.client.until(task_id, "completed")
    assert task["result"]["structuredContent"] == {"result": 3}
    assert world.store.tasks() == [task_id]


async def test_a_promoted_call_is_cancelled_like_any_task(world: World) -> None:
    """Law L9."""
    task_id = await world.call_until_promoted("slow")
    await world.client.cancel(task_id)
    assert (await world.client.get(task_id))["status"] == "cancelled"
    await anyio.wait_all_tasks_blocked()
    assert world.left() == (0, 0, 0)


async def test_a_promoted_call_that_fails_ends_as_the_plain_call_would(world: World) -> None:
    """Law L11 and wire rule C10."""

    async def breaks(how: str) -> str:
        world.entered.set()
        await world.go.wait()
        raise make_error(how)

    world.add(breaks)
    task_ids = {}
    for how in ERRORS:
        world.entered = anyio.Event()
        task_ids[how] = await world.call_until_promoted("breaks", {"how": how})
    world.go.set()
    for how, task_id in task_ids.items():
        task = await world.client.until(task_id, "completed", "failed")
        plain = await plain_reply(breaks, world, how)
        if "error" in plain:
            assert task["error"] == plain["error"]
        else:
            assert task["result"] == without_meta(plain["result"])


def without_meta(result: Wire) -> Wire:
    return {name: value for name, value in result.items() if name != "_meta"}


ERRORS = ["an exception", "a tool error", "a protocol error"]


def make_error(how: str) -> Exception:
    if how == "an exception":
        return RuntimeError("a secret")
    if how == "a tool error":
        return ToolError("it is Monday")
    return MCPError(-32050, "The quota is used up", {"retryAfterSeconds": 30})


async def plain_reply(function: Callable[..., Any], world: World, how: str) -> Wire:
    """Return what the same tool answers on a server that knows nothing of tasks."""
    mcp: MCPServer[Any] = MCPServer("plain")
    mcp.tool()(function)
    async with memory_client(mcp) as client:
        message = (await client.call(function.__name__, {"how": how})).message
    return {name: message[name] for name in ("result", "error") if name in message}


@pytest.mark.parametrize("how", ERRORS)
async def test_an_error_before_the_promotion_is_exactly_the_plain_tools(world: World, how: str) -> None:
    """Law L11."""

    async def breaks(how: str) -> str:
        raise make_error(how)

    world.add(breaks)
    message = (await world.client.call("breaks", {"how": how})).message
    plain = await plain_reply(breaks, world, how)
    if "error" in plain:
        assert message["error"] == plain["error"]
    else:
        assert without_meta(message["result"]) == without_meta(plain["result"])
    assert world.store.tasks() == []


@pytest.mark.parametrize("arguments", [{"x": "not a number"}, {"x": []}])
async def test_bad_arguments_before_the_promotion_are_exactly_the_plain_tools(world: World, arguments: Wire) -> None:
    message = (await world.client.call("quick", arguments)).message
    assert message["result"]["isError"] is True
    assert "quick" in message["result"]["content"][0]["text"]
    assert world.store.tasks() == []


async def test_a_library_error_of_a_quick_tool_of_tasks_reaches_the_client_verbatim() -> None:
    """Law L11, before the promotion as after it."""
    async with open_world(**BY_TOOL) as world:

        async def breaks(task: ServerTaskContext) -> str:
            raise ProtocolError(-32050, "The quota is used up", {"retryAfterSeconds": 30})

        world.add(breaks)
        error = (await world.client.call("breaks")).error
        assert error == {"code": -32050, "message": "The quota is used up", "data": {"retryAfterSeconds": 30}}
        assert world.store.tasks() == []


async def test_a_client_without_the_extension_waits_for_its_result(world: World) -> None:
    """Wire rule C2."""
    results: list[Wire] = []

    async def call() -> None:
        results.append((await world.client.call("slow", {"x": 2}, capabilities=UNDECLARED)).result)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await world.until_waiting()
        world.clock.advance(100 * SECONDS)
        await anyio.wait_all_tasks_blocked()
        assert results == []
        world.go.set()
    assert results[0]["structuredContent"] == {"result": 3}
    assert world.store.created == []


async def test_zero_seconds_promote_whatever_waits_at_all() -> None:
    async with open_world(of_server=0, of_tool=None) as world:
        task_id = await world.client.start("slow")
        world.go.set()
        await world.client.until(task_id, "completed")


async def test_the_tools_own_number_counts_before_the_servers() -> None:
    async with open_world(of_server=SECONDS, of_tool=10 * SECONDS) as world:
        handles: list[Wire] = []

        async def call() -> None:
            handles.append((await world.client.call("slow")).result)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await world.until_waiting()
            world.clock.advance(9 * SECONDS)
            await anyio.wait_all_tasks_blocked()
            assert handles == []
            world.clock.advance(SECONDS)
        assert handles[0]["resultType"] == "task"
        world.go.set()


@pytest.mark.parametrize("number", [-1, -0.001, float("nan"), float("inf"), 1e12])
async def test_a_number_out_of_range_is_refused_by_its_name(number: float, anyio_backend: str) -> None:
    with pytest.raises(ValueError, match="promote_after"):
        Tasks(promote_after=number)
    tasks = Tasks()
    mcp: MCPServer[Any] = MCPServer("x")
    tasks.install(mcp)
    with pytest.raises(ValueError, match="promote_after"):
        tasks.tool(promote_after=number)(make_error)
    with pytest.raises(ValueError, match="promote_after"):
        tasks.task(promote_after=number)


# --- asking, and what else goes through the session ---------------------------------------------------------------


async def test_a_question_makes_the_call_a_task_at_once(world: World) -> None:
    async def greet(ctx: Context) -> str:
        answer = await ctx.elicit("Who are you?", Name)
        return f"Hello, {answer.data.name}" if answer.action == "accept" else answer.action

    async def greet_of_task(task: ServerTaskContext) -> str:
        answer = await task.elicit("Who are you?", Name)
        return f"Hello, {answer.data.name}" if answer.action == "accept" else answer.action

    world.add(greet if world.of_tool is None else greet_of_task)
    for response, text in ((accept(name="Ada"), "Hello, Ada"), ({"action": "decline"}, "decline")):
        task_id = await world.client.start("greet" if world.of_tool is None else "greet_of_task")
        ((key, request),) = (await world.client.asked(task_id)).items()
        assert request["method"] == "elicitation/create"
        assert request["params"]["message"] == "Who are you?"
        await world.client.update(task_id, {key: response})
        task = await world.client.until(task_id, "completed")
        assert task["result"]["content"][0]["text"] == text


async def test_a_question_after_the_promotion_goes_to_the_task() -> None:
    async with open_world(**BY_SERVER) as world:

        async def greet(ctx: Context) -> str:
            world.entered.set()
            await world.go.wait()
            answer = await ctx.elicit("Who are you?", Name)
            return f"Hello, {answer.data.name}" if answer.action == "accept" else answer.action

        world.add(greet)
        task_id = await world.call_until_promoted("greet")
        world.go.set()
        (key,) = await world.client.asked(task_id)
        await world.client.update(task_id, {key: accept(name="Ada")})
        assert (await world.client.until(task_id, "completed"))["result"]["content"][0]["text"] == "Hello, Ada"


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_sampling_through_the_sdk_asks_through_the_task() -> None:
    async with open_world(**BY_SERVER) as world:

        async def write(ctx: Context) -> str:
            prompt = SamplingMessage(role="user", content=TextContent(text="Write."))
            message = await ctx.session.create_message([prompt], max_tokens=10)
            return message.content.text if isinstance(message.content, TextContent) else ""

        world.add(write)
        task_id = await world.client.start("write")
        ((key, request),) = (await world.client.asked(task_id)).items()
        assert request["method"] == "sampling/createMessage"
        answer = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "a haiku"}}
        await world.client.update(task_id, {key: answer})
        assert (await world.client.until(task_id, "completed"))["result"]["content"][0]["text"] == "a haiku"


async def test_two_questions_at_once_get_different_keys() -> None:
    """Wire rule C7."""
    async with open_world(**BY_SERVER) as world:

        async def ask_both(ctx: Context) -> str:
            names: dict[str, str] = {}

            async def ask(role: str) -> None:
                answer = await ctx.elicit(f"{role}?", Name)
                names[role] = answer.data.name if answer.action == "accept" else "?"

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "author")
                group.start_soon(ask, "editor")
            return f"{names['author']}, {names['editor']}"

        world.add(ask_both)
        task_id = await world.client.start("ask_both")
        questions = await world.client.asked(task_id, 2)
        answers = {"author?": "Ann", "editor?": "Eve"}
        await world.client.update(
            task_id, {key: accept(name=answers[q["params"]["message"]]) for key, q in questions.items()}
        )
        assert (await world.client.until(task_id, "completed"))["result"]["content"][0]["text"] == "Ann, Eve"
        assert len(world.store.created) == 1


async def test_a_question_that_is_not_answered_within_the_tools_own_time_limit_is_withdrawn() -> None:
    async with open_world(**BY_SERVER) as world:

        async def greet(ctx: Context) -> str:
            form = ElicitRequestFormParams(
                message="Who are you?", requested_schema={"type": "object", "properties": {}}
            )
            try:
                await ctx.session.send_request(ElicitRequest(params=form), ElicitResult, 0.05)
            except MCPError as error:
                return f"{error.code}"
            return ""

        world.add(greet)
        task_id = await world.client.start("greet")
        task = await world.client.until(task_id, "completed")
        assert task["result"]["content"][0]["text"] == str(REQUEST_TIMEOUT)
        assert await world.store.message_queue.outstanding(task_id) == ()


async def test_a_refusal_raises_the_sdks_error_in_the_tool_and_ends_the_task_with_it() -> None:
    """Laws L5 and L11: as with the SDK's own session."""
    caught: list[Exception] = []

    async with open_world(**BY_SERVER) as world:

        async def greet(ctx: Context) -> str:
            try:
                await ctx.elicit("Who are you?", Name)
            except Exception as error:
                caught.append(error)
                raise
            return ""

        world.add(greet)
        task_id = await world.client.start("greet")
        (key,) = await world.client.asked(task_id)
        await world.store.message_queue.answer(task_id, key, Answer.error(-32042, "not now", {"a": 1}))
        task = await world.client.until(task_id, "failed", "completed")
        assert isinstance(caught[0], MCPError)
        assert (caught[0].code, caught[0].error.data) == (-32042, {"a": 1})
        assert task["error"] == {"code": -32042, "message": "not now", "data": {"a": 1}}


async def test_a_client_that_cannot_be_asked_is_not_asked() -> None:
    """It would never end: say so, and do not make the call a task for it."""
    async with open_world(**BY_SERVER) as world:
        raised: list[Exception] = []

        async def greet(ctx: Context) -> str:
            try:
                await ctx.elicit("Who are you?", Name)
            except MCPError as error:
                raised.append(error)
            return "did not ask"

        world.add(greet)
        only_tasks: Wire = {"extensions": {EXTENSION_ID: {}}}
        result = (await world.client.call("greet", capabilities=only_tasks)).result
        assert result["resultType"] == "complete", result
        assert result["content"][0]["text"] == "did not ask"
        assert "elicitation" in str(raised[0])
        assert world.store.created == []


async def test_a_client_that_declared_nothing_cannot_be_asked_and_the_sdk_says_so_itself() -> None:
    async with open_world(**BY_SERVER) as world:
        raised: list[Exception] = []

        async def greet(ctx: Context) -> str:
            try:
                await ctx.elicit("Who are you?", Name)
            except NoBackChannelError as error:
                raised.append(error)
            return "did not ask"

        world.add(greet)
        result = (await world.client.call("greet", capabilities={})).result
        assert result["content"][0]["text"] == "did not ask"
        assert len(raised) == 1


@pytest.mark.parametrize("options", [BY_SERVER, BY_BOTH], ids=["server", "both"])
async def test_progress_goes_to_the_call_before_the_promotion_and_to_the_status_afterwards(
    options: dict[str, float | None], anyio_backend: str
) -> None:
    async with open_world(**options) as world:

        async def steps(ctx: Context) -> str:
            await ctx.report_progress(1, 3, "first")
            world.entered.set()
            await world.go.wait()
            await ctx.report_progress(2, 3, "second")
            reported.set()
            await end.wait()
            return "done"

        world.add(steps)
        reported, end = anyio.Event(), anyio.Event()
        shown: list[tuple[float, float | None, str | None]] = []
        results: list[Any] = []
        snapshots: list[str] = []

        async def show(progress: float, total: float | None, message: str | None) -> None:
            shown.append((progress, total, message))

        async def note(snapshot: TaskSnapshot) -> None:
            snapshots.append(snapshot.task_id)

        tasks_client = TasksClient(on_update=note)
        async with Client(world.mcp, extensions=[tasks_client]) as client, anyio.create_task_group() as group:

            async def call() -> None:
                results.append(await client.call_tool("steps", progress_callback=show))

            group.start_soon(call)
            await world.until_waiting()
            assert shown == [(1, 3, "first")]
            assert snapshots == [], "it is still an ordinary call"
            world.clock.advance(SECONDS)
            await anyio.wait_all_tasks_blocked()
            (task_id,) = world.store.created
            world.go.set()
            await reported.wait()
            record = await world.store.get_task(task_id)
            assert record is not None
            assert record.task.status_message == "second (2/3)"
            end.set()
        assert results[0].content[0].text == "done"
        assert shown == [(1, 3, "first")]


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
async def test_log_calls_do_no_harm_before_and_after_the_promotion(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world(**BY_SERVER) as world:

        async def logs(ctx: Context) -> str:
            await ctx.info("before")
            world.entered.set()
            await world.go.wait()
            await ctx.info("after")
            await ctx.session.send_tool_list_changed()
            return "done"

        world.add(logs)
        task_id = await world.call_until_promoted("logs")
        with caplog.at_level(logging.DEBUG):
            world.go.set()
            await world.client.until(task_id, "completed")
        assert caplog.text.count("A log message of a tool was dropped") == 1, "said once a call"


async def test_a_notification_of_the_connection_has_no_way_to_a_client_that_holds_a_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_world(**BY_SERVER) as world:

        async def notifies(ctx: Context) -> str:
            world.entered.set()
            await world.go.wait()
            await ctx.session.send_tool_list_changed()
            return "done"

        world.add(notifies)
        task_id = await world.call_until_promoted("notifies")
        with caplog.at_level(logging.DEBUG):
            world.go.set()
            await world.client.until(task_id, "completed")
        assert caplog.text.count("A notification of a tool was dropped") == 1


# --- cancelled, raced and shut down ---------------------------------------------------------------------------------


async def cancelled_call(world: World, tool: str, when: Callable[[], Awaitable[None]]) -> None:
    """Call a tool, and let the caller be cancelled when this has happened."""
    async with Client(world.mcp, extensions=[TasksClient()]) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, tool)
            await when()
            group.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()


async def test_a_caller_that_is_cancelled_before_the_promotion_stops_the_work_and_leaves_no_task(world: World) -> None:
    """Law L6."""
    stopped = anyio.Event()

    async def patient() -> str:
        world.entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return ""

    world.add(patient)
    await cancelled_call(world, "patient", world.until_waiting)
    assert stopped.is_set()
    assert world.left() == (0, 0, 0)
    for task_id in world.store.tasks():
        record = await world.store.get_task(task_id)
        assert record is not None
        assert record.status == "cancelled"
    assert world.store.tasks() == []


async def test_a_caller_that_is_cancelled_after_the_promotion_cancels_the_task(world: World) -> None:
    """Law L9: `TasksClient` cancels what it gives up."""

    async def promoted() -> None:
        await world.until_waiting()
        world.clock.advance(SECONDS)
        await anyio.wait_all_tasks_blocked()

    await cancelled_call(world, "slow", promoted)
    (task_id,) = world.store.tasks()
    assert (await world.client.get(task_id))["status"] == "cancelled"
    assert world.left() == (0, 0, 0)


@pytest.mark.parametrize("ending", ["returns", "raises"])
async def test_work_that_ends_while_its_task_is_created_is_an_ordinary_call(ending: str) -> None:
    """Law L6: the caller gets the result, and no task is left."""
    async with open_world(**BY_SERVER) as world:

        async def slow_ending() -> str:
            world.entered.set()
            await world.go.wait()
            if ending == "raises":
                raise MCPError(-32050, "no luck")
            return "done"

        world.add(slow_ending)
        world.store.close_gate()
        messages: list[Wire] = []

        async def call() -> None:
            messages.append((await world.client.call("slow_ending")).message)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await world.until_waiting()
            world.clock.advance(SECONDS)
            await world.store.entered.wait()
            world.go.set()
            await anyio.wait_all_tasks_blocked()
            assert len(messages) == 1, "it does not wait for the store"
            world.store.gate.set()
            await anyio.wait_all_tasks_blocked()
        if ending == "raises":
            assert messages[0]["error"] == {"code": -32050, "message": "no luck"}
        else:
            assert messages[0]["result"]["content"][0]["text"] == "done"
        assert len(world.store.created) == 1
        assert world.store.tasks() == []
        assert world.left() == (0, 0, 0)


async def test_a_caller_that_is_cancelled_while_its_task_is_created_leaves_none_that_lives() -> None:
    """Law L6."""
    async with open_world(**BY_SERVER) as world:
        world.store.close_gate()

        async def creating() -> None:
            await world.until_waiting()
            world.clock.advance(SECONDS)
            await world.store.entered.wait()

        await cancelled_call(world, "slow", creating)
        world.store.gate.set()
        await anyio.wait_all_tasks_blocked()
        for task_id in world.store.tasks():
            record = await world.store.get_task(task_id)
            assert record is not None
            assert record.status == "cancelled"
        assert world.left() == (0, 0, 0)


async def test_a_task_that_cannot_be_created_leaves_the_call_an_ordinary_one(caplog: pytest.LogCaptureFixture) -> None:
    """A store that is unavailable makes no slow tool fail."""
    async with open_world(**BY_SERVER) as world:
        world.store.fails = {"create_task"}
        results: list[Wire] = []

        async def call() -> None:
            results.append((await world.client.call("slow")).result)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await world.until_waiting()
            world.clock.advance(SECONDS)
            await anyio.wait_all_tasks_blocked()
            world.go.set()
        assert results[0]["structuredContent"] == {"result": 2}


async def test_a_quick_result_comes_back_although_its_task_cannot_be_removed() -> None:
    async with open_world(**BY_TOOL) as world:
        world.store.fails = {"delete_task"}
        result = (await world.client.call("quick")).result
        assert result["structuredContent"] == {"result": 2}
        assert world.left()[:2] == (0, 0)


@pytest.mark.parametrize("phase", ["before", "creating", "after"])
async def test_a_shutdown_ends_the_call_or_the_task(phase: str, anyio_backend: str) -> None:
    world = World(**BY_SERVER)

    async def slow() -> str:
        world.entered.set()
        await anyio.sleep_forever()
        return ""

    world.add(slow)
    messages: list[Wire] = []
    with anyio.fail_after(PATIENCE):
        async with memory_client(world.mcp) as client, anyio.create_task_group() as group:
            async with world.tasks:

                async def call() -> None:
                    messages.append((await client.call("slow")).message)

                group.start_soon(call)
                await world.until_waiting()
                if phase == "creating":
                    world.store.close_gate()
                if phase != "before":
                    world.clock.advance(SECONDS)
                    await anyio.wait_all_tasks_blocked()
                if phase == "creating":
                    world.store.gate.set()
                await world.tasks.runtime.drain()
    (message,) = messages
    if phase == "before":
        assert message["error"]["code"] == -32603
        assert world.store.tasks() == []
    else:
        (task_id,) = world.store.tasks()
        assert message["result"]["taskId"] == task_id
        record = await world.store.get_task(task_id)
        assert record is not None
        assert record.status in ("failed", "cancelled")
    assert world.left() == (0, 0, 0)


async def test_a_promoted_call_ends_with_the_servers_client_too(world: World) -> None:
    """The SDK's client gets results and errors of promoted calls as of plain ones."""

    async def breaks() -> str:
        world.entered.set()
        await world.go.wait()
        raise MCPError(-32050, "no luck", {"a": 1})

    world.add(breaks)

    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ada"})

    async with Client(world.mcp, extensions=[TasksClient()], elicitation_callback=answer) as client:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                with pytest.raises(TaskFailedError) as caught:
                    await client.call_tool("breaks")
                assert (caught.value.code, caught.value.message, caught.value.error.data) == (
                    -32050,
                    "no luck",
                    {"a": 1},
                )

            group.start_soon(call)
            await world.until_waiting()
            world.clock.advance(SECONDS)
            await anyio.wait_all_tasks_blocked()
            world.go.set()
