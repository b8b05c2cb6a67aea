"""The operators' inbox on `mcp` 2.x: a form waits for a person where the client cannot be asked."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.operations.inspect import TaskInspector
from mcp_task_runtime.server import Tasks
from tests.mcp_v1.raw_client import never
from tests.mcp_v2.in_process import connect_2025, memory_client
from tests.mcp_v2.raw_client import DECLARED, EXTENSION_ID, RawClient, accept
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

MUTE: Wire = {"extensions": {EXTENSION_ID: {}}}
"""What a client declares that takes tasks and answers nothing."""


class Confirm(BaseModel):
    ok: bool


async def asks(task: ServerTaskContext) -> str:
    answer = await task.elicit("Publish it?", Confirm)
    return f"{answer.action} {answer.data.ok if answer.action == 'accept' else None}"


async def asks_by_itself(ctx: Context) -> str:
    """A tool that knows nothing of tasks."""
    answer = await ctx.elicit("Publish it?", Confirm)
    return f"{answer.action} {answer.data.ok if answer.action == 'accept' else None}"


async def asks_with_context(ctx: Context, task: ServerTaskContext) -> str:
    """A tool that asks as the SDK does, although it has a task."""
    return await asks_by_itself(ctx)


async def writes(task: ServerTaskContext) -> str:
    return (await task.create_message([], max_tokens=1)).text


class Office:
    """A server with an inbox, and a person who looks into it."""

    def __init__(self, **options: Any) -> None:
        self.store = InMemoryTaskStore()
        self.mcp: MCPServer[Any] = MCPServer("office")
        self.tasks = Tasks(self.store, settings=TaskSettings(shutdown_grace=0), **options)
        self.tasks.install(self.mcp, tools=["asks_by_itself"])
        for tool in (asks, asks_with_context, writes):
            self.tasks.tool()(tool)
        self.mcp.tool()(asks_by_itself)
        self.person = TaskInspector(self.store)

    async def question(self, task_id: str) -> QueuedMessage:
        """Wait until a task has an open question, and return it."""
        with anyio.fail_after(PATIENCE):
            record = await self.store.get_task(task_id)
            assert record is not None
            while record.status == "working":
                record = await self.store.wait_for_update(task_id, after=record.revision)
        (question,) = await self.person.questions(task_id)
        return question


@pytest.mark.parametrize("tool", ["asks", "asks_by_itself", "asks_with_context"])
async def test_a_form_waits_for_a_person_where_the_client_cannot_be_asked(tool: str) -> None:
    office = Office(inbox=3600)
    async with memory_client(office.mcp) as client:
        task_id = await client.start(tool, capabilities=MUTE)
        question = await office.question(task_id)
        assert question.key is not None
        assert question.is_for_person
        assert question.params["message"] == "Publish it?"
        task = await client.get(task_id)
        assert task["status"] == "working"
        assert task["statusMessage"] == "Waiting for a person to answer"
        assert "inputRequests" not in task
        # The approval is a person's: what the client sends for its key does not count.
        await client.update(task_id, {question.key: accept(ok=True)})
        assert await office.person.questions(task_id) == (question,)
        assert await office.person.answer(task_id, question.key, accept(ok=False))
        assert await text_of(client, task_id) == "accept False"


async def text_of(client: RawClient, task_id: str) -> Any:
    task = await client.until(task_id, "completed", "failed")
    return task["result"]["content"][0]["text"] if "result" in task else task["error"]["message"]


@pytest.mark.parametrize("tool", ["asks", "asks_by_itself", "asks_with_context"])
async def test_a_client_that_can_be_asked_is_asked(tool: str) -> None:
    office = Office(inbox=3600)
    async with memory_client(office.mcp) as client:
        task_id = await client.start(tool, capabilities=DECLARED)
        (key,) = await client.asked(task_id)
        assert not (await office.question(task_id)).is_for_person
        await client.update(task_id, {key: accept(ok=True)})
        assert await text_of(client, task_id) == "accept True"


async def test_a_person_has_a_time_limit() -> None:
    office = Office(inbox=0.01)
    async with memory_client(office.mcp) as client:
        task_id = await client.start("asks", capabilities=MUTE)
        assert "did not answer within 0.01 seconds" in await text_of(client, task_id)
        assert await office.person.questions(task_id) == ()


@pytest.mark.parametrize(
    ("options", "tool"),
    [({}, "asks"), ({}, "asks_by_itself"), ({}, "asks_with_context"), ({"inbox": 3600}, "writes")],
)
async def test_without_an_inbox_and_for_a_model_it_is_an_error(options: Any, tool: str) -> None:
    office = Office(**options)
    async with memory_client(office.mcp) as client:
        task_id = await client.start(tool, capabilities=MUTE)
        assert "Client does not support" in await text_of(client, task_id)


@pytest.mark.parametrize(
    ("tool", "declared"),
    [
        ("asks", {}),
        ("asks", {"sampling": {}}),
        ("asks", {"elicitation": {"url": {}}}),
        ("asks_by_itself", {}),
        ("asks_by_itself", {"sampling": {}}),
    ],
)
async def test_a_call_that_is_no_task_does_not_wait_for_a_person(tool: str, declared: Wire) -> None:
    office = Office(inbox=3600)
    async with memory_client(office.mcp) as client:
        reply = (await client.call(tool, capabilities=declared)).message
        assert "error" in reply or reply["result"]["isError"] is True


async def test_a_client_of_2025_that_cannot_be_asked_sees_work_and_gets_the_result() -> None:
    office = Office(inbox=3600)
    async with office.tasks, connect_2025(office.mcp, never, capabilities={}) as client:
        task_id = await client.start("asks")
        question = await office.question(task_id)
        task = await client.task(task_id)
        assert (task["status"], task["statusMessage"]) == ("working", "Waiting for a person to answer")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        assert await office.person.answer(task_id, question.key or "", accept(ok=True))
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "accept True"
        assert not client.questions
        assert "input_required" not in {note["params"].get("status") for note in client.notifications}


async def test_the_number_of_seconds_is_checked() -> None:
    for nonsense in (-1, float("nan")):
        with pytest.raises(ValueError, match="inbox must not be negative"):
            Tasks(inbox=nonsense)
