"""The laws of time in a `TaskStore`, as named checks."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, ended_task, require_gone

__all__ = ["STORE_TIME_CHECKS"]

STORE_TIME_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_TIME_CHECKS)


@_check("L7")
async def all_time_comes_from_the_injected_clock(bench: StoreBench) -> None:
    store = bench.subject
    require(store.clock is bench.clock, "store.clock is not the clock that the store was given")
    bench.clock.advance(timedelta(days=400))
    created = await store.create_task(NewTask(ttl_ms=None))
    require(created.task.created_at == bench.clock.now(), "created_at is not the injected clock's time")
    bench.clock.advance(0.25)
    updated = await store.update_task(created.task_id, status_message="later")
    require(updated.task.last_updated_at == bench.clock.now(), "last_updated_at is not the injected clock's time")
    require(updated.task.created_at == created.task.created_at, "an update changed created_at")


@_check("L7")
async def an_expired_task_is_gone_for_every_caller_at_once(bench: StoreBench) -> None:
    store = bench.subject
    live = await store.create_task(NewTask(ttl_ms=10_000, task_id="live"))
    ended = await ended_task(store, ttl_ms=10_000, task_id="ended")
    later = await store.create_task(NewTask(ttl_ms=10_001))
    bench.clock.advance(9.999)
    for record in (live, ended):
        require(await store.get_task(record.task_id) == record, "a task was gone before its time")
    bench.clock.advance(0.001)
    await require_gone(store, "live", "has expired")
    await require_gone(store, "ended", "has expired")
    require(await store.get_task(later.task_id) == later, "a task was gone before its time")
    again = await store.create_task(NewTask(ttl_ms=None, task_id="live"))
    require(again.revision == 1, "the identifier of an expired task is not free again")
    require(await store.get_task("live") == again, "a new task with an expired one's identifier is not found")


@_check("L7")
async def a_task_without_a_ttl_never_expires(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    bench.clock.advance(timedelta(days=3650))
    require(await store.get_task(created.task_id) == created, "a task without a TTL expired")
    ended = await store.finish_task(created.task_id, OUTCOMES[0])
    require(ended.task.ttl_ms is None, "finishing gave a TTL to a task that had none")


@_check("L7")
async def an_outcome_can_be_fetched_for_the_retention_time(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=10_000, retention_ms=60_000))
    bench.clock.advance(9)
    ended = await store.finish_task(created.task_id, OUTCOMES[0])
    require(
        ended.task.expires_at is not None and ended.task.expires_at >= bench.clock.now() + timedelta(seconds=60),
        "finishing did not extend ttl_ms, so the outcome is gone before the retention time has passed",
    )
    bench.clock.advance(59.999)
    require(await store.get_task(created.task_id) == ended, "an ended task was gone within the retention time")
    require(await store.get_result(created.task_id) == ended.outcome, "an outcome was gone within the retention time")
    bench.clock.advance(0.001)
    await require_gone(store, created.task_id, "has outlived its retention time")
    long = await store.create_task(NewTask(ttl_ms=500_000, retention_ms=1_000))
    ended = await store.finish_task(long.task_id, OUTCOMES[0])
    require(ended.task.ttl_ms == 500_000, "finishing changed a TTL that was long enough")
