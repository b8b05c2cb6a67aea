"""`TaskFollowers`: one wait for each followed task, any number of readers, and no reader hurts another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core import store_calls
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import InvalidTransitionError, StoreClosedError
from tests.core.worlds import ask
from tests.support.event_loops import in_virtual_time
from tests.support.patience import PATIENCE

NEW = NewTask(ttl_ms=None)


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_calls, "_PAUSE", Backoff(first=0.001, longest=0.002))


class CountingStore(InMemoryTaskStore):
    """A store that counts its waits, and whose next waits raise what they are given. It calls nothing back."""

    watch_task = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0
        self.errors: list[BaseException] = []
        self.now_waiting = 0

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        self.waits += 1
        self.now_waiting += 1
        try:
            await anyio.lowlevel.checkpoint()
            if self.errors:
                raise self.errors.pop(0)
            return await super().wait_for_update(task_id, after=after)
        finally:
            self.now_waiting -= 1


class DeafStore(CountingStore):
    """A store whose waits do not end."""

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        self.now_waiting += 1
        try:
            await anyio.sleep_forever()
        finally:
            self.now_waiting -= 1
        raise AssertionError


class World:
    """Followers over a store that counts."""

    def __init__(self, store: CountingStore | None = None) -> None:
        self.store = store or CountingStore()
        self.group = IsolatedGroup()
        self.views = 0
        self.outages = 0
        reader = TaskReader(self.store, self.store.message_queue, is_own_queue=False)

        async def view(record: TaskRecord) -> Any:
            self.views += 1
            await anyio.lowlevel.checkpoint()
            if self.outages:
                self.outages -= 1
                raise StoreUnavailableError("gone")
            return await reader.view(record)

        self.followers = TaskFollowers(self.store, self.group, view)

    async def read(self, task_id: str, got: list[Any], after: int = 1) -> None:
        try:
            with self.followers.follow(task_id, after=after) as follower:
                record = await follower.changed()
                got.append(record)
                while not is_terminal(record.status):
                    record = await follower.changed()
                    got.append(record)
        except (StoreError, TaskNotFoundError) as error:
            got.append(type(error))

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await anyio.lowlevel.checkpoint()


async def still() -> None:
    for _ in range(40):
        await anyio.lowlevel.checkpoint()


async def test_an_end_that_this_process_made_ends_the_wait_in_the_store_too() -> None:
    """L8: readers may stay, and the store may be slow to say it."""
    world = World(DeafStore())
    record = await world.store.create_task(NEW)
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id, after=1) as follower:
                await world.until(lambda: world.store.now_waiting == 1)
                world.followers.feed(await world.store.finish_task(record.task_id, Outcome.cancelled()))
                assert (await follower.changed()).status == "cancelled"
                await world.until(lambda: world.store.now_waiting == 0)


async def test_two_thousand_readers_of_one_task_cost_one_wait_and_let_others_run_while_they_wake() -> None:
    """L8, L13."""
    world = World()
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    turns: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            for _ in range(2000):
                readers.start_soon(world.read, record.task_id, got)
            await anyio.wait_all_tasks_blocked()
            assert (len(world.followers), world.followers.readers) == (1, 2000)
            assert (world.store.waits, world.store.now_waiting) == (1, 1)
            await world.store.finish_task(record.task_id, Outcome.cancelled())
            while len(got) < 2000:
                turns.append(len(got))
                await anyio.lowlevel.checkpoint()
    assert world.store.waits == 1
    assert {each.status for each in got} == {"cancelled"}
    assert len(turns) > 2000 / 64, "another task of the event loop had its turns"
    assert (len(world.followers), world.followers.readers) == (0, 0)


async def test_a_change_of_this_process_reaches_readers_without_a_read() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            readers.start_soon(world.read, record.task_id, got)
            readers.start_soon(world.read, record.task_id, got)
            await anyio.wait_all_tasks_blocked()
            ended = await InMemoryTaskStore.finish_task(world.store, record.task_id, Outcome.cancelled())
            world.followers.feed(ended)
            world.followers.feed(record)  # an old one is no news
    assert got == [ended, ended]
    assert world.store.waits == 1


async def test_a_slow_reader_sees_the_last_state_and_never_an_older_one() -> None:
    """L3."""
    world = World()
    record = await world.store.create_task(NEW)
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id, after=1) as slow:
                for number in range(10):
                    await world.store.update_task(record.task_id, status_message=str(number))
                    await still()
                seen = await slow.changed()
                assert (seen.revision, seen.task.status_message) == (11, "9")
                with world.followers.follow(record.task_id) as late:
                    assert await late.changed() == seen, "a reader that begins later sees the task as it is"


async def test_a_reader_that_knows_less_than_the_first_one_is_told_at_once() -> None:
    """L3: what is known by its revision alone is read."""
    world = World()
    record = await world.store.create_task(NEW)
    await world.store.update_task(record.task_id, status_message="x")
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id, after=2), world.followers.follow(record.task_id, after=1) as b:
                assert (await b.changed()).revision == 2


async def test_an_ended_task_is_no_longer_waited_for_but_can_be_followed() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    ended = await world.store.finish_task(record.task_id, Outcome.cancelled())
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id) as follower:
                assert await follower.changed() == ended
                await still()
                assert world.store.now_waiting == 0


@pytest.mark.parametrize("how", ["deleted", "unknown"])
async def test_readers_of_a_task_that_is_gone_are_told_so(how: str) -> None:
    world = World()
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    changes: list[TaskRecord | None] = []
    task_id = record.task_id if how == "deleted" else "unknown"
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            stop = world.followers.watch(task_id, changes.append, after=1)
            for _ in range(3):
                readers.start_soon(world.read, task_id, got)
            await still()
            await world.store.delete_task(record.task_id)
            await still()
            world.followers.watch(task_id, changes.append, after=1)()
            stop()
    assert got == [TaskNotFoundError] * 3
    assert changes == [None, None]
    assert world.store.waits == 1


async def test_an_outage_is_waited_out_and_changes_meanwhile_are_seen() -> None:
    """L3, L12."""
    world = World()
    world.store.errors = [StoreUnavailableError("away") for _ in range(5)]
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            readers.start_soon(world.read, record.task_id, got)
            await world.store.finish_task(record.task_id, Outcome.cancelled())
    assert [each.status for each in got] == ["cancelled"]
    assert world.store.errors == []


@pytest.mark.parametrize("error", [ConnectionResetError("secret"), StoreError("damaged"), ValueError("secret")])
async def test_what_a_store_raises_reaches_its_readers_and_nobody_else(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """L13."""
    world = World()
    one, two = await world.store.create_task(NEW), await world.store.create_task(NEW)
    got: list[Any] = []
    other: list[Any] = []
    changes: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            readers.start_soon(world.read, two.task_id, other)
            await still()
            world.store.errors = [error] * 3
            stop = world.followers.watch(one.task_id, changes.append, after=1)
            with pytest.raises(StoreError, match=r"damaged|Internal error") as caught:
                with world.followers.follow(one.task_id, after=1) as follower:
                    await follower.changed()
            assert "secret" not in str(caught.value)
            readers.start_soon(world.read, one.task_id, got)
            await world.until(lambda: not world.store.errors)
            await world.store.finish_task(one.task_id, Outcome.cancelled())
            await world.store.finish_task(two.task_id, Outcome.cancelled())
            while not (other and changes):
                await anyio.lowlevel.checkpoint()
            stop()
    assert [each.status for each in other] == ["cancelled"]
    assert [each.status for each in changes] == ["cancelled"], "a callback outlives the failures"
    assert len([each for each in caplog.records if each.levelname == "ERROR"]) == 1, "one line for a row of failures"


@in_virtual_time
async def test_a_reader_that_goes_on_hears_of_every_failure(caplog: pytest.LogCaptureFixture) -> None:
    """L13: one that waits again after an error does not wait for a store that only fails."""

    class Faulty(CountingStore):
        async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
            await anyio.lowlevel.checkpoint()
            raise LookupError("secret")

    world = World(Faulty())
    record = await world.store.create_task(NEW)
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id, after=1) as follower:
                for _ in range(3):
                    with pytest.raises(StoreError, match="Internal error") as caught:
                        await follower.changed()
                    assert isinstance(caught.value.__cause__, LookupError)
    assert len([each for each in caplog.records if each.levelname == "ERROR"]) == 1, "one line for a row of failures"


async def test_a_wait_that_other_code_cancelled_is_tried_again() -> None:
    """L13."""
    if anyio.get_cancelled_exc_class().__module__.startswith("trio"):
        pytest.skip("trio's Cancelled cannot be raised by hand")
    world = World()
    world.store.errors = [anyio.get_cancelled_exc_class()()]
    record = await world.store.create_task(NEW)
    changes: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = world.followers.watch(record.task_id, changes.append, after=1)
            await still()
            await world.store.finish_task(record.task_id, Outcome.cancelled())
            await world.until(lambda: bool(changes))
            stop()


@in_virtual_time
async def test_a_store_that_returns_what_is_not_newer_keeps_nobody_busy(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(CountingStore):
        async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
            self.waits += 1
            record = await self.get_task(task_id)
            assert record is not None
            return record

    world = World()
    world.store.__class__ = Faulty
    record = await world.store.create_task(NEW)
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = world.followers.watch(record.task_id, lambda record: None, after=1)
            await anyio.sleep(0.02)
            stop()
    assert 1 < world.store.waits < 40
    assert "not newer" in caplog.text


async def test_a_callback_that_raises_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    """L13."""
    world = World()
    record = await world.store.create_task(NEW)
    seen: list[int] = []
    heard: list[int] = []

    def broken(record: TaskRecord | None) -> None:
        seen.append(0 if record is None else record.revision)
        raise LookupError

    with anyio.fail_after(PATIENCE), caplog.at_level(logging.ERROR):
        async with world.group:
            stops = [
                world.followers.watch(record.task_id, broken, after=1),
                world.followers.watch(record.task_id, lambda each: heard.append(each.revision if each else 0), after=1),
            ]
            for number in range(2):
                await world.store.update_task(record.task_id, status_message=str(number))
                await still()
            for stop in stops:
                stop()
                stop()  # twice is once
    assert seen == heard == [2, 3]
    assert "callback" in caplog.text
    assert len(world.followers) == 0


@pytest.mark.parametrize("victim", range(3))
async def test_a_reader_that_is_cancelled_leaves_the_others_waiting(victim: int) -> None:
    """L6."""
    world = World()
    record = await world.store.create_task(NEW)
    scopes = [anyio.CancelScope() for _ in range(3)]
    got: list[Any] = []

    async def read(scope: anyio.CancelScope) -> None:
        with scope:
            await world.read(record.task_id, got)

    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            for scope in scopes:
                readers.start_soon(read, scope)
            await still()
            scopes[victim].cancel()
            await still()
            assert world.followers.readers == 2
            await world.store.finish_task(record.task_id, Outcome.cancelled())
    assert [each.status for each in got] == ["cancelled"] * 2


async def test_readers_go_on_when_the_group_closes_and_before_it_opens() -> None:
    """L3: then each waits in the store itself."""
    world = World()
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as readers:
            async with world.group:
                readers.start_soon(world.read, record.task_id, got)
                await still()
                world.followers.reset()
            readers.start_soon(world.read, record.task_id, got)
            await still()
            await world.store.finish_task(record.task_id, Outcome.cancelled())
    assert [each.status for each in got] == ["cancelled"] * 2
    assert len(world.followers) == 0


async def test_a_closed_store_says_so_to_readers() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            readers.start_soon(world.read, record.task_id, got)
            await still()
            await world.store.aclose()
    assert got == [StoreClosedError]


async def test_a_view_waits_for_the_end_of_an_outage() -> None:
    """L12."""
    world = World()
    record = await world.store.create_task(NEW)
    await world.store.ask(record.task_id, QueuedMessage.request("k", "elicitation/create", {}))
    world.outages = 3
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with world.followers.follow(record.task_id) as follower:
                await follower.changed()
                assert len((await follower.view()).questions) == 1
    assert (world.outages, world.views) == (0, 4)


async def test_the_questions_of_a_revision_are_read_once_for_all_readers() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    counts: list[int] = []

    async def read() -> None:
        with world.followers.follow(record.task_id) as follower:
            while (await follower.changed()).status != "input_required":
                assert (await follower.view()).questions == ()
            counts.append(len((await follower.view()).questions))

    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            for _ in range(50):
                readers.start_soon(read)
            await still()
            assert world.views == 0, "a working task has no questions to read"
            readers.start_soon(partial(ask, world.store, world.store.message_queue, record.task_id))
            while len(counts) < 50:
                await anyio.lowlevel.checkpoint()
            readers.cancel_scope.cancel()
    assert counts == [1] * 50
    assert world.views == 1


async def test_a_reader_that_is_called_at_news_reads_them_without_a_wait() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    calls: list[int] = []

    async def put_question() -> None:
        with suppress(InvalidTransitionError):  # the task ends
            await ask(world.store, world.store.message_queue, record.task_id)

    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as group:
            with world.followers.follow(record.task_id, after=record.revision) as follower:
                await world.until(lambda: world.store.now_waiting == 1)
                follower.call_at_news(lambda: calls.append(1))
                assert (calls, await follower.news()) == ([], None)
                group.start_soon(put_question)
                await world.until(lambda: bool(calls))
                assert follower.has_to_read, "the questions"
                view = await follower.news()
                assert view is not None
                assert (len(view.questions), follower.revision) == (1, view.record.revision)
                assert (await follower.news(), follower.has_to_read) == (None, False)
                calls.clear()
                world.followers.feed(await world.store.finish_task(record.task_id, Outcome.cancelled()))
                assert calls
                assert not follower.has_to_read
                view = await follower.news()
                assert view is not None
                assert view.record.status == "cancelled"
            calls.clear()
    assert calls == []
    assert (world.views, len(world.followers)) == (1, 0)


async def test_a_reader_that_comes_late_is_called_at_once_and_reads_what_it_missed() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    newer = await world.store.update_task(record.task_id, status_message="newer")
    calls: list[int] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with (
                world.followers.follow(record.task_id, after=newer.revision),
                world.followers.follow(record.task_id, after=record.revision) as late,
            ):
                late.call_at_news(lambda: calls.append(1))
                assert calls == [1]
                assert late.has_to_read, "the other reader knew the task"
                view = await late.news()
                assert view is not None
                assert view.record == newer


async def test_a_reader_that_is_called_at_news_hears_that_its_task_is_gone_and_that_there_will_be_no_more() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    other = await world.store.create_task(NEW)
    calls: list[str] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            with (
                world.followers.follow(record.task_id, after=1) as deleted,
                world.followers.follow(other.task_id, after=1) as left,
            ):
                await world.until(lambda: world.store.now_waiting == 2)
                deleted.call_at_news(lambda: calls.append("deleted"))
                left.call_at_news(lambda: calls.append("left"))
                await world.store.delete_task(record.task_id)
                await world.until(lambda: "deleted" in calls)
                with pytest.raises(TaskNotFoundError):
                    await deleted.news()
                assert "left" not in calls
                world.followers.reset()
                assert "left" in calls
                with pytest.raises(StoreClosedError):
                    await left.news()


async def test_the_end_that_a_runtime_writes_reaches_its_readers_without_the_store() -> None:
    class Silent(InMemoryTaskStore):
        async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
            await anyio.sleep_forever()
            raise AssertionError

    async def work(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
        await anyio.sleep_forever()
        raise AssertionError

    got: list[Outcome] = []
    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(Silent(), settings=TaskSettings(shutdown_grace=0)) as runtime:
            record = await runtime.submit(TaskSpec(), work)

            async def read() -> None:
                got.append(await runtime.result(record.task_id, owner=None))

            async with anyio.create_task_group() as readers:
                readers.start_soon(read)
                await anyio.wait_all_tasks_blocked()
                assert (runtime.statistics().followed, runtime.statistics().readers) == (1, 1)
                await runtime.cancel(record.task_id, owner=None)
    assert got == [Outcome.cancelled()]


class CallingStore(CountingStore):
    """A store that calls back, counts its reads, and whose next reads raise what they are given."""

    watch_task = InMemoryTaskStore.watch_task  # type: ignore[assignment]
    says_what = True
    reads = 0

    def watch(self, followers: TaskFollowers, task_id: str, got: list[Any]) -> Callable[[], None]:
        return followers.watch(task_id, got.append, after=1)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        self.reads += 1
        await anyio.lowlevel.checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        return await super().get_task(task_id)


class TerseStore(CallingStore):
    """One that says only that something may have changed."""

    def watch_task(  # type: ignore[override]
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Any:
        def say_nothing(record: TaskRecord | None) -> None:
            on_change(None)

        unwatch = InMemoryTaskStore.watch_task(self, task_id, say_nothing, after=after)
        on_change(None)
        return unwatch


def calling_world(kind: type[CallingStore]) -> tuple[World, CallingStore]:
    world = World()
    store = kind()
    world.store = store
    world.followers = TaskFollowers(store, world.group, TaskReader(store, store.message_queue, is_own_queue=True).view)
    return world, store


@pytest.mark.parametrize("kind", [CallingStore, TerseStore])
async def test_a_store_that_calls_back_is_not_waited_in(kind: type[CallingStore]) -> None:
    world, store = calling_world(kind)
    one, other = await store.create_task(NEW), await store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = store.watch(world.followers, one.task_id, got)
            stop_other = store.watch(world.followers, other.task_id, got)
            await still()
            updated = await store.update_task(one.task_id, status_message="on")
            await world.until(lambda: got == [updated])
            stop_other()
            await store.finish_task(other.task_id, Outcome.cancelled())
            ended = await store.finish_task(one.task_id, Outcome.cancelled())
            await world.until(lambda: len(got) == 2)
            await still()
            assert got == [updated, ended]
            stop()
    assert store.waits == 0
    assert len(world.followers) == 0


@pytest.mark.parametrize("kind", [CallingStore, TerseStore])
async def test_a_watched_task_that_is_deleted_is_gone(kind: type[CallingStore]) -> None:
    world, store = calling_world(kind)
    record = await store.create_task(NEW)
    got: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = store.watch(world.followers, record.task_id, got)
            await store.delete_task(record.task_id)
            await world.until(lambda: got == [None])
            stop()
            store.watch(world.followers, "unknown", got)
            await world.until(lambda: got == [None, None])


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), LookupError("faulty")])
async def test_what_a_store_raises_while_a_watched_task_is_read_is_waited_out(error: Exception) -> None:
    """L3: no change is lost."""
    world, store = calling_world(TerseStore)
    record = await store.create_task(NEW)
    got: list[Any] = []
    store.errors = [error, error]
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = store.watch(world.followers, record.task_id, got)
            ended = await store.finish_task(record.task_id, Outcome.cancelled())
            await world.until(lambda: got == [ended])
            stop()
    assert store.reads == 3


async def test_a_reader_of_a_watched_task_waits_and_the_callback_is_called_once_a_change() -> None:
    world, store = calling_world(CallingStore)
    record = await store.create_task(NEW)
    got: list[Any] = []
    read: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group, anyio.create_task_group() as readers:
            stop = store.watch(world.followers, record.task_id, got)
            with anyio.CancelScope() as reading:
                readers.start_soon(world.read, record.task_id, read)
                await still()
                first = await store.update_task(record.task_id, status_message="one")
                await world.until(lambda: got == read == [first])
                reading.cancel()
            await still()
            ended = await store.finish_task(record.task_id, Outcome.cancelled())
            await world.until(lambda: got == read == [first, ended])
            stop()


async def test_a_closed_store_is_not_watched() -> None:
    world, store = calling_world(CallingStore)
    record = await store.create_task(NEW)
    got: list[Any] = []
    async with world.group:
        await store.aclose()
        store.watch(world.followers, record.task_id, got)()
    assert got == []


async def test_a_callback_that_was_taken_back_hears_nothing_though_others_follow() -> None:
    world = World()
    record = await world.store.create_task(NEW)
    mine: list[Any] = []
    theirs: list[Any] = []
    with anyio.fail_after(PATIENCE):
        async with world.group:
            stop = world.followers.watch(record.task_id, mine.append, after=record.revision)
            stop_theirs = world.followers.watch(record.task_id, theirs.append, after=record.revision)
            await anyio.wait_all_tasks_blocked()
            stop()
            stop()
            await world.store.update_task(record.task_id, status_message="x")
            while not theirs:
                await anyio.lowlevel.checkpoint()
            assert mine == []
            stop_theirs()
