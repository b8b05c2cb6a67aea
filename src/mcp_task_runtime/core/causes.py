"""What stands behind an exception: the only one in a group, an outage of the store, one that clients do not see."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import anyio

from mcp_task_runtime.errors import InvalidTransitionError, ProtocolError, StoreUnavailableError, TaskNotFoundError

__all__ = ["UnexpectedError", "exception_classes", "is_store_outage", "is_stray", "says_ended", "sole_cause"]


class UnexpectedError(ProtocolError):
    """An unexpected exception of work as its client sees it. The exception itself is the cause, and for the log."""


def sole_cause(error: BaseException) -> BaseException:
    """Unwrap nested exception groups that hold a single exception; return any other exception unchanged."""
    seen: set[int] = set()
    while len(inner := _members(error)) == 1 and id(error) not in seen:
        seen.add(id(error))
        error = inner[0]
    return error


def exception_classes(name: str, kinds: type[Exception] | Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """Return the classes of exceptions that an argument names.

    Raises:
        ValueError: One is something else; the message has the name of the argument.
    """
    found: tuple[Any, ...] = (kinds,) if isinstance(kinds, type) else tuple(kinds)
    if not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in found):
        raise ValueError(f"{name} must be classes of Exception")
    return found


def says_ended(error: BaseException) -> bool:
    """Return whether an error says only that the task has ended, or is a cancellation."""
    ends = (InvalidTransitionError, TaskNotFoundError, anyio.get_cancelled_exc_class())
    seen: set[int] = set()
    left, is_end = [error], False
    while left:
        error = left.pop()
        inner = _members(error)
        if not inner:
            is_end = isinstance(error, ends)
            if not is_end:
                return False
        elif id(error) not in seen:
            seen.add(id(error))
            left.extend(inner)
    return is_end


def is_stray(error: BaseException) -> bool:
    """Return whether an exception that is no `Exception` ends neither this task of the event loop nor the program.

    That is a class of some library's own, a group of other ones, or on asyncio, from Python 3.11 on, the cancellation
    of something else that was awaited.
    """
    seen: set[int] = set()
    left = [error]
    while left:
        error = left.pop()
        inner = _members(error)
        if not inner and not _is_stray(error, is_alone=not seen):
            return False
        if id(error) not in seen:
            seen.add(id(error))
            left.extend(inner)
    return True


def _is_stray(error: BaseException, *, is_alone: bool) -> bool:
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return False
    if isinstance(error, GeneratorExit):
        return not is_alone  # alone it closes this coroutine, perhaps where no event loop runs
    if isinstance(error, anyio.get_cancelled_exc_class()):
        return is_alone and isinstance(error, asyncio.CancelledError) and not _is_cancelled()
    return True


def _is_cancelled() -> bool:
    """Return whether this task of asyncio was cancelled; `True` where that cannot be known."""
    task: Any = asyncio.current_task()
    return not hasattr(task, "cancelling") or task.cancelling() > 0 or anyio.current_effective_deadline() == -math.inf


def _members(error: BaseException) -> tuple[BaseException, ...]:
    """Return what a group holds. Work may raise a class of its own, whose attribute is anything or raises (law L13)."""
    try:
        inner = getattr(error, "exceptions", None)
    except Exception:
        return ()
    return inner if isinstance(inner, tuple) and all(isinstance(each, BaseException) for each in inner) else ()


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
