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
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from itertools import count, cycle
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
WARM_UP = 50

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


async def load(urls: list[str], call: Callable[[list[HTTPExchange]], Awaitable[None]]) -> tuple[float, float]:
    """Return the rate of calls a second, and the 99th percentile of their durations in seconds."""
    most = AT_A_TIME * len(urls)  # each caller keeps one to each server: fewer would be closed and opened in turns
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    taken: list[float] = []
    async with httpx.AsyncClient(limits=limits, timeout=None) as http:
        servers = [HTTPExchange(http, url) for url in urls]
        left = iter(range(WARM_UP))

        async def caller(number: int) -> None:
            own = servers[number % len(servers) :] + servers[: number % len(servers)]
            for _ in left:
                began = time.perf_counter()
                await call(own)
                taken.append(time.perf_counter() - began)

        for calls in (WARM_UP, CALLS):
            left = iter(range(calls))
            taken.clear()
            began = time.perf_counter()
            async with anyio.create_task_group() as group:
                for number in range(AT_A_TIME):
                    group.start_soon(caller, number)
            seconds = time.perf_counter() - began
    return CALLS / seconds, sorted(taken)[int(len(taken) * 0.99)]


async def compare(name: str, place: Place) -> None:
    command = ["-W", "ignore", "-m", "tests.benchmarks.bench_processes", json.dumps(asdict(place))]
    with HTTPServerProcess(command) as first, HTTPServerProcess(command) as second:
        one = await load([first.url], task_call)
        two = await load([first.url, second.url], task_call)
        plain = await load([first.url], plain_call)
        plain_two = await load([first.url, second.url], plain_call)
    rates = f"{two[0]:,.0f} / {one[0]:,.0f} a second"
    row(
        f"{name}, two processes, {AT_A_TIME} task calls at a time over HTTP: rate / that of one process",
        "",
        f"{two[0] / one[0]:.2f} ({rates}; 99th percentile {two[1]:.2f} / {one[1]:.2f} s; "
        f"plain calls: {plain_two[0]:,.0f} / {plain[0]:,.0f} a second)",
    )


async def main() -> None:
    logging.disable(logging.CRITICAL)
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
