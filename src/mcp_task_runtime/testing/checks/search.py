"""The laws of `TaskSearch`, as named checks: pages over all owners, counts, and what happened to a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final

from mcp_task_runtime.core.message_queue import Answer
from mcp_task_runtime.core.store import TaskLeases, TaskQuestions, TaskSearch, TaskStore
from mcp_task_runtime.core.transitions import EVENT_TEXT_LENGTH, EVENTS_KEPT
from mcp_task_runtime.core.types import NewTask, Outcome, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError, InvalidTransitionError
from mcp_task_runtime.testing.checks.abilities import able, leased_task, question
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task, walk_pages
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.cost import count_work

__all__ = ["SEARCH_CHECKS"]

SEARCH_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(SEARCH_CHECKS)
_ALL: Final = TaskFilter()


async def _make(store: TaskStore, name: str = "tool", **options: Any) -> TaskRecord:
    return await store.create_task(NewTask(**{"ttl_ms": None, "request": TaskRequest(name=name), **options}))


async def _walk(store: TaskSearch, wanted: TaskFilter, *, newest_first: bool = True, limit: int = 50) -> list[str]:
    """Return the ids of all pages of a search."""
    return await walk_pages(partial(store.search_tasks, wanted, newest_first=newest_first), limit)


# --- pages --------------------------------------------------------------------------------------------


@_check("L8", needs=["search"])
async def a_search_shows_each_task_that_matches_once_in_order(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    start = bench.clock.now()
    made: list[TaskRecord] = []
    owners: tuple[str | None, ...] = ("ada", "bob", None)
    for number in range(18):
        name = ("report", "index", "")[number % 3]
        record = await _make(store, name, owner=owners[number // 6], task_id=f"{'ab'[number % 2]}-{number:02}")
        if number % 4 == 1:
            record = await store.update_task(record.task_id, status="input_required", status_message=f"Asks {number}")
        if number % 4 == 2:
            record = await store.finish_task(record.task_id, OUTCOMES[number % 3])
        made.append(record)
        bench.clock.advance(1)
    third = start + timedelta(seconds=3)
    for wanted in (
        _ALL,
        TaskFilter(statuses=frozenset({"working"})),
        TaskFilter(statuses=frozenset({"input_required", "failed"})),
        TaskFilter(statuses=frozenset()),
        TaskFilter(names=frozenset({"report"})),
        TaskFilter(names=frozenset({"report", "", "unknown"})),
        TaskFilter(owners=frozenset({"ada"})),
        TaskFilter(owners=frozenset({None, "bob"})),
        TaskFilter(owners=frozenset({"nobody"})),
        TaskFilter(owners=frozenset()),
        TaskFilter(id_prefix="a-"),
        TaskFilter(id_prefix="b-0"),
        TaskFilter(id_prefix="b-01"),
        TaskFilter(id_prefix="B-"),
        TaskFilter(id_prefix=""),
        TaskFilter(id_prefix="b-011"),
        TaskFilter(created_after=third),
        TaskFilter(created_before=third),
        TaskFilter(created_after=third, created_before=third + timedelta(seconds=2)),
        TaskFilter(created_after=third, names=frozenset({"index"})),
        TaskFilter(created_before=start),
        TaskFilter(text="asks 1"),
        TaskFilter(text=""),
        TaskFilter(statuses=frozenset({"working"}), names=frozenset({"index"}), owners=frozenset({"ada", "bob"})),
        TaskFilter(statuses=frozenset({"input_required"}), id_prefix="b-", created_after=third, text="ASKS"),
    ):
        expected = [record.task_id for record in made if _matches(record, wanted)]
        for newest_first in (True, False):
            order = expected[::-1] if newest_first else expected
            for limit in (1, 4, 18, 100):
                seen = await _walk(store, wanted, newest_first=newest_first, limit=limit)
                require(seen == order, f"the pages of {limit} for {wanted} show {seen} and not {order}")
    page = await store.search_tasks(_ALL)
    require(page.records == tuple(made[::-1]), "a search shows a task otherwise than get_task does")
    for limit in (0, -1):
        await require_raises(ValueError, store.search_tasks(_ALL, limit=limit), f"search_tasks with limit={limit}")


def _matches(record: TaskRecord, wanted: TaskFilter) -> bool:
    task, message = record.task, record.task.status_message
    return (
        (wanted.statuses is None or task.status in wanted.statuses)
        and (wanted.names is None or record.request.name in wanted.names)
        and (wanted.owners is None or record.owner in wanted.owners)
        and (wanted.id_prefix is None or task.task_id.startswith(wanted.id_prefix))
        and (wanted.created_after is None or task.created_at >= wanted.created_after)
        and (wanted.created_before is None or task.created_at < wanted.created_before)
        and (wanted.text is None or (message is not None and wanted.text.lower() in message.lower()))
    )


@_check("L8", needs=["search"])
async def a_search_takes_every_character_literally(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    texts = ("100 % done", "100 x done", "a_b", "axb", "back\\slash", "it's", "[a-z]*", "ÄRGER und Grüße", "tab\tand?")
    made = {
        text: await store.update_task((await _make(store, text, owner=text)).task_id, status_message=text)
        for text in texts
    }
    for text, record in made.items():
        for wanted in (
            TaskFilter(text=text),
            TaskFilter(names=frozenset({text})),
            TaskFilter(owners=frozenset({text})),
        ):
            seen = await _walk(store, wanted)
            require(seen == [record.task_id], f"a search for {wanted} shows {len(seen)} tasks and not the one")
    for text, count in (("%", 1), ("_", 1), ("\\", 1), ("'", 1), ("*", 1), ("DONE", 2), ("ÄRGER UND", 1), ("grü", 1)):
        seen = await _walk(store, TaskFilter(text=text))
        require(len(seen) == count, f"a search for the text {text!r} shows {len(seen)} tasks and not {count}")
    ids = ("pre_1", "prex2", "pre%3", "pre\\4")
    for task_id in ids:
        await _make(store, task_id=task_id)
    for prefix in ("pre_", "pre%", "pre\\"):
        seen = await _walk(store, TaskFilter(id_prefix=prefix))
        require(len(seen) == 1, f"a search for the prefix {prefix!r} shows {seen}")


@_check("L8", "L7", needs=["search"])
async def a_search_survives_what_comes_and_goes_meanwhile(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    for newest_first in (True, False):
        kept = [(await _make(store, "kept")).task_id for _ in range(6)]
        dying = [(await _make(store, "kept", ttl_ms=1_000)).task_id for _ in range(2)]
        order = kept[::-1] if newest_first else kept
        wanted = TaskFilter(names=frozenset({"kept"}))
        seen: list[str] = []
        cursor = None
        for turn in range(100):
            page = await store.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=2)
            seen += [record.task_id for record in page.records]
            cursor = page.next_cursor
            if cursor is None:
                break
            bench.clock.advance(1)
            await _make(store, "kept")
            await store.update_task(kept[turn % 2 * 5], status="input_required" if turn % 2 else "working")
            if turn == 1:
                await store.delete_task(page.records[-1].task_id)  # the task that the cursor was made at
                order = [task_id for task_id in order if task_id != page.records[-1].task_id or task_id in seen]
        shown = [task_id for task_id in seen if task_id in kept]
        require(shown == order, "walking the pages does not show each task that was there throughout exactly once")
        require(len(set(seen)) == len(seen), "walking the pages shows a task twice")
        late = [task_id for task_id in await _walk(store, wanted) if task_id in dying]
        require(late == [], "a search shows a task that has expired")
        for task_id in await _walk(store, _ALL):
            await store.delete_task(task_id)


@_check("L8", needs=["search"])
async def a_cursor_is_good_for_its_own_search_alone(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    for number in range(4):
        await _make(store, "tool", owner="ada" if number % 2 else None)
    names = TaskFilter(names=frozenset({"tool", "other"}))
    cursor = (await store.search_tasks(names, limit=1)).next_cursor
    require(cursor is not None, "a page that is not the last one has no cursor")
    same = TaskFilter(names=frozenset({"other", "tool"}))
    require(
        len((await store.search_tasks(same, cursor=cursor)).records) == 3, "an equal filter's cursor leads elsewhere"
    )
    listed = (await store.list_tasks(owner=None, limit=1)).next_cursor
    search = store.search_tasks
    foreign: list[tuple[str, Callable[[], Awaitable[Any]]]] = [
        ("another filter", partial(search, replace(names, owners=frozenset({"ada"})), cursor=cursor)),
        ("the other order", partial(search, names, newest_first=False, cursor=cursor)),
        ("a list of an owner", partial(store.list_tasks, owner=None, cursor=cursor)),
    ]
    foreign += [(f"the cursor {bad!r}", partial(search, _ALL, cursor=bad)) for bad in ("", "x", "AAAA", listed, "ü")]
    for what, operation in foreign:
        await require_raises(InvalidCursorError, operation(), f"a search with the cursor of another, {what},")


@_check("L8", needs=["search"])
async def tasks_that_completed_with_an_error_are_found_and_counted(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    bad = Outcome.completed({"isError": True, "content": []})
    nested = Outcome.completed({"isError": False, "structuredContent": {"isError": True}})
    ends = (bad, nested, bad, Outcome.failed("no"), bad, Outcome.completed({}), Outcome.cancelled())
    ids = []
    owners = (None, "bob", *["ada"] * 5)
    for number, outcome in enumerate(ends):
        record = await _make(store, "ab"[number % 4 // 2], owner=owners[number], task_id=f"{number}-task")
        record = await store.finish_task(record.task_id, outcome)
        if record.outcome == bad:
            ids.append(record.task_id)
    await _make(store, "a")
    errors = TaskFilter(errors_only=True)
    for wanted, order in (
        (errors, ids),
        (replace(errors, names=frozenset({"a", "c"})), [ids[0], ids[2]]),
        (replace(errors, owners=frozenset({"ada"})), ids[1:]),
        (replace(errors, owners=frozenset({"bob"})), []),
        (replace(errors, id_prefix="2-"), [ids[1]]),
        (replace(errors, id_prefix="1-"), []),
        (replace(errors, statuses=frozenset({"completed"})), ids),
        (replace(errors, statuses=frozenset({"failed"})), []),
    ):
        seen = await _walk(store, wanted, newest_first=False, limit=2)
        require(seen == order, f"a search for {wanted} shows {seen} and not {order}")
    counts = await store.count_tasks()
    require(counts.errors_by_name == {"a": 2, "b": 1}, f"count_tasks says {counts.errors_by_name} of errors")
    require(counts.by_status_and_name["completed", "a"] == 4, "a task that completed with an error is not `completed`")
    await store.delete_task(ids[1])
    left = {name: number for name, number in (await store.count_tasks()).errors_by_name.items() if number}
    require(left == {"a": 2}, "a task that was deleted is counted as an error")


# --- counts -------------------------------------------------------------------------------------------


@_check("L8", needs=["search"])
async def counts_are_those_of_the_tasks_there_are(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    empty = await store.count_tasks()
    require(not any(empty.by_status_and_name.values()), "an empty store counts tasks")
    require((empty.oldest_working, empty.oldest_input_required) == (None, None), "an empty store has an oldest task")
    start = bench.clock.now()
    tasks: list[TaskRecord] = []
    for number in range(6):
        tasks.append(await _make(store, "report" if number % 2 else "index"))
        bench.clock.advance(1)
    await store.update_task(tasks[0].task_id, status="input_required")
    await store.update_task(tasks[1].task_id, status="input_required")
    await store.update_task(tasks[1].task_id, status="working")
    await store.finish_task(tasks[2].task_id, OUTCOMES[0])
    await store.finish_task(tasks[3].task_id, OUTCOMES[1])
    await store.delete_task(tasks[5].task_id)
    counts = await store.count_tasks()
    wanted = {
        ("input_required", "index"): 1,
        ("working", "report"): 1,
        ("completed", "index"): 1,
        ("failed", "report"): 1,
        ("working", "index"): 1,
    }
    seen = {key: count for key, count in counts.by_status_and_name.items() if count}
    require(seen == wanted, f"count_tasks says {seen} and must say {wanted}")
    require(counts.oldest_working == start + timedelta(seconds=1), f"the oldest working is {counts.oldest_working}")
    require(counts.oldest_input_required == start, f"the oldest that asks is {counts.oldest_input_required}")
    for record in tasks:
        await store.delete_task(record.task_id)
    left = await store.count_tasks()
    require(not any(left.by_status_and_name.values()), "tasks that were deleted are counted")
    require((left.oldest_working, left.oldest_input_required) == (None, None), "a deleted task is the oldest")


# --- history ------------------------------------------------------------------------------------------


async def _events(store: TaskSearch, task_id: str) -> list[tuple[str, str | None]]:
    history = await store.get_history(task_id)
    require(isinstance(history, tuple), f"get_history returned a {type(history).__name__} and not a tuple")
    require(all(a.at <= b.at for a, b in pairwise(history)), "a history is not oldest first")
    return [(event.kind, event.text) for event in history]


@_check("L4", needs=["search"])
async def a_history_has_what_happened_to_a_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    start = bench.clock.now()
    for outcome in OUTCOMES:
        created = await _make(store)
        first = (await store.get_history(created.task_id))[0]
        require(
            (first.kind, first.at) == ("created", bench.clock.now()), f"the history of a new task begins with {first}"
        )
        bench.clock.advance(1)
        await store.update_task(created.task_id, status_message="grüß 🌍")
        await store.update_task(created.task_id, status="input_required")  # without a message: no event
        bench.clock.advance(1)
        await store.finish_task(created.task_id, outcome)
        late = store.update_task(created.task_id, status_message="late")
        await require_raises(InvalidTransitionError, late, "updating an ended task")
        events = (await _events(store, created.task_id))[1:]
        wanted = [("status", "grüß 🌍"), (outcome.status, outcome.status_message)]
        require(events == wanted, f"the history shows {events} and must show {wanted}")
        last = (await store.get_history(created.task_id))[-1]
        require(last.at == bench.clock.now(), "an event does not have the time at which it happened")
    require(bench.clock.now() > start, "the clock stands still")
    require(await store.get_history("unknown") == (), "an unknown task has a history")


@_check("L8", needs=["search"])
async def a_history_is_bounded(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    created = await _make(store)
    number = 2 * EVENTS_KEPT + 3
    for n in range(number):
        bench.clock.advance(1)
        await store.update_task(created.task_id, status_message=f"step {n}")
    events = await _events(store, created.task_id)
    require(events[0][0] == "created", "a long history does not begin with the task's creation")
    require(
        EVENTS_KEPT - 1 <= len(events) - 1 <= EVENTS_KEPT,
        f"a history keeps {len(events) - 1} events after `created`",
    )
    kept = [text for _, text in events[1:]]
    wanted = [f"step {n}" for n in range(number - len(kept), number)]
    require(kept == wanted, f"a history keeps {kept} and must keep the last events")
    for letter in "xü🌍":
        await store.update_task(created.task_id, status_message=letter * (EVENT_TEXT_LENGTH + 30))
        cut = (await _events(store, created.task_id))[-1][1]
        require(cut == letter * EVENT_TEXT_LENGTH, f"the text of an event has {len(cut or '')} characters")
    await store.finish_task(created.task_id, Outcome.failed("x" * 1_000))
    require(
        (await _events(store, created.task_id))[-1] == ("failed", "x" * EVENT_TEXT_LENGTH),
        "the last event of a long history is not its end",
    )


@_check("L12", needs=["search", "leases"])
async def a_history_says_which_worker_had_the_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch, TaskLeases)
    created = await leased_task(store, "")
    await store.claim_task(created.task_id, worker="one", lease_ms=10_000)
    await store.renew_leases("one", [created.task_id], lease_ms=10_000)
    await store.drop_leases("one", [created.task_id], lapse=True)
    await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    bench.clock.advance(10)
    await store.claim_task(created.task_id, worker="", lease_ms=10_000)
    refused = await store.claim_task(created.task_id, worker="", lease_ms=10_000)
    require(refused is None, "a task that waits for a worker was put back once more")
    events = (await _events(store, created.task_id))[1:]
    wanted = [("claimed", "one#1"), ("released", "one#1"), ("claimed", "two#2")]
    require(events[:3] == wanted, f"the history shows {events} and must begin with {wanted}")
    require([kind for kind, _ in events[3:]] == ["released"], f"after a task was put back its history is {events}")


@_check("L5", needs=["search", "questions"])
async def a_history_says_what_was_asked_and_answered(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch, TaskQuestions)
    created = await _make(store)
    task_id = created.task_id
    for key in ("a", "a", "b", "c"):
        await store.ask(task_id, question(key))
    await store.answer_all(task_id, {"b": Answer.withdrawn(), "unknown": Answer.withdrawn()})
    await store.answer_all(task_id, {"a": Answer.result({}), "c": Answer.error(1, "no")})
    events = (await _events(store, task_id))[1:]
    wanted = [("asked", "a"), ("asked", "b"), ("asked", "c"), ("withdrawn", "b"), ("answered", "a"), ("answered", "c")]
    require(events == wanted, f"the history shows {events} and must show {wanted}")
    keys = [f"key {n}" for n in range(2 * EVENTS_KEPT)]
    for key in keys:
        await store.ask(task_id, question(key))
    await store.answer_all(task_id, {key: Answer.result({}) for key in keys})
    events = (await _events(store, task_id))[1:]
    require({kind for kind, _ in events} == {"answered"}, "many answers at once are not the last events")
    require(len(events) <= EVENTS_KEPT, f"a history keeps {len(events)} events in addition to `created`")


@_check("L6", needs=["search"])
async def an_event_is_written_with_the_change(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "update_task": lambda task_id: store.update_task(task_id, status_message="on"),
        "finish_task": lambda task_id: store.finish_task(task_id, OUTCOMES[0]),
    }
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change) -> Trial:
            created = await _make(store)

            async def look() -> tuple[Any, ...]:
                return (await read_task(store, created.task_id)).revision, await _events(store, created.task_id)

            return Trial(partial(change, created.task_id), look, leftovers=lambda: bench.clock.waiting)

        try:
            await check_cancellation(setup, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {name}: {error}") from error


@_check("L8", "L7", needs=["search"])
async def a_history_goes_with_its_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    for how in ("is deleted", "expires"):
        await _make(store, task_id="again", ttl_ms=1_000)
        await store.update_task("again", status_message="old")
        if how == "is deleted":
            await store.delete_task("again")
        bench.clock.advance(1)
        require(await store.get_history("again") == (), f"a task that {how} has a history")
        await _make(store, task_id="again")
        kinds = [kind for kind, _ in await _events(store, "again")]
        require(kinds == ["created"], f"a new task has the history of one that {how}")
        await store.delete_task("again")

    async def live_and_die(number: int) -> None:
        one = await _make(store, f"tool {number}", owner=f"owner {number}", ttl_ms=1_000)
        for text in ("a", f"message {number}"):
            await store.update_task(one.task_id, status="input_required", status_message=text)
        await store.search_tasks(TaskFilter(id_prefix=one.task_id[:4]))
        await store.count_tasks()
        if number % 3 == 0:
            await store.finish_task(one.task_id, OUTCOMES[0])
        if number % 2:
            await store.delete_task(one.task_id)
        else:
            bench.clock.advance(1)
            await store.get_task(one.task_id)

    await bench.require_nothing_kept(live_and_die, "tasks that were searched for")


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L8", needs=["search"])
async def a_page_of_a_search_costs_what_is_on_it(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    filters = {
        "no filter": _ALL,
        "a status": TaskFilter(statuses=frozenset({"failed"})),
        "a tool": TaskFilter(names=frozenset({"rare"})),
        "an owner": TaskFilter(owners=frozenset({"rare"})),
        "a prefix": TaskFilter(id_prefix="rare-"),
        "errors": TaskFilter(errors_only=True),
        "a status and a tool": TaskFilter(statuses=frozenset({"failed"}), names=frozenset({"tool 1"})),
    }
    count = 0

    async def populate(number: int) -> None:
        nonlocal count
        for _ in range(number):
            count += 1
            await _make(store, f"tool {count % 3}", owner=f"owner {count % 5}")

    async def rare() -> None:
        nonlocal count
        for _ in range(5):
            count += 1
            one = await _make(store, "rare", owner="rare", task_id=f"rare-{count}")
            await store.finish_task(one.task_id, OUTCOMES[1])

    async def measure() -> dict[str, int]:
        work: dict[str, int] = {}
        for name, wanted in filters.items():
            for newest_first in (True, False):
                search = partial(store.search_tasks, wanted, newest_first=newest_first, limit=5)
                await search()  # what changed since the last look is put in order
                work[name] = max(work.get(name, 0), await count_work(search))
        work["count_tasks"] = await count_work(store.count_tasks)
        work["get_history"] = await count_work(partial(store.get_history, f"rare-{count}"))
        return work

    await populate(8)
    await rare()
    few = await measure()
    await populate(256)
    await rare()
    await populate(256)
    many = await measure()
    for name, work in many.items():
        require(
            work <= 3 * few[name] + 4_000,
            f"a search by {name} costs {work} steps among 500 tasks and {few[name]} among 16: it looks at all",
        )


# --- reopened, and shared -----------------------------------------------------------------------------


@_check("L12", needs=["search", "durable"])
async def a_reopened_store_finds_and_counts_every_task(bench: StoreBench) -> None:
    wanted = TaskFilter(names=frozenset({"tool"}))
    async with bench.open_again() as opened:
        first = able(opened, TaskSearch)
        ids = [(await _make(first)).task_id for _ in range(4)]
        await first.update_task(ids[0], status_message="so far")
        await first.finish_task(ids[1], OUTCOMES[0])
        cursor = (await first.search_tasks(wanted, limit=2)).next_cursor
        counts, history = await first.count_tasks(), await first.get_history(ids[0])
    async with bench.open_again() as opened:
        second = able(opened, TaskSearch)
        page = await second.search_tasks(wanted, cursor=cursor, limit=2)
        require([r.task_id for r in page.records] == ids[1::-1], "a search's cursor leads elsewhere after reopening")
        require(await second.count_tasks() == counts, "a store counts otherwise after reopening")
        require(await second.get_history(ids[0]) == history, "a history is another one after reopening")


@_check("L3", needs=["search", "shared"])
async def a_search_shows_what_another_process_made(bench: StoreBench) -> None:
    store = able(bench.subject, TaskSearch)
    async with bench.open_again() as opened:
        other = able(opened, TaskSearch)
        mine, theirs = await _make(store), await _make(other)
        await other.finish_task(mine.task_id, OUTCOMES[0])
        for side in (store, other):
            require(await _walk(side, _ALL) == [theirs.task_id, mine.task_id], "a process does not find all tasks")
            found = await _walk(side, TaskFilter(statuses=frozenset({"completed"})))
            require(found == [mine.task_id], "a process does not find a task by the status that another one set")
            seen = {key: n for key, n in (await side.count_tasks()).by_status_and_name.items() if n}
            require(seen == {("working", "tool"): 1, ("completed", "tool"): 1}, f"a process counts {seen}")
            kinds = [event.kind for event in await side.get_history(mine.task_id)]
            require(kinds == ["created", "completed"], f"a process sees the history {kinds}")
