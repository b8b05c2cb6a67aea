"""The event loop in a program that calls `asyncio.run` and not `anyio.run`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import anyio

from mcp_task_runtime.core.event_loop import call_from_any_thread, call_later


def test_a_call_without_a_task_can_start_one_in_a_program_that_asyncio_runs() -> None:
    """Sniffio, where it is installed, knows the event loop by its task alone then."""

    async def main() -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                calls: list[Any] = [partial(call_later, 0), call_from_any_thread()]
                for call in calls:
                    started = anyio.Event()

                    async def work(started: anyio.Event = started) -> None:
                        started.set()

                    call(partial(group.start_soon, work))
                    await started.wait()

    asyncio.run(main())
