"""What PostgreSQL is given, it returns or refuses; what is damaged there hurts its own task alone (L4, L10, L13)."""

from __future__ import annotations

import logging
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from mcp_task_runtime.core.json import load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, Outcome, Progress, Task, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError, RevisionConflictError, StoreError
from mcp_task_runtime.stores.postgres import PostgresTaskStore, _rows
from tests.stores.postgres_server import PostgresServer

Open: TypeAlias = Callable[..., PostgresTaskStore]


@pytest.fixture
def make(postgres: PostgresServer, schema: str) -> Open:
    return partial(PostgresTaskStore, postgres.url, schema=schema)


# --- damaged rows ---

TOO_DEEP = '{"a":' + "[" * 300 + "]" * 300 + "}"

DAMAGES = [
    "status = 'paused'",
    "status = 'completed'",
    "outcome = '{}'",
    "status = 'failed', outcome = '[]'",
    "request_arguments = '[1]'",
    r"""request_arguments = '{"a": "\ud800"}'""",
    f"request_arguments = '{TOO_DEEP}'",
    "request_arguments = '{" + '"n":' + "9" * 5_000 + "}'",
    "request_caller = 'null'",
    "client_capabilities = '5'",
    "progress_token = '{}'",
    "progress = '7'",
    "progress = '[null,null,null]'",
    """progress = '["1",null,null]'""",
    "lease_worker = NULL",
    "lease_attempt = NULL",
    "created_at = 'infinity'",
    "last_updated_at = '0044-03-15 BC'",
    "ttl_ms = 9223372036854775807",
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_task_is_a_store_error_and_left_out_of_lists_with_one_line(
    make: Open, postgres: PostgresServer, schema: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with make() as store:
        ids = ("a", "damaged", "z")
        made = [await store.create_task(NewTask(ttl_ms=None, task_id=i, worker="w", lease_ms=0)) for i in ids]
        postgres.execute(f"UPDATE {schema}.tasks SET {damage} WHERE task_id = 'damaged'")
        for read in (store.get_task, store.get_result, store.get_view, partial(store.wait_for_update, after=0)):
            with pytest.raises(StoreError) as refused:
                await read("damaged")
            assert not isinstance(refused.value, ValueError)
            assert str(refused.value) == "A stored task is damaged"
        caplog.set_level(logging.DEBUG)
        intact = (made[0], made[2])
        for _ in range(3):
            assert (await store.list_tasks(owner=None)).records == intact
            assert (await store.search_tasks(TaskFilter(), newest_first=False)).records == intact
            assert await store.list_lapsed() == intact
            assert await store.list_lapsed(limit=2) == intact
            assert await store.get_task("z") == made[2]
        await walk_of_one(store, intact)
        assert len([record for record in caplog.records if record.name.startswith("mcp_task_runtime")]) == 1


async def walk_of_one(store: PostgresTaskStore, expected: tuple[TaskRecord, ...]) -> None:
    """Walk in pages of one task; damaged ones leave pages empty."""
    found: list[TaskRecord] = []
    cursor = None
    while True:
        page = await store.list_tasks(owner=None, limit=1, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
        if cursor is None:
            break
    assert tuple(found) == expected


@pytest.mark.parametrize(
    ("damage", "read"),
    [
        ("params = '[]'", lambda store: store.message_queue.outstanding("a")),
        ("params = '5'", lambda store: store.message_queue.peek("a")),
        ("params = '5'", lambda store: store.get_view("a")),
        ("answer_type = 'maybe', answer = '{}'", lambda store: store.message_queue.wait_for_answer("a", "k")),
        ("answer_type = 'result', answer = '[]'", lambda store: store.message_queue.wait_for_answer("a", "k")),
    ],
)
async def test_a_damaged_message_is_a_store_error(
    make: Open, postgres: PostgresServer, schema: str, damage: str, read: Callable[[PostgresTaskStore], Awaitable[Any]]
) -> None:
    async with make() as store:
        for task_id in ("a", "b"):
            await store.create_task(NewTask(ttl_ms=None, task_id=task_id))
            await store.ask(task_id, QueuedMessage.request("k", "roots/list", {}))
        postgres.execute(f"UPDATE {schema}.messages SET {damage} WHERE mailbox = 'a'")
        with pytest.raises(StoreError):
            await read(store)
        assert len(await store.message_queue.outstanding("b")) == 1


async def test_a_database_that_cannot_keep_every_text_is_refused(postgres: PostgresServer, schema: str) -> None:
    if not postgres.can_restart:
        pytest.skip("the server is not ours to make databases on")
    name = sql.Identifier(schema)
    template = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    postgres.execute(sql.SQL(template).format(name))
    try:
        with pytest.raises(StoreError, match="encoding UTF8"):
            await PostgresTaskStore(make_conninfo(postgres.url, dbname=schema)).__aenter__()
    finally:
        postgres.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


# --- what is given ---

TEXTS = ["", "\0", "a\0b\x1a0000", "\x1a", "\ud800 lone", "caf\udce9", "🌍\u2028", "%s {tasks}", "'; --", "x" * 70_000]

JSONS = [
    "{}",
    '{"a":"\\u0000"}',
    '{"\\u0000":"\\u001a"}',
    '{"a":"\\ud800"}',
    '{"a":"\ud800"}',
    '{"a":NaN}',
    '{"a":[-Infinity]}',
    '{"NaN":"Infinity"}',
    '{"a":1e400}',
    '{"a":' + "9" * 4_000 + "}",
    '{"a":' + "9" * 5_000 + "}",
    '{"a":' + "[" * 150 + "]" * 150 + "}",
    '{"a":' + "[" * 250 + "]" * 250 + "}",
    '{"a":' + "[" * 50_000 + "]" * 50_000 + "}",
    '{"a":1,"a":2}',
    '  {"a": 1}',
    '{"a":1',
    "",
    "[]",
    "7",
    '{"a":"' + "x" * 300_000 + '"}',
]


def has_surrogates(text: str) -> bool:
    return text != text.encode("utf-8", "ignore").decode()


async def through(write: Callable[[], Awaitable[Any]], read: Callable[[], Awaitable[Any]], expected: Any) -> bool:
    """Write a value that is then read back, or refused with nothing changed; return whether it was taken."""
    before = await read()
    try:
        await write()
    except ValueError:
        assert await read() == before
        return False
    assert await read() == expected
    return True


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
async def test_text_is_given_back_or_refused_by_every_door(make: Open, text: str) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="busy", worker="w"))
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=60_000))

        async def record(task_id: str = "a") -> TaskRecord | None:
            return await store.get_task(task_id)

        async def of(read: Callable[[TaskRecord], Any], task_id: str = "a") -> Any:
            found = await record(task_id)
            return None if found is None else read(found)

        new = NewTask(ttl_ms=None, task_id=text, owner=text, worker=text)
        new = replace(new, request=TaskRequest(text, text, "{}", text, sealed_credentials=text))
        if await through(partial(store.create_task, new), partial(of, lambda r: r.owner, text), text):
            found = await record(text)
            assert found is not None
            assert found.request == new.request
            assert found.lease is not None
            assert (found.task_id, found.lease.worker) == (text, text)
            assert (await store.list_tasks(owner=text)).records == (found,)
            assert (await store.search_tasks(TaskFilter(id_prefix=text, names=frozenset({text})))).records
        say = partial(store.update_task, "a", status_message=text)
        assert await through(say, partial(of, lambda r: r.task.status_message), text) is not has_surrogates(text)
        await through(
            partial(store.update_task, "a", progress=Progress(1, None, text)),
            partial(of, lambda r: r.progress),
            Progress(1, None, text),
        )
        asked = QueuedMessage("request", text, "{}", text)
        if await through(partial(store.ask, "a", asked), partial(store.message_queue.outstanding, "a"), (asked,)):
            assert await store.answer_all("a", {text: Answer.withdrawn()}) == {text}
        await through(
            partial(store.record_step, "a", text, "1", fence=Fence("w", 1)), partial(store.read_steps, "a"), {text: "1"}
        )
        end = partial(store.finish_task, "a", Outcome.cancelled(status_message=text))
        await through(end, partial(of, lambda r: r.outcome), Outcome.cancelled(status_message=text))
        await store.get_history("a")
        assert await store.renew_leases("w", ["busy"], lease_ms=1_000) == {"busy"}


@pytest.mark.parametrize("text", JSONS, ids=range(len(JSONS)))
async def test_json_is_given_back_or_refused_by_every_door(make: Open, text: str) -> None:
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=60_000))
        await store.ask("a", QueuedMessage.request("first", "roots/list", {}))
        queue = store.message_queue

        async def of(read: Callable[[TaskRecord], Any], task_id: str = "a") -> Any:
            found = await store.get_task(task_id)
            return None if found is None else read(found)

        async def answered() -> Any:
            return await queue.wait_for_answer("a", "first") if not await queue.outstanding("a") else None

        requests = [TaskRequest(arguments_json=text), TaskRequest(caller_json=text)]
        news = [NewTask(ttl_ms=None, task_id="n", request=request) for request in requests]
        news.append(NewTask(ttl_ms=None, task_id="n", client_capabilities_json=text))
        taken = []
        for new in news:
            create = partial(store.create_task, new)
            expected = (new.request, new.client_capabilities_json)
            read = partial(of, lambda r: (r.request, r.client_capabilities_json), "n")
            taken.append(await through(create, read, expected))
            await store.delete_task("n")
        taken.append(
            await through(
                partial(store.answer_all, "a", {"first": Answer("result", text)}), answered, Answer("result", text)
            )
        )
        asked = QueuedMessage("request", "roots/list", text, "k")
        taken.append(
            await through(
                partial(store.ask, "a", asked),
                partial(queue.outstanding, "a"),
                (asked,) if taken[-1] else (QueuedMessage.request("first", "roots/list", {}), asked),
            )
        )
        await through(
            partial(store.record_step, "a", "s", text, fence=Fence("w", 1)), partial(store.read_steps, "a"), {"s": text}
        )
        end = Outcome("completed", text)
        taken.append(await through(partial(store.finish_task, "a", end), partial(of, lambda r: r.outcome), end))
        assert len(set(taken)) == 1, "doors differ in what they take"
        if taken[0]:
            assert isinstance(load_json(text), dict)


@pytest.mark.parametrize("number", [-1, 0, 2**31, 2**53, 2**63 - 1, 2**63, 10**400, -(10**400)])
async def test_numbers_are_given_back_or_refused_by_every_door(make: Open, number: int) -> None:
    async with make() as store:
        made = await store.create_task(NewTask(ttl_ms=None, task_id="a", worker="w", lease_ms=60_000))

        async def of(read: Callable[[TaskRecord], Any], task_id: str = "a") -> Any:
            found = await store.get_task(task_id)
            return None if found is None else read(found)

        for name in ("poll_interval_ms", "retention_ms"):
            new = replace(NewTask(ttl_ms=None, task_id="n"), **{name: number})  # type: ignore[arg-type]
            read = (lambda r: r.task.poll_interval_ms) if name == "poll_interval_ms" else (lambda r: r.retention_ms)
            if await through(partial(store.create_task, new), partial(of, read, "n"), number):
                await store.finish_task("n", Outcome.cancelled())
            await store.delete_task("n")
        for new in (
            NewTask(ttl_ms=number, task_id="n"),
            NewTask(ttl_ms=None, task_id="n", worker="w", lease_ms=number),
        ):
            try:
                created = await store.create_task(new)
            except ValueError:
                assert await store.get_task("n") is None
            else:
                read_back = await store.get_task("n")
                assert read_back in (created, None)
                assert (read_back is None) == (new.ttl_ms is not None and number <= 0)
                await store.delete_task("n")
        request = TaskRequest(progress_token=number)
        new = NewTask(ttl_ms=None, task_id="n", request=request)
        assert await through(partial(store.create_task, new), partial(of, lambda r: r.request, "n"), request)
        with pytest.raises(RevisionConflictError):
            await store.update_task("a", if_revision=number)
        assert await store.claim_task("a", worker="v", lease_ms=1) is None
        progress = Progress(number, number)
        await through(partial(store.update_task, "a", progress=progress), partial(of, lambda r: r.progress), progress)
        await through(
            partial(store.update_task, "a", ttl_ms=max(number, 10**6)),
            partial(of, lambda r: r.task.ttl_ms),
            max(number, 10**6),
        )
        for change in (
            partial(store.renew_leases, "w", ["a"], lease_ms=number),
            partial(store.claim_task, "n", worker="v", lease_ms=number),
        ):
            with suppress(ValueError):
                await change()
        read_again = await store.get_task("a")
        assert read_again is not None
        assert read_again.task.created_at == made.task.created_at


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "1", None, True])
async def test_progress_that_is_no_finite_number_is_refused(make: Open, number: Any) -> None:
    async with make() as store:
        made = await store.create_task(NewTask(ttl_ms=None, task_id="a"))
        with pytest.raises(ValueError, match="progress"):
            await store.update_task("a", progress=Progress(number))
        if number is not None:
            with pytest.raises(ValueError, match="progress"):
                await store.update_task("a", progress=Progress(1, number))
        assert await store.get_task("a") == made


# --- what a client sees of others ---


async def test_a_cursor_shows_nothing_of_the_tasks_of_others_and_is_good_in_every_process(make: Open) -> None:
    async def cursors(store: PostgresTaskStore, others: int) -> list[bytes]:
        found: list[bytes] = []
        for _ in range(8):
            for _ in range(others):
                await store.create_task(NewTask(ttl_ms=None, owner="other"))
            await store.create_task(NewTask(ttl_ms=None, owner="ada"))
        cursor = None
        while True:
            page = await store.list_tasks(owner="ada", limit=1, cursor=cursor)
            assert len(page.records) == 1
            cursor = page.next_cursor
            if cursor is None:
                return found
            found.append(urlsafe_b64decode(cursor))

    async with make() as store:
        found = await cursors(store, 3)
        for one, another in pairwise(found):
            same = sum(a == b for a, b in zip(one, another, strict=True))
            assert same <= 4, "cursors of neighbours look alike"
        async with make() as other:
            page = await store.list_tasks(owner="ada", limit=3)
            assert page.next_cursor is not None
            rest = await other.list_tasks(owner="ada", cursor=page.next_cursor)
            assert len(rest.records) == 5
            for owner in ("eve", None, "other"):
                with pytest.raises(InvalidCursorError):
                    await other.list_tasks(owner=owner, cursor=page.next_cursor)


async def test_an_unknown_task_costs_what_a_foreign_one_does(make: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read each, and as many records decoded."""
    decoded: list[str] = []

    def decode(task_id: str, *values: Any) -> Task:
        decoded.append(task_id)
        return Task(task_id, *values)

    monkeypatch.setattr(_rows, "Task", decode)
    async with make() as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="foreign", owner="other"))
        costs = []
        for task_id in ("foreign", "unknown"):
            decoded.clear()
            before = store.statistics()
            await store.get_task(task_id)
            await store.get_view(task_id)
            after = store.statistics()
            costs.append((after.reads - before.reads, after.writes - before.writes, len(decoded)))
        assert costs[0] == costs[1] == (2, 0, 2)
