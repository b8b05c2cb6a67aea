"""Whose task it is, where callers are authenticated (law L10, wire rules A3 and A5)."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue
from tests.mcp_v2.guarded import URL, USERS, Guarded, as_user
from tests.mcp_v2.listeners import listen_request
from tests.mcp_v2.raw_client import DECLARED, accept, http_client
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
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


# Another's task and none at all: the same answer for the same work (law L10)


class Calls:
    """What is asked of every store and queue in memory.

    Attributes:
        names: The methods that were called, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for kind in (InMemoryTaskStore, InMemoryTaskMessageQueue):
            for name, method in inspect.getmembers(kind, inspect.iscoroutinefunction):
                if not name.startswith("_"):
                    monkeypatch.setattr(kind, name, self._noting(method))

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def note(*args: Any, **options: Any) -> Any:
            self.names.append(method.__qualname__)
            return await method(*args, **options)

        return note


async def test_l10_another_s_task_costs_what_none_costs_and_the_answer_is_the_same_to_the_byte(
    monkeypatch: pytest.MonkeyPatch, anyio_backend: str
) -> None:
    calls = Calls(monkeypatch)
    async with Guarded().serve(stateless_http=True, json_response=True) as app:
        async with as_user(app, "alice") as alice, httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
            asking = await alice.start("ask")
            (key,) = await alice.asked(asking)
            ended = await alice.start("who_in_a_thread")
            await alice.until(ended, "completed")

            async def as_bob(message: Wire, **headers: str) -> tuple[list[str], bytes, int]:
                basic = {"accept": "application/json, text/event-stream", "authorization": "Bearer bob"}
                calls.names.clear()
                response = await http.post(URL, json=message, headers={**basic, **headers})
                assert asking not in response.text
                assert ended not in response.text
                return list(calls.names), response.content, response.status_code

            now = listen_request({}, DECLARED)["params"]["_meta"]
            for method in ("tasks/get", "tasks/update", "tasks/cancel", "subscriptions/listen"):
                seen = []
                for task_id in (NO_SUCH_TASK, asking, ended):
                    params: Wire = {"taskId": task_id, "inputResponses": {key: accept(ok=True), "x": "y" * 100_000}}
                    if method == "subscriptions/listen":
                        params = {"notifications": {"taskIds": [task_id]}}
                    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": now}}
                    headers = {"mcp-protocol-version": "2026-07-28", "mcp-method": method}
                    seen.append(await as_bob(message, **headers))
                assert seen[0] == seen[1] == seen[2], method
                assert len(seen[0][0]) == 1, "one read, however a task is not the caller's"

            for method in ("tasks/get", "tasks/result", "tasks/cancel"):  # as a client of revision 2025-11-25
                seen = []
                for task_id in (NO_SUCH_TASK, asking, ended):
                    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"taskId": task_id}}
                    seen.append(await as_bob(message, **{"mcp-protocol-version": "2025-11-25"}))
                assert seen[0] == seen[1] == seen[2], method
                assert len(seen[0][0]) == 1, "one read, however a task is not the caller's"

            assert (await alice.get(asking))["status"] == "input_required"
            await alice.cancel(asking)


async def test_a6_the_tasks_of_one_principal_leave_room_to_the_others(anyio_backend: str) -> None:
    async with (
        Guarded(max_tasks_per_owner=2).serve() as app,
        as_user(app, "alice") as alice,
        as_user(app, "alice-again") as again,
        as_user(app, "bob") as bob,
    ):
        mine = [await client.start("ask") for client in (alice, again)]
        for client in (alice, again):
            assert "at most 2" in (await client.call("ask")).error["message"]
        theirs = await bob.start("ask")
        await alice.cancel(mine[0])
        await again.start("ask")
        assert (await bob.get(theirs))["status"] in ("working", "input_required")


# What the work sees of its caller

caller: ContextVar[str] = ContextVar("caller", default="nobody")


async def test_work_sees_the_context_variables_of_its_call_and_never_another_ones(anyio_backend: str) -> None:
    """Such as those of tracing, which a layer around the server sets for each request."""
    mcp: MCPServer[Any] = MCPServer("contexts")
    tasks = Tasks()
    tasks.install(mcp)
    go_on = anyio.Event()

    @tasks.tool()
    async def who(task: ServerTaskContext) -> list[str]:
        before = caller.get()
        await go_on.wait()
        seen = [before, caller.get(), await anyio.to_thread.run_sync(caller.get)]
        caller.set("the work itself")
        return seen

    @tasks.tool()
    def who_in_a_thread(task: ServerTaskContext) -> list[str]:
        seen = [caller.get()]
        caller.set("a thread")
        return seen

    app = mcp.streamable_http_app(json_response=True, stateless_http=True)

    async def naming(scope: Any, receive: Any, send: Any) -> None:
        token = caller.set(dict(scope["headers"]).get(b"x-caller", b"?").decode())
        try:
            await app(scope, receive, send)
        finally:
            caller.reset(token)

    names = [f"caller {n}" for n in range(20)]
    results: dict[str, list[str]] = {}
    async with app.router.lifespan_context(app):
        async with http_client(URL, app=naming, headers={"x-caller": "another user"}) as other:

            async def call(name: str) -> None:
                async with http_client(URL, app=naming, headers={"x-caller": name}) as client:
                    waiting, quick = await client.start("who"), await client.start("who_in_a_thread")
                    await other.get(waiting)
                    if len(results) == len(names) - 1:
                        go_on.set()
                    results[name] = []
                    for task_id in (waiting, quick):
                        task = await client.until(task_id, "completed")
                        results[name] += task["result"]["structuredContent"]["result"]

            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    for name in names:
                        group.start_soon(call, name)
    assert results == {name: [name] * 4 for name in names}
    assert caller.get() == "nobody"
