"""The laws of `TaskSweeping`, as named checks: lost tasks are found behind those that wait (laws L8, L12)."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Final

from mcp_task_runtime.core.store import TaskLeases, TaskStore, TaskSweeping
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.testing.checks.abilities import AbleStore, able, waiting_task
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import StoreBench, read_task
from mcp_task_runtime.testing.concurrency.cost import count_work

__all__ = ["SWEEPING_CHECKS"]

SWEEPING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(SWEEPING_CHECKS)

_LEASE_MS: Final = 60_000


def _sweeping(store: TaskStore) -> AbleStore:
    return able(store, TaskLeases, TaskSweeping)


async def _lost(store: AbleStore, *names: str, limit: int = 100) -> list[str]:
    return [record.task_id for record in await store.list_lost(names, limit=limit)]


@_check("L12", needs=["sweeping", "leases"])
async def lost_tasks_and_the_waiting_ones_of_some_tools_are_listed(bench: StoreBench) -> None:
    store = _sweeping(bench.subject)
    theirs = await waiting_task(store, "theirs")
    bench.clock.advance(1)
    handed_over = await waiting_task(store, "ours")
    bench.clock.advance(1)
    lost = await waiting_task(store, "theirs", worker="lost")
    bench.clock.advance(1)
    late = await waiting_task(store, "ours", worker="late")
    await waiting_task(store, "ours", worker="busy", lease_ms=_LEASE_MS)
    await waiting_task(store, "ours", lease_ms=_LEASE_MS)
    bench.clock.advance(1)
    for names, wanted in (
        ((), [lost, late]),
        (("unknown",), [lost, late]),
        (("ours", "ours"), [lost, late, handed_over]),
        (("theirs", "ours"), [lost, late, theirs, handed_over]),
    ):
        found = await store.list_lost(names, limit=10)
        ids = [record.task_id for record in wanted]
        require(isinstance(found, tuple), f"list_lost returned a {type(found).__name__} and not a tuple")
        require([each.task_id for each in found] == ids, f"for the tools {names} list_lost shows {found} and not {ids}")
        for record in found:
            require(record == await read_task(store, record.task_id), "list_lost shows a task otherwise than get_task")
        for limit in (1, 3):
            first = await _lost(store, *names, limit=limit)
            require(first == ids[:limit], f"for the tools {names} list_lost shows {first} first and not {ids[:limit]}")
    for limit in (0, -1):
        await require_raises(ValueError, store.list_lost([], limit=limit), f"list_lost with limit={limit}")


@_check("L12", needs=["sweeping", "leases"])
async def a_task_is_lost_from_the_time_at_which_its_worker_is(bench: StoreBench) -> None:
    store = _sweeping(bench.subject)
    task_id = (await waiting_task(store, "tool")).task_id

    async def expect(wanted: Collection[str], when: str) -> None:
        found = await _lost(store)
        require(found == list(wanted), f"{when} list_lost shows {found} and must show {wanted}")

    for worker in ("one", "two"):
        await expect([], "while a task waits,")
        require(await store.claim_task(task_id, worker=worker, lease_ms=_LEASE_MS) is not None, "a claim was refused")
        bench.clock.advance(59)
        await store.renew_leases(worker, [task_id], lease_ms=_LEASE_MS)
        bench.clock.advance(59)
        await expect([], "while a worker renews its lease,")
        bench.clock.advance(1)
        await expect([task_id], "when a lease has lapsed,")
        await store.renew_leases(worker, [task_id], lease_ms=_LEASE_MS)
        await expect([], "when a worker that was late has renewed its lease,")
        bench.clock.advance(60)
        await expect([task_id], "when a lease that was renewed late has lapsed,")
        require(await store.claim_task(task_id, worker="", lease_ms=0) is not None, "a lost task was not put back")
        bench.clock.advance(1)
    await expect([], "when a task was put back,")
    require(await store.claim_task(task_id, worker="three", lease_ms=1_000) is not None, "a claim was refused")
    bench.clock.advance(1)
    await expect([task_id], "when a third lease has lapsed,")
    await store.finish_task(task_id, Outcome.cancelled())
    await expect([], "when a task has ended,")


@_check("L8", "L12", needs=["sweeping", "leases"])
async def tasks_that_wait_for_a_worker_cost_a_sweep_nothing(bench: StoreBench) -> None:
    store = _sweeping(bench.subject)
    lost = [(await waiting_task(store, "tool", worker="lost")).task_id for _ in range(4)]

    async def sweep() -> None:
        found = await _lost(store, "another")
        require(set(found) == set(lost), f"list_lost shows {found} and not the {len(lost)} tasks that are lost")

    async def populate(count: int) -> None:
        for number in range(count):
            await waiting_task(store, f"tool {number % 3}")

    await populate(12)
    await sweep()  # what is prepared once does not count
    few = await count_work(sweep)
    await populate(480)
    many = await count_work(sweep)
    require(
        many <= 2 * few + 400,
        f"a sweep costs {many} steps where 500 tasks wait and {few} where 12 do: it looks at all",
    )


@_check("L12", "L3", needs=["sweeping", "leases", "shared"])
async def a_task_that_another_process_lost_is_listed(bench: StoreBench) -> None:
    store = _sweeping(bench.subject)
    async with bench.open_again() as opened:
        other = _sweeping(opened)
        task_id = (await waiting_task(store, "tool")).task_id
        require(await _lost(other) == [], "a process counts a task as lost that another one made, and that waits")
        require(await _lost(other, "tool") == [task_id], "a process does not see what another one handed over")
        for side, third in ((store, other), (other, store)):
            racers = [partial(each.claim_task, task_id, worker=f"{each is side}", lease_ms=1_000) for each in (side,)]
            await bench.race(*racers)
            require(await _lost(third) == [], "a process counts a lease as lapsed that another one holds")
            bench.clock.advance(1)
            require(await _lost(third) == [task_id], "a process does not see that another one lost a task")
            await third.claim_task(task_id, worker="", lease_ms=0)
            require(await _lost(side) == [], "a process counts a task as lost that another one has put back")
