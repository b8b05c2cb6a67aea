"""The laws of `TaskQuotas`, as named checks: an owner has no more live tasks than it may have (law L16)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.store import TaskJoins, TaskQuotas, TaskStore
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.errors import LimitExceededError
from mcp_task_runtime.testing.checks.abilities import AbleStore, able
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import StoreBench

__all__ = ["QUOTA_CHECKS"]

QUOTA_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(QUOTA_CHECKS)


def _new(owner: str | None = "ada", most: int | None = 2, **options: Any) -> NewTask:
    return NewTask(**{"ttl_ms": 60_000, **options}, owner=owner, max_live=most)


async def _fill(store: AbleStore, owner: str | None = "ada", **options: Any) -> list[TaskRecord]:
    return [await store.create_task(_new(owner, **options)) for _ in range(2)]


async def _require_full(store: AbleStore, owner: str | None = "ada") -> None:
    error = await require_raises(LimitExceededError, store.create_task(_new(owner)), "creating one task too many")
    require(error.maximum == 2, f"the error names {error.maximum} as the limit and must name 2")
    count = await store.count_live_tasks(owner)
    require(count == 2, f"count_live_tasks returned {count}, and there are 2")


async def _require_room(store: AbleStore, why: str, owner: str | None = "ada") -> TaskRecord:
    count = await store.count_live_tasks(owner)
    require(count == 1, f"{why}, and count_live_tasks returned {count} and not 1")
    return await store.create_task(_new(owner))


@_check("L16", needs=["quotas"])
async def an_owner_has_no_more_live_tasks_than_it_may_have(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas)
    for owner in ("ada", None, "", "grüß 🌍"):
        require(await store.count_live_tasks(owner) == 0, "an owner without tasks has live ones")
        made = await _fill(store, owner)
        await _require_full(store, owner)
        await store.update_task(made[0].task_id, status="input_required")
        await store.update_task(made[0].task_id, status_message="asking", ttl_ms=120_000)
        await _require_full(store, owner)
    await store.create_task(_new(most=None))
    await store.create_task(_new(most=4))
    await require_raises(LimitExceededError, store.create_task(_new(most=3)), "creating a task beyond a lower limit")
    require(await store.count_live_tasks("ada") == 4, "tasks without a limit are not counted")
    require(await store.get_task("refused") is None, "there is a task before it was made")
    refused = store.create_task(_new(task_id="refused"))
    await require_raises(LimitExceededError, refused, "creating a task beyond a lower limit")
    require(await store.get_task("refused") is None, "a task that was refused exists")


@_check("L16", "L7", needs=["quotas"])
async def a_task_counts_until_it_ends_expires_or_is_deleted(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas)
    for outcome in (Outcome.completed({}), Outcome.failed("no"), Outcome.cancelled()):
        owner = outcome.status
        made = await _fill(store, owner)
        await store.finish_task(made[0].task_id, outcome)
        await _require_room(store, f"a task {outcome.status}", owner)
        await _require_full(store, owner)
        await store.delete_task(made[0].task_id)
        await _require_full(store, owner)
        await store.delete_task(made[1].task_id)
        await _require_room(store, "a task was deleted", owner)
        await _require_full(store, owner)
    await store.create_task(_new(ttl_ms=5_000))
    longer = await store.create_task(_new(ttl_ms=5_000))
    await store.update_task(longer.task_id, ttl_ms=600_000)
    bench.clock.advance(5)
    await _require_room(store, "a task has expired")
    await _require_full(store)
    bench.clock.advance(60)
    await _require_room(store, "another task has expired")
    await store.create_task(_new("bob", task_id="again", ttl_ms=1_000))
    bench.clock.advance(1)
    await store.create_task(_new("bob", most=1, task_id="again"))
    require(await store.count_live_tasks("bob") == 1, "a task that took the place of an expired one is counted twice")


@_check("L16", "L2", needs=["quotas"])
async def of_many_that_create_a_task_as_many_do_as_there_is_room_for(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas)
    for owner in ("ada", None):
        await _require_races(bench, [store], owner)


@_check("L16", needs=["quotas", "joins"])
async def a_call_that_joins_needs_no_room(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas, TaskJoins)
    first, _ = await store.join_task(_new(), key="one", ended_ms=1_000)
    await store.join_task(_new(), key="two", ended_ms=1_000)
    joined = await store.join_task(_new(), key="one", ended_ms=1_000)
    require(joined == (first, False), f"at the limit a repeated call got {joined}")
    refused = store.join_task(_new(), key="three", ended_ms=1_000)
    await require_raises(LimitExceededError, refused, "joining with a new key at the limit")
    await store.finish_task(first.task_id, Outcome.cancelled())
    record, is_new = await store.join_task(_new(), key="three", ended_ms=1_000)
    require(is_new and record.task_id != first.task_id, "a call that was refused before did not create its task")
    await _require_full(store)


@_check("L16", needs=["quotas", "joins"])
async def a_call_that_may_only_join_creates_no_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas, TaskJoins)
    for owner in ("ada", None):
        key = f"call of {owner}"
        only = partial(store.join_task, _new(owner, most=0), key=key, ended_ms=1_000)
        await require_raises(LimitExceededError, only(), "joining alone, without a task to join,")
        require(await store.count_live_tasks(owner) == 0, "a call that may only join has created a task")
        first, is_new = await store.join_task(_new(owner), key=key, ended_ms=1_000)
        require(is_new, "a call whose repetition was refused before joined a task")
        joined = await only()
        require(joined == (first, False), f"a call that may only join got {joined}")
        ended = await store.finish_task(first.task_id, Outcome.completed({}))
        joined = await only()
        require(joined == (ended, False), f"a call that may only join a task that has just ended got {joined}")
        bench.clock.advance(1)
        await require_raises(LimitExceededError, only(), "joining alone, long after the end of the task,")
        require(await store.count_live_tasks(owner) == 0, "a call that may only join has created a second task")


@_check("L16", "L12", needs=["quotas", "durable"])
async def a_reopened_store_knows_the_live_tasks(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        made = await _fill(able(opened, TaskQuotas))
    async with bench.open_again() as opened:
        store = able(opened, TaskQuotas)
        await _require_full(store)
        await store.finish_task(made[0].task_id, Outcome.cancelled())
        await _require_room(store, "a task ended after the store was opened again")


@_check("L16", "L2", needs=["quotas", "shared"])
async def an_owner_has_one_limit_in_all_processes(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuotas)
    async with bench.open_again() as opened:
        other = able(opened, TaskQuotas)
        made = [await process.create_task(_new()) for process in (store, other)]
        for process in (store, other):
            await _require_full(process)
        await other.finish_task(made[0].task_id, Outcome.cancelled())
        await _require_room(store, "another process ended a task")
        for owner in ("bob", None):
            await _require_races(bench, [store, other], owner)


async def _require_races(bench: StoreBench, stores: list[AbleStore], owner: str | None) -> None:
    racers = [partial(_try, store, owner) for store in stores * 3]
    made: list[Any] = await bench.race(*racers)
    require(sum(made) == 2, f"{len(racers)} calls at once created {sum(made)} tasks of an owner that may have 2")
    require(await stores[0].count_live_tasks(owner) == 2, "the tasks that were made at once are not all counted")


async def _try(store: AbleStore, owner: str | None) -> bool:
    try:
        await store.create_task(_new(owner))
    except LimitExceededError:
        return False
    return True
