"""The names of keys, and what is left of tasks that are gone."""

from __future__ import annotations

import anyio

from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import NewTask, TaskFilter, TaskRequest
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, NOTE, QUESTION, YES, eventually
from tests.stores.redis_server import RedisServer

HOSTILE = (
    "",
    "{",
    "}{a}",
    "a b",
    "x}:task",
    "~0123",
    "T\r\nDEL x",
    "'; redis.call('FLUSHALL') --",
    "*",
    "grüß 🌍",
    "a" * 100_000,
    "owner:",
    "leases:",
    "\x00",
)


async def test_nothing_from_a_client_gets_into_names_unescaped(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        queue = store.message_queue
        for text in HOSTILE:
            request = TaskRequest(name=text)
            record = await store.create_task(
                NewTask(ttl_ms=60_000, task_id=text, owner=text, worker=text, request=request)
            )
            assert (record.task_id, record.owner) == (text, text)
            assert await store.get_task(text) == record
            assert (await store.list_tasks(owner=text)).records == (record,)
            question = QueuedMessage("request", text, "{}", text)
            assert question.key is not None
            assert await queue.enqueue(text, question)
            assert await queue.outstanding(text) == (question,)
            assert await queue.answer(text, question.key, YES)
            assert await queue.wait_for_answer(text, question.key) == YES
            assert await store.renew_leases(text, [text], lease_ms=5_000) == {text}
            by_name = await store.search_tasks(TaskFilter(names=frozenset([text])))
            assert [found.task_id for found in by_name.records] == [text]
            by_id = await store.search_tasks(TaskFilter(id_prefix=text))
            assert text in [found.task_id for found in by_id.records]
        assert {name for _, name in (await store.count_tasks()).by_status_and_name} == set(HOSTILE)
        for key in server.keys(prefix):
            stem, tag, kind = key.replace("{", "}").split("}")
            assert stem == f"{prefix}:"
            assert len(tag) < 60
            assert tag.removeprefix("owner:").removeprefix("leases:").replace("~", "").isalnum() or tag[-1] == ":"
            known = ["task", "asked", "answers", "queue", "events", "steps", "tasks", "expiry", "all", "ids", "names"]
            rest = kind.removeprefix(":")
            for index in ("working:", "owner:", "live:", "waiting:"):
                rest = rest.removeprefix(index)
            assert kind[1:] in ["", *known] or rest.removeprefix("~").isalnum() or rest == "-"
        for text in HOSTILE:
            assert await store.delete_task(text)
        await eventually(lambda: server.keys(prefix) == [])


async def test_every_key_expires_with_its_task(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        queue = store.message_queue
        record = await store.create_task(NewTask(ttl_ms=100_000, owner="ada", worker="w", retention_ms=50_000))
        await queue.enqueue(record.task_id, QUESTION)
        await queue.enqueue(record.task_id, NOTE)
        await queue.dequeue(record.task_id)
        await queue.answer(record.task_id, "k", YES)
        keys = server.keys(prefix)
        assert len(keys) >= 6
        for key in keys:
            limit = 101_000 if f"{{{record.task_id}}}" in key else 152_000
            assert 0 < server.client.pttl(key) <= limit
        await store.finish_task(record.task_id, DONE)
        assert 49_000 < server.client.pttl(f"{prefix}:{{{record.task_id}}}:task") <= 101_000
        forever = await store.create_task(NewTask(ttl_ms=None, owner="ada"))
        index = next(key for key in server.keys(prefix) if key.endswith(":tasks"))
        assert server.client.pttl(index) == -1
        await store.delete_task(forever.task_id)
        await eventually(lambda: 0 < server.client.pttl(index) <= 152_000)
        await store.delete_task(record.task_id)
        await eventually(lambda: server.keys(prefix) == [])


async def test_nothing_is_left_when_everything_has_expired_and_nobody_looks(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        for owner in ("ada", None):
            record = await store.create_task(NewTask(ttl_ms=300, owner=owner, worker="w"))
            await store.message_queue.enqueue(record.task_id, QUESTION)
            ended = await store.create_task(NewTask(ttl_ms=500, retention_ms=300, owner=owner))
            await store.finish_task(ended.task_id, DONE) if owner is None else None
    assert server.keys(prefix)
    await eventually(lambda: server.keys(prefix) == [])


async def test_a_clock_that_stands_still_loses_no_data(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=1))
        await store.message_queue.enqueue(record.task_id, QUESTION)
        await anyio.sleep(0.1)
        assert await store.get_task(record.task_id) == record
        assert await store.message_queue.peek(record.task_id) == QUESTION


async def test_expired_tasks_of_an_owner_leave_the_index_when_new_ones_come(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        for _ in range(30):
            await store.create_task(NewTask(ttl_ms=1_000, owner="ada"))
        clock.advance(5)
        for _ in range(10):
            await store.create_task(NewTask(ttl_ms=1_000, owner="ada"))
        (index,) = [key for key in server.keys(prefix) if key.endswith(":tasks")]
        assert server.client.zcard(index) == 10


async def test_an_owners_list_heals(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        ids = [(await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id for _ in range(7)]
        for task_id in (ids[0], ids[1], ids[4]):
            server.client.delete(f"{prefix}:{{{task_id}}}:task")
        eves = await store.create_task(NewTask(ttl_ms=None, owner="eve", task_id=ids[1]))
        page = await store.list_tasks(owner="ada", limit=3)
        assert [record.task_id for record in page.records] == [ids[2], ids[3], ids[5]]
        page = await store.list_tasks(owner="ada", cursor=page.next_cursor, limit=3)
        assert ([record.task_id for record in page.records], page.next_cursor) == ([ids[6]], None)
        assert (await store.list_tasks(owner="eve")).records == (eves,)
        index = min(server.keys(f"{prefix}:{{owner:"), key=server.client.zcard)
        await eventually(lambda: max(map(server.client.zcard, server.keys(f"{prefix}:{{owner:"))) == 4)
        assert server.client.zcard(index) == 1
