"""Faults that a runtime, a wire or an adapter can have, and the checks that find them.

The numbers are those of the field report; `mutants.py` has the faults of stores, queues and contexts.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    ProtocolError,
    TaskNotFoundError,
    TaskPage,
    TaskRecord,
    TaskRuntime,
    TaskSession,
    TaskSettings,
    TaskSpec,
    TaskView,
)
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._unwinding_call import UnwindingCall
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.adapters.mcp_v2._clients_2025 import Clients2025
from mcp_task_runtime.adapters.requestor import Requestor
from mcp_task_runtime.adapters.task_methods import TaskMethods
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.live_tasks import LiveTasks
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.workers import Workers
from mcp_task_runtime.errors import METHOD_NOT_FOUND
from mcp_task_runtime.testing import FakeClock, RecordingSession
from mcp_task_runtime.wire import v2026_07_28
from tests.mcp_v1.scenarios import b2_fault_23_a_call_in_the_wrong_mode_is_method_not_found
from tests.mcp_v2.test_legacy_clients import make_world

PATIENCE = 30.0
"""Seconds that something which must happen may take, on a machine that many share."""

BRIEFLY = 0.25
"""Seconds to wait for what a mutant never does."""

JSON = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What a server is put together from; a mutant has one part that is faulty.

    Attributes:
        patience: Seconds that something which must happen may take.
    """

    patience: float = BRIEFLY
    runtime: type[TaskRuntime] = TaskRuntime
    methods: type[TaskMethods] = TaskMethods
    legacy: type[Clients2025] = Clients2025
    handle: Callable[[Any], JSON] = v2026_07_28.render_handle
    view: Callable[[Any], JSON] = v2026_07_28.render_view


Check = Callable[[Parts], Awaitable[None]]


@dataclass(frozen=True)
class Mutant:
    """A server with one fault, and the check that must find it."""

    name: str
    fault: int
    check: Check
    parts: Parts = field(repr=False)

    def __str__(self) -> str:
        return f"{self.fault}-{self.name}"


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


async def run_check(check: Check, parts: Parts) -> None:
    """Run a check; a failure of any kind is an `AssertionError` that says so."""
    try:
        with anyio.move_on_after(3 * PATIENCE) as scope:
            await check(parts)
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"the server raised {error!r}") from error
    require(not scope.cancelled_caught, "the server hangs")


@dataclass
class Server:
    """A runtime with a clock of its own, and what clients reach it by."""

    parts: Parts
    runtime: TaskRuntime
    store: InMemoryTaskStore
    clock: FakeClock


@asynccontextmanager
async def open_server(parts: Parts, **settings: Any) -> AsyncIterator[Server]:
    clock = FakeClock()
    store = InMemoryTaskStore(clock=clock)
    runtime = parts.runtime(store, settings=TaskSettings(**{"shutdown_grace": 0, **settings}))
    async with runtime:
        yield Server(parts, runtime, store, clock)


@asynccontextmanager
async def open_methods(parts: Parts, **settings: Any) -> AsyncIterator[tuple[Server, TaskMethods]]:
    clock = FakeClock()
    store = InMemoryTaskStore(clock=clock)
    runtime = parts.runtime(store, settings=TaskSettings(**{"shutdown_grace": 0, **settings}))
    async with RuntimeHost(runtime) as host:
        yield Server(parts, runtime, store, clock), parts.methods(runtime, host)


class Work:
    """Work that waits, and notes what happens to it."""

    def __init__(self, patience: float = BRIEFLY) -> None:
        self.patience = patience
        self.go = anyio.Event()
        self.stopped = anyio.Event()
        self.told = False

    async def __call__(self, execution: Execution[JSON]) -> JSON:
        def tell() -> None:
            self.told = True

        execution.on_cancel(tell)
        try:
            await self.go.wait()
            return {"done": True}
        except anyio.get_cancelled_exc_class():
            self.stopped.set()
            raise

    async def is_stopped(self) -> bool:
        with anyio.move_on_after(self.patience):
            await self.stopped.wait()
        return self.stopped.is_set()


async def status_of(server: Server, task_id: str) -> str:
    record = await server.store.get_task(task_id)
    return "gone" if record is None else record.status


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """Collect what the library logs as an error."""
    messages: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, note = logging.getLogger("mcp_task_runtime"), Note(logging.ERROR)
    logger.addHandler(note)
    try:
        yield messages
    finally:
        logger.removeHandler(note)


# --- checks -------------------------------------------------------------------------------------------


async def cancelling_a_task_stops_its_work(parts: Parts) -> None:
    """L9."""
    async with open_server(parts) as server:
        work = Work(parts.patience)
        record = await server.runtime.submit(TaskSpec(), work)
        await anyio.wait_all_tasks_blocked()
        cancelled = await server.runtime.cancel(record.task_id, owner=None)
        require(cancelled.status == "cancelled", f"the cancelled task is {cancelled.status} (L9)")
        require(await work.is_stopped(), "the task is cancelled and its work runs on (L9)")
        require(work.told, "the work was not told to stop (L9)")


async def a_late_result_is_dropped(parts: Parts) -> None:
    """L9, L13."""
    with logged_errors() as errors:
        async with open_server(parts) as server:
            late, other = anyio.Event(), Work()

            async def defies(execution: Execution[JSON]) -> JSON:
                with anyio.CancelScope(shield=True):
                    await late.wait()
                return {"late": True}

            neighbour = await server.runtime.submit(TaskSpec(), other)
            record = await server.runtime.submit(TaskSpec(), defies)
            await anyio.wait_all_tasks_blocked()
            await server.runtime.cancel(record.task_id, owner=None)
            late.set()
            with anyio.move_on_after(parts.patience, shield=True):  # a broken server cancels what opened it
                await anyio.wait_all_tasks_blocked()
            require(not other.stopped.is_set(), "a late result stopped another's work (L13)")
            require(not errors, f"a late result is an error in the server: {errors} (L9)")
            outcome = await server.store.get_result(record.task_id)
            require(outcome == Outcome.cancelled(), f"a late result was kept: {outcome} (L9)")
            other.go.set()
            outcome = await server.runtime.result(neighbour.task_id, owner=None)
            require(outcome == Outcome.completed({"done": True}), f"another's work ended as {outcome} (L13)")


async def what_one_client_does_stops_nobody_elses_work(parts: Parts) -> None:
    """L13."""
    async with open_server(parts) as server:
        runtime = server.runtime
        leaving, first, second, later = [Work(parts.patience) for _ in range(4)]
        await runtime.submit(TaskSpec(), leaving, resource_scope="A")
        ours = await runtime.submit(TaskSpec(), first, resource_scope="B")
        theirs = await runtime.submit(TaskSpec(), second, resource_scope="B")
        await anyio.wait_all_tasks_blocked()
        await runtime.drain(resource_scope="A")
        require(leaving.stopped.is_set(), "the work of a connection that closed runs on")
        require(not first.stopped.is_set(), "one connection closed and another's work stopped (L13)")
        try:
            await runtime.submit(TaskSpec(), later, resource_scope="B")
        except RuntimeError as error:
            raise AssertionError("one connection closed and another cannot start tasks (L13)") from error
        await runtime.cancel(ours.task_id, owner=None)
        require(await first.is_stopped(), "cancelled work runs on (L9)")
        await anyio.wait_all_tasks_blocked()
        require(not second.stopped.is_set(), "one task was cancelled and another's work stopped (L13)")
        require(await status_of(server, theirs.task_id) == "working", "one cancel changed another's task (L13)")
        second.go.set()
        outcome = await runtime.result(theirs.task_id, owner=None)
        require(outcome.status == "completed", f"the other task ended as {outcome} (L13)")


async def work_ends_with_its_time_to_live(parts: Parts) -> None:
    """L7."""
    async with open_server(parts, retention_ms=60_000) as server:
        work = Work(parts.patience)
        record = await server.runtime.submit(TaskSpec(ttl_ms=10_000), work)
        await anyio.wait_all_tasks_blocked()
        server.clock.advance(9.95)
        require(await work.is_stopped(), "the work outlives its task (L7)")
        await anyio.wait_all_tasks_blocked()
        server.clock.advance(30)
        status = await status_of(server, record.task_id)
        require(status == "failed", f"a task whose time was over is {status}, and must be failed (L7)")
        outcome = await server.runtime.result(record.task_id, owner=None)
        require(outcome.error, f"a task whose time was over has no error: {outcome} (L7)")


async def a_foreign_task_is_like_an_unknown_one(parts: Parts) -> None:
    """L10."""
    async with open_server(parts) as server:
        runtime = server.runtime
        record = await runtime.submit(TaskSpec(owner="alice"), Work())
        ended = await runtime.submit(TaskSpec(owner="alice"), Work())
        await runtime.finish(ended.task_id, Outcome.completed({"secret": 1}))
        await anyio.wait_all_tasks_blocked()
        for owner in ("mallory", None):
            asked: dict[str, Callable[[str], Awaitable[Any]]] = {
                "get": partial(runtime.get, owner=owner),
                "result": partial(runtime.result, owner=owner),
                "answer": partial(runtime.answer, results={}, owner=owner),
                "cancel": partial(runtime.cancel, owner=owner),
            }
            for name, method in asked.items():
                endings: list[tuple[Any, ...]] = []
                for task_id in ("unknown", record.task_id, ended.task_id):
                    try:
                        with anyio.fail_after(parts.patience):
                            endings.append(("returned", await method(task_id)))
                    except Exception as error:
                        endings.append((type(error), str(error)))
                require(
                    endings == [(TaskNotFoundError, "Task not found")] * 3,
                    f"{name} of an unknown and of foreign tasks ended as {endings} (L10)",
                )
            page = await runtime.list(owner=owner)
            require(page.records == (), f"{owner} can list the tasks of alice (L10)")
        require(await status_of(server, record.task_id) == "working", "another owner ended the task (L10)")
        require((await runtime.get(record.task_id, owner="alice")).record.owner == "alice", "alice lost her task")


async def _call_2025(server: Server, methods: TaskMethods, work: Callable[[], Awaitable[JSON]]) -> JSON:
    async def job(call: TaskCall | UnwindingCall) -> JSON:
        assert isinstance(call, TaskCall)
        await call.begin()  # the clock that would do it stands still
        return await work()

    params = {"name": "tool", "arguments": {}, "task": {}}
    created = await methods.call(params, job, Requestor("me"), RecordingSession(), undeliverable=None)
    task: JSON = created["task"]
    return task


async def what_a_call_ended_with_can_be_fetched(parts: Parts) -> None:
    """L11, wire rules B5 and C6."""

    async def fails() -> JSON:
        raise ProtocolError(-32050, "no luck", {"code": 7})

    async def waits() -> JSON:
        await anyio.sleep_forever()
        raise AssertionError

    async def works() -> JSON:
        return {"content": [], "structuredContent": {"n": 1}}

    async with open_methods(parts) as (server, methods):

        async def fetch(task: JSON) -> Any:
            try:
                result = await methods.result({"taskId": task["taskId"]}, Requestor("me"), RecordingSession)
            except ProtocolError as error:
                return error.code, error.message, error.data
            return {name: value for name, value in result.items() if name != "_meta"}

        done, failed, cancelled = [await _call_2025(server, methods, job) for job in (works, fails, waits)]
        await methods.cancel({"taskId": cancelled["taskId"]}, Requestor("me"))
        require(await fetch(done) == await works(), "a result is not what the call returned (B5)")
        got = await fetch(failed)
        require(got == (-32050, "no luck", {"code": 7}), f"the result of a failed task is {got}, not its error (B5)")
        got = await fetch(cancelled)
        require(isinstance(got, tuple), f"the result of a cancelled task is {got}, not an error (B5)")
        shown = parts.view(await server.runtime.get(failed["taskId"], owner="me"))
        error = {"code": -32050, "message": "no luck", "data": {"code": 7}}
        require(shown.get("error") == error, f"a failed task is shown as {shown}, without its error (C6)")
        shown = parts.view(await server.runtime.get(done["taskId"], owner="me"))
        require(shown["result"]["structuredContent"] == {"n": 1}, f"a completed task is shown as {shown} (C6)")


async def the_ttl_is_always_there(parts: Parts) -> None:
    """Wire rule A4: for a task without a limit it is null."""

    async def waits() -> JSON:
        await anyio.sleep_forever()
        raise AssertionError

    for default in (None, 30_000):
        settings: Mapping[str, Any] = {"default_ttl_ms": default, "max_ttl_ms": None}
        async with open_methods(parts, **settings) as (server, methods):
            created = await _call_2025(server, methods, waits)
            task_id, me = created["taskId"], Requestor("me")
            view = await server.runtime.get(task_id, owner="me")
            shown = {
                "tools/call": created,
                "tasks/get": await methods.get({"taskId": task_id}, me),
                "tasks/list": (await methods.list(None, me))["tasks"][0],
                "tasks/cancel": await methods.cancel({"taskId": task_id}, me),
            }
            for method, task in shown.items():
                require("ttl" in task, f"{method} leaves ttl out (A4)")
                if method != "tasks/cancel":  # ending extends it, so that the outcome can be fetched
                    require(task["ttl"] == default, f"{method} shows a ttl of {task['ttl']}, not {default} (A4)")
            for name, task in (("handle", parts.handle(view.record)), ("view", parts.view(view))):
                require("ttlMs" in task, f"the {name} leaves ttlMs out (A4)")
                require(task["ttlMs"] == default, f"the {name} shows a ttlMs of {task['ttlMs']} (A4)")


async def a_call_in_the_wrong_mode_is_method_not_found(parts: Parts) -> None:
    """Wire rule B2, through the SDK: it is the adapter that knows the modes."""
    world = make_world()
    async with cast(Tasks, world.tasks) as tasks:
        tasks._clients_2025.__class__ = parts.legacy
        await b2_fault_23_a_call_in_the_wrong_mode_is_method_not_found(world)


CHECKS: tuple[Check, ...] = (
    cancelling_a_task_stops_its_work,
    a_late_result_is_dropped,
    what_one_client_does_stops_nobody_elses_work,
    work_ends_with_its_time_to_live,
    a_foreign_task_is_like_an_unknown_one,
    what_a_call_ended_with_can_be_fetched,
    the_ttl_is_always_there,
    a_call_in_the_wrong_mode_is_method_not_found,
)


# --- mutants ------------------------------------------------------------------------------------------


class CancelChangesTheStatusOnly(TaskRuntime):
    async def cancel(self, task_id: str, *, owner: str | None) -> TaskRecord:
        await self._reader.get_owned(task_id, owner)
        return await self.store.finish_task(task_id, Outcome.cancelled())


class MutatedRooms(TaskRuntime):
    """A runtime whose rooms may be faulty."""

    workers: type[Workers] = Workers
    live_tasks: type[LiveTasks] = LiveTasks
    group: type[IsolatedGroup] = IsolatedGroup
    reader: type[TaskReader] = TaskReader

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._workers.__class__ = self.workers
        self._live.__class__ = self.live_tasks
        self._group.__class__ = self.group
        self._reader.__class__ = self.reader


class CancelOnlyTellsTheWork(MutatedRooms):
    class workers(Workers):
        def stop(self, task_id: str) -> None:
            run = self._running.get(task_id)
            if run is not None and run._on_cancel is not None:
                run._on_cancel()


class CancelDoesNotTellTheWork(MutatedRooms):
    class workers(Workers):
        def stop(self, task_id: str) -> None:
            run = self._running.get(task_id)
            if run is not None:
                run.scope.cancel()


class AFailedTaskHasAnEmptyResult(TaskMethods):
    async def result(self, *args: Any, **more: Any) -> JSON:
        try:
            return await super().result(*args, **more)
        except ProtocolError:
            return {}


class ACancelledTaskHasAnEmptyResult(TaskMethods):
    async def result(self, *args: Any, **more: Any) -> JSON:
        try:
            return await super().result(*args, **more)
        except ProtocolError as error:
            if "cancelled" in error.message:
                return {}
            raise


class TheDataOfAnErrorIsLost(TaskMethods):
    async def result(self, *args: Any, **more: Any) -> JSON:
        try:
            return await super().result(*args, **more)
        except ProtocolError as error:
            raise ProtocolError(error.code, error.message) from None


def _without_error(view: TaskView) -> JSON:
    shown = v2026_07_28.render_view(view)
    shown.pop("error", None)
    return shown


class WorkOutlivesItsTask(MutatedRooms):
    class live_tasks(LiveTasks):
        async def run(self, on_due: Callable[[str], None]) -> None:
            await anyio.sleep_forever()


class AtItsDeadlineATaskDisappears(MutatedRooms):
    class workers(Workers):
        def expire(self, task_id: str) -> None:
            async def expire() -> None:
                run = self._running[task_id]
                self.stop(task_id)
                assert run.record is not None
                await self._endings.discard(run.record)

            self._group.start(expire, anyio.CancelScope())


class AtItsDeadlineATaskEndsAndItsWorkDoesNot(MutatedRooms):
    class workers(Workers):
        def expire(self, task_id: str) -> None:
            async def expire() -> None:
                run = self._running.pop(task_id)
                await self._finish_logged(task_id, Outcome.failed("too late"))
                self._running[task_id] = run

            self._group.start(expire, anyio.CancelScope())


class ALateResultIsAnError(MutatedRooms):
    class workers(Workers):
        async def _write_end(self, execution: Any, *args: Any) -> bool:
            if execution.record is not None:
                await self._endings.finish(execution.record.task_id, Outcome.completed({}))
            return False


class ALateResultTakesTheServerDown(MutatedRooms):
    class workers(Workers):
        async def _run(self, execution: Any, work: Any, outcome_of: Any, needs_slot: bool) -> None:
            await work(execution)
            await self._endings.finish(execution.record.task_id, Outcome.completed({}))

    class group(IsolatedGroup):
        def start(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope | None = None) -> None:
            async def run() -> None:
                with scope or anyio.CancelScope():
                    await function()

            assert self._group is not None
            self._group.start_soon(run)


class ALateResultOverwrites(MutatedRooms):
    class workers(Workers):
        async def _write_end(self, execution: Any, former: Any, end: Any, outcome_of: Any) -> bool:
            await super()._write_end(execution, former, end, outcome_of)
            store = cast(InMemoryTaskStore, self._endings._store)
            entry = store._entries[execution.record.task_id]
            outcome = outcome_of(end.value)
            entry.record = replace(
                entry.record, task=replace(entry.record.task, status=outcome.status), outcome=outcome
            )
            return False


class OneConnectionClosesAndEveryonesWorkStops(TaskRuntime):
    async def drain(self, *, resource_scope: Hashable | None = None, accept_new: bool = True) -> None:
        await super().drain(accept_new=accept_new)


class OneConnectionClosesAndNobodyCanStart(TaskRuntime):
    async def drain(self, *, resource_scope: Hashable | None = None, accept_new: bool = True) -> None:
        await super().drain(resource_scope=resource_scope, accept_new=False)


class OneCancelStopsAllWork(TaskRuntime):
    async def cancel(self, task_id: str, *, owner: str | None) -> TaskRecord:
        record = await super().cancel(task_id, owner=owner)
        for running in self.statistics().running:
            self._workers.stop(running)
        return record


class WhoeverHasTheIdMayDoAnything(MutatedRooms):
    class reader(TaskReader):
        async def get_owned(self, task_id: str, owner: str | None) -> TaskRecord:
            record = await self.get(task_id)
            if record is None:
                raise TaskNotFoundError(task_id)
            return record


class WhoeverHasTheIdMayRead(TaskRuntime):
    async def get(self, task_id: str, *, owner: str | None, rate_limited: bool = False) -> TaskView:
        record = await self.store.get_task(task_id)
        owner = owner if record is None else record.owner
        return await super().get(task_id, owner=owner, rate_limited=rate_limited)


class WhoeverHasTheIdMayCancel(TaskRuntime):
    async def cancel(self, task_id: str, *, owner: str | None) -> TaskRecord:
        return await self.finish(task_id, Outcome.cancelled())


class WhoeverHasNoPrincipalMayRead(MutatedRooms):
    class reader(TaskReader):
        async def get_owned(self, task_id: str, owner: str | None) -> TaskRecord:
            record = await self.get(task_id)
            if record is None or owner not in (None, record.owner):
                raise TaskNotFoundError(task_id)
            return record


class AForeignTaskIsForbidden(MutatedRooms):
    class reader(TaskReader):
        async def get_owned(self, task_id: str, owner: str | None) -> TaskRecord:
            record = await self.get(task_id)
            if record is not None and record.owner != owner:
                raise ProtocolError(-32602, "Not your task")
            return await super().get_owned(task_id, owner)


class EveryoneSeesTheList(TaskRuntime):
    async def list(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        return await super().list(owner="alice", cursor=cursor, limit=limit)


def _without_none(task: JSON) -> JSON:
    return {name: value for name, value in task.items() if value is not None}


class ANullTTLIsLeftOutOfTheHandle(TaskMethods):
    async def call(self, *args: Any, **more: Any) -> JSON:
        created = await super().call(*args, **more)
        return {**created, "task": _without_none(created["task"])}


class ANullTTLIsLeftOutOfTheTask(TaskMethods):
    async def get(
        self,
        params: Mapping[str, Any] | None,
        requestor: Requestor,
        connect: Callable[[], TaskSession] | None = None,
    ) -> JSON:
        return _without_none(await super().get(params, requestor, connect))


def _handle_without_none(record: TaskRecord) -> JSON:
    return _without_none(v2026_07_28.render_handle(record))


def _view_without_none(view: TaskView) -> JSON:
    return _without_none(v2026_07_28.render_view(view))


class AWrongModeIsAResult(Clients2025):
    async def _call(self, ctx: Any, call_next: Any) -> Any:
        try:
            return await super()._call(ctx, call_next)
        except ProtocolError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            return {"content": [{"type": "text", "text": error.message}], "isError": True}


class AMissingTaskIsAResult(AWrongModeIsAResult):
    async def _call(self, ctx: Any, call_next: Any) -> Any:
        if (ctx.params or {}).get("task") is None:
            return await super()._call(ctx, call_next)
        return await Clients2025._call(self, ctx, call_next)


def runtimes(fault: int, check: Check, *runtimes: type[TaskRuntime]) -> Iterator[Mutant]:
    return (Mutant(runtime.__name__, fault, check, Parts(runtime=runtime)) for runtime in runtimes)


def methods(fault: int, check: Check, *methods: type[TaskMethods]) -> Iterator[Mutant]:
    return (Mutant(each.__name__, fault, check, Parts(methods=each)) for each in methods)


MUTANTS: tuple[Mutant, ...] = (
    *runtimes(
        5,
        cancelling_a_task_stops_its_work,
        CancelChangesTheStatusOnly,
        CancelOnlyTellsTheWork,
        CancelDoesNotTellTheWork,
    ),
    *methods(
        9,
        what_a_call_ended_with_can_be_fetched,
        AFailedTaskHasAnEmptyResult,
        ACancelledTaskHasAnEmptyResult,
        TheDataOfAnErrorIsLost,
    ),
    Mutant("AFailedTaskIsShownWithoutItsError", 9, what_a_call_ended_with_can_be_fetched, Parts(view=_without_error)),
    *runtimes(
        14,
        work_ends_with_its_time_to_live,
        WorkOutlivesItsTask,
        AtItsDeadlineATaskDisappears,
        AtItsDeadlineATaskEndsAndItsWorkDoesNot,
    ),
    *runtimes(16, a_late_result_is_dropped, ALateResultIsAnError, ALateResultTakesTheServerDown, ALateResultOverwrites),
    *runtimes(
        17,
        what_one_client_does_stops_nobody_elses_work,
        OneConnectionClosesAndEveryonesWorkStops,
        OneConnectionClosesAndNobodyCanStart,
        OneCancelStopsAllWork,
    ),
    *runtimes(
        19,
        a_foreign_task_is_like_an_unknown_one,
        WhoeverHasTheIdMayDoAnything,
        WhoeverHasTheIdMayRead,
        WhoeverHasTheIdMayCancel,
        WhoeverHasNoPrincipalMayRead,
        AForeignTaskIsForbidden,
        EveryoneSeesTheList,
    ),
    *methods(22, the_ttl_is_always_there, ANullTTLIsLeftOutOfTheHandle, ANullTTLIsLeftOutOfTheTask),
    Mutant("ANullTTLIsLeftOutOfA2026Handle", 22, the_ttl_is_always_there, Parts(handle=_handle_without_none)),
    Mutant("ANullTTLIsLeftOutOfA2026View", 22, the_ttl_is_always_there, Parts(view=_view_without_none)),
    Mutant("AWrongModeIsAResult", 23, a_call_in_the_wrong_mode_is_method_not_found, Parts(legacy=AWrongModeIsAResult)),
    Mutant(
        "AMissingTaskIsAResult", 23, a_call_in_the_wrong_mode_is_method_not_found, Parts(legacy=AMissingTaskIsAResult)
    ),
)


# --- tests --------------------------------------------------------------------------------------------


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    for inner in (*getattr(error, "exceptions", ()), error.__cause__):
        if inner is not None:
            yield from _causes(inner)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_library_passes(check: Check) -> None:
    await run_check(check, Parts(patience=PATIENCE))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
async def test_each_fault_is_found_by_the_check_made_for_it(mutant: Mutant) -> None:
    with pytest.raises(AssertionError) as found:
        await run_check(mutant.check, mutant.parts)
    # Found by the fault, and not because the mutant no longer fits the class it changes.
    for cause in _causes(found.value):
        assert not isinstance(cause, AttributeError | NameError | TypeError)
    assert "hangs" not in str(found.value)


def test_each_check_and_each_fault_of_runtime_wire_and_adapter_has_a_mutant() -> None:
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)
    assert {mutant.fault for mutant in MUTANTS} == {5, 9, 14, 16, 17, 19, 22, 23}
