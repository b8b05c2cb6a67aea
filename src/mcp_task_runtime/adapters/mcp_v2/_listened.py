"""`ListenedTasks`: the tasks of one listen stream, and which of them have news."""

from __future__ import annotations

from collections import deque
from functools import partial
from types import TracebackType

from typing_extensions import Self

from mcp_task_runtime.core.followers import TaskFollower, TaskFollowers
from mcp_task_runtime.core.signal import Signal

__all__ = ["ListenedTasks"]


class ListenedTasks:
    """Follows any number of tasks for the price of one that waits. Use it inside `with`.

    A task with news is taken with `next`, and shows what is newer still after `put_back`: one caller at a time sends
    what there is of a task, so that it stays in order.
    """

    __slots__ = ("_followers", "_news", "_open", "_queued", "_signal", "_taken")

    def __init__(self, followers: TaskFollowers) -> None:
        """Follow no task yet."""
        self._followers = followers
        self._open: dict[str, TaskFollower] = {}
        self._news: deque[str] = deque()  # tasks that may have news, the first one first
        self._queued: set[str] = set()  # the same
        self._taken: dict[str, bool] = {}  # tasks that were taken, and whether there is newer news
        self._signal: Signal | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task_id in list(self._open):
            self.leave(task_id)

    def follow(self, task_id: str, *, after: int) -> None:
        """Follow a task from this revision on."""
        follower = self._open[task_id] = self._followers.follow(task_id, after=after)
        follower.__enter__()
        follower.call_at_news(partial(self._note, task_id))

    def leave(self, task_id: str) -> None:
        """Stop following a task."""
        self._taken.pop(task_id, None)
        self._open.pop(task_id).__exit__(None, None, None)
        if not self._open:
            self._wake()

    async def next(self) -> tuple[str, TaskFollower] | None:
        """Wait for a task that may have news and take it; return `None` when no task is followed any more."""
        while self._open:
            while self._news:
                task_id = self._news.popleft()
                self._queued.discard(task_id)
                follower = self._open.get(task_id)
                if follower is not None:
                    self._taken[task_id] = False
                    return task_id, follower
            self._signal = Signal()
            await self._signal.wait()
            self._signal = None
        return None

    def put_back(self, task_id: str) -> None:
        """Have a task that was taken show what is newer, if anything is."""
        if self._taken.pop(task_id):
            self._note(task_id)

    def _note(self, task_id: str) -> None:
        if task_id in self._taken:
            self._taken[task_id] = True
        elif task_id not in self._queued:
            self._queued.add(task_id)
            self._news.append(task_id)
            self._wake()

    def _wake(self) -> None:
        if self._signal is not None:
            self._signal.set()
