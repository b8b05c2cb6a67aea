"""`LeaseKeeper`: renews the leases of the work that runs here, and takes care of work that was lost elsewhere.

The runtime has one when its store implements `TaskLeases` (law L12).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.ids import new_worker_name
from mcp_task_runtime.core.store import TaskLeases
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreClosedError, StoreError

__all__ = ["LeaseKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

_RENEWALS = 3
_BATCH = 500
_FEWEST_LAPSED = 100
_MOST_LAPSED = 10_000


class LeaseKeeper:
    """Heartbeat and reaper of one process."""

    def __init__(
        self,
        leases: TaskLeases,
        clock: Clock,
        *,
        lease_ms: int,
        running: Callable[[], Collection[str]],
        stop: Callable[[str], None],
        adopt: Callable[[TaskRecord], Awaitable[None]],
        adopts: Callable[[TaskRecord], bool],
    ) -> None:
        """Make the keeper of a process.

        Args:
            leases: The store.
            clock: The store's clock.
            lease_ms: How long a lease lasts, in milliseconds.
            running: Returns the ids of the tasks whose work runs here under a lease.
            stop: Stops the work of a task that this process no longer holds.
            adopt: Takes over a lost task that was claimed for this process.
            adopts: Whether this process would take over a lost task.
        """
        self._name = new_worker_name()
        self.lease_ms = lease_ms
        self._leases = leases
        self._clock = clock
        self._running = running
        self._stop = stop
        self._adopt = adopt
        self._adopts = adopts

    @property
    def worker(self) -> str:
        """The name of this process; another one after a fork."""
        return f"{self._name}.{os.getpid():x}"

    async def run(self) -> None:
        """Renew and reap until cancelled. A store that is away is tried again at the next turn."""
        while True:
            try:
                await self._renew()
                await self._reap()
            except StoreClosedError:
                return
            except StoreError:
                logger.warning("Leases could not be renewed; trying again", exc_info=True)
            with self._clock.move_on_at(self._clock.now() + timedelta(milliseconds=self.lease_ms / _RENEWALS)):
                await anyio.sleep_forever()

    async def _renew(self) -> None:
        task_ids = list(self._running())
        for start in range(0, len(task_ids), _BATCH):
            batch = task_ids[start : start + _BATCH]
            held = await self._leases.renew_leases(self.worker, batch, lease_ms=self.lease_ms)
            for task_id in batch:
                if task_id not in held:
                    self._stop(task_id)

    async def _reap(self) -> None:
        limit = _FEWEST_LAPSED
        while True:
            lapsed = await self._leases.list_lapsed(limit=limit)
            claimed = [await self.take_over(record) for record in lapsed]
            if len(lapsed) < limit or any(claimed) or limit >= _MOST_LAPSED:
                return
            limit *= 10  # those at the head are for processes that have their tools: look behind them

    async def take_over(self, record: TaskRecord) -> bool:
        """Claim a task if it is lost and this process would take it over; return whether it was claimed."""
        lease = record.lease
        if lease is None or lease.expires_at > self._clock.now() or not self._adopts(record):
            return False
        claimed = await self._leases.claim_task(record.task_id, worker=self.worker, lease_ms=self.lease_ms)
        if claimed is None:
            return False
        await self._adopt(claimed)
        return True

    async def release(self, task_id: str) -> None:
        """Give a task up for another process to claim at once."""
        await self._leases.drop_leases(self.worker, [task_id], lapse=True)

    async def forget(self, task_id: str) -> None:
        """Give up the lease of a task whose work was handed to something outside."""
        await self._leases.drop_leases(self.worker, [task_id], lapse=False)
