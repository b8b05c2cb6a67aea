"""The thread that carries out requests that write.

It takes all that wait, carries them out in one transaction, commits once, and only then answers them all: group
commit. When one of several fails with anything but an error of this library, or the commit fails, everything is rolled
back and each request is repeated in a transaction of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from mcp_task_runtime.errors import StoreUnavailableError, TaskRuntimeError
from mcp_task_runtime.stores.sqlite._clock import MachineClock
from mcp_task_runtime.stores.sqlite._file import DatabaseFile, is_locked, patiently
from mcp_task_runtime.stores.sqlite._lane import Lane, Request
from mcp_task_runtime.stores.sqlite._reader import Reader
from mcp_task_runtime.stores.sqlite._schema import Synchronous
from mcp_task_runtime.stores.sqlite._transaction import Execute, Transaction
from mcp_task_runtime.stores.sqlite._waiters import Waiters, Wake, wake_all

__all__ = ["WATCH_SECONDS", "Writer"]

WATCH_SECONDS: Final = 0.025
"""How often the writer looks for commits of other processes while there are waiters."""

_IDLE_SECONDS: Final = 10.0
_PURGE_EVERY: Final = 32
_PURGE_MOST: Final = 4 * _PURGE_EVERY


class Writer(Lane):
    """The thread that carries out requests that write.

    Attributes:
        served: How many transactions it committed.
    """

    name = "writer"

    def __init__(
        self,
        file: DatabaseFile,
        waiters: Waiters,
        timeout: float,
        reader: Reader,
        purge: Callable[[Transaction, int], int],
        complete: Callable[[Transaction], None],
    ) -> None:
        super().__init__(file, waiters, timeout)
        self._reader = reader
        self._purge = purge
        self._complete = complete
        self._since_purge = 0
        self._has_more_to_purge = False
        self._next_purge = 0.0
        self._next_watch = 0.0
        self._version: int | None = None
        self._current_synchronous: Synchronous | None = None

    def _prepare(self, execute: Execute) -> None:
        self._current_synchronous = None
        (version,) = execute("PRAGMA data_version").fetchone()
        # Present waiters may have missed a commit; those that come now look after this.
        self._version = None if self._waiters else version

    def _patience(self) -> float | None:
        if self._has_more_to_purge:
            return 0
        return max(WATCH_SECONDS, self._waiters.pause) if self._waiters else _IDLE_SECONDS

    def _serve(self, requests: list[Request]) -> list[Wake]:
        wanted = [request for request in requests if not request.is_abandoned]
        if not wanted:
            return []
        deadline = min(request.deadline for request in wanted)
        try:
            execute = self._begin(deadline, is_lasting=any(request.is_lasting for request in wanted))
        except Exception as error:
            self._fail([request for request in wanted if request.take()], error)
            return []
        # Taken only now: while another process holds the lock they can still be withdrawn.
        return self._carry_out(execute, [request for request in wanted if request.take()])

    def _do_rest(self, *, is_idle: bool) -> None:
        is_due = self._has_more_to_purge or time.monotonic() >= self._next_purge
        if is_idle and is_due and not self._is_closed and self._file.was_opened:
            self._purge_idly()
        if self._waiters:
            self._watch()

    def _carry_out(self, execute: Execute, requests: list[Request]) -> list[Wake]:
        """Carry out requests in the transaction that was begun, all together or, if that fails, one by one."""
        try:
            transaction = self._commit(execute, requests)
        except Exception as error:
            if len(requests) < 2:
                self._fail(requests, error)
                return []
            self._disconnect()
            return self._carry_out_each(requests)
        try:
            self._file.check()
        except StoreUnavailableError as error:  # it was committed to a file that is gone
            self._disconnect()
            self._file.failed(self.name, error)
            for request in requests:
                request.error = self._file.translate(error)
            return []
        self._file.works(self.name)
        return self._waiters.tell(transaction.news)

    def _carry_out_each(self, requests: list[Request]) -> list[Wake]:
        """Carry out each request in a transaction of its own."""
        wakes: list[Wake] = []
        for done, request in enumerate(requests):
            try:
                execute = self._begin(request.deadline, is_lasting=request.is_lasting)
            except Exception as error:  # the fault of none of them
                self._fail(requests[done:], error)
                break
            wakes += self._carry_out(execute, [request])
        return wakes

    def _commit(self, execute: Execute, requests: list[Request]) -> Transaction:
        transaction = Transaction(execute, self._known, self._clock.now())
        self._since_purge += len(requests)
        if self._since_purge >= _PURGE_EVERY:
            self._purge_some(transaction)
        for request in requests:
            request.error = None
            try:
                request.value = request.operation(transaction)
            except TaskRuntimeError as error:
                request.error = error
        self._complete(transaction)
        execute("COMMIT")
        self.served += 1
        return transaction

    def _begin(self, deadline: float, *, is_lasting: bool) -> Execute:
        """Begin a transaction; what is not lasting is committed without waiting for the disk."""
        execute = self._connected(deadline)
        self._file.check()
        synchronous: Synchronous = self._file.synchronous if is_lasting else "normal"
        if synchronous != self._current_synchronous:
            execute(f"PRAGMA synchronous = {synchronous}")
            self._current_synchronous = synchronous
        patiently(partial(execute, "BEGIN IMMEDIATE"), deadline)
        if isinstance(self._clock, MachineClock) and self._clock.has_slept():
            self._clock.agree_within(execute)
        return execute

    def _purge_some(self, transaction: Transaction) -> None:
        self._since_purge = 0
        self._next_purge = time.monotonic() + _IDLE_SECONDS
        self._has_more_to_purge = self._purge(transaction, _PURGE_MOST) == _PURGE_MOST

    def _purge_idly(self) -> None:
        try:
            execute = self._begin(time.monotonic() + self._timeout, is_lasting=False)
            transaction = Transaction(execute, self._known, self._clock.now())
            self._purge_some(transaction)
            self._complete(transaction)
            execute("COMMIT")
        except Exception as error:
            self._has_more_to_purge = False
            self._next_purge = time.monotonic() + _IDLE_SECONDS
            self._note_outage(error)
        else:
            wake_all(self._waiters.tell(transaction.news))

    def _watch(self) -> None:
        now = time.monotonic()  # paces the watching; no task's time
        if self._waiters.is_scanning or now < self._next_watch:
            return
        try:
            execute = self._connected(now)
            self._file.check()
            (version,) = execute("PRAGMA data_version").fetchone()
        except Exception as error:
            self._note_outage(error)
        else:
            if version != self._version:
                self._version = version
                self._reader.scan()
        self._next_watch = now + max(WATCH_SECONDS, self._waiters.pause)

    def _note_outage(self, error: Exception) -> None:
        """Log that background work failed because the file is unavailable; the next caller sees the error."""
        self._disconnect()
        translated = self._file.translate(error)
        if isinstance(translated, StoreUnavailableError) and not is_locked(error):
            self._file.failed(self.name, translated)
