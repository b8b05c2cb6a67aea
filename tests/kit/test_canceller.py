from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.testing import Trial, check_cancellation


class Account:
    """Two numbers that belong together, and a way of changing them."""

    def __init__(self) -> None:
        self.first = self.second = 0
        self.waiting = 0

    async def state(self) -> tuple[int, int]:
        return self.first, self.second

    async def change_in_one_step(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.first = self.second = 1
        await anyio.lowlevel.checkpoint()

    async def change_in_two_steps(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.first = 1
        await anyio.lowlevel.checkpoint()
        self.second = 1

    async def change_shielded(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.change_in_two_steps()

    async def change_and_undo(self, *, shield: bool) -> None:
        self.first = 1
        try:
            await anyio.lowlevel.checkpoint()
            self.second = 1
        except BaseException:
            with anyio.CancelScope(shield=shield):
                await anyio.lowlevel.checkpoint()
                self.first = 0
            raise

    async def wait(self, event: anyio.Event, *, tidy: bool) -> None:
        self.waiting += 1
        try:
            await event.wait()
        except BaseException:
            self.waiting -= tidy
            raise
        self.waiting -= 1

    async def turn_cancellation_into_an_error(self) -> None:
        try:
            await anyio.lowlevel.checkpoint()
        except BaseException:
            raise RuntimeError("lost") from None


def trial_of(method: Callable[[Account], Callable[[], Awaitable[None]]]) -> Callable[[], Awaitable[Trial]]:
    async def setup() -> Trial:
        account = Account()
        return Trial(method(account), account.state, leftovers=lambda: account.waiting)

    return setup


async def test_an_operation_is_cancelled_at_each_of_its_awaits() -> None:
    reached: list[int] = []

    async def setup() -> Trial:
        reached.append(0)

        async def count() -> None:
            for _ in range(4):
                await anyio.lowlevel.checkpoint()
                reached[-1] += 1

        async def state() -> bool:
            return True

        return Trial(count, state)

    assert await check_cancellation(setup) == 4
    # One world to look at, one run without a cancellation, four with one, and one that ended before the fifth.
    assert reached == [0, 4, 0, 1, 2, 3, 4]


async def test_what_awaits_nothing_that_yields_is_not_cancelled() -> None:
    async def nothing() -> None: ...

    assert await check_cancellation(trial_of(lambda account: nothing)) == 0


async def test_a_change_in_one_step_is_safe() -> None:
    assert await check_cancellation(trial_of(lambda account: account.change_in_one_step)) == 2


async def test_a_change_in_two_steps_is_found() -> None:
    with pytest.raises(AssertionError, match=r"await number 2, the operation left \(1, 0\), which is neither \(0, 0\)"):
        await check_cancellation(trial_of(lambda account: account.change_in_two_steps))


async def test_a_shielded_change_is_safe() -> None:
    assert await check_cancellation(trial_of(lambda account: account.change_shielded)) == 2


async def test_clean_up_must_be_shielded() -> None:
    assert await check_cancellation(trial_of(lambda account: partial(account.change_and_undo, shield=True)))
    with pytest.raises(AssertionError, match="neither"):
        await check_cancellation(trial_of(lambda account: partial(account.change_and_undo, shield=False)))


@pytest.mark.parametrize("tidy", [True, False])
async def test_a_waiter_left_behind_is_found(tidy: bool) -> None:
    async def setup() -> Trial:
        account, event = Account(), anyio.Event()

        async def meanwhile() -> None:
            event.set()

        wait = partial(account.wait, event, tidy=tidy)
        return Trial(wait, account.state, meanwhile, leftovers=lambda: account.waiting)

    if tidy:
        assert await check_cancellation(setup) == 1
    else:
        with pytest.raises(AssertionError, match=r"left 1 waiter\(s\) behind"):
            await check_cancellation(setup)


async def test_another_error_in_place_of_the_cancellation_is_found() -> None:
    with pytest.raises(AssertionError, match=r"await number 1, the operation raised RuntimeError\('lost'\)"):
        await check_cancellation(trial_of(lambda account: account.turn_cancellation_into_an_error))


async def test_an_operation_that_does_not_end_is_found() -> None:
    with pytest.raises(AssertionError, match="did not end without a cancellation"):
        await check_cancellation(trial_of(lambda account: anyio.sleep_forever), patience=0.05)
