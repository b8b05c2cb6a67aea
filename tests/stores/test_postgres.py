"""The PostgreSQL store and queue on a real server: the shipped kit, and what is PostgreSQL's own."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from random import Random
from typing import Any, get_args

import anyio
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, NullConnectionPool

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions, ask_question, get_view
from mcp_task_runtime.core.store import TaskLeases, TaskStore
from mcp_task_runtime.core.transitions import EVENTS_KEPT, TERMINAL_STATUSES, TRANSITIONS, finish_record, update_record
from mcp_task_runtime.core.types import (
    COUNTED_AT_MOST,
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
    InvalidTransitionError,
    SchemaVersionError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntimeError,
)
from mcp_task_runtime.stores.postgres import (
    PostgresTaskMessageQueue,
    PostgresTaskStore,
    _search_statements,
    _statements,
)
from mcp_task_runtime.stores.postgres._attempt import Queries
from mcp_task_runtime.stores.postgres._schema import MIGRATIONS
from mcp_task_runtime.testing.checks.bench import Capability, Check
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.machine.machine import check_task_store_machine
from tests.stores.postgres_server import PostgresServer
from tests.stores.profile import PROFILE
from tests.support.patience import PATIENCE

CAPABILITIES: tuple[Capability, ...] = get_args(Capability)
CHECKS = [*STORE_CHECKS, *ABILITY_CHECKS]


@pytest.fixture
def server(postgres: PostgresServer) -> PostgresServer:
    return postgres


class Opener:
    """Opens at the kit's locations: each is a database schema, a new one or one that is empty again."""

    def __init__(self, server: PostgresServer, spare: list[str]) -> None:
        self.server = server
        self.spare = spare
        self.schemas: dict[str, str] = {}

    def schema_at(self, location: str) -> str:
        """Return the schema of a location."""
        if location not in self.schemas:
            self.schemas[location] = self.spare.pop() if self.spare else location
        return self.schemas[location]

    @asynccontextmanager
    async def store(self, clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        schema = self.schema_at(location)
        async with PostgresTaskStore(self.server.url, clock=clock, schema=schema, max_connections=4) as store:
            yield store

    @asynccontextmanager
    async def queue(self, clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
        schema = self.schema_at(location)
        async with PostgresTaskMessageQueue(self.server.url, clock=clock, schema=schema, max_connections=4) as queue:
            yield queue

    @asynccontextmanager
    async def backend(self, clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        schema = self.schema_at(location)
        async with PostgresTaskStore(self.server.url, clock=clock, schema=schema, max_connections=4) as store:
            yield TaskBackend(store, store.message_queue)

    async def count_rows(self, kept: object) -> int:
        """Count all rows at the only location."""
        (schema,) = self.schemas.values()
        return self.server.count_rows(schema)


@pytest.fixture(scope="module")
def spare_schemas(postgres: PostgresServer) -> Iterator[list[str]]:
    """Empty schemas that an earlier test has made."""
    spare: list[str] = []
    yield spare
    for schema in spare:
        postgres.drop_schema(schema)


@pytest.fixture
def opener(server: PostgresServer, spare_schemas: list[str]) -> Iterator[Opener]:
    opener = Opener(server, spare_schemas)
    yield opener
    for schema in opener.schemas.values():
        server.empty_schema(schema)
        spare_schemas.append(schema)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_the_store_keeps_the_laws(check: Check[TaskStore], opener: Opener) -> None:
    await check.run(opener.store, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=str)
async def test_the_queue_keeps_the_laws(check: Check[TaskMessageQueue], opener: Opener) -> None:
    await check.run(opener.queue, footprint=opener.count_rows)


@pytest.mark.parametrize("check", QUESTION_CHECKS, ids=str)
async def test_store_and_queue_keep_the_laws_together(check: Check[TaskBackend], opener: Opener) -> None:
    await check.run(opener.backend, footprint=opener.count_rows)


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_random_stories_go_as_the_model_says(event_loop: str, opener: Opener) -> None:
    check_task_store_machine(
        opener.backend,
        capabilities=CAPABILITIES,
        backends=[event_loop],
        settings=PROFILE,
        races=False,
    )


# --- the tests below are PostgreSQL's own ---------------------------------------------------------------

DONE = Outcome.completed({"content": [{"type": "text", "text": "done"}]})

Open = Callable[..., PostgresTaskStore]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(server: PostgresServer, schema: str, clock: FakeClock) -> Open:
    """Make stores on one fresh schema, as several processes would."""
    return partial(PostgresTaskStore, server.url, clock=clock, schema=schema, max_connections=3)


@asynccontextmanager
async def in_background(operation: Callable[[], Awaitable[Any]]) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """Run an operation concurrently with a block; what it yields waits for the end and returns what came of it."""
    endings: list[Any] = []
    ended = anyio.Event()

    async def run() -> None:
        try:
            endings.append(await operation())
        except TaskRuntimeError as error:
            endings.append(error)
        ended.set()

    async def ending() -> Any:
        with anyio.fail_after(PATIENCE):
            await ended.wait()
        return endings[0]

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        yield ending
        group.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it becomes true in the store, which has no event for tests
            await anyio.sleep(0.01)


async def in_time(operation: Callable[[], Awaitable[Any]]) -> Any:
    """Return what an operation of a store with a short timeout returns once the machine lets it be in time."""
    with anyio.fail_after(PATIENCE):
        while True:
            with suppress(StoreUnavailableError):
                return await operation()


async def waiting(store: PostgresTaskStore, slots: int = 3) -> None:
    """Return when a caller waits in this store, listens, and has looked: then all slots are free."""
    await until(lambda: store.statistics().waiters > 0 and store.statistics().is_listening)
    reads = -1
    while reads != store.statistics().reads:
        reads = store.statistics().reads
        await anyio.wait_all_tasks_blocked()
        await until(lambda: store.statistics().free_slots == slots)


# --- opening, migrating, refusing ---


async def test_a_schema_is_made_once_however_many_open_it_at_once(
    make: Open, server: PostgresServer, schema: str
) -> None:
    async def use() -> None:
        async with make() as store:
            await store.create_task(NewTask(ttl_ms=None, owner="ada"))

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(use)
    async with make() as store:
        assert len((await store.list_tasks(owner="ada")).records) == 6
    versions = server.execute(sql.SQL("SELECT version FROM {}.schema_migrations").format(sql.Identifier(schema)))
    assert versions == [(1,), (2,), (3,)]


async def test_a_schema_of_a_later_version_is_refused_and_left_alone(
    make: Open, server: PostgresServer, schema: str
) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=None))
    table = sql.Identifier(schema, "schema_migrations")
    server.execute(sql.SQL("INSERT INTO {} VALUES (7, now())").format(table))
    for use in (make().__aenter__, partial(make().get_task, created.task_id)):
        with pytest.raises(SchemaVersionError) as refused:
            await use()
        assert (refused.value.found, refused.value.supported) == (7, 3)
    server.execute(sql.SQL("DELETE FROM {} WHERE version = 7").format(table))
    async with make() as store:
        assert await store.get_task(created.task_id) == created


@pytest.mark.parametrize(
    "damage",
    [
        "CREATE TABLE {schema}.tasks (mine text)",
        "CREATE TABLE {schema}.schema_migrations (mine text)",
        "CREATE TABLE {schema}.schema_migrations (version integer)",
        "CREATE TABLE {schema}.schema_migrations (version text); INSERT INTO {schema}.schema_migrations VALUES ('x')",
    ],
)
async def test_a_schema_of_another_application_is_refused_and_left_alone(
    make: Open, server: PostgresServer, schema: str, damage: str
) -> None:
    server.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    server.execute(sql.SQL(damage).format(schema=sql.Identifier(schema)))
    tables = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
    before = server.execute(tables, [schema])
    with pytest.raises(StoreError, match=schema) as refused:
        await make().__aenter__()
    assert type(refused.value) is StoreError
    assert server.execute(tables, [schema]) == before


async def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError) as refused:
        await PostgresTaskStore("postgresql://127.0.0.1:1/none").__aenter__()
    assert isinstance(refused.value.__cause__, psycopg.OperationalError)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"database": "nonsense://secret"}, "database"),
        ({"schema": ""}, "schema"),
        ({"schema": "x" * 64}, "schema"),
        ({"schema": "100%s"}, "schema"),
        ({"max_connections": 0}, "max_connections"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_a_nonsensical_argument_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} ") as refused:
        PostgresTaskStore(**{"database": "postgresql://localhost/x", **arguments})
    assert "secret" not in str(refused.value)


async def test_a_store_opens_when_it_is_first_used(make: Open) -> None:
    store = make()
    try:
        created = await store.create_task(NewTask(ttl_ms=None))
        assert await store.message_queue.is_empty(created.task_id)
    finally:
        await store.aclose()
    assert isinstance(store, TaskStore)
    assert isinstance(store, TaskLeases)
    assert isinstance(store.message_queue, TaskMessageQueue)


# --- the stored form ---

COLUMNS = {
    "tasks": """task_id text, position bigint, owner text, status text, status_message text,
        created_at timestamp with time zone, last_updated_at timestamp with time zone, ttl_ms bigint,
        expires_at timestamp with time zone, poll_interval_ms bigint, retention_ms bigint, revision bigint,
        request_method text, request_name text, request_arguments json, progress_token json, rerunnable boolean,
        client_capabilities json, outcome json, outcome_message text, lease_worker text,
        lease_expires_at timestamp with time zone, lease_attempt integer, watchers ARRAY,
        request_max_attempts bigint, request_caller json, sealed_credentials text, progress json, events ARRAY,
        operation bigint, join_key text, tool text, is_error boolean,
        lease_handovers integer""",
    "messages": """position bigint, mailbox text, task_id text, key text, method text, params json, queued boolean,
        answer_type text, answer json""",
    "steps": "position bigint, task_id text, key text, value json",
    "secrets": "name text, value bytea",
    "schema_migrations": "version integer, applied_at timestamp with time zone",
}

VERSION_1 = """
CREATE TABLE schema_migrations (version integer PRIMARY KEY, applied_at timestamptz NOT NULL);
CREATE TABLE tasks (
    task_id text COLLATE "C" PRIMARY KEY,
    position bigint GENERATED ALWAYS AS IDENTITY,
    owner text COLLATE "C",
    status text NOT NULL,
    status_message text,
    created_at timestamptz NOT NULL,
    last_updated_at timestamptz NOT NULL,
    ttl_ms bigint,
    expires_at timestamptz,
    poll_interval_ms bigint NOT NULL,
    retention_ms bigint NOT NULL,
    revision bigint NOT NULL,
    request_method text NOT NULL,
    request_name text NOT NULL,
    request_arguments json NOT NULL,
    progress_token json,
    rerunnable boolean NOT NULL,
    client_capabilities json NOT NULL,
    outcome json,
    outcome_message text,
    lease_worker text,
    lease_expires_at timestamptz,
    lease_attempt integer,
    watchers bigint[] NOT NULL
) WITH (fillfactor = 85);
CREATE INDEX tasks_by_owner ON tasks (owner, position);
CREATE INDEX tasks_by_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX tasks_by_lease ON tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
CREATE TABLE messages (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailbox text COLLATE "C" NOT NULL,
    task_id text COLLATE "C" REFERENCES tasks ON DELETE CASCADE,
    key text COLLATE "C",
    method text NOT NULL,
    params json NOT NULL,
    queued boolean NOT NULL DEFAULT true,
    answer_type text,
    answer json,
    UNIQUE (mailbox, key)
);
CREATE INDEX messages_unanswered ON messages (mailbox, position) WHERE answer_type IS NULL;
CREATE INDEX messages_by_task ON messages (task_id) WHERE task_id IS NOT NULL;
INSERT INTO schema_migrations VALUES (1, now());
"""

ROWS_OF_VERSION_1 = """
INSERT INTO tasks (task_id, owner, status, status_message, created_at, last_updated_at, ttl_ms, expires_at,
    poll_interval_ms, retention_ms, revision, request_method, request_name, request_arguments, progress_token,
    rerunnable, client_capabilities, outcome, outcome_message, lease_worker, lease_expires_at, lease_attempt, watchers)
VALUES
    ('live', 'ada', 'input_required', 'a' || chr(26) || '0000b', '2026-01-01 00:00:00.000001+00',
    '2026-01-01 01:00:00+01', 60000, '2026-01-01 00:01:00.000001+00', 250, 1000, 3, 'tools/call', 'report',
    '{"n": 1,  "s": "\\u0000"}', '"token"', true, '{"sampling":{}}', NULL, NULL, 'w', '2026-01-01 00:00:30+00', 2,
    '{5}'),
    ('ended', NULL, 'failed', 'no', '2026-01-01 00:00:00+00', '2026-01-01 00:00:01+00', NULL, NULL, 500, 0, 2,
    'tools/call', '', '{}', NULL, false, '{}', '{"code":-1,"message":"no"}', 'no', NULL, NULL, NULL, '{}');
INSERT INTO messages (mailbox, task_id, key, method, params, queued, answer_type, answer) VALUES
    ('live', 'live', 'k1', 'elicitation/create', '{"message":"?"}', false, NULL, NULL),
    ('live', 'live', 'k2', 'roots/list', '{}', false, 'result', '{"roots":[]}'),
    ('live', 'live', NULL, 'notifications/message', '{}', true, NULL, NULL);
"""


ROWS_OF_VERSION_2 = """
UPDATE tasks SET request_max_attempts = 5, request_caller = '{"traceparent":"00"}', sealed_credentials = 'sealed',
    progress = '[1.5,3,"half\\u001a0000"]', operation = 7, watchers = '{5,6}',
    events = ARRAY['1767225600000001 status', '1767225600000002 asked k1', '1767225600000003 claimed w#2']
WHERE task_id = 'live';
INSERT INTO steps (task_id, key, value) VALUES ('live', 'b', '[1]'), ('live', 'a', 'null');
"""

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
LIVE = TaskRecord(
    Task("live", "input_required", "a\0b", START + timedelta(microseconds=1), START, 60_000, 250),
    3,
    "ada",
    1_000,
    TaskRequest("tools/call", "report", '{"n": 1,  "s": "\\u0000"}', "token", True),
    '{"sampling":{}}',
    None,
    Lease("w", START + timedelta(seconds=30), 2),
)
ENDED = TaskRecord(
    Task("ended", "failed", "no", START, START + timedelta(seconds=1), None, 500),
    2,
    outcome=Outcome("failed", '{"code":-1,"message":"no"}', "no"),
)


def columns_of(server: PostgresServer, schema: str) -> dict[str, list[str]]:
    found = server.execute(
        "SELECT table_name, column_name || ' ' || data_type FROM information_schema.columns"
        " WHERE table_schema = %s ORDER BY table_name, ordinal_position",
        [schema],
    )
    return {table: [column for name, column in found if name == table] for table, _ in found}


EXPECTED_COLUMNS = {table: [column.strip() for column in columns.split(",")] for table, columns in COLUMNS.items()}


async def require_rows(store: PostgresTaskStore, live: TaskRecord) -> None:
    assert await store.get_task("live") == live
    assert await store.get_task("ended") == ENDED
    question = QueuedMessage("request", "elicitation/create", '{"message":"?"}', "k1")
    assert await store.get_view("live") == TaskView(live, (question,))
    queue = store.message_queue
    assert await queue.outstanding("live") == (question,)
    assert await queue.peek("live") == QueuedMessage("notification", "notifications/message")
    assert await queue.wait_for_answer("live", "k2") == Answer("result", '{"roots":[]}')


async def test_the_stored_form_of_version_3_is_kept(make: Open, server: PostgresServer, schema: str) -> None:
    live = replace(
        LIVE,
        request=replace(LIVE.request, max_attempts=5, caller_json='{"traceparent":"00"}', sealed_credentials="sealed"),
        progress=Progress(1.5, 3, "half\0"),
    )
    async with make() as store:
        assert columns_of(server, schema) == EXPECTED_COLUMNS
        server.execute(f"SET search_path = {schema}; {ROWS_OF_VERSION_1} {ROWS_OF_VERSION_2}")
        await require_rows(store, live)
        assert list((await store.read_steps("live")).items()) == [("b", "[1]"), ("a", "null")]
        times = [START + timedelta(microseconds=number) for number in (1, 1, 2, 3)]
        assert await store.get_history("live") == (
            TaskEvent(times[0], "created"),
            TaskEvent(times[1], "status"),
            TaskEvent(times[2], "asked", "k1"),
            TaskEvent(times[3], "claimed", "w#2"),
        )


async def test_the_stored_form_of_version_1_is_brought_to_version_3_once_however_many_start(
    make: Open, server: PostgresServer, schema: str
) -> None:
    server.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {VERSION_1} {ROWS_OF_VERSION_1}")
    async with AsyncExitStack() as stack:
        stores = [make() for _ in range(6)]
        async with anyio.create_task_group() as group:
            for store in stores:
                group.start_soon(stack.enter_async_context, store)
        assert columns_of(server, schema) == EXPECTED_COLUMNS
        for store in stores:
            await require_rows(store, LIVE)
            assert await store.get_history("live") == (TaskEvent(START + timedelta(microseconds=1), "created"),)
        assert await stores[0].answer_all("live", {"k1": Answer.result({})}) == {"k1"}
        changed = await stores[1].update_task("live", progress=Progress(1), fence=Fence("w", 2))
        assert (changed.status, changed.revision) == ("working", 5)
    versions = server.execute(f"SELECT version FROM {schema}.schema_migrations ORDER BY version")
    assert versions == [(1,), (2,), (3,)]


def migration(version: int, schema: str) -> str:
    """Return the statements that lead to a version."""
    names = set(re.findall(r"(?<!{){([a-z_]+)}", MIGRATIONS[version - 1]))
    return MIGRATIONS[version - 1].format(**{name: f"{schema}.{name}" for name in names})


async def test_the_stored_form_of_version_2_is_brought_to_version_3(
    make: Open, server: PostgresServer, schema: str
) -> None:
    server.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {VERSION_1} {migration(2, schema)}")
    server.execute(
        f"SET search_path = {schema}; INSERT INTO schema_migrations VALUES (2, now()); {ROWS_OF_VERSION_1}"
        """ UPDATE tasks SET status = 'completed', outcome = '{"isError":true}' WHERE task_id = 'ended';"""
    )
    async with make() as store:
        assert columns_of(server, schema) == EXPECTED_COLUMNS
        assert await store.get_task("live") == LIVE
        counts = await store.count_tasks()
        assert counts.by_status_and_name == {("completed", ""): 1, ("input_required", "report"): 1}
        assert counts.errors_by_name == {}  # of what ended before
        found = await store.search_tasks(TaskFilter(names=frozenset({"report"})))
        assert found.records == (LIVE,)
        await store.finish_task("live", Outcome.completed({"isError": True}))
        assert [one.task_id for one in (await store.search_tasks(TaskFilter(errors_only=True))).records] == ["live"]
    versions = server.execute(f"SELECT version FROM {schema}.schema_migrations ORDER BY version")
    assert versions == [(1,), (2,), (3,)]


async def test_what_version_0_2_0_stored_is_swept_while_a_process_of_that_version_goes_on_with_it(
    make: Open, server: PostgresServer, schema: str, clock: FakeClock
) -> None:
    second, third = migration(2, schema), migration(3, schema)
    server.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {VERSION_1} {second} {third}")
    server.execute(
        f"SET search_path = {schema}; INSERT INTO schema_migrations VALUES (2, now()), (3, now()); {ROWS_OF_VERSION_1}"
    )
    async with make() as store:
        waits = await store.create_task(NewTask(ttl_ms=None, worker="", lease_ms=0))
        held = await store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=31_000))
        clock.advance(31)
        assert await store.list_lost([], limit=10) == (LIVE, held)
        assert await store.list_lapsed() == (waits, LIVE, held)
        sweep = f"SELECT task_id FROM {schema}.tasks WHERE lease_expires_at <= %s ORDER BY lease_expires_at"
        found = [task_id for (task_id,) in server.execute(sweep, [clock.now()])]
        assert found == [waits.task_id, "live", held.task_id]
        claim = f"UPDATE {schema}.tasks SET lease_worker = 'old' WHERE task_id = %s"
        server.execute(claim, [waits.task_id])
        lost = [record.task_id for record in await store.list_lost([], limit=10)]
        assert lost == [waits.task_id, "live", held.task_id]
    versions = server.execute(f"SELECT version FROM {schema}.schema_migrations ORDER BY version")
    assert versions == [(1,), (2,), (3,)]


@pytest.mark.parametrize("how", ["another role", "read-only", "during a backup"])
async def test_who_may_change_no_index_of_version_0_2_0_goes_on_with_it(
    make: Open, server: PostgresServer, schema: str, clock: FakeClock, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    async with make() as store:
        lost = await store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=0))
    role = f"role_{schema}"
    server.execute(
        f"DROP INDEX {schema}.tasks_held; CREATE INDEX tasks_by_lease ON {schema}.tasks (lease_expires_at);"
        f" CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
    )
    try:
        url = make_conninfo(server.url, user=role) if how == "another role" else server.url
        if how == "read-only":
            url = make_conninfo(server.url, options="-c default_transaction_read_only=on")
        with psycopg.connect(server.url) as backup:
            if how == "during a backup":
                backup.execute(f"LOCK TABLE {schema}.tasks IN ACCESS SHARE MODE".encode())
            async with PostgresTaskStore(url, clock=clock, schema=schema, timeout=PATIENCE) as store:
                assert await store.list_lost([], limit=10) == (lost,)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        async with make() as store:
            assert await store.list_lost([], limit=10) == (lost,)
        indexes = server.execute("SELECT indexname FROM pg_indexes WHERE schemaname = %s", [schema])
        assert ("tasks_held",) in indexes
        assert len(caplog.records) == 1
    finally:
        server.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- statements and status table ---


async def test_the_statements_do_what_the_status_table_says(make: Open, clock: FakeClock) -> None:
    random = Random(1)
    ends = {"completed": DONE, "failed": Outcome.failed("no"), "cancelled": Outcome.cancelled(status_message="stop")}
    async with make() as store:
        for current in TRANSITIONS:
            for requested in (None, *TRANSITIONS):
                record = await store.create_task(
                    NewTask(ttl_ms=random.choice([None, 50, 5_000]), retention_ms=random.choice([0, 49, 70_000]))
                )
                clock.advance(random.randrange(40_000) / 1_000_000)
                if current in ends:
                    record = await store.finish_task(record.task_id, ends[current])
                elif current != record.status:
                    record = await store.update_task(record.task_id, status=current)  # type: ignore[arg-type]
                clock.advance(random.randrange(9_000) / 1_000_000)
                if random.random() < 0.3:
                    clock.set_back(0.005)
                now = clock.now()
                change: dict[str, Any] = {"status": requested, "status_message": "m"}
                steps = [(partial(store.update_task, **change), partial(update_record, **change))]
                if requested in ends:
                    end: dict[str, Any] = {"outcome": ends[requested]}
                    steps.append((partial(store.finish_task, **end), partial(finish_record, **end)))
                for step, law in steps:
                    got = await ending_of(partial(step, record.task_id))
                    expected = await ending_of(partial(law, record, now=now))
                    assert got == expected, (current, requested)
                    assert await store.get_task(record.task_id) == (expected[1] if expected[0] else record)
    assert set(ends) == TERMINAL_STATUSES


async def ending_of(step: Callable[[], Any]) -> tuple[bool, Any]:
    try:
        result = step()
        return True, result if isinstance(result, TaskRecord) else await result
    except TaskRuntimeError as error:
        return False, repr(error)


# --- outages ---


async def test_a_stopped_server_is_an_error_and_a_started_one_is_used_again(
    make: Open, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    if not server.can_restart:
        pytest.skip("the server is not ours to stop")
    caplog.set_level(logging.CRITICAL, "psycopg.pool")
    async with make(timeout=PATIENCE) as other, aclosing(make(timeout=1.0)) as store:
        created = await other.create_task(NewTask(ttl_ms=None))
        async with in_background(partial(other.wait_for_update, created.task_id, after=1)) as ending:
            await waiting(other)
            await anyio.to_thread.run_sync(server.stop)
            try:
                for operation in (store.get_task(created.task_id), store.update_task(created.task_id)):
                    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError) as refused:
                        await operation
                    assert isinstance(refused.value.__cause__, psycopg.Error)
                with anyio.move_on_after(0.2) as scope:
                    await other.get_task(created.task_id)
                assert scope.cancelled_caught, "a cancelled operation waits for a server that is down"
                with pytest.raises(StoreUnavailableError):
                    await make(timeout=1.0).__aenter__()
            finally:
                await anyio.to_thread.run_sync(server.start)
            with anyio.fail_after(PATIENCE):
                assert await other.get_task(created.task_id) == created
                changed = await other.update_task(created.task_id, status_message="back")
            assert await ending() == changed


async def test_connections_that_are_cut_are_replaced_and_nothing_is_missed(make: Open, server: PostgresServer) -> None:
    async with make() as store, make() as other:
        created = await store.create_task(NewTask(ttl_ms=None))
        for number in range(1, 4):
            wait = partial(store.wait_for_update, created.task_id, after=number)
            async with in_background(wait) as ending:
                await waiting(store)
                assert await anyio.to_thread.run_sync(server.cut_connections) >= 2
                changed = await other.update_task(created.task_id, status_message=f"{number}")
                assert await ending() == changed
        await store.message_queue.enqueue(created.task_id, QueuedMessage.request("k", "roots/list", {}))
        async with in_background(partial(store.message_queue.wait_for_answer, created.task_id, "k")) as ending:
            await waiting(store)
            await anyio.to_thread.run_sync(server.cut_connections)
            assert await other.message_queue.answer(created.task_id, "k", Answer.result({"roots": []}))
            assert await ending() == Answer.result({"roots": []})


async def test_the_driver_s_errors_stay_inside(make: Open, server: PostgresServer, schema: str) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None))
        server.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, "messages")))
        with pytest.raises(StoreError) as refused:
            await store.message_queue.peek("x")
        assert type(refused.value) is StoreError
        assert isinstance(refused.value.__cause__, psycopg.Error)
        assert "messages" not in str(refused.value)


async def test_what_a_database_cannot_hold_is_refused_for_good_and_changes_nothing(
    server: PostgresServer, schema: str
) -> None:
    with ConnectionPool(server.url, open=True, kwargs={"options": "-c client_encoding=LATIN1"}) as pool:
        async with PostgresTaskStore(pool, schema=schema) as store:
            created = await store.create_task(NewTask(ttl_ms=None))
            with pytest.raises(StoreError) as refused:
                await store.update_task(created.task_id, status_message="🌍")
            assert type(refused.value) is StoreError
            assert refused.value.__cause__ is not None
            assert await store.get_task(created.task_id) == created


async def test_a_server_that_takes_no_changes_for_now_is_unavailable(
    make: Open, server: PostgresServer, schema: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=None))
    url = make_conninfo(server.url, options="-c default_transaction_read_only=on")
    async with PostgresTaskStore(url, schema=schema, timeout=2.0) as store:
        await in_time(partial(store.get_task, created.task_id))
        finish = partial(store.finish_task, created.task_id, DONE)
        async with in_background(finish) as one, in_background(finish) as other:
            for ending in (one, other):
                error = await ending()
                assert isinstance(error, StoreUnavailableError)
                assert "read-only" in str(error)
        assert await in_time(partial(store.get_task, created.task_id)) == created
        assert store.statistics().is_unavailable
    assert sum(message.endswith(") cannot take changes") for message in caplog.messages) == 1


# --- pools, cancellation, closing ---


@pytest.mark.parametrize("kind", ["its own", "the caller's"])
async def test_calls_that_join_do_so_whatever_the_default_isolation_of_the_database(
    server: PostgresServer, schema: str, kind: str
) -> None:
    url = make_conninfo(server.url, options=r"-c default_transaction_isolation=repeatable\ read")
    with ExitStack() as stack:
        pool: ConnectionPool[Any] | None = None
        if kind == "the caller's":
            pool = stack.enter_context(ConnectionPool(url, min_size=2, max_size=2, open=True))
        other = stack.enter_context(psycopg.connect(server.url))
        other.execute("SELECT pg_advisory_xact_lock(hashtextextended('call', 0))")
        async with PostgresTaskStore(pool or url, schema=schema, timeout=PATIENCE) as store:
            join = partial(store.join_task, NewTask(ttl_ms=None), key="call", ended_ms=0)
            with anyio.fail_after(PATIENCE):
                async with in_background(join) as one_ending, in_background(join) as other_ending:
                    blocked = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND query LIKE %s"
                    while len(server.execute(blocked, [f"%{schema}%"])) < 2:  # noqa: ASYNC110 - another process
                        await anyio.sleep(0.02)
                    other.rollback()  # both have begun, and neither has made a task
                    (one, is_new), (two, is_also_new) = await one_ending(), await other_ending()
        assert one == two
        assert is_new is not is_also_new
        if pool is not None:
            with pool.connection() as connection:
                assert connection.isolation_level is None
                assert connection.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)


@pytest.mark.parametrize("more", [{}, {"autocommit": True, "prepare_threshold": 0}], ids=["plain", "always prepared"])
async def test_a_pool_that_was_handed_in_may_be_of_any_kind_and_stays_open(
    server: PostgresServer, schema: str, more: dict[str, Any]
) -> None:
    with ConnectionPool(
        server.url,
        min_size=1,
        max_size=2,
        open=True,
        kwargs={"row_factory": dict_row, "options": "-c timezone=Asia/Tokyo", **more},
    ) as pool:
        async with PostgresTaskStore(pool, schema=schema) as store:
            created = await store.create_task(NewTask(ttl_ms=60_000, owner="ada"))
            assert (await store.list_tasks(owner="ada")).records == (created,)
            async with in_background(partial(store.wait_for_update, created.task_id, after=1)) as ending:
                await waiting(store, slots=2)
                ended = await store.finish_task(created.task_id, DONE)
                assert await ending() == ended
            read = await store.get_task(created.task_id)
            assert read is not None
            assert read.task.created_at.utcoffset() == timedelta(0)
        with pool.connection() as connection:
            one: Any = connection.execute("SELECT 1 AS one").fetchone()
            assert one == {"one": 1}


async def test_a_pool_that_was_handed_in_keeps_its_connections_when_the_schema_is_refused(
    server: PostgresServer, schema: str
) -> None:
    server.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.schema_migrations (mine text)")
    with ConnectionPool(server.url, min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as connection:
            before = connection.info.backend_pid
        with pytest.raises(StoreError, match="cannot be read"):
            await PostgresTaskStore(pool, schema=schema).__aenter__()
        with pool.connection() as connection:
            assert connection.info.backend_pid == before


async def test_a_pool_that_keeps_no_connection_and_has_no_limit_is_used_as_well(
    server: PostgresServer, schema: str
) -> None:
    with NullConnectionPool(server.url, open=True) as pool, anyio.fail_after(PATIENCE):
        async with PostgresTaskStore(pool, schema=schema) as store:
            created = await store.create_task(NewTask(ttl_ms=None))
            assert await store.get_task(created.task_id) == created


async def test_an_exhausted_pool_is_an_error_in_time_and_a_wait_that_can_be_cancelled(
    server: PostgresServer, schema: str
) -> None:
    with ConnectionPool(server.url, min_size=1, max_size=1, open=True) as pool:
        async with aclosing(PostgresTaskStore(pool, schema=schema, timeout=1.0)) as store:
            assert await in_time(partial(store.get_task, "a")) is None
            with pool.connection():
                with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
                    await store.get_task("a")
                with anyio.fail_after(PATIENCE), anyio.move_on_after(0.1) as scope:
                    await store.update_task("a")
                assert scope.cancelled_caught
            assert await in_time(partial(store.get_task, "a")) is None


async def test_more_operations_at_once_than_connections_wait_their_turn(make: Open) -> None:
    async with make(timeout=60) as store:
        created = await store.create_task(NewTask(ttl_ms=None))
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(partial(store.update_task, created.task_id, status_message="on"))
        record = await store.get_task(created.task_id)
        assert record is not None
        assert record.revision == 51


async def test_cancelled_operations_keep_no_connection(make: Open) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=None))
        for number in range(40):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(partial(store.update_task, created.task_id, status_message="on"))
                    group.start_soon(partial(store.wait_for_update, created.task_id, after=10_000))
                await anyio.sleep(number / 20_000)
                group.cancel_scope.cancel()
        statistics = store.statistics()
        assert statistics.waiters == 0
        assert (statistics.free_slots, statistics.connections_in_use) == (3, 0)
        record = await store.get_task(created.task_id)
        assert record is not None
        with anyio.fail_after(PATIENCE):
            assert (await store.update_task(created.task_id)).revision == record.revision + 1


async def test_closing_wakes_everybody_and_ends_every_use(make: Open, server: PostgresServer) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=None))
        queue = store.message_queue
        await queue.enqueue(created.task_id, QueuedMessage.request("k", "roots/list", {}))
        await queue.dequeue(created.task_id)
        waits = (
            partial(store.wait_for_update, created.task_id, after=1),
            partial(queue.wait_for_message, created.task_id),
            partial(queue.wait_for_answer, created.task_id, "k"),
        )
        async with (
            in_background(waits[0]) as first,
            in_background(waits[1]) as second,
            in_background(waits[2]) as third,
        ):
            await until(lambda: store.statistics().waiters == 3)
            await store.aclose()
            for ending in (first, second, third):
                assert isinstance(await ending(), StoreClosedError)
    await store.aclose()
    for use in (store.get_task("x"), store.create_task(NewTask(ttl_ms=None)), queue.peek("x"), waits[0]()):
        with pytest.raises(StoreClosedError):
            await use
    with pytest.raises(StoreClosedError):
        await store.__aenter__()


def test_event_loops_may_use_a_store_one_after_the_other(make: Open) -> None:
    store = make()

    async def use() -> None:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(20):  # more than there are connections
                    group.start_soon(partial(store.create_task, NewTask(ttl_ms=None)))
            created = await store.create_task(NewTask(ttl_ms=None))
            async with in_background(partial(store.wait_for_update, created.task_id, after=1)) as ending:
                await waiting(store)
                assert await store.update_task(created.task_id) == await ending()

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(use, backend=backend)
    anyio.run(store.aclose, backend="trio")


# --- questions ---

YES = Answer.result({"action": "accept"})


def question(key: str) -> QueuedMessage:
    return QueuedMessage.request(key, "elicitation/create", {"message": "?"})


@asynccontextmanager
async def queueing_for(server: PostgresServer, schema: str) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Hold all tasks; what it yields starts operations, which then get the task one after the other, in this order."""
    blocked = "SELECT count(*)::int FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with anyio.create_task_group() as group:
        with psycopg.connect(server.url) as connection:
            connection.execute(sql.SQL("SELECT FROM {}.tasks FOR UPDATE").format(sql.Identifier(schema)))

            async def start(*operations: Callable[[], Coroutine[Any, Any, Any]]) -> None:
                for number, operation in enumerate(operations, 1):
                    group.start_soon(operation)
                    await until(lambda number=number: server.execute(blocked) == [(number,)])  # type: ignore[misc]

            yield start


@pytest.mark.parametrize("first", ["ask", "finish", "delete"])
async def test_an_end_and_a_question_that_wait_for_each_other_leave_no_question(
    make: Open, server: PostgresServer, schema: str, first: str
) -> None:
    async with make() as store, make() as other:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        endings: dict[str, Any] = {}

        async def run(name: str, operation: Callable[[], Awaitable[Any]]) -> None:
            try:
                endings[name] = await operation()
            except TaskRuntimeError as error:
                endings[name] = error

        end = partial(other.finish_task, "a", DONE) if first != "delete" else partial(other.delete_task, "a")
        both = [partial(run, "ask", partial(store.ask, "a", question("k"))), partial(run, "end", end)]
        async with queueing_for(server, schema) as start:
            await start(*(both if first == "ask" else reversed(both)))
        assert not isinstance(endings["end"], Exception)
        expected = {"ask": TaskRecord, "finish": InvalidTransitionError, "delete": TaskNotFoundError}[first]
        assert isinstance(endings["ask"], expected)
        assert await store.message_queue.outstanding("a") == ()
        count = sql.SQL("SELECT count(*)::int FROM {}.messages").format(sql.Identifier(schema))
        assert server.execute(count) == [(0,)]


@pytest.mark.parametrize("first", ["ask", "answer"])
async def test_a_question_that_is_asked_while_another_is_answered_keeps_the_status_true(
    make: Open, server: PostgresServer, schema: str, first: str
) -> None:
    async with make() as store, make() as other:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        await store.ask("a", question("k"))
        both = [partial(store.ask, "a", question("new")), partial(other.answer_all, "a", {"k": YES})]
        async with queueing_for(server, schema) as start:
            await start(*(both if first == "ask" else reversed(both)))
        view = await store.get_view("a")
        assert view is not None
        assert (view.record.status, view.record.revision) == ("input_required", 4)
        assert [asked.key for asked in view.questions] == ["new"]


@pytest.mark.parametrize("end", ["finish", "delete"])
async def test_an_end_in_another_process_releases_the_asker(make: Open, end: str) -> None:
    async with make() as store, make() as asking, make() as other:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        await asking.ask("a", question("k"))
        async with in_background(partial(asking.message_queue.wait_for_answer, "a", "k")) as ending:
            await waiting(asking)
            await (other.finish_task("a", DONE) if end == "finish" else other.delete_task("a"))
            assert isinstance(await ending(), TaskNotFoundError)


async def test_an_answer_in_another_process_wakes_the_asker_once(make: Open) -> None:
    async with make() as store, make() as other:
        await other.create_task(NewTask(ttl_ms=None, task_id="a"))
        await store.ask("a", question("k"))
        async with in_background(partial(store.message_queue.wait_for_answer, "a", "k")) as ending:
            await waiting(store)
            reads = store.statistics().reads
            assert await other.answer_all("a", {"k": YES}) == {"k"}
            assert await ending() == YES
            assert store.statistics().reads <= reads + 1  # none, where the answer came before the asker's first read


async def test_many_answers_are_one_transaction_and_one_revision(make: Open) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        for number in range(300):
            await store.ask("a", question(f"{number}"))
        writes = store.statistics().writes
        answers = {f"{number}": YES for number in range(5_000)}
        with anyio.fail_after(PATIENCE):
            assert await store.answer_all("a", answers) == {f"{number}" for number in range(300)}
        assert store.statistics().writes == writes + 1
        record = await store.get_task("a")
        assert record is not None
        assert (record.revision, record.status) == (302, "working")
        events = await store.get_history("a")
        assert len(events) == EVENTS_KEPT + 1
        assert {event.kind for event in events[1:]} == {"answered"}


async def test_the_life_of_a_task_with_a_question_takes_five_writes_and_few_reads(make: Open) -> None:
    async with make() as store:
        created = await store.create_task(NewTask(ttl_ms=60_000))
        task_id, queue = created.task_id, store.message_queue

        async def follow() -> None:
            revision = 0
            while (record := await store.wait_for_update(task_id, after=revision)).outcome is None:
                revision = record.revision

        async with in_background(follow) as following:
            await store.update_task(task_id, status_message="on it")
            async with in_background(partial(ask_question, store, queue, task_id, question("k"))) as asking:
                await waiting(store)
                for _ in range(3):
                    view = await get_view(store, queue, task_id)
                    assert view is not None
                    assert len(view.questions) == 1
                assert await answer_questions(store, queue, task_id, {"k": YES}) == {"k"}
                assert await asking() == YES
            await store.finish_task(task_id, DONE)
            await following()
        statistics = store.statistics()
        assert statistics.writes == 5
        assert statistics.reads <= 16, "a waiter looks when it begins, when the store listens, and once for each change"


# --- wake-ups ---


async def test_a_change_notifies_only_if_another_process_waits(make: Open, server: PostgresServer, schema: str) -> None:
    async with make() as store, make() as other:
        created = await store.create_task(NewTask(ttl_ms=None))
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(schema)))

            def heard() -> int:
                """Return how many there were up to now: the server delivers them in the order they were sent."""
                connection.execute("SELECT pg_notify(%s, 'up to now')", [schema])
                payloads = (notice.payload for notice in connection.notifies(timeout=PATIENCE))
                return len(list(itertools.takewhile(lambda payload: payload != "up to now", payloads)))

            async with in_background(partial(store.wait_for_update, created.task_id, after=1)) as ending:
                await waiting(store)
                assert await store.update_task(created.task_id) == await ending()
            assert heard() == 0
            async with in_background(partial(store.wait_for_update, created.task_id, after=2)) as ending:
                await waiting(store)
                assert await other.update_task(created.task_id) == await ending()
            assert heard() == 1
            async with in_background(partial(other.wait_for_update, created.task_id, after=3)) as ending:
                await waiting(other)
                assert await store.finish_task(created.task_id, DONE) == await ending()
            assert heard() == 1


async def test_a_waiter_hears_of_a_task_that_was_deleted_and_created_again_meanwhile(
    make: Open, server: PostgresServer, schema: str
) -> None:
    async with make() as store, make() as other:
        for task_id in ("a", "b"):
            await other.create_task(NewTask(ttl_ms=None, task_id=task_id))
        async with in_background(partial(store.wait_for_update, "a", after=2)) as ending:
            await waiting(store)
            async with anyio.create_task_group() as group:
                with psycopg.connect(server.url) as connection:
                    lock = sql.SQL("SELECT FROM {}.tasks WHERE task_id = 'b' FOR UPDATE")
                    connection.execute(lock.format(sql.Identifier(schema)))
                    for _ in range(3):  # all connections of the waiter's store: it cannot see that there was no task
                        group.start_soon(store.update_task, "b")
                    await until(lambda: store.statistics().free_slots == 0)
                    await other.delete_task("a")
                    await other.create_task(NewTask(ttl_ms=None, task_id="a"))
                    await anyio.sleep(0.2)
            await other.update_task("a")
            assert await other.update_task("a") == await ending()


async def test_a_notification_of_another_application_does_not_end_the_listening(
    make: Open, server: PostgresServer, schema: str
) -> None:
    async with make() as store, make() as other:
        await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        for number, nonsense in enumerate(("", ":", "u", "unumber:a", "x1:a", "cé:a"), 1):
            async with in_background(partial(store.wait_for_update, "a", after=number)) as ending:
                await waiting(store)
                server.execute("SELECT pg_notify(%s, %s)", [schema, nonsense])
                assert await other.update_task("a") == await ending()


async def test_a_mailbox_that_was_cleared_before_the_wait_does_not_end_it(make: Open) -> None:
    async with make() as store, make() as other:
        for number in range(20):
            mailbox = f"mailbox {number}"
            await other.message_queue.clear(mailbox)
            async with in_background(partial(store.message_queue.wait_for_message, mailbox)) as ending:
                await waiting(store)
                await other.message_queue.enqueue(mailbox, QueuedMessage.notification("notifications/message", {}))
                assert await ending() is None


async def test_who_waits_for_a_message_is_released_when_the_task_expires_or_is_deleted(
    make: Open, clock: FakeClock
) -> None:
    async with make() as store, make() as other:
        for end in (lambda task_id: clock.advance(60), other.delete_task):
            created = await store.create_task(NewTask(ttl_ms=60_000))
            async with in_background(partial(store.message_queue.wait_for_message, created.task_id)) as ending:
                await waiting(store)
                ended = end(created.task_id)
                if ended is not None:
                    await ended
                assert isinstance(await ending(), TaskNotFoundError)


# --- leases ---


async def test_leases_are_renewed_dropped_and_claimed_by_exactly_one(make: Open, clock: FakeClock) -> None:
    async with make() as store, make() as other:
        mine = await store.create_task(NewTask(ttl_ms=None, worker="one", lease_ms=1_000))
        theirs = await store.create_task(NewTask(ttl_ms=None, worker="two", lease_ms=9_000))
        free = await store.create_task(NewTask(ttl_ms=None))
        ended = await store.create_task(NewTask(ttl_ms=None, worker="one", lease_ms=1_000))
        assert (await store.finish_task(ended.task_id, DONE)).lease is None
        ids = [record.task_id for record in (mine, theirs, free, ended)] + ["unknown"]
        clock.advance(0.999)
        assert await other.list_lapsed() == ()
        assert await other.claim_task(mine.task_id, worker="two", lease_ms=1_000) is None
        clock.advance(0.001)
        assert await other.list_lapsed() == (mine,)
        assert await store.renew_leases("one", ids, lease_ms=2_000) == {mine.task_id}
        renewed = await store.get_task(mine.task_id)
        assert renewed == replace(mine, lease=Lease("one", clock.now() + timedelta(seconds=2)))
        assert await other.list_lapsed() == ()
        await other.drop_leases("two", ids, lapse=True)
        assert [record.task_id for record in await store.list_lapsed()] == [theirs.task_id]
        clock.advance(2)
        assert [record.task_id for record in await store.list_lapsed()] == [theirs.task_id, mine.task_id]
        assert [record.task_id for record in await store.list_lapsed(limit=1)] == [theirs.task_id]
        claims: list[TaskRecord] = []

        async def claim(claimer: PostgresTaskStore, worker: str) -> None:
            claimed = await claimer.claim_task(mine.task_id, worker=worker, lease_ms=5_000)
            if claimed is not None:
                claims.append(claimed)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(claim, (store, other)[number % 2], f"worker {number}")
        (claimed,) = claims
        assert claimed.lease is not None
        assert (claimed.lease.attempt, claimed.lease.expires_at) == (2, clock.now() + timedelta(seconds=5))
        assert (claimed.revision, claimed.status) == (mine.revision + 1, "working")
        assert await store.get_task(mine.task_id) == claimed
        assert await store.renew_leases("one", ids, lease_ms=2_000) == frozenset()
        await store.drop_leases(claimed.lease.worker, ids, lapse=False)
        clock.advance(60)
        left = await store.get_task(mine.task_id)
        assert left == replace(claimed, lease=None)
        assert [record.task_id for record in await store.list_lapsed()] == [theirs.task_id]


async def test_a_sweep_and_a_look_read_no_more_rows_where_many_tasks_wait(
    make: Open, server: PostgresServer, schema: str
) -> None:
    async with make() as store:
        lost = await store.create_task(NewTask(ttl_ms=None, request=TaskRequest(name="tool"), worker="w", lease_ms=0))
        await store.create_task(NewTask(ttl_ms=None, request=TaskRequest(name="tool"), worker="", lease_ms=0))
        assert len(await store.list_lapsed(limit=10**30)) == 2
        columns = server.execute(
            "SELECT string_agg(quote_ident(column_name), ', ') FROM information_schema.columns WHERE table_schema = %s"
            " AND table_name = 'tasks' AND column_name NOT IN ('task_id', 'position', 'tool')",
            [schema],
        )[0][0]
        server.execute(
            f"INSERT INTO {schema}.tasks (task_id, {columns}) SELECT 'copy ' || number, {columns} FROM {schema}.tasks"
            " CROSS JOIN generate_series(1, 100000) AS number WHERE lease_worker = ''"
        )
        server.execute(f"ANALYZE {schema}.tasks")
        assert [each.task_id for each in await store.list_lost([], limit=10)] == [lost.task_id]
        assert len(await store.wait_for_work(["tool"], limit=10_001)) == 10_001
    queries = Queries(schema, None)
    for statement in (_statements.LIST_LOST, _statements.LIST_LAPSED, _statements.WAITING):
        for names in (["another"], ["tool", "another"]):
            explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + queries.query(statement).decode()
            ((plans,),) = server.execute(explain, {"names": names, "limit": 10})
            rows = [node["Actual Rows"] * node["Actual Loops"] for node in _nodes(plans[0]["Plan"])]
            filtered = [node.get("Rows Removed by Filter", 0) for node in _nodes(plans[0]["Plan"])]
            assert max(rows) <= 20, (statement, names, plans)
            assert max(filtered) == 0, (statement, names, plans)


SINGLE = (
    "UPDATE",
    "FINISH",
    "CLAIM",
    "TAKE",
    "ASK",
    "ANSWER_ALL",
    "RECORD_STEP",
    "RENEW_LEASES",
    "DROP_LEASES",
    "DELETE",
)
"""The statements that change tasks which their identifiers name."""


async def test_a_task_is_found_by_its_identifier_however_few_were_live_when_they_were_counted(
    make: Open, server: PostgresServer, schema: str
) -> None:
    """L8: to walk over all live tasks is as good where there are none, and the plan is kept when there are many."""
    async with make() as store:
        for number in range(300):
            await store.create_task(NewTask(ttl_ms=None, task_id=f"task {number}"))
            await store.finish_task(f"task {number}", DONE)
    server.execute(f"VACUUM ANALYZE {schema}.tasks")
    if server.execute("SELECT current_setting('server_version_num')::int < 160000")[0][0]:
        pytest.skip("PostgreSQL shows no plan without parameters before version 16")
    queries = Queries(schema, None)
    for name in (*SINGLE, "TAKE_WORK", "WATCH", "LOOK_AT_WATCHED"):
        query = queries.query(getattr(_statements, name)).decode()
        names = sorted(set(re.findall(r"%\((\w+)\)s", query)))
        for number, parameter in enumerate(names, 1):
            query = query.replace(f"%({parameter})s", f"${number}")
        ((plans,),) = server.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {query}")
        nodes = list(_nodes(plans[0]["Plan"]))
        indexes = {node["Index Name"] for node in nodes if node.get("Index Name", "").startswith("tasks_")}
        assert indexes <= {"tasks_pkey", "tasks_waiting" if name == "TAKE_WORK" else "tasks_pkey"}, (name, plans)
        assert "Seq Scan" not in {node["Node Type"] for node in nodes if node.get("Relation Name") == "tasks"}, name


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


# --- what is kept, and what comes from clients ---


async def test_nothing_is_kept_of_what_expired(
    make: Open, server: PostgresServer, schema: str, clock: FakeClock
) -> None:
    def rows() -> list[tuple[Any, ...]]:
        template = "SELECT (SELECT count(*) FROM {0}.tasks), (SELECT count(*) FROM {0}.messages)"
        return server.execute(sql.SQL(template).format(sql.Identifier(schema)))

    note = QueuedMessage.notification("notifications/message", {})
    async with make() as store:
        for _ in range(40):
            created = await store.create_task(NewTask(ttl_ms=1_000))
            await store.message_queue.enqueue(created.task_id, note)
            await store.message_queue.enqueue(created.task_id, QueuedMessage.request("k", "roots/list", {}))
        assert rows() == [(40, 80)]
        clock.advance(1)
        assert await store.message_queue.is_empty(created.task_id)
        assert await store.message_queue.outstanding(created.task_id) == ()
        with pytest.raises(TaskNotFoundError):
            await store.message_queue.wait_for_answer(created.task_id, "k")
        again = await store.create_task(NewTask(ttl_ms=None, task_id=created.task_id))
        assert await store.message_queue.is_empty(again.task_id)
        for _ in range(20):
            await store.delete_task((await store.create_task(NewTask(ttl_ms=None))).task_id)
        assert rows() == [(1, 0)]


@pytest.mark.parametrize(
    "text",
    ["\0", "a\0b\x1a0000", "'; DROP SCHEMA public; --", "%s %(now)s {tasks}", "\\x00", "🌍\u2028", ""],
)
async def test_any_text_is_kept_as_it_is(make: Open, text: str) -> None:
    async with make() as store:
        created = await store.create_task(
            NewTask(ttl_ms=None, task_id=text, owner=text, request=TaskRequest(text, text, "{}", text), worker=text)
        )
        assert (created.task_id, created.owner) == (text, text)
        assert await store.get_task(text) == created
        assert (await store.list_tasks(owner=text)).records == (created,)
        assert await store.renew_leases(text, [text], lease_ms=30_000) == {text}
        updated = await store.update_task(text, status_message=text)
        assert updated.task.status_message == text
        queue = store.message_queue
        message = QueuedMessage("request", text, "{}", text)
        assert await queue.enqueue(text, message)
        assert await queue.outstanding(text) == (message,)
        async with in_background(partial(queue.wait_for_answer, text, text)) as ending:
            await waiting(store)
            assert await queue.answer(text, text, Answer("error", '{"code":1,"message":"\\u0000"}'))
            assert await ending() == Answer("error", '{"code":1,"message":"\\u0000"}')
        ended = await store.finish_task(text, Outcome.cancelled(status_message=text))
        assert ended.outcome == Outcome.cancelled(status_message=text)
        assert await store.delete_task(text)


async def test_what_is_too_long_for_an_index_is_refused_or_unknown(make: Open) -> None:
    long = secrets.token_hex(5_000)
    async with make() as store:
        for arguments in ({"task_id": long}, {"owner": long}):
            with pytest.raises(ValueError, match="must not be longer than 1024 bytes"):
                await store.create_task(NewTask(ttl_ms=None, **arguments))  # type: ignore[arg-type]
        message = QueuedMessage.request(long, "roots/list", {})
        with pytest.raises(ValueError, match="key must not be longer"):
            await store.message_queue.enqueue("x", message)
        assert await store.get_task(long) is None
        assert await store.message_queue.answer(long, long, Answer.withdrawn()) is False
        assert (await store.list_tasks(owner=long)).records == ()
        created = await store.create_task(NewTask(ttl_ms=None, task_id="🌍" * 256, owner="ü" * 512))
        assert await store.get_task(created.task_id) == created


async def test_a_forged_cursor_of_any_size_is_refused(make: Open) -> None:
    from mcp_task_runtime.stores._cursor import encode_cursor, owner_scope

    async with make() as store:
        for position in (-1, 2**63, 10**400):
            with pytest.raises(InvalidCursorError):
                await store.list_tasks(owner="ada", cursor=encode_cursor(b"%d" % position, owner_scope("ada")))


async def test_a_queue_stands_alone(server: PostgresServer, schema: str) -> None:
    async with PostgresTaskMessageQueue(server.url, schema=schema) as queue:
        message = QueuedMessage.notification("notifications/message", {"n": 1})
        async with in_background(partial(queue.wait_for_message, "x")) as ending:
            await until(lambda: queue.statistics().waiters > 0)
            assert await queue.enqueue("x", message)
            assert await ending() is None
        assert await queue.dequeue("x") == message


async def test_counting_goes_up_to_a_bound_and_says_so(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_search_statements, "COUNT", _search_statements.COUNT.replace(str(COUNTED_AT_MOST), "1000"))
    async with make() as store:
        for number in range(0, 1_001, 91):
            async with anyio.create_task_group() as group:
                for _ in range(number, min(number + 91, 1_001)):
                    group.start_soon(store.create_task, NewTask(ttl_ms=None, request=TaskRequest(name="many")))
        await store.create_task(NewTask(ttl_ms=None, request=TaskRequest(name="one")))
        counts = await store.count_tasks()
        assert counts.counted_up_to == 1_000
        assert counts.by_status_and_name == {("working", "many"): 1_000, ("working", "one"): 1}


async def test_a_server_that_may_lose_what_it_acknowledged_is_found(make: Open, server: PostgresServer) -> None:
    ((fsync,),), ((commits,),) = server.execute("SHOW fsync"), server.execute("SHOW synchronous_commit")
    async with make() as store:
        found = {finding.subject: (finding.level, finding.text) for finding in await store.diagnose()}
    assert found["schema"][0] == "ok"
    if fsync == "off":
        level, text = found["persistence"]
        assert (level, text.partition(" is off")[0]) == ("error", "fsync")
    elif commits == "off":
        level, text = found["persistence"]
        assert (level, text.partition(" is off")[0]) == ("warning", "synchronous_commit")
    else:
        assert "persistence" not in found
