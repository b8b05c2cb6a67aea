"""How soon clients that poll see the end of a task, and after how many polls, in virtual time.

The pollers are those of others: `poll_task` of `mcp` 1.x, which takes the interval of each answer, and a client that
keeps the interval of the handle, as some do. Time passes while a poller sleeps, and at no other time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import anyio
from mcp import ClientSession, types
from mcp.server.fastmcp import FastMCP
from mcp.shared.experimental.tasks import polling
from mcp.shared.memory import create_connected_server_and_client_session

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.testing.clock import FakeClock
from tests.benchmarks.measuring import row

LIVES = {"10 ms": 0.01, "1 s": 1.0, "30 s": 30.0, "10 minutes": 600.0}
BOUNDS = {"10 ms": "≤ 40 ms"}
TTL_MS = 3_600_000

poller: Any = polling  # its `sleep` is replaced


async def start(client: ClientSession, life: float) -> types.Task:
    params = types.CallToolRequestParams(name="wait", arguments={"seconds": life}, task=types.TaskMetadata(ttl=TTL_MS))
    request = types.ClientRequest(types.CallToolRequest(params=params))
    return (await client.send_request(request, types.CreateTaskResult)).task


async def keeping(client: ClientSession, task: types.Task) -> AsyncIterator[types.GetTaskResult]:
    """Poll as a client does that keeps the interval of the handle."""
    while True:
        polled = await client.experimental.get_task(task.taskId)
        yield polled
        if polled.status in ("completed", "failed", "cancelled"):
            return
        await poller.anyio.sleep((task.pollInterval or 500) / 1_000)


def following(client: ClientSession, task: types.Task) -> AsyncIterator[types.GetTaskResult]:
    """Poll as the SDK does."""
    return client.experimental.poll_task(task.taskId)


async def seen(
    client: ClientSession,
    clock: FakeClock,
    life: float,
    poll: Callable[[ClientSession, types.Task], AsyncIterator[types.GetTaskResult]],
) -> tuple[float, int]:
    """Return after how many seconds of virtual time the end of a task is seen, and the number of polls."""
    began = clock.now()
    task = await start(client, life)
    await anyio.wait_all_tasks_blocked()
    polls = 0
    async for _ in poll(client, task):
        polls += 1
    return (clock.now() - began).total_seconds(), polls


async def main() -> None:
    logging.disable(logging.CRITICAL)
    clock = FakeClock()
    mcp: FastMCP[Any] = FastMCP("pollers")
    tasks = Tasks(InMemoryTaskStore(clock=clock))
    tasks.install(mcp)

    @tasks.tool()
    async def wait(seconds: float, task: ServerTaskContext) -> str:
        with clock.move_on_at(clock.now() + timedelta(seconds=seconds)):
            await anyio.sleep_forever()
        return "done"

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        await anyio.wait_all_tasks_blocked()

    poller.anyio = SimpleNamespace(sleep=sleep)
    async with tasks, create_connected_server_and_client_session(mcp) as client:
        for name, life in LIVES.items():
            after, polls = await seen(client, clock, life, following)
            kept_after, kept_polls = await seen(client, clock, life, keeping)
            row(
                f"`poll_task` of `mcp` 1.x sees the end of a task of {name}",
                BOUNDS.get(name, ""),
                f"{shown(after)} ({polls} polls; keeping the first interval: {shown(kept_after)}, {kept_polls} polls)",
            )


def shown(seconds: float) -> str:
    return f"{1_000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


if __name__ == "__main__":
    anyio.run(main)
