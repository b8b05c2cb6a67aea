"""Servers that are away, restart, lose replies or are full."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial
from itertools import count
from random import Random
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, NewTask, Outcome, TaskFilter, TaskRecord
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError, TaskNotFoundError
from mcp_task_runtime.stores.redis import RedisStatistics, RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, IS_LONG, QUESTION, YES, eventually, in_time, waiting
from tests.stores.redis_server import RedisServer, keeping_server, losing, own_server
from tests.support.patience import PATIENCE


async def test_cut_connections_are_noticed_by_nobody(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        queue = store.message_queue
        for number in range(20):
            task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
            await queue.enqueue(task_id, QUESTION)
            waits = (
                partial(store.wait_for_update, task_id, after=1),
                partial(queue.wait_for_answer, task_id, "k"),
                partial(queue.wait_for_message, "blank"),
            )
            async with waiting(*waits) as (updated, answered, cleared):
                await anyio.sleep(0.001 * number)
                server.cut_connections()
                assert (await store.update_task(task_id, status_message="on")).revision == 2
                server.cut_connections()
                assert await queue.dequeue(task_id) == QUESTION
                assert await queue.answer(task_id, "k", YES) is True
                server.cut_connections()
                with anyio.fail_after(PATIENCE):
                    assert (await updated.wait()).revision >= 2
                    assert await answered.wait() == YES
                assert (await store.finish_task(task_id, DONE)).revision == 3
                await queue.clear("blank")
                with anyio.fail_after(PATIENCE):
                    with pytest.raises(TaskNotFoundError):
                        await cleared.wait()


async def test_a_call_that_is_sent_twice_has_its_effect_once(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with losing(server) as tunnel, RedisTaskStore(tunnel.url, clock=clock, prefix=prefix) as store:
        queue = store.message_queue

        async def twice(operation: Awaitable[Any]) -> Any:
            tunnel.loses_next_reply = True
            result = await operation
            assert not tunnel.loses_next_reply
            return result

        new = NewTask(ttl_ms=None, task_id="T", owner="ada", worker="a", lease_ms=1)
        created = await twice(store.create_task(new))
        assert created == await store.get_task("T")
        assert (await store.list_tasks(owner="ada")).records == (created,)
        updated = await twice(store.update_task("T", status_message="on", if_revision=1, fence=Fence("a", 1)))
        assert updated.revision == 2
        clock.advance(1)
        claimed = await twice(store.claim_task("T", worker="b", lease_ms=1_000))
        assert (claimed.revision, claimed.lease.attempt) == (3, 2)
        assert await twice(store.renew_leases("b", ["T"], lease_ms=1_000)) == {"T"}
        assert await twice(store.record_step("T", "s", "1", fence=Fence("b", 2))) == "1"
        assert await twice(queue.enqueue("T", QUESTION)) is True
        assert await twice(queue.enqueue("T", QUESTION)) is False
        assert await twice(queue.dequeue("T")) == QUESTION
        assert await twice(queue.answer("T", "k", YES)) is True
        assert await twice(queue.answer("T", "k", YES)) is False
        other = QueuedMessage.request("k2", "ping", {})
        asked = await twice(store.ask("T", other))
        assert (asked.revision, asked.status) == (4, "input_required")
        assert await twice(store.ask("T", other)) is None
        assert await twice(store.answer_all("T", {"k2": YES, "k3": YES})) == {"k2"}
        answered = await store.get_task("T")
        assert answered is not None
        assert (answered.revision, answered.status) == (5, "working")
        assert await twice(store.answer_all("T", {"k2": YES})) == frozenset()
        finished = await twice(store.finish_task("T", DONE))
        assert (finished.revision, finished.outcome) == (6, DONE)
        kinds = [event.kind for event in await store.get_history("T")]
        assert kinds == ["created", "status", "claimed", "asked", "answered", "completed"]
        with pytest.raises(StoreUnavailableError):
            await twice(store.delete_task("T"))
        assert await store.delete_task("T") is False


async def test_a_cancelled_operation_leaves_the_connection_in_order(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=None))
        for number in range(50):
            with anyio.move_on_after(0.0001 * (number % 5)):
                await store.update_task(record.task_id, status_message=f"{number}")
        got = await store.get_task(record.task_id)
        assert got is not None
        assert (await store.update_task(record.task_id, status_message="last")).revision == got.revision + 1


async def test_a_restart_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with keeping_server() as server:
        async with (
            RedisTaskStore(server.url, timeout=PATIENCE) as patient,
            aclosing(RedisTaskStore(server.url, timeout=1.0)) as store,
        ):
            queue = patient.message_queue
            record = await patient.create_task(NewTask(ttl_ms=None, owner="ada", worker="w"))
            ended = await patient.create_task(NewTask(ttl_ms=None, owner="ada"))
            ended = await patient.finish_task(ended.task_id, DONE)
            await queue.enqueue(record.task_id, QUESTION)
            waits = (
                partial(patient.wait_for_update, record.task_id, after=1),
                partial(queue.wait_for_answer, record.task_id, "k"),
                partial(patient.wait_for_update, ended.task_id, after=2),
            )
            async with waiting(*waits) as (updated, answered, deleted):
                await eventually(lambda: patient.statistics().waiters == 3)
                server.kill()
                operations: list[Callable[[], Awaitable[Any]]] = [
                    partial(store.get_task, record.task_id),
                    partial(store.create_task, NewTask(ttl_ms=None)),
                    partial(store.update_task, record.task_id, status_message="x"),
                    partial(store.list_tasks, owner="ada"),
                    partial(store.search_tasks, TaskFilter()),
                    store.list_lapsed,
                    partial(store.wait_for_update, record.task_id, after=0),
                    partial(store.message_queue.peek, record.task_id),
                    partial(store.message_queue.dequeue, record.task_id),
                    partial(store.message_queue.wait_for_answer, record.task_id, "k"),
                    partial(store.message_queue.clear, record.task_id),
                ]
                async with waiting(*operations) as calls:
                    for call in calls:
                        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError) as caught:
                            await call.wait()
                        assert caught.value.__cause__ is not None
                assert not any(waiter.done() for waiter in (updated, answered, deleted))
                server.start()
                with anyio.fail_after(PATIENCE):
                    assert await patient.get_task(record.task_id) == record
                    assert (await patient.list_tasks(owner="ada")).records == (record, ended)
                    await patient.update_task(record.task_id, status_message="back")
                    await queue.answer(record.task_id, "k", YES)
                    await patient.delete_task(ended.task_id)
                    assert (await updated.wait()).task.status_message == "back"
                    assert await answered.wait() == YES
                    with pytest.raises(TaskNotFoundError):
                        await deleted.wait()
        lines = [record.getMessage() for record in caplog.records]
        assert lines[:2] == [f"Redis at 127.0.0.1:{server.port} cannot be reached"] * 2, "once for each store"
        again = f"Redis at 127.0.0.1:{server.port} can be reached again, after "
        assert 1 <= len(lines[2:]) <= 2, lines
        assert all(line.startswith(again) for line in lines[2:]), lines


@pytest.mark.parametrize("how", ["restart", "pause"])
async def test_a_server_that_is_away_for_a_moment_is_waited_for(caplog: pytest.LogCaptureFixture, how: str) -> None:
    """L12: with one log line when the outage begins and one when it ends, however many calls there are."""
    caplog.set_level(logging.INFO)
    with keeping_server() as server:
        async with RedisTaskStore(server.url, timeout=PATIENCE) as store:
            tasks = [(await store.create_task(NewTask(ttl_ms=None, worker="w"))).task_id for _ in range(20)]
            update = [partial(store.update_task, task_id, status_message="on") for task_id in tasks]
            create = [partial(store.create_task, NewTask(ttl_ms=None)) for _ in range(5)]
            reads: list[Callable[[], Awaitable[Any]]] = [partial(store.get_view, tasks[0]), store.list_lapsed]
            (server.pause if how == "pause" else server.kill)()
            async with waiting(*update, *create, *reads) as calls:
                await anyio.sleep(1.2)
                assert not any(call.done() for call in calls)
                (server.resume if how == "pause" else server.start)()
                with anyio.fail_after(PATIENCE):
                    for call in calls:
                        await call.wait()
            for task_id in tasks:
                record = await store.get_task(task_id)
                assert record is not None
                assert (record.revision, record.task.status_message) == (2, "on")
    ours = [record for record in caplog.records if record.name.startswith("mcp_task_runtime")]
    assert [record.levelname for record in ours] == (["WARNING", "WARNING"] if how == "restart" else [])


async def test_an_outage_longer_than_the_timeout_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    with keeping_server() as server:
        async with aclosing(RedisTaskStore(server.url, timeout=1.0)) as store:
            await in_time(lambda: store.get_task("T"))
            caplog.clear()
            server.pause()
            for _ in range(2):
                began = anyio.current_time()
                with pytest.raises(StoreUnavailableError, match=r"^Redis is not available$"):
                    await store.get_task("T")
                assert 0.9 < anyio.current_time() - began < PATIENCE
            server.resume()
            await in_time(lambda: store.get_task("T"))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert all(f"127.0.0.1:{server.port}" in record.getMessage() for record in caplog.records)


async def test_the_figures_of_a_store_follow_what_it_does() -> None:
    with keeping_server() as server:
        store = RedisTaskStore(server.url, timeout=PATIENCE)
        assert store.statistics() == RedisStatistics(
            calls=0, in_flight=0, waiters=0, channels=0, is_listening=False, is_unavailable=False
        )
        async with store:
            record = await store.create_task(NewTask(ttl_ms=None))
            calls = store.statistics().calls
            assert calls >= 1
            async with waiting(partial(store.wait_for_update, record.task_id, after=1)) as (waiter,):
                with anyio.fail_after(PATIENCE):
                    while not (found := store.statistics()).is_listening or not found.channels:
                        await anyio.lowlevel.checkpoint()
                assert (found.waiters, found.channels, found.calls > calls) == (1, 1, True)
                await store.finish_task(record.task_id, Outcome.cancelled())
                await waiter.wait()
            assert store.statistics().waiters == 0
            server.kill()
            with pytest.raises(StoreUnavailableError):
                await store.diagnose()
            async with waiting(partial(store.get_task, record.task_id)) as (reader,):
                await eventually(lambda: store.statistics().is_unavailable)
                server.start()
                assert await reader.wait() is not None
            assert not store.statistics().is_unavailable


class Chaos:
    """Tasks that ask and end through two stores, as of two processes, while their server has faults."""

    def __init__(self, server: RedisServer, asking: RedisTaskStore, answering: RedisTaskStore) -> None:
        self.server, self.asking, self.answering = server, asking, answering
        self.ended: list[TaskRecord] = []
        self.is_over = False

    async def live(self, number: int) -> None:
        for lived in count():
            if self.is_over and lived >= 2:  # a slow machine may have had no more
                break
            await self.live_once({"n": number})

    async def live_once(self, value: dict[str, Any]) -> None:
        store, queue = self.asking, self.asking.message_queue
        record = await store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=60_000))
        assert record.lease is not None
        task_id, fence = record.task_id, record.lease.fence
        assert (await store.ask(task_id, QUESTION, fence=fence)) is not None
        waits = partial(queue.wait_for_answer, task_id, "k"), partial(store.wait_for_update, task_id, after=2)
        async with waiting(*waits) as (asker, follower):
            assert await self.answering.answer_all(task_id, {"k": Answer.result(value)}) == {"k"}
            assert await asker.wait() == Answer.result(value)
            assert (await follower.wait()).revision == 3
        assert await store.record_step(task_id, "s", "1", fence=fence) == "1"
        assert await store.renew_leases("w", [task_id], lease_ms=60_000) == {task_id}
        ended = await store.finish_task(task_id, Outcome.completed(value), fence=fence)
        assert (ended.revision, ended.outcome) == (4, Outcome.completed(value))
        assert await self.answering.get_task(task_id) == ended
        self.ended.append(ended)

    async def have_faults(self, number: int, random: Random) -> None:
        server = self.server
        for _ in range(number):
            await anyio.sleep(random.random() / 5)
            match random.choice(["cut", "pause", "restart"]):
                case "cut":
                    server.cut_connections()
                case "pause":
                    server.pause()
                    await anyio.sleep(random.random() / 3)
                    server.resume()
                case "restart":
                    server.kill()
                    await anyio.sleep(random.random() / 3)
                    await anyio.to_thread.run_sync(server.start)
        self.is_over = True


@pytest.mark.parametrize("seed", range(4 if IS_LONG else 1))
async def test_no_fault_of_the_server_loses_doubles_or_ends_anything(seed: int) -> None:
    """L12: cut connections, pauses and crashes that are shorter than the timeout are not noticed by any operation."""
    with keeping_server() as server:
        async with RedisTaskStore(server.url, timeout=30) as store, RedisTaskStore(server.url, timeout=30) as other:
            chaos = Chaos(server, store, other)
            async with anyio.create_task_group() as group:
                group.start_soon(chaos.have_faults, 250 if IS_LONG else 15, Random(seed))
                for number in range(5):
                    group.start_soon(chaos.live, number)
            assert len(chaos.ended) >= 10
            counts = await store.count_tasks()
            assert counts.by_status_and_name == {("completed", ""): len(chaos.ended)}
            for ended in chaos.ended:
                assert await store.get_task(ended.task_id) == ended


async def test_closing_ends_what_waits_for_a_server_that_is_away() -> None:
    with keeping_server() as server:
        store = RedisTaskStore(server.url, timeout=2 * PATIENCE)
        async with store:
            server.kill()
            async with waiting(partial(store.get_task, "T"), partial(store.list_lapsed)) as calls:
                await anyio.sleep(0.3)
                with anyio.fail_after(PATIENCE):
                    await store.aclose()
                    for call in calls:
                        with pytest.raises(StoreClosedError):
                            await call.wait()


@pytest.mark.parametrize("why", ["no server", "another password"])
async def test_a_server_that_cannot_be_used_at_the_start_is_one_line_that_names_it(
    caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """L12: and never the password."""
    options = ("--requirepass", "right") if why == "another password" else ()
    with own_server(*options, password="right" if options else None) as server:
        if not options:
            server.kill()
        store = RedisTaskStore(f"redis://:s3cret@127.0.0.1:{server.port}/0", timeout=PATIENCE)
        began = anyio.current_time()
        with pytest.raises(StoreError) as caught:
            async with store:
                raise AssertionError("opened without a server")
        assert anyio.current_time() - began < PATIENCE / 2
        assert isinstance(caught.value, StoreUnavailableError) is (not options)
        said = str(caught.value)
        assert said.startswith(f"Redis at 127.0.0.1:{server.port} ")
        assert "\n" not in said
        assert "s3cret" not in said + caplog.text
        assert not caplog.records


async def test_a_server_that_may_evict_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with own_server("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru") as server:
        async with RedisTaskStore(server.url) as store:
            server.cut_connections()
            await store.get_task("T")
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage() == (
            f"Redis at 127.0.0.1:{server.port} may evict tasks: its maxmemory-policy is volatile-lru;"
            " set maxmemory-policy to noeviction"
        )
        caplog.clear()
        for name, value in (("maxmemory", "0"), ("maxmemory-policy", "noeviction")):
            server.client.config_set("maxmemory", "100mb")
            server.client.config_set("maxmemory-policy", "allkeys-lru")
            server.client.config_set(name, value)
            async with RedisTaskStore(server.url):
                assert not caplog.records


async def test_a_store_may_be_made_before_its_server_is_there() -> None:
    with keeping_server() as server:
        server.kill()
        store = RedisTaskStore(server.url)
        with pytest.raises(StoreUnavailableError):
            async with store:
                raise AssertionError("opened without a server")
        server.start()
        async with store:
            assert await store.get_task("x") is None


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    with own_server() as server:
        server.pause()
        store = RedisTaskStore(server.url, timeout=0.2)
        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
            await store.get_task("x")
        await store.aclose()


async def test_a_server_without_its_scripts_gets_them_again(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=None))
        server.client.script_flush()
        assert (await store.update_task(record.task_id, status_message="x")).revision == 2
        assert (await store.update_task(record.task_id, status_message="y")).revision == 3


async def test_a_full_server_is_unavailable_and_changes_nothing(prefix: str) -> None:
    with keeping_server() as server:
        async with RedisTaskStore(server.url) as store, aclosing(RedisTaskStore(server.url, timeout=1.0)) as hasty:
            record = await store.create_task(NewTask(ttl_ms=None))
            server.client.config_set("maxmemory", "1")
            with pytest.raises(StoreUnavailableError):
                await hasty.finish_task(record.task_id, DONE)
            assert await store.get_task(record.task_id) == record
            server.client.config_set("maxmemory", "0")
            assert (await store.finish_task(record.task_id, DONE)).outcome == DONE
