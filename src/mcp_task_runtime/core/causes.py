"""What stands behind an exception: the only one in a group, an outage of the store, one that clients do not see."""

from __future__ import annotations

import anyio

from mcp_task_runtime.errors import InvalidTransitionError, ProtocolError, StoreUnavailableError, TaskNotFoundError

__all__ = ["UnexpectedError", "is_store_outage", "says_ended", "sole_cause"]


class UnexpectedError(ProtocolError):
    """An unexpected exception of work as its client sees it. The exception itself is the cause, and for the log."""


def sole_cause(error: BaseException) -> BaseException:
    """Unwrap nested exception groups that hold a single exception; return any other exception unchanged."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and len(inner) == 1:
        error = inner[0]
    return error


def says_ended(error: BaseException) -> bool:
    """Return whether an error says only that the task has ended, or is a cancellation."""
    if isinstance(inner := getattr(error, "exceptions", None), tuple):
        return all(map(says_ended, inner))
    return isinstance(error, InvalidTransitionError | TaskNotFoundError | anyio.get_cancelled_exc_class())


def is_store_outage(error: BaseException) -> bool:
    """Return whether work failed only because the store was unavailable: itself, or as the cause of its exception."""
    seen: set[int] = set()
    current: BaseException | None = sole_cause(error)
    while current is not None and id(current) not in seen:
        if isinstance(current, StoreUnavailableError):
            return True
        seen.add(id(current))
        current = None if current.__cause__ is None else sole_cause(current.__cause__)
    return False
