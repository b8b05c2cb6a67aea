"""The law of fenced writes, as named checks: a run of the work that lost its lease writes nothing (law L12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.store import TaskLeases, TaskStore
from mcp_task_runtime.core.types import Fence, TaskRecord
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, RevisionConflictError, TaskNotFoundError
from mcp_task_runtime.testing.checks.abilities import (
    AbleStore,
    able,
    claimed_task,
    fence_of,
    leased_task,
    require_unchanged,
)
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task
from mcp_task_runtime.testing.concurrency.interleaving import Race, check_interleavings

__all__ = ["FENCE_CHECKS"]

FENCE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(FENCE_CHECKS)
_NEEDS: Final = ("fences", "leases")


def _writes(store: AbleStore, task_id: str, fence: Fence) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "update_task": partial(store.update_task, task_id, status_message="from a run", fence=fence),
        "finish_task": partial(store.finish_task, task_id, OUTCOMES[0], fence=fence),
    }


async def _require_refused(store: AbleStore, record: TaskRecord, fence: Fence, why: str) -> None:
    for name, write in _writes(store, record.task_id, fence).items():
        await require_raises(LeaseLostError, write(), f"{name} of a run {why}")
        await require_unchanged(store, record, f"{name} of a run {why}")


@_check("L12", needs=_NEEDS)
async def a_run_that_holds_the_lease_writes(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for outcome in OUTCOMES:
        created = await leased_task(store)
        fence = fence_of(created)
        changed = await store.update_task(created.task_id, status="input_required", fence=fence)
        require(changed.status == "input_required", "an update of the run that holds the lease was not made")
        bench.clock.advance(30)  # lapsed, and claimed by no other: the run may still write
        changed = await store.update_task(created.task_id, status_message="late, not lost", fence=fence)
        require(changed.task.status_message == "late, not lost", "a run whose lease only lapsed could not write")
        await store.renew_leases("one", [created.task_id], lease_ms=10_000)
        ended = await store.finish_task(created.task_id, outcome, fence=fence)
        require(ended.outcome == outcome, "the run that holds the lease could not end its task")


@_check("L12", needs=_NEEDS)
async def a_run_that_lost_its_lease_changes_nothing(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store)
    lost = [fence_of(created)]
    for worker in ("two", "one", "one"):  # the same worker in a later run is another run
        bench.clock.advance(10)
        claimed = await claimed_task(store, created.task_id, worker)
        wait = partial(store.wait_for_update, created.task_id, after=claimed.revision)
        async with bench.waiting(wait) as (waiter,):
            for fence in lost:
                await _require_refused(store, claimed, fence, "that lost its lease")
            require(not waiter.done(), "a refused write of a run that lost its lease woke a waiter")
        lost.append(fence_of(claimed))
    current = lost.pop()
    changed = await store.update_task(created.task_id, status_message="mine", fence=current)
    for fence in lost:
        await _require_refused(store, changed, fence, "that lost its lease")
    ended = await store.finish_task(created.task_id, OUTCOMES[0], fence=current)
    require(ended.outcome == OUTCOMES[0], "the run that claimed a lost task could not end it")


@_check("L12", needs=_NEEDS)
async def a_run_without_a_lease_changes_nothing(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    fence = Fence("one", 1)
    never = await leased_task(store, None)
    await _require_refused(store, never, fence, "of a task that never had a lease")
    waiting = await leased_task(store, "")
    await _require_refused(store, waiting, fence, "of a task that waits for a worker")
    dropped = await leased_task(store)
    await store.drop_leases("one", [dropped.task_id], lapse=False)
    await _require_refused(store, await read_task(store, dropped.task_id), fence, "that dropped its lease for good")
    handed_over = await leased_task(store)
    await store.drop_leases("one", [handed_over.task_id], lapse=True)
    put_back = await store.claim_task(handed_over.task_id, worker="", lease_ms=10_000)
    if put_back is None:
        raise AssertionError("a task whose lease has lapsed could not be put back to wait for a worker")
    await _require_refused(store, put_back, fence, "of a task that was put back")
    for record in (never, put_back):  # without a fence anyone writes
        ended = await store.finish_task(record.task_id, OUTCOMES[2])
        require(ended.outcome == OUTCOMES[2], "a write without a fence was refused")


@_check("L12", "L1", needs=_NEEDS)
async def a_fence_is_checked_after_the_status_and_before_the_revision(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store)
    fence, other = fence_of(created), Fence("two", 1)
    task_id = created.task_id
    stale = store.update_task(task_id, status_message="no", if_revision=7, fence=other)
    await require_raises(LeaseLostError, stale, "update_task with a wrong fence and a wrong revision")
    late = store.update_task(task_id, status_message="no", if_revision=7, fence=fence)
    await require_raises(RevisionConflictError, late, "update_task with the right fence and a wrong revision")
    await require_unchanged(store, created, "a refused update with a fence")
    ended = await store.finish_task(task_id, OUTCOMES[0], fence=fence)
    for one in (fence, other):
        for name, write in _writes(store, task_id, one).items():
            await require_raises(InvalidTransitionError, write(), f"{name} with a fence on an ended task")
        await require_unchanged(store, ended, "a refused write with a fence on an ended task")
    for name, write in _writes(store, "unknown", fence).items():
        await require_raises(TaskNotFoundError, write(), f"{name} with a fence on an unknown task")


@_check("L12", "L2", "L6", needs=_NEEDS)
async def fenced_writes_that_overlap_a_claim_have_the_effect_of_some_sequence(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)

    async def setup(kind: str) -> Race:
        created = await leased_task(store)
        fence, task_id = fence_of(created), created.task_id
        bench.clock.advance(10)

        async def claim() -> bool:
            return await store.claim_task(task_id, worker="two", lease_ms=10_000) is not None

        async def write() -> str:
            return (await _writes(store, task_id, fence)[kind]()).status  # type: ignore[no-any-return]

        async def observe() -> tuple[Any, ...]:
            record = await read_task(store, task_id)
            worker = None if record.lease is None else record.lease.worker
            return (record.status, record.task.status_message, record.revision, worker)

        return Race([claim, write], observe)

    for kind in ("update_task", "finish_task"):
        try:
            await check_interleavings(partial(setup, kind), limit=16, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {kind} of a run whose task is claimed meanwhile: {error}") from error
