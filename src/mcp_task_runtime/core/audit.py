"""The audit log: who made which task, how it ended, who fetched that, and who tried to (wire rule A6).

The logger `mcp_task_runtime.audit` writes at DEBUG level, for ids and principals stand in what it writes: where
nobody is authenticated, an id admits to its task (law L10).
"""

from __future__ import annotations

import logging

from mcp_task_runtime.core.types import TaskRecord

__all__ = ["created", "ended", "refused", "retrieved"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.audit")


def created(record: TaskRecord) -> None:
    """Log that a task was made."""
    logger.debug("Task %s of %s was created by %s", record.task_id, record.owner, record.request.name)


def ended(record: TaskRecord) -> None:
    """Log how a task ended."""
    logger.debug("Task %s of %s ended as %s", record.task_id, record.owner, record.status)


def retrieved(task_id: str, owner: str | None) -> None:
    """Log that the outcome of a task was given to its owner."""
    logger.debug("The outcome of task %s was given to %s", task_id, owner)


def refused(record: TaskRecord, owner: str | None) -> None:
    """Log that somebody asked for the task of another."""
    logger.debug("Task %s of %s was refused to %s", record.task_id, record.owner, owner)
