"""`TasksClient` on `mcp` 1.x: over the SDK's session, with our own server and with one that does as a script says."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import anyio
import pytest
from mcp import ClientSession, McpError, types
from mcp.server.fastmcp import FastMCP
from mcp.shared.memory import create_client_server_memory_streams

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.adapters.mcp_v1_client import (
    ClientStatistics,
    ClientTask,
    InvalidTaskResponseError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TasksClient,
    TaskSnapshot,
    UnknownTaskError,
)
from mcp_task_runtime.errors import TaskRuntimeError
from tests.mcp_v1.scenarios import World, add_tools, greet
from tests.mcp_v1.schemas import RELATED
from tests.mcp_v2.script import TASK_ID, Received, Wire
from tests.mcp_v2.scripted_legacy_server import ScriptedLegacyServer, result, task, tool
from tests.support.event_loops import in_virtual_time
from tests.support.low_level import low_level
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the SDK's streams, when a client leaves
]


def quick_client(**options: Any) -> TasksClient:
    """Return a client that makes no test wait longer than it must."""
    return TasksClient(**{"poll_bounds_ms": (5, 10), "retry_pause": 0.01, **options})


@pytest.mark.parametrize("name", ["request_timeout", "cancel_timeout"])
@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_client_with_a_limit_that_is_none_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive"):
        TasksClient(**{name: seconds})  # type: ignore[arg-type]  # one of the two


def text_of(answer: types.CallToolResult | ClientTask) -> str:
    assert isinstance(answer, types.CallToolResult)
    (block,) = answer.content
    assert isinstance(block, types.TextContent)
    return block.text


async def accept(context: Any, params: Any) -> types.ElicitResult | types.ErrorData:
    return types.ElicitResult(action="accept", content={"ok": True})


async def write(context: Any, params: Any) -> types.CreateMessageResult:
    content = types.TextContent(type="text", text="old pond")
    return types.CreateMessageResult(role="assistant", content=content, model="m")


def refusal(code: int, message: str, data: Any = None) -> McpError:
    return McpError(types.ErrorData(code=code, message=message, data=data))


# Our own server


@asynccontextmanager
async def world(**options: Any) -> AsyncGenerator[ClientSession, None]:
    mcp: FastMCP[Any] = FastMCP("world", log_level="CRITICAL")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05))
    tasks.install(mcp)
    mcp.tool()(greet)
    add_tools(World(tasks, None))  # type: ignore[arg-type]  # it connects nothing
    server = low_level(mcp)
    async with (
        tasks,
        create_client_server_memory_streams() as ((read, write_), served),
        anyio.create_task_group() as group,
    ):
        group.start_soon(lambda: server.run(*served, server.create_initialization_options()))
        callbacks = {"elicitation_callback": accept, "sampling_callback": write, **options}
        async with ClientSession(read, write_, **callbacks) as session:
            await session.initialize()
            with anyio.fail_after(PATIENCE):
                yield session
        group.cancel_scope.cancel()


def test_the_client_of_the_installed_line_is_this_one() -> None:
    client = import_module("mcp_task_runtime.client")
    assert client.TasksClient is TasksClient
    assert client.TaskError is TaskError


async def test_a_call_returns_the_result_whether_it_was_a_task_or_not() -> None:
    tasks = quick_client()
    async with world() as session:
        assert text_of(await tasks.call_tool(session, "greet", {"name": "Ada"})) == "Hello, Ada!"
        assert text_of(await tasks.call_tool(session, "double", {"x": 21})) == "42"
        assert text_of(await tasks.call_tool(session, "in_a_thread")) == "done in a thread"
        assert (await tasks.call_tool(session, "boom")).isError


async def test_questions_go_to_the_session_s_own_callbacks_b6() -> None:
    tasks = quick_client()
    async with world() as session:
        assert text_of(await tasks.call_tool(session, "ask")) == "Sure? accept True"
        assert text_of(await tasks.call_tool(session, "ask_two")) == "accept accept"
        assert text_of(await tasks.call_tool(session, "haiku")) == "old pond"


@in_virtual_time
async def test_a_user_may_take_longer_than_a_request() -> None:
    """While a callback runs, the session reads nothing: a look takes as long as the user."""

    async def ponder(context: Any, params: Any) -> types.ElicitResult:
        await anyio.sleep(0.4)
        return types.ElicitResult(action="accept", content={"ok": True})

    tasks = quick_client(request_timeout=0.1, max_failures=1)
    async with world(elicitation_callback=ponder) as session:
        assert text_of(await tasks.call_tool(session, "ask")) == "Sure? accept True"


async def test_the_error_of_a_task_is_raised_as_the_call_would_have_raised_it() -> None:
    tasks = quick_client()
    async with world() as session:
        with pytest.raises(TaskFailedError) as caught:
            await tasks.call_tool(session, "refuse")
        assert (caught.value.code, caught.value.data) == (-32050, {"retryAfter": 30})
        assert isinstance(caught.value, McpError)
        assert caught.value.error.code == -32050


async def test_a_cancelled_call_cancels_its_task(anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio" and tuple(map(int, version("anyio").split(".")[:2])) < (4, 7):
        pytest.skip("anyio before 4.7 loses what the SDK's session receives after a cancelled request")
    started: list[str] = []
    scope = anyio.CancelScope()

    async def on_update(snapshot: TaskSnapshot) -> None:
        started.append(snapshot.task_id)
        scope.cancel()

    tasks = quick_client(on_update=on_update)
    async with world() as session:
        with scope:
            await tasks.call_tool(session, "wait")
        assert scope.cancelled_caught
        assert tasks.unfinished == ()
        with pytest.raises(TaskCancelledError):
            await tasks.resume(session, started[0]).wait()


async def test_a_task_is_started_resumed_cancelled_and_listed() -> None:
    tasks = quick_client()
    async with world() as session:
        handle = await tasks.start(session, "wait", ttl_ms=61_000)
        assert isinstance(handle, ClientTask)
        again = tasks.resume(session, handle.task_id)
        assert (await again.get()).ttl_ms == 61_000
        assert [each.task_id async for each in tasks.list_tasks(session)] == [handle.task_id]
        await again.cancel()
        await again.cancel()
        assert [each.status async for each in handle.snapshots()] == ["cancelled"]
        with pytest.raises(TaskError, match="wait\\(\\)"):
            await again.update({})
        for method in (tasks.resume(session, "forgotten").get, tasks.resume(session, "forgotten").wait):
            with pytest.raises(UnknownTaskError):
                await method()
        with pytest.raises(ValueError, match="task_id"):
            tasks.resume(session, "")
        with pytest.raises(ValueError, match="ttl_ms"):
            await tasks.start(session, "wait", ttl_ms=0)


async def test_all_who_wait_for_a_task_get_its_result_and_the_user_is_asked_once() -> None:
    asked = 0

    async def count(context: Any, params: Any) -> types.ElicitResult:
        nonlocal asked
        asked += 1
        held.append(tasks.statistics())
        return types.ElicitResult(action="accept", content={"ok": True})

    tasks = quick_client()
    results: list[str] = []
    held: list[ClientStatistics] = []
    async with world(elicitation_callback=count) as session:
        handle = await tasks.start(session, "ask")
        assert isinstance(handle, ClientTask)

        async def wait() -> None:
            results.append(text_of(await tasks.resume(session, handle.task_id).wait()))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
        assert tasks.statistics() == ClientStatistics(followed=0)
    assert results == ["Sure? accept True"] * 3
    assert asked == 1
    assert held == [ClientStatistics(followed=1)]


# A server that does as a script says


def script(*looks: Wire | Exception) -> ScriptedLegacyServer:
    scripted = ScriptedLegacyServer(*looks)
    scripted.version = types.LATEST_PROTOCOL_VERSION  # `mcp` 1.23 has tasks under the revision before
    return scripted


@asynccontextmanager
async def connected(scripted: ScriptedLegacyServer, **options: Any) -> AsyncGenerator[ClientSession, None]:
    async with scripted.connect() as (read, write_), ClientSession(read, write_, **options) as session:
        await session.initialize()
        with anyio.fail_after(PATIENCE):
            yield session


async def test_a_server_without_tasks_is_called_plainly_and_has_none_to_resume() -> None:
    scripted = script()
    scripted.capabilities = {"tools": {}}
    tasks = quick_client()
    async with connected(scripted) as session:
        assert text_of(await tasks.call_tool(session, "work", {"x": 1})) == "at once"
        with pytest.raises(TaskError, match="has no tasks"):
            tasks.resume(session, TASK_ID)
        with pytest.raises(TaskError, match="lists no tasks"):
            tasks.list_tasks(session)
    assert "task" not in scripted.of("tools/call")[0].params


async def test_a_server_that_lists_no_tasks_is_not_asked_for_a_list() -> None:
    scripted = script()
    scripted.capabilities = {"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}}
    tasks = quick_client()
    async with connected(scripted) as session:
        with pytest.raises(TaskError, match="lists no tasks"):
            tasks.list_tasks(session)
        assert tasks.resume(session, TASK_ID).task_id == TASK_ID
    assert scripted.of("tasks/list") == []


async def test_a_task_call_says_what_it_is_and_nothing_more() -> None:
    scripted = script(task("completed"))
    tasks = quick_client()
    async with connected(scripted) as session:
        await tasks.start(session, "work", {"x": 1}, meta={"progressToken": "t"})
        await tasks.call_tool(session, "work", ttl_ms=5)
    first, second = scripted.of("tools/call")
    assert first.params == {"name": "work", "arguments": {"x": 1}, "task": {}, "_meta": {"progressToken": "t"}}
    assert second.params == {"name": "work", "task": {"ttl": 5}}


@pytest.mark.parametrize(("listed", "refused"), [("optional", "task"), ("forbidden", "plain")])
async def test_a_call_that_is_refused_for_its_mode_is_made_in_the_other(listed: str, refused: str) -> None:
    scripted = script(task("completed"))
    scripted.pages = [[tool(listed)]]

    async def reply(request: Received) -> None:
        if request.method == "tools/call" and ("task" in request.params) == (refused == "task"):
            scripted.pages = [[tool("optional")]]
            raise refusal(types.METHOD_NOT_FOUND, "wrong mode")

    scripted.reply = reply
    tasks = quick_client()
    async with connected(scripted) as session:
        expected = "at once" if refused == "task" else "done"
        assert text_of(await tasks.call_tool(session, "work")) == expected


async def test_the_stream_of_the_result_is_opened_when_input_is_required_and_once_b6() -> None:
    scripted = script(task(), task(), task("input_required"))

    async def reply(request: Received) -> Wire | None:
        if request.method != "tasks/result" or scripted.looks[0] != task("input_required"):
            return None
        response = await scripted.elicit()
        scripted.show(task("completed"))
        return result(response["result"]["action"])

    scripted.reply = reply
    tasks = quick_client()
    async with connected(scripted, elicitation_callback=accept) as session:
        assert text_of(await tasks.call_tool(session, "work")) == "accept"
    assert scripted.methods == ["tools/list", "tools/call", "tasks/result"]


async def test_requests_that_fail_for_a_moment_are_made_again() -> None:
    fault = refusal(types.INTERNAL_ERROR, "no")
    busy = refusal(types.INVALID_REQUEST, "Limit reached", {"retryAfterMs": 1})
    scripted = script(fault, busy, task("completed"))
    scripted.outcomes = [fault, busy, result()]
    tasks = quick_client()
    async with connected(scripted) as session:
        assert text_of(await tasks.call_tool(session, "work")) == "done"


@in_virtual_time
@pytest.mark.parametrize("read_timeout_seconds", [None, 0.05])
async def test_a_server_that_does_not_answer_does_not_hang_the_call(read_timeout_seconds: float | None) -> None:
    scripted = script()

    async def reply(request: Received) -> None:
        if request.method == "tasks/get":
            await anyio.sleep_forever()

    scripted.reply = reply
    tasks = quick_client(request_timeout=0.05 if read_timeout_seconds is None else 60)
    async with connected(scripted) as session:
        with pytest.raises(TaskError, match="timed out") as caught:
            await tasks.call_tool(session, "work", read_timeout_seconds=read_timeout_seconds)
        assert (caught.value.code, caught.value.task_id) == (-32001, TASK_ID)


@in_virtual_time
async def test_a_result_that_is_never_sent_does_not_hang_a_task_that_has_ended() -> None:
    scripted = script(task("failed"))
    scripted.outcomes = [None]
    tasks = quick_client(request_timeout=0.05)
    async with connected(scripted) as session:
        with pytest.raises(TaskError, match="tasks/result timed out") as caught:
            await tasks.call_tool(session, "work")
        assert type(caught.value) is TaskError


async def test_a_connection_that_is_lost_raises_that_it_was_and_another_session_finishes_the_task() -> None:
    scripted = script(task())
    tasks = quick_client()
    lost: list[TaskError] = []

    async def call(session: ClientSession) -> None:
        try:
            await tasks.call_tool(session, "work")
        except TaskError as closed:
            lost.append(closed)

    async with connected(scripted) as session, anyio.create_task_group() as group:
        group.start_soon(call, session)
        await scripted.looked()
        await scripted.hang_up()
    assert [(each.code, each.task_id) for each in lost] == [(types.CONNECTION_CLOSED, TASK_ID)]
    scripted.show(task("completed"))
    async with connected(scripted) as session:
        assert text_of(await tasks.resume(session, lost[0].task_id).wait()) == "done"


async def test_a_transport_that_ends_the_whole_session_leaves_the_task_named() -> None:
    """The SDK's streamable HTTP does when it cannot connect: the call is cancelled and can raise nothing."""
    scripted = script()

    async def refuse() -> None:
        await scripted.hang_up()
        raise ConnectionRefusedError

    async def stop(snapshot: TaskSnapshot) -> None:
        transport.start_soon(refuse)
        await anyio.sleep_forever()

    tasks = quick_client(on_update=stop)
    with pytest.RaisesGroup(ConnectionRefusedError, flatten_subgroups=True):
        async with anyio.create_task_group() as transport, connected(scripted) as session:
            await tasks.call_tool(session, "work")
    assert tasks.unfinished == (TASK_ID,)
    scripted.show(task("completed"))
    follower = quick_client()
    async with connected(scripted) as session:
        assert text_of(await follower.resume(session, TASK_ID).wait()) == "done"


@pytest.mark.parametrize(
    "broken", [{}, task("resting"), task(taskId="task-2"), task(createdAt="yesterday"), task(pollInterval="often")]
)
async def test_a_broken_task_is_an_invalid_response_and_is_cancelled(broken: Wire) -> None:
    scripted = script(broken)
    tasks = quick_client()
    async with connected(scripted) as session:
        with pytest.raises(InvalidTaskResponseError, match="tasks/get") as caught:
            await tasks.call_tool(session, "work")
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/list", "tools/call", "tasks/cancel"]


@pytest.mark.parametrize("broken", [{"contents": []}, result(_meta={RELATED: {"taskId": "task-2"}}), {}])
async def test_a_broken_result_is_an_invalid_response(broken: Wire) -> None:
    scripted = script(task("completed"))
    scripted.outcomes = [broken]
    tasks = quick_client()
    async with connected(scripted) as session:
        with pytest.raises(InvalidTaskResponseError, match="result"):
            await tasks.call_tool(session, "work")
    assert scripted.of("tasks/cancel") == [], "the task has ended"


async def test_fields_of_later_revisions_are_ignored() -> None:
    scripted = script(task(novelty=1), task("completed", novelty={"x": [1]}, resultType="complete"))
    scripted.outcomes = [result(resultType="novel", novelty=1)]
    tasks = quick_client()
    async with connected(scripted) as session:
        assert text_of(await tasks.call_tool(session, "work")) == "done"


async def test_a_task_that_was_given_up_and_could_not_be_cancelled_is_named_until_it_is_resumed() -> None:
    scripted = script()
    scripted.cancelled = refusal(types.INTERNAL_ERROR, "no")
    scope = anyio.CancelScope()

    async def cancel(snapshot: TaskSnapshot) -> None:
        scope.cancel()

    tasks = quick_client(on_update=cancel)
    async with connected(scripted) as session:
        with scope:
            await tasks.call_tool(session, "work")
        (task_id,) = tasks.unfinished
        tasks.resume(session, task_id)
        assert not tasks.unfinished


@pytest.mark.parametrize(
    "kind", [TaskError, TaskFailedError, TaskCancelledError, UnknownTaskError, InvalidTaskResponseError]
)
def test_an_error_of_a_task_is_an_error_of_the_sdk_and_of_this_library_and_survives_pickling(
    kind: type[TaskError],
) -> None:
    original = kind(-32000, "text", {"a": 1}, task_id="t")
    assert isinstance(original, McpError)
    assert isinstance(original, TaskRuntimeError)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is kind
    assert (copy.code, copy.message, copy.data, copy.task_id) == (-32000, "text", {"a": 1}, "t")
    assert str(copy) == "text"
