"""An MCP server with tasks inside a Starlette application, for any number of worker processes on one store.

    python examples/mounted_app.py --port 8000 --store sqlite:///tasks.db --workers 4

Any worker serves any request at `/tools/mcp`: a task made by one is polled, answered and cancelled through
another. `fastapi_app.py` is the same in FastAPI.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from mcp.server import MCPServer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import everything_tools
from mcp_task_runtime import open_store
from mcp_task_runtime.server import Tasks


def make_app() -> Starlette:
    """Return the application; each worker process makes its own."""
    mcp = MCPServer("mounted")
    tasks = Tasks(open_store(os.environ.get("TASK_STORE", "memory://")))
    tasks.install(mcp)
    mcp.tool()(everything_tools.greet)
    tasks.tool(rerunnable=True)(everything_tools.slow_compute)
    tasks.tool(required=True)(everything_tools.confirm_delete)
    # Without sessions any worker serves clients of protocol 2025-11-25 too. `host` or `transport_security` admits
    # requests for other host names than localhost.
    mcp_app = mcp.streamable_http_app(stateless_http=True)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mcp.session_manager.run():  # a mounted application's own lifespan is not run
            yield

    async def health(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/health", health), Mount("/tools", app=mcp_app)], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--store", default="memory://", help="URL of the store; one that workers can share")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    os.environ["TASK_STORE"] = options.store
    uvicorn.run(
        "mounted_app:make_app",
        factory=True,
        app_dir=os.path.dirname(os.path.abspath(__file__)),
        port=options.port,
        workers=options.workers,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
