"""`RuntimeHost`: a reference-counted runtime. It opens with its first holder and closes with its last.

A server's lifespan is entered once for an HTTP application or a stdio process, but once for each
client in process and over SSE. Those entries overlap in any order, while a task group must be left
by the task that entered it. So the runtime lives in a background task of its own on the event loop.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from typing_extensions import Self

from mcp_task_runtime.core.event_loop import asyncio_task, start_background_task
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.store import TaskSharing
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS
from mcp_task_runtime.core.web_server import until_web_server_stops, web_workers
from mcp_task_runtime.errors import StoreError

__all__ = ["RuntimeHost"]

logger: logging.Logger = logging.getLogger(__name__)


class _Opening:
    """One time the runtime is open: on one event loop, for a number of holders."""

    def __init__(self) -> None:
        task = asyncio_task()
        self._asyncio_loop = None if task is None else task.get_loop()
        self._loop = anyio.lowlevel.current_token()
        self.holders = 0
        self.is_kept = False
        self.is_usable = False
        self.is_stopped = False
        self.streams: set[anyio.CancelScope] = set()
        self.error: BaseException | None = None
        self.group: anyio.abc.TaskGroup | None = None
        self.opened = anyio.Event()
        self.released = anyio.Event()
        self.closed = anyio.Event()

    def is_here(self) -> bool:
        """Return whether it is open on the event loop that runs here."""
        task = asyncio_task()
        if task is not None:  # each request asks; anyio takes its time to say which loop it is
            return task.get_loop() is self._asyncio_loop
        return self._loop == anyio.lowlevel.current_token()


class RuntimeHost:
    """Holds a runtime open. It can be entered any number of times, from any task."""

    def __init__(self, runtime: TaskRuntime) -> None:
        """Make a host for a runtime, which nothing else may open."""
        self._runtime = runtime
        self._opening: _Opening | None = None
        self._failure = ""  # why it could not be opened, which is logged once
        self._has_warned = False

    async def __aenter__(self) -> Self:
        """Open the runtime, unless it is open. An error while opening is raised in every holder."""
        await self._hold()
        return self

    async def keep_open(self) -> None:
        """Open the runtime, unless it is open, until the event loop ends or the last holder leaves.

        For servers without a lifespan of their own: the first use opens the runtime, and no connection's
        end closes it.
        """
        opening = self._current()
        if opening is not None and opening.is_kept and opening.is_usable:
            return
        opening = await self._hold()
        if opening.is_kept:
            opening.holders -= 1
        opening.is_kept = True

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a function that is cancelled when the runtime has closed. It must not raise.

        Raises:
            RuntimeError: The runtime is not open.
        """
        opening = self._current()
        if opening is None or opening.group is None:
            raise RuntimeError("The runtime is not open")
        opening.group.start_soon(function)

    @contextmanager
    def until_stopped(self) -> Generator[anyio.CancelScope, None, None]:
        """Context manager for a block that ends early, as if its scope were cancelled, when the server is to stop.

        For what the server would wait for, and what may never end. By then the runtime has
        drained: all that follow a task have seen its end.
        """
        opening = self._current()
        with anyio.CancelScope() as scope:
            if opening is None:
                yield scope
                return
            if opening.is_stopped:
                scope.cancel()
            opening.streams.add(scope)
            try:
                yield scope
            finally:
                opening.streams.discard(scope)

    async def _stop_with_web_server(self, opening: _Opening) -> None:
        await until_web_server_stops()
        try:
            await self._runtime.drain(accept_new=False)
        except Exception:  # the runtime is still open, and reads may go on
            logger.exception("The task runtime could not be wound down")
        opening.is_stopped = True
        for scope in list(opening.streams):
            scope.cancel()

    def _warn_of_workers(self) -> None:
        """Log once that other processes do not know the tasks of this one, if it is so."""
        store = self._runtime.store
        workers = web_workers()
        if workers > 1 and isinstance(store, TaskSharing) and not store.is_shared and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "TASKS WILL BE LOST: this server runs in %d processes, and each keeps its tasks in its own memory. A "
                "request that another process takes finds no task. Give Tasks a store that the processes share, such "
                "as Tasks(open_store('sqlite:///tasks.db')), or run one process",
                workers,
            )

    async def _hold(self) -> _Opening:
        opening = self._current()
        while opening is not None and opening.released.is_set():
            await opening.closed.wait()
            opening = self._current()
        if opening is None:
            opening = self._opening = _Opening()
            # In a context of its own: the first caller's request must not live as long as the runtime.
            contextvars.Context().run(start_background_task, partial(self._host, opening))
        opening.holders += 1
        try:
            await opening.opened.wait()
        except BaseException:
            self._release(opening)
            raise
        if opening.error is not None:
            raise opening.error
        return opening

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the runtime; its last holder waits until it has drained and closed."""
        opening = self._opening
        if opening is None or not self._release(opening):
            return
        with anyio.move_on_after(self._runtime.settings.shutdown_grace + 2 * CLEANUP_SECONDS, shield=True):
            await opening.closed.wait()

    def _current(self) -> _Opening | None:
        """Return the opening on this event loop; one on another loop died with it."""
        opening = self._opening
        return opening if opening is not None and opening.is_here() else None

    def _release(self, opening: _Opening) -> bool:
        opening.holders -= 1
        if opening.holders <= opening.is_kept:
            opening.is_usable = False
            opening.released.set()
            return True
        return False

    async def _host(self, opening: _Opening) -> None:
        try:
            async with anyio.create_task_group() as opening.group:
                try:
                    async with self._runtime:
                        self._failure = ""
                        self._warn_of_workers()
                        opening.group.start_soon(self._stop_with_web_server, opening)
                        opening.is_usable = not opening.released.is_set()
                        opening.opened.set()
                        await opening.released.wait()
                except Exception as error:
                    opening.error = error
                    self._log(error)
                opening.group.cancel_scope.cancel()
        finally:
            if self._opening is opening:
                self._opening = None
            opening.is_usable = False
            opening.released.set()
            opening.opened.set()
            opening.closed.set()

    def _log(self, error: Exception) -> None:
        """Log why the runtime could not be opened: for a store one line, once, however many connections try."""
        if not isinstance(error, StoreError):
            logger.error("The task runtime could not be opened or closed", exc_info=error)
        elif str(error) != self._failure:
            self._failure = str(error)
            logger.error("The server has no tasks: %s", error)
