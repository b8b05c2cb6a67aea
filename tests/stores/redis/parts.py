"""What the tests of Redis share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.stores.redis import RedisTaskMessageQueue, RedisTaskStore
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


@asynccontextmanager
async def waiting(*operations: Callable[[], Awaitable[Any]]) -> AsyncIterator[list[Resolver[Any]]]:
    """Have operations wait in the background; how each ends stands in its resolver."""
    resolvers: list[Resolver[Any]] = [Resolver() for _ in operations]

    async def run(operation: Callable[[], Awaitable[Any]], resolver: Resolver[Any]) -> None:
        try:
            resolver.set_result(await operation())
        except Exception as error:
            resolver.set_exception(error)

    async with anyio.create_task_group() as group:
        for operation, resolver in zip(operations, resolvers, strict=True):
            group.start_soon(run, operation, resolver)
        yield resolvers


async def eventually(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - another process tells of no event
            await anyio.sleep(0.02)


async def in_time(operation: Callable[[], Awaitable[Any]]) -> Any:
    """Return what an operation of a store with a short timeout returns once the machine lets it be in time."""
    with anyio.fail_after(PATIENCE):
        while True:
            with suppress(StoreUnavailableError):
                return await operation()


QUESTION = QueuedMessage.request("k", "elicitation/create", {"message": "Sure?"})


NOTE = QueuedMessage.notification("notifications/message", {"n": 1})


YES = Answer.result({"action": "accept"})


DONE = Outcome.completed({"content": []})


IS_LONG = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"


class Opener:
    """Opens at the kit's locations: each is a prefix."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.locations: set[str] = set()

    @asynccontextmanager
    async def store(self, clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        self.locations.add(location)
        async with RedisTaskStore(self.server.url, clock=clock, prefix=location) as store:
            yield store

    @asynccontextmanager
    async def queue(self, clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
        self.locations.add(location)
        async with RedisTaskMessageQueue(self.server.url, clock=clock, prefix=location) as queue:
            yield queue

    @asynccontextmanager
    async def backend(self, clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        self.locations.add(location)
        async with RedisTaskStore(self.server.url, clock=clock, prefix=location) as store:
            yield TaskBackend(store, store.message_queue)

    async def count_items(self, kept: object) -> int:
        return sum(self.server.count_items(location) for location in self.locations)
