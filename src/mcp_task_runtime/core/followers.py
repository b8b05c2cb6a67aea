"""`TaskFollowers`: one wait in the store for each followed task and process, any number of readers.

How to follow a task, in an adapter for example, after a check that its client may see it:

    with runtime.followers.follow(task_id, after=record.revision) as follower:
        while not is_terminal(record.status):
            record = await follower.changed()
            view = await follower.view()      # with its questions: one read for all readers of this revision

One reader of many tasks has a function called for each of them, `TaskFollower.call_at_news`, and reads `news` then.

A reader that is slow sees fewer of the revisions in between, always in order and always the last one. Many readers are
woken in turns, so that other tasks of the event loop run in between. Outages are waited out; a store that fails in
another way raises `StoreError` in each reader, who may go on reading. Without an open runtime each reader waits in the
store itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType

from typing_extensions import Self

from mcp_task_runtime.core.followed_task import ChangeCallback, FollowedTask, call_back, do_nothing
from mcp_task_runtime.core.functions import without
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.store import TaskEndWatching, TaskStore, TaskWatching
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreClosedError

__all__ = ["ChangeCallback", "TaskFollower", "TaskFollowers"]


class TaskFollowers:
    """The followed tasks of one process."""

    def __init__(
        self, store: TaskStore, group: IsolatedGroup, read_view: Callable[[TaskRecord], Awaitable[TaskView | None]]
    ) -> None:
        """Make the followers of a store.

        Args:
            store: Where tasks are kept.
            group: Runs the waits while it is open.
            read_view: Reads a task's open questions.
        """
        self._store = store
        self._group = group
        self._read_view = read_view
        self._watching = store if isinstance(store, TaskWatching) else None
        self._ends = store if isinstance(store, TaskEndWatching) else None
        self._tasks: dict[str, FollowedTask] = {}
        self._on_unused = self._drop_unused  # bound once: each callback keeps it

    def __len__(self) -> int:
        """Return the number of followed tasks."""
        return len(self._tasks)

    @property
    def readers(self) -> int:
        """Number of readers and callbacks of all followed tasks."""
        return sum(task.users for task in self._tasks.values())

    def follow(self, task_id: str, *, after: int = 0) -> TaskFollower:
        """Return a reader of a task's changes; enter it as a context manager.

        Args:
            task_id: The task.
            after: The revision that the reader has already; 0 to begin with the task as it is.
        """
        return TaskFollower(partial(self._join, task_id, after), self._leave, after)

    def watch(self, task_id: str, on_change: ChangeCallback, *, after: int) -> Callable[[], None]:
        """Call a function after each change of a task, until the function that this returns is called.

        What `on_change` raises is logged. Without an open runtime there are no calls.

        Args:
            task_id: The task.
            on_change: Called with the task, or with `None` once when the task is gone.
            after: The revision that the caller has already.
        """
        task = self._of(task_id, after)
        task.callbacks = (*task.callbacks, on_change)
        task.begin()
        if task.is_gone or (task.record is not None and task.record.revision > after):
            call_back(on_change, None if task.is_gone else task.record)
        return _StopCalling(self._on_unused, task, on_change)

    def watch_end(self, task_id: str, on_end: Callable[[], None], *, after: int) -> Callable[[], None]:
        """Call a function when a task has ended or is gone, until the function that this returns is called.

        It may be called at once, before this returns, and more than once. For a task that this process made or claimed.
        A store with `TaskEndWatching` reads nothing for it.

        Args:
            task_id: The task.
            on_end: Does not raise.
            after: The revision that the caller has already.
        """
        if self._ends is None:
            return self.watch(task_id, partial(_call_at_end, on_end), after=after)
        try:
            return self._ends.watch_end(task_id, on_end) if self._group.is_open else do_nothing
        except StoreClosedError:
            return do_nothing

    def feed(self, record: TaskRecord) -> None:
        """Tell the readers of a change that this process made, without a read."""
        task = self._tasks.get(record.task.task_id)
        if task is not None:
            task.publish(record)
            if is_terminal(record.status):
                task.stop()

    def reset(self) -> None:
        """Stop all waits: the group closes, or opens again. Readers that are left wait in the store themselves."""
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.stop()

    def _of(self, task_id: str, after: int) -> FollowedTask:
        task = self._tasks.get(task_id)
        if task is None:
            task = FollowedTask(task_id, after, self._store, self._watching, self._group, self._read_view)
            self._tasks[task_id] = task
        return task

    def _join(self, task_id: str, after: int) -> FollowedTask:
        task = self._of(task_id, after)
        task.readers += 1
        task.begin()
        return task

    def _leave(self, task: FollowedTask) -> None:
        task.readers -= 1
        self._drop_unused(task)

    def _drop_unused(self, task: FollowedTask) -> None:
        if task.readers or task.callbacks:
            task.begin()
            return
        task.stop()
        if self._tasks.get(task.task_id) is task:
            del self._tasks[task.task_id]


class _StopCalling:
    """Stops the calls of one callback; a partial of a method would be three objects for each task."""

    __slots__ = ("_on_change", "_on_unused", "_task")

    def __init__(
        self, on_unused: Callable[[FollowedTask], None], task: FollowedTask, on_change: ChangeCallback
    ) -> None:
        self._on_unused = on_unused
        self._task = task
        self._on_change = on_change

    def __call__(self) -> None:
        task = self._task
        if self._on_change in task.callbacks:
            task.callbacks = without(task.callbacks, self._on_change)
            self._on_unused(task)


class TaskFollower:
    """One reader of a task's changes. Use it inside `with`, from one task of the event loop at a time.

    Attributes:
        revision: The last revision that was returned.
    """

    __slots__ = ("_join", "_leave", "_task", "revision")

    def __init__(self, join: Callable[[], FollowedTask], leave: Callable[[FollowedTask], None], after: int) -> None:
        """Make a reader; `TaskFollowers.follow` does."""
        self.revision: int = after
        self._join = join
        self._leave = leave
        self._task: FollowedTask | None = None

    def __enter__(self) -> Self:
        self._task = self._join()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        assert task is not None
        task.forget(self)
        self._leave(task)

    async def changed(self) -> TaskRecord:
        """Wait until the task is newer than `revision`, and return it as it is then.

        Raises:
            TaskNotFoundError: The task is unknown, expired or was deleted.
            StoreClosedError: The store was closed.
            StoreError: The store failed, other than by an outage.
        """
        assert self._task is not None, "enter the follower first"
        record = await self._task.changed(self, self.revision)
        self.revision = record.revision
        return record

    def call_at_news(self, function: Callable[[], object]) -> None:
        """Call a function each time there may be news, at once if there is some, until the `with` block ends.

        A call may still come afterwards. The function does not raise.
        """
        assert self._task is not None, "enter the follower first"
        self._task.call_at_news(self, self.revision, function)

    @property
    def has_to_read(self) -> bool:
        """Whether `news` reads something in the store."""
        assert self._task is not None, "enter the follower first"
        return self._task.has_to_read(self.revision)

    async def news(self) -> TaskView | None:
        """Return the task with its open questions if it is newer than `revision`, otherwise `None`, without a wait.

        Raises:
            TaskNotFoundError: The task is unknown, expired or was deleted.
            StoreClosedError: There will be no more news: the runtime closes.
            StoreError: The store failed.
        """
        assert self._task is not None, "enter the follower first"
        view = await self._task.news(self.revision)
        if view is not None:
            self.revision = view.record.revision
        return view

    async def view(self) -> TaskView:
        """Return the task with its open questions, at `revision` or later.

        Raises:
            TaskNotFoundError: The task expired or was deleted.
            StoreError: The store failed.
        """
        assert self._task is not None, "enter the follower first"
        return await self._task.current_view(self.revision)


def _call_at_end(on_end: Callable[[], None], record: TaskRecord | None) -> None:
    if record is None or is_terminal(record.status):
        on_end()
