"""The rules A and C as the SDK's client with `TasksClient` sees them, against `examples/everything_server.py`.

The same rules as in `test_wire_rules.py`, where this client can observe them at all. What it cannot:

- C1: that the old capability alone declares nothing; the SDK has none to declare any more.
- C12: headers that do not match; the SDK's client sends the right ones. That it does is in A3, whose ids need every
  kind of encoding.
- C14 is the client's own, and stands in `test_client.py`.

One connection of each kind serves all tests of a module run on one event loop, as one does in an application.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar

import anyio
import httpx2
import mcp_types as types
import pytest
from mcp import Client, StdioServerParameters
from mcp.client import NotificationBinding
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, CreateMessageResult, ElicitResult, TextContent
from pydantic import ConfigDict, RootModel

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import (
    ClientTask,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TasksClient,
    TaskSnapshot,
    UnknownTaskError,
)
from tests.mcp_v2.conftest import ENTRY
from tests.mcp_v2.guarded import Guarded
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.raw_client import EXTENSION_ID, accept
from tests.mcp_v2.schemas import Wire, validate, validate_response
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

NO_SUCH_TASK = "0123456789abcdefghijkl"
MALFORMED_IDS = [" ", "no such task", "../x", "0", "\0", "ä☃", "%s", "null", "=?base64?eHg=?=", " x ", "\r\nx: y"]
MISSING: Wire = {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}}


class AnyParams(types.RequestParams):
    model_config = ConfigDict(extra="allow")


class AnyRequest(types.Request[AnyParams, str]):
    """A request with any method and params."""

    method: str
    params: AnyParams
    name_param: ClassVar[str | None] = "taskId"


class AnyResult(RootModel[Wire]):
    """A result as it came."""


class NotingClient(TasksClient):
    """A `TasksClient` that also notes what is pushed to it.

    Attributes:
        pushed: The params of each `notifications/tasks`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pushed: list[Wire] = []
        self._arrived = anyio.Event()

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        (binding,) = [each for each in super().notifications() if each.method == "notifications/tasks"]

        async def note(params: AnyResult) -> None:
            self.pushed.append(params.root)
            arrived, self._arrived = self._arrived, anyio.Event()
            arrived.set()
            await binding.handler(binding.params_type.model_validate(params.root))

        return (NotificationBinding(method=binding.method, params_type=AnyResult, handler=note),)

    async def until_pushed(self, task_id: str, status: str) -> Wire:
        """Wait until a state of this task was pushed; return it."""
        with anyio.fail_after(PATIENCE):
            while True:
                for params in self.pushed:
                    if (params["taskId"], params["status"]) == (task_id, status):
                        return params
                await self._arrived.wait()


@dataclass
class World:
    """The everything server, and its clients.

    Attributes:
        tasks: What follows the tasks of `client`.
        asked: The messages of all forms that were shown to the user.
        answers: What the user fills in, by message; anything else is confirmed.
        client: Declares the extension.
        plain: Does not.
    """

    tasks: NotingClient = field(default_factory=NotingClient)
    asked: list[str] = field(default_factory=list)
    answers: dict[str, ElicitResult] = field(default_factory=dict)

    client: Client = field(init=False)
    plain: Client = field(init=False)

    async def fill_in(self, context: Any, params: Any) -> ElicitResult:
        """Answer a form."""
        self.asked.append(params.message)
        return self.answers.get(params.message) or ElicitResult(action="accept", content={"confirm": True})

    async def write(self, context: Any, params: Any) -> CreateMessageResult:
        """Answer a sampling request."""
        return CreateMessageResult(role="assistant", model="m", content=TextContent(text="bees, bees"))

    async def start(self, tool: str, arguments: dict[str, Any] | None = None) -> ClientTask:
        """Call a tool that becomes a task."""
        task = await self.tasks.start(self.client, tool, arguments)
        assert isinstance(task, ClientTask)
        return task

    async def request(self, method: str, params: Wire, *, client: Client | None = None) -> Wire:
        """Send any request and return its result as it came, validated."""
        request: Any = AnyRequest(method=method, params=AnyParams(**params))
        result = (await (client or self.client).session.send_request(request, AnyResult)).root
        validate_response(method, {"jsonrpc": "2.0", "id": 1, "result": result})
        return result

    async def asks(self, task: ClientTask, questions: int = 1) -> dict[str, Wire]:
        """Wait until a task has so many open questions, and return them, without an answer."""
        return (await self.shown(task, lambda snapshot: len(snapshot.input_requests) == questions)).input_requests

    async def shown(self, task: ClientTask, matches: Callable[[TaskSnapshot], bool]) -> TaskSnapshot:
        """Wait until a task is as wanted, and return it so, without answering its questions."""
        with anyio.fail_after(PATIENCE):
            async with aclosing(task.snapshots()) as snapshots:
                async for snapshot in snapshots:
                    if matches(snapshot):
                        return snapshot
        raise AssertionError("the task has ended")


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """One event loop for all tests, so that they can share connections."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="module", params=["everything_over_http", "everything_as_json", "stdio"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[World, None]:
    """The everything server and its clients, over each transport."""
    world = World()

    def server() -> Any:
        if request.param == "stdio":
            return stdio_client(StdioServerParameters(command=sys.executable, args=[ENTRY, "stdio"]))
        return request.getfixturevalue(request.param)

    callbacks: Any = {"elicitation_callback": world.fill_in, "sampling_callback": world.write}
    async with AsyncExitStack() as stack:
        world.client = await stack.enter_async_context(Client(server(), extensions=[world.tasks], **callbacks))
        world.plain = await stack.enter_async_context(Client(server(), **callbacks))
        yield world


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> None:
    """Nothing of one test is left for the next."""
    world.asked.clear()
    world.answers.clear()
    world.tasks.pushed.clear()


def text_of(result: CallToolResult | ClientTask | Wire | None) -> str:
    if isinstance(result, dict):
        result = CallToolResult.model_validate(result)
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def ended(task: ClientTask) -> TaskSnapshot:
    """Wait until a task has ended, without answering anything."""
    with anyio.fail_after(PATIENCE):
        last = [snapshot async for snapshot in task.snapshots()][-1]
    return last


# A. Both protocols


async def test_a1_a_task_begins_as_working_has_known_statuses_only_and_its_end_is_final(world: World) -> None:
    handle = await world.request("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0.05}})
    assert handle["status"] == "working"
    task = world.tasks.resume(world.client, handle["taskId"])
    seen = [snapshot async for snapshot in task.snapshots()]
    assert {snapshot.status for snapshot in seen[:-1]} <= {"working"}
    assert seen[-1].status == "completed"
    await task.cancel()
    await task.update({"1": accept()})
    assert await task.get() == seen[-1]


async def test_a2_ids_are_unique_and_have_128_random_bits(world: World) -> None:
    tasks = [await world.start("slow_compute", {"seconds": 60}) for _ in range(10)]
    ids = {task.task_id for task in tasks}
    alphabet = set("".join(ids))
    assert len(ids) == 10
    assert all(len(task_id) * math.log2(min(len(alphabet), 64)) >= 128 for task_id in ids)
    for task in tasks:
        await task.cancel()


async def test_a3_an_unknown_id_and_a_malformed_one_are_the_same_invalid_params(world: World) -> None:
    for task_id in (NO_SUCH_TASK, *MALFORMED_IDS):
        task = world.tasks.resume(world.client, task_id)
        for request in (task.get, task.wait, task.cancel):
            with pytest.raises(UnknownTaskError) as caught:
                await request()
            assert (caught.value.code, caught.value.message, caught.value.data) == (-32602, "Task not found", None)
        with pytest.raises(TaskError) as refused:
            await task.update({"1": accept()})
        assert (refused.value.code, refused.value.message) == (-32602, "Task not found")


async def test_a4_times_are_in_utc_and_durations_integer_milliseconds(world: World) -> None:
    before = datetime.now(timezone.utc)
    task = await world.start("slow_compute", {"seconds": 0.02})
    first, last = await task.get(), await ended(task)
    for snapshot in (first, last):
        assert before - timedelta(seconds=1) <= snapshot.created_at <= snapshot.last_updated_at
        assert snapshot.created_at.utcoffset() == timedelta(0)
        assert type(snapshot.ttl_ms) is int
        assert type(snapshot.poll_interval_ms) is int
    assert first.created_at == last.created_at


async def test_a4_an_unlimited_ttl_is_null(world: World) -> None:
    mcp: MCPServer[Any] = MCPServer("unlimited")
    tasks = Tasks(settings=TaskSettings(default_ttl_ms=None, max_ttl_ms=None))
    tasks.install(mcp)

    @tasks.tool()
    async def work(task: ServerTaskContext) -> str:
        return "done"

    tasks_client = TasksClient()
    async with Client(mcp, extensions=[tasks_client]) as client:
        task = await tasks_client.start(client, "work")
        assert isinstance(task, ClientTask)
        request: Any = AnyRequest(method="tasks/get", params=AnyParams(taskId=task.task_id))  # type: ignore[call-arg]
        assert (await client.session.send_request(request, AnyResult)).root["ttlMs"] is None
        assert (await ended(task)).ttl_ms is None


async def test_a5_without_authentication_whoever_knows_the_id_reaches_the_task(
    world: World, everything_over_http: str
) -> None:
    other_tasks = TasksClient()
    async with (
        Client(everything_over_http, extensions=[world.tasks]) as one,
        Client(everything_over_http, extensions=[other_tasks]) as other,
    ):
        task = await world.tasks.start(one, "slow_compute", {"seconds": 0.05, "label": "x"})
        assert isinstance(task, ClientTask)
        assert text_of(await other_tasks.resume(other, task.task_id).wait()) == "computed x"


@pytest.mark.filterwarnings("ignore:.AuthSettings.validate_token_resource")  # not a setting in mcp 2.0
async def test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist(world: World) -> None:
    guarded = Guarded()  # its event is of this loop, and the tool used here does not look at it
    tasks = TasksClient()
    with served_over_http(lambda: guarded.mcp) as url:
        async with AsyncExitStack() as stack:
            alice, bob = [
                await stack.enter_async_context(
                    Client(
                        streamable_http_client(
                            url,
                            http_client=await stack.enter_async_context(
                                httpx2.AsyncClient(headers={"authorization": f"Bearer {user}"}, timeout=PATIENCE)
                            ),
                        ),
                        extensions=[tasks],
                        elicitation_callback=world.fill_in,
                    )
                )
                for user in ("alice", "bob")
            ]
            task = await tasks.start(alice, "ask")
            assert isinstance(task, ClientTask)
            (key,) = await world.asks(task)
            for task_id in (task.task_id, NO_SUCH_TASK):
                foreign = tasks.resume(bob, task_id)
                for request in (foreign.get(), foreign.cancel(), foreign.update({key: accept(ok=True)})):
                    with pytest.raises(TaskError) as caught:
                        await request
                    assert (caught.value.code, caught.value.message) == (-32602, "Task not found")
            assert (await task.get()).status == "input_required"
            await task.cancel()


async def test_a6_a_task_too_many_is_refused_with_an_error_that_names_the_limit(world: World) -> None:
    mcp: MCPServer[Any] = MCPServer("limited")
    tasks = Tasks(settings=TaskSettings(max_tasks_per_owner=1, shutdown_grace=0))
    tasks.install(mcp)

    @tasks.tool()
    async def work(task: ServerTaskContext) -> str:
        await anyio.sleep_forever()
        return ""

    tasks_client = TasksClient()
    async with Client(mcp, extensions=[tasks_client]) as client:
        first = await tasks_client.start(client, "work")
        with pytest.raises(MCPError, match="1") as caught:
            await client.call_tool("work")
        assert caught.value.code not in (-32603, -32021)
        assert isinstance(first, ClientTask)
        await first.cancel()
        again = await tasks_client.start(client, "work")
        assert isinstance(again, ClientTask)
        await again.cancel()


# C. The extension


async def test_c1_the_server_declares_the_extension_and_not_the_old_capability(world: World) -> None:
    for client in (world.client, world.plain):
        declared = client.server_capabilities
        assert declared is not None
        assert (declared.extensions or {})[EXTENSION_ID] == {}
        assert getattr(declared, "tasks", None) is None


async def test_c1_the_extension_is_declared_for_each_connection_by_itself(world: World) -> None:
    arguments = {"name": "slow_compute", "arguments": {"seconds": 0}}
    for client, kind in ((world.client, "task"), (world.plain, "complete"), (world.client, "task")):
        assert (await world.request("tools/call", arguments, client=client))["resultType"] == kind


async def test_c2_an_undeclared_call_of_an_optional_tool_runs_and_returns_its_result(world: World) -> None:
    result = await world.plain.call_tool("slow_compute", {"seconds": 0.01, "label": "x"})
    assert text_of(result) == "computed x"


async def test_c2_progress_of_a_call_that_runs_within_its_request_goes_to_its_callback(
    world: World, request: pytest.FixtureRequest
) -> None:
    seen: list[float] = []
    all_seen = anyio.Event()

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        if len(seen) == 4:
            all_seen.set()

    result = await world.plain.call_tool("slow_compute", {"seconds": 0.02, "label": "x"}, progress_callback=note)
    assert text_of(result) == "computed x"
    if "everything_as_json" in request.node.name:
        assert seen == []  # a JSON response carries nothing else
        return
    with anyio.fail_after(PATIENCE):
        await all_seen.wait()
    assert sorted(seen) == [0, 1, 2, 3]


async def test_c2_an_undeclared_call_of_a_required_tool_says_which_capability_is_missing(world: World) -> None:
    calls: dict[str, dict[str, Any]] = {
        "confirm_delete": {"filename": "x"},
        "failing_job": {},
        "write_haiku": {"topic": "bees"},
    }
    for tool, arguments in calls.items():
        with pytest.raises(MCPError) as caught:
            await world.plain.call_tool(tool, arguments)
        assert (caught.value.code, caught.value.data) == (-32021, MISSING)
    assert world.asked == []


async def test_c2_a_tool_that_knows_no_tasks_returns_its_result(world: World) -> None:
    for client in (world.client, world.plain):
        assert text_of(await client.call_tool("greet", {"name": "Ada"})) == "Hello, Ada!"
    assert text_of(await world.tasks.start(world.client, "greet", {"name": "Ada"})) == "Hello, Ada!"


async def test_c3_the_task_parameter_of_the_old_protocol_is_ignored(world: World) -> None:
    call = {"name": "slow_compute", "arguments": {"seconds": 0}, "task": {"ttl": 5_000}}
    assert (await world.request("tools/call", call, client=world.plain))["resultType"] == "complete"
    assert (await world.request("tools/call", call))["ttlMs"] != 5_000


async def test_c3_the_methods_of_the_old_protocol_do_not_exist(world: World) -> None:
    task = await world.start("slow_compute", {"seconds": 0})
    for method in ("tasks/result", "tasks/list"):
        for client in (world.client, world.plain):
            with pytest.raises(MCPError) as caught:
                await world.request(method, {"taskId": task.task_id}, client=client)
            assert caught.value.code == -32601


async def test_c4_a_handle_is_a_flat_task_that_can_be_fetched_at_once(world: World) -> None:
    async def call_and_get() -> None:
        handle = await world.request("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0}})
        assert handle["resultType"] == "task"
        assert not handle.keys() & {"task", "result", "error", "inputRequests", "requestState"}
        assert (await world.tasks.resume(world.client, handle["taskId"]).get()).task_id == handle["taskId"]

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call_and_get)


async def test_c5_input_for_a_tool_is_asked_on_the_call_before_there_is_a_task(world: World) -> None:
    world.answers["What is your name?"] = ElicitResult(action="accept", content={"name": "Ada"})
    task = await world.start("test_tool_with_task")
    assert world.asked == ["What is your name?"]
    assert text_of((await ended(task)).result) == "Done for Ada"


async def test_c5_declined_input_makes_no_task(world: World) -> None:
    world.answers["What is your name?"] = ElicitResult(action="decline")
    try:
        result = await world.tasks.start(world.client, "test_tool_with_task")
    except MCPError:
        return
    assert isinstance(result, CallToolResult)
    assert result.is_error


async def test_c6_a_working_task_is_shown_with_its_status_message_alone(world: World) -> None:
    task = await world.start("slow_compute", {"seconds": 60, "label": "x"})
    snapshot = await world.shown(task, lambda snapshot: snapshot.status_message == "Computing x (0/4)")
    assert snapshot.status == "working"
    assert (snapshot.input_requests, snapshot.result, snapshot.error) == ({}, None, None)
    await task.cancel()


async def test_c6_every_open_request_is_shown_and_answered_by_the_callbacks(world: World) -> None:
    for role, name in {"author": "Ann", "editor": "Eve"}.items():
        world.answers[f"Who is the {role}?"] = ElicitResult(action="accept", content={"name": name})
    task = await world.start("multi_input")
    requests = await world.asks(task, 2)
    assert {request["method"] for request in requests.values()} == {"elicitation/create"}
    with anyio.fail_after(PATIENCE):
        assert text_of(await task.wait()) == "Written by Ann, edited by Eve"
    assert sorted(world.asked) == ["Who is the author?", "Who is the editor?"], "each once"


async def test_c6_a_sampling_request_is_answered_by_its_callback(world: World) -> None:
    with anyio.fail_after(PATIENCE):
        assert text_of(await world.client.call_tool("write_haiku", {"topic": "bees"})) == "bees, bees"


async def test_c6_a_completed_task_holds_what_the_call_would_have_returned(world: World) -> None:
    arguments = {"seconds": 0, "label": "x"}
    plain = await world.plain.call_tool("slow_compute", arguments)
    through_task = await world.client.call_tool("slow_compute", arguments)
    assert through_task.model_copy(update={"meta": None}) == plain.model_copy(update={"meta": None})
    assert plain.structured_content == {"result": "computed x"}


async def test_c6_a_failed_task_holds_the_error_and_says_in_its_status_what_went_wrong(world: World) -> None:
    task = await world.start("protocol_error_job")
    with anyio.fail_after(PATIENCE), pytest.raises(TaskFailedError) as caught:
        await task.wait()
    error = caught.value
    assert (error.code, error.message, error.data) == (-32050, "The quota is used up", {"retryAfterSeconds": 30})
    assert (await task.get()).status_message == "The quota is used up"


async def test_c6_a_cancelled_task_holds_neither_result_nor_error_nor_requests(world: World) -> None:
    task = await world.start("confirm_delete", {"filename": "x"})
    await world.asks(task)
    await task.cancel()
    last = await ended(task)
    assert (last.status, last.input_requests, last.result, last.error) == ("cancelled", {}, None, None)
    with pytest.raises(TaskCancelledError):
        await task.wait()


async def test_c6_a_task_that_is_completed_from_outside_holds_that_result(world: World) -> None:
    with anyio.fail_after(PATIENCE):
        assert text_of(await world.client.call_tool("external_job", {"job_id": "7"})) == "job 7 done"


async def test_c7_keys_that_are_open_at_once_differ_and_stay_with_their_questions(world: World) -> None:
    task = await world.start("multi_input")
    requests = await world.asks(task, 2)
    assert (await task.get()).input_requests == requests
    (first, second) = requests
    await task.update({first: accept(name="Ann")})
    assert (await task.get()).input_requests == {second: requests[second]}
    await task.cancel()


async def test_c8_an_update_is_acknowledged_with_nothing_but_that(world: World) -> None:
    task = await world.start("confirm_delete", {"filename": "x"})
    (key,) = await world.asks(task)
    params = {"taskId": task.task_id, "inputResponses": {key: accept(confirm=True)}}
    acknowledged = await world.request("tasks/update", params)
    assert {name for name in acknowledged if name != "_meta"} == {"resultType"}
    assert text_of((await ended(task)).result) == "Deleted x"


async def test_c8_unknown_and_answered_keys_are_ignored_and_the_first_answer_wins(world: World) -> None:
    task = await world.start("multi_input")
    first, second = await world.asks(task, 2)
    await task.update({})
    await task.update({"no such key": accept(), "": accept(), first: accept(name="first")})
    await task.update({first: accept(name="late")})
    await task.update({first: accept(nonsense=True), second: accept(name="second")})
    text = text_of((await ended(task)).result)
    assert sorted(word.strip(",") for word in text.split() if word.strip(",") in ("first", "second", "late")) == [
        "first",
        "second",
    ]
    await task.update({first: accept(name="too late")})


async def test_c8_a_malformed_answer_is_refused_and_its_question_stays_open(world: World) -> None:
    task = await world.start("confirm_delete", {"filename": "x"})
    requests = await world.asks(task)
    (key,) = requests
    for answer in ({}, {"action": "maybe"}, accept(), accept(confirm="yes"), accept(confirm=True, more="x" * 2**21)):
        with pytest.raises(TaskError) as caught:
            await task.update({key: answer})
        assert caught.value.code == -32602
        assert key in caught.value.message
        assert (await task.get()).input_requests == requests
    await task.update({key: accept(confirm=False)})
    assert text_of((await ended(task)).result) == "Kept x"


async def test_c9_cancel_is_acknowledged_and_the_status_follows(world: World) -> None:
    task = await world.start("slow_compute", {"seconds": 60})
    acknowledged = await world.request("tasks/cancel", {"taskId": task.task_id})
    assert {name for name in acknowledged if name != "_meta"} == {"resultType"}
    assert (await ended(task)).status == "cancelled"


async def test_c9_cancelling_an_ended_task_is_acknowledged_and_changes_nothing(world: World) -> None:
    calls: dict[str, dict[str, Any]] = {
        "slow_compute": {"seconds": 0},
        "protocol_error_job": {},
        "failing_job": {},
        "multi_input": {},
    }
    for tool, arguments in calls.items():
        task = await world.start(tool, arguments)
        if tool == "multi_input":
            await task.cancel()
        last = await ended(task)
        await task.cancel()
        assert await task.get() == last


async def test_c10_a_tool_error_completes_the_task_and_is_a_result(world: World) -> None:
    task = await world.start("failing_job")
    last = await ended(task)
    assert last.status == "completed"
    assert last.error is None
    assert (await task.wait()).is_error


async def test_c10_only_a_json_rpc_error_fails_a_task(world: World) -> None:
    last = await ended(await world.start("protocol_error_job"))
    assert (last.status, last.result) == ("failed", None)
    assert last.error is not None
    assert last.error["code"] == -32050


async def listen(world: World, task_ids: Sequence[str], *, client: Client | None = None) -> Wire:
    """Listen to tasks until the server ends the stream; return its result."""
    wanted = types.SubscriptionFilter.model_validate({"taskIds": list(task_ids)})
    params = types.SubscriptionsListenRequestParams(notifications=wanted)
    session = (client or world.client).session
    with anyio.fail_after(PATIENCE):
        return (await session.send_request(types.SubscriptionsListenRequest(params=params), AnyResult)).root


async def test_c11_each_change_is_pushed_as_tasks_get_shows_it(world: World) -> None:
    task = await world.start("confirm_delete", {"filename": "x"})
    async with anyio.create_task_group() as group:
        group.start_soon(listen, world, [task.task_id])
        asking = await world.tasks.until_pushed(task.task_id, "input_required")
        (key,) = asking["inputRequests"]
        await task.update({key: accept(confirm=True)})
        await world.tasks.until_pushed(task.task_id, "completed")
    for params in world.tasks.pushed:
        validate({"jsonrpc": "2.0", "method": "notifications/tasks", "params": params}, "TaskStatusNotification")
    (last,) = [params for params in world.tasks.pushed if params["status"] == "completed"]
    shown = await world.request("tasks/get", {"taskId": task.task_id})
    ours = {"_meta", "resultType"}
    assert {name: value for name, value in last.items() if name not in ours} == {
        name: value for name, value in shown.items() if name not in ours
    }


async def test_c11_whoever_waits_is_pushed_to_and_need_not_poll(world: World) -> None:
    with anyio.fail_after(PATIENCE):
        result = await world.client.call_tool("confirm_delete", {"filename": "x"})
    assert text_of(result) == "Deleted x"
    assert world.asked == ["Delete x?"]


async def test_c11_who_did_not_declare_the_extension_is_told_what_is_missing(world: World) -> None:
    with pytest.raises(MCPError) as caught:
        await listen(world, [NO_SUCH_TASK], client=world.plain)
    assert (caught.value.code, caught.value.data) == (-32021, MISSING)


async def test_c11_ids_of_no_task_of_the_caller_are_left_out(world: World) -> None:
    task = await world.start("slow_compute", {"seconds": 0})
    await listen(world, [NO_SUCH_TASK, task.task_id, "ä☃"])
    await world.tasks.until_pushed(task.task_id, "completed")
    assert {params["taskId"] for params in world.tasks.pushed} == {task.task_id}


async def test_c13_an_undeclared_request_for_a_task_says_which_capability_is_missing(world: World) -> None:
    undeclared = world.tasks.resume(world.plain, (await world.start("slow_compute", {"seconds": 0})).task_id)
    for request in (undeclared.get(), undeclared.cancel(), undeclared.update({"1": accept()})):
        with pytest.raises(TaskError) as caught:
            await request
        assert (caught.value.code, caught.value.data) == (-32021, MISSING)
