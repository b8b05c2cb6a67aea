"""Opening and closing, on one event loop and several."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import anyio
import coredis
import coredis.exceptions
import pytest

from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores.redis import RedisTaskMessageQueue, RedisTaskStore
from tests.stores.redis.parts import DONE, eventually, waiting
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


async def test_a_store_opens_when_it_is_first_used(server: RedisServer, prefix: str) -> None:
    store = RedisTaskStore(f"{server.url}/0?client_name={prefix}", prefix=prefix)
    assert server.connections(prefix) == 0
    record = await store.create_task(NewTask(ttl_ms=None))
    async with waiting(partial(store.wait_for_update, record.task_id, after=1)) as (waiter,):
        await eventually(lambda: server.connections(prefix) == 2)
        await store.aclose()
        with anyio.fail_after(PATIENCE), pytest.raises(StoreClosedError):
            await waiter.wait()
    for _ in range(2):
        await store.aclose()
    for operation in (store.get_task("x"), store.message_queue.peek("x"), store.wait_for_update("x", after=0)):
        with pytest.raises(StoreClosedError):
            await operation
    await eventually(lambda: server.connections(prefix) == 0)


@pytest.mark.parametrize(("first", "second"), list(product(["asyncio", "trio"], repeat=2)))
def test_a_store_that_nobody_closes_outlives_its_event_loop(
    server: RedisServer, prefix: str, first: str, second: str
) -> None:
    store = RedisTaskStore(f"{server.url}/0?client_name={prefix}", prefix=prefix)

    async def create() -> str:
        return (await store.create_task(NewTask(ttl_ms=60_000))).task_id

    async def wait(task_id: str) -> None:
        async with waiting(partial(store.wait_for_update, task_id, after=1)) as (waiter,):
            await store.update_task(task_id, status_message="on")
            assert (await waiter.wait()).revision == 2

    task_id = anyio.run(create, backend=first)
    anyio.run(wait, task_id, backend=second)
    anyio.run(eventually, lambda: server.connections(prefix) == 0)  # closing may take the server a moment


async def test_a_client_that_was_handed_in_stays_the_callers(server: RedisServer, prefix: str) -> None:
    async with coredis.Redis.from_url(server.url, decode_responses=True) as client:
        async with RedisTaskStore(client, prefix=prefix) as store:
            record = await store.create_task(NewTask(ttl_ms=None))
            async with waiting(partial(store.wait_for_update, record.task_id, after=1)) as (waiter,):
                await store.finish_task(record.task_id, DONE)
                assert (await waiter.wait()).outcome == DONE
        assert await client.exists([f"{prefix}:{{{record.task_id}}}:task"]) == 1


async def test_a_queue_can_be_closed_before_its_store(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        async with store.message_queue as queue:
            async with waiting(partial(queue.wait_for_message, "T")) as (waiter,):
                await anyio.sleep(0.05)
                await queue.aclose()
                with pytest.raises(StoreClosedError):
                    await waiter.wait()
        with pytest.raises(StoreClosedError):
            await queue.peek("T")
        assert await store.get_task("T") is None


@pytest.mark.parametrize(
    "arguments",
    [
        {"source": "http://localhost"},
        {"source": "redis://"},
        {"source": "redis://localhost", "prefix": ""},
        {"source": "redis://localhost", "prefix": "a{b}"},
        {"source": "redis://localhost", "timeout": 0},
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any]) -> None:
    for kind in (RedisTaskStore, RedisTaskMessageQueue):
        with pytest.raises(ValueError, match=list(arguments)[-1]):
            kind(**arguments)
