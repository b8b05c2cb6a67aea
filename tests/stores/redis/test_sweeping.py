"""The tasks of lost workers behind those that wait, also with processes of an earlier version on the same server."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.types import NewTask, TaskRequest
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE

START = 1_767_225_600_000_000
WAITS = 2**53


async def make(store: RedisTaskStore, worker: str = "", *, lease_ms: int = 0, ttl_ms: int | None = None) -> str:
    new = NewTask(ttl_ms=ttl_ms, request=TaskRequest(name="tool"), worker=worker, lease_ms=lease_ms)
    return (await store.create_task(new)).task_id


async def lost(store: RedisTaskStore, *names: str, limit: int = 10) -> list[str]:
    return [record.task_id for record in await store.list_lost(names, limit=limit)]


class Earlier:
    """What processes of version 0.2.0 do: they have one place for each lease, whoever holds it."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self._client: Any = server.client
        self._prefix = prefix
        self._leases = f"{prefix}:{{leases:}}"

    def places(self) -> dict[str, int]:
        found = self._client.zrange(self._leases, 0, -1, withscores=True)
        return {tag.decode(): int(place) for tag, place in found}

    def move(self, task_id: str) -> None:
        """Move a task to the time at which its lease lapses, as a change of its lease does, or a sweep."""
        self._client.zadd(self._leases, {task_id: self._field(task_id, "lease_expires_at")}, xx=True)

    def claim(self, task_id: str, lapses: int) -> None:
        key = f"{self._prefix}:{{{task_id}}}:task"
        self._client.hset(key, mapping={"worker": "old", "lease_expires_at": lapses, "attempt": 1})
        self.move(task_id)
        self._client.zrem(f"{self._leases}:waiting:tool", task_id)

    def sweep(self, now: int) -> list[str]:
        """Return the tasks that are lost or wait, as it looks for them, and move what is not due."""
        found = [tag.decode() for tag in self._client.zrangebyscore(self._leases, "-inf", now)]
        due = [task_id for task_id in found if int(self._field(task_id, "lease_expires_at")) <= now]
        for task_id in set(found) - set(due):
            self.move(task_id)
        return due

    def _field(self, task_id: str, name: str) -> bytes:
        value: bytes = self._client.hget(f"{self._prefix}:{{{task_id}}}:task", name)
        return value


@pytest.fixture
def earlier(server: RedisServer, prefix: str) -> Earlier:
    return Earlier(server, prefix)


async def test_a_task_has_a_place_among_those_that_wait_or_that_are_held(
    server: RedisServer, prefix: str, clock: FakeClock, earlier: Earlier
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        task_id = await make(store, ttl_ms=600_000)
        assert earlier.places() == {task_id: START - WAITS}
        await store.update_task(task_id, ttl_ms=900_000)
        assert earlier.places() == {task_id: START - WAITS}
        await store.claim_task(task_id, worker="w", lease_ms=1_000)
        assert earlier.places() == {task_id: START + 1_000_000}
        await store.renew_leases("w", [task_id], lease_ms=2_000)
        await store.update_task(task_id, ttl_ms=600_000)
        assert earlier.places() == {task_id: START + 2_000_000}
        await store.drop_leases("w", [task_id], lapse=True)
        assert earlier.places() == {task_id: START}
        await store.claim_task(task_id, worker="", lease_ms=3_000)
        assert earlier.places() == {task_id: START + 3_000_000 - WAITS}
        clock.advance(3)
        (taken,) = await store.take_work(["tool"], worker="w", lease_ms=1_000, limit=1)
        assert earlier.places() == {taken.task_id: START + 4_000_000}
        await store.drop_leases("w", [task_id], lapse=False)
        assert earlier.places() == {}


async def test_what_an_earlier_version_stored_is_swept_and_moved(
    server: RedisServer, prefix: str, clock: FakeClock, earlier: Earlier
) -> None:
    """However many tasks of it wait, and also if its first versions kept no sets of them."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        waiting = [await make(store) for _ in range(25)]
        overdue = await make(store, lease_ms=1_000)
        held = await make(store, "w")
        for task_id in (*waiting, overdue):
            earlier.move(task_id)
        server.client.delete(f"{prefix}:{{leases:}}:waiting:tool")
        assert await lost(store, limit=2) == [held]
        assert earlier.places() == {
            **dict.fromkeys(waiting, START - WAITS),
            held: START,
            overdue: START + 1_000_000,  # it is no trouble before its time
        }
        clock.advance(1)
        assert await lost(store, limit=2) == [held]
        assert earlier.places()[overdue] == START + 1_000_000 - WAITS
        assert set(await lost(store, "tool", limit=30)) == {held, overdue, *waiting}
        with anyio.fail_after(PATIENCE):
            assert len(await store.wait_for_work(["tool"], limit=30)) == 26


async def test_processes_of_an_earlier_version_share_the_leases(
    server: RedisServer, prefix: str, clock: FakeClock, earlier: Earlier
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        claimed, early, due, held = [
            await make(store, worker, lease_ms=lease_ms)
            for worker, lease_ms in (("", 0), ("", 60_000), ("", 0), ("new", 1_000))
        ]
        clock.advance(1)
        assert set(earlier.sweep(START + 1_000_000)) == {claimed, due, held}, "it sees all that it saw before"
        assert earlier.places()[early] == START + 60_000_000, "it moves what is not due"
        earlier.claim(claimed, START + 2_000_000)
        assert await lost(store) == [held]
        clock.advance(1)
        assert await lost(store) == [held, claimed]
        assert await store.claim_task(claimed, worker="", lease_ms=0) is not None
        assert await lost(store) == [held]
        assert claimed in earlier.sweep(START + 2_000_000)
        clock.advance(58)
        assert await lost(store, "tool") == [held, due, claimed, early]
        assert await lost(store) == [held]
        assert earlier.places()[early] == START + 60_000_000 - WAITS


@pytest.mark.parametrize("how", ["take", "look"])
@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_task_that_expired_while_it_waited_leaves_the_leases_when_a_worker_looks(
    server: RedisServer, prefix: str, clock: FakeClock, earlier: Earlier, how: str, is_gone: bool
) -> None:
    """A sweep does not look at what waits."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        expired = await make(store, ttl_ms=500)
        live = await make(store)
        clock.advance(1)
        if is_gone:
            server.client.delete(f"{prefix}:{{{expired}}}:task")
        assert await lost(store) == []
        assert set(earlier.places()) == {expired, live}
        with anyio.fail_after(PATIENCE):
            if how == "take":
                await store.take_work(["tool"], worker="w", lease_ms=1_000, limit=2)
            else:
                await store.wait_for_work(["tool"], limit=2)
        assert set(earlier.places()) == {live}


async def test_a_sweep_costs_the_server_nothing_for_tasks_that_wait(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    """It would read what is no task, and remove it."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix, timeout=PATIENCE) as store:
        held = await make(store, "w")
        await make(store)
        costs = []
        for count in (10, 100_000):
            for start in range(0, count, 10_000):
                tags = [f"T{number}" for number in range(start, min(start + 10_000, count))]
                server.client.zadd(f"{prefix}:{{leases:}}", dict.fromkeys(tags, START - WAITS))
                server.client.zadd(f"{prefix}:{{leases:}}:waiting:tool", dict.fromkeys(tags, START))
            assert await lost(store, "another") == [held]
            server.client.config_resetstat()
            calls = store.statistics().calls
            assert await lost(store, "another") == [held]
            assert store.statistics().calls == calls + 2
            stats: dict[str, Any] = server.client.info("commandstats")
            costs.append({name: entry["calls"] for name, entry in stats.items() if "config" not in name})
            assert server.client.zcard(f"{prefix}:{{leases:}}") == count + 2
        for cost in costs:
            for name in ("cmdstat_ping", "cmdstat_time", "cmdstat_info"):  # of a connection that is kept alive
                cost.pop(name, None)
        assert costs[0] == costs[1]
