"""`TaskLeases`: how a store shared by several processes notices that one of them is lost (law L12)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from mcp_task_runtime.core.types import TaskRecord

__all__ = ["TaskLeases"]


@runtime_checkable
class TaskLeases(Protocol):
    """What a store implements besides `TaskStore` when tasks outlive the process that runs them.

    A live task whose work a process runs has a lease (`TaskRecord.lease`), made with the task and renewed by
    that process. One that has passed its `expires_at` by the store's clock has *lapsed*: its process is
    lost. An ended task has no lease. Every method is atomic, also when it is cancelled (L6); only
    `claim_task` changes the task's revision.
    """

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker to `lease_ms` milliseconds from now.

        Returns:
            Those of `task_ids` that are live and whose lease is this worker's, lapsed or not. The work of
            all others must stop: the task ended, is gone, or was claimed by another worker.
        """
        ...

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; those that are not this worker's are left alone.

        Args:
            worker: Who gives them up.
            task_ids: Of which tasks.
            lapse: Whether they count as lapsed at once, for another worker to claim (a shutdown), or
                the tasks have no lease from now on (work that was handed to something outside).
        """
        ...

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed, the longest lapsed first."""
        ...

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; of concurrent callers exactly one gets it.

        The new lease counts one more attempt, and the status is `working` or `input_required` as before.

        Returns:
            The stored snapshot, or `None` if there is nothing to claim: the task is unknown, has ended,
            has no lease, or one that has not lapsed.
        """
        ...
