"""A client that does not read its notifications does not hold up the work (law L13)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest

from mcp_task_runtime import Outcome
from mcp_task_runtime.adapters.notifications import NO_TOKEN, CallNotifier, InTurn, LatestSender
from mcp_task_runtime.adapters.session import DetachedSession
from tests.adapters.scripted import JSON, ScriptedSession, open_desk
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class SlowReader(ScriptedSession):
    """A client that reads only while `reads` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = anyio.Event()

    async def send_notification(self, method: str, params: JSON) -> None:
        await self.reads.wait()
        await super().send_notification(method, params)


async def test_work_goes_on_while_its_client_does_not_read() -> None:
    """Five status messages took twenty seconds; now the first miss costs half a second, and the others nothing."""
    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=(reader := SlowReader()))
        started = anyio.current_time()
        for number in range(50):
            await context.update_status(f"step {number}")
        assert anyio.current_time() - started < 12
        reader.reads.set()
        await context.complete({"content": []})
        assert [params["status"] for _, params in reader.notifications] == ["completed"], "only the newest"


async def test_a_client_that_reads_gets_every_message_in_order() -> None:
    async with open_desk() as desk:
        for number in range(5):
            await desk.context.update_status(str(number))
        assert [params["statusMessage"] for _, params in desk.session.notifications] == ["0", "1", "2", "3", "4"]


async def test_a_client_that_reads_again_gets_the_newest_of_each_kind() -> None:
    reader = SlowReader()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            sender = LatestSender(reader, group.start_soon)
            for number in range(5):
                await sender.send("status", {"n": number})
                await sender.send("progress", {"n": number})
            assert reader.notifications == []
            reader.reads.set()
        assert sorted(reader.notifications) == [("progress", {"n": 4}), ("status", {"n": 4})]
        await sender.send("status", {"n": 5})
        assert reader.notifications[-1] == ("status", {"n": 5})


async def test_work_that_is_cancelled_while_a_client_does_not_read_leaves_the_sender_usable() -> None:
    reader = SlowReader()
    sender = LatestSender(reader)
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(sender.send, "status", {"n": 1})
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        reader.reads.set()
        await sender.send("status", {"n": 2})
    assert reader.notifications == [("status", {"n": 2})]


async def test_a_session_that_raises_does_not_hurt_the_work() -> None:
    class Raising(ScriptedSession):
        async def send_notification(self, method: str, params: JSON) -> None:
            raise ConnectionResetError

    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=Raising())
        await context.update_status("reading")
        await context.report_progress(1)
        await context.complete({"content": []})
        assert await desk.status() == "completed"


async def test_a_session_that_knows_its_protocol_says_how_its_client_hears_of_the_task() -> None:
    told: list[Any] = []

    class Own(ScriptedSession):
        async def notify_status(self, task: Any, outcome: Outcome | None) -> None:
            told.append((task.status, task.status_message, outcome is not None))

        async def notify_progress(self, task: Any, progress: Any) -> None:
            told.append((task.status_message, progress.progress, progress.total, progress.message))

    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=(session := Own()))
        await context.report_progress(1, 2, "Reading")
        await context.update_status("quietly", notify=False)
        await context.complete({"content": []})
        assert session.notifications == []
        assert told == [("Reading (1/2)", 1, 2, "Reading"), ("completed", None, True)]


async def say_all(session: object) -> None:
    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=session)
        await context.update_status("Collecting")
        await context.report_progress(1, 4, "Reading")
        await context.update_status("Sorting")
        await context.report_progress(2)
        await context.complete({"content": []})


async def test_what_the_work_of_a_plain_call_says_is_its_progress_and_always_grows() -> None:
    session = ScriptedSession()
    await say_all(CallNotifier(session, "t"))
    assert session.notifications == [
        ("notifications/progress", {"progressToken": "t", "progress": 0, "message": "Collecting"}),
        ("notifications/progress", {"progressToken": "t", "progress": 1, "total": 4, "message": "Reading"}),
        ("notifications/progress", {"progressToken": "t", "progress": 1.001, "message": "Sorting"}),
        ("notifications/progress", {"progressToken": "t", "progress": 2}),
    ]


async def test_a_client_without_a_token_gets_log_messages_if_it_asked_for_them() -> None:
    session = ScriptedSession()
    await say_all(CallNotifier(session, None, log_levels=["info"]))
    assert session.notifications == [
        ("notifications/message", {"level": "info", "data": text}) for text in ("Collecting", "Reading", "Sorting", "2")
    ]


async def test_a_session_with_a_way_for_progress_without_a_token_gets_that_and_the_log_messages() -> None:
    session = ScriptedSession()
    await say_all(CallNotifier(session, None, log_levels=["info"], may_lack_token=True))
    assert session.notifications[:2] == [
        ("notifications/progress", {"progressToken": NO_TOKEN, "progress": 0, "message": "Collecting"}),
        ("notifications/message", {"level": "info", "data": "Collecting"}),
    ]


async def test_a_client_that_asked_for_neither_is_told_nothing_of_its_plain_call() -> None:
    session = ScriptedSession()
    await say_all(CallNotifier(session, None))
    assert session.notifications == []


async def test_a_detached_session_tells_nothing() -> None:
    await say_all(DetachedSession())


@pytest.mark.parametrize("outcome", [Outcome.completed({}), Outcome.failed("no")])
async def test_the_end_of_a_plain_call_is_its_result_and_no_message(outcome: Outcome) -> None:
    async with open_desk(delivering=False) as desk:
        session = ScriptedSession()
        context = desk.another_context(session=CallNotifier(session, None, log_levels=["info"]))
        await context.update_status("half")
        assert context.task.status_message == "half"
        said = len(session.notifications)
        await CallNotifier(session, None, log_levels=["info"]).notify_status(context.task, outcome)
        assert len(session.notifications) == said


class Steps:
    """Functions for `InTurn` that note what they do."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.may_end = anyio.Event()

    async def note(self, name: str) -> None:
        self.seen.append(name)

    async def hang(self, name: str) -> None:
        self.seen.append(name)
        await self.may_end.wait()

    async def fail(self) -> None:
        raise RuntimeError("a fault of one client")


async def test_functions_run_one_after_the_other_and_one_that_raises_hurts_none() -> None:
    steps = Steps()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            turns = InTurn(group.start_soon)
            turns.start_soon(partial(steps.hang, "first"))
            turns.start_soon(steps.fail)
            turns.start_soon(partial(steps.note, "second"))
            await anyio.wait_all_tasks_blocked()
            assert steps.seen == ["first"]
            steps.may_end.set()
            await anyio.wait_all_tasks_blocked()
            turns.start_soon(partial(steps.note, "third"))  # it waits for more
            await anyio.wait_all_tasks_blocked()
            turns.close()
    assert steps.seen == ["first", "second", "third"]


@pytest.mark.parametrize("begins", [True, False], ids=["running", "not yet running"])
async def test_a_close_cancels_what_runs_and_drops_what_waits(begins: bool) -> None:
    steps = Steps()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            turns = InTurn(group.start_soon)
            turns.start_soon(partial(steps.hang, "first"))
            turns.start_soon(partial(steps.note, "second"))
            if begins:
                await anyio.wait_all_tasks_blocked()
            turns.close()
            turns.start_soon(partial(steps.note, "third"))
    assert steps.seen == (["first"] if begins else [])


async def test_where_its_background_is_cancelled_the_next_function_starts_it_again() -> None:
    steps = Steps()
    starts: list[Callable[[Callable[[], Coroutine[Any, Any, None]]], object]] = []
    turns = InTurn(lambda function: starts[-1](function))
    with anyio.fail_after(PATIENCE):
        for name in ("first", "second"):
            async with anyio.create_task_group() as group:
                starts.append(group.start_soon)
                turns.start_soon(partial(steps.hang, name))
                turns.start_soon(partial(steps.note, "never"))
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
    assert steps.seen == ["first", "second"]


async def test_what_starts_it_first_does_not_live_as_long() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    seen: list[str] = []

    async def look() -> None:
        seen.append(variable.get())

    async with anyio.create_task_group() as group:
        turns = InTurn(group.start_soon)
        variable.set("of the first task")
        turns.start_soon(look)
        await anyio.wait_all_tasks_blocked()
        turns.close()
    assert seen == ["nothing"]


async def test_where_nothing_can_be_started_the_next_function_tries_again() -> None:
    steps = Steps()

    def refuse(function: object) -> None:
        raise RuntimeError("The runtime is not open")

    starts: list[Callable[[Any], object]] = [refuse]
    turns = InTurn(lambda function: starts[-1](function))
    with pytest.raises(RuntimeError, match="not open"):
        turns.start_soon(partial(steps.note, "first"))
    async with anyio.create_task_group() as group:
        starts.append(group.start_soon)
        turns.start_soon(partial(steps.note, "second"))
        await anyio.wait_all_tasks_blocked()
        turns.close()
    assert steps.seen == ["second"]
