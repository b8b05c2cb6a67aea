"""`Transaction`: what an operation gets, for as long as it runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from mcp_task_runtime.stores.sqlite._records import to_stamp

__all__ = ["Execute", "Operation", "Transaction"]

T = TypeVar("T")

Execute: TypeAlias = Callable[..., sqlite3.Cursor]
"""Runs one statement."""


class Transaction:
    """What an operation gets, for as long as it runs.

    Attributes:
        execute: Runs one statement.
        now: The time of the transaction.
        stamp: The same time in its stored form.
        known: What operations keep for later ones on the same connection. A rollback empties it.
        news: What the waiters are told after the commit; see `tell`.
        counted: How many tasks more there are of a status and a name; see `count`.
        counted_live: How many live tasks more an owner has; see `count_live`.
    """

    __slots__ = ("counted", "counted_live", "execute", "known", "news", "now", "stamp")

    def __init__(self, execute: Execute, known: dict[str, Any], now: datetime) -> None:
        self.execute: Execute = execute
        self.known: dict[str, Any] = known
        self.now: datetime = now
        self.stamp: int = to_stamp(now)
        self.news: list[tuple[str, object]] = []
        self.counted: dict[tuple[Any, Any], int] = {}
        self.counted_live: dict[object, int] = {}

    def tell(self, task_id: str, change: object = None) -> None:
        """Wake the waiters of a task after the commit.

        Args:
            task_id: The task that was changed.
            change: What the waiters may be waiting for; `None` has them look.
        """
        self.news.append((task_id, change))

    def count(self, status: object, name: object, difference: int) -> None:
        """Note that there are more or fewer tasks of a status and a name, in their stored forms."""
        kind = (status, name)
        self.counted[kind] = self.counted.get(kind, 0) + difference

    def count_live(self, owner: object, difference: int) -> None:
        """Note that an owner, in its stored form, has more or fewer live tasks."""
        self.counted_live[owner] = self.counted_live.get(owner, 0) + difference


Operation: TypeAlias = Callable[[Transaction], T]
"""What is done in a transaction.

One that writes may be repeated after it failed. It raises an error of this library before it has written anything:
then it wrote nothing. One that only reads is a single statement, or several that need not agree. There is one
cursor for all: the rows of a statement are read to the end before the next is executed.
"""
