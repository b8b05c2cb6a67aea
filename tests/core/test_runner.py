"""`InProcessRunner`: one task group that nothing can break (law L13)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from mcp_task_runtime import InProcessRunner
from tests.core.worlds import PATIENCE


@pytest.mark.parametrize("error", [LookupError("x"), SystemExit(1), BaseException("x")])
async def test_work_that_raises_takes_nobody_else_down(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """L13, F16."""
    done: list[str] = []

    async def bad() -> None:
        raise error

    async def good() -> None:
        await anyio.wait_all_tasks_blocked()
        done.append("good")

    with anyio.fail_after(PATIENCE):
        async with InProcessRunner() as runner:
            runner.start(bad, anyio.CancelScope())
            runner.start(good, anyio.CancelScope())
    assert done == ["good"]
    assert "Work raised an exception" in caplog.text


async def test_cancelling_one_scope_cancels_that_work_alone() -> None:
    """L13."""
    ended: list[str] = []

    async def work(name: str, release: anyio.Event) -> None:
        try:
            await release.wait()
            ended.append(f"{name} done")
        except BaseException:
            ended.append(f"{name} cancelled")
            raise

    release = anyio.Event()
    scope = anyio.CancelScope()
    with anyio.fail_after(PATIENCE):
        async with InProcessRunner() as runner:
            runner.start(lambda: work("one", release), scope)
            runner.start(lambda: work("two", release), anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert ended == ["one cancelled"]
            release.set()
    assert ended == ["one cancelled", "two done"]


async def test_a_runner_waits_for_its_work_and_an_error_of_the_block_does_not_cancel_it() -> None:
    done: list[Any] = []

    async def work() -> None:
        await anyio.wait_all_tasks_blocked()
        done.append(1)

    async def serve() -> None:
        async with InProcessRunner() as runner:
            runner.start(work, anyio.CancelScope())
            raise LookupError("mine")

    with anyio.fail_after(PATIENCE):
        with pytest.raises(LookupError, match="mine"):
            await serve()
    assert done == [1]


async def test_a_runner_that_is_cancelled_cancels_its_work() -> None:
    with anyio.fail_after(PATIENCE):
        with anyio.CancelScope() as scope:
            async with InProcessRunner() as runner:
                runner.start(anyio.sleep_forever, anyio.CancelScope())
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        async with runner:  # and can be opened again
            pass


async def test_a_runner_that_is_not_open_starts_nothing_and_is_opened_once() -> None:
    runner = InProcessRunner()
    with pytest.raises(RuntimeError, match="not open"):
        runner.start(anyio.sleep_forever, anyio.CancelScope())
    async with runner:
        with pytest.raises(RuntimeError, match="already open"):
            await runner.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        runner.start(anyio.sleep_forever, anyio.CancelScope())


async def test_work_whose_scope_was_cancelled_before_it_began_ends_at_its_first_await() -> None:
    reached: list[str] = []

    async def work() -> None:
        reached.append("began")
        await anyio.lowlevel.checkpoint()
        reached.append("went on")

    scope = anyio.CancelScope()
    scope.cancel()
    with anyio.fail_after(PATIENCE):
        async with InProcessRunner() as runner:
            runner.start(work, scope)
    assert reached == ["began"]
