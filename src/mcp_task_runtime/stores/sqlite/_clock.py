"""`MachineClock`: one time for all processes that use a file, independent of their wall clocks (law L17).

The file keeps how far its time is ahead of the machine's uptime. The first process that opens the file after a boot
sets that difference from its wall clock. From then on the wall clock is not read, so a jump or a disagreement has no
effect; a wall clock that was wrong at that moment is followed only after the next boot. Leases of an earlier boot
lapse when the difference is set, because no process survives a boot. While the machine sleeps, time goes on but no
lease runs out: each one is extended by the time that the machine slept.

An injected clock replaces all of this, and the table `clock` is then left as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Final

import anyio

from mcp_task_runtime.core.clock import SystemClock
from mcp_task_runtime.stores.sqlite import _machine
from mcp_task_runtime.stores.sqlite._records import from_stamp, to_stamp

__all__ = ["MachineClock"]

_NOTICED_SLEEP: Final = 1_000_000
"""Microseconds of sleep that are noticed; less is the difference of two readings."""

_READ: Final = "SELECT boot, ahead, uptime, asleep FROM clock WHERE id = 1"
_WRITE: Final = "INSERT OR REPLACE INTO clock (id, boot, ahead, uptime, asleep) VALUES (1, ?, ?, ?, ?)"
_LAPSE: Final = "UPDATE tasks SET lease_expires_at = min(lease_expires_at, ?) WHERE lease_expires_at IS NOT NULL"
_EXTEND: Final = "UPDATE tasks SET lease_expires_at = lease_expires_at + ? WHERE lease_expires_at IS NOT NULL"


class MachineClock:
    """The time of one file. Before the file is open, it is that of the wall clock when this object was made.

    `now` may be called from any thread.
    """

    def __init__(self) -> None:
        self._boot = _machine.boot_id()
        self._ahead = to_stamp(SystemClock().now()) - _machine.uptime()
        self._asleep = _machine.asleep()

    def now(self) -> datetime:
        """Return the current time as an aware UTC datetime."""
        return from_stamp(self._ahead + _machine.uptime())

    def move_on_at(self, when: datetime | None) -> AbstractContextManager[anyio.CancelScope]:
        """Return a cancel scope with its deadline at `when`; see `Clock.move_on_at`."""
        if when is None:
            return anyio.CancelScope()
        return anyio.move_on_after((when - self.now()).total_seconds())

    def has_slept(self) -> bool:
        """Whether the machine slept since this clock last agreed with its file."""
        return _machine.asleep() - self._asleep > _NOTICED_SLEEP

    def agree(self, connection: sqlite3.Connection) -> None:
        """Take over the file's time; first after a boot, or after sleep, bring the file up to date.

        The connection must not be in a transaction.
        """
        if not self._adopt(connection.execute):
            connection.execute("BEGIN IMMEDIATE")
            self.agree_within(connection.execute)
            connection.execute("COMMIT")

    def agree_within(self, execute: Callable[..., sqlite3.Cursor]) -> None:
        """Do what `agree` does, within a transaction that writes."""
        if self._adopt(execute):
            return
        uptime, asleep = _machine.uptime(), _machine.asleep()
        row = execute(_READ).fetchone()
        if row is not None and self._is_of_this_boot(row[0], row[2]):
            execute(_EXTEND, (asleep - row[3],))
            ahead: int = row[1]
        else:
            ahead = to_stamp(SystemClock().now()) - uptime
            if row is not None:
                execute(_LAPSE, (ahead + uptime,))
        execute(_WRITE, (self._boot, ahead, uptime, asleep))
        self._ahead, self._asleep = ahead, asleep

    def _adopt(self, execute: Callable[..., sqlite3.Cursor]) -> bool:
        """Take over the file's time if it is up to date; return whether it is."""
        row = execute(_READ).fetchone()
        if row is None or not self._is_of_this_boot(row[0], row[2]):
            return False
        if _machine.asleep() - row[3] > _NOTICED_SLEEP:
            return False
        self._ahead, self._asleep = row[1], row[3]
        return True

    def _is_of_this_boot(self, boot: str, uptime: int) -> bool:
        return boot == self._boot and uptime <= _machine.uptime()
