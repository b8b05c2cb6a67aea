"""How long clients are asked to wait between two polls, where neither the server nor the tool says it.

The answer to a call says `DEFAULT_POLL_INTERVAL_MS`: there are clients that keep it for the task's life. Each poll
is then told by the age of the task, so that the end of a short task is seen soon, and that of a long one at little
cost: its age plus a tenth, and plus a hundredth once it is older than five seconds, within fixed bounds.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import DEFAULT_POLL_INTERVAL_MS, Task
from mcp_task_runtime.core.views import TaskView

__all__ = ["paced"]

_SHORTEST_MS: Final = 20
_LONGEST_MS: Final = 5_000
_MILLISECOND: Final = timedelta(milliseconds=1)


def paced(view: TaskView, now: datetime, settings: TaskSettings) -> TaskView:
    """Return a live task as a client that polls is to see it: with the interval for its age.

    Unchanged where the settings name an interval, or the tool another one than the default.

    Args:
        view: The task.
        now: The time of the poll.
        settings: They may also limit how often a task may be polled.
    """
    task = view.record.task
    if settings.poll_interval_ms is not None or task.poll_interval_ms != DEFAULT_POLL_INTERVAL_MS:
        return view
    if is_terminal(task.status):
        return view
    interval = _interval_ms(task, now)
    if settings.max_polls_per_second is not None:
        interval = max(interval, -(-1_000 // settings.max_polls_per_second))
    return TaskView(view.record, view.questions, interval)


def _interval_ms(task: Task, now: datetime) -> int:
    age = max(0, (now - task.created_at) // _MILLISECOND)
    return min(max(min(age // 10, DEFAULT_POLL_INTERVAL_MS), age // 100, _SHORTEST_MS), _LONGEST_MS)
