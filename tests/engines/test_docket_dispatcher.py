"""What the dispatcher for docket adds: tasks that come together in one round trip, each with an end of its own."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

pytest.importorskip("docket", reason="the engine is not installed")

from docket import Docket
from redis import ResponseError

from mcp_task_runtime.core.dispatch import Dispatch
from mcp_task_runtime.engines.docket import DocketDispatcher
from tests.stores import redis_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the engine has no other


async def test_tasks_that_come_together_are_added_in_one_round_trip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add_many = Docket.add_many

    async def counted(docket: Docket, calls: Any, **options: Any) -> Any:
        calls = list(calls)
        sizes.append(len(calls))
        return await add_many(docket, calls, **options)

    monkeypatch.setattr(Docket, "add_many", counted)
    with redis_server.own_server() as redis:
        async with DocketDispatcher(redis.url, queues={"slow tool": "slow"}) as dispatcher:
            async with anyio.create_task_group() as group:
                for number in range(30):
                    name = "slow tool" if number % 3 == 0 else "tool"
                    group.start_soon(dispatcher.submit, Dispatch(str(number), name, 1, None))
            assert sorted(sizes) == [10, 20]
            for _ in range(2):  # the second one of the same run is dropped
                await dispatcher.submit(Dispatch("alone", "tool", 1, None))
            assert sorted(sizes) == [10, 20]
            async with Docket(name="mcp-tasks", url=redis.url) as docket:
                assert redis.client.xlen(docket.stream_key) == 21
            async with Docket(name="mcp-tasks-slow", url=redis.url) as docket:
                assert redis.client.xlen(docket.stream_key) == 10


async def test_a_task_that_cannot_be_added_fails_alone() -> None:
    ends: dict[str, type[Exception] | None] = {}
    with redis_server.own_server() as redis:
        async with Docket(name="mcp-tasks", url=redis.url) as docket:
            redis.client.set(docket.runs_key("bad.1"), "of another type")
            stream = docket.stream_key
        async with DocketDispatcher(redis.url) as dispatcher:

            async def submit(task_id: str) -> None:
                try:
                    await dispatcher.submit(Dispatch(task_id, "tool", 1, None))
                except Exception as error:
                    ends[task_id] = type(error)
                else:
                    ends[task_id] = None

            async with anyio.create_task_group() as group:
                for task_id in ("a", "bad", "b"):
                    group.start_soon(submit, task_id)
        assert ends.pop("a") is ends.pop("b") is None
        assert issubclass(ends.pop("bad") or object, ResponseError)
        assert redis.client.xlen(stream) >= 2


async def test_a_broker_that_is_down_fails_all_tasks_and_takes_them_when_it_is_back() -> None:
    with redis_server.own_server() as redis:
        async with DocketDispatcher(redis.url) as dispatcher:
            await dispatcher.submit(Dispatch("first", "tool", 1, None))
            redis.kill()
            failed: list[str] = []

            async def submit(task_id: str) -> None:
                try:
                    await dispatcher.submit(Dispatch(task_id, "tool", 1, None))
                except Exception:
                    failed.append(task_id)

            async with anyio.create_task_group() as group:
                for task_id in ("a", "b"):
                    group.start_soon(submit, task_id)
            assert sorted(failed) == ["a", "b"]
            redis.start()
            failed.clear()
            async with anyio.create_task_group() as group:
                for task_id in ("a", "b"):
                    group.start_soon(submit, task_id)
            assert failed == []
