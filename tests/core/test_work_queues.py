"""`WorkQueue`: work that waits for slots of its own, by its owner's turn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import Execution, LimitExceededError, Outcome, TaskSettings, TaskSpec, WorkQueue
from mcp_task_runtime.core.slots import Slots, WorkSlots
from mcp_task_runtime.core.types import TaskRequest
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from tests.core.leased_store import open_cluster
from tests.core.worlds import World, open_world


def spec(queue: WorkQueue | None, owner: str | None = None, name: str = "tool") -> TaskSpec:
    return TaskSpec(owner=owner, request=TaskRequest(name=name), queue=queue)


class Line:
    """Work that runs until it is let go, and the order in which it began."""

    def __init__(self, world: World) -> None:
        self.began: list[str] = []
        self.ids: dict[str, str] = {}
        self._world = world
        self._release: dict[str, anyio.Event] = {}

    async def submit(self, label: str, queue: WorkQueue | None, owner: str | None = None) -> str:
        """Submit work under a label; let it begin if it can."""
        release = self._release[label] = anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            self.began.append(label)
            await release.wait()
            return Outcome.completed({})

        record = await self._world.runtime.submit(spec(queue, owner), work, outcome_of=lambda outcome: outcome)
        self.ids[label] = record.task_id
        await self.still()
        return record.task_id

    async def end(self, label: str) -> None:
        """Let work end."""
        self._release[label].set()
        await self._world.until(self.ids[label], "completed")
        await self.still()

    async def still(self) -> None:
        """Let everything run until it waits."""
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    async def message(self, label: str) -> str | None:
        """Return the status message of a task."""
        record = await self._world.memory.get_task(self.ids[label])
        assert record is not None
        return record.task.status_message


async def test_work_waits_for_the_slots_of_its_queue_and_says_so() -> None:
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 2)
        for label in "abc":
            await line.submit(label, queue)
        await line.submit("other", None)
        await line.submit("elsewhere", WorkQueue("mails", 1))
        assert line.began == ["a", "b", "other", "elsewhere"]
        assert [await line.message(label) for label in "abc"] == [None, None, "Queued"]
        assert world.runtime.statistics().queued == 1
        await line.end("b")
        assert line.began[-1] == "c"
        assert await line.message("c") == "Queued", "quick work does without a write"
        world.clock.advance(0.1)
        await line.still()
        assert await line.message("c") == "Running"
        assert world.runtime.statistics().queued == 0
        for label in ("a", "c", "other", "elsewhere"):
            await line.end(label)


async def test_a_cancelled_task_does_not_say_that_it_waits_or_runs() -> None:
    """What its work has said stays."""
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 1)
        for label in ("before", "running", "telling", "queued"):
            await line.submit(label, queue)
        await world.runtime.cancel(line.ids["queued"], owner=None)
        assert await line.message("queued") == "The task was cancelled"
        await line.end("before")
        world.clock.advance(0.1)
        await line.still()
        assert await line.message("running") == "Running"
        await world.runtime.cancel(line.ids["running"], owner=None)
        await line.still()
        assert await line.message("running") == "The task was cancelled"
        await world.memory.update_task(line.ids["telling"], status_message="Collecting sources")
        await world.runtime.cancel(line.ids["telling"], owner=None)
        assert await line.message("telling") == "Collecting sources"


@pytest.mark.parametrize("queue", [WorkQueue("reports", 1), None], ids=["of a queue", "of all work"])
async def test_owners_have_turns(queue: WorkQueue | None) -> None:
    async with open_world(settings=TaskSettings(shutdown_grace=0, max_running=None if queue else 1)) as world:
        line = Line(world)
        for label in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
            await line.submit(label, queue, label[0])
        order = ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
        for number, label in enumerate(order, 1):
            assert line.began == order[:number]
            await line.end(label)


async def test_one_more_than_may_wait_is_refused_and_counted_no_more_when_it_ends() -> None:
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 1, max_queued=2)
        for label in "abc":
            await line.submit(label, queue)
        with pytest.raises(LimitExceededError, match="tasks queued for 'reports' \\(at most 2\\)"):
            await line.submit("d", queue)
        assert world.live_tasks() == 3
        await world.runtime.cancel(line.ids["b"], owner=None)
        await line.still()
        await line.submit("e", queue)
        with pytest.raises(LimitExceededError):
            await line.submit("f", queue)
        for label in "ace":
            await line.end(label)
        assert line.began == ["a", "c", "e"]
        assert world.runtime.statistics().queued == 0


async def test_none_may_wait_where_none_is_asked_for() -> None:
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 1, max_queued=0)
        await line.submit("a", queue)
        with pytest.raises(LimitExceededError):
            await line.submit("b", queue)
        await line.end("a")
        await line.submit("c", queue)
        await line.end("c")


async def test_a_task_that_was_not_made_is_not_counted() -> None:
    async with open_cluster(1) as (_, (a,)):
        queue = WorkQueue("reports", 1, max_queued=1)
        a.link.fails = {"create_task"}
        for _ in range(5):
            with pytest.raises(StoreUnavailableError):
                await a.runtime.submit(spec(queue), _nothing)
        assert a.runtime.statistics().queued == 0


async def _nothing(execution: Execution[Any]) -> dict[str, Any]:
    return {}


async def test_tasks_that_are_made_at_once_are_counted_before_they_exist() -> None:
    async with open_world(yielding=True) as world:
        queue, refused = WorkQueue("reports", 1, max_queued=2), []

        async def submit() -> None:
            try:
                await world.runtime.submit(spec(queue), _forever)
            except LimitExceededError as error:
                refused.append(error)

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(submit)
        assert len(refused) == 7


async def _forever(execution: Execution[Any]) -> dict[str, Any]:
    await anyio.sleep_forever()
    raise AssertionError


async def test_work_that_waits_for_an_answer_leaves_its_slot_to_others() -> None:
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 1)

        async def asks(execution: Execution[Any]) -> dict[str, Any]:
            line.began.append("asks")
            execution.release_slot()
            await go_on.wait()
            await execution.acquire_slot()
            line.began.append("answered")
            return {}

        go_on = anyio.Event()
        asking = await world.runtime.submit(spec(queue), asks)
        await line.still()
        await line.submit("a", queue)
        assert line.began == ["asks", "a"]
        go_on.set()
        await line.still()
        assert line.began == ["asks", "a"]
        await line.end("a")
        await world.until(asking.task_id, "completed")
        assert line.began == ["asks", "a", "answered"]


async def test_a_queue_holds_for_a_call_that_becomes_a_task_too() -> None:
    async with open_world() as world:
        line, queue = Line(world), WorkQueue("reports", 1)
        await line.submit("a", queue)

        async def call(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
            await execution.begin(spec(queue))
            line.began.append("call")
            return {}

        await world.runtime.run(call)
        await line.still()
        assert line.began == ["a"]
        await line.end("a")
        assert line.began == ["a", "call"]


async def test_a_rerun_waits_in_the_queue_of_its_tool() -> None:
    async with open_cluster() as (cluster, (a, b)):
        queue, began = WorkQueue("reports", 1), []
        release = anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            began.append(execution)
            await release.wait()
            return Outcome.completed({})

        for process in (a, b):
            process.runtime.register("tool", work, queue=queue)
        rerunnable = TaskSpec(request=TaskRequest(name="tool", rerunnable=True), queue=replace(queue, concurrency=9))
        with pytest.raises(ValueError, match="two queues with the name 'reports'"):
            await a.runtime.submit(rerunnable)
        for _ in range(3):
            await a.runtime.submit(replace(rerunnable, queue=None))
        await cluster.settle()
        assert len(began) == 3
        await cluster.cut(a)
        await cluster.pass_time(20)
        assert len(began) == 4, "one of the three runs in the other process"
        release.set()
        await cluster.settle()
        assert len(began) == 6


def test_two_queues_with_one_name_are_refused_when_tools_are_registered() -> None:
    from mcp_task_runtime import InMemoryTaskStore, TaskRuntime

    runtime = TaskRuntime(InMemoryTaskStore())

    async def work(execution: Execution[Outcome]) -> Outcome:
        raise AssertionError

    runtime.register("one", work, queue=WorkQueue("reports", 1))
    runtime.register("two", work, queue=WorkQueue("reports", 1))
    with pytest.raises(ValueError, match="two queues with the name 'reports'"):
        runtime.register("three", work, queue=WorkQueue("reports", 2))


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"concurrency": 1, "max_queued": -1}])
def test_a_queue_of_nonsense_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        WorkQueue("reports", **options)


# --- slots --------------------------------------------------------------------------------------------------------


async def test_a_wait_for_a_slot_that_is_cancelled_leaves_nothing() -> None:
    async def setup() -> Trial:
        slots = Slots(1)
        await slots.acquire("first", "a")

        async def release() -> None:
            slots.release("first")

        async def look() -> str:
            slots.release("first")
            slots.release("second")
            await slots.acquire("third", "b")
            return f"{len(slots)}"

        return Trial(partial(slots.acquire, "second", "a"), look, meanwhile=release)

    assert await check_cancellation(setup) >= 1


@pytest.mark.parametrize("cancelled", ["first", "second", "both", "none"])
@pytest.mark.parametrize("late", [False, True])
async def test_coroutines_of_one_work_share_a_wait(cancelled: str, late: bool) -> None:
    slots = Slots(1)
    await slots.acquire("other", None)
    got: list[str] = []
    scopes = {"first": anyio.CancelScope(), "second": anyio.CancelScope()}

    async def wait(name: str) -> None:
        with scopes[name]:
            await slots.acquire("work", "a")
            got.append(name)

    async with anyio.create_task_group() as group:
        for name in scopes:
            group.start_soon(wait, name)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        if late:
            slots.release("other")
        for name, scope in scopes.items():
            if cancelled in (name, "both"):
                scope.cancel()
        if not late:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            slots.release("other")
    held = slots.has_room("work") and not slots.has_room("another")
    assert held == bool(got)


async def test_a_runtime_that_opens_again_has_every_slot_of_its_queues() -> None:
    queue = WorkQueue("reports", concurrency=1, max_queued=1)
    slots = WorkSlots(1)
    for key in ("lost with its loop", "queued"):
        slots.admit(queue)
        slots.enter(key, queue)
    await slots.acquire("lost with its loop", queue)
    assert slots.queued == 1
    assert not slots.has_room("another", queue)
    slots.reset()
    assert (len(slots), slots.queued) == (0, 0)
    assert slots.has_room("another", queue)
    slots.close("queued", queue)
    assert slots.admit(queue), "it begins at once"
    assert slots.queued == 1


async def test_turns_cost_no_search() -> None:
    """A thousand owners with ten tasks each: what waits is found by its turn."""
    slots = Slots(1)
    await slots.acquire("first", None)
    done: list[tuple[int, int]] = []

    async def wait(owner: int, number: int) -> None:
        await slots.acquire((owner, number), owner)
        done.append((owner, number))
        slots.release((owner, number))

    async with anyio.create_task_group() as group:
        for owner in range(100):
            for number in range(10):
                group.start_soon(wait, owner, number)
        await anyio.wait_all_tasks_blocked()
        slots.release("first")
    rounds = [{owner for owner, _ in done[start : start + 100]} for start in range(0, 1000, 100)]
    assert all(len(owners) == 100 for owners in rounds), "each owner once a round"
    assert len(slots) == 0
