"""Indexes of the in-memory store: entries in the order of creation, and identifiers in their own order.

A change only appends; the order is restored when something looks, for each change once. So a change costs O(1)
amortised, and a page O(page) and a share of the changes since the last one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from datetime import datetime

from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord, TaskStatus

__all__ = ["Group", "IdIndex", "Index", "Indexed", "Owned"]

_END = 2**63
_FEW = 16
_CHUNK = 64


class Indexed:
    """What the indexes know of a task.

    Attributes:
        record: The task as it is now.
        sequence: Its place in the order of creation.
        owned: The tasks of its owner; `None` once the task is gone.
        group: The index of the tasks with its status and tool; `None` once the task is gone.
        failing: The index of the tasks with its tool that completed with an error, where it did.
    """

    __slots__ = ("failing", "group", "owned", "record", "sequence")

    def __init__(self, record: TaskRecord, sequence: int) -> None:
        self.record = record
        self.sequence = sequence
        self.owned: Owned | None = None
        self.group: Group | None = None
        self.failing: Group | None = None


def _created_at(entry: Indexed) -> datetime:
    return entry.record.task.created_at


def _sequence_of(entry: Indexed) -> int:
    return entry.sequence


class Index:
    """Entries that belong together, in the order of creation.

    Which entries belong is said by `Indexed.owned`, `group` or `failing`: an entry that points elsewhere is
    stale, and dropped when it is passed, or with all others when they are too many.
    """

    __slots__ = ("_entries", "_fresh", "live")

    def __init__(self) -> None:
        self._entries: list[Indexed] = []
        self._fresh: list[Indexed] = []
        self.live = 0

    def add(self, entry: Indexed) -> None:
        """Add an entry that belongs here from now on."""
        self.live += 1
        if not self._entries or self._entries[-1].sequence < entry.sequence:
            self._entries.append(entry)
        elif self._entries[-1] is not entry:
            self._fresh.append(entry)
            if len(self._entries) + len(self._fresh) > 2 * self.live + _FEW:
                self._rebuild()

    def discard(self) -> None:
        """Count one entry less: it points elsewhere by now."""
        self.live -= 1
        if len(self._entries) + len(self._fresh) > 2 * self.live + _FEW:
            self._rebuild()

    def first(self) -> Indexed | None:
        """Return the oldest entry."""
        self._order()
        return next(iter(self._chunk(0, False, 1)), None)

    def position_at(self, time: datetime) -> int:
        """Return a position behind which all entries were created at a time or later, if they were in order."""
        self._order()
        at = bisect_left(self._entries, time, key=_created_at)
        return self._entries[at].sequence - 1 if at < len(self._entries) else _END

    def walk(self, position: int, *, newest_first: bool) -> Iterator[Indexed]:
        """Yield the entries after a position, or before it, in order; not to be used across changes."""
        self._order()
        size = _FEW
        while chunk := self._chunk(position, newest_first, size):
            yield from chunk
            position = chunk[-1].sequence
            size = _CHUNK

    def _chunk(self, position: int, newest_first: bool, size: int) -> list[Indexed]:
        """Return some entries behind a position, and drop stale ones on the way."""
        entries = self._entries
        found: list[Indexed] = []
        if newest_first:
            start = stop = bisect_left(entries, position, key=_sequence_of)
            while start > 0 and len(found) < size:
                start -= 1
                if self._has(entries[start]):
                    found.append(entries[start])
            if len(found) < stop - start:
                entries[start:stop] = found[::-1]
            return found
        start = stop = bisect_right(entries, position, key=_sequence_of)
        while stop < len(entries) and len(found) < size:
            if self._has(entries[stop]):
                found.append(entries[stop])
            stop += 1
        if len(found) < stop - start:
            entries[start:stop] = found
        return found

    def _has(self, entry: Indexed) -> bool:
        return entry.owned is self or entry.group is self or entry.failing is self

    def _order(self) -> None:
        if len(self._fresh) > len(self._entries) // 8:
            self._rebuild()
            return
        for entry in self._fresh:
            at = bisect_left(self._entries, entry.sequence, key=_sequence_of)
            if self._has(entry) and (at == len(self._entries) or self._entries[at] is not entry):
                self._entries.insert(at, entry)
        self._fresh.clear()

    def _rebuild(self) -> None:
        belonging = {entry.sequence: entry for entry in (*self._entries, *self._fresh) if self._has(entry)}
        self._entries = [belonging[sequence] for sequence in sorted(belonging)]
        self._fresh.clear()


class Owned(Index):
    """The entries of one owner.

    Attributes:
        open: How many of their tasks have not ended.
    """

    __slots__ = ("open",)

    def __init__(self) -> None:
        super().__init__()
        self.open = 0


class Group(Index):
    """The entries with one status and tool.

    Attributes:
        key: The status and the tool.
        is_open: Whether tasks with this status have not ended.
    """

    __slots__ = ("is_open", "key")

    def __init__(self, key: tuple[TaskStatus, str]) -> None:
        super().__init__()
        self.key = key
        self.is_open = not is_terminal(key[0])


class IdIndex:
    """Identifiers of tasks, by prefix."""

    __slots__ = ("_fresh", "_ids", "_removed")

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._fresh: list[str] = []
        self._removed = 0

    def add(self, task_id: str) -> None:
        """Add the identifier of a new task."""
        self._fresh.append(task_id)

    def discard(self, entries: Mapping[str, Indexed]) -> None:
        """Count one identifier that is gone from the entries."""
        self._removed += 1
        if self._removed > len(entries):
            self._rebuild(entries)

    def matching(self, prefix: str, entries: Mapping[str, Indexed], *, at_most: int) -> list[Indexed] | None:
        """Return the entries whose identifier begins so, in no order, or `None` if they are too many."""
        if len(self._fresh) > len(self._ids) // 8:
            self._rebuild(entries)
        for task_id in self._fresh:
            insort(self._ids, task_id)
        self._fresh.clear()
        start = bisect_left(self._ids, prefix)
        stop = bisect_right(self._ids, prefix, lo=start, key=lambda task_id: task_id[: len(prefix)])
        if stop - start > at_most + _FEW:
            return None
        # A set, for an identifier that was used again may stand there twice.
        return [entries[task_id] for task_id in set(self._ids[start:stop]) if task_id in entries]

    def _rebuild(self, entries: Mapping[str, Indexed]) -> None:
        self._ids = sorted(entries)
        self._fresh.clear()
        self._removed = 0
