"""The rules of `TaskConnecting`, as named checks: a store can be connected at any time, and stays as it is."""

from __future__ import annotations

from functools import partial
from typing import Final

from mcp_task_runtime.core.store import TaskConnecting, TaskStore
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.testing.checks.abilities import able, require_unchanged
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import StoreBench

__all__ = ["CONNECTING_CHECKS"]

CONNECTING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(CONNECTING_CHECKS)


@_check("L12", "L3", needs=["connecting"])
async def connecting_again_closes_nothing_that_is_in_use(bench: StoreBench) -> None:
    store = able(bench.subject, TaskConnecting)
    await bench.within(store.connect(), "connect does not return")
    created = await store.create_task(NewTask(ttl_ms=None))
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait) as (waiter,):
        await bench.within(store.connect(), "connect does not return where the store is in use")
        await require_unchanged(store, created, "connecting again")
        require(not waiter.done(), "connecting again woke a waiter")
        changed = await store.update_task(created.task_id, status_message="on")
        woken = await bench.within(waiter.wait(), "a waiter was not woken after the store was connected again")
        require(woken == changed, "a waiter woke with another state than the one stored")


@_check("L13", needs=["connecting"])
async def a_closed_store_cannot_be_connected(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        store = able(opened, TaskConnecting)
    await require_raises(StoreError, store.connect(), "connecting a closed store")
