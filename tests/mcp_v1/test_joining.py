"""Tools with `join` on `mcp` 1.x: a repeated call gets the task of the first one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from mcp.server.fastmcp import FastMCP

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.support.patience import PATIENCE


@pytest.mark.parametrize("name", ["declared", "adopted"])
async def test_a_repeated_call_joins(name: str) -> None:
    mcp: FastMCP[Any] = FastMCP("joining", log_level="CRITICAL")
    tasks = Tasks(principal=lambda ctx: "ada")
    tasks.install(mcp)
    runs: list[str] = []
    release = anyio.Event()

    @tasks.tool(join=True)
    async def declared(key: str, task: ServerTaskContext) -> str:
        runs.append(key)
        await release.wait()
        return key

    @mcp.tool()
    async def adopted(key: str) -> str:
        runs.append(key)
        await release.wait()
        return key

    tasks.adopt("adopted", join=True)
    with anyio.fail_after(PATIENCE):
        async with connect(mcp) as client:
            first = await client.start(name, {"key": "a"})
            assert await client.start(name, {"key": "a"}) == first
            other = await client.start(name, {"key": "b"})
            assert other != first
            release.set()
            assert await client.text(first) == "a"
            assert await client.text(other) == "b"
    assert sorted(runs) == ["a", "b"]
