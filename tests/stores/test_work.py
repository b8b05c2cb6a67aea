"""Laws L3 and L12 for tasks that wait for a worker: each store shows them to workers, and wakes those that wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import InMemoryTaskStore, Outcome, StoreClosedError
from mcp_task_runtime.core.types import NewTask, TaskRecord, TaskRequest
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from tests.stores.worker_program import Place

pytestmark = pytest.mark.anyio


async def wait_for_worker(store: Any, name: str = "tool", lease_ms: int = 0, **more: Any) -> TaskRecord:
    record: TaskRecord = await store.create_task(
        NewTask(ttl_ms=None, request=TaskRequest(name=name, **more), worker="", lease_ms=lease_ms)
    )
    return record


@asynccontextmanager
async def two_connections(place: Place | None) -> AsyncIterator[tuple[Any, Any]]:
    """Two stores on one place, as two processes have them; of memory there is only one."""
    with anyio.fail_after(PATIENCE):
        if place is None:
            async with InMemoryTaskStore() as store:
                yield store, store
        else:
            async with place.store() as one, place.store() as other:
                yield one, other


async def test_memory_shows_what_waits_and_wakes_workers() -> None:
    async with two_connections(None) as (one, other):
        await check_all(one, other)


async def test_every_shared_store_shows_what_waits_and_wakes_workers(
    new_place: Callable[[Path], Place], tmp_path: Path
) -> None:
    async with two_connections(new_place(tmp_path)) as (one, other):
        await check_all(one, other)


async def check_all(one: Any, other: Any) -> None:
    await shows_waiting_tasks_in_their_order(one, other)
    await shows_tools_behind_those_of_others(one, other)
    await wakes_for_a_new_task(one, other)
    await wakes_for_a_task_that_is_put_back(one, other)
    await wakes_when_it_is_closed(one, other)


async def ids(store: Any, *names: str, limit: int = 10) -> list[str]:
    return [record.task_id for record in await store.wait_for_work(names, limit=limit)]


async def shows_waiting_tasks_in_their_order(one: Any, other: Any) -> None:
    first, second = await wait_for_worker(one), await wait_for_worker(one)
    await wait_for_worker(one, "tool", lease_ms=60_000)  # an engine carries this one
    await one.create_task(NewTask(ttl_ms=None, request=first.request, worker="lost", lease_ms=0))
    assert await ids(other, "tool") == [first.task_id, second.task_id]
    assert await ids(other, "tool", limit=1) == [first.task_id]
    assert (await other.wait_for_work(["tool"], limit=1))[0] == first
    assert await one.claim_task(first.task_id, worker="w", lease_ms=60_000)
    assert await ids(other, "tool") == [second.task_id]
    await one.finish_task(second.task_id, Outcome.cancelled())
    with pytest.raises(ValueError, match="limit"):
        await other.wait_for_work(["tool"], limit=0)


async def shows_tools_behind_those_of_others(one: Any, other: Any) -> None:
    for _ in range(5):
        await wait_for_worker(one, "theirs")
    ours = await wait_for_worker(one, "ours")
    assert await ids(other, "ours", "unknown", limit=2) == [ours.task_id]
    for task_id in [ours.task_id, *await ids(other, "theirs")]:
        await one.finish_task(task_id, Outcome.cancelled())


async def wakes_for_a_new_task(one: Any, other: Any) -> None:
    found: list[list[str]] = []

    async def wait(store: Any) -> None:
        found.append(await ids(store, "new"))

    async with anyio.create_task_group() as group:
        group.start_soon(wait, one)
        group.start_soon(wait, other)
        await anyio.wait_all_tasks_blocked()
        other_tool = await wait_for_worker(one, "not new")
        record = await wait_for_worker(one, "new")
    assert found == [[record.task_id]] * 2
    for each in (record, other_tool):
        await one.finish_task(each.task_id, Outcome.cancelled())


async def wakes_for_a_task_that_is_put_back(one: Any, other: Any) -> None:
    record = await one.create_task(
        NewTask(ttl_ms=None, request=TaskRequest(name="again"), worker="here", lease_ms=60_000)
    )
    found: list[list[str]] = []

    async def wait() -> None:
        found.append(await ids(other, "again"))

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await one.drop_leases("here", [record.task_id], lapse=True)
        assert await one.claim_task(record.task_id, worker="", lease_ms=0)
    assert found == [[record.task_id]]
    await one.finish_task(record.task_id, Outcome.cancelled())


async def wakes_when_it_is_closed(one: Any, other: Any) -> None:
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            with pytest.raises(StoreClosedError):
                await other.wait_for_work(["nothing"], limit=1)

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await other.aclose()
