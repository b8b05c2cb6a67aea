"""Hundreds of tasks at once: none lost, none left, nothing kept (laws L3, L8, L9)."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Execution, InvalidTransitionError, TaskSettings, TaskSpec
from mcp_task_runtime.stores.memory import MemoryStatistics
from tests.core.worlds import ACCEPT, NOTHING, World, open_world

Result = dict[str, Any]

MANY = 300
EMPTY = MemoryStatistics(tasks=0, live=0, owners=0, expiring=0, leases=0, mailboxes=0, waiting=0)

SETTINGS = TaskSettings(shutdown_grace=0, retention_ms=1000, max_ttl_ms=3_600_000)


class Marker:
    """Something that work holds on to, and that must not outlive it."""


async def asks(world: World, marker: Marker, execution: Execution[Result]) -> Result:
    answer = (await world.ask(execution)).unwrap()
    assert marker is not None
    return answer


async def asks_twice_at_once(world: World, marker: Marker, execution: Execution[Result]) -> Result:
    async with anyio.create_task_group() as group:
        for key in ("a", "b"):
            group.start_soon(world.ask, execution, key)
    assert marker is not None
    return {}


async def waits(world: World, marker: Marker, execution: Execution[Result]) -> Result:
    try:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            assert marker is not None
    raise AssertionError


async def swallows(world: World, marker: Marker, execution: Execution[Result]) -> Result:
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        assert marker is not None
    return {"late": True}


async def test_hundreds_of_tasks_that_wait_for_an_answer_all_get_it() -> None:
    """L3, L5, L8: answered in random order, by a client each at once, with a waiter on each."""
    async with open_world(settings=SETTINGS) as world:
        markers: weakref.WeakSet[Marker] = weakref.WeakSet()
        ids: list[str] = []
        for n in range(MANY):
            marker = Marker()
            markers.add(marker)
            record = await world.runtime.submit(TaskSpec(owner=f"owner-{n % 7}"), partial(asks, world, marker))
            ids.append(record.task_id)
        del marker
        results: Counter[int] = Counter()

        async def client(n: int) -> None:
            owner = f"owner-{n % 7}"
            await world.until_asked(ids[n])
            answer = {"action": "accept", "content": {"n": n}}
            await world.runtime.answer(ids[n], {"1": answer}, owner=owner)
            outcome = await world.runtime.result(ids[n], owner=owner)
            assert outcome.result == answer
            results[n] += 1

        order = list(range(MANY))
        Random(1).shuffle(order)
        async with anyio.create_task_group() as group:
            for n in order:
                group.start_soon(client, n)
        assert results == Counter(range(MANY))
        await world.until_idle()
        assert world.kept() == NOTHING
        gc.collect()
        assert len(markers) == 0, "the work of an ended task is kept"
        world.clock.advance(3600 * 24 * 7)
        await world.runtime.list(owner=None)  # any operation drops what has expired
        assert world.memory.statistics() == EMPTY


KINDS: list[Callable[[World, Marker, Execution[Result]], Awaitable[Result]]] = [
    asks,
    asks_twice_at_once,
    waits,
    swallows,
]


@pytest.mark.parametrize("seed", [1, 2])
async def test_hundreds_of_tasks_cancelled_at_random_moments_all_stop_and_leave_nothing(seed: int) -> None:
    """L6, L8, L9: asking, working, cleaning up, answered meanwhile, or swallowing their cancellation."""
    random = Random(seed)
    async with open_world(yielding=True, settings=SETTINGS) as world:
        markers: weakref.WeakSet[Marker] = weakref.WeakSet()
        statuses: Counter[str] = Counter()

        async def life(kind: int, answered: bool, moment: int) -> None:
            marker = Marker()
            markers.add(marker)
            record = await world.runtime.submit(TaskSpec(), partial(KINDS[kind], world, marker))
            del marker
            for step in range(moment):
                await anyio.lowlevel.checkpoint()
                if answered and step == moment // 2:
                    await world.runtime.answer(record.task_id, {"1": ACCEPT, "a": ACCEPT}, owner=None)
            try:
                await world.runtime.cancel(record.task_id, owner=None)
            except InvalidTransitionError:
                statuses["too late"] += 1
            outcome = await world.runtime.result(record.task_id, owner=None)
            statuses[outcome.status] += 1

        async with anyio.create_task_group() as group:
            for _ in range(MANY):
                group.start_soon(life, random.randrange(4), random.random() < 0.5, random.randrange(40))
        assert statuses["cancelled"] + statuses["completed"] == MANY
        assert statuses["completed"] == statuses["too late"]
        assert statuses["cancelled"] > MANY // 2
        await world.until_idle()
        assert world.live_tasks() == 0
        assert world.kept() == NOTHING
        gc.collect()
        assert len(markers) == 0, "the work of an ended task is kept"
        assert world.memory.statistics() != EMPTY
        world.clock.advance(3600 * 24 * 7)
        await world.runtime.list(owner=None)
        assert world.memory.statistics() == EMPTY
