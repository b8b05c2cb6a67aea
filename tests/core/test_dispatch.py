"""Work that runs in other processes: dispatched tasks, workers, and what a dispatcher may lose (L9, L12, L16)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    Execution,
    LimitExceededError,
    Outcome,
    StoreError,
    StoreUnavailableError,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
    TaskStore,
)
from mcp_task_runtime.core.dispatch import Dispatch, StoreDispatcher
from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.types import NewTask, TaskRequest
from mcp_task_runtime.core.undelivered import Undelivered
from mcp_task_runtime.testing.clock import FakeClock
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, TURN_SECONDS, Cluster, Link, Process, open_cluster
from tests.core.worlds import open_world
from tests.support.patience import PATIENCE

SPEC = TaskSpec(request=TaskRequest(name="tool", arguments_json='{"n":7}'))
RERUNNABLE = TaskSpec(request=replace(SPEC.request, rerunnable=True))
GRACE_SECONDS = 30


class Broker:
    """A dispatcher that keeps what it is given.

    Attributes:
        submitted: What it was given, in order.
        revoked: The tasks that it was to drop.
        fault: What is wrong: it raises (`down`), does not return (`hangs`), or lets a cancellation pass (`cancels`).
        poison: A task that it does not take.
        takes: How many tasks it takes before it is down.
        refused: How often it was given a task that it did not take.
        hanging: How many tasks it has that it does not return from.
    """

    def __init__(self) -> None:
        self.start_grace_ms = GRACE_SECONDS * 1000
        self.submitted: list[Dispatch] = []
        self.revoked: list[str] = []
        self.fault = self.poison = ""
        self.takes = 1_000
        self.refused = 0
        self.hanging = 0

    async def submit(self, dispatch: Dispatch) -> None:
        is_poison = dispatch.task_id == self.poison
        if not self.takes:
            self.fault = "down"
        if self.fault or is_poison:
            self.refused += 1
        if self.fault == "down" or is_poison:
            raise ConnectionError("the broker is down")
        if self.fault == "hangs":
            self.hanging += 1
            try:
                await anyio.sleep_forever()
            finally:
                self.hanging -= 1
        if self.fault == "cancels":
            raise anyio.get_cancelled_exc_class()
        self.takes -= 1
        self.submitted.append(dispatch)

    async def revoke(self, task_id: str) -> None:
        if self.fault:
            raise ConnectionError("the broker is down")
        self.revoked.append(task_id)


class Tool:
    """Work that waits until it is let go.

    Attributes:
        runs: Which process ran which attempt of which task.
        gate: Set to let it end.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        self.gate = anyio.Event()

    def of(self, process: Process) -> Any:
        async def work(execution: Execution[Outcome]) -> Outcome:
            record = execution.record
            assert record is not None
            assert record.lease is not None
            self.runs.append((process.worker, record.lease.attempt))
            await self.gate.wait()
            return Outcome.completed({"n": 2 * record.request.arguments["n"]})

        return work

    def register(self, *processes: Process, is_dispatched: bool = True) -> None:
        for process in processes:
            process.runtime.register("tool", self.of(process), is_dispatched=is_dispatched)


@asynccontextmanager
async def working(*processes: Process, concurrency: int = 8) -> AsyncIterator[anyio.abc.TaskGroup]:
    async def work(process: Process) -> None:
        await process.runtime.work(concurrency=concurrency)

    async with anyio.create_task_group() as group:
        for process in processes:
            group.start_soon(work, process)
        yield group
        group.cancel_scope.cancel()


def lease_of(cluster: Cluster, task_id: str) -> tuple[str, int] | None:
    lease = cluster.store.record(task_id).lease
    return None if lease is None else (lease.worker, lease.attempt)


# --- dispatch -----------------------------------------------------------------------------------------------------


async def test_a_dispatched_task_waits_for_a_worker_and_runs_there() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        record = await server.runtime.dispatch(SPEC)
        assert lease_of(cluster, record.task_id) == ("", 0)
        await cluster.settle()
        assert tool.runs == [], "the server runs no work of it"
        async with working(worker):
            outcome = await server.runtime.result(record.task_id, owner=None)
        assert outcome.result == {"n": 14}
        assert tool.runs == [(worker.worker, 1)]
        assert server.runtime.statistics().live_tasks == 0, "it is counted no more"
        assert server.runtime.statistics().detached == 0


async def test_an_engine_gets_the_task_with_the_number_of_its_run() -> None:
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        record = await server.runtime.dispatch(SPEC)
        await cluster.settle()
        assert broker.submitted == [Dispatch(record.task_id, "tool", 1, record.task.expires_at)]
        assert broker.submitted[0].key == f"{record.task_id}.1"
        assert await worker.runtime.execute(record.task_id)
        assert cluster.store.record(record.task_id).status == "completed"
        assert not await worker.runtime.execute(record.task_id), "a redelivery finds nothing"


async def test_a_task_can_be_cancelled_before_and_while_it_runs_elsewhere() -> None:
    """L9."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, worker)):
        tool = Tool()
        tool.register(server, worker)
        waiting = await server.runtime.dispatch(SPEC)
        await server.runtime.cancel(waiting.task_id, owner=None)
        assert cluster.store.record(waiting.task_id).task.status_message == "The task was cancelled", "it waits no more"
        assert not await worker.runtime.execute(waiting.task_id)
        running = await server.runtime.dispatch(SPEC)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.runtime.execute, running.task_id)
            await cluster.settle()
            assert worker.running == {running.task_id}
            await server.runtime.cancel(running.task_id, owner=None)
        assert worker.running == set()
        assert cluster.store.record(running.task_id).status == "cancelled"
        await cluster.settle()
        assert broker.revoked == [waiting.task_id, running.task_id]


async def test_dispatched_tasks_count_for_their_owner_until_they_have_ended() -> None:
    """L16."""
    settings = replace(SETTINGS, max_tasks_per_owner=1)
    async with open_cluster(settings=settings, dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        record = await server.runtime.dispatch(SPEC)
        with pytest.raises(LimitExceededError):
            await server.runtime.dispatch(SPEC)
        assert await worker.runtime.execute(record.task_id)
        await cluster.settle()
        await server.runtime.dispatch(SPEC)


async def test_a_task_that_no_worker_starts_ends_at_its_deadline() -> None:
    """L7: loudly, not by being gone."""
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (cluster, (server,)):
        Tool().register(server)
        record = await server.runtime.dispatch(replace(SPEC, ttl_ms=60_000))
        await cluster.pass_time(60)
        assert cluster.store.record(record.task_id).status == "failed"
        assert server.runtime.statistics().deadlines == 0


async def test_what_is_not_dispatched_is_refused_and_creates_nothing() -> None:
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (_, (server,)):
        server.runtime.register("tool", Tool().of(server))
        with pytest.raises(LookupError, match="dispatched"):
            await server.runtime.dispatch(SPEC)
        assert server.runtime.statistics().stored_tasks == 0


async def test_a_dispatcher_needs_a_store_that_others_share() -> None:
    from mcp_task_runtime import InMemoryTaskStore, TaskRuntime

    with pytest.raises(ValueError, match="worker processes share"):
        TaskRuntime(InMemoryTaskStore(), dispatcher=StoreDispatcher())
    with pytest.raises(ValueError, match="TaskDispatcher"):
        TaskRuntime(InMemoryTaskStore(), dispatcher=object())  # type: ignore[arg-type]
    async with open_world() as world:
        with pytest.raises(RuntimeError, match="TaskLeases"):
            await world.runtime.work()
        with pytest.raises(ValueError, match="dispatcher"):
            world.runtime.register("tool", Tool().of(None), is_dispatched=True)  # type: ignore[arg-type]


# --- what a broker may lose ---------------------------------------------------------------------------------------


async def test_an_outage_of_a_broker_is_logged_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    broker.fault = "down"
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        for _ in range(3):
            await server.runtime.dispatch(SPEC)
            await cluster.settle()
        broker.fault = ""
        for _ in range(3):
            await server.runtime.dispatch(SPEC)
            await cluster.settle()
    said = [record.getMessage() for record in caplog.records if "submitted" in record.getMessage()]
    assert said == [
        "Tasks could not be submitted to their workers; they will be again",
        "Tasks are submitted to their workers again",
    ]


async def test_a_broker_that_loses_all_costs_time_and_no_task() -> None:
    """L12: the store is the outbox."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, other)
        record = await server.runtime.dispatch(SPEC)
        await cluster.settle()
        broker.submitted.clear()
        await cluster.pass_time(GRACE_SECONDS - TURN_SECONDS)
        assert broker.submitted == []
        await cluster.pass_time(2 * TURN_SECONDS)
        assert [each.key for each in broker.submitted] == [f"{record.task_id}.1"], "by one of the processes, once"
        await cluster.pass_time(GRACE_SECONDS)
        assert len(broker.submitted) == 2, "and again, as long as nothing starts it"
        assert await other.runtime.execute(record.task_id)
        assert cluster.store.record(record.task_id).status == "completed"
        await cluster.pass_time(2 * GRACE_SECONDS)
        assert len(broker.submitted) == 2
        assert len(tool.runs) == 1


@pytest.mark.parametrize("fault", ["down", "hangs", "cancels"])
async def test_a_broker_gets_what_it_did_not_take_as_soon_as_it_is_back(
    fault: str, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """L12: in seconds, long before the tasks are overdue, and each of them once."""
    if fault == "cancels" and anyio_backend_name == "trio":
        pytest.skip("only trio itself can raise its Cancelled")
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 0.01 if fault == "hangs" else 1_000)
    broker = Broker()
    broker.fault = fault
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        records = [await server.runtime.dispatch(SPEC) for _ in range(5)]
        await cluster.settle()
        for _ in range(8):
            while broker.hanging:
                await anyio.lowlevel.checkpoint()
            await cluster.pass_time(1)
        assert len(records) < broker.refused <= len(records) + 5, "one of them is offered, less often with each failure"
        while broker.hanging:
            await anyio.lowlevel.checkpoint()
        broker.fault = ""
        await cluster.pass_time(6)
        assert sorted(each.key for each in broker.submitted) == sorted(f"{record.task_id}.1" for record in records)
        await cluster.pass_time(GRACE_SECONDS - TURN_SECONDS - 14)
        assert len(broker.submitted) == len(records), "and no more"


async def test_a_task_that_the_broker_takes_shows_that_it_is_back() -> None:
    """L12: what it did not take before follows at once."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        broker.fault = "down"
        before = [await server.runtime.dispatch(SPEC) for _ in range(3)]
        ended = await server.runtime.dispatch(SPEC)
        await cluster.settle()
        await server.runtime.cancel(ended.task_id, owner=None)
        await cluster.settle()
        broker.fault = ""
        after = await server.runtime.dispatch(SPEC)
        await cluster.settle()
        assert [each.task_id for each in broker.submitted] == [record.task_id for record in (after, *before)]


async def test_a_broker_that_goes_down_again_at_once_loses_no_more_than_one_task() -> None:
    """L12: one, which is submitted when it is overdue; the others are kept, and none of them holds up the rest."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        broker.fault = "down"
        records = [await server.runtime.dispatch(SPEC) for _ in range(6)]
        await cluster.settle()
        broker.fault, broker.takes = "", 2
        await cluster.pass_time(6)
        assert len(broker.submitted) == 2
        assert broker.fault == "down"
        broker.fault, broker.takes = "", 1_000
        await cluster.pass_time(6)
        assert len(broker.submitted) == len(records) - 1
        await cluster.pass_time(GRACE_SECONDS)
        assert {each.task_id for each in broker.submitted} == {record.task_id for record in records}


async def test_a_task_that_a_broker_takes_never_is_no_outage() -> None:
    """L13: it is offered once more, and left alone until it is overdue, as the others are taken."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        poison = await server.runtime.dispatch(replace(SPEC, request=replace(SPEC.request, arguments_json='{"n":8}')))
        await cluster.settle()
        broker.submitted.clear()
        broker.poison = poison.task_id
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        refused = broker.refused
        assert refused >= 1
        for _ in range(5):
            await server.runtime.dispatch(SPEC)
            await cluster.pass_time(1)
        assert len(broker.submitted) == 5
        assert broker.refused <= refused + 1


async def test_tasks_that_a_broker_does_not_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """L16: one more is submitted when its wait is overdue."""
    monkeypatch.setattr("mcp_task_runtime.core.undelivered._MOST", 2)
    broker = Broker()
    broker.fault = "down"
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        records = [await server.runtime.dispatch(SPEC) for _ in range(4)]
        await cluster.settle()
        broker.fault = ""
        await cluster.pass_time(2)
        assert len(broker.submitted) == 2
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        assert {each.task_id for each in broker.submitted} == {record.task_id for record in records}


async def test_a_runtime_that_opens_again_forgets_what_a_broker_did_not_take() -> None:
    """What is left is overdue at some time: the store has it, and event loops may differ."""
    broker = Broker()
    async with open_cluster(1, dispatcher=broker) as (cluster, (server,)):
        Tool().register(server)
        broker.fault = "down"
        await server.runtime.dispatch(SPEC)
        await cluster.settle()
    broker.fault = ""
    async with server.runtime:
        await cluster.pass_time(6)
        assert broker.submitted == []
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        assert len(broker.submitted) == 1


class SlowBroker(Broker):
    """A broker that takes a task when it is let.

    Attributes:
        inside: How many tasks it is given now.
        most: The most there were at once.
        gate: Set to let it take them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0
        self.gate = anyio.Event()

    async def submit(self, dispatch: Dispatch) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.gate.wait()
        finally:
            self.inside -= 1
        await super().submit(dispatch)


async def test_a_broker_gets_a_burst_of_tasks_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time for each task does not pass while it is given others."""
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 1_000)
    broker = SlowBroker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        records = [await server.runtime.dispatch(SPEC) for _ in range(70)]
        await cluster.settle()
        given = broker.inside
        broker.gate.set()
        await cluster.settle()
        assert (given, broker.most) == (32, 32)
        assert {each.task_id for each in broker.submitted} == {record.task_id for record in records}
        assert len(broker.submitted) == 70


async def test_tasks_that_wait_for_a_broker_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """L16: one more waits like one that was not taken; beyond that bound it is submitted when its wait is overdue."""
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 1_000)
    monkeypatch.setattr("mcp_task_runtime.core.outbox._MOST_WAITING", 2)
    monkeypatch.setattr("mcp_task_runtime.core.undelivered._MOST", 1)
    broker = SlowBroker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        records = [await server.runtime.dispatch(SPEC) for _ in range(36)]
        await cluster.settle()
        broker.gate.set()
        await cluster.settle()
        assert len(broker.submitted) == 35
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        assert {each.task_id for each in broker.submitted} == {record.task_id for record in records}


# --- a dispatcher whose tasks are never overdue -------------------------------------------------------------------


class ForgetfulTimer(SlowBroker):
    """A broker for which no task is overdue: what the server does not bring to it, nothing brings."""

    def __init__(self) -> None:
        super().__init__()
        self.start_grace_ms = 0
        self.gate.set()


async def test_no_burst_is_too_large_where_no_task_is_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    """L12."""
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 1_000)
    monkeypatch.setattr("mcp_task_runtime.core.outbox._MOST_WAITING", 2)
    monkeypatch.setattr("mcp_task_runtime.core.undelivered._MOST", 1)
    broker = ForgetfulTimer()
    broker.gate = anyio.Event()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        records = [await server.runtime.dispatch(SPEC) for _ in range(40)]
        await cluster.settle()
        broker.gate.set()
        await cluster.pass_time(6)
        assert sorted(each.task_id for each in broker.submitted) == sorted(record.task_id for record in records)


async def test_no_task_is_lost_to_a_broker_that_goes_down_again_where_none_is_overdue() -> None:
    """L12."""
    broker = ForgetfulTimer()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        broker.fault = "down"
        records = [await server.runtime.dispatch(SPEC) for _ in range(6)]
        await cluster.settle()
        broker.fault, broker.takes = "", 2
        await cluster.pass_time(6)
        assert broker.fault == "down"
        broker.fault, broker.takes = "", 1_000
        await cluster.pass_time(6)
        assert sorted(each.task_id for each in broker.submitted) == sorted(record.task_id for record in records)


async def test_a_task_that_was_refused_once_is_offered_until_it_is_taken_where_none_is_overdue() -> None:
    """L12, L13: and keeps no other from being taken."""
    broker = ForgetfulTimer()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        broker.fault = "down"
        poison, *others = [await server.runtime.dispatch(SPEC) for _ in range(4)]
        await cluster.settle()
        broker.fault, broker.poison = "", poison.task_id
        await cluster.pass_time(20)
        assert sorted(each.task_id for each in broker.submitted) == sorted(record.task_id for record in others)
        broker.poison = ""
        await cluster.pass_time(6)
        assert [each.task_id for each in broker.submitted][3:] == [poison.task_id]


@pytest.mark.parametrize("offers", [0, 1])
async def test_a_task_that_ends_while_it_is_offered_is_offered_no_more(
    offers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L8: whether it is offered for the first time, or again."""
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 1_000)
    broker = SlowBroker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, other)):
        Tool().register(server, other)
        broker.fault = "down"
        if offers:
            broker.gate.set()
        record = await server.runtime.dispatch(SPEC)
        await cluster.settle()
        assert broker.refused == offers
        if offers:
            broker.gate = anyio.Event()
            await cluster.pass_time(1)
        assert broker.inside == 1
        await server.runtime.cancel(record.task_id, owner=None)
        broker.gate.set()
        await cluster.settle()
        assert broker.refused == offers + 1
        broker.fault = ""
        await cluster.pass_time(6)
        assert broker.submitted == []


async def test_an_offer_that_is_cancelled_loses_nothing(anyio_backend_name: str) -> None:
    """L6."""
    clock = FakeClock()
    offered: list[str] = []
    gate = anyio.Event()

    async def offer(value: str) -> bool:
        offered.append(value)
        await gate.wait()
        return True

    undelivered = Undelivered(clock, offer)
    for value in "ab":
        undelivered.add(value, value)
    undelivered.note_success()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(undelivered.run)
            while not offered:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        gate.set()
        undelivered.note_success()
        async with anyio.create_task_group() as group:
            group.start_soon(undelivered.run)
            while len(offered) < 3:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert offered == ["a", "a", "b"]


async def test_what_is_dropped_while_another_one_is_offered_is_not_offered() -> None:
    offered: list[str] = []

    async def offer(value: str) -> bool:
        offered.append(value)
        if value == "a":
            undelivered.discard("b")  # its task has ended
            undelivered.add("c", "c again")  # a later run of its task
        return True

    undelivered = Undelivered(FakeClock(), offer)
    for value in "abcd":
        undelivered.add(value, value)
    undelivered.note_success()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(undelivered.run)
            while "d" not in offered:
                await anyio.lowlevel.checkpoint()
            undelivered.note_success()
            while "c again" not in offered:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert offered == ["a", "d", "c again"]


@pytest.mark.parametrize("is_written", [True, False])
async def test_a_task_is_put_back_where_none_is_overdue_although_the_store_failed(is_written: bool) -> None:
    """L12: whether it was put back before the answer was lost, or not."""
    broker = ForgetfulTimer()
    async with open_cluster(dispatcher=broker) as (cluster, (server, lost)):
        tool = Tool()
        tool.register(server, lost)
        record = await server.runtime.dispatch(RERUNNABLE)
        failed: list[str] = []

        async def fail(name: str) -> None:
            if name == "claim_task" and not failed:
                failed.append(name)
                raise StoreUnavailableError("The answer was lost")

        async with anyio.create_task_group() as group:
            group.start_soon(lost.runtime.execute, record.task_id)
            await cluster.cut(lost)
            if is_written:
                server.link.after = fail
            else:
                server.link.before = fail
            await cluster.pass_time(6 * LEASE_SECONDS)
            assert failed
            submitted = [each.key for each in broker.submitted]
            lost.link.is_cut = False
            group.cancel_scope.cancel()
        assert f"{record.task_id}.2" in submitted
        assert lease_of(cluster, record.task_id) == ("", 1)


async def test_work_of_a_lost_worker_is_put_back_while_the_broker_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """L12: what is overdue is submitted again, and the sweep does not wait for it."""
    monkeypatch.setattr("mcp_task_runtime.core.outbox.SUBMIT_SECONDS", 1_000)
    broker = SlowBroker()
    async with open_cluster(dispatcher=broker) as (cluster, (server, lost)):
        tool = Tool()
        tool.register(server, lost)
        overdue = await server.runtime.dispatch(SPEC)
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        running = await server.runtime.dispatch(RERUNNABLE)
        async with anyio.create_task_group() as group:
            group.start_soon(lost.runtime.execute, running.task_id)
            await cluster.cut(lost)
            await cluster.pass_time(3 * LEASE_SECONDS)
            found = lease_of(cluster, running.task_id)
            broker.gate.set()
            await cluster.settle()
            lost.link.is_cut = False
            group.cancel_scope.cancel()
        assert found == ("", 1)
        assert [each.task_id for each in broker.submitted].count(overdue.task_id) >= 2
        assert f"{running.task_id}.2" in [each.key for each in broker.submitted]


async def test_no_task_that_waits_for_its_first_worker_is_said_to_have_lost_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker()
    async with open_cluster(1, dispatcher=broker) as (cluster, (server,)):
        Tool().register(server)
        record = await server.runtime.dispatch(SPEC)
        await cluster.pass_time(GRACE_SECONDS + TURN_SECONDS)
        assert [each.task_id for each in broker.submitted].count(record.task_id) >= 2
    assert "lost its worker" not in caplog.text


@pytest.mark.parametrize("rerunnable", [False, True])
async def test_work_whose_worker_is_lost_goes_to_another_worker_or_fails(rerunnable: bool) -> None:
    """L12: the server that notices runs none of it."""
    broker = Broker()
    async with open_cluster(3, dispatcher=broker) as (cluster, (server, lost, other)):
        tool = Tool()
        tool.register(server, lost, other)
        record = await server.runtime.dispatch(RERUNNABLE if rerunnable else SPEC)
        await cluster.settle()
        async with anyio.create_task_group() as group:
            group.start_soon(lost.runtime.execute, record.task_id)
            await cluster.cut(lost)
            await cluster.pass_time(3 * LEASE_SECONDS)
            if rerunnable:
                assert lease_of(cluster, record.task_id) == ("", 1)
                assert [each.attempt for each in broker.submitted][:2] == [1, 2]
                tool.gate.set()
                assert await other.runtime.execute(record.task_id)
            ended = cluster.store.record(record.task_id)
            assert ended.status == ("completed" if rerunnable else "failed")
            lost.link.is_cut = False
            group.cancel_scope.cancel()
        assert tool.runs == [(lost.worker, 1), (other.worker, 2)][: 1 + rerunnable]


async def test_a_worker_that_stops_hands_its_work_to_the_engine_at_once() -> None:
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (a, b)):
        tool = Tool()
        tool.register(a, b)
        record = await a.runtime.dispatch(RERUNNABLE)
        async with anyio.create_task_group() as group:
            group.start_soon(a.runtime.execute, record.task_id)
            await cluster.settle()
            group.cancel_scope.cancel()
        assert lease_of(cluster, record.task_id) == ("", 1)
        assert [each.attempt for each in broker.submitted] == [1, 2]
        tool.gate.set()
        assert await b.runtime.execute(record.task_id)


async def test_work_that_is_handed_over_again_and_again_uses_up_no_attempt() -> None:
    """L12: rolling deploys stop more workers than `max_attempts`."""
    broker = Broker()
    async with open_cluster(dispatcher=broker) as (cluster, (a, b)):
        tool = Tool()
        tool.register(a, b)
        record = await a.runtime.dispatch(RERUNNABLE)
        for number in range(1, 6):
            async with anyio.create_task_group() as group:
                group.start_soon(a.runtime.execute, record.task_id)
                await cluster.settle()
                group.cancel_scope.cancel()
            assert lease_of(cluster, record.task_id) == ("", number)
        assert [each.key for each in broker.submitted] == [f"{record.task_id}.{number}" for number in range(1, 7)]
        tool.gate.set()
        assert await b.runtime.execute(record.task_id)
        assert cluster.store.record(record.task_id).status == "completed"
        assert tool.runs == [*((a.worker, number) for number in range(1, 6)), (b.worker, 6)]


async def test_work_that_may_not_run_again_is_handed_over_before_it_has_begun_and_fails_afterwards() -> None:
    async with open_cluster(settings=replace(SETTINGS, max_running=1), dispatcher=StoreDispatcher()) as (
        cluster,
        (server, other),
    ):
        stopping = cluster.process(replace(SETTINGS, max_running=1), StoreDispatcher())
        tool = Tool()
        tool.register(server, stopping, other)
        async with stopping.runtime:
            task_ids = {(await server.runtime.dispatch(SPEC)).task_id for _ in range(2)}
            async with working(stopping):
                await cluster.settle()
                assert stopping.running == task_ids
                assert tool.runs == [(stopping.worker, 1)]
        (waits,) = [task_id for task_id in task_ids if cluster.store.record(task_id).status == "working"]
        assert lease_of(cluster, waits) == ("", 1)
        assert await states(cluster) == ["failed", "working"]
        tool.gate.set()
        async with working(other):
            assert (await server.runtime.result(waits, owner=None)).result == {"n": 14}
        assert tool.runs == [(stopping.worker, 1), (other.worker, 2)]


async def test_work_that_an_outage_stops_in_its_last_attempt_ends_its_task_although_no_worker_is_left() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):

        async def struck(execution: Execution[Outcome]) -> Outcome:
            raise StoreUnavailableError("away")

        for process in (server, worker):
            process.runtime.register("tool", struck, is_dispatched=True)
        spec = replace(RERUNNABLE, request=replace(RERUNNABLE.request, max_attempts=2))
        record = await server.runtime.dispatch(spec)
        for attempt in (1, 2):
            assert await worker.runtime.execute(record.task_id)
            if attempt == 1:
                assert lease_of(cluster, record.task_id) == ("", 1), "it waits for another worker"
        assert (await server.runtime.result(record.task_id, owner=None)).status == "failed"


async def test_a_task_that_was_claimed_while_its_worker_closed_runs_elsewhere() -> None:
    """L12: its work has not begun, so that it may begin, however often it may run."""
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, other)):
        closing = cluster.process(dispatcher=StoreDispatcher())
        tool = Tool()
        tool.gate.set()
        tool.register(server, closing, other)
        record = await server.runtime.dispatch(SPEC)

        async def close_before_the_claim(call: str) -> None:
            if call == "claim_task" and record.task_id not in claimed:
                claimed.append(record.task_id)
                await closing.runtime.drain(accept_new=False)

        claimed: list[str] = []
        async with closing.runtime:
            closing.link.before = close_before_the_claim
            assert not await closing.runtime.execute(record.task_id)
            closing.link.before = None
        assert lease_of(cluster, record.task_id) == ("", 1)
        assert await other.runtime.execute(record.task_id)
        assert tool.runs == [(other.worker, 2)]
        assert cluster.store.record(record.task_id).status == "completed"


# --- workers without an engine ------------------------------------------------------------------------------------


async def test_workers_take_no_more_than_they_have_room_for() -> None:
    async with open_cluster(3, dispatcher=StoreDispatcher()) as (cluster, (server, a, b)):
        tool = Tool()
        tool.register(server, a, b)
        task_ids = [(await server.runtime.dispatch(SPEC)).task_id for _ in range(7)]
        async with working(a, b, concurrency=2):
            await cluster.settle()
            await cluster.pass_time(TURN_SECONDS)
            assert len(a.running) == len(b.running) == 2
            tool.gate.set()
            for task_id in task_ids:
                assert (await server.runtime.result(task_id, owner=None)).result == {"n": 14}
        assert sorted(attempt for _, attempt in tool.runs) == [1] * 7


async def test_a_worker_runs_the_tools_that_it_is_for() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        for process in (server, worker):
            process.runtime.register("other", tool.of(process), is_dispatched=True)
        for name in ("other", "tool"):
            spec = replace(SPEC, request=replace(SPEC.request, name=name))
            await server.runtime.dispatch(spec)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: worker.runtime.work(names=["tool"]))
            await cluster.settle()
            await cluster.pass_time(2 * LEASE_SECONDS)
            group.cancel_scope.cancel()
        assert {(entry.request.name, entry.status) for entry in await records(cluster)} == {
            ("tool", "completed"),
            ("other", "working"),
        }
        with pytest.raises(LookupError, match="unknown"):
            await worker.runtime.work(names=["unknown", "tool"])
        with pytest.raises(ValueError, match="concurrency"):
            await worker.runtime.work(concurrency=0)


async def records(cluster: Cluster) -> list[Any]:
    return list((await cluster.store.list_tasks(owner=None)).records)


async def states(cluster: Cluster) -> list[str]:
    return sorted(record.status for record in await records(cluster))


async def test_work_that_a_worker_loses_waits_for_the_next_one_with_room() -> None:
    async with open_cluster(3, dispatcher=StoreDispatcher()) as (cluster, (server, lost, other)):
        tool = Tool()
        tool.register(server, lost, other)
        record = await server.runtime.dispatch(RERUNNABLE)
        async with working(lost):
            await cluster.settle()
            await cluster.cut(lost)
            async with working(other):
                await cluster.pass_time(3 * LEASE_SECONDS)
                assert lease_of(cluster, record.task_id) == (other.worker, 2)
                tool.gate.set()
                await cluster.until_ended(record.task_id)
            lost.link.is_cut = False
        assert tool.runs == [(lost.worker, 1), (other.worker, 2)]


@pytest.mark.parametrize("rerunnable", [False, True])
async def test_lost_work_is_found_however_many_tasks_have_waited_longer(rerunnable: bool) -> None:
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (cluster, (server,)):
        Tool().register(server)
        await make_waiting(cluster, "tool", 10_001)
        request = replace(SPEC.request, rerunnable=rerunnable)
        task_id = (await cluster.store.create_task(NewTask(ttl_ms=None, request=request, worker="lost"))).task_id
        await cluster.pass_time(3 * LEASE_SECONDS)
        found = cluster.store.record(task_id)
        if rerunnable:
            assert lease_of(cluster, task_id) == ("", 1), "it waits for another worker"
        else:
            assert found.status == "failed"


async def test_lost_work_is_found_however_many_tasks_of_its_tool_this_process_cannot_open() -> None:
    async with open_cluster(1) as (cluster, (server,)):
        Tool().register(server, is_dispatched=False)
        await make_sealed(cluster, 10_001)
        lost = await cluster.store.create_task(NewTask(ttl_ms=None, request=SPEC.request, worker="lost"))
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert cluster.store.record(lost.task_id).status == "failed"


class PlainLink(Link):
    """One to a store that has leases and none of the abilities that build on them."""

    list_lost = None
    wait_for_work = None


@asynccontextmanager
async def plain_process() -> AsyncIterator[tuple[Cluster, Process]]:
    cluster = Cluster()
    link = PlainLink(cluster.store)
    process = Process(link, TaskRuntime(cast(TaskStore, link), settings=SETTINGS, dispatcher=StoreDispatcher()))
    cluster.processes.append(process)
    with anyio.fail_after(PATIENCE):
        async with process.runtime:
            yield cluster, process


async def make_waiting(cluster: Cluster, name: str, number: int) -> None:
    new = NewTask(ttl_ms=None, request=replace(SPEC.request, name=name), worker="", lease_ms=0)
    for _ in range(number):
        await cluster.store.create_task(new)


async def test_a_store_that_cannot_tell_lost_work_apart_is_looked_through() -> None:
    async with plain_process() as (cluster, server):
        Tool().register(server)
        await make_waiting(cluster, "tool", 150)
        lost = await cluster.store.create_task(NewTask(ttl_ms=None, request=SPEC.request, worker="lost"))
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert cluster.store.record(lost.task_id).status == "failed"
        assert "list_lapsed" in server.link.calls


async def test_a_worker_finds_its_tool_in_a_plain_store_behind_those_of_others() -> None:
    async with plain_process() as (cluster, worker):
        tool = Tool()
        tool.gate.set()
        tool.register(worker)
        await make_waiting(cluster, "other", 1_001)
        await cluster.pass_time(1)  # what waits longest comes first
        record = await worker.runtime.dispatch(SPEC)
        async with working(worker):
            await cluster.settle()  # no time passes: it is not the sweep that finds it
            assert cluster.store.record(record.task_id).status == "completed"


async def test_a_worker_that_stops_lets_its_work_end_within_the_grace_and_hands_over_the_rest() -> None:
    settings = replace(SETTINGS, shutdown_grace=5)
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (cluster, (server,)):
        stopping = cluster.process(settings, StoreDispatcher())
        quick, slow = Tool(), Tool()
        quick.register(server, stopping)
        for process in (server, stopping):
            process.runtime.register("slow", slow.of(process), is_dispatched=True)
        task_ids = []
        for name in ("tool", "slow"):
            spec = replace(RERUNNABLE, request=replace(RERUNNABLE.request, name=name))
            task_ids.append((await server.runtime.dispatch(spec)).task_id)
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def serve() -> None:
                async with stopping.runtime:
                    with scope:
                        await stopping.runtime.work()

            group.start_soon(serve)
            await cluster.settle()
            assert stopping.running == set(task_ids)
            scope.cancel()
            late = await server.runtime.dispatch(RERUNNABLE)
            await cluster.settle()
            quick.gate.set()
            await cluster.settle()
            assert [cluster.store.record(each).status for each in task_ids] == ["completed", "working"]
            assert lease_of(cluster, late.task_id) == ("", 0), "it takes no more"
            await cluster.pass_time(5)
        assert lease_of(cluster, task_ids[1]) == ("", 1)
        slow.gate.set()
        async with working(server):
            await cluster.until_ended(task_ids[1])
            await cluster.until_ended(late.task_id)


async def test_a_worker_survives_an_outage_of_its_store(caplog: pytest.LogCaptureFixture) -> None:
    """And says once what the store does not say itself."""
    caplog.set_level(logging.WARNING)
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        worker.link.fails = {"wait_for_work"}
        worker.link.error = StoreError("broken")
        async with working(worker):
            await cluster.settle()
            while "could not be taken" not in caplog.text:
                await anyio.lowlevel.checkpoint()
            worker.link.fails = set()
            record = await server.runtime.dispatch(SPEC)
            await cluster.until_ended(record.task_id)
        assert caplog.text.count("could not be taken") == 1


async def test_a_store_that_wakes_no_workers_is_looked_at_three_times_a_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mcp_task_runtime.core.work_loop.implements", lambda *_: False)
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        async with working(worker):
            await cluster.settle()
            record = await server.runtime.dispatch(SPEC)
            await cluster.pass_time(TURN_SECONDS + 1)
            assert cluster.store.record(record.task_id).status == "completed"


async def make_sealed(cluster: Cluster, number: int) -> None:
    """Store tasks as a server with a seal key does."""
    request = TaskRequest(name="tool", arguments_json=SEALED_JSON + 'x"}')
    for _ in range(number):
        await cluster.store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=0))


@pytest.mark.parametrize("sealed", [1, 24, 25, 400])
async def test_a_worker_without_keys_waits_and_warns_once_where_all_work_is_sealed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sealed: int
) -> None:
    """L8: the looks go with the store's time, each wait is longer than the last, up to a third of a lease."""
    monkeypatch.setattr("mcp_task_runtime.core.work_loop._LOST_RACE_SECONDS", 10**6)  # no race was lost
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        await make_sealed(cluster, sealed)
        async with working(worker):
            await cluster.settle()
            first = worker.link.calls.count("wait_for_work")
            assert first <= 6, "it looks behind those at the head, twice as far each time"
            await cluster.pass_time(10 * LEASE_SECONDS)
            assert first < worker.link.calls.count("wait_for_work") <= first + 10 * 3 + 5
            assert worker.link.calls.count("claim_task") == 0
            record = await server.runtime.dispatch(SPEC)
            await cluster.pass_time(TURN_SECONDS)
            await cluster.settle()
            assert cluster.store.record(record.task_id).status == "completed", "it is found behind sealed ones"
        assert [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING] == [
            "Waiting tasks are left to others: they are sealed, and this worker has no seal key"
        ]


async def test_sealed_tasks_hide_no_others_from_a_worker_without_keys() -> None:
    async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
        tool = Tool()
        tool.gate.set()
        tool.register(server, worker)
        await make_sealed(cluster, 100)
        cluster.clock.advance(1)
        task_ids = [(await server.runtime.dispatch(SPEC)).task_id for _ in range(50)]
        async with working(worker, concurrency=2):
            for task_id in task_ids:
                await cluster.until_ended(task_id)
        assert len(tool.runs) == 50


async def test_a_worker_cancelled_at_any_moment_runs_nothing_twice_and_leaves_nothing_held() -> None:
    """L6: a claim that was made is run, or put back."""
    for steps in range(30):
        async with open_cluster(dispatcher=StoreDispatcher()) as (cluster, (server, worker)):
            tool = Tool()
            tool.register(server, worker)
            record = await server.runtime.dispatch(RERUNNABLE)
            async with anyio.create_task_group() as group:
                group.start_soon(worker.runtime.work)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            await worker.runtime.drain(accept_new=False)
            await cluster.settle()
            assert lease_of(cluster, record.task_id) in (("", 0), ("", 1))
            tool.gate.set()
            assert await server.runtime.execute(record.task_id)
            assert cluster.store.record(record.task_id).status == "completed"


async def test_one_process_may_be_server_and_worker() -> None:
    async with open_cluster(1, settings=TaskSettings(shutdown_grace=0), dispatcher=StoreDispatcher()) as (
        cluster,
        (both,),
    ):
        tool = Tool()
        tool.register(both)
        async with working(both):
            record = await both.runtime.dispatch(SPEC)
            await cluster.settle()
            assert both.running == {record.task_id}
            tool.gate.set()
            await cluster.until_ended(record.task_id)
            await cluster.settle()
        assert both.runtime.statistics().live_tasks == 0
        assert both.runtime.statistics().detached == 0


async def test_a_task_that_was_made_for_an_engine_is_taken_by_plain_workers_once_it_is_overdue() -> None:
    async with open_cluster(1, dispatcher=StoreDispatcher()) as (cluster, (worker,)):
        tool = Tool()
        tool.gate.set()
        tool.register(worker)
        record = await cluster.store.create_task(NewTask(ttl_ms=None, request=SPEC.request, worker="", lease_ms=30_000))
        async with working(worker):
            await cluster.pass_time(29)
            assert lease_of(cluster, record.task_id) == ("", 0)
            await cluster.pass_time(1 + TURN_SECONDS)
            assert cluster.store.record(record.task_id).status == "completed"
