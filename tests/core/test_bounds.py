"""What bounds a process's work: live and stored tasks of an owner, deadlines, slots (L7, L16)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    Execution,
    LimitExceededError,
    Outcome,
    ProtocolError,
    ServerTaskContext,
    StoreUnavailableError,
    TaskContext,
    TaskRecord,
    TaskResultHandler,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core.slots import WorkSlots
from mcp_task_runtime.core.types import NewTask, TaskRequest
from tests.core.leased_store import Client
from tests.core.worlds import open_world
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

JSON = dict[str, Any]


async def forever(execution: Execution[JSON]) -> JSON:
    await anyio.sleep_forever()
    raise AssertionError


async def quick(execution: Execution[JSON]) -> JSON:
    return {"x": "y" * 100}


def owned(owner: str, size: int = 0) -> TaskSpec:
    return TaskSpec(owner=owner, ttl_ms=60_000, request=TaskRequest(arguments_json='{"a":"' + "é" * (size // 2) + '"}'))


# --- stored tasks -------------------------------------------------------------------------------------------------


async def test_ended_tasks_count_until_they_expire_and_other_owners_have_room() -> None:
    settings = TaskSettings(max_stored_tasks_per_owner=3, retention_ms=1_000, shutdown_grace=0)
    async with open_world(settings=settings) as world:
        for _ in range(3):
            await world.runtime.submit(owned("me"), quick)
        await world.until_idle()
        assert world.runtime.statistics().live_tasks == 0
        with pytest.raises(LimitExceededError, match="stored tasks"):
            await world.runtime.submit(owned("me"), quick)
        await world.runtime.submit(owned("you"), quick)
        await world.until_idle()
        assert world.runtime.statistics().stored_tasks == 4
        world.clock.advance(60)
        await world.runtime.submit(owned("me"), quick)
        await world.until_idle()
        assert world.runtime.statistics().stored_tasks == 1


async def test_arguments_and_results_count_in_bytes() -> None:
    settings = TaskSettings(max_stored_bytes_per_owner=1_000, retention_ms=0, shutdown_grace=0)
    async with open_world(settings=settings) as world:
        await world.runtime.submit(owned("me", 400), quick)
        await world.until_idle()
        assert world.runtime.statistics().stored_bytes == len("{}") + len('{"a":""}') + 400 + len(
            '{"x":"' + "y" * 100 + '"}'
        )
        with pytest.raises(LimitExceededError, match="bytes of stored tasks"):
            await world.runtime.submit(owned("me", 500), quick)
        await world.runtime.submit(owned("you", 500), quick)
        await world.runtime.submit(owned("me", 300), quick)
        await world.until_idle()
        world.clock.advance(60)
        statistics = world.runtime.statistics()
        assert (statistics.stored_tasks, statistics.stored_bytes) == (0, 0)


async def test_a_call_that_became_no_task_counts_for_nothing() -> None:
    async with open_world() as world:

        async def work(execution: Execution[JSON]) -> JSON:
            await execution.reserve(owned("me", 100))
            assert world.runtime.statistics().stored_tasks == 1
            return {}

        assert await world.runtime.run(work) == {}
        statistics = world.runtime.statistics()
        assert (statistics.stored_tasks, statistics.stored_bytes, statistics.owners) == (0, 0, 0)


@pytest.mark.parametrize("name", ["max_stored_tasks_per_owner", "max_stored_bytes_per_owner"])
async def test_the_bounds_can_be_lifted_and_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        TaskSettings(**{name: 0})
    lifted: dict[str, Any] = {name: None}
    async with open_world(settings=TaskSettings(**lifted, shutdown_grace=0)) as world:
        await world.runtime.submit(owned("me"), quick)
        await world.until_idle()


# --- deadlines ----------------------------------------------------------------------------------------------------


async def test_a_task_whose_ttl_was_extended_lives_until_its_new_deadline() -> None:
    """L7."""
    async with open_world() as world:

        async def work(execution: Execution[JSON]) -> JSON:
            assert execution.record is not None
            context = TaskContext(task=execution.record.task, store=world.store)
            await context.extend(100_000)
            return await forever(execution)

        record = await world.runtime.submit(owned("me"), work)
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(90)
        await anyio.wait_all_tasks_blocked()
        assert (await world.runtime.get(record.task_id, owner="me")).task.status == "working"
        world.clock.advance(9.5)
        assert await world.until(record.task_id, "failed") == "failed"


@pytest.mark.parametrize("outage", [1, 3, 1_000])
async def test_an_outage_at_the_former_deadline_ends_no_task_whose_ttl_was_extended(
    outage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L12, and L7 if the outage goes on: what the store does not say must not be taken for an end."""
    monkeypatch.setattr("mcp_task_runtime.core.workers._DEADLINE_PAUSE_SECONDS", 1e-9)
    async with open_world() as world:
        get_task = world.memory.get_task
        failed: list[str] = []
        read = anyio.Event()

        async def away(task_id: str) -> TaskRecord | None:
            if len(failed) < outage:
                failed.append(task_id)
                raise StoreUnavailableError("down")
            read.set()
            return await get_task(task_id)

        async def work(execution: Execution[JSON]) -> JSON:
            assert execution.record is not None
            context = TaskContext(task=execution.record.task, store=world.store)
            await context.extend(100_000)
            return await forever(execution)

        record = await world.runtime.submit(owned("me"), work)
        await anyio.wait_all_tasks_blocked()
        world.memory.get_task = away  # type: ignore[method-assign]
        world.clock.advance(90)
        with anyio.fail_after(PATIENCE):
            while len(failed) < min(outage, 10):
                await anyio.lowlevel.checkpoint()
            if outage > 10:
                world.memory.get_task = get_task  # type: ignore[method-assign]
                assert await world.until(record.task_id, "failed") == "failed"
                return
            await read.wait()
        await anyio.wait_all_tasks_blocked()
        world.memory.get_task = get_task  # type: ignore[method-assign]
        assert (await world.runtime.get(record.task_id, owner="me")).task.status == "working"


async def test_an_open_task_whose_end_cannot_be_written_at_its_deadline_counts_no_more() -> None:
    """L8, L16: it expires in the store, and its owner has room."""
    async with open_world(forgets_deadlines=False) as world:

        async def hand_over(execution: Execution[JSON]) -> JSON:
            execution.detach()
            return {}

        async def broken(*args: Any, **more: Any) -> Any:
            raise OSError("disk full")

        await world.runtime.submit(owned("me"), hand_over)
        await world.until_idle()
        assert world.runtime.statistics().live_tasks == 1
        world.memory.finish_task = broken  # type: ignore[method-assign]
        world.clock.advance(59.5)
        await anyio.wait_all_tasks_blocked()
        assert world.runtime.statistics().live_tasks == 0


# --- slots --------------------------------------------------------------------------------------------------------


async def test_a_slot_is_held_once_by_each_key_and_released_once() -> None:
    slots = WorkSlots(1)
    slots.reset()
    got: list[str] = []

    async def take(key: str) -> None:
        await slots.acquire(key)
        got.append(key)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for key in ("a", "b"):
                for _ in range(2):
                    group.start_soon(take, key)
                await anyio.wait_all_tasks_blocked()
            assert (got, len(slots)) == (["a", "a"], 1)
            slots.release("b")  # it holds none
            slots.release("a")
            slots.release("a")
            await anyio.wait_all_tasks_blocked()
            assert (got, len(slots)) == (["a", "a", "b", "b"], 1)
            slots.release("b")
    assert len(slots) == 0


async def test_a_waiter_for_a_slot_that_is_cancelled_leaves_it_to_another_of_the_same_work() -> None:
    slots = WorkSlots(1)
    slots.reset()
    got: list[str] = []
    with anyio.fail_after(PATIENCE):
        await slots.acquire("holder")
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()

            async def first() -> None:
                with scope:
                    await slots.acquire("work")
                    got.append("first")

            async def second() -> None:
                await slots.acquire("work")
                got.append("second")

            group.start_soon(first)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(second)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            slots.release("holder")
    assert got == ["second"]


async def test_without_a_limit_no_slot_is_counted() -> None:
    slots = WorkSlots(None)
    slots.reset()
    for key in range(100):
        await slots.acquire(key)
    slots.release(0)
    assert len(slots) == 0


# --- the table of a run -------------------------------------------------------------------------------------------


async def test_a_run_shows_where_it_stands() -> None:
    seen: list[str] = []

    async def work(execution: Execution[JSON]) -> JSON:
        say = partial(lambda: seen.append(execution.state.name))
        say()
        with pytest.raises(RuntimeError, match="Only a task"):
            execution.detach()
        await execution.reserve(TaskSpec())
        say()
        assert not execution.is_published
        execution.publish()
        say()
        execution.detach()
        execution.detach()
        say()
        try:
            with execution.finishing():
                say()
                raise LookupError
        except LookupError:
            pass
        say()
        assert repr(execution) == "<Execution detached>"
        with execution.finishing():
            assert execution.record is not None
            await world.store.finish_task(execution.record.task_id, Outcome.completed({}))
        say()
        executions.append(execution)
        return {}

    executions: list[Execution[JSON]] = []
    async with open_world() as world:
        record = await world.runtime.run(work)
        await world.until_idle()
        assert not isinstance(record, dict)
        assert (await world.runtime.result(record.task_id, owner=None)).result == {}
    assert seen == ["CALL", "RESERVED", "PUBLISHED", "DETACHED", "FINISHED_OWN", "DETACHED", "FINISHED_OWN"]
    (execution,) = executions
    assert execution.state.name == "DONE"
    assert execution.is_published
    assert not execution.hand_over()
    execution.stop()
    with pytest.raises(RuntimeError, match="DONE cannot become"):
        execution.end()
    assert execution.state.name == "DONE", "an illegal step changes nothing"


async def test_work_that_ended_its_own_task_and_goes_on_is_stopped_by_a_shutdown_alone() -> None:
    stopped: list[bool] = []
    async with open_world() as world:

        async def work(execution: Execution[JSON]) -> JSON:
            assert execution.record is not None
            with execution.finishing():
                await world.store.finish_task(execution.record.task_id, Outcome.completed({"n": 1}))
            execution.stop()
            await anyio.lowlevel.checkpoint()
            try:
                return await forever(execution)
            finally:
                stopped.append(True)

        record = await world.runtime.submit(owned("me"), work)
        await anyio.wait_all_tasks_blocked()
        assert world.runtime.statistics().live_tasks == 0, "its owner has room"
        assert stopped == []
    assert stopped == [True]
    assert (await world.runtime.result(record.task_id, owner="me")).result == {"n": 1}


# --- the size of what one task has ---------------------------------------------------------------------------------

SMALL = TaskSettings(max_payload_bytes=300, shutdown_grace=0)


async def test_arguments_that_are_too_large_are_refused_and_take_no_room() -> None:
    async with open_world(settings=SMALL) as world:
        with pytest.raises(LimitExceededError, match=r"bytes of arguments \(at most 300\)"):
            await world.runtime.submit(owned("me", 300), quick)
        statistics = world.runtime.statistics()
        assert (statistics.stored_tasks, statistics.live_tasks) == (0, 0)
        await world.runtime.submit(owned("me", 300 - len('{"a":""}')), quick)
        await world.until_idle()


def padding(outcome: Outcome, most: int, beyond: int) -> str:
    """Return the text that an outcome without one lacks to its largest size, and so many characters beyond."""
    return "x" * (most - len(outcome.payload_json or "") + beyond)


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("how", ["returned", "raised"])
async def test_work_whose_result_or_error_is_too_large_ends_with_a_clear_error(how: str, beyond: int) -> None:
    settings = TaskSettings(max_payload_bytes=1_000, shutdown_grace=0)
    async with open_world(settings=settings) as world:

        async def work(execution: Execution[JSON]) -> JSON:
            if how == "returned":
                return {"é": padding(Outcome.completed({"é": ""}), 1_000 - 1, beyond)}  # two bytes as UTF-8
            raise ProtocolError(-32050, padding(Outcome.failed("", code=-32050), 1_000, beyond))

        record = await world.runtime.submit(owned("me"), work)
        outcome = await world.runtime.result(record.task_id, owner="me")
        if beyond:
            says = "Limit reached: bytes of results and errors (at most 1000)"
            assert (outcome.status, outcome.error) == ("failed", {"code": -32603, "message": says})
        else:
            assert outcome.status == ("completed" if how == "returned" else "failed")
            assert "Limit" not in (outcome.payload_json or "")


async def test_an_end_from_outside_that_is_too_large_is_refused_and_changes_nothing() -> None:
    settings = TaskSettings(max_payload_bytes=1_000, shutdown_grace=0)
    async with open_world(settings=settings) as world:
        record = await world.runtime.submit(owned("me"), forever)
        with pytest.raises(LimitExceededError, match="results and errors"):
            await world.runtime.finish(record.task_id, Outcome.failed(padding(Outcome.failed(""), 1_000, 1)))
        assert (await world.runtime.get(record.task_id, owner="me")).record == record
        await world.runtime.finish(record.task_id, Outcome.failed(padding(Outcome.failed(""), 1_000, 0)))


async def test_there_is_always_room_for_the_error_that_says_what_was_too_large() -> None:
    async with open_world(settings=TaskSettings(max_payload_bytes=2, shutdown_grace=0)) as world:

        async def work(execution: Execution[JSON]) -> JSON:
            return {"a": "x" * 1_000}

        record = await world.runtime.submit(TaskSpec(owner="me"), work)
        assert (await world.runtime.result(record.task_id, owner="me")).status == "failed"


@pytest.mark.parametrize("door", ["status", "progress", "question", "complete", "fail"])
async def test_what_work_says_and_asks_is_refused_where_it_is_too_large(door: str) -> None:
    async with open_world(settings=SMALL) as world:
        handler = TaskResultHandler(world.store, world.queue, settings=SMALL)
        record = await world.store.create_task(NewTask(ttl_ms=None))
        client = Client()
        context = ServerTaskContext(
            task=record.task, store=world.store, session=client, queue=world.queue, handler=handler
        )
        large = "é" * 150 + "x"
        doors: dict[str, Callable[[], Awaitable[Any]]] = {
            "status": lambda: context.update_status(large),
            "progress": lambda: context.report_progress(1, message=large),
            "question": lambda: context.elicit(large, {"type": "object", "properties": {}}),
            "complete": lambda: context.complete({"a": large}),
            "fail": lambda: context.fail(large),
        }
        with pytest.raises(LimitExceededError, match="at most 300"):
            await doors[door]()
        assert await world.store.get_task(record.task_id) == record, "nothing changed"
        await context.update_status(large[:-1])
