"""Wire rule A6 and design section 5: each limit has its error on the wire, and nothing is lost by it.

`examples/everything_server.py` has the limits that come by themselves, too high to reach here: these servers have
others.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from tests.mcp_v2 import limited_server
from tests.mcp_v2.in_process import memory_client, served_over_http
from tests.mcp_v2.limited_server import make_server
from tests.mcp_v2.raw_client import RawClient, StdioServer, accept, http_client
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

LIMIT_EXCEEDED = -32600

Serve = Callable[[dict[str, Any]], AbstractAsyncContextManager[RawClient]]


@asynccontextmanager
async def _in_memory(settings: dict[str, Any]) -> AsyncGenerator[RawClient, None]:
    async with memory_client(make_server(settings)) as client:
        yield client


@asynccontextmanager
async def _over_http(settings: dict[str, Any]) -> AsyncGenerator[RawClient, None]:
    with served_over_http(partial(make_server, settings)) as url:
        async with http_client(url) as client:
            yield client


@asynccontextmanager
async def _over_stdio(settings: dict[str, Any]) -> AsyncGenerator[RawClient, None]:
    with StdioServer([limited_server.__file__, json.dumps(settings)]) as server:
        yield RawClient(server)


TRANSPORTS: dict[str, Serve] = {
    "memory": _in_memory,
    "http": _over_http,
    "stdio": _over_stdio,
}


@pytest.fixture(params=["memory", "http"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """Serves the server with the given settings over one of the transports, of which memory is what stdio sends."""
    return TRANSPORTS[request.param]


async def begun(client: RawClient) -> int:
    count: int = (await client.call("how_many_have_begun")).result["structuredContent"]["result"]
    return count


async def let_go(client: RawClient, task_id: str) -> None:
    """Let work go, when it has begun."""
    with anyio.fail_after(PATIENCE):
        while True:
            reply = await client.call("let_go", {"task_id": task_id})
            if reply.result["structuredContent"]["result"]:
                return
            await anyio.sleep(0.01)


def text_of(task: Wire) -> str:
    text: str = task["result"]["structuredContent"]["result"]
    return text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a6_a_task_too_many_is_refused_with_the_limit_and_an_ended_one_makes_room(transport: str) -> None:
    async with TRANSPORTS[transport]({"max_tasks_per_owner": 2}) as client:
        first, second = [await client.start("ask") for _ in range(2)]
        for tool in ("ask", "quick"):
            error = (await client.call(tool)).error
            assert error == {"code": LIMIT_EXCEEDED, "message": "Limit reached: tasks at once (at most 2)"}
        assert await begun(client) == 2, "what was refused did not run"
        assert (await client.call("quick", capabilities={})).result["resultType"] == "complete", "it needs no task"
        (key,) = await client.asked(first)
        await client.update(first, {key: accept(text="answered")})
        assert text_of(await client.until(first, "completed")) == "answered"
        third = await client.start("ask")
        assert (await client.call("quick")).error["code"] == LIMIT_EXCEEDED
        for task_id in (second, third):
            await client.asked(task_id)
            await client.cancel(task_id)
            await client.until(task_id, "cancelled")
        assert text_of(await client.until(await client.start("quick"), "completed")) == "quick"


async def test_a6_of_many_calls_at_once_no_more_than_the_limit_become_tasks(serve: Serve) -> None:
    async with serve({"max_tasks_per_owner": 3}) as client:
        replies: list[Wire] = []

        async def call() -> None:
            replies.append((await client.call("ask")).message)

        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(call)
        made = [reply["result"]["taskId"] for reply in replies if "result" in reply]
        assert len(made) == 3
        assert {reply["error"]["code"] for reply in replies if "error" in reply} == {LIMIT_EXCEEDED}
        for task_id in made:
            (key,) = await client.asked(task_id)
            await client.update(task_id, {key: accept(text="x")})
            await client.until(task_id, "completed")


async def test_a6_work_beyond_what_may_run_at_once_waits_for_its_turn_and_then_runs(serve: Serve) -> None:
    async with serve({"max_running": 2}) as client:
        running = [await client.start("work") for _ in range(2)]
        queued = [await client.start("work") for _ in range(3)]
        for task_id in queued:
            task = await client.get(task_id)
            assert task["status"] == "working", "a task that waits is one like any other"
        assert await begun(client) == 2
        assert (await client.call("quick", capabilities={})).result["resultType"] == "complete", "not as a task"
        await client.cancel(queued[0])
        await client.until(queued[0], "cancelled")
        for task_id in [*running, *queued[1:]]:
            await let_go(client, task_id)
            assert text_of(await client.until(task_id, "completed")) == task_id
        assert await begun(client) == 5, "the cancelled one never ran, and the call without a task did"


async def test_a6_work_that_waits_for_an_answer_lets_others_run(serve: Serve) -> None:
    """Law L13: a client that never answers delays no other."""
    async with serve({"max_running": 1}) as client:
        asking = [await client.start("ask") for _ in range(3)]
        keys = [next(iter(await client.asked(task_id))) for task_id in asking]
        working = await client.start("work")
        await let_go(client, working)
        assert text_of(await client.until(working, "completed")) == working
        for task_id, key in zip(asking, keys, strict=True):
            await client.update(task_id, {key: accept(text=task_id)})
            assert text_of(await client.until(task_id, "completed")) == task_id


async def test_a6_a_client_that_polls_too_often_is_told_when_to_come_again(serve: Serve) -> None:
    async with serve({"max_polls_per_second": 2}) as client:
        task_id = await client.start("work")
        other = await client.start("work")
        refused: Wire | None = None
        with anyio.fail_after(PATIENCE):
            while refused is None:
                refused = (await client.request("tasks/get", {"taskId": task_id})).message.get("error")
        wait_ms = refused["data"]["retryAfterMs"]
        assert 0 < wait_ms <= 500
        assert refused == {
            "code": LIMIT_EXCEEDED,
            "message": "Limit reached: polls of one task a second (at most 2)",
            "data": {"retryAfterMs": wait_ms},
        }
        assert (await client.get(other))["status"] == "working", "each task has polls of its own"
        await client.cancel(task_id)  # no poll, and not limited
        await anyio.sleep(wait_ms / 1000)
        assert (await client.get(task_id))["status"] == "cancelled", "nothing was lost"


async def test_a6_a_ttl_beyond_the_bounds_is_clamped_and_shown_as_stored(serve: Serve) -> None:
    async with serve({"min_ttl_ms": 2_000, "max_ttl_ms": 60_000, "retention_ms": 0}) as client:
        for tool, ttl_ms in {"short": 2_000, "long": 60_000, "fit": 5_000, "quick": 60_000}.items():
            handle = (await client.call(tool)).result
            assert handle["ttlMs"] == ttl_ms
            assert (await client.get(handle["taskId"]))["ttlMs"] == ttl_ms


async def test_a6_a_task_that_has_expired_is_gone_and_like_one_that_never_was(serve: Serve) -> None:
    async with serve({"min_ttl_ms": 1, "retention_ms": 0}) as client:
        task_id = (await client.call("short")).result["taskId"]
        other = await client.start("ask")
        await client.until_gone(task_id)
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            reply = await client.request(method, {"taskId": task_id, "inputResponses": {}})
            assert reply.error == {"code": -32602, "message": "Task not found"}
        await client.asked(other)
        await client.cancel(other)


async def test_a6_an_answer_too_large_is_refused_with_the_limit_and_its_question_stays_open(serve: Serve) -> None:
    async with serve({"max_answer_bytes": 1_000}) as client:
        task_id = await client.start("ask")
        requests = await client.asked(task_id)
        (key,) = requests
        for text in ("x" * 1_000, "ä" * 500, "x" * 1_000_000):
            error = (await client.update(task_id, {key: accept(text=text)})).error
            assert error == {"code": -32602, "message": f"Invalid answer to '{key}': it is larger than 1000 bytes"}
            assert (await client.get(task_id))["inputRequests"] == requests
        await client.update(task_id, {"unknown": accept(text="x" * 10_000)})  # no answer to anything
        await client.update(task_id, {key: accept(text="x" * 900)})
        assert text_of(await client.until(task_id, "completed")) == "x" * 900
