"""Round trips, and the server's work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import coredis
import coredis.exceptions
import pytest

from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, NOTE, QUESTION, YES, eventually, waiting
from tests.stores.redis_server import RedisServer, counting
from tests.support.patience import PATIENCE


async def test_no_operation_takes_more_than_one_round_trip(server: RedisServer, prefix: str) -> None:
    async def count_each(store: RedisTaskStore, task: str) -> list[int]:
        queue = store.message_queue
        worker = f"worker of {task}"
        operations: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.create_task(
                NewTask(task_id=task, ttl_ms=60_000, owner="ada", worker=worker, retention_ms=90_000)
            ),
            lambda: store.get_task(task),
            lambda: store.update_task(task, status_message="x"),
            lambda: store.get_result(task),
            lambda: store.list_tasks(owner="ada"),
            lambda: store.wait_for_update(task, after=0),
            lambda: store.renew_leases(worker, [task, "U", "V"], lease_ms=1),
            lambda: store.list_lapsed(),
            lambda: store.claim_task(task, worker="v", lease_ms=1_000),
            lambda: store.drop_leases("v", [task], lapse=True),
            lambda: queue.enqueue(task, QUESTION),
            lambda: queue.enqueue(task, NOTE),
            lambda: queue.wait_for_message(task),
            lambda: queue.peek(task),
            lambda: queue.is_empty(task),
            lambda: queue.outstanding(task),
            lambda: queue.answer(task, "k", YES),
            lambda: queue.wait_for_answer(task, "k"),
            lambda: queue.dequeue(task),
            lambda: queue.clear(task),
            lambda: store.finish_task(task, DONE),
            lambda: store.delete_task(task),
        ]
        taken = []
        for operation in operations:
            before = trips.count
            await operation()
            taken.append(trips.count - before)
        return taken

    async with counting(server) as trips, RedisTaskStore(trips.url, prefix=prefix) as store:
        runs = [await count_each(store, f"T{number}") for number in range(3)]
    least = [min(counts) for counts in zip(*runs, strict=True)]  # the first sends the scripts, and opens connections
    assert set(least) == {1}, least


async def test_an_asker_elsewhere_is_awake_after_two_round_trips(server: RedisServer, prefix: str) -> None:
    """One that answers, and one that reads what was answered; the news between them comes unasked."""
    async with counting(server) as trips:
        async with (
            RedisTaskStore(trips.url, prefix=prefix) as asking,
            RedisTaskStore(trips.url, prefix=prefix) as answering,
        ):
            taken = []
            for number in range(50):  # a busy machine may begin a subscription late
                await asking.message_queue.enqueue(f"T{number}", QUESTION)
                async with waiting(partial(asking.message_queue.wait_for_answer, f"T{number}", "k")) as (asker,):
                    await anyio.sleep(0.1)  # until it has looked again, when its subscription began
                    await eventually(lambda: asking.statistics().waiters == 1 and not asking.statistics().in_flight)
                    before = trips.count
                    await answering.message_queue.answer(f"T{number}", "k", YES)
                    assert await asker.wait() == YES
                    taken.append(trips.count - before)
                if taken[-1] == 2:
                    break
    assert taken[-1] == 2, taken


async def test_an_operation_costs_the_server_the_same_with_many_tasks(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix, timeout=PATIENCE) as store:
        costs = []
        for count in (10, 2_000):
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(partial(store.create_task, NewTask(ttl_ms=60_000, owner="ada", worker="w")))
            server.client.config_resetstat()
            task_id = (await store.create_task(NewTask(ttl_ms=60_000, owner="ada", worker="w"))).task_id
            await store.get_task(task_id)
            await store.update_task(task_id, status_message="x")
            await store.finish_task(task_id, DONE)
            assert len((await store.list_tasks(owner="ada", limit=5)).records) == 5
            await store.delete_task(task_id)
            stats: dict[str, Any] = server.client.info("commandstats")
            costs.append(sum(entry["calls"] for entry in stats.values()))
        assert costs[1] <= costs[0] + 50  # of two thousand more


async def test_what_may_be_lost_is_lost_without_a_word_when_the_connection_is_just_closing(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*arguments: Any, **options: Any) -> Any:
        raise anyio.ClosedResourceError

    async with RedisTaskStore(server.url, prefix=prefix) as store:
        async with anyio.create_task_group() as group:
            group.start_soon(store.message_queue.wait_for_message, "T")
            with anyio.fail_after(PATIENCE):
                while not server.keys(prefix):  # noqa: ASYNC110 - the waiter's mark tells of no event
                    await anyio.sleep(0.01)
            with monkeypatch.context() as patch:
                patch.setattr(coredis.connection.TCPConnection, "create_request", closed)
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)
