"""`Taking`: finds tasks for a worker and claims them, on a single server in one step."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._connections import script_call
from mcp_task_runtime.stores.redis._form import event_text, pack
from mcp_task_runtime.stores.redis._leases import Leases
from mcp_task_runtime.stores.redis._pages import Pages
from mcp_task_runtime.stores.redis._scripts import LIVE
from mcp_task_runtime.stores.redis._work import WaitingWork

__all__ = ["Taking"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

T = TypeVar("T")

_MOST: Final = 1_000
"""Most tasks that a look on a cluster reads to find one that it may take."""


class Taking:
    """Takes tasks for workers. A look that has begun is not cancelled: what it claims must reach the worker."""

    def __init__(self, backend: Backend, pages: Pages, work: WaitingWork, leases: Leases) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._pages = pages
        self._work = work
        self._leases = leases
        self._has_complained = False

    async def work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool
    ) -> tuple[TaskRecord, ...]:
        """Wait for tasks and take them; see `TaskTaking.take_work`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        _check(worker, lease_ms)
        take = self._take_each if self._backend.is_cluster else self._take
        wanted = sorted(set(names))
        look = partial(_to_the_end, partial(take, wanted, worker, lease_ms, limit, with_sealed))
        return await self._work.until_found(look)

    async def task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool
    ) -> TaskRecord | None:
        """Take a task; see `TaskTaking.take_task`."""
        _check(worker, lease_ms)
        tools = b" ".join((b"", *(self._keys.name_tag(name) for name in set(names)), b""))
        claim = partial(self._leases.claim, task_id, worker=worker, lease_ms=lease_ms, waits=(tools, int(with_sealed)))
        return await _to_the_end(claim)

    async def _take(
        self, names: Sequence[str], worker: str, lease_ms: int, limit: int, with_sealed: bool
    ) -> tuple[TaskRecord, ...]:
        if not names:
            return ()
        operation = self._backend.new_operation()
        ends_mark = self._backend.ends_mark
        waiting = [self._keys.waiting(self._keys.name_tag(name)) for name in names]
        take = script_call(
            *("take", (self._keys.leases, self._keys.taken(operation), *waiting)),
            *(self._backend.now(), operation, self._keys.opening, limit, pack(worker), lease_ms, event_text(worker)),
            *(int(with_sealed), LIVE, self._backend.patience_ms),
        )
        ((now, taken, damaged, are_left),) = await self._backend.send(take)
        if int(are_left):
            self._complain()
        found: list[Any] = [(tag, tag, 0, values) for tag, values in taken]
        broken: list[Any] = [(tag, tag, 0, values) for tag, values in damaged]
        await self._pages.entries(int(now), broken, are_marked=False)  # they are reported
        for tag, *_ in found:
            self._backend.note_made(tag, ends_mark)
        entries = await self._pages.entries(int(now), found, are_marked=False)
        return tuple([entry.record for entry in entries if entry.record is not None])

    async def _take_each(
        self, names: Sequence[str], worker: str, lease_ms: int, limit: int, with_sealed: bool
    ) -> tuple[TaskRecord, ...]:
        """Take tasks one by one: on a cluster they are in other slots than what says that they wait."""
        most = limit
        while True:
            found = await self._work.find(names, most)
            wanted = [record for record in found if with_sealed or not is_sealed(record)]
            if len(wanted) < len(found):
                self._complain()
            claim = partial(self._leases.claim, worker=worker, lease_ms=lease_ms)
            claims = [await claim(record.task_id) for record in wanted[:limit]]
            taken = tuple([record for record in claims if record is not None])
            if taken or len(found) < most or most >= _MOST:
                return taken
            most *= 4

    def _complain(self) -> None:
        if not self._has_complained:
            self._has_complained = True
            logger.warning("Waiting tasks are left to others: they are sealed, and this worker has no seal key")


def _check(worker: str, lease_ms: int) -> None:
    _storable.check_text("worker", worker)
    _storable.check_duration("lease_ms", lease_ms)
    if not worker:
        raise ValueError("worker must not be empty")


async def _to_the_end(look: Callable[[], Awaitable[T]]) -> T:
    """Return what a look has found, also when it is cancelled meanwhile."""
    await anyio.lowlevel.checkpoint_if_cancelled()
    found: list[T] = []
    with anyio.CancelScope(shield=True):
        found.append(await look())
    return found[0]
