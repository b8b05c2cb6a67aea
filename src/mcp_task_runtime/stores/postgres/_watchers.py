"""`Watchers`: functions that are called for changes of tasks; each costs the entry of a table. Knows no driver."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from mcp_task_runtime.core.functions import without
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores._recent_ends import RecentEnds

__all__ = ["Look", "Watcher", "Watchers"]


class Look(NamedTuple):
    """What a look has found of a task.

    Attributes:
        revision: Its revision.
        has_ended: Whether it has ended.
    """

    revision: int
    has_ended: bool


class _Watch:
    """What is called for one task, until this is called.

    Attributes:
        task_id: The task, in its stored form.
    """

    __slots__ = ("_watchers", "task_id")

    def __init__(self, watchers: Watchers, task_id: str) -> None:
        self.task_id = task_id
        self._watchers: Watchers | None = watchers

    def __call__(self) -> None:
        """Call the function no more."""
        watchers, self._watchers = self._watchers, None
        if watchers is not None:
            watchers.discard(self)

    def tell(self, record: TaskRecord | None) -> None:
        """Take a change: the task as it is now, or `None` where it has to be looked at."""

    def end(self) -> None:
        """Take the end: the task has ended or is gone."""

    def look(self, found: Look | None) -> None:
        """Take what a look has found of the task."""


class EndWatcher(_Watch):
    """A function that is called once, for the end of one task, unless this is called before."""

    __slots__ = ("_on_end",)

    def __init__(self, watchers: Watchers, task_id: str, on_end: Callable[[], None]) -> None:
        super().__init__(watchers, task_id)
        self._on_end = on_end

    def end(self) -> None:
        """Call the function."""
        if self._watchers is not None:
            self()
            self._on_end()

    def look(self, found: Look | None) -> None:
        """Call the function if the task has ended or is gone."""
        if found is None or found.has_ended:
            self.end()


class Watcher(_Watch):
    """A function that is called for changes of one task, its end among them, until this is called.

    Attributes:
        revision: The newest revision that the function is known to have heard of.
    """

    __slots__ = ("_on_change", "revision")

    def __init__(
        self, watchers: Watchers, task_id: str, on_change: Callable[[TaskRecord | None], None], revision: int
    ) -> None:
        super().__init__(watchers, task_id)
        self.revision = revision
        self._on_change = on_change

    def tell(self, record: TaskRecord | None) -> None:
        """Call the function with the task as it is now, or with `None`: it has to look."""
        if self._watchers is None or (record is not None and record.revision <= self.revision):
            return
        if record is not None:
            self.revision = record.revision
        self._on_change(record)

    def look(self, found: Look | None) -> None:
        """Call the function if it has not heard of what was found."""
        if found is None:
            self.tell(None)
        elif found.revision > self.revision:
            self.revision = found.revision
            self.tell(None)


class Watchers:
    """The watchers on one event loop, by task, and those tasks of which changes may have been missed.

    Attributes:
        stirred: Set while there are tasks to look at.
    """

    def __init__(self) -> None:
        self._by_task: dict[str, tuple[_Watch, ...]] = {}
        self._stale: dict[str, None] = {}
        self._doubtful: dict[str, float] = {}
        self._ends = RecentEnds[str]()
        self.stirred = Signal()

    def __len__(self) -> int:
        return len(self._by_task)

    def add(self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int) -> Watcher:
        """Call a function for changes of a task from now on. What came before is looked at."""
        watcher = Watcher(self, task_id, on_change, after)
        self._by_task[task_id] = (*self._by_task.get(task_id, ()), watcher)
        self.mark([task_id])
        return watcher

    def add_end(self, task_id: str, on_end: Callable[[], None]) -> EndWatcher | None:
        """Call a function when a task has ended, or at once if it has: `None` then."""
        has_ended = self._ends.find(task_id)
        if has_ended:
            on_end()
            return None
        watcher = EndWatcher(self, task_id, on_end)
        self._by_task[task_id] = (*self._by_task.get(task_id, ()), watcher)
        if has_ended is None:
            self.mark([task_id])
        return watcher

    def discard(self, watcher: _Watch) -> None:
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

    # --- ends ---

    @property
    def ends_mark(self) -> int:
        """What `made` takes, read before the task is made or claimed."""
        return self._ends.mark

    def made(self, task_id: str, mark: int) -> None:
        """Note a task that was made or claimed: its end may be watched soon, and is looked for only if it was missed.

        Args:
            task_id: The task.
            mark: `ends_mark` before that.
        """
        self._ends.made(task_id, mark)

    def ended(self, task_id: str) -> None:
        """Call the functions for a task that has ended or is gone."""
        self._ends.ended(task_id)
        for watcher in self._by_task.get(task_id, ()):
            watcher.end()

    def listening(self) -> None:
        """Have all watched tasks looked at: what happens from now on is heard of, what happened before was missed."""
        self._ends.begin()
        self.mark(list(self._by_task))

    def deaf(self) -> None:
        """Note that changes are missed from now on."""
        self._ends.stop()

    # --- tasks to look at ---

    def mark(self, task_ids: Iterable[str]) -> None:
        """Have tasks looked at that are watched: changes may have been missed."""
        self._stale.update(dict.fromkeys(task_id for task_id in task_ids if task_id in self._by_task))
        if self._stale:
            self.stirred.set()

    def doubt(self, task_id: str, until: float) -> None:
        """Have a task looked at now and then until a time: a change of it may still happen without notice."""
        self._ends.forget(task_id)
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

    def take_stale(self, most: int) -> dict[str, bool]:
        """Return tasks to look at, and whether only their ends matter.

        They are taken for looked at; `mark` those whose look fails.
        """
        taken = {
            task_id: all(isinstance(watcher, EndWatcher) for watcher in self._by_task.get(task_id, ()))
            for task_id in islice(self._stale, most)
        }
        for task_id in taken:
            del self._stale[task_id]
        if not self._stale:
            self.stirred = Signal()
        return taken

    def looked(self, found: Mapping[str, Look | None]) -> None:
        """Call the functions for tasks that have changed, or have ended, or are gone.

        Args:
            found: What a look has found of each task that it was for.
        """
        for task_id, look in found.items():
            for watcher in self._by_task.get(task_id, ()):
                watcher.look(look)

    def failed(self, task_ids: Iterable[str]) -> None:
        """Have the functions for changes look themselves, and get the error that the look got."""
        for task_id in task_ids:
            for watcher in self._by_task.get(task_id, ()):
                watcher.tell(None)
