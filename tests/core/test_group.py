"""`IsolatedGroup`: one task group that nothing can break (law L13)."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import Awaitable
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from mcp_task_runtime import InMemoryTaskStore, TaskRuntime
from mcp_task_runtime.core.event_loop import start_background_task
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.stores._threads import event_loop, poster
from tests.support.event_loops import on_one_loop
from tests.support.patience import PATIENCE


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
        async with IsolatedGroup() as group:
            group.start(bad, anyio.CancelScope())
            group.start(good, anyio.CancelScope())
    assert done == ["good"]
    assert "raised an exception" in caplog.text


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is cancelled"])
async def test_a_callback_of_the_event_loop_starts_work_without_a_scope(ends: bool) -> None:
    """L3, L6: no task runs then, and anyio makes no scope."""
    ended: list[str] = []
    release = anyio.Event()

    async def work() -> None:
        try:
            await release.wait()
            ended.append("done")
        except BaseException:
            ended.append("cancelled")
            raise

    with anyio.fail_after(PATIENCE), anyio.CancelScope() as around:
        async with IsolatedGroup() as group:
            post = poster(event_loop())
            await anyio.to_thread.run_sync(lambda: Context().run(post, lambda: group.start(work)))
            await anyio.wait_all_tasks_blocked()
            assert ended == []
            release.set() if ends else around.cancel()
    assert ended == ["done" if ends else "cancelled"]


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
        async with IsolatedGroup() as group:
            group.start(lambda: work("one", release), scope)
            group.start(lambda: work("two", release), anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert ended == ["one cancelled"]
            release.set()
    assert ended == ["one cancelled", "two done"]


async def test_a_group_waits_for_its_work_and_an_error_of_the_block_does_not_cancel_it() -> None:
    done: list[Any] = []

    async def work() -> None:
        await anyio.wait_all_tasks_blocked()
        done.append(1)

    async def serve() -> None:
        async with IsolatedGroup() as group:
            group.start(work, anyio.CancelScope())
            raise LookupError("mine")

    with anyio.fail_after(PATIENCE):
        with pytest.raises(LookupError, match="mine"):
            await serve()
    assert done == [1]


async def test_a_group_that_is_cancelled_cancels_its_work() -> None:
    with anyio.fail_after(PATIENCE):
        with anyio.CancelScope() as scope:
            async with IsolatedGroup() as group:
                group.start(anyio.sleep_forever, anyio.CancelScope())
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
        async with group:  # and can be opened again
            pass


async def test_a_group_that_is_cancelled_waits_for_what_is_shielded_in_it() -> None:
    """L6: clean-up that must run is shielded."""
    done: list[str] = []

    async def follow_up() -> None:
        await anyio.lowlevel.checkpoint()
        done.append("started after the cancellation")  # never

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                group.start(follow_up, anyio.CancelScope())
                await anyio.lowlevel.checkpoint()
                done.append("cleaned up")

    group = IsolatedGroup()
    with anyio.fail_after(PATIENCE), anyio.CancelScope() as scope:
        async with group:
            group.start(work, anyio.CancelScope())
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
        done.append("went on behind the group")  # never
    assert done == ["cleaned up"]


async def test_nothing_that_only_the_beginning_of_work_needs_is_kept() -> None:
    class Request:
        """What the caller holds."""

    async def wait(release: anyio.Event) -> None:
        await release.wait()

    def begin(request: Request, release: anyio.Event) -> Awaitable[None]:
        return wait(release)

    async with IsolatedGroup() as group:
        release, request = anyio.Event(), Request()
        kept = weakref.ref(request)
        group.start(partial(begin, request, release), anyio.CancelScope())
        del request
        await anyio.wait_all_tasks_blocked()
        seen = kept()
        release.set()
    assert seen is None


async def test_a_group_that_is_not_open_starts_nothing_and_is_opened_once() -> None:
    group = IsolatedGroup()
    with pytest.raises(RuntimeError, match="not open"):
        group.start(anyio.sleep_forever, anyio.CancelScope())
    async with group:
        with pytest.raises(RuntimeError, match="already open"):
            await group.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        group.start(anyio.sleep_forever, anyio.CancelScope())


async def test_work_whose_scope_was_cancelled_before_it_began_ends_at_its_first_await() -> None:
    reached: list[str] = []

    async def work() -> None:
        reached.append("began")
        await anyio.lowlevel.checkpoint()
        reached.append("went on")

    scope = anyio.CancelScope()
    scope.cancel()
    with anyio.fail_after(PATIENCE):
        async with IsolatedGroup() as group:
            group.start(work, scope)
    assert reached == ["began"]


async def test_a_stray_cancellation_ends_the_task_it_struck_alone(caplog: pytest.LogCaptureFixture) -> None:
    """L13: on asyncio, awaiting a future that other code cancelled raises what a cancelled scope raises."""
    done: list[str] = []
    strike = anyio.Event()

    async def struck() -> None:
        await strike.wait()
        raise anyio.get_cancelled_exc_class()

    async def good() -> None:
        strike.set()
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        done.append("good")

    if anyio.get_cancelled_exc_class().__module__.startswith("trio"):
        pytest.skip("trio's Cancelled cannot be raised by hand")
    with anyio.fail_after(PATIENCE):
        async with IsolatedGroup() as group:
            group.start(struck, anyio.CancelScope())
            group.start(good, anyio.CancelScope())
    assert done == ["good"]
    assert "does not own it" in caplog.text


async def test_a_function_that_is_cancelled_soon_is_cancelled() -> None:
    scope = anyio.CancelScope()
    with anyio.fail_after(PATIENCE):
        async with IsolatedGroup() as group:
            group.start(anyio.sleep_forever, scope)
            await anyio.wait_all_tasks_blocked()
            group.cancel_soon(scope)
    assert scope.cancelled_caught


@on_one_loop
async def test_a_function_that_ends_in_the_turn_in_which_it_is_cancelled_soon_ends_in_its_own_way() -> None:
    end = anyio.Event()
    scope = anyio.CancelScope()
    seen: list[str] = []

    async def work() -> None:
        await end.wait()
        await anyio.lowlevel.checkpoint_if_cancelled()
        seen.append("ended")

    with anyio.fail_after(PATIENCE):
        async with IsolatedGroup() as group:
            group.start(work, scope)
            await anyio.wait_all_tasks_blocked()
            end.set()
            group.cancel_soon(scope)
    assert (seen, scope.cancelled_caught) == (["ended"], False)


def test_the_end_of_an_event_loop_is_no_stray_cancellation(caplog: pytest.LogCaptureFixture) -> None:
    """Ctrl-C, or a test runner that leaves: asyncio cancels every task, and none of them may be held."""
    seen: list[bool] = []
    groups: list[IsolatedGroup] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except BaseException:
            seen.append(await groups[0].is_stray(scopes[0]))
            raise

    scopes: list[anyio.CancelScope] = []

    async def host() -> None:
        scopes.append(anyio.CancelScope())
        async with IsolatedGroup() as group:
            groups.append(group)
            group.start(work, scopes[0])
            await anyio.sleep_forever()

    async def main() -> None:
        start_background_task(host)
        for _ in range(5):
            await anyio.lowlevel.checkpoint()

    anyio.run(main, backend="asyncio")
    assert seen == [False]
    assert caplog.text == ""


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_an_event_loop_that_ends_around_an_open_runtime_logs_nothing(
    order: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A stdio server of `mcp` 1.x ends so: asyncio cancels what opened the runtime in the same turn as its tasks."""

    async def host(opened: asyncio.Event) -> None:
        async with TaskRuntime(InMemoryTaskStore()):
            opened.set()
            await asyncio.Event().wait()

    async def main() -> None:
        opened = asyncio.Event()
        others = asyncio.all_tasks()
        hosting = asyncio.create_task(host(opened))
        await opened.wait()
        await asyncio.sleep(0)  # its tasks have begun to wait
        tasks = sorted(asyncio.all_tasks() - others, key=asyncio.Task.get_name)
        assert len(tasks) == len(order)
        for number in order:
            tasks[number].cancel()
        await asyncio.wait(tasks)
        assert hosting.cancelled()

    asyncio.run(main())
    assert caplog.records == []
