"""The laws of `TaskJournal`, as named checks: a step's result is recorded once and found by a rerun (law L12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.store import TaskJournal, TaskStore
from mcp_task_runtime.core.types import Fence
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, TaskNotFoundError
from mcp_task_runtime.testing.checks.abilities import able, fence_of, leased_task, require_unchanged
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.cost import count_work

__all__ = ["JOURNAL_CHECKS"]

JOURNAL_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(JOURNAL_CHECKS)
_NEEDS: Final = ("journal", "leases")


@_check("L12", "L4", needs=_NEEDS)
async def a_step_is_recorded_once_and_read_in_order(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    created, other = await leased_task(store), await leased_task(store)
    fence, task_id = fence_of(created), created.task_id
    steps = {"second": '{"n":[1,null]}', "first": '"grüß 🌍"', "": "null", "a#2 %_'": "1.5"}
    for key, value in steps.items():
        recorded = await store.record_step(task_id, key, value, fence=fence)
        require(recorded == value, f"record_step returned {recorded!r} and recorded {value!r}")
        again = await store.record_step(task_id, key, '"other"', fence=fence)
        require(again == value, f"recording a step again returned {again!r} and not what was recorded first")
    await store.record_step(other.task_id, "first", "0", fence=fence_of(other))
    read = await store.read_steps(task_id)
    require(list(read.items()) == list(steps.items()), f"read_steps shows {dict(read)} and not {steps}, in this order")
    require(dict(await store.read_steps(other.task_id)) == {"first": "0"}, "a task has the steps of another one")
    if isinstance(read, dict):
        read.clear()
        require(len(await store.read_steps(task_id)) == len(steps), "changing what read_steps returned changed steps")
    require(dict(await store.read_steps("unknown")) == {}, "an unknown task has steps")


@_check("L12", "L3", needs=_NEEDS)
async def recording_a_step_is_quiet(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    created = await leased_task(store)
    bench.clock.advance(1)
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait) as (waiter,):
        await store.record_step(created.task_id, "one", "1", fence=fence_of(created))
        await require_unchanged(store, created, "recording a step")
        require(not waiter.done(), "recording a step woke a waiter")


@_check("L12", needs=_NEEDS)
async def a_step_is_recorded_by_the_run_that_holds_the_lease_alone(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    created = await leased_task(store)
    task_id, lost = created.task_id, fence_of(created)
    await store.record_step(task_id, "kept", "1", fence=lost)
    bench.clock.advance(10)
    claimed = await store.claim_task(task_id, worker="two", lease_ms=10_000)
    fence = fence_of(claimed)
    require(dict(await store.read_steps(task_id)) == {"kept": "1"}, "a rerun does not find the steps of the run before")
    for key in ("kept", "new"):
        late = store.record_step(task_id, key, "2", fence=lost)
        await require_raises(LeaseLostError, late, "record_step of a run that lost its lease")
    require(await store.record_step(task_id, "kept", "3", fence=fence) == "1", "a rerun recorded a step once more")
    await store.record_step(task_id, "new", "3", fence=fence)
    require(dict(await store.read_steps(task_id)) == {"kept": "1", "new": "3"}, "steps of a lost run were recorded")
    unleased = await leased_task(store, None)
    for where in (unleased.task_id,):
        none = store.record_step(where, "k", "1", fence=Fence("one", 1))
        await require_raises(LeaseLostError, none, "record_step for a task without a lease")
    ended = await store.finish_task(task_id, OUTCOMES[0], fence=fence)
    for key in ("kept", "late"):
        after = store.record_step(task_id, key, "4", fence=fence)
        await require_raises(InvalidTransitionError, after, "record_step for an ended task")
    await require_unchanged(store, ended, "record_step for an ended task")
    unknown = store.record_step("unknown", "k", "1", fence=fence)
    await require_raises(TaskNotFoundError, unknown, "record_step for an unknown task")
    require(dict(await store.read_steps("unknown")) == {}, "a refused step of an unknown task was recorded")


@_check("L12", "L2", needs=_NEEDS)
async def of_many_that_record_a_step_the_first_wins(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    for _ in range(3):
        created = await leased_task(store)
        racers = [partial(store.record_step, created.task_id, "k", f"{n}", fence=fence_of(created)) for n in range(6)]
        endings = set(map(str, await bench.race(*racers)))
        require(len(endings) == 1, f"6 concurrent callers of record_step for one key got {len(endings)} results")
        require(dict(await store.read_steps(created.task_id)) == {"k": endings.pop()}, "another result is recorded")


@_check("L12", "L6", needs=_NEEDS)
async def a_cancelled_step_was_recorded_or_was_not(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)

    async def setup() -> Trial:
        created = await leased_task(store)

        async def look() -> tuple[Any, ...]:
            return (await read_task(store, created.task_id)).revision, dict(await store.read_steps(created.task_id))

        record = partial(store.record_step, created.task_id, "k", "1", fence=fence_of(created))
        return Trial(record, look, leftovers=lambda: bench.clock.waiting)

    await check_cancellation(setup, patience=bench.patience)


@_check("L12", "L8", needs=_NEEDS)
async def steps_go_with_their_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    for how in ("is deleted", "expires", "has ended and expired"):
        created = await leased_task(store, task_id="again", ttl_ms=1_000)
        await store.record_step("again", "k", "1", fence=fence_of(created))
        if how == "is deleted":
            await store.delete_task("again")
        elif how == "has ended and expired":
            await store.finish_task("again", OUTCOMES[0])
        bench.clock.advance(1)
        require(dict(await store.read_steps("again")) == {}, f"the steps of a task that {how} can be read")
        new = await leased_task(store, task_id="again")
        require(dict(await store.read_steps("again")) == {}, f"a new task has the steps of one that {how}")
        recorded = await store.record_step("again", "k", "2", fence=fence_of(new))
        require(recorded == "2", f"a new task has the step of one that {how}")
        await store.delete_task("again")

    async def live_and_die(number: int) -> None:
        one = await leased_task(store, ttl_ms=1_000)
        for key in ("a", f"key {number}"):
            await store.record_step(one.task_id, key, f"{number}", fence=fence_of(one))
        if number % 3 == 0:
            await store.finish_task(one.task_id, OUTCOMES[0])
        if number % 2:
            await store.delete_task(one.task_id)
        else:
            bench.clock.advance(1)
            await store.get_task(one.task_id)

    await bench.require_nothing_kept(live_and_die, "tasks with steps")


@_check("L12", "L8", needs=_NEEDS)
async def no_step_costs_more_when_there_are_many(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    rounds = 8
    created = await leased_task(store, lease_ms=900_000)
    fence, count = fence_of(created), 0

    async def record() -> None:
        nonlocal count
        for _ in range(rounds):
            count += 1
            await store.record_step(created.task_id, f"{count}", "1", fence=fence)

    async def populate(number: int) -> None:
        for _ in range(number):
            one = await leased_task(store)
            await store.record_step(one.task_id, "k", "1", fence=fence_of(one))
            await record()

    operations: dict[str, Callable[[], Awaitable[Any]]] = {
        "record_step": record,
        "read_steps": partial(store.read_steps, (await leased_task(store)).task_id),
    }
    await populate(2)
    few = {name: await count_work(operation) for name, operation in operations.items()}
    await populate(48)
    for name, operation in operations.items():
        many = await count_work(operation)
        require(
            many <= 3 * few[name] + 400 * rounds,
            f"{name} costs {many} steps with 400 steps recorded and {few[name]} with 16: it looks at all",
        )


@_check("L12", needs=[*_NEEDS, "durable"])
async def a_reopened_store_has_every_step(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        first = able(opened, TaskJournal)
        created = await leased_task(first, lease_ms=90_000)
        for key in ("b", "a"):
            await first.record_step(created.task_id, key, f'"{key}"', fence=fence_of(created))
    async with bench.open_again() as opened:
        second = able(opened, TaskJournal)
        read = await second.read_steps(created.task_id)
        require(
            list(read.items()) == [("b", '"b"'), ("a", '"a"')], "steps are lost, or in another order, after reopening"
        )
        again = await second.record_step(created.task_id, "a", "1", fence=fence_of(created))
        require(again == '"a"', "a step was recorded once more after reopening")


@_check("L12", needs=[*_NEEDS, "shared"])
async def another_process_finds_the_steps(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    async with bench.open_again() as opened:
        other = able(opened, TaskJournal)
        created = await leased_task(store)
        await store.record_step(created.task_id, "k", "1", fence=fence_of(created))
        require(dict(await other.read_steps(created.task_id)) == {"k": "1"}, "another process does not find a step")
        bench.clock.advance(10)
        claimed = await other.claim_task(created.task_id, worker="two", lease_ms=10_000)
        again = await other.record_step(created.task_id, "k", "2", fence=fence_of(claimed))
        require(again == "1", "another process recorded a step once more")
