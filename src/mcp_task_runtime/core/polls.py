"""`Polls`: how often clients may poll a task, and when they are told to come again.

Where neither the server nor the tool names an interval, the answer to a call says `DEFAULT_POLL_INTERVAL_MS`: there
are clients that keep it for the task's life. Each poll is then told an interval by the age of the task, so that the end
of a short task is seen soon, and that of a long one at little cost: its age plus a tenth, and plus a hundredth once it
is older than five seconds, within fixed bounds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.observer import PollRefused, TaskObserver
from mcp_task_runtime.core.rate_limit import RateLimit
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import DEFAULT_POLL_INTERVAL_MS
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import LimitExceededError

__all__ = ["Polls"]

_SHORTEST_MS: Final = 20
_LONGEST_MS: Final = 5_000
_MILLISECOND: Final = timedelta(milliseconds=1)


class Polls:
    """The polls of a runtime's clients."""

    def __init__(self, settings: TaskSettings, clock: Clock, observer: TaskObserver | None) -> None:
        """Make the bound on polls.

        Args:
            settings: Rate and interval.
            clock: The store's clock.
            observer: Hears of refused polls.
        """
        most = settings.max_polls_per_second
        self._limit = None if most is None else RateLimit("polls of one task a second", most)
        self._settings = settings
        self._clock = clock
        self._observer = observer

    def admit(self, task_id: str, owner: str | None) -> None:
        """Count a poll. It counts by owner, too: others must not see that a task is polled (law L10).

        Raises:
            LimitExceededError: Polled more often than `TaskSettings.max_polls_per_second`.
        """
        if self._limit is None:
            return
        try:
            self._limit.admit((owner, task_id), self._clock.now())
        except LimitExceededError:
            if self._observer is not None:
                self._observer.observe(PollRefused())
            raise

    def answered(self, view: TaskView) -> TaskView:
        """Return what a poll is answered with, and note in the audit log that the client has seen an end."""
        if is_terminal(view.record.status):  # it is not polled again
            audit.retrieved(view.record.task_id, view.record.owner)
            return view
        return self.paced(view)

    def paced(self, view: TaskView) -> TaskView:
        """Return a task as a client is to see it now: a live one with the poll interval for its age.

        Unchanged where the settings name an interval, or the tool another one than the default.
        """
        task, settings = view.record.task, self._settings
        if settings.poll_interval_ms is not None or task.poll_interval_ms != DEFAULT_POLL_INTERVAL_MS:
            return view
        if is_terminal(task.status):
            return view
        age = max(0, (self._clock.now() - task.created_at) // _MILLISECOND)
        interval = min(max(min(age // 10, DEFAULT_POLL_INTERVAL_MS), age // 100, _SHORTEST_MS), _LONGEST_MS)
        if settings.max_polls_per_second is not None:
            interval = max(interval, -(-1_000 // settings.max_polls_per_second))
        return TaskView(view.record, view.questions, interval)
