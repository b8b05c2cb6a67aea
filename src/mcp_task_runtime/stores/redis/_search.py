"""`Search`: the tasks of all owners, for operators (`core.store.TaskSearch`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mcp_task_runtime.core.text import ascii_lower
from mcp_task_runtime.core.types import LOOKED_AT_MOST, TaskCounts, TaskFilter, TaskPage, TaskRecord, TaskStatus
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.stores._cursor import encode_cursor, search_scope
from mcp_task_runtime.stores._matching import matcher
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._connections import Call
from mcp_task_runtime.stores.redis._form import from_micros, to_micros
from mcp_task_runtime.stores.redis._pages import Entry, Pages, place_of

__all__ = ["Search"]

_SLACK_MICROS: Final = 1_000_000
"""Microseconds that a place may be later than the creation of its task."""

_FEWEST: Final = 50
"""Fewest entries that are read at once where a filter may leave some out."""

_MOST: Final = 1_000
"""Most entries that are read at once, unless the page is longer."""


class Search:
    """Finds and counts tasks by the search index."""

    def __init__(self, backend: Backend, pages: Pages) -> None:
        self._backend = backend
        self._pages = pages
        self._keys = backend.keys

    async def find(self, wanted: TaskFilter, *, newest_first: bool, cursor: str | None, limit: int) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        scope = search_scope(wanted, newest_first=newest_first)
        behind = None if cursor is None else place_of(cursor, scope)
        if _is_empty(wanted):
            return TaskPage(())
        matches = matcher(wanted)
        found: list[tuple[Entry, TaskRecord]] = []
        looked = 0
        most = max(limit + 1, _FEWEST)
        while True:
            page, behind = await self._page(wanted, newest_first, behind, most)
            live = [(entry, entry.record) for entry in page if entry.is_live and entry.record is not None]
            found += [(entry, record) for entry, record in live if self._is_of(entry, record) and matches(record)]
            looked += most
            if len(found) > limit or behind is None or looked >= LOOKED_AT_MOST:
                break
            most = max(limit + 1, min(2 * most, _MOST))  # the filter leaves out many
        records = tuple(record for _, record in found[:limit])
        if len(found) <= limit:
            next_place = behind
        else:
            last = found[limit - 1][0]
            next_place = last.place, last.member
        return TaskPage(records, None if next_place is None else encode_cursor(b"%d %b" % next_place, scope))

    def _is_of(self, entry: Entry, record: TaskRecord) -> bool:
        """Return whether an entry is this task's, not that of an earlier one with the same identifier."""
        return entry.member == self._keys.entry(record)

    async def _page(
        self, wanted: TaskFilter, newest_first: bool, behind: tuple[int, bytes] | None, limit: int
    ) -> tuple[list[Entry], tuple[int, bytes] | None]:
        """Return those of the next `limit` entries that may match, and the place behind which there may be more."""
        lowest = "-inf" if wanted.created_after is None else str(to_micros(wanted.created_after))
        highest = "+inf" if wanted.created_before is None else str(to_micros(wanted.created_before) + _SLACK_MICROS)
        arguments = (
            self._keys.search,
            b" ".join(sorted(self._keys.search_owner(owner) for owner in wanted.owners or ())),
            b" ".join(sorted(status.encode() for status in wanted.statuses or ())),
            b" ".join(sorted(self._keys.name_tag(name) for name in wanted.names or ())),
            *(("", b"") if behind is None else behind),
            *(lowest, highest, 1 if newest_first else 0, limit),
            (wanted.id_prefix or "").encode("utf-8", "surrogatepass")[:128],
            *self._pages.record_ends,
            1 if wanted.errors_only else 0,
            ascii_lower(wanted.text or "").encode("utf-8", "surrogatepass"),
        )
        (reply,) = await self._backend.send(self._backend.call_search("search", *arguments))
        page: list[tuple[bytes, Any, Any]] = reply[1]
        found = [(member, member.partition(b" ")[0], place, values) for member, place, values in page]
        entries = await self._pages.entries(int(reply[0]), found, are_marked=False)
        return entries, (int(reply[3][0]), reply[3][1]) if reply[2] == limit else None

    async def count(self) -> TaskCounts:
        """Return how many tasks there are; see `TaskSearch.count_tasks`."""
        call = self._backend.call_search("count", self._keys.search, *self._pages.record_ends)
        (reply,) = await self._backend.send(call)
        if self._backend.is_cluster and reply:
            kinds = [parts for parts in reply if parts[0] != b"error"]
            reads = [Call(b"HGET", self._keys.of_task(tag)[:1], (b"created_at",)) for _, _, _, tag, _ in kinds]
            times = await self._backend.send(*reads)
            reply = [parts for parts in reply if parts[0] == b"error"]
            reply += [(*parts, time) for (*parts, _), time in zip(kinds, times, strict=True)]
        counts: dict[tuple[TaskStatus, str], int] = {}
        errors: dict[str, int] = {}
        oldest: dict[str, datetime] = {}
        try:
            for status, name, number, _, created in reply:
                word = status.decode()
                if word == "error":
                    errors[name.decode()] = int(number)
                    continue
                counts[word, name.decode()] = int(number)
                if created is not None:
                    since = from_micros(created)
                    oldest[word] = min(since, oldest.get(word, since))
        except (ArithmeticError, ValueError) as error:
            raise StoreError("The search index is damaged") from error
        return TaskCounts(counts, oldest.get("working"), oldest.get("input_required"), errors)


def _is_empty(wanted: TaskFilter) -> bool:
    """Whether nothing can match."""
    return any(some is not None and not some for some in (wanted.statuses, wanted.names, wanted.owners))
