"""The laws of `TaskEndWatching`, as named checks: a function is called once, after the end of a task (law L3)."""

from __future__ import annotations

from typing import Final

import anyio

from mcp_task_runtime.core.store import TaskEndWatching, TaskStore
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.testing.checks.abilities import able
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import StoreBench
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["END_CHECKS"]

END_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(END_CHECKS)


class _Watch:
    """A watch of the end of one task."""

    def __init__(self, bench: StoreBench, task_id: str) -> None:
        self.calls = 0
        self._bench = bench
        self._called = anyio.Event()
        self.stop = able(bench.subject, TaskEndWatching).watch_end(task_id, self._call)

    def _call(self) -> None:
        self.calls += 1
        self._called.set()

    async def called(self, what: str) -> None:
        """Wait until the function was called; once."""
        await self._bench.within(self._called.wait(), f"the watch of an end is not called after {what}")
        require(self.calls == 1, f"the watch of an end was called {self.calls} times for {what}")


async def _made(store: TaskStore) -> TaskRecord:
    return await store.create_task(NewTask(ttl_ms=None))


@_check("L3", needs=["ends"])
async def an_end_is_told_once_and_no_other_change(bench: StoreBench) -> None:
    await _require_told(bench, bench.subject)


@_check("L3", needs=["ends", "shared"])
async def an_end_by_another_process_is_told_once(bench: StoreBench) -> None:
    async with bench.open_again() as other:
        await _require_told(bench, other)


async def _require_told(bench: StoreBench, other: TaskStore) -> None:
    """Require that a watch is called for ends that a store makes, and for nothing else that it does."""
    store = bench.subject
    tasks = [await _made(store) for _ in range(3)]
    ended, deleted, stopped = watches = [_Watch(bench, task.task_id) for task in tasks]
    await quiesce()
    for task in tasks:
        await other.update_task(task.task_id, status_message="on")
    stopped.stop()
    stopped.stop()
    await other.finish_task(tasks[2].task_id, Outcome.cancelled())
    await other.finish_task(tasks[0].task_id, Outcome.cancelled())
    await ended.called("the end of its task")
    require(deleted.calls == 0, "the watch of an end was called for a change, or for the end of another task")
    await other.delete_task(tasks[1].task_id)
    await deleted.called("the deletion of its task")
    await other.delete_task(tasks[0].task_id)
    await quiesce()
    require([watch.calls for watch in watches] == [1, 1, 0], "a watch was called again, or after it was stopped")
    for watch in watches:
        watch.stop()


@_check("L3", needs=["ends"])
async def an_end_before_its_watch_is_told(bench: StoreBench) -> None:
    first = await _made(bench.subject)
    other = await _made(bench.subject)
    await bench.subject.finish_task(first.task_id, Outcome.cancelled())
    watch = _Watch(bench, first.task_id)
    await watch.called("an end that came before it")
    unended = _Watch(bench, other.task_id)
    await quiesce()
    require(unended.calls == 0, "the watch of an end was called, and its task has not ended")
    watch.stop()
    unended.stop()


@_check("L3", needs=["ends"])
async def no_end_is_watched_in_a_closed_store(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        store = able(opened, TaskEndWatching)
    try:
        store.watch_end("any", lambda: None)
    except StoreClosedError:
        return
    raise AssertionError("watching the end of a task of a closed store raised no StoreClosedError")
