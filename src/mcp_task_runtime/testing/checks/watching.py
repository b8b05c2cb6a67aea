"""The laws of `TaskWatching`, as named checks: a function is called after each change of a task (law L3)."""

from __future__ import annotations

from typing import Final

import anyio

from mcp_task_runtime.core.store import TaskStore, TaskWatching
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.testing.checks.abilities import able
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import StoreBench
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["WATCHING_CHECKS"]

WATCHING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(WATCHING_CHECKS)


class _Watch:
    """A watch of one task, and what it was called with."""

    def __init__(self, bench: StoreBench, store: TaskStore, task_id: str, after: int) -> None:
        self.seen: list[TaskRecord | None] = []
        self._bench = bench
        self._called = anyio.Event()
        self.stop = able(store, TaskWatching).watch_task(task_id, self._call, after=after)

    def _call(self, record: TaskRecord | None) -> None:
        self.seen.append(record)
        self._called.set()

    async def called(self, count: int, what: str) -> TaskRecord | None:
        """Wait until there were more than some calls; return what the last one was called with."""
        while len(self.seen) <= count:
            await self._bench.within(self._called.wait(), f"a watch is not called after {what}")
            self._called = anyio.Event()
        return self.seen[-1]


@_check("L3", needs=["watching"])
async def a_watch_is_called_after_each_change(bench: StoreBench) -> None:
    await _require_called(bench, bench.subject)


@_check("L3", needs=["watching", "shared"])
async def a_watch_is_called_after_changes_of_another_process(bench: StoreBench) -> None:
    async with bench.open_again() as other:
        await _require_called(bench, other)


async def _require_called(bench: StoreBench, other: TaskStore) -> None:
    """Require that a watch is called after each change that a store makes."""
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    watch = _Watch(bench, store, created.task_id, created.revision)
    await quiesce()
    for number in range(3):
        count = len(watch.seen)
        updated = await other.update_task(created.task_id, status_message=str(number))
        seen = await watch.called(count, "an update")
        require(seen in (None, updated), f"a watch was called with {seen}, and the task is {updated}")
    count = len(watch.seen)
    ended = await other.finish_task(created.task_id, Outcome.cancelled())
    seen = await watch.called(count, "the end of its task")
    require(seen in (None, ended), f"a watch was called with {seen}, and the task is {ended}")
    count = len(watch.seen)
    await other.delete_task(created.task_id)
    require(await watch.called(count, "a deletion") is None, "a watch was called with a task that was deleted")
    watch.stop()


@_check("L3", needs=["watching"])
async def a_watch_of_what_has_changed_already_is_called_at_once(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    updated = await store.update_task(created.task_id, status_message="on")
    watch = _Watch(bench, store, created.task_id, created.revision)
    seen = await watch.called(0, "a change that came before it")
    require(seen in (None, updated), f"a watch was called with {seen}, and the task is {updated}")
    unknown = _Watch(bench, store, "unknown", 0)
    require(await unknown.called(0, "its task has gone") is None, "a watch was called with a task that is unknown")
    for each in (watch, unknown):
        each.stop()


@_check("L3", "L13", needs=["watching"])
async def a_watch_is_called_for_its_task_until_it_is_stopped(bench: StoreBench) -> None:
    store = bench.subject
    one, two = [await store.create_task(NewTask(ttl_ms=None)) for _ in range(2)]
    watches = [_Watch(bench, store, task.task_id, task.revision) for task in (one, one, two)]
    await quiesce()
    counts = [len(watch.seen) for watch in watches]
    watches[0].stop()
    watches[0].stop()
    await store.update_task(one.task_id, status_message="on")
    await watches[1].called(counts[1], "a change, where another watch of the task was stopped")
    require(len(watches[0].seen) == counts[0], "a watch is called after it was stopped")
    await store.update_task(two.task_id, status_message="on")
    await watches[2].called(counts[2], "a change")
    for watch, task in ((watches[1], one), (watches[2], two)):
        ids = {record.task_id for record in watch.seen if record is not None}
        require(ids <= {task.task_id}, "a watch was called with another task")
        watch.stop()


@_check("L3", needs=["watching"])
async def a_closed_store_is_not_watched(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        store = able(opened, TaskWatching)
    try:
        store.watch_task("any", lambda record: None, after=0)
    except StoreClosedError:
        return
    raise AssertionError("watching a task of a closed store raised no StoreClosedError")
