"""`Rerun`: when the work of a task runs again, and whether it may."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.causes import exception_classes, sole_cause
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["Rerun", "may_run_again"]


@dataclass(frozen=True, slots=True)
class Rerun:
    """When the work of a task runs again, with the same arguments: its worker was lost, or it raised.

    Attributes:
        max_attempts: Most runs, the first one included, however they end.
        backoff: Delays before work runs again that raised; a number is the same delay in seconds each time. Meanwhile
            the task is `working` and can be cancelled; the delay survives a restart in a store that processes share.
            The work of a lost worker runs again as soon as that is noticed.
        on: What the work must raise to run again; nothing when empty. The last attempt's exception ends the task.

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    max_attempts: int = 3
    backoff: Backoff | float = field(default_factory=Backoff)
    on: Iterable[type[Exception]] = ()

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be at least 1")
        object.__setattr__(self, "on", exception_classes("on", self.on))
        object.__setattr__(self, "backoff", Backoff.of(self.backoff))

    def delay(self, error: Exception, attempt: int) -> float | None:
        """Return after how many seconds work runs again that has raised this; `None` if it does not.

        Args:
            error: What it raised; in exception groups a single exception counts.
            attempt: The number of the run that raised it.
        """
        kinds = tuple(self.on)
        if not isinstance(error, kinds) and not isinstance(sole_cause(error), kinds):
            return None
        return Backoff.of(self.backoff).after(attempt).total_seconds()


def may_run_again(record: TaskRecord) -> bool:
    """Return whether the work of a task may run once more, after the run that holds its lease or held it (law L12)."""
    if record.lease is None or not record.request.rerunnable:
        return False
    return record.lease.used_attempts < record.request.max_attempts
