"""How long requests may take: one timer for all of them."""

from __future__ import annotations

import gc
import weakref
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.adapters.task_client.time_limit import TimeLimit
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

SECONDS = 0.05


async def until(event: anyio.Event) -> str:
    await event.wait()
    return "result"


async def test_a_call_that_takes_too_long_is_cancelled() -> None:
    limit = TimeLimit(SECONDS)
    began = anyio.current_time()
    with anyio.fail_after(PATIENCE), pytest.raises(TimeoutError):
        await limit.apply(anyio.sleep_forever())
    assert anyio.current_time() - began > 0.99 * SECONDS


async def test_a_limit_holds_again_after_its_timer_has_come() -> None:
    limit = TimeLimit(SECONDS)
    for _ in range(3):
        with anyio.fail_after(PATIENCE), pytest.raises(TimeoutError):
            await limit.apply(anyio.sleep_forever())
        assert await limit.apply(until(_set())) == "result"


async def test_each_call_has_the_whole_time() -> None:
    limit = TimeLimit(SECONDS)
    taken: list[float] = []

    async def call() -> None:
        began = anyio.current_time()
        with pytest.raises(TimeoutError):
            await limit.apply(anyio.sleep_forever())
        taken.append(anyio.current_time() - began)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.sleep(SECONDS / 5)
            group.start_soon(call)
    assert len(taken) == 2
    assert min(taken) > 0.99 * SECONDS


async def test_a_call_that_has_ended_is_not_cancelled_by_the_timer_of_another() -> None:
    limit = TimeLimit(SECONDS)
    ended = anyio.Event()
    after: list[str] = []

    async def call() -> None:
        assert await limit.apply(until(_set())) == "result"
        await ended.wait()  # the timer comes while this waits
        after.append("not cancelled")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            with pytest.raises(TimeoutError):
                await limit.apply(anyio.sleep_forever())
            ended.set()
    assert after == ["not cancelled"]


async def test_what_a_call_raises_is_raised() -> None:
    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise ValueError("of the call")

    with pytest.raises(ValueError, match="of the call"):
        await TimeLimit(30).apply(fail())


async def test_a_caller_that_is_cancelled_gets_no_timeout() -> None:
    limit = TimeLimit(SECONDS)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limit.apply(anyio.sleep_forever())
    assert scope.cancelled_caught
    with anyio.fail_after(PATIENCE), pytest.raises(TimeoutError):
        await limit.apply(anyio.sleep_forever())  # the timer of the first one comes, and finds the second


async def test_the_timer_keeps_no_context_of_a_caller() -> None:
    class Value:
        pass

    variable: ContextVar[Value] = ContextVar("variable")
    limit = TimeLimit(30)

    async def call() -> weakref.ref[Value]:
        value = Value()
        variable.set(value)
        await limit.apply(until(_set()))
        return weakref.ref(value)

    found: list[weakref.ref[Value]] = []

    async def note() -> None:
        found.append(await call())

    async with anyio.create_task_group() as group:
        group.start_soon(note)
    await anyio.lowlevel.checkpoint()
    gc.collect()
    assert found[0]() is None


def _set() -> anyio.Event:
    event = anyio.Event()
    event.set()
    return event
