"""What stands behind an exception: the only one in a group, an outage of the store."""

from __future__ import annotations

from mcp_task_runtime.errors import StoreUnavailableError

__all__ = ["is_store_outage", "sole_cause"]


def sole_cause(error: BaseException) -> BaseException:
    """Unwrap nested exception groups that hold a single exception; return any other exception unchanged."""
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and len(inner) == 1:
        error = inner[0]
    return error


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
