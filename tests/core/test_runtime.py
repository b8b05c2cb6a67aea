"""`TaskRuntime`: starting, running, ending and cancelling work."""

from __future__ import annotations

import gc
import logging
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import pytest
from typing_extensions import Unpack

from mcp_task_runtime import (
    CapabilityError,
    Execution,
    InMemoryTaskMessageQueue,
    InMemoryTaskStore,
    InvalidCursorError,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRecord,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
    task_execution,
)
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.core import workers
from mcp_task_runtime.core.types import Fence, NewTask, NewTaskFields, TaskStatus
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.interleaving import Race, explore_interleavings
from mcp_task_runtime.testing.yielding import YieldingTaskStore
from tests.core.worlds import ACCEPT, NOTHING, World, make_world, open_world
from tests.support.patience import PATIENCE

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

Result = dict[str, Any]
Work = Callable[[Execution[Result]], Awaitable[Result]]


async def forever(execution: Execution[Result]) -> Result:
    await anyio.sleep_forever()
    raise AssertionError


async def quick(execution: Execution[Result]) -> Result:
    return {"done": True}


# --- start and run ---------------------------------------------------------------------------------------------


async def test_what_only_the_beginning_of_work_needs_is_not_kept_while_it_waits() -> None:
    class Arguments:
        """Stands for what is large."""

    began = anyio.Event()

    async def work(arguments: Arguments, execution: Execution[Result]) -> Result:
        del arguments
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    async def submit(runtime: TaskRuntime) -> weakref.ref[Arguments]:
        arguments = Arguments()
        await runtime.submit(TaskSpec(), partial(work, arguments))
        return weakref.ref(arguments)

    with anyio.fail_after(PATIENCE):
        async with open_world() as world:
            kept = await submit(world.runtime)
            await began.wait()
            gc.collect()
            assert kept() is None


async def test_a_started_task_can_be_found_at_once_and_its_result_fetched_later() -> None:
    """Wire rule C4."""
    async with open_world(yielding=True) as world:
        release = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await release.wait()
            return {"n": 1}

        record = await world.runtime.submit(TaskSpec(owner="me"), work)
        view = await world.runtime.get(record.task_id, owner="me")
        assert (view.task.status, view.record.revision) == ("working", 1)
        release.set()
        outcome = await world.runtime.result(record.task_id, owner="me")
        assert (outcome.status, outcome.result) == ("completed", {"n": 1})
        await world.until_idle()
        assert world.kept() == NOTHING


async def test_a_runtime_that_is_not_open_starts_nothing() -> None:
    world = make_world()
    with pytest.raises(RuntimeError, match="not open"):
        await world.runtime.submit(TaskSpec(), quick)
    with pytest.raises(RuntimeError, match="not open"):
        await world.runtime.run(quick)
    async with world.runtime:
        with pytest.raises(RuntimeError, match="already open"):
            await world.runtime.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        await world.runtime.submit(TaskSpec(), quick)
    assert world.live_tasks() == 0
    assert world.kept() == NOTHING


async def test_a_store_without_a_queue_of_its_own_needs_one() -> None:
    with pytest.raises(ValueError, match="queue"):
        TaskRuntime(YieldingTaskStore(InMemoryTaskStore()))
    store = InMemoryTaskStore()
    assert TaskRuntime(store).queue is store.message_queue
    other = InMemoryTaskMessageQueue()
    assert TaskRuntime(store, other).queue is other


@pytest.mark.parametrize("store", [None, "sqlite:///tasks.db", InMemoryTaskStore, TaskSettings()])
async def test_what_is_no_store_is_refused_by_name(store: Any) -> None:
    with pytest.raises(ValueError, match=r"store must be a TaskStore; open_store"):
        TaskRuntime(store)


async def test_what_are_no_settings_is_refused_by_name() -> None:
    settings: Any = {"max_running": 2}
    with pytest.raises(ValueError, match="settings must be TaskSettings"):
        TaskRuntime(InMemoryTaskStore(), settings=settings)


async def test_an_ordinary_call_gives_back_what_the_work_returned_and_leaves_no_task() -> None:
    async with open_world() as world:
        assert await world.runtime.run(quick) == {"done": True}
        assert world.memory.statistics().tasks == 0
        assert world.kept() == NOTHING


async def test_an_ordinary_call_raises_what_the_work_raised() -> None:
    async def work(execution: Execution[Result]) -> Result:
        raise LookupError("mine")

    async with open_world() as world:
        with pytest.raises(LookupError, match="mine"):
            await world.runtime.run(work)
        assert world.kept() == NOTHING


async def test_work_that_begins_gives_its_caller_the_record_and_goes_on() -> None:
    async with open_world(yielding=True) as world:
        release = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await execution.begin(TaskSpec(owner="me"))
            await release.wait()
            return {"n": 2}

        record = await world.runtime.run(work)
        assert isinstance(record, TaskRecord)
        assert record.status == "working"
        release.set()
        assert (await world.runtime.result(record.task_id, owner="me")).result == {"n": 2}


async def test_beginning_twice_gives_the_same_task() -> None:
    async with open_world(yielding=True) as world:
        ids: list[str] = []

        async def work(execution: Execution[Result]) -> Result:
            ids.append((await execution.begin(TaskSpec(ttl_ms=5000))).task_id)
            ids.append((await execution.begin(TaskSpec(ttl_ms=9000))).task_id)
            return {}

        record = await world.runtime.run(work)
        assert isinstance(record, TaskRecord)
        await world.until_idle()
        assert set(ids) == {record.task_id}
        assert world.memory.statistics().tasks == 1


async def test_beginning_twice_at_once_makes_one_task() -> None:
    """A timer that promotes slow work and the work itself may both begin."""
    async with open_world(yielding=True) as world:

        async def work(execution: Execution[Result]) -> Result:
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(execution.begin, TaskSpec())
            return {}

        await world.runtime.run(work)
        await world.until_idle()
        assert world.memory.statistics().tasks == 1
        assert world.live_tasks() == 0


async def test_work_whose_task_could_not_be_created_is_still_an_ordinary_call() -> None:
    class Full(InMemoryTaskStore):
        async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
            raise StoreUnavailableError("down")

    async def work(execution: Execution[Result]) -> Result:
        with pytest.raises(StoreUnavailableError):
            await execution.begin(TaskSpec())
        return {"without": "task"}

    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(Full()) as runtime:
            assert await runtime.run(work) == {"without": "task"}
            with pytest.raises(StoreUnavailableError):
                await runtime.submit(TaskSpec(), quick)
            assert (runtime.statistics().calls, runtime.statistics().running) == (0, frozenset())


@asynccontextmanager
async def hosted_trials(
    prepare: Callable[[World], Awaitable[Callable[[], Awaitable[Any]]]],
) -> AsyncIterator[Callable[[], Awaitable[Trial]]]:
    """Make trials of an operation on a runtime that is open outside of what is cancelled."""
    hosts = AsyncExitStack()

    async def setup() -> Trial:
        world = make_world(yielding=True, settings=TaskSettings(shutdown_grace=0))
        await hosts.enter_async_context(RuntimeHost(world.runtime))
        operation = await prepare(world)

        async def observe() -> tuple[list[TaskStatus], int]:
            await anyio.wait_all_tasks_blocked()
            return await world.statuses(), world.runtime.statistics().calls

        return Trial(operation, observe, also=((["cancelled"], 0),))

    with anyio.fail_after(PATIENCE):
        async with hosts:
            yield setup


async def test_starting_cancelled_at_any_await_leaves_no_task_without_work() -> None:
    """L6."""

    async def prepare(world: World) -> Callable[[], Awaitable[Any]]:
        return partial(world.runtime.submit, TaskSpec(), forever)

    async with hosted_trials(prepare) as setup:
        assert await check_cancellation(setup) >= 2


async def test_a_caller_cancelled_at_any_await_of_run_leaves_no_task_that_nobody_knows_of() -> None:
    """L6, L12: who was not given the handle has no task that runs."""

    async def work(execution: Execution[Result]) -> Result:
        await execution.begin(TaskSpec())
        return await forever(execution)

    async def prepare(world: World) -> Callable[[], Awaitable[Any]]:
        return partial(world.runtime.run, work)

    async with hosted_trials(prepare) as setup:
        assert await check_cancellation(setup) >= 1


async def test_a_cancel_that_is_itself_cancelled_happens_in_full_or_not_at_all() -> None:
    """L6, L9: the status is never `cancelled` while the work runs on."""

    async def prepare(world: World) -> Callable[[], Awaitable[Any]]:
        record = await world.runtime.submit(TaskSpec(), forever)
        await anyio.wait_all_tasks_blocked()
        return partial(world.runtime.cancel, record.task_id, owner=None)

    async with hosted_trials(prepare) as setup:
        assert await check_cancellation(setup) > 4


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_cancelled_while_its_task_begins_takes_the_task_with_it(steps: int) -> None:
    """L6, L9: at each moment between the call and its handle."""
    async with open_world(yielding=True) as world:
        cleaned: list[bool] = []

        async def work(execution: Execution[Result]) -> Result:
            try:
                await execution.begin(TaskSpec())
                return await forever(execution)
            finally:
                cleaned.append(True)

        got: Any = None
        async with anyio.create_task_group() as group:

            async def call() -> None:
                nonlocal got
                got = await world.runtime.run(work)

            group.start_soon(call)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        if got is None:
            await world.until_idle()
            assert world.live_tasks() == 0
            assert world.kept() == NOTHING
            assert await world.statuses() in ([], ["cancelled"])
        else:
            assert world.live_tasks() == 1


async def test_a_caller_cancelled_after_it_got_the_handle_does_not_stop_the_work() -> None:
    """L13: the connection that made a task may go."""
    async with open_world() as world:
        release = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await execution.begin(TaskSpec())
            await release.wait()
            return {"survived": True}

        record: Any = None
        with anyio.CancelScope() as scope:
            record = await world.runtime.run(work)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        release.set()
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"survived": True}


# --- cancel ----------------------------------------------------------------------------------------------------


async def test_cancel_stops_the_work_at_its_next_await_and_runs_its_clean_up() -> None:
    """L9, F5: the SDK's runtime changed the status only."""
    async with open_world(yielding=True) as world:
        events: list[str] = []

        async def work(execution: Execution[Result]) -> Result:
            execution.on_cancel(lambda: events.append("is_cancelled"))
            try:
                await anyio.sleep_forever()
            except BaseException as error:
                events.append("stopped" if isinstance(error, anyio.get_cancelled_exc_class()) else repr(error))
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                    events.append("cleaned up")
            raise AssertionError

        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        cancelled = await world.runtime.cancel(record.task_id, owner=None)
        assert cancelled.status == "cancelled", "before the response (wire rule B8)"
        await world.until_idle()
        assert events == ["is_cancelled", "stopped", "cleaned up"]
        assert (await world.runtime.result(record.task_id, owner=None)) == Outcome.cancelled()
        assert world.kept() == NOTHING


@pytest.mark.parametrize("ending", ["returns", "raises", "raises a protocol error", "raises in its clean-up"])
async def test_what_work_does_after_its_cancellation_is_dropped(ending: str) -> None:
    """L9, F8, F16: neither a late result nor a late error changes the task or harms the server."""
    async with open_world(yielding=True) as world:

        async def work(execution: Execution[Result]) -> Result:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                if ending == "returns":
                    return {"late": True}
                if ending == "raises":
                    raise LookupError("late") from None
                if ending == "raises a protocol error":
                    raise ProtocolError(1, "late") from None
                raise
            finally:
                if ending == "raises in its clean-up":
                    raise OSError("clean-up failed")
            raise AssertionError

        record = await world.runtime.submit(TaskSpec(), work)
        other = await world.runtime.submit(TaskSpec(), forever)
        await anyio.wait_all_tasks_blocked()
        await world.runtime.cancel(record.task_id, owner=None)
        await anyio.wait_all_tasks_blocked()
        view = await world.runtime.get(record.task_id, owner=None)
        assert view.record.outcome == Outcome.cancelled()
        assert (await world.runtime.get(other.task_id, owner=None)).task.status == "working"
        assert world.kept()["calls"] == 1


async def test_work_cancelled_before_its_first_step_does_not_run() -> None:
    async with open_world() as world:
        ran: list[bool] = []

        async def work(execution: Execution[Result]) -> Result:
            await anyio.lowlevel.checkpoint()
            ran.append(True)
            return {}

        record = await world.runtime.submit(TaskSpec(), work)
        await world.runtime.cancel(record.task_id, owner=None)
        await world.until_idle()
        assert ran == []


async def test_work_may_cancel_its_own_task() -> None:
    async with open_world(yielding=True) as world:
        reached: list[str] = []

        async def work(execution: Execution[Result]) -> Result:
            assert execution.record is not None
            await world.runtime.cancel(execution.record.task_id, owner=None)
            reached.append("returned from cancel")
            await anyio.lowlevel.checkpoint()
            reached.append("went on")
            return {}

        record = await world.runtime.submit(TaskSpec(), work)
        assert (await world.runtime.result(record.task_id, owner=None)).status == "cancelled"
        await world.until_idle()
        assert "went on" not in reached


async def test_cancelling_an_ended_task_is_refused_and_changes_nothing() -> None:
    """L1, wire rule B8."""
    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(), quick)
        await world.runtime.result(record.task_id, owner=None)
        before = await world.runtime.get(record.task_id, owner=None)
        with pytest.raises(InvalidTransitionError):
            await world.runtime.cancel(record.task_id, owner=None)
        assert await world.runtime.get(record.task_id, owner=None) == before


async def test_a_cancel_callback_that_raises_does_not_keep_the_work_running() -> None:
    async with open_world() as world:

        async def work(execution: Execution[Result]) -> Result:
            execution.on_cancel(lambda: next(iter(())))
            return await forever(execution)

        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        assert (await world.runtime.cancel(record.task_id, owner=None)).status == "cancelled"
        await world.until_idle()
        assert world.kept() == NOTHING


# --- errors ----------------------------------------------------------------------------------------------------


def nested(error: BaseException) -> BaseException:
    return BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [error])])


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError(-32001, "no such report", {"id": [1, None]}),
        CapabilityError("no such report", code=-32001, data={"id": [1, None]}),
        nested(ProtocolError(-32001, "no such report", {"id": [1, None]})),
    ],
    ids=["protocol error", "capability error", "one in groups"],
)
async def test_a_protocol_error_reaches_the_client_verbatim(error: BaseException) -> None:
    """L11."""

    async def work(execution: Execution[Result]) -> Result:
        raise error

    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(), work)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.status == "failed"
        assert outcome.error == {"code": -32001, "message": "no such report", "data": {"id": [1, None]}}
        view = await world.runtime.get(record.task_id, owner=None)
        assert view.task.status_message == "no such report"


@pytest.mark.parametrize(
    "error",
    [
        LookupError("secret"),
        ExceptionGroup("secret", [ProtocolError(1, "secret"), ProtocolError(2, "secret")]),
        SystemExit("secret"),
        BaseException("secret"),
        BaseExceptionGroup("secret", [SystemExit(3), LookupError("secret")]),
    ],
    ids=["exception", "group of two", "SystemExit", "BaseException", "group with SystemExit"],
)
async def test_any_other_exception_is_logged_in_full_and_reaches_the_client_without_its_text(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """L11, F11, L13: nor does it touch the server or another task."""

    async def work(execution: Execution[Result]) -> Result:
        raise error

    async with open_world() as world:
        other = await world.runtime.submit(TaskSpec(), forever)
        record = await world.runtime.submit(TaskSpec(), work)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.error == {"code": -32603, "message": "Internal error"}
        assert "secret" not in repr(await world.runtime.get(record.task_id, owner=None))
        assert "secret" in caplog.text
        assert (await world.runtime.get(other.task_id, owner=None)).task.status == "working"


@pytest.mark.parametrize(
    "error",
    [ProtocolError(-32001, "bad data", object()), ProtocolError(-32001, "bad \ud800 text")],
    ids=["data", "message"],
)
async def test_a_protocol_error_that_is_no_json_still_ends_the_task(error: ProtocolError) -> None:
    """L12: each `working` task ends in time."""

    async def work(execution: Execution[Result]) -> Result:
        raise error

    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(), work)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.status == "failed"
        assert outcome.error is not None
        assert outcome.error["code"] in (-32001, -32603)


@pytest.mark.parametrize("value", [None, [1], "text", object(), {"x": object()}])
async def test_work_that_returns_no_json_object_fails_its_task(value: Any) -> None:
    async def work(execution: Execution[Any]) -> Any:
        return value

    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(), work)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.error == {"code": -32603, "message": "Internal error"}


async def test_the_outcome_is_what_outcome_of_makes_of_the_value() -> None:
    async def work(execution: Execution[int]) -> int:
        return 5

    async with open_world() as world:
        record = await world.runtime.submit(
            TaskSpec(), work, outcome_of=lambda value: Outcome.completed({"value": value})
        )
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"value": 5}


@pytest.mark.parametrize("method", ["clear", "finish_task"])
async def test_a_backend_that_fails_at_the_end_leaves_nothing_behind_when_the_runtime_has_closed(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L8, L12: an outcome waits for its store, until the runtime closes."""
    monkeypatch.setattr(workers, "CLEANUP_SECONDS", 0.05)
    world = make_world(settings=TaskSettings(shutdown_grace=0))

    async def broken(*_: Any) -> None:
        raise OSError("disk full")

    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            target = world.memory.message_queue if method == "clear" else world.memory
            await world.runtime.submit(TaskSpec(), quick)
            setattr(target, method, broken)
            if method == "clear":
                await world.until_idle()
                assert world.kept() == NOTHING
            else:
                while not world.runtime.statistics().waiting_outcomes:
                    await anyio.lowlevel.checkpoint()
                assert world.runtime.statistics().calls == 1
    assert world.kept() == NOTHING
    assert world.runtime.statistics().waiting_outcomes == 0


async def test_an_outcome_waits_until_the_store_is_back() -> None:
    """L12."""
    world = make_world(settings=TaskSettings(shutdown_grace=60))
    finish_task = world.memory.finish_task
    failures = 2

    async def flaky(task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        nonlocal failures
        if failures:
            failures -= 1
            raise StoreUnavailableError("down")
        return await finish_task(task_id, outcome)

    world.memory.finish_task = flaky  # type: ignore[method-assign]
    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            record = await world.runtime.submit(TaskSpec(), quick)
            assert (await world.runtime.result(record.task_id, owner=None)).status == "completed"
    assert failures == 0


# --- time ------------------------------------------------------------------------------------------------------


async def test_work_that_outlives_its_ttl_is_cancelled_and_its_task_fails_and_stays_for_the_retention() -> None:
    """L7, F14, F20: a waiter gets the outcome, and everybody can fetch it for as long as was promised."""
    settings = TaskSettings(retention_ms=5000, shutdown_grace=0)
    async with open_world(settings=settings) as world:
        stopped = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            try:
                return await forever(execution)
            finally:
                stopped.set()

        record = await world.runtime.submit(TaskSpec(ttl_ms=10_000), work)
        outcomes: list[Outcome] = []

        async def wait() -> None:
            outcomes.append(await world.runtime.result(record.task_id, owner=None))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(8.9)
            await anyio.wait_all_tasks_blocked()
            assert not outcomes
            world.clock.advance(1)
        assert outcomes[0].status == "failed"
        assert outcomes[0].error is not None
        assert "time to live" in outcomes[0].error["message"]
        await stopped.wait()
        await world.until_idle()
        view = await world.runtime.get(record.task_id, owner=None)
        assert view.task.ttl_ms == 14_900, "9.9 s lived and 5 s of retention"
        world.clock.advance(4.999)
        assert (await world.runtime.get(record.task_id, owner=None)).record.outcome == outcomes[0]
        world.clock.advance(0.001)
        with pytest.raises(TaskNotFoundError):
            await world.runtime.get(record.task_id, owner=None)
        assert world.memory.statistics().tasks == 0


async def test_a_deadline_is_a_tenth_of_a_short_ttl_before_its_end() -> None:
    """L7: the end must be stored while the task exists."""
    async with open_world(settings=TaskSettings(min_ttl_ms=1, retention_ms=0, shutdown_grace=0)) as world:
        record = await world.runtime.submit(TaskSpec(ttl_ms=100), forever)
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(0.0901)
        assert await world.until(record.task_id, "failed") == "failed"


async def test_each_task_ends_at_its_own_time_whatever_order_they_were_made_in() -> None:
    """L7."""
    async with open_world() as world:
        ttls = [90, 30, 70, 50, 30]
        records = [await world.runtime.submit(TaskSpec(ttl_ms=ttl * 1000), forever) for ttl in ttls]
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(9.5)
        for second in range(20, 100, 10):
            world.clock.advance(10)
            await anyio.wait_all_tasks_blocked()
            ended = [(await world.runtime.get(each.task_id, owner=None)).task.status == "failed" for each in records]
            assert ended == [ttl <= second for ttl in ttls]


async def test_a_deadline_that_passes_while_the_clock_jumps_over_the_whole_ttl_still_stops_the_work() -> None:
    """L7: a machine that slept; the task is gone then, and so must be its work."""
    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(ttl_ms=10_000), forever)
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(3600)
        await anyio.wait_all_tasks_blocked()
        assert world.kept() == NOTHING
        with pytest.raises(TaskNotFoundError):
            await world.runtime.get(record.task_id, owner=None)


async def test_work_is_stopped_at_its_deadline_even_if_the_store_cannot_be_reached() -> None:
    """L7."""
    async with open_world() as world:
        stopped = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            try:
                return await forever(execution)
            finally:
                stopped.set()

        async def down(task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
            raise StoreUnavailableError("down")

        finish_task = world.memory.finish_task
        record = await world.runtime.submit(TaskSpec(ttl_ms=10_000), work)
        await anyio.wait_all_tasks_blocked()
        world.memory.finish_task = down  # type: ignore[method-assign]
        world.clock.advance(9.5)
        try:
            with anyio.fail_after(PATIENCE):
                await stopped.wait()
        finally:
            world.memory.finish_task = finish_task  # type: ignore[method-assign]
        assert await world.until(record.task_id, "failed") == "failed"


async def test_a_task_without_ttl_has_no_deadline() -> None:
    async with open_world(settings=TaskSettings(max_ttl_ms=None, default_ttl_ms=None, shutdown_grace=0)) as world:
        record = await world.runtime.submit(TaskSpec(), forever)
        assert record.task.ttl_ms is None
        world.clock.advance(timedelta(days=3650))
        await anyio.wait_all_tasks_blocked()
        assert (await world.runtime.get(record.task_id, owner=None)).task.status == "working"


@pytest.mark.parametrize(
    ("ttl_ms", "stored"), [(-5, 1000), (0, 1000), (1, 1000), (2000, 2000), (10**30, 60_000), (None, 30_000)]
)
async def test_a_nonsense_ttl_is_clamped_and_reported_as_stored(ttl_ms: int | None, stored: int) -> None:
    """Design section 5."""
    settings = TaskSettings(max_ttl_ms=60_000, default_ttl_ms=30_000, shutdown_grace=0)
    async with open_world(settings=settings) as world:
        record = await world.runtime.submit(TaskSpec(ttl_ms=ttl_ms), forever)
        assert record.task.ttl_ms == stored
        assert (await world.runtime.get(record.task_id, owner=None)).task.ttl_ms == stored


async def test_waiting_for_the_result_of_a_detached_task_that_expires_ends_with_not_found() -> None:
    """L7, F20: unless the runtime ends it first, which it does while it is open."""
    world = make_world()
    record = await world.memory.create_task(NewTask(ttl_ms=1000))
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(TaskNotFoundError):
                    await world.runtime.result(record.task_id, owner=None)

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(1)
    assert world.clock.waiting == 0


# --- detached --------------------------------------------------------------------------------------------------


async def hand_over(execution: Execution[Result]) -> Result:
    execution.detach()
    return {"ignored": True}


async def test_a_detached_task_stays_open_until_it_is_finished_by_its_id() -> None:
    async with open_world(yielding=True) as world:
        record = await world.runtime.submit(TaskSpec(), hand_over)
        await world.until_idle()
        assert (await world.runtime.get(record.task_id, owner=None)).task.status == "working"
        await world.runtime.finish(record.task_id, Outcome.completed({"from": "outside"}))
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"from": "outside"}
        with pytest.raises(InvalidTransitionError):
            await world.runtime.finish(record.task_id, Outcome.cancelled())
        world.clock.advance(timedelta(days=2))
        await anyio.wait_all_tasks_blocked()


async def test_finishing_a_detached_task_by_its_id_stops_work_that_still_runs() -> None:
    async with open_world() as world:

        async def work(execution: Execution[Result]) -> Result:
            execution.detach()
            return await forever(execution)

        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        await world.runtime.finish(record.task_id, Outcome.completed({}))
        await world.until_idle()
        assert (await world.runtime.result(record.task_id, owner=None)).status == "completed"


async def test_detached_work_that_raises_fails_its_task() -> None:
    async with open_world() as world:

        async def work(execution: Execution[Result]) -> Result:
            execution.detach()
            raise ProtocolError(7, "could not hand over")

        record = await world.runtime.submit(TaskSpec(), work)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.error == {"code": 7, "message": "could not hand over"}


async def test_a_detached_task_still_ends_at_its_ttl() -> None:
    """L7, L12: perhaps it is never finished."""
    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(ttl_ms=10_000), hand_over)
        await world.until_idle()
        world.clock.advance(9.5)
        assert await world.until(record.task_id, "failed") == "failed"


@pytest.mark.parametrize("method", ["finish", "cancel"])
async def test_finishing_an_unknown_task_is_not_found(method: str) -> None:
    async with open_world() as world:
        with pytest.raises(TaskNotFoundError):
            await ENDINGS[method](world, "unknown")


# --- one ending ------------------------------------------------------------------------------------------------

ENDINGS: dict[str, Callable[[World, str], Awaitable[Any]]] = {
    "cancel": lambda world, task_id: world.runtime.cancel(task_id, owner=None),
    "finish": lambda world, task_id: world.runtime.finish(task_id, Outcome.completed({"by": "finish"})),
    "fail": lambda world, task_id: world.runtime.finish(task_id, Outcome.failed("by fail")),
}


@pytest.mark.parametrize(
    "racers",
    [("cancel", "finish"), ("cancel", "cancel"), ("cancel", "finish", "fail")],
    ids=lambda names: "-".join(names),
)
async def test_of_racers_to_end_a_task_exactly_one_wins_in_every_order_of_their_awaits(racers: tuple[str, ...]) -> None:
    """L2, F8."""

    async def setup() -> Race:
        world = make_world(yielding=True)
        record = await world.memory.create_task(NewTask(ttl_ms=None))

        async def end(how: str) -> str:
            await ENDINGS[how](world, record.task_id)
            return how

        async def observe() -> Any:
            after = await world.memory.get_task(record.task_id)
            assert after is not None
            assert after.outcome is not None
            return after.revision, after.status, after.outcome.status, world.kept()

        return Race([partial(end, how) for how in racers], observe)

    with anyio.fail_after(PATIENCE):
        for found in await explore_interleavings(setup, limit=40):
            winners = [value for how, value in found.endings if how == "returned"]
            assert len(winners) == 1
            assert [value for how, value in found.endings if how == "raised"] == ["InvalidTransitionError"] * (
                len(racers) - 1
            )
            expected = {"cancel": "cancelled", "finish": "completed", "fail": "failed"}[winners[0]]
            assert found.state == (2, expected, expected, NOTHING)


async def test_of_fifty_racers_and_the_work_itself_exactly_one_wins() -> None:
    """L2."""
    async with open_world(yielding=True) as world:
        go = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await go.wait()
            return {"by": "work"}

        record = await world.runtime.submit(TaskSpec(), work)
        won: list[str] = []

        async def race(how: str) -> None:
            await go.wait()
            try:
                await ENDINGS[how](world, record.task_id)
            except InvalidTransitionError:
                return
            won.append(how)

        async with anyio.create_task_group() as group:
            for n in range(50):
                group.start_soon(race, list(ENDINGS)[n % 3])
            await anyio.wait_all_tasks_blocked()
            go.set()
        await world.until_idle()
        view = await world.runtime.get(record.task_id, owner=None)
        assert view.record.revision == 2
        assert len(won) + (view.record.outcome == Outcome.completed({"by": "work"})) == 1


# --- owners ----------------------------------------------------------------------------------------------------

OWNED: dict[str, Callable[[TaskRuntime, str, str | None], Awaitable[Any]]] = {
    "get": lambda runtime, task_id, owner: runtime.get(task_id, owner=owner),
    "result": lambda runtime, task_id, owner: runtime.result(task_id, owner=owner),
    "answer": lambda runtime, task_id, owner: runtime.answer(task_id, {"1": ACCEPT}, owner=owner),
    "cancel": lambda runtime, task_id, owner: runtime.cancel(task_id, owner=owner),
}


@pytest.mark.parametrize("method", OWNED)
@pytest.mark.parametrize(("owner", "other"), [("me", "you"), ("me", None), (None, "me"), (None, ""), ("", None)])
@pytest.mark.parametrize("ended", [False, True])
async def test_a_foreign_task_is_answered_exactly_like_an_unknown_one(
    method: str, owner: str | None, other: str | None, ended: bool
) -> None:
    """L10, F19."""
    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(owner=owner), quick if ended else forever)
        await anyio.wait_all_tasks_blocked()
        before = await world.runtime.get(record.task_id, owner=owner)
        raised = []
        for task_id in (record.task_id, "unknown"):
            with pytest.raises(TaskNotFoundError) as caught:
                await OWNED[method](world.runtime, task_id, other)
            raised.append((type(caught.value), str(caught.value), caught.value.args, caught.value.__cause__))
        assert raised[0] == raised[1]
        assert await world.runtime.get(record.task_id, owner=owner) == before


@pytest.mark.parametrize("task_id", ["", "x" * 100_000, "\x00", "\ud800", "../../etc"])
@pytest.mark.parametrize("method", OWNED)
async def test_a_malformed_id_is_not_found(method: str, task_id: str) -> None:
    """Design section 5."""
    async with open_world() as world:
        with pytest.raises(TaskNotFoundError):
            await OWNED[method](world.runtime, task_id, None)


async def test_a_list_shows_the_owners_tasks_and_no_others() -> None:
    """L10, wire rule B9."""
    async with open_world() as world:
        mine = [(await world.runtime.submit(TaskSpec(owner="me"), quick)).task_id for _ in range(3)]
        await world.runtime.submit(TaskSpec(owner="you"), quick)
        await world.runtime.submit(TaskSpec(), quick)
        page = await world.runtime.list(owner="me", limit=2)
        assert page.next_cursor is not None
        rest = await world.runtime.list(owner="me", cursor=page.next_cursor)
        assert [record.task_id for record in page.records + rest.records] == mine
        assert rest.next_cursor is None
        with pytest.raises(InvalidCursorError):
            await world.runtime.list(owner="you", cursor=page.next_cursor)


# --- isolation -------------------------------------------------------------------------------------------------


async def test_task_execution_and_a_runtime_share_a_store() -> None:
    """A worker elsewhere ends a task that the runtime detached."""
    async with open_world(forgets_deadlines=False) as world:
        record = await world.runtime.submit(TaskSpec(), hand_over)
        await world.until_idle()
        async with task_execution(record.task_id, world.store) as context:
            await context.complete({"worker": 1})
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"worker": 1}


async def test_work_sees_the_context_variables_of_its_caller() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable")

    async def work(execution: Execution[Result]) -> Result:
        return {"seen": variable.get()}

    async with open_world() as world:
        variable.set("the caller's")
        record = await world.runtime.submit(TaskSpec(), work)
        variable.set("another's")
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"seen": "the caller's"}


async def test_no_error_goes_to_the_log_when_all_goes_well(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with open_world() as world:
        record = await world.runtime.submit(TaskSpec(), quick)
        await world.runtime.result(record.task_id, owner=None)
        other = await world.runtime.submit(TaskSpec(), forever)
        await world.runtime.cancel(other.task_id, owner=None)
    messages = [entry.message for entry in caplog.records if entry.name.startswith("mcp_task_runtime")]
    assert messages == [f"Task {other.task_id} ('') was cancelled"]


def test_store_errors_have_a_common_base() -> None:
    assert issubclass(StoreUnavailableError, StoreError)


@pytest.mark.parametrize("how", ["cancel", "finish", "delete"])
async def test_l9_what_another_runtime_on_the_same_store_does_stops_the_work_here(how: str) -> None:
    """Also with a store that has nothing but the eight methods, as one of a user's own."""

    class Shared(YieldingTaskStore):
        is_shared = True

    memory = InMemoryTaskStore()
    settings = TaskSettings(shutdown_grace=0)
    a, b = (TaskRuntime(Shared(memory), memory.message_queue, settings=settings) for _ in range(2))
    stopped = anyio.Event()

    async def work(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()
        return {}

    with anyio.fail_after(PATIENCE):
        async with a, b:
            record = await a.submit(TaskSpec(), work)
            await anyio.wait_all_tasks_blocked()
            if how == "delete":
                await b.store.delete_task(record.task_id)
            else:
                await b.finish(record.task_id, Outcome.cancelled() if how == "cancel" else Outcome.completed({}))
            await stopped.wait()
        assert a.statistics().calls == 0


async def test_a_page_has_at_least_one_task() -> None:
    async with open_world() as world:
        records = [await world.runtime.submit(TaskSpec(owner="me"), quick) for _ in range(2)]
        with pytest.raises(ValueError, match="limit must be at least 1"):
            await world.runtime.list(owner="me", limit=0)
        page = await world.runtime.list(owner="me", limit=1)
        assert [record.task_id for record in page.records] == [records[0].task_id]


async def test_l9_the_work_of_a_call_that_became_a_task_stops_when_that_is_cancelled() -> None:
    async with open_world() as world:
        stopped = anyio.Event()

        async def work(execution: Execution[Result]) -> Result:
            await execution.begin(TaskSpec(owner="me"))
            try:
                return await forever(execution)
            finally:
                stopped.set()

        made = await world.runtime.run(work)
        assert isinstance(made, TaskRecord)
        await world.runtime.cancel(made.task_id, owner="me")
        await stopped.wait()
        await world.until_idle()
