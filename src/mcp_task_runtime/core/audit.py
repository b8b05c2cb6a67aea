"""What is logged about tasks, by two loggers.

`mcp_task_runtime.tasks` is for operators. Each task that ends without a result has one line, by the process that ended
it: at ERROR with the traceback where its work raised an unexpected exception, otherwise at WARNING. The line names the
tool, the full id, which `mcp-tasks show` takes, and the reason; never the owner, and no text of clients or of work. An
id is logged at WARNING and ERROR alone: where no principal is known, it gives access to its task (law L10).

- INFO: work was handed over to other processes; an outcome that had waited was written.
- WARNING: a task failed on purpose (an error code, an error result), expired, was cancelled, interrupted or shut down,
  lost its worker, had its last attempt; its work failed and runs again; its outcome waits for the store to return.
- ERROR: work raised an unexpected exception; an outcome was dropped.

`mcp_task_runtime.audit` writes at DEBUG who made which task, how it ended, who fetched that, and who was refused
(wire rule A6). Its lines have full ids and principals.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from mcp_task_runtime.core.causes import says_ended
from mcp_task_runtime.core.types import Outcome, TaskRecord

__all__ = [
    "EXPIRED",
    "created",
    "dropped",
    "ended",
    "expired",
    "handed_over",
    "late",
    "lost",
    "postponed",
    "refused",
    "retrieved",
    "waits",
    "written",
]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.audit")
operators: logging.Logger = logging.getLogger("mcp_task_runtime.tasks")

EXPIRED = "its time to live passed"
_LONGEST_NAME = 80


def created(record: TaskRecord) -> None:
    """Log that a task was made."""
    logger.debug("Task %s of %s was created by %s", record.task.task_id, record.owner, record.request.name)


def ended(
    record: TaskRecord, reason: str | None = None, error: BaseException | None = None, *, attempt: int = 1
) -> None:
    """Log how a task ended.

    Args:
        record: The task as it was stored.
        reason: Why the runtime itself ended it; `None` if its work did.
        error: The unexpected exception behind an end without a result (law L11).
        attempt: The run of the work that ended it.
    """
    status = record.task.status
    logger.debug("Task %s of %s ended as %s", record.task.task_id, record.owner, status)
    if status == "cancelled":
        operators.warning("Task %s was cancelled", _name(record))
    elif status == "failed" or _is_error(record.outcome):
        label = _name(record) if attempt == 1 or reason is not None else f"{_name(record)} in attempt {attempt}"
        if error is not None:
            operators.error("Task %s failed: %s", label, reason or "its work raised an exception", exc_info=error)
        else:
            operators.warning("Task %s failed: %s", label, reason or _code(record))


def expired(record: TaskRecord) -> None:
    """Log that a task was gone before its end could be written."""
    operators.warning("Task %s failed: %s", _name(record), EXPIRED)


def late(record: TaskRecord, error: BaseException | None = None) -> None:
    """Log that work ended after the end of its task (law L9), and the unexpected exception that it raised."""
    logger.debug("The outcome of task %s came after its end", record.task_id)
    if error is not None and not says_ended(error):
        operators.error("The work of task %s raised an exception after its end", _label(record), exc_info=error)


def waits(record: TaskRecord, error: Exception) -> None:
    """Log, once an outage, that an outcome cannot be written yet."""
    operators.warning("The outcome of task %s waits: the store failed (%s)", _label(record), type(error).__name__)


def written(record: TaskRecord) -> None:
    """Log that an outcome that had waited was written."""
    operators.info("An outcome of %s was written after a wait", _tool(record))


def dropped(record: TaskRecord, outcome: Outcome, reason: str) -> None:
    """Log that the outcome of work is lost."""
    operators.error("The outcome %r of task %s was dropped: %s", outcome.status, _label(record), reason)


def lost(record: TaskRecord, what_next: str, *, is_claimed: bool = True) -> None:
    """Log that the worker of a task was lost, from the record before or after the task was claimed for the next run."""
    attempt = 0 if record.lease is None else record.lease.attempt - is_claimed
    operators.warning("Task %s lost its worker in attempt %d: %s", _name(record), attempt, what_next)


def handed_over(record: TaskRecord, reason: str) -> None:
    """Log that the work of a live task stopped here and may run again elsewhere."""
    operators.info("Work of %s was handed over: %s", _tool(record), reason)


def postponed(record: TaskRecord, delay: timedelta, error: BaseException | None) -> None:
    """Log that an attempt of a task's work was not the last one, and the exception that it raised."""
    attempt = 1 if record.lease is None else record.lease.attempt
    operators.warning(
        "Attempt %d of %d of task %s %s; it runs again in %g s",
        attempt,
        record.request.max_attempts,
        _name(record),
        "ended" if error is None else f"failed ({type(error).__name__})",
        delay.total_seconds(),
    )
    if error is not None:
        operators.debug("An attempt of %s failed", _tool(record), exc_info=error)


def retrieved(task_id: str, owner: str | None) -> None:
    """Log that the outcome of a task was given to its owner."""
    logger.debug("The outcome of task %s was given to %s", task_id, owner)


def refused(task_id: str, owner: str | None) -> None:
    """Log that a principal asked for a task that it does not have: an unknown one, or one of another owner."""
    logger.debug("Task %r was refused to %s", task_id, owner)


def _label(record: TaskRecord) -> str:
    lease = record.lease
    return _name(record) if lease is None or lease.attempt < 2 else f"{_name(record)} in attempt {lease.attempt}"


def _name(record: TaskRecord) -> str:
    return f"{record.task_id} ({_tool(record)})"


def _tool(record: TaskRecord) -> str:
    return repr(record.request.name[:_LONGEST_NAME])


def _is_error(outcome: Outcome | None) -> bool:
    try:
        return outcome is not None and outcome.is_error
    except (ValueError, AttributeError):  # a store that gives damaged values back
        return False


def _code(record: TaskRecord) -> str:
    if record.status == "completed":
        return "its tool returned an error"
    try:
        error = None if record.outcome is None else record.outcome.error
        return "error" if error is None else f"error {error.get('code')}"
    except (ValueError, AttributeError):
        return "error"
