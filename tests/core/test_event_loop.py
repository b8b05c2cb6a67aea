"""What the event loop itself is asked for: a call later, without a task."""

from __future__ import annotations

from contextvars import ContextVar

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.core.event_loop import call_later
from tests.support.event_loops import in_virtual_time

pytestmark = [pytest.mark.anyio, in_virtual_time]

_who: ContextVar[str] = ContextVar("who", default="no one")


async def test_a_call_comes_after_its_time_and_in_the_context_of_its_caller() -> None:
    called = anyio.Event()
    seen: list[tuple[str, float]] = []

    def function() -> None:
        seen.append((_who.get(), anyio.current_time()))
        called.set()

    _who.set("the caller")
    began = anyio.current_time()
    call_later(5, function)
    _who.set("another")
    await called.wait()
    ((who, at),) = seen
    assert who == "the caller"
    assert 5 <= at - began < 6


async def test_a_call_may_start_a_task_in_a_group() -> None:
    called = anyio.Event()

    async def function() -> None:
        called.set()

    async with anyio.create_task_group() as group:
        call_later(5, lambda: group.start_soon(function))
        await called.wait()


async def test_a_call_that_is_prevented_does_not_come() -> None:
    calls: list[int] = []
    stop = call_later(5, lambda: calls.append(1))
    await anyio.sleep(1)
    stop()
    await anyio.sleep(10)
    assert calls == []


async def test_a_call_that_is_prevented_in_the_turn_in_which_it_is_due_does_not_come() -> None:
    calls: list[int] = []

    def stop_all() -> None:
        calls.append(1)
        for stop in stops:
            stop()

    stops = [call_later(5, stop_all) for _ in range(2)]
    await anyio.sleep(10)
    assert calls == [1]


async def test_a_call_that_came_can_still_be_prevented_without_harm() -> None:
    calls: list[int] = []
    stop = call_later(1, lambda: calls.append(1))
    await anyio.sleep(10)
    stop()
    await anyio.lowlevel.checkpoint()
    assert calls == [1]
