"""How a worker of an engine ends: it fetches no more, and what runs has its grace period."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio

from mcp_task_runtime.core.dispatch import TaskExecutor

__all__ = ["run_workers"]


async def run_workers(workers: list[Coroutine[Any, Any, None]], tasks: TaskExecutor) -> None:
    """Run the workers of an engine until cancelled, or until one of them ends.

    They are asyncio tasks outside of any cancel scope: those engines take one cancellation for the order to wait for
    what they run, and a second one, which a scope would send, for the order to drop it.
    """
    running = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for worker in running:
            worker.cancel()
        with anyio.CancelScope(shield=True):
            await tasks.wind_down()
            await asyncio.wait(running)
    for worker in running:
        if not worker.cancelled() and (error := worker.exception()) is not None:
            raise error
