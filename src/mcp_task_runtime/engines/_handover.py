"""`Handover`: hands calls of the threads of a pool to an event loop, and each its end back."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Final

__all__ = ["Handover"]

_LOOK_SECONDS: Final = 1.0
"""How often a thread that waits looks whether the event loop is there still."""


class _Call:
    __slots__ = ("context", "done", "error", "task_id")

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.context: Context = copy_context()
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None


class Handover:
    """Runs a function of an event loop for threads, which wait for it. Calls that come together wake the loop once.

    A portal of anyio hands a thread over twice for each call, and wakes the loop each time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, execute: Callable[[str], Awaitable[object]]) -> None:
        """Make a way into an event loop.

        Args:
            loop: The event loop, which runs in another thread.
            execute: The function, which gets the identifier of a task.
        """
        self._loop = loop
        self._execute = execute
        self._waiting: deque[_Call] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._is_woken = False

    def call(self, task_id: str) -> None:
        """Run the function in the event loop; return when it has ended. Called in a thread of the pool.

        Raises:
            RuntimeError: The event loop has ended before.
        """
        call = _Call(task_id)
        self._waiting.append(call)
        if not self._is_woken:
            self._is_woken = True
            try:
                self._loop.call_soon_threadsafe(self._start)
            except RuntimeError:
                self._is_woken = False
                raise
        while not call.done.acquire(timeout=_LOOK_SECONDS):
            if self._loop.is_closed():
                raise RuntimeError("The event loop of the worker has ended")
        if call.error is not None:
            raise call.error

    def _start(self) -> None:
        self._is_woken = False  # before it looks: what comes from now on wakes the loop again
        while self._waiting:
            call = self._waiting.popleft()
            task = call.context.run(self._loop.create_task, self._run(call))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, call: _Call) -> None:
        try:
            await self._execute(call.task_id)
        except BaseException as error:  # for the thread
            call.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            call.done.release()
