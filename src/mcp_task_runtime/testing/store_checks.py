"""The laws of `TaskStore`, as named checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import Lease, LiveStatus, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import (
    InvalidCursorError,
    InvalidTransitionError,
    RevisionConflictError,
    StoreClosedError,
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.testing.bench import (
    BACKENDS,
    LISTING,
    Bench,
    Capability,
    Check,
    CheckReport,
    Factory,
    Footprint,
    checks_into,
    require,
    require_raises,
    run_checks,
    start,
)
from mcp_task_runtime.testing.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.cost import count_work, measured_memory
from mcp_task_runtime.testing.interleaving import Race, check_interleavings
from mcp_task_runtime.testing.stepping import quiesce

__all__ = ["STORE_CHECKS", "check_task_store"]

STORE_CHECKS: Final[list[Check[TaskStore]]] = []
"""All checks of `check_task_store`, for a test runner that wants one test for each."""

_check = checks_into(STORE_CHECKS)

_Bench: TypeAlias = Bench[TaskStore]

_LIVE: Final[tuple[LiveStatus, ...]] = ("working", "input_required")
_OUTCOMES: Final = (
    Outcome.completed({"content": [{"type": "text", "text": "grüß 🌍"}], "isError": False}),
    Outcome.failed("no such thing", code=-32001, data={"why": [1, None]}),
    Outcome.cancelled(status_message="stopped"),
)


def check_task_store(
    factory: Factory[TaskStore],
    *,
    capabilities: Collection[Capability] = LISTING,
    backends: Collection[str] = BACKENDS,
    patience: float = 5.0,
    footprint: Footprint[TaskStore] | None = None,
) -> CheckReport:
    """Check every law that holds for any `TaskStore`, on each event loop.

    Args:
        factory: Opens a store; see `Factory`.
        capabilities: What the store is able to do; see `Capability`. Checks that need more are left out.
        backends: The event loops, by their anyio names.
        patience: Seconds that something which must happen may take.
        footprint: Counts what the backend keeps; without it this process's memory is measured.

    Returns:
        What was checked and what was left out.

    Raises:
        AssertionError: A law is broken; the message says which and how, for each broken one.
    """
    return run_checks(
        STORE_CHECKS,
        factory,
        capabilities=capabilities,
        backends=backends,
        patience=patience,
        footprint=footprint,
    )


async def _read(store: TaskStore, task_id: str) -> TaskRecord:
    record = await store.get_task(task_id)
    if record is None:
        raise AssertionError("a task that was created and neither deleted nor expired was not found")
    return record


async def _ended(store: TaskStore, outcome: Outcome = _OUTCOMES[0], **options: Any) -> TaskRecord:
    created = await store.create_task(**{"ttl_ms": None, **options})
    return await store.finish_task(created.task_id, outcome)


async def _view(store: TaskStore, task_id: str) -> tuple[Any, ...]:
    """Return what matters of a task, comparable between tasks; also check L2 on the way."""
    record = await store.get_task(task_id)
    if record is None:
        return ("gone",)
    _require_whole(record)
    return (record.status, record.task.status_message, record.revision, record.outcome, record.task.ttl_ms)


def _require_whole(record: TaskRecord) -> None:
    if record.status in TERMINAL_STATUSES:
        require(record.outcome is not None, f"a reader saw a task that is {record.status!r} without an outcome")
        require(
            record.outcome is not None and record.outcome.status == record.status,
            f"a reader saw a task that is {record.status!r} with the outcome of one that ended otherwise",
        )
    else:
        require(record.outcome is None, f"a reader saw an outcome on a task that is {record.status!r}")


async def _require_gone(store: TaskStore, task_id: str, why: str) -> None:
    require(await store.get_task(task_id) is None, f"get_task returned a task that {why}")
    missing: dict[str, Callable[[], Awaitable[Any]]] = {
        "update_task": partial(store.update_task, task_id, status_message="late"),
        "finish_task": partial(store.finish_task, task_id, _OUTCOMES[0]),
        "get_result": partial(store.get_result, task_id),
        "wait_for_update": partial(store.wait_for_update, task_id, after=0),
    }
    for name, operation in missing.items():
        await require_raises(TaskNotFoundError, operation(), f"{name} on a task that {why}")
    require(await store.delete_task(task_id) is False, f"delete_task found a task that {why}")


# --- L1: status ---------------------------------------------------------------------------------------


@_check("L1")
async def a_created_task_is_working_at_revision_1_and_keeps_what_it_was_given(bench: _Bench) -> None:
    store, now = bench.subject, bench.clock.now()
    request = TaskRequest("tools/call", "weather", '{"city":"Zürich","days":[1,2]}', progress_token=7)
    created = await store.create_task(
        ttl_ms=60_000,
        poll_interval_ms=250,
        task_id="given",
        owner="ada",
        retention_ms=1_000,
        request=request,
        client_capabilities_json='{"elicitation":{"form":{}}}',
        worker="worker 1",
        lease_ms=9_000,
    )
    task = created.task
    require((task.task_id, task.status, created.revision) == ("given", "working", 1), f"create_task returned {created}")
    require(task.created_at == task.last_updated_at == now, "created_at or last_updated_at is not the clock's time")
    require(task.created_at.utcoffset() == timedelta(0), "created_at is not an aware UTC datetime")
    require((task.ttl_ms, task.poll_interval_ms) == (60_000, 250), "create_task changed ttl_ms or poll_interval_ms")
    require(task.status_message is None and created.outcome is None, "a new task has a status message or an outcome")
    require((created.owner, created.retention_ms) == ("ada", 1_000), "create_task changed owner or retention_ms")
    require(created.request == request, "create_task changed the request")
    require(
        created.client_capabilities == {"elicitation": {"form": {}}}, "create_task changed the client's capabilities"
    )
    lease = Lease("worker 1", now + timedelta(seconds=9))
    require(created.lease == lease, f"create_task made the lease {created.lease} and not {lease}")
    require(await _read(store, "given") == created, "get_task returned something else than create_task did")
    require(await store.get_result("given") is None, "a new task has a result")
    plain = await store.create_task(ttl_ms=None)
    unset = (plain.owner, plain.task.ttl_ms, plain.lease)
    require(unset == (None, None, None), f"without owner, ttl_ms and worker a task has {unset}")
    require(await _read(store, plain.task_id) == plain, "get_task returned something else than create_task did")


@_check("L1")
async def a_taken_identifier_is_refused_and_changes_nothing(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None, task_id="taken", owner="ada")
    again = store.create_task(ttl_ms=5, task_id="taken", owner="eve")
    await require_raises(TaskExistsError, again, "create_task with an identifier that is taken")
    require(await _read(store, "taken") == created, "creating a task with a taken identifier changed the task")


@_check("L1")
async def every_allowed_step_is_made_and_adds_one_to_the_revision(bench: _Bench) -> None:
    store = bench.subject
    for outcome in _OUTCOMES:
        previous = await store.create_task(ttl_ms=None)
        steps: tuple[LiveStatus | None, ...] = (None, "input_required", "input_required", "working", "working")
        for number, status in enumerate(steps):
            bench.clock.advance(1)
            message = None if number % 2 else f"step {number}"
            changed = await store.update_task(previous.task_id, status=status, status_message=message)
            expected = replace(
                previous,
                revision=previous.revision + 1,
                task=replace(
                    previous.task,
                    status=status or previous.status,
                    status_message=message or previous.task.status_message,
                    last_updated_at=bench.clock.now(),
                ),
            )
            require(changed == expected, f"update_task made {changed} and not {expected}")
            require(await _read(store, previous.task_id) == expected, "update_task returned what it did not store")
            previous = expected
        bench.clock.advance(1)
        if outcome.status == "failed":
            previous = await store.update_task(previous.task_id, status="input_required")
        ended = await store.finish_task(previous.task_id, outcome)
        require(
            (ended.status, ended.revision, ended.outcome) == (outcome.status, previous.revision + 1, outcome),
            f"finish_task with {outcome} made {ended}",
        )
        require(
            ended.task.status_message == (outcome.status_message or previous.task.status_message),
            "finish_task did not take over the outcome's status message, or dropped the task's",
        )
        require(ended.task.last_updated_at == bench.clock.now(), "finish_task did not stamp last_updated_at")
        require(await _read(store, ended.task_id) == ended, "finish_task returned what it did not store")
        require(await store.get_result(ended.task_id) == outcome, "get_result returned another outcome")


@_check("L1")
async def a_refused_step_raises_and_changes_nothing(bench: _Bench) -> None:
    store = bench.subject
    for outcome in _OUTCOMES:
        ended = await _ended(store, outcome)
        bench.clock.advance(1)
        refused: list[Callable[[], Awaitable[Any]]] = [
            partial(store.finish_task, ended.task_id, other) for other in _OUTCOMES
        ]
        refused += [partial(store.update_task, ended.task_id, status=status) for status in _LIVE]
        refused.append(partial(store.update_task, ended.task_id, status_message="late"))
        for operation in refused:
            error = await require_raises(InvalidTransitionError, operation(), f"changing a {ended.status} task")
            require(error.current == ended.status, "InvalidTransitionError.current is not the task's status")
            require(
                await _read(store, ended.task_id) == ended,
                f"a refused change of a {ended.status} task changed it (status, revision or time)",
            )
    live = await store.create_task(ttl_ms=None)
    bench.clock.advance(1)
    for status in sorted(TERMINAL_STATUSES):
        skipping = store.update_task(live.task_id, status=status)  # type: ignore[arg-type]
        await require_raises(InvalidTransitionError, skipping, f"update_task to {status}, which has no outcome")
        require(await _read(store, live.task_id) == live, "a refused update changed the task")


@_check("L1")
async def a_conditional_update_happens_at_its_revision_only(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    first = await store.update_task(created.task_id, status_message="one", if_revision=1)
    require(first.revision == 2, "a conditional update at the right revision did not add one to the revision")
    for stale in (1, 3):
        bench.clock.advance(1)
        late = store.update_task(created.task_id, status="input_required", if_revision=stale)
        error = await require_raises(RevisionConflictError, late, "update_task at another revision")
        require((error.expected, error.current) == (stale, 2), "RevisionConflictError names other revisions")
        require(await _read(store, created.task_id) == first, "an update at another revision changed the task")
    racers = [partial(store.update_task, created.task_id, status_message=f"{n}", if_revision=2) for n in range(5)]
    won = [ending for ending in await bench.race(*racers) if isinstance(ending, TaskRecord)]
    require(len(won) == 1, f"{len(won)} of 5 concurrent updates conditional on one revision were accepted, not one")
    require(await _read(store, created.task_id) == won[0], "the update that won is not the one that was stored")


@_check("L1", "L7")
async def last_updated_at_never_goes_back(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    bench.clock.advance(10)
    updated = await store.update_task(created.task_id, status_message="now")
    bench.clock.set_back(5)
    later = await store.update_task(created.task_id, status_message="the clock was corrected")
    require(
        later.task.last_updated_at >= updated.task.last_updated_at,
        "last_updated_at went back with the machine's clock at an update",
    )
    ended = await store.finish_task(created.task_id, _OUTCOMES[0])
    require(
        ended.task.last_updated_at >= updated.task.last_updated_at,
        "last_updated_at went back with the machine's clock at the end",
    )


# --- L2: one ending -----------------------------------------------------------------------------------


@_check("L2")
async def of_many_that_finish_a_task_exactly_one_wins(bench: _Bench) -> None:
    store = bench.subject
    for _ in range(3):
        created = await store.create_task(ttl_ms=None)
        racers = [partial(store.finish_task, created.task_id, _OUTCOMES[number % 3]) for number in range(8)]
        endings = await bench.race(*racers)
        won = [ending for ending in endings if isinstance(ending, TaskRecord)]
        require(len(won) == 1, f"{len(won)} of 8 concurrent callers of finish_task won, not one")
        for ending in endings:
            require(
                isinstance(ending, TaskRecord | InvalidTransitionError),
                f"a caller of finish_task that lost got {ending!r}, not InvalidTransitionError",
            )
        require(await _read(store, created.task_id) == won[0], "what is stored is not what the winner was given")
        require(await store.get_result(created.task_id) == won[0].outcome, "get_result is not the winner's outcome")


@_check("L2")
async def nobody_sees_an_end_without_its_outcome(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    task_id = created.task_id

    async def watch() -> None:
        while True:
            record = await _read(store, task_id)
            _require_whole(record)
            outcome = await store.get_result(task_id)
            if outcome is not None:
                after = await _read(store, task_id)
                require(after.status == outcome.status, "get_result gave an outcome before the task had its status")
                return
            require(record.status not in TERMINAL_STATUSES, "a task had ended and get_result gave nothing")
            await anyio.lowlevel.checkpoint()

    async def wait() -> None:
        record = await store.wait_for_update(task_id, after=created.revision)
        _require_whole(record)
        require(
            await store.get_result(task_id) == record.outcome, "wait_for_update returned before the outcome was there"
        )

    async def finish() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await store.finish_task(task_id, _OUTCOMES[0])

    for ending in await bench.race(watch, watch, wait, finish):
        if isinstance(ending, Exception):
            raise ending


@_check("L2", "L6")
async def changes_that_overlap_have_the_effect_of_some_sequence(bench: _Bench) -> None:
    store = bench.subject

    async def setup(*kinds: str) -> Race:
        task_id = (await store.create_task(ttl_ms=None)).task_id
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "ask": partial(store.update_task, task_id, status="input_required"),
            "say": partial(store.update_task, task_id, status_message="hello", if_revision=1),
            "complete": partial(store.finish_task, task_id, _OUTCOMES[0]),
            "cancel": partial(store.finish_task, task_id, _OUTCOMES[2]),
            "delete": partial(store.delete_task, task_id),
            "read": partial(_view, store, task_id),
        }

        def comparable(kind: str) -> Callable[[], Awaitable[Any]]:
            async def run() -> Any:
                result = await operations[kind]()
                if isinstance(result, TaskRecord):
                    return (result.status, result.task.status_message, result.revision, result.outcome)
                return result

            return run

        return Race([comparable(kind) for kind in kinds], partial(_view, store, task_id))

    for kinds in (
        ("complete", "cancel", "read"),
        ("ask", "say", "complete"),
        ("say", "delete", "cancel"),
        ("say", "say", "read"),
    ):
        try:
            await check_interleavings(partial(setup, *kinds), limit=24, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of the overlapping operations {', '.join(kinds)}: {error}") from error


# --- L3: no lost wake-up ------------------------------------------------------------------------------


@_check("L3")
async def every_waiter_wakes_when_the_task_changes(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    changes: tuple[tuple[str, Callable[[], Awaitable[TaskRecord]]], ...] = (
        ("an update", partial(store.update_task, created.task_id, status_message="on it")),
        ("a change of status", partial(store.update_task, created.task_id, status="input_required")),
        ("the end", partial(store.finish_task, created.task_id, _OUTCOMES[1])),
    )
    for what, change in changes:
        before = await _read(store, created.task_id)
        wait = partial(store.wait_for_update, created.task_id, after=before.revision)
        async with bench.waiting(wait, wait, wait) as waiters:
            for waiter in waiters:
                require(not waiter.done(), "wait_for_update returned before the task had changed")
            changed = await change()
            for number, waiter in enumerate(waiters, 1):
                record = await bench.within(waiter.wait(), f"waiter {number} of 3 was not woken by {what}")
                require(record == changed, f"a waiter was woken by {what} and given {record}, not {changed}")


@_check("L3")
async def a_change_before_the_wait_counts(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    first = await bench.within(
        store.wait_for_update(created.task_id, after=0), "wait_for_update(after=0) did not return an existing task"
    )
    require(first == created, "wait_for_update(after=0) did not return the task as it is")
    await store.update_task(created.task_id, status_message="between")
    ended = await store.finish_task(created.task_id, _OUTCOMES[0])
    for after in (1, 2):
        record = await bench.within(
            store.wait_for_update(created.task_id, after=after),
            "a change between reading the task and waiting for it was lost",
        )
        require(record == ended, "wait_for_update did not return the task as it is now")


@_check("L3")
async def a_waiter_is_woken_by_deletion(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=60_000)
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as waiters:
        await store.delete_task(created.task_id)
        for waiter in waiters:
            woken = bench.within(waiter.wait(), "a waiter was not woken by the deletion of its task")
            await require_raises(TaskNotFoundError, woken, "waiting for a task that is deleted")


@_check("L3", "L7")
async def a_waiter_is_woken_by_expiry(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=60_000)
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as waiters:
        bench.clock.advance(60)
        for waiter in waiters:
            woken = bench.within(waiter.wait(), "a waiter was not woken by the expiry of its task")
            await require_raises(TaskNotFoundError, woken, "waiting for a task that expires")


@_check("L3", "L7")
async def a_waiter_outlasts_a_deadline_that_moved(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=10_000, retention_ms=60_000)
    bench.clock.advance(5)
    ended = await store.finish_task(created.task_id, _OUTCOMES[0])
    async with bench.waiting(partial(store.wait_for_update, created.task_id, after=ended.revision)) as (waiter,):
        bench.clock.advance(10)
        await _read(store, created.task_id)
        await quiesce()
        require(not waiter.done(), "a waiter was woken at the task's old deadline, though the end had moved it")
        bench.clock.advance(50)
        woken = bench.within(waiter.wait(), "a waiter was not woken at the task's new deadline")
        await require_raises(TaskNotFoundError, woken, "waiting for a task that expires")


@_check("L3")
async def a_waiter_is_woken_when_the_store_is_closed(bench: _Bench) -> None:
    async with anyio.create_task_group() as group:
        async with bench.open_again() as store:
            created = await store.create_task(ttl_ms=None)
            waiter = start(group, partial(store.wait_for_update, created.task_id, after=created.revision))
            await quiesce()
        woken = bench.within(waiter.wait(), "a waiter was not woken when the store was closed")
        await require_raises(StoreClosedError, woken, "waiting while the store is closed")
        group.cancel_scope.cancel()


@_check("L3", "L6")
async def a_cancelled_waiter_takes_nobody_with_it(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=60_000)
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as (first, last):
        async with bench.waiting(wait, wait):
            pass
        changed = await store.update_task(created.task_id, status_message="now")
        for waiter in (first, last):
            woken = await bench.within(waiter.wait(), "a waiter was not woken after another one was cancelled")
            require(woken == changed, "a waiter woke with another state than the one stored")


# --- L4: snapshots ------------------------------------------------------------------------------------


@_check("L4")
async def what_a_store_returned_never_changes(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None, retention_ms=5, client_capabilities_json='{"sampling":{}}')
    got = await _read(store, created.task_id)
    updated = await store.update_task(created.task_id, status="input_required", status_message="one")
    taken = (created, got, updated)
    copies = tuple(replace(record, task=replace(record.task)) for record in taken)
    await store.update_task(created.task_id, status="working", status_message="two")
    await store.finish_task(created.task_id, _OUTCOMES[0])
    await store.delete_task(created.task_id)
    for record, copy in zip(taken, copies, strict=True):
        require(record == copy, f"a snapshot taken at revision {copy.revision} changed when the task did")


@_check("L4")
async def changing_what_a_store_returned_changes_nothing(bench: _Bench) -> None:
    store = bench.subject
    given = {"content": [{"type": "text", "text": "kept"}]}
    ended = await _ended(store, Outcome.completed(given))
    given["content"].append({"type": "text", "text": "added by the caller"})
    read = await _read(store, ended.task_id)
    for record in (ended, read):
        try:
            record.task.status = "working"  # type: ignore[misc]
        except (AttributeError, FrozenInstanceError):
            pass
        else:
            raise AssertionError("a snapshot can be assigned to")
        require(record.outcome is not None and record.outcome.result is not None, "a completed task has no result")
        if record.outcome is not None and record.outcome.result is not None:
            record.outcome.result["content"].clear()
    outcome = await store.get_result(ended.task_id)
    kept = {"content": [{"type": "text", "text": "kept"}]}
    require(outcome is not None and outcome.result == kept, "a caller changed a stored result through what it held")
    require(await _read(store, ended.task_id) == ended, "a caller changed a stored task through what it held")


# --- L6: cancellation safety --------------------------------------------------------------------------


@_check("L6")
async def a_cancelled_change_happened_in_full_or_not_at_all(bench: _Bench) -> None:
    store = bench.subject
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "update_task": lambda task_id: store.update_task(task_id, status="input_required", status_message="asking"),
        "finish_task": lambda task_id: store.finish_task(task_id, _OUTCOMES[0]),
        "delete_task": store.delete_task,
    }
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change) -> Trial:
            task_id = (await store.create_task(ttl_ms=1_000_000, retention_ms=2_000_000)).task_id
            return Trial(
                partial(change, task_id), partial(_view, store, task_id), leftovers=lambda: bench.clock.waiting
            )

        try:
            await check_cancellation(setup, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {name}: {error}") from error

    count = 0

    async def creating() -> Trial:
        nonlocal count
        count += 1
        task_id = f"created-{count}"
        create = partial(store.create_task, ttl_ms=None, task_id=task_id, owner="ada", retention_ms=7)
        return Trial(create, partial(_view, store, task_id), leftovers=lambda: bench.clock.waiting)

    try:
        await check_cancellation(creating, patience=bench.patience)
    except AssertionError as error:
        raise AssertionError(f"of create_task: {error}") from error


@_check("L6")
async def a_cancelled_wait_leaves_nothing_behind(bench: _Bench) -> None:
    store = bench.subject

    async def setup() -> Trial:
        task_id = (await store.create_task(ttl_ms=60_000)).task_id
        return Trial(
            partial(store.wait_for_update, task_id, after=1),
            partial(_view, store, task_id),
            meanwhile=partial(store.update_task, task_id, status_message="changed"),
            leftovers=lambda: bench.clock.waiting,
        )

    await check_cancellation(setup, patience=bench.patience)


@_check("L6")
async def a_cancelled_operation_leaves_the_store_usable(bench: _Bench) -> None:
    store = bench.subject
    task_id = (await store.create_task(ttl_ms=None)).task_id
    operations: tuple[Callable[[], Awaitable[Any]], ...] = (
        partial(store.get_task, task_id),
        partial(store.update_task, task_id, status_message="again"),
        partial(store.get_result, task_id),
        partial(store.wait_for_update, task_id, after=10_000),
        partial(store.create_task, ttl_ms=None),
    )
    for operation in operations:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await operation()
    unusable = "after cancelled operations the store does not answer"
    await bench.within(store.finish_task(task_id, _OUTCOMES[0]), unusable)
    _require_whole(await bench.within(_read(store, task_id), unusable))


# --- L7: time -----------------------------------------------------------------------------------------


@_check("L7")
async def all_time_comes_from_the_injected_clock(bench: _Bench) -> None:
    store = bench.subject
    require(store.clock is bench.clock, "store.clock is not the clock that the store was given")
    bench.clock.advance(timedelta(days=400))
    created = await store.create_task(ttl_ms=None)
    require(created.task.created_at == bench.clock.now(), "created_at is not the injected clock's time")
    bench.clock.advance(0.25)
    updated = await store.update_task(created.task_id, status_message="later")
    require(updated.task.last_updated_at == bench.clock.now(), "last_updated_at is not the injected clock's time")
    require(updated.task.created_at == created.task.created_at, "an update changed created_at")


@_check("L7")
async def an_expired_task_is_gone_for_every_caller_at_once(bench: _Bench) -> None:
    store = bench.subject
    live = await store.create_task(ttl_ms=10_000, task_id="live")
    ended = await _ended(store, ttl_ms=10_000, task_id="ended")
    later = await store.create_task(ttl_ms=10_001)
    bench.clock.advance(9.999)
    for record in (live, ended):
        require(await store.get_task(record.task_id) == record, "a task was gone before its time")
    bench.clock.advance(0.001)
    await _require_gone(store, "live", "has expired")
    await _require_gone(store, "ended", "has expired")
    require(await store.get_task(later.task_id) == later, "a task was gone before its time")
    again = await store.create_task(ttl_ms=None, task_id="live")
    require(again.revision == 1, "the identifier of an expired task is not free again")
    require(await store.get_task("live") == again, "a new task with an expired one's identifier is not found")


@_check("L7")
async def a_task_without_a_ttl_never_expires(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=None)
    bench.clock.advance(timedelta(days=3650))
    require(await store.get_task(created.task_id) == created, "a task without a TTL expired")
    ended = await store.finish_task(created.task_id, _OUTCOMES[0])
    require(ended.task.ttl_ms is None, "finishing gave a TTL to a task that had none")


@_check("L7")
async def an_outcome_can_be_fetched_for_the_retention_time(bench: _Bench) -> None:
    store = bench.subject
    created = await store.create_task(ttl_ms=10_000, retention_ms=60_000)
    bench.clock.advance(9)
    ended = await store.finish_task(created.task_id, _OUTCOMES[0])
    require(
        ended.task.expires_at is not None and ended.task.expires_at >= bench.clock.now() + timedelta(seconds=60),
        "finishing did not extend ttl_ms, so the outcome is gone before the retention time has passed",
    )
    bench.clock.advance(59.999)
    require(await store.get_task(created.task_id) == ended, "an ended task was gone within the retention time")
    require(await store.get_result(created.task_id) == ended.outcome, "an outcome was gone within the retention time")
    bench.clock.advance(0.001)
    await _require_gone(store, created.task_id, "has outlived its retention time")
    long = await store.create_task(ttl_ms=500_000, retention_ms=1_000)
    ended = await store.finish_task(long.task_id, _OUTCOMES[0])
    require(ended.task.ttl_ms == 500_000, "finishing changed a TTL that was long enough")


@_check("L7")
async def an_unknown_or_deleted_task_is_not_found_by_any_method(bench: _Bench) -> None:
    store = bench.subject
    for task_id in ("never-made", "", "a" * 500, "x'; --", "../..", "grüß\u2028🌍"):
        await _require_gone(store, task_id, "was never made")
    created = await store.create_task(ttl_ms=None)
    require(await store.delete_task(created.task_id) is True, "delete_task did not find an existing task")
    await _require_gone(store, created.task_id, "was deleted")


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L8")
async def no_operation_costs_more_when_there_are_many_tasks(bench: _Bench) -> None:
    store = bench.subject
    rounds = 8

    async def measure() -> dict[str, int]:
        ids = [(await store.create_task(ttl_ms=5_000_000, owner="ada")).task_id for _ in range(rounds)]

        async def each(operation: Callable[[str], Awaitable[Any]]) -> None:
            for task_id in ids:
                await operation(task_id)

        async def create(_: str) -> None:
            await store.create_task(ttl_ms=4_000_000, owner="ada")

        work: dict[str, int] = {}
        for name, operation in (
            ("create_task", create),
            ("get_task", store.get_task),
            ("update_task", lambda task_id: store.update_task(task_id, status_message="on")),
            ("wait_for_update", lambda task_id: store.wait_for_update(task_id, after=1)),
            ("finish_task", lambda task_id: store.finish_task(task_id, _OUTCOMES[0])),
            ("get_result", store.get_result),
            ("delete_task", store.delete_task),
        ):
            work[name] = await count_work(partial(each, operation))
        return work

    async def populate(count: int) -> None:
        for number in range(count):
            await store.create_task(ttl_ms=1_000_000 + number, owner="ada" if number % 2 else "bob")

    await populate(16)
    few = await measure()
    await populate(512)
    many = await measure()
    for name, work in many.items():
        require(
            work <= 3 * few[name] + 400 * rounds,
            f"{name} costs {work // rounds} steps among 500 tasks and {few[name] // rounds} among 16: it looks at all",
        )


@_check("L8")
async def nothing_is_kept_of_tasks_that_are_gone(bench: _Bench) -> None:
    store, rounds = bench.subject, 250

    async def live_and_die(number: int) -> None:
        created = await store.create_task(ttl_ms=1_000, owner=f"owner {number}")
        task_id = created.task_id
        with anyio.CancelScope() as scope:  # a waiter that gives up
            scope.cancel()
            await store.wait_for_update(task_id, after=1)
        await store.update_task(task_id, status_message=f"message {number}")
        if number % 3:
            await store.finish_task(task_id, _OUTCOMES[number % 3])
        if number % 2:
            await store.delete_task(task_id)
        else:
            bench.clock.advance(1)
            await store.get_task(task_id)
        await store.get_task(task_id)
        await store.delete_task(task_id)

    with measured_memory() as memory:

        async def kept() -> int:
            return memory() if bench.footprint is None else await bench.footprint(store)

        for number in range(rounds):
            await live_and_die(number)
        before = await kept()
        for number in range(rounds, 2 * rounds):
            await live_and_die(number)
        grown = await kept() - before
    unit, allowed = ("bytes", 40 * rounds) if bench.footprint is None else ("items", rounds // 10)
    require(grown <= allowed, f"{grown} {unit} more are kept after {rounds} further tasks came and went")


# --- B9, L8: listing ----------------------------------------------------------------------------------


async def _walk(store: TaskStore, owner: str | None, limit: int) -> list[str]:
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.list_tasks(owner=owner, cursor=cursor, limit=limit)
        require(len(page.records) <= limit, f"a page of at most {limit} tasks has {len(page.records)}")
        ids += [record.task_id for record in page.records]
        cursor = page.next_cursor
        if cursor is None:
            return ids
        require(page.records, "a page that is not the last one is empty")
        require(len(ids) < 10_000, "walking the pages does not end")


@_check("L8", needs=["listing"])
async def listing_shows_each_task_of_one_owner_once_oldest_first(bench: _Bench) -> None:
    store = bench.subject
    made: dict[str | None, list[str]] = {"ada": [], "bob": [], None: []}
    for number in range(7):
        for owner, ids in made.items():
            ids.append((await store.create_task(ttl_ms=None, owner=owner)).task_id)
        if number % 2:
            bench.clock.advance(1)
    await store.update_task(made["ada"][0], status_message="an update does not move a task")
    await store.finish_task(made["ada"][1], _OUTCOMES[0])
    for owner, ids in made.items():
        for limit in (1, 3, 7, 100):
            seen = await _walk(store, owner, limit)
            require(
                seen == ids, f"the pages of {limit} of {owner!r} show {len(seen)} tasks, not their own 7, oldest first"
            )
    page = await store.list_tasks(owner="ada", limit=7)
    require(page.next_cursor is None, "the last page has a cursor to a next one")
    for record in page.records:
        require(record == await _read(store, record.task_id), "a list shows a task otherwise than get_task does")
    empty = await store.list_tasks(owner="nobody")
    require(empty.records == () and empty.next_cursor is None, "an owner without tasks has some")


@_check("L8", needs=["listing"])
async def walking_the_pages_survives_what_comes_and_goes_meanwhile(bench: _Bench) -> None:
    store = bench.subject
    ids = [(await store.create_task(ttl_ms=None, owner="ada")).task_id for _ in range(8)]
    first = await store.list_tasks(owner="ada", limit=3)
    require(first.next_cursor is not None, "a page that is not the last one has no cursor")
    for task_id in (ids[2], ids[0], ids[3]):  # the one the cursor was made at among them
        await store.delete_task(task_id)
    added = (await store.create_task(ttl_ms=None, owner="ada")).task_id
    second = await store.list_tasks(owner="ada", cursor=first.next_cursor, limit=3)
    seen = [record.task_id for record in second.records]
    require(seen == ids[4:7], "after the task at the cursor was deleted the next page is not the one that follows")
    third = await store.list_tasks(owner="ada", cursor=second.next_cursor, limit=3)
    seen = [record.task_id for record in third.records]
    require(seen == [ids[7], added], "the last page does not show the rest once, with what was created meanwhile")
    for task_id in ids:
        await store.delete_task(task_id)
    await store.delete_task(added)
    late = await store.list_tasks(owner="ada", cursor=first.next_cursor, limit=3)
    require(late.records == () and late.next_cursor is None, "a cursor is not good when all tasks are gone")


@_check("L7", needs=["listing"])
async def an_expired_task_is_not_listed(bench: _Bench) -> None:
    store = bench.subject
    await store.create_task(ttl_ms=1_000, owner="ada")
    stays = await store.create_task(ttl_ms=2_000, owner="ada")
    bench.clock.advance(1)
    page = await store.list_tasks(owner="ada", limit=1)
    require([record.task_id for record in page.records] == [stays.task_id], "an expired task is still listed")
    require(page.next_cursor is None, "an expired task still counts in a list")


@_check("L8", needs=["listing"])
async def a_cursor_that_the_store_did_not_make_for_this_owner_is_refused(bench: _Bench) -> None:
    store = bench.subject
    for owner in ("ada", "bob", None):
        for _ in range(3):
            await store.create_task(ttl_ms=None, owner=owner)
    page = await store.list_tasks(owner="ada", limit=1)
    good = page.next_cursor
    if good is None:
        raise AssertionError("a page that is not the last one has no cursor")
    task_id = page.records[0].task_id
    swapped = ("B" if good[0] != "B" else "C") + good[1:]
    for cursor in ("", "garbage", "0", "1", "-1", task_id, good[:-1], good + "A", swapped, "🌍", "a" * 10_000, "=="):
        listing = store.list_tasks(owner="ada", cursor=cursor, limit=1)
        await require_raises(InvalidCursorError, listing, f"list_tasks with the made-up cursor {cursor[:40]!r}")
    for other in ("bob", None):
        listing = store.list_tasks(owner=other, cursor=good, limit=1)
        await require_raises(InvalidCursorError, listing, "list_tasks with another owner's cursor")
    for limit in (0, -1):
        await require_raises(ValueError, store.list_tasks(owner="ada", limit=limit), f"list_tasks with limit={limit}")


@_check("L8", needs=["listing"])
async def a_page_costs_what_is_on_it(bench: _Bench) -> None:
    store = bench.subject
    ids = [(await store.create_task(ttl_ms=None, owner="ada")).task_id for _ in range(24)]
    cursor = (await store.list_tasks(owner="ada", limit=12)).next_cursor
    page = partial(store.list_tasks, owner="ada", cursor=cursor, limit=5)
    few = await count_work(page)
    for number in range(600):
        await store.create_task(ttl_ms=None, owner="ada" if number % 2 else "bob")
    many = await count_work(page)
    require(
        many <= 3 * few + 400, f"a page of 5 costs {many} steps among 600 tasks and {few} among 24: it looks at all"
    )
    require([r.task_id for r in (await page()).records] == ids[12:17], "a page is not the one that follows its cursor")


# --- L10: identifiers ---------------------------------------------------------------------------------


@_check("L10")
async def made_identifiers_are_long_random_and_plain(bench: _Bench) -> None:
    ids = [(await bench.subject.create_task(ttl_ms=None)).task_id for _ in range(64)]
    require(len(set(ids)) == 64, "the store made one identifier twice")
    for task_id in ids:
        require(len(task_id) >= 22, f"the identifier {task_id!r} cannot hold 128 random bits")
        require(task_id.isascii() and task_id.isprintable() and " " not in task_id, f"{task_id!r} is not plain text")
    for position in range(8):
        require(len({task_id[position] for task_id in ids}) > 4, "identifiers begin alike: they can be guessed")


# --- L12, L3: reopened, and shared --------------------------------------------------------------------


@_check("L12", needs=["durable"])
async def a_reopened_store_has_every_task_as_it_was(bench: _Bench) -> None:
    request = TaskRequest("tools/call", "report", '{"topic":"rain"}', "token")
    async with bench.open_again() as first:
        live = await first.create_task(
            ttl_ms=100_000, owner="ada", request=request, client_capabilities_json='{"sampling":{}}'
        )
        live = await first.update_task(live.task_id, status="input_required", status_message="asked")
        ended = [await _ended(first, outcome, owner="ada", retention_ms=5_000) for outcome in _OUTCOMES]
        dying = await first.create_task(ttl_ms=1_000, owner="ada")
        deleted = await first.create_task(ttl_ms=None, owner="ada")
        await first.delete_task(deleted.task_id)
    bench.clock.advance(1)
    async with bench.open_again() as second:
        for record in (live, *ended):
            require(await second.get_task(record.task_id) == record, f"{record} is not what it was after reopening")
            require(await second.get_result(record.task_id) == record.outcome, "an outcome is lost after reopening")
        await _require_gone(second, dying.task_id, "expired while the store was closed")
        await _require_gone(second, deleted.task_id, "was deleted before the store was closed")
        changed = await second.update_task(live.task_id, status="working")
        require(changed.revision == live.revision + 1, "the revision does not go on after reopening")
        late = second.finish_task(ended[0].task_id, _OUTCOMES[2])
        await require_raises(InvalidTransitionError, late, "finishing an ended task after reopening")


@_check("L12", needs=["durable", "listing"])
async def a_cursor_outlives_the_store_that_made_it(bench: _Bench) -> None:
    async with bench.open_again() as first:
        ids = [(await first.create_task(ttl_ms=None, owner="ada")).task_id for _ in range(4)]
        cursor = (await first.list_tasks(owner="ada", limit=2)).next_cursor
    async with bench.open_again() as second:
        page = await second.list_tasks(owner="ada", cursor=cursor, limit=2)
        require([r.task_id for r in page.records] == ids[2:], "a cursor leads elsewhere after reopening")


@_check("L3", needs=["shared"])
async def a_waiter_is_woken_by_another_process(bench: _Bench) -> None:
    store = bench.subject
    async with bench.open_again() as other:
        created = await store.create_task(ttl_ms=60_000)
        require(await other.get_task(created.task_id) == created, "another process does not find a new task")
        for what, change in (
            ("an update", partial(other.update_task, created.task_id, status_message="from afar")),
            ("the end", partial(other.finish_task, created.task_id, _OUTCOMES[0])),
        ):
            before = await _read(other, created.task_id)
            wait = partial(store.wait_for_update, created.task_id, after=before.revision)
            async with bench.waiting(wait, wait) as waiters:
                changed = await change()
                for waiter in waiters:
                    woken = await bench.within(waiter.wait(), f"a waiter was not woken by {what} in another process")
                    require(woken == changed, "a waiter woke with another state than the one stored")
        ended = await _read(store, created.task_id)
        wait = partial(store.wait_for_update, created.task_id, after=ended.revision)
        async with bench.waiting(wait, wait) as waiters:
            await other.delete_task(created.task_id)
            for waiter in waiters:
                gone = bench.within(waiter.wait(), "a waiter was not woken by a deletion in another process")
                await require_raises(TaskNotFoundError, gone, "waiting for a task that another process deletes")


@_check("L2", "L1", needs=["shared"])
async def of_many_processes_that_finish_a_task_exactly_one_wins(bench: _Bench) -> None:
    store = bench.subject
    async with bench.open_again() as other:
        for _ in range(5):
            task_id = (await store.create_task(ttl_ms=None)).task_id
            racers = [
                partial(side.finish_task, task_id, _OUTCOMES[number]) for number in range(3) for side in (store, other)
            ]
            won = [ending for ending in await bench.race(*racers) if isinstance(ending, TaskRecord)]
            require(len(won) == 1, f"{len(won)} of 6 callers in two processes won, not one")
            for side in (store, other):
                require(await side.get_task(task_id) == won[0], "a process does not see what the winner stored")
            task_id = (await store.create_task(ttl_ms=None)).task_id
            updates = [
                partial(side.update_task, task_id, status_message=f"{number}", if_revision=1)
                for number in range(3)
                for side in (store, other)
            ]
            won = [ending for ending in await bench.race(*updates) if isinstance(ending, TaskRecord)]
            require(len(won) == 1, f"{len(won)} of 6 updates at one revision in two processes were accepted, not one")
