"""The server's time decides, however wrong this machine's clock is."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import anyio
import pytest

from mcp_task_runtime.core.clock import SystemClock
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Return what sets this machine's wall clock wrong."""
    wall, wall_ns = SystemClock.now, time.time_ns

    def set_wrong(by: timedelta) -> None:
        monkeypatch.setattr(SystemClock, "now", lambda self: wall(self) + by)
        monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + int(by.total_seconds() * 1e9))

    return set_wrong


def server_time(server: RedisServer) -> datetime:
    seconds, micros = server.client.time()
    return datetime.fromtimestamp(seconds, timezone.utc) + timedelta(microseconds=micros)


# How far a clock is wrong, and how long a lease is, are far beyond what a busy machine may lose between two lines.
LEASE_MS = 300_000
AT_MOST = timedelta(seconds=100)


@pytest.mark.parametrize("hours", [-1, 1 / 6, 1])
async def test_a_wrong_clock_ends_no_work(
    server: RedisServer, prefix: str, wrong_clock: Callable[[timedelta], None], hours: float
) -> None:
    """L17: neither of a process that began with it nor of one whose clock jumps."""
    async with RedisTaskStore(server.url, prefix=prefix) as right:
        record = await right.create_task(NewTask(ttl_ms=500_000, worker="a", lease_ms=LEASE_MS))
        wrong_clock(timedelta(hours=hours))
        async with RedisTaskStore(server.url, prefix=prefix) as wrong:
            for store in (right, wrong):
                assert abs(store.clock.now() - server_time(server)) < AT_MOST
                assert await store.get_task(record.task_id) == record
                assert await store.list_lapsed() == ()
                assert await store.claim_task(record.task_id, worker="b", lease_ms=LEASE_MS) is None
                made = await store.create_task(NewTask(ttl_ms=500_000, worker="c", lease_ms=LEASE_MS))
                assert abs(made.task.created_at - server_time(server)) < AT_MOST
                changed = await store.update_task(made.task_id, status_message="on")
                assert made.task.last_updated_at <= changed.task.last_updated_at <= server_time(server)
                assert await store.renew_leases("c", [made.task_id], lease_ms=LEASE_MS) == {made.task_id}
                renewed = await right.get_task(made.task_id)
                assert renewed is not None
                assert renewed.lease is not None
                left = renewed.lease.expires_at - server_time(server)
                assert timedelta(milliseconds=LEASE_MS) - AT_MOST < left <= timedelta(milliseconds=LEASE_MS)
                with (
                    store.clock.move_on_at(server_time(server) + timedelta(milliseconds=20)),
                    anyio.fail_after(PATIENCE),
                ):
                    await anyio.sleep_forever()


async def test_tasks_expire_and_leases_lapse_by_the_servers_time(
    server: RedisServer, prefix: str, wrong_clock: Callable[[timedelta], None]
) -> None:
    wrong_clock(timedelta(hours=-1))
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        leased = await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=50))
        record = await store.create_task(NewTask(ttl_ms=200))
        with anyio.fail_after(PATIENCE):
            while not await store.list_lapsed():  # noqa: ASYNC110 - a lease that lapses tells of no event
                await anyio.sleep(0.01)
            assert leased.lease is not None
            assert server_time(server) >= leased.lease.expires_at
            with pytest.raises(TaskNotFoundError):
                await store.wait_for_update(record.task_id, after=1)
        assert await store.get_task(record.task_id) is None
        assert server_time(server) >= record.task.created_at + timedelta(milliseconds=200)


async def test_an_injected_clock_replaces_the_servers_time(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=1_000, worker="a", lease_ms=500))
        assert store.clock is clock
        assert record.task.created_at == clock.now()
        clock.advance(0.5)
        assert await store.list_lapsed() == (record,)
        clock.advance(0.5)
        assert await store.get_task(record.task_id) is None
