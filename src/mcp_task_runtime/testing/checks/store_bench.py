"""What the checks of a `TaskStore` share: how they read a task, and what they require of any."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import NewTask, Outcome, TaskPage, TaskRecord
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.testing.checks.bench import Bench, require, require_raises

__all__ = [
    "OUTCOMES",
    "StoreBench",
    "ended_task",
    "read_task",
    "require_gone",
    "require_whole",
    "view_task",
    "walk_pages",
]

StoreBench: TypeAlias = Bench[TaskStore]
"""Where a check of a store runs."""

OUTCOMES: Final = (
    Outcome.completed({"content": [{"type": "text", "text": "grüß 🌍"}], "isError": False}),
    Outcome.failed("no such thing", code=-32001, data={"why": [1, None]}),
    Outcome.cancelled(status_message="stopped"),
)
"""One outcome of each kind."""


async def read_task(store: TaskStore, task_id: str) -> TaskRecord:
    """Return a task that must be there."""
    record = await store.get_task(task_id)
    if record is None:
        raise AssertionError("a task that was created and neither deleted nor expired was not found")
    return record


async def ended_task(store: TaskStore, outcome: Outcome = OUTCOMES[0], **options: Any) -> TaskRecord:
    """Return a new task that has ended."""
    created = await store.create_task(NewTask(**{"ttl_ms": None, **options}))
    return await store.finish_task(created.task_id, outcome)


async def view_task(store: TaskStore, task_id: str) -> tuple[Any, ...]:
    """Return what matters of a task, comparable between tasks; also check L2 on the way."""
    record = await store.get_task(task_id)
    if record is None:
        return ("gone",)
    require_whole(record)
    return (record.status, record.task.status_message, record.revision, record.outcome, record.task.ttl_ms)


def require_whole(record: TaskRecord) -> None:
    """Require that a record has an outcome if it has ended, its own, and none otherwise (law L2)."""
    if record.status in TERMINAL_STATUSES:
        require(record.outcome is not None, f"a reader saw a task that is {record.status!r} without an outcome")
        require(
            record.outcome is not None and record.outcome.status == record.status,
            f"a reader saw a task that is {record.status!r} with the outcome of one that ended otherwise",
        )
    else:
        require(record.outcome is None, f"a reader saw an outcome on a task that is {record.status!r}")


async def require_gone(store: TaskStore, task_id: str, why: str) -> None:
    """Require that no method finds a task."""
    require(await store.get_task(task_id) is None, f"get_task returned a task that {why}")
    missing: dict[str, Callable[[], Awaitable[Any]]] = {
        "update_task": partial(store.update_task, task_id, status_message="late"),
        "finish_task": partial(store.finish_task, task_id, OUTCOMES[0]),
        "get_result": partial(store.get_result, task_id),
        "wait_for_update": partial(store.wait_for_update, task_id, after=0),
    }
    for name, operation in missing.items():
        await require_raises(TaskNotFoundError, operation(), f"{name} on a task that {why}")
    require(await store.delete_task(task_id) is False, f"delete_task found a task that {why}")


async def walk_pages(read: Callable[..., Awaitable[TaskPage]], limit: int) -> list[str]:
    """Return the ids of all pages that a function reads, which takes a cursor and a limit."""
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = await read(cursor=cursor, limit=limit)
        require(len(page.records) <= limit, f"a page of at most {limit} tasks has {len(page.records)}")
        ids += [record.task_id for record in page.records]
        cursor = page.next_cursor
        if cursor is None:
            return ids
        require(page.records, "a page that is not the last one is empty")
        require(len(ids) < 10_000, "walking the pages does not end")
