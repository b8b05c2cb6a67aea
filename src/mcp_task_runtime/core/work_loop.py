"""`WorkLoop`: takes tasks that wait for a worker, as many at once as there is room for."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, Final, cast

import anyio

from mcp_task_runtime.core.abilities import implements
from mcp_task_runtime.core.claims import TaskClaims
from mcp_task_runtime.core.clock import Clock, sleep_by
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.store import TaskLeases, TaskWork
from mcp_task_runtime.core.store_calls import log_store_error
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreClosedError, StoreError

__all__ = ["WorkLoop"]

logger: logging.Logger = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 0.5
_LOST_RACE_SECONDS: Final = 0.02
"""How long a worker waits that found tasks, and was too late for all of them."""
_FIRST_IDLE: Final = timedelta(seconds=0.5)
"""How long a worker waits first that found no task but sealed ones, which it cannot open."""
_SPARE: Final = 16
"""How many tasks a worker looks at beyond its room, for those that other workers are faster to claim."""
_MOST_SEALED: Final = 1_000
"""Most tasks at the head that a worker looks behind because it cannot open them."""
_LOOKS_A_LEASE: Final = 3
_FEWEST_LAPSED: Final = 1_000


class WorkLoop:
    """Takes waiting tasks in their order, and looks for more when the store says that there are."""

    def __init__(
        self,
        store: TaskLeases,
        claims: TaskClaims,
        clock: Clock,
        *,
        names: Collection[str] | None,
        concurrency: int,
        lease_ms: int,
    ) -> None:
        """Make a loop that has not begun.

        Args:
            store: Where the tasks wait. One with `TaskWork` wakes the loop; in another it looks three times a lease.
            claims: Claims and runs them.
            clock: The store's clock.
            names: Only tasks of these tools; `None` for all whose work is registered at the time.
            concurrency: Most tasks that run at once.
            lease_ms: How long a lease lasts, in milliseconds.
        """
        self._store = store
        self._claims = claims
        self._clock = clock
        self._names = None if names is None else frozenset(names)
        self._concurrency = concurrency
        self._pause = timedelta(milliseconds=lease_ms) / _LOOKS_A_LEASE
        self._running: set[Execution[Any]] = set()
        self._left = anyio.Event()
        self._is_failing = False
        self._sealed = 0
        self._idle = _FIRST_IDLE
        self._has_warned = False

    async def run(self) -> None:
        """Take tasks until no more work is taken, or the store is closed, or this is cancelled: what runs goes on."""
        async with anyio.create_task_group() as group:
            while self._claims.is_accepting:
                try:
                    for execution in await self._take():
                        self._running.add(execution)
                        group.start_soon(self._follow, execution)
                except StoreClosedError:
                    break
                except StoreError as error:
                    if not self._is_failing:
                        self._is_failing = True
                        log_store_error(logger, "Waiting tasks could not be taken; trying again", error)
                    await anyio.sleep(_RETRY_SECONDS)
            group.cancel_scope.cancel()

    async def _take(self) -> list[Execution[Any]]:
        """Wait for room and for tasks; return the runs of those that were taken."""
        while len(self._running) >= self._concurrency:
            self._left = anyio.Event()
            await self._left.wait()
        room = self._concurrency - len(self._running)
        names = frozenset(self._claims.names) if self._names is None else self._names
        if self._claims.takes:
            return await self._take_at_once(names, room)
        most = room + _SPARE + 2 * self._sealed
        waiting = await self._wait(names, most)
        self._is_failing = False
        openable = [record for record in waiting if not is_sealed(record)]
        taken = await self._begin(openable, room)
        if openable and not taken:
            await anyio.sleep(_LOST_RACE_SECONDS)
        elif waiting and not openable:
            await self._leave_sealed(len(waiting), are_all=len(waiting) < most)
        elif waiting:
            self._idle = _FIRST_IDLE
        return taken

    async def _take_at_once(self, names: Collection[str], room: int) -> list[Execution[Any]]:
        """Have the store find and claim tasks in one step: workers that look at once do not want the same ones."""
        taken: list[Execution[Any]] = []
        with self._clock.move_on_at(self._clock.now() + self._pause):
            taken = await self._claims.take(names, room)
        self._is_failing = False
        return taken

    async def _begin(self, records: Sequence[TaskRecord], room: int) -> list[Execution[Any]]:
        """Start the work of as many tasks as there is room for."""
        taken: list[Execution[Any]] = []
        for record in records:
            if len(taken) == room:
                break
            try:
                execution = await self._claims.begin(record)
            except StoreClosedError:
                raise
            except StoreError as error:  # the runs that were taken must be followed; the next look tells more
                log_store_error(logger, "A waiting task could not be taken", error)
                break
            if execution is not None:
                taken.append(execution)
        return taken

    async def _leave_sealed(self, number: int, *, are_all: bool) -> None:
        """Leave tasks that are sealed to workers with their key: look behind them, or wait, each time longer.

        A wait in the store would return them at once.
        """
        if not self._has_warned:
            self._has_warned = True
            logger.warning("Waiting tasks are left to others: they are sealed, and this worker has no seal key")
        if not are_all and self._sealed < _MOST_SEALED:
            self._sealed = min(number, _MOST_SEALED)
            return
        await sleep_by(self._clock, self._idle)
        self._idle = min(2 * self._idle, max(self._pause, _FIRST_IDLE))

    async def _wait(self, names: Collection[str], most: int) -> tuple[TaskRecord, ...]:
        with self._clock.move_on_at(self._clock.now() + self._pause):
            if implements(self._store, TaskWork):
                return await cast(TaskWork, self._store).wait_for_work(names, limit=most)
            if found := await self._look_through(names):
                return found[:most]
            await anyio.sleep_forever()
        return ()

    async def _look_through(self, names: Collection[str]) -> tuple[TaskRecord, ...]:
        """Return tasks that wait, from a store without `TaskWork`: as far behind those of other tools as it takes."""
        limit = _FEWEST_LAPSED
        while True:
            found = await self._store.list_lapsed(limit=limit)
            waiting = tuple([each for each in found if _waits(each) and each.request.name in names])
            if waiting or len(found) < limit:
                return waiting
            limit *= 10

    async def _follow(self, execution: Execution[Any]) -> None:
        try:
            await self._claims.join(execution)
        finally:
            self._running.discard(execution)
            self._left.set()


def _waits(record: TaskRecord) -> bool:
    return record.lease is not None and not record.lease.worker
