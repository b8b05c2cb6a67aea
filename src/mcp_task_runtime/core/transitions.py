"""The status table (law L1, wire rule A1), and the only code that changes a task.

Everything that decides how a record may change lives here, as pure functions from one frozen record
to the next. This file does not know who calls it: each store reads a record, applies one of these
functions, and writes what it returns, atomically. A refused step raises, and there is then no new
record to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from mcp_task_runtime.core.types import Lease, LiveStatus, Outcome, Task, TaskRecord, TaskStatus
from mcp_task_runtime.errors import InvalidTransitionError, RevisionConflictError

__all__ = ["TERMINAL_STATUSES", "TRANSITIONS", "finish_record", "is_expired", "is_terminal", "update_record"]

TRANSITIONS: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = {
    "working": frozenset({"working", "input_required", "completed", "failed", "cancelled"}),
    "input_required": frozenset({"working", "input_required", "completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
"""From each status, those that may follow. Terminal statuses absorb."""

TERMINAL_STATUSES: Final[frozenset[TaskStatus]] = frozenset(s for s, following in TRANSITIONS.items() if not following)
"""The statuses that nothing follows."""


_MILLISECOND = timedelta(milliseconds=1)


def is_terminal(status: TaskStatus) -> bool:
    """Whether a task in this status has ended."""
    return status in TERMINAL_STATUSES


def is_expired(task: Task, now: datetime) -> bool:
    """Whether the task is gone at this time (law L7)."""
    return task.ttl_ms is not None and now >= task.created_at + task.ttl_ms * _MILLISECOND


def _check(record: TaskRecord, requested: TaskStatus) -> None:
    current = record.task.status
    if requested not in TRANSITIONS[current]:
        raise InvalidTransitionError(record.task.task_id, current=current, requested=requested)


def update_record(
    record: TaskRecord,
    *,
    now: datetime,
    status: LiveStatus | None = None,
    status_message: str | None = None,
    if_revision: int | None = None,
) -> TaskRecord:
    """Return the record after an update of a live task; what is `None` stays as it is.

    Raises:
        InvalidTransitionError: The task has ended, or `status` is not a live one.
        RevisionConflictError: `if_revision` is not the record's revision.
    """
    task = record.task
    wanted: TaskStatus = task.status if status is None else status
    _check(record, wanted)
    if wanted in TERMINAL_STATUSES:  # an end comes with its outcome: only finish_record makes one
        raise InvalidTransitionError(task.task_id, current=task.status, requested=wanted)
    if if_revision is not None and if_revision != record.revision:
        raise RevisionConflictError(task.task_id, expected=if_revision, current=record.revision)
    changed = Task(
        task.task_id,
        wanted,
        task.status_message if status_message is None else status_message,
        task.created_at,
        max(now, task.last_updated_at),
        task.ttl_ms,
        task.poll_interval_ms,
    )
    return _replace_task(record, changed, record.outcome, record.lease)


def finish_record(record: TaskRecord, outcome: Outcome, *, now: datetime) -> TaskRecord:
    """Return the record after its end: terminal status and outcome together (law L2).

    The TTL grows where the outcome could otherwise be fetched for less than `retention_ms` (law L7).

    Raises:
        InvalidTransitionError: The task has already ended.
    """
    _check(record, outcome.status)
    task = record.task
    ended_at = max(now, task.last_updated_at)
    ttl_ms = task.ttl_ms
    if ttl_ms is not None:
        lived_ms = -((task.created_at - ended_at) // _MILLISECOND)
        ttl_ms = max(ttl_ms, lived_ms + record.retention_ms)
    changed = Task(
        task.task_id,
        outcome.status,
        task.status_message if outcome.status_message is None else outcome.status_message,
        task.created_at,
        ended_at,
        ttl_ms,
        task.poll_interval_ms,
    )
    return _replace_task(record, changed, outcome, None)


def _replace_task(record: TaskRecord, task: Task, outcome: Outcome | None, lease: Lease | None) -> TaskRecord:
    return TaskRecord(
        task,
        record.revision + 1,
        record.owner,
        record.retention_ms,
        record.request,
        record.client_capabilities_json,
        outcome,
        lease,
    )
