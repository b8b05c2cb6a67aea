from __future__ import annotations

from functools import partial
from math import comb

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.testing import Race, check_interleavings
from mcp_task_runtime.testing.concurrency.interleaving import explore_interleavings


class Counter:
    def __init__(self) -> None:
        self.value = 0
        self.lock = anyio.Lock()

    async def read(self) -> int:
        return self.value

    async def add_atomically(self) -> int:
        await anyio.lowlevel.checkpoint()
        self.value += 1
        return self.value

    async def add_in_two_steps(self) -> int:
        value = self.value
        await anyio.lowlevel.checkpoint()
        self.value = value + 1
        return self.value

    async def add_under_a_lock(self) -> int:
        async with self.lock:
            return await self.add_in_two_steps()


async def race(name: str, times: int = 2) -> Race:
    counter = Counter()
    return Race([getattr(counter, name)] * times, counter.read)


async def test_every_order_of_the_awaits_is_run_once() -> None:
    found = await explore_interleavings(partial(race, "add_atomically"), limit=100)
    # Two operations of two steps each.
    assert len({one.steps for one in found}) == len(found) == comb(4, 2)
    assert {one.state for one in found} == {2}


async def test_operations_that_never_yield_are_run_in_every_sequence() -> None:
    found = await explore_interleavings(partial(race, "read", 3), limit=100)
    assert len({one.steps for one in found}) == len(found) == 6


async def test_beyond_the_limit_orders_are_drawn_from_the_seed() -> None:
    runs = [await explore_interleavings(partial(race, "add_atomically", 4), limit=20, seed=seed) for seed in (1, 1, 2)]
    assert [len(found) for found in runs] == [20] * 3
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


async def test_an_update_that_gets_lost_is_found() -> None:
    with pytest.raises(AssertionError, match=r"no sequential order ends as the steps \[0, 1, 1, 0\] do"):
        await check_interleavings(partial(race, "add_in_two_steps"))


async def test_operations_that_exclude_each_other_pass() -> None:
    assert await check_interleavings(partial(race, "add_under_a_lock")) > 2
    assert await check_interleavings(partial(race, "add_atomically")) == 6


async def test_errors_are_endings_like_any_other() -> None:
    async def setup() -> Race:
        taken: list[int] = []

        async def take() -> str:
            await anyio.lowlevel.checkpoint()
            if taken:
                raise LookupError
            taken.append(1)
            return "mine"

        async def state() -> int:
            return len(taken)

        return Race([take, take], state)

    assert await check_interleavings(setup)
    found = await explore_interleavings(setup)
    assert {ending for one in found for ending in one.endings} == {("returned", "mine"), ("raised", "LookupError")}


async def test_waiting_for_each_other_for_ever_is_found() -> None:
    async def setup() -> Race:
        first, second = anyio.Lock(), anyio.Lock()

        async def nested(outer: anyio.Lock, inner: anyio.Lock) -> None:
            async with outer:
                await anyio.lowlevel.checkpoint()
                async with inner:
                    pass

        async def state() -> None: ...

        return Race([partial(nested, first, second), partial(nested, second, first)], state)

    with pytest.raises(AssertionError, match=r"operations \[0, 1\] still wait after the steps"):
        await explore_interleavings(setup, patience=0.05)


async def test_a_waiter_and_what_it_waits_for_can_be_explored() -> None:
    async def setup() -> Race:
        event = anyio.Event()

        async def wait() -> str:
            await event.wait()
            return "woken"

        async def wake() -> None:
            await anyio.lowlevel.checkpoint()
            event.set()

        async def state() -> None: ...

        return Race([wait, wake], state)

    found = await explore_interleavings(setup)
    assert {one.endings for one in found} == {(("returned", "woken"), ("returned", None))}


async def test_a_cancellation_reaches_an_operation_at_its_own_awaits_only() -> None:
    log: list[str] = []

    async def setup() -> Race:
        scope = anyio.CancelScope()

        async def work() -> str:
            with scope:
                try:
                    await anyio.lowlevel.checkpoint()
                    await anyio.lowlevel.checkpoint()
                    log.append("done")
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                        log.append("clean")
                return "finished"
            return "cancelled"

        async def cancel() -> None:
            scope.cancel()

        async def state() -> None: ...

        return Race([work, cancel], state)

    found = await explore_interleavings(setup)
    assert log.count("clean") == len(found)
    assert {one.endings[0] for one in found} == {("returned", "finished"), ("returned", "cancelled")}
