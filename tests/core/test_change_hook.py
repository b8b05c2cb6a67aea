"""`on_change`: each status that a process gives a task reaches a callback, which hurts no task (L13)."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from typing import Any

import anyio
import anyio.from_thread
import pytest

from mcp_task_runtime import Execution, InMemoryTaskStore, TaskRequest, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.change_hook import ChangeCallback, ChangeHook
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.observer import TaskChange
from tests.support.patience import PATIENCE

SPEC = TaskSpec(request=TaskRequest(name="tool"))
NO_GRACE = TaskSettings(shutdown_grace=0)
LIFE = ["working", "completed"]


def open_runtime(on_change: ChangeCallback) -> TaskRuntime:
    return TaskRuntime(InMemoryTaskStore(), settings=NO_GRACE, on_change=on_change)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine that many share deliver everything before a runtime is closed."""
    monkeypatch.setattr("mcp_task_runtime.core.change_hook._FLUSH_SECONDS", PATIENCE)


async def one_task(runtime: TaskRuntime) -> str:
    """Run a task from its beginning to its end."""

    async def work(_: Execution[Any]) -> dict[str, Any]:
        return {"content": []}

    record = await runtime.submit(SPEC, work)
    await runtime.result(record.task_id, owner=None)
    return record.task_id


class Listener:
    """Callbacks of each kind, and what they were called with."""

    def __init__(self) -> None:
        self.seen: list[TaskChange] = []
        self.threads: set[int] = set()

    def plain(self, change: TaskChange) -> None:
        self.threads.add(threading.get_ident())
        self.seen.append(change)

    async def coroutine(self, change: TaskChange) -> None:
        await anyio.lowlevel.checkpoint()
        self.plain(change)

    async def __call__(self, change: TaskChange) -> None:
        await self.coroutine(change)


@pytest.mark.parametrize("kind", ["function", "coroutine function", "object", "partial"])
async def test_changes_come_in_order_and_all_before_the_runtime_is_closed(kind: str) -> None:
    listener = Listener()
    callbacks: dict[str, ChangeCallback] = {
        "function": listener.plain,
        "coroutine function": listener.coroutine,
        "object": listener,
        "partial": functools.partial(listener.coroutine),
    }
    with anyio.fail_after(PATIENCE):
        async with open_runtime(callbacks[kind]) as runtime:
            task_ids = [await one_task(runtime) for _ in range(3)]
    assert [(change.task_id, change.status) for change in listener.seen] == [
        (task_id, status) for task_id in task_ids for status in LIFE
    ]
    is_here = threading.get_ident() in listener.threads
    assert is_here == (kind != "function"), "a function runs in a thread, for it may block"


async def test_changes_of_an_earlier_opening_come_with_the_next_one() -> None:
    listener = Listener()
    runtime = open_runtime(listener.coroutine)
    for _ in range(2):
        async with runtime:
            await one_task(runtime)
    assert [change.status for change in listener.seen] == 2 * LIFE


@pytest.mark.parametrize("error", [ValueError(), asyncio.CancelledError(), SystemExit()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_callback_that_raises_keeps_no_other_change_from_coming(error: BaseException, is_async: bool) -> None:
    listener = Listener()

    def plain(change: TaskChange) -> None:
        listener.plain(change)
        raise error

    async def coroutine(change: TaskChange) -> None:
        plain(change)

    with anyio.fail_after(PATIENCE):
        async with open_runtime(coroutine if is_async else plain) as runtime:
            await one_task(runtime)
            await one_task(runtime)
    assert [change.status for change in listener.seen] == 2 * LIFE


async def test_a_coroutine_that_hangs_holds_up_no_task_and_not_the_end_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mcp_task_runtime.core.change_hook._FLUSH_SECONDS", 0.01)

    async def hangs(_: TaskChange) -> None:
        await anyio.sleep_forever()

    with anyio.fail_after(PATIENCE):
        async with open_runtime(hangs) as runtime:
            for _ in range(3):
                await one_task(runtime)


async def test_a_change_that_is_being_delivered_is_waited_for_when_the_runtime_closes() -> None:
    begun, goes_on = anyio.Event(), anyio.Event()
    seen: list[str] = []

    async def slow(change: TaskChange) -> None:
        if change.status == "completed":
            begun.set()
            await goes_on.wait()
        seen.append(change.status)

    async def let_go() -> None:
        await anyio.wait_all_tasks_blocked()
        goes_on.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            async with open_runtime(slow) as runtime:
                await one_task(runtime)
                await begun.wait()
                group.start_soon(let_go)
    assert seen == LIFE


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_task_runtime.core.change_hook._FLUSH_SECONDS", float("inf"))


@pytest.mark.usefixtures("no_limit")
async def test_the_end_waits_for_no_change_that_nothing_delivers_any_more() -> None:
    """On trio, a cancellation around the runtime ends what delivers before the runtime is closed."""
    begun = anyio.Event()

    async def hang(_: TaskChange) -> None:
        begun.set()
        await anyio.sleep_forever()

    hook, scope = ChangeHook(hang), anyio.CancelScope()
    record = await InMemoryTaskStore().create_task(ttl_ms=None)
    async with IsolatedGroup() as group:
        group.start(functools.partial(hook.run, group), scope)
        hook.observe(TaskChange.of(record))
        hook.observe(TaskChange.of(record))
        with anyio.fail_after(PATIENCE):
            await begun.wait()
            async with anyio.create_task_group() as others:
                others.start_soon(hook.flush)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
            await hook.flush()
    assert hook.waiting == 1


@pytest.mark.usefixtures("no_limit")
async def test_a_cancellation_of_the_end_loses_no_change_that_is_being_delivered() -> None:
    goes_on = anyio.Event()
    seen: list[str] = []

    async def slow(change: TaskChange) -> None:
        await goes_on.wait()
        seen.append(change.status)

    hook, delivery = ChangeHook(slow), anyio.CancelScope()
    seen_at_the_end: list[list[str]] = []

    async def end() -> None:
        await hook.flush()
        seen_at_the_end.append(list(seen))

    async with IsolatedGroup() as group:
        group.start(functools.partial(hook.run, group), delivery)
        hook.observe(TaskChange.of(await InMemoryTaskStore().create_task(ttl_ms=None)))
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as ending:
                ending.start_soon(end)
                await anyio.wait_all_tasks_blocked()
                ending.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
                goes_on.set()
        delivery.cancel()
    assert seen_at_the_end == [["working"]]


async def test_functions_that_hang_are_given_up_and_few_of_them_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mcp_task_runtime.core.change_hook._CALL_SECONDS", 0.01)
    release, begun = threading.Event(), threading.Semaphore(0)

    def hangs(_: TaskChange) -> None:
        begun.release()
        release.wait()

    try:
        with anyio.fail_after(PATIENCE):
            async with open_runtime(hangs) as runtime:
                for _ in range(4):
                    await one_task(runtime)
        calls = 0
        while begun.acquire(blocking=False):
            calls += 1
        assert calls <= 4
        messages = [each.message for each in caplog.records]
        given_up = sum("was given up" in message for message in messages)
        assert given_up + sum("was not called: 4 calls" in message for message in messages) == 8
    finally:
        release.set()


async def test_changes_that_nothing_takes_are_dropped_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    hook = ChangeHook(Listener())
    record = await InMemoryTaskStore().create_task(ttl_ms=None)
    for _ in range(1_100):
        hook.observe(TaskChange.of(record))
    assert hook.waiting == 1_000
    assert [each.levelno for each in caplog.records] == [logging.WARNING]


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(ValueError, match="on_change"):
        TaskRuntime(InMemoryTaskStore(), on_change="https://example.org")  # type: ignore[arg-type]
