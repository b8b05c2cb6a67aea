"""`Polls`: how often clients may poll a task, and when they are told to come again."""

from __future__ import annotations

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.observer import PollRefused, TaskObserver
from mcp_task_runtime.core.poll_interval import paced
from mcp_task_runtime.core.rate_limit import RateLimit
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import LimitExceededError

__all__ = ["Polls"]


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
        """Return a task as a client is to see it now: with the poll interval for its age; see `core.poll_interval`."""
        return paced(view, self._clock.now(), self._settings)
