"""Memory of a task that waits on a question: by how much the process grows for each, in a process of its own.

python -m tests.benchmarks.bench_waiting_tasks                     the table
python -m tests.benchmarks.bench_waiting_tasks declared memory://  the KiB of one kind of tool on one store
python -m tests.benchmarks.bench_waiting_tasks declared memory:// lines   where Python allocates them
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks
from mcp_task_runtime.stores.url import open_store
from tests.benchmarks.measuring import resident_kib, row
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import DECLARED
from tests.stores import postgres_server, redis_server

TASKS = 1_000
WARM_UP = 300


class Choice(BaseModel):
    ok: bool


async def declared(topic: str, task: ServerTaskContext) -> str:
    return (await task.elicit("Sure?", Choice)).action


async def in_context(topic: str, ctx: Context) -> str:
    return (await ctx.elicit("Sure?", Choice)).action


async def measure(kind: str, url: str, *, shows_lines: bool) -> float:
    """Return the KiB by which this process grows for each waiting task."""
    logging.disable(logging.CRITICAL)
    mcp: MCPServer[Any] = MCPServer("bench")
    async with open_store(url) as store:
        tasks = Tasks(store)
        tasks.install(mcp, tools=["adopted"])
        mcp.tool("adopted")(in_context)
        tasks.tool("declared")(declared)
        tasks.tool("context")(in_context)
        async with tasks, memory_client(mcp) as client:

            async def start(count: int) -> None:
                for number in range(count):
                    params = {"name": kind, "arguments": {"topic": f"topic {number}"}}
                    await client.request("tools/call", params, capabilities=DECLARED, check=False)
                await anyio.sleep(0.5)  # what they wait for in the store comes last
                gc.collect()

            await start(WARM_UP)
            before = resident_kib()
            if shows_lines:
                tracemalloc.start()
            await start(TASKS)
            if shows_lines:
                print_lines(tracemalloc.take_snapshot())
            grown = (resident_kib() - before) / TASKS
            print(f"{grown:.1f}", flush=True)
            os._exit(0)  # to end thousands of tasks takes longer than to start them


def print_lines(snapshot: tracemalloc.Snapshot) -> None:
    """Print which lines hold most of a task."""
    for line in snapshot.statistics("lineno")[:50]:
        frame = line.traceback[0]
        print(f"{line.size / TASKS:6.0f} bytes in {line.count / TASKS:5.2f}  {frame.filename}:{frame.lineno}")


def in_own_process(kind: str, url: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.bench_waiting_tasks", kind, url]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return f"{done.stdout.split()[-1]} KiB"


def main() -> None:
    what = "Memory of a task that waits on a question: "
    row(f"{what}`@tasks.tool()`", "≤ 10 KiB", in_own_process("declared", "memory://"))
    with tempfile.TemporaryDirectory() as folder:
        row(f"{what}the same on SQLite", "≤ 14 KiB", in_own_process("declared", f"sqlite:///{Path(folder)}/tasks.db"))
    with redis_server.running_server() as redis:
        row(f"{what}the same on Redis", "≤ 14 KiB", in_own_process("declared", redis.url))
    with postgres_server.running_server() as postgres:
        row(f"{what}the same on PostgreSQL", "≤ 14 KiB", in_own_process("declared", postgres.url))
    row(f"{what}a declared tool that asks through the SDK's context", "", in_own_process("context", "memory://"))
    row(f"{what}an adopted tool that asks through the SDK's context", "", in_own_process("adopted", "memory://"))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        anyio.run(lambda: measure(sys.argv[1], sys.argv[2], shows_lines=len(sys.argv) > 3))
    else:
        main()
