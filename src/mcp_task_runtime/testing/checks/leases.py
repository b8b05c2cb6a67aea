"""The laws of `TaskLeases`, as named checks: how a store shared by processes notices that one is lost (law L12)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.store import TaskLeases, TaskStore
from mcp_task_runtime.core.types import Lease, TaskRecord
from mcp_task_runtime.testing.checks.abilities import (
    able,
    claimed_task,
    lapsed_tasks,
    leased_task,
    require_unchanged,
)
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.cost import count_work
from mcp_task_runtime.testing.concurrency.interleaving import Race, check_interleavings

__all__ = ["LEASE_CHECKS"]

LEASE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(LEASE_CHECKS)


# --- made, renewed, dropped ---------------------------------------------------------------------------


@_check("L12", needs=["leases"])
async def a_lease_is_made_with_the_task_and_kept_by_its_updates(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created, unleased = await leased_task(store), await leased_task(store, None)
    lease = Lease("one", bench.clock.now() + timedelta(seconds=10))
    require(created.lease == lease, f"create_task made the lease {created.lease} and not {lease}")
    require(unleased.lease is None, "a task that was made without a worker has a lease")
    bench.clock.advance(1)
    for change in ({"status": "input_required"}, {"status": "working", "status_message": "on"}):
        changed = await store.update_task(created.task_id, **change)  # type: ignore[arg-type]
        require(changed.lease == lease, "an update changed the task's lease")
        require((await read_task(store, created.task_id)).lease == lease, "an update changed the stored lease")
    bench.clock.advance(9)
    require(await lapsed_tasks(store) == [created.task_id], "what has lapsed is not the one task with a lease")


@_check("L12", needs=["leases"])
async def a_worker_renews_the_leases_that_it_holds_and_no_others(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    mine = [await leased_task(store), await leased_task(store, lease_ms=1), await leased_task(store, lease_ms=900_000)]
    others = [await leased_task(store, "two"), await leased_task(store, None)]
    gone = [await leased_task(store), await leased_task(store), await leased_task(store, ttl_ms=1_000)]
    await store.finish_task(gone[0].task_id, OUTCOMES[0])
    await store.delete_task(gone[1].task_id)
    bench.clock.advance(1)
    asked = [record.task_id for record in (*mine, *others, *gone)] + ["unknown"]
    held = await store.renew_leases("one", asked, lease_ms=20_000)
    require(isinstance(held, frozenset), f"renew_leases returned a {type(held).__name__} and not a frozenset")
    for kind, record in zip(("is live", "has lapsed", "would last longer"), mine, strict=True):
        require(record.task_id in held, f"a worker could not renew a lease of its own that {kind}")
    for kind, record in zip(("belongs to another", "nobody has"), others, strict=True):
        require(record.task_id not in held, f"a worker renewed a lease that {kind}")
    require(len(held) == len(mine), "a worker renewed the lease of a task that has ended, is gone, or never was")
    for record in mine:
        renewed = replace(record, lease=Lease("one", bench.clock.now() + timedelta(seconds=20)))
        read = await read_task(store, record.task_id)
        require(read.lease == renewed.lease, f"renew_leases made the lease {read.lease} and not {renewed.lease}")
        require(read == renewed, "renew_leases changed more of the task than its lease: its revision, or its times")
    for record in others:
        await require_unchanged(store, record, "renewing a lease that the worker does not hold")
    require(await store.renew_leases("one", [], lease_ms=5) == frozenset(), "renewing no leases renewed some")
    bench.clock.advance(19.999)
    require(mine[1].task_id not in await lapsed_tasks(store), "a lease that was renewed lapsed before its new time")
    bench.clock.advance(0.001)
    require(
        {record.task_id for record in mine} <= set(await lapsed_tasks(store)),
        "a lease that was renewed, be it for less time than it had, did not lapse at its new time",
    )


@_check("L12", needs=["leases"])
async def a_worker_drops_the_leases_that_it_holds_and_no_others(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for lapse in (True, False):
        lapsed, live = await leased_task(store, lease_ms=1_000), await leased_task(store)
        others = [await leased_task(store, "two"), await leased_task(store, None)]
        ended, deleted = await leased_task(store), await leased_task(store)
        ended = await store.finish_task(ended.task_id, OUTCOMES[0])
        await store.delete_task(deleted.task_id)
        bench.clock.advance(2)
        everything = [record.task_id for record in (live, lapsed, *others, ended, deleted)] + ["unknown"]
        await store.drop_leases("one", [], lapse=lapse)
        for record in (live, lapsed):
            await require_unchanged(store, record, "dropping no leases")
        await store.drop_leases("one", everything, lapse=lapse)
        for record in (*others, ended):
            await require_unchanged(store, record, f"dropping a lease (lapse={lapse}) that the worker does not hold")
        for record in (live, lapsed):
            before = record.lease
            if before is None:
                raise AssertionError("create_task made no lease")
            was_lost = before.expires_at <= bench.clock.now()
            handed_over = replace(before, expires_at=bench.clock.now(), handovers=before.handovers + 1)
            kept = None if not lapse else before if was_lost else handed_over
            read = await read_task(store, record.task_id)
            require(read.lease == kept, f"drop_leases (lapse={lapse}) made the lease {read.lease} and not {kept}")
            require(
                read == replace(record, lease=kept),
                "drop_leases changed more of the task than its lease: its revision, or its times",
            )
        if lapse:
            order = [lapsed.task_id, live.task_id]
            require(await lapsed_tasks(store) == order, "what was dropped for others to claim is not listed as lapsed")
            for task_id in order:
                require((await claimed_task(store, task_id)).revision == 2, "a claim did not add one to the revision")
        else:
            held = await store.renew_leases("one", [live.task_id, lapsed.task_id], lease_ms=10_000)
            require(held == frozenset(), "a worker renewed a lease that it had dropped")
            require(await lapsed_tasks(store) == [], "a lease that was dropped for good counts as lapsed")
        for record in (lapsed, live, *others):
            await store.delete_task(record.task_id)


# --- lapsed -------------------------------------------------------------------------------------------


@_check("L12", "L7", needs=["leases"])
async def a_lease_lapses_at_its_time_by_the_injected_clock(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store)
    bench.clock.advance(9.999)
    require(await lapsed_tasks(store) == [], "a lease counts as lapsed before its time")
    early = await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    require(early is None, "a lease was claimed before it had lapsed")
    await require_unchanged(store, created, "a claim of a lease that has not lapsed")
    bench.clock.advance(0.001)
    require(await lapsed_tasks(store) == [created.task_id], "a lease does not count as lapsed at its time")
    claimed = await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    require(claimed is not None, "a lease cannot be claimed at the time at which it lapses")
    bench.clock.advance(9.999)
    require(await lapsed_tasks(store) == [], "the lease of a claimed task counts as lapsed before its time")
    bench.clock.advance(0.001)
    require(await lapsed_tasks(store) == [created.task_id], "the lease of a claimed task does not lapse at its time")


@_check("L12", needs=["leases"])
async def lapsed_leases_are_listed_longest_lapsed_first(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    lapses = (3, 1, 5, 2, 4, 60)
    made = {seconds: await leased_task(store, f"worker {seconds}", lease_ms=1_000 * seconds) for seconds in lapses}
    await store.update_task(made[5].task_id, status="input_required", status_message="asks")
    bench.clock.advance(10)
    ids = [made[seconds].task_id for seconds in range(1, 6)]
    for limit in (1, 2, 4, 5, 6, 100):
        listed = await lapsed_tasks(store, limit=limit)
        require(
            listed == ids[:limit],
            f"of 5 lapsed leases list_lapsed(limit={limit}) shows {[ids.index(i) + 1 for i in listed if i in ids]} by"
            " how long ago they lapsed, 1 being the longest",
        )
    for record in await store.list_lapsed():
        require(record == await read_task(store, record.task_id), "list_lapsed shows a task otherwise than get_task")
    for limit in (0, -1):
        await require_raises(ValueError, store.list_lapsed(limit=limit), f"list_lapsed with limit={limit}")


# --- claimed ------------------------------------------------------------------------------------------


@_check("L12", needs=["leases"])
async def a_claim_takes_a_lost_task_over_as_it_is(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for status in ("working", "input_required"):
        created = await leased_task(store, owner="ada", ttl_ms=900_000, retention_ms=7)
        before = await store.update_task(created.task_id, status=status, status_message="so far")
        for attempt, worker in ((2, "two"), (3, "two"), (4, "three")):
            bench.clock.advance(50)
            claimed = await store.claim_task(created.task_id, worker=worker, lease_ms=20_000)
            if claimed is None:
                raise AssertionError(f"the claim for attempt {attempt} was refused")
            lease = Lease(worker, bench.clock.now() + timedelta(seconds=20), attempt)
            require(claimed.lease == lease, f"claim_task made the lease {claimed.lease} and not {lease}")
            require(claimed.status == status, f"claim_task made a task {claimed.status!r} that was {status!r}")
            require(claimed.revision == before.revision + 1, "claim_task did not add one to the revision")
            require(
                claimed.task.last_updated_at == bench.clock.now(),
                "claim_task moved the revision and did not stamp last_updated_at",
            )
            task = replace(before.task, last_updated_at=bench.clock.now())
            expected = replace(before, task=task, revision=before.revision + 1, lease=lease)
            require(claimed == expected, f"claim_task made {claimed} and not {expected}")
            require(await read_task(store, created.task_id) == claimed, "claim_task returned what it did not store")
            require(await lapsed_tasks(store) == [], "a task that was claimed still counts as lost")
            held = await store.renew_leases(worker, [created.task_id], lease_ms=30_000)
            require(held == {created.task_id}, "who claimed a task cannot renew its lease")
            read = await read_task(store, created.task_id)
            require(
                read.lease == Lease(worker, bench.clock.now() + timedelta(seconds=30), attempt),
                f"renewing the lease of attempt {attempt} made {read.lease}",
            )
            before = claimed
        await store.finish_task(created.task_id, OUTCOMES[0])


@_check("L12", "L3", needs=["leases"])
async def a_claim_wakes_whoever_waits_for_a_change(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store)
    wait = partial(store.wait_for_update, created.task_id, after=created.revision)
    async with bench.waiting(wait, wait) as waiters:
        bench.clock.advance(10)
        claimed = await claimed_task(store, created.task_id)
        for waiter in waiters:
            woken = await bench.within(waiter.wait(), "a waiter was not woken by a claim")
            require(woken == claimed, "a waiter was woken by a claim and given another state than the one stored")


@_check("L12", "L7", needs=["leases"])
async def there_is_nothing_to_claim_but_a_live_task_whose_lease_has_lapsed(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    unleased, live, dropped = (
        await leased_task(store, None),
        await leased_task(store, lease_ms=90_000),
        await leased_task(store),
    )
    await store.drop_leases("one", [dropped.task_id], lapse=False)
    ended, deleted, expired = (
        await leased_task(store),
        await leased_task(store),
        await leased_task(store, ttl_ms=15_000),
    )
    await store.finish_task(ended.task_id, OUTCOMES[0])
    await store.delete_task(deleted.task_id)
    bench.clock.advance(15)
    for what, task_id in (
        ("is unknown", "never-made"),
        ("has no identifier", ""),
        ("has no lease", unleased.task_id),
        ("has a lease that has not lapsed", live.task_id),
        ("has a lease that was dropped for good", dropped.task_id),
        ("has ended", ended.task_id),
        ("was deleted", deleted.task_id),
        ("has expired", expired.task_id),
    ):
        before = await store.get_task(task_id)
        claimed = await store.claim_task(task_id, worker="two", lease_ms=10_000)
        require(claimed is None, f"claim_task took over a task that {what}")
        require(await store.get_task(task_id) == before, f"claim_task changed a task that {what}, though it refused")


@_check("L12", "L2", needs=["leases"])
async def of_many_that_claim_a_task_exactly_one_gets_it(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for _ in range(3):
        created = await leased_task(store)
        bench.clock.advance(10)
        racers = [partial(store.claim_task, created.task_id, worker=f"{n}", lease_ms=10_000) for n in range(8)]
        endings = await bench.race(*racers)
        won = [ending for ending in endings if isinstance(ending, TaskRecord)]
        require(len(won) == 1, f"{len(won)} of 8 concurrent callers of claim_task got the task, not one")
        require(endings.count(None) == 7, "a caller of claim_task that came late did not get None")
        await require_unchanged(store, won[0], "a claim that came late")
        await store.delete_task(created.task_id)


@_check("L12", needs=["leases"])
async def a_late_worker_does_not_get_a_claimed_task_back(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    created = await leased_task(store)
    bench.clock.advance(10)
    claimed = await claimed_task(store, created.task_id)
    for late in (1, 20):  # while the new lease lasts, and after it has lapsed, too
        bench.clock.advance(late)
        held = await store.renew_leases("one", [created.task_id], lease_ms=90_000)
        require(held == frozenset(), "a worker renewed the lease of a task that another one had claimed")
        await require_unchanged(store, claimed, "renewing a lease that was lost")
        for lapse in (True, False):
            await store.drop_leases("one", [created.task_id], lapse=lapse)
            await require_unchanged(store, claimed, f"dropping a lease (lapse={lapse}) that was lost")


# --- ended and gone -----------------------------------------------------------------------------------


@_check("L12", needs=["leases"])
async def an_ended_task_has_no_lease(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    for outcome in OUTCOMES:
        for wait in (0, 10):  # while the lease lasts, and after it has lapsed
            created = await leased_task(store)
            bench.clock.advance(wait)
            ended = await store.finish_task(created.task_id, outcome)
            require(ended.lease is None, f"a task that is {ended.status!r} has a lease")
            await require_unchanged(store, ended, "something that finish_task did not return")
            bench.clock.advance(10)
            require(await lapsed_tasks(store) == [], "a task that has ended counts as lost")


@_check("L12", "L7", needs=["leases"])
async def a_lease_goes_with_its_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    ids = ("deleted", "expired")
    for first, second in ((5_000, 90_000), (90_000, 5_000)):
        await leased_task(store, task_id="deleted", lease_ms=first)
        await leased_task(store, task_id="expired", lease_ms=first, ttl_ms=10_000)
        bench.clock.advance(10)  # the lease lapses before the task goes, or would have after it
        await store.delete_task("deleted")
        require(await lapsed_tasks(store) == [], "a task that is gone, deleted or expired, counts as lost")
        held = await store.renew_leases("one", ids, lease_ms=10_000)
        require(held == frozenset(), "a worker renewed the lease of a task that is gone")
        for lapse in (True, False):
            await store.drop_leases("one", ids, lapse=lapse)
        for task_id in ids:
            require(await store.get_task(task_id) is None, "renewing or dropping leases brought a task back")
            again = await leased_task(store, "two", task_id=task_id, lease_ms=second)
            lease = Lease("two", bench.clock.now() + timedelta(milliseconds=second))
            require(again.lease == lease, f"a new task with the identifier of one that is gone has {again.lease}")
        held = await store.renew_leases("one", ids, lease_ms=10_000)
        require(held == frozenset(), "a worker renewed the lease of a new task by the identifier of an old one")
        bench.clock.advance(second / 1_000 - 0.001)
        require(await lapsed_tasks(store) == [], "a new task has the lease of the one that had its identifier before")
        bench.clock.advance(0.001)
        require(
            sorted(await lapsed_tasks(store)) == sorted(ids),
            "the lease of a new task by an old identifier does not lapse at its time",
        )
        for task_id in ids:
            await store.delete_task(task_id)
            await leased_task(store, None, task_id=task_id)
        bench.clock.advance(90)
        require(await lapsed_tasks(store) == [], "a new task without a lease has that of an old one")
        for task_id in ids:
            await store.delete_task(task_id)


# --- L6: cancelled, and overlapping -------------------------------------------------------------------


async def _view(store: TaskStore, bench: StoreBench, task_id: str) -> tuple[Any, ...]:
    """Return what matters of a task and its lease, comparable between tasks."""
    record = await store.get_task(task_id)
    if record is None:
        return ("gone",)
    lease, now = record.lease, bench.clock.now()
    held = None if lease is None else (lease.worker, lease.expires_at - now, lease.attempt)
    return (record.status, record.revision, now - record.task.last_updated_at, held)


@_check("L12", "L6", needs=["leases"])
async def a_cancelled_change_of_a_lease_happened_in_full_or_not_at_all(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "claim_task": lambda task_id: store.claim_task(task_id, worker="two", lease_ms=20_000),
        "renew_leases": lambda task_id: store.renew_leases("one", [task_id], lease_ms=20_000),
        "drop_leases": lambda task_id: store.drop_leases("one", [task_id], lapse=False),
        "drop_leases (lapse=True)": lambda task_id: store.drop_leases("one", [task_id], lapse=True),
        "list_lapsed": lambda task_id: store.list_lapsed(),
    }
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change, name: str = name) -> Trial:
            created = await leased_task(store, lease_ms=10_000)
            if name != "drop_leases (lapse=True)":
                bench.clock.advance(10)
            return Trial(
                partial(change, created.task_id),
                partial(_view, store, bench, created.task_id),
                leftovers=lambda: bench.clock.waiting,
            )

        try:
            await check_cancellation(setup, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {name}: {error}") from error
    created = await leased_task(store)
    bench.clock.advance(10)
    claim = store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    require(
        await bench.within(claim, "after cancelled operations the store does not answer") is not None,
        "after cancelled operations a lost task cannot be claimed",
    )


@_check("L12", "L2", "L6", needs=["leases"])
async def changes_that_overlap_a_claim_have_the_effect_of_some_sequence(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)

    async def setup(*kinds: str) -> Race:
        task_id = (await leased_task(store, lease_ms=10_000)).task_id
        bench.clock.advance(10)

        async def claim(worker: str) -> bool:
            return await store.claim_task(task_id, worker=worker, lease_ms=10_000) is not None

        async def renew() -> bool:
            return bool(await store.renew_leases("one", [task_id], lease_ms=30_000))

        async def finish() -> str:
            return (await store.finish_task(task_id, OUTCOMES[0])).status

        async def ask() -> str:
            return (await store.update_task(task_id, status="input_required", if_revision=1)).status

        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "claim": partial(claim, "two"),
            "rival claim": partial(claim, "three"),
            "renew": renew,
            "drop": partial(store.drop_leases, "one", [task_id], lapse=False),
            "finish": finish,
            "ask": ask,
            "delete": partial(store.delete_task, task_id),
        }
        return Race([operations[kind] for kind in kinds], partial(_view, store, bench, task_id))

    for kinds in (
        ("claim", "rival claim", "renew"),
        ("claim", "finish"),
        ("claim", "ask"),
        ("claim", "drop"),
        ("claim", "delete"),
        ("renew", "finish"),
        ("drop", "finish"),
        ("renew", "ask"),
    ):
        try:
            await check_interleavings(partial(setup, *kinds), limit=16, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of the overlapping operations {', '.join(kinds)}: {error}") from error


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L12", "L8", needs=["leases"])
async def no_operation_on_leases_costs_more_when_there_are_many_tasks(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    rounds = 8

    async def measure() -> dict[str, int]:
        held = [(await leased_task(store, lease_ms=500_000)).task_id for _ in range(rounds)]
        lost = [(await leased_task(store, lease_ms=1)).task_id for _ in range(rounds)]
        bench.clock.advance(1)

        async def claim() -> None:
            for task_id in lost:
                await store.claim_task(task_id, worker="two", lease_ms=900_000)

        return {
            "renew_leases": await count_work(partial(store.renew_leases, "one", held, lease_ms=900_000)),
            "list_lapsed": await count_work(partial(store.list_lapsed, limit=rounds)),
            "claim_task": await count_work(claim),
            "drop_leases": await count_work(partial(store.drop_leases, "one", held, lapse=False)),
        }

    async def populate(count: int) -> None:
        for number in range(count):
            await leased_task(store, f"worker {number % 3}", lease_ms=1 if number % 2 else 700_000 + number)

    await populate(16)
    few = await measure()
    await populate(512)
    many = await measure()
    for name, work in many.items():
        require(
            work <= 3 * few[name] + 400 * rounds,
            f"{name} costs {work} steps for {rounds} of 500 tasks and {few[name]} for {rounds} of 16: it looks at all",
        )


@_check("L12", "L8", needs=["leases"])
async def nothing_is_kept_of_leases_that_are_gone(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)

    async def live_and_die(number: int) -> None:
        task_id = (await leased_task(store, f"worker {number}", lease_ms=1_000, ttl_ms=2_000)).task_id
        await store.renew_leases(f"worker {number}", [task_id], lease_ms=1_000)
        bench.clock.advance(1)
        if number % 2:
            await store.claim_task(task_id, worker=f"reaper {number}", lease_ms=90_000)
        else:
            await store.drop_leases(f"worker {number}", [task_id], lapse=bool(number % 4))
        if number % 3 == 0:
            await store.finish_task(task_id, OUTCOMES[0])
        if number % 3 == 1:
            await store.delete_task(task_id)
        bench.clock.advance(2)
        await store.list_lapsed()
        await store.delete_task(task_id)

    await bench.require_nothing_kept(live_and_die, "leases")


# --- reopened, and shared -----------------------------------------------------------------------------


@_check("L12", needs=["leases", "durable"])
async def a_reopened_store_has_every_lease_as_it_was(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        first = able(opened, TaskLeases)
        held, lost, dropped = (
            await leased_task(first, lease_ms=60_000),
            await leased_task(first),
            await leased_task(first),
        )
        await first.drop_leases("one", [dropped.task_id], lapse=False)
        bench.clock.advance(10)
        lost = await claimed_task(first, lost.task_id)
    bench.clock.advance(10)
    async with bench.open_again() as opened:
        second = able(opened, TaskLeases)
        for record in (held, lost, replace(dropped, lease=None)):
            read = await read_task(second, record.task_id)
            require(read.lease == record.lease, f"after reopening a lease is {read.lease} and was {record.lease}")
        require(await lapsed_tasks(second) == [lost.task_id], "after reopening a lease does not lapse at its time")
        again = await second.claim_task(lost.task_id, worker="three", lease_ms=10_000)
        require(
            again is not None and again.lease is not None and again.lease.attempt == 3,
            "after reopening a lost task cannot be claimed, or its attempts are not counted on",
        )
        require(
            await second.renew_leases("one", [held.task_id], lease_ms=60_000) == {held.task_id},
            "after reopening a worker cannot renew the lease that it holds",
        )


@_check("L12", "L3", needs=["leases", "shared"])
async def a_lost_worker_is_noticed_by_another_process(bench: StoreBench) -> None:
    store = able(bench.subject, TaskLeases)
    async with bench.open_again() as opened:
        other = able(opened, TaskLeases)
        for _ in range(3):
            task_id = (await leased_task(store)).task_id
            require(await lapsed_tasks(other) == [], "a process counts a lease as lapsed that another one holds")
            bench.clock.advance(9)
            await store.renew_leases("one", [task_id], lease_ms=10_000)
            bench.clock.advance(9)
            require(await lapsed_tasks(other) == [], "a process does not see that another one renewed its lease")
            early = await other.claim_task(task_id, worker="two", lease_ms=10_000)
            require(early is None, "a process took over a task whose lease another one had renewed")
            bench.clock.advance(1)
            require(await lapsed_tasks(other) == [task_id], "a process does not see that another one is lost")
            wait = partial(store.wait_for_update, task_id, after=1)
            async with bench.waiting(wait, wait) as waiters:
                racers = [
                    partial(side.claim_task, task_id, worker=f"{name} {number}", lease_ms=10_000)
                    for number in range(3)
                    for name, side in (("store", store), ("other", other))
                ]
                won = [ending for ending in await bench.race(*racers) if ending is not None]
                require(len(won) == 1, f"{len(won)} of 6 callers in two processes claimed a task, not one")
                (claimed,) = won
                for waiter in waiters:
                    woken = await bench.within(waiter.wait(), "a waiter was not woken by a claim in another process")
                    require(woken == claimed, "a waiter woke with another state than the one stored")
            for side in (store, other):
                require(await side.get_task(task_id) == claimed, "a process does not see who claimed a task")
                held = await side.renew_leases("one", [task_id], lease_ms=10_000)
                require(held == frozenset(), "a worker got back a task that another process had claimed")
            await other.delete_task(task_id)
