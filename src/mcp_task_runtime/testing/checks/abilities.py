"""What the checks of a store's abilities share: a store with all of them, as far as types are concerned."""

from __future__ import annotations

from typing import Any, Protocol, cast

from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.store import (
    TaskConnecting,
    TaskDiagnosis,
    TaskEndWatching,
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskOwners,
    TaskQuestions,
    TaskQuotas,
    TaskSearch,
    TaskStore,
    TaskSweeping,
    TaskTaking,
    TaskWatching,
    TaskWork,
)
from mcp_task_runtime.core.types import Fence, NewTask, TaskRecord, TaskRequest
from mcp_task_runtime.testing.checks.bench import require

__all__ = [
    "AbleStore",
    "able",
    "claimed_task",
    "fence_of",
    "lapsed_tasks",
    "leased_task",
    "question",
    "require_unchanged",
    "waiting_task",
]


class AbleStore(
    TaskStore,
    TaskLeases,
    TaskQuestions,
    TaskOwners,
    TaskJournal,
    TaskJoins,
    TaskQuotas,
    TaskSearch,
    TaskWork,
    TaskSweeping,
    TaskTaking,
    TaskWatching,
    TaskEndWatching,
    TaskConnecting,
    TaskDiagnosis,
    Protocol,
):
    """A store with every ability; a check uses those that it needs."""


def able(store: TaskStore, *abilities: type[Any]) -> AbleStore:
    """Return the store, which must have what protocols name."""
    for ability in abilities:
        require(
            isinstance(store, ability),
            f"a store that is said to have the ability lacks a method or property of {ability.__name__}",
        )
    return cast(AbleStore, store)


async def leased_task(
    store: TaskStore, worker: str | None = "one", *, lease_ms: int = 10_000, **options: Any
) -> TaskRecord:
    """Return a new task whose lease a worker holds."""
    return await store.create_task(NewTask(**{"ttl_ms": None, **options}, worker=worker, lease_ms=lease_ms))


async def waiting_task(
    store: TaskStore, name: str = "tool", worker: str = "", lease_ms: int = 0, arguments_json: str = "{}"
) -> TaskRecord:
    """Return a new task of a tool, which waits for a worker unless one holds its lease."""
    request = TaskRequest(name=name, arguments_json=arguments_json)
    return await store.create_task(NewTask(ttl_ms=None, request=request, worker=worker, lease_ms=lease_ms))


async def lapsed_tasks(store: TaskLeases, **options: Any) -> list[str]:
    """Return the ids of the tasks whose lease has lapsed."""
    return [record.task_id for record in await store.list_lapsed(**options)]


async def claimed_task(store: AbleStore, task_id: str, worker: str = "two", lease_ms: int = 10_000) -> TaskRecord:
    """Claim a task that must be to be had, for a worker."""
    claimed = await store.claim_task(task_id, worker=worker, lease_ms=lease_ms)
    if claimed is None:
        raise AssertionError("a live task whose lease has lapsed, or that waits for a worker, cannot be claimed")
    require(await store.get_task(task_id) == claimed, "claim_task returned what it did not store")
    return claimed


def fence_of(record: TaskRecord | None) -> Fence:
    """Return the fence of the run that holds a task's lease."""
    if record is None or record.lease is None:
        raise AssertionError("a task that was made or claimed for a worker has no lease")
    return record.lease.fence


def question(key: str) -> QueuedMessage:
    """Return a question with this key. Nothing else differs: parsers keep texts that they have seen."""
    return QueuedMessage.request(key, "elicitation/create", {"message": "Which city?"})


async def require_unchanged(store: TaskStore, record: TaskRecord, by: str) -> None:
    """Require that a task is stored as it was."""
    stored = await store.get_task(record.task_id)
    require(stored == record, f"{by} changed the task: it is {stored} and was {record}")
