"""What waits for a worker, by tool: in step with the tasks, also with those of an earlier version."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.types import NewTask, TaskRequest
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, eventually
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


async def make(store: RedisTaskStore, name: str = "tool", *, worker: str = "", ttl_ms: int | None = None) -> str:
    request = TaskRequest(name=name)
    new = NewTask(ttl_ms=ttl_ms, request=request, worker=worker, lease_ms=0)
    return (await store.create_task(new)).task_id


async def found(store: RedisTaskStore, *names: str, limit: int = 10) -> list[str]:
    with anyio.fail_after(PATIENCE):
        return [record.task_id for record in await store.wait_for_work(names, limit=limit)]


def waiting_set(server: RedisServer, prefix: str, name: str = "tool") -> dict[bytes, float]:
    members: Any = server.client.zrange(f"{prefix}:{{leases:}}:waiting:{name}", 0, -1, withscores=True)
    return dict(members)


async def test_a_tools_set_follows_each_change_of_its_tasks(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    start = 1_767_225_600_000_000
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:

        def shown() -> dict[bytes, float]:
            return waiting_set(server, prefix)

        one = (await store.create_task(NewTask(ttl_ms=60_000, task_id="one", worker="", request=TOOL))).task_id
        assert shown() == {b"one": start + 30_000_000}
        await store.renew_leases("", [one], lease_ms=40_000)
        assert shown() == {b"one": start + 40_000_000}
        await store.drop_leases("", [one], lapse=True)
        assert shown() == {b"one": start}
        claimed = await store.claim_task(one, worker="w", lease_ms=1_000)
        assert claimed is not None
        assert shown() == {}
        await store.drop_leases("w", [one], lapse=True)
        assert shown() == {}
        clock.advance(1)
        assert await store.claim_task(one, worker="", lease_ms=0) is not None
        assert shown() == {b"one": start + 1_000_000}
        await store.update_task(one, ttl_ms=120_000)
        assert shown() == {b"one": start + 1_000_000}
        await store.finish_task(one, DONE)
        assert shown() == {}
        await store.delete_task(await make(store))
        assert shown() == {}
        await store.drop_leases("", [await make(store)], lapse=False)
        assert shown() == {}
        expiring = await make(store, ttl_ms=1_000)
        clock.advance(1)
        assert await store.get_task(expiring) is None
        await eventually(lambda: shown() == {})
        await make(store, worker="held")
        assert shown() == {}


TOOL = TaskRequest(name="tool")


async def test_a_set_expires_with_the_last_task_that_waits(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    key = f"{prefix}:{{leases:}}:waiting:tool"
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        longest = await make(store, ttl_ms=60_000)
        await make(store, ttl_ms=10_000)
        before = server.client.pttl(key)
        assert before > 60_000
        await store.update_task(longest, ttl_ms=500_000)
        assert server.client.pttl(key) > before + 400_000
        await make(store)
        assert server.client.ttl(key) == -1


async def test_a_look_costs_the_server_nothing_for_tasks_of_other_tools(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix, timeout=PATIENCE) as store:
        ours = await make(store, "ours")
        costs = []
        for count in (10, 2_000):
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(partial(make, store, "theirs"))
            await found(store, "ours")
            server.client.config_resetstat()
            calls = store.statistics().calls
            assert await found(store, "ours", "none") == [ours]
            assert store.statistics().calls == calls + 1
            stats: dict[str, Any] = server.client.info("commandstats")
            costs.append({name: entry["calls"] for name, entry in stats.items() if "config" not in name})
        for cost in costs:
            for name in ("cmdstat_ping", "cmdstat_time", "cmdstat_info"):  # of a connection that is kept alive
                cost.pop(name, None)
        assert costs[0] == costs[1]


@pytest.mark.parametrize("how", ["a worker's first look", "a sweep of leases"])
async def test_what_an_earlier_version_stored_is_found(
    server: RedisServer, prefix: str, clock: FakeClock, how: str
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        ids = [await make(store, name) for name in ("tool", "tool", "an other")]
        await make(store, worker="held")
        if how == "a sweep of leases":
            assert set(await found(store, "tool")) == set(ids[:2])  # its first look is behind it
        for key in server.keys(f"{prefix}:{{leases:}}:"):
            server.client.delete(key)
        clock.advance(1)
        if how == "a sweep of leases":
            assert len(await store.list_lapsed()) == 4
        else:
            async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as other:
                assert set(await found(other, "tool")) == set(ids[:2])
        assert set(await found(store, "tool")) == set(ids[:2])
        assert await found(store, "an other") == ids[2:]
    if how != "a sweep of leases":
        assert f"{prefix}:{{leases:}}:waiting" in server.keys(prefix)


async def test_an_entry_without_its_task_is_removed_when_it_is_read(
    server: RedisServer, prefix: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """L13: and a task that is damaged is put aside, so that it stands in no one's way."""
    key = f"{prefix}:{{leases:}}:waiting:tool"
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        damaged, held, later, right = [await make(store) for _ in range(4)]
        server.client.hset(f"{prefix}:{{{damaged}}}:task", "created_at", "long ago")
        server.client.hset(f"{prefix}:{{{held}}}:task", "worker", "w")
        lapses = 1_767_225_600_000_000 + 5_000_000
        server.client.hset(f"{prefix}:{{{later}}}:task", "lease_expires_at", str(lapses))
        server.client.zadd(key, {"gone": 1, **{f"gone{number}": 2 for number in range(10)}})
        clock.advance(1)
        assert await found(store, "tool", limit=2) == [right]
        shown = waiting_set(server, prefix)
        assert set(shown) == {damaged.encode(), later.encode(), right.encode()}
        assert shown[later.encode()] == lapses
        assert shown[damaged.encode()] == 1_767_225_600_000_000 + 61_000_000
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_the_longest_waiting_come_first_whichever_tool_they_are_of(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        ids = []
        for number in range(9):
            ids.append(await make(store, f"tool {number % 3}"))
            clock.advance(1)
        names = [f"tool {number}" for number in range(4)]
        assert await found(store, *names, limit=5) == ids[:5]
        assert await found(store, *names, "tool 0", limit=20) == ids
        with anyio.move_on_after(0.05) as scope:
            await store.wait_for_work([], limit=1)
        assert scope.cancelled_caught


async def test_each_task_is_taken_once_by_workers_of_few_tools(server: RedisServer, prefix: str) -> None:
    taken: list[str] = []
    async with (
        RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE) as store,
        RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE) as other,
    ):

        async def work(side: RedisTaskStore, worker: str, names: list[str]) -> None:
            while True:
                for record in await side.wait_for_work(names, limit=4):
                    claimed = await side.claim_task(record.task_id, worker=worker, lease_ms=600_000)
                    if claimed is not None:
                        assert claimed.request.name in names
                        taken.append(record.task_id)
                if len(taken) == 60:
                    group.cancel_scope.cancel()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(work, store, "a", ["tool 0", "tool 1"])
                group.start_soon(work, other, "b", ["tool 1", "tool 2"])
                group.start_soon(work, other, "c", ["tool 2"])
                for number in range(60):
                    group.start_soon(make, store, f"tool {number % 3}")
        assert len(set(taken)) == 60
        assert not server.keys(f"{prefix}:{{leases:}}:waiting:")
