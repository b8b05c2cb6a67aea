"""A call may name tasks as related; its work sees those of the same owner, and learns of no others (law L10)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v1.raw_client import never
from tests.mcp_v2.in_process import connect_2025, memory_client
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

KEY = "io.modelcontextprotocol/relatedTaskIds"


def make_server(principal: Any = lambda ctx: None) -> tuple[MCPServer[Any], Tasks]:
    mcp: MCPServer[Any] = MCPServer("related")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0), principal=principal)
    tasks.install(mcp)

    @tasks.tool()
    async def source(task: ServerTaskContext) -> str:
        return "a report"

    @tasks.tool()
    async def summary(task: ServerTaskContext) -> list[str]:
        related = await task.related_tasks()
        texts = [
            record.outcome.result["content"][0]["text"]
            for record in related
            if record.outcome is not None and record.outcome.result is not None
        ]
        return [*texts, str(len(related))]

    return mcp, tasks


async def test_the_work_sees_the_tasks_that_the_call_names() -> None:
    mcp, tasks = make_server()
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            task_id = await client.start("source")
            await client.until(task_id, "completed")
            for named, expected in (
                ([task_id, "unknown", task_id], ["a report", "1"]),
                (["", "\n", 7, None, "x" * 300, task_id], ["a report", "1"]),
                ("nonsense", ["0"]),
                ([], ["0"]),
            ):
                summary = await client.start("summary", meta={KEY: named})
                result = (await client.until(summary, "completed"))["result"]
                assert result["structuredContent"]["result"] == expected


async def test_tasks_of_other_owners_are_left_out() -> None:
    user = "ada"
    mcp, tasks = make_server(lambda ctx: user)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            of_ada = await client.start("source")
            await client.until(of_ada, "completed")
            user = "bob"
            of_bob = await client.start("source")
            await client.until(of_bob, "completed")
            summary = await client.start("summary", meta={KEY: [of_ada, of_bob]})
            result = (await client.until(summary, "completed"))["result"]
            assert result["structuredContent"]["result"] == ["a report", "1"]
            user = "eve"
            summary = await client.start("summary", meta={KEY: [of_ada, of_bob]})
            result = (await client.until(summary, "completed"))["result"]
            assert result["structuredContent"]["result"] == ["0"]


async def test_a_client_of_2025_may_name_them_too_and_a_plain_call_has_none() -> None:
    mcp, tasks = make_server()
    async with tasks, connect_2025(mcp, never) as client:
        task_id = await client.start("source")
        assert await client.text(task_id) == "a report"
        assert await client.text(await client.start("summary", _meta={KEY: [task_id]})) == "a report"
        plain = await client.result("tools/call", {"name": "summary", "arguments": {}, "_meta": {KEY: [task_id]}})
        assert plain["structuredContent"]["result"] == ["0"]
