from __future__ import annotations

from datetime import datetime, timedelta, timezone

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.testing import FakeClock
from mcp_task_runtime.testing.concurrency.stepping import quiesce


async def test_time_moves_only_when_told() -> None:
    clock = FakeClock(datetime(2030, 1, 1, tzinfo=timezone.utc))
    assert isinstance(clock, Clock)
    before = clock.now()
    await quiesce()
    assert clock.now() == before
    clock.advance(1.5)
    clock.advance(timedelta(milliseconds=500))
    assert clock.now() == before + timedelta(seconds=2)
    clock.set_back(2)
    assert clock.now() == before
    for move in (clock.advance, clock.set_back):
        with pytest.raises(ValueError, match="by must not be negative"):
            move(-1)


async def test_a_scope_is_cancelled_exactly_when_its_time_comes() -> None:
    clock = FakeClock()
    caught: list[str] = []

    async def wait(name: str, seconds: float | None) -> None:
        until = None if seconds is None else clock.now() + timedelta(seconds=seconds)
        with clock.move_on_at(until) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        caught.append(name)

    async with anyio.create_task_group() as group:
        for name, seconds in (("late", 3.0), ("early", 1.0), ("never", None)):
            group.start_soon(wait, name, seconds)
        await quiesce()
        assert clock.waiting == 2
        clock.advance(0.999)
        await quiesce()
        assert caught == []
        clock.advance(0.001)
        await quiesce()
        assert caught == ["early"]
        assert clock.waiting == 1
        clock.advance(60)
        await quiesce()
        assert caught == ["early", "late"]
        assert clock.waiting == 0
        group.cancel_scope.cancel()


async def test_scopes_are_cancelled_in_the_order_of_their_times() -> None:
    clock = FakeClock()
    seen: list[datetime] = []

    class Spy(anyio.CancelScope):
        def __new__(cls) -> Spy:
            return object.__new__(cls)

        def __init__(self) -> None: ...

        def cancel(self, reason: str | None = None) -> None:
            seen.append(clock.now())

    times = [clock.now() + timedelta(seconds=seconds) for seconds in (3, 1, 2)]
    for when in times:
        clock._deadlines[Spy()] = when
    clock.advance(5)
    assert seen == sorted(times)


async def test_a_time_that_is_past_cancels_at_the_first_checkpoint() -> None:
    clock = FakeClock()
    reached = False
    with clock.move_on_at(clock.now()) as scope:
        reached = True
        await anyio.lowlevel.checkpoint()
        raise AssertionError("not cancelled")
    assert reached
    assert scope.cancelled_caught


async def test_a_scope_that_is_left_early_leaves_nothing_behind() -> None:
    clock = FakeClock()
    until = clock.now() + timedelta(seconds=1)
    with clock.move_on_at(until) as scope:
        await anyio.lowlevel.checkpoint()
        assert clock.waiting == 1
    assert clock.waiting == 0
    clock.advance(2)
    assert not scope.cancelled_caught

    with pytest.raises(KeyError), clock.move_on_at(clock.now() + timedelta(seconds=1)):
        raise KeyError
    with anyio.CancelScope() as outer:
        outer.cancel()
        with clock.move_on_at(clock.now() + timedelta(seconds=1)) as inner:
            await anyio.sleep_forever()
    assert outer.cancelled_caught
    assert not inner.cancelled_caught
    assert clock.waiting == 0
