"""Filters of searches, where records are looked at and no database does it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from mcp_task_runtime.core.text import ascii_lower
from mcp_task_runtime.core.types import TaskFilter, TaskRecord

__all__ = ["matcher", "shifted"]


def matcher(wanted: TaskFilter) -> Callable[[TaskRecord], bool]:
    """Return a function that returns whether a record matches a filter."""
    text = None if wanted.text is None else ascii_lower(wanted.text)

    def matches(record: TaskRecord) -> bool:
        task = record.task
        return (
            (wanted.statuses is None or task.status in wanted.statuses)
            and (wanted.names is None or record.request.name in wanted.names)
            and (wanted.owners is None or record.owner in wanted.owners)
            and (wanted.id_prefix is None or task.task_id.startswith(wanted.id_prefix))
            and (wanted.created_after is None or task.created_at >= wanted.created_after)
            and (wanted.created_before is None or task.created_at < wanted.created_before)
            and (not wanted.errors_only or (record.outcome is not None and record.outcome.is_error))
            and (text is None or (task.status_message is not None and text in ascii_lower(task.status_message)))
        )

    return matches


def shifted(time: datetime, by: timedelta) -> datetime:
    """Return a time that is earlier or later, or the time itself where the calendar ends."""
    try:
        return time + by
    except OverflowError:
        return time
