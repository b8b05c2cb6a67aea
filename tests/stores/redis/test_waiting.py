"""Waiting for changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, eventually, waiting
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


def scripts_run(server: RedisServer) -> int:
    stats: dict[str, Any] = server.client.info("commandstats")
    calls: int = stats.get("cmdstat_evalsha", {"calls": 0})["calls"]
    server.client.config_resetstat()
    return calls


async def test_following_a_task_costs_one_read_for_each_change(server: RedisServer, prefix: str) -> None:
    """And what changes or ends between two waits is seen (L3)."""
    async with RedisTaskStore(server.url, prefix=prefix) as store, RedisTaskStore(server.url, prefix=prefix) as other:
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        revision = 1

        async def cost() -> tuple[int, int]:
            nonlocal revision
            scripts_run(server)
            async with waiting(partial(store.wait_for_update, task_id, after=revision)) as (waiter,):
                await eventually(lambda: store.statistics().waiters == 1)
                await anyio.wait_all_tasks_blocked()
                before = scripts_run(server)
                await other.update_task(task_id)
                with anyio.fail_after(PATIENCE):
                    assert (await waiter.wait()).revision == revision + 1
            revision += 1
            return before, scripts_run(server)

        with anyio.fail_after(PATIENCE):
            while await cost() != (0, 2):  # as soon as the subscription has begun and what came before it was heard
                pass
        assert [await cost() for _ in range(5)] == [(0, 2)] * 5
        await other.update_task(task_id)
        with anyio.fail_after(PATIENCE):
            assert (await store.wait_for_update(task_id, after=revision)).revision == revision + 1
        await other.delete_task(task_id)
        with anyio.fail_after(PATIENCE), pytest.raises(TaskNotFoundError):
            await store.wait_for_update(task_id, after=revision + 1)


@pytest.mark.parametrize("cut", [False, True])
async def test_every_change_is_seen_by_a_follower(server: RedisServer, prefix: str, cut: bool) -> None:
    """L3: whenever it comes, and while connections are lost."""
    async with RedisTaskStore(server.url, prefix=prefix) as store, RedisTaskStore(server.url, prefix=prefix) as other:
        task_id = (await store.create_task(NewTask(ttl_ms=60_000))).task_id

        async def follow() -> None:
            revision = 1
            while revision <= 150:
                revision = (await store.wait_for_update(task_id, after=revision)).revision

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(follow)
                for number in range(150):
                    await other.update_task(task_id)
                    if number % 7 == 0:
                        await anyio.sleep(0.001 * (number % 5))
                    if cut and number % 40 == 0:
                        server.cut_connections()


async def test_a_wait_that_remembers_the_task_notices_that_it_expires(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        task_id = (await store.create_task(NewTask(ttl_ms=5_000))).task_id
        async with waiting(partial(store.wait_for_update, task_id, after=1)) as (waiter,):
            await eventually(lambda: clock.waiting == 1)
            await store.update_task(task_id)
            await waiter.wait()
        async with waiting(partial(store.wait_for_update, task_id, after=2)) as (waiter,):
            await eventually(lambda: clock.waiting == 1)
            clock.advance(5)
            with anyio.fail_after(PATIENCE), pytest.raises(TaskNotFoundError):
                await waiter.wait()


async def test_a_watch_is_called_for_what_happened_while_the_connection_was_lost(
    server: RedisServer, prefix: str
) -> None:
    """L3: when the new subscription begins, for all tasks; and nothing is kept of a watch that was stopped."""
    async with (
        RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE) as store,
        RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE) as other,
    ):
        tasks = [await store.create_task(NewTask(ttl_ms=None)) for _ in range(3)]
        calls = [0] * 3

        def count(number: int, record: object) -> None:
            assert record is None
            calls[number] += 1

        stops = [
            store.watch_task(task.task_id, partial(count, number), after=task.revision)
            for number, task in enumerate(tasks)
        ]
        await eventually(lambda: min(calls) > 0)
        assert store.statistics().waiters == 3
        calls[:] = [0] * 3
        server.cut_connections()
        await other.update_task(tasks[0].task_id, status_message="on")
        await eventually(lambda: min(calls) > 0)
        calls[:] = [0] * 3
        await other.finish_task(tasks[1].task_id, DONE)
        await eventually(lambda: calls[1] > 0)
        for stop in stops:
            stop()
            stop()
        assert store.statistics().waiters == 0
        calls[:] = [0] * 3
        await other.finish_task(tasks[0].task_id, DONE)
        assert (await store.wait_for_update(tasks[0].task_id, after=2)).status == "completed"
        assert calls == [0] * 3


async def test_a_store_that_is_closed_calls_its_watches_once_more(server: RedisServer, prefix: str) -> None:
    calls: list[TaskRecord | None] = []
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        task = await store.create_task(NewTask(ttl_ms=None))
        store.watch_task(task.task_id, calls.append, after=1)
        await eventually(lambda: bool(calls))
        calls.clear()
    assert calls
    assert set(calls) == {None}
