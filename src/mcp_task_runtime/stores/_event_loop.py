"""`start_background_task`: a task that no task group owns, on whichever event loop runs.

Whatever is opened on first use and shared by everybody has no task group of its own to live in, and
must not live in that of the caller who happened to come first. Here alone the event loop is asked itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["start_background_task"]

_background_tasks: set[asyncio.Task[None]] = set()
"""asyncio itself keeps only weak references to tasks."""


def start_background_task(function: Callable[[], Awaitable[None]]) -> None:
    """Start a task that the event loop cancels when it ends. The function must raise no exception."""
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
