"""`WatchView`: what `mcp-tasks watch` shows."""

from __future__ import annotations

from typing import Final

import click
from rich.live import Live

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.operations._rendering import json_of, plain, print_json, table_of
from mcp_task_runtime.operations.inspect import TaskInspector

__all__ = ["MOST_WATCHED", "WatchView"]

MOST_WATCHED: Final = 50
"""Most tasks that are in view."""


class WatchView:
    """Shows tasks after each change, which the store pushes."""

    def __init__(self, inspector: TaskInspector, live: Live | None, *, as_json: bool) -> None:
        self._inspector = inspector
        self._live = live
        self._as_json = as_json
        self._records: dict[str, TaskRecord] = {}
        self._followed: set[str] = set()

    def has_room_for(self, task_id: str) -> bool:
        """Take a task into view, in place of one that has ended if need be; return whether it is new there."""
        if task_id in self._followed or len(self._followed) >= MOST_WATCHED:
            return False
        self._followed.add(task_id)
        for old in [known for known in self._records if known not in self._followed]:
            if len(self._records) >= MOST_WATCHED:
                del self._records[old]
        return True

    async def follow_while_there(self, task_id: str) -> None:
        """Show a task until it has ended or is gone."""
        try:
            await self.follow(task_id)
        except TaskNotFoundError:
            self._records.pop(task_id, None)
        finally:
            self._followed.discard(task_id)

    async def follow(self, task_id: str) -> None:
        """Show a task until it has ended."""
        async for record in self._inspector.follow(task_id):
            self._records[task_id] = record
            if self._as_json:
                print_json(json_of(record, values=False))
            elif self._live is not None:
                self._live.update(table_of(list(self._records.values()), self._inspector.now()), refresh=True)
            else:
                click.echo(f"{task_id} {record.status} {plain(record.task.status_message or '')}".rstrip())
