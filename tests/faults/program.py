"""The server of a run with faults, and what its workers import; the environment says which store and engine it has.

    python -m tests.faults.program

serves it over HTTP at a free port. `mcp-tasks worker tests.faults.program:tasks` is a worker. Each run of work writes a
line into a file that is only appended to: what happened, tool, task, attempt, number and process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
import uvicorn
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import Rerun, ServerTaskContext, StoreDispatcher, TaskSettings, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.errors import LeaseLostError

JOURNAL = os.environ.get("FAULTS_JOURNAL", os.devnull)
STORE = os.environ.get("FAULTS_STORE", "memory://")
ENGINE = os.environ.get("FAULTS_ENGINE", "")
BROKER = os.environ.get("FAULTS_BROKER", "")
LEASE_MS = int(os.environ.get("FAULTS_LEASE_MS", "3000"))

LOST_WORKERS = 1_000
"""Attempts that no run uses up, so that each task that may run again completes."""


class Number(BaseModel):
    number: int


def note(event: str, tool: str, n: int, task: ServerTaskContext) -> None:
    """Append a line, whole, before anything else happens."""
    line = f"{event} {tool} {task.task_id} {task.attempt} {n} {os.getpid()}\n"
    file = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


async def say(tool: str, n: int, task: ServerTaskContext) -> None:
    """Write a status message; note that a run which has lost its lease was refused."""
    try:
        await task.update_status(f"at it: {task.attempt}")
    except LeaseLostError:
        note("refused", tool, n, task)
        raise


def result_of(n: int, task: ServerTaskContext) -> dict[str, int]:
    return {"n": n, "attempt": task.attempt}


def make_tasks(mcp: MCPServer[Any], dispatcher: Any) -> Tasks:
    """Return the tasks of a server; a repeated call of one number gets the task of the first one."""
    settings = TaskSettings(lease_ms=LEASE_MS, shutdown_grace=0.2, poll_interval_ms=250, max_polls_per_second=None)
    tasks = Tasks(open_store(STORE), settings=settings, dispatcher=dispatcher)
    tasks.install(mcp)
    again = Rerun(max_attempts=LOST_WORKERS)

    def join(arguments: dict[str, Any]) -> str:
        return str(arguments["n"])

    @tasks.tool(rerunnable=again, join=join)
    async def ask(n: int, task: ServerTaskContext) -> dict[str, int]:
        note("began", "ask", n, task)
        answer = await task.elicit("Which number?", Number)
        await say("ask", n, task)
        return result_of(answer.data.number if answer.action == "accept" else -1, task)

    @tasks.tool(rerunnable=again, join=join)
    async def report(n: int, task: ServerTaskContext) -> dict[str, int]:
        note("began", "report", n, task)
        await anyio.sleep(0.15 * (n % 7))
        await say("report", n, task)
        return result_of(n, task)

    @tasks.tool(join=join)
    async def once(n: int, task: ServerTaskContext) -> dict[str, int]:
        note("began", "once", n, task)
        await anyio.sleep(0.15 * (n % 7))
        await say("once", n, task)
        return result_of(n, task)

    @tasks.tool(rerunnable=again, join=join)
    async def wait(n: int, task: ServerTaskContext) -> dict[str, int]:
        note("began", "wait", n, task)
        await say("wait", n, task)
        await anyio.sleep_forever()
        return {}

    return tasks


def make_dispatcher() -> Any:
    if not ENGINE:
        return StoreDispatcher()
    from tests.engines import reports

    return reports.make_dispatcher(ENGINE, BROKER)


mcp: MCPServer[Any] = MCPServer("faults")
dispatcher = make_dispatcher()
tasks = make_tasks(mcp, dispatcher)
if ENGINE == "celery":
    celery = dispatcher.app
    dispatcher.serve(tasks)


if __name__ == "__main__":
    uvicorn.run(mcp.streamable_http_app(stateless_http=True), port=0, timeout_graceful_shutdown=1)
