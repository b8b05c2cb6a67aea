"""`StoredTasks`: what an owner's tasks take in the store, ended ones included until they expire (law L16)."""

from __future__ import annotations

from datetime import datetime

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.text import text_bytes
from mcp_task_runtime.core.types import TaskRecord, TaskSpec
from mcp_task_runtime.errors import LimitExceededError

__all__ = ["StoredTasks"]


class StoredTasks:
    """Number and size of the tasks that this process made, by owner. A task counts until its TTL has passed."""

    def __init__(self, clock: Clock, *, max_tasks: int | None, max_bytes: int | None) -> None:
        """Make an empty count.

        Args:
            clock: The store's clock.
            max_tasks: Stored tasks that one owner may have; `None` for no limit.
            max_bytes: Bytes of arguments and results that one owner's stored tasks may take; `None` for no limit.
        """
        self._clock = clock
        self._max_tasks = max_tasks
        self._max_bytes = max_bytes
        self._tasks: dict[str, tuple[str | None, int, int]] = {}
        """Owner, size without the outcome, and size."""
        self._totals: dict[str | None, tuple[int, int]] = {}
        self._expiry = DeadlineHeap()

    def __len__(self) -> int:
        self._purge(self._clock.now())
        return len(self._tasks)

    @property
    def bytes(self) -> int:
        """Bytes of all owners' tasks."""
        self._purge(self._clock.now())
        return sum(size for _, size in self._totals.values())

    def check(self, spec: TaskSpec) -> int:
        """Check that an owner may store one more task; return its size in bytes.

        Raises:
            LimitExceededError: It would have too many, or they would be too large.
        """
        size = _size(spec)
        if self._excess(spec.owner, size) is not None:
            self._purge(self._clock.now())
            excess = self._excess(spec.owner, size)
            if excess is not None:
                raise excess
        return size

    def _excess(self, owner: str | None, size: int) -> LimitExceededError | None:
        """Return the bound that one more task of this size would exceed, as far as is known without a look at time."""
        count, total = self._totals.get(owner, (0, 0))
        if self._max_tasks is not None and count >= self._max_tasks:
            return LimitExceededError("stored tasks", self._max_tasks)
        if self._max_bytes is not None and total + size > self._max_bytes:
            return LimitExceededError("bytes of stored tasks", self._max_bytes)
        return None

    def add(self, record: TaskRecord, size: int) -> None:
        """Count a new task of this size."""
        task_id, owner = record.task.task_id, record.owner
        self._purge(record.task.created_at)  # each task makes room for itself: what is gone is kept by none
        if task_id in self._tasks:  # one that is gone had the identifier
            self.discard(task_id)
        self._tasks[task_id] = (owner, size, size)
        self._change(owner, 1, size)
        self._expiry.set(task_id, record.task.expires_at)

    def set(self, record: TaskRecord) -> None:
        """Count a task after its end."""
        task_id, owner = record.task.task_id, record.owner
        known = self._tasks.get(task_id)
        if known is None:  # another process made it
            self.add(record, _size(record))
            known = self._tasks[task_id]
        outcome = record.outcome
        size = known[1]
        if outcome is not None and outcome.payload_json is not None:
            size += text_bytes(outcome.payload_json)
        self._change(owner, 0, size - known[2])
        self._tasks[task_id] = (owner, known[1], size)
        self._expiry.set(task_id, record.task.expires_at)

    def discard(self, task_id: str) -> None:
        """Stop counting a task: it was deleted."""
        entry = self._tasks.pop(task_id, None)
        if entry is not None:
            self._expiry.discard(task_id)
            self._change(entry[0], -1, -entry[2])

    def _change(self, owner: str | None, tasks: int, size: int) -> None:
        count, total = self._totals.get(owner, (0, 0))
        if count + tasks:
            self._totals[owner] = (count + tasks, total + size)
        else:
            del self._totals[owner]

    def _purge(self, now: datetime) -> None:
        if self._expiry.is_due(now):
            while (task_id := self._expiry.pop_due(now)) is not None:
                self.discard(task_id)


def _size(task: TaskSpec | TaskRecord) -> int:
    return text_bytes(task.request.arguments_json) + text_bytes(task.client_capabilities_json)
