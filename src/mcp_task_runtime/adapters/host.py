"""`RuntimeHost`: one runtime for everybody who holds it, open from the first to the last.

A server's lifespan is entered once for an HTTP application or a stdio process, but once for each
client in process and over SSE. Those entries overlap in any order, while a task group must be left
by the task that entered it. So the runtime lives in a background task of its own on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType

import anyio
import anyio.lowlevel
from typing_extensions import Self

from mcp_task_runtime.core.questions import CLEANUP_SECONDS
from mcp_task_runtime.core.runtime import TaskRuntime

__all__ = ["RuntimeHost"]

logger = logging.getLogger(__name__)


class _Opening:
    """One time the runtime is open: on one event loop, for a number of holders."""

    def __init__(self) -> None:
        self.loop = anyio.lowlevel.current_token()
        self.holders = 0
        self.error: BaseException | None = None
        self.opened = anyio.Event()
        self.released = anyio.Event()
        self.closed = anyio.Event()


class RuntimeHost:
    """Holds a runtime open. Enter it as often and from wherever you like."""

    def __init__(self, runtime: TaskRuntime) -> None:
        """Make a host for a runtime, which nobody else may open then."""
        self._runtime = runtime
        self._opening: _Opening | None = None

    async def __aenter__(self) -> Self:
        """Open the runtime, unless it is open. An error while opening is raised in every holder."""
        opening = self._current()
        while opening is not None and opening.released.is_set():
            await opening.closed.wait()
            opening = self._current()
        if opening is None:
            opening = self._opening = _Opening()
            _start_background_task(partial(self._host, opening))
        opening.holders += 1
        try:
            await opening.opened.wait()
        except BaseException:
            self._release(opening)
            raise
        if opening.error is not None:
            raise opening.error
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go; the last holder waits until the runtime has drained and closed."""
        opening = self._opening
        if opening is None or not self._release(opening):
            return
        with anyio.move_on_after(self._runtime.settings.shutdown_grace + 2 * CLEANUP_SECONDS, shield=True):
            await opening.closed.wait()

    def _current(self) -> _Opening | None:
        """Return the opening on this event loop; one on another loop died with it."""
        opening = self._opening
        return opening if opening is not None and opening.loop == anyio.lowlevel.current_token() else None

    def _release(self, opening: _Opening) -> bool:
        opening.holders -= 1
        if opening.holders == 0:
            opening.released.set()
            return True
        return False

    async def _host(self, opening: _Opening) -> None:
        try:
            async with self._runtime:
                opening.opened.set()
                await opening.released.wait()
        except Exception as error:
            opening.error = error
            logger.exception("The task runtime could not be opened or closed")
        finally:
            if self._opening is opening:
                self._opening = None
            opening.released.set()
            opening.opened.set()
            opening.closed.set()


_background_tasks: set[asyncio.Task[None]] = set()
"""asyncio itself keeps only weak references to tasks."""


def _start_background_task(function: Callable[[], Awaitable[None]]) -> None:
    """Start a task that no task group owns; the event loop cancels it when it ends."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # the only other event loop of anyio
        import trio

        trio.lowlevel.spawn_system_task(function)
        return

    async def run() -> None:
        await function()

    task = loop.create_task(run())
    _background_tasks.add(task)
    task.add_done_callback(_background_tasks.discard)
