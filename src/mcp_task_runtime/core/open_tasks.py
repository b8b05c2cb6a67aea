"""`OpenTasks`: open tasks whose work does not run in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mcp_task_runtime.core.followed_task import do_nothing
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["OpenTasks"]


class OpenTasks:
    """Watches tasks that another process runs, or that something outside ends, until they have ended."""

    def __init__(self, followers: TaskFollowers, on_end: Callable[[str], None]) -> None:
        """Make an empty set.

        Args:
            followers: Shows what other processes do to tasks.
            on_end: Called with the id of a task that has ended, or is gone; it calls `discard`.
        """
        self._followers = followers
        self._on_end = on_end
        self._unwatch: dict[str, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._unwatch)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._unwatch

    def watch(self, record: TaskRecord) -> None:
        """Watch a task from this record on."""
        task_id = record.task_id
        self._unwatch[task_id] = do_nothing  # a task that has ended is discarded at once
        unwatch = self._followers.watch_end(task_id, partial(self._on_end, task_id), after=record.revision)
        if task_id in self._unwatch:
            self._unwatch[task_id] = unwatch
        else:
            unwatch()

    def keep(self, task_id: str, unwatch: Callable[[], None]) -> None:
        """Keep the watch of a run that is over; one that this had of the task before ends."""
        self.discard(task_id)
        self._unwatch[task_id] = unwatch

    def discard(self, task_id: str) -> None:
        """End the watch of a task, if there is one."""
        unwatch = self._unwatch.pop(task_id, None)
        if unwatch is not None:
            unwatch()

    def clear(self) -> None:
        """End all watches: the runtime closes."""
        for task_id in list(self._unwatch):
            self.discard(task_id)
