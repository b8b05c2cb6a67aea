"""The streams of one session, without a server: who shares one, what is replaced, and when one ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, METHOD_NOT_FOUND
from typing_extensions import Self

from mcp_task_runtime.adapters.mcp_v2_client import _listening
from mcp_task_runtime.adapters.mcp_v2_client._listening import ListenHub
from mcp_task_runtime.adapters.task_client.polling import PollSettings, Watch
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
NOON = datetime(2026, 7, 28, 12, tzinfo=timezone.utc)


def state(task_id: str, status: Any = "working", after: float = 0, poll_ms: int = HOUR_MS) -> TaskSnapshot:
    return TaskSnapshot(task_id, status, None, NOON, NOON + timedelta(seconds=after), None, poll_ms)


class World:
    """A hub whose streams last until the test ends them.

    Attributes:
        opened: The tasks of each stream that was opened.
        opened_at: When each of them was opened.
        open: Those of the streams that are open, by number.
    """

    def __init__(
        self, poll_ms: int = HOUR_MS, settings: PollSettings | None = None, looks_show: Any = "working", **options: Any
    ) -> None:
        self.poll_ms = poll_ms
        self.looks_show = looks_show
        self.settings = settings or PollSettings()
        self.opened: list[list[str]] = []
        self.opened_at: list[float] = []
        self.open: dict[int, list[str]] = {}
        self.error: Exception | None = None
        self.watches: list[Watch] = []
        self._ends: dict[int, anyio.Event] = {}
        self.hub = ListenHub(self._listen, **{"max_streams": 2, **options})

    async def _listen(self, task_ids: list[str]) -> None:
        number = len(self.opened)
        self.opened.append(sorted(task_ids))
        self.opened_at.append(anyio.current_time())
        self.open[number] = sorted(task_ids)
        self._ends[number] = anyio.Event()
        try:
            await self._ends[number].wait()
        finally:
            del self.open[number]
        if self.error is not None:
            raise self.error

    async def end(self, number: int, error: Exception | None = None) -> None:
        self.error = error
        self._ends[number].set()
        await settled()

    def watch(self, task_id: str, handle: TaskSnapshot | None = None) -> Watch:
        async def get() -> TaskSnapshot:
            return state(task_id, self.looks_show, poll_ms=self.poll_ms)

        return Watch(task_id, get, self.settings, self.hub, handle=handle)

    async def follow(self, *task_ids: str) -> list[Watch]:
        """Follow tasks that come together."""
        watches = [self.watch(task_id) for task_id in task_ids]
        self.watches += watches
        for watch in watches:
            self.hub.follow(watch)
        await settled()
        return watches


async def settled() -> None:
    """Wait until tasks that come together were gathered."""
    await anyio.sleep(0.01)
    await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def hub_of(**options: Any) -> AsyncGenerator[World, None]:
    world = World(**options)
    with anyio.fail_after(PATIENCE):
        yield world
        for watch in world.watches:
            world.hub.unfollow(watch)
        await settled()
    assert world.open == {}
    assert (world.hub.followed, world.hub.open_streams) == (0, 0)


async def test_tasks_that_come_together_share_a_stream_and_a_second_watch_opens_none() -> None:
    async with hub_of() as world:
        await world.follow("a", "b", "a")
        await world.follow("b")
        assert world.opened == [["a", "b"]]
        assert (world.hub.followed, world.hub.open_streams) == (2, 1)


async def test_only_a_stream_beside_others_waits_for_more_tasks_before_it_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_listening, "_GATHER_SECONDS", 5)
    async with hub_of() as world:
        began = anyio.current_time()
        await world.follow("a")
        await world.follow("b")
        assert world.opened == [["a"]]
        await anyio.sleep(5)
        await settled()
        assert world.opened == [["a"], ["b"]]
        waits = [at - began for at in world.opened_at]
        assert waits[0] < 5 <= waits[1]


async def test_a_stream_ends_with_its_last_watch() -> None:
    async with hub_of() as world:
        a, b, again = await world.follow("a", "b", "a")
        world.hub.unfollow(a)
        world.hub.unfollow(b)
        await settled()
        assert world.open == {0: ["a", "b"]}
        world.hub.unfollow(again)
        world.hub.unfollow(again)
        await settled()
        assert world.open == {}


async def test_a_stream_that_is_left_before_it_was_opened_is_never_opened() -> None:
    async with hub_of() as world:
        watch = world.watch("a")
        world.hub.follow(watch)
        world.hub.unfollow(watch)
        (other,) = await world.follow("b")
        assert world.opened == [["b"]]
        assert other.task_id == "b"


@pytest.mark.parametrize("how", ["left", "ended"])
async def test_the_end_of_another_stream_does_not_part_tasks_that_come_together(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_of() as world:
        (a,) = await world.follow("a")
        monkeypatch.setattr(_listening, "_GATHER_SECONDS", 3600)
        await world.follow("b")
        if how == "left":
            world.hub.unfollow(a)
        else:
            await world.end(0)
        await world.follow("c")
        assert world.hub.open_streams == 1, "b and c are gathered"


async def test_the_smallest_stream_makes_room() -> None:
    async with hub_of() as world:
        await world.follow("a", "b", "c")
        await world.follow("d")
        await world.follow("e", "f")
        assert list(world.open.values()) == [["a", "b", "c"], ["d", "e", "f"]]
        assert world.hub.open_streams == 2


async def test_a_task_beyond_all_streams_opens_none() -> None:
    async with hub_of(max_tasks=1) as world:
        await world.follow("a")
        await world.follow("b")
        beyond = world.watch("c")
        world.watches.append(beyond)
        world.hub.follow(beyond)
        assert (world.hub.followed, world.hub.open_streams) == (3, 2)
        await settled()
        assert world.opened == [["a"], ["b"]]


async def test_tasks_beyond_all_streams_are_left_to_polls_until_there_is_room() -> None:
    async with hub_of(max_tasks=2) as world:
        await world.follow("a", "b", "c")
        assert sorted(world.open.values()) == [["a", "b"], ["c"]]
        *_, e = await world.follow("d", "e")
        assert sorted(task_id for ids in world.open.values() for task_id in ids)[:3] == ["a", "b", "c"]
        assert all(len(ids) <= 2 for ids in world.open.values())
        assert sum(len(ids) for ids in world.open.values()) == 4
        world.hub.follow(e)
        await settled()
        assert sum(len(ids) for ids in world.open.values()) == 4
        world.hub.unfollow(world.watches[0])
        for watch in world.watches[3:]:
            world.hub.follow(watch)
        await settled()
        assert sorted({task_id for ids in world.open.values() for task_id in ids} - {"a"}) == ["b", "c", "d", "e"]


HASTY: dict[str, Any] = {"poll_ms": 1, "settings": PollSettings((1, HOUR_MS), pushed_interval_ms=10 * HOUR_MS)}
"""Polls each millisecond where changes are not pushed, and else once an hour."""


async def test_a_task_is_not_polled_while_its_stream_is_opened() -> None:
    async with hub_of(**HASTY) as world:
        watch = world.watch("a")
        world.watches.append(watch)
        await watch.next()
        with anyio.move_on_after(0.05):
            await watch.next()
        assert watch.begun == 1
        world.hub.push(state("a", "input_required", after=1))
        assert (await watch.next()).status == "input_required"


async def test_a_task_that_finds_no_room_in_its_stream_is_polled_as_often_as_before() -> None:
    async with hub_of(**HASTY, max_streams=1, max_tasks=2) as world:
        await world.follow("a")
        b, c = watches = [world.watch("b"), world.watch("c")]
        world.watches += watches

        async def look(watch: Watch) -> None:
            while True:
                await watch.next()
                if watch.begun == 5:
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for watch in watches:
                group.start_soon(look, watch)
        assert sorted([b.begun, c.begun]) == [1, 5]


async def test_a_watch_that_comes_late_is_told_what_the_stream_showed_last() -> None:
    async with hub_of() as world:
        await world.follow("a")
        world.hub.push(state("a", "completed", after=1))
        late = world.watch("a")
        world.watches.append(late)
        assert (await late.next()).status == "working"
        assert (await late.next()).status == "completed"
        assert late.begun == 1
        for watch in world.watches:
            world.hub.unfollow(watch)
        await settled()
        assert world.open == {0: ["a"]}, "the server is about to end the stream of tasks that have ended"
        assert world.hub.open_streams == 0
        await world.end(0)


class Crowd:
    """Tasks that are waited for at the same time.

    Attributes:
        shown: What was shown first of each.
        all_shown: Set as soon as each was shown.
    """

    def __init__(self, world: World, *task_ids: str) -> None:
        self.shown: dict[str, str] = {}
        self.all_shown = anyio.Event()
        self.watches = [world.watch(task_id) for task_id in task_ids]
        self._world = world

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        await self.wait_for_all()
        return self

    async def wait_for_all(self) -> None:
        for watch in self.watches:
            self._group.start_soon(self._wait, watch)
        await settled()

    async def __aexit__(self, *raised: Any) -> None:
        self._group.cancel_scope.cancel()
        await self._group.__aexit__(None, None, None)
        await settled()

    async def _wait(self, watch: Watch) -> None:
        try:
            self.shown[watch.task_id] = (await watch.next()).status
            if len(self.shown) == len(self.watches):
                self.all_shown.set()
            await watch.next()
        finally:
            watch.close()

    @property
    def looks(self) -> int:
        return sum(watch.begun for watch in self.watches)


def names(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


async def show(world: World) -> None:
    """Have the server show all tasks of its streams."""
    for task_ids in world.open.values():
        for task_id in task_ids:
            world.hub.push(state(task_id, world.looks_show))
    await anyio.wait_all_tasks_blocked()


async def test_many_tasks_that_come_at_once_share_a_stream_instead_of_a_look_each() -> None:
    async with hub_of(looks_show="input_required") as world:
        async with Crowd(world, *names("a", 20)) as crowd:
            assert crowd.looks == 20, "whether the server shows tasks at the start of a stream is not known"
            await show(world)
        async with Crowd(world, *names("b", 7)) as crowd:
            assert crowd.looks == 7, "few"
            await show(world)
        async with Crowd(world, *names("c", 20)) as crowd:
            assert crowd.looks == len(crowd.shown) == 8
            assert sorted(names("c", 20)) in world.opened
            await show(world)
            assert len(crowd.shown) == 20
        assert crowd.looks == 8
        async with Crowd(world, "d") as crowd:
            assert crowd.looks == 1


async def test_a_stream_that_shows_what_the_handle_said_wakes_no_caller_that_has_not_looked() -> None:
    async with hub_of(looks_show="input_required") as world:
        async with Crowd(world, *names("a", 20)):
            await show(world)
        async with Crowd(world) as crowd:
            crowd.watches = [
                world.watch(task_id, handle=state(task_id, "input_required", poll_ms=500)) for task_id in names("b", 20)
            ]
            await crowd.wait_for_all()
            await show(world)
            assert crowd.looks == len(crowd.shown) == 8
            not_looked_at = set(names("b", 20)) - set(crowd.shown)
            for task_id in not_looked_at:
                world.hub.push(state(task_id))
            await anyio.wait_all_tasks_blocked()
            assert {crowd.shown[task_id] for task_id in not_looked_at} == {"working"}
        assert crowd.looks == 8
        async with Crowd(world, *names("c", 20)) as crowd:
            assert crowd.looks == 8, "the server has shown the tasks at the start of the stream"


async def test_a_task_is_not_looked_at_where_the_last_ones_were_at_work_when_they_were() -> None:
    async with hub_of() as world:
        for number in range(3):
            async with Crowd(world, f"a{number}") as crowd:
                assert crowd.looks == 1
                await show(world)
        for number in range(3):
            async with Crowd(world, f"b{number}") as crowd:
                assert (crowd.looks, crowd.shown) == (0, {}), "the stream is about to show it"
                await show(world)
                assert crowd.shown == {f"b{number}": "working"}
        assert world.opened[-3:] == [["b0"], ["b1"], ["b2"]]


@pytest.mark.parametrize("how", ["looked at", "shown"])
async def test_tasks_are_looked_at_again_after_one_that_was_not_at_work(how: str) -> None:
    async with hub_of() as world:
        for number in range(2 if how == "looked at" else 3):
            async with Crowd(world, f"a{number}"):
                await show(world)
        world.looks_show = "input_required"
        async with Crowd(world, "b") as crowd:
            assert crowd.looks == (1 if how == "looked at" else 0)
            await show(world)
            assert crowd.shown == {"b": "input_required"}
        world.looks_show = "working"
        for number in range(3):
            async with Crowd(world, f"c{number}") as crowd:
                assert crowd.looks == 1
                await show(world)
        async with Crowd(world, "d") as crowd:
            assert crowd.looks == 0


async def test_a_server_that_shows_no_task_is_not_taken_to_do_so_for_one_that_is_at_work() -> None:
    async with hub_of() as world:
        for number in range(5):
            async with Crowd(world, f"a{number}") as crowd:
                assert crowd.looks == 1


@pytest.mark.parametrize("how", ["ends", "breaks", "is silent"])
async def test_tasks_that_a_stream_does_not_show_are_looked_at_and_others_at_once(how: str) -> None:
    settings = PollSettings((1, HOUR_MS), pushed_interval_ms=1 if how == "is silent" else HOUR_MS)
    async with hub_of(settings=settings, looks_show="input_required") as world:
        async with Crowd(world, *names("a", 20)):
            await show(world)
        async with Crowd(world, *names("b", 20)) as crowd:
            if how != "is silent":
                assert crowd.looks == 8
                await world.end(len(world.opened) - 1, None if how == "ends" else MCPError(CONNECTION_CLOSED, "gone"))
            await crowd.all_shown.wait()
        async with Crowd(world, *names("c", 20)) as crowd:
            assert crowd.looks >= 20


async def test_a_server_that_shows_no_task_before_it_changes_is_not_waited_for() -> None:
    async with hub_of() as world:
        async with Crowd(world, *names("a", 20)):
            for task_id in names("a", 20):
                world.hub.push(state(task_id, "input_required", after=1))
            await anyio.wait_all_tasks_blocked()
        async with Crowd(world, *names("b", 20)) as crowd:
            assert crowd.looks == 20


async def show_ends(world: World) -> None:
    """Have the server show that all tasks of its streams have ended, and end the streams."""
    for task_ids in list(world.open.values()):
        for task_id in task_ids:
            world.hub.push(state(task_id, "completed", after=1))
    await anyio.wait_all_tasks_blocked()
    for number in list(world.open):
        await world.end(number)


async def test_a_server_of_short_tasks_is_taken_to_show_them() -> None:
    async with hub_of(looks_show="input_required") as world:
        for looks in (20, 8):
            async with Crowd(world, *names("a", 20)) as crowd:
                assert crowd.looks == looks
                await show_ends(world)
                assert len(crowd.shown) == 20


async def test_a_server_that_did_not_show_its_short_tasks_is_not_taken_to_do_so_again() -> None:
    async with hub_of(settings=PollSettings((1, HOUR_MS), pushed_interval_ms=1)) as world:
        async with Crowd(world, *names("a", 20)):
            await show_ends(world)
        async with Crowd(world, *names("b", 20)) as crowd:
            await crowd.all_shown.wait()
            assert all(watch.begun for watch in crowd.watches)
            await show_ends(world)
        async with Crowd(world, *names("c", 20)) as crowd:
            assert all(watch.begun for watch in crowd.watches)
            await show_ends(world)
        async with Crowd(world, *names("d", 20)) as crowd:
            assert all(watch.begun for watch in crowd.watches)


async def test_callers_that_gave_up_before_their_stream_showed_anything_say_nothing_of_the_server() -> None:
    async with hub_of(looks_show="input_required") as world:
        async with Crowd(world, *names("a", 20)):
            await show(world)
        for letter in "bc":
            async with Crowd(world, *names(letter, 20)) as crowd:
                assert crowd.looks == 8


async def test_the_end_of_a_stream_makes_its_followers_look() -> None:
    async with hub_of() as world:
        (watch,) = await world.follow("a")
        await watch.next()
        await world.end(0)
        await watch.next()
        assert watch.begun == 2


@pytest.mark.parametrize(("was_shown", "streams"), [(True, 2), (False, 1)])
async def test_a_stream_that_dropped_is_opened_again_if_it_had_shown_the_task(was_shown: bool, streams: int) -> None:
    async with hub_of() as world:
        (watch,) = await world.follow("a")
        await watch.next()
        if was_shown:
            world.hub.push(state("a"))
        await world.end(0, MCPError(CONNECTION_CLOSED, "SSE stream ended without a response"))
        assert (await watch.next()).status == "working"
        world.hub.follow(watch)
        await settled()
        assert len(world.opened) == streams


async def test_a_server_that_refuses_is_not_asked_again() -> None:
    async with hub_of() as world:
        await world.follow("a")
        await world.end(0, MCPError(METHOD_NOT_FOUND, "Method not found"))
        await world.follow("a", "b")
        assert len(world.opened) == 1


async def test_a_server_that_has_refused_is_not_asked_again_though_another_stream_drops_later() -> None:
    async with hub_of() as world:
        await world.follow("a")
        await world.follow("b")
        await world.end(0, MCPError(METHOD_NOT_FOUND, "Method not found"))
        await world.end(1, MCPError(CONNECTION_CLOSED, "SSE stream ended without a response"))
        await world.follow("c")
        assert world.opened == [["a"], ["b"]]


async def test_a_fault_of_a_stream_stays_in_it(caplog: pytest.LogCaptureFixture) -> None:
    async with hub_of() as world:
        (watch,) = await world.follow("a")
        await watch.next()
        await world.end(0, ZeroDivisionError())
        await watch.next()
    assert "Listening to tasks failed" in caplog.text
