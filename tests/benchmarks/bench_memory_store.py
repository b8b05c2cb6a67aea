"""The in-memory store against the one of `mcp` 1.x: the cycle create, status message, finish, get."""

from __future__ import annotations

from functools import partial

import anyio
from mcp.shared.experimental.tasks.in_memory_task_store import InMemoryTaskStore as SDKTaskStore
from mcp.types import CallToolResult, TaskMetadata, TextContent

from mcp_task_runtime import InMemoryTaskStore, Outcome
from mcp_task_runtime.core.types import NewTask
from tests.benchmarks.measuring import rates, row

HOUR_MS = 3_600_000
RESULT = CallToolResult(content=[TextContent(type="text", text="done")])
RESULT_JSON = RESULT.model_dump(by_alias=True, mode="json", exclude_none=True)


async def sdk_cycles(store: SDKTaskStore, count: int) -> None:
    for _ in range(count):
        task = await store.create_task(TaskMetadata(ttl=HOUR_MS))
        await store.update_task(task.taskId, status_message="working on it")
        await store.store_result(task.taskId, RESULT)
        await store.update_task(task.taskId, status="completed")
        await store.get_task(task.taskId)


async def our_cycles(store: InMemoryTaskStore, count: int) -> None:
    for _ in range(count):
        record = await store.create_task(NewTask(ttl_ms=HOUR_MS))
        await store.update_task(record.task_id, status_message="working on it")
        await store.finish_task(record.task_id, Outcome.completed(RESULT_JSON))
        await store.get_task(record.task_id)


async def main() -> None:
    async def sdk_from_empty() -> None:
        for _ in range(20):
            await sdk_cycles(SDKTaskStore(), 100)

    async def ours_from_empty() -> None:
        for _ in range(20):
            await our_cycles(InMemoryTaskStore(), 100)

    empty = await rates({"sdk": sdk_from_empty, "ours": ours_from_empty}, operations=2000)
    row(
        "In-memory store, the first 100 cycles from empty: our rate / that of `mcp` 1.x",
        "≥ 3",
        f"{empty['ours'] / empty['sdk']:.1f} ({empty['ours']:,.0f} / {empty['sdk']:,.0f} a second)",
    )

    sdk_store = SDKTaskStore()
    task_id = (await sdk_store.create_task(TaskMetadata(ttl=HOUR_MS))).taskId
    for number in range(10_000):  # create_task itself would take minutes
        sdk_store._tasks[str(number)] = sdk_store._tasks[task_id]
    full_sdk = await rates({"sdk": partial(sdk_cycles, sdk_store, 5)}, operations=5, rounds=3)
    row(
        "The same with 10,000 live tasks",
        "",
        f"{empty['ours'] / full_sdk['sdk']:,.0f} times (`mcp` 1.x: {full_sdk['sdk']:,.0f} a second)",
    )

    full = InMemoryTaskStore()
    for number in range(1_000_000):
        await full.create_task(NewTask(ttl_ms=HOUR_MS, owner=f"owner-{number % 1000}"))
    both = await rates(
        {"empty": partial(our_cycles, InMemoryTaskStore(), 2000), "full": partial(our_cycles, full, 2000)},
        operations=2000,
    )
    row(
        "In-memory store with 1,000,000 live tasks: rate / that of an empty one",
        "≥ 0.7",
        f"{both['full'] / both['empty']:.2f}",
    )


if __name__ == "__main__":
    anyio.run(main)
