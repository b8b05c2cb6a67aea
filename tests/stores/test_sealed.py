"""Sealed stores: they keep the laws of the kit, nothing can be read in the backend, keys rotate, and nothing moves."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mcp_task_runtime.core.abilities import queue_of
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.sealed import SEALED_JSON, SEALED_TEXT, event_excerpt
from mcp_task_runtime.core.store import (
    TaskDiagnosis,
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskOwners,
    TaskQuestions,
    TaskSealing,
    TaskSearch,
    TaskStore,
    TaskSweeping,
    TaskTaking,
    TaskWatching,
    TaskWork,
)
from mcp_task_runtime.core.types import NewTask, Outcome, Progress, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError, SealedError, StoreUnavailableError
from mcp_task_runtime.operations import TaskInspector
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.stores.sealed import seal_queue, seal_store
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.stores.url import open_store
from mcp_task_runtime.testing import (
    ABILITY_CHECKS,
    JOURNAL_CHECKS,
    QUESTION_CHECKS,
    QUESTION_STORE_CHECKS,
    QUEUE_CHECKS,
    SEARCH_CHECKS,
    STORE_CHECKS,
    Check,
    FakeClock,
    TaskBackend,
    YieldingTaskStore,
)
from mcp_task_runtime.testing.checks.abilities import AbleStore
from mcp_task_runtime.testing.checks.joins import JOIN_CHECKS
from tests.core.leased_store import TakingTaskStore
from tests.kit.memory import OF_A_BACKEND, ONLY_ON_SERVERS
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from tests.stores.postgres_server import PostgresServer
    from tests.stores.redis_server import RedisServer

KEY, OTHER = (Fernet.generate_key().decode() for _ in range(2))
HIDDEN = "This task is sealed with a key that is not here"


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: sealing waits for nothing."""
    return "asyncio"


def sealed(store: TaskStore, *keys: str) -> AbleStore:
    """Return a store with every ability that seals with these keys."""
    return cast(AbleStore, seal_store(store, keys or [KEY]))


# --- the kit


@asynccontextmanager
async def memory(clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
    async with InMemoryTaskStore(clock=clock) as store:
        yield seal_store(store, [KEY])


@asynccontextmanager
async def memory_queue(clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
    async with InMemoryTaskMessageQueue() as queue:
        yield seal_queue(queue, [KEY])


@asynccontextmanager
async def memory_backend(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
    async with InMemoryTaskStore(clock=clock) as store:
        backend = seal_store(store, [KEY])
        queue = queue_of(backend)
        assert queue is not None
        yield TaskBackend(backend, queue)


async def count_nothing(kept: object) -> int:
    """Stand for a count: what the wrapped store keeps is checked without the seal."""
    return 0


def possible(checks: Iterable[Check[Any]], *missing: str) -> list[Check[Any]]:
    return [check for check in checks if not check.needs & set(missing)]


@pytest.mark.parametrize(
    "check", possible([*STORE_CHECKS, *ABILITY_CHECKS], "durable", "shared", *OF_A_BACKEND, *ONLY_ON_SERVERS), ids=str
)
async def test_a_sealed_store_keeps_the_law(check: Check[TaskStore]) -> None:
    await check.run(memory, footprint=count_nothing)


# What is sealed is plain text to a database: values are checked above.
@pytest.mark.parametrize("check", [*JOIN_CHECKS, *JOURNAL_CHECKS, *QUESTION_STORE_CHECKS, *SEARCH_CHECKS], ids=str)
async def test_a_sealed_file_keeps_the_law(check: Check[TaskStore], tmp_path: Path) -> None:
    @asynccontextmanager
    async def sqlite(clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        async with SQLiteTaskStore(tmp_path / location, clock=clock, synchronous="normal") as store:
            yield seal_store(store, [KEY, OTHER])

    await check.run(sqlite, footprint=count_nothing)


@pytest.mark.parametrize("check", possible(QUEUE_CHECKS, "durable", "shared"), ids=str)
async def test_a_sealed_queue_keeps_the_law(check: Check[TaskMessageQueue]) -> None:
    await check.run(memory_queue, footprint=count_nothing)


@pytest.mark.parametrize("check", possible(QUESTION_CHECKS, "durable", "shared"), ids=str)
async def test_sealed_store_and_queue_keep_the_law_together(check: Check[TaskBackend]) -> None:
    await check.run(memory_backend, footprint=count_nothing)


def test_a_sealed_store_has_the_abilities_of_the_other() -> None:
    abilities = (TaskLeases, TaskWork, TaskQuestions, TaskJournal, TaskJoins, TaskSearch, TaskWatching, TaskDiagnosis)
    for store in (InMemoryTaskStore(), YieldingTaskStore(InMemoryTaskStore()), SQLiteTaskStore("unused.db")):
        over = seal_store(store, [KEY])
        assert [isinstance(over, each) for each in abilities] == [isinstance(store, each) for each in abilities]
        assert isinstance(over, TaskSealing)
        assert over.is_sealed
    assert not isinstance(InMemoryTaskStore(), TaskSealing)


# Their names may not be keys, which are others in each process.
@pytest.mark.parametrize(
    "keys", [[], KEY, ["short"], [7], ["%" * 44]], ids=["none", "no list", "short", "a number", "not Base64"]
)
def test_keys_are_checked_and_not_shown(keys: Any) -> None:
    with pytest.raises(ValueError, match="seal must be") as caught:
        seal_store(InMemoryTaskStore(), keys)
    assert KEY not in str(caught.value)


# --- nothing can be read

DOORS = (
    "owner",
    "argument",
    "caller",
    "token",
    "capability",
    "queued",
    "said",
    "moving",
    "asked",
    "told",
    "answered",
    "refused",
    "step",
    "ended",
    "payload",
    "failure",
    "joined",
)
"""Where clients and tools put values; each test puts `secret-NAME-secret` there."""


def secret(door: str) -> str:
    return f"secret-{door}-secret"


def request_of(tool: str = "tool") -> TaskRequest:
    return TaskRequest(
        name=tool,
        arguments_json=json.dumps({"a": secret("argument")}),
        progress_token=secret("token"),
        caller_json=json.dumps({"c": secret("caller")}),
    )


async def fill(store: AbleStore) -> list[str]:
    """Put a secret through each door, and read it back; return the tasks."""
    new = NewTask(
        ttl_ms=600_000,
        owner=secret("owner"),
        request=request_of(),
        client_capabilities_json=json.dumps({"e": secret("capability")}),
        worker="one",
        status_message=secret("queued"),
    )
    live, _ = await store.join_task(new, key=secret("joined"), ended_ms=0)
    assert live.request == new.request
    assert live.lease is not None
    await store.update_task(live.task_id, status_message=secret("said") * 20, progress=Progress(1, 2, secret("moving")))
    await store.message_queue.enqueue(live.task_id, QueuedMessage.notification("n", {"n": secret("told")}))
    for key in ("one", "two", "open"):
        await store.ask(live.task_id, QueuedMessage.request(key, "m", {"q": secret("asked")}))
    await store.answer_all(live.task_id, {"one": Answer.result({"r": secret("answered")})})
    await store.message_queue.answer(live.task_id, "two", Answer.error(-1, secret("refused")))
    await store.record_step(live.task_id, "step", json.dumps(secret("step")), fence=live.lease.fence)
    ended = await store.create_task(replace(new, status_message=None))
    await store.finish_task(ended.task_id, Outcome.completed({"p": secret("payload")}, status_message=secret("ended")))
    failed = await store.create_task(replace(new, status_message=None))
    await store.finish_task(failed.task_id, Outcome.failed(secret("failure")))
    return [live.task_id, ended.task_id, failed.task_id]


async def read_all(store: AbleStore, ids: list[str]) -> str:
    """Return all that a reader of the store sees, as one text."""
    live, *ended = ids
    seen: list[object] = [await store.get_view(task_id) for task_id in ids]
    seen += [await store.get_result(task_id) for task_id in ended]
    seen += [await store.get_history(task_id) for task_id in ids]
    seen += [await store.read_steps(live), await store.message_queue.dequeue(live)]
    seen += [await store.message_queue.wait_for_answer(live, key) for key in ("one", "two")]
    return repr(seen)


def in_redis(redis: RedisServer, prefix: str) -> str:
    """Return all that Redis keeps under a prefix, as one text."""
    client: Any = redis.client
    readers: dict[bytes, Callable[[str], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    return repr([(key, readers[client.type(key)](key)) for key in redis.keys(prefix)])


def in_postgres(postgres: PostgresServer, schema: str) -> str:
    """Return all rows of a schema, as one text."""
    tables = postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
    return repr([postgres.execute(f'SELECT t::text FROM "{schema}"."{table}" t') for (table,) in tables])


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[], str]]:
    """Return the URL of a new store, and what returns all that its backend keeps."""
    name = f"sealed_{token_hex(6)}"
    if request.param == "sqlite":

        def in_files() -> str:
            return repr([path.read_bytes() for path in tmp_path.iterdir()])

        return f"sqlite:///{tmp_path / 'tasks.db'}", in_files
    server = request.getfixturevalue(request.param)
    parameter = "prefix" if request.param == "redis" else "schema"
    url = f"{server.url}{'&' if '?' in server.url else '?'}{parameter}={name}"
    reader = in_redis if request.param == "redis" else in_postgres
    return url, lambda: reader(server, name)


async def test_no_secret_is_in_the_backend(backend: tuple[str, Callable[[], str]]) -> None:
    url, contents = backend
    async with open_store(url) as store:
        ids = await fill(sealed(store))
        assert [door for door in DOORS if secret(door) in contents()] == []
        seen = await read_all(sealed(store), ids)
        assert [door for door in DOORS if secret(door) not in seen] == ["queued", "joined"]  # replaced, and a digest
        for task_id in ids:
            await store.delete_task(task_id)
        await fill(cast(AbleStore, store))
        plain = contents()
        missing = {door for door in DOORS if secret(door) not in plain}
        assert missing <= {"queued", "joined"}, "what is looked for can be found"


async def test_a_list_and_a_search_find_what_is_sealed() -> None:
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        ids = [(await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id for _ in range(5)]
        await store.create_task(NewTask(ttl_ms=None, owner="bob"))
        await store.update_task(ids[1], status_message="Half of IT")
        await store.update_task(ids[4], status_message="half of it")
        page = await store.list_tasks(owner="ada", limit=5)
        assert ([record.task_id for record in page.records], page.next_cursor) == (ids, None)
        assert {record.owner for record in page.records} == {"ada"}
        wanted = TaskFilter(text="OF it", owners=frozenset({"ada"}))
        first = await store.search_tasks(wanted, limit=1)
        assert [record.task_id for record in first.records] == [ids[4]]
        second = await store.search_tasks(wanted, limit=1, cursor=first.next_cursor)
        assert [record.task_id for record in second.records] == [ids[1]]
        with pytest.raises(InvalidCursorError):
            await store.search_tasks(replace(wanted, text="other"), cursor=first.next_cursor)
        for cursor in ("plain.x", "nothing.", "", "."):
            with pytest.raises(InvalidCursorError):
                await store.list_tasks(owner="ada", cursor=cursor)


async def test_a_search_by_text_looks_at_a_bounded_number_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_task_runtime.stores.sealed.store.LOOKED_AT_MOST", 4)
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        for number in range(9):
            await store.create_task(NewTask(ttl_ms=None, status_message="rare" if number == 0 else "common"))
        found: list[str | None] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await store.search_tasks(TaskFilter(text="rare"), cursor=cursor, limit=2)
            found += [record.task.status_message for record in page.records]
            cursor, pages = page.next_cursor, pages + 1
        assert (found, pages) == (["rare"], 3)


# --- keys


async def test_keys_rotate() -> None:
    async with InMemoryTaskStore() as plain:
        before, during, after = sealed(plain, KEY), sealed(plain, OTHER, KEY), sealed(plain, OTHER)
        ids = await fill(before)
        ids_plain = [(await plain.create_task(NewTask(ttl_ms=None, owner=secret("owner")))).task_id]
        seen = await read_all(during, ids)
        assert [door for door in DOORS if secret(door) not in seen] == ["queued", "joined"]
        await during.update_task(ids[0], status_message="with the new key")
        assert (await before.get_history(ids[1]))[-1].text == secret("ended")
        with pytest.raises(SealedError):
            await before.get_task(ids[0])
        new = await fill(during)
        cursor, listed = None, list[str]()
        while not listed or cursor is not None:
            page = await during.list_tasks(owner=secret("owner"), cursor=cursor, limit=2)
            listed += [record.task_id for record in page.records]
            cursor = page.next_cursor
        assert sorted(listed) == sorted([*ids, *ids_plain, *new])
        found = await during.search_tasks(TaskFilter(owners=frozenset({secret("owner")})), limit=10)
        assert {record.task_id for record in found.records} == set(listed)
        for task_id in new:
            assert await after.get_task(task_id) == await during.get_task(task_id)


async def test_a_task_is_found_for_its_owner_alone_with_each_key_and_without_one() -> None:
    async with InMemoryTaskStore() as plain:
        stores = [plain, sealed(plain, KEY), sealed(plain, OTHER, KEY)]
        made = [await store.create_task(NewTask(ttl_ms=None, owner="ada")) for store in stores]
        nobodys = await stores[1].create_task(NewTask(ttl_ms=None))
        last = cast(TaskOwners, stores[2])
        for task in made:
            view = await last.get_owned(task.task_id, owner="ada")
            assert view is not None
            assert view.record == task
            stored = await plain.get_task(task.task_id)
            assert stored is not None
            for other in ("eve", None, stored.owner if stored.owner != "ada" else ""):
                assert await last.get_owned(task.task_id, owner=other) is None
        view = await last.get_owned(nobodys.task_id, owner=None)
        assert view is not None
        assert view.record == nobodys
        assert await last.get_owned(nobodys.task_id, owner="ada") is None


async def test_a_task_whose_key_is_missing_fails_alone() -> None:
    async with InMemoryTaskStore() as plain:
        ours, theirs = sealed(plain, KEY), sealed(plain, OTHER)
        foreign, own = await fill(theirs), await fill(ours)
        unread = "sealed with a key that is not here"
        for task_id in foreign:
            for read in (ours.get_task, ours.get_view, partial(ours.wait_for_update, after=0)):
                with pytest.raises(SealedError, match=unread):
                    await read(task_id)
        for reading in (
            ours.get_result(foreign[1]),
            ours.read_steps(foreign[0]),
            ours.message_queue.peek(foreign[0]),
            ours.message_queue.wait_for_answer(foreign[0], "one"),
            ours.get_history(foreign[2]),
        ):
            with pytest.raises(SealedError, match=unread):
                await reading
        shown = {record.task_id: record for record in (await ours.search_tasks(TaskFilter())).records}
        assert [shown[task_id].task.status_message for task_id in foreign] == [HIDDEN] * 3
        assert [shown[task_id].request.arguments_json for task_id in foreign] == ["{}"] * 3
        assert [shown[task_id].outcome is None for task_id in foreign] == [True, False, False]
        assert shown[own[0]] == await ours.get_task(own[0])
        seen: list[TaskRecord | None] = []
        for task_id in (foreign[0], own[0]):
            ours.watch_task(task_id, seen.append, after=0)()
        assert seen == [None, await ours.get_task(own[0])]
        (cancelled,) = [await ours.finish_task(foreign[0], Outcome.cancelled())]
        assert (cancelled.status, cancelled.task.status_message) == ("cancelled", HIDDEN), "an operator can end it"
        assert await ours.delete_task(foreign[0])


async def test_work_is_left_to_those_who_have_its_key(caplog: pytest.LogCaptureFixture) -> None:
    async with InMemoryTaskStore() as plain:
        ours, theirs = sealed(plain, KEY), sealed(plain, OTHER)
        new = NewTask(ttl_ms=None, worker="", lease_ms=0, request=request_of())
        foreign = [await theirs.create_task(new) for _ in range(3)]
        own = await ours.create_task(new)
        assert await ours.list_lapsed(limit=1) == (own,)
        assert await cast(TaskSweeping, ours).list_lost(["tool"], limit=1) == (own,)
        with anyio.fail_after(PATIENCE):
            assert await cast(TaskWork, ours).wait_for_work(["tool"], limit=1) == (own,)
        with pytest.raises(SealedError):
            await ours.claim_task(foreign[0].task_id, worker="ours", lease_ms=60_000)
        claimed = await theirs.claim_task(foreign[0].task_id, worker="theirs", lease_ms=60_000)
        assert claimed is not None
        assert claimed.request == new.request
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert secret("argument") not in caplog.text


async def test_a_worker_that_takes_what_it_cannot_open_puts_it_back(caplog: pytest.LogCaptureFixture) -> None:
    """It goes on with the tasks that it can open, and does not take the others again and again."""
    async with TakingTaskStore() as plain:
        ours, theirs = cast(TaskTaking, sealed(plain, KEY)), sealed(plain, OTHER)
        assert isinstance(ours, TaskTaking)
        new = NewTask(ttl_ms=None, worker="", lease_ms=0, request=request_of())
        foreign = [(await theirs.create_task(new)).task_id for _ in range(2)]
        own = [(await cast(TaskStore, ours).create_task(new)).task_id for _ in range(3)]
        taken: list[TaskRecord] = []
        with anyio.fail_after(PATIENCE):
            while len(taken) < 3:
                taken += await ours.take_work(["tool"], worker="ours", lease_ms=60_000, limit=2)
            assert {record.task_id for record in taken} == set(own)
            assert {record.request for record in taken} == {new.request}
            with pytest.raises(SealedError):
                await ours.take_task(foreign[0], ["tool"], worker="ours", lease_ms=60_000)
            for task_id in foreign:
                waiting = plain.record(task_id)
                assert waiting.lease is not None
                assert (waiting.lease.worker, waiting.lease.used_attempts) == ("", 0)
                assert waiting.revision <= 5
            left = await cast(TaskTaking, theirs).take_work(["tool"], worker="theirs", lease_ms=60_000, limit=5)
        assert {record.task_id for record in left} == set(foreign)
        assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_worker_keeps_the_tasks_it_has_claimed_when_the_next_claim_fails() -> None:
    """No other code would run them: their leases would lapse, and work that must not rerun would fail."""

    class Failing(TakingTaskStore):
        works_for = 99

        async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
            self.works_for -= 1
            if self.works_for == -1:
                raise StoreUnavailableError("The connection is cut")
            return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)

    async with Failing() as plain:
        ours, theirs = cast(TaskTaking, sealed(plain, KEY)), sealed(plain, OTHER)
        new = NewTask(ttl_ms=None, worker="", lease_ms=0, request=request_of())
        await theirs.create_task(new)  # once it was taken in vain, the store looks before it claims
        own = [(await cast(TaskStore, ours).create_task(new)).task_id for _ in range(3)]
        with anyio.fail_after(PATIENCE):
            taken = list(await ours.take_work(["tool"], worker="ours", lease_ms=60_000, limit=1))
            assert len(taken) == 1
            for works_for, number in ((1, 1), (99, 1)):
                plain.works_for = works_for
                found = await ours.take_work(["tool"], worker="ours", lease_ms=60_000, limit=2)
                assert len(found) == number
                taken += found
            assert sorted(record.task_id for record in taken) == sorted(own)


async def test_a_worker_hears_of_the_first_claim_that_fails() -> None:
    class Failing(TakingTaskStore):
        is_down = False

        async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
            if self.is_down:
                raise StoreUnavailableError("The connection is cut")
            return await super().claim_task(task_id, worker=worker, lease_ms=lease_ms)

    async with Failing() as plain:
        ours, theirs = cast(TaskTaking, sealed(plain, KEY)), sealed(plain, OTHER)
        new = NewTask(ttl_ms=None, worker="", lease_ms=0, request=request_of())
        await theirs.create_task(new)
        for _ in range(2):
            await cast(TaskStore, ours).create_task(new)
        with anyio.fail_after(PATIENCE):
            await ours.take_work(["tool"], worker="ours", lease_ms=60_000, limit=1)
            plain.is_down = True
            with pytest.raises(StoreUnavailableError):
                await ours.take_work(["tool"], worker="ours", lease_ms=60_000, limit=2)


async def test_a_doctor_counts_what_cannot_be_opened(tmp_path: Path) -> None:
    async with SQLiteTaskStore(tmp_path / "tasks.db") as plain:
        for keys in ([KEY], [OTHER], [OTHER]):
            await sealed(plain, *keys).create_task(NewTask(ttl_ms=None))
        texts = {}
        for name, keys in (("one", [KEY]), ("both", [KEY, OTHER])):
            findings = await TaskInspector(sealed(plain, *keys)).diagnose()
            texts[name] = [(each.level, each.text) for each in findings if each.subject == "seal"]
    assert texts == {
        "one": [("warning", "2 of the newest 3 tasks are sealed with a key that is not here")],
        "both": [("ok", "the newest 3 tasks can be opened")],
    }


async def test_plain_tasks_of_before_are_read_and_go_on() -> None:
    async with InMemoryTaskStore() as plain:
        ids = await fill(cast(AbleStore, plain))
        store = sealed(plain)
        assert await store.get_task(ids[0]) == await plain.get_task(ids[0])
        seen = await read_all(store, ids)
        assert [door for door in DOORS if secret(door) not in seen] == ["queued", "joined"]
        await store.update_task(ids[0], status_message="sealed from now on")
        record = await plain.get_task(ids[0])
        assert record is not None
        assert (record.task.status_message or "").startswith(SEALED_TEXT)
        assert (await store.get_history(ids[0]))[-1].text == "sealed from now on"


# --- what is moved or changed


async def test_no_value_opens_in_another_task_or_field() -> None:
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        task_id, ended_id, failed_id = await fill(store)
        view = await plain.get_view(task_id)
        ended, failed = await plain.get_task(ended_id), await plain.get_task(failed_id)
        assert view is not None
        assert ended is not None
        assert failed is not None
        assert ended.outcome is not None
        assert failed.outcome is not None
        base = NewTask(ttl_ms=None, owner="eve")
        other = await plain.create_task(replace(base, request=ended.request))
        renamed = await plain.create_task(replace(base, request=replace(ended.request, name="other")))
        said = await plain.create_task(replace(base, status_message=view.record.task.status_message))
        result, swapped = [await store.create_task(base) for _ in range(2)]
        await plain.finish_task(result.task_id, replace(ended.outcome, status_message=None))
        await plain.finish_task(swapped.task_id, replace(failed.outcome, status="completed", status_message=None))
        for moved in (other, renamed, said, result, swapped):
            with pytest.raises(SealedError, match="belongs to another task or field"):
                await store.get_task(moved.task_id)
        mail = InMemoryTaskMessageQueue()
        await seal_queue(mail, [KEY]).enqueue("a", QueuedMessage.request("one", "m", {}))
        question = await mail.peek("a")
        assert question is not None
        await mail.enqueue("a", replace(question, key="two"))
        await mail.enqueue("b", question)
        queue = seal_queue(mail, [KEY])
        for mailbox in ("a", "b"):
            with pytest.raises(SealedError, match="belongs to another"):
                await queue.outstanding(mailbox)
        await seal_queue(mail, [KEY]).answer("a", "one", Answer.result({}))
        answer = await mail.wait_for_answer("a", "one")
        await mail.answer("a", "two", answer)
        assert await queue.wait_for_answer("a", "one") == Answer.result({})
        with pytest.raises(SealedError, match="belongs to another"):
            await queue.wait_for_answer("a", "two")


@pytest.mark.parametrize("text", ["sealed:1:", "sealed:1:x", "sealed:1:ü", "sealed:1:" + "A" * 60, "sealed:1:.."])
async def test_a_damaged_value_is_an_error_of_its_task(text: str) -> None:
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        for damaged in (
            NewTask(ttl_ms=None, status_message=text),
            NewTask(ttl_ms=None, request=TaskRequest(arguments_json=json.dumps({"sealed:1": text}).replace(" ", ""))),
        ):
            record = await plain.create_task(damaged)
            with pytest.raises(SealedError):
                await store.get_task(record.task_id)
        assert len((await store.list_tasks(owner=None)).records) == 2


async def test_a_text_that_looks_sealed_comes_back_as_it_was() -> None:
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        new = NewTask(
            ttl_ms=None,
            owner=f"{SEALED_TEXT}x",
            status_message=f"{SEALED_TEXT}x.",
            request=TaskRequest(arguments_json=f'{SEALED_JSON}x"}}'),
        )
        record = await store.create_task(new)
        assert await store.get_task(record.task_id) == record
        assert (record.owner, record.request) == (new.owner, new.request)
        assert record.task.status_message == new.status_message
        assert [each.task_id for each in (await store.list_tasks(owner=new.owner)).records] == [record.task_id]


async def test_an_owner_is_who_the_seal_names_whatever_the_store_says() -> None:
    async with InMemoryTaskStore() as plain:
        store = sealed(plain)
        ada = await store.create_task(NewTask(ttl_ms=None, owner="ada"))
        eve = await store.create_task(NewTask(ttl_ms=None, owner="eve"))
        stored = await plain.get_task(ada.task_id), await plain.get_task(eve.task_id)
        assert stored[0] is not None
        assert stored[1] is not None
        await plain.delete_task(ada.task_id)
        moved = NewTask(ttl_ms=None, task_id=ada.task_id, owner=stored[1].owner, request=stored[0].request)
        await plain.create_task(moved)
        record = await store.get_task(ada.task_id)
        assert record is not None
        assert record.owner == "ada"
        assert [each.task_id for each in (await store.list_tasks(owner="eve")).records] == [eve.task_id]
        assert (await store.list_tasks(owner=stored[1].owner)).records == (), "no client gives a stored name"


def test_an_excerpt_is_short_whatever_it_begins_with() -> None:
    assert event_excerpt("x" * 500) == "x" * 120
    assert len(event_excerpt(SEALED_TEXT + "x" * 50_000)) < 1_000


async def test_sealed_values_are_those_of_aes_256_gcm_and_the_rest_is_plain() -> None:
    async with InMemoryTaskStore() as plain:
        made = await sealed(plain).create_task(
            NewTask(ttl_ms=60_000, owner="ada", request=TaskRequest(name="build"), status_message="s3cret")
        )
        kept = await plain.get_task(made.task_id)
    assert kept is not None
    assert (kept.status, kept.request.name) == ("working", "build")
    assert (kept.task.created_at, kept.task.ttl_ms) == (made.task.created_at, 60_000)
    assert "ada" not in (kept.owner or "")
    secret = hmac.digest(base64.urlsafe_b64decode(KEY), b"mcp-task-runtime seal", "sha256")
    key = hmac.digest(secret, f"task\0{kept.task_id}".encode(), "sha256")
    assert len(key) * 8 == 256
    raw = base64.urlsafe_b64decode((kept.task.status_message or "").removeprefix(SEALED_TEXT) + "==")
    assert AESGCM(key).decrypt(raw[4:16], raw[16:], b"status") == b"s3cret"
