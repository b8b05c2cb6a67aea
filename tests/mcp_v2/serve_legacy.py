"""The tools of `tests/mcp_v1/scenarios.py` on `mcp` 2.x; as a program: `python serve_legacy.py stdio`, or `http`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext

from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v1.scenarios import World, add_tools, greet


def user_of(ctx: ServerRequestContext[Any, Any]) -> str | None:
    """Return what a gateway says of the caller."""
    name = None if ctx.request is None else ctx.request.headers.get("x-user")
    return None if name is None else str(name)


def make_server(*, gateway: bool = False) -> MCPServer:
    """Make the server; behind a gateway, a header says who makes a request."""
    mcp = MCPServer("world")
    tasks = Tasks(principal=user_of) if gateway else Tasks()
    tasks.install(mcp)
    mcp.tool()(greet)
    add_tools(World(tasks, None))  # type: ignore[arg-type]  # no client connects here
    return mcp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["stdio", "http"])
    options = parser.parse_args()
    if options.transport == "stdio":
        make_server().run("stdio")
    else:
        make_server().run("streamable-http", port=0)


if __name__ == "__main__":
    main()
