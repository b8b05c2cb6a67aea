"""`SQLiteTaskStore` and `SQLiteTaskMessageQueue`: the shipped kit, and what is SQLite's own."""

from __future__ import annotations

import gc
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any, get_args

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import (
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskQuestions,
    TaskSearch,
    TaskSharing,
    TaskStore,
)
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    NewTask,
    Outcome,
    Progress,
    Task,
    TaskEvent,
    TaskFilter,
    TaskRecord,
    TaskRequest,
)
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    InvalidCursorError,
    SchemaVersionError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores.sqlite import (
    SQLiteTaskMessageQueue,
    SQLiteTaskStore,
    _creation,
    _leases,
    _mailbox,
    _pages,
    _records,
    _schema,
    _search,
    _tasks,
    _work,
)
from mcp_task_runtime.stores.sqlite import store as sqlite_store
from mcp_task_runtime.testing.checks.bench import Capability, Check
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from mcp_task_runtime.testing.machine.machine import check_task_store_machine
from tests.kit.memory import ONLY_ON_SERVERS
from tests.stores.profile import PROFILE
from tests.support.patience import IS_LONG, PATIENCE

CAPABILITIES: tuple[Capability, ...] = tuple(set(get_args(Capability)) - ONLY_ON_SERVERS)
CHECKS = [check for check in (*STORE_CHECKS, *ABILITY_CHECKS) if not check.needs & ONLY_ON_SERVERS]
DONE = Outcome.completed({"content": [{"type": "text", "text": "grüß 🌍"}]})
NOTE = QueuedMessage.notification("notifications/message", {"text": "grüß 🌍"})
QUESTION = QueuedMessage.request("k", "elicitation/create", {"message": "Sure?"})
NASTY = ("x'; DROP TABLE tasks; --", 'a"b', "nul\0inside", "grüß\u2028🌍", "%_?", "")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tasks.db"


# --- the shipped kit ----------------------------------------------------------------------------------


class Opener:
    """Opens at the kit's locations: each is a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
        return SQLiteTaskStore(self.folder / location, clock=clock, synchronous="normal")

    def queue(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskMessageQueue]:
        return SQLiteTaskMessageQueue(self.folder / location, clock=clock, synchronous="normal")

    @asynccontextmanager
    async def backend(self, clock: FakeClock, location: str) -> Any:
        async with SQLiteTaskStore(self.folder / location, clock=clock, synchronous="normal") as store:
            yield TaskBackend(store, store.message_queue)

    async def count_rows(self, kept: object) -> int:
        (path,) = [path for path in self.folder.iterdir() if not path.name.endswith(("-wal", "-shm"))]
        return sum(query(path, f"SELECT count(*) FROM {table}")[0][0] for table in ("tasks", "messages", "steps"))


@pytest.fixture
def opener(tmp_path: Path) -> Opener:
    return Opener(tmp_path)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_the_store_keeps_the_laws(check: Check[TaskStore], opener: Opener) -> None:
    await check.run(opener.store, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=str)
async def test_the_queue_keeps_the_laws(check: Check[TaskMessageQueue], opener: Opener) -> None:
    await check.run(opener.queue, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUESTION_CHECKS, ids=str)
async def test_store_and_queue_keep_the_laws_together(check: Check[TaskBackend], opener: Opener) -> None:
    await check.run(opener.backend, footprint=opener.count_rows)


async def test_nothing_is_kept_in_memory_of_what_is_gone(opener: Opener) -> None:
    clock = FakeClock()

    def count() -> int:
        gc.collect()
        kinds = [type(thing) for thing in gc.get_objects()]
        return len([kind for kind in kinds if "stores.sqlite" in str(kind.__module__) or kind is TaskRecord])

    async with opener.store(clock, "tasks") as store:
        before = count()
        for _ in range(100):
            created = await store.create_task(NewTask(ttl_ms=1_000))
            with anyio.move_on_after(0):
                await store.wait_for_update(created.task_id, after=1)
            await store.finish_task(created.task_id, DONE)
            await store.delete_task(created.task_id)
        assert count() < before + 10


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_random_stories_go_as_the_model_says(event_loop: str, opener: Opener) -> None:
    check_task_store_machine(
        opener.backend,
        capabilities=CAPABILITIES,
        backends=[event_loop],
        settings=PROFILE,
        races=False,
    )


# --- helpers ------------------------------------------------------------------------------------------


def query(path: Path, statement: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, parameters).fetchall()


def run_script(path: Path, statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a file, as another process does while it commits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


_THERE_BEFORE: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def threads_of_other_tests() -> None:
    """Note which threads are there already: the same process runs tests of other stores, too."""
    _THERE_BEFORE.clear()
    _THERE_BEFORE.update(threading.enumerate())


def our_threads() -> list[threading.Thread]:
    """Return the threads that the stores of this test have started and not ended."""
    started = set(threading.enumerate()) - _THERE_BEFORE
    return [thread for thread in started if thread.name.startswith("mcp-task-runtime")]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it comes true in another thread, without an event
            await anyio.sleep(0.005)


CHILD = """
import sys, time, anyio
from datetime import datetime, timezone
from mcp_task_runtime.core.message_queue import *
from mcp_task_runtime.core.types import *
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

def say(*words):
    print(*words, flush=True)

async def main(store, queue):
{body}

async def run():
    async with SQLiteTaskStore(sys.argv[1]) as store:
        await main(store, store.message_queue)

anyio.run(run)
"""


@contextmanager
def child(path: Path, body: str) -> Iterator[subprocess.Popen[str]]:
    """Run code with `store` and `queue` in another process: it says and reads lines."""
    source = CHILD.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", source, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with anyio.fail_after(PATIENCE):
        return (await anyio.to_thread.run_sync(process.stdout.readline)).strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


# --- what it is ---------------------------------------------------------------------------------------


def test_it_implements_the_protocols(path: Path) -> None:
    store = SQLiteTaskStore(path)
    for ability in (TaskStore, TaskLeases, TaskQuestions, TaskJoins, TaskJournal, TaskSearch, TaskSharing):
        assert isinstance(store, ability)
    assert store.is_shared
    assert isinstance(store.message_queue, TaskMessageQueue)


@pytest.mark.parametrize("name", ["", ":memory:", "a\0b"])
def test_a_path_that_is_no_file_is_refused(name: str) -> None:
    for kind in (SQLiteTaskStore, SQLiteTaskMessageQueue):
        with pytest.raises(ValueError, match="path"):
            kind(name)


def test_an_argument_that_makes_no_sense_is_refused(path: Path) -> None:
    for kind in (SQLiteTaskStore, SQLiteTaskMessageQueue):
        with pytest.raises(ValueError, match="synchronous"):
            kind(path, synchronous="off")  # type: ignore[arg-type]
        for timeout in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="timeout"):
                kind(path, timeout=timeout)


# --- stored form --------------------------------------------------------------------------------------

# Never change what follows: files of these versions exist. A later version adds a migration and a test of its own.
SCHEMA_1 = """
CREATE TABLE tasks ( sequence INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL UNIQUE, owner TEXT,
 status TEXT NOT NULL, status_message TEXT, created_at INTEGER NOT NULL, last_updated_at INTEGER NOT NULL,
 ttl_ms INTEGER, poll_interval_ms INTEGER NOT NULL, expires_at INTEGER, revision INTEGER NOT NULL,
 retention_ms INTEGER NOT NULL, method TEXT NOT NULL, name TEXT NOT NULL, arguments TEXT NOT NULL,
 progress_token TEXT, rerunnable INTEGER NOT NULL, client_capabilities TEXT NOT NULL, outcome_payload TEXT,
 outcome_message TEXT, lease_worker TEXT, lease_expires_at INTEGER, lease_attempt INTEGER );
CREATE INDEX tasks_by_owner ON tasks (owner, sequence);
CREATE INDEX tasks_by_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX tasks_by_lease ON tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE TABLE messages ( position INTEGER PRIMARY KEY, task_id TEXT NOT NULL, type TEXT NOT NULL,
 method TEXT NOT NULL, params TEXT NOT NULL, key TEXT, queued INTEGER NOT NULL DEFAULT 1, answer_type TEXT,
 answer_payload TEXT, UNIQUE (task_id, key) );
CREATE INDEX messages_queued ON messages (task_id, position) WHERE queued = 1;
CREATE INDEX messages_open ON messages (task_id, position) WHERE key IS NOT NULL AND answer_type IS NULL;
CREATE TABLE clears (number INTEGER PRIMARY KEY, task_id TEXT NOT NULL);
"""
ADDED_2 = (
    ", max_attempts INTEGER NOT NULL DEFAULT 3, caller TEXT NOT NULL DEFAULT '{}', sealed_credentials TEXT,"
    " progress TEXT, events TEXT NOT NULL DEFAULT '[]', join_key TEXT"
)
ADDED_3 = ", is_error INTEGER NOT NULL DEFAULT 0, lease_handovers INTEGER NOT NULL DEFAULT 0"
SCHEMA_2 = (
    SCHEMA_1.replace("lease_attempt INTEGER )", f"lease_attempt INTEGER {ADDED_2})")
    + """
CREATE INDEX tasks_by_join_key ON tasks (join_key, sequence) WHERE join_key IS NOT NULL;
CREATE INDEX tasks_by_kind ON tasks (status, name, sequence);
CREATE TABLE counts ( status TEXT NOT NULL, name TEXT NOT NULL, number INTEGER NOT NULL,
 PRIMARY KEY (status, name) ) WITHOUT ROWID;
CREATE TABLE steps ( position INTEGER PRIMARY KEY, task_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
 UNIQUE (task_id, key) );
CREATE TABLE clock ( id INTEGER PRIMARY KEY CHECK (id = 1), boot TEXT NOT NULL, ahead INTEGER NOT NULL,
 uptime INTEGER NOT NULL, asleep INTEGER NOT NULL );
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
)
SCHEMA_3 = (
    SCHEMA_2.replace("join_key TEXT)", f"join_key TEXT{ADDED_3})")
    + "CREATE INDEX tasks_by_error ON tasks (name, sequence) WHERE is_error = 1;\n"
    + "CREATE INDEX tasks_waiting ON tasks (name, lease_expires_at) WHERE lease_worker = '';\n"
    + "CREATE TABLE owners (owner PRIMARY KEY NOT NULL, live INTEGER NOT NULL) WITHOUT ROWID;\n"
)
BY_LEASE = "CREATE INDEX tasks_by_lease ON tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL;\n"
HELD = "CREATE INDEX tasks_held ON tasks (lease_expires_at) WHERE lease_worker <> '';\n"
REINDEXED_3 = SCHEMA_3.replace(BY_LEASE, "") + HELD
# fmt: off
ROWS_1: list[tuple[Any, ...]] = [
    (1, "live", "ada", "input_required", "asked", 1767225600000000, 1767225601500000, 60000, 250, 1767225660000000, 2,
     5000, "tools/call", "report", '{"topic":"rain"}', '"token"', 1, '{"sampling":{}}', None, None, "worker",
     1767225630000000, 1),
    (2, "ended", None, "failed", "no", 1767225600000000, 1767225601500000, None, 500, None, 2, 0, "tools/call", "",
     "{}", None, 0, "{}", '{"code":-32603,"message":"no"}', "no", None, None, None),
]
# fmt: on
MESSAGES_1: list[tuple[Any, ...]] = [
    (1, "live", "request", "elicitation/create", '{"message":"Sure?"}', "k", 0, None, None),
    (2, "live", "request", "sampling/createMessage", "{}", "k2", 0, "result", '{"role":"user"}'),
    (3, "live", "notification", "notifications/message", '{"text":"grüß 🌍"}', None, 1, None, None),
]
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
LATER = START + timedelta(seconds=1.5)
RECORDS_1 = [
    TaskRecord(
        Task("live", "input_required", "asked", START, LATER, 60_000, 250),
        2,
        "ada",
        5_000,
        TaskRequest("tools/call", "report", '{"topic":"rain"}', "token", rerunnable=True),
        '{"sampling":{}}',
        None,
        Lease("worker", START + timedelta(seconds=30)),
    ),
    TaskRecord(Task("ended", "failed", "no", START, LATER, None, 500), 2, outcome=Outcome.failed("no")),
]


def make_version_1(path: Path, rows: Sequence[tuple[Any, ...]] = (), messages: Sequence[tuple[Any, ...]] = ()) -> None:
    """Make a file as version 1 made it: by the first migration, with these rows."""
    statements = [*_schema.MIGRATIONS[0], "PRAGMA user_version = 1", "PRAGMA application_id = 0x4D435054"]
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
        for table, values in (("tasks", rows), ("messages", messages)):
            if values:
                connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values[0]))})", values)
    assert schema_of(path) == normal(SCHEMA_1)


def schema_of(path: Path) -> list[str]:
    found = query(path, "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    return [" ".join(sql.split()) for (sql,) in found]


def normal(schema: str) -> list[str]:
    return [" ".join(sql.split()) for sql in re.split(r";\n+(?=CREATE|\Z)", schema) if sql.strip()]


async def test_a_file_of_version_1_is_read_and_migrated(path: Path) -> None:
    make_version_1(path, ROWS_1, MESSAGES_1)
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for record in RECORDS_1:
            assert await store.get_task(record.task_id) == record
            assert await store.get_history(record.task_id) == (TaskEvent(record.task.created_at, "created"),)
        assert await store.get_view("live") == TaskView(RECORDS_1[0], (QUESTION,))
        queue = store.message_queue
        assert await queue.outstanding("live") == (QUESTION,)
        assert await queue.wait_for_answer("live", "k2") == Answer.result({"role": "user"})
        assert await queue.dequeue("live") == NOTE
        assert (await store.list_tasks(owner="ada")).records == (RECORDS_1[0],)
        assert (await store.count_tasks()).by_status_and_name == {("input_required", "report"): 1, ("failed", ""): 1}
        assert (await store.search_tasks(TaskFilter(names=frozenset({"report"})))).records == (RECORDS_1[0],)
        clock.advance(2)
        assert await store.answer_all("live", {"k": Answer.result({})}) == {"k"}
        finished = await store.finish_task("live", DONE)
        assert (finished.revision, finished.outcome) == (4, DONE)
        assert (await store.count_tasks()).by_status_and_name == {("completed", "report"): 1, ("failed", ""): 1}
    assert query(path, "PRAGMA user_version") == [(3,)]


async def test_a_file_of_version_2_is_read_and_migrated(path: Path) -> None:
    make_version_1(path, ROWS_1, MESSAGES_1)
    done = '{"content":[],"isError":true}'
    script = [
        *_schema.MIGRATIONS[1],
        "PRAGMA user_version = 2",
        f"UPDATE tasks SET status = 'completed', outcome_payload = '{done}', outcome_message = NULL WHERE sequence = 2",
        "UPDATE counts SET status = 'completed' WHERE status = 'failed'",
    ]
    run_script(path, "; ".join(script))
    assert schema_of(path) == normal(SCHEMA_2)
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        assert await store.get_task("live") == RECORDS_1[0]
        ended = await store.get_task("ended")
        assert ended is not None
        assert ended.outcome == Outcome("completed", done)
        counts = await store.count_tasks()
        assert counts.by_status_and_name == {("completed", ""): 1, ("input_required", "report"): 1}
        assert counts.errors_by_name == {}  # of what ended before
        assert (await store.search_tasks(TaskFilter(errors_only=True))).records == ()
        assert [await store.count_live_tasks(owner) for owner in ("ada", None)] == [1, 0]
        await store.finish_task("live", Outcome.completed({"isError": True}))
        assert await store.count_live_tasks("ada") == 0
        assert [one.task_id for one in (await store.search_tasks(TaskFilter(errors_only=True))).records] == ["live"]
    assert schema_of(path) == normal(REINDEXED_3)


OLD_SWEEP = "SELECT task_id FROM tasks WHERE lease_expires_at <= ? ORDER BY lease_expires_at LIMIT ?"
"""How a process of version 0.2.0 lists leases that have lapsed; it opens files up to version 3 of their form."""


async def test_a_file_of_version_0_2_0_is_swept_while_a_process_of_that_version_goes_on_with_it(path: Path) -> None:
    make_version_1(path, ROWS_1)
    run_script(path, "; ".join([*_schema.MIGRATIONS[1], *_schema.MIGRATIONS[2], "PRAGMA user_version = 3"]))
    assert schema_of(path) == normal(SCHEMA_3)
    clock = FakeClock()
    with closing(sqlite3.connect(path)) as old:
        assert old.execute(OLD_SWEEP, (1767225629999999, 10)).fetchall() == []
        async with SQLiteTaskStore(path, clock=clock) as store:
            waits = await store.create_task(NewTask(ttl_ms=None, worker="", lease_ms=0))
            held = await store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=31_000))
            clock.advance(31)
            assert await store.list_lost([], limit=10) == (RECORDS_1[0], held)
            assert await store.list_lapsed() == (waits, RECORDS_1[0], held)
            now = 1767225600000000 + 31_000_000
            found = [task_id for (task_id,) in old.execute(OLD_SWEEP, (now, 10))]
            assert found == [waits.task_id, "live", held.task_id]
            with old:
                old.execute("UPDATE tasks SET lease_worker = 'old' WHERE task_id = ?", (waits.task_id,))
            lost = await store.list_lost([], limit=10)
            assert [record.task_id for record in lost] == [waits.task_id, "live", held.task_id]
    assert schema_of(path) == normal(REINDEXED_3)
    assert query(path, "PRAGMA user_version") == [(3,)]


async def test_a_file_of_version_0_2_0_that_may_not_be_written_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version_1(path, ROWS_1)
    run_script(path, "; ".join([*_schema.MIGRATIONS[1], *_schema.MIGRATIONS[2], "PRAGMA user_version = 3"]))
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as a user who may write everything
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        assert await store.list_lost([], limit=10) == ()
        assert await store.get_task("live") == RECORDS_1[0]
    assert schema_of(path) == normal(SCHEMA_3)


async def test_text_with_lone_surrogates_of_version_1_is_read(path: Path) -> None:
    text = "\ud800 alone"
    blob = text.encode("utf-8", "surrogatepass")
    odd = list(ROWS_1[0])
    odd[1] = odd[2] = odd[4] = odd[13] = blob
    make_version_1(path, [tuple(odd)], [(1, blob, "request", blob, "{}", blob, 1, None, None)])
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        found = await store.get_task(text)
        assert found is not None
        assert (found.task_id, found.owner, found.task.status_message, found.request.name) == (text,) * 4
        assert (await store.list_tasks(owner=text)).records == (found,)
        view = await store.get_view(text)
        assert view is not None
        assert [(question.method, question.key) for question in view.questions] == [(text, text)]
        assert await store.answer_all(text, {text: Answer.result({})}) == {text}
        assert (await store.count_tasks()).by_status_and_name == {("working", text): 1}
        assert await store.delete_task(text)


async def test_the_stored_form_is_that_of_version_3(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        queue = store.message_queue
        request = replace(RECORDS_1[0].request, max_attempts=5, caller_json='{"a":1}', sealed_credentials="sealed")
        await store.create_task(
            NewTask(
                ttl_ms=60_000,
                poll_interval_ms=250,
                task_id="live",
                owner="ada",
                retention_ms=5_000,
                request=request,
                client_capabilities_json='{"sampling":{}}',
                worker="worker",
            )
        )
        await store.join_task(NewTask(ttl_ms=None, task_id="ended", worker="worker"), key="call", ended_ms=0)
        clock.advance(1.5)
        await store.update_task("live", status="input_required", status_message="asked", progress=Progress(1, 2.5, "m"))
        await store.record_step("live", "step", "[1]", fence=Fence("worker", 1))
        await store.finish_task("ended", Outcome.failed("no"))
        for message in (QUESTION, QueuedMessage("request", "sampling/createMessage", '{"x":1}', "k2"), NOTE):
            await queue.enqueue("live", message)
        await queue.dequeue("live")
        await queue.answer("live", "k2", Answer.result({"role": "user"}))
    status = '[[1767225601500000,"status","asked"]]'
    failed = '[[1767225601500000,"failed","no"]]'
    assert query(path, "SELECT * FROM tasks") == [
        (*ROWS_1[0], 5, '{"a":1}', "sealed", '[1,2.5,"m"]', status, None, 0, 0),
        (*ROWS_1[1], 3, "{}", None, None, failed, "call", 0, 0),
    ]
    assert query(path, "SELECT * FROM messages") == MESSAGES_1
    assert query(path, "SELECT * FROM steps") == [(1, "live", "step", "[1]")]
    assert query(path, "SELECT * FROM counts") == [
        ("failed", "", 1),
        ("input_required", "report", 1),
        ("working", "", 0),
        ("working", "report", 0),
    ]
    assert query(path, "SELECT * FROM clock") == []
    assert schema_of(path) == normal(REINDEXED_3)
    assert query(path, "PRAGMA user_version") == [(3,)]
    assert query(path, "PRAGMA application_id") == [(0x4D435054,)]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


async def test_any_text_and_token_comes_back_as_it_was(path: Path) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        records = []
        for number, text in enumerate(NASTY):
            token = 10**30 + number if number % 2 else text
            request = TaskRequest("tools/call", text, '{"a":1}', token, sealed_credentials=text)
            created = await store.create_task(
                NewTask(ttl_ms=None, task_id=f"id {text}", owner=text, request=request, worker=text or "w")
            )
            with pytest.raises(TaskExistsError):
                await store.create_task(NewTask(ttl_ms=None, task_id=f"id {text}"))
            progress = Progress(10**30 + number, 0.1, text)
            await store.update_task(created.task_id, status_message=text, progress=progress)
            question = QueuedMessage("request", text, '{"b":2}', text)
            asked = await store.ask(created.task_id, question)
            assert asked is not None
            records.append(asked)
            assert await store.get_view(created.task_id) == TaskView(asked, (question,))
            fence = Fence(text or "w", 1)
            assert await store.record_step(created.task_id, text, '"\\u0000"', fence=fence) == '"\\u0000"'
            assert await store.read_steps(created.task_id) == {text: '"\\u0000"'}
            assert await store.renew_leases(text or "w", [created.task_id], lease_ms=30_000) == {created.task_id}
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        for text, record in zip(NASTY, records, strict=True):
            assert await store.get_task(record.task_id) == record
            assert (await store.list_tasks(owner=text)).records == (record,)
            assert (await store.search_tasks(TaskFilter(owners=frozenset({text}), text=text))).records == (record,)
            assert await store.get_task(text) is None
            assert await store.answer_all(record.task_id, {text: Answer.result({})}) == {text}
            assert await store.delete_task(record.task_id)


DEEP = "[" * 300 + "]" * 300
UNREADABLE = {"lone surrogate": '{"a":"\ud800"}', "too deep": DEEP, "long number": "9" * 5_000, "no JSON": "{"}


async def test_what_could_not_be_read_back_is_refused_at_every_door_and_changes_nothing(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        queue = store.message_queue
        created = await store.create_task(NewTask(ttl_ms=None, worker="w"))
        task_id, fence, text = created.task_id, Fence("w", 1), "\udcff.txt"
        before = store.statistics().writes
        doors: list[Callable[[], Awaitable[Any]]] = [
            partial(store.create_task, NewTask(ttl_ms=None, task_id=text)),
            partial(store.create_task, NewTask(ttl_ms=None, owner=text)),
            partial(store.create_task, NewTask(ttl_ms=None, worker=text)),
            partial(store.create_task, NewTask(ttl_ms=2**70)),
            partial(store.create_task, NewTask(ttl_ms=None, retention_ms=2**70)),
            partial(store.create_task, NewTask(ttl_ms=None, poll_interval_ms=2**70)),
            partial(store.create_task, NewTask(ttl_ms=None, poll_interval_ms=None)),  # type: ignore[arg-type]
            partial(store.update_task, task_id, status_message=text),
            partial(store.update_task, task_id, progress=Progress(1, None, text)),
            partial(store.update_task, task_id, progress=Progress(float("nan"))),
            partial(store.update_task, task_id, progress=Progress(1, float("inf"))),
            partial(store.update_task, task_id, ttl_ms=2**70),
            partial(store.finish_task, task_id, Outcome.cancelled(status_message=text)),
            partial(store.ask, task_id, QueuedMessage("request", text, "{}", "k")),
            partial(store.ask, task_id, QueuedMessage("request", "m", "{}", text)),
            partial(store.ask, task_id, NOTE),
            partial(store.record_step, task_id, text, "1", fence=fence),
            partial(store.claim_task, task_id, worker=text, lease_ms=1),
            partial(queue.enqueue, text, NOTE),
            partial(queue.enqueue, task_id, QueuedMessage("request", "m", "{}", text)),
        ]
        odd = (
            TaskRequest(text),
            TaskRequest(name=text),
            TaskRequest(sealed_credentials=text),
            TaskRequest(progress_token=text),
            TaskRequest(progress_token=object()),  # type: ignore[arg-type]
            TaskRequest(progress_token=10**5_000),
            TaskRequest(max_attempts=2**70),
        )
        doors += [partial(store.create_task, NewTask(ttl_ms=None, request=request)) for request in odd]
        for json in UNREADABLE.values():
            doors += [
                partial(store.create_task, NewTask(ttl_ms=None, request=TaskRequest(arguments_json=json))),
                partial(store.create_task, NewTask(ttl_ms=None, request=TaskRequest(caller_json=json))),
                partial(store.create_task, NewTask(ttl_ms=None, client_capabilities_json=json)),
                partial(store.finish_task, task_id, Outcome("completed", json)),
                partial(store.ask, task_id, QueuedMessage("request", "m", json, "k")),
                partial(store.answer_all, task_id, {"k": Answer("result", json)}),
                partial(store.record_step, task_id, "k", json, fence=fence),
                partial(queue.enqueue, task_id, replace(NOTE, params_json=json)),
                partial(queue.answer, task_id, "k", Answer("result", json)),
            ]
        for door in doors:
            with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
                await door()
        assert store.statistics().writes == before
        assert await store.get_task(task_id) == created


async def test_looking_for_text_that_cannot_be_stored_finds_nothing(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None))
        odd = "\udcff"
        assert await store.get_task(odd) is None
        assert await store.get_view(odd) is None
        assert await store.answer_all(odd, {odd: Answer.withdrawn()}) == frozenset()
        assert (await store.list_tasks(owner=odd)).records == ()
        assert not await store.delete_task(odd)
        assert await store.read_steps(odd) == {}
        assert await store.get_history(odd) == ()


async def test_a_cursor_that_the_store_did_not_make_is_refused(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        for owner in ("ada", None):
            for _ in range(3):
                await store.create_task(NewTask(ttl_ms=None, owner=owner))
        cursor = (await store.list_tasks(owner="ada", limit=1)).next_cursor
        assert cursor is not None
        for bad in ("", "x", cursor[:-4], cursor[::-1], cursor + "AAAA", "AAAA" * 7):
            with pytest.raises(InvalidCursorError):
                await store.list_tasks(owner="ada", cursor=bad)
        with pytest.raises(InvalidCursorError):
            await store.list_tasks(owner=None, cursor=cursor)
        assert len((await store.list_tasks(owner=None, limit=10**30)).records) == 3


async def test_a_cursor_does_not_show_how_many_tasks_others_have(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        for number in range(4):  # sequences 1, 2, 3 and 7
            if number == 3:
                for _ in range(3):
                    await store.create_task(NewTask(ttl_ms=None, owner="other"))
            await store.create_task(NewTask(ttl_ms=None, owner="ada"))
        cursors = [(await store.list_tasks(owner="ada", limit=limit)).next_cursor for limit in (1, 2, 3)]
    shown = [urlsafe_b64decode(cursor or "") for cursor in cursors]
    assert len({data[:4] for data in shown} | {data[-4:] for data in shown}) == 6  # they have nothing in common
    for position, data in enumerate(shown, 1):
        assert position.to_bytes(4, "big") not in data
        assert position.to_bytes(4, "little") not in data


# --- opening and migrating ----------------------------------------------------------------------------


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


async def refusal_of(path: Path) -> StoreError:
    """Return the error that opening a file is refused with."""
    store = SQLiteTaskStore(path)
    with pytest.raises(StoreError) as caught:
        await store.__aenter__()
    await store.aclose()
    return caught.value


async def test_a_newer_file_is_refused_and_left_alone(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="kept"))
    run_script(path, "PRAGMA user_version = 99")
    before = content_of(path)
    error = await refusal_of(path)
    assert isinstance(error, SchemaVersionError)
    assert (error.found, error.supported) == (99, 3)
    store = SQLiteTaskStore(path)
    with pytest.raises(SchemaVersionError):
        await store.get_task("kept")
    await store.aclose()
    assert content_of(path) == before
    run_script(path, "PRAGMA user_version = 3")
    async with SQLiteTaskStore(path) as store:
        assert await store.get_task("kept") is not None


@pytest.mark.parametrize("content", [b"this is not a database, however long it may be\n" * 100, b"\0" * 5000])
async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    write(path, content)
    error = await refusal_of(path)
    assert str(error) == f"The database file {path} is not a SQLite database"
    assert isinstance(error.__cause__, sqlite3.DatabaseError)
    assert content_of(path) == content


@pytest.mark.parametrize("mark", ["", "PRAGMA user_version = 1;", "PRAGMA application_id = 7;"])
async def test_a_database_of_somebody_else_is_refused_and_left_alone(path: Path, mark: str) -> None:
    run_script(path, f"CREATE TABLE tasks (mine); INSERT INTO tasks VALUES (1); {mark}")
    before = content_of(path)
    error = await refusal_of(path)
    assert str(error) == f"The database file {path} belongs to another application"
    assert content_of(path) == before


async def test_a_file_that_cannot_be_opened_is_unavailable_until_it_can(tmp_path: Path) -> None:
    store = SQLiteTaskStore(tmp_path / "missing" / "tasks.db", timeout=0.05)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="cannot be opened") as caught:
            await store.create_task(NewTask(ttl_ms=None))
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    (tmp_path / "missing").mkdir()
    created = await store.create_task(NewTask(ttl_ms=None))
    assert await store.get_task(created.task_id) == created
    await store.aclose()


async def test_a_migration_happens_in_full_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        created = await store.create_task(NewTask(ttl_ms=None))
    present = _schema.MIGRATIONS
    further = ("ALTER TABLE tasks ADD COLUMN added TEXT", "CREATE TABLE tasks (again)")
    monkeypatch.setattr(_schema, "MIGRATIONS", (*present, further))
    assert isinstance((await refusal_of(path)).__cause__, sqlite3.OperationalError)
    assert query(path, "PRAGMA user_version") == [(len(present),)]
    assert "added" not in [row[1] for row in query(path, "PRAGMA table_info(tasks)")]
    monkeypatch.setattr(_schema, "MIGRATIONS", (*present, further[:1]))
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        assert await store.get_task(created.task_id) == created
    assert query(path, "PRAGMA user_version") == [(len(present) + 1,)]
    assert "added" in [row[1] for row in query(path, "PRAGMA table_info(tasks)")]


async def test_many_that_open_a_new_file_at_once_make_it_once(path: Path) -> None:
    stores = [SQLiteTaskStore(path) for _ in range(8)]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for store in stores:
                group.start_soon(partial(store.create_task, NewTask(ttl_ms=None)))
    assert len((await stores[0].list_tasks(owner=None)).records) == 8
    for store in stores:
        await store.aclose()


# --- one connection for many: lifecycle, threads, event loops -----------------------------------------


async def test_it_opens_when_it_is_first_used(path: Path) -> None:
    store = SQLiteTaskStore(path)
    assert os.listdir(path.parent) == []
    assert not our_threads()
    assert await store.get_task("unknown") is None
    await store.aclose()
    assert os.listdir(path.parent) == [path.name]


async def test_a_closed_store_and_its_queue_refuse_every_use(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
    await store.aclose()
    queue = store.message_queue
    uses: list[Callable[[], Awaitable[Any]]] = [
        store.__aenter__,
        partial(store.create_task, NewTask(ttl_ms=None)),
        partial(store.get_task, "a"),
        partial(store.update_task, "a"),
        partial(store.finish_task, "a", DONE),
        partial(store.get_result, "a"),
        partial(store.list_tasks, owner=None),
        partial(store.delete_task, "a"),
        partial(store.wait_for_update, "a", after=0),
        partial(store.renew_leases, "w", ["a"], lease_ms=1),
        partial(store.drop_leases, "w", ["a"], lapse=True),
        store.list_lapsed,
        partial(store.claim_task, "a", worker="w", lease_ms=1),
        partial(queue.enqueue, "a", NOTE),
        partial(queue.dequeue, "a"),
        partial(queue.peek, "a"),
        partial(queue.is_empty, "a"),
        partial(queue.clear, "a"),
        partial(queue.wait_for_message, "a"),
        partial(queue.outstanding, "a"),
        partial(queue.answer, "a", "k", Answer.withdrawn()),
        partial(queue.wait_for_answer, "a", "k"),
    ]
    for use in uses:
        with pytest.raises(StoreClosedError):
            await use()
    assert store.statistics().waiting == 0


async def test_closing_the_queue_of_a_store_leaves_the_store_open(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(StoreClosedError):
                    await store.message_queue.wait_for_message("a")

            group.start_soon(wait)
            await quiesce()
            async with store.message_queue:
                pass
        with pytest.raises(StoreClosedError):
            await store.message_queue.peek("a")
        await store.create_task(NewTask(ttl_ms=None))


async def test_closing_finishes_what_was_asked_for_and_ends_the_threads(path: Path) -> None:
    store = SQLiteTaskStore(path)
    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(partial(store.create_task, NewTask(ttl_ms=None, task_id=str(number))))
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await store.aclose()
        assert not our_threads()
    assert len(query(path, "SELECT 1 FROM tasks")) == 30
    assert not list(path.parent.glob("*-wal"))


async def test_a_store_that_nobody_closed_ends_its_threads_when_it_is_gone(path: Path) -> None:
    store = SQLiteTaskStore(path)
    await store.create_task(NewTask(ttl_ms=None))
    await store.list_tasks(owner=None)
    assert len(our_threads()) == 2
    del store
    gc.collect()
    await until(lambda: not our_threads())


def test_event_loops_may_use_a_store_one_after_the_other(path: Path) -> None:
    store = SQLiteTaskStore(path)

    async def use() -> int:
        created = await store.create_task(NewTask(ttl_ms=None))
        with anyio.move_on_after(0.05):
            await store.wait_for_update(created.task_id, after=1)
        await store.finish_task(created.task_id, DONE)
        await store.wait_for_update(created.task_id, after=1)
        return len((await store.list_tasks(owner=None)).records)

    assert [anyio.run(use, backend=backend) for backend in ("asyncio", "trio", "asyncio")] == [1, 2, 3]
    anyio.run(store.aclose, backend="trio")


def test_event_loops_may_use_a_store_at_the_same_time(path: Path) -> None:
    store = SQLiteTaskStore(path)
    ended: list[str] = []

    async def ping(mine: str, other: str) -> None:
        with anyio.fail_after(PATIENCE):
            for _ in range(20):
                await store.message_queue.enqueue(other, NOTE)
                await store.message_queue.wait_for_message(mine)
                assert await store.message_queue.dequeue(mine) == NOTE
        ended.append(mine)

    async def in_thread(backend: str, mine: str, other: str) -> None:
        await anyio.to_thread.run_sync(lambda: anyio.run(ping, mine, other, backend=backend))

    async def both() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(in_thread, "asyncio", "a", "b")
            group.start_soon(in_thread, "trio", "b", "a")
        await store.aclose()

    anyio.run(both)
    assert sorted(ended) == ["a", "b"]


# --- records that are kept in memory ------------------------------------------------------------------


async def test_what_another_store_changes_is_seen_by_who_made_the_task(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as ours, SQLiteTaskStore(path, clock=clock) as theirs:
        for _ in range(2):  # the same identifier again, and again from revision 1
            await ours.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=1_000))
            await theirs.update_task("a", status_message="theirs")
            assert (await ours.update_task("a", status="input_required")).task.status_message == "theirs"
            await theirs.delete_task("a")
            with pytest.raises(TaskNotFoundError):
                await ours.update_task("a")

        await ours.create_task(NewTask(ttl_ms=None, task_id="b"))
        await theirs.delete_task("b")
        await theirs.create_task(NewTask(ttl_ms=None, task_id="b", owner="theirs"))
        assert (await ours.update_task("b")).owner == "theirs"

        created = await ours.create_task(NewTask(ttl_ms=None, task_id="c", worker="w", lease_ms=1_000))
        await theirs.renew_leases("w", ["c"], lease_ms=5_000)
        assert (await ours.update_task("c")).lease == Lease("w", created.task.created_at + timedelta(seconds=5))
        await theirs.drop_leases("w", ["c"], lapse=False)
        assert (await ours.update_task("c")).lease is None

        await ours.create_task(NewTask(ttl_ms=1_000, task_id="d"))
        clock.advance(1)
        with pytest.raises(TaskNotFoundError):
            await ours.update_task("d")


async def test_only_so_many_tasks_are_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tasks, "KNOWN_TASKS", 3)
    async with SQLiteTaskStore(path) as store:
        made = [uuid.uuid4().hex for _ in range(9)]  # no other test in this process has made one of them
        for task_id in made:
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id))
        await store.update_task(made[6])
        await store.finish_task(made[7], DONE)
        gc.collect()
        found = {thing.record.task_id for thing in gc.get_objects() if isinstance(thing, _tasks.Found)}
        assert found.intersection(made) == {made[6], made[8]}
        assert (await store.update_task(made[1])).revision == 2


# --- cancellation -------------------------------------------------------------------------------------


async def test_a_storm_of_cancellations_leaves_each_write_done_or_not_and_nothing_behind(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        returned: list[str] = []

        async def live(number: int) -> None:
            with anyio.move_on_after(0.0005 * (number % 40)):
                created = await store.create_task(NewTask(ttl_ms=None, task_id=str(number), owner="storm"))
                returned.append(created.task_id)
                await store.message_queue.enqueue(created.task_id, QUESTION)
                with anyio.move_on_after(0.001):
                    await store.message_queue.wait_for_answer(created.task_id, "k")
                await store.finish_task(created.task_id, DONE)
                await store.wait_for_update(created.task_id, after=10)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for number in range(200):
                    group.start_soon(live, number)
        page = await store.list_tasks(owner="storm", limit=1000)
        assert set(returned) <= {record.task_id for record in page.records}
        for record in page.records:
            assert (record.revision, record.outcome) in [(1, None), (2, DONE)]
        assert store.statistics().waiting == 0
        await until(lambda: store.statistics().queued == 0)


async def test_a_message_is_never_lost_between_queue_and_a_cancelled_caller(path: Path) -> None:
    async with SQLiteTaskMessageQueue(path) as queue:
        messages = [QueuedMessage.notification("n", {"number": number}) for number in range(60)]
        for message in messages:
            await queue.enqueue("a", message)
        taken: list[QueuedMessage] = []

        async def take(number: int) -> None:
            with anyio.move_on_after(0.0002 * number):
                message = await queue.dequeue("a")
                assert message is not None
                taken.append(message)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for number in range(50):
                    group.start_soon(take, number)
            while (left := await queue.dequeue("a")) is not None:
                taken.append(left)
        assert sorted(m.params["number"] for m in taken) == list(range(60))


# --- several processes --------------------------------------------------------------------------------


async def test_who_waits_is_woken_by_another_process_at_once(path: Path) -> None:
    delays: list[float] = []
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        body = """
say("ready")
for line in sys.stdin:
    await store.update_task("a", status_message="from afar")
    say(time.time())
"""
        with child(path, body) as process:
            assert await hear(process) == "ready"
            for revision in range(1, 8):
                woken: list[float] = []

                async def wait(revision: int = revision, woken: list[float] = woken) -> None:
                    await store.wait_for_update("a", after=revision)
                    woken.append(time.time())

                with anyio.fail_after(PATIENCE):
                    async with anyio.create_task_group() as group:
                        group.start_soon(wait)
                        await anyio.sleep(0.06)
                        tell(process, "go")
                        committed = float(await hear(process))
                delays.append(woken[0] - committed)
    if IS_LONG:  # a busy machine wakes no thread at once
        assert sorted(delays)[3] < 0.06, delays


async def test_questions_and_answers_cross_processes(path: Path) -> None:
    body = """
await queue.wait_for_message("a")
question = await queue.dequeue("a")
await queue.answer("a", question.key, Answer.result({"you": "asked " + question.params["message"]}))
await queue.wait_for_message("b")
"""
    async with SQLiteTaskStore(path) as store:
        with child(path, body), anyio.fail_after(PATIENCE):
            await anyio.sleep(0.1)
            await store.message_queue.enqueue("a", QUESTION)
            answer = await store.message_queue.wait_for_answer("a", "k")
    assert answer.unwrap() == {"you": "asked Sure?"}


async def test_waiting_is_no_busy_loop(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        before = time.process_time()
        with anyio.move_on_after(1):
            await store.wait_for_update("a", after=1)
        assert time.process_time() - before < 0.5
        before = time.process_time()
        await anyio.sleep(0.5)
        assert time.process_time() - before < 0.25


async def test_what_was_acknowledged_outlives_a_kill(path: Path) -> None:
    body = """
say("ready")
while True:
    record = await store.create_task(NewTask(ttl_ms=None, worker="lost", lease_ms=1))
    await store.update_task(record.task_id, status_message="begun")
    say(record.task_id)
"""
    with child(path, body) as process:
        assert await hear(process) == "ready"
        acknowledged = [await hear(process) for _ in range(50)]
        process.kill()
        process.wait()
        assert process.stdout is not None
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
    async with SQLiteTaskStore(path) as store:
        for task_id in acknowledged:
            record = await store.get_task(task_id)
            assert record is not None
            assert record.task.status_message == "begun"
        assert {record.task_id for record in await store.list_lapsed(limit=10_000)} >= set(acknowledged)
        counts = (await store.count_tasks()).by_status_and_name
    assert counts == {
        kind[:2]: kind[2] for kind in query(path, "SELECT status, name, count(*) FROM tasks GROUP BY 1, 2")
    }


async def test_processes_that_write_all_the_time_take_turns(path: Path) -> None:
    body = """
say("ready")
while True:
    await store.create_task(NewTask(ttl_ms=None, owner="other"))
"""
    async with SQLiteTaskStore(path) as store:
        with child(path, body) as process:
            assert await hear(process) == "ready"
            with anyio.fail_after(PATIENCE):
                for _ in range(100):
                    await store.create_task(NewTask(ttl_ms=None, owner="mine"))
        assert len((await store.list_tasks(owner="mine", limit=1000)).records) == 100


# --- leases -------------------------------------------------------------------------------------------


async def test_leases_are_renewed_by_their_worker_only(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        mine = await store.create_task(NewTask(ttl_ms=None, worker="me", lease_ms=10_000))
        assert mine.lease == Lease("me", clock.now() + timedelta(seconds=10), 1)
        theirs = await store.create_task(NewTask(ttl_ms=None, worker="them", lease_ms=10_000))
        nobodys = await store.create_task(NewTask(ttl_ms=None))
        ended = await store.create_task(NewTask(ttl_ms=None, worker="me", lease_ms=10_000))
        assert (await store.finish_task(ended.task_id, DONE)).lease is None
        dying = await store.create_task(NewTask(ttl_ms=11_000, worker="me", lease_ms=10_000))
        clock.advance(11)
        ids = [record.task_id for record in (mine, theirs, nobodys, ended, dying)]
        assert await store.renew_leases("me", [*ids, "unknown"], lease_ms=20_000) == {mine.task_id}
        renewed = await store.get_task(mine.task_id)
        assert renewed == replace(mine, lease=Lease("me", clock.now() + timedelta(seconds=20), 1))
        assert await store.get_task(theirs.task_id) == theirs
        assert await store.renew_leases("me", [], lease_ms=1) == frozenset()


async def test_lapsed_leases_are_listed_the_longest_lapsed_first(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for task_id, lease_ms in (("c", 3_000), ("a", 1_000), ("b", 2_000), ("later", 4_001)):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id, worker="w", lease_ms=lease_ms))
        await store.create_task(NewTask(ttl_ms=4_000, task_id="gone", worker="w", lease_ms=1_000))
        assert await store.list_lapsed() == ()
        clock.advance(4)
        assert [record.task_id for record in await store.list_lapsed()] == ["a", "b", "c"]
        assert [record.task_id for record in await store.list_lapsed(limit=2)] == ["a", "b"]
        await store.finish_task("a", DONE)
        await store.update_task("b", status="input_required")
        assert [(record.task_id, record.status) for record in await store.list_lapsed()] == [
            ("b", "input_required"),
            ("c", "working"),
        ]
        with pytest.raises(ValueError, match="limit"):
            await store.list_lapsed(limit=0)


async def test_dropped_leases_lapse_at_once_or_are_gone(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for task_id in ("lapses", "detached", "kept"):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id, worker="me"))
        await store.drop_leases("another worker", ["lapses", "detached", "kept"], lapse=True)
        await store.drop_leases("another worker", ["lapses", "detached", "kept"], lapse=False)
        assert await store.list_lapsed() == ()
        await store.drop_leases("me", ["lapses", "unknown"], lapse=True)
        await store.drop_leases("me", ["detached"], lapse=False)
        assert [record.task_id for record in await store.list_lapsed()] == ["lapses"]
        detached = await store.get_task("detached")
        assert detached is not None
        assert (detached.lease, detached.revision) == (None, 1)
        assert await store.renew_leases("me", ["lapses", "detached"], lease_ms=5) == {"lapses"}


async def test_of_many_that_claim_a_task_in_several_stores_exactly_one_gets_it(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store, SQLiteTaskStore(path, clock=clock) as other:
        created = await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="lost", lease_ms=1_000))
        await store.update_task("a", status="input_required", status_message="asked")
        assert await store.claim_task("a", worker="early", lease_ms=1) is None
        clock.advance(1)
        won: list[TaskRecord] = []

        async def claim(side: SQLiteTaskStore, worker: str) -> None:
            record = await side.claim_task("a", worker=worker, lease_ms=30_000)
            if record is not None:
                won.append(record)

        async def wait() -> None:
            await other.wait_for_update("a", after=2)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                for number in range(6):
                    group.start_soon(claim, (store, other)[number % 2], str(number))
        (record,) = won
        assert record.lease is not None
        assert record.lease == Lease(record.lease.worker, clock.now() + timedelta(seconds=30), 2)
        assert (record.revision, record.status, record.task.status_message) == (3, "input_required", "asked")
        assert await other.get_task("a") == record
        assert await store.renew_leases("lost", ["a"], lease_ms=1) == frozenset()
        await store.finish_task("a", DONE)
        clock.advance(60)
        for task_id in ("a", "unknown"):
            assert await store.claim_task(task_id, worker="late", lease_ms=1) is None
        assert created.revision == 1


# --- faults -------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_takes_no_more_loses_nothing_and_recovers_by_itself(path: Path) -> None:
    big = Outcome.completed({"text": "x" * 100_000})
    async with SQLiteTaskStore(path) as patient, SQLiteTaskStore(path, timeout=0.02) as store:
        acknowledged = [(await patient.create_task(NewTask(ttl_ms=None))).task_id]
        refusals: list[StoreError] = []
        with largest_file(500_000):
            for _ in range(40):
                try:
                    record = await store.create_task(NewTask(ttl_ms=None))
                    acknowledged.append(record.task_id)
                    await store.finish_task(record.task_id, big)
                except StoreUnavailableError as error:
                    refusals.append(error)
            assert len(refusals) > 20
            assert all(str(error).startswith(f"The database file {path} ") for error in refusals)
            assert all(isinstance(error.__cause__, sqlite3.Error) for error in refusals)
            for task_id in acknowledged:
                assert await patient.get_task(task_id) is not None
        for task_id in acknowledged:
            record = await patient.get_task(task_id) or pytest.fail("lost")
            if record.outcome is None:
                record = await patient.finish_task(task_id, big)
            assert record.outcome == big


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
async def test_a_read_only_file_can_be_read_and_says_why_it_cannot_be_written() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.db"
        async with SQLiteTaskStore(path) as store:
            created = await store.create_task(NewTask(ttl_ms=None))
        with read_only(path):
            store = SQLiteTaskStore(path, timeout=0.05)
            with pytest.raises(StoreUnavailableError) as caught:
                await store.create_task(NewTask(ttl_ms=None))
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert str(caught.value) in (
                f"The database file {path} {why}"
                for why in ("is read-only", "cannot be opened: it may not be read and written")
            )
        await store.finish_task(created.task_id, DONE)
        assert await store.get_result(created.task_id) == DONE
        await store.aclose()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
async def test_a_file_is_made_for_its_owner_alone_and_keeps_the_permissions_it_has(tmp_path: Path) -> None:
    def modes() -> dict[str, int]:
        return {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}

    path = tmp_path / "tasks.db"
    async with SQLiteTaskStore(path) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        assert modes() == {"tasks.db": 0o600, "tasks.db-wal": 0o600, "tasks.db-shm": 0o600}
    path.chmod(0o640)
    async with SQLiteTaskStore(path) as store:
        assert (await store.finish_task("a", DONE)).status == "completed"
        assert modes() == {"tasks.db": 0o640, "tasks.db-wal": 0o640, "tasks.db-shm": 0o640}


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Make a file read-only. Permissions do not stop root, so root becomes another user meanwhile."""
    is_root = os.geteuid() == 0
    path.chmod(0o444)
    path.parent.chmod(0o555)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        path.parent.chmod(0o755)
        path.chmod(0o644)


# --- what a task costs --------------------------------------------------------------------------------


async def test_a_task_with_a_status_a_question_and_three_polls_costs_five_writes_and_few_reads(path: Path) -> None:
    """As the runtime does it: one follower of the task, one asker, three polls, and an answer that is checked first."""
    followed: list[int] = []
    answers: list[Answer] = []
    async with SQLiteTaskStore(path) as store:
        before = store.statistics()

        async def follow(task_id: str) -> None:
            record = await store.wait_for_update(task_id, after=1)
            followed.append(record.revision)
            while record.outcome is None:
                record = await store.wait_for_update(task_id, after=record.revision)
                followed.append(record.revision)

        async def work(task_id: str, fence: Fence) -> None:
            await store.update_task(task_id, status_message="working", fence=fence)
            await until(lambda: followed == [2])
            assert await store.ask(task_id, QUESTION, fence=fence)
            answers.append(await store.message_queue.wait_for_answer(task_id, "k"))
            await until(lambda: followed == [2, 3, 4])
            await store.finish_task(task_id, DONE, fence=fence)

        with anyio.fail_after(PATIENCE):
            created = await store.create_task(NewTask(ttl_ms=60_000, worker="w"))
            assert created.lease is not None
            async with anyio.create_task_group() as group:
                group.start_soon(follow, created.task_id)
                await until(lambda: store.statistics().waiting == 1)
                group.start_soon(work, created.task_id, created.lease.fence)
                await until(lambda: followed == [2, 3])
                await until(lambda: store.statistics().waiting == 2)
                for _ in range(3):
                    view = await store.get_view(created.task_id)
                assert view is not None
                assert view.questions == (QUESTION,)
                assert await store.get_view(created.task_id) == view  # to check the answer
                assert await store.answer_all(created.task_id, {"k": Answer.result({})}) == {"k"}
        after = store.statistics()
    assert answers == [Answer.result({})]
    assert followed == [2, 3, 4, 5]
    assert after.writes - before.writes == 5
    assert after.reads - before.reads <= 12


async def test_many_answers_are_one_write_and_one_revision(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        created = await store.create_task(NewTask(ttl_ms=60_000))
        keys = {f"{number}" for number in range(300)}
        async with anyio.create_task_group() as group:
            for key in keys:
                question = QueuedMessage.request(key, "elicitation/create", {"message": "Sure?"})
                group.start_soon(partial(store.ask, created.task_id, question))
        writes = store.statistics().writes
        answers = dict.fromkeys([*keys, *(f"unknown {number}" for number in range(700))], Answer.result({}))
        assert await store.answer_all(created.task_id, answers) == keys
        assert store.statistics().writes == writes + 1
        record = await store.get_task(created.task_id)
        assert record is not None
        assert (record.revision, record.status) == (302, "working")


async def test_a_waiter_gets_what_was_written_without_another_read(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        created = await store.create_task(NewTask(ttl_ms=60_000))
        await store.ask(created.task_id, QUESTION)
        found: list[object] = []

        async def wait(operation: Callable[[], Awaitable[object]]) -> None:
            found.append(await operation())

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(wait, partial(store.message_queue.wait_for_answer, created.task_id, "k"))
                await until(lambda: store.statistics().reads == 1)
                await store.update_task(created.task_id, status_message="the asker sleeps on")
                group.start_soon(wait, partial(store.wait_for_update, created.task_id, after=3))
                await until(lambda: store.statistics().reads == 2)
                await store.answer_all(created.task_id, {"k": Answer.result({"a": 1})})
        assert store.statistics().reads == 2
    assert Answer.result({"a": 1}) in found
    assert {record.revision for record in found if isinstance(record, TaskRecord)} == {4}


async def test_a_ttl_that_changes_is_heeded_by_who_waits_for_an_answer(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        created = await store.create_task(NewTask(ttl_ms=60_000))
        await store.ask(created.task_id, QUESTION)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    with pytest.raises(TaskNotFoundError):
                        await store.message_queue.wait_for_answer(created.task_id, "k")

                group.start_soon(wait)
                await until(lambda: clock.waiting == 1)
                await store.update_task(created.task_id, ttl_ms=1_000)
                await until(lambda: store.statistics().reads == 2 and clock.waiting == 1)
                clock.advance(1)


async def test_ending_or_deleting_a_task_releases_who_waits_in_another_process(path: Path) -> None:
    body = """
say("ready")
for line in sys.stdin:
    task_id, what = line.split()
    await (store.delete_task(task_id) if what == "delete" else store.finish_task(task_id, Outcome.cancelled()))
"""
    async with SQLiteTaskStore(path) as store:
        with child(path, body) as process:
            assert await hear(process) == "ready"
            for what in ("finish", "delete"):
                created = await store.create_task(NewTask(ttl_ms=None))
                await store.ask(created.task_id, QUESTION)
                await store.message_queue.dequeue(created.task_id)

                async def wait(operation: Callable[[], Awaitable[object]]) -> None:
                    with pytest.raises(TaskNotFoundError):
                        await operation()

                reads = store.statistics().reads
                with anyio.fail_after(PATIENCE):
                    async with anyio.create_task_group() as group:
                        queue = store.message_queue
                        group.start_soon(wait, partial(queue.wait_for_answer, created.task_id, "k"))
                        group.start_soon(wait, partial(queue.wait_for_message, created.task_id))
                        await until(partial(has_read, store, reads + 2))
                        tell(process, f"{created.task_id} {what}")


def has_read(store: SQLiteTaskStore, times: int) -> bool:
    return store.statistics().reads >= times


@pytest.mark.skipif(not IS_LONG, reason="a busy machine decides how long something takes")
async def test_a_foreign_task_takes_no_longer_to_find_than_an_unknown_one(path: Path) -> None:
    async with SQLiteTaskStore(path) as store:
        request = TaskRequest("tools/call", "report", '{"topic":"rain"}')
        created = await store.create_task(NewTask(ttl_ms=None, owner="ada", request=request, worker="w"))
        for read in (store.get_task, store.get_view):
            for attempt in range(10):  # a busy machine delays some of them; a difference shows in every attempt
                times: dict[str, list[float]] = {created.task_id: [], "unknown" * 3: []}
                for _ in range(200):
                    for task_id, taken in times.items():
                        begun = time.perf_counter()
                        await read(task_id)
                        taken.append(time.perf_counter() - begun)
                foreign, unknown = (sorted(taken)[len(taken) // 4] for taken in times.values())
                if abs(foreign - unknown) < 0.15 * unknown:
                    break
                assert attempt < 9, (foreign, unknown)


# --- cost ---------------------------------------------------------------------------------------------


async def test_no_statement_reads_a_whole_table(path: Path) -> None:
    await SQLiteTaskStore(path).get_task("a")
    modules = (_creation, _leases, _mailbox, _pages, _search, _tasks, _work, sqlite_store)
    statements = [statement for module in modules for statement in module.STATEMENTS]
    assert len(statements) >= 45
    for statement in statements:
        names = {"task_id": "a", "seen": 1}
        count = 2 if "?1" in statement else statement.count("?")
        values: Any = names if ":task_id" in statement else (1,) * count
        with closing(sqlite3.connect(path)) as connection:
            plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
        # The clears are few, and those a waiter has seen are passed over; `max` takes the last. What is counted is
        # bounded by the subquery.
        harmless = ("CONSTANT ROW", "json_each", "SCAN (subquery")
        scans = [step for step in plan if step.startswith("SCAN")]
        assert not [step for step in scans if not any(each in step for each in harmless)], (statement, plan)
        assert not [step for step in plan if "TEMP B-TREE" in step], (statement, plan)


async def test_a_sweep_takes_no_more_steps_where_many_tasks_wait(path: Path) -> None:
    async with SQLiteTaskStore(path, clock=FakeClock()) as store:
        request = TaskRequest(name="tool")
        lost = await store.create_task(NewTask(ttl_ms=None, request=request, worker="lost", lease_ms=0))
        await store.create_task(NewTask(ttl_ms=None, request=request, worker="", lease_ms=0))
        few = steps_of_sweep(path)
        columns = [row[1] for row in query(path, "PRAGMA table_info(tasks)") if row[1] not in ("sequence", "task_id")]
        run_script(
            path,
            "WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers LIMIT 100000)"
            f" INSERT INTO tasks (task_id, {', '.join(columns)}) SELECT 'copy ' || number, {', '.join(columns)}"
            " FROM tasks JOIN numbers WHERE lease_worker = ''",
        )
        for names in ([], ["another"]):
            assert await store.list_lost(names, limit=100) == (lost,)
        first, _ = await store.list_lost(["tool"], limit=2)
        assert first == lost
    assert steps_of_sweep(path) <= 1.2 * few + 100


def steps_of_sweep(path: Path) -> int:
    """Return how many steps of SQLite's machine the statements of a sweep take, with a tool that has no task."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(count, 1)
        for statement in (*_leases.STATEMENTS, *_work.STATEMENTS):
            if statement.startswith("SELECT") and "lease_expires_at <= ?" in statement:
                values: list[object] = [2**62] * (statement.count("?") - 1)
                if "name = ?" in statement:
                    values[0] = "another"
                connection.execute(statement, [*values, 100]).fetchall()
    return steps


async def test_expired_tasks_and_their_mailboxes_are_removed_by_the_way(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        for number in range(300):
            await store.create_task(NewTask(ttl_ms=1_000, task_id=f"{number}"))
            await store.message_queue.enqueue(f"{number}", QUESTION)
        clock.advance(1)
        for _ in range(2 * 32):
            await store.delete_task("unknown")
        await until(lambda: query(path, "SELECT count(*) FROM tasks") == [(0,)])
        assert query(path, "SELECT count(*) FROM messages") == [(0,)]


async def test_expired_tasks_are_removed_when_nothing_happens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_task_runtime.stores.sqlite._writer._IDLE_SECONDS", 0.01)
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        await store.create_task(NewTask(ttl_ms=1_000))
        await store.create_task(NewTask(ttl_ms=None))
        clock.advance(1)
        await until(lambda: query(path, "SELECT count(*) FROM tasks") == [(1,)])


async def test_the_mailbox_of_an_expired_task_is_gone_before_it_is_removed(path: Path) -> None:
    clock = FakeClock()
    async with SQLiteTaskStore(path, clock=clock) as store:
        queue = store.message_queue
        await store.create_task(NewTask(ttl_ms=1_000, task_id="a"))
        await queue.enqueue("a", QUESTION)
        async with anyio.create_task_group() as group:

            async def wait(operation: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(TaskNotFoundError):
                    await operation()

            await queue.enqueue("a", replace(QUESTION, key="k2"))
            await queue.dequeue("a")
            await queue.dequeue("a")
            group.start_soon(wait, partial(queue.wait_for_answer, "a", "k"))
            group.start_soon(wait, partial(queue.wait_for_message, "a"))
            await until(lambda: clock.waiting == 2)
            clock.advance(1)
        assert await queue.outstanding("a") == ()
        assert not await queue.answer("a", "k", Answer.withdrawn())
        assert await queue.enqueue("a", QUESTION)  # a mailbox of its own, as for any id
        assert await queue.outstanding("a") == (QUESTION,)


async def test_only_so_many_cleared_mailboxes_are_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tasks, "KEPT_CLEARS", 5)
    async with SQLiteTaskMessageQueue(path) as queue:
        for number in range(12):
            await queue.clear(f"{number}")
        assert query(path, "SELECT task_id FROM clears") == [(f"{number}",) for number in range(7, 12)]


async def test_an_owner_never_sees_a_status_and_questions_of_two_times(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SQLiteTaskStore(path) as store:
        record = await store.create_task(NewTask(ttl_ms=None, owner="ada"))
        asked = await store.ask(record.task_id, QueuedMessage.request("k", "elicitation/create", {}))
        assert asked is not None
        decode = _records.record_of

        def answered_meanwhile(row: Any) -> TaskRecord:
            """Do what another process may do between two statements of a read."""
            found = decode(row)
            with closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE messages SET answer_type = 'result', answer_payload = '{}'")
                connection.execute("UPDATE tasks SET status = 'working', revision = 3")
                connection.execute("COMMIT")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(sqlite_store, "record_of", answered_meanwhile)
            view = await store.get_owned(record.task_id, owner="ada")
        assert view is not None
        assert (view.record.status == "input_required") is bool(view.questions)
        after = await store.get_owned(record.task_id, owner="ada")
        assert after is not None
        assert (after.record.status, after.questions) == ("working", ())
