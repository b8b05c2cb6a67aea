"""`ChangeHook`: calls a function of the server's author with each change of a task's status.

What is promised: a change that this process makes is delivered at most once, and in the order of the changes that this
process makes. A task that another process of the server ends, or an operator by `mcp-tasks`, is for that process to
report. Not promised: that each change is delivered. One is dropped, with a warning, when 1,000 wait already or when its
call takes longer than 30 seconds, and those that wait are lost when the process dies. What must not be lost is read
from the store.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

import anyio
import anyio.to_thread

from mcp_task_runtime.core.functions import is_async
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.observer import Observation, TaskChange

__all__ = ["ChangeCallback", "ChangeHook"]

logger: logging.Logger = logging.getLogger(__name__)

ChangeCallback: TypeAlias = Callable[[TaskChange], Awaitable[object] | object]
"""Called with each change of a task's status; a coroutine function, or a function, which runs in a thread."""

_LONGEST_QUEUE: Final = 1_000
_CALL_SECONDS: Final = 30.0
_MOST_THREADS: Final = 4
_FLUSH_SECONDS: Final = 5.0


class ChangeHook:
    """Delivers changes to a callback, one after the other, apart from what made them (law L13).

    A coroutine function runs on the event loop. A function runs in a thread; Python cannot stop one, so of calls that
    take too long at most 4 go on. Closing the runtime waits for what is not delivered yet, 5 seconds at most.
    """

    def __init__(self, callback: ChangeCallback) -> None:
        """Make a hook.

        Args:
            callback: What to call.

        Raises:
            ValueError: It cannot be called.
        """
        if not callable(callback):
            raise ValueError("on_change must be a function of a TaskChange")
        self._callback = callback
        self._is_async = is_async(callback)
        self._waiting: deque[TaskChange] = deque()
        self._calls: set[object] = set()
        self._is_dropping = False
        self._changed = anyio.Event()
        self._flushed = anyio.Event()
        self._is_busy = False
        self._is_over = False  # `run` has ended: nothing delivers

    @property
    def waiting(self) -> int:
        """Number of changes that wait to be delivered, or are being delivered."""
        return len(self._waiting) + self._is_busy

    def trace_context(self) -> Mapping[str, str]:
        """Return nothing; see `TaskObserver`."""
        return {}

    def observe(self, observation: Observation) -> None:
        """Take a change, for `run` to deliver."""
        if not isinstance(observation, TaskChange):
            return
        if len(self._waiting) >= _LONGEST_QUEUE:
            if not self._is_dropping:
                self._is_dropping = True
                logger.warning("on_change is too slow: %d changes wait, and more are dropped", _LONGEST_QUEUE)
            return
        self._waiting.append(observation)
        self._changed.set()

    def reset(self) -> None:
        """Expect another `run`: the runtime opens."""
        self._is_over = False

    async def run(self, group: IsolatedGroup) -> None:
        """Deliver changes until cancelled.

        Args:
            group: Runs the calls, so that nothing that one does ends this.
        """
        try:
            while True:
                while self._waiting:
                    await self._deliver_by(group)
                if self._is_dropping:
                    self._is_dropping = False
                    logger.info("on_change has caught up")
                self._flushed.set()
                self._changed = anyio.Event()
                await self._changed.wait()
        finally:
            self._is_over = True
            self._flushed.set()

    async def flush(self) -> None:
        """Wait until everything is delivered that waits now, for a few seconds at most, as long as `run` goes on."""
        with anyio.move_on_after(_FLUSH_SECONDS, shield=True):
            while self.waiting and not self._is_over:
                self._flushed = anyio.Event()
                await self._flushed.wait()

    async def _deliver_by(self, group: IsolatedGroup) -> None:
        """Have a group deliver what waits, and wait for it."""
        stopped = anyio.Event()
        scope = anyio.CancelScope()
        group.start(functools.partial(self._deliver_all, stopped), scope)
        try:
            await stopped.wait()
        finally:
            scope.cancel()

    async def _deliver_all(self, stopped: anyio.Event) -> None:
        """Deliver what waits; a call that is cancelled by code that does not own it ends this, too."""
        try:
            while self._waiting:
                self._is_busy = True
                await self._deliver(self._waiting.popleft())
        finally:
            self._is_busy = False
            stopped.set()

    async def _deliver(self, change: TaskChange) -> None:
        try:
            with anyio.move_on_after(_CALL_SECONDS) as scope:
                result: Any = self._callback(change) if self._is_async else await self._call_in_thread(change)
                if inspect.isawaitable(result):
                    await result
            if scope.cancelled_caught:
                logger.warning("on_change was given up after %d seconds", _CALL_SECONDS)
        except Exception:
            logger.exception("on_change raised an exception")

    async def _call_in_thread(self, change: TaskChange) -> object:
        if len(self._calls) >= _MOST_THREADS:
            logger.warning("on_change was not called: %d calls of it have not returned", _MOST_THREADS)
            return None
        token, begins = object(), threading.Lock()  # the lock is for the thread that begins, or for giving it up before
        self._calls.add(token)

        def call() -> object:
            if not begins.acquire(blocking=False):
                return None
            try:
                return self._callback(change)
            finally:
                self._calls.discard(token)

        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
        finally:
            if begins.acquire(blocking=False):
                self._calls.discard(token)
