"""What the runtime itself says in the status message of a task: where its work stands."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

__all__ = ["CANCELLED", "QUEUED", "RUNNING", "runs_again", "says_where_work_stands"]

QUEUED: Final = "Queued"
RUNNING: Final = "Running"
CANCELLED: Final = "The task was cancelled"
_RUNS_AGAIN: Final = "Runs again in "


def runs_again(delay: timedelta, attempt: int, most: int) -> str:
    """Return what a task says whose work runs again after a delay.

    Args:
        delay: The delay.
        attempt: The number of the run that follows.
        most: Most runs of the task.
    """
    return f"{_RUNS_AGAIN}{delay.total_seconds():g} s (attempt {attempt} of {most})"


def says_where_work_stands(message: str | None) -> bool:
    """Return whether a status message is one of these, which no longer holds when the task is cancelled."""
    return message in (QUEUED, RUNNING) or (message is not None and message.startswith(_RUNS_AGAIN))
