"""A task of another owner is an unknown one: nothing of it is read before its owner was compared (law L10)."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mcp_task_runtime import (
    InMemoryTaskStore,
    Outcome,
    StoreError,
    TaskNotFoundError,
    TaskRequest,
    TaskRuntime,
    TaskSettings,
)
from mcp_task_runtime.core.abilities import implements
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.store import TaskOwners
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.yielding import YieldingTaskStore

if TYPE_CHECKING:
    from tests.stores.worker_program import Place

QUESTION = QueuedMessage.request("k", "elicitation/create", {"message": "?"})
SETTINGS = TaskSettings(max_polls_per_second=None, shutdown_grace=0)

Door = Callable[[TaskRuntime, str], Awaitable[Any]]
DOORS: dict[str, Door] = {
    "get": lambda runtime, owner: runtime.get("a", owner=owner),
    "result": lambda runtime, owner: runtime.result("a", owner=owner),
    "answer": lambda runtime, owner: runtime.answer("a", {"k": {"action": "decline"}}, owner=owner),
    "cancel": lambda runtime, owner: runtime.cancel("a", owner=owner),
}


@asynccontextmanager
async def a_store(place: Place | None) -> AsyncGenerator[Any, None]:
    async with InMemoryTaskStore() if place is None else place.store() as store:
        yield store


@pytest.mark.parametrize("owner", ["ada", "", None])
async def test_a_task_is_found_for_its_owner_alone_with_its_open_questions(place: Place, owner: str | None) -> None:
    for where in (None, place):
        async with a_store(where) as store:
            await check_finding(store, owner)


async def check_finding(store: Any, owner: str | None) -> None:
    assert implements(store, TaskOwners)
    await store.create_task(NewTask(ttl_ms=None, task_id="a", owner=owner))
    changes: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.update_task("a", status_message="x"),
        lambda: store.ask("a", QUESTION),
        lambda: store.answer_all("a", {"k": Answer.result({})}),
        lambda: store.finish_task("a", Outcome.completed({"n": 1})),
    ]
    for change in changes:
        await change()
        assert await store.get_owned("a", owner=owner) == await store.get_view("a")
        for other in {"ada", "", None, "eve", "a", "\ud800"} - {owner}:
            assert await store.get_owned("a", owner=other) is None
    assert await store.get_owned("b", owner=owner) is None


async def damage(place: Place, request: pytest.FixtureRequest) -> None:
    """Spoil the arguments of the only task."""
    if place.kind == "sqlite":
        with sqlite3.connect(place.address) as connection:
            assert connection.execute("UPDATE tasks SET arguments = '{', client_capabilities = 7").rowcount == 1
        connection.close()
    elif place.kind == "redis":
        redis = request.getfixturevalue("redis")
        (key,) = [key for key in redis.keys(place.name) if "{a}" in key and redis.client.hexists(key, "request")]
        redis.client.hset(key, "request", "{")
    else:
        request.getfixturevalue("postgres").execute(f"UPDATE {place.name}.tasks SET request_arguments = '[1]'")


async def test_a_damaged_task_of_another_owner_is_an_unknown_one_at_every_door(
    place: Place, request: pytest.FixtureRequest
) -> None:
    """What is damaged shows what was read."""
    async with a_store(place) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="a", owner="ada", request=TaskRequest(name="tool")))
    await damage(place, request)
    async with a_store(place) as store, TaskRuntime(store, settings=SETTINGS) as runtime:
        for door in DOORS.values():
            with pytest.raises(TaskNotFoundError):
                await door(runtime, "eve")
            with pytest.raises(StoreError):
                await door(runtime, "ada")


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
async def test_a_store_of_a_users_own_is_asked_for_nothing_more_of_a_task_of_another_owner(door: Door) -> None:
    calls: list[str] = []

    class Counting(YieldingTaskStore):
        async def get_task(self, task_id: str) -> Any:
            calls.append("get_task")
            return await super().get_task(task_id)

    memory = InMemoryTaskStore()
    await memory.create_task(NewTask(ttl_ms=None, task_id="a", owner="ada"))
    queue = memory.message_queue
    outstanding = queue.outstanding

    async def counting(task_id: str) -> Any:
        calls.append("outstanding")
        return await outstanding(task_id)

    queue.outstanding = counting  # type: ignore[method-assign]
    async with TaskRuntime(Counting(memory), queue, settings=SETTINGS) as runtime:
        with pytest.raises(TaskNotFoundError):
            await door(runtime, "eve")
    assert calls == ["get_task"]
