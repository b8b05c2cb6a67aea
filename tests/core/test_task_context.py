"""`TaskContext` and `task_execution`: work that has a store and nothing else."""

from __future__ import annotations

import sys
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    TaskContext,
    TaskNotFoundError,
    TaskStore,
    task_execution,
)
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.yielding import YieldingTaskStore
from tests.support.patience import PATIENCE

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


async def make_context(store: TaskStore) -> TaskContext:
    return TaskContext(task=(await store.create_task(NewTask(ttl_ms=60_000))).task, store=store)


async def outcome(store: TaskStore, task_id: str) -> Outcome | None:
    return await store.get_result(task_id)


async def test_a_context_shows_the_task_it_was_made_with_and_what_it_changed() -> None:
    store = InMemoryTaskStore()
    context = await make_context(store)
    assert context.task.status == "working"
    await context.update_status("half")
    assert context.task.status_message == "half"
    stored = await store.get_task(context.task_id)
    assert stored is not None
    assert stored.task == context.task
    await context.complete({"n": 1})
    ended = await store.get_task(context.task_id)
    assert ended is not None
    assert ended.task == context.task
    assert ended.outcome == Outcome.completed({"n": 1})


async def test_failing_tells_why_in_error_and_status_message() -> None:
    store = InMemoryTaskStore()
    context = await make_context(store)
    await context.fail("no disk")
    ended = await outcome(store, context.task_id)
    assert ended is not None
    assert ended.error == {"code": -32603, "message": "no disk"}
    assert context.task.status_message == "no disk"


async def test_requesting_cancellation_sets_a_flag_and_ends_nothing() -> None:
    store = InMemoryTaskStore()
    context = await make_context(store)
    assert not context.is_cancelled
    context.request_cancellation()
    assert context.is_cancelled
    assert await outcome(store, context.task_id) is None


@pytest.mark.parametrize("method", ["update_status", "complete", "fail"])
async def test_nothing_changes_a_task_that_somebody_else_ended(method: str) -> None:
    """L1, L2, F8: a cancelled task never gets a result."""
    store = InMemoryTaskStore()
    context = await make_context(store)
    await store.finish_task(context.task_id, Outcome.cancelled())
    before = await store.get_task(context.task_id)
    argument: Any = {"n": 1} if method == "complete" else "x"
    with pytest.raises(InvalidTransitionError):
        await getattr(context, method)(argument)
    assert await store.get_task(context.task_id) == before
    assert context.task.status == "working", "as it last saw it"
    assert (await context.refresh()).status == "cancelled"


@pytest.mark.parametrize("method", ["update_status", "complete", "fail", "refresh"])
async def test_a_task_that_expired_is_not_found(method: str) -> None:
    """L7, F14."""
    clock = FakeClock()
    store = InMemoryTaskStore(clock=clock)
    context = await make_context(store)
    clock.advance(60)
    arguments: list[Any] = [] if method == "refresh" else [{"n": 1} if method == "complete" else "x"]
    with pytest.raises(TaskNotFoundError):
        await getattr(context, method)(*arguments)


@pytest.mark.parametrize("result", [None, [1], "x"])
async def test_completing_with_no_json_object_is_refused_and_changes_nothing(result: Any) -> None:
    store = InMemoryTaskStore()
    context = await make_context(store)
    with pytest.raises(ValueError, match="result"):
        await context.complete(result)
    assert await outcome(store, context.task_id) is None


async def test_a_block_that_completes_its_task_leaves_it_completed() -> None:
    store = InMemoryTaskStore()
    record = await store.create_task(NewTask(ttl_ms=None))
    async with task_execution(record.task_id, store) as context:
        await context.complete({"n": 1})
    assert await outcome(store, record.task_id) == Outcome.completed({"n": 1})


async def test_a_block_that_ends_nothing_leaves_the_task_open() -> None:
    store = InMemoryTaskStore()
    record = await store.create_task(NewTask(ttl_ms=None))
    async with task_execution(record.task_id, store):
        pass
    assert await outcome(store, record.task_id) is None


async def test_an_unknown_task_cannot_be_executed() -> None:
    with pytest.raises(TaskNotFoundError):
        await task_execution("unknown", InMemoryTaskStore()).__aenter__()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LookupError("secret"), -32603, "Internal error"),
        (ProtocolError(-1, "verbatim"), -1, "verbatim"),
        (ProtocolError(-1, "verbatim", object()), -32603, "Internal error"),
    ],
)
async def test_a_block_that_raises_fails_the_task_and_the_exception_goes_no_further(
    error: Exception, code: int, message: str
) -> None:
    """L11."""
    store = YieldingTaskStore(InMemoryTaskStore())
    record = await store.create_task(NewTask(ttl_ms=None))
    with anyio.fail_after(PATIENCE):
        async with task_execution(record.task_id, store):
            raise error
    ended = await outcome(store, record.task_id)
    assert ended is not None
    assert ended.error == {"code": code, "message": message}


async def test_a_block_that_raises_after_its_task_ended_changes_nothing() -> None:
    """L2: whether the block itself or other code ended it."""
    store = InMemoryTaskStore()
    mine, foreign = await store.create_task(NewTask(ttl_ms=None)), await store.create_task(NewTask(ttl_ms=None))
    async with task_execution(mine.task_id, store) as context:
        await context.complete({})
        raise LookupError
    async with task_execution(foreign.task_id, store):
        await store.finish_task(foreign.task_id, Outcome.cancelled())
        raise LookupError
    assert await outcome(store, mine.task_id) == Outcome.completed({})
    assert await outcome(store, foreign.task_id) == Outcome.cancelled()


@pytest.mark.parametrize("error", [SystemExit(1), BaseExceptionGroup("x", [KeyboardInterrupt()])])
async def test_a_block_that_exits_fails_the_task_and_still_exits(error: BaseException) -> None:
    store = InMemoryTaskStore()
    record = await store.create_task(NewTask(ttl_ms=None))

    async def work() -> None:
        async with task_execution(record.task_id, store):
            raise error

    with pytest.raises(type(error)):
        await work()
    ended = await outcome(store, record.task_id)
    assert ended is not None
    assert ended.error == {"code": -32603, "message": "The work was interrupted"}


async def test_a_block_that_is_cancelled_fails_the_task_and_stays_cancelled() -> None:
    """L6, L12: at each of its awaits, with a store that yields."""

    async def setup() -> Trial:
        memory = InMemoryTaskStore()
        store = YieldingTaskStore(memory)
        record = await memory.create_task(NewTask(ttl_ms=None))
        entered = False

        async def operation() -> None:
            nonlocal entered
            async with task_execution(record.task_id, store) as context:
                entered = True
                await context.update_status("at work")
                await context.complete({"n": 1})

        async def observe() -> str:
            ended = await memory.get_result(record.task_id)
            if not entered:
                return "before" if ended is None else "ended without having run"
            return "working" if ended is None else "after" if ended.status == "completed" else str(ended.error)

        return Trial(operation, observe, also=("{'code': -32603, 'message': 'The work was interrupted'}",))

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 5


@pytest.mark.parametrize("steps", range(6))
async def test_a_failure_is_recorded_even_if_its_block_is_cancelled_meanwhile(steps: int) -> None:
    """L6: clean-up that must run is shielded; the task must not stay `working`."""
    memory = InMemoryTaskStore()
    record = await memory.create_task(NewTask(ttl_ms=None))

    async def work() -> None:
        async with task_execution(record.task_id, YieldingTaskStore(memory)):
            raised.set()
            raise LookupError

    raised = anyio.Event()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await raised.wait()
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    ended = await memory.get_result(record.task_id)
    assert ended is not None
    assert ended.status == "failed"
