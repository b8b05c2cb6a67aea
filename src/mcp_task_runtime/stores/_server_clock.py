"""`ServerClock`: the time of a store's server, as one process knows it (law L17)."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, timezone
from typing import Final

import anyio

__all__ = ["ServerClock"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MEASURE_EVERY: Final = 15_000_000


class ServerClock:
    """The server's wall clock, followed with this machine's monotonic clock.

    The difference of the two is measured when the store connects and every 15 seconds of use; between two
    measurements the time moves as the monotonic clock does. What the wall clock of this machine says does not
    matter, nor whether it jumps. Before the first measurement, the time is that of this machine when the
    clock was made, plus what has passed since.

    It serves what a process decides without asking the server, such as when to look again. The server decides
    which times are stored, and whether a task has expired or a lease has lapsed.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() // 1_000 - self.monotonic()
        self._measured_at: int | None = None

    @staticmethod
    def monotonic() -> int:
        """Return this machine's monotonic time in microseconds."""
        return time.monotonic_ns() // 1_000

    @property
    def is_due(self) -> bool:
        """Whether the difference should be measured again."""
        return self._measured_at is None or self.monotonic() - self._measured_at >= _MEASURE_EVERY

    def now(self) -> datetime:
        """Return the server's current time as an aware UTC datetime."""
        return _EPOCH + timedelta(microseconds=self.monotonic() + self._offset)

    def move_on_at(self, when: datetime | None) -> AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope with its deadline at `when`; see `Clock.move_on_at`."""
        if when is None:
            return anyio.CancelScope()
        return anyio.move_on_after((when - self.now()).total_seconds())

    def observe(self, server: int, *, sent: int, received: int) -> None:
        """Take a measurement: the server said `server` at some time between `sent` and `received`.

        An offset that agrees with it stays, so that the clock does not jitter with the network. Otherwise
        the clock is behind the server rather than ahead of it: what has expired here has expired there.

        Args:
            server: The server's time, in microseconds since 1970 UTC.
            sent: Monotonic time when the server was asked, in microseconds.
            received: Monotonic time when the reply was there, in microseconds.
        """
        lowest, highest = server - received, server - sent
        if self._measured_at is None or not lowest <= self._offset <= highest:
            self._offset = lowest
        self._measured_at = received

    def distrust(self) -> None:
        """Have the difference measured again at the next opportunity: the server disagrees with this clock."""
        self._measured_at = None
