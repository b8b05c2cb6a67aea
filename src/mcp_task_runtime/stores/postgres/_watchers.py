"""`Watchers`: functions that are called for changes of tasks; each costs the entry of a table. Knows no driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from mcp_task_runtime.core.functions import without
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["Watcher", "Watchers"]


class Watcher:
    """A function that is called for changes of one task, until this is called.

    Attributes:
        task_id: The task, in its stored form.
        revision: The newest revision that the function is known to have heard of.
    """

    __slots__ = ("_on_change", "_watchers", "revision", "task_id")

    def __init__(
        self, watchers: Watchers, task_id: str, on_change: Callable[[TaskRecord | None], None], revision: int
    ) -> None:
        self.task_id = task_id
        self.revision = revision
        self._watchers: Watchers | None = watchers
        self._on_change = on_change

    def __call__(self) -> None:
        """Call the function no more."""
        watchers, self._watchers = self._watchers, None
        if watchers is not None:
            watchers.discard(self)

    def tell(self, record: TaskRecord | None) -> None:
        """Call the function with the task as it is now, or with `None`: it has to look."""
        if self._watchers is None or (record is not None and record.revision <= self.revision):
            return
        if record is not None:
            self.revision = record.revision
        self._on_change(record)


class Watchers:
    """The watchers on one event loop, by task, and those tasks of which changes may have been missed.

    Attributes:
        stirred: Set while there are tasks to look at.
    """

    def __init__(self) -> None:
        self._by_task: dict[str, tuple[Watcher, ...]] = {}
        self._stale: dict[str, None] = {}
        self._doubtful: dict[str, float] = {}
        self.stirred = Signal()

    def __len__(self) -> int:
        return len(self._by_task)

    def add(self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int) -> Watcher:
        """Call a function for changes of a task from now on. What came before is looked at."""
        watcher = Watcher(self, task_id, on_change, after)
        self._by_task[task_id] = (*self._by_task.get(task_id, ()), watcher)
        self.mark([task_id])
        return watcher

    def discard(self, watcher: Watcher) -> None:
        """Call a function no more."""
        others = without(self._by_task[watcher.task_id], watcher)
        if others:
            self._by_task[watcher.task_id] = others
        else:
            del self._by_task[watcher.task_id]
            self._stale.pop(watcher.task_id, None)
            self._doubtful.pop(watcher.task_id, None)

    def tell(self, task_id: str, record: TaskRecord | None) -> None:
        """Call the functions for a task with what it is now, or with `None`."""
        for watcher in self._by_task.get(task_id, ()):
            watcher.tell(record)

    # --- tasks to look at ---

    def mark(self, task_ids: Sequence[str]) -> None:
        """Have tasks looked at that are watched: changes may have been missed."""
        self._stale.update(dict.fromkeys(task_id for task_id in task_ids if task_id in self._by_task))
        if self._stale:
            self.stirred.set()

    def mark_all(self) -> None:
        """Have all watched tasks looked at."""
        self.mark(list(self._by_task))

    def doubt(self, task_id: str, until: float) -> None:
        """Have a task looked at now and then until a time: a change of it may still happen without notice."""
        if task_id in self._by_task:
            self._doubtful[task_id] = until
            self.mark([task_id])

    def mark_doubtful(self, now: float) -> None:
        """Have the tasks looked at that may yet change without notice."""
        self._doubtful = {task_id: until for task_id, until in self._doubtful.items() if now < until}
        self.mark(list(self._doubtful))

    @property
    def has_doubtful(self) -> bool:
        """Whether there are tasks that may yet change without notice."""
        return bool(self._doubtful)

    def take_stale(self, most: int) -> list[str]:
        """Return tasks to look at, which are taken for looked at; `mark` those whose look fails."""
        taken = list(islice(self._stale, most))
        for task_id in taken:
            del self._stale[task_id]
        if not self._stale:
            self.stirred = Signal()
        return taken

    def looked(self, task_ids: Sequence[str], revisions: Mapping[str, int]) -> None:
        """Call the functions for tasks that have changed, or are gone.

        Args:
            task_ids: The tasks that were looked at.
            revisions: The revisions of those of them that there are.
        """
        for task_id in task_ids:
            revision = revisions.get(task_id)
            for watcher in self._by_task.get(task_id, ()):
                if revision is None:
                    watcher.tell(None)
                elif revision > watcher.revision:
                    watcher.revision = revision
                    watcher.tell(None)
