"""A server whose tools run in the workers of an engine: the environment says which, and where it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext, TaskDispatcher, TaskSettings, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks

FOLDER = Path(os.environ.get("REPORTS_FOLDER", "/nowhere"))
ENGINE = os.environ.get("REPORTS_ENGINE", "")
BROKER = os.environ.get("REPORTS_BROKER", "")
QUEUES = {"wait": "slow"}
GRACE_MS = 2_000


class Name(BaseModel):
    name: str


def make_dispatcher(engine: str, broker: str, *, start_grace_ms: int = GRACE_MS) -> TaskDispatcher:
    """Return the dispatcher of an engine."""
    if engine == "docket":
        from mcp_task_runtime.engines.docket import DocketDispatcher

        return DocketDispatcher(broker, queues=QUEUES, start_grace_ms=start_grace_ms)
    if engine == "procrastinate":
        from mcp_task_runtime.engines.procrastinate import ProcrastinateDispatcher

        return ProcrastinateDispatcher(broker, queues=QUEUES, start_grace_ms=start_grace_ms)
    from celery import Celery

    from mcp_task_runtime.engines.celery import CeleryDispatcher

    return CeleryDispatcher(Celery("reports", broker=broker), queues=QUEUES, start_grace_ms=start_grace_ms)


def log(tool: str, n: int) -> None:
    """Note that a tool began."""
    with (FOLDER / "runs").open("a") as file:
        file.write(f"{tool} {n} {os.getpid()}\n")


def make(folder: Path, dispatcher: TaskDispatcher) -> tuple[MCPServer[Any], Tasks]:
    """Return the server, and its tasks in a database of that folder."""
    mcp: MCPServer[Any] = MCPServer("reports")
    settings = TaskSettings(lease_ms=3_000, shutdown_grace=0.1, poll_interval_ms=20)
    tasks = Tasks(open_store(f"sqlite:///{folder}/tasks.db"), settings=settings, dispatcher=dispatcher)
    tasks.install(mcp)

    @tasks.tool(rerunnable=True)
    async def ask(n: int, task: ServerTaskContext) -> str:
        log("ask", n)
        answer = await task.elicit(f"name {n}?", Name)
        return answer.data.name if answer.action == "accept" else ""

    @tasks.tool(rerunnable=True)
    async def wait(n: int, task: ServerTaskContext) -> int:
        log("wait", n)
        while not (FOLDER / "gate").exists():  # noqa: ASYNC110 - of another process
            await anyio.sleep(0.02)
        return n

    return mcp, tasks


if ENGINE:
    dispatcher: Any = make_dispatcher(ENGINE, BROKER)
    mcp, tasks = make(FOLDER, dispatcher)
    if ENGINE == "celery":
        celery = dispatcher.app
        dispatcher.serve(tasks)
