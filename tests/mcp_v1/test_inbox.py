"""The operators' inbox on `mcp` 1.x: a form waits for a person where the client cannot be asked."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from mcp_task_runtime.operations.inspect import TaskInspector
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import RawClient, never
from tests.support.patience import PATIENCE


class Confirm(BaseModel):
    ok: bool


async def asks(task: ServerTaskContext) -> str:
    answer = await task.elicit("Publish it?", Confirm)
    return f"{answer.action} {answer.data.ok if answer.action == 'accept' else None}"


async def asks_by_itself(ctx: Context) -> str:  # type: ignore[type-arg]
    """A tool that knows nothing of tasks."""
    answer = await ctx.elicit("Publish it?", Confirm)
    return f"{answer.action} {answer.data.ok if answer.action == 'accept' else None}"


async def asks_with_context(ctx: Context, task: ServerTaskContext) -> str:  # type: ignore[type-arg]
    """A tool that asks as the SDK does, although it has a task."""
    return await asks_by_itself(ctx)


def make_server(store: InMemoryTaskStore, **options: Any) -> tuple[FastMCP[Any], Tasks]:
    mcp: FastMCP[Any] = FastMCP("office", log_level="CRITICAL")
    tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0), **options)
    tasks.install(mcp, tools=["asks_by_itself"])
    tasks.tool()(asks)
    tasks.tool()(asks_with_context)
    mcp.tool()(asks_by_itself)
    return mcp, tasks


@pytest.mark.parametrize("tool", ["asks", "asks_by_itself", "asks_with_context"])
async def test_a_form_waits_for_a_person_where_the_client_cannot_be_asked(tool: str) -> None:
    async with InMemoryTaskStore() as store:
        person = TaskInspector(store)
        mcp, tasks = make_server(store, inbox=3600)
        async with tasks, connect(mcp, never, capabilities={}) as client:
            task_id = await client.start(tool)
            with anyio.fail_after(PATIENCE):
                record = await store.get_task(task_id)
                assert record is not None
                while record.status == "working":
                    record = await store.wait_for_update(task_id, after=record.revision)
            (question,) = await person.questions(task_id)
            assert question.is_for_person
            task = await client.task(task_id)
            assert (task["status"], task["statusMessage"]) == ("working", "Waiting for a person to answer")
            assert await person.answer(task_id, question.key or "", {"action": "accept", "content": {"ok": False}})
            assert await client.text(task_id) == "accept False"
            assert not client.questions


@pytest.mark.parametrize(("options", "said"), [({}, "Client does not support"), ({"inbox": 0.01}, "did not answer")])
async def test_without_an_inbox_or_an_answer_in_time_it_is_an_error(options: Any, said: str) -> None:
    async with InMemoryTaskStore() as store:
        mcp, tasks = make_server(store, **options)
        async with tasks, connect(mcp, never, capabilities={}) as client:
            assert said in await message_of(client, await client.start("asks"))


async def message_of(client: RawClient, task_id: str) -> str:
    ended = await client.outcome(task_id)
    message: str = ended["error"]["message"] if "error" in ended else ended["result"]["content"][0]["text"]
    return message
