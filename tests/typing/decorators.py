"""Decorated functions keep their types. Type checkers read this file; no test runs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI
from mcp.server import MCPServer, Server
from starlette.applications import Starlette
from typing_extensions import assert_type

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.server import Tasks

tasks = Tasks()


@tasks.task(rerunnable=True, ttl_ms=1000)
async def decorated(topic: str, task: ServerTaskContext) -> int:
    return len(topic)


@tasks.tool(promote_after=1.5)
async def tool(topic: str, task: ServerTaskContext) -> int:
    return len(topic)


@tasks.task()
def plain(topic: str) -> int:
    return len(topic)


async def check(task: ServerTaskContext) -> None:
    assert_type(await decorated("x", task), int)
    assert_type(await tool("x", task), int)
    assert_type(plain("x"), int)
    _: Callable[[str, ServerTaskContext], Coroutine[Any, Any, int]] = decorated

    async def work(task: ServerTaskContext) -> bytes:
        return b""

    assert_type(await tasks.run(work, required=True), bytes)
    tasks.task(ttl_ms="soon")  # type: ignore[arg-type]
    tasks.task(no_such_option=1)  # type: ignore[call-arg]


def check_servers(mcp: MCPServer[Any], low_level: Server[Any], fastmcp: FastMCP, other: FastAPI) -> None:
    tasks.install(mcp, tools=["fetch"])
    tasks.install(low_level, tools="all")
    tasks.install(fastmcp)
    tasks.install(other)  # type: ignore[arg-type]


class FastMCP:
    """Has what that of the package `fastmcp` has, which is not installed here."""

    def http_app(self, path: str | None = None, *, json_response: bool | None = None) -> Starlette:
        return Starlette()


async def check_steps(task: ServerTaskContext) -> None:
    async def fetch(url: str) -> bytes:
        return url.encode()

    assert_type(await task.step("fetch", fetch, "x"), bytes)
    assert_type(await task.step("length", len, "x", attempts=3, retry_on=[OSError], backoff=1.5), int)
