"""The tools of the scenarios as a program: `python serve.py stdio`, or `http` with options, on a free port."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.fastmcp import FastMCP
from mcp.shared.context import RequestContext
from pydantic import AnyHttpUrl

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.scenarios import World, add_tools, greet


class Verifier:
    """Takes any token for the name of its bearer."""

    async def verify_token(self, token: str) -> AccessToken | None:
        return AccessToken(token=token, client_id=f"app-of-{token}", scopes=[])


def user_of(ctx: RequestContext[Any, Any, Any]) -> str | None:
    """Return whom the gateway let in."""
    assert ctx.request is not None
    user: str | None = ctx.request.headers.get("x-user")
    return user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["stdio", "http"])
    parser.add_argument("--json-response", action="store_true")
    parser.add_argument("--stateless-http", action="store_true")
    parser.add_argument("--auth", action="store_true")
    parser.add_argument("--gateway", action="store_true", help="a header says who makes a request")
    options = parser.parse_args()
    more: dict[str, Any] = {}
    if options.auth:
        settings = AuthSettings(issuer_url=AnyHttpUrl("http://127.0.0.1"), resource_server_url=None)
        more = {"auth": settings, "token_verifier": Verifier()}
    mcp: FastMCP[Any] = FastMCP(
        "world", port=0, json_response=options.json_response, stateless_http=options.stateless_http, **more
    )
    tasks = Tasks(principal=user_of) if options.gateway else Tasks()
    tasks.install(mcp)
    mcp.tool()(greet)
    add_tools(World(tasks, None))  # type: ignore[arg-type]  # no client connects here

    @tasks.tool()
    async def whoami(task: ServerTaskContext) -> str:
        await anyio.sleep(0.05)
        token = get_access_token()
        return "nobody" if token is None else token.client_id

    @mcp.tool()
    def alive() -> dict[str, int]:
        """Count what lives in this process: our objects by class, and the tasks of asyncio."""
        gc.collect()
        ours = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
        counts = {name: count for name, count in ours.items() if name.startswith("mcp_task_runtime.")}
        return {**counts, "asyncio": len(asyncio.all_tasks())}

    mcp.run("stdio" if options.transport == "stdio" else "streamable-http")


if __name__ == "__main__":
    main()
