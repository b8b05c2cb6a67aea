"""The client on servers of 2025-11-25: our own, and some that do as a script says."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, CreateMessageResult, ElicitResult, TextContent
from pydantic import BaseModel

from mcp_task_runtime import ProtocolError, ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import (
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
from tests.mcp_v1.schemas import RELATED
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.script import TASK_ID, Received, Wire
from tests.mcp_v2.scripted_legacy_server import (
    ScriptedLegacyServer,
    result,
    task,
    tool,
)
from tests.mcp_v2.scripted_server import error, quick_client, rare_client
from tests.mcp_v2.serve_legacy import make_server
from tests.support.event_loops import in_virtual_time
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

MAX_FAILURES = 3
SERVE = str(Path(__file__).with_name("serve_legacy.py"))


def text_of(answer: CallToolResult | ClientTask) -> str:
    assert isinstance(answer, CallToolResult)
    (block,) = answer.content
    assert isinstance(block, TextContent)
    return block.text


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"ok": True})


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", content=TextContent(text="old pond"), model="m")


# Our own server


class Choice(BaseModel):
    ok: bool


class World:
    """A server in this process, and what its tools have done."""

    def __init__(self) -> None:
        self.mcp = MCPServer("world")
        self.tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05))
        self.tasks.install(self.mcp)
        self.started = 0
        self.go_on = anyio.Event()
        self._add_tools()

    def _add_tools(self) -> None:
        @self.mcp.tool()
        def greet(name: str) -> str:
            return f"Hello, {name}!"

        @self.tasks.tool()
        async def double(x: int, task: ServerTaskContext) -> int:
            return 2 * x

        @self.tasks.tool(required=True)
        async def ask(question: str, task: ServerTaskContext) -> str:
            answer = await task.elicit(question, Choice)
            return f"{answer.action} {answer.data.ok if answer.action == 'accept' else None}"

        @self.tasks.tool(required=True)
        async def haiku(task: ServerTaskContext) -> str:
            message = {"role": "user", "content": {"type": "text", "text": "A haiku, please"}}
            return (await task.create_message([message], max_tokens=50)).text

        @self.tasks.tool(required=True)
        async def refuse(task: ServerTaskContext, code: int = -32050) -> str:
            raise ProtocolError(code, "The quota is used up", {"retryAfterMs": 30})

        @self.tasks.tool(required=True)
        async def crash(task: ServerTaskContext) -> str:
            raise RuntimeError("boom")

        @self.tasks.tool(required=True)
        async def wait(task: ServerTaskContext) -> str:
            self.started += 1
            await task.update_status("Waiting")
            await self.go_on.wait()
            return "went on"

    @asynccontextmanager
    async def connected(
        self, tasks_client: TasksClient | None = None, **options: Any
    ) -> AsyncGenerator[tuple[TasksClient, Client], None]:
        tasks_client = tasks_client or quick_client()
        async with self.tasks, Client(self.mcp, mode="legacy", extensions=[tasks_client], **options) as client:
            assert client.protocol_version == "2025-11-25"
            with anyio.fail_after(PATIENCE):
                yield tasks_client, client


async def start(tasks: TasksClient, client: Client, name: str = "work", **arguments: Any) -> ClientTask:
    started = await tasks.start(client, name, arguments)
    assert isinstance(started, ClientTask)
    return started


async def test_a_started_task_returns_what_the_call_would_have_returned_b5() -> None:
    async with World().connected() as (tasks, client):
        plain = await client.call_tool("double", {"x": 21})
        handle = await start(tasks, client, "double", x=21)
        waited = await handle.wait()
        assert (waited.content, waited.structured_content) == (plain.content, {"result": 42})
        assert (waited.meta or {})[RELATED] == {"taskId": handle.task_id}
        assert (await handle.get()).status == "completed"
        assert await handle.wait() == waited


async def test_a_tool_that_runs_as_no_task_is_called_plainly_b2() -> None:
    async with World().connected() as (tasks, client):
        assert text_of(await tasks.start(client, "greet", {"name": "Ada"})) == "Hello, Ada!"


async def test_call_tool_cannot_ask_for_a_task_so_a_tool_that_needs_one_refuses() -> None:
    async with World().connected() as (_, client):
        with pytest.raises(MCPError) as caught:
            await client.call_tool("haiku")
        assert caught.value.code == types.METHOD_NOT_FOUND


async def test_a_ttl_can_be_asked_for() -> None:
    async with World().connected() as (tasks, client):
        started = await tasks.start(client, "wait", ttl_ms=61_000)
        assert isinstance(started, ClientTask)
        assert (await started.get()).ttl_ms == 61_000
        with pytest.raises(ValueError, match="ttl_ms"):
            await tasks.start(client, "wait", ttl_ms=0)


async def test_questions_go_to_the_client_s_own_callbacks_b6() -> None:
    async with World().connected(elicitation_callback=accept, sampling_callback=write) as (tasks, client):
        assert text_of(await (await start(tasks, client, "ask", question="Sure?")).wait()) == "accept True"
        assert text_of(await (await start(tasks, client, "haiku")).wait()) == "old pond"


async def test_a_task_s_error_is_raised_as_the_call_would_have_raised_it() -> None:
    async with World().connected() as (tasks, client):
        for code in (-32050, types.INVALID_REQUEST, types.INTERNAL_ERROR, types.INVALID_PARAMS, -32000):
            handle = await start(tasks, client, "refuse", code=code)
            with pytest.raises(TaskFailedError) as caught:
                await handle.wait()
            assert (caught.value.code, caught.value.message) == (code, "The quota is used up")
            assert caught.value.data == {"retryAfterMs": 30}
            assert caught.value.task_id == handle.task_id


async def test_a_tool_error_is_a_result_of_a_failed_task_b7() -> None:
    async with World().connected() as (tasks, client):
        handle = await start(tasks, client, "crash")
        assert (await handle.wait()).is_error
        assert (await handle.get()).status == "failed"


async def test_a_cancelled_task_raises_that_it_was_and_cancelling_it_again_is_no_error_b8() -> None:
    async with World().connected() as (tasks, client):
        handle = await start(tasks, client, "wait")
        await handle.cancel()
        await handle.cancel()
        assert (await handle.get()).status == "cancelled"
        with pytest.raises(TaskCancelledError):
            await handle.wait()
        done = await start(tasks, client, "double", x=1)
        await done.wait()
        await done.cancel()
        assert (await done.get()).status == "completed"


async def test_a_task_that_is_unknown_is_unknown_to_every_method() -> None:
    async with World().connected() as (tasks, client):
        handle = tasks.resume(client, "forgotten")
        for method in (handle.get, handle.cancel, handle.wait):
            with pytest.raises(UnknownTaskError):
                await method()
        with pytest.raises(ValueError, match="task_id"):
            tasks.resume(client, "")


async def test_update_says_that_this_revision_has_no_such_request() -> None:
    async with World().connected() as (tasks, client):
        handle = await start(tasks, client, "wait")
        with pytest.raises(TaskError, match="wait\\(\\)"):
            await handle.update({"a": {"action": "accept"}})


async def test_cancelling_wait_leaves_the_task_alone_and_it_is_asked_anew() -> None:
    """The question is withdrawn with the stream that brought it, and comes again on the next."""
    asked: list[str] = []
    cancelled = anyio.Event()
    shown = anyio.Event()

    async def prompt(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        if len(asked) == 1:
            shown.set()
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.set()
        return ElicitResult(action="decline")

    async with World().connected(elicitation_callback=prompt) as (tasks, client):
        handle = await start(tasks, client, "ask", question="Sure?")
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await shown.wait()
            group.cancel_scope.cancel()
        await cancelled.wait()
        again = tasks.resume(client, handle.task_id)
        assert (await again.get()).status == "input_required"
        assert text_of(await again.wait()) == "decline None"
    assert asked == ["Sure?", "Sure?"]


async def test_a_started_task_s_result_is_checked_against_the_output_schema() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    scripted.pages = [[tool(outputSchema=schema)]]
    async with connected(scripted) as (tasks, client):
        scripted.outcomes = [result(structuredContent={"n": "one"})]
        with pytest.raises(RuntimeError, match="Invalid structured content"):
            await (await start(tasks, client)).wait()
        scripted.outcomes = [result(structuredContent={"n": 1})]
        assert (await (await start(tasks, client)).wait()).structured_content == {"n": 1}
        scripted.created = result(structuredContent={"n": "one"})
        with pytest.raises(RuntimeError, match="Invalid structured content"):
            await tasks.start(client, "work")


async def test_on_update_gets_the_handle_and_each_change_up_to_the_end() -> None:
    seen: list[tuple[str, str | None]] = []
    world = World()

    async def on_update(snapshot: TaskSnapshot) -> None:
        seen.append((snapshot.status, snapshot.status_message))
        if snapshot.status_message == "Waiting":
            world.go_on.set()

    async with world.connected(quick_client(on_update=on_update)) as (tasks, client):
        await (await start(tasks, client, "wait")).wait()
    assert seen[0][0] == "working"
    assert ("working", "Waiting") in seen
    assert seen[-1] == ("completed", None)
    assert len(set(seen)) == len(seen)


async def test_snapshots_yield_each_change_and_end_with_the_task() -> None:
    world = World()
    async with world.connected() as (tasks, client):
        handle = await start(tasks, client, "wait")
        statuses = []
        async for snapshot in handle.snapshots():
            statuses.append(snapshot.status)
            world.go_on.set()
        assert statuses[0] == "working"
        assert statuses[-1] == "completed"


async def test_the_tasks_of_a_session_are_listed_b9() -> None:
    async with World().connected() as (tasks, client):
        handles = [await start(tasks, client, "wait") for _ in range(3)]
        listed = [snapshot.task_id async for snapshot in tasks.list_tasks(client)]
        assert sorted(listed) == sorted(handle.task_id for handle in handles)


async def test_a_change_that_is_told_is_looked_at_without_waiting_for_the_next_poll_b10() -> None:
    scripted = ScriptedLegacyServer(task())
    tasks = rare_client()
    async with connected(scripted, tasks) as (_, client), anyio.create_task_group() as group:
        handle = tasks.resume(client, TASK_ID)
        group.start_soon(handle.wait)
        await scripted.saw("tasks/get")
        scripted.show(task("completed"))
        await scripted.notify("notifications/tasks/status", task("completed", taskId="another"))
        await scripted.notify("notifications/tasks/status", {"nonsense": True})
        await anyio.wait_all_tasks_blocked()
        assert len(scripted.of("tasks/get")) == 1
        await scripted.notify("notifications/tasks/status", task("completed"))
    assert tasks.statistics() == ClientStatistics(followed=0)


async def test_over_stdio_a_task_is_followed_to_its_result() -> None:
    parameters = StdioServerParameters(command=sys.executable, args=[SERVE, "stdio"], env=dict(os.environ))
    tasks = quick_client()
    with anyio.fail_after(3 * PATIENCE):
        async with Client(
            stdio_client(parameters), mode="legacy", extensions=[tasks], elicitation_callback=accept
        ) as client:
            assert text_of(await (await start(tasks, client, "ask")).wait()) == "Sure? accept True"


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with served_over_http(make_server) as url:
        yield url


@pytest.fixture(scope="module")
def url_without_sessions() -> Generator[str, None, None]:
    with served_over_http(make_server, stateless_http=True, json_response=True) as url:
        yield url


async def test_over_streamable_http_questions_come_on_the_stream_of_the_result_b6(url: str) -> None:
    tasks = quick_client()
    with anyio.fail_after(3 * PATIENCE):
        async with Client(url, mode="legacy", extensions=[tasks], elicitation_callback=accept) as client:
            handle = await start(tasks, client, "ask")
            with anyio.move_on_after(0) as scope:
                await handle.wait()
            assert scope.cancelled_caught
            assert text_of(await tasks.resume(client, handle.task_id).wait()) == "Sure? accept True"
            with pytest.raises(TaskFailedError, match="quota"):
                await (await start(tasks, client, "refuse")).wait()


async def test_over_http_without_sessions_a_task_runs_and_a_question_fails_it(url_without_sessions: str) -> None:
    tasks = quick_client()
    with anyio.fail_after(3 * PATIENCE):
        async with Client(
            url_without_sessions, mode="legacy", extensions=[tasks], elicitation_callback=accept
        ) as client:
            assert (await (await start(tasks, client, "double", x=2)).wait()).structured_content == {"result": 4}
            assert "cannot be asked" in text_of(await (await start(tasks, client, "what_went_wrong")).wait())


# Which calls are tasks


@asynccontextmanager
async def connected(
    scripted: ScriptedLegacyServer, tasks: TasksClient | None = None, **options: Any
) -> AsyncGenerator[tuple[TasksClient, Client], None]:
    tasks = tasks or quick_client()
    async with Client(scripted.connect(), mode="legacy", extensions=[tasks], **options) as client:
        with anyio.fail_after(PATIENCE):
            yield tasks, client


async def test_the_revision_before_is_served_too_for_mcp_1_23_0_declares_tasks_under_it() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    scripted.version = "2025-06-18"
    scripted.capabilities = {"tools": {}, "tasks": {"requests": {"tools": {}}}}
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


@pytest.mark.parametrize(
    ("version", "capabilities"),
    [
        ("2025-11-25", {"tools": {}}),
        ("2025-11-25", {"tools": {}, "tasks": {}}),
        ("2025-11-25", {"tools": {}, "tasks": {"requests": {"tools": {}}}}),
        ("2025-03-26", {"tools": {}, "tasks": {"requests": {"tools": {"call": {}}}}}),
    ],
)
async def test_a_server_without_tasks_is_called_plainly_and_has_none_to_resume(
    version: str, capabilities: Wire
) -> None:
    scripted = ScriptedLegacyServer()
    scripted.version, scripted.capabilities = version, capabilities
    async with connected(scripted) as (tasks, client):
        assert text_of(await tasks.start(client, "work", {"x": 1})) == "at once"
        with pytest.raises(TaskError, match=version):
            tasks.resume(client, TASK_ID)
        with pytest.raises(TaskError, match="lists no tasks"):
            tasks.list_tasks(client)
    assert scripted.methods[0] == "tools/call"
    assert "task" not in scripted.of("tools/call")[0].params


async def test_a_task_call_says_what_it_is_and_nothing_more() -> None:
    scripted = ScriptedLegacyServer()
    async with connected(scripted) as (tasks, client):
        await tasks.start(client, "work", {"x": 1}, meta={"progress_token": "t"})
        await tasks.start(client, "work", ttl_ms=5)
    first, second = scripted.of("tools/call")
    assert first.params["name"] == "work"
    assert first.params["arguments"] == {"x": 1}
    assert first.params["task"] == {}
    assert first.params["_meta"]["progressToken"] == "t"
    assert second.params["task"] == {"ttl": 5}


async def test_the_list_of_tools_is_read_once_a_connection_and_no_further_than_the_tool() -> None:
    scripted = ScriptedLegacyServer()
    scripted.pages = [[tool("forbidden", "a")], [tool("required")], [tool(None, "b")]]
    tasks = quick_client()
    async with connected(scripted, tasks) as (_, client):
        for name in ("work", "work", "a", "a"):
            await tasks.start(client, name)
        assert len(scripted.of("tools/list")) == 2
        await tasks.start(client, "b")
        await tasks.start(client, "b")
        assert len(scripted.of("tools/list")) == 5
    assert ["task" in call.params for call in scripted.of("tools/call")] == [True, True, False, False, False, False]
    async with connected(scripted, tasks) as (_, client):
        await tasks.start(client, "work")
        assert len(scripted.of("tools/list")) == 7


async def test_a_server_that_answers_a_task_call_with_its_result_is_taken_at_its_word() -> None:
    scripted = ScriptedLegacyServer()
    scripted.created = {"content": [{"type": "text", "text": "no task"}]}
    async with connected(scripted) as (tasks, client):
        assert text_of(await tasks.start(client, "work")) == "no task"


def refuses(*, tasks: bool, plain: bool, show: list[list[Wire]]) -> ScriptedLegacyServer:
    """Return a server that refuses calls for their mode, and then shows this list of tools."""
    scripted = ScriptedLegacyServer(task("completed"))

    async def reply(request: Received) -> None:
        if request.method == "tools/call" and (tasks if "task" in request.params else plain):
            scripted.pages = show
            raise error(types.METHOD_NOT_FOUND, "wrong mode")

    scripted.reply = reply
    return scripted


@pytest.mark.parametrize("shown", [[tool("forbidden")], [tool("optional")], [tool(None)], []], ids=repr)
async def test_a_task_call_that_is_refused_for_its_mode_is_made_plainly(shown: list[Wire]) -> None:
    scripted = refuses(tasks=True, plain=False, show=[shown])
    async with connected(scripted) as (tasks, client):
        assert text_of(await tasks.start(client, "work")) == "at once"


@pytest.mark.parametrize("shown", [[tool("required")], [tool("optional")], []], ids=repr)
async def test_a_plain_call_that_is_refused_for_its_mode_is_made_as_a_task(shown: list[Wire]) -> None:
    scripted = refuses(tasks=False, plain=True, show=[shown])
    scripted.pages = [[tool("forbidden")]] if shown else [[]]  # a server may not list every tool
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


@pytest.mark.parametrize("mode", ["required", "forbidden"])
async def test_a_call_that_is_refused_in_the_mode_that_is_listed_is_made_no_second_time(mode: str) -> None:
    scripted = refuses(tasks=True, plain=True, show=[[tool(mode)]])
    scripted.pages = [[tool(mode)]]
    async with connected(scripted) as (tasks, client):
        with pytest.raises(MCPError, match="wrong mode"):
            await tasks.start(client, "work")
    assert len(scripted.of("tools/call")) == 1


async def test_another_refusal_is_raised_as_it_is() -> None:
    scripted = ScriptedLegacyServer()
    scripted.created = error(types.INVALID_REQUEST, "Limit reached: too many tasks", {"retryAfterMs": 5})
    async with connected(scripted) as (tasks, client):
        with pytest.raises(MCPError, match="Limit reached") as caught:
            await tasks.start(client, "work")
        assert caught.value.data == {"retryAfterMs": 5}
    assert len(scripted.of("tools/call")) == 1


async def test_a_server_that_does_not_list_its_tools_is_not_called() -> None:
    """The SDK's own call would raise the same, but only after the tool has run."""
    scripted = ScriptedLegacyServer()

    async def reply(request: Received) -> None:
        if request.method == "tools/list":
            raise error(types.METHOD_NOT_FOUND, "no list")

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        with pytest.raises(MCPError, match="no list"):
            await tasks.start(client, "work")
    assert scripted.methods == ["tools/list"]


async def test_a_list_of_tools_that_never_ends_does_not_hang_the_call() -> None:
    scripted = ScriptedLegacyServer()

    async def reply(request: Received) -> Wire | None:
        return {"tools": [], "nextCursor": "more"} if request.method == "tools/list" else None

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        assert text_of(await tasks.start(client, "work")) == "at once"


async def test_a_broken_list_of_tools_is_an_invalid_response() -> None:
    scripted = ScriptedLegacyServer()
    scripted.pages = [[tool("now and then")]]
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError, match="tools/list"):
            await tasks.start(client, "work")


# Handles, and starts that are given up


@pytest.mark.parametrize("handle", [None, [], "task-1", {}, task(taskId=...), task(taskId=""), task(taskId=7)])
async def test_a_handle_without_an_id_is_an_invalid_response(handle: Any) -> None:
    scripted = ScriptedLegacyServer()
    scripted.created = {"task": handle}
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError):
            await tasks.start(client, "work")
    assert scripted.methods == ["tools/list", "tools/call"]


@pytest.mark.parametrize("broken", [task("resting"), task(createdAt=...), task(pollInterval="often"), task(ttl="x")])
async def test_a_broken_handle_is_an_invalid_response_and_its_task_is_cancelled(broken: Wire) -> None:
    scripted = ScriptedLegacyServer()
    scripted.created = {"task": broken}
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError, match="tools/call"):
            await tasks.start(client, "work")
    assert scripted.methods == ["tools/list", "tools/call", "tasks/cancel"]


@pytest.mark.parametrize(
    "answer", [{}, {"contents": []}, {"content": [{"type": "smell"}]}, {"content": "text"}, task()], ids=repr
)
async def test_an_answer_that_is_neither_a_handle_nor_a_result_is_an_invalid_response(answer: Wire) -> None:
    scripted = ScriptedLegacyServer()
    scripted.created = answer
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError, match="tools/call"):
            await tasks.start(client, "work")
    assert scripted.methods == ["tools/list", "tools/call"]


async def test_a_handle_that_answers_a_plain_call_is_an_invalid_response() -> None:
    scripted = ScriptedLegacyServer()
    scripted.pages = [[tool("forbidden")]]
    scripted.plain = {"task": task()}
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError, match="tools/call"):
            await tasks.start(client, "work")


async def test_a_handle_holds_no_result_b3() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    scripted.created = {"task": task("completed"), "content": [{"type": "text", "text": "too early"}]}
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_a_start_that_is_cancelled_takes_the_handle_and_cancels_the_task() -> None:
    scripted = ScriptedLegacyServer()
    scope = anyio.CancelScope()

    async def reply(request: Received) -> None:
        if request.method == "tools/call":
            scope.cancel()
            await anyio.wait_all_tasks_blocked()

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        with scope:
            await tasks.start(client, "work")
        assert scope.cancelled_caught
    assert scripted.methods == ["tools/list", "tools/call", "tasks/cancel"]
    assert scripted.withdrawn == []


async def test_a_start_that_was_cancelled_before_it_began_calls_nothing() -> None:
    scripted = ScriptedLegacyServer()
    async with connected(scripted) as (tasks, client):
        await start(tasks, client)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await tasks.start(client, "work")
        assert scope.cancelled_caught
        await anyio.wait_all_tasks_blocked()
    assert len(scripted.of("tools/call")) == 1


@in_virtual_time
async def test_a_start_that_is_cancelled_does_not_wait_long_for_a_server_that_does_not_answer() -> None:
    scripted = ScriptedLegacyServer()
    scope = anyio.CancelScope()

    async def reply(request: Received) -> None:
        if request.method == "tools/call":
            scope.cancel()
            await anyio.sleep_forever()

    scripted.reply = reply
    async with connected(scripted, quick_client(cancel_timeout=0.05)) as (tasks, client):
        with scope:
            await tasks.start(client, "work")
        assert scope.cancelled_caught
    assert scripted.methods == ["tools/list", "tools/call"]


# Servers that break the rules

BROKEN_TASKS: dict[str, Any] = {
    "empty": {},
    "another task": task(taskId="task-2"),
    "no id": task(taskId=...),
    "no status": task(status=...),
    "unknown status": task("resting"),
    "status message of the wrong type": task(statusMessage=5),
    "no creation": task(createdAt=...),
    "no last update": task(lastUpdatedAt=...),
    "no time": task(createdAt="yesterday"),
    "no time in UTC": task(createdAt="0001-01-01T00:00:00+05:00"),
    "ttl of the wrong type": task(ttl="forever"),
    "poll interval of the wrong type": task(pollInterval="often"),
    "a handle": {"task": task()},
}


@pytest.mark.parametrize("broken", BROKEN_TASKS.values(), ids=BROKEN_TASKS)
async def test_a_broken_task_is_an_invalid_response_and_is_left_alone(broken: Wire) -> None:
    scripted = ScriptedLegacyServer(broken)
    scripted.cancelled = broken
    async with connected(scripted) as (tasks, client):
        handle = await start(tasks, client)
        with pytest.raises(InvalidTaskResponseError, match="tasks/get") as caught:
            await handle.wait()
        assert caught.value.task_id == TASK_ID
        assert scripted.methods == ["tools/list", "tools/call"]
        with pytest.raises(InvalidTaskResponseError, match="tasks/cancel"):
            await handle.cancel()


@pytest.mark.parametrize(
    "tolerable",
    [
        task("completed", ttl=..., pollInterval=...),
        task("completed", createdAt="2026-07-28T14:00:00.123456789+02:00", ttl=60_000.0, pollInterval=10.0),
        task("completed", createdAt="2026-07-28T12:00:00", novelty={"x": 1}, resultType="complete"),
        task("completed", pollInterval=0, ttl=2**60),
        task("completed", pollInterval=2**60, _meta={RELATED: {"taskId": TASK_ID}}),
        task("completed", ttl=1e308, pollInterval=0.5),
    ],
    ids=["nulls dropped", "offset and whole floats", "naive time", "zero", "huge", "fractions and huge floats"],
)
async def test_a_small_slip_does_not_cost_the_result(tolerable: Wire) -> None:
    scripted = ScriptedLegacyServer({**tolerable, "status": "working"}, tolerable)
    async with connected(scripted, quick_client(poll_bounds_ms=(5, 10))) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


@pytest.mark.parametrize("status", ["completed", "failed", "input_required"])
@pytest.mark.parametrize(
    "broken",
    [
        {"resultType": "complete"},
        {"task": task()},
        task("completed"),
        {"content": [{"type": "smell"}]},
        result(_meta={RELATED: {"taskId": "task-2"}}),
    ],
    ids=["empty", "a handle", "a task", "broken content", "of another task"],
)
async def test_a_broken_result_is_an_invalid_response(broken: Wire, status: str) -> None:
    scripted = ScriptedLegacyServer(task(status))
    scripted.outcomes = [broken]
    async with connected(scripted) as (tasks, client):
        with pytest.raises(InvalidTaskResponseError, match="result") as caught:
            await (await start(tasks, client)).wait()
    assert caught.value.task_id == TASK_ID


@pytest.mark.parametrize("status", ["completed", "failed", "input_required"])
@pytest.mark.parametrize("empty", [{}, {"_meta": {RELATED: {"taskId": TASK_ID}}}], ids=repr)
async def test_no_result_of_a_failed_task_is_a_failure_for_the_reason_that_the_status_says(
    empty: Wire, status: str
) -> None:
    """So does the runtime of `mcp` 1.x; of another task it is an invalid response."""
    scripted = ScriptedLegacyServer(task(status, statusMessage="it broke"))
    scripted.outcomes = [empty]
    async with connected(scripted) as (tasks, client):
        handle = await start(tasks, client)
        if status != "failed":
            with pytest.raises(InvalidTaskResponseError, match="tasks/result"):
                await handle.wait()
            return
        for message in ("it broke", "The task failed"):
            with pytest.raises(TaskFailedError, match=message) as caught:
                await handle.wait()
            assert (caught.value.code, caught.value.task_id) == (types.INTERNAL_ERROR, TASK_ID)
            scripted.show(task("failed"))


async def test_a_result_that_says_nothing_of_its_task_is_one() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    scripted.outcomes = [result(_meta={"a": 1}, resultType="novel")]
    async with connected(scripted) as (tasks, client):
        waited = await (await start(tasks, client)).wait()
    assert text_of(waited) == "done"
    assert waited.result_type == "complete", "this revision knows no others"


async def test_a_broken_list_of_tasks_is_an_invalid_response() -> None:
    scripted = ScriptedLegacyServer()
    async with connected(scripted) as (tasks, client):
        for broken in ({}, {"tasks": [task("resting")]}, {"tasks": [BROKEN_TASKS["no time in UTC"]]}):
            scripted.listed = [broken]
            with pytest.raises(InvalidTaskResponseError, match="tasks/list"):
                async for _ in tasks.list_tasks(client):
                    pass


async def test_a_list_of_tasks_is_read_page_by_page_and_not_in_circles() -> None:
    scripted = ScriptedLegacyServer()
    scripted.listed = [{"tasks": [task(taskId="a")]}, {"tasks": []}, {"tasks": [task(taskId="b", ttl=7)]}]
    async with connected(scripted) as (tasks, client):
        assert [each.task_id async for each in tasks.list_tasks(client)] == ["a", "b"]

        async def reply(request: Received) -> Wire:
            return {"tasks": [task()], "nextCursor": "more"}

        scripted.reply = reply
        with pytest.raises(InvalidTaskResponseError, match="leads to itself"):
            async for _ in tasks.list_tasks(client):
                pass


async def test_get_returns_what_the_server_says() -> None:
    scripted = ScriptedLegacyServer(
        task("failed", statusMessage="busy", ttl=60_000, pollInterval=0, lastUpdatedAt="2026-07-28T14:00:01.5+02:00")
    )
    async with connected(scripted) as (tasks, client):
        snapshot = await tasks.resume(client, TASK_ID).get()
        assert snapshot == TaskSnapshot(
            TASK_ID,
            "failed",
            "busy",
            datetime(2026, 7, 28, 12, tzinfo=timezone.utc),
            datetime(2026, 7, 28, 12, 0, 1, 500_000, tzinfo=timezone.utc),
            60_000,
            0,
        )
        assert (snapshot.input_requests, snapshot.result, snapshot.error) == ({}, None, None)


async def test_a_refused_cancellation_of_a_task_that_works_is_raised() -> None:
    scripted = ScriptedLegacyServer()
    scripted.cancelled = error(types.INVALID_PARAMS, "not now")
    async with connected(scripted) as (tasks, client):
        handle = tasks.resume(client, TASK_ID)
        with pytest.raises(TaskError, match="not now") as caught:
            await handle.cancel()
        assert type(caught.value) is TaskError
        scripted.show(error(types.INVALID_PARAMS, "gone"))
        with pytest.raises(UnknownTaskError, match="gone"):
            await handle.cancel()
        scripted.cancelled = error(types.METHOD_NOT_FOUND, "no such method")
        with pytest.raises(TaskError, match="no such method"):
            await handle.cancel()


# Waiting


def asks_once(scripted: ScriptedLegacyServer) -> None:
    """Have `tasks/result` ask, and answer with what the user said."""

    async def reply(request: Received) -> Wire | None:
        if request.method != "tasks/result" or scripted.looks[0] != task("input_required"):
            return None
        response = await scripted.elicit()
        scripted.show(task("completed"))
        return result(response["result"]["action"])

    scripted.reply = reply


async def test_the_stream_of_the_result_is_opened_when_input_is_required_and_once_b6() -> None:
    scripted = ScriptedLegacyServer(task(), task(), task("input_required"))
    asks_once(scripted)

    async def ponder(context: Any, params: Any) -> ElicitResult:
        await scripted.looked()
        return ElicitResult(action="decline")

    async with connected(scripted, elicitation_callback=ponder) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "decline"
    assert scripted.methods == ["tools/list", "tools/call", "tasks/result"]


@in_virtual_time
async def test_the_stream_of_the_result_waits_for_the_user_whatever_a_request_may_take() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    asks_once(scripted)

    async def ponder(context: Any, params: Any) -> ElicitResult:
        await anyio.sleep(0.3)
        return ElicitResult(action="accept")

    tasks = quick_client(request_timeout=0.2)
    async with connected(scripted, tasks, elicitation_callback=ponder, read_timeout_seconds=0.2) as (_, client):
        assert text_of(await (await start(tasks, client)).wait()) == "accept"
    assert scripted.withdrawn == []


async def test_a_stream_that_drops_is_opened_again() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    asks_once(scripted)
    ask = scripted.reply
    assert ask is not None

    async def drop_first(request: Received) -> Wire | None:
        if request.method == "tasks/result" and len(scripted.of("tasks/result")) == 1:
            raise error(types.CONNECTION_CLOSED, "SSE stream ended without a response")
        return await ask(request)

    scripted.reply = drop_first
    async with connected(scripted, elicitation_callback=accept) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "accept"
    assert len(scripted.of("tasks/result")) == 2


async def test_a_result_that_comes_on_the_stream_is_there_without_waiting_for_the_next_poll() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    asks_once(scripted)
    async with connected(scripted, rare_client(), elicitation_callback=accept) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "accept"


async def test_a_stream_that_drops_is_looked_into_at_once_and_opened_again_not_before_the_next_poll() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    scripted.outcomes = [error(types.CONNECTION_CLOSED, "SSE stream ended without a response")]
    async with connected(scripted, rare_client()) as (tasks, client), anyio.create_task_group() as group:
        group.start_soon(tasks.resume(client, TASK_ID).wait)
        await scripted.saw("tasks/get", 2)
        await anyio.wait_all_tasks_blocked()
        assert [request.method for request in scripted.received] == ["tasks/get", "tasks/result", "tasks/get"]
        group.cancel_scope.cancel()


async def test_a_stream_that_drops_after_a_while_may_do_so_again_and_again() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))

    async def reply(request: Received) -> Wire | None:
        if request.method == "tasks/result":
            if len(scripted.of("tasks/result")) > 2 * MAX_FAILURES:
                scripted.show(task("completed"))
                return result()
            await scripted.looked()
            raise error(types.INTERNAL_ERROR, "Gateway Timeout")
        return None

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


@pytest.mark.parametrize(
    ("code", "times"),
    [
        (types.CONNECTION_CLOSED, MAX_FAILURES),
        (types.INTERNAL_ERROR, MAX_FAILURES),
        (types.METHOD_NOT_FOUND, 1),
        (types.INVALID_PARAMS, 1),
    ],
)
async def test_a_stream_that_cannot_be_opened_raises_why_and_leaves_the_task_alone(code: int, times: int) -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    scripted.outcomes = [error(code, "no stream")]
    async with connected(scripted) as (tasks, client):
        with pytest.raises(TaskError, match="no stream") as caught:
            await (await start(tasks, client)).wait()
        assert type(caught.value) is TaskError
        assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/list", "tools/call", *["tasks/result"] * times]


async def test_a_task_that_fails_while_its_stream_is_open_raises_its_error() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    scripted.outcomes = [error(-32050, "quota", {"a": None})]

    async def reply(request: Received) -> None:
        if request.method == "tasks/result":
            scripted.show(task("failed"))

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        with pytest.raises(TaskFailedError) as caught:
            await (await start(tasks, client)).wait()
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32050, "quota", {"a": None})


async def test_a_stream_that_fails_during_a_look_is_judged_by_the_next_look() -> None:
    """The answer to the look may be from before the task failed."""
    scripted = ScriptedLegacyServer(task("input_required"))
    looking = anyio.Event()

    async def reply(request: Received) -> Wire | None:
        if request.method == "tasks/result":
            await looking.wait()
            raise error(-32050, "quota")
        if request.method == "tasks/get" and len(scripted.of("tasks/get")) == 2:
            looking.set()
            await anyio.wait_all_tasks_blocked()
            scripted.show(task("failed"))
            return task("input_required")
        return None

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        with pytest.raises(TaskFailedError, match="quota"):
            await (await start(tasks, client)).wait()


async def test_a_server_that_forgets_a_task_whose_result_was_fetched_has_given_it() -> None:
    scripted = ScriptedLegacyServer(task("input_required"), error(types.INVALID_PARAMS, "gone"))
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_a_result_on_its_way_counts_although_the_server_has_forgotten_the_task() -> None:
    scripted = ScriptedLegacyServer(task("input_required"), error(types.INVALID_PARAMS, "gone"))

    async def late(request: Received) -> None:
        if request.method == "tasks/result":
            await scripted.saw("tasks/get", times=2)
            await anyio.wait_all_tasks_blocked()  # the client knows by now that the task is gone

    scripted.reply = late
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_a_server_whose_status_lags_behind_its_result_has_given_it() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"
    assert len(scripted.of("tasks/result")) == 1


async def test_a_stream_that_hangs_does_not_hide_that_the_task_has_ended() -> None:
    scripted = ScriptedLegacyServer(task("input_required"), task("input_required"), task("completed"))
    scripted.outcomes = [None, result()]
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"
        await scripted.until(lambda: scripted.withdrawn == ["tasks/result"])


async def test_a_result_that_cannot_be_fetched_for_a_moment_is_fetched_again() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    scripted.outcomes = [
        error(types.INTERNAL_ERROR),
        error(types.INVALID_REQUEST, "Limit reached: polls", {"retryAfterMs": 1}),
        result(),
    ]
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_a_connection_that_drops_is_not_why_a_task_failed() -> None:
    scripted = ScriptedLegacyServer(task("failed"))
    scripted.outcomes = [
        error(types.CONNECTION_CLOSED, "SSE stream ended without a response"),
        result("it broke", isError=True),
    ]
    async with connected(scripted) as (tasks, client):
        assert (await (await start(tasks, client)).wait()).is_error


async def test_a_result_that_can_never_be_fetched_raises_why() -> None:
    scripted = ScriptedLegacyServer(task("completed"))
    scripted.outcomes = [error(types.INTERNAL_ERROR, "store lost")]
    async with connected(scripted) as (tasks, client):
        with pytest.raises(TaskError, match="store lost") as caught:
            await (await start(tasks, client)).wait()
        assert type(caught.value) is TaskError
    assert len(scripted.of("tasks/result")) == MAX_FAILURES


@in_virtual_time
@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_a_result_that_is_never_sent_does_not_hang_a_task_that_has_ended(status: str) -> None:
    scripted = ScriptedLegacyServer(task(status))
    scripted.outcomes = [None]
    async with connected(scripted, quick_client(request_timeout=0.05)) as (tasks, client):
        with pytest.raises(TaskError, match="tasks/result timed out") as caught:
            await (await start(tasks, client)).wait()
        assert type(caught.value) is TaskError
    assert len(scripted.of("tasks/result")) == MAX_FAILURES


async def test_a_task_that_was_cancelled_by_somebody_else_raises_that_it_was() -> None:
    scripted = ScriptedLegacyServer(task("cancelled", statusMessage="by the owner"))
    async with connected(scripted) as (tasks, client):
        with pytest.raises(TaskCancelledError, match="The task was cancelled: by the owner"):
            await (await start(tasks, client)).wait()
    assert scripted.of("tasks/result") == []


async def test_a_task_that_vanishes_raises_that_it_is_unknown() -> None:
    scripted = ScriptedLegacyServer(task(), error(types.INVALID_PARAMS, "Task not found"))
    async with connected(scripted) as (tasks, client):
        with pytest.raises(UnknownTaskError):
            await (await start(tasks, client)).wait()
    assert scripted.methods == ["tools/list", "tools/call"]


async def test_a_look_that_fails_for_a_moment_is_tried_again() -> None:
    scripted = ScriptedLegacyServer(error(types.INTERNAL_ERROR), task(), error(types.INTERNAL_ERROR), task("completed"))
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_a_server_that_wants_to_be_asked_later_is_asked_later() -> None:
    busy = error(types.INVALID_REQUEST, "Limit reached: polls", {"retryAfterMs": 1})
    scripted = ScriptedLegacyServer(*[busy] * (2 * MAX_FAILURES), task("input_required"))
    scripted.outcomes = [busy, result()]
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "done"


async def test_cancelling_wait_withdraws_the_stream_and_not_the_task() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))
    scripted.outcomes = [None]
    async with connected(scripted) as (tasks, client):
        handle = await start(tasks, client)
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await scripted.saw("tasks/result")
            group.cancel_scope.cancel()
        await scripted.until(lambda: scripted.withdrawn == ["tasks/result"])
        assert scripted.of("tasks/cancel") == []
        scripted.show(task("completed"))
        scripted.outcomes = [result()]
        assert text_of(await handle.wait()) == "done"


async def test_a_refusal_is_the_server_s_to_judge() -> None:
    scripted = ScriptedLegacyServer(task("input_required"))

    async def reply(request: Received) -> Wire | None:
        if request.method != "tasks/result":
            return None
        response = await scripted.elicit()
        scripted.show(task("completed"))
        return result(response["error"]["message"])

    scripted.reply = reply
    async with connected(scripted) as (tasks, client):
        assert text_of(await (await start(tasks, client)).wait()) == "Elicitation not supported"


async def test_a_connection_that_is_lost_raises_that_it_was_and_another_finishes_the_task() -> None:
    """As when the server restarts in mid-task: the task lives on where its store does."""
    scripted = ScriptedLegacyServer(task())
    tasks = quick_client()
    lost: list[TaskError] = []

    async def wait(handle: ClientTask) -> None:
        try:
            await handle.wait()
        except TaskError as closed:
            lost.append(closed)

    async with anyio.create_task_group() as group:
        async with connected(scripted, tasks) as (_, client):
            handle = await start(tasks, client)
            group.start_soon(wait, handle)
            await scripted.looked()
    assert [(each.code, each.task_id) for each in lost] == [(types.CONNECTION_CLOSED, TASK_ID)]
    scripted.show(task("completed"))
    async with connected(scripted, tasks) as (_, client):
        assert text_of(await tasks.resume(client, TASK_ID).wait()) == "done"
