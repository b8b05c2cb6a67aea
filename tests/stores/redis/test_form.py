"""The stored form: pinned, of an older and a later version, and damaged."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from hashlib import sha1
from typing import Any

import coredis
import coredis.exceptions
import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Lease, NewTask, Outcome, Progress, Task, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import SchemaVersionError, StoreError, StoreUnavailableError
from mcp_task_runtime.stores.redis import RedisTaskMessageQueue, RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, NOTE, QUESTION, YES, eventually
from tests.stores.redis_server import RedisServer


async def test_the_stored_form_of_a_task_is_pinned(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    request = TaskRequest("tools/call", "report", '{"topic":"Zürich"}', 7, True)
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        await store.create_task(
            NewTask(
                task_id="T-1",
                ttl_ms=60_000,
                poll_interval_ms=250,
                owner="ada",
                retention_ms=90_000,
                request=request,
                client_capabilities_json='{"sampling":{}}',
                worker="w",
                lease_ms=10_000,
            )
        )
        task: dict[Any, Any] = server.client.hgetall(f"{prefix}:{{T-1}}:task")
        mark = task.pop(b"mark")
        assert task.pop(b"op") == mark
        created = {
            b"v": b"2",
            b"task_id": b"T-1",
            b"status": b"working",
            b"created_at": b"1767225600000000",
            b"last_updated_at": b"1767225600000000",
            b"ttl_ms": b"60000",
            b"poll_interval_ms": b"250",
            b"revision": b"1",
            b"owner": b"ada",
            b"owner_tag": b"5c6c9e98c77d163d144c5231025082c7ae81deef",
            b"retention_ms": b"90000",
            b"name": b"report",
            b"request": '["tools/call","report","{\\"topic\\":\\"Zürich\\"}",7,true,3,"{}",null]'.encode(),
            b"client_capabilities": b'{"sampling":{}}',
            b"worker": b"w",
            b"lease_expires_at": b"1767225610000000",
            b"attempt": b"1",
        }
        assert task == created
        digest = "5c6c9e98c77d163d144c5231025082c7ae81deef"
        entry, expiry = mark + b" T-1", 1_767_225_600_000_000 + 150_001_000
        assert server.client.zrange(f"{prefix}:{{owner:{digest}}}:tasks", 0, -1, withscores=True) == [
            (entry, 1_767_225_600_000_000)
        ]
        assert server.client.zrange(f"{prefix}:{{owner:{digest}}}:expiry", 0, -1, withscores=True) == [(entry, expiry)]
        assert server.client.zrange(f"{prefix}:{{leases:}}", 0, -1, withscores=True) == [
            (b"T-1", 1_767_225_610_000_000)
        ]
        search = f"{prefix}:{{search:}}:"
        entry = b"T-1 report " + sha1(b"ada").hexdigest()[:12].encode()
        place = [(entry, 1_767_225_600_000_000)]
        assert server.client.zrange(f"{search}all", 0, -1, withscores=True) == place
        assert server.client.zrange(f"{search}working:report", 0, -1, withscores=True) == place
        assert server.client.zrange(f"{search}owner:{entry[-12:].decode()}", 0, -1, withscores=True) == place
        assert server.client.zrange(f"{search}expiry", 0, -1, withscores=True) == [(entry, expiry)]
        assert server.client.zrange(f"{search}ids", 0, -1, withscores=True) == [(b"T-1\0" + entry, 0)]
        assert server.client.hgetall(f"{search}names") == {b"report": b"report"}
        clock.advance(1)
        await store.finish_task("T-1", Outcome.failed("no", code=-32_001))
        task = server.client.hgetall(f"{prefix}:{{T-1}}:task")
        assert task.pop(b"mark") == mark != task.pop(b"op")
        ended = {
            b"status": b"failed",
            b"status_message": b"no",
            b"last_updated_at": b"1767225601000000",
            b"ttl_ms": b"91000",
            b"revision": b"2",
            b"outcome": b'{"code":-32001,"message":"no"}',
            b"outcome_message": b"no",
        }
        for name in (b"worker", b"lease_expires_at", b"attempt"):
            del created[name]
        assert task == created | ended
        assert server.client.zrange(f"{prefix}:{{leases:}}", 0, -1) == []
        assert server.client.zrange(f"{search}working:report", 0, -1) == []
        assert server.client.zrange(f"{search}failed:report", 0, -1, withscores=True) == place
        assert server.client.lrange(f"{prefix}:{{T-1}}:events", 0, -1) == [b"1767225601000000 failed no"]


async def test_the_stored_form_of_a_mailbox_is_pinned(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskMessageQueue(server.url, clock=clock, prefix=prefix) as queue:
        for message in (QUESTION, NOTE, QueuedMessage.request("k2", "ping", {})):
            await queue.enqueue("T", message)
        await queue.answer("T", "k2", Answer.error(-1, "no"))
    question = b'[1,"request","elicitation/create","{\\"message\\":\\"Sure?\\"}","k"]'
    note = b'[1,"notification","notifications/message","{\\"n\\":1}",null]'
    assert server.client.lrange(f"{prefix}:{{T}}:queue", 0, -1) == [question, note]
    assert server.client.lrange(f"{prefix}:{{T}}:asked", 0, -1) == [question]
    answers: dict[Any, Any] = server.client.hgetall(f"{prefix}:{{T}}:answers")
    assert {key: (state[:1], state.partition(b" ")[2]) for key, state in answers.items()} == {
        b"kk": (b"q", question),
        b"kk2": (b"a", b'[1,"error","{\\"code\\":-1,\\"message\\":\\"no\\",\\"data\\":null}"]'),
    }


async def test_what_a_later_version_stored_is_refused_and_left_alone(
    server: RedisServer, prefix: str, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """L13: it hurts no other task either: lists and renewals leave it out, with one log line."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        task_id = (await store.create_task(NewTask(ttl_ms=None, owner="ada", worker="w", lease_ms=1))).task_id
        other = await store.create_task(NewTask(ttl_ms=None, owner="ada", worker="w", lease_ms=1))
        key = f"{prefix}:{{{task_id}}}:task"
        server.client.hset(key, "v", 3)
        before = server.client.hgetall(key)
        clock.advance(1)
        for operation in (
            lambda: store.get_task(task_id),
            lambda: store.get_view(task_id),
            lambda: store.get_result(task_id),
            lambda: store.get_history(task_id),
            lambda: store.read_steps(task_id),
            lambda: store.update_task(task_id, status_message="x"),
            lambda: store.finish_task(task_id, DONE),
            lambda: store.ask(task_id, QUESTION),
            lambda: store.answer_all(task_id, {"k": YES}),
            lambda: store.delete_task(task_id),
            lambda: store.wait_for_update(task_id, after=0),
            lambda: store.create_task(NewTask(ttl_ms=None, task_id=task_id)),
            lambda: store.claim_task(task_id, worker="v", lease_ms=1),
            lambda: store.message_queue.enqueue(task_id, NOTE),
        ):
            with pytest.raises(SchemaVersionError) as caught:
                await operation()
            assert (caught.value.found, caught.value.supported) == (3, 2)
        assert not caplog.records
        lapsed = await store.list_lapsed()
        assert [record.task_id for record in lapsed] == [other.task_id]
        assert (await store.list_tasks(owner="ada")).records == lapsed
        assert await store.renew_leases("w", [task_id, other.task_id], lease_ms=1) == {other.task_id}
        await store.drop_leases("w", [task_id, other.task_id], lapse=True)
        assert len(caplog.records) == 1
        assert server.client.hgetall(key) == before
        server.client.rpush(f"{prefix}:{{other}}:queue", b'[2,"notification","m","{}",null]')
        with pytest.raises(SchemaVersionError):
            await store.message_queue.peek("other")


OLD = """
v=1 mark=m.1.1 op=m.1.1 task_id=T-1 status=input_required status_message=asked created_at={0} last_updated_at={0}
ttl_ms=60000 poll_interval_ms=250 revision=2 owner=ada retention_ms=90000
request=["tools/call","report","{{\\"n\\":1}}",7,true] worker=w lease_expires_at={1} attempt=1
"""


async def test_what_version_1_stored_is_read_changed_and_found(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    now = 1_767_225_600_000_000
    for pair in OLD.format(now, now + 1_000_000).split():
        field, _, value = pair.partition("=")
        server.client.hset(f"{prefix}:{{T-1}}:task", field, value)
    question = b'[1,"request","elicitation/create","{\\"message\\":\\"Sure?\\"}","k"]'
    server.client.rpush(f"{prefix}:{{T-1}}:asked", question)
    server.client.rpush(f"{prefix}:{{T-1}}:queue", question)
    server.client.hset(f"{prefix}:{{T-1}}:answers", "kk", b"qm.1.2 " + question)
    owner = f"{prefix}:{{owner:5c6c9e98c77d163d144c5231025082c7ae81deef}}:"
    server.client.zadd(f"{owner}tasks", {"m.1.1 T-1": now})
    server.client.zadd(f"{owner}expiry", {"m.1.1 T-1": now + 150_001_000})
    server.client.zadd(f"{prefix}:{{leases:}}", {"T-1": now + 1_000_000})
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        view = await store.get_view("T-1")
        assert view is not None
        assert view.record == TaskRecord(
            Task("T-1", "input_required", "asked", clock.now(), clock.now(), 60_000, 250),
            2,
            "ada",
            90_000,
            TaskRequest("tools/call", "report", '{"n":1}', 7, True),
            lease=Lease("w", clock.now() + timedelta(seconds=1), 1),
        )
        assert view.questions == (QUESTION,)
        assert (await store.list_tasks(owner="ada")).records == (view.record,)
        assert [event.kind for event in await store.get_history("T-1")] == ["created"]
        assert await store.read_steps("T-1") == {}
        assert (await store.search_tasks(TaskFilter())).records == ()
        assert await store.answer_all("T-1", {"k": YES}) == {"k"}
        assert await store.message_queue.wait_for_answer("T-1", "k") == YES
        assert [record.task_id for record in (await store.search_tasks(TaskFilter())).records] == ["T-1"]
        assert (await store.count_tasks()).by_status_and_name == {("working", "report"): 1}
        extended = await store.update_task("T-1", ttl_ms=120_000, progress=Progress(1, 2, "half"))
        assert (extended.task.ttl_ms, extended.progress) == (120_000, Progress(1, 2, "half"))
        clock.advance(1)
        claimed = await store.claim_task("T-1", worker="v", lease_ms=1_000)
        assert claimed is not None
        assert claimed.lease is not None
        assert claimed.lease.attempt == 2
        assert await store.record_step("T-1", "a", "1", fence=claimed.lease.fence) == "1"
        ended = await store.finish_task("T-1", DONE, fence=claimed.lease.fence)
        assert (ended.outcome, ended.request) == (DONE, view.record.request)
        assert (await store.count_tasks()).by_status_and_name == {("completed", "report"): 1}
        assert await store.delete_task("T-1")
        await eventually(lambda: server.keys(prefix) == [])


DAMAGE: dict[str, bytes] = {
    "v": b"one",
    "task_id": b"\xff",
    "status": b"lost",
    "status_message": b"\xff\xfe",
    "created_at": b"long ago",
    "last_updated_at": b"9" * 40,
    "ttl_ms": b"",
    "poll_interval_ms": b"\x00",
    "revision": b"many",
    "owner": b"\xed\xa0\x80",
    "retention_ms": b"0x",
    "request": b'["tools/call"',
    "client_capabilities": b"{",
    "outcome": b"[" * 1_000,
    "worker": b"\x80",
    "lease_expires_at": b"soon",
    "attempt": b"-",
    "progress": b"[1]",
}


@pytest.mark.parametrize("field", DAMAGE)
async def test_a_damaged_field_is_a_store_error_and_hurts_that_task_alone(
    server: RedisServer, prefix: str, clock: FakeClock, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    """L13, with one log line of the lists that leave the task out."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        tasks = [
            (await store.create_task(NewTask(ttl_ms=60_000, owner="ada", worker="w", lease_ms=1_000))).task_id
            for _ in range(3)
        ]
        if field == "outcome":
            await store.finish_task(tasks[1], DONE)
        key = f"{prefix}:{{{tasks[1]}}}:task"
        server.client.hset(key, field, DAMAGE[field])
        for operation in (store.get_task, store.get_view, store.get_result, partial(store.wait_for_update, after=0)):
            with pytest.raises(StoreError) as caught:
                await operation(tasks[1])
            assert not isinstance(caught.value, ValueError)
        left = [tasks[0], tasks[2]]
        assert [record.task_id for record in (await store.list_tasks(owner="ada")).records] == left
        assert [record.task_id for record in (await store.search_tasks(TaskFilter())).records] == left[::-1]
        assert set(left) <= await store.renew_leases("w", tasks, lease_ms=1_000)
        clock.advance(1)
        for _ in range(2):
            lapsed = {record.task_id for record in await store.list_lapsed()}
            assert lapsed - set(left) <= ({tasks[1]} if field == "lease_expires_at" else set())  # renewing mends it
            assert lapsed >= set(left)
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        for task_id in left:
            assert (await store.finish_task(task_id, DONE)).outcome == DONE


async def test_keys_of_another_kind_are_a_store_error_and_hurt_that_task_alone(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        queue = store.message_queue
        lost, kept = [
            (await store.create_task(NewTask(ttl_ms=None, owner="ada", worker="w", lease_ms=1_000))).task_id
            for _ in range(2)
        ]
        for kind in ("task", "asked", "answers", "queue", "events", "steps"):
            server.client.delete(f"{prefix}:{{{lost}}}:{kind}")
            server.client.set(f"{prefix}:{{{lost}}}:{kind}", "of another kind")
        for operation in (
            lambda: store.get_task(lost),
            lambda: store.get_view(lost),
            lambda: store.update_task(lost),
            lambda: store.finish_task(lost, DONE),
            lambda: store.ask(lost, QUESTION),
            lambda: store.answer_all(lost, {"k": YES}),
            lambda: queue.outstanding(lost),
            lambda: queue.wait_for_answer(lost, "k"),
        ):
            with pytest.raises(StoreError) as caught:
                await operation()
            assert isinstance(caught.value.__cause__, coredis.exceptions.ResponseError)
            assert not isinstance(caught.value, StoreUnavailableError)
        assert [record.task_id for record in (await store.list_tasks(owner="ada")).records] == [kept]
        assert await store.renew_leases("w", [lost, kept], lease_ms=1_000) == {kept}


@pytest.mark.parametrize("state", [b"q1", b"a1.1 [1", b'a1.1 [1,"lost"]', b'a1.1 [1,"result","{"]', b"a1.1 \xff", b""])
async def test_a_damaged_mailbox_is_a_store_error(server: RedisServer, prefix: str, state: bytes) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        task_id = (await store.create_task(NewTask(ttl_ms=60_000))).task_id
        await store.ask(task_id, QUESTION)
        if not state.startswith(b"q"):
            server.client.hset(f"{prefix}:{{{task_id}}}:answers", "kk", state)
            with pytest.raises(StoreError) as caught:
                await store.message_queue.wait_for_answer(task_id, "k")
            assert not isinstance(caught.value, ValueError)
        server.client.delete(f"{prefix}:{{{task_id}}}:asked")
        server.client.rpush(f"{prefix}:{{{task_id}}}:asked", state[5:])
        for operation in (store.get_view, store.message_queue.outstanding):
            with pytest.raises(StoreError) as caught:
                await operation(task_id)
            assert not isinstance(caught.value, ValueError)
        assert (await store.finish_task(task_id, DONE)).outcome == DONE
