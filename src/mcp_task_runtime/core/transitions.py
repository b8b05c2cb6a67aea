"""The status table (law L1, wire rule A1), and the only code that changes a task.

Everything that decides how a record begins and changes lives here, as pure functions from one frozen record
to the next. This file does not know who calls it: a store reads a record, applies one of these
functions, and writes what it returns, atomically. A refused step raises, and there is then no new
record to write. The statements of PostgreSQL and the scripts of Redis mirror these functions, with the
status table as an argument; the kit holds them to the same results.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    Task,
    TaskRecord,
    TaskStatus,
)
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, LimitExceededError, RevisionConflictError

__all__ = [
    "EVENTS_KEPT",
    "EVENT_TEXT_LENGTH",
    "TERMINAL_STATUSES",
    "TRANSITIONS",
    "check_fence",
    "check_room",
    "claim_record",
    "create_record",
    "finish_record",
    "is_expired",
    "is_terminal",
    "lapsed_lease",
    "may_join",
    "update_record",
]

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

EVENTS_KEPT: Final = 20
"""Most events in the history of a task; the oldest after `created` are dropped first."""

EVENT_TEXT_LENGTH: Final = 120
"""Most characters in the text of an event."""

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


def check_fence(record: TaskRecord, fence: Fence | None) -> None:
    """Refuse a write of a run that no longer holds the task's lease (law L12). No fence passes.

    Raises:
        LeaseLostError: The task's lease is another run's, or gone.
    """
    if fence is not None and (record.lease is None or record.lease.fence != fence):
        raise LeaseLostError(record.task_id)


def check_room(live: int, most: int | None) -> None:
    """Refuse one more live task of an owner that has as many as it may have (law L16). No limit passes.

    Raises:
        LimitExceededError: It has.
    """
    if most is not None and live >= most:
        raise LimitExceededError("tasks at once", most)


def create_record(new: NewTask, *, now: datetime) -> TaskRecord:
    """Return the first record of a task: `working`, at revision 1."""
    lease = None
    if new.worker is not None:
        lease = Lease(new.worker, now + new.lease_ms * _MILLISECOND, 1 if new.worker else 0)
    return TaskRecord(
        Task(
            new_task_id() if new.task_id is None else new.task_id,
            "working",
            new.status_message,
            now,
            now,
            new.ttl_ms,
            new.poll_interval_ms,
        ),
        1,
        new.owner,
        new.retention_ms,
        new.request,
        new.client_capabilities_json,
        None,
        lease,
    )


def update_record(
    record: TaskRecord,
    *,
    now: datetime,
    status: LiveStatus | None = None,
    status_message: str | None = None,
    progress: Progress | None = None,
    ttl_ms: int | None = None,
    if_revision: int | None = None,
    fence: Fence | None = None,
) -> TaskRecord:
    """Return the record after an update of a live task; what is `None` stays as it is.

    Raises:
        InvalidTransitionError: The task has ended, or `status` is not a live one.
        LeaseLostError: `fence` names a run that no longer holds the task's lease.
        RevisionConflictError: `if_revision` is not the record's revision.
    """
    task = record.task
    wanted: TaskStatus = task.status if status is None else status
    _check(record, wanted)
    if wanted in TERMINAL_STATUSES:  # an end comes with its outcome: only finish_record makes one
        raise InvalidTransitionError(task.task_id, current=task.status, requested=wanted)
    check_fence(record, fence)
    if if_revision is not None and if_revision != record.revision:
        raise RevisionConflictError(task.task_id, expected=if_revision, current=record.revision)
    changed = Task(
        task.task_id,
        wanted,
        task.status_message if status_message is None else status_message,
        task.created_at,
        max(now, task.last_updated_at),
        task.ttl_ms if ttl_ms is None else ttl_ms,
        task.poll_interval_ms,
    )
    return _replace_task(
        record, changed, record.outcome, record.lease, record.progress if progress is None else progress
    )


def finish_record(record: TaskRecord, outcome: Outcome, *, now: datetime, fence: Fence | None = None) -> TaskRecord:
    """Return the record after its end: terminal status and outcome together (law L2).

    The TTL grows where the outcome could otherwise be fetched for less than `retention_ms` (law L7). The
    status message becomes the outcome's own. Where that has none, a completed task has none either: what
    the work said while it ran no longer holds.

    Raises:
        InvalidTransitionError: The task has already ended.
        LeaseLostError: `fence` names a run that no longer holds the task's lease.
    """
    _check(record, outcome.status)
    check_fence(record, fence)
    task = record.task
    ended_at = max(now, task.last_updated_at)
    ttl_ms = task.ttl_ms
    if ttl_ms is not None:
        lived_ms = -((task.created_at - ended_at) // _MILLISECOND)
        ttl_ms = max(ttl_ms, lived_ms + record.retention_ms)
    message = outcome.status_message
    if message is None and outcome.status != "completed":
        message = task.status_message
    changed = Task(task.task_id, outcome.status, message, task.created_at, ended_at, ttl_ms, task.poll_interval_ms)
    return _replace_task(record, changed, outcome, None, record.progress)


def claim_record(record: TaskRecord, *, now: datetime, worker: str, lease_ms: int) -> TaskRecord | None:
    """Return the record after a claim of its work, or `None` if there is nothing to claim.

    A lease that no process holds can be claimed at any time, one that a worker holds when it has lapsed. An
    empty `worker` puts a lapsed task back to wait for a worker, and counts no attempt.
    """
    lease = record.lease
    if lease is None or is_terminal(record.status):
        return None
    if now < lease.expires_at and (lease.worker or not worker):
        return None
    attempt = lease.attempt + 1 if worker else lease.attempt
    claimed = Lease(worker, now + lease_ms * _MILLISECOND, attempt, lease.handovers)
    updated = update_record(record, now=now)
    return _replace_task(record, updated.task, None, claimed, record.progress)


def lapsed_lease(lease: Lease, *, now: datetime) -> Lease:
    """Return the lease of a run that was handed over: lapsed now, and counted as a hand-over.

    A run whose lease had lapsed before was lost, and stays so.
    """
    if lease.expires_at <= now:
        return lease
    return Lease(lease.worker, now, lease.attempt, lease.handovers + 1)


def may_join(record: TaskRecord, *, now: datetime, ended_ms: int) -> bool:
    """Return whether a repeated call joins this task: it is live, or ended not long ago and was not cancelled."""
    task = record.task
    if is_expired(task, now) or task.status == "cancelled":
        return False
    return not is_terminal(task.status) or now < task.last_updated_at + ended_ms * _MILLISECOND


def _replace_task(
    record: TaskRecord, task: Task, outcome: Outcome | None, lease: Lease | None, progress: Progress | None
) -> TaskRecord:
    return TaskRecord(
        task,
        record.revision + 1,
        record.owner,
        record.retention_ms,
        record.request,
        record.client_capabilities_json,
        outcome,
        lease,
        progress,
    )
