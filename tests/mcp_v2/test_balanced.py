"""Server processes on one store, mounted in web applications, behind a balancer that sends each request to any of them.

Each is spoken to through the balancer, or directly where a test must know which it is: `w` does the work
then, and `s` serves it.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitResult, TextContent

from mcp_task_runtime.client import ClientTask, TaskFailedError, TasksClient
from tests.mcp_v1 import raw_client as legacy
from tests.mcp_v2.balanced_server import PATH
from tests.mcp_v2.balancer import Balancer, balanced
from tests.mcp_v2.listeners import Connection, Stream, http_connection
from tests.mcp_v2.raw_client import RawClient, accept
from tests.mcp_v2.schemas import Wire
from tests.stores import conftest as stores
from tests.stores.worker_program import Place
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE
from tests.support.processes import HTTPServerProcess

pytestmark = [
    on_one_loop,
    pytest.mark.anyio,
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

PROGRAM = str(Path(__file__).with_name("balanced_server.py"))
# No task is lost, on however slow a machine; and no renewal of a lease stops work that a cancel should have stopped.
LEASE_MS = 600_000
SHORT_LEASE_MS = 6_000  # long enough that a process which lives renews it, on a machine that is busy

new_place = stores.new_place


@dataclass
class Cluster:
    """Two servers and the balancer.

    Attributes:
        url: Where the balancer listens.
        balancer: Knows which server took what.
        w: A server.
        s: The other one.
    """

    url: str
    balancer: Balancer
    w: HTTPServerProcess
    s: HTTPServerProcess


@contextmanager
def cluster_at(place: Place, *options: str, lease_ms: int = LEASE_MS) -> Generator[Cluster, None, None]:
    """Start two servers on one store."""
    arguments = [PROGRAM, json.dumps(asdict(place)), str(lease_ms), *options]
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            starting = [pool.submit(HTTPServerProcess, arguments, PATH) for _ in range(2)]
        w, s = (stack.enter_context(each.result()) for each in starting)
        address, balancer = stack.enter_context(balanced(w.address, s.address))
        yield Cluster(address + PATH, balancer, w, s)


@pytest.fixture(scope="module")
def cluster(
    new_place: Callable[[Path], Place], tmp_path_factory: pytest.TempPathFactory
) -> Generator[Cluster, None, None]:
    with cluster_at(new_place(tmp_path_factory.mktemp("cluster"))) as cluster:
        yield cluster


@asynccontextmanager
async def both(cluster: Cluster) -> AsyncGenerator[tuple[Connection, Connection], None]:
    """Connect to each of the servers."""
    async with http_connection(cluster.w.url) as w, http_connection(cluster.s.url) as s:
        yield w, s


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """What work writes into, wherever it runs."""
    return tmp_path / "diary"


async def until_noted(diary: Path, *events: str) -> str:
    """Wait until the diary has exactly these events; return the id of the process where they were."""
    with anyio.fail_after(PATIENCE):
        while True:
            entries = [entry.split() for entry in read(diary)]
            if [event for event, _ in entries] == list(events):
                (pid,) = {pid for _, pid in entries}
                return pid
            await anyio.sleep(0.01)


def read(diary: Path) -> list[str]:
    return diary.read_text().splitlines() if diary.exists() else []


def asks(message: str) -> Callable[[Wire], bool]:
    """Return what says whether a task asks this."""
    return lambda task: any(q["params"]["message"] == message for q in task.get("inputRequests", {}).values())


async def asked(client: RawClient, task_id: str, message: str) -> str:
    """Poll until the task asks this; return the key."""
    with anyio.fail_after(PATIENCE):
        while True:
            for key, request in (await client.asked(task_id)).items():
                if request["params"]["message"] == message:
                    return key
            await anyio.sleep(0.01)


def text_of(result: CallToolResult | ClientTask) -> str:
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def fill_in(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": {"author?": "Ann", "editor?": "Eve"}[params.message]})


# One works, the other serves


async def test_questions_answers_changes_and_results_cross(cluster: Cluster, diary: Path) -> None:
    """Either server shows the same, and either's listeners see every change (wire rule C11)."""
    async with both(cluster) as (w, s):
        task_id = await w.client.start("write", {"diary": str(diary)})
        async with w.listen(task_id) as at_w, s.listen(task_id) as at_s:
            streams: list[Stream] = [at_w, at_s]
            for stream in streams:
                assert await stream.acknowledged() == [task_id]
            for answering, role, name in ((s, "author", "Ann"), (w, "editor", "Eve")):
                for stream in streams:
                    await stream.until(asks(f"{role}?"))
                key = await asked(s.client, task_id, f"{role}?")
                assert await asked(w.client, task_id, f"{role}?") == key
                await answering.client.update(task_id, {key: accept(name=name)})
                await answering.client.update(task_id, {key: accept(name="too late")})
            for stream in streams:
                await stream.ended()
                assert stream.seen[task_id][-1]["status"] == "completed"
                assert stream.seen[task_id][-1]["result"]["content"][0]["text"] == "Ann and Eve"
                assert any(task.get("statusMessage") == "author: Ann" for task in stream.seen[task_id])
        assert at_w.seen[task_id][-1] == at_s.seen[task_id][-1]
        assert await w.client.get(task_id) == await s.client.get(task_id)
        assert read(diary) == [f"began {cluster.w.pid}", f"left {cluster.w.pid}"]


@pytest.mark.parametrize("tool", ["work", "write"])
async def test_l9_a_cancel_through_one_stops_the_work_in_the_other(cluster: Cluster, diary: Path, tool: str) -> None:
    async with both(cluster) as (w, s):
        task_id = await w.client.start(tool, {"diary": str(diary)})
        await (s.client.said(task_id, "at it") if tool == "work" else s.client.asked(task_id))
        async with w.listen(task_id) as at_w, s.listen(task_id) as at_s:
            for stream in (at_w, at_s):
                await stream.acknowledged()
            await s.client.cancel(task_id)
            for stream in (at_w, at_s):
                await stream.ended()
                assert stream.seen[task_id][-1]["status"] == "cancelled"
        assert await until_noted(diary, "began", "left") == str(cluster.w.pid)
        for connection in (w, s):
            assert (await connection.client.get(task_id))["status"] == "cancelled"
            await connection.client.cancel(task_id)  # C9: acknowledged again


async def test_a3_neither_server_knows_a_task_that_there_is_not(cluster: Cluster) -> None:
    async with both(cluster) as (w, s):
        errors = [(await each.client.request("tasks/get", {"taskId": "none"})).error for each in (w, s)]
        assert errors[0] == errors[1]
        assert errors[0]["code"] == -32602
        async with s.listen("none") as stream:
            assert await stream.acknowledged() == []


# Through the balancer


async def test_tasks_need_not_know_who_serves_them(cluster: Cluster, tmp_path: Path) -> None:
    """Each request of each task goes to the next server, so that one task's go to both."""
    results: list[str] = []
    before = len(cluster.balancer.log)

    async with http_connection(cluster.url) as connection:
        client = connection.client

        async def one(number: int) -> None:
            task_id = await client.start("write", {"diary": str(tmp_path / str(number))})
            async with connection.listen(task_id) as stream:
                assert await stream.acknowledged() == [task_id]
                for role in ("author", "editor"):
                    key = await asked(client, task_id, f"{role}?")
                    await client.update(task_id, {key: accept(name=f"{role} {number}")})
                await stream.ended()
            assert stream.seen[task_id][-1]["result"] == (await client.get(task_id))["result"]
            results.append(stream.seen[task_id][-1]["result"]["content"][0]["text"])

        async def other(number: int) -> None:
            diary = tmp_path / f"other {number}"
            task_id = await client.start("work", {"diary": str(diary)})
            await client.said(task_id, "at it")
            await client.cancel(task_id)
            await until_noted(diary, "began", "left")

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(one, number)
                group.start_soon(other, number)
    assert sorted(results) == [f"author {number} and editor {number}" for number in range(5)]
    log = cluster.balancer.log[before:]
    for method in ("tools/call", "tasks/get", "tasks/update", "tasks/cancel", "subscriptions/listen"):
        assert {server for each, server in log if each == method} == {cluster.w.address, cluster.s.address}


async def test_the_sdks_client_need_not_know_who_serves_it(cluster: Cluster, tmp_path: Path) -> None:
    tasks = TasksClient()
    texts: dict[int, str] = {}
    with anyio.fail_after(PATIENCE):
        async with Client(cluster.url, extensions=[tasks], elicitation_callback=fill_in) as client:

            async def call(number: int) -> None:
                texts[number] = text_of(await client.call_tool("write", {"diary": str(tmp_path / str(number))}))

            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(call, number)
            diary = tmp_path / "work"
            task = await tasks.start(client, "work", {"diary": str(diary)})
            assert isinstance(task, ClientTask)
            await until_noted(diary, "began")
            await task.cancel()
            await until_noted(diary, "began", "left")
            assert (await task.get()).status == "cancelled"
        async with Client(cluster.url, elicitation_callback=fill_in) as client:
            assert text_of(await client.call_tool("double", {"x": 2})) == "4", "within the request"
    assert texts == dict.fromkeys(range(4), "Ann and Eve")


# Clients of protocol revision 2025-11-25


async def test_a_legacy_clients_tasks_cross_where_there_are_no_sessions(cluster: Cluster, diary: Path) -> None:
    """The id is the secret (law L10)."""
    async with legacy.http_client(cluster.w.url) as w, legacy.http_client(cluster.s.url) as s:
        doubled = await w.start("double", {"x": 2})
        assert await s.text(doubled) == await w.text(doubled) == "4"
        assert await s.task(doubled) == await w.task(doubled)

        working = await w.start("work", {"diary": str(diary)})
        assert await until_noted(diary, "began") == str(cluster.w.pid)
        waiting = await w.start_request("tasks/result", {"taskId": working})
        assert (await s.result("tasks/cancel", {"taskId": working}))["status"] == "cancelled"
        assert await until_noted(diary, "began", "left") == str(cluster.w.pid)
        assert "error" in await w.response(waiting)
        assert (await w.error("tasks/cancel", {"taskId": working}))["code"] == -32602
        assert (await s.error("tasks/get", {"taskId": "none"}))["code"] == -32602


async def test_a_legacy_client_need_not_know_who_serves_it_where_there_are_no_sessions(
    cluster: Cluster, diary: Path
) -> None:
    async with legacy.http_client(cluster.url) as client:
        for x in range(3):
            assert await client.text(await client.start("double", {"x": x})) == str(2 * x)
        error = (await client.outcome(await client.start("write", {"diary": str(diary)})))["error"]
        assert "cannot be asked" in error["message"]


@pytest.fixture(scope="module")
def cluster_with_sessions(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster, None, None]:
    place = Place("sqlite", str(tmp_path_factory.mktemp("sessions") / "tasks.db"))
    with cluster_at(place, "--sessions") as cluster:
        yield cluster


async def test_a_legacy_clients_session_is_unknown_to_the_other_server(cluster_with_sessions: Cluster) -> None:
    """A session lives in its process, and the SDK says so: HTTP 404, after which a client starts again."""
    async with legacy.http_client(cluster_with_sessions.w.url) as client, httpx.AsyncClient(timeout=PATIENCE) as http:
        task_id = await client.start("double", {"x": 2})
        message = {"jsonrpc": "2.0", "id": 1, "method": "tasks/get", "params": {"taskId": task_id}}
        response = await http.post(cluster_with_sessions.s.url, json=message, headers=client.headers())
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "Session not found"
        assert await client.text(task_id) == "4"
    with anyio.fail_after(PATIENCE):
        async with Client(cluster_with_sessions.url, mode="legacy") as connected:

            async def call_until_one_goes_to_the_other() -> None:
                while True:
                    await connected.call_tool("double", {"x": 2})

            with pytest.raises(MCPError, match="Session not found"):
                await call_until_one_goes_to_the_other()


async def test_a_modern_client_needs_no_session(cluster_with_sessions: Cluster, diary: Path) -> None:
    with anyio.fail_after(PATIENCE):
        async with Client(
            cluster_with_sessions.url, extensions=[TasksClient()], elicitation_callback=fill_in
        ) as client:
            assert text_of(await client.call_tool("write", {"diary": str(diary)})) == "Ann and Eve"


# A process that is lost


async def lose_one(place: Place, folder: Path, sent: signal.Signals) -> Wire:
    """End the process that runs a `write` and a `write_once` with this signal; return how the latter ended.

    The `write` goes on in the other process, and its client, which never notices, is asked nothing twice.
    """
    diary, other = folder / "diary", folder / "other"
    asked_for: list[str] = []
    at_editor, go_on = anyio.Event(), anyio.Event()
    results: list[CallToolResult] = []

    async def answer(context: Any, params: Any) -> ElicitResult:
        asked_for.append(params.message)
        if params.message == "editor?":
            at_editor.set()
            await go_on.wait()
        return await fill_in(context, params)

    with cluster_at(place, lease_ms=SHORT_LEASE_MS) as cluster, anyio.fail_after(3 * PATIENCE):
        async with Client(cluster.url, extensions=[TasksClient()], elicitation_callback=answer) as client:

            async def call() -> None:
                results.append(await client.call_tool("write", {"diary": str(diary)}))

            async with anyio.create_task_group() as group:
                group.start_soon(call)
                await at_editor.wait()
                pid = await until_noted(diary, "began")
                lost, left = (cluster.w, cluster.s) if pid == str(cluster.w.pid) else (cluster.s, cluster.w)
                async with http_connection(lost.url) as connection:
                    once = await connection.client.start("write_once", {"diary": str(other)})
                    await connection.client.asked(once)
                async with http_connection(left.url) as connection, connection.listen(once) as stream:
                    await stream.acknowledged()
                    await anyio.to_thread.run_sync(lost.stop, sent)
                    await stream.ended()
                go_on.set()
            assert text_of(results[0]) == "Ann and Eve"
            with pytest.raises(TaskFailedError) as caught:
                await TasksClient().resume(client, once).wait()
        assert asked_for == ["author?", "editor?"]
        runs = [entry for entry in read(diary) if entry != f"left {lost.pid}"]
        assert runs == [f"began {lost.pid}", f"began {left.pid}", f"left {left.pid}"]
        assert read(other)[0] == f"began {lost.pid}"
        assert f"began {left.pid}" not in read(other)
    ended = stream.seen[once][-1]
    assert ended["status"] == "failed"
    assert ended["error"] == {"code": caught.value.code, "message": caught.value.message}
    return ended


async def test_l12_work_of_a_process_that_is_killed_goes_on_in_the_other_or_has_failed(
    new_place: Callable[[Path], Place], tmp_path: Path, anyio_backend: str
) -> None:
    task = await lose_one(new_place(tmp_path), tmp_path, signal.SIGKILL)
    assert "lost" in task["error"]["message"]
    assert not any(entry.startswith("left") for entry in read(tmp_path / "other"))


async def test_work_of_a_process_that_is_replaced_goes_on_in_the_other_or_has_failed(
    tmp_path: Path, anyio_backend: str
) -> None:
    """As with each process in turn when a new version is rolled out."""
    task = await lose_one(Place("sqlite", str(tmp_path / "tasks.db")), tmp_path, signal.SIGTERM)
    assert "shut down" in task["error"]["message"]
    assert [entry.split()[0] for entry in read(tmp_path / "other")] == ["began", "left"]
