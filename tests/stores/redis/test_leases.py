"""Leases, and their index."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import anyio

from mcp_task_runtime.core.store import TaskLeases
from mcp_task_runtime.core.types import Lease, NewTask, TaskRecord
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE
from tests.stores.redis_server import RedisServer


async def test_a_lapsed_lease_is_claimed_by_exactly_one(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with (
        RedisTaskStore(server.url, clock=clock, prefix=prefix) as store,
        RedisTaskStore(server.url, clock=clock, prefix=prefix) as other,
    ):
        assert isinstance(store, TaskLeases)
        record = await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=1_000))
        await store.update_task(record.task_id, status="input_required", status_message="asked")
        clock.advance(0.999)
        assert await other.list_lapsed() == ()
        assert await other.claim_task(record.task_id, worker="b", lease_ms=1_000) is None
        clock.advance(0.001)
        (lapsed,) = await other.list_lapsed()
        assert lapsed == await store.get_task(record.task_id)
        claims: list[TaskRecord | None] = []

        async def claim(side: RedisTaskStore, worker: str) -> None:
            claims.append(await side.claim_task(record.task_id, worker=worker, lease_ms=2_000))

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(claim, (store, other)[number % 2], f"w{number}")
        (won,) = [claimed for claimed in claims if claimed is not None]
        assert won == await store.get_task(record.task_id)
        assert won.lease is not None
        assert won.lease == Lease(won.lease.worker, clock.now() + timedelta(seconds=2), 2)
        assert (won.revision, won.status, won.task.status_message) == (3, "input_required", "asked")
        assert won.task.last_updated_at == clock.now()
        assert await store.list_lapsed() == ()
        assert await store.renew_leases("a", [record.task_id], lease_ms=9_000) == frozenset()
        clock.advance(2)
        assert [lapsed.task_id for lapsed in await store.list_lapsed()] == [record.task_id]
        await store.finish_task(record.task_id, DONE)
        assert await store.list_lapsed() == ()
        assert await store.claim_task(record.task_id, worker="c", lease_ms=1) is None
        assert await store.claim_task("unknown", worker="c", lease_ms=1) is None


async def test_leases_are_renewed_and_dropped_by_their_worker_only(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        mine, theirs, free, ended, gone = [
            (await store.create_task(NewTask(ttl_ms=ttl_ms, worker=worker, lease_ms=1_000))).task_id
            for worker, ttl_ms in (("a", None), ("b", None), (None, None), ("a", None), ("a", 1_500))
        ]
        await store.finish_task(ended, DONE)
        everything = [mine, theirs, free, ended, gone, "unknown"]
        clock.advance(2)  # lapsed or not
        before = await store.get_task(mine)
        assert await store.renew_leases("a", everything, lease_ms=5_000) == {mine}
        after = await store.get_task(mine)
        assert before is not None
        assert after == replace(before, lease=Lease("a", clock.now() + timedelta(seconds=5)))
        assert [record.task_id for record in await store.list_lapsed()] == [theirs]
        await store.drop_leases("a", everything, lapse=True)
        assert [record.task_id for record in await store.list_lapsed()] == [theirs, mine]
        assert [record.task_id for record in await store.list_lapsed(limit=1)] == [theirs]
        await store.drop_leases("b", everything, lapse=False)
        assert [record.task_id for record in await store.list_lapsed()] == [mine]
        dropped = await store.get_task(theirs)
        assert dropped is not None
        assert (dropped.lease, dropped.revision) == (None, 1)
        assert await store.claim_task(theirs, worker="c", lease_ms=1) is None
        assert await store.renew_leases("a", [], lease_ms=1) == frozenset()
        await store.drop_leases("a", [], lapse=True)


async def test_the_index_of_leases_heals(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        live = await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=60_000))
        lapsed = await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=1))
        key = f"{prefix}:{{leases:}}"
        clock.advance(1)
        server.client.zadd(key, {live.task_id: 1, "gone": 2, **{f"gone{number}": 3 for number in range(10)}})
        assert [record.task_id for record in await store.list_lapsed(limit=2)] == [lapsed.task_id]
        assert server.client.zrange(key, 0, -1) == [lapsed.task_id.encode(), live.task_id.encode()]
        clock.advance(59)
        assert len(await store.list_lapsed()) == 2
