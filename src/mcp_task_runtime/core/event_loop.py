"""What anyio has no function for, or a costly one, on each event loop.

A task that no task group owns, a call without a task, which task runs, and the time of the loop. What is opened on
first use and shared by all callers has no task group of its own to live in, and must not live in that of the first
caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context

import anyio

_library: ContextVar[str | None] | None = None
with suppress(ImportError):  # without it, anyio asks asyncio itself
    from sniffio import current_async_library_cvar

    _library = current_async_library_cvar

__all__ = [
    "asyncio_task",
    "call_from_any_thread",
    "call_later",
    "current_backend",
    "current_task",
    "event_loop_time",
    "start_background_task",
]

_background_tasks: set[asyncio.Task[None]] = set()
"""asyncio itself keeps only weak references to tasks."""


def asyncio_task() -> asyncio.Task[object] | None:
    """Return the asyncio task that runs, or `None` on another event loop, also where asyncio hosts that loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_task() -> int | None:
    """Return a number for the event loop's task that runs here, or `None` where no event loop runs."""
    task = asyncio_task()
    if task is not None:
        return id(task)
    try:
        return anyio.get_current_task().id
    except RuntimeError:  # no event loop runs here
        return None


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


def call_later(seconds: float, function: Callable[[], object]) -> Callable[[], None]:
    """Call a function in so many seconds, in the caller's context. It must not wait, and must raise no exception.

    On asyncio this costs a tenth of a task that sleeps.

    Returns:
        A function that prevents the call, at any time before it.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep(seconds)
            if not scope.cancel_called:
                function()

        trio.lowlevel.spawn_system_task(wait, context=copy_context())
        return scope.cancel
    return loop.call_later(seconds, _in_asyncio(function)).cancel


def event_loop_time() -> float:
    """Return what `anyio.current_time` returns, at less cost, and also in a function of `call_later`."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return anyio.current_time()


def current_backend() -> str:
    """Return the name of the event loop that runs, as `anyio.run` takes it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return "trio"
    return "asyncio"


def call_from_any_thread() -> Callable[[Callable[[], object]], None]:
    """Return a function that calls another one soon in the event loop that runs now.

    It may be called from any thread, in the order of the calls, and does not wait. It does nothing once that event
    loop has ended.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio

        token = trio.lowlevel.current_trio_token()

        def call_in_trio(function: Callable[[], object]) -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(function)

        return call_in_trio

    def call_in_asyncio(function: Callable[[], object]) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_in_asyncio(function))

    return call_in_asyncio


def _in_asyncio(function: Callable[[], object]) -> Callable[[], object]:
    """Return a function for a call without a task: sniffio, where it is installed, asks the task which loop runs."""
    library = _library
    if library is None:
        return function

    def call() -> None:
        token = library.set("asyncio")
        try:
            function()
        finally:
            library.reset(token)

    return call
