"""What is logged about tasks, by two loggers.

`mcp_task_runtime.tasks` is for operators. It names a task by its tool and the first characters of its id, which
`TaskFilter.id_prefix` finds, never by its owner, and carries no text of clients or of work:

- INFO: a task was cancelled; its work was handed over at a shutdown; an outcome that had waited was written.
- WARNING: a task failed, and why (an error code, its TTL, a shutdown); its worker was lost; its work failed and runs
  again; its outcome waits for the store to return.
- ERROR: work raised an exception, with its traceback; an outcome was dropped; work was given up after its last
  attempt.

`mcp_task_runtime.audit` writes at DEBUG who made which task, how it ended, who fetched that, and who was refused
(wire rule A6). Its lines have full ids and principals: where no principal is known, an id admits to its task (law L10).
"""

from __future__ import annotations

import logging
from datetime import timedelta

from mcp_task_runtime.core.types import Outcome, TaskRecord

__all__ = [
    "created",
    "dropped",
    "ended",
    "given_up",
    "handed_over",
    "late",
    "lost",
    "postponed",
    "raised",
    "refused",
    "retrieved",
    "waits",
    "written",
]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.audit")
operators: logging.Logger = logging.getLogger("mcp_task_runtime.tasks")

_PREFIX = 8
_LONGEST_NAME = 80


def created(record: TaskRecord) -> None:
    """Log that a task was made."""
    logger.debug("Task %s of %s was created by %s", record.task_id, record.owner, record.request.name)


def ended(record: TaskRecord, reason: str | None = None) -> None:
    """Log how a task ended.

    Args:
        record: The task as it was stored.
        reason: Why the runtime itself ended it; `None` if its work did.
    """
    logger.debug("Task %s of %s ended as %s", record.task_id, record.owner, record.status)
    if record.status == "failed":
        operators.warning("Task %s failed: %s", _label(record), reason or _code(record.outcome))
    elif record.status == "cancelled":
        operators.info("Task %s was cancelled", _label(record))


def late(record: TaskRecord) -> None:
    """Log that the outcome of work came after the end of its task (law L9)."""
    logger.debug("The outcome of task %s came after its end", record.task_id)


def waits(record: TaskRecord, error: Exception) -> None:
    """Log, once an outage, that an outcome cannot be written yet."""
    operators.warning("The outcome of task %s waits: the store failed (%s)", _label(record), type(error).__name__)


def written(record: TaskRecord) -> None:
    """Log that an outcome that had waited was written."""
    operators.info("The outcome of task %s was written after a wait", _label(record))


def dropped(record: TaskRecord, outcome: Outcome, reason: str) -> None:
    """Log that the outcome of work is lost."""
    operators.error("The outcome %r of task %s was dropped: %s", outcome.status, _label(record), reason)


def lost(record: TaskRecord, what_next: str, *, is_claimed: bool = True) -> None:
    """Log that the worker of a task was lost, from the record before or after the task was claimed for the next run."""
    attempt = 0 if record.lease is None else record.lease.attempt - is_claimed
    operators.warning("Task %s lost its worker in attempt %d: %s", _name(record), attempt, what_next)


def handed_over(record: TaskRecord, reason: str) -> None:
    """Log that the work of a live task stopped here and may run again elsewhere."""
    operators.info("The work of task %s was handed over: %s", _label(record), reason)


def postponed(record: TaskRecord, delay: timedelta) -> None:
    """Log that the work of a task failed and runs again."""
    operators.warning("The work of task %s failed and runs again in %g s", _label(record), delay.total_seconds())


def given_up(record: TaskRecord) -> None:
    """Log that rerunnable work had its last attempt."""
    operators.error("The work of task %s was given up after %d attempts", _label(record), record.request.max_attempts)


def raised(record: TaskRecord | None, error: BaseException) -> None:
    """Log an exception that work raised, in full (law L11)."""
    label = "a task" if record is None else f"task {_label(record)}"
    operators.error("The work of %s raised an exception", label, exc_info=error)


def retrieved(task_id: str, owner: str | None) -> None:
    """Log that the outcome of a task was given to its owner."""
    logger.debug("The outcome of task %s was given to %s", task_id, owner)


def refused(record: TaskRecord, owner: str | None) -> None:
    """Log that a task was refused to a principal that does not own it."""
    logger.debug("Task %s of %s was refused to %s", record.task_id, record.owner, owner)


def _label(record: TaskRecord) -> str:
    lease = record.lease
    return _name(record) if lease is None or lease.attempt < 2 else f"{_name(record)} in attempt {lease.attempt}"


def _name(record: TaskRecord) -> str:
    return f"{record.task_id[:_PREFIX]} ({record.request.name[:_LONGEST_NAME]!r})"


def _code(outcome: Outcome | None) -> str:
    try:
        error = None if outcome is None else outcome.error
    except ValueError:
        error = None
    return "error" if error is None else f"error {error.get('code')}"
