"""Watches of a PostgreSQL store (L3): its one job, driven without a server; and on the real one what they cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed")

from mcp_task_runtime.core.transitions import create_record
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError
from mcp_task_runtime.stores.postgres import PostgresTaskStore, _watching
from mcp_task_runtime.stores.postgres._watchers import Look, Watchers
from mcp_task_runtime.stores.postgres._watching import Watching
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.postgres_server import PostgresServer
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

DONE = Outcome.completed({"content": []})


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it becomes true in a job, which has no event for tests
            await anyio.sleep(0.001)


class Backend:
    """What the job of a process asks: tasks with their revisions.

    Attributes:
        revisions: The tasks that there are.
        ended: Those of them that have ended.
        looks: What each look asked for.
        errors: What the next looks raise.
        listening: How often the job made sure that changes are heard of.
        gate: Looks wait for it.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, int] = {}
        self.ended: set[str] = set()
        self.looks: list[list[str]] = []
        self.errors: list[Exception] = []
        self.listening = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.watchers = Watchers()
        self.watching = Watching(self.watchers, self.listen)
        self.heard: list[tuple[str, TaskRecord | None]] = []

    async def listen(self) -> None:
        self.listening += 1

    async def look(self, tasks: Mapping[str, bool]) -> dict[str, Look | None]:
        self.looks.append(list(tasks))
        found = {
            task_id: Look(self.revisions[task_id], task_id in self.ended) if task_id in self.revisions else None
            for task_id in tasks
        }
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return found

    def watch(self, task_id: str, after: int = 1) -> Callable[[], None]:
        watcher = self.watchers.add(task_id, lambda record: self.heard.append((task_id, record)), after=after)
        self.watching.begin(self.look)
        return watcher

    async def looked(self, count: int) -> None:
        """Wait until there were so many looks, and the job has nothing to do."""
        await until(lambda: len(self.looks) >= count)
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def a_backend(**revisions: int) -> AsyncIterator[Backend]:
    backend = Backend()
    backend.revisions = revisions
    try:
        yield backend
    finally:
        with anyio.CancelScope(shield=True), anyio.fail_after(PATIENCE):
            backend.gate.set()
            await backend.watching.aclose()


def record_of(revision: int) -> TaskRecord:
    return replace(create_record(NewTask(task_id="a", ttl_ms=None), now=FakeClock().now()), revision=revision)


# --- the job ---


async def test_watches_that_begin_together_are_looked_at_together() -> None:
    async with a_backend(a=1, b=2) as backend:
        for task_id in ("a", "b", "gone"):
            backend.watch(task_id)
        await backend.looked(1)
        assert backend.looks == [["a", "b", "gone"]]
        assert backend.listening == 1, "and changes are heard of before the look"
        assert backend.heard == [("b", None), ("gone", None)], "a has not changed"


async def test_a_look_reads_so_many_tasks_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_watching, "_AT_ONCE", 2)
    async with a_backend(a=1, b=1, c=1) as backend:
        for task_id in ("a", "b", "c"):
            backend.watch(task_id)
        await backend.looked(2)
        assert backend.looks == [["a", "b"], ["c"]]


async def test_what_is_watched_during_a_look_is_looked_at_next() -> None:
    async with a_backend(a=1, b=1) as backend:
        backend.gate = anyio.Event()
        backend.watch("a")
        await until(lambda: len(backend.looks) == 1)
        backend.watch("b")
        backend.watchers.mark(["a"])
        backend.revisions["a"] = 2
        backend.gate.set()
        await backend.looked(2)
        assert backend.looks == [["a"], ["b", "a"]]
        assert backend.heard == [("a", None)]


async def test_a_change_that_is_heard_during_a_look_is_told_once() -> None:
    """The look began before the change, and does not know of it."""
    async with a_backend(a=1) as backend:
        backend.gate = anyio.Event()
        backend.watch("a")
        await until(lambda: len(backend.looks) == 1)
        backend.watchers.tell("a", None)
        backend.gate.set()
        await backend.looked(1)
        assert backend.heard == [("a", None)]


async def test_a_look_that_fails_is_repeated_until_it_succeeds() -> None:
    """L3, L12: an outage is waited out; what is wrong with the store is found out by the one who looks."""
    async with a_backend(a=2) as backend:
        backend.errors = [StoreUnavailableError("away"), StoreError("refused")]
        backend.watch("a")
        await backend.looked(3)
        assert backend.heard == [("a", None)] * 2, "one call for the error, and one for the change"
        assert len(backend.looks) == 3


async def test_a_watch_that_is_stopped_hears_nothing_and_is_not_looked_at() -> None:
    async with a_backend(a=2, b=2) as backend:
        backend.gate = anyio.Event()
        stop = backend.watch("a")
        await until(lambda: len(backend.looks) == 1)
        stop()
        stop()
        backend.watch("b")()
        backend.watchers.tell("a", None)
        backend.gate.set()
        await backend.looked(1)
        assert backend.heard == []
        assert len(backend.watchers) == 0
        assert backend.looks == [["a"]]


async def test_watches_of_one_task_are_told_apart() -> None:
    async with a_backend(a=2) as backend:
        calls: list[str] = []
        first = backend.watchers.add("a", lambda record: calls.append("first"), after=1)
        second = backend.watchers.add("a", lambda record: calls.append("second"), after=2)
        backend.watching.begin(backend.look)
        await backend.looked(1)
        assert calls == ["first"], "the other one has it already"
        first()
        backend.watchers.tell("a", None)
        assert calls == ["first", "second"]
        second()


async def test_a_record_is_told_unless_it_was_heard_of() -> None:
    async with a_backend() as backend:
        heard: list[TaskRecord | None] = []
        stop = backend.watchers.add("a", heard.append, after=2)
        for revision in (2, 3, 3, 1, 4):
            backend.watchers.tell("a", record_of(revision))
        assert [record and record.revision for record in heard] == [3, 4]
        stop()


async def test_a_task_whose_change_is_in_doubt_is_looked_at_again_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose connection broke may happen later, and notifies no waiter in this process."""
    monkeypatch.setattr(_watching, "_DOUBT_SECONDS", 0.01)
    async with a_backend(a=1, b=1) as backend:
        backend.watch("a")
        backend.watch("b")
        await backend.looked(1)
        backend.watchers.doubt("a", anyio.current_time() + 3_600)
        await until(lambda: len(backend.looks) >= 3)
        backend.revisions["a"] = 2
        await until(lambda: bool(backend.heard))
        assert backend.heard == [("a", None)]
        assert all(look == ["a"] for look in backend.looks[1:])
        backend.watchers.doubt("a", anyio.current_time() - 1)
        await until(lambda: not backend.watchers.has_doubtful)


async def test_doubt_of_what_is_not_watched_is_no_doubt() -> None:
    async with a_backend() as backend:
        backend.watchers.doubt("a", anyio.current_time() + 3_600)
        assert not backend.watchers.has_doubtful


async def test_the_job_ends_when_nothing_was_watched_for_a_while_and_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_watching, "_IDLE_SECONDS", 0.01)
    async with a_backend(a=2) as backend:
        backend.watch("a")()
        await until(lambda: not backend.watching.is_on)
        backend.watch("a")
        await until(lambda: backend.heard == [("a", None)])
        assert backend.watching.is_on


async def test_a_watcher_that_raises_ends_no_other_watch(caplog: pytest.LogCaptureFixture) -> None:
    """L13: against its contract, it is logged, and the job goes on."""

    def fail(record: TaskRecord | None) -> None:
        raise LookupError("faulty")

    async with a_backend(a=2, b=2) as backend:
        backend.watchers.add("a", fail, after=1)
        backend.watching.begin(backend.look)
        await until(lambda: "going on" in caplog.text)
        backend.watch("b")
        await until(lambda: backend.heard == [("b", None)])


async def test_the_job_ends_with_its_store() -> None:
    async with a_backend(a=2) as backend:
        backend.errors = [StoreClosedError()]
        backend.watch("a")
        await until(lambda: not backend.watching.is_on)
        assert backend.heard == []


# --- on the real server ---


async def test_many_watches_cost_one_look_and_own_changes_none(postgres: PostgresServer, schema: str) -> None:
    """L8: a change by another process costs it one more, by the one who is called."""
    async with (
        PostgresTaskStore(postgres.url, schema=schema) as store,
        PostgresTaskStore(postgres.url, schema=schema) as other,
    ):
        tasks = [await store.create_task(NewTask(ttl_ms=None)) for _ in range(20)]
        heard: list[TaskRecord | None] = []
        reads = store.statistics().reads
        stops = [store.watch_task(task.task_id, heard.append, after=task.revision) for task in tasks]
        await until(lambda: store.statistics().is_listening and store.statistics().reads > reads)
        await until(lambda: store.statistics().free_slots == 10)
        await anyio.wait_all_tasks_blocked()
        looks = store.statistics().reads - reads
        assert looks == 1
        assert heard == []
        updated = await store.update_task(tasks[0].task_id, status_message="on")
        ended = await store.finish_task(tasks[0].task_id, DONE)
        assert heard == [updated, ended]
        assert store.statistics().reads - reads == looks
        await other.update_task(tasks[1].task_id, status_message="on")
        await until(lambda: len(heard) == 3)
        assert heard[-1] is None
        assert store.statistics().waiters == 20
        for stop in stops:
            stop()
        assert store.statistics().waiters == 0


async def test_a_watch_of_a_task_of_another_process_is_called_for_its_changes(
    postgres: PostgresServer, schema: str
) -> None:
    async with (
        PostgresTaskStore(postgres.url, schema=schema) as store,
        PostgresTaskStore(postgres.url, schema=schema) as other,
    ):
        tasks = [await other.create_task(NewTask(ttl_ms=None)) for _ in range(3)]
        calls = [0] * 3

        def count(number: int, record: TaskRecord | None) -> None:
            assert record is None
            calls[number] += 1

        for number, task in enumerate(tasks):
            store.watch_task(task.task_id, partial(count, number), after=task.revision)
        await other.update_task(tasks[0].task_id, status_message="on")
        await until(lambda: calls[0] > 0)
        await until(lambda: store.statistics().is_listening)
        await anyio.to_thread.run_sync(postgres.cut_connections)
        calls[:] = [0] * 3
        await other.finish_task(tasks[1].task_id, DONE)
        await other.delete_task(tasks[2].task_id)
        await until(lambda: calls[1] > 0 and calls[2] > 0)


async def test_a_closed_store_calls_no_watch(postgres: PostgresServer, schema: str) -> None:
    heard: list[TaskRecord | None] = []
    async with PostgresTaskStore(postgres.url, schema=schema) as store:
        task = await store.create_task(NewTask(ttl_ms=None))
        stop = store.watch_task(task.task_id, heard.append, after=task.revision)
        await until(lambda: store.statistics().is_listening)
    assert heard == []
    stop()
    with pytest.raises(StoreClosedError):
        store.watch_task(task.task_id, heard.append, after=task.revision)
