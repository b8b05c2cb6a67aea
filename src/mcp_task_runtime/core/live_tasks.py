"""`LiveTasks`: the live tasks of this process, counted by owner, and when each must end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.transitions import check_room
from mcp_task_runtime.core.types import Task, TaskRecord

__all__ = ["LiveTasks"]

_LATEST_MARGIN_MS = 1_000
_MILLISECOND = timedelta(milliseconds=1)


class LiveTasks:
    """Live tasks with their owners and deadlines. It ends no task: it says which one is due."""

    def __init__(self, clock: Clock, max_per_owner: int | None) -> None:
        """Make an empty set.

        Args:
            clock: The store's clock.
            max_per_owner: Live tasks that one owner may have; `None` for no limit.
        """
        self._clock = clock
        self._max_per_owner = max_per_owner
        self._owners: dict[str, str | None] = {}
        self._counts: dict[str | None, int] = {}
        self._deadlines = DeadlineHeap()
        self._changed = anyio.Event()
        self._watched_until: datetime | None = None

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._owners

    @property
    def owners(self) -> int:
        """Number of owners that have live tasks or create one."""
        return len(self._counts)

    @property
    def deadlines(self) -> int:
        """Number of deadlines that are watched."""
        return len(self._deadlines)

    @property
    def next_deadline(self) -> datetime | None:
        """When the watch of deadlines wakes next, perhaps for a task that has ended since."""
        return self._watched_until

    def reserve(self, owner: str | None) -> None:
        """Count a task that is about to be created; call `add_reserved` when it was, or else `unreserve`.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
        """
        live = self._counts.get(owner, 0)
        check_room(live, self._max_per_owner)
        self._counts[owner] = live + 1

    def unreserve(self, owner: str | None) -> None:
        """Drop the count of `reserve`."""
        left = self._counts[owner] - 1
        if left:
            self._counts[owner] = left
        else:
            del self._counts[owner]

    def add_reserved(self, record: TaskRecord) -> None:
        """Add the live task of a `reserve`."""
        if record.task.task_id in self._owners:
            self.unreserve(record.owner)
        self._owners[record.task.task_id] = record.owner
        self._watch(record)

    def add(self, record: TaskRecord) -> None:
        """Add a live task, or note its new TTL."""
        task_id = record.task.task_id
        if task_id not in self._owners:
            self._owners[task_id] = record.owner
            self._counts[record.owner] = self._counts.get(record.owner, 0) + 1
        self._watch(record)

    def _watch(self, record: TaskRecord) -> None:
        task_id = record.task.task_id
        deadline = _deadline(record.task)
        self._deadlines.set(task_id, deadline)
        if deadline is not None and (self._watched_until is None or deadline < self._watched_until):
            self._changed.set()

    def extend(self, record: TaskRecord) -> bool:
        """Note the deadline of a live task again; return whether it is still to come."""
        deadline = _deadline(record.task)
        if record.task_id not in self._owners or (deadline is not None and deadline <= self._clock.now()):
            return False
        self.add(record)
        return True

    def has_time(self, task_id: str, delay: timedelta) -> bool:
        """Return whether the deadline of a live task is not before the end of a delay from now."""
        if task_id not in self._owners:
            return False
        deadline = self._deadlines.due_of(task_id)
        return deadline is None or self._clock.now() + delay < deadline

    def discard(self, task_id: str) -> None:
        """Remove a task as soon as clients may see its end, though its work may still clean up."""
        if task_id in self._owners:
            self.unreserve(self._owners.pop(task_id))
            self._deadlines.discard(task_id)

    async def run(self, on_due: Callable[[str], None]) -> None:
        """Call a function with each task whose deadline has come, until cancelled.

        A deadline is shortly before the task expires, so that its end can be stored (law L7).
        """
        while True:
            while (task_id := self._deadlines.pop_due(self._clock.now())) is not None:
                on_due(task_id)
            self._changed = anyio.Event()
            self._watched_until = self._deadlines.next_due()
            with self._clock.move_on_at(self._watched_until):
                await self._changed.wait()


def _deadline(task: Task) -> datetime | None:
    if task.ttl_ms is None:
        return None
    return task.created_at + (task.ttl_ms - min(_LATEST_MARGIN_MS, task.ttl_ms / 3)) * _MILLISECOND
