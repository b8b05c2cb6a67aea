"""One of several server processes on one store, mounted in a web application as in `examples/mounted_app.py`.

    python -m tests.mcp_v2.balanced_server PLACE LEASE_MS [--sessions]

`PLACE` is a `Place` as JSON. Work writes into a diary, a file, what happens to it and in which process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
import uvicorn
from mcp.server import MCPServer
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.stores.worker_program import Place

PATH = "/tools/mcp"


class Name(BaseModel):
    name: str


def note(diary: str, event: str) -> None:
    with open(diary, "a") as file:
        file.write(f"{event} {os.getpid()}\n")


@contextmanager
def noted(diary: str) -> Iterator[None]:
    """Write into the diary that work has begun, and that it was left, however that happens."""
    note(diary, "began")
    try:
        yield
    finally:
        note(diary, "left")


async def work(diary: str, task: ServerTaskContext) -> str:
    """Work until it is cancelled."""
    with noted(diary):
        await task.update_status("at it")
        await anyio.sleep_forever()
    return ""


async def write(diary: str, task: ServerTaskContext) -> str:
    """Ask for two names, one after the other."""
    names = []
    with noted(diary):
        for role in ("author", "editor"):
            answer = await task.elicit(f"{role}?", Name)
            names.append(answer.data.name if answer.action == "accept" else "nobody")
            await task.update_status(f"{role}: {names[-1]}")
    return " and ".join(names)


async def double(x: int, task: ServerTaskContext) -> int:
    """Work for a moment."""
    await anyio.sleep(0.01)
    return 2 * x


def make_app(place: Place, lease_ms: int, *, stateless: bool) -> Starlette:
    mcp = MCPServer("balanced")
    settings = TaskSettings(lease_ms=lease_ms, poll_interval_ms=50, shutdown_grace=0)
    tasks = Tasks(place.store(), settings=settings)
    tasks.install(mcp)
    tasks.tool()(work)
    tasks.tool()(double)
    tasks.tool(rerunnable=True)(write)
    tasks.tool(name="write_once")(write)
    mcp_app = mcp.streamable_http_app(stateless_http=stateless)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with mcp.session_manager.run():
            yield

    return Starlette(routes=[Mount(PATH.removesuffix("/mcp"), app=mcp_app)], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=lambda text: Place(**json.loads(text)))
    parser.add_argument("lease_ms", type=int)
    parser.add_argument("--sessions", action="store_true")
    options = parser.parse_args()
    app = make_app(options.place, options.lease_ms, stateless=not options.sessions)
    uvicorn.run(app, port=0, timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
