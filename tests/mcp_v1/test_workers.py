"""A server on `mcp` 1.x whose tools run in worker processes, and the lifespan state of what runs by its name (L12)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from cryptography.fernet import Fernet
from mcp.server.auth.middleware.auth_context import auth_context_var, get_access_token
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, TaskStore
from mcp_task_runtime.adapters.credentials import Credentials
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster, Process
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import accept
from tests.mcp_v1.schemas import Wire
from tests.support.patience import PATIENCE


class Name(BaseModel):
    name: str


async def say(question: Wire) -> Wire | None:
    return accept(name="Eve")


class Node:
    """One process of a server.

    Attributes:
        runs: The tools that ran here, in order.
        states: The lifespans that were opened here; what was closed is removed.
    """

    def __init__(self, cluster: Cluster, *, dispatches: bool = True, credentials: Credentials | None = None) -> None:
        process = cluster.process()
        self.runs: list[str] = []
        self.states: list[str] = []
        self.opened = 0
        self.mcp: FastMCP[Any] = FastMCP("workers", log_level="CRITICAL", lifespan=self._lifespan)
        self.tasks = Tasks(
            cast(TaskStore, process.link),
            settings=SETTINGS,
            principal=lambda ctx: "everybody",
            dispatcher=StoreDispatcher() if dispatches else None,
            credentials=credentials,
        )
        self.process = Process(process.link, self.tasks.runtime)
        self.tasks.install(self.mcp)

        @self.tasks.tool(rerunnable=True)
        async def write(topic: str, task: ServerTaskContext) -> str:
            self.runs.append(topic)
            return f"{topic} {(await task.elicit('go on?', Name)).action}"

        @self.mcp.tool()
        async def look(topic: str, ctx: Context) -> str:  # type: ignore[type-arg]
            self.runs.append(topic)
            answer = await ctx.elicit("go on?", Name)
            assert ctx.request_context.lifespan_context in self.states
            return f"{topic} {answer.action} {ctx.request_context.lifespan_context}"

        self.tasks.adopt("look", rerunnable=True)

        @self.tasks.tool()
        async def who(ctx: Context, task: ServerTaskContext) -> dict[str, Any]:  # type: ignore[type-arg]
            token, caller = get_access_token(), task.caller
            return {
                "token": None if token is None else token.token,
                "principal": caller.principal,
                "elicitation": caller.capabilities.get("elicitation") is not None,
                "protocol": caller.protocol_version,
                "trace": caller.trace_context,
                "meta": getattr(ctx.request_context.meta, "traceparent", None),
            }

    @asynccontextmanager
    async def _lifespan(self, server: object) -> AsyncIterator[str]:
        self.opened += 1
        state = f"state {self.opened}"
        self.states.append(state)
        try:
            yield state
        finally:
            await anyio.lowlevel.checkpoint()  # as where it closes a connection
            self.states.remove(state)


async def test_the_tools_of_a_server_run_in_a_worker_with_the_state_of_its_lifespan() -> None:
    cluster = Cluster()
    server, worker = Node(cluster), Node(cluster)
    with anyio.fail_after(PATIENCE):
        async with server.tasks, anyio.create_task_group() as group:
            group.start_soon(worker.tasks.work)
            async with connect(server.mcp, say) as client:
                assert await client.text(await client.start("write", {"topic": "bees"})) == "bees accept"
                assert await client.text(await client.start("look", {"topic": "tea"})) == "tea accept state 1"
            group.cancel_scope.cancel()
    assert (server.runs, worker.runs) == ([], ["bees", "tea"])
    assert worker.states == []


async def test_a_rerun_has_the_state_of_a_lifespan_of_its_own() -> None:
    """L18: on this SDK line a lifespan belongs to a connection, and a rerun has none."""
    cluster = Cluster()
    a, b = Node(cluster, dispatches=False), Node(cluster, dispatches=False)
    with anyio.fail_after(PATIENCE):
        async with a.tasks, b.tasks:
            async with connect(a.mcp) as at_a, connect(b.mcp, say) as at_b:
                task_id = await at_a.start("look", {"topic": "bees"})
                await at_a.until(task_id, "input_required")
                await cluster.cut(a.process)
                await cluster.pass_time(LEASE_SECONDS + 1)
                assert await at_b.text(task_id) == "bees accept state 2"
            a.process.link.is_cut = False
    assert b.states == []


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_worker_sees_the_caller(is_kept: bool) -> None:
    """L18: its secrets only where they are kept."""
    ring = Credentials([Fernet.generate_key()]) if is_kept else None
    cluster = Cluster()
    server, worker = Node(cluster, credentials=ring), Node(cluster, credentials=ring)
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    user = AuthenticatedUser(AccessToken(token="s3cret", client_id="app", scopes=[]))
    with anyio.fail_after(PATIENCE):
        async with server.tasks, anyio.create_task_group() as group:
            group.start_soon(worker.tasks.work)
            reset = auth_context_var.set(user)
            async with connect(server.mcp, say) as client:
                auth_context_var.reset(reset)
                task_id = await client.start("who", {}, _meta=trace)
                result = await client.result("tasks/result", {"taskId": task_id})
            group.cancel_scope.cancel()
    assert result["structuredContent"] == {
        "token": "s3cret" if is_kept else None,
        "principal": "everybody",
        "elicitation": True,
        "protocol": "2025-11-25",
        "trace": trace,
        "meta": trace["traceparent"],
    }
