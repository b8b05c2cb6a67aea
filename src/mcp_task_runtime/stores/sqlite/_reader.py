"""The thread that answers requests that only look, in parallel to the writer.

With a write-ahead log neither waits for the other. It sees everything that was committed before the request was made.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import Final

from mcp_task_runtime.errors import StoreClosedError, StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.stores.sqlite._lane import Lane, Request
from mcp_task_runtime.stores.sqlite._transaction import Execute, Transaction
from mcp_task_runtime.stores.sqlite._waiters import Wake, wake_all

__all__ = ["Reader"]

_SCAN_SHARE: Final = 4


class Reader(Lane):
    """The thread that answers requests that only look.

    Attributes:
        served: How many reads it carried out, those of scans included.
    """

    name = "reader"

    def scan(self) -> None:
        """Look for all waiters, and wake those whose wait is over."""
        self._waiters.is_scanning = True
        with suppress(StoreClosedError):
            self.wake()

    def _prepare(self, execute: Execute) -> None:
        # A reader waits only while the log is recovered after a crash.
        execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")

    def _serve(self, requests: list[Request]) -> list[Wake]:
        wanted = [request for request in requests if request.take()]
        is_one_snapshot = len(wanted) > 1  # so that SQLite takes and frees its locks once
        for request in wanted:
            self._read(request, is_one_snapshot)
        self._end_snapshot()
        return []

    def _do_rest(self, *, is_idle: bool) -> None:
        if self._waiters.is_scanning:
            try:
                self._scan()
            finally:
                self._waiters.is_scanning = False

    def _transaction(self, deadline: float, *, is_snapshot: bool) -> Transaction:
        execute = self._connected(deadline)
        if not self._is_in_snapshot():
            self._file.check()
            if is_snapshot:
                execute("BEGIN")
        self.served += 1
        return Transaction(execute, self._known, self._clock.now())

    def _is_in_snapshot(self) -> bool:
        return self._connection is not None and self._connection.in_transaction

    def _read(self, request: Request, is_one_snapshot: bool) -> None:
        request.error = None
        try:
            request.value = request.operation(self._transaction(request.deadline, is_snapshot=is_one_snapshot))
        except StoreUnavailableError as error:
            self._fail([request], error)
        except TaskRuntimeError as error:
            request.error = error
        except Exception as error:
            self._fail([request], error)
        else:
            self._file.works(self.name)

    def _end_snapshot(self) -> None:
        try:
            if self._is_in_snapshot():
                self._connected(0.0)("COMMIT")
        except sqlite3.Error:
            self._disconnect()

    def _scan(self) -> None:
        begun = time.monotonic()  # paces the scans; no task's time
        wakes: list[Wake] = []
        for waiter in self._waiters.all():
            event = waiter.event
            try:
                found, _ = waiter.look(self._transaction(begun, is_snapshot=True))
            except Exception:  # the waiter's own look raises it
                found = True
            if found is not None:
                wakes.append((waiter.post, event))
        self._end_snapshot()
        wake_all(wakes)
        self._waiters.pause = _SCAN_SHARE * (time.monotonic() - begun)
