"""What the store can do beyond keeping tasks: leases' fences, questions, steps, history, search."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from itertools import product
from types import FrameType
from typing import Any

import anyio
import pytest

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, Lease, NewTask, Outcome, TaskEvent, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError, InvalidTransitionError, LeaseLostError, TaskNotFoundError
from mcp_task_runtime.stores._cursor import encode_cursor, owner_scope
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE, QUESTION, YES, waiting
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


async def test_the_writes_of_a_run_that_lost_its_lease_are_refused(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=None, worker="a", lease_ms=1_000, task_id="T"))
        assert record.lease is not None
        old = record.lease.fence
        await store.update_task("T", status_message="mine", fence=old)
        clock.advance(1)
        claimed = await store.claim_task("T", worker="b", lease_ms=1_000)
        assert claimed is not None
        for fence in (old, Fence("b", 1), Fence("a", 2), Fence("", 2)):
            for operation in (
                partial(store.update_task, "T", status_message="late", fence=fence),
                partial(store.update_task, "T", status_message="late", fence=fence, if_revision=1),
                partial(store.finish_task, "T", DONE, fence=fence),
                partial(store.ask, "T", QUESTION, fence=fence),
                partial(store.record_step, "T", "s", "1", fence=fence),
            ):
                with pytest.raises(LeaseLostError):
                    await operation()
        assert await store.get_task("T") == claimed
        assert await store.read_steps("T") == {}
        await store.drop_leases("b", ["T"], lapse=False)
        with pytest.raises(LeaseLostError):
            await store.finish_task("T", DONE, fence=Fence("b", 2))
        assert (await store.finish_task("T", DONE)).outcome == DONE


async def test_a_lease_that_no_process_holds_is_claimed_at_any_time(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=None, worker="", lease_ms=1_000, task_id="T"))
        assert record.lease == Lease("", clock.now() + timedelta(seconds=1), 0)
        assert await store.list_lapsed() == ()
        assert await store.claim_task("T", worker="", lease_ms=1_000) is None
        claimed = await store.claim_task("T", worker="a", lease_ms=1_000)
        assert claimed is not None
        assert claimed.lease == Lease("a", clock.now() + timedelta(seconds=1), 1)
        assert await store.claim_task("T", worker="b", lease_ms=1_000) is None
        clock.advance(1)
        back = await store.claim_task("T", worker="", lease_ms=1_000)
        assert back is not None
        assert back.lease == Lease("", clock.now() + timedelta(seconds=1), 1)
        clock.advance(1)
        assert await store.list_lapsed() == (back,)
        events = [(event.kind, event.text) for event in await store.get_history("T")]
        assert events == [("created", None), ("claimed", "a#1"), ("released", "#1")]


async def test_a_question_and_its_answer_are_one_revision_each(server: RedisServer, prefix: str) -> None:
    """L5: and their end deletes the mailbox in its own write, which releases the asker."""
    async with RedisTaskStore(server.url, prefix=prefix) as store, RedisTaskStore(server.url, prefix=prefix) as other:
        queue = store.message_queue
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        more = [QueuedMessage.request(f"k{number}", "ping", {"n": number}) for number in range(30)]
        async with waiting(
            partial(queue.wait_for_answer, task_id, "k"), partial(queue.wait_for_answer, task_id, "k29")
        ) as (first, last):
            asked = await store.ask(task_id, QUESTION)
            assert asked is not None
            assert (asked.revision, asked.status) == (2, "input_required")
            for question in more:
                await store.ask(task_id, question)
            view = await other.get_view(task_id)
            assert view is not None
            assert view.questions == (QUESTION, *more)
            answers = {"k": YES, "k3": YES, "unknown": YES, "k7": Answer.withdrawn()}
            assert await other.answer_all(task_id, answers) == {"k", "k3", "k7"}
            assert await other.answer_all(task_id, answers) == frozenset()
            with anyio.fail_after(PATIENCE):
                assert await first.wait() == YES
            view = await store.get_view(task_id)
            assert view is not None
            assert (view.record.revision, view.record.status) == (33, "input_required")
            assert view.questions == tuple(question for question in more if question.key not in ("k3", "k7"))
            await other.finish_task(task_id, DONE)
            with anyio.fail_after(PATIENCE), pytest.raises(TaskNotFoundError):
                await last.wait()
        assert sorted(key.rpartition(":")[2] for key in server.keys(f"{prefix}:{{{task_id}")) == ["events", "task"]
        with pytest.raises(InvalidTransitionError):
            await store.ask(task_id, QUESTION)
        assert await store.answer_all(task_id, {"k29": YES}) == frozenset()


async def test_of_many_that_answer_one_question_one_is_taken(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store, RedisTaskStore(server.url, prefix=prefix) as other:
        task_id = (await store.create_task(NewTask(ttl_ms=None))).task_id
        await store.ask(task_id, QUESTION)
        taken: list[int] = []

        async def answer(number: int) -> None:
            answers = {"k": Answer.result({"n": number})}
            if await (store, other)[number % 2].answer_all(task_id, answers):
                taken.append(number)

        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(answer, number)
        (winner,) = taken
        assert await store.message_queue.wait_for_answer(task_id, "k") == Answer.result({"n": winner})
        record = await store.get_task(task_id)
        assert record is not None
        assert (record.revision, record.status) == (3, "working")


async def test_steps_are_recorded_once_and_quietly(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=60_000, worker="a", task_id="T"))
        assert record.lease is not None
        fence = record.lease.fence
        for number in range(150):
            assert await store.record_step("T", f"s{number}", f"{number}", fence=fence) == f"{number}"
        assert await store.record_step("T", "s7", "0", fence=fence) == "7"
        assert list((await store.read_steps("T")).items()) == [(f"s{number}", f"{number}") for number in range(150)]
        assert await store.get_task("T") == record
        assert server.client.pttl(f"{prefix}:{{T}}:steps") > 0
        clock.advance(60)
        assert await store.read_steps("T") == {}
        with pytest.raises(TaskNotFoundError):
            await store.record_step("T", "s", "1", fence=fence)


async def test_the_history_keeps_the_last_events(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        created = await store.create_task(NewTask(ttl_ms=60_000, worker="a", task_id="T"))
        for number in range(30):
            clock.advance(1)
            await store.update_task("T", status_message=f"{number:03}" + "é" * 200)
        await store.drop_leases("a", ["T"], lapse=True)
        history = await store.get_history("T")
        assert history[0] == TaskEvent(created.task.created_at, "created", None)
        assert [event.text for event in history[1:-1]] == [f"{number:03}" + "é" * 117 for number in range(11, 30)]
        assert history[-1] == TaskEvent(clock.now(), "released", "a#1")
        assert server.client.pttl(f"{prefix}:{{T}}:events") > 0
        assert await store.get_history("unknown") == ()


async def test_a_longer_ttl_keeps_the_task_and_its_entries(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        record = await store.create_task(NewTask(ttl_ms=1_000, owner="ada", worker="w", lease_ms=500))
        await store.ask(record.task_id, QUESTION)
        longer = await store.update_task(record.task_id, ttl_ms=3_600_000)
        assert longer.task.ttl_ms == 3_600_000
        for key in server.keys(prefix):
            # Redis keeps what an injected clock decides on an hour longer.
            assert 2 * 3_500_000 < server.client.pttl(key) <= 2 * 3_700_000, key
        for _ in range(3):
            await store.create_task(NewTask(ttl_ms=1_000, owner="ada"))
        clock.advance(2.2)
        await store.create_task(NewTask(ttl_ms=1_000, owner="ada"))
        assert record.task_id in [found.task_id for found in (await store.list_tasks(owner="ada")).records]
        found = await store.search_tasks(TaskFilter(statuses=frozenset(["input_required"])))
        assert [task.task_id for task in found.records] == [record.task_id]
        assert [task.task_id for task in await store.list_lapsed()] == [record.task_id]
        view = await store.get_view(record.task_id)
        assert view is not None
        assert view.questions == (QUESTION,)


FILTERS = [
    TaskFilter(),
    TaskFilter(statuses=frozenset(["working"])),
    TaskFilter(statuses=frozenset(["completed", "failed"]), names=frozenset(["a", "b c"])),
    TaskFilter(names=frozenset(["b c", "none"])),
    TaskFilter(owners=frozenset(["ada", None])),
    TaskFilter(owners=frozenset(["eve"]), statuses=frozenset(["working"])),
    TaskFilter(id_prefix="T1"),
    TaskFilter(id_prefix="é"),
    TaskFilter(id_prefix="T", names=frozenset(["a"])),
    TaskFilter(text="HALF"),
    TaskFilter(statuses=frozenset()),
]


@pytest.mark.parametrize("newest_first", [True, False])
async def test_searching_finds_what_matches_in_order(
    server: RedisServer, prefix: str, clock: FakeClock, newest_first: bool
) -> None:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        made: list[str] = []
        for number in range(60):
            task_id = f"T{number}" if number % 5 else f"é{number}"
            request = TaskRequest(name=("a", "b c", "")[number % 3])
            owner = ("ada", "eve", None)[number % 4 % 3]
            await store.create_task(NewTask(ttl_ms=60_000, task_id=task_id, owner=owner, request=request))
            if number % 7 == 0:
                await store.finish_task(task_id, DONE if number % 2 else Outcome.failed("half way"))
            made.append(task_id)
            if number % 10 == 9:
                clock.advance(1)
        records = [await store.get_task(task_id) for task_id in made]
        middle = clock.now() - timedelta(seconds=4)
        between = TaskFilter(created_after=middle, created_before=middle + timedelta(seconds=2))
        for wanted in (*FILTERS, between):
            expected = [
                record
                for record in (records[::-1] if newest_first else records)
                if record is not None
                and (wanted.statuses is None or record.status in wanted.statuses)
                and (wanted.names is None or record.request.name in wanted.names)
                and (wanted.owners is None or record.owner in wanted.owners)
                and record.task_id.startswith(wanted.id_prefix or "")
                and (wanted.text or "").lower() in (record.task.status_message or "").lower()
                and (wanted.created_after is None or record.task.created_at >= wanted.created_after)
                and (wanted.created_before is None or record.task.created_at < wanted.created_before)
            ]
            found: list[TaskRecord] = []
            cursor: str | None = None
            while True:
                page = await store.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=4)
                found += page.records
                cursor = page.next_cursor
                if cursor is None:
                    break
                with pytest.raises(InvalidCursorError):
                    await store.search_tasks(wanted, newest_first=not newest_first, cursor=cursor)
                with pytest.raises(InvalidCursorError):
                    await store.search_tasks(wanted, newest_first=newest_first, cursor=cursor[:-4])
            assert [record.task_id for record in found] == [record.task_id for record in expected], wanted
        counts = await store.count_tasks()
        assert sum(counts.by_status_and_name.values()) == 60
        assert counts.by_status_and_name["failed", "a"] == 2
        assert records[1] is not None
        assert counts.oldest_working == records[1].task.created_at
        clock.advance(60)
        assert (await store.search_tasks(TaskFilter())).records == ()


async def test_a_page_of_a_search_costs_the_server_the_same_with_many_tasks(
    server: RedisServer, prefix: str, clock: FakeClock
) -> None:
    """L8: by status, tool, owner and prefix of the identifier."""
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix, timeout=PATIENCE) as store:
        wanted = [
            TaskFilter(),
            TaskFilter(statuses=frozenset(["failed"])),
            TaskFilter(names=frozenset(["rare"])),
            TaskFilter(owners=frozenset(["eve"])),
            TaskFilter(id_prefix="rare"),
        ]
        for number in range(5):
            new = NewTask(ttl_ms=None, owner="eve", task_id=f"rare{number}", request=TaskRequest(name="rare"))
            await store.finish_task((await store.create_task(new)).task_id, Outcome.failed("no"))
        costs = []
        for count in (60, 2_000):
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(store.create_task, NewTask(ttl_ms=60_000, owner="ada"))
            server.client.config_resetstat()
            for some in wanted:
                assert len((await store.search_tasks(some, limit=5)).records) == 5
            await store.count_tasks()
            stats: dict[str, Any] = server.client.info("commandstats")
            costs.append(sum(entry["calls"] for entry in stats.values()))
        assert costs[1] <= costs[0] + 50  # of two thousand more


async def test_an_unknown_task_costs_what_a_foreign_one_does(server: RedisServer, prefix: str) -> None:
    """L10: in commands of the server, and in the calls of Python functions."""

    async with RedisTaskStore(server.url, prefix=prefix) as store:
        await store.create_task(NewTask(ttl_ms=None, task_id="foreign", owner="eve", worker="w"))
        commands: dict[str, int] = {}
        calls: dict[str, int] = {}

        async def measure(read: Callable[[str], Awaitable[Any]], task_id: str) -> tuple[int, int]:
            server.client.config_resetstat()
            counted = 0

            def count(frame: FrameType, event: str, argument: Any) -> None:
                nonlocal counted
                counted += event == "call"

            sys.setprofile(count)
            try:
                await read(task_id)
            finally:
                sys.setprofile(None)
            stats: dict[str, Any] = server.client.info("commandstats")
            return sum(entry["calls"] for entry in stats.values()), counted

        async def measure_all() -> bool:
            """Take the least of all measurements: what else runs meanwhile only adds. Return whether they agree."""
            for read, task_id in product((store.get_task, store.get_view), ("foreign", "unknown")):
                name = f"{read.__name__} of the {task_id} one"
                measured = await measure(read, task_id)
                least = zip(measured, (commands.get(name, 1_000_000), calls.get(name, 1_000_000)), strict=True)
                commands[name], calls[name] = map(min, least)
            same_commands = max(commands.values()) - min(commands.values()) <= 1
            return same_commands and max(calls.values()) <= 1.2 * min(calls.values())

        for number in range(200):
            if await measure_all() and number > 10:
                return
    raise AssertionError(f"they differ, however often they are measured: {commands}, {calls}")


async def test_a_forged_cursor_of_any_size_is_refused(server: RedisServer, prefix: str) -> None:
    async with RedisTaskStore(server.url, prefix=prefix) as store:
        for place in (b"", b"x", b"%d" % 10**400, b"9" * 5_000):
            with pytest.raises(InvalidCursorError):
                await store.list_tasks(owner="ada", cursor=encode_cursor(place, owner_scope("ada")))


async def test_a_cursor_shows_nothing_of_other_owners(server: RedisServer, prefix: str, clock: FakeClock) -> None:
    """L10: it is the same however many tasks others have made."""
    cursors = []
    for number, others in enumerate((0, 50)):
        async with RedisTaskStore(server.url, clock=clock, prefix=f"{prefix}{number}") as store:
            for task in range(3):
                for _ in range(others):
                    await store.create_task(NewTask(ttl_ms=None, owner="eve"))
                await store.create_task(NewTask(ttl_ms=None, owner="ada", task_id=f"T{task}"))
            cursors.append((await store.list_tasks(owner="ada", limit=2)).next_cursor)
    assert cursors[0] is not None
    assert cursors[0] == cursors[1]
