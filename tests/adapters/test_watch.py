"""When a client looks at a task again, and which pushed states replace a look: without an SDK."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.adapters.task_client import polling
from mcp_task_runtime.adapters.task_client.errors import BaseTaskError
from mcp_task_runtime.adapters.task_client.polling import PollSettings, Watch
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.core.event_loop import call_later
from tests.support.event_loops import in_virtual_time
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

HOUR_MS = 3_600_000
NOON = datetime(2026, 7, 28, 12, tzinfo=timezone.utc)


class Failure(BaseTaskError):
    def __init__(self, code: int, data: Any = None) -> None:
        super().__init__(code, "no", data)
        self._code, self._data = code, data

    @property
    def code(self) -> int:
        return self._code

    @property
    def data(self) -> Any:
        return self._data


def state(
    message: str | None = None, *, status: Any = "working", after: float = 0, poll_ms: int = HOUR_MS
) -> TaskSnapshot:
    return TaskSnapshot("t", status, message, NOON, NOON + timedelta(seconds=after), None, poll_ms)


class Server:
    """What looks show, in this order; the last one stands."""

    def __init__(self, *looks: TaskSnapshot | Exception) -> None:
        self.looks = list(looks)
        self.count = 0
        self.during: Callable[[], object] | None = None

    async def get(self) -> TaskSnapshot:
        self.count += 1
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if self.during is not None:
            self.during()
        await anyio.lowlevel.checkpoint()
        if isinstance(look, Exception):
            raise look
        return look


class Stream:
    """Notes who follows; shows tasks that were not looked at if it is to."""

    def __init__(self, *, shows: bool = False) -> None:
        self.followed = 0
        self.unfollowed = 0
        self._shows = shows

    def join(self, watch: Watch) -> bool:
        if self._shows:
            watch.expect()
        return self._shows

    def follow(self, watch: Watch) -> None:
        self.followed += 1

    def unfollow(self, watch: Watch) -> None:
        self.unfollowed += 1


def watch_of(server: Server, pushes: Stream | None = None, **options: Any) -> Watch:
    settings = PollSettings(**{"bounds_ms": (5, HOUR_MS), "retry_pause": 0.001, **options})
    return Watch("t", server.get, settings, pushes)


@asynccontextmanager
async def seen(watch: Watch) -> AsyncGenerator[list[TaskSnapshot], None]:
    """What the watch shows while the block runs."""
    shown: list[TaskSnapshot] = []

    async def look() -> None:
        while True:
            shown.append(await watch.next())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(look)
            await anyio.wait_all_tasks_blocked()
            yield shown
            group.cancel_scope.cancel()


async def test_the_first_look_is_at_once_and_follows_nothing() -> None:
    stream = Stream()
    server = Server(state("first"))
    watch = watch_of(server, stream)
    with anyio.fail_after(PATIENCE):
        assert (await watch.next()).status_message == "first"
    assert (server.count, stream.followed) == (1, 0)
    watch.close()
    assert stream.unfollowed == 1


@in_virtual_time
async def test_a_watch_follows_once_it_waits_and_after_its_grace() -> None:
    stream = Stream()
    watch = watch_of(Server(state()), stream)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        with anyio.move_on_after(0.01):
            await watch.next(grace=HOUR_MS)
        assert stream.followed == 0
        with anyio.move_on_after(0.05):
            await watch.next(grace=0.001)
        assert stream.followed == 1


@in_virtual_time
@pytest.mark.parametrize("end", ["due", "pushed", "woken", "closed and cancelled"])
async def test_a_watch_leaves_no_timer_however_its_wait_ends(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[float] = []

    def counted(seconds: float, function: Callable[[], object]) -> Callable[[], None]:
        running.append(seconds)
        stop = call_later(seconds, function)

        def stop_counted() -> None:
            stop()
            running.remove(seconds)

        return stop_counted

    monkeypatch.setattr(polling, "call_later", counted)
    watch = watch_of(Server(state(poll_ms=10_000)))
    shown: list[TaskSnapshot] = []

    async def look() -> None:
        shown.append(await watch.next())

    with anyio.fail_after(PATIENCE):
        await watch.next()
        async with anyio.create_task_group() as group:
            group.start_soon(look)
            await anyio.wait_all_tasks_blocked()
            assert [round(seconds) for seconds in running] == [10]
            if end == "due":
                await anyio.sleep(11)
            elif end == "pushed":
                watch.push(state("pushed", after=1))
            elif end == "woken":
                watch.wake()
            else:
                watch.close()
                group.cancel_scope.cancel()
    assert running == []
    assert len(shown) == (0 if end == "closed and cancelled" else 1)


@pytest.mark.parametrize(
    ("pushed", "is_shown", "looks"),
    [
        (state("new", after=1), True, 1),
        (state("end", status="completed", after=-1), True, 1),
        (state("old", after=-1), False, 1),
        (state("seen"), False, 1),
        (state("seen", poll_ms=7), False, 1),
        (state("same time"), False, 2),
    ],
    ids=["newer", "an end, of any time", "older", "the same", "the same but for its pace", "of the same time"],
)
async def test_what_a_pushed_state_does(pushed: TaskSnapshot, is_shown: bool, looks: int) -> None:
    server = Server(state("seen"))
    watch = watch_of(server)
    async with seen(watch) as shown:
        watch.push(pushed)
        await anyio.wait_all_tasks_blocked()
        assert (pushed in shown[1:]) == is_shown or pushed == shown[0]
        assert server.count == looks


async def test_a_task_that_a_stream_will_show_is_not_looked_at() -> None:
    server = Server(state("looked at"))
    watch = watch_of(server, Stream(shows=True))
    async with seen(watch) as shown:
        assert (server.count, shown) == (0, [])
        assert not watch.push(state("pushed"))
        await anyio.wait_all_tasks_blocked()
        assert watch.push(state("pushed"))
        assert (server.count, [each.status_message for each in shown]) == (0, ["pushed"])


@in_virtual_time
async def test_a_task_that_no_stream_showed_is_looked_at() -> None:
    watch = watch_of(Server(state("looked at")), Stream(shows=True), bounds_ms=(HOUR_MS, HOUR_MS))
    began = anyio.current_time()
    assert (await watch.next()).status_message == "looked at"
    assert 0.5 <= anyio.current_time() - began < 1


async def test_a_task_is_looked_at_once_it_is_known_that_no_stream_will_show_it() -> None:
    server = Server(state("looked at"))
    watch = watch_of(server, Stream(shows=True))
    async with seen(watch) as shown:
        watch.lapse()
        await anyio.wait_all_tasks_blocked()
        assert (server.count, len(shown)) == (1, 1)


@in_virtual_time
@pytest.mark.parametrize("is_pushed", [True, False])
async def test_what_this_side_led_to_is_pushed_soon_or_looked_at(is_pushed: bool) -> None:
    server = Server(state("seen"), state("led to", after=1))
    watch = watch_of(server, bounds_ms=(HOUR_MS, HOUR_MS))
    await watch.next()
    if is_pushed:
        watch.push(state("seen"))
    watch.expect_change()
    began = anyio.current_time()
    assert (await watch.next()).status_message == "led to"
    assert (anyio.current_time() - began >= 0.5) == is_pushed
    assert anyio.current_time() - began < 1


async def test_nothing_follows_an_end_that_was_pushed() -> None:
    watch = watch_of(Server(state()))
    with anyio.fail_after(PATIENCE):
        await watch.next()
        watch.push(state("end", status="failed"))
        watch.push(state("too late", after=9))
        assert (await watch.next()).status_message == "end"


@pytest.mark.parametrize(
    ("pushed", "shown"),
    [
        (state("pushed", after=2), "pushed"),
        (state("pushed", after=0.5), "looked at"),
        (state("pushed", status="cancelled"), "pushed"),
    ],
)
async def test_of_a_look_and_a_push_during_it_the_newer_counts(pushed: TaskSnapshot, shown: str) -> None:
    server = Server(state(), state("looked at", after=1))
    watch = watch_of(server)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        server.during = lambda: watch.push(pushed)
        watch.wake()
        assert (await watch.next()).status_message == shown


async def test_a_wake_during_a_look_makes_another_look_due() -> None:
    server = Server(state("one"), state("two", after=1))
    watch = watch_of(server)
    server.during = watch.wake
    with anyio.fail_after(PATIENCE):
        assert [(await watch.next()).status_message for _ in range(2)] == ["one", "two"]


async def test_looks_that_come_early_are_limited() -> None:
    server = Server(state())
    watch = watch_of(server, bounds_ms=(HOUR_MS, HOUR_MS))
    server.during = watch.wake
    async with seen(watch):
        assert server.count == 11, "the first, and ten that came early"
        watch.wake()
        await anyio.wait_all_tasks_blocked()
        assert server.count == 11


@in_virtual_time
async def test_a_task_that_is_pushed_is_polled_rarely_until_pushes_lapse() -> None:
    server = Server(state(poll_ms=1))
    watch = watch_of(server, pushed_interval_ms=HOUR_MS)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        watch.push(state(poll_ms=1))
        with anyio.move_on_after(0.05) as scope:
            await watch.next()
        assert scope.cancelled_caught
        assert server.count == 1
        watch.lapse()
        await watch.next()
        await watch.next()
    assert server.count == 3


@in_virtual_time
async def test_a_task_whose_stream_is_being_opened_is_polled_later_until_pushes_lapse() -> None:
    server = Server(state(poll_ms=1))
    watch = watch_of(server, pushed_interval_ms=HOUR_MS)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        watch.expect()
        with anyio.move_on_after(0.05) as scope:
            await watch.next()
        assert scope.cancelled_caught
        assert server.count == 1
        watch.lapse()
        await watch.next()
        await watch.next()
    assert server.count == 3


async def test_a_failed_look_is_made_again_and_only_so_often() -> None:
    server = Server(Failure(-32603), Failure(-32000), state("there"), Failure(-32603))
    watch = watch_of(server)
    with anyio.fail_after(PATIENCE):
        assert (await watch.next()).status_message == "there"
        assert server.count == 3
        watch.wake()
        with pytest.raises(Failure):
            await watch.next()
    assert server.count == 6


async def test_a_failure_that_will_not_pass_is_raised_at_once() -> None:
    server = Server(Failure(-32602))
    with pytest.raises(Failure):
        await watch_of(server).next()
    assert server.count == 1


async def test_a_server_that_wants_a_rest_gets_it_and_is_looked_at_then() -> None:
    busy = Failure(-32600, {"retryAfterMs": 40})
    server = Server(state(), *[busy] * 5, state("rested"))
    watch = watch_of(server)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        watch.wake()
        began = anyio.current_time()
        server.during = watch.wake
        assert (await watch.next()).status_message == "rested"
        assert anyio.current_time() - began >= 5 * 0.04


async def test_a_look_may_be_wanted_sooner_than_the_next_poll() -> None:
    server = Server(state())
    watch = watch_of(server)
    with anyio.fail_after(PATIENCE):
        await watch.next()
        watch.look_within(0.001)
        await watch.next()
    assert server.count == 2


@pytest.mark.parametrize(
    ("wanted", "is_pushed", "seconds"),
    [
        (None, False, 1.0),
        (None, True, 5.0),
        (0, False, 0.05),
        (20, True, 5.0),
        (7_000, True, 7.0),
        (10**30, True, 60.0),
        (-1, False, 0.05),
    ],
)
def test_how_long_until_the_next_poll(wanted: float | None, is_pushed: bool, seconds: float) -> None:
    assert PollSettings().seconds(wanted, is_pushed=is_pushed) == seconds


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.5), (2, 1.0), (3, 2.0)])
def test_pauses_between_failures_double(failures: int, seconds: float) -> None:
    assert PollSettings().pause_after(Failure(-32603), failures) == seconds
    assert PollSettings().pause_after(Failure(-32600, {"retryAfterMs": 250}), failures) == 0.25


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bounds_ms", (0, 1), "poll_bounds_ms"),
        ("bounds_ms", (2, 1), "poll_bounds_ms"),
        ("interval_ms", 0, "poll_interval_ms"),
        ("pushed_interval_ms", -1, "pushed_poll_interval_ms"),
        ("retry_pause", -1, "retry_pause"),
        ("retry_pause", float("nan"), "retry_pause"),
        ("max_failures", 0, "max_failures"),
    ],
)
def test_a_nonsensical_setting_is_refused_by_the_name_of_its_argument(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        PollSettings(**{name: value})


def test_no_pause_between_attempts_is_a_pause() -> None:
    assert PollSettings(retry_pause=0).pause_after(Failure(-32603), 1) == 0
