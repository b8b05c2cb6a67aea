"""Closing a runtime: grace, then the end, honestly told; and opening it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, Outcome, ProtocolError, TaskNotFoundError, TaskSettings, TaskSpec
from mcp_task_runtime.core import workers
from tests.core.worlds import NOTHING, World, make_world
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

Result = dict[str, Any]

SHUT_DOWN = {"code": -32603, "message": "The server was shut down before the task ended"}


async def forever(execution: Execution[Result]) -> Result:
    await anyio.sleep_forever()
    raise AssertionError


async def outcome_of(world: World, task_id: str) -> Outcome:
    record = await world.memory.get_task(task_id)
    assert record is not None
    assert record.outcome is not None
    return record.outcome


async def test_work_that_ends_within_the_grace_period_ends_as_if_nothing_happened() -> None:
    world = make_world(settings=TaskSettings(shutdown_grace=10))
    release = anyio.Event()
    closing = anyio.Event()

    async def work(execution: Execution[Result]) -> Result:
        await release.wait()
        return {"in": "time"}

    record: Any = None

    async def serve() -> None:
        nonlocal record
        async with world.runtime:
            record = await world.runtime.submit(TaskSpec(), work)
            closing.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            await closing.wait()
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(9)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(RuntimeError, match="not open"):
                await world.runtime.submit(TaskSpec(), work)  # a closing runtime takes nothing new
            release.set()
    assert await outcome_of(world, record.task_id) == Outcome.completed({"in": "time"})
    assert world.kept() == NOTHING


@pytest.mark.parametrize("yielding", [False, True])
async def test_work_that_outlives_the_grace_period_is_cancelled_and_its_task_fails_honestly(yielding: bool) -> None:
    """L12: no task stays `working` when its process goes; clean-up runs; a pending question is released."""
    world = make_world(yielding=yielding, settings=TaskSettings(shutdown_grace=10))
    events: list[str] = []

    async def work(execution: Execution[Result]) -> Result:
        execution.on_cancel(lambda: events.append("told"))
        try:
            return await forever(execution)
        finally:
            events.append("cleaned up")

    async def asks(execution: Execution[Result]) -> Result:
        await world.ask(execution)
        return {}

    async def serve() -> None:
        async with world.runtime:
            records.extend([await world.runtime.submit(TaskSpec(), work), await world.runtime.submit(TaskSpec(), asks)])
            started.set()

    records: list[Any] = []
    started = anyio.Event()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            await started.wait()
            await world.until_asked(records[1].task_id)
            world.clock.advance(9.9)
            await anyio.wait_all_tasks_blocked()
            assert events == []
            world.clock.advance(0.2)
    assert events == ["told", "cleaned up"]
    for record in records:
        outcome = await outcome_of(world, record.task_id)
        assert outcome.error == SHUT_DOWN
    assert world.kept() == NOTHING
    assert world.clock.waiting == 0


@pytest.mark.parametrize("ending", ["returns", "raises", "raises in its clean-up", "exits"])
async def test_closing_raises_nothing_whatever_the_work_does_when_it_is_stopped(ending: str) -> None:
    """L13."""
    world = make_world(settings=TaskSettings(shutdown_grace=0))

    async def work(execution: Execution[Result]) -> Result:
        try:
            return await forever(execution)
        except anyio.get_cancelled_exc_class():
            if ending == "returns":
                return {"late": True}
            if ending == "raises":
                raise LookupError("late") from None
            if ending == "exits":
                raise SystemExit(3) from None
            raise
        finally:
            if ending == "raises in its clean-up":
                raise OSError("clean-up")

    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            record = await world.runtime.submit(TaskSpec(), work)
            await anyio.wait_all_tasks_blocked()
    assert (await outcome_of(world, record.task_id)).error == SHUT_DOWN
    assert world.kept() == NOTHING


async def test_an_ordinary_call_that_a_shutdown_interrupts_gets_an_error() -> None:
    world = make_world(settings=TaskSettings(shutdown_grace=0))
    raised: list[str] = []

    async def call() -> None:
        with pytest.raises(ProtocolError) as caught:
            await world.runtime.run(forever)
        raised.append(caught.value.message)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            async with world.runtime:
                group.start_soon(call)
                await anyio.wait_all_tasks_blocked()
    assert raised == ["The call was interrupted"]
    assert world.memory.statistics().tasks == 0


async def test_the_exception_of_the_block_is_the_one_that_leaves_it() -> None:
    world = make_world(settings=TaskSettings(shutdown_grace=0))

    async def serve() -> None:
        async with world.runtime:
            await world.runtime.submit(TaskSpec(), forever)
            raise LookupError("mine")

    with anyio.fail_after(PATIENCE):
        with pytest.raises(LookupError, match="mine"):
            await serve()
    assert world.kept() == NOTHING


async def test_a_server_that_is_cancelled_still_ends_its_tasks() -> None:
    """L6, L12: Ctrl-C does not leave tasks `working`."""
    world = make_world(yielding=True, settings=TaskSettings(shutdown_grace=10))
    record: Any = None
    with anyio.fail_after(PATIENCE):
        with anyio.CancelScope() as scope:
            async with world.runtime:
                record = await world.runtime.submit(TaskSpec(), forever)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                await anyio.sleep_forever()
    assert (await outcome_of(world, record.task_id)).status == "failed"
    assert world.kept() == NOTHING


@pytest.mark.parametrize("moment", range(12))
async def test_closing_while_a_task_is_being_started_leaves_no_task_without_work(moment: int) -> None:
    """L12, L8: at each await of `start`."""
    world = make_world(yielding=True, settings=TaskSettings(shutdown_grace=0))
    started: list[Any] = []

    async def start() -> None:
        try:
            started.append(await world.runtime.submit(TaskSpec(), forever))
        except RuntimeError as error:
            started.append(str(error))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            async with world.runtime:
                group.start_soon(start)
                for _ in range(moment):
                    await anyio.lowlevel.checkpoint()
    assert len(started) == 1
    assert world.live_tasks() == 0
    assert world.kept() == NOTHING


@pytest.mark.parametrize("moment", range(12))
async def test_closing_while_a_call_becomes_a_task_leaves_no_task_without_work(moment: int) -> None:
    """L12, L8: at each await of `begin`."""
    world = make_world(yielding=True, settings=TaskSettings(shutdown_grace=0))
    got: list[Any] = []

    async def work(execution: Execution[Result]) -> Result:
        await execution.begin(TaskSpec())
        return await forever(execution)

    async def call() -> None:
        try:
            got.append(await world.runtime.run(work))
        except (ProtocolError, RuntimeError) as error:
            got.append(error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            async with world.runtime:
                group.start_soon(call)
                for _ in range(moment):
                    await anyio.lowlevel.checkpoint()
    assert len(got) == 1
    assert world.live_tasks() == 0
    assert world.kept() == NOTHING


async def test_a_detached_task_outlives_the_runtime_even_if_its_work_still_ran() -> None:
    """Something outside ends it; after a reopening its TTL still does."""
    world = make_world(settings=TaskSettings(shutdown_grace=0))

    async def work(execution: Execution[Result]) -> Result:
        execution.detach()
        return await forever(execution)

    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            record = await world.runtime.submit(TaskSpec(ttl_ms=60_000), work)
            other = await world.runtime.submit(TaskSpec(ttl_ms=60_000), work)
            await anyio.wait_all_tasks_blocked()
        view = await world.runtime.get(record.task_id, owner=None)
        assert view.task.status == "working"
        await world.runtime.finish(record.task_id, Outcome.completed({"outside": 1}))
        async with world.runtime:
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(59.5)
            assert await world.until(other.task_id, "failed") == "failed"
    assert (await outcome_of(world, record.task_id)).result == {"outside": 1}
    assert world.kept() == NOTHING


async def test_draining_one_home_leaves_the_work_of_others_alone() -> None:
    """A connection's own resources go with it; no other work does (L13, F17)."""
    world = make_world(settings=TaskSettings(shutdown_grace=0))
    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            mine = await world.runtime.submit(TaskSpec(), forever, resource_scope="mine")
            other = await world.runtime.submit(TaskSpec(), forever, resource_scope="other")
            await anyio.wait_all_tasks_blocked()
            await world.runtime.drain(resource_scope="mine")
            assert (await outcome_of(world, mine.task_id)).error == SHUT_DOWN
            assert (await world.runtime.get(other.task_id, owner=None)).task.status == "working"
            assert world.runtime.statistics().calls == 1
            await world.runtime.drain(resource_scope="unknown")


async def test_a_drain_that_is_cancelled_stops_the_work_before_it_gives_up() -> None:
    """L6."""
    world = make_world(settings=TaskSettings(shutdown_grace=10))
    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            record = await world.runtime.submit(TaskSpec(), forever)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as group:
                group.start_soon(world.runtime.drain)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
            assert (await outcome_of(world, record.task_id)).error == SHUT_DOWN
            assert world.kept() == NOTHING


async def one_life(world: World, how: Callable[[World], Awaitable[None]]) -> None:
    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            await how(world)


async def work_ask_and_expire(world: World) -> None:
    async def asks(execution: Execution[Result]) -> Result:
        return (await world.ask(execution)).unwrap()

    record = await world.runtime.submit(TaskSpec(), asks)
    await world.until_asked(record.task_id)
    await world.runtime.answer(record.task_id, {"1": {"action": "decline"}}, owner=None)
    assert (await world.runtime.result(record.task_id, owner=None)).result == {"action": "decline"}
    late = await world.runtime.submit(TaskSpec(ttl_ms=10_000), forever)
    await anyio.wait_all_tasks_blocked()
    world.clock.advance(9.5)
    assert await world.until(late.task_id, "failed") == "failed"
    with pytest.raises(TaskNotFoundError):
        await world.runtime.get("unknown", owner=None)


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio", "trio")])
def test_a_runtime_can_be_opened_again_also_on_another_event_loop(backends: tuple[str, ...]) -> None:
    """The same objects, made outside of any loop; ended tasks of the first life can be fetched in the next."""
    world = make_world(settings=TaskSettings(shutdown_grace=0))
    for backend in backends:
        anyio.run(partial(one_life, world, work_ask_and_expire), backend=backend)
        assert world.kept() == NOTHING
    assert anyio.run(world.statuses) == ["completed", "failed"] * len(backends)


async def test_closing_a_runtime_with_a_dead_store_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store hangs: shielded clean-up is bounded, so a server can still stop."""
    monkeypatch.setattr(workers, "CLEANUP_SECONDS", 0.05)
    world = make_world(settings=TaskSettings(shutdown_grace=0))

    async def broken(*_: Any) -> None:
        raise OSError("gone")

    with anyio.fail_after(PATIENCE):
        async with world.runtime:
            await world.runtime.submit(TaskSpec(), forever)
            await anyio.wait_all_tasks_blocked()
            setattr(world.memory, "finish_task", broken)  # noqa: B010  # mypy would want its whole signature
    assert world.runtime.statistics().calls == 0
