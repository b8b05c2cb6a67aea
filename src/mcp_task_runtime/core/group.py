"""`IsolatedGroup`: a task group that no task in it can break (law L13)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextvars import Context
from types import TracebackType

import anyio
import anyio.abc
import anyio.lowlevel
from typing_extensions import Self

__all__ = ["IsolatedGroup"]

logger: logging.Logger = logging.getLogger(__name__)

_EMPTY = Context()


class IsolatedGroup:
    """Runs functions apart from their callers. Open it as an async context manager; it can be opened again.

    An exception that leaves a function goes to the log. A cancellation passes only if the function's own scope, a
    scope around the group or the end of the event loop asked for it: on asyncio, work that awaits a future which
    other code cancelled raises `CancelledError`, and would take the whole group with it.

    On asyncio a function costs its task and its own scope: anyio's group would add a scope, an event and a handle to
    each, 2 KiB for work that may wait for days.
    """

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._sentinel: anyio.CancelScope | None = None
        self._loop_ends = False
        self._is_cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None  # where functions run as tasks of asyncio
        self._tasks: dict[asyncio.Task[None], anyio.CancelScope | None] = {}
        self._emptied: anyio.Event | None = None
        self._on_done = self._forget  # bound once: each task keeps it

    @property
    def is_open(self) -> bool:
        """Whether functions can be started."""
        return self._group is not None

    async def __aenter__(self) -> Self:
        if self._group is not None:
            raise RuntimeError("The group is already open")
        self._loop_ends = self._is_cancelled = False
        self._loop = _plain_asyncio_loop()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._sentinel = anyio.CancelScope()
        self._group.start_soon(self._watch_loop, self._sentinel)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until everything has ended. Cancelled, it cancels what runs."""
        group = self._group
        assert group is not None
        assert self._sentinel is not None
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            self._loop_ends = True  # or a scope around the group was cancelled: no cancellation in it is stray
        self._sentinel.cancel()
        try:
            try:
                await self._join()
            except BaseException as error:
                await group.__aexit__(type(error), error, error.__traceback__)
                raise
            # Without this block's exception: the group would cancel what runs and wrap it. Without returning its
            # answer: on trio that says that the exception, which it never saw, was handled.
            await group.__aexit__(None, None, None)
        finally:
            self._group = None

    def start(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope | None = None) -> None:
        """Start a function inside a cancel scope of its own, with the caller's context variables.

        Args:
            function: What to run.
            scope: The scope; `None` for one that is made when the function begins. A callback of the event loop passes
                none: anyio can make no scope where no task runs.

        Raises:
            RuntimeError: The group is not open.
        """
        if self._group is None:
            raise RuntimeError("The group is not open")
        if self._loop is None:
            if scope is None:
                self._group.start_soon(self._run_in_new_scope, function)
            else:
                self._group.start_soon(self._run, function, scope)
            return
        if self._is_cancelled and scope is not None:
            scope.cancel()
        task = self._loop.create_task(self._run_in_new_scope(function) if scope is None else self._run(function, scope))
        self._tasks[task] = scope
        task.add_done_callback(self._on_done, context=_EMPTY)  # the context of the caller would be copied, and kept

    def cancel_soon(self, scope: anyio.CancelScope) -> None:
        """Cancel the scope of a started function once what is due in this turn of the event loop has run.

        A function that ends in this turn is not cancelled: a cancellation costs ten times as much.
        """
        if self._loop is None or self._group is None:
            scope.cancel()
        else:
            self._loop.call_soon(scope.cancel)

    async def is_stray(self, scope: anyio.CancelScope) -> bool:
        """Return whether a cancellation that a started function has caught was asked for by nothing around it.

        Args:
            scope: The function's scope.
        """
        if scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
            return False
        # An event loop that ends cancels every task in one turn; the sentinel waits for nothing else. What opened the
        # group is one of them, and may close it in that turn, before the sentinel.
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return not self._loop_ends and not scope.cancel_called

    async def _join(self) -> None:
        """Wait for the tasks of asyncio. Cancelled, it cancels them, through their scopes: shields in them hold."""
        try:
            await self._until_empty()
        except anyio.get_cancelled_exc_class():
            self._loop_ends = self._is_cancelled = True
            for scope in list(self._tasks.values()):
                if scope is not None:
                    scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._until_empty()
            raise

    async def _until_empty(self) -> None:
        while self._tasks:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not self._tasks and self._emptied is not None:
            self._emptied.set()

    async def _run(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        try:
            with scope:
                running = function()
                del function  # what it holds may be needed only at the beginning
                await running
        except KeyboardInterrupt:
            raise
        except anyio.get_cancelled_exc_class():
            if not await self.is_stray(scope):
                raise
            logger.exception("A task of the runtime was cancelled by code that does not own it")
        except BaseException:  # SystemExit and groups too
            logger.exception("A task of the runtime raised an exception")

    async def _run_in_new_scope(self, function: Callable[[], Awaitable[None]]) -> None:
        scope = anyio.CancelScope()
        if self._loop is not None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks[task] = scope
            if self._is_cancelled:
                scope.cancel()
        await self._run(function, scope)

    async def _watch_loop(self, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                self._loop_ends = self._loop_ends or not scope.cancel_called
                raise


def _plain_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop, if it is one of asyncio whose tasks begin later; some are set up to begin them at once."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop if loop.get_task_factory() is None else None
