"""PostgreSQL that goes away, loses replies, and whose clock others do not share: nothing healthy is lost (L12, L17)."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, suppress
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import psycopg
import pytest
from psycopg import sql

from mcp_task_runtime.core import clock as clock_module
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import StoreUnavailableError, TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores.postgres import PostgresTaskStore
from mcp_task_runtime.testing import FakeClock
from tests.stores.postgres_server import PostgresServer, Proxy, running_proxy
from tests.support.patience import PATIENCE

DONE = Outcome.completed({"content": []})
YES = Answer.result({"action": "accept"})

Open: TypeAlias = Callable[..., PostgresTaskStore]


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with running_proxy(postgres.url) as proxy:
        yield proxy


@pytest.fixture
def make(proxy: Proxy, schema: str) -> Open:
    """Make stores that reach the server through the proxy."""
    return partial(PostgresTaskStore, proxy.url, schema=schema)


def question(key: str = "k") -> QueuedMessage:
    return QueuedMessage.request(key, "elicitation/create", {"message": "?"})


async def in_time(operation: Callable[[], Awaitable[object]]) -> None:
    """Return when an operation of a store with a short timeout was in time, as soon as the machine lets it."""
    with anyio.fail_after(PATIENCE):
        while True:
            with suppress(StoreUnavailableError):
                await operation()
                return


# --- a server that is down ---


async def test_a_server_that_is_away_for_a_moment_is_waited_out_and_the_log_says_so_once(
    make: Open, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with make(timeout=PATIENCE) as store:
        ids = [(await store.create_task(NewTask(ttl_ms=None))).task_id for _ in range(20)]
        caplog.clear()
        ended: list[TaskRecord] = []
        is_away = anyio.Event()

        async def work(task_id: str) -> None:
            for number in range(4):
                await store.update_task(task_id, status_message=f"step {number}")
            if task_id in ids[::2]:  # the others are in the middle of it
                await is_away.wait()
            assert await store.ask(task_id, question()) is not None
            assert await store.answer_all(task_id, {"k": YES}) == {"k"}
            ended.append(await store.finish_task(task_id, DONE))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for task_id in ids:
                    group.start_soon(work, task_id)
                await anyio.sleep(0.05)
                proxy.close()
                is_away.set()
                while not store.statistics().is_unavailable:  # noqa: ASYNC110 - it has no event for tests
                    await anyio.sleep(0.01)
                await anyio.sleep(0.3)
                proxy.open()
    assert {record.revision for record in ended} == {8}, "a change happened twice, or not at all"
    assert len(ended) == 20
    ours = [message for name, _, message in caplog.record_tuples if name != "asyncio"]
    assert len(ours) == 2, ours
    assert ours[0].endswith("cannot be reached")
    assert " again, after " in ours[1]


@pytest.mark.parametrize("how", ["close", "freeze"])
async def test_an_outage_fails_all_operations_in_time_and_logs_one_line(
    make: Open, proxy: Proxy, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with aclosing(make(timeout=1.0, max_connections=2)) as store:
        await in_time(partial(store.get_task, "a"))
        caplog.clear()
        (proxy.close if how == "close" else proxy.freeze)()
        failed = 0

        async def fail() -> None:
            nonlocal failed
            with pytest.raises(StoreUnavailableError):
                await store.get_task("a")
            failed += 1

        with anyio.fail_after(PATIENCE):  # 200 of them, one after the other, would take two minutes
            async with anyio.create_task_group() as group:
                for _ in range(200):
                    group.start_soon(fail)
        assert failed == 200
        (proxy.open if how == "close" else proxy.thaw)()
        await in_time(partial(store.get_task, "a"))
    with anyio.fail_after(PATIENCE):
        while len(caplog.records) < 2:  # the thread that saw the end of the outage may be about to log it
            await anyio.lowlevel.checkpoint()
    assert len(caplog.records) == 2


async def test_a_store_that_cannot_reach_its_server_at_start_says_where_it_looked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError) as refused:
        await PostgresTaskStore("postgresql://ada:sesame@127.0.0.1:1/reports").__aenter__()
    assert str(refused.value) == "PostgreSQL at 127.0.0.1:1 (database 'reports') could not be reached"
    assert "sesame" not in str(refused.value.__cause__)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]


async def test_a_server_that_is_away_when_a_store_is_first_used_is_waited_for(make: Open, proxy: Proxy) -> None:
    store = make(timeout=PATIENCE)
    proxy.close()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(store.create_task, NewTask(ttl_ms=None, task_id="a"))
            await anyio.sleep(0.3)
            proxy.open()
        assert await store.get_task("a") is not None
        await store.aclose()


async def test_a_server_that_is_frozen_when_a_store_is_first_used_fails_all_operations_in_time(
    make: Open, proxy: Proxy
) -> None:
    store = make(timeout=1.0)
    proxy.freeze()
    failed = 0

    async def fail() -> None:
        nonlocal failed
        with pytest.raises(StoreUnavailableError):
            await store.get_task("a")
        failed += 1

    with anyio.fail_after(PATIENCE):  # one after the other they would take two minutes
        async with anyio.create_task_group() as group:
            for _ in range(120):
                group.start_soon(fail)
    assert failed == 120
    proxy.thaw()
    await in_time(partial(store.get_task, "a"))
    await store.aclose()


async def test_a_wait_that_begins_in_an_outage_is_waited_out(make: Open, proxy: Proxy) -> None:
    async with make(timeout=PATIENCE) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        proxy.close()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(partial(store.wait_for_update, "a", after=1))
                await anyio.sleep(0.3)
                proxy.open()
                await store.update_task("a")


async def test_an_operation_that_is_cancelled_in_an_outage_ends(make: Open, proxy: Proxy) -> None:
    async with make(timeout=60) as store:
        proxy.close()
        with anyio.fail_after(PATIENCE), anyio.move_on_after(0.3) as scope:
            await store.get_task("a")
        assert scope.cancelled_caught


# --- a connection that breaks in the middle ---


@pytest.mark.parametrize(
    "how", ["update", "finish", "claim", "ask", "delete", "step", "create", "enqueue", "answer", "renew", "clear"]
)
async def test_a_change_whose_reply_is_lost_happens_once_and_is_reported(how: str, make: Open, proxy: Proxy) -> None:
    async with make() as store:
        queue = store.message_queue
        made = await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=60_000))
        lost = await store.create_task(NewTask(ttl_ms=None, task_id="b", worker="w", lease_ms=0))
        fence = Fence("w", 1)
        await queue.enqueue("mailbox", question())
        changes: dict[str, Callable[[], Awaitable[Any]]] = {
            "update": partial(store.update_task, "a", status_message="on"),
            "finish": partial(store.finish_task, "a", DONE, fence=fence),
            "claim": partial(store.claim_task, "b", worker="v", lease_ms=60_000),
            "ask": partial(store.ask, "a", question(), fence=fence),
            "delete": partial(store.delete_task, "a"),
            "step": partial(store.record_step, "a", "s", "1", fence=fence),
            "create": partial(store.create_task, NewTask(ttl_ms=None, task_id="c")),
            "enqueue": partial(queue.enqueue, "a", question()),
            "answer": partial(queue.answer, "mailbox", "k", YES),
            "renew": partial(store.renew_leases, "w", ["a"], lease_ms=90_000),
            "clear": partial(queue.clear, "mailbox"),
        }
        proxy.lose_reply()
        with anyio.fail_after(PATIENCE):
            came = await changes[how]()
        assert proxy.has_lost_reply
        record = await store.get_task("a")
        if how in ("update", "finish", "ask"):
            assert came == record
            assert came.revision == made.revision + 1
        elif how == "claim":
            assert came == await store.get_task("b")
            assert (came.revision, came.lease.fence) == (lost.revision + 1, Fence("v", 2))
        elif how == "create":
            assert came == await store.get_task("c")
        elif how == "step":
            assert came == "1"
            assert await store.read_steps("a") == {"s": "1"}
        elif how == "enqueue":
            assert came is True
            assert await queue.outstanding("a") == (question(),)
        elif how == "answer":
            assert came is True
            assert await queue.wait_for_answer("mailbox", "k") == YES
        elif how == "delete":
            assert came is True
            assert record is None
        elif how == "renew":
            assert came == {"a"}
        else:
            with pytest.raises(TaskNotFoundError):
                await queue.wait_for_answer("mailbox", "k")


@pytest.mark.parametrize("how", ["created", "joined"])
async def test_a_task_that_a_worker_claims_before_its_maker_hears_of_it_is_no_other_task(
    how: str, make: Open, proxy: Proxy, postgres: PostgresServer, schema: str
) -> None:
    async with make(timeout=PATIENCE) as store, PostgresTaskStore(postgres.url, schema=schema) as elsewhere:
        await store.create_task(NewTask(ttl_ms=None, task_id="the first one removes what has expired"))
        new = NewTask(ttl_ms=None, task_id="a", worker="", lease_ms=0)
        came: list[tuple[TaskRecord, bool]] = []

        async def create() -> None:
            if how == "created":
                came.append((await store.create_task(new), True))
            else:
                came.append(await store.join_task(new, key="call", ended_ms=0))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                proxy.freeze()
                proxy.lose_reply()
                group.start_soon(create)
                await elsewhere.wait_for_work([""], limit=1)
                claimed = await elsewhere.claim_task("a", worker="v", lease_ms=60_000)
                proxy.thaw()
        assert proxy.has_lost_reply
        assert claimed is not None
        ((record, is_new),) = came
        assert (record.task_id, record.revision, is_new) == ("a", 1, True)
        assert record.task.created_at == claimed.task.created_at
        again = store.create_task(NewTask(ttl_ms=None, task_id="a"))
        with pytest.raises(TaskExistsError):
            await again


@pytest.mark.parametrize("how", ["claim", "take"])
async def test_a_claim_whose_reply_is_lost_and_whose_task_was_changed_since_is_not_said_to_have_failed(
    how: str, make: Open, proxy: Proxy, postgres: PostgresServer, schema: str
) -> None:
    """L12: the worker looks for what such a call may have claimed; the task is its own, and no other one runs it."""
    async with make(timeout=PATIENCE) as store, PostgresTaskStore(postgres.url, schema=schema) as elsewhere:
        new = NewTask(ttl_ms=None, task_id="a", worker="", lease_ms=0, request=TaskRequest(name="tool"))
        made = await store.create_task(new)
        raised: list[StoreUnavailableError] = []

        async def claim() -> None:
            call = store.claim_task if how == "claim" else partial(store.take_task, names=["tool"])
            with pytest.raises(StoreUnavailableError) as found:
                await call("a", worker="w", lease_ms=60_000)
            raised.append(found.value)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                proxy.freeze()
                proxy.lose_reply()
                group.start_soon(claim)
                await elsewhere.wait_for_update("a", after=made.revision)
                changed = await elsewhere.update_task("a", status_message="changed")
                proxy.thaw()
        assert proxy.has_lost_reply
        assert len(raised) == 1
        assert changed.lease is not None
        assert changed.lease.fence == Fence("w", 1)
        assert await elsewhere.get_task("a") == changed
        assert await store.claim_task("a", worker="w", lease_ms=60_000) is None


@pytest.mark.parametrize("lapse", [False, True])
async def test_a_lease_whose_release_has_no_reply_is_released_once(lapse: bool, make: Open, proxy: Proxy) -> None:
    async with make(timeout=PATIENCE) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=60_000))
        await store.create_task(NewTask(ttl_ms=None, task_id="lapsed", worker="w", lease_ms=0))
        proxy.lose_reply()
        with anyio.fail_after(PATIENCE):
            await store.drop_leases("w", ["a", "lapsed"], lapse=lapse)
        assert proxy.has_lost_reply
        for task_id in ("a", "lapsed"):
            events = [event.kind for event in await store.get_history(task_id)]
            assert events == ["created", "released"]
        record = await store.get_task("a")
        assert record is not None
        assert (record.lease is not None and record.lease.handovers) == lapse


async def test_answers_whose_reply_is_lost_are_taken_once(make: Open, proxy: Proxy) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        for key in ("k", "other"):
            await store.ask("a", question(key))
        proxy.lose_reply()
        with anyio.fail_after(PATIENCE):
            assert await store.answer_all("a", {"k": YES, "other": YES, "unknown": YES}) == {"k", "other"}
        assert proxy.has_lost_reply
        record = await store.get_task("a")
        assert record is not None
        assert (record.revision, record.status) == (4, "working")
        assert await store.answer_all("a", {"k": YES}) == frozenset()


@pytest.mark.parametrize("what", ["a change", "the end of a lease that has lapsed"])
async def test_a_change_whose_connection_is_cut_while_the_server_works_on_it_happens_once(
    make: Open, postgres: PostgresServer, schema: str, what: str
) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=0))
        change: Callable[[], Coroutine[Any, Any, object]] = partial(store.update_task, "a", status_message="on")
        if what != "a change":
            change = partial(store.drop_leases, "w", ["a"], lapse=False)
        lock = sql.SQL("SELECT FROM {}.tasks FOR UPDATE").format(sql.Identifier(schema))
        with psycopg.connect(postgres.url) as connection:
            connection.execute(lock)
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as group:
                    group.start_soon(change)
                    blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    while not postgres.execute(blocked):  # noqa: ASYNC110 - another process
                        await anyio.sleep(0.02)
                    assert postgres.cut_connections() >= 1
                    connection.rollback()
        record = await store.get_task("a")
        assert record is not None
        if what == "a change":
            assert (record.revision, record.task.status_message) == (2, "on")
        else:
            assert record.lease is None


async def test_a_message_whose_removal_may_have_happened_is_not_removed_twice(make: Open, proxy: Proxy) -> None:
    async with make() as store:
        notes = [QueuedMessage.notification("notifications/message", {"n": number}) for number in range(3)]
        for note in notes:
            await store.message_queue.enqueue("a", note)
        proxy.lose_reply()
        with pytest.raises(StoreUnavailableError):
            await store.message_queue.dequeue("a")
        assert await store.message_queue.dequeue("a") == notes[1]


# --- clocks ---


# How far a clock is wrong, and how long a lease is, are far beyond what a busy machine may lose between two lines.
LEASE_MS = 300_000
AT_MOST = timedelta(seconds=100)


class SkewedDatetime(datetime):
    """A wall clock that a test sets."""

    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def set_wall_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[timedelta], None]]:
    """Return what sets this machine's wall clock ahead, as Python sees it."""
    real = time.time_ns

    def set_ahead(ahead: timedelta) -> None:
        SkewedDatetime.ahead = ahead

    monkeypatch.setattr(clock_module, "datetime", SkewedDatetime)
    monkeypatch.setattr(time, "time_ns", lambda: real() + SkewedDatetime.ahead // timedelta(microseconds=1) * 1_000)
    yield set_ahead
    SkewedDatetime.ahead = timedelta(0)


@pytest.mark.parametrize("ahead", [timedelta(minutes=10), timedelta(hours=1), timedelta(hours=-1)])
async def test_a_process_whose_clock_is_wrong_ends_no_work_and_stamps_no_wrong_time(
    make: Open, set_wall_clock: Callable[[timedelta], None], ahead: timedelta
) -> None:
    async with make() as store:
        healthy = await store.create_task(NewTask(ttl_ms=500_000, worker="one", lease_ms=LEASE_MS))
        set_wall_clock(ahead)
        async with make() as wrong:
            assert await wrong.list_lapsed() == ()
            assert await wrong.claim_task(healthy.task_id, worker="two", lease_ms=LEASE_MS) is None
            assert await wrong.get_task(healthy.task_id) == healthy
            assert await wrong.wait_for_update(healthy.task_id, after=0) == healthy
            theirs = await wrong.create_task(NewTask(ttl_ms=500_000, worker="two", lease_ms=LEASE_MS))
            changed = await wrong.update_task(healthy.task_id, status_message="on")
            assert await wrong.renew_leases("two", [theirs.task_id], lease_ms=LEASE_MS) == {theirs.task_id}
            lapsing = await wrong.create_task(NewTask(ttl_ms=None, worker="two", lease_ms=LEASE_MS))
            await wrong.drop_leases("two", [lapsing.task_id], lapse=True)
            ended = await wrong.finish_task(theirs.task_id, DONE)
            for clock in (store.clock, wrong.clock):
                assert abs(clock.now() - SkewedDatetime.now(timezone.utc) + ahead) < AT_MOST
        now = store.clock.now()
        assert [record.task_id for record in await store.list_lapsed()] == [lapsing.task_id]
        for record in (theirs, changed, ended):
            assert abs(record.task.last_updated_at - now) < AT_MOST
        read = await store.get_task(lapsing.task_id)
        assert read is not None
        assert read.lease is not None
        assert abs(read.lease.expires_at - now) < AT_MOST


async def test_a_task_expires_by_the_servers_clock_and_its_waiters_wake(make: Open) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=300))
        with anyio.fail_after(PATIENCE), pytest.raises(TaskNotFoundError):
            await store.wait_for_update(created.task_id, after=1)
        assert await store.get_task(created.task_id) is None
        assert created.task.expires_at is not None
        assert store.clock.now() >= created.task.expires_at


async def test_an_injected_clock_replaces_the_servers(make: Open) -> None:
    clock = FakeClock()
    async with make(clock=clock) as store, make() as other:
        assert store.clock is clock
        created = await store.create_task(NewTask(ttl_ms=60_000, worker="w", lease_ms=1_000))
        assert created.task.created_at == clock.now()
        clock.advance(1)
        assert await store.list_lapsed() == (created,)
        clock.advance(59)
        assert await store.get_task(created.task_id) is None
        assert other.clock is not clock
