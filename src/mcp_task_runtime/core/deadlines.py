"""`DeadlineHeap`: which of many things is due next, in O(log n) and without leftovers (law L8)."""

from __future__ import annotations

import heapq
from datetime import datetime

__all__ = ["DeadlineHeap"]

_SMALL = 64
"""Leftovers that are not worth clearing."""


class DeadlineHeap:
    """Names with a time each, by time.

    A name has an entry in the heap at its time or earlier. What a later time or `discard` leaves there is dropped when
    it comes up, or with the rest when leftovers outnumber names, so each call costs O(log n) amortised and memory
    stays proportional to the names.
    """

    __slots__ = ("_due", "_heap")

    def __init__(self) -> None:
        self._due: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def set(self, name: str, due: datetime | None) -> None:
        """Set when a name is due; `None` removes it."""
        if due is None:
            self.discard(name)
            return
        known = self._due.get(name)
        self._due[name] = due
        if known is None or due < known:  # a later time gets its entry when the earlier one comes up
            heapq.heappush(self._heap, (due, name))
            if len(self._heap) > 2 * len(self._due) + _SMALL:
                self._compact()

    def discard(self, name: str) -> None:
        """Remove a name, if it is known."""
        if self._due.pop(name, None) is not None and len(self._heap) > 2 * len(self._due) + _SMALL:
            self._compact()

    def due_of(self, name: str) -> datetime | None:
        """Return when a name is due; `None` for never."""
        return self._due.get(name)

    def next_due(self) -> datetime | None:
        """Return the earliest time, or `None` when there is none."""
        heap = self._heap
        while heap:
            entry, name = heap[0]
            due = self._due.get(name)
            if due == entry:
                return due
            if due is None or due < entry:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (due, name))
        return None

    def is_due(self, now: datetime) -> bool:
        """Return whether `pop_due` may have something to return: a quick look, which a leftover can fool."""
        return bool(self._heap) and self._heap[0][0] <= now

    def pop_due(self, now: datetime) -> str | None:
        """Remove and return the next name that is due at `now`, or return `None`."""
        due = self.next_due()
        if due is None or due > now:
            return None
        _, name = heapq.heappop(self._heap)
        del self._due[name]
        return name

    def _compact(self) -> None:
        self._heap = [(due, name) for name, due in self._due.items()]
        heapq.heapify(self._heap)
