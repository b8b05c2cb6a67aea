"""`Engine`: one database file, as a store and its queue share it. Knows nothing of tasks but their ids.

Two threads serve it, see `_lane`; they start when they are first needed. An operation hops to a thread and back
once. What one event loop asks for while the thread is busy travels as one batch, with one event; the way back is the
event loop's own (`call_soon_threadsafe`, `run_sync_soon`), so one engine serves any number of event loops.

Waiters within the process are woken after each commit, with what they wait for where the writer has it. For commits
of other processes the writer, as long as there are waiters, looks every `WATCH_SECONDS` at `PRAGMA data_version`,
which changes when another connection has committed; it costs some microseconds. On a change the reader looks for all
waiters and wakes those whose wait is over. If that takes long, because thousands wait, it is done less often.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.stores._threads import event_loop, poster
from mcp_task_runtime.stores.sqlite._clock import MachineClock
from mcp_task_runtime.stores.sqlite._file import DatabaseFile
from mcp_task_runtime.stores.sqlite._lane import Lane, Request
from mcp_task_runtime.stores.sqlite._reader import Reader
from mcp_task_runtime.stores.sqlite._schema import Synchronous
from mcp_task_runtime.stores.sqlite._statistics import SQLiteStatistics
from mcp_task_runtime.stores.sqlite._transaction import Operation, Transaction
from mcp_task_runtime.stores.sqlite._waiters import Look, Waiter, Waiters, Watcher, wake_all
from mcp_task_runtime.stores.sqlite._writer import Writer

__all__ = ["Engine"]

T = TypeVar("T")

_CLOSE_SECONDS = 30.0


def _do_nothing(_: Transaction) -> None:
    pass


def _close_lanes(*lanes: Lane) -> None:
    for lane in lanes:
        lane.close()


class Engine:
    """One database file, as a store and its queue share it.

    It opens when it is first used, and then serves every event loop that calls. If it is not closed, it closes
    when the last reference to it is gone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None,
        synchronous: Synchronous,
        timeout: float,
        purge: Callable[[Transaction, int], int],
        complete: Callable[[Transaction], None],
    ) -> None:
        """Make an engine; nothing is opened yet.

        Args:
            path: The database file, on a local disk.
            clock: Where time comes from, the machine's when `None`; `now` is called in threads.
            synchronous: How safe a commit is.
            timeout: Seconds that an operation is repeated while the file is locked or unavailable.
            purge: Removes what has expired, up to a number of tasks, and returns how many it removed.
            complete: Called at the end of each transaction that writes.

        Raises:
            ValueError: `path` does not name a file, `synchronous` is unknown, or `timeout` is not above 0.
        """
        name = os.fspath(path)
        if name in ("", ":memory:") or "\0" in name:
            raise ValueError("path must name a file; use InMemoryTaskStore for tasks in memory")
        if synchronous not in ("full", "normal"):
            raise ValueError("synchronous must be 'full' or 'normal'")
        if not timeout > 0:
            raise ValueError("timeout must be above 0")
        self.clock: Clock = MachineClock() if clock is None else clock
        self._timeout = timeout
        self._waiters = Waiters()
        file = DatabaseFile(os.path.abspath(name), clock=self.clock, synchronous=synchronous)
        self._reader = Reader(file, self._waiters, timeout)
        self._writer = Writer(file, self._waiters, timeout, self._reader, purge, complete)
        weakref.finalize(self, _close_lanes, self._writer, self._reader)

    async def open(self) -> None:
        """Open the file, make sure that it can be written, and migrate it; the first use does so as well.

        A lock is waited for. Everything else that keeps the file from being opened is raised at once.
        """
        await self._carry_out(Request(_do_nothing, self._deadline(), is_opening=True))

    async def write(self, operation: Operation[T], *, is_lasting: bool = True) -> T:
        """Carry out an operation in a transaction that is committed, maybe with others, before this returns.

        Cancelled, it is withdrawn if its transaction has not begun. Otherwise this returns the result as soon
        as it is known, and the cancellation comes at the next checkpoint: so it never happens later, and no
        result is lost.

        Args:
            operation: What to do; it runs in a thread.
            is_lasting: Whether a power failure must not undo it.
        """
        result: T = await self._carry_out(Request(operation, self._deadline(), is_lasting=is_lasting))
        return result

    async def read(self, operation: Operation[T]) -> T:
        """Carry out an operation that changes nothing."""
        request = Request(operation, self._deadline())
        try:
            await _served(self._reader, request, self._reader.put(request))
        except BaseException:
            request.is_abandoned = True
            request.take()
            raise
        result: T = request.result()
        return result

    async def wait(self, task_id: str, look: Look[T]) -> T:
        """Return what a look finds as soon as it finds something; look when the task has changed, and in time."""
        waiter = Waiter(task_id, look)
        is_first = self._waiters.add(waiter)
        try:
            if is_first:
                self._writer.wake()  # it has to watch from now on
            while True:
                waiter.event = Signal()  # before the look: a change after it sets this one
                found, until = await self.read(look)
                if found is not None:
                    return found
                if waiter.found is None:
                    with self.clock.move_on_at(until):
                        await waiter.event.wait()
                if waiter.found is not None:
                    told: T = waiter.found
                    return told
        finally:
            self._waiters.discard(waiter)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call a watcher's function when its task may have changed, until the function returned is called."""
        if self._waiters.add(watcher):
            self._writer.wake()  # it has to watch from now on
        return partial(self._waiters.discard, watcher)

    def wake_waiters(self) -> None:
        """Have all waiters look again."""
        wake_all([(waiter.post, waiter.event) for waiter in self._waiters.all()])

    def statistics(self) -> SQLiteStatistics:
        """Return figures of this engine."""
        return SQLiteStatistics(
            writes=self._writer.served,
            reads=self._reader.served,
            queued=self._writer.queued + self._reader.queued,
            waiting=len(self._waiters),
        )

    async def aclose(self) -> None:
        """Finish what was asked for, close the file, and wake waiters with `StoreClosedError`. Never cancelled."""
        post = poster(event_loop())
        closing: list[tuple[Thread, anyio.Event]] = []
        for lane in (self._writer, self._reader):
            closed = anyio.Event()
            thread = lane.close(partial(wake_all, [(post, closed)]))
            if thread is not None:
                closing.append((thread, closed))
        self.wake_waiters()  # after the lanes are closed, so that no caller begins to wait again
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            for thread, closed in closing:
                await closed.wait()
                thread.join()  # it has nothing left to do

    async def _carry_out(self, request: Request) -> Any:
        done = self._writer.put(request)
        try:
            await _served(self._writer, request, done)
        except BaseException as interruption:
            request.is_abandoned = True
            if request.take():
                raise
            with anyio.CancelScope(shield=True):
                await _served(self._writer, request, done)
            if not _comes_again(interruption):
                raise
        return request.result()

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout


async def _served(lane: Lane, request: Request, done: anyio.Event) -> None:
    """Wait until a lane has served a request."""
    event: anyio.Event | None = done
    while event is not None:
        await event.wait()
        event = lane.later(request)


def _comes_again(interruption: BaseException) -> bool:
    """Whether an interruption is a cancellation that the next checkpoint raises again, and so may be dropped.

    That of a cancel scope is; asyncio's own `Task.cancel` is not.
    """
    is_cancelled = isinstance(interruption, anyio.get_cancelled_exc_class())
    return is_cancelled and anyio.current_effective_deadline() == -math.inf
