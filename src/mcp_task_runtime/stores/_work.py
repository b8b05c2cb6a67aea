"""Which of the tasks with lapsed leases wait for a worker."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mcp_task_runtime.core.types import TaskRecord

__all__ = ["waiting_in"]


def waiting_in(lapsed: Iterable[TaskRecord], names: Collection[str]) -> list[TaskRecord]:
    """Return the tasks of these tools whose lease no process holds, in the order that they came."""
    return [
        record
        for record in lapsed
        if record.lease is not None and not record.lease.worker and record.request.name in names
    ]
