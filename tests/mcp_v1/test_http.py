"""Tasks over Streamable HTTP on `mcp` 1.x: streams that drop, principals, servers without sessions."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp.server.fastmcp import FastMCP

from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.mcp_v1.http_scenarios import WITH_JSON, WITH_SESSIONS, WITHOUT_SESSIONS, Scenario, say_yes
from tests.mcp_v1.raw_client import ALL_CAPABILITIES, HTTPClient, accept, http_client
from tests.mcp_v1.scenarios import ClientTasks
from tests.mcp_v1.schemas import RELATED
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess
from tests.support.unreachable_store import check_errors, errors_of_start

SERVE = str(Path(__file__).with_name("serve.py"))
ALICE = {"authorization": "Bearer alice"}
BOB = {"authorization": "Bearer bob"}

KEPT_UNTIL_THE_TTL = {"TaskRecord", "Task", "TaskRequest", "Outcome", "Entry", "Group", "Index", "Owned"}


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_with_auth() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--auth"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_with_json() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--json-response"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_without_sessions() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--stateless-http"]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_without_sessions_with_auth() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--stateless-http", "--auth"]) as server:
        yield server.url


@pytest.fixture(scope="module", params=[[], ["--stateless-http"]], ids=["sessions", "stateless"])
def url_behind_gateway(request: pytest.FixtureRequest) -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--gateway", *request.param]) as server:
        yield server.url


@pytest.fixture(scope="module")
def url_of_gateway() -> Generator[str, None, None]:
    with HTTPServerProcess([SERVE, "http", "--gateway"]) as server:
        yield server.url


@on_one_loop
@pytest.mark.parametrize("scenario", WITH_SESSIONS.values(), ids=WITH_SESSIONS.keys())
async def test_it_holds_with_sessions_that(scenario: Scenario, url: str) -> None:
    await scenario(url)


@on_one_loop
@pytest.mark.parametrize("scenario", WITHOUT_SESSIONS.values(), ids=WITHOUT_SESSIONS.keys())
async def test_it_holds_without_sessions_that(scenario: Scenario, url_without_sessions: str) -> None:
    await scenario(url_without_sessions)


@on_one_loop
@pytest.mark.parametrize("scenario", WITH_JSON.values(), ids=WITH_JSON.keys())
async def test_it_holds_with_json_that(scenario: Scenario, url_with_json: str) -> None:
    await scenario(url_with_json)


@on_one_loop
async def test_b12_a_client_task_is_followed_on_the_result_stream(url: str) -> None:
    answered = {"result": {"action": "accept", "content": {"ok": True}, "_meta": {RELATED: {"taskId": "client-1"}}}}
    async with http_client(url, answer=ClientTasks(["working", "completed"], answered)) as client:
        assert await client.text(await client.start("ask_as_task")) == "accept"


@on_one_loop
async def test_b6_two_live_streams_get_a_question_once(url: str) -> None:
    async with http_client(url) as client:
        task_id = await client.start("ask")
        first = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        second = await client.start_request("tasks/result", {"taskId": task_id})
        await anyio.sleep(0.2)
        assert len(client.questions) == 1
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert "result" in await client.response(first)
        assert "result" in await client.response(second)


@on_one_loop
async def test_fault_15_an_answer_to_an_old_sessions_question_fits_none_of_a_new_one(url: str) -> None:
    async with http_client(url) as old, http_client(url) as new:
        await old.start_request("tasks/result", {"taskId": await old.start("ask")})
        question = await old.asked()
        task_id = await new.start("ask")
        waiting = await new.start_request("tasks/result", {"taskId": task_id})
        asked = await new.asked()
        assert asked["id"] != question["id"]
        await new.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=False)})
        await new.send({"jsonrpc": "2.0", "id": asked["id"], **accept(ok=True)})
        assert (await new.response(waiting))["result"]["content"][0]["text"] == "Sure? accept True"


@on_one_loop
async def test_a5_a_principal_finds_its_tasks_again_and_nobody_else_does(url_with_auth: str) -> None:
    async with http_client(url_with_auth, headers=ALICE) as client:
        task_id = await client.start("ask")
        await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked()
    async with http_client(url_with_auth, headers=BOB) as other:
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            assert (await other.error(method, {"taskId": task_id}))["code"] == -32602
    async with http_client(url_with_auth, headers=ALICE, answer=say_yes) as again:
        assert task_id in [task["taskId"] for task in (await again.result("tasks/list"))["tasks"]]
        assert await again.text(task_id) == "Sure? accept True"


@on_one_loop
async def test_work_has_its_own_callers_token_and_never_anothers(url_with_auth: str) -> None:
    async with http_client(url_with_auth, headers=ALICE) as alice, http_client(url_with_auth, headers=BOB) as bob:
        ours, theirs = await alice.start("whoami"), await bob.start("whoami")
        assert await alice.text(ours) == "app-of-alice"
        assert await bob.text(theirs) == "app-of-bob"


@on_one_loop
async def test_without_sessions_a_plain_call_that_asks_fails_as_the_task_does(url_without_sessions: str) -> None:
    async with http_client(url_without_sessions) as client:
        error = (await client.outcome(await client.start("ask")))["error"]
        assert await client.error("tools/call", {"name": "either", "arguments": {}}) == error


@on_one_loop
async def test_without_sessions_a_principal_has_tasks_of_its_own(url_without_sessions_with_auth: str) -> None:
    url = url_without_sessions_with_auth
    async with http_client(url, headers=ALICE, initialize=False) as client:
        hello = await client.initialize(ALL_CAPABILITIES)
        assert "list" in hello["capabilities"]["tasks"]
        task_id = await client.start("double", {"x": 2})
        assert await client.text(task_id) == "4"
        assert task_id in [task["taskId"] for task in (await client.result("tasks/list"))["tasks"]]
    async with http_client(url, headers=BOB) as other:
        assert (await other.error("tasks/get", {"taskId": task_id}))["code"] == -32602
        assert (await other.result("tasks/list"))["tasks"] == []


def leaks(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return what there is more of; but asyncio keeps some cancelled timers, and with each its context."""
    return {
        name: count
        for name, count in after.items()
        if count > before.get(name, 0) + (0 if name == "asyncio" else 30)
        and name.rpartition(".")[2] not in KEPT_UNTIL_THE_TTL
    }


@on_one_loop
async def test_a_hundred_clients_at_once_of_whom_twenty_leave_in_mid_question_and_come_back(url: str) -> None:
    ended: list[str] = []

    async def wait_for(client: HTTPClient, number: int, task_id: str) -> None:
        client.answer = say_yes
        ended.append(await client.text(task_id))
        assert ended[-1] == f"{number}? accept True"
        await client.end_session()

    async def one(number: int) -> None:
        async with http_client(url, capabilities={"elicitation": {}}) as client:
            task_id = await client.start("ask", {"question": f"{number}?"})
            if number % 5:
                await wait_for(client, number, task_id)
                return
            await client.start_request("tasks/result", {"taskId": task_id})
            await client.asked()
        async with http_client(url, resumes=client) as again:
            await wait_for(again, number, task_id)

    async def alive() -> dict[str, int]:
        result = await observer.result("tools/call", {"name": "alive", "arguments": {}})
        counts: dict[str, int] = result["structuredContent"]
        return counts

    with anyio.fail_after(4 * PATIENCE):
        async with http_client(url) as observer:
            await one(0)
            before = await alive()
            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(one, number)
            assert len(ended) == 101
            for _ in range(200):  # the sessions need a moment to end
                leaked = leaks(before, await alive())
                if not leaked:
                    break
                await anyio.sleep(0.05)
            assert not leaked


@on_one_loop
async def test_a5_a_task_belongs_to_the_principal_that_the_server_names(url_behind_gateway: str) -> None:
    url = url_behind_gateway
    ada, bob = {"x-user": "ada"}, {"x-user": "bob"}
    async with http_client(url, headers=ada) as first, http_client(url, headers=bob) as other:
        task_id = await first.start("wait")
        async with http_client(url, headers=ada) as second:
            assert task_id in [task["taskId"] for task in (await second.result("tasks/list"))["tasks"]]
            assert (await other.result("tasks/list"))["tasks"] == []
            assert (await other.error("tasks/get", {"taskId": task_id}))["code"] == -32602
            await second.result("tasks/cancel", {"taskId": task_id})


async def answered_by_its_own_principal_only(url: str, mine: dict[str, str], theirs: dict[str, str]) -> None:
    async with http_client(url, headers=mine) as client:
        task_id = await client.start("ask")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        async with httpx.AsyncClient(headers=theirs, timeout=PATIENCE) as other:  # it knows the session of the first
            message = {"jsonrpc": "2.0", "id": question["id"], **accept(ok=False)}
            await other.post(url, json=message, headers=client.headers())
        await anyio.sleep(0.05)
        assert (await client.task(task_id))["status"] == "input_required"
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? accept True"


@on_one_loop
async def test_l10_a_response_of_another_principal_answers_no_question(url_with_auth: str) -> None:
    await answered_by_its_own_principal_only(url_with_auth, ALICE, BOB)


@on_one_loop
async def test_l10_a_response_of_another_user_of_the_gateway_answers_no_question(url_of_gateway: str) -> None:
    await answered_by_its_own_principal_only(url_of_gateway, {"x-user": "ada"}, {"x-user": "bob"})


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
def test_a_server_whose_store_cannot_be_reached_fails_at_its_start(transport: str, tmp_path: Path) -> None:
    away = f"{tmp_path}/missing/tasks.db"
    errors = errors_of_start(tmp_path, transport, f"sqlite:///{away}")
    check_errors(errors, away, "secret")


async def test_the_app_of_a_server_holds_the_runtime_open() -> None:
    mcp: FastMCP[Any] = FastMCP("reports")
    tasks = Tasks()
    tasks.install(mcp)
    app = mcp.streamable_http_app()
    assert not tasks.runtime.is_open
    async with app.router.lifespan_context(app):
        assert tasks.runtime.is_open
    assert not tasks.runtime.is_open
