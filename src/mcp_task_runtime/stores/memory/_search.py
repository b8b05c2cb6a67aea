"""`Search`: the tasks of all owners by status, tool, owner and identifier, for operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from heapq import merge
from itertools import takewhile
from math import isqrt
from typing import Final

from mcp_task_runtime.core.types import LOOKED_AT_MOST, TaskCounts, TaskFilter, TaskStatus
from mcp_task_runtime.stores._matching import matcher, shifted
from mcp_task_runtime.stores.memory._index import Group, IdIndex, Index, Indexed, Owned

__all__ = ["Search"]

_END: Final = 2**63
_PAGE: Final = 64

_SLACK: Final = timedelta(seconds=5)
"""How much later than the entries behind it an entry may have been created: clocks are corrected."""


class Search:
    """Which entries there are, indexed by owner, by status and tool, and by identifier."""

    __slots__ = ("_entries", "_errors", "_groups", "_ids", "_owners")

    def __init__(self, entries: Mapping[str, Indexed]) -> None:
        """Watch the entries of a store by their identifiers."""
        self._entries = entries
        self._owners: dict[str | None, Owned] = {}
        self._groups: dict[tuple[TaskStatus, str], Group] = {}
        self._errors: dict[tuple[TaskStatus, str], Group] = {}
        self._ids = IdIndex()

    @property
    def owners(self) -> int:
        """How many owners have tasks."""
        return len(self._owners)

    def add(self, entry: Indexed) -> None:
        """Add the entry of a new task."""
        record = entry.record
        index = self._owners.get(record.owner)
        if index is None:
            index = self._owners[record.owner] = Owned()
        entry.owned = index
        index.add(entry)
        self._enter(entry, index)
        self._ids.add(record.task.task_id)

    def move(self, entry: Indexed) -> None:
        """Note that the status of an entry changed."""
        if entry.owned is not None:
            self._leave(entry, entry.owned)
            self._enter(entry, entry.owned)

    def remove(self, entry: Indexed) -> None:
        """Remove the entry of a task that has been taken out of the store's entries."""
        index, entry.owned = entry.owned, None
        if index is not None:
            self._leave(entry, index)
            index.discard()
            if not index.live:
                del self._owners[entry.record.owner]
        self._ids.discard(self._entries)

    def owned(self, owner: str | None, position: int) -> Iterator[Indexed]:
        """Yield an owner's entries after a position, oldest first."""
        index = self._owners.get(owner)
        return iter(()) if index is None else index.walk(position, newest_first=False)

    def page(
        self, wanted: TaskFilter, position: int | None, *, newest_first: bool, limit: int
    ) -> tuple[list[Indexed], int | None]:
        """Return up to `limit` entries that match behind a position, in order, and where the next page begins."""
        matches = matcher(wanted)
        found: list[Indexed] = []
        last: int | None = None
        for number, entry in enumerate(self._candidates(wanted, position, newest_first), 1):
            if matches(entry.record):
                if len(found) == limit:
                    return found, last
                found.append(entry)
                last = entry.sequence
            if number >= max(limit + 1, LOOKED_AT_MOST):
                return found, entry.sequence
        return found, None

    def live(self, owner: str | None) -> int:
        """Return how many live tasks an owner has."""
        index = self._owners.get(owner)
        return 0 if index is None else index.open

    def counts(self) -> TaskCounts:
        """Return how many entries there are; linear in the number of tools, not of tasks."""
        by_status_and_name = {key: group.live for key, group in self._groups.items()}
        errors = {name: group.live for (_, name), group in self._errors.items()}
        return TaskCounts(by_status_and_name, self._oldest("working"), self._oldest("input_required"), errors)

    def _enter(self, entry: Indexed, owned: Owned) -> None:
        record = entry.record
        key = (record.task.status, record.request.name)
        group = entry.group = _join(self._groups, key, entry)
        if group.is_open:
            owned.open += 1
        elif record.outcome is not None and record.outcome.is_error:
            entry.failing = _join(self._errors, key, entry)

    def _leave(self, entry: Indexed, owned: Owned) -> None:
        if entry.group is not None:
            group, entry.group = entry.group, None
            _part(self._groups, group)
            owned.open -= group.is_open
        if entry.failing is not None:
            group, entry.failing = entry.failing, None
            _part(self._errors, group)

    def _oldest(self, status: TaskStatus) -> datetime | None:
        firsts = [index.first() for (its, _), index in self._groups.items() if its == status]
        oldest = min((entry for entry in firsts if entry is not None), key=lambda entry: entry.sequence, default=None)
        return None if oldest is None else oldest.record.task.created_at

    def _candidates(self, wanted: TaskFilter, position: int | None, newest_first: bool) -> Iterable[Indexed]:
        """Return entries behind a position in order, among them all that match: those of the smallest fitting set."""
        start = position if position is not None else _END if newest_first else 0
        groups = self._errors if wanted.errors_only else self._groups
        indexes: list[Index] = [
            index
            for (status, name), index in groups.items()
            if (wanted.statuses is None or status in wanted.statuses) and (wanted.names is None or name in wanted.names)
        ]
        size = sum(index.live for index in indexes)
        if wanted.owners is not None:
            owned: list[Index] = [self._owners[owner] for owner in wanted.owners if owner in self._owners]
            if sum(index.live for index in owned) < size:
                indexes, size = owned, sum(index.live for index in owned)
        if wanted.id_prefix is not None:
            # To sort a few costs less than to find them among the others; of many, a page is found soon.
            named = self._ids.matching(wanted.id_prefix, self._entries, at_most=isqrt(_PAGE * size))
            if named is not None:
                behind = [e for e in named if (e.sequence < start if newest_first else e.sequence > start)]
                return sorted(behind, key=lambda entry: entry.sequence, reverse=newest_first)
        walks = [_within(index, wanted, start, newest_first) for index in indexes]
        if len(walks) == 1:
            return walks[0]
        return merge(*walks, key=lambda entry: entry.sequence, reverse=newest_first)


def _within(index: Index, wanted: TaskFilter, start: int, newest_first: bool) -> Iterator[Indexed]:
    """Return the entries of an index behind a position, but for those that were created too early or too late."""
    first, last = wanted.created_after, wanted.created_before
    if newest_first and last is not None:
        start = min(start, index.position_at(shifted(last, _SLACK)) + 1)
    elif not newest_first and first is not None:
        start = max(start, index.position_at(shifted(first, -_SLACK)))
    walk = index.walk(start, newest_first=newest_first)
    if newest_first and first is not None:
        earliest = shifted(first, -_SLACK)
        return takewhile(lambda entry: entry.record.task.created_at >= earliest, walk)
    if not newest_first and last is not None:
        latest = shifted(last, _SLACK)
        return takewhile(lambda entry: entry.record.task.created_at < latest, walk)
    return walk


def _join(groups: dict[tuple[TaskStatus, str], Group], key: tuple[TaskStatus, str], entry: Indexed) -> Group:
    group = groups.get(key)
    if group is None:
        group = groups[key] = Group(key)
    group.add(entry)
    return group


def _part(groups: dict[tuple[TaskStatus, str], Group], group: Group) -> None:
    group.discard()
    if not group.live:
        del groups[group.key]
