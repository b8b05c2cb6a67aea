"""A `World` on `mcp` 1.x, in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

from mcp.server.fastmcp import FastMCP

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.scenarios import World, add_tools, greet


def make_world(tasks: Tasks | None = None) -> World:
    """Return a server with all the tools, to connect to in memory."""
    mcp: FastMCP[Any] = FastMCP("world", log_level="CRITICAL")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0.05)) if tasks is None else tasks
    tasks.install(mcp)
    mcp.tool()(greet)
    world = World(tasks, partial(connect, mcp))
    add_tools(world)
    return world
