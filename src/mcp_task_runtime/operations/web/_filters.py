"""The search form of the list: what its fields say, and the filter that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, cast

from starlette.datastructures import QueryParams

from mcp_task_runtime.core.types import TaskFilter, TaskStatus

__all__ = ["AGES", "STATUSES", "Search"]

STATUSES: Final[tuple[TaskStatus, ...]] = ("working", "input_required", "completed", "failed", "cancelled")

AGES: Final[dict[str, tuple[str, timedelta]]] = {
    "15m": ("15 minutes", timedelta(minutes=15)),
    "1h": ("1 hour", timedelta(hours=1)),
    "1d": ("1 day", timedelta(days=1)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
}


@dataclass(frozen=True, slots=True)
class Search:
    """What an operator looks for; each attribute is a field of the form, empty where it does not matter.

    Attributes:
        statuses: The statuses.
        tool: The tool's name.
        owner: The owner.
        id: How the identifier begins.
        text: What the status message contains.
        newer: A key of `AGES`: the task is newer than that.
        older: A key of `AGES`: the task is older than that.
        is_oldest_first: Whether the oldest come first.
        is_error: Whether only tasks count that completed with an error.
        cursor: Where the page begins.
    """

    statuses: tuple[TaskStatus, ...] = ()
    tool: str = ""
    owner: str = ""
    id: str = ""
    text: str = ""
    newer: str = ""
    older: str = ""
    is_oldest_first: bool = False
    is_error: bool = False
    cursor: str = ""

    @classmethod
    def of(cls, query: QueryParams) -> Search:
        """Return what a query says; what is unknown in it does not matter."""
        named = query.getlist("status")
        statuses: list[TaskStatus] = [status for status in STATUSES if status in named]
        return cls(
            statuses=tuple(statuses),
            tool=query.get("tool", ""),
            owner=query.get("owner", ""),
            id=query.get("id", "").strip(),
            text=query.get("text", ""),
            newer=query["newer"] if query.get("newer") in AGES else "",
            older=query["older"] if query.get("older") in AGES else "",
            is_oldest_first=query.get("order") == "oldest",
            is_error=query.get("errors") == "1",
            cursor=query.get("cursor", ""),
        )

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves out any task."""
        fields = (self.statuses, self.tool, self.owner, self.id, self.text, self.newer, self.older, self.is_error)
        return any(fields)

    def filter(self, now: datetime) -> TaskFilter:
        """Return the filter, by a time of the store's clock."""
        return TaskFilter(
            statuses=frozenset(self.statuses) or None,
            names=frozenset({self.tool}) if self.tool else None,
            owners=cast("frozenset[str | None]", frozenset({self.owner})) if self.owner else None,
            id_prefix=self.id or None,
            text=self.text or None,
            created_after=now - AGES[self.newer][1] if self.newer else None,
            created_before=now - AGES[self.older][1] if self.older else None,
            errors_only=self.is_error,
        )

    def pairs(self, **changes: str) -> list[tuple[str, str]]:
        """Return the fields as a query has them; `changes` replace some of them."""
        fields = {
            "tool": self.tool,
            "owner": self.owner,
            "id": self.id,
            "text": self.text,
            "newer": self.newer,
            "older": self.older,
            "order": "oldest" if self.is_oldest_first else "",
            "errors": "1" if self.is_error else "",
            "cursor": self.cursor,
            **changes,
        }
        pairs = [("status", status) for status in self.statuses]
        return pairs + [(name, value) for name, value in fields.items() if value]
