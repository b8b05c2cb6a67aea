"""A runtime over the in-memory backend with a clock of our own, and what tests ask of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from mcp_task_runtime import (
    Answer,
    Execution,
    InMemoryTaskStore,
    QueuedMessage,
    TaskMessageQueue,
    TaskRuntime,
    TaskSettings,
    TaskStatus,
    TaskStore,
)
from mcp_task_runtime.core.questions import ask_question
from mcp_task_runtime.core.types import TaskFilter
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue, YieldingTaskStore
from tests.support.patience import PATIENCE

ACCEPT: dict[str, Any] = {"action": "accept", "content": {}}


@dataclass(frozen=True)
class World:
    """A runtime, what it stands on, and its clock.

    Attributes:
        memory: The in-memory store itself, also where `store` wraps it.
        store: What the runtime uses.
        queue: What the runtime uses.
        runtime: The runtime.
        clock: The clock of it all.
    """

    memory: InMemoryTaskStore
    store: TaskStore
    queue: TaskMessageQueue
    runtime: TaskRuntime
    clock: FakeClock

    async def until(self, task_id: str, *statuses: TaskStatus) -> TaskStatus:
        """Wait until the task has one of these statuses; return it."""
        record = await self.memory.get_task(task_id)
        assert record is not None
        while record.status not in statuses:
            record = await self.memory.wait_for_update(task_id, after=record.revision)
        return record.status

    async def until_asked(self, task_id: str, count: int = 1) -> list[str]:
        """Wait until the task has so many open questions; return their keys."""
        while True:
            questions = await self.memory.message_queue.outstanding(task_id)
            record = await self.memory.get_task(task_id)
            assert record is not None
            if len(questions) >= count and record.status == "input_required":
                return [question.key or "" for question in questions]
            await self.memory.wait_for_update(task_id, after=record.revision)

    async def until_idle(self) -> None:
        """Wait until no work runs."""
        while self.runtime.statistics().calls:
            await anyio.lowlevel.checkpoint()

    async def ask(self, execution: Execution[Any], key: str = "1") -> Answer:
        """Put a question from inside the work of a task."""
        assert execution.record is not None
        return await ask(self.store, self.queue, execution.record.task_id, key)

    def kept(self) -> dict[str, int]:
        """Count what runtime and queue keep for live tasks; the store keeps ended ones for their retention."""
        statistics = self.runtime.statistics()
        return {
            "calls": statistics.calls,
            "running": len(statistics.running),
            "deadlines": statistics.deadlines,
            "mailboxes": self.memory.statistics().mailboxes,
        }

    def live_tasks(self) -> int:
        """Count tasks that have not ended."""
        return self.memory.statistics().live

    async def statuses(self) -> list[TaskStatus]:
        """Return the status of each task, the oldest first."""
        page = await self.memory.search_tasks(TaskFilter(), newest_first=False, limit=10_000)
        return [record.status for record in page.records]


NOTHING = {"calls": 0, "running": 0, "deadlines": 0, "mailboxes": 0}


async def ask(store: TaskStore, queue: TaskMessageQueue, task_id: str, key: str = "1") -> Answer:
    """Put a question that takes any accepted form."""
    question = QueuedMessage.request(key, "elicitation/create", {"message": "?", "requestedSchema": {}})
    answer = await ask_question(store, queue, task_id, question)
    assert answer is not None, "the key was used before"
    return answer


def make_world(*, yielding: bool = False, settings: TaskSettings | None = None) -> World:
    """Make a runtime that is not open yet."""
    clock = FakeClock()
    memory = InMemoryTaskStore(clock=clock)
    store: TaskStore = YieldingTaskStore(memory) if yielding else memory
    queue: TaskMessageQueue = YieldingTaskMessageQueue(memory.message_queue) if yielding else memory.message_queue
    return World(memory, store, queue, TaskRuntime(store, queue, settings=settings), clock)


@asynccontextmanager
async def open_world(
    *, yielding: bool = False, settings: TaskSettings | None = None, forgets_deadlines: bool = True
) -> AsyncIterator[World]:
    """Open a runtime for a block; work that still runs after it is stopped without a grace period."""
    world = make_world(yielding=yielding, settings=settings or TaskSettings(shutdown_grace=0))
    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            yield world
    kept = world.kept()
    if not forgets_deadlines:  # those of detached tasks, which the runtime may not see ending
        kept["deadlines"] = 0
    assert kept == NOTHING, f"kept after the runtime was closed: {kept}"
    assert world.clock.waiting == 0, "something still waits"
