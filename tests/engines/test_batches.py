"""Calls that block, in a thread, in batches: each is made, and has its own end, also when another one hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from mcp_task_runtime.engines._batches import Batch, ThreadBatches
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Broker:
    """Something that is called in threads, and hangs until it is let go."""

    def __init__(self) -> None:
        self.called: list[int] = []
        self.threads: set[int] = set()
        self.hangs, self.goes_on = threading.Event(), threading.Event()

    def call(self, number: int) -> None:
        self.called.append(number)
        self.threads.add(threading.get_ident())
        if number % 10 == 3:
            raise LookupError(number)

    def hang(self) -> None:
        self.hangs.set()
        assert self.goes_on.wait(PATIENCE)


def make_each(batch: Batch[Callable[[], object]]) -> None:
    """Make the calls of a batch in turn, as long as the batch is waited for."""
    for call in batch.items:
        if batch.is_abandoned:
            return
        try:
            call()
        except Exception as error:
            batch.errors.append(error)
        else:
            batch.errors.append(None)


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not is_so():  # noqa: ASYNC110 - a thread does it
            await anyio.sleep(0.001)


async def test_calls_that_come_together_are_made_in_turn_and_fail_alone() -> None:
    broker, batches = Broker(), ThreadBatches(make_each)
    failed: list[tuple[int, int]] = []

    async def call(number: int) -> None:
        try:
            await batches.put(partial(broker.call, number))
        except LookupError as error:
            failed.append((number, error.args[0]))

    async with anyio.create_task_group() as group:
        group.start_soon(batches.put, broker.hang)
        await until(broker.hangs.is_set)
        for number in range(30):
            group.start_soon(call, number)
        await anyio.wait_all_tasks_blocked()
        broker.goes_on.set()
    assert sorted(broker.called) == list(range(30))
    assert len(broker.threads) == 1
    assert sorted(failed) == [(3, 3), (13, 13), (23, 23)]
    await call(40)
    assert broker.called[-1] == 40


async def test_a_call_that_hangs_holds_others_until_it_is_cancelled() -> None:
    broker, batches = Broker(), ThreadBatches(make_each)
    late: list[int] = []

    async def call(number: int) -> None:
        try:
            await batches.put(partial(broker.call, number))
        except TimeoutError:
            late.append(number)

    async with anyio.create_task_group() as group:
        hanging = anyio.CancelScope()

        async def hang() -> None:
            with hanging:
                await batches.put(broker.hang)

        group.start_soon(hang)
        await until(broker.hangs.is_set)
        waiting = anyio.CancelScope()

        async def lead() -> None:
            with waiting:
                await call(1)

        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(call, 2)  # in the same batch
        await anyio.wait_all_tasks_blocked()
        waiting.cancel()
        await until(lambda: late == [2])
        group.start_soon(call, 4)
        await anyio.wait_all_tasks_blocked()
        assert broker.called == []
        hanging.cancel()
        await until(lambda: broker.called == [4])
    broker.goes_on.set()


async def test_calls_and_other_work_in_threads_do_not_wait_for_each_other() -> None:
    broker, batches, others = Broker(), ThreadBatches(make_each), anyio.to_thread.current_default_thread_limiter()
    free = others.available_tokens
    async with anyio.create_task_group() as group:
        hanging = anyio.CancelScope()

        async def hang() -> None:
            with hanging:
                await batches.put(broker.hang)

        group.start_soon(hang)
        await until(broker.hangs.is_set)
        assert others.available_tokens == free
        hanging.cancel()
    assert others.available_tokens == free  # though the thread is busy still
    broker.goes_on.set()
