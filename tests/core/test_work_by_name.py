"""Work by its tool's name: `register`, `submit` and `execute`, reruns and their end (L12)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, Outcome, StoreError, StoreUnavailableError, TaskSettings, TaskSpec
from mcp_task_runtime.core.types import NewTask, TaskRequest
from tests.core.leased_store import LEASE_SECONDS, TURN_SECONDS, Cluster, Process, open_cluster
from tests.core.worlds import open_world

NAMED = TaskSpec(request=TaskRequest(name="tool", arguments_json='{"n":7}'))
RERUNNABLE = TaskSpec(request=replace(NAMED.request, rerunnable=True))


async def double(execution: Execution[Outcome]) -> Outcome:
    assert execution.record is not None
    return Outcome.completed({"n": 2 * execution.record.request.arguments["n"]})


async def forever(execution: Execution[Outcome]) -> Outcome:
    await anyio.sleep_forever()
    raise AssertionError


async def waiting_task(cluster: Cluster, spec: TaskSpec = NAMED) -> str:
    """Return a task that waits for a worker, as a process makes it that hands its work to others."""
    record = await cluster.store.create_task(NewTask(ttl_ms=None, request=spec.request, worker="", lease_ms=1_000))
    return record.task_id


async def lost_task(cluster: Cluster, spec: TaskSpec) -> str:
    record = await cluster.store.create_task(
        NewTask(ttl_ms=None, request=spec.request, worker="killed", lease_ms=LEASE_SECONDS * 1000)
    )
    return record.task_id


def lease_of(cluster: Cluster, task_id: str) -> tuple[str, int] | None:
    lease = cluster.store.record(task_id).lease
    return None if lease is None else (lease.worker, lease.attempt)


# --- submit -------------------------------------------------------------------------------------------------------


async def test_submit_runs_the_registered_work_with_the_arguments_of_the_record() -> None:
    async with open_world() as world:
        world.runtime.register("tool", double)
        record = await world.runtime.submit(NAMED)
        assert (await world.runtime.result(record.task_id, owner=None)).result == {"n": 14}


async def test_submit_without_work_for_a_name_that_is_not_registered_creates_nothing() -> None:
    async with open_world() as world:
        with pytest.raises(LookupError, match="No work is registered"):
            await world.runtime.submit(NAMED)
        assert world.live_tasks() == 0


# --- execute ------------------------------------------------------------------------------------------------------


async def test_execute_claims_runs_and_finishes_a_task_that_waits_for_a_worker() -> None:
    async with open_cluster() as (cluster, (a, b)):
        task_id = await waiting_task(cluster)
        assert not await a.runtime.execute(task_id), "it has no such tool"
        b.runtime.register("tool", double)
        assert await b.runtime.execute(task_id)
        outcome = cluster.store.record(task_id).outcome
        assert outcome is not None
        assert outcome.result == {"n": 14}
        assert not await b.runtime.execute(task_id), "it has ended"
        assert not await b.runtime.execute("unknown")


async def test_a_task_that_has_ended_is_followed_no_more() -> None:
    """L8."""
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", double)
        task_id = (await a.runtime.submit(NAMED)).task_id
        await cluster.until_ended(task_id)
        await cluster.settle()
        assert a.runtime.statistics().followed == 0


async def test_the_failure_of_a_tool_is_an_outcome_and_raises_nothing_in_execute() -> None:
    async def breaks(execution: Execution[Outcome]) -> Outcome:
        raise LookupError

    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", breaks)
        task_id = await waiting_task(cluster)
        assert await a.runtime.execute(task_id)
        assert cluster.store.record(task_id).status == "failed"


async def test_of_many_that_execute_a_task_one_runs_it() -> None:
    async with open_cluster(3) as (cluster, processes):
        runs: list[str] = []
        done: list[bool] = []

        def of(process: Process) -> Any:
            async def work(execution: Execution[Outcome]) -> Outcome:
                runs.append(process.worker)
                await anyio.lowlevel.checkpoint()
                return Outcome.completed({})

            return work

        async def execute(process: Process) -> None:
            done.append(await process.runtime.execute(task_id))

        task_id = await waiting_task(cluster)
        async with anyio.create_task_group() as group:
            for process in processes:
                process.runtime.register("tool", of(process))
                group.start_soon(execute, process)
        assert len(runs) == 1
        assert sorted(done) == [False, False, True]


async def test_a_task_whose_worker_lives_is_not_executed() -> None:
    async with open_cluster() as (cluster, (a, b)):
        for process in (a, b):
            process.runtime.register("tool", forever)
        task_id = (await a.runtime.submit(RERUNNABLE, forever, outcome_of=lambda outcome: outcome)).task_id
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert not await b.runtime.execute(task_id)
        assert not await a.runtime.execute(task_id), "it runs here"


async def test_a_lapsed_task_is_executed_once_the_store_has_worked_for_a_lease() -> None:
    """L12: before, its worker may only not have renewed the lease yet."""
    async with open_cluster(1) as (cluster, (a,)):
        done = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            done.append(execution.record.task_id)
            return Outcome.completed({})

        a.runtime.register("tool", work)

        async def lapsed() -> str:
            request = TaskRequest(name="tool", rerunnable=True)
            record = await cluster.store.create_task(
                NewTask(ttl_ms=None, request=request, worker="gone", lease_ms=1_000)
            )
            cluster.clock.advance(1)  # and no process has looked since
            return record.task_id

        assert not await a.runtime.execute(await lapsed())
        await cluster.pass_time(2 * LEASE_SECONDS)
        task_id = await lapsed()
        assert await a.runtime.execute(task_id)
        assert task_id in done


async def test_execute_that_is_cancelled_stops_the_work_and_puts_the_task_back() -> None:
    """A worker that stops: another one takes the task at once, and its run is the next attempt."""
    async with open_cluster() as (cluster, (a, b)):
        stopped = anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            try:
                return await forever(execution)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                stopped.set()

        a.runtime.register("tool", work)
        task_id = await waiting_task(cluster, RERUNNABLE)
        async with anyio.create_task_group() as group:
            group.start_soon(a.runtime.execute, task_id)
            await cluster.settle()
            assert lease_of(cluster, task_id) == (a.worker, 1)
            group.cancel_scope.cancel()
        assert stopped.is_set(), "never two at once"
        assert lease_of(cluster, task_id) == ("", 1)
        b.runtime.register("tool", double)
        assert await b.runtime.execute(task_id)
        assert cluster.store.record(task_id).status == "completed"


async def test_work_that_may_not_run_again_fails_when_its_worker_is_lost_whoever_executes_it() -> None:
    async with open_cluster() as (cluster, (a, b)):
        runs: list[str] = []

        async def work(execution: Execution[Outcome]) -> Outcome:
            runs.append("ran")
            return await forever(execution)

        for process in (a, b):
            process.runtime.register("tool", work)
        task_id = await waiting_task(cluster)
        async with anyio.create_task_group() as group:
            group.start_soon(a.runtime.execute, task_id)
            await cluster.settle()
            group.cancel_scope.cancel()
        await b.runtime.execute(task_id)
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert "lost" in str(record.outcome.error)
        assert runs == ["ran"]


async def test_a_runtime_that_closes_executes_nothing() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", double)
        task_id = await waiting_task(cluster)
        await a.runtime.drain(accept_new=False)
        assert not await a.runtime.execute(task_id)
        assert lease_of(cluster, task_id) == ("", 0)


async def test_a_task_that_is_claimed_just_when_the_runtime_begins_to_close_is_put_back_at_once() -> None:
    async with open_cluster() as (cluster, (a, b)):
        for process in (a, b):
            process.runtime.register("tool", double)
        task_id = await waiting_task(cluster)

        async def close(name: str) -> None:
            if name == "claim_task":
                await a.runtime.drain(accept_new=False)

        a.link.before = close
        assert not await a.runtime.execute(task_id)
        assert [record.task_id for record in await cluster.store.list_lapsed()] == [task_id]
        await cluster.pass_time(LEASE_SECONDS + TURN_SECONDS)
        assert (await cluster.until_ended(task_id)).status == "completed"


async def test_execute_needs_a_store_that_others_share() -> None:
    async with open_world() as world:
        with pytest.raises(RuntimeError, match="TaskLeases"):
            await world.runtime.execute("unknown")


async def test_a_task_that_waits_for_its_first_worker_is_taken_once_that_is_overdue_and_by_who_has_its_work() -> None:
    async with open_cluster() as (cluster, (a, b)):
        b.runtime.register("tool", double)
        record = await cluster.store.create_task(
            NewTask(ttl_ms=None, request=NAMED.request, worker="", lease_ms=2 * LEASE_SECONDS * 1000)
        )
        await cluster.pass_time(2 * LEASE_SECONDS - 1)
        await b.runtime.get(record.task_id, owner=None)
        assert lease_of(cluster, record.task_id) == ("", 0), "a worker may still come"
        await a.runtime.get(record.task_id, owner=None)
        assert lease_of(cluster, record.task_id) == ("", 0), "it has no such tool"
        await cluster.pass_time(TURN_SECONDS + 1)
        assert cluster.store.record(record.task_id).status == "completed"


# --- how often ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_lost_work_runs_so_often_and_then_fails_loudly(most: int, caplog: pytest.LogCaptureFixture) -> None:
    """L12: work that kills its process would kill one after the other."""
    async with open_cluster(5) as (cluster, processes):
        attempts: list[int] = []
        spec = TaskSpec(request=replace(RERUNNABLE.request, max_attempts=most))
        task_id = await lost_task(cluster, spec)

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempts.append(execution.record.lease.attempt)
            return await forever(execution)

        for process in processes[:-1]:
            if len(attempts) == most - 1:
                break
            process.runtime.register("tool", work)
            await cluster.pass_time_until_taken(task_id, process)
            await cluster.settle()
            await cluster.cut(process)
        processes[-1].runtime.register("tool", work)
        await cluster.pass_time(2 * LEASE_SECONDS)
        record = await cluster.until_ended(task_id)
        assert attempts == list(range(2, most + 1))
        assert record.outcome is not None
        assert record.outcome.error is not None
        assert f"{most} attempts" in record.outcome.error["message"]
    (line,) = [each for each in caplog.records if " failed: " in each.message]
    assert line.levelname == "WARNING"
    expected = f"its worker was lost in attempt {most} of {most}, the last one"
    assert line.message == f"Task {task_id} ('tool') failed: {expected}"


def test_three_attempts_are_the_default() -> None:
    assert TaskRequest().max_attempts == 3


# --- outages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("rerunnable", [False, True])
async def test_work_that_an_outage_stops_counts_as_lost_where_it_may_run_again(rerunnable: bool, wrapped: bool) -> None:
    """L12: and fails where it may not."""
    async with open_cluster() as (cluster, (a, b)):
        runs: list[str] = []

        async def struck(execution: Execution[Outcome]) -> Outcome:
            runs.append("struck")
            try:
                raise StoreUnavailableError("away")
            except StoreUnavailableError as error:
                if wrapped:
                    raise RuntimeError("a tool failed") from error
                raise

        async def works(execution: Execution[Outcome]) -> Outcome:
            runs.append("works")
            return Outcome.completed({"n": 1})

        b.runtime.register("tool", works)
        spec = RERUNNABLE if rerunnable else NAMED
        task_id = (await a.runtime.submit(spec, struck, outcome_of=lambda outcome: outcome)).task_id
        await cluster.pass_time(TURN_SECONDS)
        record = await cluster.until_ended(task_id)
        assert record.status == ("completed" if rerunnable else "failed")
        assert runs == (["struck", "works"] if rerunnable else ["struck"])


async def test_an_exception_whose_causes_go_in_a_circle_counts_as_no_outage() -> None:
    """L13: and looking for one comes to an end."""
    async with open_cluster(1) as (cluster, (a,)):

        async def work(execution: Execution[Outcome]) -> Outcome:
            error, cause = ValueError("a"), KeyError("b")
            error.__cause__, cause.__cause__ = cause, error
            raise error

        a.runtime.register("tool", work)
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        assert (await cluster.until_ended(task_id)).status == "failed"


@pytest.mark.parametrize("away", [2 * LEASE_SECONDS, LEASE_SECONDS + 1, LEASE_SECONDS / 2])
async def test_no_live_process_loses_its_work_to_an_outage(away: float) -> None:
    """L12: the leases of all lapse, and each process has renewed its own before another may claim them."""
    async with open_cluster(3) as (cluster, processes):
        for process in processes:
            process.runtime.register("tool", forever)
        await cluster.pass_time(2 * LEASE_SECONDS)
        task_ids = {
            process.worker: (await process.runtime.submit(RERUNNABLE, forever, outcome_of=lambda it: it)).task_id
            for process in processes
        }
        for process in processes:
            await cluster.cut(process)
        await cluster.pass_time(away)
        late = cluster.process()
        async with late.runtime:  # it has seen no outage, but it must not claim either
            late.runtime.register("tool", forever)
            for process in processes:  # they come back one after the other
                process.link.is_cut = False
                await cluster.pass_time(1)
            await cluster.pass_time(2 * LEASE_SECONDS)
            assert {worker: lease_of(cluster, task_id) for worker, task_id in task_ids.items()} == {
                process.worker: (process.worker, 1) for process in processes
            }


async def test_a_failed_renewal_is_repeated_long_before_the_next_turn() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        await a.runtime.submit(RERUNNABLE, forever, outcome_of=lambda it: it)
        a.link.fails = {"renew_leases"}
        await cluster.pass_time(TURN_SECONDS)
        a.link.calls.clear()
        await cluster.pass_time(3)
        assert a.link.calls.count("renew_leases") >= 3
        a.link.fails = set()
        a.link.calls.clear()
        await cluster.pass_time(1)
        assert "renew_leases" in a.link.calls
        a.link.calls.clear()
        await cluster.pass_time(TURN_SECONDS - 1)
        assert a.link.calls.count("renew_leases") <= 1, "and then it is as often as before"


async def test_a_process_that_stood_still_claims_nothing_before_the_others_have_renewed() -> None:
    """SIGSTOP, or a machine that slept: all leases have lapsed by its clock."""
    async with open_cluster() as (cluster, (a, b)):
        for process in (a, b):
            process.runtime.register("tool", forever)
        await cluster.pass_time(2 * LEASE_SECONDS)
        task_id = (await a.runtime.submit(RERUNNABLE, forever, outcome_of=lambda it: it)).task_id
        a.link.is_cut = True  # only a's turn is late
        cluster.clock.advance(LEASE_SECONDS + 1)
        await cluster.settle()
        a.link.is_cut = False
        await cluster.pass_time(LEASE_SECONDS - 1)
        assert lease_of(cluster, task_id) == (a.worker, 1)
        assert "claim_task" not in b.link.calls


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), StoreError("broken")])
async def test_of_leases_that_cannot_be_renewed_the_log_says_once_what_the_store_does_not_say(
    error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is logged by the store."""
    async with open_cluster(1) as (cluster, (a,)):
        a.link.error = error
        await cluster.cut(a)
        await cluster.pass_time(2 * LEASE_SECONDS)
        a.link.is_cut = False
        await cluster.pass_time(LEASE_SECONDS)
    said = [each.message for each in caplog.records if each.name.endswith("lease_keeper")]
    is_outage = isinstance(error, StoreUnavailableError)
    assert said == ([] if is_outage else ["Leases could not be renewed; trying again"])


async def test_a_lost_task_with_damaged_values_keeps_no_other_from_being_claimed() -> None:
    """L13."""
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", double)
        damaged, other = await lost_task(cluster, RERUNNABLE), await lost_task(cluster, RERUNNABLE)

        claim = cluster.store.claim_task

        async def broken(task_id: str, **more: Any) -> Any:
            if task_id == damaged:
                raise ValueError("damaged")
            return await claim(task_id, **more)

        cluster.store.claim_task = broken  # type: ignore[method-assign]
        await cluster.pass_time(2 * LEASE_SECONDS)
        assert cluster.store.record(other).status == "completed"
        assert cluster.store.record(damaged).status == "working"


async def test_an_outcome_waits_with_its_lease_until_the_store_takes_it() -> None:
    """L12: no other process runs the work again meanwhile."""
    async with open_cluster() as (cluster, (a, b)):
        b.runtime.register("tool", forever)
        a.link.fails = {"finish_task"}
        task_id = (await a.runtime.submit(RERUNNABLE, double, outcome_of=lambda it: it)).task_id
        await cluster.pass_time(4 * LEASE_SECONDS)
        assert lease_of(cluster, task_id) == (a.worker, 1)
        assert a.runtime.statistics().waiting_outcomes == 1
        a.link.fails = set()
        record = await cluster.until_ended(task_id)
        assert record.outcome is not None
        assert record.outcome.result == {"n": 14}
        assert b.running == set()


# --- bounds -------------------------------------------------------------------------------------------------------


def test_the_default_limits_fit_a_small_server() -> None:
    """50 KiB for each waiting task, and the stored bytes: less than 512 MB."""
    settings = TaskSettings()
    assert settings.max_tasks_per_owner is not None
    assert settings.max_stored_bytes_per_owner is not None
    assert settings.max_tasks_per_owner * 50 * 1024 + settings.max_stored_bytes_per_owner < 400 * 1024 * 1024
