"""The law of what a `TaskStore` costs and keeps, as named checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench
from mcp_task_runtime.testing.concurrency.cost import count_work

__all__ = ["STORE_COST_CHECKS"]

STORE_COST_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_COST_CHECKS)


@_check("L8")
async def no_operation_costs_more_when_there_are_many_tasks(bench: StoreBench) -> None:
    store = bench.subject
    rounds = 8

    async def measure() -> dict[str, int]:
        ids = [(await store.create_task(NewTask(ttl_ms=5_000_000, owner="ada"))).task_id for _ in range(rounds)]

        async def each(operation: Callable[[str], Awaitable[Any]]) -> None:
            for task_id in ids:
                await operation(task_id)

        async def create(_: str) -> None:
            await store.create_task(NewTask(ttl_ms=4_000_000, owner="ada"))

        work: dict[str, int] = {}
        for name, operation in (
            ("create_task", create),
            ("get_task", store.get_task),
            ("update_task", lambda task_id: store.update_task(task_id, status_message="on")),
            ("wait_for_update", lambda task_id: store.wait_for_update(task_id, after=1)),
            ("finish_task", lambda task_id: store.finish_task(task_id, OUTCOMES[0])),
            ("get_result", store.get_result),
            ("delete_task", store.delete_task),
        ):
            work[name] = await count_work(partial(each, operation))
        return work

    async def populate(count: int) -> None:
        for number in range(count):
            await store.create_task(NewTask(ttl_ms=1_000_000 + number, owner="ada" if number % 2 else "bob"))

    await populate(16)
    few = await measure()
    await populate(512)
    many = await measure()
    for name, work in many.items():
        require(
            work <= 3 * few[name] + 400 * rounds,
            f"{name} costs {work // rounds} steps among 500 tasks and {few[name] // rounds} among 16: it looks at all",
        )


@_check("L8")
async def nothing_is_kept_of_tasks_that_are_gone(bench: StoreBench) -> None:
    store = bench.subject

    async def live_and_die(number: int) -> None:
        created = await store.create_task(NewTask(ttl_ms=1_000, owner=f"owner {number}"))
        task_id = created.task_id
        with anyio.CancelScope() as scope:  # a waiter that gives up
            scope.cancel()
            await store.wait_for_update(task_id, after=1)
        await store.update_task(task_id, status_message=f"message {number}")
        if number % 3:
            await store.finish_task(task_id, OUTCOMES[number % 3])
        if number % 2:
            await store.delete_task(task_id)
        else:
            bench.clock.advance(1)
            await store.get_task(task_id)
        await store.get_task(task_id)
        await store.delete_task(task_id)

    await bench.require_nothing_kept(live_and_die, "tasks")
