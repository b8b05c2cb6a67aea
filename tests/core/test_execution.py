"""`Execution`: from an ordinary call to a task, quietly or after a while; and the limits for tasks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    InvalidTransitionError,
    LimitExceededError,
    Outcome,
    ServerTaskContext,
    TaskRecord,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.core.types import NewTask, TaskFilter
from tests.core.leased_store import Client
from tests.core.worlds import NOTHING, World, open_world
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

Result = dict[str, Any]


async def forever(execution: Execution[Result]) -> Result:
    await anyio.sleep_forever()
    raise AssertionError


async def quick(execution: Execution[Result]) -> Result:
    return {"done": True}


# --- quietly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raises", [False, True])
async def test_a_quiet_task_whose_work_ends_first_was_an_ordinary_call_and_leaves_nothing(raises: bool) -> None:
    async with open_world(yielding=True) as world:

        async def work(execution: Execution[Result]) -> Result:
            await execution.reserve(TaskSpec())
            if raises:
                raise LookupError("mine")
            return {"ordinary": True}

        if raises:
            with pytest.raises(LookupError, match="mine"):
                await world.runtime.run(work)
        else:
            assert await world.runtime.run(work) == {"ordinary": True}
        assert world.memory.statistics().tasks == 0
        assert world.kept() == NOTHING


async def test_a_quiet_task_is_its_callers_once_it_is_announced() -> None:
    async with open_world(yielding=True) as world:
        release = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await execution.reserve(TaskSpec())
            await anyio.lowlevel.checkpoint()
            execution.publish()
            await release.wait()
            return {"n": 1}

        record = await world.runtime.run(work)
        assert isinstance(record, TaskRecord)
        release.set()
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"n": 1}


@pytest.mark.parametrize("steps", range(14))
async def test_a_caller_cancelled_while_its_task_is_quiet_leaves_no_live_task(steps: int) -> None:
    """L6, L12."""
    async with open_world(yielding=True) as world:

        async def work(execution: Execution[Result]) -> Result:
            await execution.reserve(TaskSpec())
            return await forever(execution)

        async with anyio.create_task_group() as group:
            group.start_soon(world.runtime.run, work)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await world.until_idle()
        assert world.live_tasks() == 0
        assert world.kept() == NOTHING


# --- after a while ---------------------------------------------------------------------------------------------


async def test_slow_work_becomes_a_task_when_its_time_is_up_and_not_before() -> None:
    async with open_world(yielding=True) as world:
        release = anyio.Event()
        got: list[Any] = []

        async def work(execution: Execution[Result]) -> Result:
            execution.promote_after(1000, TaskSpec(owner="me"))
            execution.promote_after(10, TaskSpec(owner="me"))  # replaces the first
            await release.wait()
            return {"slow": True}

        async def call() -> None:
            got.append(await world.runtime.run(work))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(9.9)
            await anyio.wait_all_tasks_blocked()
            assert (got, world.memory.statistics().tasks) == ([], 0)
            world.clock.advance(0.2)
        record = got[0]
        assert isinstance(record, TaskRecord)
        release.set()
        assert (await world.runtime.result(record.task_id, owner="me")).result == {"slow": True}
        await world.until_idle()
        assert world.clock.waiting <= 1, "only the watch of deadlines waits"


async def test_work_that_time_made_a_task_takes_no_slot_from_work_that_waits_for_one() -> None:
    async with open_world(settings=TaskSettings(max_running=1)) as world:

        async def slow(execution: Execution[Result]) -> Result:
            execution.promote_after(10, TaskSpec())
            await anyio.sleep_forever()
            raise AssertionError

        async def quick(execution: Execution[Result]) -> Result:
            return {"quick": True}

        got: list[Any] = []

        async def call() -> None:
            got.append(await world.runtime.run(slow))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(10)
        assert isinstance(got[0], TaskRecord)
        await anyio.wait_all_tasks_blocked()
        assert world.runtime.statistics().used_slots == 0
        other = await world.runtime.submit(TaskSpec(), quick)
        assert (await world.runtime.result(other.task_id, owner=None)).result == {"quick": True}
        assert got[0].task_id in world.runtime.statistics().running
        await world.runtime.cancel(got[0].task_id, owner=None)


async def test_work_becomes_the_task_that_its_caller_wants_after_a_while_and_goes_on() -> None:
    async with open_world(yielding=True) as world:
        release = anyio.Event()
        got: list[Any] = []

        async def work(execution: Execution[Result]) -> Result:
            await release.wait()
            return {"id": (await execution.begin(TaskSpec(owner="late"))).task_id}

        async def call() -> None:
            got.append(await world.runtime.run(work, begin_after=(10, TaskSpec(owner="me"))))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(9.9)
            await anyio.wait_all_tasks_blocked()
            assert (got, world.memory.statistics().tasks) == ([], 0)
            world.clock.advance(0.2)
        record = got[0]
        release.set()
        assert (await world.runtime.result(record.task_id, owner="me")).result == {"id": record.task_id}
        await world.until_idle()
        assert world.clock.waiting <= 1, "only the watch of deadlines waits"
        assert world.kept() == NOTHING


async def test_work_that_cannot_become_a_task_after_a_while_goes_on_as_a_call(caplog: pytest.LogCaptureFixture) -> None:
    async with open_world(settings=TaskSettings(max_tasks_per_owner=1)) as world:
        other = await world.runtime.submit(TaskSpec(owner="me"), forever)
        release = anyio.Event()
        got: list[Any] = []

        async def work(execution: Execution[Result]) -> Result:
            await release.wait()
            return {"slow": True}

        async def call() -> None:
            got.append(await world.runtime.run(work, begin_after=(10, TaskSpec(owner="me"))))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(10)
            await anyio.wait_all_tasks_blocked()
            assert got == []
            release.set()
        assert got == [{"slow": True}]
        assert "A call could not become a task" in caplog.text
        await world.runtime.cancel(other.task_id, owner="me")


async def test_a_caller_that_goes_while_it_waits_for_its_task_takes_the_work_with_it() -> None:
    async with open_world() as world:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(world.runtime.run, forever, begin_after=(10, TaskSpec())))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        await world.until_idle()
        assert world.memory.statistics().tasks == 0
        assert world.kept() == NOTHING


@pytest.mark.parametrize("by_caller", [False, True], ids=["by the work", "by its caller"])
async def test_work_that_is_quick_enough_stays_an_ordinary_call_and_its_timer_goes(by_caller: bool) -> None:
    async with open_world() as world:

        async def work(execution: Execution[Result]) -> Result:
            if not by_caller:
                execution.promote_after(10, TaskSpec())
            return {"quick": True}

        begin_after = (10, TaskSpec()) if by_caller else None
        assert await world.runtime.run(work, begin_after=begin_after) == {"quick": True}
        await anyio.wait_all_tasks_blocked()
        assert world.clock.waiting == 0
        world.clock.advance(100)
        await anyio.wait_all_tasks_blocked()
        assert world.memory.statistics().tasks == 0


@pytest.mark.parametrize("by_caller", [False, True], ids=["by the work", "by its caller"])
@pytest.mark.parametrize("steps", range(10))
async def test_work_that_ends_just_when_its_time_is_up_is_one_or_the_other(steps: int, by_caller: bool) -> None:
    """L2: its caller gets the result, or a task that has it; never neither, and nothing else is left."""
    async with open_world(yielding=True) as world:
        release = anyio.Event()
        got: list[Any] = []

        async def work(execution: Execution[Result]) -> Result:
            if not by_caller:
                execution.promote_after(10, TaskSpec())
            await release.wait()
            return {"n": 1}

        async def call() -> None:
            got.append(await world.runtime.run(work, begin_after=(10, TaskSpec()) if by_caller else None))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(10)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            release.set()
        await world.until_idle()
        if isinstance(got[0], TaskRecord):
            assert (await world.runtime.result(got[0].task_id, owner=None)).result == {"n": 1}
        else:
            assert got == [{"n": 1}]
            await anyio.wait_all_tasks_blocked()
            assert world.memory.statistics().tasks == 0
        assert world.kept() == NOTHING


class _SlowStore(InMemoryTaskStore):
    """A store that has created a task, and takes its time to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.created = anyio.Event()
        self.goes_on = anyio.Event()

    async def create_task(self, new: NewTask | None = None, **fields: Any) -> TaskRecord:
        record = await super().create_task(new, **fields)
        self.created.set()
        await self.goes_on.wait()
        return record


async def test_work_that_gives_up_becoming_a_task_while_it_is_created_leaves_no_task_behind() -> None:
    """L6 and L12: no task stays `working` that no work runs for."""
    store = _SlowStore()
    scope = anyio.CancelScope()

    async def work(execution: Execution[Result]) -> Result:
        with scope:
            await execution.begin(TaskSpec())
        return {"n": 1}

    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
            async with anyio.create_task_group() as group:
                group.start_soon(runtime.run, work)
                await store.created.wait()
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
                store.goes_on.set()
            assert scope.cancelled_caught
            assert store.statistics().live == 0


async def test_a_call_that_is_given_up_while_its_task_is_created_leaves_it_cancelled() -> None:
    """L9: and its work does not go on."""
    store = _SlowStore()
    reached: list[str] = []

    async def work(execution: Execution[Result]) -> Result:
        await execution.begin(TaskSpec())
        reached.append("behind the beginning")
        return {"n": 1}

    async def call() -> None:
        with scope:
            await runtime.run(work)

    scope = anyio.CancelScope()
    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await store.created.wait()
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
                store.goes_on.set()
            while runtime.statistics().calls:
                await anyio.lowlevel.checkpoint()
            page = await store.search_tasks(TaskFilter(), limit=10)
    assert [record.status for record in page.records] == ["cancelled"]
    assert reached == []


# --- limits ----------------------------------------------------------------------------------------------------

TWO = TaskSettings(max_tasks_per_owner=2, shutdown_grace=0)


async def test_one_task_too_many_is_refused_and_nothing_is_lost() -> None:
    """Design section 5, L13: others are not affected, and an ended task makes room."""
    async with open_world(yielding=True, settings=TWO) as world:
        first = await world.runtime.submit(TaskSpec(owner="me"), forever)
        await world.runtime.submit(TaskSpec(owner="me"), forever)
        with pytest.raises(LimitExceededError, match="at most 2"):
            await world.runtime.submit(TaskSpec(owner="me"), forever)
        await world.runtime.submit(TaskSpec(owner="you"), forever)
        assert world.live_tasks() == 3
        await anyio.wait_all_tasks_blocked()
        await world.runtime.cancel(first.task_id, owner="me")
        await anyio.wait_all_tasks_blocked()
        await world.runtime.submit(TaskSpec(owner="me"), forever)
        assert world.live_tasks() == 3
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
async def test_an_ended_task_makes_room_at_once_although_its_work_still_cleans_up(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(settings=replace(TWO, max_tasks_per_owner=1)) as world:
        clear, cleaned = world.queue.clear, anyio.Event()

        async def clear_late(task_id: str) -> None:
            await cleaned.wait()
            await clear(task_id)

        async def work(execution: Execution[Result]) -> Result:
            if ending == "completed":
                monkeypatch.setattr(world.queue, "clear", clear_late)
                return {}
            try:
                return await forever(execution)
            finally:
                with anyio.CancelScope(shield=True):
                    await cleaned.wait()

        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        if ending == "cancelled":
            await world.runtime.cancel(record.task_id, owner=None)
        assert await _status(world, record) == ending
        try:
            again = await world.runtime.submit(TaskSpec(), forever)
            with pytest.raises(LimitExceededError):
                await world.runtime.submit(TaskSpec(), forever)
        finally:
            cleaned.set()
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(LimitExceededError):
            await world.runtime.submit(TaskSpec(), forever)
        await world.runtime.cancel(again.task_id, owner=None)
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


async def test_of_many_that_start_at_once_no_more_than_the_limit_get_a_task() -> None:
    async with open_world(yielding=True, settings=TWO) as world:
        refused = 0

        async def start() -> None:
            nonlocal refused
            try:
                await world.runtime.submit(TaskSpec(owner="me"), forever)
            except LimitExceededError:
                refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(start)
        assert (refused, world.live_tasks()) == (8, 2)
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


async def detaching(execution: Execution[Result]) -> Result:
    execution.detach()
    return {}


@pytest.mark.parametrize("how", ["finish", "cancel", "expire"])
async def test_a_task_that_something_outside_will_end_counts_until_it_has_ended(how: str) -> None:
    """A6: else a client could have any number of them."""
    async with open_world(yielding=True, settings=TWO) as world:
        outside = await world.runtime.submit(TaskSpec(ttl_ms=10_000), detaching)
        await world.until_idle()
        await world.runtime.submit(TaskSpec(), forever)
        with pytest.raises(LimitExceededError):
            await world.runtime.submit(TaskSpec(), forever)
        if how == "finish":
            await world.runtime.finish(outside.task_id, Outcome.completed({}))
        elif how == "cancel":
            await world.runtime.cancel(outside.task_id, owner=None)
        else:
            world.clock.advance(9.5)
            assert await world.until(outside.task_id, "failed") == "failed"
            await anyio.wait_all_tasks_blocked()
        await world.runtime.submit(TaskSpec(), forever)
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


async def test_a_task_that_was_ended_from_outside_before_its_work_returned_counts_no_more() -> None:
    async with open_world(yielding=True, settings=TWO) as world:

        async def work(execution: Execution[Result]) -> Result:
            execution.detach()
            assert execution.record is not None
            await world.store.finish_task(execution.record.task_id, Outcome.completed({}))
            with pytest.raises(InvalidTransitionError):
                await world.runtime.finish(execution.record.task_id, Outcome.completed({}))
            return {}

        await world.runtime.submit(TaskSpec(), work)
        await world.until_idle()
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


async def test_an_ordinary_call_that_may_not_become_a_task_is_told_so() -> None:
    async with open_world(yielding=True, settings=TWO) as world:
        for _ in range(2):
            await world.runtime.submit(TaskSpec(), forever)

        async def work(execution: Execution[Result]) -> Result:
            await execution.begin(TaskSpec())
            raise AssertionError

        with pytest.raises(LimitExceededError):
            await world.runtime.run(work)


async def test_no_more_work_runs_at_once_than_was_asked_for_and_all_of_it_runs() -> None:
    async with open_world(yielding=True, settings=TaskSettings(max_running=3, shutdown_grace=0)) as world:
        running, most = 0, 0
        release = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1
            return {}

        records = [await world.runtime.submit(TaskSpec(), work) for _ in range(20)]
        await anyio.wait_all_tasks_blocked()
        assert running == 3
        release.set()
        for record in records:
            assert (await world.runtime.result(record.task_id, owner=None)).status == "completed"
        assert most == 3


async def test_work_that_waits_for_its_turn_can_be_cancelled_and_takes_nobodys_place() -> None:
    """L9: at random moments, some while they wait and some while they run."""
    random = Random(7)
    async with open_world(yielding=True, settings=TaskSettings(max_running=2, shutdown_grace=0)) as world:

        async def life(moment: int) -> None:
            record = await world.runtime.submit(TaskSpec(), forever)
            for _ in range(moment):
                await anyio.lowlevel.checkpoint()
            await world.runtime.cancel(record.task_id, owner=None)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(life, random.randrange(60))
        await world.until_idle()
        assert world.live_tasks() == 0
        record = await world.runtime.submit(TaskSpec(), quick)
        assert (await world.runtime.result(record.task_id, owner=None)).status == "completed"
    assert (world.runtime.statistics().owners, world.runtime.statistics().live_tasks) == (0, 0)


async def test_a_task_that_waits_for_its_turn_ends_at_its_deadline_or_with_the_shutdown() -> None:
    """L7, L12."""
    async with open_world(yielding=True, settings=TaskSettings(max_running=1, shutdown_grace=0)) as world:
        await world.runtime.submit(TaskSpec(), forever)
        await anyio.wait_all_tasks_blocked()
        due = await world.runtime.submit(TaskSpec(ttl_ms=10_000), forever)
        last = await world.runtime.submit(TaskSpec(), partial(forever))
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(9.5)
        assert await world.until(due.task_id, "failed") == "failed"
    assert await _status(world, last) == "failed"


async def test_work_that_asks_gives_its_turn_away_until_it_has_its_answer() -> None:
    """L13: tasks that wait for people do not hold up those that work."""
    async with open_world(yielding=True, settings=TaskSettings(max_running=1, shutdown_grace=0)) as world:
        running, most = 0, 0

        async def ask(execution: Execution[Result]) -> Result:
            nonlocal running, most
            context = server_context(world, execution)
            async with anyio.create_task_group() as group:  # two questions at once have one turn together
                group.start_soon(context.ask, "roots/list", {})
                await context.ask("roots/list", {})
            running += 1
            most = max(most, running)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            running -= 1
            return {}

        askers = [(await world.runtime.submit(TaskSpec(), ask)).task_id for _ in range(3)]
        keys = [await world.until_asked(task_id, 2) for task_id in askers]
        record = await world.runtime.submit(TaskSpec(), quick)
        assert (await world.runtime.result(record.task_id, owner=None)).status == "completed"
        for task_id, asked in zip(askers, keys, strict=True):
            await world.runtime.answer(task_id, {key: {"roots": []} for key in asked}, owner=None)
        for task_id in askers:
            assert (await world.runtime.result(task_id, owner=None)).status == "completed"
        assert most == 1


async def test_work_whose_turn_does_not_come_back_after_an_answer_can_be_cancelled() -> None:
    """L6, L9."""
    async with open_world(yielding=True, settings=TaskSettings(max_running=1, shutdown_grace=0)) as world:

        async def ask(execution: Execution[Result]) -> Result:
            return await server_context(world, execution).ask("roots/list", {})

        asker = await world.runtime.submit(TaskSpec(), ask)
        (key,) = await world.until_asked(asker.task_id)
        await world.runtime.submit(TaskSpec(), forever)
        await anyio.wait_all_tasks_blocked()
        await world.runtime.answer(asker.task_id, {key: {"roots": []}}, owner=None)
        await anyio.wait_all_tasks_blocked()
        assert await _status(world, asker) == "working"
        await world.runtime.cancel(asker.task_id, owner=None)
        assert await _status(world, asker) == "cancelled"


def server_context(world: World, execution: Execution[Result]) -> ServerTaskContext:
    assert execution.record is not None
    return ServerTaskContext(
        task=execution.record.task,
        store=world.store,
        session=Client(),
        queue=world.queue,
        handler=TaskResultHandler(world.store, world.queue),
        execution=execution,
    )


async def _status(world: World, record: TaskRecord) -> str:
    stored = await world.memory.get_task(record.task_id)
    assert stored is not None
    return stored.status
