"""A worker that was paused beyond its lease and continues: the task is another run's by then (law L12)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import Execution, Outcome, ServerTaskContext, TaskRecord, TaskSpec
from mcp_task_runtime.core.dispatch import StoreDispatcher
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.questions import ask_question
from mcp_task_runtime.core.types import Fence, NewTask, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, QuestionTimeoutError, StoreUnavailableError
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.core.leased_store import LEASE_SECONDS, TURN_SECONDS, Cluster, Process, open_cluster
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

FORM = {"type": "object", "properties": {}}
RERUNNABLE = TaskSpec(ttl_ms=600_000, request=TaskRequest(name="tool", arguments_json=dump_json({}), rerunnable=True))

Write = Callable[[ServerTaskContext], Awaitable[object]]
WRITES: dict[str, Write] = {
    "update_status": lambda context: context.update_status("I am back"),
    "report_progress": lambda context: context.report_progress(1, 2),
    "extend": lambda context: context.extend(900_000),
    "elicit": lambda context: context.elicit("other?", FORM),
    "elicit again": lambda context: context.elicit("?", FORM),
    "complete": lambda context: context.complete({"by": "the paused run"}),
    "fail": lambda context: context.fail("the paused run"),
}


class PausedRun:
    """Two runs of the work of one task: the first one is paused beyond its lease, the second one asks.

    Attributes:
        lost: What the write of the first run raised.
        is_cancelled: Whether the context of the first run said then that its work is to stop.
        stopped: Set when the first run has been cancelled.
    """

    def __init__(self, cluster: Cluster, write: Write, *, goes_on: bool = True) -> None:
        self.lost: list[Exception] = []
        self.is_cancelled = False
        self.stopped = anyio.Event()
        self._cluster = cluster
        self._write = write
        self._goes_on = goes_on
        self._continued = anyio.Event()

    async def start(self, paused: Process, other: Process) -> str:
        """Start the task, pause its process, and let the other one run its work again; return the task's id."""
        for process in (paused, other):
            process.runtime.register("tool", self._work_of(process, is_first=process is paused))
        record = await paused.runtime.submit(RERUNNABLE)
        await self._cluster.cut(paused)
        await self._cluster.pass_time_until_taken(record.task_id, other)
        await self._cluster.until_asked(record.task_id, "?")
        return record.task_id

    async def resume(self, paused: Process) -> None:
        """Let the paused process continue, and wait until its work was stopped."""
        paused.link.is_cut = False
        self._continued.set()
        await self.stopped.wait()
        await self._cluster.settle()

    def _work_of(self, process: Process, *, is_first: bool) -> Callable[[Execution[Any]], Awaitable[Outcome]]:
        async def work(execution: Execution[Any]) -> Outcome:
            context = process.context(execution)
            if is_first:
                await self._continued.wait()
                await self._try(context)
            await context.elicit("?", FORM)
            return Outcome.completed({"by": "the new run"})

        return work

    async def _try(self, context: ServerTaskContext) -> None:
        try:
            await self._write(context)
        except Exception as error:
            self.lost.append(error)
            self.is_cancelled = context.is_cancelled
            if not self._goes_on:
                self.stopped.set()
                raise
        try:
            await anyio.sleep_forever()
        finally:
            self.stopped.set()


def shown(record: TaskRecord) -> tuple[Any, ...]:
    return record.revision, record.task, record.progress, record.outcome, record.lease and record.lease.fence


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize("name", WRITES)
async def test_a_run_that_has_lost_its_lease_changes_nothing_and_is_stopped_at_its_next_write(
    name: str, goes_on: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_cluster() as (cluster, (a, b)):
        run = PausedRun(cluster, WRITES[name], goes_on=goes_on)
        task_id = await run.start(a, b)
        before, asked = cluster.store.record(task_id), await cluster.questions(task_id)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            await run.resume(a)
        assert [type(error) for error in run.lost] == [LeaseLostError]
        assert run.is_cancelled
        assert shown(cluster.store.record(task_id)) == shown(before)
        assert await cluster.questions(task_id) == asked
        assert a.running == set()
        assert b.running == {task_id}
        assert [record for record in caplog.records if record.levelno > logging.INFO] == []

        await cluster.answer(a, task_id, "?", {})
        ended = await cluster.until_ended(task_id)
        assert ended.outcome is not None
        assert ended.outcome.result == {"by": "the new run"}


async def test_a_question_that_a_lost_run_gives_up_stays_open_for_the_new_run() -> None:
    async with open_cluster() as (cluster, (a, b)):
        gave_up: list[Process] = []

        def work_of(process: Process, timeout: float | None) -> Callable[[Execution[Any]], Awaitable[Outcome]]:
            async def work(execution: Execution[Any]) -> Outcome:
                try:
                    await process.context(execution).elicit("?", FORM, timeout=timeout)
                except QuestionTimeoutError:
                    gave_up.append(process)
                    raise
                return Outcome.completed({"by": "the new run"})

            return work

        a.runtime.register("tool", work_of(a, 4 * LEASE_SECONDS))
        b.runtime.register("tool", work_of(b, None))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.until_asked(task_id, "?")
        a.link.fails = {"renew_leases"}  # it never hears that its lease is lost
        await cluster.pass_time_until_taken(task_id, b)
        asked = await cluster.questions(task_id)
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert gave_up == [a]
        assert await cluster.questions(task_id) == asked
        assert cluster.store.record(task_id).status == "input_required"
        await cluster.answer(b, task_id, "?", {})
        ended = await cluster.until_ended(task_id)
        assert ended.outcome is not None
        assert ended.outcome.result == {"by": "the new run"}


async def test_a_run_that_detached_and_goes_on_writes_as_the_holder_of_the_lease_until_it_has_returned() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        fences: list[Fence | None] = []
        runs: list[Execution[Any]] = []

        async def work(execution: Execution[Any]) -> Outcome:
            runs.append(execution)
            execution.detach()
            fences.append(execution.fence)
            return Outcome.completed({})

        await a.runtime.submit(TaskSpec(), work)
        await cluster.settle()
        assert fences != [None]
        assert runs[0].fence is None


async def test_detached_work_that_has_returned_ends_its_task_through_its_context() -> None:
    async with open_cluster() as (cluster, (a, _)):
        contexts: list[ServerTaskContext] = []

        async def work(execution: Execution[Any]) -> Outcome:
            contexts.append(a.context(execution))
            contexts[0].detach()
            return Outcome.completed({})

        task_id = (await a.runtime.submit(TaskSpec(), work)).task_id
        await cluster.settle()
        assert cluster.store.record(task_id).lease is None
        await contexts[0].update_status("almost")
        await contexts[0].complete({"n": 1})
        outcome = cluster.store.record(task_id).outcome
        assert outcome is not None
        assert outcome.result == {"n": 1}


async def test_a_lost_run_leaves_no_question_in_a_queue_that_is_not_the_stores_own() -> None:
    store, queue = InMemoryTaskStore(), InMemoryTaskMessageQueue()
    record = await store.create_task(NewTask(ttl_ms=None, worker="new", lease_ms=60_000))
    question = QueuedMessage.request("key", "m", {})
    with anyio.fail_after(PATIENCE), pytest.raises(LeaseLostError):
        await ask_question(store, queue, record.task_id, question, fence=Fence("old", 1))
    assert await queue.outstanding(record.task_id) == ()
    found = await store.get_task(record.task_id)
    assert found is not None
    assert found.status == "working"


async def test_a_question_under_a_runtime_waits_without_a_timer_and_is_released_at_the_deadline() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        released: list[BaseException] = []

        async def work(execution: Execution[Any]) -> Outcome:
            try:
                await a.context(execution).elicit("?", FORM)
            except BaseException as error:
                released.append(error)
                raise
            return Outcome.completed({})

        clock: FakeClock = cluster.clock
        spec = TaskSpec(ttl_ms=60_000)
        first = (await a.runtime.submit(spec, work)).task_id
        await cluster.until_asked(first, "?")
        await cluster.settle()
        waiting = clock.waiting
        for _ in range(10):
            await cluster.until_asked((await a.runtime.submit(spec, work)).task_id, "?")
        await cluster.settle()
        timers_each = (clock.waiting - waiting) / 10
        await cluster.pass_time(60)
        assert len(released) == 11
        assert all(isinstance(error, InvalidTransitionError | anyio.get_cancelled_exc_class()) for error in released)
        assert cluster.store.record(first).status == "failed"
        assert timers_each <= 1, "the watch of a shared store's task has one; the question has none"


async def test_the_answer_to_a_renewal_of_an_earlier_run_stops_no_later_run_of_the_task_here() -> None:
    """L12: it was put back and claimed by the same process, while the answer was on its way."""
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (cluster, (worker,)):
        is_put_back, has_begun_again, gate = anyio.Event(), anyio.Event(), anyio.Event()
        attempts: list[int] = []
        renewals = 0

        async def work(execution: Execution[Any]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            await gate.wait()
            if len(attempts) == 1:
                raise StoreUnavailableError("away")
            has_begun_again.set()
            await anyio.sleep_forever()
            raise AssertionError

        async def before(call: str) -> None:
            nonlocal renewals
            if call == "renew_leases":
                renewals += 1
                if renewals == 1:  # that of all leases; the next one is of the work that gives its lease up
                    gate.set()
                    await is_put_back.wait()

        async def after(call: str) -> None:
            if call == "claim_task":
                is_put_back.set()
            if call == "renew_leases" and renewals == 2 and not has_begun_again.is_set() and is_put_back.is_set():
                await has_begun_again.wait()

        worker.runtime.register("tool", work, is_dispatched=True)
        record = await worker.runtime.dispatch(RERUNNABLE)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.runtime.work)
            while attempts != [1]:
                await anyio.lowlevel.checkpoint()
            worker.link.before, worker.link.after = before, after
            await cluster.pass_time(TURN_SECONDS)
            await has_begun_again.wait()
            await cluster.settle()
            assert attempts == [1, 2]
            assert worker.running == {record.task_id}
            group.cancel_scope.cancel()
        worker.link.before = worker.link.after = None
