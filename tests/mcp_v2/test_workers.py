"""A server on `mcp` 2.x whose tools run in worker processes: calls of both protocols, on one store (L9, L12, L14)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, cast

import anyio
import anyio.lowlevel
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, Resolve
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, TaskStore
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.core.leased_store import SETTINGS, Cluster
from tests.mcp_v2.listeners import Connection, memory_connection
from tests.mcp_v2.raw_client import accept
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


class Name(BaseModel):
    name: str


def ask_for_name() -> Elicit[Name]:
    return Elicit("Who are you?", Name)


class Node:
    """One process of a server.

    Attributes:
        runs: The tools that ran here, in order.
        states: What its lifespans did, in order.
    """

    def __init__(self, cluster: Cluster) -> None:
        process = cluster.process()
        self.runs: list[str] = []
        self.states: list[str] = []
        self.mcp: MCPServer[Any] = MCPServer("workers", lifespan=self._lifespan)
        self.tasks = Tasks(cast(TaskStore, process.link), settings=SETTINGS, dispatcher=StoreDispatcher())
        self.tasks.install(self.mcp)
        self.connection: Connection
        tasks, mcp = self.tasks, self.mcp

        @tasks.tool()
        async def write(topic: str, task: ServerTaskContext) -> str:
            self.runs.append("write")
            answer = await task.elicit("author?", Name)
            assert answer.action == "accept"
            return f"{topic} by {answer.data.name}"

        @tasks.tool()
        async def look(task: ServerTaskContext, ctx: Context) -> str:
            self.runs.append("look")
            await ctx.report_progress(1, 2, "half")
            return str(ctx.request_context.lifespan_context)

        @tasks.tool()
        async def resolved(name: Annotated[Name, Resolve(ask_for_name)], task: ServerTaskContext) -> str:
            self.runs.append("resolved")
            return "here"

        @tasks.tool(promote_after=0)
        async def promoted(task: ServerTaskContext) -> str:
            self.runs.append("promoted")
            return "here"

        @tasks.tool(dispatch=False)
        async def kept(task: ServerTaskContext) -> str:
            self.runs.append("kept")
            return "here"

        @mcp.tool()
        async def adopted(n: int, ctx: Context) -> int:
            self.runs.append("adopted")
            return n + 1

        tasks.adopt("adopted")

    @asynccontextmanager
    async def _lifespan(self, server: object) -> AsyncIterator[str]:
        self.states.append("open")
        try:
            yield f"state of {id(self)}"
        finally:
            await anyio.lowlevel.checkpoint()  # as where it closes a connection
            self.states.append("closed")


@asynccontextmanager
async def a_server_and_a_worker() -> AsyncGenerator[tuple[Cluster, Node, Node]]:
    cluster = Cluster()
    server, worker = Node(cluster), Node(cluster)
    with anyio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(server.tasks)
            server.connection = await stack.enter_async_context(memory_connection(server.mcp))
            async with anyio.create_task_group() as group:
                group.start_soon(worker.tasks.work)
                yield cluster, server, worker
                group.cancel_scope.cancel()
    assert worker.states == ["open", "closed"]


async def test_the_tool_of_a_call_runs_in_the_worker_and_asks_its_client() -> None:
    async with a_server_and_a_worker() as (_, server, worker):
        client = server.connection.client
        task_id = await client.start("write", {"topic": "Tea"})
        await client.until(task_id, "input_required")
        (key,) = await client.asked(task_id)
        await client.update(task_id, {key: accept(name="Ada")})
        task = await client.until(task_id, "completed")
        assert task["result"]["structuredContent"] == {"result": "Tea by Ada"}
        assert (server.runs, worker.runs) == ([], ["write"])


async def test_a_worker_has_the_state_of_its_own_lifespan_and_reports_progress() -> None:
    """L18."""
    async with a_server_and_a_worker() as (_, server, worker):
        client = server.connection.client
        task = await client.until(await client.start("look"), "completed")
        assert task["result"]["structuredContent"] == {"result": f"state of {id(worker)}"}


async def test_wrong_arguments_are_refused_as_ever_and_make_no_task() -> None:
    """L14."""
    async with a_server_and_a_worker() as (cluster, server, worker):
        result = (await server.connection.client.call("write", {"subject": "Tea"})).result
        assert result["isError"]
        assert (await cluster.store.list_tasks(owner=None)).records == ()
        assert worker.runs == []


async def test_what_cannot_travel_runs_where_it_was_called() -> None:
    async with a_server_and_a_worker() as (_, server, worker):
        client = server.connection.client
        await client.call("promoted")
        await client.until(await client.start("kept"), "completed")
        task = await client.until(await client.start("adopted", {"n": 1}), "completed")
        assert task["result"]["structuredContent"] == {"result": 2}
        assert (server.runs, worker.runs) == (["promoted", "kept"], ["adopted"])
        assert not server.tasks.runtime.is_dispatched("resolved")


async def test_a_cancelled_task_stops_its_work_in_the_worker() -> None:
    """L9."""
    async with a_server_and_a_worker() as (_, server, worker):
        client = server.connection.client
        task_id = await client.start("write", {"topic": "Tea"})
        await client.until(task_id, "input_required")
        await client.cancel(task_id)
        await client.until(task_id, "cancelled")
        while worker.tasks.runtime.statistics().running:
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("options", "reason"), [({"promote_after": 1}, "promote_after"), ({}, "resolves some of its arguments")]
)
def test_a_tool_that_must_travel_and_cannot_is_refused_with_the_reason(options: dict[str, Any], reason: str) -> None:
    cluster = Cluster()
    tasks = Tasks(cast(TaskStore, cluster.process().link), dispatcher=StoreDispatcher())
    tasks.install(MCPServer("workers"))

    async def tool(name: Annotated[Name, Resolve(ask_for_name)], task: ServerTaskContext) -> str:
        return ""

    async def plain(task: ServerTaskContext) -> str:
        return ""

    with pytest.raises(ValueError, match=reason):
        tasks.tool(dispatch=True, **options)(plain if options else tool)
    with pytest.raises(ValueError, match="no dispatcher"):
        Tasks().task(dispatch=True)(plain)
    with pytest.raises(ValueError, match="by name"):
        Tasks(cast(TaskStore, cluster.process().link), dispatcher=StoreDispatcher()).install(
            MCPServer("all"), tools="all"
        )


async def test_a_worker_needs_tasks_that_are_installed() -> None:
    with pytest.raises(RuntimeError, match="install"):
        await Tasks().work()
