"""The faults of the field report: each is run on the SDK's own 1.x runtime, which has it, and on ours.

One scenario a fault. On ours it has to pass. On the SDK's it has to fail, with the error and at the line that
are this fault and nothing else; that half runs on the release in which the faults were found. A hang shows there
after a short wait, in which a busy machine may hang elsewhere: those run in the long profile.
"""

from __future__ import annotations

import gc
import linecache
import os
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import anyio
import pytest
from mcp import types
from mcp.shared.experimental.tasks.context import TaskContext
from mcp.shared.experimental.tasks.in_memory_task_store import InMemoryTaskStore as SDKTaskStore
from mcp.shared.experimental.tasks.message_queue import InMemoryTaskMessageQueue as SDKMessageQueue
from mcp.shared.experimental.tasks.message_queue import QueuedMessage as SDKMessage

from mcp_task_runtime import (
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    QueuedMessage,
    ServerTaskContext,
    TaskSettings,
)
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing import FakeClock, YieldingTaskMessageQueue, YieldingTaskStore
from mcp_task_runtime.testing.concurrency.cost import count_work
from tests.mcp_v1 import raw_client, scenarios
from tests.mcp_v1.raw_client import accept
from tests.mcp_v1.scenarios import Choice, World
from tests.mcp_v1.sdk_runtime import SDKTasks, sdk_world, text
from tests.mcp_v1.worlds import make_world
from tests.support.patience import PATIENCE

RELEASE_WITH_THE_FAULTS = "1.30.0"
IS_LONG = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"

FAULTS_OF_THIS_PROTOCOL = set(range(1, 24))


# -- stores and queues, without a server around them


class Backend(Protocol):
    """A task store and its queue, as far as both runtimes have the same."""

    async def create(self, ttl_ms: int | None = None) -> str: ...
    async def read(self, task_id: str) -> Any: ...
    async def finish(self, task_id: str) -> None:
        """End a task with a result, as the runtime does when work returns."""

    async def cancel(self, task_id: str) -> None: ...
    async def has_result(self, task_id: str) -> bool: ...
    async def delete(self, task_id: str) -> None: ...
    async def wait(self, task_id: str, seen: Any) -> None:
        """Wait until a task differs from what `read` returned."""

    async def two(self, cursor: str | None = None) -> tuple[list[str], str | None]:
        """Return a page of two tasks, and the cursor of the next."""

    async def ask(self, task_id: str) -> None: ...
    async def take_question(self, task_id: str) -> None:
        """Wait for a question and take it from the queue."""

    async def let_ttl_pass(self) -> None: ...
    def parts(self) -> list[object]: ...


class OurBackend:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = InMemoryTaskStore(clock=self.clock)
        self.queue = self.store.message_queue

    async def create(self, ttl_ms: int | None = None) -> str:
        return (await self.store.create_task(NewTask(ttl_ms=ttl_ms))).task_id

    async def read(self, task_id: str) -> Any:
        return await self.store.get_task(task_id)

    async def finish(self, task_id: str) -> None:
        with suppress(InvalidTransitionError):
            await self.store.finish_task(task_id, Outcome.completed(text("done")))

    async def cancel(self, task_id: str) -> None:
        await self.store.finish_task(task_id, Outcome.cancelled())

    async def has_result(self, task_id: str) -> bool:
        outcome = await self.store.get_result(task_id)
        return outcome is not None and outcome.result is not None

    async def delete(self, task_id: str) -> None:
        await self.store.delete_task(task_id)

    async def wait(self, task_id: str, seen: Any) -> None:
        await self.store.wait_for_update(task_id, after=seen.revision)

    async def two(self, cursor: str | None = None) -> tuple[list[str], str | None]:
        page = await self.store.list_tasks(owner=None, cursor=cursor, limit=2)
        return [record.task_id for record in page.records], page.next_cursor

    async def ask(self, task_id: str) -> None:
        await self.queue.enqueue(task_id, QueuedMessage.request("q", "elicitation/create", {}))

    async def take_question(self, task_id: str) -> None:
        await self.queue.wait_for_message(task_id)
        await self.queue.dequeue(task_id)

    async def let_ttl_pass(self) -> None:
        self.clock.advance(timedelta(days=1))

    def parts(self) -> list[object]:
        return [self.store, self.queue]


class SDKBackend:
    def __init__(self) -> None:
        self.store = SDKTaskStore(page_size=2)
        self.queue = SDKMessageQueue()

    async def create(self, ttl_ms: int | None = None) -> str:
        return (await self.store.create_task(types.TaskMetadata(ttl=ttl_ms))).taskId

    async def read(self, task_id: str) -> Any:
        return await self.store.get_task(task_id)

    async def finish(self, task_id: str) -> None:
        task = await self.store.get_task(task_id)
        assert task is not None
        with suppress(ValueError):
            await TaskContext(task, self.store).complete(text("done"))

    async def cancel(self, task_id: str) -> None:
        await self.store.update_task(task_id, "cancelled")

    async def has_result(self, task_id: str) -> bool:
        return await self.store.get_result(task_id) is not None

    async def delete(self, task_id: str) -> None:
        await self.store.delete_task(task_id)

    async def wait(self, task_id: str, seen: Any) -> None:
        await self.store.wait_for_update(task_id)

    async def two(self, cursor: str | None = None) -> tuple[list[str], str | None]:
        tasks, following = await self.store.list_tasks(cursor)
        return [task.taskId for task in tasks], following

    async def ask(self, task_id: str) -> None:
        request = types.JSONRPCRequest(jsonrpc="2.0", id=1, method="elicitation/create")
        await self.queue.enqueue(task_id, SDKMessage(type="request", message=request))

    async def take_question(self, task_id: str) -> None:
        await self.queue.wait_for_message(task_id)
        await self.queue.dequeue(task_id)

    async def let_ttl_pass(self) -> None:
        for stored in self.store._tasks.values():
            stored.expires_at = datetime.min.replace(tzinfo=timezone.utc)

    def parts(self) -> list[object]:
        return [self.store, self.queue]


async def fault_2_an_update_between_reading_and_waiting_is_seen(backend: Backend) -> None:
    task_id = await backend.create()
    seen = await backend.read(task_id)
    await backend.finish(task_id)
    with anyio.fail_after(PATIENCE):
        await backend.wait(task_id, seen)


async def fault_1_every_waiter_of_the_store_wakes(backend: Backend) -> None:
    task_id = await backend.create()
    seen = await backend.read(task_id)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(backend.wait, task_id, seen)
            await anyio.wait_all_tasks_blocked()
            await backend.finish(task_id)


async def fault_8_a_task_that_was_cancelled_gets_no_result(backend: Backend) -> None:
    task_id = await backend.create()
    await backend.cancel(task_id)
    await backend.finish(task_id)
    assert not await backend.has_result(task_id)


async def fault_12_nothing_is_kept_of_tasks_that_are_gone(backend: Backend) -> None:
    async def live_and_die() -> None:
        task_id = await backend.create(ttl_ms=60_000)
        async with anyio.create_task_group() as group:
            group.start_soon(backend.wait, task_id, await backend.read(task_id))
            group.start_soon(backend.take_question, task_id)
            await anyio.wait_all_tasks_blocked()
            await backend.ask(task_id)
            await anyio.wait_all_tasks_blocked()
            await backend.finish(task_id)
        await backend.let_ttl_pass()
        assert await backend.two() == ([], None)

    await live_and_die()
    before = kept_by(backend.parts())
    for _ in range(10):
        await live_and_die()
    assert kept_by(backend.parts()) <= before + 9, "less than one object for each of ten tasks"


async def fault_13_a_cursor_survives_the_task_that_it_stands_at(backend: Backend) -> None:
    made = [await backend.create() for _ in range(4)]
    page, cursor = await backend.two()
    assert page == made[:2]
    for task_id in page:
        await backend.delete(task_id)
    assert (await backend.two(cursor))[0] == made[2:]


async def fault_21_clean_up_does_not_look_at_every_task(backend: Backend) -> None:
    async def work_with(tasks: int) -> int:
        for _ in range(tasks):
            last = await backend.create(ttl_ms=600_000)
        return await count_work(lambda: backend.read(last))

    assert 3 * await work_with(10) > await work_with(490), "reading one task costs the same among 500 as among 10"


def kept_by(roots: list[object]) -> int:
    """Return how many objects these hold, as far as they are containers, or a task runtime's own."""
    seen: dict[int, object] = {}
    left = list(roots)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen[id(each)] = each
        if isinstance(each, dict | list | set | tuple) or type(each).__module__.startswith("mcp"):
            left += gc.get_referents(each)
    return len(seen)


# -- servers: what `scenarios.py` does not show sharply enough


async def fault_3_an_error_answer_returns_the_task_to_working(world: World) -> None:
    async with world.connect(answer=scenarios.answering({"error": {"code": -32042, "message": "Away"}})) as client:
        task_id = await client.start("carry_on")
        await client.start_request("tasks/result", {"taskId": task_id})
        await world.until(lambda: world.entered == 1)
        assert (await client.task(task_id))["status"] == "working"


async def fault_4_one_of_two_answers_leaves_the_task_input_required(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask_two")
        await client.until(task_id, "input_required")
        for _ in range(5):
            await client.task(task_id)  # both questions are in the queue by now, and go out together: not fault 2
        await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked(2)
        await client.send({"jsonrpc": "2.0", "id": client.questions[0]["id"], **accept(ok=True)})
        for _ in range(5):
            assert (await client.task(task_id))["status"] == "input_required"


async def fault_6_a_pending_question_ends_when_its_task_is_cancelled(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask_and_tell")
        await client.until(task_id, "input_required")
        await client.result("tasks/cancel", {"taskId": task_id})
        await world.until(lambda: world.left == 1)


async def fault_15_another_session_cannot_answer(world: World) -> None:
    async with world.connect() as owner, world.connect() as other:
        task_id = await owner.start("ask")
        await owner.start_request("tasks/result", {"taskId": task_id})
        question = await owner.asked()
        await other.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        await other.request("ping")  # so the answer was read
        assert (await owner.task(task_id))["status"] == "input_required"


async def fault_15_no_two_questions_have_the_same_id(world: World) -> None:
    async with world.connect(answer=scenarios.answering(accept(ok=True))) as client:
        await client.outcome(await client.start("ask_often"))
        ids = [question["id"] for question in client.questions]
        assert len(ids) == 20
        assert len(set(ids)) == 20


async def fault_17_others_can_start_tasks_when_one_connection_has_closed(world: World) -> None:
    async with world.connect() as staying:
        async with world.connect() as leaving:
            await leaving.start("wait")
        created = await staying.result("tools/call", {"name": "double", "arguments": {"x": 3}, "task": {}})
        assert "task" in created


async def fault_18_a_question_ends_with_its_ttl_when_the_client_has_left(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask_and_tell", task={"ttl": 1_000})
        await client.until(task_id, "input_required")
    await world.until(lambda: world.left == 1)


async def fault_19_nobody_may_read_or_cancel_what_no_session_has_made(world: World) -> None:
    tasks: Any = world.tasks
    if isinstance(tasks, SDKTasks):
        task_id = (await tasks.store.create_task(types.TaskMetadata())).taskId
    else:
        task_id = (await tasks.runtime.store.create_task(NewTask(ttl_ms=60_000))).task_id
    async with world.connect() as client:
        for method in ("tasks/cancel", "tasks/get"):
            assert (await client.error(method, {"taskId": task_id}))["code"] == -32602


# -- each fault, and how it shows

TestT = TypeVar("TestT", bound=Callable[..., Any])
Scenario: TypeAlias = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """How the SDK's runtime fails.

    Attributes:
        scenario: What has to hold.
        error: The exception that ends it there.
        at: Text of the line of the scenario that this comes from; empty where the server itself breaks.
        says: What the exception says, as a regular expression.
        patience: Seconds after which a wait is taken for a hang; more than a TTL, where one is in play.
            Short only where the fault is a hang.
        remote_store: Whether it takes a store that yields.
        by_chance: Whether it shows there only in some runs; then it runs on ours alone.
    """

    scenario: Scenario
    error: type[Exception]
    at: str
    says: str = ""
    patience: float = 1.0
    remote_store: bool = False
    by_chance: bool = False

    @property
    def name(self) -> str:
        return self.scenario.__name__

    @property
    def numbers(self) -> set[int]:
        found = re.search(r"fault_((?:\d+_)+)", self.name)
        return set() if found is None else set(map(int, found[1].strip("_").split("_")))


STORE_FAULTS = [
    Fault(fault_1_every_waiter_of_the_store_wakes, TimeoutError, "anyio.create_task_group"),
    Fault(fault_2_an_update_between_reading_and_waiting_is_seen, TimeoutError, "backend.wait(task_id, seen)"),
    Fault(fault_8_a_task_that_was_cancelled_gets_no_result, AssertionError, "not await backend.has_result"),
    Fault(fault_12_nothing_is_kept_of_tasks_that_are_gone, AssertionError, "<= before", "less than one object"),
    Fault(
        fault_13_a_cursor_survives_the_task_that_it_stands_at, ValueError, "backend.two(cursor)", "^Invalid cursor: "
    ),
    Fault(fault_21_clean_up_does_not_look_at_every_task, AssertionError, "work_with(490)", "costs the same"),
]

SERVER_FAULTS = [
    Fault(scenarios.b6_fault_1_every_waiter_gets_the_result, TimeoutError, "await client.response(identifier)"),
    Fault(fault_3_an_error_answer_returns_the_task_to_working, AssertionError, '"working"', "input_required"),
    Fault(fault_4_one_of_two_answers_leaves_the_task_input_required, AssertionError, '"input_required"', "working"),
    Fault(scenarios.b8_fault_5_cancel_stops_the_work_and_says_so_at_once, TimeoutError, "world.left == 1"),
    Fault(fault_6_a_pending_question_ends_when_its_task_is_cancelled, TimeoutError, "world.left == 1"),
    Fault(
        scenarios.fault_7_a_question_given_up_leaves_the_task_working,
        AssertionError,
        '"working"',
        remote_store=True,
    ),
    Fault(scenarios.b5_fault_9_a_protocol_error_comes_back_verbatim, AssertionError, '"error" in message', "'result'"),
    Fault(
        scenarios.b5_fault_9_a_cancelled_task_answers_with_an_error, AssertionError, '"error" in message', "'result'"
    ),
    Fault(scenarios.b6_fault_10_a_question_is_delivered_again_on_the_next_stream, TimeoutError, "client.asked(2)"),
    Fault(scenarios.fault_11_an_exception_reads_as_in_a_plain_call, AssertionError, 'plain["content"]'),
    Fault(
        scenarios.b9_fault_13_list_pages_and_a_bad_cursor_is_refused,
        AssertionError,
        'client.error("tasks/list"',
        "tasks",
    ),
    Fault(
        scenarios.fault_14_18_work_that_outlives_its_ttl_ends_as_failed,
        AssertionError,
        'client.until(task_id, "failed")',
        "Task not found",
    ),
    Fault(
        scenarios.b6_fault_15_an_answer_that_names_another_task_is_refused,
        TimeoutError,
        "again = await client.asked(2)",
    ),
    Fault(fault_15_another_session_cannot_answer, AssertionError, '"input_required"', "working|completed"),
    Fault(  # the SDK numbers them by the address of an object, which another may get later
        fault_15_no_two_questions_have_the_same_id, AssertionError, "len(set(ids)) == 20", by_chance=True
    ),
    Fault(scenarios.b8_fault_16_work_that_returns_after_cancel_harms_nobody, ValueError, "", "Cannot transition"),
    Fault(
        fault_17_others_can_start_tasks_when_one_connection_has_closed,
        AssertionError,
        '"task" in created',
        "TaskSupport not running",
    ),
    Fault(
        fault_18_a_question_ends_with_its_ttl_when_the_client_has_left, TimeoutError, "world.left == 1", patience=2.0
    ),
    Fault(
        fault_19_nobody_may_read_or_cancel_what_no_session_has_made,
        AssertionError,
        "client.error(method",
        "'status': 'cancelled'",
    ),
    Fault(
        scenarios.fault_20_waiting_for_a_task_ends_with_its_ttl,
        TimeoutError,
        "await client.response(waiting)",
        patience=2.0,
    ),
    Fault(
        scenarios.b3_fault_22_a_task_call_answers_at_once_and_the_ttl_is_always_there, KeyError, '["ttl"], int', "ttl"
    ),
    Fault(
        scenarios.b2_fault_23_a_call_in_the_wrong_mode_is_method_not_found,
        AssertionError,
        "client.error(",
        "'isError': True",
    ),
]

for_each_store_fault = pytest.mark.parametrize("fault", STORE_FAULTS, ids=lambda fault: fault.name)


# -- ours


def our_world(*, remote_store: bool = False) -> World:
    """Return the world of the other tests, with the tools of this module."""
    store = InMemoryTaskStore()
    settings = TaskSettings(shutdown_grace=0.05)
    if remote_store:
        world = make_world(
            Tasks(YieldingTaskStore(store), YieldingTaskMessageQueue(store.message_queue), settings=settings)
        )
    else:
        world = make_world(Tasks(store, settings=settings))

    @world.tasks.tool(required=True)
    async def ask_and_tell(task: ServerTaskContext) -> str:
        try:
            await task.elicit("Sure?", Choice)
        finally:
            world.left += 1
            world.tell()
        return "answered"

    @world.tasks.tool(required=True)
    async def ask_often(task: ServerTaskContext) -> str:
        for _ in range(20):
            await task.elicit("Sure?", Choice)
        return "answered"

    @world.tasks.tool(required=True)
    async def carry_on(task: ServerTaskContext) -> str:
        try:
            await task.elicit("Sure?", Choice)
        except ProtocolError:
            world.entered += 1
            world.tell()
        await anyio.sleep_forever()
        return "never"

    return world


OURS_IN_TEST_WIRE_RULES = [
    fault for fault in SERVER_FAULTS if fault.scenario in scenarios.SCENARIOS.values() and not fault.remote_store
]
OURS_HERE = [fault for fault in SERVER_FAULTS if fault not in OURS_IN_TEST_WIRE_RULES]


@pytest.mark.parametrize("fault", OURS_HERE, ids=lambda fault: fault.name)
async def test_it_holds_on_our_server_that(fault: Fault) -> None:
    """And what is in `OURS_IN_TEST_WIRE_RULES`, there."""
    world = our_world(remote_store=fault.remote_store)
    async with cast(Tasks, world.tasks):
        await fault.scenario(world)


@for_each_store_fault
async def test_it_holds_in_our_store_that(fault: Fault) -> None:
    await fault.scenario(OurBackend())


def test_every_fault_that_concerns_this_protocol_has_a_test_of_its_own() -> None:
    faults = STORE_FAULTS + SERVER_FAULTS
    assert set[int]().union(*(fault.numbers for fault in faults)) == FAULTS_OF_THIS_PROTOCOL
    assert all(fault.numbers for fault in faults)


# -- the SDK's own


def shows(fault: Fault, error: BaseException) -> bool:
    """Whether an exception is what this fault leads to, and nothing else."""
    return (
        type(error) is fault.error
        and re.search(fault.says, str(error)) is not None
        and (not fault.at or any(fault.at in line for line in lines_of(error)))
    )


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what is in an exception group, and in the groups in it."""
    if hasattr(error, "exceptions"):
        for inner in error.exceptions:
            yield from leaves(inner)  # the server may fail at the same time, when it is stopped
    else:
        yield error


def lines_of(error: BaseException) -> Iterator[str]:
    """Yield the lines of the scenario that an exception went through, and the cancellation before a timeout."""
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if filename in (__file__, scenarios.__file__):
            yield linecache.getline(filename, trace.tb_lineno)
        trace = trace.tb_next
    if isinstance(error, TimeoutError) and error.__context__ is not None:
        yield from lines_of(error.__context__)


@asynccontextmanager
async def failing(fault: Fault) -> AsyncGenerator[None, None]:
    """Check that the block fails, and with this fault."""
    try:
        yield
    except Exception as error:
        ends = list(leaves(error))
        found = [(each, list(lines_of(each))) for each in ends]
        assert any(shows(fault, each) for each in ends), f"{fault.name} ended by accident: {found}"
    else:
        pytest.fail(f"the SDK does well: {fault.name}")


@pytest.fixture
def against_the_sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = request.getfixturevalue("fault")
    if fault.error is TimeoutError:
        for module in (raw_client, scenarios, sys.modules[__name__]):
            monkeypatch.setattr(module, "PATIENCE", fault.patience)
    # Every task without a TTL breaks the schema; that is fault 22, and would hide the others.
    monkeypatch.setattr(raw_client, "validate_response", lambda request, response: None)
    monkeypatch.setattr(raw_client, "validate_from_server", lambda message: None)


def on_the_sdk(test: TestT) -> TestT:
    """Mark a test that runs on the SDK's own runtime, where that has the faults."""
    reason = f"the faults were found in mcp {RELEASE_WITH_THE_FAULTS}"
    for mark in (
        pytest.mark.skipif(version("mcp") != RELEASE_WITH_THE_FAULTS, reason=reason),
        pytest.mark.parametrize("anyio_backend", ["asyncio"]),
        pytest.mark.usefixtures("against_the_sdk"),
        pytest.mark.filterwarnings("ignore::ResourceWarning"),  # streams of connections that broke
    ):
        test = mark(test)
    return test


def for_each_that_shows_there(faults: list[Fault]) -> pytest.MarkDecorator:
    """Run a test for each fault that the SDK shows in every run on a machine of any speed."""
    chosen = [fault for fault in faults if not fault.by_chance and (IS_LONG or fault.error is not TimeoutError)]
    return pytest.mark.parametrize("fault", chosen, ids=lambda fault: fault.name)


@on_the_sdk
@for_each_that_shows_there(SERVER_FAULTS)
async def test_it_does_not_hold_on_the_sdks_server_that(fault: Fault) -> None:
    async with failing(fault), sdk_world(remote_store=fault.remote_store) as world:
        await fault.scenario(world)


@on_the_sdk
@for_each_that_shows_there(STORE_FAULTS)
async def test_it_does_not_hold_in_the_sdks_store_that(fault: Fault) -> None:
    async with failing(fault):
        await fault.scenario(SDKBackend())
