"""Servers mounted in web applications: the examples, as their own programs run them, and two servers side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp_types import ElicitResult
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings, TaskStore
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.listeners import Connection, http_connection
from tests.mcp_v2.raw_client import RawClient, accept, http_client
from tests.mcp_v2.schemas import Wire
from tests.support.applications import application_over_http
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

pytestmark = [
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]


# The examples

# On a slow machine, a worker imports for longer than the five seconds after which uvicorn replaces it.
PATIENT = """
import functools, os, runpy, sys, uvicorn
uvicorn.run = functools.partial(uvicorn.run, timeout_worker_healthcheck=600)
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def example(name: str, *options: str) -> Generator[HTTPServerProcess, None, None]:
    """Run an example, which must stop cleanly."""
    patient = ["-c", PATIENT] if "--workers" in options else []
    with HTTPServerProcess([*patient, str(EXAMPLES / name), "--port", "0", *options], "/tools/mcp") as server:
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


@on_one_loop
async def test_the_starlette_example_runs_with_one_worker_in_memory(anyio_backend: str) -> None:
    with example("mounted_app.py") as server, anyio.fail_after(PATIENCE):
        async with Client(server.url, extensions=[TasksClient()], elicitation_callback=confirm) as client:
            result = await client.call_tool("confirm_delete", {"filename": "a.txt"})
            assert result.structured_content == {"result": "Deleted a.txt"}
            result = await client.call_tool("slow_compute", {"seconds": 0, "label": "x"})
            assert result.structured_content == {"result": "computed x"}
            result = await client.call_tool("greet", {"name": "Ada"})
            assert result.structured_content == {"result": "Hello, Ada!"}


@on_one_loop
async def test_the_starlette_example_runs_with_two_workers_on_one_store(tmp_path: Path, anyio_backend: str) -> None:
    file = tmp_path / "tasks.db"
    with example("mounted_app.py", "--workers", "2", "--store", f"sqlite:///{file}") as server:
        async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=PATIENCE) as http:
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


@on_one_loop
async def test_the_fastapi_example_runs_with_one_worker_in_memory(anyio_backend: str) -> None:
    tasks = TasksClient()
    with example("fastapi_app.py") as server, anyio.fail_after(PATIENCE):
        async with (
            Client(server.url, extensions=[tasks], elicitation_callback=confirm) as client,
            httpx.AsyncClient(timeout=PATIENCE) as http,
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


@on_one_loop
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
                async with httpx.AsyncClient(
                    timeout=PATIENCE
                ) as http:  # each time another connection: to whichever worker
                    url = f"{server.address}/deliveries/{task_id}"
                    statuses.append((await http.post(url, json={"message": "at your door"})).status_code)
            assert statuses == [204, 409, 409, 404]
            done = await other.get(task)
            assert (done["status"], done["result"]["structuredContent"]) == ("completed", {"result": "at your door"})
            assert await one.get(task) == done


# Two servers in one application


class Confirmation(BaseModel):
    confirm: bool


@dataclass
class Pair:
    """An application with two servers, and a connection to each.

    Attributes:
        one: A client of the server at `/one`.
        other: A client of the server at `/other`.
        left: What the work of each server wrote when it was left, in order.
    """

    one: Connection
    other: Connection
    left: list[str]


@asynccontextmanager
async def pair(*stores: TaskStore) -> AsyncGenerator[Pair, None]:
    """Serve two servers from one application, with a store for each or one for both."""
    left: list[str] = []

    def make_server(name: str, store: TaskStore) -> MCPServer[Any]:
        mcp: MCPServer[Any] = MCPServer(name)
        tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0))
        tasks.install(mcp)

        @tasks.tool(required=True)
        async def delete(task: ServerTaskContext) -> str:
            try:
                answer = await task.elicit("Delete it?", Confirmation)
                await task.update_status("Deleting")
                if answer.action == "accept":
                    return f"deleted by {name}"
                await anyio.sleep_forever()
                return ""
            finally:
                left.append(name)

        return mcp

    def make_app() -> Starlette:
        names = ("one", "other")
        servers = [make_server(name, store) for name, store in zip(names, cycle(stores), strict=False)]
        routes = [
            Mount(f"/{name}", app=mcp.streamable_http_app(stateless_http=True))
            for name, mcp in zip(names, servers, strict=True)
        ]

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with AsyncExitStack() as stack:
                for store in stores:
                    if isinstance(store, SQLiteTaskStore):
                        await stack.enter_async_context(store)
                for mcp in servers:
                    await stack.enter_async_context(mcp.session_manager.run())
                yield

        return Starlette(routes=routes, lifespan=lifespan)

    with application_over_http(make_app) as address:
        async with (
            http_connection(f"{address}/one/mcp") as one,
            http_connection(f"{address}/other/mcp") as other,
        ):
            yield Pair(one, other, left)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_two_servers_in_one_application_keep_apart_with_a_store_each(kind: str, tmp_path: Path) -> None:
    """To each the other's task is a task that there is not (wire rules A3, C11)."""
    stores: list[TaskStore] = [
        InMemoryTaskStore() if kind == "memory" else SQLiteTaskStore(tmp_path / f"{number}.db") for number in range(2)
    ]
    async with pair(*stores) as both:
        one, other = both.one.client, both.other.client
        task = await one.start("delete")
        (key,) = await one.asked(task)
        for method, more in (("get", {}), ("update", {"inputResponses": {key: accept(confirm=True)}}), ("cancel", {})):
            errors = [(await other.request(f"tasks/{method}", {"taskId": id, **more})).error for id in (task, "none")]
            assert errors[0] == errors[1]
            assert errors[0]["code"] == -32602
        async with both.other.listen(task) as stream:
            assert await stream.acknowledged() == []
        await one.update(task, {key: accept(confirm=True)})
        assert (await one.until(task, "completed"))["result"]["structuredContent"] == {"result": "deleted by one"}


async def test_two_servers_on_one_store_are_to_its_tasks_like_two_processes_of_one_server(tmp_path: Path) -> None:
    """Who has a task's id reaches it through either; its work runs in the server that was called."""
    async with pair(SQLiteTaskStore(tmp_path / "tasks.db")) as both:
        one, other = both.one.client, both.other.client
        task = await one.start("delete")
        (key,) = await other.asked(task)
        async with both.other.listen(task) as stream:
            assert await stream.acknowledged() == [task]
            await other.update(task, {key: accept(confirm=True)})
            await stream.ended()
        assert stream.seen[task][-1]["result"]["structuredContent"] == {"result": "deleted by one"}

        task = await one.start("delete")
        (key,) = await other.asked(task)
        await other.update(task, {key: {"action": "decline"}})
        await one.said(task, "Deleting")
        async with both.one.listen(task) as stream:
            await stream.acknowledged()
            await other.cancel(task)
            await stream.ended()
        assert stream.seen[task][-1]["status"] == "cancelled"
        with anyio.fail_after(PATIENCE):
            while True:
                if both.left == ["one", "one"]:
                    break
                await anyio.sleep(0.01)
