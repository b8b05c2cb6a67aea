"""A client that does what a test tells it to, and a task with everything around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from mcp_task_runtime import (
    InMemoryTaskStore,
    ServerTaskContext,
    TaskMessageQueue,
    TaskResultHandler,
    TaskSettings,
    TaskStore,
)
from mcp_task_runtime.core.types import NewTask, Task
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.session import Answerer, RecordingSession
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue, YieldingTaskStore
from tests.support.patience import PATIENCE

JSON = dict[str, Any]

EVERYTHING: JSON = {
    "elicitation": {"form": {}, "url": {}},
    "sampling": {"tools": {}},
    "tasks": {"requests": {"elicitation": {"create": {}}, "sampling": {"createMessage": {}}}},
}
FORM: JSON = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
ACCEPT: JSON = {"action": "accept", "content": {"ok": True}}
DECLINE: JSON = {"action": "decline"}
MESSAGE: JSON = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "hi"}, "stopReason": "endTurn"}


async def never(method: str, params: JSON) -> JSON:
    await anyio.sleep_forever()
    raise AssertionError


def answers(result: JSON) -> Answerer:
    async def answer(method: str, params: JSON) -> JSON:
        return result

    return answer


def raises(error: Exception) -> Answerer:
    async def answer(method: str, params: JSON) -> JSON:
        raise error

    return answer


class ScriptedSession(RecordingSession):
    """The kit's client, told with one function what to answer."""

    def __init__(self, answer: Answerer = never, capabilities: Any = None) -> None:
        super().__init__(answer, capabilities=EVERYTHING if capabilities is None else capabilities)


class Desk:
    """One task, its context, and who delivers its questions."""

    def __init__(self, session: ScriptedSession, *, yielding: bool = False, max_answer_bytes: int = 10_000) -> None:
        self.clock = FakeClock()
        self.memory = InMemoryTaskStore(clock=self.clock)
        self.mailboxes = self.memory.message_queue
        self.store: TaskStore = YieldingTaskStore(self.memory) if yielding else self.memory
        self.queue: TaskMessageQueue = YieldingTaskMessageQueue(self.mailboxes) if yielding else self.mailboxes
        self.handler = TaskResultHandler(
            self.store, self.queue, settings=TaskSettings(max_answer_bytes=max_answer_bytes)
        )
        self.session = session
        self.task_id = ""
        self.context: ServerTaskContext

    async def open(self, *, ttl_ms: int | None = 60_000, with_handler: bool = True, **more: Any) -> None:
        """Create the task."""
        record = await self.memory.create_task(NewTask(ttl_ms=ttl_ms))
        self.task_id = record.task_id
        self.context = self._context_of(record.task, handler=self.handler if with_handler else None, **more)

    def another_context(self, **more: Any) -> ServerTaskContext:
        """Make one more context of the task, as the first one knows it."""
        return self._context_of(self.context.task, **more)

    def _context_of(self, task: Task, **more: Any) -> ServerTaskContext:
        arguments = {"handler": self.handler, "session": self.session, **more}
        return ServerTaskContext(task=task, store=self.store, queue=self.queue, **arguments)

    async def status(self) -> str:
        """Return the task's status in the store."""
        record = await self.memory.get_task(self.task_id)
        return "gone" if record is None else record.status

    async def open_keys(self) -> list[str]:
        """Return the keys of the open questions."""
        return [question.key or "" for question in await self.mailboxes.outstanding(self.task_id)]

    async def state(self) -> tuple[str, list[str]]:
        """Return what must agree: the status, and what the open questions ask."""
        questions = await self.mailboxes.outstanding(self.task_id)
        return await self.status(), [question.params["message"] for question in questions]

    async def until_asked(self, count: int = 1) -> None:
        """Wait until so many questions are open."""
        while True:
            record = await self.memory.get_task(self.task_id)
            assert record is not None
            if len(await self.open_keys()) >= count and record.status == "input_required":
                return
            await self.memory.wait_for_update(self.task_id, after=record.revision)

    def waiters(self) -> int:
        """Count who waits, and what the handler keeps."""
        waiting = self.mailboxes.waiting
        kept = self.handler.statistics()
        return waiting + self.clock.waiting + kept.streams + kept.client_tasks


@asynccontextmanager
async def open_desk(
    answer: Answerer = never,
    *,
    capabilities: Any = None,
    yielding: bool = False,
    max_answer_bytes: int = 10_000,
    ttl_ms: int | None = 60_000,
    delivering: bool = True,
    with_handler: bool = True,
    **more: Any,
) -> AsyncIterator[Desk]:
    """Make a task whose questions go to a scripted client for as long as the block runs."""
    desk = Desk(ScriptedSession(answer, capabilities), yielding=yielding, max_answer_bytes=max_answer_bytes)
    await desk.open(ttl_ms=ttl_ms, with_handler=with_handler, **more)
    with anyio.fail_after(PATIENCE):
        if delivering:
            async with desk.handler.delivering(desk.task_id, desk.session):
                yield desk
        else:
            yield desk
    assert desk.waiters() == 0, "something still waits"
