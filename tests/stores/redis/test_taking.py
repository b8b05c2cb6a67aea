"""Tasks that are found and claimed for a worker in one step."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.types import NewTask, TaskRecord, TaskRequest
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import eventually, waiting
from tests.stores.redis.test_work import make, waiting_set
from tests.stores.redis_server import RedisServer, keeping_server, losing
from tests.support.patience import PATIENCE

SEALED = TaskRequest(name="tool", arguments_json=SEALED_JSON + 'x"}')


async def take(
    store: RedisTaskStore, *names: str, worker: str = "w", limit: int = 10, with_sealed: bool = False
) -> tuple[TaskRecord, ...]:
    with anyio.fail_after(PATIENCE):
        return await store.take_work(
            names or ["tool"], worker=worker, lease_ms=60_000, limit=limit, with_sealed=with_sealed
        )


def ids(records: tuple[TaskRecord, ...]) -> list[str]:
    return [record.task_id for record in records]


async def test_what_is_taken_is_in_no_index_of_waiting_tasks_and_expires(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        made = [await make(store, f"tool {number % 3}", ttl_ms=600_000) for number in range(9)]
        assert len(await take(store, "tool 0", "tool 1", "tool 2")) == 9
        assert not server.keys(f"{prefix}:{{leases:}}:waiting:")
        for key in (f"{prefix}:{{{made[0]}}}:events", f"{prefix}:{{{made[0]}}}:task"):
            assert server.client.pttl(key) > 0


async def test_tasks_whose_claim_was_not_heard_of_are_claimed_once(server: RedisServer, prefix: str) -> None:
    """L6: the reply is lost; sent again, the call returns what it took, and takes nothing else."""
    async with (
        RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE) as other,
        losing(server) as tunnel,
        RedisTaskStore(tunnel.url, prefix=prefix, timeout=PATIENCE) as store,
    ):
        task = await make(other)
        assert ids(await take(store)) == [task]  # its first look is behind it
        made = [await make(other) for _ in range(4)]
        tunnel.loses_next_reply = True
        taken = await take(store, limit=3)
        assert not tunnel.loses_next_reply
        assert ids(taken) == made[:3]
        assert [(each.revision, each.lease and each.lease.attempt) for each in taken] == [(2, 1)] * 3
        tunnel.loses_next_reply = True
        last = await store.take_task(made[3], ["tool"], worker="w", lease_ms=60_000)
        assert not tunnel.loses_next_reply
        assert last == await other.get_task(made[3])
        assert last is not None
        assert last.revision == 2


async def test_what_is_claimed_when_the_caller_is_cancelled_reaches_it() -> None:
    """L6."""
    with keeping_server() as server:
        async with RedisTaskStore(server.url, timeout=PATIENCE) as store:
            first, second = await make(store), await make(store)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await store.take_work(["tool"], worker="w", lease_ms=60_000, limit=5)
            assert scope.cancelled_caught
            assert ids(await take(store, limit=1)) == [first], "what was cancelled before has claimed nothing"
            taken: list[str] = []

            async def look() -> None:
                taken.extend(ids(await store.take_work(["tool"], worker="w", lease_ms=60_000, limit=5)))

            server.pause()
            async with anyio.create_task_group() as group:
                group.start_soon(look)
                await eventually(lambda: store.statistics().in_flight == 1)
                group.cancel_scope.cancel()
                server.resume()
            assert taken == [second]


async def test_sealed_tasks_are_left_to_workers_with_their_key(
    server: RedisServer, prefix: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        new = NewTask(ttl_ms=None, request=SEALED, worker="", lease_ms=0)
        sealed = [(await store.create_task(new)).task_id for _ in range(30)]
        clock.advance(1)
        plain = await make(store)
        speaks = TaskRequest(name="tool", arguments_json='{"of": "sealed:1 things"}')
        other = await store.create_task(NewTask(ttl_ms=None, request=speaks, worker="", lease_ms=0))
        assert set(ids(await take(store, limit=2))) == {plain, other.task_id}, "it looks behind them"
        assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
            "Waiting tasks are left to others: they are sealed, and this worker has no seal key"
        ]
        assert await store.take_task(sealed[0], ["tool"], worker="w", lease_ms=1) is None
        assert await store.take_task(sealed[0], ["tool"], worker="w", lease_ms=1, with_sealed=True) is not None
        assert set(ids(await take(store, limit=100, with_sealed=True))) == set(sealed[1:])


async def test_entries_that_are_wrong_hurt_no_other_task(
    server: RedisServer, prefix: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """L13: what is gone is removed, and a task that is damaged is set aside."""
    key = f"{prefix}:{{leases:}}:waiting:tool"
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        damaged, newer, broken, held, ended, expired, later, right = [await make(store) for _ in range(8)]

        def change(task: str, field: str, value: str) -> None:
            server.client.hset(f"{prefix}:{{{task}}}:task", field, value)

        start = 1_767_225_600_000_000
        change(damaged, "created_at", "long ago")
        change(newer, "v", "1000")
        server.client.delete(f"{prefix}:{{{broken}}}:task")
        server.client.set(f"{prefix}:{{{broken}}}:task", "no hash")
        change(held, "worker", "v")
        change(ended, "status", "failed")
        change(expired, "ttl_ms", "1")
        change(later, "lease_expires_at", str(start + 5_000_000))
        server.client.zadd(key, {f"gone{number}": 1 for number in range(10)})
        clock.advance(1)
        assert ids(await take(store, limit=2)) == [right]
        aside = float(start + 61_000_000)
        assert waiting_set(server, prefix) == {
            **dict.fromkeys((damaged.encode(), newer.encode(), broken.encode()), aside),
            later.encode(): float(start + 5_000_000),
        }
        assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 3
        clock.advance(5)
        assert ids(await take(store)) == [later]


async def test_arguments_that_make_no_sense_are_refused(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        task = await make(store)
        options: dict[str, Any]
        for options in ({"limit": 0}, {"worker": ""}, {"worker": "\ud800"}):
            with pytest.raises(ValueError, match=r"limit|worker"):
                await take(store, **options)
        with pytest.raises(ValueError, match="worker"):
            await store.take_task(task, ["tool"], worker="", lease_ms=1)
        async with waiting(partial(take, store, "none")) as (taken,):
            await eventually(lambda: store.statistics().waiters == 1)
            await store.aclose()
            with pytest.raises(StoreClosedError):
                await taken.wait()
