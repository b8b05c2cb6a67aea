"""The laws of listing a `TaskStore`'s tasks, as named checks."""

from __future__ import annotations

from functools import partial
from typing import Final

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task, walk_pages
from mcp_task_runtime.testing.concurrency.cost import count_work

__all__ = ["STORE_LISTING_CHECKS"]

STORE_LISTING_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_LISTING_CHECKS)


async def _walk(store: TaskStore, owner: str | None, limit: int) -> list[str]:
    return await walk_pages(partial(store.list_tasks, owner=owner), limit)


@_check("L8", needs=["listing"])
async def listing_shows_each_task_of_one_owner_once_oldest_first(bench: StoreBench) -> None:
    store = bench.subject
    made: dict[str | None, list[str]] = {"ada": [], "bob": [], None: []}
    for number in range(7):
        for owner, ids in made.items():
            ids.append((await store.create_task(NewTask(ttl_ms=None, owner=owner))).task_id)
        if number % 2:
            bench.clock.advance(1)
    await store.update_task(made["ada"][0], status_message="an update does not move a task")
    await store.finish_task(made["ada"][1], OUTCOMES[0])
    for owner, ids in made.items():
        for limit in (1, 3, 7, 100):
            seen = await _walk(store, owner, limit)
            require(
                seen == ids, f"the pages of {limit} of {owner!r} show {len(seen)} tasks, not their own 7, oldest first"
            )
    page = await store.list_tasks(owner="ada", limit=7)
    require(page.next_cursor is None, "the last page has a cursor to a next one")
    for record in page.records:
        require(record == await read_task(store, record.task_id), "a list shows a task otherwise than get_task does")
    empty = await store.list_tasks(owner="nobody")
    require(empty.records == () and empty.next_cursor is None, "an owner without tasks has some")


@_check("L8", needs=["listing"])
async def walking_the_pages_survives_what_comes_and_goes_meanwhile(bench: StoreBench) -> None:
    store = bench.subject
    ids = [(await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id for _ in range(8)]
    first = await store.list_tasks(owner="ada", limit=3)
    require(first.next_cursor is not None, "a page that is not the last one has no cursor")
    for task_id in (ids[2], ids[0], ids[3]):  # the one the cursor was made at among them
        await store.delete_task(task_id)
    added = (await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id
    second = await store.list_tasks(owner="ada", cursor=first.next_cursor, limit=3)
    seen = [record.task_id for record in second.records]
    require(seen == ids[4:7], "after the task at the cursor was deleted the next page is not the one that follows")
    third = await store.list_tasks(owner="ada", cursor=second.next_cursor, limit=3)
    seen = [record.task_id for record in third.records]
    require(seen == [ids[7], added], "the last page does not show the rest once, with what was created meanwhile")
    for task_id in ids:
        await store.delete_task(task_id)
    await store.delete_task(added)
    late = await store.list_tasks(owner="ada", cursor=first.next_cursor, limit=3)
    require(late.records == () and late.next_cursor is None, "a cursor is not good when all tasks are gone")


@_check("L7", needs=["listing"])
async def an_expired_task_is_not_listed(bench: StoreBench) -> None:
    store = bench.subject
    await store.create_task(NewTask(ttl_ms=1_000, owner="ada"))
    stays = await store.create_task(NewTask(ttl_ms=2_000, owner="ada"))
    bench.clock.advance(1)
    page = await store.list_tasks(owner="ada", limit=1)
    require([record.task_id for record in page.records] == [stays.task_id], "an expired task is still listed")
    require(page.next_cursor is None, "an expired task still counts in a list")


@_check("L8", needs=["listing"])
async def a_cursor_that_the_store_did_not_make_for_this_owner_is_refused(bench: StoreBench) -> None:
    store = bench.subject
    for owner in ("ada", "bob", None):
        for _ in range(3):
            await store.create_task(NewTask(ttl_ms=None, owner=owner))
    page = await store.list_tasks(owner="ada", limit=1)
    good = page.next_cursor
    if good is None:
        raise AssertionError("a page that is not the last one has no cursor")
    task_id = page.records[0].task_id
    swapped = ("B" if good[0] != "B" else "C") + good[1:]
    for cursor in ("", "garbage", "0", "1", "-1", task_id, good[:-1], good + "A", swapped, "🌍", "a" * 10_000, "=="):
        listing = store.list_tasks(owner="ada", cursor=cursor, limit=1)
        await require_raises(InvalidCursorError, listing, f"list_tasks with the made-up cursor {cursor[:40]!r}")
    for other in ("bob", None):
        listing = store.list_tasks(owner=other, cursor=good, limit=1)
        await require_raises(InvalidCursorError, listing, "list_tasks with another owner's cursor")
    for limit in (0, -1):
        await require_raises(ValueError, store.list_tasks(owner="ada", limit=limit), f"list_tasks with limit={limit}")


@_check("L8", needs=["listing"])
async def a_page_costs_what_is_on_it(bench: StoreBench) -> None:
    store = bench.subject
    ids = [(await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id for _ in range(24)]
    cursor = (await store.list_tasks(owner="ada", limit=12)).next_cursor
    page = partial(store.list_tasks, owner="ada", cursor=cursor, limit=5)
    few = await count_work(page)
    for number in range(600):
        await store.create_task(NewTask(ttl_ms=None, owner="ada" if number % 2 else "bob"))
    many = await count_work(page)
    require(
        many <= 3 * few + 400, f"a page of 5 costs {many} steps among 600 tasks and {few} among 24: it looks at all"
    )
    require([r.task_id for r in (await page()).records] == ids[12:17], "a page is not the one that follows its cursor")
