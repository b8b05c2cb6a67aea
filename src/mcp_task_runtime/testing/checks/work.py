"""The laws of `TaskWork`, as named checks: workers see tasks that wait for one, and wake for more (laws L3, L12)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio

from mcp_task_runtime.core.store import TaskLeases, TaskStore, TaskWork
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.testing.checks.abilities import AbleStore, able, waiting_task
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises, start
from mcp_task_runtime.testing.checks.store_bench import StoreBench
from mcp_task_runtime.testing.concurrency.cost import count_work
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["WORK_CHECKS"]

WORK_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(WORK_CHECKS)


def _able(store: TaskStore) -> AbleStore:
    return able(store, TaskLeases, TaskWork)


async def _found(bench: StoreBench, store: AbleStore, *names: str, limit: int = 10) -> list[str]:
    found = await bench.within(store.wait_for_work(names, limit=limit), "wait_for_work does not show a task that waits")
    require(isinstance(found, tuple), f"wait_for_work returned a {type(found).__name__} and not a tuple")
    return [record.task_id for record in found]


@_check("L12", "L3", needs=["work", "leases"])
async def tasks_that_wait_are_shown_in_their_order(bench: StoreBench) -> None:
    store = _able(bench.subject)
    first = await waiting_task(store)
    bench.clock.advance(1)
    second = await waiting_task(store)
    await waiting_task(store, lease_ms=60_000)  # an engine carries it
    await waiting_task(store, worker="lost")
    bench.clock.advance(1)
    found = await _found(bench, store, "tool")
    require(found == [first.task_id, second.task_id], f"workers see {found} and must see what waits, in its order")
    require(await _found(bench, store, "tool", limit=1) == [first.task_id], "a limit does not show the first task")
    (record,) = await store.wait_for_work(["tool"], limit=1)
    require(record == first, f"workers see {record}, and the task is {first}")
    await store.claim_task(first.task_id, worker="w", lease_ms=60_000)
    require(await _found(bench, store, "tool") == [second.task_id], "workers see a task that one of them has claimed")
    third = await waiting_task(store)
    await store.finish_task(second.task_id, Outcome.cancelled())
    require(await _found(bench, store, "tool") == [third.task_id], "workers see a task that has ended")
    await require_raises(ValueError, store.wait_for_work(["tool"], limit=0), "waiting for work with a limit of 0")


@_check("L13", "L12", needs=["work", "leases"])
async def a_worker_finds_its_tools_behind_those_of_others(bench: StoreBench) -> None:
    store = _able(bench.subject)
    for _ in range(20):
        await waiting_task(store, "theirs")
    bench.clock.advance(1)
    ours = await waiting_task(store, "ours")
    found = await _found(bench, store, "ours", "unknown", limit=2)
    require(found == [ours.task_id], f"behind tasks of other tools a worker sees {found}")


@_check("L8", needs=["work", "leases"])
async def a_worker_looks_at_its_own_tools_alone(bench: StoreBench) -> None:
    store = _able(bench.subject)
    ours = [(await waiting_task(store, "ours")).task_id for _ in range(4)]

    async def look() -> None:
        found = await _found(bench, store, "ours", "unknown", limit=8)
        require(set(found) == set(ours), f"of the {len(ours)} tasks of its tools a worker sees {len(found)}")

    async def fill(count: int) -> None:
        for _ in range(count):
            await waiting_task(store, "theirs")
        bench.clock.advance(1)

    await fill(16)
    await look()  # a first look may cost more
    few = await count_work(look)
    await fill(512)
    many = await count_work(look)
    require(
        many <= 3 * few + 2_000,
        f"a look costs {many} steps while 500 tasks wait for other workers and {few} while 16 do: it looks at all",
    )


@_check("L3", needs=["work", "leases"])
async def every_worker_that_waits_is_woken(bench: StoreBench) -> None:
    await _require_woken(bench, _able(bench.subject), _able(bench.subject))


@_check("L3", needs=["work", "leases", "shared"])
async def a_worker_is_woken_by_another_process(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        await _require_woken(bench, _able(bench.subject), _able(opened))


async def _require_woken(bench: StoreBench, store: AbleStore, other: AbleStore) -> None:
    """Require that workers of both stores are woken by a new task, and by one that is put back."""
    held = await waiting_task(store, worker="here", lease_ms=60_000)

    async def make() -> TaskRecord:
        await waiting_task(store, "another tool")
        return await waiting_task(store)

    async def put_back() -> TaskRecord:
        await store.drop_leases("here", [held.task_id], lapse=True)
        require(await store.claim_task(held.task_id, worker="", lease_ms=0), "a lapsed task was not put back")
        return held

    for change, what in ((make, "a new task"), (put_back, "a task that was put back")):
        waits = [partial(each.wait_for_work, ["tool"], limit=10) for each in (store, other, other)]
        async with bench.waiting(*waits) as waiters:
            require(not any(waiter.done() for waiter in waiters), "a worker was woken, and nothing waits for it")
            record = await change()
            for waiter in waiters:
                found: Any = await bench.within(waiter.wait(), f"a worker that waits is not woken by {what}")
                ids = [each.task_id for each in found]
                require(ids == [record.task_id], f"{what} showed workers {ids} and not the task")
        await store.finish_task(record.task_id, Outcome.cancelled())


@_check("L3", "L6", needs=["work", "leases"])
async def a_worker_that_gives_up_takes_no_task_with_it(bench: StoreBench) -> None:
    store = _able(bench.subject)
    async with bench.waiting(partial(store.wait_for_work, ["tool"], limit=1)) as (waiter,):
        with anyio.move_on_after(0):
            await store.wait_for_work(["tool"], limit=1)
        record = await waiting_task(store)
        found: Any = await bench.within(waiter.wait(), "a worker is not woken after another has given up")
        require([each.task_id for each in found] == [record.task_id], "a worker was woken for another task")
    require(await _found(bench, store, "tool") == [record.task_id], "a task went with a worker that only looked at it")


@_check("L3", needs=["work", "leases"])
async def a_worker_is_woken_when_the_store_is_closed(bench: StoreBench) -> None:
    async with anyio.create_task_group() as group:
        async with bench.open_again() as opened:
            waiter = start(group, partial(_able(opened).wait_for_work, ["tool"], limit=1))
            await quiesce()
        woken = bench.within(waiter.wait(), "a worker that waits is not woken when the store is closed")
        await require_raises(StoreClosedError, woken, "waiting for work while the store is closed")
        group.cancel_scope.cancel()
