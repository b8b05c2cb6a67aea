"""`mcp-tasks worker`: a process that runs the tasks of a server, and serves no client."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, Protocol, cast

import anyio
import anyio.abc

from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.operations._leaving import leave_now, leave_soon
from mcp_task_runtime.operations._signals import stop_signals

__all__ = ["load_worker", "run_worker"]

logger: logging.Logger = logging.getLogger(__name__)

_BLOCKED_SECONDS: Final = 10.0
"""How long after its grace period work may take to stop; the ends of other work are written long before."""


class Worker(Protocol):
    """What this command needs of the `Tasks` of a server."""

    @property
    def runtime(self) -> TaskRuntime:
        """Runs the tasks."""
        ...

    async def work(self, *, concurrency: int = 8, tools: Collection[str] | None = None) -> None:
        """Run tasks that wait for a worker, until cancelled."""
        ...


def load_worker(path: str) -> Worker:
    """Import the `Tasks` that a path names, from the current folder too.

    Args:
        path: `package.module:name`.

    Raises:
        ValueError: It names nothing, or something else; the message says what.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ValueError("name the Tasks of the server as package.module:tasks")
    if not all(part.isidentifier() for part in module_name.split(".")):  # a path, or a relative name
        raise ValueError(f"there is no module {module_name!r}; write a module, and no file, as package.module:tasks")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"there is no module {module_name!r}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{module_name} has no {name!r}")
        found = getattr(found, part)
    if isinstance(found, type) or not callable(getattr(found, "work", None)):
        raise ValueError(f"{path} is no Tasks object, but of the class {type(found).__name__}")
    return cast(Worker, found)


async def run_worker(worker: Worker, *, concurrency: int, tools: Collection[str] | None) -> None:
    """Work until SIGTERM or SIGINT; then take no more, and give what runs its grace period. A second one ends it now.

    A thread cannot be stopped. Work that blocks one is handed over, or fails, all the same; the process does not wait
    for it longer than 10 seconds, and ends within 5 seconds when this returns.

    Raises:
        LookupError: A tool is unknown, or there is none.
        RuntimeError: The Tasks cannot be a worker's.
        StoreError: The store cannot be used.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            await group.start(_stop_on_signal, worker, scope, group)
            logger.info("Working for %s, %d at once", _listed(tools), concurrency)
            try:
                await worker.work(concurrency=concurrency, tools=tools)
            except Exception as error:
                failure = error
        await _close(worker.runtime.store)
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    logger.info("Stopped working")
    leave_soon()


def _listed(tools: Collection[str] | None) -> str:
    return "all tools" if tools is None else ", ".join(sorted(tools))


async def _stop_on_signal(
    worker: Worker,
    scope: anyio.CancelScope,
    group: anyio.abc.TaskGroup,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    with stop_signals() as signals:
        task_status.started()
        async for number in signals:
            if scope.cancel_called:
                os._exit(128 + number)
            logger.info("Stopping: work that runs may end within its grace period")
            scope.cancel()
            group.start_soon(_leave_if_blocked, worker.runtime)


async def _leave_if_blocked(runtime: TaskRuntime) -> None:
    """End the process if work has not ended long after it was stopped: it waits for a thread, and does not let go."""
    await anyio.sleep(runtime.settings.shutdown_grace + _BLOCKED_SECONDS)
    if runtime.statistics().calls:
        leave_now()


async def _close(store: object) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(store, "aclose", None)
    if close is not None:
        await close()
