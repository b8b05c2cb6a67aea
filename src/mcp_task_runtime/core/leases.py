"""`TaskLeases`: how a store shared by several processes notices that one of them is lost (law L12)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from mcp_task_runtime.core.types import TaskRecord

__all__ = ["TaskLeases"]


@runtime_checkable
class TaskLeases(Protocol):
    """What a store implements besides `TaskStore` when tasks outlive the process that runs them.

    A live task whose work a process runs has a lease (`TaskRecord.lease`): made with the task, kept when the
    task is updated, and renewed by that process. At its `expires_at` by the store's clock, and from then on,
    it has *lapsed*: its process is lost. A task that ends, expires or is deleted has no lease any more, lapsed
    or not, and whoever takes its identifier later begins anew. For every method:

    - **Atomic.** One task's lease changes in full or not at all, also when the call is cancelled (L6). A call
      for several tasks may be seen, or cancelled, when it has reached some of them.
    - **Quiet.** A lease is nothing that clients see: to renew it, to drop it or to let it lapse moves neither
      the task's revision nor `last_updated_at`, and wakes nobody. Only `claim_task` does: the work begins
      anew, and whoever follows the task is told.
    """

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Make leases of a worker end `lease_ms` milliseconds from now, be that later or sooner than before.

        The attempt stays. For no `task_ids` nothing happens.

        Returns:
            Those of `task_ids` that are live and whose lease is this worker's, lapsed or not. The work of
            all others must stop: the task ended, is gone, or was claimed by another worker.
        """
        ...

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; tasks that have none of this worker are left alone.

        Args:
            worker: Who gives them up.
            task_ids: Of which tasks; for none nothing happens.
            lapse: Whether they count as lapsed at once, for another worker to claim (a shutdown), or
                the tasks have no lease from now on (work that was handed to something outside). One that
                lapsed before keeps the time at which it did.
        """
        ...

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed, the longest lapsed first.

        Args:
            limit: Most tasks to return, at least 1.

        Raises:
            ValueError: `limit` is below 1.
        """
        ...

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; of concurrent callers exactly one gets it.

        The new lease counts one more attempt. The status is `working` or `input_required` as before; the
        revision and `last_updated_at` move as they do in `TaskStore.update_task`, and who waits for a
        change wakes.

        Args:
            task_id: Which task.
            worker: Who takes it over.
            lease_ms: How long the new lease lasts, in milliseconds.

        Returns:
            The stored snapshot, or `None`, and nothing changed, if there is nothing to claim: the task is
            unknown, has ended or expired, has no lease, or one that has not lapsed.
        """
        ...
