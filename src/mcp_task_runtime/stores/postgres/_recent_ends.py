"""`RecentEnds`: the ends that a process has heard of, for watches that begin after them."""

from __future__ import annotations

from typing import Final

__all__ = ["RecentEnds"]

_MOST_KEPT: Final = 1_000
"""Ends that are remembered for watches that begin later, and tasks that were made and are not watched yet."""


class RecentEnds:
    """The ends that were heard of last, and the tasks that were made or claimed: their watches may begin later."""

    def __init__(self) -> None:
        self._ended: dict[str, int] = {}
        self._made: dict[str, int] = {}
        self._heard = 0
        self._is_listening = False

    @property
    def mark(self) -> int:
        """The place of the ends that are heard from now on."""
        return self._heard

    def begin(self) -> None:
        """Note that all ends are heard of from now on."""
        self.stop()
        self._is_listening = True

    def stop(self) -> None:
        """Note that ends are missed from now on."""
        self._is_listening = False
        self._heard += 1  # no task that was made before is known not to have ended
        self._ended.clear()
        self._made.clear()

    def made(self, task_id: str, mark: int) -> None:
        """Note that a task was made or claimed after a place."""
        _keep(self._made, task_id, mark)

    def forget(self, task_id: str) -> None:
        """Note that a task may end without notice: a watch of it must look."""
        self._made.pop(task_id, None)

    def ended(self, task_id: str) -> None:
        """Note the end of a task."""
        self._heard += 1
        _keep(self._ended, task_id, self._heard)

    def find(self, task_id: str) -> bool | None:
        """Return whether a task has ended whose watch begins; `None` where that is not known."""
        mark = self._made.pop(task_id, None)
        if mark is None:
            return None
        if self._ended.get(task_id, 0) > mark:
            return True
        return False if self._is_listening and mark >= self._heard - len(self._ended) else None


def _keep(kept: dict[str, int], key: str, value: int) -> None:
    """Keep a value, behind the others, and drop the oldest where there are too many."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
