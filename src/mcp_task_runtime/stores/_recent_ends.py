"""`RecentEnds`: the ends that a process has heard of, for watches that begin after them."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

__all__ = ["RecentEnds"]

K = TypeVar("K", str, bytes)

_MOST_KEPT: Final = 1_000
"""Ends that are remembered for watches that begin later, and tasks that were made and are not watched yet."""


class RecentEnds(Generic[K]):
    """The ends that were heard of last, and the tasks that were made or claimed: their watches may begin later.

    Attributes:
        is_listening: Whether all ends are heard of.
    """

    def __init__(self) -> None:
        self.is_listening: bool = False
        self._ended: dict[K, int] = {}
        self._made: dict[K, int] = {}
        self._heard = 0

    @property
    def mark(self) -> int:
        """The place of the ends that are heard from now on."""
        return self._heard

    def begin(self) -> None:
        """Note that all ends are heard of from now on."""
        self.stop()
        self.is_listening = True

    def stop(self) -> None:
        """Note that ends are missed from now on."""
        self.is_listening = False
        self._heard += 1  # no task that was made before is known not to have ended
        self._ended.clear()
        self._made.clear()

    def made(self, task: K, mark: int) -> None:
        """Note that a task was made or claimed after a place."""
        _keep(self._made, task, mark)

    def forget(self, task: K) -> None:
        """Note that a task may end without notice: a watch of it must look."""
        self._made.pop(task, None)

    def ended(self, task: K) -> None:
        """Note the end of a task."""
        self._heard += 1
        _keep(self._ended, task, self._heard)

    def find(self, task: K) -> bool | None:
        """Return whether a task has ended whose watch begins; `None` where that is not known."""
        mark = self._made.pop(task, None)
        if mark is None:
            return None
        if self._ended.get(task, 0) > mark:
            return True
        return False if self.is_listening and mark >= self._heard - len(self._ended) else None


def _keep(kept: dict[K, int], key: K, value: int) -> None:
    """Keep a value, behind the others, and drop the oldest where there are too many."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
