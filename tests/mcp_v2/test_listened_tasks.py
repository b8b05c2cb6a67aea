"""The tasks of one listen stream: those with news come in turn, and each to one caller at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from mcp_task_runtime import InMemoryTaskStore, Outcome, TaskRuntime
from mcp_task_runtime.adapters.mcp_v2._listened import ListenedTasks
from mcp_task_runtime.core.types import NewTask
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class World:
    """Tasks in a store, and those that are listened to."""

    def __init__(self, store: InMemoryTaskStore, runtime: TaskRuntime, listened: ListenedTasks) -> None:
        self.store = store
        self.runtime = runtime
        self.listened = listened

    async def follow(self) -> str:
        record = await self.store.create_task(NewTask(ttl_ms=None))
        self.listened.follow(record.task_id, after=record.revision)
        return record.task_id

    async def change(self, task_id: str, said: str) -> None:
        await self.store.update_task(task_id, status_message=said)

    async def take(self) -> tuple[str, str | None]:
        """Take a task, and return it and what it says."""
        taken = await self.listened.next()
        assert taken is not None
        view = await taken[1].news()
        return taken[0], None if view is None else view.task.status_message


@asynccontextmanager
async def world_of_tasks() -> AsyncGenerator[World, None]:
    store = InMemoryTaskStore()
    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store) as runtime:
            with ListenedTasks(runtime.followers) as listened:
                yield World(store, runtime, listened)
            assert runtime.statistics().followed == 0


async def test_tasks_come_in_the_order_of_their_news_with_what_is_newest() -> None:
    async with world_of_tasks() as world:
        first, second = await world.follow(), await world.follow()
        await anyio.wait_all_tasks_blocked()
        await world.change(second, "once")
        await anyio.wait_all_tasks_blocked()
        await world.change(first, "once")
        await world.change(second, "twice")
        await anyio.wait_all_tasks_blocked()
        assert await world.take() == (second, "twice")
        assert await world.take() == (first, "once")


async def test_a_task_that_was_taken_comes_again_when_it_was_put_back() -> None:
    async with world_of_tasks() as world:
        first, second = await world.follow(), await world.follow()
        await anyio.wait_all_tasks_blocked()
        await world.change(first, "once")
        assert await world.take() == (first, "once")
        await world.change(first, "twice")
        await anyio.wait_all_tasks_blocked()
        await world.change(second, "once")
        assert await world.take() == (second, "once")
        world.listened.put_back(first)
        assert await world.take() == (first, "twice")
        world.listened.put_back(first)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(world.listened.next)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught, "neither has anything newer"


async def test_who_waits_hears_that_no_task_is_followed_any_more() -> None:
    async with world_of_tasks() as world:
        left = await world.follow()
        ended = await world.follow()
        await anyio.wait_all_tasks_blocked()
        await world.store.finish_task(ended, Outcome.cancelled())
        assert (await world.take())[0] == ended
        world.listened.leave(ended)
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                assert await world.listened.next() is None

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            world.listened.leave(left)
        assert world.runtime.statistics().followed == 0


async def test_a_task_that_was_left_does_not_come_though_it_had_news() -> None:
    async with world_of_tasks() as world:
        left, other = await world.follow(), await world.follow()
        await anyio.wait_all_tasks_blocked()
        await world.change(left, "once")
        await anyio.wait_all_tasks_blocked()
        world.listened.leave(left)
        await world.change(other, "once")
        assert await world.take() == (other, "once")
