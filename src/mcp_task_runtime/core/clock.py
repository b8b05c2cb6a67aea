"""Time, injected: nothing in this library asks the operating system for it anywhere else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from typing import Protocol, runtime_checkable

import anyio

from mcp_task_runtime.core.event_loop import event_loop_time

__all__ = ["Clock", "SystemClock", "sleep_by"]


@runtime_checkable
class Clock(Protocol):
    """Where all time comes from (law L7)."""

    def now(self) -> datetime:
        """Return the current time as an aware UTC datetime."""
        ...

    def move_on_at(self, when: datetime | None) -> AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope that is cancelled when the clock reaches `when`; `None` means never.

        After the block, `scope.cancelled_caught` says whether the time ran out. A `when` in the past
        cancels at the first checkpoint inside.
        """
        ...


class SystemClock:
    """The machine's wall clock, and the event loop's timers for waiting."""

    def now(self) -> datetime:
        """Return the current time as an aware UTC datetime."""
        return datetime.now(timezone.utc)

    def move_on_at(self, when: datetime | None) -> AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope with its deadline at `when`; see `Clock.move_on_at`."""
        if when is None:
            return anyio.CancelScope()
        return anyio.CancelScope(deadline=event_loop_time() + (when - self.now()).total_seconds())


async def sleep_by(clock: Clock, delay: timedelta) -> None:
    """Wait for as long as this, by a clock."""
    with clock.move_on_at(clock.now() + delay):
        await anyio.sleep_forever()
