"""Workers of a store that finds and claims tasks in one step: fewer calls, and the same laws (L6, L12)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, Outcome, StoreUnavailableError, TaskSpec
from mcp_task_runtime.core.dispatch import StoreDispatcher
from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.types import NewTask, TaskRequest
from tests.core.leased_store import TURN_SECONDS, Cluster, Process, TakingTaskStore, open_cluster
from tests.core.test_dispatch import RERUNNABLE, SPEC, Broker, Tool, working


@asynccontextmanager
async def open_taking(dispatcher: Any = None, size: int = 2) -> AsyncIterator[tuple[Cluster, list[Process]]]:
    async with open_cluster(size, dispatcher=dispatcher or StoreDispatcher(), takes=True) as opened:
        yield opened


def calls_since(process: Process, number: int) -> list[str]:
    duties = ("renew_leases", "list_lapsed")
    return [name for name in process.link.calls[number:] if name not in duties]


async def test_a_task_costs_a_worker_two_calls_and_its_server_one() -> None:
    """L8: nothing is read to see whether it can be claimed."""
    async with open_taking() as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        async with working(worker):
            await cluster.settle()
            before = len(server.link.calls), len(worker.link.calls)
            record = await server.runtime.dispatch(SPEC)
            assert (await cluster.until_ended(record.task_id)).outcome == Outcome.completed({"n": 14})
            await cluster.settle()
            assert calls_since(server, before[0]) == ["create_task"]
            assert sorted(calls_since(worker, before[1])) == ["finish_task", "take_work"], "it waits for the next one"
            assert server.runtime.statistics().live_tasks == 0


async def test_what_an_engine_delivers_costs_a_worker_two_calls() -> None:
    """L8. A second delivery finds nothing, and looks whether a worker was lost."""
    broker = Broker()
    async with open_taking(broker) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        record = await server.runtime.dispatch(SPEC)
        before = len(worker.link.calls)
        assert await worker.runtime.execute(record.task_id)
        assert calls_since(worker, before) == ["take_task", "finish_task"]
        assert not await worker.runtime.execute(record.task_id)
        assert not await worker.runtime.execute("unknown")
        assert cluster.store.record(record.task_id).status == "completed"


async def test_as_many_tasks_are_taken_as_there_is_room_for() -> None:
    async with open_taking() as (cluster, (server, worker)):
        tool = Tool()
        tool.register(server, worker)
        tasks = []
        for _ in range(5):
            tasks.append(await server.runtime.dispatch(SPEC))
            cluster.clock.advance(0.001)
        async with working(worker, concurrency=3):
            await cluster.settle()
            assert worker.running == {task.task_id for task in tasks[:3]}, "in their order"
            tool.gate.set()
            for task in tasks:
                await cluster.until_ended(task.task_id)
        assert len(tool.runs) == 5


async def test_workers_that_look_at_once_run_each_task_once() -> None:
    """L12."""
    async with open_taking(size=4) as (cluster, (server, *workers)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, *workers)
        async with working(*workers, concurrency=2):
            tasks = [await server.runtime.dispatch(SPEC) for _ in range(40)]
            for task in tasks:
                await cluster.until_ended(task.task_id)
        assert len(tool.runs) == 40
        assert {attempt for _, attempt in tool.runs} == {1}


async def test_a_worker_that_stops_when_it_has_claimed_a_task_runs_it() -> None:
    """L6: the loop is cancelled between the claim and the beginning of the work."""
    async with open_taking() as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        scope = anyio.CancelScope()
        take_work = worker.link._target.take_work

        class Cancelling(TakingTaskStore):
            async def take_work(self, *args: Any, **kwargs: Any) -> Any:
                taken = await take_work(*args, **kwargs)
                scope.cancel()
                return taken

        cluster.store.__class__ = Cancelling
        record = await server.runtime.dispatch(SPEC)
        with scope:
            await worker.runtime.work(concurrency=2)
        assert scope.cancelled_caught
        assert (await cluster.until_ended(record.task_id)).status == "completed"
        assert tool.runs == [(worker.worker, 1)]


async def test_a_worker_goes_on_after_an_outage() -> None:
    """L12."""
    async with open_taking() as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        async with working(worker):
            await cluster.settle()
            worker.link.fails = {"take_work"}
            record = await server.runtime.dispatch(SPEC)
            worker.link.fails = set()
            assert (await cluster.until_ended(record.task_id)).status == "completed"
        worker.link.fails = {"take_task"}
        other = await server.runtime.dispatch(SPEC)
        with pytest.raises(StoreUnavailableError):
            await worker.runtime.execute(other.task_id)
        worker.link.fails = set()
        assert await worker.runtime.execute(other.task_id)


async def test_a_run_that_lost_its_lease_is_over_before_the_same_process_runs_the_task_again() -> None:
    """L12: two runs of a task at once would be one too many, and the first one's end would hide the second."""
    async with open_taking() as (cluster, (server, worker)):
        began: list[int] = []
        ended: list[int] = []
        gate = anyio.Event()

        async def work(execution: Execution[Outcome]) -> Outcome:
            assert execution.record is not None
            assert execution.record.lease is not None
            attempt = execution.record.lease.attempt
            began.append(attempt)
            assert len(began) == len(ended) + 1
            try:
                if attempt == 1:
                    await anyio.sleep_forever()
                await gate.wait()
            finally:
                ended.append(attempt)
            return Outcome.completed({"attempt": attempt})

        for process in (server, worker):
            process.runtime.register("tool", work, is_dispatched=True)
        record = await server.runtime.dispatch(RERUNNABLE)
        async with working(worker):
            await cluster.settle()
            assert began == [1]
            # Another process took it for lost, and put it back.
            await cluster.store.renew_leases(worker.worker, [record.task_id], lease_ms=0)
            assert await cluster.store.claim_task(record.task_id, worker="", lease_ms=0) is not None
            await cluster.settle()
            assert (began, ended) == ([1, 3], [1]), "the second claim waited for the end of the first run"
            statistics = worker.runtime.statistics()
            assert cluster.store.record(record.task_id).lease.used_attempts == 2  # type: ignore[union-attr]
            assert (set(statistics.running), statistics.live_tasks) == ({record.task_id}, 1)
            await cluster.pass_time(2 * TURN_SECONDS)
            gate.set()
            assert (await cluster.until_ended(record.task_id)).outcome == Outcome.completed({"attempt": 3})


async def test_tasks_that_a_process_cannot_open_are_left_to_others() -> None:
    async with open_taking() as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        sealed = replace(SPEC.request, arguments_json=SEALED_JSON + 'x"}')
        left = await cluster.store.create_task(NewTask(ttl_ms=None, request=sealed, worker="", lease_ms=0))
        async with working(worker):
            record = await server.runtime.dispatch(SPEC)
            assert (await cluster.until_ended(record.task_id)).status == "completed"
        assert cluster.store.record(left.task_id).revision == 1
        assert not await worker.runtime.execute("\ud800")


async def test_tasks_of_tools_without_work_here_are_left_to_others() -> None:
    broker = Broker()
    async with open_taking(broker) as (cluster, (server, worker)):
        Tool().register(server)
        record = await server.runtime.dispatch(TaskSpec(request=TaskRequest(name="tool")))
        assert not await worker.runtime.execute(record.task_id)
        assert cluster.store.record(record.task_id).revision == 1
