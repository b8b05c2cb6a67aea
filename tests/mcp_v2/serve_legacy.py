"""The tools of `tests/mcp_v1/scenarios.py` on `mcp` 2.x, as a program: `python serve_legacy.py stdio`, or `http`."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--json-response", action="store_true")
    parser.add_argument("--stateless-http", action="store_true")
    parser.add_argument("--gateway", action="store_true", help="a header says who makes a request")
    options = parser.parse_args()
    mcp = MCPServer("world")
    tasks = Tasks(principal=user_of) if options.gateway else Tasks()
    tasks.install(mcp)
    mcp.tool()(greet)
    add_tools(World(tasks, None))  # type: ignore[arg-type]  # no client connects here
    if options.transport == "stdio":
        mcp.run("stdio")
    else:
        mcp.run("streamable-http", port=0, json_response=options.json_response, stateless_http=options.stateless_http)


if __name__ == "__main__":
    main()
