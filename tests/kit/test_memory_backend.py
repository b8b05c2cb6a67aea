from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, cast

import anyio
import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.observed_store import observed
from mcp_task_runtime.core.observer import IsolatedObserver
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome, TaskFilter
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.stores.memory._entry import Entry
from mcp_task_runtime.testing import (
    QUESTION_CHECKS,
    QUEUE_CHECKS,
    STORE_CHECKS,
    Check,
    FakeClock,
    TaskBackend,
    YieldingTaskMessageQueue,
    YieldingTaskStore,
    check_task_backend,
    check_task_message_queue,
    check_task_store,
    check_task_store_machine,
)
from mcp_task_runtime.testing.checks.leases import LEASE_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS
from mcp_task_runtime.testing.yielding import YieldingBundledStore
from tests.core.leased_store import LeasedTaskStore, Link, TakingTaskStore
from tests.kit.memory import OF_A_BACKEND, ONLY_ON_SERVERS, memory_backend, memory_queue, memory_store
from tests.support.patience import PATIENCE

MISSING = {"durable", "leases", "shared"}


@pytest.mark.parametrize("check", [check for check in STORE_CHECKS if not check.needs & MISSING], ids=str)
async def test_the_store_keeps_the_law(check: Check[TaskStore]) -> None:
    await check.run(memory_store)


@pytest.mark.parametrize("check", [check for check in QUEUE_CHECKS if not check.needs & MISSING], ids=str)
async def test_the_queue_keeps_the_law(check: Check[TaskMessageQueue]) -> None:
    await check.run(memory_queue)


@pytest.mark.parametrize("check", [check for check in QUESTION_CHECKS if not check.needs & MISSING], ids=str)
async def test_store_and_queue_keep_the_law_together(check: Check[TaskBackend]) -> None:
    await check.run(memory_backend)


@asynccontextmanager
async def yielding_store(clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
    async with InMemoryTaskStore(clock=clock) as store:
        yield YieldingTaskStore(store)


@asynccontextmanager
async def yielding_queue(clock: FakeClock, location: str) -> AsyncIterator[TaskMessageQueue]:
    async with InMemoryTaskMessageQueue() as queue:
        yield YieldingTaskMessageQueue(queue)


async def count_nothing(kept: object) -> int:
    """Stand for a count where what is kept is not the question: the wrapped store has its own check."""
    return 0


@pytest.mark.parametrize("check", [check for check in STORE_CHECKS if not check.needs & MISSING], ids=str)
async def test_the_checks_do_not_mind_a_store_that_yields(check: Check[TaskStore]) -> None:
    await check.run(yielding_store, footprint=count_nothing)


@pytest.mark.parametrize("check", [check for check in QUEUE_CHECKS if not check.needs & MISSING], ids=str)
async def test_the_checks_do_not_mind_a_queue_that_yields(check: Check[TaskMessageQueue]) -> None:
    await check.run(yielding_queue, footprint=count_nothing)


# What lives in one process's memory is durable and shared as long as the process keeps it: enough to run the
# checks that need more than `InMemoryTaskStore` can.


class Kept:
    """Stores by location, kept when they are closed."""

    def __init__(self) -> None:
        self._stores: dict[str, InMemoryTaskStore] = {}

    def leased_store(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
        return nullcontext(self._stores.setdefault(location, LeasedTaskStore(clock=clock)))

    def taking_store(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
        return nullcontext(self._stores.setdefault(location, TakingTaskStore(clock=clock)))

    def linked_store(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
        store = self._stores.setdefault(location, LeasedTaskStore(clock=clock))
        return nullcontext(cast(TaskStore, Link(store)))

    def queue(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskMessageQueue]:
        return nullcontext(self._stores.setdefault(location, InMemoryTaskStore(clock=clock)).message_queue)

    def backend(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskBackend]:
        store = self._stores.setdefault(location, InMemoryTaskStore(clock=clock))
        return nullcontext(TaskBackend(store, store.message_queue))


@pytest.mark.parametrize("check", [check for check in STORE_CHECKS if check.needs & MISSING], ids=str)
async def test_a_store_that_is_kept_is_durable_and_shared_and_may_have_leases(check: Check[TaskStore]) -> None:
    await check.run(Kept().leased_store)


async def count_entries(link: Any) -> int:
    statistics = link._target.statistics()
    return int(statistics.tasks + statistics.leases)


@pytest.mark.parametrize("check", LEASE_CHECKS, ids=str)
async def test_the_checks_do_not_mind_leases_whose_store_yields(check: Check[TaskStore]) -> None:
    await check.run(Kept().linked_store, footprint=count_entries)


@pytest.mark.parametrize("check", [check for check in QUEUE_CHECKS if check.needs & MISSING], ids=str)
async def test_a_queue_that_is_kept_is_durable_and_shared(check: Check[TaskMessageQueue]) -> None:
    await check.run(Kept().queue)


@pytest.mark.parametrize("check", [check for check in QUESTION_CHECKS if check.needs & MISSING], ids=str)
async def test_a_backend_that_is_kept_is_durable_and_shared(check: Check[TaskBackend]) -> None:
    await check.run(Kept().backend)


@pytest.mark.parametrize(
    ("check", "factory"),
    [(check, yielding_store) for check in STORE_CHECKS if check.needs & MISSING]
    + [(check, memory_queue) for check in QUEUE_CHECKS if check.needs & MISSING],
)
async def test_a_store_that_cannot_do_what_it_is_said_to_is_found_out(check: Check[object], factory: object) -> None:
    with pytest.raises(AssertionError, match="broken"):
        await check.run(factory, patience=0.1)  # type: ignore[arg-type]


def test_the_whole_contract_is_one_call_that_reports_what_it_left_out() -> None:
    report = check_task_store(memory_store, capabilities=["listing"], footprint=count_nothing)
    assert {backend for _, backend in report.passed} == {"asyncio", "trio"}
    assert ("a_reopened_store_has_every_task_as_it_was", ("durable",)) in report.left_out
    assert len(report.passed) == 2 * (len(STORE_CHECKS) + len(ABILITY_CHECKS) - len(report.left_out))
    assert "left out: a_waiter_is_woken_by_another_process (needs shared)" in str(report)

    def leased_store(clock: FakeClock, location: str) -> LeasedTaskStore:
        return LeasedTaskStore(clock=clock)

    with_leases = check_task_store(
        leased_store, capabilities=["leases", "listing"], backends=["asyncio"], footprint=count_nothing
    )
    assert ("of_many_that_claim_a_task_exactly_one_gets_it", "asyncio") in with_leases.passed
    assert ("a_run_that_lost_its_lease_changes_nothing", ("fences",)) in with_leases.left_out
    assert ("a_reopened_store_has_every_lease_as_it_was", ("durable",)) in with_leases.left_out

    without_lists = check_task_store(memory_store, capabilities=[], backends=["asyncio"], footprint=count_nothing)
    assert {needs for _, needs in without_lists.left_out} >= {("listing",), ("durable", "listing")}

    assert check_task_message_queue(memory_queue, backends=["trio"]).passed
    assert check_task_backend(memory_backend, capabilities=["mailbox"], backends=["trio"]).passed


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (["lising", "fenced"], "the unknown 'fenced', 'lising'; there are connecting, diagnosis, "),
        ("listing", "the unknown 'g', "),
        (["listing", "fences"], "'fences' without 'leases'"),
        (["leases", "taking"], "'taking' without 'work'"),
    ],
)
def test_a_declaration_that_would_leave_out_checks_unseen_is_refused(declared: Any, said: str) -> None:
    checks: list[Any] = [
        partial(check_task_store, memory_store),
        partial(check_task_message_queue, memory_queue),
        partial(check_task_backend, memory_backend),
        partial(check_task_store_machine, memory_backend),
    ]
    for check in checks:
        with pytest.raises(ValueError, match=f"^capabilities has {said}"):
            check(capabilities=declared)


async def test_an_operation_that_never_returns_is_found_by_a_sentence() -> None:
    class Hanging(InMemoryTaskStore):
        async def get_result(self, task_id: str) -> Outcome | None:
            await anyio.sleep_forever()
            return None

    (check,) = [check for check in STORE_CHECKS if check.name.startswith("a_created_task_is_working")]
    with pytest.raises(AssertionError, match=r"an operation has not returned, and 0\.3 seconds"):
        await check.run(lambda clock, location: Hanging(clock=clock), patience=0.01)


@pytest.mark.parametrize(
    "check",
    [check for check in ABILITY_CHECKS if not check.needs & {"durable", "shared", *OF_A_BACKEND, *ONLY_ON_SERVERS}],
    ids=str,
)
async def test_the_store_has_the_abilities_that_it_declares(check: Check[TaskStore]) -> None:
    await check.run(memory_store)


@pytest.mark.parametrize("check", [check for check in ABILITY_CHECKS if check.needs & ONLY_ON_SERVERS], ids=str)
async def test_a_store_that_takes_work_keeps_the_laws(check: Check[TaskStore]) -> None:
    @asynccontextmanager
    async def closing(clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        async with TakingTaskStore(clock=clock) as store:
            yield store

    await check.run(Kept().taking_store if "shared" in check.needs else closing)


@asynccontextmanager
async def yielding_bundled_store(clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
    async with InMemoryTaskStore(clock=clock) as store:
        yield YieldingBundledStore(store)


NOT_YIELDING = {"durable", "shared", "watching", "work", *OF_A_BACKEND, *ONLY_ON_SERVERS}


@pytest.mark.parametrize("check", [check for check in ABILITY_CHECKS if not check.needs & NOT_YIELDING], ids=str)
async def test_the_checks_do_not_mind_abilities_that_yield(check: Check[TaskStore]) -> None:
    await check.run(yielding_bundled_store, footprint=count_nothing)


@pytest.mark.parametrize(
    "check",
    [check for check in ABILITY_CHECKS if check.needs & {"durable", "shared"} and not check.needs & ONLY_ON_SERVERS],
    ids=str,
)
async def test_a_store_that_is_kept_has_its_abilities_in_every_process(check: Check[TaskStore]) -> None:
    await check.run(Kept().leased_store)


@pytest.mark.parametrize("check", [check for check in ABILITY_CHECKS if check.needs], ids=str)
async def test_a_store_without_an_ability_is_found_out(check: Check[TaskStore]) -> None:
    with pytest.raises(AssertionError, match=r"broken .*(lacks|raised)"):
        await check.run(yielding_store, patience=0.1)


class Observed(Kept):
    """Stores as a runtime with an observer sees them; those that are kept, and those that are closed."""

    def kept(self, clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskStore]:
        store = self._stores.setdefault(location, TakingTaskStore(clock=clock))
        return nullcontext(observed(store, store.message_queue, IsolatedObserver())[0])

    @asynccontextmanager
    async def closed(self, clock: FakeClock, location: str) -> AsyncIterator[TaskStore]:
        async with TakingTaskStore(clock=clock) as store:
            yield observed(store, store.message_queue, IsolatedObserver())[0]

    @asynccontextmanager
    async def backend_of(self, clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with InMemoryTaskStore(clock=clock) as store:
            seen, queue = observed(store, store.message_queue, IsolatedObserver())
            yield TaskBackend(seen, queue)


async def test_a_store_that_is_observed_keeps_every_law() -> None:
    for check in (*STORE_CHECKS, *ABILITY_CHECKS):
        if check.needs & OF_A_BACKEND:
            continue
        stores = Observed()
        is_kept = check.needs & (MISSING if check in STORE_CHECKS else {"durable", "shared"})
        await check.run(stores.kept if is_kept else stores.closed, footprint=count_nothing)
    for together in QUESTION_CHECKS:
        if not together.needs & MISSING:
            await together.run(Observed().backend_of, footprint=count_nothing)


async def test_a_task_that_comes_back_to_a_status_has_its_old_place_in_a_search() -> None:
    async with InMemoryTaskStore() as store:
        records = [await store.create_task(ttl_ms=None) for _ in range(20)]
        moved = records[3].task_id
        wanted = TaskFilter(statuses=frozenset({"working"}))
        await store.update_task(moved, status="input_required")
        assert len((await store.search_tasks(wanted)).records) == 19
        await store.update_task(moved, status="working")
        for newest_first in (False, True):
            page = await store.search_tasks(wanted, newest_first=newest_first)
            found = [record.task_id for record in page.records]
            assert found == [record.task_id for record in (reversed(records) if newest_first else records)]


@pytest.mark.parametrize("what", ["answer", "message", "update", "work"])
async def test_a_store_that_is_closed_wakes_those_that_wait(what: str) -> None:
    """L3."""
    store = InMemoryTaskStore()
    record = await store.create_task(ttl_ms=None)
    await store.ask(record.task_id, QueuedMessage.request("k", "m", {}))
    await store.message_queue.dequeue(record.task_id)
    woken: list[Exception] = []

    async def wait() -> None:
        queue = store.message_queue
        try:
            if what == "answer":
                await queue.wait_for_answer(record.task_id, "k")
            elif what == "update":
                await store.wait_for_update(record.task_id, after=1_000)
            elif what == "work":
                await store.wait_for_work(["tool"], limit=1)
            else:
                await queue.wait_for_message(record.task_id)
        except StoreClosedError as error:
            woken.append(error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await store.aclose()
    assert len(woken) == 1


async def test_a_queue_that_is_closed_refuses_everything() -> None:
    queue = InMemoryTaskMessageQueue()
    question = QueuedMessage("request", "elicitation/create", "{}", "k")
    await queue.enqueue("a", question)
    await queue.aclose()
    operations = (
        partial(queue.enqueue, "a", question),
        partial(queue.dequeue, "a"),
        partial(queue.peek, "a"),
        partial(queue.is_empty, "a"),
        partial(queue.clear, "a"),
        partial(queue.outstanding, "a"),
        partial(queue.answer, "a", "k", Answer.withdrawn()),
        partial(queue.wait_for_message, "a"),
        partial(queue.wait_for_answer, "a", "k"),
    )
    for operation in operations:
        with anyio.fail_after(PATIENCE), pytest.raises(StoreClosedError):
            await operation()


async def test_the_history_tells_an_empty_status_message_from_none() -> None:
    async with InMemoryTaskStore() as store:
        record = await store.create_task(ttl_ms=None)
        await store.update_task(record.task_id, status_message="")
        await store.update_task(record.task_id, status_message="a")
        events = [(event.kind, event.text) for event in await store.get_history(record.task_id)]
    assert events == [("created", None), ("status", ""), ("status", "a")]


async def test_nothing_of_tasks_that_are_gone_is_kept_in_an_index() -> None:
    """L8: even without a list, a search or a new task."""

    def entries() -> int:
        gc.collect()
        return sum(type(each) is Entry for each in gc.get_objects())

    before = entries()
    async with InMemoryTaskStore() as store:
        records = [await store.create_task(ttl_ms=None, owner="me") for _ in range(500)]
        for record in records[1:]:
            await store.delete_task(record.task_id)
        del record, records
        assert entries() - before < 100
