"""`TaskWatching`: a store calls back after each change of a task, whoever made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import InMemoryTaskStore, Outcome
from mcp_task_runtime.core import TaskStore, TaskWatching
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Stores:
    """A store that is watched, and one that others write with: the same, or another on the same file."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self._folder = folder

    async def __aenter__(self) -> tuple[Any, TaskStore]:
        if self.kind == "memory":
            self._all: list[Any] = [InMemoryTaskStore()]
        else:
            self._all = [SQLiteTaskStore(self._folder / "tasks.db") for _ in range(1 if self.kind == "sqlite" else 2)]
        return self._all[0], self._all[-1]

    async def __aexit__(self, *_: object) -> None:
        for store in self._all:
            await store.aclose()


@pytest.fixture(params=["memory", "sqlite", "two on one file"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Stores:
    return Stores(request.param, tmp_path)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()


class Seen:
    """What a watch of one task has seen, each time it was called."""

    def __init__(self, store: Any, task_id: str, after: int) -> None:
        self.records: list[TaskRecord | None] = []
        self.stop: Callable[[], None] = store.watch_task(task_id, self.records.append, after=after)

    async def one_more(self, count: int) -> None:
        await until(lambda: len(self.records) > count)


async def test_a_change_is_called_back_until_the_watch_stops(stores: Stores) -> None:
    """L3."""
    async with stores as (watched, other):
        can_watch = isinstance(watched, TaskWatching)
        assert can_watch
        record = await watched.create_task(NewTask(ttl_ms=None))
        seen = Seen(watched, record.task_id, 1)
        for number in range(3):
            before = len(seen.records)
            updated = await other.update_task(record.task_id, status_message=str(number))
            await seen.one_more(before)
            assert seen.records[-1] in (None, updated)
        before = len(seen.records)
        ended = await other.finish_task(record.task_id, Outcome.cancelled())
        await seen.one_more(before)
        assert seen.records[-1] in (None, ended)
        seen.stop()
        before = len(seen.records)
        again = Seen(watched, record.task_id, record.revision)  # newer than what this one has
        await again.one_more(0)
        await other.delete_task(record.task_id)
        await until(lambda: again.records[-1] is None)
        assert len(seen.records) == before
        again.stop()
        again.stop()


async def test_a_task_that_is_gone_is_called_back_at_once(stores: Stores) -> None:
    async with stores as (watched, _):
        seen = Seen(watched, "unknown", 0)
        await seen.one_more(0)
        assert seen.records[0] is None
        seen.stop()


async def test_watches_of_other_tasks_are_left_alone(stores: Stores) -> None:
    async with stores as (watched, other):
        one = await watched.create_task(NewTask(ttl_ms=None))
        two = await watched.create_task(NewTask(ttl_ms=None))
        seen, also = Seen(watched, one.task_id, 1), Seen(watched, two.task_id, 1)
        await other.update_task(one.task_id, status_message="on")
        await other.update_task(two.task_id, status_message="on")
        await until(lambda: bool(seen.records and also.records))
        assert all(each is None or each.task_id == one.task_id for each in seen.records)
        assert all(each is None or each.task_id == two.task_id for each in also.records)
        seen.stop()
        also.stop()


async def test_a_store_that_is_closed_is_not_watched(stores: Stores) -> None:
    async with stores as (watched, _):
        await watched.aclose()
        with pytest.raises(StoreClosedError):
            watched.watch_task("any", lambda record: None, after=0)
