"""`TaskObserver`: what a runtime reports of its tasks; no observer can hurt one (L13)."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    LimitExceededError,
    Outcome,
    QuestionTimeoutError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRequest,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
    TaskStore,
    open_store,
)
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core import observer as observations
from mcp_task_runtime.core import store as abilities
from mcp_task_runtime.core.observer import (
    LeaseLost,
    Observation,
    PollRefused,
    QuestionAsked,
    QuestionClosed,
    SlotAcquired,
    SlotAwaited,
    StoreCalled,
    TaskChange,
    WorkStarted,
    WorkStopped,
    error_type_of,
)
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue, YieldingTaskStore
from tests.core.leased_store import Client, LeasedTaskStore, Link
from tests.core.worlds import ACCEPT
from tests.support.patience import PATIENCE

SPEC = TaskSpec(request=TaskRequest(name="tool"))
NO_GRACE = TaskSettings(shutdown_grace=0)
RESULT: dict[str, Any] = {"content": []}


class Recorder:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Observation] = []

    def trace_context(self) -> Mapping[str, str]:
        return {"traceparent": "00-1-2-01"}

    def observe(self, observation: Observation) -> None:
        self.heard.append(observation)

    def of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.heard if isinstance(each, kind)]

    def story(self) -> list[str]:
        """What happened, without calls of the store: statuses by their name."""
        return [
            each.status if isinstance(each, TaskChange) else type(each).__name__
            for each in self.heard
            if not isinstance(each, StoreCalled)
        ]


def context_of(runtime: TaskRuntime, execution: Execution[Any]) -> ServerTaskContext:
    record = execution.record
    assert record is not None
    return ServerTaskContext(
        task=record.task,
        store=runtime.store,
        session=Client(),
        queue=runtime.queue,
        handler=TaskResultHandler(runtime.store, runtime.queue),
        execution=execution,
        attempt=1 if record.lease is None else record.lease.attempt,
    )


async def answer_all(runtime: TaskRuntime, task_id: str) -> None:
    """Answer the questions of a task as soon as it has any."""
    record = await runtime.store.get_task(task_id)
    assert record is not None
    while record.status != "input_required":
        record = await runtime.store.wait_for_update(task_id, after=record.revision)
    view = await runtime.get(task_id, owner=None)
    await runtime.answer(task_id, {question.key or "": ACCEPT for question in view.questions}, owner=None)


def whole_store() -> tuple[TaskStore, Any]:
    return InMemoryTaskStore(), None


def store_apart_from_its_queue() -> tuple[TaskStore, Any]:
    memory = InMemoryTaskStore()
    return YieldingTaskStore(memory), YieldingTaskMessageQueue(memory.message_queue)


@pytest.mark.parametrize("make", [whole_store, store_apart_from_its_queue])
async def test_the_life_of_a_task_is_reported_in_order(make: Callable[[], tuple[TaskStore, Any]]) -> None:
    recorder = Recorder()
    store, queue = make()
    async with TaskRuntime(store, queue, settings=NO_GRACE, observer=recorder) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            await context_of(runtime, execution).elicit("Really?", {"type": "object", "properties": {}})
            return RESULT

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(SPEC, work)
            await answer_all(runtime, record.task_id)
            await runtime.result(record.task_id, owner=None)
    assert recorder.story() == [
        "working",
        "WorkStarted",
        "QuestionAsked",
        "input_required",
        "QuestionClosed",
        "working",
        "completed",
        "WorkStopped",
    ]
    changes = recorder.of(TaskChange)
    assert [change.is_new for change in changes] == [True, False, False, False]
    assert {(change.task_id, change.name, change.owner) for change in changes} == {(record.task_id, "tool", None)}
    assert [change.at for change in changes] == sorted(change.at for change in changes)
    (asked,), (closed,) = recorder.of(QuestionAsked), recorder.of(QuestionClosed)
    assert (asked.name, asked.method, closed.key) == ("tool", "elicitation/create", asked.key)
    assert (closed.result, closed.waited >= 0) == ("result", True)
    (stopped,) = recorder.of(WorkStopped)
    assert (stopped.outcome.status, stopped.error) == ("completed", None)


async def test_two_questions_are_one_change_each_way() -> None:
    recorder = Recorder()
    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=recorder) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            context = context_of(runtime, execution)
            async with anyio.create_task_group() as group:
                for number in "12":
                    group.start_soon(partial(context.elicit, number, {"type": "object", "properties": {}}))
            return RESULT

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(SPEC, work)
            await anyio.wait_all_tasks_blocked()
            await answer_all(runtime, record.task_id)
            await runtime.result(record.task_id, owner=None)
    statuses = [change.status for change in recorder.of(TaskChange)]
    assert statuses == ["working", "input_required", "working", "completed"]


async def test_a_question_that_is_withdrawn_makes_the_task_work_again() -> None:
    recorder, clock = Recorder(), FakeClock()
    async with TaskRuntime(InMemoryTaskStore(clock=clock), settings=NO_GRACE, observer=recorder) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            with suppress(QuestionTimeoutError):
                await context_of(runtime, execution).elicit("?", {"type": "object", "properties": {}}, timeout=5)
            return RESULT

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(SPEC, work)
            await anyio.wait_all_tasks_blocked()
            clock.advance(6)
            await runtime.result(record.task_id, owner=None)
    assert recorder.story() == [
        "working",
        "WorkStarted",
        "QuestionAsked",
        "input_required",
        "QuestionClosed",
        "working",
        "completed",
        "WorkStopped",
    ]
    assert [closed.result for closed in recorder.of(QuestionClosed)] == ["withdrawn"]


async def test_a_task_that_is_cancelled_while_it_asks_has_no_change_after_its_end() -> None:
    recorder = Recorder()
    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=recorder) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            await context_of(runtime, execution).elicit("?", {"type": "object", "properties": {}})
            return RESULT

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(SPEC, work)
            await anyio.wait_all_tasks_blocked()
            await runtime.cancel(record.task_id, owner=None)
            await anyio.wait_all_tasks_blocked()
    assert [change.status for change in recorder.of(TaskChange)] == ["working", "input_required", "cancelled"]
    assert [closed.result for closed in recorder.of(QuestionClosed)] == ["withdrawn"]


async def test_a_failure_has_its_code_and_a_plain_call_is_not_reported() -> None:
    recorder = Recorder()
    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=recorder) as runtime:

        async def fails(execution: Execution[Any]) -> dict[str, Any]:
            await execution.begin(SPEC)
            raise LookupError

        async def quick(execution: Execution[Any]) -> dict[str, Any]:
            await execution.reserve(SPEC)  # as a call does that becomes a task if it takes long
            return RESULT

        assert await runtime.run(quick) == RESULT
        assert recorder.story() == []
        record = await runtime.run(fails)
        await runtime.result(cast(Any, record).task_id, owner=None)
        await anyio.wait_all_tasks_blocked()
    assert recorder.story() == ["working", "WorkStarted", "failed", "WorkStopped"]
    assert recorder.of(TaskChange)[-1].error_type == "-32603"
    (stopped,) = recorder.of(WorkStopped)
    assert isinstance(stopped.error, LookupError)


async def test_waits_for_a_slot_and_refused_polls_are_reported() -> None:
    recorder, release = Recorder(), anyio.Event()
    settings = TaskSettings(shutdown_grace=0, max_running=1, max_polls_per_second=1)
    async with TaskRuntime(InMemoryTaskStore(clock=FakeClock()), settings=settings, observer=recorder) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            await release.wait()
            return RESULT

        first = await runtime.submit(SPEC, work)
        await anyio.wait_all_tasks_blocked()
        second = await runtime.submit(SPEC, work)
        await anyio.wait_all_tasks_blocked()
        assert recorder.of(SlotAwaited) == [SlotAwaited(second)]
        assert recorder.of(SlotAcquired) == []
        release.set()
        for record in (first, second):
            await runtime.result(record.task_id, owner=None)
        assert [each.record for each in recorder.of(SlotAcquired)] == [second]
        with suppress(LimitExceededError):
            for _ in range(10):
                await runtime.get(first.task_id, owner=None, rate_limited=True)
    assert recorder.of(PollRefused) == [PollRefused()]


async def test_calls_of_the_store_are_reported_and_refusals_are_no_failures() -> None:
    recorder, link = Recorder(), Link(LeasedTaskStore(clock=FakeClock()))
    async with TaskRuntime(cast(TaskStore, link), settings=NO_GRACE, observer=recorder) as runtime:
        with pytest.raises(TaskNotFoundError):
            await runtime.finish("unknown", Outcome.cancelled())
        link.fails = {"get_owned"}
        with pytest.raises(StoreUnavailableError):
            await runtime.get("unknown", owner=None)
    calls = {call.operation: call for call in recorder.of(StoreCalled)}
    assert calls["finish_task"].error is None
    assert isinstance(calls["get_owned"].error, StoreUnavailableError)
    assert not any(name.startswith("wait") for name in calls)


async def test_a_rerun_is_reported_with_the_question_it_takes_up_and_a_lost_lease(anyio_backend_name: str) -> None:
    recorder, clock = Recorder(), FakeClock()
    store = LeasedTaskStore(clock=clock)
    settings = TaskSettings(shutdown_grace=0, lease_ms=15_000)
    runtimes = [TaskRuntime(store, settings=settings, observer=recorder) for _ in range(2)]
    first, second = runtimes

    async def work(runtime: TaskRuntime, execution: Execution[Outcome]) -> Outcome:
        await context_of(runtime, execution).elicit("?", {"type": "object", "properties": {}})
        return Outcome.completed(RESULT)

    for runtime in runtimes:
        runtime.register("tool", partial(work, runtime))
    async with first, second:
        with anyio.fail_after(PATIENCE):
            record = await first.submit(TaskSpec(request=TaskRequest(name="tool", rerunnable=True)))
            await anyio.wait_all_tasks_blocked()
            await store.drop_leases(first.statistics().worker or "", [record.task_id], lapse=True)
            async with anyio.create_task_group() as group:
                await store.claim_task(record.task_id, worker="", lease_ms=1)
                group.start_soon(second.execute, record.task_id)
                await anyio.wait_all_tasks_blocked()
                clock.advance(6)  # the first one finds its lease gone when it renews it
                await anyio.wait_all_tasks_blocked()
                await answer_all(second, record.task_id)
                await second.result(record.task_id, owner=None)
    assert [started.record.lease.attempt for started in recorder.of(WorkStarted)] == [1, 2]
    assert [lost.record.task_id for lost in recorder.of(LeaseLost)] == [record.task_id]
    assert [stopped.outcome is None for stopped in recorder.of(WorkStopped)] == [True, False]
    statuses = [change.status for change in recorder.of(TaskChange)]
    assert statuses == ["working", "input_required", "working", "completed"]
    assert [closed.result for closed in recorder.of(QuestionClosed)] == ["withdrawn", "result"]


async def test_the_trace_context_stays_with_the_task_beside_what_was_there() -> None:
    request = TaskRequest(name="tool", caller_json='{"principal":"ada"}')
    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=Recorder()) as runtime:

        async def work(_: Execution[Any]) -> dict[str, Any]:
            return RESULT

        record = await runtime.submit(TaskSpec(request=request), work)
    assert record.request.caller == {"principal": "ada", "traceparent": "00-1-2-01"}


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (Outcome.completed({"content": []}), None),
        (Outcome.completed({"content": [], "isError": False}), None),
        (Outcome.completed({"content": [{"type": "text", "text": '"isError":true'}]}), None),
        (Outcome.completed({"content": [], "isError": True}), "tool_error"),
        (Outcome.failed("x", code=-32050), "-32050"),
        (Outcome("failed", "[]"), "_OTHER"),
        (Outcome("failed", "no JSON"), "_OTHER"),
        (Outcome("completed", '{"isError"'), None),
        (Outcome.cancelled(), None),
    ],
)
def test_a_change_says_why_it_counts_as_an_error(outcome: Outcome, shown: str | None) -> None:
    assert error_type_of(outcome) == shown


class Broken:
    """An observer that raises what it was given, and one whose trace context is nonsense."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def trace_context(self) -> Mapping[str, str]:
        raise self.error

    def observe(self, observation: Observation) -> None:
        raise self.error


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, GeneratorExit, StoreUnavailableError])
async def test_an_observer_that_raises_hurts_no_task(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    observer = Broken(kind("broken"))
    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=observer) as runtime:

        async def work(execution: Execution[Any]) -> dict[str, Any]:
            await context_of(runtime, execution).elicit("Really?", {"type": "object", "properties": {}})
            return RESULT

        with anyio.fail_after(PATIENCE):
            record = await runtime.submit(SPEC, work)
            await answer_all(runtime, record.task_id)
            assert (await runtime.result(record.task_id, owner=None)).status == "completed"
    assert [each.levelno for each in caplog.records if "observer" in each.message].count(logging.ERROR) == 1


async def test_without_an_observer_the_store_is_the_one_that_was_given() -> None:
    store = InMemoryTaskStore()
    assert TaskRuntime(store).store is store
    assert TaskRuntime(store).queue is store.message_queue


async def test_an_observed_store_has_the_abilities_of_its_store_and_no_others(tmp_path: Path) -> None:
    protocols = [
        getattr(abilities, name) for name in abilities.__all__ if getattr(abilities, name) is not abilities.TaskStore
    ]
    memory = InMemoryTaskStore()
    stores: list[Any] = [memory, open_store(f"sqlite:///{tmp_path / 'tasks.db'}"), YieldingTaskStore(memory)]
    for store in stores:
        seen = TaskRuntime(store, memory.message_queue, observer=Recorder()).store
        for protocol in protocols:
            assert isinstance(seen, protocol) == isinstance(store, protocol), protocol
        assert isinstance(seen, abilities.TaskStore)
        assert seen.clock is store.clock


async def test_every_coroutine_of_a_bundled_store_is_reported(tmp_path: Path) -> None:
    recorder = Recorder()
    async with open_store(f"sqlite:///{tmp_path / 'tasks.db'}") as store:
        seen = TaskRuntime(store, observer=recorder).store
        record = await seen.create_task(NewTask(ttl_ms=None))
        await seen.get_task(record.task_id)
        await seen.update_task(record.task_id, status_message="half")
        await cast(Any, seen).message_queue.outstanding(record.task_id)
        await seen.finish_task(record.task_id, Outcome.cancelled())
        await seen.delete_task(record.task_id)
    names = ["create_task", "get_task", "update_task", "outstanding", "finish_task", "delete_task"]
    assert [call.operation for call in recorder.of(StoreCalled)] == names


def test_the_list_of_observations_is_complete() -> None:
    others = ("IsolatedObserver", "Observation", "TaskObserver", "error_type_of")
    kinds = {name for name in observations.__all__ if name not in others}
    assert {kind.__name__ for kind in Observation.__args__} == kinds
    assert all(f"`{kind}`" in (observations.__doc__ or "") for kind in kinds)


async def test_an_observer_keeps_no_run_that_has_ended() -> None:
    """L8."""
    recorder = Recorder()
    ended: set[str] = set()

    async def work(execution: Execution[Any]) -> dict[str, Any]:
        return RESULT

    def kept() -> int:
        gc.collect()
        runs = [each for each in gc.get_objects() if type(each) is Execution]
        return len([run for run in runs if run.record is not None and run.record.task_id in ended])

    async with TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, observer=recorder) as runtime:
        with anyio.fail_after(PATIENCE):
            for _ in range(3):
                record = await runtime.submit(SPEC, work)
                await runtime.result(record.task_id, owner=None)
                ended.add(record.task_id)
            while runtime.statistics().calls:
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert kept() == 0
    assert len(recorder.of(WorkStarted)) == len(recorder.of(WorkStopped)) == len(ended) == 3
