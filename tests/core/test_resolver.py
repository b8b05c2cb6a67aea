"""`Resolver`: set once, awaited by many."""

from __future__ import annotations

import anyio
import pytest

from mcp_task_runtime.core.resolver import Resolver
from tests.support.patience import PATIENCE


async def test_every_waiter_gets_the_value_whether_it_came_before_or_after() -> None:
    """L3, F1."""
    resolver: Resolver[int] = Resolver()
    got: list[int] = []

    async def wait() -> None:
        got.append(await resolver.wait())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert not resolver.done()
            resolver.set_result(7)
            assert resolver.done()
            group.start_soon(wait)
    assert got == [7] * 21


async def test_every_waiter_raises_the_exception() -> None:
    resolver: Resolver[int] = Resolver()
    raised: list[str] = []

    async def wait() -> None:
        with pytest.raises(LookupError, match="gone") as caught:
            await resolver.wait()
        raised.append(str(caught.value))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            resolver.set_exception(LookupError("gone"))
    assert raised == ["gone", "gone"]


@pytest.mark.parametrize("first", ["result", "exception"])
@pytest.mark.parametrize("second", ["result", "exception"])
async def test_a_second_set_raises_and_changes_nothing(first: str, second: str) -> None:
    resolver: Resolver[int] = Resolver()

    def set_it(how: str, mark: int) -> None:
        if how == "result":
            resolver.set_result(mark)
        else:
            resolver.set_exception(LookupError(str(mark)))

    set_it(first, 1)
    with pytest.raises(RuntimeError, match="already set"):
        set_it(second, 2)
    with anyio.fail_after(PATIENCE):
        if first == "result":
            assert await resolver.wait() == 1
        else:
            with pytest.raises(LookupError, match="1"):
                await resolver.wait()


async def test_a_cancelled_waiter_disturbs_nobody() -> None:
    """L6."""
    resolver: Resolver[None] = Resolver()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(resolver.wait)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        resolver.set_result(None)
        await resolver.wait()


async def test_none_is_a_value_too() -> None:
    resolver: Resolver[None] = Resolver()
    resolver.set_result(None)
    assert resolver.done()
    with anyio.fail_after(PATIENCE):
        await resolver.wait()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_resolver_can_be_made_and_set_outside_an_event_loop(backend: str) -> None:
    resolver: Resolver[int] = Resolver()
    resolver.set_result(3)
    assert anyio.run(resolver.wait, backend=backend) == 3
