"""One and two server processes on Redis and PostgreSQL, with 500 calls at a time over HTTP.

    python -m tests.benchmarks.bench_processes          the table
    python -m tests.benchmarks.bench_processes PLACE    one server process; PLACE is a `Place` as JSON

Each call makes a task of 10 ms and polls it as often as the server asks for, at the processes in turns. The clients
run in one more process, which shares the machine's cores with the servers: with two cores the servers of two processes
have one together, and the rate of plain calls says what the HTTP stack leaves.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from secrets import token_hex
from typing import Any

import anyio
import httpx
import uvicorn
from mcp.server import MCPServer
from psycopg import sql

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.server import Tasks
from tests.benchmarks.measuring import row
from tests.mcp_v2.raw_client import DECLARED, PROTOCOL_VERSION, HTTPExchange
from tests.mcp_v2.schemas import Wire
from tests.stores import postgres_server, redis_server
from tests.stores.worker_program import Place
from tests.support.processes import HTTPServerProcess

AT_A_TIME = 500
CALLS = 2_000
LONGEST_SECONDS = 300

ids = count(1)


def serve(place: Place) -> None:
    """Serve until this process is stopped."""
    mcp: MCPServer[Any] = MCPServer("process")
    tasks = Tasks(place.store(), settings=TaskSettings(shutdown_grace=0, max_tasks_per_owner=None))
    tasks.install(mcp)

    @mcp.tool()
    async def plain() -> str:
        return "done"

    @tasks.tool()
    async def ten_ms(task: ServerTaskContext) -> str:
        await anyio.sleep(0.01)
        return "done"

    uvicorn.run(
        mcp.streamable_http_app(stateless_http=True, json_response=True),
        port=0,
        access_log=False,
        timeout_keep_alive=600,
    )


async def request(server: HTTPExchange, method: str, params: Wire, capabilities: Wire) -> Wire:
    """Send a request, however long it takes, and return its result."""
    envelope = {
        "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": capabilities,
    }
    message = {"jsonrpc": "2.0", "id": next(ids), "method": method, "params": {**params, "_meta": envelope}}
    return (await server(message, {})).result


async def task_call(servers: list[HTTPExchange]) -> None:
    turns = cycle(servers)
    made = await request(next(turns), "tools/call", {"name": "ten_ms", "arguments": {}}, DECLARED)
    interval: float = 20
    while True:
        await anyio.sleep(interval / 1_000)
        shown = await request(next(turns), "tasks/get", {"taskId": made["taskId"]}, DECLARED)
        if shown["status"] != "working":
            assert shown["status"] == "completed", shown
            return
        interval = shown["pollIntervalMs"]


async def plain_call(servers: list[HTTPExchange]) -> None:
    assert (await request(servers[0], "tools/call", {"name": "plain", "arguments": {}}, {}))["content"]


@dataclass(frozen=True)
class Load:
    """What a load of calls came to.

    Attributes:
        rate: Calls a second.
        slow: The 99th percentile of their durations, in seconds.
        client: Share of a core that the clients' process used.
        servers: The same of each server.
    """

    rate: float
    slow: float
    client: float
    servers: tuple[float, ...]

    def __str__(self) -> str:
        servers = " + ".join(f"{share:.0%}" for share in self.servers)
        return (
            f"{self.rate:,.0f} a second, 99th percentile {self.slow:.2f} s, servers {servers} of a core, "
            f"clients {self.client:.0%}"
        )


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, as Linux says it; zero on other systems."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(processes: Sequence[HTTPServerProcess], call: Callable[[list[HTTPExchange]], Awaitable[None]]) -> Load:
    """Make calls, so many at a time, and return what they came to.

    Raises:
        TimeoutError: They took longer than `LONGEST_SECONDS`.
    """
    taken: list[float] = []
    async with AsyncExitStack() as stack:
        # One pool for all would search its hundreds of connections with each request.
        clients = [await stack.enter_async_context(client()) for _ in range(AT_A_TIME)]

        async def caller(number: int, left: Iterator[int]) -> None:
            at = number % len(processes)
            servers = [HTTPExchange(clients[number], each.url) for each in (*processes[at:], *processes[:at])]
            for _ in left:
                began = time.perf_counter()
                await call(servers)
                taken.append(time.perf_counter() - began)

        async def all_calls(calls: int) -> None:
            left = iter(range(calls))
            async with anyio.create_task_group() as group:
                for number in range(AT_A_TIME):
                    group.start_soon(caller, number, left)

        with anyio.fail_after(LONGEST_SECONDS):
            await all_calls(AT_A_TIME)  # opens the connections
            taken.clear()
            pids = [os.getpid(), *(each.pid for each in processes)]
            before = [cpu_seconds(pid) for pid in pids]
            began = time.perf_counter()
            await all_calls(CALLS)
            seconds = time.perf_counter() - began
        shares = [(cpu_seconds(pid) - used) / seconds for pid, used in zip(pids, before, strict=True)]
    return Load(CALLS / seconds, sorted(taken)[int(len(taken) * 0.99)], shares[0], tuple(shares[1:]))


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, verify=False, trust_env=False)


async def compare(name: str, place: Place) -> None:
    command = ["-W", "ignore", "-m", "tests.benchmarks.bench_processes", json.dumps(asdict(place))]
    with HTTPServerProcess(command) as first, HTTPServerProcess(command) as second:
        for what, call in (("task calls", task_call), ("plain calls", plain_call)):
            one, two = await load([first], call), await load([first, second], call)
            row(
                f"{name}, two processes, {AT_A_TIME} {what} at a time over HTTP: rate / that of one process",
                "",
                f"{two.rate / one.rate:.2f} (two: {two}; one: {one})",
            )


def allow_connections() -> None:
    """Raise the limit of open files as far as this process may: there are two connections for each caller."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def main() -> None:
    logging.disable(logging.CRITICAL)
    allow_connections()
    with redis_server.running_server() as redis:
        await compare("Redis", Place("redis", redis.url, f"bench_{token_hex(4)}"))
    with postgres_server.running_server() as postgres:
        place = Place("postgres", postgres.url, f"bench_{token_hex(4)}")
        try:
            await compare("PostgreSQL", place)
        finally:
            postgres.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(place.name)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(Place(**json.loads(sys.argv[1])))
    else:
        anyio.run(main)
