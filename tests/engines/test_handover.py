"""Calls of the threads of a pool in an event loop: each is run and ends once, whatever happens to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import pytest

from mcp_task_runtime.engines._handover import Handover
from tests.support.patience import PATIENCE

CALLER: ContextVar[str] = ContextVar("CALLER", default="")


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread for a block."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        try:
            loop.run_forever()
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loop
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        assert not thread.is_alive()


def call_from_threads(
    execute: Callable[[str], Awaitable[object]], loop: asyncio.AbstractEventLoop, names: list[str]
) -> list[Future[None]]:
    """Return how calls from as many threads at once have ended."""
    handover = Handover(loop, execute)
    together = threading.Barrier(len(names))

    def call(name: str) -> None:
        CALLER.set(f"the caller of {name}")
        together.wait(PATIENCE)
        handover.call(name)

    with ThreadPoolExecutor(len(names)) as pool:
        return [pool.submit(call, name) for name in names]


def test_calls_at_once_are_run_once_each_with_the_variables_of_their_threads() -> None:
    seen: list[tuple[str, str]] = []

    async def execute(name: str) -> None:
        await asyncio.sleep(0)
        seen.append((name, CALLER.get()))

    names = [str(number) for number in range(20)]
    with running_loop() as loop:
        for _ in range(20):
            seen.clear()
            for ended in call_from_threads(execute, loop, names):
                assert ended.exception(PATIENCE) is None
            assert sorted(seen) == sorted((name, f"the caller of {name}") for name in names)


def test_each_thread_gets_the_error_of_its_own_call() -> None:
    async def execute(name: str) -> None:
        if name == "bad":
            raise LookupError(name)
        if name == "cancelled":
            raise asyncio.CancelledError

    with running_loop() as loop:
        good, bad, cancelled = call_from_threads(execute, loop, ["good", "bad", "cancelled"])
        assert good.exception(PATIENCE) is None
        assert isinstance(bad.exception(PATIENCE), LookupError)
        assert isinstance(cancelled.exception(PATIENCE), asyncio.CancelledError)


def test_no_thread_waits_for_an_event_loop_that_has_ended() -> None:
    held, called = threading.Event(), threading.Event()
    with running_loop() as loop:

        def hold() -> None:
            held.set()
            called.wait(PATIENCE)
            loop.stop()  # in the turn before that in which the call would begin

        async def execute(name: str) -> None:
            raise AssertionError

        class Way(Handover):
            def call(self, task_id: str) -> None:
                loop.call_soon_threadsafe(hold)
                held.wait(PATIENCE)
                threading.Timer(0, self._let_go).start()
                super().call(task_id)

            def _let_go(self) -> None:
                called.set()

        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(RuntimeError):
                pool.submit(Way(loop, execute).call, "last").result(PATIENCE)
        for _ in range(2):
            (late,) = call_from_threads(execute, loop, ["late"])
            with pytest.raises(RuntimeError):
                late.result(PATIENCE)
