"""The laws of `TaskTaking`, as named checks: what a worker takes it has claimed, and no other worker has it (L12)."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio

from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.store import TaskLeases, TaskStore, TaskTaking, TaskWork
from mcp_task_runtime.core.types import Lease, NewTask, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.testing.checks.abilities import AbleStore, able, fence_of, lapsed_tasks, waiting_task
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises, start
from mcp_task_runtime.testing.checks.store_bench import StoreBench
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["TAKING_CHECKS"]

TAKING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(TAKING_CHECKS)

_LEASE_MS: Final = 60_000


def _taking(store: TaskStore) -> AbleStore:
    return able(store, TaskLeases, TaskWork, TaskTaking)


async def _take(
    store: AbleStore, *names: str, worker: str = "w", limit: int = 10, with_sealed: bool = False
) -> tuple[TaskRecord, ...]:
    return await store.take_work(
        names or ("tool",), worker=worker, lease_ms=_LEASE_MS, limit=limit, with_sealed=with_sealed
    )


async def _taken(bench: StoreBench, store: AbleStore, *names: str, **options: Any) -> list[str]:
    """Return the ids of the tasks that a worker takes, each of which it must have claimed."""
    records = await bench.within(_take(store, *names, **options), "take_work takes no task, and one waits")
    for record in records:
        await _require_claimed(store, record, options.get("worker", "w"))
    return [record.task_id for record in records]


async def _require_claimed(store: AbleStore, record: TaskRecord | None, worker: str) -> None:
    if record is None or record.lease is None:
        raise AssertionError(f"a worker took {record}, which has no lease")
    require(record.lease.worker == worker, f"{worker!r} took a task, and {record.lease.worker!r} holds its lease")
    stored = await store.get_task(record.task_id)
    require(stored == record, f"a worker took {record}, and stored is {stored}")


@_check("L12", needs=["taking", "work", "leases"])
async def tasks_are_taken_in_their_order(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    waiting: list[str] = []
    for number in range(6):
        waiting.append((await waiting_task(store, f"tool {number % 3}")).task_id)
        bench.clock.advance(1)
    await waiting_task(store, "tool 0", lease_ms=_LEASE_MS)  # an engine carries it
    await waiting_task(store, "tool 0", worker="another", lease_ms=_LEASE_MS)
    tools = ("tool 2", "tool 1", "tool 0", "tool 1", "unknown")
    taken = await _taken(bench, store, *tools, limit=4)
    require(taken == waiting[:4], f"a worker took {taken} and must take {waiting[:4]}, the longest waiting")
    taken = await _taken(bench, store, *tools)
    require(taken == waiting[4:], f"a worker took {taken}, and only {waiting[4:]} waited")
    await require_raises(ValueError, _take(store, limit=0), "taking work with a limit of 0")


@_check("L12", needs=["taking", "work", "leases", "search"])
async def what_is_taken_is_claimed(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    waiting = [await waiting_task(store) for _ in range(2)]
    bench.clock.advance(1)
    first = await store.take_task(waiting[0].task_id, ["tool"], worker="w", lease_ms=_LEASE_MS)
    (second,) = await bench.within(_take(store), "take_work takes no task, and one waits")
    for how, record in (("by its id", first), ("that waits", second)):
        await _require_claimed(store, record, "w")
        assert record is not None
        now = bench.clock.now()
        lease = Lease("w", now + timedelta(milliseconds=_LEASE_MS), 1)
        require(record.lease == lease, f"taking a task {how} made the lease {record.lease} and not {lease}")
        require(record.revision == 2, f"a new task taken {how} is at revision {record.revision} and not 2")
        events = [(event.kind, event.at) for event in await store.get_history(record.task_id)]
        require(
            events == [("created", record.task.created_at), ("claimed", now)],
            f"the history of a task taken {how} is {events}",
        )
    bench.clock.advance(_LEASE_MS / 1_000 + 1)
    lapsed = await lapsed_tasks(store)
    require(sorted(lapsed) == sorted(each.task_id for each in waiting), f"a worker was lost, and {lapsed} lapsed")
    await store.finish_task(waiting[0].task_id, Outcome.completed({}), fence=fence_of(first))


@_check("L12", needs=["taking", "work", "leases"])
async def each_task_is_taken_by_one_of_the_workers_that_want_it(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    waiting = {(await waiting_task(store)).task_id for _ in range(6)}
    race: list[Any] = await bench.race(*(partial(_take, store, worker=f"w{number}", limit=2) for number in range(3)))
    taken = [record.task_id for records in race for record in records]
    while len(taken) < len(waiting):  # a worker may get less than its limit where another was faster
        taken += await _taken(bench, store)
    require(sorted(taken) == sorted(waiting), f"workers took {taken}, and must take each of {waiting} once")


@_check("L12", "L3", needs=["taking", "work", "leases", "shared"])
async def each_task_is_taken_by_one_of_the_workers_of_two_processes(bench: StoreBench) -> None:
    taken: list[str] = []
    all_taken = anyio.Event()

    async def work(store: AbleStore, worker: str, *names: str) -> None:
        while True:
            taken.extend(await _taken(bench, store, *names, worker=worker, limit=4))
            if len(taken) >= 60:
                all_taken.set()

    async with bench.open_again() as opened, anyio.create_task_group() as group:
        one, two = _taking(bench.subject), _taking(opened)
        group.start_soon(work, one, "a", "tool 0", "tool 1")
        group.start_soon(work, two, "b", "tool 1", "tool 2")
        group.start_soon(work, two, "c", "tool 2")
        for number in range(60):
            group.start_soon(waiting_task, one, f"tool {number % 3}")
        await bench.within(all_taken.wait(), "workers of two processes do not take all tasks that they want")
        group.cancel_scope.cancel()
    require(len(set(taken)) == 60, f"workers of two processes took {taken}, and must take each task once")


@_check("L12", "L3", needs=["taking", "work", "leases", "shared"])
async def a_worker_takes_what_another_process_makes(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        store = _taking(opened)
        async with bench.waiting(partial(_take, store)) as (waiter,):
            require(not waiter.done(), "a worker took something, and nothing waits for it")
            await waiting_task(bench.subject, "another tool")
            made = await waiting_task(bench.subject)
            records: Any = await bench.within(waiter.wait(), "a worker does not take what another process made")
        require([each.task_id for each in records] == [made.task_id], f"a worker took {records} and not {made}")
        await _require_claimed(store, records[0], "w")


@_check("L13", needs=["taking", "work", "leases"])
async def a_worker_takes_its_own_tools_alone(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    sealed = await waiting_task(store, arguments_json=SEALED_JSON + '"}')
    await waiting_task(store, "theirs")
    bench.clock.advance(1)
    ours = await waiting_task(store)
    taken = await _taken(bench, store, "tool", "unknown")
    require(taken == [ours.task_id], f"behind tasks of others and sealed ones a worker took {taken}")
    taken = await _taken(bench, store, "tool", with_sealed=True)
    require(taken == [sealed.task_id], f"a worker that opens sealed tasks took {taken}")
    async with bench.waiting(partial(store.take_work, [], worker="w", lease_ms=_LEASE_MS, limit=1)) as (waiter,):
        require(not waiter.done(), "a worker without tools does not wait")


@_check("L6", "L3", needs=["taking", "work", "leases"])
async def a_worker_that_was_cancelled_has_taken_nothing(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    async with bench.waiting(partial(_take, store, worker="cancelled")):
        pass
    with anyio.move_on_after(0):
        await _take(store, worker="cancelled")
    made = await waiting_task(store)
    taken = await _taken(bench, store)
    require(taken == [made.task_id], "a task went with a worker that was cancelled")


@_check("L6", "L12", needs=["taking", "work", "leases"])
async def a_worker_that_is_cancelled_gets_what_it_has_claimed(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    count = 0

    async def setup(how: str) -> Trial:
        nonlocal count
        count += 1
        tool, task_id, taken = f"tool {count}", f"task {count}", list[object]()

        async def make() -> None:
            new = NewTask(ttl_ms=None, task_id=task_id, request=TaskRequest(name=tool), worker="", lease_ms=0)
            await store.create_task(new)

        async def take() -> None:
            if how == "by its id":
                taken.append(await store.take_task(task_id, [tool], worker="w", lease_ms=_LEASE_MS, with_sealed=False))
            else:
                taken.extend(await _take(store, tool))

        async def look() -> tuple[int, str | None]:
            record = await store.get_task(task_id)
            return len(taken), None if record is None or record.lease is None else record.lease.worker

        if how != "that comes later":
            await make()
        return Trial(
            take,
            look,
            meanwhile=make if how == "that comes later" else None,
            leftovers=lambda: bench.clock.waiting,
            also=((0, ""),),  # it came and was not taken
        )

    for how in ("that waits", "by its id", "that comes later"):
        try:
            await check_cancellation(partial(setup, how), patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of taking a task {how} (tasks returned, worker of the lease): {error}") from error


@_check("L3", needs=["taking", "work", "leases"])
async def a_worker_that_takes_is_woken_when_the_store_is_closed(bench: StoreBench) -> None:
    async with anyio.create_task_group() as group:
        async with bench.open_again() as opened:
            waiter = start(group, partial(_take, _taking(opened)))
            await quiesce()
        woken = bench.within(waiter.wait(), "a worker that takes is not woken when the store is closed")
        await require_raises(StoreClosedError, woken, "taking work while the store is closed")
        group.cancel_scope.cancel()


@_check("L12", "L13", needs=["taking", "work", "leases"])
async def a_task_is_taken_by_its_id_while_it_waits(bench: StoreBench) -> None:
    store = _taking(bench.subject)
    ended = await waiting_task(store)
    await store.finish_task(ended.task_id, Outcome.cancelled())
    held = await waiting_task(store, worker="another", lease_ms=_LEASE_MS)
    sealed = await waiting_task(store, arguments_json=SEALED_JSON + '"}')
    carried = await waiting_task(store, lease_ms=_LEASE_MS)
    lost = await waiting_task(store, worker="another", lease_ms=1_000)
    request = TaskRequest(name="tool")
    expired = await store.create_task(NewTask(ttl_ms=1_000, request=request, worker="", lease_ms=0))
    bench.clock.advance(2)

    async def take(task_id: str, name: str = "tool", with_sealed: bool = False) -> TaskRecord | None:
        names = ["unknown", name]
        return await store.take_task(task_id, names, worker="w", lease_ms=_LEASE_MS, with_sealed=with_sealed)

    for task_id, name, what in (
        ("unknown", "tool", "a task that is unknown"),
        (expired.task_id, "tool", "a task that has expired"),
        (lost.task_id, "tool", "a task whose worker was lost, and which does not wait"),
        (ended.task_id, "tool", "a task that has ended"),
        (held.task_id, "tool", "a task that another worker holds"),
        (sealed.task_id, "tool", "a sealed task, which it cannot open"),
        (carried.task_id, "another", "a task of another tool"),
    ):
        before = await store.get_task(task_id)
        require(await take(task_id, name) is None, f"a worker took {what}")
        require(await store.get_task(task_id) == before, f"a worker that could not take {what} changed it")
    await _require_claimed(store, await take(carried.task_id), "w")
    await _require_claimed(store, await take(sealed.task_id, with_sealed=True), "w")
    require(await take(carried.task_id) is None, "a task was taken twice")
