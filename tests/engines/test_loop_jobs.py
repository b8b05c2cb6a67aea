"""Jobs of an engine on an event loop in another thread: each ends once, so many run at a time, whatever ends first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from queue import SimpleQueue

import pytest

from mcp_task_runtime.engines._loop_jobs import LoopJobs
from tests.support.patience import PATIENCE

PLACE: ContextVar[str] = ContextVar("PLACE", default="elsewhere")


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread for a block."""
    loop = asyncio.new_event_loop()

    def run() -> None:
        try:
            loop.run_forever()
            for task in asyncio.all_tasks(loop):  # as `asyncio.run` does
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield loop
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Engine:
    """An engine with one thread: that of the test."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, execute: Callable[[str], Awaitable[object]], limit: int
    ) -> None:
        self.accepted: list[str] = []
        self.ended: dict[str, Exception | None] = {}
        self._news: SimpleQueue[None] = SimpleQueue()
        context = copy_context()
        context.run(PLACE.set, "the loop's")
        self.jobs = LoopJobs(loop, context, execute, limit=limit, on_end=lambda: self._news.put(None))

    @property
    def calls(self) -> int:
        """How often it was called to settle, and has not heard of it."""
        return self._news.qsize()

    def put(self, *names: str) -> None:
        for name in names:
            self.jobs.put(Named(self, name))

    def until_ended(self, *names: str) -> None:
        """Do what the engine must do when jobs end, until these have."""
        while not set(names) <= self.ended.keys():
            self._news.get(timeout=PATIENCE)
            self.jobs.settle()


class StoppedClock(asyncio.SelectorEventLoop):
    """An event loop whose time passes when the test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def go_on(self) -> None:
        """Run what can run."""

        async def turns() -> None:
            for _ in range(10):
                await asyncio.sleep(0)

        self.run_until_complete(turns())


@pytest.fixture
def stopped_clock() -> Iterator[StoppedClock]:
    loop = StoppedClock()
    yield loop
    loop.close()


class Named:
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name

    def accept(self) -> str:
        if self._name == "unacceptable":
            raise ConnectionError
        if self._name == "thread ends":
            raise SystemExit
        self._engine.accepted.append(self._name)
        return self._name

    def end(self, error: Exception | None, ended_at: float) -> None:
        assert ended_at <= time.monotonic()
        assert self._name not in self._engine.ended
        self._engine.ended[self._name] = error
        if self._name == "unheard":
            raise ConnectionError


class Gates:
    """Work that ends when the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._open: set[str] = set()
        self._changed = asyncio.Event()
        self.begun: SimpleQueue[str] = SimpleQueue()

    async def execute(self, name: str) -> None:
        self.begun.put(name)
        while name not in self._open:
            await self._changed.wait()

    def open(self, *names: str) -> None:
        def change() -> None:
            self._open.update(names)
            self._changed.set()
            self._changed = asyncio.Event()

        self._loop.call_soon_threadsafe(change)


def test_each_job_runs_once_with_the_variables_of_the_loop() -> None:
    seen: list[tuple[str, str]] = []

    async def execute(name: str) -> None:
        await asyncio.sleep(0)
        seen.append((name, PLACE.get()))
        PLACE.set("of one job alone")

    names = [str(number) for number in range(40)]
    with running_loop() as loop:
        engine = Engine(loop, execute, limit=3)
        engine.put(*names)
        engine.until_ended(*names)
    assert engine.accepted == names
    assert sorted(seen) == sorted((name, "the loop's") for name in names)
    assert set(engine.ended.values()) == {None}


def test_jobs_beyond_the_limit_are_not_accepted_before_others_have_ended() -> None:
    with running_loop() as loop:
        gates = Gates(loop)
        engine = Engine(loop, gates.execute, limit=2)
        engine.put("a", "b", "c", "d")
        assert {gates.begun.get(timeout=PATIENCE) for _ in range(2)} == {"a", "b"}
        assert engine.accepted == ["a", "b"]
        gates.open("b")
        engine.until_ended("b")
        assert gates.begun.get(timeout=PATIENCE) == "c"
        assert engine.accepted == ["a", "b", "c"]
        engine.jobs.drop_waiting()  # the engine has lost its connection
        gates.open("a", "c")
        engine.until_ended("a", "c")
        engine.put("e")
        assert gates.begun.get(timeout=PATIENCE) == "e"
        gates.open("e")
        engine.until_ended("e")
    assert engine.accepted == ["a", "b", "c", "e"]


def test_a_job_that_fails_in_any_way_ends_alone() -> None:
    async def execute(name: str) -> None:
        if name == "bad":
            raise LookupError(name)
        if name == "cancelled":
            raise asyncio.CancelledError

    with running_loop() as loop:
        engine = Engine(loop, execute, limit=1)
        names = ["good", "bad", "unacceptable", "unheard", "cancelled", "last"]
        engine.put(*names)
        engine.until_ended(*names)
    kinds = {name: type(error) for name, error in engine.ended.items()}
    assert kinds == {
        **dict.fromkeys(["good", "unheard", "last"], type(None)),
        "bad": LookupError,
        "unacceptable": ConnectionError,
        "cancelled": RuntimeError,
    }


def test_a_thread_of_the_engine_that_ends_while_it_accepts_a_job_leaves_room_for_others() -> None:
    with running_loop() as loop:
        gates = Gates(loop)
        engine = Engine(loop, gates.execute, limit=1)
        with pytest.raises(SystemExit):
            engine.put("thread ends")
        engine.put("a")
        gates.open("a")
        engine.until_ended("a")
        assert engine.ended == {"a": None}
        engine.jobs.join()  # it waits for none that has not begun


def test_a_closed_set_of_jobs_waits_for_what_runs_and_begins_no_more() -> None:
    with running_loop() as loop:
        gates = Gates(loop)
        engine = Engine(loop, gates.execute, limit=1)
        engine.put("a", "b")
        assert gates.begun.get(timeout=PATIENCE) == "a"
        engine.jobs.close()
        engine.put("c")
        gates.open("a", "b", "c")
        engine.jobs.join()
    assert engine.accepted == ["a"]
    assert engine.ended == {"a": None}


@pytest.mark.parametrize("first", ["join", "loop"])
def test_what_ran_on_an_event_loop_that_has_ended_is_not_waited_for(first: str) -> None:
    with running_loop() as loop:
        gates = Gates(loop)
        engine = Engine(loop, gates.execute, limit=2)
        engine.put("a")
        assert gates.begun.get(timeout=PATIENCE) == "a"
        if first == "join":
            joining = threading.Thread(target=engine.jobs.join)
            joining.start()
            loop.call_soon_threadsafe(loop.stop)
            joining.join(PATIENCE)
            assert not joining.is_alive()
    if first == "loop":
        engine.put("late")
        assert isinstance(engine.ended["late"], RuntimeError)
        engine.jobs.join()
    assert "a" not in engine.ended or isinstance(engine.ended["a"], RuntimeError)


def test_an_engine_hears_of_an_end_with_its_next_job_or_soon(stopped_clock: StoppedClock) -> None:
    ran: list[str] = []

    async def execute(name: str) -> None:
        ran.append(name)

    engine = Engine(stopped_clock, execute, limit=3)
    engine.put("a")
    stopped_clock.go_on()
    assert (ran, engine.calls, engine.ended) == (["a"], 0, {})
    engine.put("b")
    assert engine.ended == {"a": None}
    stopped_clock.go_on()
    assert (ran, engine.calls) == (["a", "b"], 0)
    stopped_clock.now = 1.0
    stopped_clock.go_on()
    assert engine.calls == 1
    engine.until_ended("b")
    engine.put("c")
    stopped_clock.go_on()
    engine.jobs.settle()
    stopped_clock.now = 2.0
    stopped_clock.go_on()
    assert (engine.calls, list(engine.ended)) == (0, ["a", "b", "c"])  # there was nothing more to hear of


def test_an_engine_hears_of_an_end_at_once_when_another_job_waits(stopped_clock: StoppedClock) -> None:
    async def execute(name: str) -> None:
        pass

    engine = Engine(stopped_clock, execute, limit=2)
    engine.put("a", "b", "c")
    stopped_clock.go_on()
    assert engine.calls == 1
    engine.until_ended("a", "b")
    stopped_clock.go_on()
    assert (engine.accepted, engine.calls) == (["a", "b", "c"], 0)


def test_an_engine_hears_of_an_end_at_once_when_no_place_was_free(stopped_clock: StoppedClock) -> None:
    async def execute(name: str) -> None:
        pass

    engine = Engine(stopped_clock, execute, limit=2)
    engine.put("a", "b")  # an engine that acknowledges at the end has no more, until it hears of one
    stopped_clock.go_on()
    assert engine.calls == 1
    engine.until_ended("a", "b")


def test_a_job_that_comes_while_the_last_place_becomes_free_begins(stopped_clock: StoppedClock) -> None:
    async def execute(name: str) -> None:
        pass

    engine = Engine(stopped_clock, execute, limit=1)
    engine.put("a")
    stopped_clock.go_on()  # it has ended, and the engine has not heard of it
    engine.put("b")
    assert engine.accepted == ["a", "b"]


def test_an_end_that_the_engine_has_not_heard_of_is_not_waited_for(
    stopped_clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute(name: str) -> None:
        pass

    monkeypatch.setattr("mcp_task_runtime.engines._loop_jobs._LOOK_SECONDS", 10 * PATIENCE)
    engine = Engine(stopped_clock, execute, limit=2)
    engine.put("a")
    stopped_clock.go_on()
    assert engine.ended == {}
    joining = threading.Thread(target=engine.jobs.join, daemon=True)
    joining.start()
    joining.join(PATIENCE)
    assert not joining.is_alive()
    assert engine.ended == {"a": None}
