"""The law of leases that no process holds, as named checks: work that waits for a worker (law L12)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

from mcp_task_runtime.core.store import TaskLeases, TaskStore
from mcp_task_runtime.core.types import Lease, TaskRecord
from mcp_task_runtime.testing.checks.abilities import (
    able,
    claimed_task,
    lapsed_tasks,
    leased_task,
    require_unchanged,
)
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task

__all__ = ["UNHELD_LEASE_CHECKS"]

UNHELD_LEASE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(UNHELD_LEASE_CHECKS)


@_check("L12", needs=["leases"])
async def work_that_waits_for_a_worker_can_be_claimed_at_any_time(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for wait in (0, 5, 10, 50):  # before it is overdue, and after
        created = await leased_task(store, "")
        lease = Lease("", bench.clock.now() + timedelta(seconds=10), 0)
        require(created.lease == lease, f"create_task made the lease {created.lease} and not {lease}")
        require(await read_task(store, created.task_id) == created, "create_task returned what it did not store")
        bench.clock.advance(wait)
        claimed = await claimed_task(store, created.task_id, "one")
        held = Lease("one", bench.clock.now() + timedelta(seconds=10), 1)
        require(claimed.lease == held, f"the first claim made the lease {claimed.lease} and not {held}")
        require(claimed.revision == created.revision + 1, "a claim did not add one to the revision")
        again = await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
        require(again is None, "a task that a worker had claimed was claimed by another")
        await store.finish_task(created.task_id, OUTCOMES[0])


@_check("L12", needs=["leases"])
async def work_that_no_worker_started_in_time_is_listed(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store, "")
    bench.clock.advance(9.999)
    require(await lapsed_tasks(store) == [], "a task that waits for a worker is overdue before its time")
    bench.clock.advance(0.001)
    require(await lapsed_tasks(store) == [created.task_id], "a task that waits for a worker too long is not listed")


@_check("L12", needs=["leases"])
async def a_lost_task_can_be_put_back_to_wait_for_a_worker(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for status in ("working", "input_required"):
        created = await leased_task(store)
        before = await store.update_task(created.task_id, status=status, status_message="so far")
        early = await store.claim_task(created.task_id, worker="", lease_ms=5_000)
        require(early is None, "a task that a worker holds was put back")
        await require_unchanged(store, before, "putting back a task that a worker holds")
        bench.clock.advance(10)
        put_back = await claimed_task(store, created.task_id, "", 5_000)
        lease = Lease("", bench.clock.now() + timedelta(seconds=5), 1)
        expected = replace(
            before,
            lease=lease,
            revision=before.revision + 1,
            task=replace(before.task, last_updated_at=bench.clock.now()),
        )
        require(put_back == expected, f"putting a lost task back made {put_back} and not {expected}")
        require(await lapsed_tasks(store) == [], "a task that was put back still counts as lost")
        twice = await store.claim_task(created.task_id, worker="", lease_ms=5_000)
        require(twice is None, "a task that waits for a worker and is not overdue was put back once more")
        bench.clock.advance(5)
        require(await lapsed_tasks(store) == [created.task_id], "a task that was put back is not listed when overdue")
        overdue = await claimed_task(store, created.task_id, "", 5_000)
        require(overdue.lease is not None and overdue.lease.attempt == 1, "putting a task back counted an attempt")
        claimed = await claimed_task(store, created.task_id, "two")
        require(claimed.lease is not None and claimed.lease.attempt == 2, "the claim after it counts no attempt")
        await store.finish_task(created.task_id, OUTCOMES[0])


@_check("L12", needs=["leases"])
async def runs_that_are_handed_over_are_counted_apart_from_the_attempts(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store, "")
    for number in (1, 2):
        worker = f"worker {number}"
        claimed = await claimed_task(store, created.task_id, worker)
        held = Lease(worker, bench.clock.now() + timedelta(seconds=10), number, number - 1)
        require(claimed.lease == held, f"a claim after {number - 1} hand-overs made the lease {claimed.lease}")
        await store.renew_leases(worker, [created.task_id], lease_ms=5_000)
        for _ in range(2):  # the second time there is nothing to hand over
            await store.drop_leases(worker, [created.task_id], lapse=True)
        lapsed = Lease(worker, bench.clock.now(), number, number)
        read = await read_task(store, created.task_id)
        require(read.lease == lapsed, f"hand-over {number} made the lease {read.lease} and not {lapsed}")
        put_back = await claimed_task(store, created.task_id, "", 5_000)
        waits = Lease("", bench.clock.now() + timedelta(seconds=5), number, number)
        require(put_back.lease == waits, f"a task that was handed over waits with the lease {put_back.lease}")
    await claimed_task(store, created.task_id, "lost", 1_000)
    bench.clock.advance(1)
    await store.drop_leases("lost", [created.task_id], lapse=True)
    again = await claimed_task(store, created.task_id, "last")
    lease = Lease("last", bench.clock.now() + timedelta(seconds=10), 4, 2)
    require(again.lease == lease, f"after two hand-overs and a lost run the lease is {again.lease} and not {lease}")
    await store.drop_leases("last", [created.task_id], lapse=False)
    dropped = await read_task(store, created.task_id)
    require(dropped.lease is None, f"a lease that was removed is {dropped.lease}")


@_check("L12", needs=["leases"])
async def no_worker_holds_a_lease_that_waits_for_one(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store, "")
    held = await store.renew_leases("one", [created.task_id], lease_ms=60_000)
    require(held == frozenset(), "a worker renewed a lease that no process holds")
    for lapse in (True, False):
        await store.drop_leases("one", [created.task_id], lapse=lapse)
    await require_unchanged(store, created, "renewing or dropping a lease that no process holds")


@_check("L12", "L2", needs=["leases"])
async def of_many_workers_exactly_one_gets_the_work_that_waits(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for worker in ("", "one"):
        created = await leased_task(store, worker, lease_ms=10_000)
        bench.clock.advance(10)
        names = [f"{n}" for n in range(4)] if worker == "" else [""] * 4
        racers = [partial(store.claim_task, created.task_id, worker=name, lease_ms=10_000) for name in names]
        endings = await bench.race(*racers)
        won = [ending for ending in endings if isinstance(ending, TaskRecord)]
        require(len(won) == 1, f"{len(won)} of 4 concurrent callers of claim_task won, not one")
        require(endings.count(None) == 3, "a caller of claim_task that came late did not get None")
        await store.delete_task(created.task_id)


@_check("L12", needs=["leases", "durable"])
async def a_reopened_store_has_the_work_that_waits(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        created = await leased_task(opened, "")
    bench.clock.advance(1)
    async with bench.open_again() as opened:
        second = able(opened, TaskLeases)
        require(await read_task(second, created.task_id) == created, "after reopening a waiting task is another one")
        claimed = await claimed_task(second, created.task_id, "one")
        require(claimed.lease is not None and claimed.lease.attempt == 1, "after reopening the attempts are wrong")
