"""`LeaseKeeper`: renews the leases of the work that runs here, and takes care of work that was lost elsewhere.

The runtime has one when its store implements `TaskLeases` (law L12).

After a failed call, a gap between two turns or its start, a keeper claims nothing until the store has worked for a full
lease: a process whose leases lapsed only because the store was unavailable has renewed them by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import anyio

from mcp_task_runtime.core.clock import Clock, sleep_by
from mcp_task_runtime.core.doubtful_claims import DoubtfulClaims
from mcp_task_runtime.core.resumption import Resumption
from mcp_task_runtime.core.store_calls import log_store_error
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.core.workers import Workers
from mcp_task_runtime.errors import StoreClosedError, StoreUnavailableError

__all__ = ["LeaseKeeper"]

logger: logging.Logger = logging.getLogger(__name__)

_RENEWALS = 3
_RETRIES = 30
"""How often a failed turn is repeated in the time of a lease."""
_BATCH = 500
_FEWEST_LAPSED = 100
_MOST_LAPSED = 10_000
_MOST_MOVED = 1_000
"""Tasks that a turn moves out of its way: the next turn, and other processes, go on."""


class LeaseKeeper:
    """Heartbeat and reaper of one process."""

    def __init__(
        self, leases: WorkerLeases, workers: Workers, resumption: Resumption, doubtful: DoubtfulClaims, clock: Clock
    ) -> None:
        """Make the keeper of a process.

        Args:
            leases: The leases of this process.
            workers: The work that they are for.
            resumption: Runs lost work again.
            doubtful: Claims without an answer.
            clock: The store's clock.
        """
        self._leases = leases
        self._workers = workers
        self._resumption = resumption
        self._doubtful = doubtful
        self._clock = clock
        self._lease = timedelta(milliseconds=leases.lease_ms)
        self._healthy_since: datetime | None = None
        self._last_turn: datetime | None = None
        self._is_failing = False

    @property
    def may_claim(self) -> bool:
        """Whether the store has worked for a full lease, so that lapsed leases are lost ones."""
        return self._healthy_since is not None and self._clock.now() - self._healthy_since >= self._lease

    async def run(self) -> None:
        """Renew and reap until cancelled, or until the store is closed. A failed turn is repeated at once."""
        self._healthy_since = self._last_turn = None
        self._is_failing = False
        while True:
            try:
                await self._turn()
                pause = self._lease / _RENEWALS
            except StoreClosedError:
                return
            except Exception as error:
                self._healthy_since = None
                pause = self._lease / _RETRIES
                if not self._is_failing:
                    self._is_failing = True
                    log_store_error(logger, "Leases could not be renewed; trying again", error)
            await sleep_by(self._clock, pause)

    async def claim_if_lost(self, record: TaskRecord) -> bool:
        """Claim a task whose worker was lost, and resume its work; return whether it was claimed.

        Cancelled, it happened in full or not at all: what is claimed runs. It takes a third of a lease at most.
        """
        lease = record.lease
        if lease is None or (lease.worker and (lease.expires_at > self._clock.now() or not self.may_claim)):
            return False  # one that no process holds was put back by its worker, and can be claimed at any time
        elsewhere = self._resumption.runs_elsewhere(record)
        if lease.expires_at > self._clock.now() if elsewhere else not self._resumption.can_resume(record):
            return False
        is_claimed = False
        with anyio.CancelScope(shield=True):
            is_claimed = await self._claim_lost(record, elsewhere=elsewhere)
        return is_claimed

    async def _claim_lost(self, record: TaskRecord, *, elsewhere: bool) -> bool:
        attempt = 0 if record.lease is None else record.lease.attempt
        with self._in_time():
            if elsewhere:
                return await self._resumption.put_back(record)
            claimed = await self._leases.claim(record.task_id, attempt=attempt)
        if claimed is None:
            return False
        await self._resumption.start(claimed)
        return True

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Bound claims: one that outwaits an outage in the store would be made before the worker renews its lease."""
        with self._clock.move_on_at(self._clock.now() + self._lease / _RENEWALS) as limit:
            yield
        if limit.cancelled_caught:
            self._healthy_since = None
            raise StoreUnavailableError("Lost tasks could not be claimed in time")

    async def _turn(self) -> None:
        began = self._clock.now()
        await self._renew()
        await self._doubtful.settle()
        lapsed = await self._list_lost(_FEWEST_LAPSED)  # also without a claim: it shows that the store works
        before, self._last_turn = self._last_turn or began, self._clock.now()
        # Counted to the end of the turn: a store may wait out its own outage in a call that then succeeds.
        if not timedelta(0) <= self._last_turn - before <= 2 * self._lease / _RENEWALS:
            self._healthy_since = None  # this process, its clock or its store stood still or jumped
        if self._healthy_since is None:
            self._healthy_since = self._last_turn
        if self._is_failing:
            self._is_failing = False
            logger.debug("Leases are renewed again")
        await self._reap(lapsed)

    async def _renew(self) -> None:
        runs = self._workers.leased()
        task_ids = list(runs)
        for start in range(0, len(task_ids), _BATCH):
            batch = task_ids[start : start + _BATCH]
            held = await self._leases.renew(batch)
            for task_id in batch:
                if task_id not in held:
                    runs[task_id].lose()  # this run of the task: another one may have begun meanwhile

    async def _list_lost(self, limit: int) -> tuple[TaskRecord, ...]:
        return await self._leases.list_lost(self._resumption.wanted(), limit)

    async def _reap(self, lapsed: tuple[TaskRecord, ...]) -> None:
        limit = _FEWEST_LAPSED
        while True:
            claimed = [await self._claim(record) for record in lapsed]
            if len(lapsed) < limit or any(claimed) or not self.may_claim:
                return
            if limit >= _MOST_LAPSED:
                break
            limit *= 10  # those at the head are for processes that have their tools: look behind them
            lapsed = await self._list_lost(limit)
        await self._move(lapsed)

    async def _move(self, lapsed: tuple[TaskRecord, ...]) -> None:
        """Have lost tasks of others wait for a worker, where they hide no task: a store lists waiting tasks by tool."""
        lost = [each for each in lapsed if each.lease is not None and each.lease.worker]
        until = self._clock.now() + self._lease / _RENEWALS / 2  # leases are to be renewed
        for record in [each for each in lost if self._resumption.is_for_others(each)][:_MOST_MOVED]:
            if self._clock.now() > until:
                return
            with self._in_time():
                await self._leases.put_back(record.task_id, 0)

    async def _claim(self, record: TaskRecord) -> bool:
        try:
            return await self.claim_if_lost(record)
        except StoreUnavailableError:
            raise
        except Exception:  # one task's values must not keep others from being claimed (law L13)
            logger.exception("A lost task could not be claimed")
            return False
