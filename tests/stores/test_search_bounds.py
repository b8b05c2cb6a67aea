"""A page of a search looks at a bounded number of tasks, however few of them match."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from secrets import token_hex

import anyio
import pytest

from mcp_task_runtime import InMemoryTaskStore, open_store
from mcp_task_runtime.core.store import TaskSearch
from mcp_task_runtime.core.types import NewTask, TaskFilter, TaskRequest
from mcp_task_runtime.stores.memory import _search as memory_search
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.stores.sqlite import _search as sqlite_search
from mcp_task_runtime.stores.url import BundledTaskStore
from mcp_task_runtime.testing import FakeClock

NUMBER = 160


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BundledTaskStore]:
    if request.param == "memory":
        monkeypatch.setattr(memory_search, "LOOKED_AT_MOST", 20)
        yield InMemoryTaskStore()
        return
    if request.param == "sqlite":
        monkeypatch.setattr(sqlite_search, "LOOKED_AT_MOST", 20)
        url = f"sqlite:///{tmp_path / 'tasks.db'}"
    else:
        module = {"redis": "redis._search", "postgres": "postgres._search_statements"}[request.param]
        search = pytest.importorskip(f"mcp_task_runtime.stores.{module}")
        monkeypatch.setattr(search, "LOOKED_AT_MOST", 20)
        address = request.getfixturevalue(request.param).url
        parameter = "prefix" if request.param == "redis" else "schema"
        url = f"{address}{'&' if '?' in address else '?'}{parameter}=bounds_{token_hex(6)}"
    async with open_store(url) as opened:
        yield opened


async def walk(store: TaskSearch, wanted: TaskFilter, *, newest_first: bool) -> tuple[list[str], int]:
    """Return the ids of all pages, and how many pages there were."""
    ids: list[str] = []
    cursor, pages = None, 0
    while True:
        page = await store.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=10)
        ids += [record.task_id for record in page.records]
        cursor, pages = page.next_cursor, pages + 1
        if cursor is None:
            return ids, pages


async def fill(store: BundledTaskStore) -> list[str]:
    """Store tasks of several tools and owners; return those with a text, oldest first."""
    found: dict[int, str] = {}

    async def make(number: int) -> None:
        request = TaskRequest(name=f"tool {number % 3}")
        message = "Here it is" if number % 50 == 0 else None
        new = NewTask(ttl_ms=None, owner=("ada", None)[number % 2], request=request, status_message=message)
        record = await store.create_task(new)
        if message is not None:
            found[number] = record.task_id

    for first in range(0, NUMBER, 10):
        await make(first)  # of these the order is known
        async with anyio.create_task_group() as group:
            for number in range(first + 1, first + 10):
                group.start_soon(make, number)
    return [found[number] for number in sorted(found)]


async def test_a_page_ends_where_it_has_looked_at_enough_and_the_next_goes_on(store: BundledTaskStore) -> None:
    assert isinstance(store, TaskSearch)
    ids = await fill(store)
    text = TaskFilter(text="HERE")
    for wanted in (
        text,
        replace(text, statuses=frozenset({"working", "failed"})),
        replace(text, names=frozenset({"tool 0", "tool 1", "tool 2", "other"})),
        replace(text, owners=frozenset({"ada", None})),
    ):
        for newest_first in (True, False):
            seen, pages = await walk(store, wanted, newest_first=newest_first)
            assert seen == (ids[::-1] if newest_first else ids)
            assert pages > 2


async def test_nothing_is_left_out_where_no_text_is_looked_for(store: BundledTaskStore) -> None:
    assert isinstance(store, TaskSearch)
    await fill(store)
    everything, _ = await walk(store, TaskFilter(), newest_first=True)
    assert len(set(everything)) == NUMBER
    for wanted in (TaskFilter(statuses=frozenset({"working"})), TaskFilter(owners=frozenset({"ada", None}))):
        for newest_first in (True, False):
            seen, pages = await walk(store, wanted, newest_first=newest_first)
            assert seen == (everything if newest_first else everything[::-1])
            assert pages <= NUMBER // 10 + 1


async def test_a_filter_may_name_thousands_of_owners_and_tools(store: BundledTaskStore) -> None:
    assert isinstance(store, TaskSearch)
    made = [
        await store.create_task(NewTask(ttl_ms=None, owner=owner, request=TaskRequest(name=name)))
        for owner, name in (("owner 7", "tool 7"), (None, "tool 7"), ("eve", "tool 7"), ("owner 7", "other"))
    ]
    owners = frozenset(f"owner {number}" for number in range(2_000))
    names = frozenset(f"tool {number}" for number in range(2_000))
    for wanted, found in (
        (TaskFilter(owners=owners), [0, 3]),
        (TaskFilter(owners=owners | {None}, names=names), [0, 1]),
        (TaskFilter(names=names), [0, 1, 2]),
    ):
        seen, _ = await walk(store, wanted, newest_first=False)
        assert seen == [made[number].task_id for number in found]


async def test_an_age_leads_to_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_search, "LOOKED_AT_MOST", 20)
    monkeypatch.setattr(sqlite_search, "LOOKED_AT_MOST", 20)
    clock = FakeClock()
    start = clock.now()
    async with SQLiteTaskStore(tmp_path / "tasks.db", clock=clock) as on_disk, InMemoryTaskStore(clock=clock) as here:
        for number in range(100):
            for store in (on_disk, here):
                await store.create_task(NewTask(ttl_ms=None, task_id=f"task {number:03}", owner="ada"))
            clock.advance(10)
        late, soon = start + timedelta(seconds=905), start + timedelta(seconds=105)
        for store in (on_disk, here):
            for wanted, ids in (
                (TaskFilter(created_after=late), range(91, 100)),
                (TaskFilter(created_before=soon), range(11)),
                (TaskFilter(created_before=soon, owners=frozenset({"ada"})), range(11)),
                (TaskFilter(created_after=soon, created_before=soon + timedelta(seconds=30)), range(11, 14)),
                (TaskFilter(created_before=start), range(0)),
            ):
                for newest_first in (True, False):
                    page = await store.search_tasks(wanted, newest_first=newest_first, limit=20)
                    order = reversed(ids) if newest_first else ids
                    assert [record.task_id for record in page.records] == [f"task {number:03}" for number in order]
                    assert page.next_cursor is None
