"""How the runtime calls a store: within a time limit, through its outages, and what it makes of its errors."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio

from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.causes import is_stray
from mcp_task_runtime.errors import StoreError, StoreUnavailableError, TaskRuntimeError

__all__ = [
    "CLEANUP_SECONDS",
    "does_never_wait",
    "log_loss",
    "log_store_error",
    "never_waits",
    "outlasting",
    "pause_after",
    "store_errors",
    "time_limit",
]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

CLEANUP_SECONDS: Final = 5.0
"""Seconds that clean-up may take when it is shielded from cancellation."""

_PAUSE: Final = Backoff(first=0.1, longest=5.0)
_NEVER_WAITS: Final = "never_waits"


class store_errors:  # read as a clause: with store_errors()
    """Context manager that turns exceptions that a store must not raise into `StoreError`, without their text (L13).

    Raises:
        StoreError: The block raised an exception that is not this library's; it is the cause, and logged.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, TaskRuntimeError | TimeoutError):  # a time limit is the caller's own
            return
        if not isinstance(error, Exception) and not is_stray(error):
            return
        logger.error("A store raised an exception that is not a StoreError", exc_info=error)
        raise StoreError("Internal error") from error


# -- time limits


def never_waits(operation: FunctionT) -> FunctionT:
    """Mark an operation of a store that never yields to the event loop: no time limit or cancellation can end it.

    A method that overrides or wraps it has no mark of its own.
    """
    setattr(operation, _NEVER_WAITS, operation)
    return operation


def does_never_wait(operation: Callable[..., Any]) -> bool:
    """Return whether an operation of a store is marked with `never_waits`."""
    return getattr(operation, _NEVER_WAITS, None) is getattr(operation, "__func__", operation)


def time_limit(
    operation: Callable[..., Any], seconds: float, *, shield: bool = False
) -> AbstractContextManager[object]:
    """Return a cancel scope for one call of an operation; without effect, and without its cost, if it never waits.

    Args:
        operation: The method of a store or a queue.
        seconds: After which the scope is cancelled.
        shield: Whether cancellations from outside wait.
    """
    if does_never_wait(operation):
        return nullcontext()
    return anyio.CancelScope(deadline=anyio.current_time() + seconds, shield=shield)


# -- outages


async def pause_after(failures: int) -> None:
    """Wait before an operation is repeated that has failed this many times in a row: 0.1 seconds, at most 5."""
    await anyio.sleep(_PAUSE.after(failures).total_seconds())


async def outlasting(operation: Callable[[], Awaitable[T]]) -> T:
    """Return what an operation returns, which is repeated for as long as the store cannot be reached (law L12).

    Args:
        operation: It may be carried out more than once: a store that cannot be reached may have done it.
    """
    failures = 0
    while True:
        try:
            return await operation()
        except StoreUnavailableError:  # the store logs the outage
            failures += 1
            await pause_after(failures)


def log_store_error(log: logging.Logger, text: str, error: Exception) -> None:
    """Log that an operation failed, at ERROR with its traceback; in an outage, which the store logs once, at DEBUG.

    Args:
        log: The logger.
        text: What failed.
        error: Why.
    """
    log.log(logging.DEBUG if isinstance(error, StoreUnavailableError) else logging.ERROR, text, exc_info=error)


def log_loss(log: logging.Logger, text: str, error: Exception) -> None:
    """Log that something was lost because the store failed, at WARNING; in an outage in one line.

    Args:
        log: The logger.
        text: What was lost.
        error: Why.
    """
    if isinstance(error, StoreUnavailableError):
        log.warning("%s: %s", text, error)
    else:
        log.warning(text, exc_info=error)
