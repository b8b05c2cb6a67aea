"""Tasks that wait on a question: what one costs in memory, and how answering many grows with their number."""

from __future__ import annotations

import gc
import logging
import tracemalloc

import anyio

from mcp_task_runtime import Execution, InMemoryTaskStore, QueuedMessage, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.questions import ask_question
from tests.benchmarks.measuring import row, seconds

FORM: JSONObject = {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}
ANSWER: JSONObject = {"1": {"action": "accept", "content": {}}}


async def start_waiting(runtime: TaskRuntime, count: int) -> list[str]:
    async def work(execution: Execution[JSONObject]) -> JSONObject:
        assert execution.record is not None
        question = QueuedMessage.request("1", "elicitation/create", FORM)
        answer = await ask_question(runtime.store, runtime.queue, execution.record.task_id, question)
        assert answer is not None
        return answer.unwrap()

    task_ids = [(await runtime.submit(TaskSpec(), work)).task_id for _ in range(count)]
    await anyio.wait_all_tasks_blocked()
    return task_ids


async def bytes_of_one(started: str) -> float:
    """Return the bytes that one more of something that waits needs."""
    count = 2000

    async def wait_for_event() -> None:
        with anyio.CancelScope():
            await anyio.Event().wait()

    async with TaskRuntime(InMemoryTaskStore()) as runtime, anyio.create_task_group() as group:
        await start_waiting(runtime, 10)
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        if started == "task":
            await start_waiting(runtime, count)
        else:
            for _ in range(count):
                group.start_soon(wait_for_event)
            await anyio.wait_all_tasks_blocked()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await runtime.drain()
        group.cancel_scope.cancel()
    return float(after - before) / count


async def answering(count: int) -> float:
    """Return the seconds it takes to answer so many waiting tasks and see them all end."""
    settings = TaskSettings(max_tasks_per_owner=None)
    async with TaskRuntime(InMemoryTaskStore(), settings=settings) as runtime:
        task_ids = await start_waiting(runtime, count)

        async def answer_all() -> None:
            for task_id in task_ids:
                await runtime.answer(task_id, ANSWER, owner=None)
            for task_id in task_ids:
                await runtime.result(task_id, owner=None)

        return await seconds(answer_all)


async def main() -> None:
    logging.disable(logging.CRITICAL)
    floor, task = await bytes_of_one("coroutine"), await bytes_of_one("task")
    row(
        "A task that waits on a question, in memory",
        "≤ 5 KiB",
        f"{task / 1024:.1f} KiB, of which {floor / 1024:.1f} KiB are anyio's for any cancellable coroutine that waits",
    )
    few, many = await answering(1_000), await answering(10_000)
    row("10,000 waiting tasks answered: time / that of 1,000", "about 10", f"{many / few:.1f} ({many:.2f} s)")


if __name__ == "__main__":
    anyio.run(main)
