"""What the record of a task keeps of its caller: the trace context of the call, and the tasks it names as related."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.json import JSONValue, dump_json
from mcp_task_runtime.core.reader import store_errors
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.wire.trace_context import trace_context
from mcp_task_runtime.wire.v2026_07_28 import parse_related_task_ids

__all__ = ["caller_of", "related_tasks_of"]

_KEY: Final = "relatedTaskIds"


def caller_of(meta: JSONValue) -> str:
    """Return what a task keeps of the caller (`TaskRequest.caller_json`), from the `_meta` of its call."""
    related = parse_related_task_ids(meta)
    return dump_json({**trace_context(meta), **({_KEY: related} if related else {})})


async def related_tasks_of(store: TaskStore, task_id: str) -> tuple[TaskRecord, ...]:
    """Return the tasks that the caller of a task named: those that exist and belong to the same owner (law L10).

    Raises:
        StoreError: The store failed.
    """
    with store_errors():
        own = await store.get_task(task_id)
        if own is None:
            return ()
        found = [await store.get_task(each) for each in own.request.caller.get(_KEY, ())]
    return tuple(record for record in found if record is not None and record.owner == own.owner)
