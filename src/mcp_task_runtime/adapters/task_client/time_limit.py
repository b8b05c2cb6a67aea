"""`TimeLimit`: how long each request of a session may take."""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import Context
from typing import TypeVar

import anyio

from mcp_task_runtime.core.event_loop import call_later, event_loop_time

__all__ = ["TimeLimit"]

T = TypeVar("T")


class TimeLimit:
    """Cancels what takes longer than so many seconds, with one timer of the event loop for any number of calls.

    A deadline for each call costs more than the rest of what this side does for a request. Use it on one event loop.
    """

    __slots__ = ("_ends", "_is_timed", "_seconds")

    def __init__(self, seconds: float) -> None:
        """Make a limit; no timer runs before there is a call."""
        self._seconds = seconds
        self._ends: dict[anyio.CancelScope, float] = {}  # when each call is cancelled, the first one first
        self._is_timed = False

    async def apply(self, call: Awaitable[T]) -> T:
        """Wait for a call and return its result.

        Raises:
            TimeoutError: The call took too long, and was cancelled.
        """
        scope = anyio.CancelScope()
        self._ends[scope] = event_loop_time() + self._seconds
        if not self._is_timed:
            self._set_timer(self._seconds)
        try:
            with scope:
                return await call
        finally:
            self._ends.pop(scope, None)
        raise TimeoutError

    def _set_timer(self, seconds: float) -> None:
        self._is_timed = True
        Context().run(call_later, seconds, self._cancel_late)  # the context of a caller would be kept

    def _cancel_late(self) -> None:
        self._is_timed = False
        now = event_loop_time()
        while self._ends:
            scope, end = next(iter(self._ends.items()))
            if end > now:
                self._set_timer(end - now)
                return
            del self._ends[scope]
            scope.cancel()
