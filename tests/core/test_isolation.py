"""No task's path leads to another: what work, stores and callbacks do ends one task at the most (L13)."""

from __future__ import annotations

import asyncio
import builtins
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from typing_extensions import Unpack

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    StoreError,
    StoreUnavailableError,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core import store_calls
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.store_calls import store_errors
from mcp_task_runtime.core.types import NewTask, NewTaskFields, TaskRecord, TaskRequest
from tests.core.worlds import open_world
from tests.support.patience import PATIENCE

JSON = dict[str, Any]
NAMED = TaskSpec(request=TaskRequest(name="report"))


async def forever(execution: Execution[JSON]) -> JSON:
    await anyio.sleep_forever()
    raise AssertionError


def nested(levels: int) -> Any:
    value: Any = "leaf"
    for _ in range(levels):
        value = {"a": value}
    return value


async def deep(execution: Execution[JSON]) -> JSON:
    return {"result": nested(210)}


async def surrogate(execution: Execution[JSON]) -> JSON:
    return {"result": "\ud800"}


async def huge(execution: Execution[JSON]) -> JSON:
    return {"result": 10**5000}


async def exits(execution: Execution[JSON]) -> JSON:
    raise SystemExit(3)


async def breaks(execution: Execution[JSON]) -> JSON:
    raise LookupError("a detail for the log alone")


async def raises_a_group(execution: Execution[JSON]) -> JSON:
    async with anyio.create_task_group() as group:
        group.start_soon(breaks, execution)
        group.start_soon(anyio.sleep, 0)
    raise AssertionError


@pytest.mark.parametrize("work", [deep, surrogate, huge, exits, raises_a_group])
async def test_work_that_ends_badly_fails_its_task_alone(work: Callable[[Execution[JSON]], Awaitable[JSON]]) -> None:
    """L4: what could not be read back is refused when it is written."""
    async with open_world() as world:
        other = await world.runtime.submit(TaskSpec(owner="me"), forever)
        record = await world.runtime.submit(TaskSpec(owner="me"), work)
        outcome = await world.runtime.result(record.task_id, owner="me")
        assert outcome.error == {"code": -32603, "message": "Internal error"}
        page = await world.runtime.list(owner="me")
        assert [each.status for each in page.records] == ["working", "failed"]
        assert world.runtime.statistics().running == {other.task_id}
        third = await world.runtime.submit(TaskSpec(owner="me"), forever)
        assert (await world.runtime.get(third.task_id, owner="me")).task.status == "working"


async def test_work_that_awaits_what_other_code_cancelled_fails_its_task_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pool that closed, for example: on asyncio the awaiting work raises what a cancelled scope raises."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        pytest.skip("trio has no futures that other code can cancel")

    async def struck(execution: Execution[JSON]) -> JSON:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.cancel)
        await future
        raise AssertionError

    async with open_world() as world:
        other = await world.runtime.submit(NAMED, forever)
        record = await world.runtime.submit(NAMED, struck)
        outcome = await world.runtime.result(record.task_id, owner=None)
        assert outcome.error == {"code": -32603, "message": "Internal error"}
        with pytest.raises(RuntimeError, match="does not own it"):
            await world.runtime.run(struck)
        assert world.runtime.statistics().running == {other.task_id}
        await world.runtime.submit(NAMED, forever)
    assert "'report'" in caplog.text


# --- stores of others -----------------------------------------------------------------------------------------------


class Foreign(InMemoryTaskStore):
    """A shared store whose method raises an exception of its own for one task."""

    def __init__(self, method: str, *, times: int = 1) -> None:
        super().__init__()
        self.is_shared = True
        self.task_id: str | None = None
        self.left = times
        inner = getattr(self, method)

        async def flaky(task_id: str, *args: Any, **more: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            if task_id == self.task_id and self.left:
                self.left -= 1
                raise ConnectionResetError("a secret of the backend")
            return await inner(task_id, *args, **more)

        setattr(self, method, flaky)


@pytest.mark.parametrize("method", ["wait_for_update", "get_owned", "finish_task", "delete_task"])
async def test_what_a_foreign_store_raises_for_one_task_touches_no_other(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_calls, "_PAUSE", Backoff(first=0.001, longest=0.002))
    store = Foreign(method, times=3)
    release = anyio.Event()

    async def work(execution: Execution[JSON]) -> JSON:
        await release.wait()
        return {"n": 1}

    async def reads(runtime: TaskRuntime, task_id: str) -> None:
        for read in (runtime.get, runtime.result, runtime.cancel):
            with pytest.raises(StoreError, match="Internal error") as caught:
                await read(task_id, owner=None)
            assert "secret" not in str(caught.value)

    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
            other = await runtime.submit(TaskSpec(), forever)
            store.task_id = (record := await runtime.submit(TaskSpec(), work)).task_id
            if method == "get_owned":
                await reads(runtime, record.task_id)
            release.set()
            while (await store.get_result(record.task_id)) is None:
                await anyio.lowlevel.checkpoint()
            assert await store.get_result(record.task_id) == Outcome.completed({"n": 1})
            assert (await runtime.get(other.task_id, owner=None)).task.status == "working"
            await runtime.submit(TaskSpec(), forever)
            assert len(runtime.statistics().running) == 2


class Unheard(BaseException):
    """What a driver in C may raise."""


@pytest.mark.parametrize("kind", ["class", "group", "cancellation"])
async def test_what_a_foreign_store_raises_to_a_request_is_an_error_of_the_store_whatever_its_class(
    kind: str, anyio_backend_name: str
) -> None:
    """L13: what is no `Exception` would end the connection that asks."""
    store = InMemoryTaskStore()

    async def get_owned(task_id: str, *, owner: str | None) -> Any:
        if kind == "cancellation":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        raise _group() if kind == "group" else Unheard("secret")

    if kind == "cancellation" and (anyio_backend_name == "trio" or sys.version_info < (3, 11)):
        pytest.skip("a task of asyncio says since Python 3.11 whether it was cancelled")
    async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
        record = await runtime.submit(TaskSpec(), forever)
        store.get_owned = get_owned  # type: ignore[method-assign]
        for read in (runtime.get, runtime.result, runtime.cancel):
            with pytest.raises(StoreError, match="Internal error"):
                await read(record.task_id, owner=None)
        assert runtime.statistics().running == {record.task_id}


def _group() -> BaseException:
    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    return Unheard("no groups before Python 3.11") if group is None else group("g", [GeneratorExit(), Unheard()])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_or_the_coroutine_passes(error: type[BaseException]) -> None:
    async def main() -> None:
        with store_errors():
            raise error

    coroutine = main()
    with pytest.raises(error):
        coroutine.send(None)


async def test_a_cancellation_passes_and_is_no_error_of_the_store() -> None:
    with anyio.move_on_after(0) as scope, store_errors():
        await anyio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_task_that_cannot_be_created_is_an_error_without_the_text_of_the_backend() -> None:
    class Broken(InMemoryTaskStore):
        async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
            raise ConnectionResetError("a secret of the backend")

    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(Broken()) as runtime:
            with pytest.raises(StoreError, match=r"^Internal error$"):
                await runtime.submit(TaskSpec(), forever)
            statistics = runtime.statistics()
            assert (statistics.live_tasks, statistics.owners, statistics.stored_tasks) == (0, 0, 0)


async def test_a_callback_of_on_cancel_that_raises_stops_the_work_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stopped = anyio.Event()

    async def work(execution: Execution[JSON]) -> JSON:
        def broken() -> None:
            raise LookupError

        execution.on_cancel(broken)
        try:
            return await forever(execution)
        finally:
            stopped.set()

    async with open_world() as world:
        other = await world.runtime.submit(TaskSpec(), forever)
        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        await world.runtime.cancel(record.task_id, owner=None)
        await stopped.wait()
        await world.runtime.cancel(other.task_id, owner=None)
    assert "on_cancel" in caplog.text


@pytest.mark.parametrize("task_id", ["\ud800", "a\udfff", "unknown", "\0"])
async def test_an_id_that_is_no_text_is_an_unknown_one(task_id: str) -> None:
    async with open_world() as world:
        for method in (world.runtime.get, world.runtime.cancel, world.runtime.result):
            with pytest.raises(LookupError, match="Task not found"):
                await method(task_id, owner=None)


@pytest.mark.parametrize(
    "spec", [TaskSpec(owner="a\ud800"), TaskSpec(request=TaskRequest(name="\udfff"))], ids=["owner", "name"]
)
async def test_an_owner_or_a_name_that_is_no_text_is_refused(spec: TaskSpec) -> None:
    async with open_world() as world:
        with pytest.raises(ValueError, match="is not Unicode text"):
            await world.runtime.submit(spec, forever)
        assert world.runtime.statistics().live_tasks == 0


class Looping(Exception):
    """A class of the author's whose attribute holds the exception itself."""

    def __init__(self) -> None:
        super().__init__("loops")
        self.exceptions = (self,)


class Touchy(Exception):
    """A class of the author's that cannot be looked at."""

    @property
    def exceptions(self) -> Any:
        raise RuntimeError("do not look")

    def __str__(self) -> str:
        raise RuntimeError("do not read")


def deeply_grouped() -> BaseException:
    """An exception in so many groups that no recursion reaches it."""
    error: BaseException = ValueError("deep")
    for _ in range(3_000):
        outer = Looping()
        outer.exceptions = (error,)  # type: ignore[assignment]
        error = outer
    return error


def caused_in_a_circle() -> BaseException:
    error, cause = ValueError("a"), KeyError("b")
    error.__cause__, cause.__cause__ = cause, error
    return error


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("odd", [Looping, Touchy, deeply_grouped, caused_in_a_circle], ids=lambda make: make.__name__)
async def test_whatever_exception_work_raises_ends_its_task_alone(
    odd: Callable[[], BaseException], stops: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """L13: also where it is raised by work that is stopped."""
    caplog.set_level(logging.CRITICAL)

    async def work(execution: Execution[JSON]) -> JSON:
        try:
            if stops:
                await anyio.sleep_forever()
        finally:
            raise odd()

    async with open_world() as world:
        other = await world.runtime.submit(TaskSpec(), forever)
        record = await world.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        if stops:
            await world.runtime.cancel(record.task_id, owner=None)
        await world.until(record.task_id, "cancelled" if stops else "failed")
        while record.task_id in world.runtime.statistics().running:
            await anyio.lowlevel.checkpoint()
        assert world.runtime.statistics().running == {other.task_id}


# --- the log --------------------------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(each.levelname, each.message) for each in caplog.records if each.name == "mcp_task_runtime.tasks"]


async def test_operators_read_why_a_task_failed_and_which(caplog: pytest.LogCaptureFixture) -> None:
    spec = TaskSpec(owner="alice", ttl_ms=10_000, request=TaskRequest(name="report"))
    caplog.set_level(logging.INFO)
    async with open_world() as world:
        broken = await world.runtime.submit(spec, breaks)
        await world.until_idle()
        expired = await world.runtime.submit(spec, forever)
        cancelled = await world.runtime.submit(spec, forever)
        await anyio.wait_all_tasks_blocked()
        await world.runtime.cancel(cancelled.task_id, owner="alice")
        world.clock.advance(9.5)
        await world.until(expired.task_id, "failed")
        interrupted = await world.runtime.submit(spec, forever)
        await anyio.wait_all_tasks_blocked()
    said = lines(caplog)
    expected = [
        ("ERROR", broken, "Task {} failed: its work raised an exception"),
        ("WARNING", cancelled, "Task {} was cancelled"),
        ("WARNING", expired, "Task {} failed: its time to live passed"),
        ("WARNING", interrupted, "Task {} failed: the server was shut down"),
    ]
    assert said == [(level, text.format(f"{record.task_id} ('report')")) for level, record, text in expected]
    assert "a detail for the log alone" in caplog.text
    assert all("alice" not in message for _, message in said)


async def test_a_store_that_is_unavailable_is_waited_for_by_whoever_waits_for_a_result() -> None:
    """L12: an outage is no answer."""
    store = Foreign("wait_for_update")
    store.left = 0
    inner = store.wait_for_update
    failures = 3

    async def away(task_id: str, *, after: int) -> Any:
        nonlocal failures
        await anyio.lowlevel.checkpoint()
        if failures:
            failures -= 1
            raise StoreUnavailableError("away")
        return await inner(task_id, after=after)

    store.wait_for_update = away  # type: ignore[method-assign]
    with anyio.fail_after(PATIENCE):
        async with TaskRuntime(store, settings=TaskSettings(shutdown_grace=0)) as runtime:
            record = await runtime.submit(TaskSpec(), forever)
            async with anyio.create_task_group() as group:
                got: list[Outcome] = []

                async def wait() -> None:
                    got.append(await runtime.result(record.task_id, owner=None))

                group.start_soon(wait)
                while failures:
                    await anyio.lowlevel.checkpoint()
                await store.finish_task(record.task_id, Outcome.cancelled())
    assert got == [Outcome.cancelled()]
