"""The laws of waiting for a `TaskStore`'s tasks, as named checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import StoreClosedError, TaskNotFoundError
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises, start
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task, view_task
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["STORE_WAITING_CHECKS"]

STORE_WAITING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_WAITING_CHECKS)


@_check("L3")
async def every_waiter_wakes_when_the_task_changes(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    changes: tuple[tuple[str, Callable[[], Awaitable[TaskRecord]]], ...] = (
        ("an update", partial(store.update_task, created.task_id, status_message="on it")),
        ("a change of status", partial(store.update_task, created.task_id, status="input_required")),
        ("the end", partial(store.finish_task, created.task_id, OUTCOMES[1])),
    )
    for what, change in changes:
        before = await read_task(store, created.task_id)
        wait = partial(store.wait_for_update, created.task_id, after=before.revision)
        async with bench.waiting(wait, wait, wait) as waiters:
            for waiter in waiters:
                require(not waiter.done(), "wait_for_update returned before the task had changed")
            changed = await change()
            for number, waiter in enumerate(waiters, 1):
                record = await bench.within(waiter.wait(), f"waiter {number} of 3 was not woken by {what}")
                require(record == changed, f"a waiter was woken by {what} and given {record}, not {changed}")


@_check("L3")
async def a_change_before_the_wait_counts(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    first = await bench.within(
        store.wait_for_update(created.task_id, after=0), "wait_for_update(after=0) did not return an existing task"
    )
    require(first == created, "wait_for_update(after=0) did not return the task as it is")
    await store.update_task(created.task_id, status_message="between")
    ended = await store.finish_task(created.task_id, OUTCOMES[0])
    for after in (1, 2):
        record = await bench.within(
            store.wait_for_update(created.task_id, after=after),
            "a change between reading the task and waiting for it was lost",
        )
        require(record == ended, "wait_for_update did not return the task as it is now")


@_check("L3")
async def a_waiter_is_woken_by_deletion(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=60_000))
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as waiters:
        await store.delete_task(created.task_id)
        for waiter in waiters:
            woken = bench.within(waiter.wait(), "a waiter was not woken by the deletion of its task")
            await require_raises(TaskNotFoundError, woken, "waiting for a task that is deleted")


@_check("L3", "L7")
async def a_waiter_is_woken_by_expiry(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=60_000))
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as waiters:
        bench.clock.advance(60)
        for waiter in waiters:
            woken = bench.within(waiter.wait(), "a waiter was not woken by the expiry of its task")
            await require_raises(TaskNotFoundError, woken, "waiting for a task that expires")


@_check("L3", "L7")
async def a_waiter_outlasts_a_deadline_that_moved(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=10_000, retention_ms=60_000))
    bench.clock.advance(5)
    ended = await store.finish_task(created.task_id, OUTCOMES[0])
    async with bench.waiting(partial(store.wait_for_update, created.task_id, after=ended.revision)) as (waiter,):
        bench.clock.advance(10)
        await read_task(store, created.task_id)
        await quiesce()
        require(not waiter.done(), "a waiter was woken at the task's old deadline, though the end had moved it")
        bench.clock.advance(50)
        woken = bench.within(waiter.wait(), "a waiter was not woken at the task's new deadline")
        await require_raises(TaskNotFoundError, woken, "waiting for a task that expires")


@_check("L3")
async def a_waiter_is_woken_when_the_store_is_closed(bench: StoreBench) -> None:
    async with anyio.create_task_group() as group:
        async with bench.open_again() as store:
            created = await store.create_task(NewTask(ttl_ms=None))
            waiter = start(group, partial(store.wait_for_update, created.task_id, after=created.revision))
            await quiesce()
        woken = bench.within(waiter.wait(), "a waiter was not woken when the store was closed")
        await require_raises(StoreClosedError, woken, "waiting while the store is closed")
        group.cancel_scope.cancel()


@_check("L3", "L6")
async def a_cancelled_waiter_takes_nobody_with_it(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=60_000))
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as (first, last):
        async with bench.waiting(wait, wait):
            pass
        changed = await store.update_task(created.task_id, status_message="now")
        for waiter in (first, last):
            woken = await bench.within(waiter.wait(), "a waiter was not woken after another one was cancelled")
            require(woken == changed, "a waiter woke with another state than the one stored")


@_check("L6")
async def a_cancelled_wait_leaves_nothing_behind(bench: StoreBench) -> None:
    store = bench.subject

    async def setup() -> Trial:
        task_id = (await store.create_task(NewTask(ttl_ms=60_000))).task_id
        return Trial(
            partial(store.wait_for_update, task_id, after=1),
            partial(view_task, store, task_id),
            meanwhile=partial(store.update_task, task_id, status_message="changed"),
            leftovers=lambda: bench.clock.waiting,
        )

    await check_cancellation(setup, patience=bench.patience)
