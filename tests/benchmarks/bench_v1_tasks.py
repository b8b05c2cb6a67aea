"""A server on `mcp` 1.x compared with the same server on the SDK's own runtime: memory, plain calls, tasks, questions.

The same tools, the same client, each pair in turns: a low-level server on both sides, and a `FastMCP` on both sides.
The SDK's runtime has no way through the tool layer of `FastMCP`, so there its work calls that layer, which validates
the arguments and converts the result. The floor is a `FastMCP` whose tasks are a dict and a task of the event loop, and
keep no promise. The memory of a task is measured in a process of its own.
"""

from __future__ import annotations

import gc
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from functools import partial
from secrets import token_hex
from typing import Any

import anyio
from mcp import ClientSession, types
from mcp.server.experimental.task_context import ServerTaskContext as SDKTaskContext
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.lowlevel import Server
from mcp.shared.memory import create_connected_server_and_client_session
from pydantic import BaseModel

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.benchmarks.measuring import resident_kib, row
from tests.support.low_level import low_level

FORM = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
TASKS = 1_000
ROUNDS = 7
CALLS = 50
AT_A_TIME = 100


class Choice(BaseModel):
    ok: bool


async def accept(context: Any, params: Any) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"ok": True})


def connected(server: Any) -> AbstractAsyncContextManager[ClientSession]:
    return create_connected_server_and_client_session(server, elicitation_callback=accept)


@asynccontextmanager
async def ours() -> AsyncGenerator[ClientSession, None]:
    """Serve a `FastMCP` with our tasks."""
    mcp: FastMCP[Any] = FastMCP("ours")
    tasks = Tasks()
    tasks.install(mcp, tools=["adopted"])
    mcp.tool()(plain)
    mcp.tool("adopted")(in_context)
    tasks.tool("context")(in_context)

    @tasks.tool()
    async def quick(task: ServerTaskContext) -> str:
        return "done"

    @tasks.tool()
    async def ask(task: ServerTaskContext) -> str:
        return (await task.elicit("Sure?", FORM)).action

    async with tasks, connected(mcp) as client:
        yield client


@asynccontextmanager
async def ours_low_level() -> AsyncGenerator[ClientSession, None]:
    """Serve a low-level server with our tasks."""
    server: Server[Any, Any] = Server("ours")
    tasks = Tasks()
    list_tools(server)

    @server.call_tool()  # type: ignore[untyped-decorator, unused-ignore]
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        if name == "plain":
            return answer("done")
        return await tasks.run(partial(low_level_work, name))

    tasks.install(server)
    async with tasks, connected(server) as client:
        yield client


@asynccontextmanager
async def sdks_own() -> AsyncGenerator[ClientSession, None]:
    """Serve a low-level server with the SDK's own runtime."""
    server: Server[Any, Any] = Server("own")
    server.experimental.enable_tasks()
    list_tools(server)

    @server.call_tool()  # type: ignore[untyped-decorator, unused-ignore]
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        if name == "plain":
            return answer("done")
        return await server.request_context.experimental.run_task(partial(low_level_work, name))

    async with connected(server) as client:
        yield client


@asynccontextmanager
async def sdks_own_fast() -> AsyncGenerator[ClientSession, None]:
    """Serve a `FastMCP` whose tools run in the SDK's own runtime."""
    mcp: FastMCP[Any] = FastMCP("own")
    server = low_level(mcp)
    server.experimental.enable_tasks()
    current: ContextVar[SDKTaskContext] = ContextVar("current")
    mcp.tool()(plain)

    @mcp.tool()
    async def quick() -> str:
        return "done"

    @mcp.tool()
    async def ask() -> str:
        return (await current.get().elicit("Sure?", FORM)).action

    @server.call_tool(validate_input=False)  # type: ignore[untyped-decorator, unused-ignore]
    async def call(name: str, arguments: dict[str, Any]) -> Any:
        if name == "plain":
            return await mcp.call_tool(name, arguments)

        async def work(task: SDKTaskContext) -> types.CallToolResult:
            current.set(task)
            made: Any = await mcp.call_tool(name, arguments)
            return types.CallToolResult(content=made[0], structuredContent=made[1])

        return await server.request_context.experimental.run_task(work)

    async with connected(mcp) as client:
        yield client


@asynccontextmanager
async def least_fast() -> AsyncGenerator[ClientSession, None]:
    """Serve a `FastMCP` with the least that a task needs: no owner, store, limit, time to live, check or failure."""
    mcp: FastMCP[Any] = FastMCP("least")
    server = low_level(mcp)
    ended: dict[str, anyio.Event] = {}
    results: dict[str, types.CallToolResult] = {}

    @mcp.tool()
    async def quick() -> str:
        return "done"

    async def work(task: types.Task, session: Any, params: types.CallToolRequestParams) -> None:
        made: Any = await mcp.call_tool(params.name, params.arguments or {})
        results[task.taskId] = types.CallToolResult(content=made[0], structuredContent=made[1])
        ended[task.taskId].set()
        told = types.TaskStatusNotificationParams(**{**task.model_dump(), "status": "completed"})
        await session.send_notification(types.ServerNotification(types.TaskStatusNotification(params=told)))

    async def call(request: types.CallToolRequest) -> types.ServerResult:
        now = datetime.now(timezone.utc)
        task = types.Task(taskId=token_hex(16), status="working", createdAt=now, lastUpdatedAt=now, ttl=600_000)
        ended[task.taskId] = anyio.Event()
        group.start_soon(work, task, server.request_context.session, request.params)
        return types.ServerResult(types.CreateTaskResult(task=task))

    async def result(request: types.GetTaskPayloadRequest) -> types.ServerResult:
        await ended[request.params.taskId].wait()
        return types.ServerResult(results[request.params.taskId])

    server.request_handlers[types.CallToolRequest] = call
    server.request_handlers[types.GetTaskPayloadRequest] = result
    async with anyio.create_task_group() as group, connected(mcp) as client:
        yield client


async def plain() -> str:
    return "done"


async def in_context(ctx: Context[Any, Any, Any]) -> str:
    return (await ctx.elicit("Sure?", Choice)).action


def list_tools(server: Server[Any, Any]) -> None:
    @server.list_tools()  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
    async def tools() -> list[types.Tool]:
        execution = types.ToolExecution(taskSupport="optional")
        schema = {"type": "object"}
        of_tasks = [types.Tool(name=name, inputSchema=schema, execution=execution) for name in ("quick", "ask")]
        return [types.Tool(name="plain", inputSchema=schema), *of_tasks]


async def low_level_work(name: str, task: Any) -> types.CallToolResult:
    text = "done" if name == "quick" else (await task.elicit("Sure?", FORM)).action
    return answer(text)


def answer(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


async def start(client: ClientSession, name: str) -> str:
    params = types.CallToolRequestParams(name=name, arguments={}, task=types.TaskMetadata(ttl=600_000))
    request = types.ClientRequest(types.CallToolRequest(params=params))
    return (await client.send_request(request, types.CreateTaskResult)).task.taskId


async def call(client: ClientSession, name: str) -> None:
    params = types.GetTaskPayloadRequestParams(taskId=await start(client, name))
    request = types.ClientRequest(types.GetTaskPayloadRequest(params=params))
    result = await client.send_request(request, types.CallToolResult)
    assert not result.isError, result


async def memory(server: str, tool: str) -> None:
    """Print by how many KiB this process grows for each task of a tool that waits on a question."""
    async with ours() if server == "ours" else sdks_own() as client:
        for count in (300, TASKS):
            before = resident_kib()
            for _ in range(count):
                await start(client, tool)
            await anyio.sleep(0.5)
            gc.collect()
        print(f"{(resident_kib() - before) / TASKS:.1f}", flush=True)
        os._exit(0)


def memory_of(server: str, tool: str = "ask") -> str:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.bench_v1_tasks", server, tool]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1]


async def in_turns(bodies: dict[str, Callable[[], Awaitable[object]]], times: int) -> dict[str, float]:
    """Run each body so many times in turns; return the median processor time of one, in seconds."""
    samples: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(ROUNDS):
        for name, body in bodies.items():
            gc.collect()
            gc.disable()
            began = time.process_time()
            for _ in range(times):
                await body()
            samples[name].append((time.process_time() - began) / times)
            gc.enable()
    return {name: statistics.median(values) for name, values in samples.items()}


async def many(client: ClientSession, name: str) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(AT_A_TIME):
            group.start_soon(call, client, name)


async def speed() -> None:
    async with ours_low_level() as here, sdks_own() as there:
        await compare("low-level", here, there)
    async with ours() as here, sdks_own_fast() as there, least_fast() as least:
        await compare("`FastMCP`", here, there, least)


async def call_plain(client: ClientSession) -> None:
    params = types.CallToolRequestParams(name="plain", arguments={})
    request = types.ClientRequest(types.CallToolRequest(params=params))
    result = await client.send_request(request, types.CallToolResult)
    assert not result.isError, result


async def compare(kind: str, here: ClientSession, there: ClientSession, least: ClientSession | None = None) -> None:
    cost = await in_turns({"ours": partial(call_plain, here), "own": partial(call_plain, there)}, CALLS)
    row(
        f"`mcp` 1.x, {kind}, a plain call: processor time / that with the SDK's own tasks enabled",
        "≤ 1.0",
        f"{cost['ours'] / cost['own']:.2f} ({1_000 * cost['ours']:.2f} / {1_000 * cost['own']:.2f} ms)",
    )
    for name, what in (("quick", "a task call and its result"), ("ask", "a question")):
        bodies: dict[str, Callable[[], Awaitable[object]]] = {
            "ours": partial(call, here, name),
            "own": partial(call, there, name),
        }
        if least is not None and name == "quick":
            bodies["least"] = partial(call, least, name)
        cost = await in_turns(bodies, CALLS)
        what = f"`mcp` 1.x, {kind}, {what}"
        row(
            f"{what}: processor time / that of the SDK's own runtime",
            "≤ 0.9",
            f"{cost['ours'] / cost['own']:.2f} ({1_000 * cost['ours']:.1f} / {1_000 * cost['own']:.1f} ms)",
        )
        if "least" in cost:
            row("The floor of that: the least server with tasks, the same", "", f"{cost['least'] / cost['own']:.2f}")

        cost = await in_turns({"ours": partial(many, here, name), "own": partial(many, there, name)}, 1)
        row(
            f"{what}, {AT_A_TIME} at a time: rate / that of the SDK's own runtime",
            "≥ 1.2",
            f"{cost['own'] / cost['ours']:.2f} ({AT_A_TIME / cost['ours']:,.0f} a second)",
        )


def main() -> None:
    logging.disable(logging.CRITICAL)
    kib, own = memory_of("ours"), memory_of("own")
    waits = "`mcp` 1.x, memory of a task that waits on a question"
    row(waits, "≤ 10 KiB", f"{kib} KiB (the SDK's own runtime: {own})")
    for tool, kind in (("context", "a declared"), ("adopted", "an adopted")):
        row(f"{waits}: {kind} tool that asks through the SDK's context", "", f"{memory_of('ours', tool)} KiB")
    anyio.run(speed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        logging.disable(logging.CRITICAL)
        anyio.run(memory, sys.argv[1], sys.argv[2])
    else:
        main()
