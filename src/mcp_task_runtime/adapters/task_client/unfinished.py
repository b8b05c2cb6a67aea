"""`UnfinishedTasks`: ids of tasks that were given up and could not be cancelled."""

from __future__ import annotations

from typing import Final

__all__ = ["UnfinishedTasks"]

_MAX_KEPT: Final = 1_000


class UnfinishedTasks:
    """The newest ids of tasks that may live on at their servers although no caller follows them."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, oldest first."""
        return tuple(self._ids)

    def add(self, task_id: str) -> None:
        """Keep an id, and drop the oldest if there are too many."""
        self._ids.pop(task_id, None)
        self._ids[task_id] = None
        if len(self._ids) > _MAX_KEPT:
            del self._ids[next(iter(self._ids))]

    def discard(self, task_id: str) -> None:
        """Drop an id, because its task is taken up again."""
        self._ids.pop(task_id, None)
