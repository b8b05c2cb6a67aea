"""The laws of a task's life in a `TaskStore`, as named checks: status, end, snapshots, cancellation, identifiers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import FrozenInstanceError, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import Lease, LiveStatus, NewTask, Outcome, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, RevisionConflictError, TaskExistsError
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import (
    OUTCOMES,
    StoreBench,
    ended_task,
    read_task,
    require_gone,
    require_whole,
    view_task,
)
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.interleaving import Race, check_interleavings

__all__ = ["STORE_LIFE_CHECKS"]

STORE_LIFE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_LIFE_CHECKS)

_LIVE: Final[tuple[LiveStatus, ...]] = ("working", "input_required")


# --- L1: status ---------------------------------------------------------------------------------------


@_check("L1")
async def a_created_task_is_working_at_revision_1_and_keeps_what_it_was_given(bench: StoreBench) -> None:
    store, now = bench.subject, bench.clock.now()
    request = TaskRequest("tools/call", "weather", '{"city":"Zürich","days":[1,2]}', progress_token=7)
    created = await store.create_task(
        NewTask(
            ttl_ms=60_000,
            poll_interval_ms=250,
            task_id="given",
            owner="ada",
            retention_ms=1_000,
            request=request,
            client_capabilities_json='{"elicitation":{"form":{}}}',
            worker="worker 1",
            lease_ms=9_000,
            status_message="Queued",
        )
    )
    task = created.task
    require((task.task_id, task.status, created.revision) == ("given", "working", 1), f"create_task returned {created}")
    require(task.created_at == task.last_updated_at == now, "created_at or last_updated_at is not the clock's time")
    require(task.created_at.utcoffset() == timedelta(0), "created_at is not an aware UTC datetime")
    require((task.ttl_ms, task.poll_interval_ms) == (60_000, 250), "create_task changed ttl_ms or poll_interval_ms")
    require(task.status_message == "Queued", "create_task changed the status message")
    require(created.outcome is None, "a new task has an outcome")
    require((created.owner, created.retention_ms) == ("ada", 1_000), "create_task changed owner or retention_ms")
    require(created.request == request, "create_task changed the request")
    require(
        created.client_capabilities == {"elicitation": {"form": {}}}, "create_task changed the client's capabilities"
    )
    lease = Lease("worker 1", now + timedelta(seconds=9))
    require(created.lease == lease, f"create_task made the lease {created.lease} and not {lease}")
    require(await read_task(store, "given") == created, "get_task returned something else than create_task did")
    require(await store.get_result("given") is None, "a new task has a result")
    plain = await store.create_task(NewTask(ttl_ms=None))
    unset = (plain.owner, plain.task.ttl_ms, plain.lease, plain.task.status_message)
    require(unset == (None, None, None, None), f"without owner, ttl_ms, worker and message a task has {unset}")
    require(await read_task(store, plain.task_id) == plain, "get_task returned something else than create_task did")


@_check("L1")
async def a_taken_identifier_is_refused_and_changes_nothing(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None, task_id="taken", owner="ada"))
    again = store.create_task(NewTask(ttl_ms=5, task_id="taken", owner="eve"))
    await require_raises(TaskExistsError, again, "create_task with an identifier that is taken")
    require(await read_task(store, "taken") == created, "creating a task with a taken identifier changed the task")


@_check("L1")
async def every_allowed_step_is_made_and_adds_one_to_the_revision(bench: StoreBench) -> None:
    store = bench.subject
    for outcome in OUTCOMES:
        previous = await store.create_task(NewTask(ttl_ms=None))
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
            require(await read_task(store, previous.task_id) == expected, "update_task returned what it did not store")
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
            ended.task.status_message
            == (outcome.status_message or (None if outcome.status == "completed" else previous.task.status_message)),
            "finish_task did not take over the outcome's status message, or kept one that no longer holds",
        )
        require(ended.task.last_updated_at == bench.clock.now(), "finish_task did not stamp last_updated_at")
        require(await read_task(store, ended.task_id) == ended, "finish_task returned what it did not store")
        require(await store.get_result(ended.task_id) == outcome, "get_result returned another outcome")


@_check("L1")
async def a_refused_step_raises_and_changes_nothing(bench: StoreBench) -> None:
    store = bench.subject
    for outcome in OUTCOMES:
        ended = await ended_task(store, outcome)
        bench.clock.advance(1)
        refused: list[Callable[[], Awaitable[Any]]] = [
            partial(store.finish_task, ended.task_id, other) for other in OUTCOMES
        ]
        refused += [partial(store.update_task, ended.task_id, status=status) for status in _LIVE]
        refused.append(partial(store.update_task, ended.task_id, status_message="late"))
        for operation in refused:
            error = await require_raises(InvalidTransitionError, operation(), f"changing a {ended.status} task")
            require(error.current == ended.status, "InvalidTransitionError.current is not the task's status")
            require(
                await read_task(store, ended.task_id) == ended,
                f"a refused change of a {ended.status} task changed it (status, revision or time)",
            )
    live = await store.create_task(NewTask(ttl_ms=None))
    bench.clock.advance(1)
    for status in sorted(TERMINAL_STATUSES):
        skipping = store.update_task(live.task_id, status=status)  # type: ignore[arg-type]
        await require_raises(InvalidTransitionError, skipping, f"update_task to {status}, which has no outcome")
        require(await read_task(store, live.task_id) == live, "a refused update changed the task")


@_check("L1")
async def a_conditional_update_happens_at_its_revision_only(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    first = await store.update_task(created.task_id, status_message="one", if_revision=1)
    require(first.revision == 2, "a conditional update at the right revision did not add one to the revision")
    for stale in (1, 3):
        bench.clock.advance(1)
        late = store.update_task(created.task_id, status="input_required", if_revision=stale)
        error = await require_raises(RevisionConflictError, late, "update_task at another revision")
        require((error.expected, error.current) == (stale, 2), "RevisionConflictError names other revisions")
        require(await read_task(store, created.task_id) == first, "an update at another revision changed the task")
    racers = [partial(store.update_task, created.task_id, status_message=f"{n}", if_revision=2) for n in range(5)]
    won = [ending for ending in await bench.race(*racers) if isinstance(ending, TaskRecord)]
    require(len(won) == 1, f"{len(won)} of 5 concurrent updates conditional on one revision were accepted, not one")
    require(await read_task(store, created.task_id) == won[0], "the update that won is not the one that was stored")


@_check("L1", "L7")
async def last_updated_at_never_goes_back(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    bench.clock.advance(10)
    updated = await store.update_task(created.task_id, status_message="now")
    bench.clock.set_back(5)
    later = await store.update_task(created.task_id, status_message="the clock was corrected")
    require(
        later.task.last_updated_at >= updated.task.last_updated_at,
        "last_updated_at went back with the machine's clock at an update",
    )
    ended = await store.finish_task(created.task_id, OUTCOMES[0])
    require(
        ended.task.last_updated_at >= updated.task.last_updated_at,
        "last_updated_at went back with the machine's clock at the end",
    )


# --- L2: one ending -----------------------------------------------------------------------------------


@_check("L2")
async def of_many_that_finish_a_task_exactly_one_wins(bench: StoreBench) -> None:
    store = bench.subject
    for _ in range(3):
        created = await store.create_task(NewTask(ttl_ms=None))
        racers = [partial(store.finish_task, created.task_id, OUTCOMES[number % 3]) for number in range(8)]
        endings = await bench.race(*racers)
        won = [ending for ending in endings if isinstance(ending, TaskRecord)]
        require(len(won) == 1, f"{len(won)} of 8 concurrent callers of finish_task won, not one")
        for ending in endings:
            require(
                isinstance(ending, TaskRecord | InvalidTransitionError),
                f"a caller of finish_task that lost got {ending!r}, not InvalidTransitionError",
            )
        require(await read_task(store, created.task_id) == won[0], "what is stored is not what the winner was given")
        require(await store.get_result(created.task_id) == won[0].outcome, "get_result is not the winner's outcome")


@_check("L2")
async def nobody_sees_an_end_without_its_outcome(bench: StoreBench) -> None:
    for _ in range(12):  # trio runs what is ready in random order: one end alone may show nothing
        await _watch_an_end(bench)


async def _watch_an_end(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    task_id = created.task_id

    async def watch() -> None:
        while True:
            record = await read_task(store, task_id)
            require_whole(record)
            outcome = await store.get_result(task_id)
            if outcome is not None:
                after = await read_task(store, task_id)
                require(after.status == outcome.status, "get_result gave an outcome before the task had its status")
                return
            require(record.status not in TERMINAL_STATUSES, "a task had ended and get_result gave nothing")
            await anyio.lowlevel.checkpoint()

    async def wait() -> None:
        record = await store.wait_for_update(task_id, after=created.revision)
        require_whole(record)
        require(
            await store.get_result(task_id) == record.outcome, "wait_for_update returned before the outcome was there"
        )

    async def finish() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await store.finish_task(task_id, OUTCOMES[0])

    for ending in await bench.race(watch, watch, wait, finish):
        if isinstance(ending, Exception):
            raise ending


@_check("L2", "L6")
async def changes_that_overlap_have_the_effect_of_some_sequence(bench: StoreBench) -> None:
    store = bench.subject

    async def setup(*kinds: str) -> Race:
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "ask": partial(store.update_task, task_id, status="input_required"),
            "say": partial(store.update_task, task_id, status_message="hello", if_revision=1),
            "complete": partial(store.finish_task, task_id, OUTCOMES[0]),
            "cancel": partial(store.finish_task, task_id, OUTCOMES[2]),
            "delete": partial(store.delete_task, task_id),
            "read": partial(view_task, store, task_id),
        }

        def comparable(kind: str) -> Callable[[], Awaitable[Any]]:
            async def run() -> Any:
                result = await operations[kind]()
                if isinstance(result, TaskRecord):
                    return (result.status, result.task.status_message, result.revision, result.outcome)
                return result

            return run

        return Race([comparable(kind) for kind in kinds], partial(view_task, store, task_id))

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


# --- L4: snapshots ------------------------------------------------------------------------------------


@_check("L4")
async def what_a_store_returned_never_changes(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None, retention_ms=5, client_capabilities_json='{"sampling":{}}'))
    got = await read_task(store, created.task_id)
    updated = await store.update_task(created.task_id, status="input_required", status_message="one")
    taken = (created, got, updated)
    copies = tuple(replace(record, task=replace(record.task)) for record in taken)
    await store.update_task(created.task_id, status="working", status_message="two")
    await store.finish_task(created.task_id, OUTCOMES[0])
    await store.delete_task(created.task_id)
    for record, copy in zip(taken, copies, strict=True):
        require(record == copy, f"a snapshot taken at revision {copy.revision} changed when the task did")


@_check("L4")
async def changing_what_a_store_returned_changes_nothing(bench: StoreBench) -> None:
    store = bench.subject
    given = {"content": [{"type": "text", "text": "kept"}]}
    ended = await ended_task(store, Outcome.completed(given))
    given["content"].append({"type": "text", "text": "added by the caller"})
    read = await read_task(store, ended.task_id)
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
    require(await read_task(store, ended.task_id) == ended, "a caller changed a stored task through what it held")


# --- L6: cancellation safety --------------------------------------------------------------------------


@_check("L6")
async def a_cancelled_change_happened_in_full_or_not_at_all(bench: StoreBench) -> None:
    store = bench.subject
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "update_task": lambda task_id: store.update_task(task_id, status="input_required", status_message="asking"),
        "finish_task": lambda task_id: store.finish_task(task_id, OUTCOMES[0]),
        "delete_task": store.delete_task,
    }
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change) -> Trial:
            task_id = (await store.create_task(NewTask(ttl_ms=1_000_000, retention_ms=2_000_000))).task_id
            return Trial(
                partial(change, task_id), partial(view_task, store, task_id), leftovers=lambda: bench.clock.waiting
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
        create = partial(store.create_task, NewTask(ttl_ms=None, task_id=task_id, owner="ada", retention_ms=7))
        return Trial(create, partial(view_task, store, task_id), leftovers=lambda: bench.clock.waiting)

    try:
        await check_cancellation(creating, patience=bench.patience)
    except AssertionError as error:
        raise AssertionError(f"of create_task: {error}") from error


@_check("L6")
async def a_cancelled_operation_leaves_the_store_usable(bench: StoreBench) -> None:
    store = bench.subject
    task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
    operations: tuple[Callable[[], Awaitable[Any]], ...] = (
        partial(store.get_task, task_id),
        partial(store.update_task, task_id, status_message="again"),
        partial(store.get_result, task_id),
        partial(store.wait_for_update, task_id, after=10_000),
        partial(store.create_task, NewTask(ttl_ms=None)),
    )
    for operation in operations:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await operation()
    unusable = "after cancelled operations the store does not answer"
    await bench.within(store.finish_task(task_id, OUTCOMES[0]), unusable)
    require_whole(await bench.within(read_task(store, task_id), unusable))


# --- L7, L10: identifiers -----------------------------------------------------------------------------


@_check("L7")
async def an_unknown_or_deleted_task_is_not_found_by_any_method(bench: StoreBench) -> None:
    store = bench.subject
    for task_id in ("never-made", "", "a" * 500, "x'; --", "../..", "grüß\u2028🌍"):
        await require_gone(store, task_id, "was never made")
    created = await store.create_task(NewTask(ttl_ms=None))
    require(await store.delete_task(created.task_id) is True, "delete_task did not find an existing task")
    await require_gone(store, created.task_id, "was deleted")


@_check("L10")
async def made_identifiers_are_long_random_and_plain(bench: StoreBench) -> None:
    ids = [(await bench.subject.create_task(NewTask(ttl_ms=None))).task_id for _ in range(64)]
    require(len(set(ids)) == 64, "the store made one identifier twice")
    for task_id in ids:
        require(len(task_id) >= 22, f"the identifier {task_id!r} cannot hold 128 random bits")
        require(task_id.isascii() and task_id.isprintable() and " " not in task_id, f"{task_id!r} is not plain text")
    for position in range(8):
        require(len({task_id[position] for task_id in ids}) > 4, "identifiers begin alike: they can be guessed")
