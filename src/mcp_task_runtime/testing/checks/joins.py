"""The laws of `TaskJoins`, as named checks: a repeated call gets the task that was made before (laws L2, L12)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.store import TaskJoins, TaskStore
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.testing.checks.abilities import AbleStore, able
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import StoreBench, read_task
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation

__all__ = ["JOIN_CHECKS"]

JOIN_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(JOIN_CHECKS)
_ENDED_MS: Final = 5_000


async def _join(store: AbleStore, key: str, **options: Any) -> tuple[TaskRecord, bool]:
    return await store.join_task(NewTask(**{"ttl_ms": 60_000, **options}), key=key, ended_ms=_ENDED_MS)


@_check("L2", needs=["joins"])
async def a_repeated_call_joins_its_task_while_that_lives(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)
    first, is_new = await _join(store, "call ü", owner="ada", worker="one", status_message="Queued")
    require(is_new, "the first call with a key joined a task")
    require(await read_task(store, first.task_id) == first, "join_task created another task than it returned")
    require((first.owner, first.task.status_message) == ("ada", "Queued"), "join_task changed what it was given")
    again = await _join(store, "call ü", owner="ada", worker="two")
    require(again == (first, False), f"a repeated call got {again} and not the task of the first one, unchanged")
    other, is_new = await _join(store, "call")
    require(is_new and other.task_id != first.task_id, "a call with another key joined")
    plain = await store.create_task(NewTask(ttl_ms=None))
    require(plain.task_id != first.task_id, "create_task joined")
    updated = await store.update_task(first.task_id, status="input_required", status_message="waiting")
    require(await _join(store, "call ü") == (updated, False), "a call does not join a task that asks, as it is now")
    bench.clock.advance(60)
    late, is_new = await _join(store, "call ü")
    require(is_new and late.task_id != first.task_id, "a call joined a task that has expired")
    await store.delete_task(late.task_id)
    require((await _join(store, "call ü"))[1], "a call joined a task that was deleted")


@_check("L2", "L7", needs=["joins"])
async def a_repeated_call_joins_its_task_for_a_time_after_its_end(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)
    for outcome in (Outcome.completed({"n": 1}), Outcome.failed("no")):
        first, _ = await _join(store, outcome.status)
        ended = await store.finish_task(first.task_id, outcome)
        bench.clock.advance(_ENDED_MS / 1_000 - 1)
        joined = await _join(store, outcome.status)
        require(joined == (ended, False), f"a call did not join a task that has just {outcome.status}")
        bench.clock.advance(1)
        second, is_new = await _join(store, outcome.status)
        require(is_new and second.task_id != first.task_id, f"a call joined a task that {outcome.status} long ago")
        require(await _join(store, outcome.status) == (second, False), "a call did not join the last of two tasks")
    first, _ = await _join(store, "cancelled")
    await store.finish_task(first.task_id, Outcome.cancelled())
    second, is_new = await _join(store, "cancelled")
    require(is_new and second.task_id != first.task_id, "a call joined a task that was cancelled")


@_check("L2", needs=["joins"])
async def of_many_that_make_a_call_one_creates_its_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)
    before, _ = await _join(store, "old")
    await store.finish_task(before.task_id, Outcome.cancelled())
    for key in ("new", "old"):
        endings: list[Any] = await bench.race(*[partial(_join, store, key) for _ in range(6)])
        ids = {record.task_id for record, _ in endings}
        makers = sum(is_new for _, is_new in endings)
        require(len(ids) == 1, f"6 concurrent calls with one key have {len(ids)} tasks")
        require(makers == 1, f"of 6 concurrent calls with one key {makers} created the task")


@_check("L6", needs=["joins"])
async def a_cancelled_call_has_a_task_or_has_none(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)
    count = 0

    async def setup() -> Trial:
        nonlocal count
        count += 1
        key = f"{count}"

        async def look() -> bool:
            _, is_new = await _join(store, key)
            _, again = await _join(store, key)
            require(not again, "after a cancelled call no task can be joined")
            return is_new

        return Trial(partial(_join, store, key), look, leftovers=lambda: bench.clock.waiting)

    await check_cancellation(setup, patience=bench.patience)


@_check("L8", needs=["joins"])
async def nothing_is_kept_of_a_call_whose_task_is_gone(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)

    async def live_and_die(number: int) -> None:
        record, _ = await _join(store, f"call {number}", ttl_ms=1_000)
        if number % 3 == 0:
            await store.finish_task(record.task_id, Outcome.completed({}))
        bench.clock.advance(1)
        await store.get_task(record.task_id)

    await bench.require_nothing_kept(live_and_die, "tasks of calls")


@_check("L2", needs=["joins", "shared"])
async def a_call_that_is_repeated_in_another_process_joins(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJoins)
    async with bench.open_again() as opened:
        other = able(opened, TaskJoins)
        first, _ = await _join(store, "call")
        require(await _join(other, "call") == (first, False), "a call in another process does not join")
        for key in ("one", "two", "three"):
            racers = [partial(_join, able(process, TaskJoins), key) for process in (store, other) * 3]
            endings: list[Any] = await bench.race(*racers)
            require(len({record.task_id for record, _ in endings}) == 1, "a call has a task in each of two processes")
            require(sum(is_new for _, is_new in endings) == 1, "a call has created its task in each of two processes")
