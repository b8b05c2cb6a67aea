"""`FakeClock`: time that moves only when a test says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone

import anyio

__all__ = ["FakeClock"]


class FakeClock:
    """A `Clock` that stands still until `advance` is called.

    `now` may be called from any thread, everything else only on the event loop that does the waiting.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=timezone.utc)) -> None:
        """Make a clock.

        Args:
            start: The first `now`, an aware UTC datetime.
        """
        self._now = start
        self._deadlines: dict[anyio.CancelScope, datetime] = {}

    @property
    def waiting(self) -> int:
        """How many scopes of `move_on_at` are open whose time has not come. 0 when nothing waits."""
        return len(self._deadlines)

    def now(self) -> datetime:
        """Return the current time as an aware UTC datetime."""
        return self._now

    def advance(self, by: timedelta | float) -> None:
        """Let time pass, and cancel the scopes whose time comes, earliest first.

        Nothing else runs until the caller reaches a checkpoint: what wakes then sees the time after
        the whole step.

        Args:
            by: How far, as a timedelta or in seconds.

        Raises:
            ValueError: `by` is negative; see `set_back`.
        """
        step = _timedelta(by)
        target = self._now + step
        due = [(when, order, scope) for order, (scope, when) in enumerate(self._deadlines.items()) if when <= target]
        for when, _, scope in sorted(due, key=lambda entry: entry[:2]):
            self._now = max(self._now, when)
            del self._deadlines[scope]
            scope.cancel()
        self._now = target

    def set_back(self, by: timedelta | float) -> None:
        """Move `now` back, as when a machine's clock is corrected. Scopes keep their deadlines.

        Args:
            by: How far, as a timedelta or in seconds.

        Raises:
            ValueError: `by` is negative.
        """
        self._now -= _timedelta(by)

    @contextmanager
    def move_on_at(self, when: datetime | None) -> Iterator[anyio.CancelScope]:
        """Open a cancel scope that is cancelled when the clock reaches `when`; see `Clock.move_on_at`."""
        with anyio.CancelScope() as scope:
            if when is not None:
                if when <= self._now:
                    scope.cancel()
                else:
                    self._deadlines[scope] = when
            try:
                yield scope
            finally:
                self._deadlines.pop(scope, None)


def _timedelta(by: timedelta | float) -> timedelta:
    step = by if isinstance(by, timedelta) else timedelta(seconds=by)
    if step < timedelta(0):
        raise ValueError("by must not be negative")
    return step
