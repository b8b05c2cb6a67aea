"""`DoubtfulClaims`: claims of this process that the store has not answered, and what became of them.

The store may have carried out such a claim: then the task is this process's, and nothing runs its work. The lease
would lapse, and work that may not run again would fail although it has not begun.
"""

from __future__ import annotations

from datetime import timedelta

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.resumption import Resumption
from mcp_task_runtime.core.worker_leases import DoubtfulClaim, WorkerLeases
from mcp_task_runtime.core.workers import Workers
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError

__all__ = ["DoubtfulClaims"]


class DoubtfulClaims:
    """Looks for what claims without an answer have claimed, and runs its work."""

    def __init__(
        self, reader: TaskReader, leases: WorkerLeases, workers: Workers, resumption: Resumption, clock: Clock
    ) -> None:
        """Make the doubtful claims of a process.

        Args:
            reader: Reads tasks.
            leases: The leases of this process; notes the claims.
            workers: Where the work runs.
            resumption: Runs it.
            clock: The store's clock.
        """
        self._reader = reader
        self._leases = leases
        self._workers = workers
        self._resumption = resumption
        self._clock = clock
        self._lease = timedelta(milliseconds=leases.lease_ms)

    async def settle(self) -> None:
        """Look once, for a sixth of a lease at most: new claims first.

        Each one is looked for until a lease has passed since the store was seen to answer.

        Raises:
            StoreUnavailableError: The store failed; what is left is looked for the next time.
        """
        until = self._clock.now() + self._lease / 6  # the leases of what runs here are to be renewed meanwhile
        for task_id, claim in sorted(self._leases.doubtful.items(), key=lambda item: item[1].until is not None):
            if self._clock.now() > until:
                return
            try:
                is_settled = await self._settle(task_id, claim)
            except (StoreUnavailableError, StoreClosedError):
                raise
            except StoreError:  # this one's values cannot be read
                is_settled = True
            if is_settled:
                self._leases.settle(task_id, claim)

    async def _settle(self, task_id: str, claim: DoubtfulClaim) -> bool:
        """Run the work of a task, if it was claimed; return whether nothing more can come of the claim."""
        record = await self._reader.get(task_id)
        if record is None or record.lease is None or self._workers.has(task_id) or self._workers.runs_later(task_id):
            return True
        lease = record.lease
        if lease.worker != self._leases.worker or claim.attempt not in (None, lease.attempt - 1):
            now = self._clock.now()
            claim.until = claim.until or now + self._lease
            return now >= claim.until  # it may be carried out yet
        is_held = task_id in await self._leases.renew([task_id])
        if not self._leases.may_settle(task_id, claim):
            return False  # another call may bring it: its work would run twice
        if is_held and not self._workers.has(task_id):
            await self._resumption.start(record)
        return True
