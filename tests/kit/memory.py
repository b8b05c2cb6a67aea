"""How the kit opens the in-memory backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.testing import Capability, FakeClock, TaskBackend

ABILITIES: tuple[Capability, ...] = (
    "fences",
    "joins",
    "journal",
    "leases",
    "listing",
    "mailbox",
    "owners",
    "questions",
    "quotas",
    "search",
    "sweeping",
    "watching",
    "work",
)
"""What the in-memory backend is able to do."""

OF_A_BACKEND: frozenset[Capability] = frozenset({"connecting", "diagnosis"})
"""What a store is able to do whose tasks are elsewhere than in memory."""

ONLY_ON_SERVERS: frozenset[Capability] = frozenset({"ends", "taking"})
"""What the bundled stores of one machine are not able to do."""


def memory_store(clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
    return InMemoryTaskStore(clock=clock)


def memory_queue(clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskMessageQueue]:
    return InMemoryTaskMessageQueue()


@asynccontextmanager
async def memory_backend(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
    async with InMemoryTaskStore(clock=clock) as store:
        yield TaskBackend(store, store.message_queue)
