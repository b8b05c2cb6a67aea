"""Push: what tasks cost without a listener, and what a change costs that is listened to."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from functools import partial

import anyio
import anyio.lowlevel
from mcp.server import MCPServer

from mcp_task_runtime import InMemoryTaskStore, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.types import NewTask
from tests.benchmarks.measuring import rates, row, seconds
from tests.mcp_v2.listeners import Connection, Stream, memory_connection
from tests.mcp_v2.schemas import Wire

HOUR_MS = 3_600_000
LIVE = 10_000


async def serve(stack: AsyncExitStack) -> tuple[InMemoryTaskStore, Connection]:
    """Return the store of a new server, and a client of it."""
    mcp: MCPServer[None] = MCPServer("bench")
    store = InMemoryTaskStore()
    tasks = Tasks(store, settings=TaskSettings(max_listened_tasks_per_owner=None))
    tasks.install(mcp)
    await stack.enter_async_context(tasks)
    return store, await stack.enter_async_context(memory_connection(mcp))


async def new_tasks(store: InMemoryTaskStore, count: int) -> list[str]:
    return [(await store.create_task(NewTask(ttl_ms=HOUR_MS))).task_id for _ in range(count)]


async def listen(stack: AsyncExitStack, connection: Connection, task_id: str) -> Stream:
    """Open a stream for a task and read it up to the task's present state."""
    stream = await stack.enter_async_context(connection.listen(task_id))
    await received(stream)
    await received(stream)
    return stream


async def received(stream: Stream) -> Wire:
    """Return the next message as it came: to validate it would cost more than all the rest."""
    message: Wire = await stream._receive()
    assert message["method"] in ("notifications/subscriptions/acknowledged", "notifications/tasks"), message
    return message


async def change(store: InMemoryTaskStore, task_ids: list[str]) -> None:
    for task_id in task_ids:
        await store.update_task(task_id, status_message="working on it")
    for _ in range(10):  # all that the changes have set in motion counts
        await anyio.lowlevel.checkpoint()


async def unheard() -> None:
    """Compare changes without a listener while another task has one, with the same while none has."""
    async with AsyncExitStack() as stack:
        (quiet, _), (heard, connection) = await serve(stack), await serve(stack)
        (listened_to,) = await new_tasks(heard, 1)
        stream = await listen(stack, connection, listened_to)
        unheard_of, others = await new_tasks(quiet, LIVE), await new_tasks(heard, LIVE)
        both = await rates(
            {"none": partial(change, quiet, unheard_of), "one": partial(change, heard, others)},
            operations=LIVE,
            rounds=21,
        )
        await change(heard, [listened_to])
        await received(stream)
    row(
        f"{LIVE:,} tasks without a listener, while a client listens to another: rate of changes / that without it",
        "≥ 0.95",
        f"{both['one'] / both['none']:.2f} ({both['one']:,.0f} a second)",
    )


async def hearing(count: int, rounds: int = 5) -> float:
    """Return the seconds until so many changes, each of another task, have reached a listener each."""
    async with AsyncExitStack() as stack:
        store, connection = await serve(stack)
        task_ids = await new_tasks(store, count)
        streams = [await listen(stack, connection, task_id) for task_id in task_ids]

        async def change_all() -> None:
            await change(store, task_ids)
            for stream, task_id in zip(streams, task_ids, strict=True):
                message = await received(stream)
                assert message["params"]["taskId"] == task_id
                assert message["params"]["statusMessage"] == "working on it"

        return min([await seconds(change_all) for _ in range(rounds)])


async def main() -> None:
    logging.disable(logging.CRITICAL)
    await unheard()
    few, many = await hearing(100), await hearing(1_000)
    row(
        "1,000 changes that reach a listener each: time / that of 100",
        "about 10",
        f"{many / few:.1f} ({1_000 / many:,.0f} a second)",
    )
    most = await hearing(10_000, rounds=2)
    row(
        "10,000 changes that reach a listener each: time / that of 1,000",
        "about 10",
        f"{most / many:.1f} ({10_000 / most:,.0f} a second)",
    )


if __name__ == "__main__":
    anyio.run(main)
