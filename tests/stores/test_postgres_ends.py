"""Ends of tasks that PostgreSQL tells to those who made and claimed them, without a read (L3, L9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import psycopg
import pytest
from psycopg import sql

from mcp_task_runtime import StoreDispatcher, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.store import TaskEndWatching
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, StoreClosedError, StoreUnavailableError
from mcp_task_runtime.stores.postgres import PostgresTaskStore, _watching
from mcp_task_runtime.stores.postgres._watchers import Look, Watchers
from tests.stores.postgres_server import PostgresServer
from tests.support.patience import PATIENCE

DONE = Outcome.completed({"content": []})

Open = Callable[[], PostgresTaskStore]


@pytest.fixture
def make(postgres: PostgresServer, schema: str) -> Open:
    """Make stores on one fresh schema, as several processes would."""
    return partial(PostgresTaskStore, postgres.url, schema=schema, timeout=PATIENCE)


async def created(store: PostgresTaskStore, *, worker: str | None = "", lease_ms: int = 0) -> str:
    new = NewTask(ttl_ms=None, request=TaskRequest(name="tool"), worker=worker, lease_ms=lease_ms)
    return (await store.create_task(new)).task_id


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it becomes true in the store, which has no event for tests
            await anyio.sleep(0.01)


async def until_listening(store: PostgresTaskStore) -> None:
    """Wait until the ends of tasks are heard of: a task that is gone is told of by the first look."""
    seen: list[str] = []
    store.watch_end("unknown", partial(seen.append, "gone"))
    await until(lambda: bool(seen))


def uses(*stores: PostgresTaskStore) -> int:
    """Return how many operations these stores have run."""
    return sum(store.statistics().reads + store.statistics().writes for store in stores)


# --- on the real server ---


async def test_those_who_made_and_claimed_a_task_are_told_of_its_end(make: Open) -> None:
    async with make() as home, make() as worker, make() as third:
        assert isinstance(home, TaskEndWatching)
        await until_listening(home)
        await until_listening(worker)
        heard: list[str] = []
        for how in ("finished", "deleted", "by itself"):
            heard.clear()
            task = await created(home)
            stop = home.watch_end(task, partial(heard.append, "home"))
            if how == "finished":
                assert await worker.claim_task(task, worker="w", lease_ms=60_000) is not None
            elif how == "deleted":
                assert await worker.take_task(task, ["tool"], worker="w", lease_ms=60_000) is not None
            else:
                (taken,) = await worker.take_work(["tool"], worker="w", lease_ms=60_000, limit=5)
                assert taken.task_id == task
            worker.watch_end(task, partial(heard.append, "worker"))
            await home.update_task(task, status_message="on")
            before = uses(home, worker)
            if how == "finished":
                await third.finish_task(task, DONE)
            elif how == "deleted":
                await third.delete_task(task)
            else:
                await worker.finish_task(task, DONE)
                assert "worker" in heard, "it is told at once"
            await until(lambda: len(heard) == 2)
            assert set(heard) == {"home", "worker"}
            assert uses(home, worker) == before + (how == "by itself"), "none reads"
            stop()
        assert home.statistics().waiters == worker.statistics().waiters == 0
        await third.finish_task(await created(home), DONE)
        assert len(heard) == 2


async def test_a_watch_is_over_when_it_is_stopped(make: Open) -> None:
    async with make() as home, make() as other:
        await until_listening(home)
        heard: list[str] = []
        task = await created(home)
        stops = [home.watch_end(task, partial(heard.append, name)) for name in "abc"]
        stops[0]()
        stops[0]()
        await other.finish_task(task, DONE)
        await until(lambda: len(heard) == 2)
        assert heard == ["b", "c"]
        for stop in stops:
            stop()


async def test_an_end_that_is_told_before_the_watch_begins_is_not_missed(make: Open) -> None:
    """L3: the worker may be faster than the reply to the creation."""
    async with make() as home, make() as other:
        await until_listening(home)
        heard: list[str] = []
        first, second = await created(home), await created(home)
        home.watch_end(second, partial(heard.append, "second"))
        await other.finish_task(first, DONE)
        await other.finish_task(second, DONE)  # heard of behind the first
        await until(lambda: heard == ["second"])
        home.watch_end(first, partial(heard.append, "first"))
        assert heard == ["second", "first"]


async def test_ends_while_the_connection_was_lost_are_seen(make: Open, postgres: PostgresServer) -> None:
    """L3: having connected again, the process looks at all that it watches; it is notified already (L8)."""
    async with make() as home, make() as other:
        heard: list[str] = []
        tasks = [await created(home) for _ in range(3)]
        for task in tasks:
            home.watch_end(task, partial(heard.append, task))
        await other.finish_task(tasks[0], DONE)  # maybe before the process listens
        await until(lambda: heard == tasks[:1])
        writes = home.statistics().writes
        await anyio.to_thread.run_sync(postgres.cut_connections)
        await other.finish_task(tasks[1], DONE)
        await until(lambda: heard == tasks[:2])
        assert home.statistics().waiters == 1
        assert home.statistics().writes == writes
        await other.finish_task(tasks[2], DONE)
        await until(lambda: heard == tasks)


async def test_a_process_that_watches_the_ends_of_tasks_may_watch_all_changes_too(make: Open) -> None:
    async with make() as home, make() as other:
        await until_listening(home)
        task = await created(home)
        ends: list[str] = []
        changes: list[TaskRecord | None] = []
        home.watch_end(task, partial(ends.append, "end"))
        await other.update_task(task, status_message="unheard")
        stop = home.watch_task(task, changes.append, after=2)
        await until(lambda: home.statistics().writes > 1 and home.statistics().free_slots == 10)
        before = len(changes)
        await other.update_task(task, status_message="heard")
        await until(lambda: len(changes) > before)
        assert not ends
        await other.finish_task(task, DONE)
        await until(lambda: bool(ends))
        stop()


async def test_an_end_that_happens_after_its_call_has_failed_is_told(
    make: Open, postgres: PostgresServer, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L3: to the process that made it nothing is sent."""
    monkeypatch.setattr(_watching, "_DOUBT_SECONDS", 0.01)
    blocked = sql.SQL("SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE {}")
    async with make() as other, aclosing(PostgresTaskStore(postgres.url, schema=schema, timeout=1.0)) as store:
        await until_listening(store)
        record: TaskRecord | None = None
        while record is None:
            with suppress(StoreUnavailableError):  # the machine may be slow
                record = await store.create_task(NewTask(ttl_ms=None))
        ended = anyio.Event()
        store.watch_end(record.task_id, ended.set)
        with psycopg.connect(postgres.url) as holding:
            rows = sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(schema, "tasks"))
            holding.execute(rows)
            with anyio.fail_after(PATIENCE):
                while not postgres.execute_often(blocked.format(sql.Literal(f"%{schema}%"))):
                    with suppress(StoreUnavailableError):
                        await store.finish_task(record.task_id, DONE)
            assert not ended.is_set()
        with anyio.fail_after(PATIENCE):
            await ended.wait()
        assert (await other.get_task(record.task_id)) != record


async def test_an_end_is_told_once_whatever_follows(make: Open) -> None:
    async with make() as home:
        await until_listening(home)
        heard: list[str] = []
        task = await created(home)
        await home.finish_task(task, DONE)
        home.watch_end(task, partial(heard.append, "ended"))
        assert heard == ["ended"]
        with pytest.raises(InvalidTransitionError):
            await home.finish_task(task, Outcome.cancelled())
        await home.delete_task(task)
        assert heard == ["ended"]


async def test_a_closed_store_tells_of_no_end(make: Open) -> None:
    async with make() as store:
        await created(store)
    with pytest.raises(StoreClosedError):
        store.watch_end("any", lambda: None)


async def test_what_another_application_sends_ends_no_task(make: Open, postgres: PostgresServer, schema: str) -> None:
    async with make() as home, make() as other:
        await until_listening(home)
        heard: list[str] = []
        first, last = await created(home), await created(home)
        home.watch_end(first, partial(heard.append, "first"))
        home.watch_end(last, partial(heard.append, "last"))
        for nonsense in ("d", "done", "d²"):
            postgres.execute("SELECT pg_notify(%s, %s)", [schema, f"{nonsense}:{first}"])
        await other.finish_task(last, DONE)
        await until(lambda: bool(heard))
        assert heard == ["last"]


# --- the table of watches ---


def watches() -> tuple[Watchers, list[str], Callable[[str], Any]]:
    watchers, heard = Watchers(), list[str]()
    return watchers, heard, lambda task_id: watchers.add_end(task_id, partial(heard.append, task_id))


def stale(watchers: Watchers) -> dict[str, bool]:
    """Return which tasks must be looked at now, and whether only their ends matter."""
    return watchers.take_stale(10_000)


def test_what_is_watched_when_listening_begins_is_looked_at() -> None:
    watchers, heard, watch = watches()
    for task_id in ("a", "b"):
        watch(task_id)
    watch("c")()
    watchers.listening()
    assert stale(watchers) == {"a": True, "b": True}
    watchers.ended("a")
    assert heard == ["a"]
    watchers.made("d", watchers.ends_mark)
    watch("d")
    assert stale(watchers) == {}, "its end will be heard of"
    watch("e")
    assert stale(watchers) == {"e": True}, "it was made elsewhere"
    watchers.deaf()
    watchers.listening()
    assert stale(watchers) == {"b": True, "d": True, "e": True}


def test_a_task_whose_end_is_in_doubt_is_looked_at_when_its_watch_begins() -> None:
    watchers, _, watch = watches()
    watchers.listening()
    watchers.made("a", watchers.ends_mark)
    watchers.doubt("a", 1.0)
    watch("a")
    assert stale(watchers) == {"a": True}


def test_a_look_tells_of_ends_alone() -> None:
    watchers, heard, watch = watches()
    for task_id in ("on", "over", "gone"):
        watch(task_id)
    changes: list[TaskRecord | None] = []
    watchers.add("on", changes.append, after=1)
    assert stale(watchers) == {"on": False, "over": True, "gone": True}
    watchers.failed(["on", "over", "gone"])
    assert (heard, changes) == ([], [None])
    watchers.tell("over", None)
    watchers.looked({"on": Look(2, has_ended=False), "over": Look(2, has_ended=True), "gone": None})
    assert (heard, changes) == (["over", "gone"], [None, None])
    watchers.looked({"over": Look(3, has_ended=True)})
    assert heard == ["over", "gone"]


# --- beside processes of the version before ---


class Before:
    """What a process of version 0.2.0 writes and sends, and what it hears."""

    NUMBER = 4_711

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self._connection = connection
        self._schema = schema
        connection.execute("SELECT set_config('search_path', %s, false)", [schema])
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(schema)))

    def create(self, task_id: str) -> None:
        self._connection.execute(
            """INSERT INTO tasks (task_id, status, created_at, last_updated_at, poll_interval_ms, retention_ms,
                revision, request_method, request_name, request_arguments, rerunnable, client_capabilities,
                lease_worker, lease_expires_at, lease_attempt, watchers, operation)
            VALUES (%s, 'working', now(), now(), 500, 1000, 1, 'tools/call', 'tool', '{}', false, '{}', '', now(), 0,
                ARRAY[%s]::bigint[], 1) RETURNING pg_notify(%s, 'w:')""",
            [task_id, self.NUMBER, self._schema],
        )

    def claim(self, task_id: str) -> None:
        self._connection.execute(
            """UPDATE tasks SET lease_worker = 'old', lease_expires_at = now() + interval '1 minute', lease_attempt = 1,
                watchers = watchers || %(own)s::bigint, revision = revision + 1
            WHERE task_id = %(task_id)s RETURNING
                CASE WHEN NOT watchers <@ ARRAY[%(own)s]::bigint[] THEN pg_notify(%(schema)s, 'u:' || task_id) END""",
            {"task_id": task_id, "own": self.NUMBER, "schema": self._schema},
        )

    def finish(self, task_id: str) -> None:
        self._connection.execute(
            """UPDATE tasks SET status = 'completed', outcome = '{"content": []}', lease_worker = NULL,
                lease_expires_at = NULL, lease_attempt = NULL, revision = revision + 1
            WHERE task_id = %(task_id)s RETURNING CASE WHEN NOT watchers <@ ARRAY[%(own)s]::bigint[]
                THEN pg_notify(%(schema)s, 'd' || pg_current_xact_id()::text || ':' || task_id) END""",
            {"task_id": task_id, "own": self.NUMBER, "schema": self._schema},
        )

    def heard(self) -> list[str]:
        """Return what was sent up to now, without the numbers of transactions: it comes in the order it was sent."""
        self._connection.execute("SELECT pg_notify(%s, 'up to now')", [self._schema])
        heard: list[str] = []
        for notice in self._connection.notifies(timeout=PATIENCE):
            if notice.payload == "up to now":
                break
            head, _, task_id = notice.payload.partition(":")
            heard.append(f"{head[:1]}:{task_id}")
        return heard


@pytest.fixture
def before(make: Open, postgres: PostgresServer, schema: str) -> Iterator[Before]:
    anyio.run(migrated, make)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield Before(connection, schema)


async def migrated(make: Open) -> None:
    async with make() as store:
        await store.connect()


async def test_a_worker_takes_the_task_of_a_server_of_the_version_before(make: Open, before: Before) -> None:
    async with make() as worker:
        taken: list[TaskRecord] = []

        async def take() -> None:
            taken.extend(await worker.take_work(["tool"], worker="w", lease_ms=60_000, limit=1))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(take)
                await until(lambda: worker.statistics().is_listening)
                before.create("a")
        assert [record.task_id for record in taken] == ["a"]
        assert before.heard() == ["w:", "u:a"], "a claim is a change"
        await worker.update_task("a", status_message="on")
        await worker.finish_task("a", DONE)
        assert before.heard() == ["u:a", "d:a"]


async def test_a_worker_of_the_version_before_serves_a_server(make: Open, before: Before) -> None:
    async with make() as home:
        await until_listening(home)
        heard: list[str] = []
        task = await created(home)
        home.watch_end(task, partial(heard.append, "home"))
        assert before.heard() == ["w:"]
        before.claim(task)
        await home.update_task(task, status_message="on")
        assert before.heard() == [f"u:{task}", f"u:{task}"]
        before.finish(task)
        await until(lambda: heard == ["home"])
        other = await created(home)
        before.claim(other)
        await home.finish_task(other, Outcome.cancelled())
        assert before.heard() == [f"d:{task}", "w:", f"u:{other}", f"d:{other}"], "it stops the work (L9)"


# --- what it is for ---


async def test_what_an_engine_carries_wakes_no_worker_that_listens(make: Open, before: Before) -> None:
    async with make() as home:
        task = await created(home, lease_ms=60_000)
        await home.finish_task(task, DONE)
        assert before.heard() == []


async def test_an_end_is_sent_to_no_process_that_does_not_wait_for_it(make: Open, before: Before) -> None:
    """L8: with many workers each would hear of all ends."""
    async with make() as home, make() as worker, make() as third:
        await until_listening(home)
        heard: list[str] = []
        task, other = await created(home), await created(home)
        home.watch_end(task, partial(heard.append, "home"))
        for task_id in (task, other):
            assert await worker.take_task(task_id, ["tool"], worker="w", lease_ms=60_000) is not None
        assert before.heard() == ["w:", "w:"]
        await worker.finish_task(task, DONE)
        await until(lambda: heard == ["home"])
        assert before.heard() == []
        await third.finish_task(other, DONE)
        assert before.heard() == [f"d:{other}"], "its worker must hear of it"


async def test_a_dispatched_task_costs_its_server_one_write_and_its_worker_few(make: Open) -> None:
    """L8, beside the look for the next task: nothing is read to see that it has ended, nor before it is claimed."""
    request = TaskRequest(name="tool", arguments_json="{}")
    async with make() as home, make() as working:
        await until_listening(home)
        await until_listening(working)
        settings = TaskSettings(lease_ms=3_600_000)  # no turn of the leases in between
        async with (
            TaskRuntime(home, settings=settings, dispatcher=StoreDispatcher()) as runtime,
            TaskRuntime(working, settings=settings, dispatcher=StoreDispatcher()) as worker,
        ):

            async def work(execution: object) -> Outcome:
                return Outcome.completed({})

            for each in (runtime, worker):
                each.register("tool", work, is_dispatched=True)
            async with anyio.create_task_group() as group:
                group.start_soon(partial(worker.work, concurrency=1))
                await until(lambda: working.statistics().waiters == 1 and working.statistics().free_slots == 10)
                before = uses(home), uses(working)
                for _ in range(5):
                    await runtime.dispatch(TaskSpec(request=request))
                    await until(lambda: not runtime.statistics().live_tasks)
                assert uses(home) - before[0] == 5
                await until(lambda: not worker.statistics().calls)
                # One that claims and one that ends; and it looks for more when it has room, which it may do next.
                assert uses(working) - before[1] <= 3 * 5 + 1
                group.cancel_scope.cancel()
        assert home.statistics().waiters == working.statistics().waiters == 0
