"""A store that fails once, at each of its calls in turn, through whole lives of tasks (L2, L5, L9, L12).

It fails before it does what it is asked to, or afterwards, so that the answer is lost. Either costs time at most: the
task ends as it must, work that may not run again runs once, and nothing of it is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InvalidTransitionError,
    LimitExceededError,
    Outcome,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRecord,
    TaskRuntime,
    TaskSpec,
    TaskView,
)
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.dispatch import Dispatch, StoreDispatcher, TaskDispatcher
from mcp_task_runtime.core.types import NewTask, TaskFilter, TaskRequest
from mcp_task_runtime.core.work_queue import WorkQueue
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, TURN_SECONDS, Cluster, Process, open_cluster

T = TypeVar("T")

TTL_SECONDS = 120
_FEWEST_CALLS, _MOST_CALLS = 6, 60
"""Calls of the store that a life takes in both processes, so that each is seen to be tried."""
_PAUSES = {
    "store_calls._PAUSE": Backoff(1e-9, longest=5.0),
    "work_loop._RETRY_SECONDS": 1e-9,
    "work_loop._LOST_RACE_SECONDS": 1e-9,
}
FORM = {"type": "object", "properties": {}}
ACCEPT = {"action": "accept", "content": {}}
PLAIN = TaskSpec(ttl_ms=TTL_SECONDS * 1000, owner="ada", request=TaskRequest(name="tool"))
RERUNNABLE = replace(PLAIN, request=replace(PLAIN.request, rerunnable=True, max_attempts=3))
SPECS = {"once": PLAIN, "again": RERUNNABLE}


class Engine:
    """A dispatcher that delivers each task once, to a worker; what raises there is not delivered again."""

    start_grace_ms = 20_000

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[str](1_000)

    async def submit(self, dispatch: Dispatch) -> None:
        await self._send.send(dispatch.task_id)

    async def revoke(self, task_id: str) -> None:
        pass

    async def run(self, worker: Process) -> None:
        async def execute(task_id: str) -> None:
            with suppress(StoreError):
                await worker.runtime.execute(task_id)

        async with anyio.create_task_group() as group, self._receive:
            async for task_id in self._receive:
                group.start_soon(execute, task_id)

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class Story:
    """The tasks of one tool in a cluster, and the client that calls it.

    Attributes:
        runs: How often the work of each task has begun.
        ends: What the client saw of each of its tasks.
        calls: How many calls the store had of the process that is watched.
    """

    def __init__(self, cluster: Cluster, processes: list[Process], spec: TaskSpec, engine: Engine | None) -> None:
        self.cluster = cluster
        self.home, self.other = processes
        self.spec = spec
        self.engine = engine
        self.runs: dict[str, int] = {}
        self.ends: list[Outcome] = []
        self.calls = 0
        self.is_over = False

    def fail(self, process: Process, number: int, *, is_written: bool) -> None:
        """Have a process lose a call of the store: the request, or the answer."""
        self.calls = 0

        async def fail(name: str) -> None:
            self.calls += 1
            if self.calls == number:
                raise StoreUnavailableError("The connection was lost")

        if is_written:
            process.link.after = fail
        else:
            process.link.before = fail

    async def work(self, process: Process, execution: Execution[Outcome]) -> Outcome:
        assert execution.record is not None
        task_id = execution.record.task_id
        self.runs[task_id] = self.runs.get(task_id, 0) + 1
        context = process.context(execution)
        one = await context.step("one", _one)
        await context.elicit("?", FORM)
        two = await context.step("two", _one)
        return Outcome.completed({"sum": one + two})

    def register(self, *, is_dispatched: bool, queue: WorkQueue | None = None) -> None:
        for process in (self.home, self.other):

            async def work(execution: Execution[Outcome], process: Process = process) -> Outcome:
                return await self.work(process, execution)

            process.runtime.register("tool", work, is_dispatched=is_dispatched, queue=queue)

    async def pause(self) -> None:
        clock = self.cluster.clock
        with clock.move_on_at(clock.now() + timedelta(seconds=1)):
            await anyio.sleep_forever()

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call as a client does: again, if it failed."""
        while True:
            try:
                return await call()
            except (StoreError, LimitExceededError):
                await self.pause()

    async def until_ended(self, record: TaskRecord, process: Process | None = None) -> Outcome:
        """Answer what a task asks until it has ended; return how, as seen by one that waits for it."""
        runtime = (process or self.home).runtime
        found: list[Outcome] = []

        async def wait() -> None:
            found.append(await self.insist(lambda: runtime.result(record.task_id, owner="ada")))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            while not found:
                view = await self.insist(lambda: runtime.get(record.task_id, owner="ada"))
                if view.questions:
                    await self.insist(partial(self._answer, runtime, view))
                await self.pause()
        return found[0]

    @staticmethod
    async def _answer(runtime: TaskRuntime, view: TaskView) -> None:
        answers = {question.key or "": ACCEPT for question in view.questions}
        await runtime.answer(view.record.task_id, answers, owner="ada")

    async def until_asked(self, record: TaskRecord) -> None:
        """Wait until a task asks, or has ended."""
        while True:
            view = await self.insist(lambda: self.home.runtime.get(record.task_id, owner="ada"))
            if view.questions or view.record.outcome is not None:
                return
            await self.pause()

    async def cancel(self, record: TaskRecord, process: Process) -> None:
        """Cancel a task; an earlier try may have done it, and the work may be faster."""
        with suppress(InvalidTransitionError, TaskNotFoundError):
            await self.insist(lambda: process.runtime.cancel(record.task_id, owner="ada"))

    async def all_records(self) -> tuple[TaskRecord, ...]:
        return (await self.cluster.store.search_tasks(TaskFilter(), newest_first=False)).records


async def _one() -> int:
    return 1


Scene = Callable[[Story], Awaitable[None]]


async def runs_here(story: Story) -> None:
    story.register(is_dispatched=False)
    record = await story.insist(lambda: story.home.runtime.submit(story.spec))
    story.ends.append(await story.until_ended(record))


async def runs_in_a_queue(story: Story) -> None:
    """One runs, one waits, and there is no room for a third: it comes again."""
    queue = WorkQueue("reports", 1, max_queued=1)
    story.register(is_dispatched=False, queue=queue)
    spec = replace(story.spec, queue=queue)

    async def call() -> None:
        record = await story.insist(lambda: story.home.runtime.submit(spec))
        story.ends.append(await story.until_ended(record))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)


async def runs_elsewhere(story: Story) -> None:
    story.register(is_dispatched=True)
    async with story_workers(story):
        record = await story.insist(lambda: story.home.runtime.dispatch(story.spec))
        story.ends.append(await story.until_ended(record))


async def is_cancelled_while_it_waits(story: Story) -> None:
    story.register(is_dispatched=True)
    record = await story.insist(lambda: story.home.runtime.dispatch(story.spec))
    await story.cancel(record, story.home)
    async with story_workers(story):
        story.ends.append(await story.until_ended(record))


async def is_cancelled_while_it_asks(story: Story) -> None:
    story.register(is_dispatched=True)
    async with story_workers(story):
        record = await story.insist(lambda: story.home.runtime.dispatch(story.spec))
        await story.until_asked(record)
        await story.cancel(record, story.home)
        story.ends.append(await story.until_ended(record))


async def is_cancelled_from_elsewhere(story: Story) -> None:
    story.register(is_dispatched=False)
    record = await story.insist(lambda: story.home.runtime.submit(story.spec))
    await story.until_asked(record)
    await story.cancel(record, story.other)
    story.ends.append(await story.until_ended(record, story.other))


async def is_joined(story: Story) -> None:
    story.register(is_dispatched=False)
    spec = replace(story.spec, join_key="call")
    first = await story.insist(lambda: story.home.runtime.submit(spec))
    joined = await story.insist(lambda: story.other.runtime.submit(spec))
    assert joined.task_id == first.task_id
    async with anyio.create_task_group() as group:

        async def follow(process: Process) -> None:
            story.ends.append(await story.until_ended(first, process))

        for process in (story.home, story.other):
            group.start_soon(follow, process)
    assert story.ends[0] == story.ends[1]
    assert len(await story.all_records()) == 1


@asynccontextmanager
async def story_workers(story: Story) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        if story.engine is None:
            group.start_soon(story.other.runtime.work)
        else:
            group.start_soon(story.engine.run, story.other)
        yield
        group.cancel_scope.cancel()


@dataclass(frozen=True)
class Life:
    """What happens to tasks, where.

    Attributes:
        scene: What happens.
        way: How tasks reach a worker: through the `store`, through one that `takes`, or an `engine`.
        statuses: How the tasks that the client knows of may end.
    """

    scene: Scene
    way: str = "store"
    statuses: frozenset[str] = frozenset({"completed"})


CANCELLED = frozenset({"cancelled"})
LIVES = {
    "here": Life(runs_here),
    "queue": Life(runs_in_a_queue),
    "worker": Life(runs_elsewhere),
    "taken": Life(runs_elsewhere, "takes"),
    "engine": Life(runs_elsewhere, "engine"),
    "engine, taken": Life(runs_elsewhere, "takes and engine"),
    "cancelled queued": Life(is_cancelled_while_it_waits, "store", CANCELLED),
    "cancelled queued, engine": Life(is_cancelled_while_it_waits, "engine", CANCELLED),
    "cancelled asking": Life(is_cancelled_while_it_asks, "takes", CANCELLED),
    "cancelled elsewhere": Life(is_cancelled_from_elsewhere, "store", CANCELLED),
    "joined": Life(is_joined),
}


async def live(life: Life, spec: TaskSpec, victim: int, number: int, *, is_written: bool) -> int:
    """Let tasks live while a process loses one call; return how many it made."""
    engine = Engine() if "engine" in life.way else None
    dispatcher: TaskDispatcher = StoreDispatcher() if engine is None else engine
    settings = replace(SETTINGS, max_tasks_per_owner=3)
    async with open_cluster(settings=settings, dispatcher=dispatcher, takes="takes" in life.way) as (
        cluster,
        processes,
    ):
        story = Story(cluster, processes, spec, engine)
        story.fail(processes[victim], number, is_written=is_written)

        async def tell() -> None:
            await life.scene(story)
            story.is_over = True

        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            await cluster.settle()
            for _ in range(3 * TTL_SECONDS):
                if story.is_over:
                    break
                await cluster.pass_time(1)
            assert story.is_over, f"it hangs: {await story.all_records()}, {story.runs}"
            group.cancel_scope.cancel()
        calls = story.calls
        await cluster.settle()
        if any(record.outcome is None for record in await story.all_records()):
            await cluster.pass_time(TTL_SECONDS + 1)  # a task that the client never heard of
        for process in processes:
            process.link.before = process.link.after = None
        records = await story.all_records()
        assert all(record.outcome is not None for record in records), records
        assert {outcome.status for outcome in story.ends} <= life.statuses, story.ends
        if not spec.request.rerunnable:
            assert all(runs == 1 for runs in story.runs.values()), story.runs
        for process in processes:
            left = process.runtime.statistics()
            assert (left.live_tasks, left.detached, left.deadlines, left.running) == (0, 0, 0, frozenset()), left
            assert (left.readers, left.followed, left.waiting_outcomes, left.used_slots, left.queued) == (0,) * 5, left
    if engine is not None:
        engine.close()
    return calls


@pytest.mark.parametrize("is_written", [False, True], ids=["request", "answer"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
async def test_one_lost_call_costs_time_alone(
    life: Life, spec: TaskSpec, is_written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pause in _PAUSES.items():
        monkeypatch.setattr(f"mcp_task_runtime.core.{name}", pause)  # these go by the event loop's clock
    total = 0
    for victim in range(2):
        number, calls = 0, 1
        while number < calls:
            number += 1
            calls = min(await live(life, spec, victim, number, is_written=is_written), 2 * _MOST_CALLS)
        total += number
    assert _FEWEST_CALLS <= total <= _MOST_CALLS


async def test_a_call_that_names_its_task_joins_the_run_that_it_began_before_a_call_without_an_answer() -> None:
    async with open_cluster(1) as (_, (process,)):
        runs: list[str] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            runs.append(execution.record.task_id)
            await anyio.sleep_forever()
            raise AssertionError

        process.runtime.register("tool", work)
        spec = replace(PLAIN, join_key="call", task_id="mine")
        await process.runtime.submit(spec)
        process.link.fails = {"join_task"}
        with pytest.raises(StoreUnavailableError):
            await process.runtime.submit(spec)
        process.link.fails = set()
        assert (await process.runtime.submit(spec)).task_id == "mine"
        await anyio.wait_all_tasks_blocked()
        assert runs == ["mine"]


# --- claims without an answer -------------------------------------------------------------------------------------


async def test_work_begins_that_a_claim_without_an_answer_has_claimed_although_the_outage_outlasts_its_lease() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        runs: list[str] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            runs.append(execution.record.task_id)
            return Outcome.completed({})

        async def lose(call: str) -> None:
            if call == "claim_task":
                worker.link.is_cut = True
                raise StoreUnavailableError("The connection was lost")

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(PLAIN, ttl_ms=None))
        worker.link.after = lose
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        server.link.is_cut = True  # away for everybody: a lease that lapses meanwhile is not lost
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert runs == []
        for process in (server, worker):
            process.link.is_cut = False
        worker.link.after = None
        await cluster.pass_time(TURN_SECONDS)
        assert cluster.store.record(record.task_id).status == "completed"
        assert runs == [record.task_id]


@pytest.mark.parametrize("delay", [0.5, 1.5], ids=["before it looks", "after it has looked"])
async def test_work_begins_that_is_claimed_only_when_the_call_has_failed(delay: float) -> None:
    """The request was on its way when the connection was lost."""
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):

        async def work(execution: Execution[Outcome]) -> Outcome:
            return Outcome.completed({})

        async def lose(call: str) -> None:
            if call == "claim_task":
                raise StoreUnavailableError("The connection was lost")

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(PLAIN, ttl_ms=None))
        worker.link.before = lose
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.before = None
        await cluster.pass_time(delay * TURN_SECONDS)
        claimed = await cluster.store.claim_task(record.task_id, worker=worker.worker, lease_ms=LEASE_SECONDS * 1000)
        assert claimed is not None
        await cluster.pass_time(TURN_SECONDS)
        assert cluster.store.record(record.task_id).status == "completed"


async def test_a_claim_that_was_not_made_is_not_looked_for_for_longer_than_a_lease() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):

        async def lose(call: str) -> None:
            if call == "claim_task":
                raise StoreUnavailableError("The connection was lost")

        async def work(execution: Execution[Outcome]) -> Outcome:
            raise AssertionError

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(PLAIN, ttl_ms=None))
        worker.link.before = lose
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.before = None
        await cluster.pass_time(2 * TURN_SECONDS)
        assert "get_task" in worker.link.calls[-8:], "it is looked for"
        await cluster.pass_time(LEASE_SECONDS)
        worker.link.calls.clear()
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert set(worker.link.calls) == {"list_lost"}


async def test_a_lease_that_was_not_released_is_not_taken_for_what_a_claim_without_an_answer_has_claimed() -> None:
    """The attempt that ended would run again, and not be counted."""
    async with open_cluster(dispatcher=StoreDispatcher(), takes=True) as (cluster, (server, worker)):
        attempts: list[int] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            raise StoreUnavailableError("away")

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(RERUNNABLE, ttl_ms=None))
        worker.link.fails = {"renew_leases"}
        assert await worker.runtime.execute(record.task_id)
        worker.link.fails = {"renew_leases", "take_task"}
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.fails = set()
        await cluster.pass_time(LEASE_SECONDS)
        assert attempts == [1]


async def test_a_task_that_waits_to_run_again_here_does_not_begin_early_because_a_claim_has_no_answer() -> None:
    """An engine delivered it once more; its delay would be cut short."""
    async with open_cluster(dispatcher=StoreDispatcher(), takes=True) as (cluster, (server, worker)):
        attempts: list[int] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            execution.run_again(timedelta(seconds=3 * LEASE_SECONDS))
            raise ValueError

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(RERUNNABLE, ttl_ms=None))
        assert await worker.runtime.execute(record.task_id)
        worker.link.fails = {"take_task"}
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.fails = set()
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert attempts == [1]
        await cluster.pass_time(LEASE_SECONDS + 1)
        assert attempts == [1, 2]


@pytest.mark.parametrize("takes", [False, True])
async def test_work_runs_once_when_the_answer_of_another_claim_comes_late(takes: bool) -> None:
    """The first claim was not made, and the second one was: nothing else may begin its work."""
    call = "take_task" if takes else "claim_task"
    async with open_cluster(dispatcher=StoreDispatcher(), takes=takes) as (cluster, (server, worker)):
        attempts: list[int] = []
        may_answer = anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            return Outcome.completed({})

        async def hold(name: str) -> None:
            if name == call:
                await may_answer.wait()

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(PLAIN, ttl_ms=None))
        worker.link.fails = {call}
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.fails = set()
        worker.link.after = hold
        async with anyio.create_task_group() as group:
            group.start_soon(worker.runtime.execute, record.task_id)
            await cluster.settle()
            lease = cluster.store.record(record.task_id).lease
            assert lease is not None
            assert lease.worker == worker.worker
            await cluster.pass_time(TURN_SECONDS)
            may_answer.set()
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert attempts == [1]
        assert cluster.store.record(record.task_id).status == "completed"


async def test_a_run_that_began_for_a_claim_without_an_answer_goes_on_when_a_worker_takes_its_task() -> None:
    """The claim was not made, and the answer of the call that took the task comes late."""
    async with open_cluster(dispatcher=StoreDispatcher(), takes=True) as (cluster, (server, worker)):
        attempts: list[int] = []
        may_answer, may_end = anyio.Event(), anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            await may_end.wait()
            return Outcome.completed({})

        async def hold(name: str) -> None:
            if name == "take_work":
                await may_answer.wait()

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(replace(PLAIN, ttl_ms=None))
        worker.link.fails = {"take_task"}
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(record.task_id)
        worker.link.fails = set()
        worker.link.after = hold
        await cluster.pass_time(2)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.runtime.work)
            await cluster.settle()
            await cluster.pass_time(TURN_SECONDS - 2)
            may_answer.set()
            await cluster.pass_time(TURN_SECONDS)
            may_end.set()
            await cluster.pass_time(1)
            group.cancel_scope.cancel()
        assert attempts == [1]
        assert cluster.store.record(record.task_id).status == "completed"


async def test_claims_without_an_answer_are_looked_for_no_longer_than_leases_may_wait() -> None:
    """A slow store needs more time for all of them than the lease of what runs here lasts."""
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        held: list[bool] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            await anyio.sleep_forever()
            raise AssertionError

        async def slow(call: str) -> None:
            if call == "get_task":
                cluster.clock.advance(1)
                lease = cluster.store.record(mine.task_id).lease
                assert lease is not None
                held.append(lease.expires_at > cluster.clock.now())

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        spec = replace(PLAIN, ttl_ms=None, owner=None)
        mine = await worker.runtime.submit(spec)
        worker.link.fails = {"claim_task"}
        for _ in range(20):
            record = await server.runtime.dispatch(spec)
            with pytest.raises(StoreUnavailableError):
                await worker.runtime.execute(record.task_id)
        worker.link.fails = set()
        worker.link.before = slow
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert len(held) >= 20, "the last of them are looked for, too"
        assert all(held)


@pytest.mark.parametrize("rerunnable", [False, True])
async def test_a_task_is_shown_although_its_lost_worker_cannot_be_replaced_now(rerunnable: bool) -> None:
    async with open_cluster(1) as (cluster, (process,)):
        request = TaskRequest(name="tool", rerunnable=rerunnable)
        new = NewTask(ttl_ms=None, request=request, worker="lost", lease_ms=LEASE_SECONDS * 1000)
        await cluster.pass_time(1)  # so that its lease lapses between two turns
        record = await cluster.store.create_task(new)

        async def work(execution: Execution[Outcome]) -> Outcome:
            return Outcome.completed({})

        process.runtime.register("tool", work)
        await cluster.pass_time(LEASE_SECONDS + 0.5)
        process.link.fails = {"claim_task"}
        process.link.calls.clear()
        view = await process.runtime.get(record.task_id, owner=None)
        assert "claim_task" in process.link.calls
        assert view.record.status == "working"
        process.link.fails = set()
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert cluster.store.record(record.task_id).status == ("completed" if rerunnable else "failed")
