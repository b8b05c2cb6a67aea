"""Tasks that PostgreSQL finds and claims for a worker in one step."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import sql

from mcp_task_runtime.core.sealed import SEALED_JSON
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import StoreClosedError, StoreUnavailableError
from mcp_task_runtime.stores.postgres import PostgresTaskStore, _database
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.postgres_server import PostgresServer, Proxy, running_proxy
from tests.support.patience import PATIENCE

DONE = Outcome.completed({"content": []})
SEALED = TaskRequest(name="tool", arguments_json=SEALED_JSON + 'x"}')

Open = Callable[..., PostgresTaskStore]


@pytest.fixture
def make(postgres: PostgresServer, schema: str) -> Open:
    """Make stores on one fresh schema, as several processes would."""
    return partial(PostgresTaskStore, postgres.url, schema=schema, timeout=PATIENCE)


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with running_proxy(postgres.url) as proxy:
        yield proxy


class Database:
    """What the tests do in a database that a store does not."""

    def __init__(self, server: PostgresServer, schema: str) -> None:
        self._server = server
        self._schema = schema

    def change(self, task_id: str, column: str, value: str) -> None:
        """Write a value into a row."""
        statement = "UPDATE {}.tasks SET {} = {} WHERE task_id = {}"
        names = sql.Identifier(self._schema), sql.Identifier(column)
        self._server.execute(sql.SQL(statement).format(*names, sql.Literal(value), sql.Literal(task_id)))

    @contextmanager
    def locking(self, *task_ids: str) -> Iterator[psycopg.Connection[Any]]:
        """Hold tasks in a transaction: its end releases them."""
        with psycopg.connect(self._server.url) as connection:
            connection.execute("SELECT set_config('search_path', %s, false)", [self._schema])
            connection.execute("SELECT FROM tasks WHERE task_id = ANY(%s) FOR UPDATE", [list(task_ids)])
            yield connection
            connection.rollback()

    async def blocked(self, count: int = 1) -> None:
        """Return when so many statements wait for a task."""
        statement = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE {}"
        mine = sql.SQL(statement).format(sql.Literal(f"%{self._schema}%"))
        with anyio.fail_after(PATIENCE):
            while len(await anyio.to_thread.run_sync(self._server.execute_often, mine)) < count:  # noqa: ASYNC110
                await anyio.sleep(0.02)


@pytest.fixture
def database(postgres: PostgresServer, schema: str) -> Database:
    return Database(postgres, schema)


class Worker:
    """Takes tasks in the background.

    Attributes:
        taken: The tasks that it has taken.
        has_ended: Whether its call is over.
    """

    def __init__(self, store: PostgresTaskStore, name: str = "w", limit: int = 10) -> None:
        self.taken: list[str] = []
        self.has_ended = anyio.Event()
        self._take = partial(take, store, worker=name, limit=limit)

    async def run(self) -> None:
        while not self.has_ended.is_set():
            with suppress(StoreUnavailableError):  # the first look of a store with a short timeout may be too late
                self.taken += ids(await self._take())
                self.has_ended.set()

    async def run_in(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self.run()

    async def ended(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.has_ended.wait()


async def take(
    store: PostgresTaskStore, *names: str, worker: str = "w", limit: int = 10, with_sealed: bool = False
) -> tuple[TaskRecord, ...]:
    with anyio.fail_after(2 * PATIENCE):
        return await store.take_work(
            names or ["tool"], worker=worker, lease_ms=60_000, limit=limit, with_sealed=with_sealed
        )


async def created(store: PostgresTaskStore, name: str = "tool", *, worker: str = "", ttl_ms: int | None = None) -> str:
    new = NewTask(ttl_ms=ttl_ms, request=TaskRequest(name=name), worker=worker, lease_ms=0)
    return (await store.create_task(new)).task_id


def ids(records: tuple[TaskRecord, ...]) -> list[str]:
    return [record.task_id for record in records]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it becomes true in the store, which has no event for tests
            await anyio.sleep(0.01)


async def in_time(operation: Callable[[], Awaitable[object]]) -> None:
    """Return when an operation of a store with a short timeout was in time, as soon as the machine lets it."""
    with anyio.fail_after(PATIENCE):
        while True:
            with suppress(StoreUnavailableError):
                await operation()
                return


async def until_waiting(store: PostgresTaskStore) -> None:
    """Return when a worker has looked for tasks, found none, and listens."""
    await until(lambda: store.statistics().waiters == 1 and store.statistics().is_listening)
    looks = -1
    while looks != store.statistics().writes:
        looks = store.statistics().writes
        await anyio.wait_all_tasks_blocked()
        await until(lambda: store.statistics().free_slots == 10)


async def test_a_worker_that_waits_is_woken_and_takes_with_one_statement(make: Open) -> None:
    """L3, L8."""
    async with make() as store, make() as other, anyio.create_task_group() as group:
        worker = Worker(store)
        group.start_soon(worker.run)
        await until_waiting(store)
        before = store.statistics()
        await created(other, "unwanted")
        await until(lambda: store.statistics().writes > before.writes)  # it has looked again, and found nothing
        await until_waiting(store)
        before = store.statistics()
        task = await created(other)
        await worker.ended()
        assert worker.taken == [task]
        assert (store.statistics().writes, store.statistics().reads) == (before.writes + 1, before.reads)


@pytest.mark.parametrize("how", ["at once", "by its id"])
async def test_who_waits_in_the_process_of_the_worker_hears_that_a_task_was_taken(make: Open, how: str) -> None:
    """L3: nothing is sent to the process that takes it."""
    async with make() as store, anyio.create_task_group() as group:
        task = await created(store)
        seen: list[TaskRecord] = []

        async def wait() -> None:
            seen.append(await store.wait_for_update(task, after=1))

        group.start_soon(wait)
        await until_waiting(store)
        taken: TaskRecord | None
        if how == "at once":
            (taken,) = await take(store)
        else:
            taken = await store.take_task(task, ["tool"], worker="w", lease_ms=60_000)
        await until(lambda: bool(seen))
        assert seen == [taken]


# --- two at once ---


async def test_a_task_that_another_worker_is_about_to_take_is_left_to_it(make: Open, database: Database) -> None:
    async with make() as store:
        first, second = await created(store), await created(store)
        with database.locking(first):
            assert ids(await take(store, limit=1)) == [second], "and nothing waits for the other worker"
        assert ids(await take(store)) == [first]


@pytest.mark.parametrize("takes_it", [False, True])
async def test_a_task_that_another_worker_looked_at_and_left_is_taken(
    make: Open, database: Database, takes_it: bool
) -> None:
    """L3: no notification says that it was left, or that its worker was lost in the middle of taking it."""
    async with make() as store, anyio.create_task_group() as group:
        task = await created(store)
        worker = Worker(store)
        with database.locking(task) as other:
            group.start_soon(worker.run)
            await database.blocked()
            if takes_it:
                other.execute("UPDATE tasks SET lease_worker = 'other'")
                other.commit()
        if takes_it:
            await until_waiting(store)
            task = await created(store)
        await worker.ended()
        assert worker.taken == [task]


# --- replies that are lost ---


async def test_tasks_whose_claim_was_not_heard_of_are_claimed_once(make: Open, proxy: Proxy, schema: str) -> None:
    """L6: done again, the call returns what it took, and takes nothing else."""
    async with make() as other, PostgresTaskStore(proxy.url, schema=schema, timeout=PATIENCE) as store:
        assert await store.get_task("none") is None
        waiting = [await created(other) for _ in range(4)]
        async with anyio.create_task_group() as group:  # it listens, so that no other reply is lost
            group.start_soon(partial(take, store, "unknown"))
            await until_waiting(store)
            proxy.lose_reply()
            taken = await take(store, limit=3)
            assert proxy.has_lost_reply
            group.cancel_scope.cancel()
        assert ids(taken) == waiting[:3]
        assert [(each.revision, each.lease and each.lease.attempt) for each in taken] == [(2, 1)] * 3
        proxy.lose_reply()
        last = await store.take_task(waiting[3], ["tool"], worker="w", lease_ms=60_000)
        assert proxy.has_lost_reply
        assert last == await other.get_task(waiting[3])
        assert last is not None
        assert last.revision == 2


async def test_what_a_lost_call_takes_later_reaches_the_worker(
    make: Open, proxy: Proxy, schema: str, database: Database
) -> None:
    """L6, L12: its connection broke while the server had not come to it yet."""
    async with (
        make() as other,
        PostgresTaskStore(proxy.url, schema=schema, timeout=PATIENCE) as store,
        anyio.create_task_group() as group,
    ):
        task = await created(other)
        worker = Worker(store)
        with database.locking(task):
            group.start_soon(worker.run)
            await database.blocked(1)
            proxy.close()
            proxy.open()
            await database.blocked(2)  # the first does not know that its client is gone
        await worker.ended()
        assert worker.taken == [task]
        record = await other.get_task(task)
        assert record is not None
        assert (record.revision, record.lease and record.lease.attempt) == (2, 1)


@pytest.mark.parametrize("calls_again", [False, True])
async def test_what_a_look_took_in_an_outage_is_returned_by_the_next_one(
    make: Open, proxy: Proxy, schema: str, database: Database, monkeypatch: pytest.MonkeyPatch, calls_again: bool
) -> None:
    """L12: the look failed, and what it did is not known. Now and then a worker cancels its call, and calls again."""
    monkeypatch.setattr(_database, "_LOOK_AGAIN_SECONDS", 0.01)
    clock = FakeClock()
    new = NewTask(ttl_ms=None, request=TaskRequest(name="tool"), worker="", lease_ms=60_000)
    async with (
        make(clock=clock) as other,
        PostgresTaskStore(proxy.url, schema=schema, clock=clock, timeout=1.0) as store,
        anyio.create_task_group() as group,
    ):
        await other.get_task("none")
        task = (await other.create_task(new)).task_id
        worker = Worker(store)
        await in_time(partial(store.get_task, "none"))
        first_call = anyio.CancelScope()
        group.start_soon(worker.run_in, first_call)
        await until_waiting(store)
        with database.locking(task):
            clock.advance(61)
            await created(other, "unwanted")
            await database.blocked()
            looks = store.statistics().writes
            proxy.close()
            await until(lambda: store.statistics().writes > looks)
            if calls_again:
                first_call.cancel()
                await until(lambda: store.statistics().waiters == 0)
                group.start_soon(worker.run)
        proxy.open()
        await worker.ended()
        assert worker.taken == [task]
        record = await other.get_task(task)
        assert record is not None
        assert (record.revision, record.lease and record.lease.attempt) == (2, 1)


async def test_what_is_claimed_when_the_caller_is_cancelled_reaches_it(make: Open, database: Database) -> None:
    """L6."""
    async with make() as store:
        first, second = await created(store), await created(store)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await take(store)
        assert scope.cancelled_caught
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.take_task(first, ["tool"], worker="w", lease_ms=60_000)
        assert scope.cancelled_caught
        assert ids(await take(store, limit=1)) == [first], "what was cancelled before has claimed nothing"
        by_id: list[TaskRecord | None] = []
        worker = Worker(store)

        async def take_by_id() -> None:
            by_id.append(await store.take_task(second, ["tool"], worker="w", lease_ms=60_000))

        for look in (worker.run, take_by_id):
            async with anyio.create_task_group() as group:
                with database.locking(second):
                    group.start_soon(look)
                    await database.blocked()
                    group.cancel_scope.cancel()
            if worker.taken == [second]:
                await store.drop_leases("w", [second], lapse=True)
                await store.claim_task(second, worker="", lease_ms=0)
        assert worker.taken == [second]
        assert by_id[0] is not None
        assert by_id[0].task_id == second


# --- what is left, and what is wrong ---


async def test_sealed_tasks_are_left_to_workers_with_their_key(make: Open, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    async with make(clock=clock) as store:
        new = NewTask(ttl_ms=None, request=SEALED, worker="", lease_ms=0)
        sealed = [(await store.create_task(new)).task_id for _ in range(30)]
        clock.advance(1)
        plain = await created(store)
        speaks = TaskRequest(name="tool", arguments_json='{"of": "sealed:1 things"}')
        other = await store.create_task(NewTask(ttl_ms=None, request=speaks, worker="", lease_ms=0))
        assert set(ids(await take(store, limit=2))) == {plain, other.task_id}, "it looks behind them"
        for _ in range(2):
            async with anyio.create_task_group() as group:
                group.start_soon(take, store)
                await until_waiting(store)
                group.cancel_scope.cancel()
        assert [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING] == [
            "Waiting tasks are left to others: they are sealed, and this worker has no seal key"
        ]
        assert await store.take_task(sealed[0], ["tool"], worker="w", lease_ms=1) is None
        assert await store.take_task(sealed[0], ["tool"], worker="w", lease_ms=1, with_sealed=True) is not None
        assert set(ids(await take(store, limit=100, with_sealed=True))) == set(sealed[1:])


async def test_rows_that_are_damaged_hurt_no_other_task(
    make: Open, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """L13: a worker sets them aside; one whose counters are full is not touched."""
    clock = FakeClock()
    async with make(clock=clock) as store:
        damaged = {
            "created_at": "infinity",
            "request_arguments": "[1]",
            "progress_token": "{}",
            "lease_attempt": str(2**31 - 1),
            "revision": str(2**63 - 1),
        }
        for column, value in damaged.items():
            database.change(await created(store), column, value)
        clock.advance(1)
        right = [await created(store) for _ in range(2)]
        found: list[str] = []
        while len(found) < 2:
            found += ids(await take(store, limit=2))
        assert found == right
        assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 3
        later = await created(store)
        before = store.statistics().writes
        assert ids(await take(store, limit=1)) == [later]
        assert store.statistics().writes == before + 1, "what was set aside costs nothing more"


async def test_arguments_that_make_no_sense_are_refused(make: Open) -> None:
    async with make() as store, anyio.create_task_group() as group:
        task = await created(store)
        options: dict[str, Any]
        for options in ({"limit": 0}, {"worker": ""}, {"worker": "\ud800"}):
            with pytest.raises(ValueError, match=r"limit|worker"):
                await take(store, **options)
        with pytest.raises(ValueError, match="worker"):
            await store.take_task(task, ["tool"], worker="", lease_ms=1)
        assert await store.take_task("unspeakable \0 \ud800", ["tool"], worker="w", lease_ms=1) is None
        ends: list[Exception] = []

        async def wait() -> None:
            try:
                await take(store, "none")
            except StoreClosedError as error:
                ends.append(error)

        group.start_soon(wait)
        await until_waiting(store)
        await store.aclose()
        await until(lambda: len(ends) == 1)
