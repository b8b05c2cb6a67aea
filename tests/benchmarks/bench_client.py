"""What `TasksClient.call_tool` costs, as multiples of a call of a server of the same SDK without tasks.

One at a time the figure is processor time, for everything runs in one process; a hundred at a time it is the rate
and the 99th percentile of the seconds that a call took. There are two floors: what the same number of requests costs
with the bare server, which answers them with constants, and what a server and a client cost that do the least that a
task needs, see `minimal_tasks`.
"""

from __future__ import annotations

import cProfile
import gc
import logging
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from mcp import Client
from mcp.server import MCPServer
from mcp.server.extension import Extension, MethodBinding
from mcp_types import CallToolResult, ElicitResult, Request, RequestParams
from pydantic import BaseModel, RootModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import TasksClient
from tests.benchmarks.measuring import row
from tests.benchmarks.minimal_tasks import MinimalClient, minimal_server

ROUNDS = 9
AT_A_TIME = 100
CALLS_EACH = 10
CALLS_COUNTED = 200

CONSTANT: dict[str, Any] = {
    "resultType": "complete",
    "taskId": "0123456789abcdef0123456789abcdef",
    "status": "completed",
    "createdAt": "2026-01-01T00:00:00.000Z",
    "lastUpdatedAt": "2026-01-01T00:00:00.000Z",
    "ttlMs": 3_600_000,
    "pollIntervalMs": 500,
    "result": {
        "content": [{"type": "text", "text": "done"}],
        "structuredContent": {"result": "done"},
        "isError": False,
    },
}


class Consent(BaseModel):
    ok: bool


class _Params(RequestParams):
    taskId: str


class _GetRequest(Request[_Params, str]):
    method: str = "bench/get"
    params: _Params


class _Result(RootModel[dict[str, Any]]):
    pass


class Constant(Extension):
    """Answers a request as a task's `tasks/get` is answered, without a task."""

    identifier = "bench/constant"

    def methods(self) -> list[MethodBinding]:
        return [MethodBinding("bench/get", _Params, self._get)]

    async def _get(self, ctx: Any, params: _Params) -> dict[str, Any]:
        return {**CONSTANT, "taskId": params.taskId}


def bare_server() -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("bare", extensions=[Constant()])

    @mcp.tool()
    async def plain() -> str:
        return "done"

    return mcp


def task_server() -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("tasks")
    tasks = Tasks()
    tasks.install(mcp)

    @mcp.tool()
    async def plain() -> str:
        return "done"

    @tasks.tool()
    async def quick(task: ServerTaskContext) -> str:
        return "done"

    @tasks.tool()
    async def ask(task: ServerTaskContext) -> str:
        return (await task.elicit("Sure?", Consent)).action

    @tasks.tool()
    async def ten_ms(task: ServerTaskContext) -> str:
        await anyio.sleep(0.01)
        return "done"

    return mcp


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"ok": True})


async def bare_requests(client: Client, count: int) -> None:
    """Send a call and other requests, so many together, to the bare server."""
    await client.call_tool("plain")
    for _ in range(count - 1):
        request = _GetRequest(params=_Params(taskId=CONSTANT["taskId"]))
        answer = (await client.session.send_request(request, _Result)).root
    CallToolResult.model_validate(answer["result"])


async def processor_seconds(bodies: dict[str, tuple[int, Callable[[], Awaitable[object]]]]) -> dict[str, float]:
    """Run the bodies in turns; return the median processor time of each call, in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(ROUNDS):
        for name, (calls, body) in bodies.items():
            gc.collect()
            gc.disable()
            began = time.process_time()
            for _ in range(calls):
                await body()
            samples[name].append((time.process_time() - began) / calls)
            gc.enable()
    return {name: statistics.median(values) for name, values in samples.items()}


async def alone_in_turns(*calls: Callable[[], Awaitable[object]]) -> list[float]:
    """Make the calls in turns, one at a time; return the shortest duration of each, in seconds."""
    shortest = [math.inf] * len(calls)
    for _ in range(50):
        for number, call in enumerate(calls):
            began = time.perf_counter()
            await call()
            shortest[number] = min(shortest[number], time.perf_counter() - began)
    return shortest


async def many_at_a_time(call: Callable[[], Awaitable[object]], *, collects: bool = True) -> tuple[float, float]:
    """Return the rate in calls a second, and the 99th percentile of their durations in seconds.

    Args:
        call: The call.
        collects: Whether garbage is collected meanwhile, as it is in use.
    """
    best = (0.0, 0.0)
    for _ in range(5):
        taken: list[float] = []
        if not collects:
            gc.collect()
            gc.disable()

        async def caller(taken: list[float] = taken) -> None:
            for _ in range(CALLS_EACH):
                began = time.perf_counter()
                await call()
                taken.append(time.perf_counter() - began)

        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(AT_A_TIME):
                group.start_soon(caller)
        rate = len(taken) / (time.perf_counter() - began)
        gc.enable()
        best = max(best, (rate, sorted(taken)[int(len(taken) * 0.99)]))
    return best


async def handle_alone(client: Client) -> None:
    """Take the handle of a task from the SDK's session, without what a client does with it."""
    handle = await client.session.call_tool("quick", allow_claimed=True)
    assert not isinstance(handle, CallToolResult)


async def main() -> None:
    logging.disable(logging.CRITICAL)
    tasks_client = TasksClient()
    minimal, minimal_tasks = minimal_server(Consent)
    async with (
        Client(bare_server()) as bare,
        Client(bare_server(), extensions=[TasksClient()], elicitation_callback=accept) as declaring,
        Client(task_server(), extensions=[tasks_client], elicitation_callback=accept) as client,
        Client(task_server()) as without_tasks,
        Client(minimal, extensions=[MinimalClient(minimal_tasks)], elicitation_callback=accept) as least,
        Client(task_server(), extensions=[MinimalClient(minimal_tasks)]) as takes_handles,
    ):
        for each in (bare, declaring, client, without_tasks, least, takes_handles):
            await each.list_tools()
        cost = await processor_seconds(
            {
                "bare": (200, lambda: bare.call_tool("plain")),
                "declaring": (200, lambda: declaring.call_tool("plain")),
                "plain": (200, lambda: client.call_tool("plain")),
                "optional": (200, lambda: without_tasks.call_tool("quick")),
                "handle": (100, lambda: tasks_client.start(client, "quick")),
                "handle alone": (100, lambda: handle_alone(takes_handles)),
                "least handle": (100, lambda: handle_alone(least)),
                "quick": (100, lambda: client.call_tool("quick")),
                "ask": (50, lambda: client.call_tool("ask")),
                "two": (100, lambda: bare_requests(bare, 2)),
                "four": (100, lambda: bare_requests(bare, 4)),
                "least quick": (100, lambda: least.call_tool("quick")),
                "least ask": (50, lambda: least.call_tool("ask")),
            }
        )
        for name, what, bound in (
            ("plain", "A plain tool, for a client that declared tasks", "≤ 1.1"),
            ("declaring", "The floor of that: the bare server, for the same client", ""),
            ("optional", "A task tool, for a client that declared none", "≤ 1.15"),
            ("handle", "The handle of a task", "≤ 1.6"),
            ("handle alone", "The same, as the SDK's session returns it, without `TasksClient`", ""),
            ("least handle", "The floor of that: the least server with tasks", ""),
            ("quick", "`call_tool` of a task tool that returns at once", "≤ 3.0"),
            ("two", "The floor of that: the same two requests to the bare server", ""),
            ("least quick", "The floor of that: the least server and client with tasks", ""),
            ("ask", "`call_tool` of a task tool that asks one question", "≤ 5.0"),
            ("four", "The floor of that: the same four requests to the bare server", ""),
            ("least ask", "The floor of that: the least server and client with tasks", ""),
        ):
            row(f"{what}: processor time / that of a bare call", bound, f"{cost[name] / cost['bare']:.2f}")
        alone, floor_alone = await alone_in_turns(lambda: client.call_tool("ten_ms"), lambda: least.call_tool("ten_ms"))
        row("`call_tool` of a task of 10 ms, one at a time", "≤ 11.3 ms", f"{1_000 * alone:.1f} ms")
        row("The floor of that: the least server and client with tasks", "", f"{1_000 * floor_alone:.1f} ms")
        bare_rate, _ = await many_at_a_time(lambda: bare.call_tool("plain"))
        floor, floor_slowest = await many_at_a_time(lambda: bare_requests(bare, 2))
        least_rate, least_slowest = await many_at_a_time(lambda: least.call_tool("ten_ms"))
        rate, slowest = await many_at_a_time(lambda: client.call_tool("ten_ms"))
        row(
            f"`call_tool` of tasks of 10 ms, {AT_A_TIME} at a time: rate; 99th percentile",
            "≥ 2,000/s; ≤ 60 ms",
            f"{rate:,.0f}/s; {1_000 * slowest:.0f} ms (bare calls: {bare_rate:,.0f}/s)",
        )
        rate, slowest = await many_at_a_time(lambda: client.call_tool("ten_ms"), collects=False)
        row("The same while no garbage is collected", "", f"{rate:,.0f}/s; {1_000 * slowest:.0f} ms")
        row(
            f"The floor of that: two requests to the bare server, {AT_A_TIME} at a time: rate; 99th percentile",
            "",
            f"{floor:,.0f}/s; {1_000 * floor_slowest:.0f} ms",
        )
        row(
            f"The floor of that: the least server and client with tasks, {AT_A_TIME} at a time: rate; 99th percentile",
            "",
            f"{least_rate:,.0f}/s; {1_000 * least_slowest:.0f} ms",
        )


async def function_calls(body: Callable[[], Awaitable[object]]) -> float:
    """Return how many functions one call of a body calls, those that are written in C included."""
    for _ in range(50):
        await body()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(CALLS_COUNTED):
        await body()
    profile.disable()
    return sum(entry.callcount for entry in profile.getstats()) / CALLS_COUNTED


async def count() -> None:
    """Print the function calls of each kind of call: they are the same in each run, on any machine."""
    logging.disable(logging.CRITICAL)
    minimal, minimal_tasks = minimal_server(Consent)
    takes = [MinimalClient(minimal_tasks)]
    async with (
        Client(bare_server()) as bare,
        Client(task_server(), extensions=takes) as taker,
        Client(task_server(), extensions=[TasksClient()], elicitation_callback=accept) as client,
        Client(minimal, extensions=takes, elicitation_callback=accept) as least,
    ):
        for each in (bare, taker, client, least):
            await each.list_tools()
        bodies: tuple[tuple[str, Callable[[], Awaitable[object]]], ...] = (
            ("Function calls of a bare call", lambda: bare.session.call_tool("plain")),
            ("Those of the handle of a task", lambda: handle_alone(taker)),
            ("Those of the least server with tasks", lambda: handle_alone(least)),
            ("Function calls of a bare `call_tool`", lambda: bare.call_tool("plain")),
            ("Those of two requests to the bare server", lambda: bare_requests(bare, 2)),
            ("Those of `call_tool` of a task tool that returns at once", lambda: client.call_tool("quick")),
            ("Those of the least server and client with tasks", lambda: least.call_tool("quick")),
            ("Those of four requests to the bare server", lambda: bare_requests(bare, 4)),
            ("Those of `call_tool` of a task tool that asks one question", lambda: client.call_tool("ask")),
            ("Those of the least server and client with tasks", lambda: least.call_tool("ask")),
        )
        for what, body in bodies:
            row(what, "", f"{await function_calls(body):.0f}")


if __name__ == "__main__":
    anyio.run(count if sys.argv[1:] == ["calls"] else main)
