"""How often the server calls the store: once for a `tasks/get`, and with few writes for a task that asks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings
from mcp_task_runtime.core.observer import Observation, StoreCalled, TaskObserver
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import RawClient, accept
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

READS = {"get_task", "get_owned", "get_view", "get_result", "outstanding", "list_lost"}
WAITS = {"wait_for_update", "wait_for_answer"}
RENEWALS = {"connect", "renew_leases"}
"""Writes that a runtime makes now and then, whatever its tasks do."""

request: ContextVar[str | None] = ContextVar("request", default=None)
"""The method of the request that runs; a watch of a task has that of the call which made the task."""


async def note_request(ctx: Any, call_next: Any) -> Any:
    """Middleware that notes which request runs."""
    token = request.set(ctx.method)
    try:
        return await call_next(ctx)
    finally:
        request.reset(token)


class Name(BaseModel):
    name: str


class Calls(TaskObserver):
    """Notes the calls of a store and its queue, each with the request that it belongs to."""

    def __init__(self) -> None:
        self.all: list[tuple[str | None, str]] = []

    def observe(self, observation: Observation) -> None:
        if isinstance(observation, StoreCalled):
            self.all.append((request.get(), observation.operation))

    def trace_context(self) -> dict[str, str]:
        return {}

    def of(self, method: str) -> list[str]:
        """Return the operations of the requests of a method since the last time."""
        taken, self.all = self.all, []
        return [operation for belongs_to, operation in taken if belongs_to == method]


@asynccontextmanager
async def server(kind: str, path: Path) -> AsyncGenerator[tuple[RawClient, Calls, anyio.Event]]:
    """Serve a tool that asks, and one that waits for the event."""
    calls, gate = Calls(), anyio.Event()
    mcp: MCPServer[Any] = MCPServer("store-calls", middleware=[note_request])
    async with AsyncExitStack() as stack:
        store: Any = InMemoryTaskStore()
        if kind == "sqlite":
            store = await stack.enter_async_context(SQLiteTaskStore(path / "tasks.db"))
        tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0), observer=calls)
        tasks.install(mcp)

        @tasks.tool()
        async def asks(task: ServerTaskContext) -> str:
            return (await task.elicit("Who?", Name)).action

        @tasks.tool()
        async def waits(task: ServerTaskContext) -> str:
            await gate.wait()
            return "done"

        await stack.enter_async_context(tasks)
        yield await stack.enter_async_context(memory_client(mcp)), calls, gate


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_poll_reads_the_store_once(kind: str, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with server(kind, tmp_path) as (client, calls, gate):
            task_id = await client.start("waits")
            await polled(client, calls, task_id, "working")
            asking = await client.start("asks")
            while not await client.asked(asking):
                pass
            await polled(client, calls, asking, "input_required")
            gate.set()
            await client.until(task_id, "completed")
            await polled(client, calls, task_id, "completed")


async def polled(client: RawClient, calls: Calls, task_id: str, status: str) -> None:
    """Poll a task once, and check what that calls of the store."""
    calls.of("tasks/get")
    assert (await client.get(task_id))["status"] == status
    assert calls.of("tasks/get") == ["get_owned"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_task_with_one_question_takes_four_writes(kind: str, tmp_path: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with server(kind, tmp_path) as (client, calls, _):
            task_id = await client.start("asks")
            while not (keys := await client.asked(task_id)):
                pass
            await client.update(task_id, {key: accept(name="Ada") for key in keys})
            await client.until(task_id, "completed")
            operations = [operation for _, operation in calls.all]
            writes = [each for each in operations if each not in READS | WAITS | RENEWALS]
            assert writes == ["create_task", "ask", "answer_all", "finish_task"]
