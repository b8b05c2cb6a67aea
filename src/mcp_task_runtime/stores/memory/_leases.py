"""`LeaseIndex`: the leases of the in-memory store by the time at which they lapse, and what waits for a worker."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime

from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["LeaseIndex"]


class LeaseIndex:
    """Identifiers of tasks with a lease: those that a worker holds, and by tool those that no process holds.

    A change is O(log n). A look is linear in the tools and in its limit.
    """

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = DeadlineHeap()
        self._waiting: dict[str, DeadlineHeap] = {}

    def __len__(self) -> int:
        return len(self._held) + sum(len(waiting) for waiting in self._waiting.values())

    def set(self, record: TaskRecord) -> None:
        """Note the lease that a task has now, or that it has none."""
        lease, name = record.lease, record.request.name
        self._held.set(record.task_id, lease.expires_at if lease is not None and lease.worker else None)
        if lease is not None and not lease.worker:
            waiting = self._waiting.get(name)
            if waiting is None:
                waiting = self._waiting[name] = DeadlineHeap()
            waiting.set(record.task_id, lease.expires_at)
        else:
            self._leave(record)

    def discard(self, record: TaskRecord) -> None:
        """Forget a task."""
        self._held.discard(record.task_id)
        self._leave(record)

    def lapsed(self, now: datetime, limit: int) -> list[str]:
        """Return the tasks whose lease has lapsed, the longest lapsed first."""
        return _first([self._held, *self._waiting.values()], now, limit)

    def lost(self, names: Collection[str], now: datetime, limit: int) -> list[str]:
        """Return those of them that a worker holds, then those of these tools that no process holds."""
        return (_first([self._held], now, limit) + self.waiting(names, now, limit))[:limit]

    def waiting(self, names: Collection[str], now: datetime, limit: int) -> list[str]:
        """Return those of them that no process holds, of these tools."""
        return _first(self._of(names), now, limit)

    def _of(self, names: Collection[str]) -> list[DeadlineHeap]:
        return [heap for name in sorted(set(names)) if (heap := self._waiting.get(name)) is not None]

    def _leave(self, record: TaskRecord) -> None:
        waiting = self._waiting.get(record.request.name)
        if waiting is not None:
            waiting.discard(record.task_id)
            if not waiting:
                del self._waiting[record.request.name]


def _first(heaps: Iterable[DeadlineHeap], now: datetime, limit: int) -> list[str]:
    found = [each for heap in heaps for each in _due(heap, now, limit)]
    found.sort()
    return [task_id for _, task_id in found[:limit]]


def _due(heap: DeadlineHeap, now: datetime, limit: int) -> list[tuple[datetime, str]]:
    found: list[tuple[datetime, str]] = []
    while len(found) < limit and (due := heap.next_due()) is not None and (name := heap.pop_due(now)) is not None:
        found.append((due, name))
    for due, name in found:
        heap.set(name, due)
    return found
