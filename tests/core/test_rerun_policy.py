"""`Rerun`: work that raised runs again after a delay, which survives its process, and can be cancelled (law L12)."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Backoff, Execution, Outcome, Rerun, TaskSettings, TaskSpec
from mcp_task_runtime.core.types import TaskRequest
from tests.core.leased_store import LEASE_SECONDS, open_cluster
from tests.core.worlds import World, make_world, open_world


def spec(attempts: int = 3, *, ttl_ms: int = 600_000, rerunnable: bool = True) -> TaskSpec:
    return TaskSpec(ttl_ms=ttl_ms, request=TaskRequest(name="tool", rerunnable=rerunnable, max_attempts=attempts))


class Failing:
    """Work that fails in its first runs, and asks to run again after a delay.

    Attributes:
        attempts: The number of each run.
        granted: Whether each run that asked for it was told that it runs again.
    """

    def __init__(self, failures: int, delay: float = 10) -> None:
        self.attempts: list[int] = []
        self.granted: list[bool] = []
        self._failures = failures
        self._delay = timedelta(seconds=delay)

    async def __call__(self, execution: Execution[Outcome]) -> Outcome:
        assert execution.record is not None
        assert execution.record.lease is not None
        self.attempts.append(execution.record.lease.attempt)
        if len(self.attempts) <= self._failures:
            self.granted.append(execution.run_again(self._delay))
            raise ConnectionError
        return Outcome.completed({"runs": len(self.attempts)})


async def test_work_that_raised_runs_again_after_its_delay_and_its_task_is_working_meanwhile() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        work = Failing(2)
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.settle()
        assert work.attempts == [1]
        waiting = cluster.store.record(task_id)
        assert waiting.status == "working"
        assert waiting.task.status_message == "Runs again in 10 s (attempt 2 of 3)"
        assert a.running == set()
        assert a.runtime.statistics().postponed == 1
        assert a.runtime.statistics().live_tasks == 1
        await cluster.pass_time(9)
        assert work.attempts == [1]
        await cluster.pass_time(2)
        assert work.attempts == [1, 2]
        await cluster.pass_time(11)
        assert cluster.store.record(task_id).outcome == Outcome.completed({"runs": 3})
        assert a.runtime.statistics().postponed == 0
        assert a.runtime.statistics().live_tasks == 0


async def test_the_last_attempt_ends_the_task_with_what_it_raised() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        work = Failing(99)
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec(2))).task_id
        await cluster.pass_time(12)
        assert work.attempts == [1, 2]
        assert work.granted == [True, False]
        assert cluster.store.record(task_id).status == "failed"


async def test_what_may_not_rerun_fails_at_once() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        work = Failing(99)
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec(rerunnable=False))).task_id
        assert (await cluster.until_ended(task_id)).status == "failed"
        assert work.attempts == [1]
        assert work.granted == [False]


async def test_a_task_whose_time_to_live_ends_within_the_delay_fails_at_once() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        work = Failing(99, delay=30)
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec(ttl_ms=30_000))).task_id
        assert (await cluster.until_ended(task_id)).status == "failed"
        assert work.attempts == [1]


@pytest.mark.parametrize("where", ["here", "another process"])
async def test_a_task_that_waits_can_be_cancelled(where: str) -> None:
    async with open_cluster() as (cluster, (a, b)):
        work = Failing(99)
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.settle()
        await (a if where == "here" else b).runtime.cancel(task_id, owner=None)
        await cluster.settle()
        ended = cluster.store.record(task_id)
        assert (ended.status, ended.task.status_message) == ("cancelled", "The task was cancelled")
        statistics = a.runtime.statistics()
        assert (statistics.postponed, statistics.live_tasks, statistics.detached) == (0, 0, 0)
        await cluster.pass_time(12)
        assert work.attempts == [1]


async def test_a_delay_survives_its_process() -> None:
    async with open_cluster() as (cluster, (a, b)):
        first, second = Failing(99, delay=40), Failing(0)
        a.runtime.register("tool", first)
        b.runtime.register("tool", second)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.cut(a)
        await cluster.pass_time(LEASE_SECONDS + 20)
        assert (first.attempts, second.attempts) == ([1], []), "it is not lost: it waits"
        await cluster.pass_time(10)
        assert second.attempts == [2]
        assert cluster.store.record(task_id).status == "completed"


async def test_a_process_that_closes_leaves_waiting_tasks_to_others() -> None:
    async with open_cluster(1) as (cluster, (b,)):
        first, second = Failing(99), Failing(0)
        b.runtime.register("tool", second)
        a = cluster.process()
        async with a.runtime:
            a.runtime.register("tool", first)
            task_id = (await a.runtime.submit(spec())).task_id
            await cluster.settle()
        assert a.runtime.statistics().live_tasks == 0
        await cluster.pass_time(LEASE_SECONDS + 5)
        assert second.attempts == [2]
        assert cluster.store.record(task_id).status == "completed"


async def test_a_store_that_fails_costs_precision_and_no_task() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        work = Failing(1)
        a.link.fails = {"update_task"}
        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.settle()
        a.link.fails.clear()
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert work.attempts == [1, 2]
        assert cluster.store.record(task_id).status == "completed"


async def test_a_run_that_was_lost_meanwhile_postpones_nothing() -> None:
    async with open_cluster() as (cluster, (a, b)):
        go_on = anyio.Event()
        second = Failing(0)

        async def work(execution: Execution[Outcome]) -> Outcome:
            await go_on.wait()
            execution.run_again(timedelta(seconds=10))
            raise ConnectionError

        a.runtime.register("tool", work)
        b.runtime.register("tool", second)
        task_id = (await a.runtime.submit(spec())).task_id
        a.link.fails = {"renew_leases"}
        await cluster.pass_time_until_ended(task_id)
        go_on.set()
        await cluster.settle()
        assert a.runtime.statistics().postponed == 0
        assert cluster.store.record(task_id).status == "completed"
        assert second.attempts == [2]


async def test_work_that_was_stopped_does_not_run_again() -> None:
    async with open_cluster(1) as (cluster, (a,)):

        async def work(execution: Execution[Outcome]) -> Outcome:
            execution.run_again(timedelta(seconds=10))
            await anyio.sleep_forever()
            raise AssertionError

        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.settle()
        await a.runtime.cancel(task_id, owner=None)
        await cluster.settle()
        assert cluster.store.record(task_id).status == "cancelled"
        assert a.runtime.statistics().postponed == 0


async def test_work_that_has_ended_its_own_task_does_not_run_again() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        granted: list[bool] = []
        runs: list[Execution[Outcome]] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            runs.append(execution)
            with execution.finishing():
                await a.runtime.finish(execution.record.task_id, Outcome.completed({"by": "the work"}))
            granted.append(execution.run_again(timedelta(seconds=10)))
            raise ConnectionError

        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(spec())).task_id
        await cluster.settle()
        assert granted == [False]
        assert not runs[0].run_again(timedelta(seconds=10)), "its run is over"
        assert a.runtime.statistics().postponed == 0
        await cluster.pass_time(11)
        assert len(runs) == 1
        assert cluster.store.record(task_id).status == "completed"


async def test_attempts_count_those_that_were_lost_too() -> None:
    async with open_cluster() as (cluster, (a, b)):

        async def hang(execution: Execution[Outcome]) -> Outcome:
            await anyio.sleep_forever()
            raise AssertionError

        second = Failing(99)
        a.runtime.register("tool", hang)
        b.runtime.register("tool", second)
        task_id = (await a.runtime.submit(spec(2))).task_id
        await cluster.cut(a)
        await cluster.pass_time_until_ended(task_id)
        assert second.attempts == [2], "the first attempt was lost, the second one was the last"
        assert cluster.store.record(task_id).status == "failed"


async def test_the_attempt_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", Failing(99))
        with caplog.at_level(logging.WARNING):
            task_id = (await a.runtime.submit(spec(2))).task_id
            await cluster.pass_time(12)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"Attempt 1 of 2 of task {task_id} ('tool') failed (ConnectionError); it runs again in 10 s"),
        ("ERROR", f"Task {task_id} ('tool') in attempt 2 failed: its work raised an exception"),
    ]


# --- a store of one process ---------------------------------------------------------------------------------------


async def pass_time(world: World, seconds: float) -> None:
    for _ in range(int(seconds)):
        world.clock.advance(1)
        for _ in range(40):
            await anyio.lowlevel.checkpoint()


async def test_work_that_asks_to_run_again_while_its_only_process_closes_ends_its_task() -> None:
    """L12: no process would run it again, and the task would never end."""
    world = make_world(settings=TaskSettings(shutdown_grace=60))
    release = anyio.Event()

    async def work(execution: Execution[Outcome]) -> Outcome:
        await release.wait()
        assert execution.run_again(timedelta(seconds=1))
        raise ConnectionError

    async def live() -> None:
        async with world.runtime:
            world.runtime.register("tool", work)
            task_ids.append((await world.runtime.submit(spec())).task_id)

    task_ids: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(live)
        await anyio.wait_all_tasks_blocked()
        assert not world.runtime.is_open, "it waits for the work"
        release.set()
    record = await world.memory.get_task(task_ids[0])
    assert record is not None
    assert record.status == "failed"


async def test_a_delay_that_cannot_be_written_because_the_lease_is_lost_leaves_nothing_to_wait() -> None:
    async with open_cluster(1) as (cluster, (a,)):

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            execution.run_again(timedelta(seconds=1))
            cluster.clock.advance(LEASE_SECONDS + 1)
            assert await cluster.store.claim_task(execution.record.task_id, worker="other", lease_ms=60_000)
            raise ConnectionError

        a.runtime.register("tool", work)
        await a.runtime.submit(spec())
        await cluster.settle()
        statistics = a.runtime.statistics()
        assert (statistics.postponed, statistics.running, statistics.calls) == (0, frozenset(), 0)


async def test_work_runs_again_in_a_store_of_one_process_too() -> None:
    async with open_world() as world:
        work = Failing(2)
        world.runtime.register("tool", work)
        task_id = (await world.runtime.submit(spec())).task_id
        await pass_time(world, 40)
        assert work.attempts == [1, 2, 3]
        assert (await world.runtime.result(task_id, owner=None)).result == {"runs": 3}


async def test_a_task_that_waits_in_a_store_of_one_process_fails_when_its_runtime_closes() -> None:
    async with open_world() as world:
        world.runtime.register("tool", Failing(9))
        task_id = (await world.runtime.submit(spec())).task_id
        await pass_time(world, 3)
        assert world.runtime.statistics().postponed == 1
    record = await world.memory.get_task(task_id)
    assert record is not None
    assert record.task.status_message == "The server was shut down before the task ended"


# --- the policy ---------------------------------------------------------------------------------------------------


def test_a_policy_says_after_how_many_seconds_what_runs_again() -> None:
    policy = Rerun(5, Backoff(1, 3, 20), [OSError, LookupError])
    assert [policy.delay(ConnectionError(), attempt) for attempt in (1, 2, 3, 4)] == [1, 3, 9, 20]
    assert policy.delay(KeyError(), 1) == 1
    assert policy.delay(ValueError(), 1) is None
    assert Rerun(backoff=7, on=OSError).delay(OSError(), 4) == 7  # type: ignore[arg-type]
    assert Rerun().delay(OSError(), 1) is None


@pytest.mark.parametrize(
    "options", [{"max_attempts": 0}, {"backoff": -1}, {"on": [BaseException]}, {"on": ["OSError"]}]
)
def test_a_policy_of_nonsense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Rerun(**options)
