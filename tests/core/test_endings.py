"""`TaskEndings`: every end releases askers, an outcome waits for its store, and no listener hurts another."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    InMemoryTaskMessageQueue,
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    QueuedMessage,
    StoreError,
    StoreUnavailableError,
    TaskContext,
    TaskNotFoundError,
    TaskRecord,
    TaskRequest,
    task_execution,
)
from mcp_task_runtime.core import store_calls
from mcp_task_runtime.core.abilities import queue_of
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.endings import TaskEndings
from mcp_task_runtime.core.types import Fence, NewTask
from mcp_task_runtime.errors import LeaseLostError, StoreClosedError
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.yielding import YieldingTaskStore
from tests.core.worlds import ask
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

NEW = NewTask(ttl_ms=60_000, request=TaskRequest(name="report"))


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_calls, "_PAUSE", Backoff(first=0.001, longest=0.002))


class FailingStore(InMemoryTaskStore):
    """A store whose `finish_task` raises what it is given, once each, and then works."""

    def __init__(self, *errors: Exception, clock: FakeClock | None = None) -> None:
        super().__init__(clock=clock)
        self.errors = list(errors)
        self.attempts = 0

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        self.attempts += 1
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return await super().finish_task(task_id, outcome, fence=fence)


# --- askers -----------------------------------------------------------------------------------------------------


async def complete(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    await TaskContext(task=record.task, store=store, queue=queue).complete({})


async def fail(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    await TaskContext(task=record.task, store=store, queue=queue).fail("no disk")


async def execute(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    async with task_execution(record.task_id, store, queue):
        raise LookupError


async def finish(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    await TaskEndings(store, queue).finish(record.task_id, Outcome.cancelled())


async def finish_eventually(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    await TaskEndings(store, queue).finish_eventually(record, Outcome.cancelled())


async def discard(store: InMemoryTaskStore, queue: Any, record: TaskRecord) -> None:
    await TaskEndings(store, queue).discard(record)


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("end", [complete, fail, execute, finish, finish_eventually, discard])
async def test_each_way_to_end_a_task_releases_its_askers(
    end: Callable[[InMemoryTaskStore, Any, TaskRecord], Awaitable[None]], foreign: bool
) -> None:
    """L5: also with a queue that is not the store's own."""
    store = InMemoryTaskStore()
    queue = InMemoryTaskMessageQueue() if foreign else store.message_queue
    record = await store.create_task(NEW)
    released: list[type[BaseException]] = []

    async def asker() -> None:
        with pytest.raises((InvalidTransitionError, TaskNotFoundError)) as caught:
            await ask(store, queue, record.task_id)
        released.append(caught.type)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(asker)
            await anyio.wait_all_tasks_blocked()
            await end(store, queue if foreign else None, record)
    assert released == [TaskNotFoundError if end is discard else InvalidTransitionError]
    assert await queue.outstanding(record.task_id) == ()


async def test_a_store_without_a_queue_of_its_own_brings_none() -> None:
    memory = InMemoryTaskStore()
    assert queue_of(memory) is memory.message_queue
    assert queue_of(YieldingTaskStore(memory)) is None


async def test_a_mailbox_that_cannot_be_cleared_does_not_undo_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Queue(InMemoryTaskMessageQueue):
        async def clear(self, task_id: str) -> None:
            raise OSError("gone")

    store = InMemoryTaskStore()
    heard: list[str] = []
    endings = TaskEndings(store, Queue())
    endings.on_end(lambda task_id, record: heard.append(task_id))
    record = await store.create_task(NEW)
    assert (await endings.finish(record.task_id, Outcome.cancelled())).status == "cancelled"
    assert heard == [record.task_id]
    assert "could not be cleared" in caplog.text


# --- an outcome that cannot be written yet -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StoreUnavailableError("away"), StoreError("damaged"), ConnectionResetError("driver"), KeyError("x")]
)
async def test_an_outcome_waits_until_the_store_takes_it_whatever_it_raised_before(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """L12."""
    store = FailingStore(*[error] * 20)
    record = await store.create_task(NEW)
    endings = TaskEndings(store)
    with anyio.fail_after(PATIENCE), caplog.at_level(logging.INFO):
        await endings.finish_eventually(record, Outcome.completed({"n": 1}))
    assert await store.get_result(record.task_id) == Outcome.completed({"n": 1})
    assert store.attempts == 21
    assert endings.waiting == 0
    lines = [each.message for each in caplog.records if each.name == "mcp_task_runtime.tasks"]
    assert len(lines) == 2, "one line when it begins to wait, one when it is written"
    assert all("'report'" in line for line in lines)
    assert record.task_id in lines[0], "it may be lost yet"
    assert record.task_id[:8] not in lines[1], "all is well"


async def test_an_outcome_that_waits_is_counted_and_dropped_loudly_when_its_task_has_expired(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    store = FailingStore(*[StoreUnavailableError("away")] * 100_000, clock=clock)
    record = await store.create_task(NEW)
    endings = TaskEndings(store)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(endings.finish_eventually, record, Outcome.completed({}))
            while store.attempts < 3:
                await anyio.lowlevel.checkpoint()
            assert endings.waiting == 1
            clock.advance(60)
    assert endings.waiting == 0
    assert [each.levelname for each in caplog.records if "was dropped" in each.message] == ["ERROR"]
    assert "expired" in caplog.text


async def test_an_outcome_that_comes_when_its_task_has_expired_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    store = FailingStore(StoreUnavailableError("away"), clock=clock)
    record = await store.create_task(NEW)
    clock.advance(60)
    endings = TaskEndings(store)
    with anyio.fail_after(PATIENCE):
        await endings.finish_eventually(record, Outcome.completed({}))
    assert (store.attempts, endings.waiting) == (1, 0)
    assert [each.levelname for each in caplog.records if each.name == "mcp_task_runtime.tasks"] == ["ERROR"]


async def test_an_outcome_that_is_given_up_at_a_shutdown_is_dropped_loudly(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore(*[StoreUnavailableError("away")] * 100_000)
    record = await store.create_task(NEW)
    endings = TaskEndings(store)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(endings.finish_eventually, record, Outcome.completed({}))
            while store.attempts < 3:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert endings.waiting == 0
    assert [each.levelname for each in caplog.records if "was dropped" in each.message] == ["ERROR"]


async def test_an_outcome_that_the_store_refuses_as_a_value_becomes_an_internal_error() -> None:
    """L4: the task ends all the same."""
    store = FailingStore(ValueError("NUL"))
    record = await store.create_task(NEW)
    await TaskEndings(store).finish_eventually(record, Outcome.completed({"a": "\0"}))
    outcome = await store.get_result(record.task_id)
    assert outcome is not None
    assert outcome.error == {"code": -32603, "message": "Internal error"}


@pytest.mark.parametrize("error", [StoreClosedError(), None])
async def test_an_outcome_whose_store_was_closed_or_refuses_everything_is_dropped_loudly(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(*[error or ValueError("no")] * 2)
    record = await store.create_task(NEW)
    await TaskEndings(store).finish_eventually(record, Outcome.completed({}))
    assert [each.levelname for each in caplog.records if "was dropped" in each.message] == ["ERROR"]


async def test_a_late_outcome_is_dropped_quietly_and_the_listeners_hear_of_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """L9."""
    store = InMemoryTaskStore()
    record = await store.create_task(NEW)
    await store.finish_task(record.task_id, Outcome.cancelled())
    heard: list[tuple[str, TaskRecord | None]] = []
    endings = TaskEndings(store)
    endings.on_end(lambda task_id, record: heard.append((task_id, record)))
    with caplog.at_level(logging.INFO):
        await endings.finish_eventually(record, Outcome.completed({}))
    assert await store.get_result(record.task_id) == Outcome.cancelled()
    assert heard == [(record.task_id, None)]
    assert caplog.records == []


async def test_an_end_that_comes_late_leaves_nothing_in_a_mailbox_of_another_maker() -> None:
    """L8: the one who ended the task did not know of the question."""
    store, queue = FailingStore(), InMemoryTaskMessageQueue()
    record = await store.create_task(NEW)
    await store.finish_task(record.task_id, Outcome.cancelled())
    await queue.enqueue(record.task_id, QueuedMessage("request", "elicitation/create", "{}", "k"))
    await TaskEndings(store, queue).finish_eventually(record, Outcome.completed({}))
    assert await queue.outstanding(record.task_id) == ()
    assert queue.mailboxes == 0


async def test_the_outcome_of_a_run_that_lost_its_lease_leaves_task_and_questions_to_the_next_run() -> None:
    """L12."""
    store = FailingStore(LeaseLostError("x"))
    record = await store.create_task(NEW)
    queue = store.message_queue
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(ask, store, queue, record.task_id)
            await anyio.wait_all_tasks_blocked()
            await TaskEndings(store).finish_eventually(record, Outcome.completed({}), fence=Fence("a", 1))
            assert len(await queue.outstanding(record.task_id)) == 1
            group.cancel_scope.cancel()


# --- listeners ----------------------------------------------------------------------------------------------------


async def test_a_listener_that_raises_keeps_no_other_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    """L13."""
    store = InMemoryTaskStore()
    record = await store.create_task(NEW)
    endings = TaskEndings(store)
    heard: list[str | None] = []

    def broken(task_id: str, record: TaskRecord | None) -> None:
        raise LookupError

    endings.on_end(broken)
    endings.on_end(lambda task_id, record: heard.append(None if record is None else record.status))
    await endings.finish(record.task_id, Outcome.cancelled())
    assert heard == ["cancelled"]
    assert "listener" in caplog.text


async def test_a_task_that_cannot_be_deleted_is_logged_and_listeners_hear(caplog: pytest.LogCaptureFixture) -> None:
    class Store(InMemoryTaskStore):
        async def delete_task(self, task_id: str) -> bool:
            raise OSError("gone")

    store = Store()
    heard: list[str] = []
    endings = TaskEndings(store)
    endings.on_end(lambda task_id, record: heard.append(task_id))
    record = await store.create_task(NEW)
    await endings.discard(record)
    assert heard == [record.task_id]
    assert "will expire" in caplog.text


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "reason", "level", "text"),
    [
        (Outcome.failed("secret text", code=-32050), None, "WARNING", "failed: error -32050"),
        (Outcome.failed("x"), "its time to live passed", "WARNING", "failed: its time to live passed"),
        (Outcome.cancelled(), None, "WARNING", "was cancelled"),
        (
            Outcome.completed({"content": [{"text": "secret"}], "isError": True}),
            None,
            "WARNING",
            "its tool returned",
        ),
        (Outcome.completed({"content": [], "structuredContent": {"isError": True}}), None, None, ""),
        (Outcome.completed({}), None, None, ""),
    ],
)
async def test_operators_read_one_line_for_a_task_that_did_not_complete(
    outcome: Outcome, reason: str | None, level: str | None, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = InMemoryTaskStore()
    record = await store.create_task(NewTask(ttl_ms=None, owner="alice", request=TaskRequest(name="report")))
    with caplog.at_level(logging.INFO):
        await TaskEndings(store).finish(record.task_id, outcome, reason=reason)
    if level is None:
        assert caplog.records == []
        return
    assert [each.levelname for each in caplog.records] == [level]
    message = caplog.records[0].message
    assert text in message
    assert f"{record.task_id} ('report')" in message
    for hidden in ("alice", "secret"):
        assert hidden not in message
