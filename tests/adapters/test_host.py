"""`RuntimeHost`: one runtime for everybody who holds it, open from the first to the last."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    StoreError,
    StoreUnavailableError,
    TaskRecord,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.web_server import until_web_server_stops
from mcp_task_runtime.testing.clock import FakeClock
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

JSON = dict[str, Any]


def make_runtime() -> TaskRuntime:
    return TaskRuntime(InMemoryTaskStore(clock=FakeClock()), settings=TaskSettings(shutdown_grace=0))


async def forever(execution: Execution[JSON]) -> JSON:
    await anyio.sleep_forever()
    raise AssertionError


async def is_open(runtime: TaskRuntime) -> bool:
    try:
        record = await runtime.submit(TaskSpec(), forever)
    except RuntimeError:
        return False
    await runtime.cancel(record.task_id, owner=None)
    return True


async def hold(host: RuntimeHost, held: anyio.Event, release: anyio.Event) -> None:
    async with host:
        held.set()
        await release.wait()


async def test_holders_may_come_and_go_in_any_order() -> None:
    """F17: sessions overlap; none of them owns the runtime, whichever came first."""
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    events = [(anyio.Event(), anyio.Event()) for _ in range(3)]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for held, release in events:
                group.start_soon(hold, host, held, release)
                await held.wait()
            for _, release in events[:2]:
                release.set()
                await anyio.wait_all_tasks_blocked()
                assert await is_open(runtime)
            events[2][1].set()
        assert not await is_open(runtime)


async def test_work_outlives_the_holder_that_was_there_when_it_began() -> None:
    """L13, F17: even if that holder is cancelled."""
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    record: Any = None
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as first:
            held = anyio.Event()
            first.start_soon(hold, host, held, anyio.Event())
            await held.wait()
            async with host:
                record = await runtime.submit(TaskSpec(), forever)
                first.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await anyio.wait_all_tasks_blocked()
                    assert (await runtime.get(record.task_id, owner=None)).task.status == "working"
        assert (await runtime.get(record.task_id, owner=None)).task.status == "failed"


async def test_the_last_holder_waits_until_the_runtime_has_closed() -> None:
    """L12: after it, no task is `working`."""
    runtime = make_runtime()
    with anyio.fail_after(PATIENCE):
        async with RuntimeHost(runtime):
            record = await runtime.submit(TaskSpec(), forever)
        assert (await runtime.get(record.task_id, owner=None)).task.status == "failed"
        assert runtime.statistics().calls == 0


async def test_a_host_can_be_entered_again_also_while_it_closes() -> None:
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    opened: list[bool] = []

    async def visit() -> None:
        async with host:
            opened.append(await is_open(runtime))

    with anyio.fail_after(PATIENCE):
        for _ in range(3):
            await visit()
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(visit)
                await anyio.lowlevel.checkpoint()
    assert opened == [True] * 13


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio", "asyncio")])
def test_a_host_can_be_used_on_one_event_loop_after_another(backends: tuple[str, ...]) -> None:
    runtime = make_runtime()
    host = RuntimeHost(runtime)

    async def life() -> None:
        with anyio.fail_after(PATIENCE):
            async with host:
                assert await is_open(runtime)

    for backend in backends:
        anyio.run(life, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_runtime_left_open_by_a_loop_that_died_can_be_opened_on_the_next(backend: str) -> None:
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    records: list[TaskRecord] = []

    async def forget_to_close() -> None:
        await host.__aenter__()
        records.append(await runtime.submit(TaskSpec(), forever))
        await anyio.wait_all_tasks_blocked()

    async def life() -> None:
        with anyio.fail_after(PATIENCE):
            async with host:
                assert await is_open(runtime)
                assert (await runtime.get(records[0].task_id, owner=None)).task.status == "failed"

    anyio.run(forget_to_close, backend=backend)
    anyio.run(life, backend=backend)


async def test_an_error_while_opening_is_raised_in_every_holder_and_the_next_one_tries_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    async def fail(group: IsolatedGroup) -> IsolatedGroup:
        nonlocal tries
        tries += 1
        await anyio.lowlevel.checkpoint()
        raise LookupError("no group")

    monkeypatch.setattr(IsolatedGroup, "__aenter__", fail)
    host = RuntimeHost(TaskRuntime(InMemoryTaskStore()))
    raised: list[str] = []

    async def enter() -> None:
        with pytest.raises(LookupError, match="no group") as caught:
            await host.__aenter__()
        raised.append(str(caught.value))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(enter)
        assert tries == 1
        await enter()
    assert raised == ["no group"] * 4
    assert tries == 2
    assert "could not be opened" in caplog.text


async def test_a_holder_cancelled_while_the_runtime_opens_holds_nothing() -> None:
    """L6: and the other one still gets it."""
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            held, release = anyio.Event(), anyio.Event()
            group.start_soon(hold, host, held, release)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await host.__aenter__()
            assert scope.cancelled_caught
            await held.wait()
            assert await is_open(runtime)
            release.set()
        assert not await is_open(runtime)
        with anyio.CancelScope() as scope:  # the only one
            scope.cancel()
            await host.__aenter__()
        await anyio.wait_all_tasks_blocked()
        assert not await is_open(runtime)


async def test_leaving_a_host_that_nobody_holds_does_nothing() -> None:
    await RuntimeHost(make_runtime()).__aexit__(None, None, None)


async def test_a_host_kept_open_stays_open_between_holders_and_closes_with_the_last() -> None:
    """Servers without a lifespan: the first use opens the runtime, and no connection's end closes it."""
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    with anyio.fail_after(PATIENCE):
        await host.keep_open()
        await host.keep_open()
        assert await is_open(runtime)
        async with host:
            pass
        assert not await is_open(runtime)


async def test_what_runs_beside_the_runtime_ends_with_it() -> None:
    runtime = make_runtime()
    host = RuntimeHost(runtime)
    ended: list[str] = []

    async def beside() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    with pytest.raises(RuntimeError, match="not open"):
        host.start_soon(beside)
    with anyio.fail_after(PATIENCE):
        async with host:
            host.start_soon(beside)
            await anyio.wait_all_tasks_blocked()
            assert ended == []
    assert ended == ["cancelled"]


class _Connecting(InMemoryTaskStore):
    """A store that connects to something, which may be away."""

    is_away = True

    async def connect(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("The store at db:1 cannot be reached") from OSError("refused")


async def test_a_store_that_cannot_be_reached_is_one_line_however_many_try(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mcp_task_runtime")
    store = _Connecting()
    runtime = TaskRuntime(store)
    host = RuntimeHost(runtime)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="db:1"):
            await host.keep_open()
    (line,) = caplog.records
    assert line.getMessage() == "The server has no tasks: The store at db:1 cannot be reached"
    assert (line.levelname, line.exc_info) == ("ERROR", None)
    store.is_away = False
    async with host:
        assert await is_open(runtime)
    store.is_away = True
    caplog.clear()
    with pytest.raises(StoreUnavailableError):
        await host.keep_open()
    assert len(caplog.records) == 1, "another outage"


async def test_what_a_store_must_not_raise_when_it_connects_is_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(InMemoryTaskStore):
        async def connect(self) -> None:
            raise TypeError("a fault")

    with pytest.raises(StoreError, match="Internal error"):
        await RuntimeHost(TaskRuntime(Broken())).keep_open()
    assert "a fault" in caplog.text


class WebServer:
    """What handles the signals of a process that uvicorn or gunicorn runs."""

    should_exit = False

    def __init__(self, **settings: int) -> None:
        for name, workers in settings.items():
            setattr(self, name, SimpleNamespace(workers=workers))

    def handle(self, *_: Any) -> None:
        """Handle a signal."""


@pytest.fixture
def handled() -> Generator[Callable[[signal.Signals, WebServer], None], None, None]:
    """Let a web server handle a signal, until the test has ended."""
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def handle(number: signal.Signals, server: WebServer) -> None:
        signal.signal(number, server.handle)

    yield handle
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("servers", "is_shared", "warns"),
    [
        ({signal.SIGTERM: WebServer(config=4)}, False, True),
        ({signal.SIGTERM: WebServer(config=1), signal.SIGUSR1: WebServer(config=1, cfg=4)}, False, True),
        ({signal.SIGTERM: WebServer(config=4)}, True, False),
        ({signal.SIGTERM: WebServer(config=1)}, False, False),
        ({signal.SIGTERM: WebServer()}, False, False),
        ({}, False, False),
    ],
    ids=["uvicorn", "gunicorn", "a shared store", "one process", "an unknown server", "no server"],
)
async def test_several_processes_that_keep_tasks_in_memory_are_warned_of_once(
    handled: Callable[[signal.Signals, WebServer], None],
    caplog: pytest.LogCaptureFixture,
    servers: dict[signal.Signals, WebServer],
    is_shared: bool,
    warns: bool,
) -> None:
    for number, server in servers.items():
        handled(number, server)
    store = InMemoryTaskStore()
    store.is_shared = is_shared
    host = RuntimeHost(TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)))
    with anyio.fail_after(PATIENCE):
        for _ in range(2):
            async with host:
                pass
    warnings = [record.message for record in caplog.records if "TASKS WILL BE LOST" in record.message]
    assert len(warnings) == warns
    assert all("runs in 4 processes" in warning and "open_store" in warning for warning in warnings)


async def test_a_wait_for_uvicorn_ends_when_it_is_to_stop(
    handled: Callable[[signal.Signals, WebServer], None],
) -> None:
    server = WebServer()
    handled(signal.SIGTERM, server)
    stopped = anyio.Event()

    async def wait() -> None:
        await until_web_server_stops()
        stopped.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.sleep(30)
            assert not stopped.is_set()
            server.should_exit = True
            await anyio.sleep(1)
            assert stopped.is_set()


@pytest.mark.parametrize("has_server", [False, True])
async def test_without_uvicorn_no_web_server_is_seen_to_stop(has_server: bool) -> None:
    class Other:
        def handle(self, *_: Any) -> None:
            """Handle a signal."""

    former = signal.signal(signal.SIGTERM, Other().handle if has_server else signal.SIG_DFL)
    try:
        with anyio.move_on_after(PATIENCE) as scope:
            await until_web_server_stops()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert scope.cancelled_caught
