"""`Threads`: work in threads, and what comes of it on every event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar

import anyio
import pytest

from mcp_task_runtime.errors import StoreUnavailableError
from mcp_task_runtime.stores import _threads as threads
from mcp_task_runtime.stores._threads import Threads
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

NAME = "test-of-threads"


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


@pytest.fixture(autouse=True)
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE_SECONDS", 0.05)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it comes true in another thread, without an event
            await anyio.sleep(0.001)


async def test_what_work_returns_or_raises_comes_back_and_the_context_goes_with_it() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("of the caller")
    some = Threads(NAME)

    def fail() -> None:
        raise LookupError("no")

    with anyio.fail_after(PATIENCE):
        assert await some.run(variable.get) == "of the caller"
        assert await some.run(threading.current_thread) is not threading.current_thread()
        with pytest.raises(LookupError, match="no"):
            await some.run(fail)


async def test_there_is_a_thread_for_each_work_at_the_same_time_and_none_when_there_was_none_for_a_while() -> None:
    some, together = Threads(NAME), threading.Barrier(5, timeout=PATIENCE)

    with anyio.fail_after(PATIENCE):
        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(some.run, together.wait)
        await until(lambda: not ours())
        assert await some.run(lambda: "again") == "again"
    await until(lambda: not ours())


async def test_one_after_the_other_shares_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE_SECONDS", PATIENCE)
    some = Threads("another")
    with anyio.fail_after(PATIENCE):
        used = {await some.run(threading.get_ident) for _ in range(50)}
    assert len(used) == 1


async def test_that_no_thread_can_be_started_is_told_and_does_no_lasting_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    some = Threads(NAME)
    with monkeypatch.context() as exhausted, anyio.fail_after(PATIENCE):
        exhausted.setattr(threading.Thread, "start", fail)
        with pytest.raises(StoreUnavailableError, match="thread"):
            await some.run(threading.get_ident)
    with anyio.fail_after(PATIENCE):
        assert await some.run(lambda: "again") == "again"


async def test_who_is_cancelled_leaves_the_work_alone() -> None:
    some, begun, go_on, ended = Threads(NAME), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)
        ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(some.run, work)
            await until(begun.is_set)
            group.cancel_scope.cancel()
        assert not ended.is_set()
        assert await some.run(lambda: "in parallel") == "in parallel"
        go_on.set()
        await until(ended.is_set)


def test_a_loop_that_ends_meanwhile_does_no_harm() -> None:
    for backend in ("asyncio", "trio"):
        some, go_on = Threads(NAME), threading.Event()

        async def give_up(some: Threads = some, go_on: threading.Event = go_on) -> None:
            with anyio.move_on_after(0):
                await some.run(lambda: go_on.wait(PATIENCE))

        async def use_again(some: Threads = some) -> None:
            with anyio.fail_after(PATIENCE):
                assert await some.run(lambda: "again") == "again"

        anyio.run(give_up, backend=backend)
        go_on.set()
        anyio.run(use_again, backend=backend)
