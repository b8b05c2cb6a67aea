"""`Mutant`, how one is registered, and what mutants share to change a task without the store's methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from mcp_task_runtime.core.types import Lease
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.stores.memory._entry import Entry
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock


@dataclass(frozen=True)
class Mutant:
    """A faulty backend.

    Attributes:
        name: What is wrong with it.
        kind: What it is a mutant of: `store`, `queue` or `backend`.
        killers: The checks that must find the fault.
        factory: Opens it.
        fault: Its number among the faults of the SDK's own runtime.
    """

    name: str
    kind: str
    killers: tuple[str, ...]
    factory: Callable[[FakeClock, str], AbstractAsyncContextManager[Any]]
    fault: int | None = None

    def __str__(self) -> str:
        return self.name


MUTANTS: list[Mutant] = []


def live(store: InMemoryTaskStore, task_id: str) -> Entry:
    """Return what the store has of a task."""
    store._purge()
    return store._entry(task_id)


def store_mutant(
    *killers: str, fault: int | None = None
) -> Callable[[type[InMemoryTaskStore]], type[InMemoryTaskStore]]:
    def register(mutant: type[InMemoryTaskStore]) -> type[InMemoryTaskStore]:
        MUTANTS.append(Mutant(mutant.__name__, "store", killers, lambda clock, location: mutant(clock=clock), fault))
        return mutant

    return register


def queue_mutant(
    *killers: str, fault: int | None = None
) -> Callable[[type[InMemoryTaskMessageQueue]], type[InMemoryTaskMessageQueue]]:
    def register(mutant: type[InMemoryTaskMessageQueue]) -> type[InMemoryTaskMessageQueue]:
        MUTANTS.append(Mutant(mutant.__name__, "queue", killers, lambda clock, location: mutant(), fault))
        return mutant

    return register


def backend_mutant(name: str, *killers: str, fault: int | None = None, **replaced: Any) -> None:
    @asynccontextmanager
    async def factory(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with InMemoryTaskStore(clock=clock) as store, InMemoryTaskMessageQueue() as queue:
            yield TaskBackend(store, queue, **replaced)

    MUTANTS.append(Mutant(name, "backend", killers, factory, fault))


def lease_of(store: InMemoryTaskStore, task_id: str, worker: str) -> Lease | None:
    """Return the lease that a worker holds of a task."""
    entry = store._entries.get(task_id)
    lease = None if entry is None else entry.record.lease
    return lease if lease is not None and lease.worker == worker else None


def set_lease(store: InMemoryTaskStore, task_id: str, lease: Lease | None) -> None:
    """Change the lease of a task, and nothing else."""
    entry = store._entries[task_id]
    entry.record = replace(entry.record, lease=lease)
    store._leases.set(entry.record)


def from_now(store: InMemoryTaskStore, milliseconds: int) -> datetime:
    """Return a time in the store's future."""
    return store.clock.now() + timedelta(milliseconds=milliseconds)
