"""Servers mounted in web applications: the examples, as their own programs run them, and two servers side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp_types import ElicitResult
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskStore
from mcp_task_runtime.adapters import mcp_v2_client
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.adapters.mcp_v2_client import ClientTask, TasksClient
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.processes import HTTPServerProcess
from tests.mcp_v2.raw_client import PATIENCE, RawClient, accept, http_client
from tests.mcp_v2.schemas import Wire, needs_schemas

pytestmark = [
    pytest.mark.anyio,
    needs_schemas,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

one_event_loop = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture(autouse=True)
def polls_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits longer than it must."""
    monkeypatch.setattr(mcp_v2_client, "MAX_POLL_INTERVAL_MS", 50)


# The examples


@contextmanager
def example(name: str, *options: str) -> Generator[HTTPServerProcess, None, None]:
    """Run an example, which must stop cleanly."""
    with HTTPServerProcess([str(EXAMPLES / name), "--port", "0", *options], "/tools/mcp") as server:
        yield server
    for trouble in ("Traceback", "ERROR", "never awaited"):
        assert trouble not in server.errors, server.errors


async def confirm(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"confirm": True})


async def two_workers(
    stack: AsyncExitStack, url: str, store: TaskStore, tool: str, arguments: Wire
) -> list[tuple[RawClient, str]]:
    """Return a connection to each of two worker processes, and a task that was made there.

    A connection stays with the worker that took it. Which one that was, the lease of a task says.
    """
    found: dict[str, tuple[RawClient, str]] = {}
    while len(found) < 2:
        client = await stack.enter_async_context(http_client(url))
        try:
            task_id = await client.start(tool, arguments)
        except httpx.ConnectError:  # with workers, uvicorn prints its address before any of them listens
            await anyio.sleep(0.05)
            continue
        record = await store.get_task(task_id)
        assert record is not None
        assert record.lease is not None
        found.setdefault(record.lease.worker, (client, task_id))
    return list(found.values())


@one_event_loop
async def test_the_starlette_example_runs_with_one_worker_in_memory(anyio_backend: str) -> None:
    with example("mounted_app.py") as server, anyio.fail_after(PATIENCE):
        async with Client(server.url, extensions=[TasksClient()], elicitation_callback=confirm) as client:
            result = await client.call_tool("confirm_delete", {"filename": "a.txt"})
            assert result.structured_content == {"result": "Deleted a.txt"}
            result = await client.call_tool("slow_compute", {"seconds": 0, "label": "x"})
            assert result.structured_content == {"result": "computed x"}
            result = await client.call_tool("greet", {"name": "Ada"})
            assert result.structured_content == {"result": "Hello, Ada!"}


@one_event_loop
async def test_the_starlette_example_runs_with_two_workers_on_one_store(tmp_path: Path, anyio_backend: str) -> None:
    file = tmp_path / "tasks.db"
    with example("mounted_app.py", "--workers", "2", "--store", f"sqlite:///{file}") as server:
        async with AsyncExitStack() as stack, httpx.AsyncClient() as http:
            stack.enter_context(anyio.fail_after(2 * PATIENCE))
            store = await stack.enter_async_context(SQLiteTaskStore(file))
            (one, task), (other, cancelled) = await two_workers(
                stack, server.url, store, "confirm_delete", {"filename": "a.txt"}
            )
            (key,) = await other.asked(task)
            await other.update(task, {key: accept(confirm=True)})
            done = await other.until(task, "completed")
            assert done["result"]["structuredContent"] == {"result": "Deleted a.txt"}
            assert await one.get(task) == done
            await one.cancel(cancelled)
            assert (await other.get(cancelled))["status"] == "cancelled"
            assert (await http.get(f"{server.address}/health")).text == "ok"


@one_event_loop
async def test_the_fastapi_example_runs_with_one_worker_in_memory(anyio_backend: str) -> None:
    tasks = TasksClient()
    with example("fastapi_app.py") as server, anyio.fail_after(PATIENCE):
        async with (
            Client(server.url, extensions=[tasks], elicitation_callback=confirm) as client,
            httpx.AsyncClient() as http,
        ):
            task = await tasks.start(client, "order", {"item": "bread"})
            assert isinstance(task, ClientTask)
            async with anyio.create_task_group() as group:

                async def deliver() -> None:
                    async for snapshot in task.snapshots():
                        if snapshot.status_message == "Ordered":
                            break
                    response = await http.post(
                        f"{server.address}/deliveries/{task.task_id}", json={"message": "at your door"}
                    )
                    assert response.status_code == 204

                group.start_soon(deliver)
                assert (await task.wait()).structured_content == {"result": "at your door"}


@one_event_loop
async def test_the_fastapi_example_runs_with_two_workers_on_one_store(tmp_path: Path, anyio_backend: str) -> None:
    file = tmp_path / "tasks.db"
    with example("fastapi_app.py", "--workers", "2", "--store", f"sqlite:///{file}") as server:
        async with AsyncExitStack() as stack:
            stack.enter_context(anyio.fail_after(2 * PATIENCE))
            store = await stack.enter_async_context(SQLiteTaskStore(file))
            (one, task), (other, cancelled) = await two_workers(stack, server.url, store, "order", {"item": "bread"})
            (key,) = await other.asked(task)
            await other.update(task, {key: accept(confirm=True)})
            await other.said(task, "Ordered")
            await one.cancel(cancelled)
            assert (await other.get(cancelled))["status"] == "cancelled"
            statuses = []
            for task_id in (task, task, cancelled, "none"):
                async with httpx.AsyncClient() as http:  # each time another connection: to whichever worker
                    url = f"{server.address}/deliveries/{task_id}"
                    statuses.append((await http.post(url, json={"message": "at your door"})).status_code)
            assert statuses == [204, 409, 409, 404]
            done = await other.get(task)
            assert (done["status"], done["result"]["structuredContent"]) == ("completed", {"result": "at your door"})
            assert await one.get(task) == done
