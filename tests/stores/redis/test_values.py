"""What could not be read back is refused, and the rest comes back as it was."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import NewTask, Outcome, Progress, TaskFilter, TaskRequest
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import QUESTION, YES
from tests.stores.redis_server import RedisServer

LONE = "a\ud800"


DEEP = "[" * 1_000 + "]" * 1_000


LONG = "9" * 5_000


async def test_what_could_not_be_read_back_is_refused_and_changes_nothing(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    """L4: lone surrogates, JSON that is too deep and integers that are too long."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        queue = store.message_queue
        record = await store.create_task(NewTask(ttl_ms=None, worker="w", task_id="T"))
        assert record.lease is not None
        fence = record.lease.fence
        asked = await store.ask("T", QUESTION)
        before = server.client.hgetall(f"{prefix}:{{T}}:task"), server.keys(prefix)
        refused: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.update_task("T", status_message=LONE),
            lambda: store.update_task("T", progress=Progress(1, None, LONE)),
            lambda: store.update_task("T", progress=Progress(float("nan"))),
            lambda: store.update_task("T", progress=Progress(1, float("inf"))),
            lambda: store.update_task("T", progress=Progress(10**5_000)),
            lambda: store.update_task("T", ttl_ms=10**15),
            lambda: store.claim_task("T", worker="v", lease_ms=10**15),
            lambda: store.finish_task("T", Outcome("cancelled", None, LONE)),
            lambda: store.claim_task("T", worker=LONE, lease_ms=1),
            lambda: store.ask("T", QueuedMessage("request", LONE, "{}", "x")),
            lambda: store.ask("T", QueuedMessage("request", "m", "{}", LONE)),
            lambda: store.record_step("T", LONE, "1", fence=fence),
            lambda: store.search_tasks(TaskFilter(id_prefix=LONE)),
        ]
        for text in (LONE, DEEP, LONG, '"\\ud800"', "{", ""):
            refused += [
                partial(store.create_task, NewTask(ttl_ms=None, client_capabilities_json=text)),
                partial(store.create_task, NewTask(ttl_ms=None, request=TaskRequest(arguments_json=text))),
                partial(store.create_task, NewTask(ttl_ms=None, request=TaskRequest(caller_json=text))),
                partial(store.finish_task, "T", Outcome("completed", text)),
                partial(store.ask, "T", QueuedMessage("request", "m", text, "x")),
                partial(queue.enqueue, "T", QueuedMessage("request", "m", text, "x")),
                partial(store.answer_all, "T", {"k": Answer("result", text)}),
                partial(queue.answer, "T", "k", Answer("result", text)),
                partial(store.record_step, "T", "s", text, fence=fence),
            ]
        for new in (
            NewTask(ttl_ms=None, task_id=LONE),
            NewTask(ttl_ms=None, owner=LONE),
            NewTask(ttl_ms=None, worker=LONE),
            NewTask(ttl_ms=10**18),
            NewTask(ttl_ms=None, request=TaskRequest(name=LONE)),
            NewTask(ttl_ms=None, request=TaskRequest(method=LONE)),
            NewTask(ttl_ms=None, request=TaskRequest(progress_token=LONE)),
            NewTask(ttl_ms=None, request=TaskRequest(progress_token=10**5_000)),
        ):
            refused.append(partial(store.create_task, new))
        for operation in refused:
            with pytest.raises(ValueError):  # noqa: PT011 - the messages name the argument, each another
                raise AssertionError(f"{operation} returned {await operation()}")
        assert (server.client.hgetall(f"{prefix}:{{T}}:task"), server.keys(prefix)) == before
        assert await store.get_task("T") == asked
        assert await store.get_task(LONE) is None
        assert (await store.list_tasks(owner=LONE)).records == ()
        assert await store.answer_all("T", {LONE: YES}) == frozenset()
        with pytest.raises(TaskNotFoundError):
            await store.update_task(LONE)


async def test_nul_and_large_numbers_come_back_as_they_were(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        arguments = f'{{"n":{"9" * 4_000},"deep":{"[" * 150 + "]" * 150},"nul":"\\u0000"}}'
        request = TaskRequest("m\0", "n\0", arguments, 2**80, True, caller_json=arguments, sealed_credentials="\0")
        record = await store.create_task(
            NewTask(ttl_ms=None, task_id="t\0", owner="o\0", worker="w\0", poll_interval_ms=2**40, request=request)
        )
        assert record.lease is not None
        assert await store.get_task("t\0") == record
        assert (await store.list_tasks(owner="o\0")).records == (record,)
        question = QueuedMessage("request", "m\0", arguments, "k\0")
        await store.ask("t\0", question)
        await store.update_task("t\0", status_message="s\0", progress=Progress(1.5e300, 2, "p\0"))
        view = await store.get_view("t\0")
        assert view is not None
        assert (view.questions, view.task.status_message) == ((question,), "s\0")
        assert view.record.progress == Progress(1.5e300, 2, "p\0")
        assert await store.record_step("t\0", "s\0", arguments, fence=record.lease.fence) == arguments
        assert await store.read_steps("t\0") == {"s\0": arguments}
        outcome = Outcome("completed", arguments, "d\0")
        assert (await store.finish_task("t\0", outcome)).outcome == outcome
