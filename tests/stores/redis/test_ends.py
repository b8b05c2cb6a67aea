"""Ends of tasks, told to the store objects that made and claimed them, without a read (L3, L9)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anyio
import pytest

from mcp_task_runtime import StoreDispatcher, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.store import TaskEndWatching
from mcp_task_runtime.core.types import Outcome, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, StoreClosedError
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.stores.redis._ends import EndWatches
from tests.stores.redis.parts import DONE, eventually
from tests.stores.redis.test_work import make
from tests.stores.redis_server import RedisServer
from tests.support.patience import PATIENCE


def open_store(server: RedisServer, prefix: str) -> RedisTaskStore:
    return RedisTaskStore(server.url, prefix=prefix, timeout=PATIENCE)


async def until_listening(store: RedisTaskStore) -> None:
    """Wait until the ends of tasks are heard of: a task that is gone is told of by the first look."""
    seen: list[str] = []
    store.watch_end("unknown", partial(seen.append, "gone"))
    await eventually(lambda: bool(seen))


async def test_those_who_made_and_claimed_a_task_are_told_of_its_end(server: RedisServer, prefix: str) -> None:
    async with (
        open_store(server, prefix) as home,
        open_store(server, prefix) as worker,
        open_store(server, prefix) as third,
    ):
        assert isinstance(home, TaskEndWatching)
        await until_listening(home)
        await until_listening(worker)
        heard: list[str] = []
        for how in ("finished", "deleted", "by itself"):
            heard.clear()
            task = await make(home)
            stop = home.watch_end(task, partial(heard.append, "home"))
            assert await worker.claim_task(task, worker="w", lease_ms=60_000) is not None
            worker.watch_end(task, partial(heard.append, "worker"))
            await home.update_task(task, status_message="on")
            before = home.statistics().calls + worker.statistics().calls
            if how == "finished":
                await third.finish_task(task, DONE)
            elif how == "deleted":
                await third.delete_task(task)
            else:
                await worker.finish_task(task, DONE)
                assert "worker" in heard, "it is told at once"
            await eventually(lambda: len(heard) == 2)
            assert set(heard) == {"home", "worker"}
            assert home.statistics().calls + worker.statistics().calls == before + (how == "by itself"), "none reads"
            stop()
        assert home.statistics().waiters == worker.statistics().waiters == 0
        await third.finish_task(await make(home), DONE)
        assert len(heard) == 2


async def test_a_watch_is_over_when_it_is_stopped(server: RedisServer, prefix: str) -> None:
    async with open_store(server, prefix) as home, open_store(server, prefix) as other:
        await until_listening(home)
        heard: list[str] = []
        task = await make(home)
        stops = [home.watch_end(task, partial(heard.append, name)) for name in "abc"]
        stops[0]()
        stops[0]()
        await other.finish_task(task, DONE)
        await eventually(lambda: len(heard) == 2)
        assert heard == ["b", "c"]
        for stop in stops:
            stop()


async def test_an_end_that_is_told_before_the_watch_begins_is_not_missed(server: RedisServer, prefix: str) -> None:
    """L3: the worker may be faster than the reply to the creation."""
    async with open_store(server, prefix) as home, open_store(server, prefix) as other:
        await until_listening(home)
        heard: list[str] = []
        first, second = await make(home), await make(home)
        home.watch_end(second, partial(heard.append, "second"))
        await other.finish_task(first, DONE)
        await other.finish_task(second, DONE)  # on the same channel, behind the first
        await eventually(lambda: heard == ["second"])
        home.watch_end(first, partial(heard.append, "first"))
        assert heard == ["second", "first"]


async def test_ends_while_the_connection_was_lost_are_seen(server: RedisServer, prefix: str) -> None:
    """L3."""
    async with open_store(server, prefix) as home, open_store(server, prefix) as other:
        heard: list[str] = []
        tasks = [await make(home) for _ in range(3)]
        for task in tasks:
            home.watch_end(task, partial(heard.append, task))
        await other.finish_task(tasks[0], DONE)  # maybe before there is a subscription
        await eventually(lambda: heard == tasks[:1])
        server.cut_connections()
        await other.finish_task(tasks[1], DONE)
        await eventually(lambda: heard == tasks[:2])
        assert home.statistics().waiters == 1


async def test_a_refused_end_looks_for_the_end_that_was_made(server: RedisServer, prefix: str) -> None:
    async with open_store(server, prefix) as home:
        await until_listening(home)
        heard: list[str] = []
        task = await make(home)
        await home.finish_task(task, DONE)
        home.watch_end(task, partial(heard.append, "ended"))
        with pytest.raises(InvalidTransitionError):
            await home.finish_task(task, Outcome.cancelled())
        await home.delete_task(task)
        assert heard == ["ended"]


async def test_a_closed_store_tells_of_no_end(server: RedisServer, prefix: str) -> None:
    async with open_store(server, prefix) as store:
        await make(store)
    with pytest.raises(StoreClosedError):
        store.watch_end("any", lambda: None)


# --- the table of watches


def watches() -> tuple[EndWatches, list[bytes], Callable[[bytes], Callable[[], None]]]:
    ends, heard = EndWatches(b"channel"), list[bytes]()
    return ends, heard, lambda tag: ends.watch(tag, partial(heard.append, tag))


async def unsure(ends: EndWatches) -> set[bytes]:
    """Return which tasks must be looked at now."""
    with anyio.move_on_after(0):
        return set(await ends.unsure())
    return set()


async def test_a_subscription_that_begins_looks_at_all_tasks() -> None:
    ends, heard, watch = watches()
    for tag in (b"a", b"b"):
        watch(tag)
    watch(b"c")()
    assert await unsure(ends) == set(), "the subscription will look at all"
    ends.begin()
    assert await unsure(ends) == {b"a", b"b"}
    ends.ended(b"a")
    assert heard == [b"a"]
    ends.made(b"d", ends.mark)
    watch(b"d")
    assert await unsure(ends) == set(), "it is told of the end of what was made since"
    watch(b"e")
    assert await unsure(ends) == {b"e"}, "it was made elsewhere"
    ends.end()
    ends.begin()
    assert await unsure(ends) == {b"b", b"d", b"e"}


async def test_a_task_whose_end_is_in_doubt_is_looked_at_when_its_watch_begins() -> None:
    """L3: this object may have ended it, and is not told so."""
    ends, _, watch = watches()
    ends.begin()
    ends.made(b"a", ends.mark)
    ends.doubt([b"a"])
    assert await unsure(ends) == set()
    watch(b"a")
    assert await unsure(ends) == {b"a"}


# --- what it is for


async def test_a_dispatched_task_costs_its_server_one_round_trip_and_its_worker_few(
    server: RedisServer, prefix: str
) -> None:
    """L8, beside the look for the next task: nothing is read to see that it has ended, nor before it is claimed."""
    request = TaskRequest(name="tool", arguments_json="{}")
    async with open_store(server, prefix) as home, open_store(server, prefix) as working:
        await until_listening(home)
        await until_listening(working)
        settings = TaskSettings(lease_ms=3_600_000)  # no turn of the leases in between
        async with (
            TaskRuntime(home, settings=settings, dispatcher=StoreDispatcher()) as runtime,
            TaskRuntime(working, settings=settings, dispatcher=StoreDispatcher()) as worker,
        ):

            async def work(execution: object) -> Outcome:
                return Outcome.completed({})

            for each in (runtime, worker):
                each.register("tool", work, is_dispatched=True)
            async with anyio.create_task_group() as group:
                group.start_soon(partial(worker.work, concurrency=1))
                await eventually(lambda: working.statistics().waiters == 1 and not working.statistics().in_flight)
                before = home.statistics().calls, working.statistics().calls
                for _ in range(5):
                    await runtime.dispatch(TaskSpec(request=request))
                    await eventually(lambda: not runtime.statistics().live_tasks)
                assert home.statistics().calls - before[0] == 5
                await eventually(lambda: not worker.statistics().calls)
                # One that claims and one that ends; and it looks for more when it has room, which it may do next.
                assert working.statistics().calls - before[1] <= 3 * 5 + 1
                group.cancel_scope.cancel()
        assert home.statistics().waiters == working.statistics().waiters == 0
