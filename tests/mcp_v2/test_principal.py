"""Servers that say themselves who makes a request: behind a gateway that authenticates, or for one user."""

from __future__ import annotations

import runpy
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.context import ServerRequestContext
from starlette.requests import Request

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TasksClient, UnknownTaskError
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.mcp_v1 import raw_client as old
from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.guarded import Guarded, as_user
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.listeners import http_connection
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

MISSING = "0123456789abcdefghijkl"


def user_of(ctx: ServerRequestContext[Any, Any]) -> str | None:
    """Return whom the gateway let in."""
    assert ctx.request is not None
    user: str | None = ctx.request.headers.get("x-user")
    return user


def make_server() -> MCPServer[Any]:
    mcp: MCPServer[Any] = MCPServer("behind a gateway")
    tasks = Tasks(principal=user_of)
    tasks.install(mcp)

    @tasks.tool()
    async def work(task: ServerTaskContext) -> str:
        await anyio.sleep_forever()
        return ""

    return mcp


@pytest.fixture(scope="module", params=[{}, {"stateless_http": True}], ids=["sessions", "stateless"])
def url(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    with served_over_http(make_server, **request.param) as served:
        yield served


async def test_a5_a_task_belongs_to_the_principal_that_the_server_names(url: str) -> None:
    async with http_connection(url, **{"x-user": "ada"}) as ada, http_connection(url, **{"x-user": "bob"}) as bob:
        task_id = await ada.client.start("work")
        async with http_connection(url, **{"x-user": "ada"}) as again:
            assert (await again.client.get(task_id))["status"] == "working"
        for method in ("tasks/get", "tasks/cancel"):
            refused = (await bob.client.request(method, {"taskId": task_id})).error
            assert refused == (await bob.client.request(method, {"taskId": MISSING})).error
        async with bob.listen(task_id) as nothing:
            assert await nothing.acknowledged() == []
        async with ada.listen(task_id) as stream:
            assert await stream.acknowledged() == [task_id]
            await ada.client.cancel(task_id)
            await stream.ended()


async def test_a5_b9_a_client_of_the_older_protocol_finds_its_tasks_in_any_session(url: str) -> None:
    async with (
        old.http_client(url, headers={"x-user": "eve"}) as eve,
        old.http_client(url, headers={"x-user": "bob"}) as bob,
    ):
        task_id = await eve.start("work")
        async with old.http_client(url, headers={"x-user": "eve"}) as again:
            listed = await again.result("tasks/list")
            assert task_id in [task["taskId"] for task in listed["tasks"]]
            assert (await bob.result("tasks/list"))["tasks"] == []
            assert (await bob.error("tasks/get", {"taskId": task_id}))["code"] == -32602
            assert (await again.result("tasks/cancel", {"taskId": task_id}))["status"] == "cancelled"


async def test_the_one_user_of_a_server_finds_the_tasks_again_after_a_restart_and_another_one_does_not(
    tmp_path: Path,
) -> None:
    def serve(store: SQLiteTaskStore, user: str) -> MCPServer[Any]:
        mcp: MCPServer[Any] = MCPServer("mine")
        tasks = Tasks(store, principal=lambda ctx: user)
        tasks.install(mcp)

        @tasks.tool()
        async def quick(task: ServerTaskContext) -> str:
            return "done"

        return mcp

    with anyio.fail_after(PATIENCE):
        async with SQLiteTaskStore(tmp_path / "tasks.db") as store:
            tasks_client = TasksClient()
            async with Client(serve(store, "ada"), extensions=[tasks_client]) as client:
                task = await tasks_client.start(client, "quick")
                assert isinstance(task, ClientTask)
                await task.wait()
            async with Client(serve(store, "ada"), extensions=[tasks_client]) as client:
                assert (await tasks_client.resume(client, task.task_id).wait()).structured_content == {"result": "done"}
            async with Client(serve(store, "bob"), extensions=[tasks_client]) as client:
                with pytest.raises(UnknownTaskError):
                    await tasks_client.resume(client, task.task_id).wait()


RECIPES = runpy.run_path(str(EXAMPLES / "principals.py"))


@pytest.mark.parametrize("name", ["user_of_this_process", "user_of_the_gateway", "user_of_the_token"])
async def test_each_recipe_works_where_there_is_no_http(name: str) -> None:
    mcp: MCPServer[Any] = MCPServer("in memory")
    tasks = Tasks(principal=RECIPES[name])
    tasks.install(mcp)

    @tasks.tool()
    async def quick(task: ServerTaskContext) -> str:
        return "done"

    tasks_client = TasksClient()
    with anyio.fail_after(PATIENCE):
        async with Client(mcp, extensions=[tasks_client]) as client:
            assert (await client.call_tool("quick")).structured_content == {"result": "done"}


async def test_a_client_that_registers_again_finds_the_tasks_of_its_user() -> None:
    guarded = Guarded(principal=RECIPES["user_of_the_token"])
    with anyio.fail_after(PATIENCE):
        async with guarded.serve() as app, as_user(app, "alice") as alice:
            task_id = await alice.start("ask")
            async with as_user(app, "alice-in-other-app") as again:
                assert (await again.get(task_id))["taskId"] == task_id
            for stranger in ("bob", "alice-elsewhere", "nobody-in-app"):
                async with as_user(app, stranger) as other:
                    assert (await other.request("tasks/get", {"taskId": task_id})).error["code"] == -32602


async def test_a_gateway_says_who_calls() -> None:
    user = RECIPES["user_of_the_gateway"]
    request = Request({"type": "http", "headers": [(b"x-user", b"ada")]})
    assert user(SimpleNamespace(request=request)) == "ada"
    assert user(SimpleNamespace(request=Request({"type": "http", "headers": []}))) is None
