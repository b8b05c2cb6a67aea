"""`Pages`: pages of the indexes, with the tasks that their entries name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from mcp_task_runtime.core.transitions import is_expired
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import InvalidCursorError, StoreError
from mcp_task_runtime.stores._cursor import decode_cursor
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import FIELDS, from_micros, load_record

__all__ = ["SET_ASIDE_MICROS", "Entry", "Pages", "place_of"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.redis")

SET_ASIDE_MICROS: Final = 60_000_000
"""Microseconds after which an entry whose task is damaged is looked at again."""

_FIELDS: Final = tuple(name.encode() for name in FIELDS)
_MARK: Final = FIELDS.index("mark")
_MOST_REPORTED: Final = 1_000
_LARGEST_SCORE: Final = 2**63


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an index.

    Attributes:
        member: What stands in the index.
        tag: The task's tag.
        place: The entry's score.
        record: The task; `None` if there is none, or it is damaged.
        is_damaged: Whether the task is there and cannot be read.
        is_live: Whether the entry stands for this task, which has not expired.
    """

    member: bytes
    tag: bytes
    place: int
    record: TaskRecord | None
    is_damaged: bool
    is_live: bool

    @property
    def is_gone(self) -> bool:
        """Whether the entry stands for a task that does not exist any more."""
        return not self.is_live and not self.is_damaged


class Pages:
    """Reads indexes. A task that is damaged, or that a later version stored, is skipped and logged once."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reported: set[bytes] = set()

    async def read(self, index: bytes, *parts: tuple[str, str], limit: int) -> tuple[int, list[Entry]]:
        """Return the time, and a page of each part of an index of leases or of an owner's tasks.

        Args:
            index: Its key.
            parts: The lowest score and the highest one: empty for now, `waits` for now among the leases that no process
                holds.
            limit: Most entries of each part.
        """
        ends = self.record_ends
        calls = [script_call("page", (index,), self._backend.now(), *part, limit, *ends) for part in parts]
        replies = await self._backend.send(*calls)
        now = int(replies[-1][0])
        page: list[tuple[bytes, Any, Any]] = [entry for _, entries in replies for entry in entries]
        found = [(member, member.rpartition(b" ")[2], score, it) for member, score, it in page]
        return now, await self.entries(now, found, are_marked=index != self._backend.keys.leases)

    @property
    def record_ends(self) -> tuple[bytes, bytes]:
        """How a record's key begins and ends, for scripts that read records; empty where they cannot."""
        return (b"", b"") if self._backend.is_cluster else (self._backend.keys.opening, b"}:task")

    async def entries(self, now: int, found: list[tuple[bytes, bytes, Any, Any]], *, are_marked: bool) -> list[Entry]:
        """Return entries for member, tag, score and record; records that the script could not read are read here.

        Args:
            now: The time.
            found: What stands in the index.
            are_marked: Whether a member begins with the mark of its task, which another task with the
                same identifier does not have.
        """
        if self._backend.is_cluster and found:
            reads = [Call(b"HMGET", self._backend.keys.of_task(tag)[:1], _FIELDS) for _, tag, _, _ in found]
            replies = await self._backend.send(*reads, keeps_errors=True)
            found = [(member, tag, score, it) for (member, tag, score, _), it in zip(found, replies, strict=True)]
        return [self._entry(now, are_marked, *parts) for parts in found]

    async def load(self, tags: Sequence[bytes]) -> list[TaskRecord]:
        """Return those tasks of these that are there."""
        reads = [Call(b"HMGET", self._backend.keys.of_task(tag)[:1], _FIELDS) for tag in tags]
        replies = await self._backend.send(*reads, keeps_errors=True) if reads else []
        entries = [self._entry(0, False, tag, tag, 0, values) for tag, values in zip(tags, replies, strict=True)]
        return [entry.record for entry in entries if entry.record is not None]

    def _entry(self, now: int, is_marked: bool, member: bytes, tag: bytes, score: Any, values: Any) -> Entry:
        record: TaskRecord | None = None
        error: Exception | None = None
        is_damaged = values is None
        if isinstance(values, Exception):
            is_damaged, error = True, values
        elif values is not None:
            try:
                record = load_record(values)
            except StoreError as caught:
                is_damaged, error = True, caught
        if is_damaged:
            self.report(tag, error)
        is_live = record is not None and not is_expired(record.task, from_micros(now))
        if is_marked and is_live:
            is_live = _mark_of(values) == member.rpartition(b" ")[0]
        return Entry(member, tag, int(float(score)), record, is_damaged, is_live)

    def report(self, tag: bytes, error: Exception | None) -> None:
        """Log once that a task cannot be used."""
        if tag not in self._reported and len(self._reported) < _MOST_REPORTED:
            self._reported.add(tag)
            reason = "damaged" if error is None else str(error).partition("\n")[0]
            logger.error("The stored task %s… is skipped: %s", tag[:8].decode(errors="replace"), reason)


def _mark_of(values: Any) -> Any:
    return values[_MARK]


def place_of(cursor: str, scope: bytes) -> tuple[int, bytes]:
    """Return the score and the member that a cursor stands for; that of a list has no member.

    Raises:
        InvalidCursorError: The cursor was not made for this list.
    """
    place, _, member = decode_cursor(cursor, scope).partition(b" ")
    try:
        score = int(place)
    except ValueError:
        raise InvalidCursorError from None
    if abs(score) > _LARGEST_SCORE:
        raise InvalidCursorError
    return score, member
