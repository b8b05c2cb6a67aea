"""Whose task it is, where callers are authenticated (law L10, wire rules A3 and A5)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v2.guarded import URL, USERS, Guarded, as_user
from tests.mcp_v2.raw_client import PATIENCE, accept, http_client
from tests.mcp_v2.schemas import Wire, needs_schemas

pytestmark = [
    pytest.mark.anyio,
    needs_schemas,
    pytest.mark.filterwarnings("ignore:.AuthSettings.validate_token_resource"),  # not a setting in mcp 2.0
]

NO_SUCH_TASK = "0123456789abcdefghijkl"


@pytest.fixture(params=[{}, {"stateless_http": True, "json_response": True}], ids=["sse", "stateless json"])
async def guarded(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[tuple[Guarded, Any], None]:
    """A guarded server that is being served."""
    server = Guarded()
    async with server.serve(**request.param) as app:
        yield server, app


@pytest.mark.parametrize("other", ["bob", "alice-elsewhere", "alice-in-other-app", "nobody-in-app"])
async def test_a5_the_task_of_another_principal_is_like_one_that_does_not_exist(
    guarded: tuple[Guarded, Any], other: str
) -> None:
    _, app = guarded
    async with as_user(app, "alice") as alice, as_user(app, other) as stranger:
        task_id = await alice.start("ask")
        (key,) = await alice.asked(task_id)
        params: dict[str, Wire] = {
            "tasks/get": {},
            "tasks/update": {"inputResponses": {key: accept(ok=True)}},
            "tasks/cancel": {},
        }
        for method, extra in params.items():
            foreign = await stranger.request(method, {"taskId": task_id, **extra})
            unknown = await stranger.request(method, {"taskId": NO_SUCH_TASK, **extra})
            assert foreign.error == unknown.error == {"code": -32602, "message": "Task not found"}
            assert foreign.http_status == unknown.http_status
        assert (await alice.get(task_id))["status"] == "input_required"
        malformed = await stranger.update(task_id, {key: "no answer"})
        assert malformed.error == {"code": -32602, "message": "Task not found"}
        await alice.update(task_id, {key: accept(ok=True)})
        final = await alice.until(task_id, "completed")
        for method, extra in params.items():
            assert (await stranger.request(method, {"taskId": task_id, **extra})).error["message"] == "Task not found"
        assert await alice.get(task_id) == final


async def test_a5_a_new_token_of_the_same_principal_reaches_the_task(guarded: tuple[Guarded, Any]) -> None:
    server, app = guarded
    async with as_user(app, "alice") as before, as_user(app, "alice-again") as after:
        task_id = await before.start("who")
        assert (await after.get(task_id))["status"] == "working"
        server.go_on.set()
        await after.until(task_id, "completed")


async def test_work_sees_the_token_of_its_caller_and_never_another_ones(guarded: tuple[Guarded, Any]) -> None:
    server, app = guarded
    tokens = list(USERS)
    ids: dict[str, str] = {}
    for token in tokens:
        async with as_user(app, token) as client:
            ids[token] = await client.start("who")
    async with as_user(app, "bob") as client:  # the request that comes last before the work goes on
        await client.get(ids["bob"])
    server.go_on.set()
    owners = set()
    for token in tokens:
        async with as_user(app, token) as client:
            final = await client.until(ids[token], "completed")
            seen_token, seen_user, seen_principal = final["result"]["structuredContent"]["result"]
            assert (seen_token, seen_user) == (token, USERS[token][1])
            owners.add(seen_principal)
    assert len(owners) == len(set(USERS.values()))


async def test_a_plain_function_in_its_thread_sees_the_token_of_its_caller(guarded: tuple[Guarded, Any]) -> None:
    _, app = guarded
    async with as_user(app, "alice") as client:
        final = await client.until(await client.start("who_in_a_thread"), "completed")
    assert final["result"]["structuredContent"]["result"] == ["alice", "alice"]


async def test_the_owner_is_kept_with_the_task_and_never_shown(guarded: tuple[Guarded, Any]) -> None:
    server, app = guarded
    async with as_user(app, "alice") as client:
        handle = (await client.call("ask")).result
        assert "alice" not in str(handle)
        assert "alice" not in str(await client.get(handle["taskId"]))
        record = await server.tasks.runtime.store.get_task(handle["taskId"])
    assert record is not None
    assert record.owner is not None
    assert "alice" in record.owner


async def test_a5_a_caller_without_a_token_reaches_no_tool_and_no_task(guarded: tuple[Guarded, Any]) -> None:
    _, app = guarded
    async with as_user(app, "alice") as alice:
        task_id = await alice.start("ask")
        async with as_user(app, "stolen") as nobody:
            reply = await nobody.request("tasks/get", {"taskId": task_id}, check=False)
        assert reply.http_status == 401
        assert task_id not in str(reply.message)


async def test_a5_without_authentication_the_id_alone_is_the_key() -> None:
    mcp: MCPServer[Any] = MCPServer("open")
    tasks = Tasks()
    tasks.install(mcp)

    @tasks.tool()
    async def quick(task: ServerTaskContext) -> str:
        return "quick"

    app = mcp.streamable_http_app()
    with anyio.fail_after(PATIENCE):
        async with app.router.lifespan_context(app):
            async with http_client(URL, app=app) as one, http_client(URL, app=app) as other:
                assert (await other.until(await one.start("quick"), "completed"))["result"]
