"""`TaskResultHandler`: questions reach clients that can answer, and survive those that cannot."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    Answer,
    ElicitResult,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    QueuedMessage,
    ServerTaskContext,
    StoreClosedError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from mcp_task_runtime.adapters.result_handler import HandlerStatistics, TaskResultHandler
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.yielding import YieldingTaskMessageQueue
from tests.adapters.scripted import (
    ACCEPT,
    DECLINE,
    FORM,
    JSON,
    Desk,
    ScriptedSession,
    answers,
    never,
    open_desk,
    raises,
)
from tests.support.event_loops import virtual_time
from tests.support.patience import PATIENCE

__all__ = ["virtual_time"]  # a fixture

RELATED = "io.modelcontextprotocol/related-task"


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is true that nothing announces."""
    while not condition():
        await anyio.wait_all_tasks_blocked()
        await anyio.lowlevel.checkpoint()


# --- waiting for the end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Outcome.completed({"n": 1}), Outcome.failed("x", code=-5), Outcome.cancelled()])
@pytest.mark.parametrize("before", [True, False])
async def test_every_waiter_gets_the_outcome_whether_it_came_before_or_after(outcome: Outcome, before: bool) -> None:
    """L3, F1, F2, F9, wire rule B5: results, errors and cancellations alike."""
    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Outcome] = []

        async def wait() -> None:
            got.append(await desk.handler.handle(desk.task_id, ScriptedSession()))

        if before:
            await desk.memory.finish_task(desk.task_id, outcome)
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(wait)
            if not before:
                await anyio.wait_all_tasks_blocked()
                assert got == []
                await desk.memory.finish_task(desk.task_id, outcome)
        assert got == [outcome] * 10


async def test_an_unknown_task_is_not_found() -> None:
    async with open_desk(delivering=False) as desk:
        with pytest.raises(TaskNotFoundError):
            await desk.handler.handle("unknown", desk.session)


@pytest.mark.parametrize("how", ["expires", "is deleted"])
async def test_whoever_waits_for_a_task_that_goes_is_told_so(how: str) -> None:
    """L3, L7, F20: the error itself, not a group of it."""
    async with open_desk(delivering=False, yielding=True, ttl_ms=10_000) as desk:
        raised: list[str] = []

        async def wait() -> None:
            with pytest.raises(TaskNotFoundError) as caught:
                await desk.handler.handle(desk.task_id, desk.session)
            raised.append(type(caught.value).__name__)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            if how == "expires":
                desk.clock.advance(10)
            else:
                await desk.memory.delete_task(desk.task_id)
        assert raised == ["TaskNotFoundError"]


async def test_a_store_that_closes_or_fails_is_the_error_itself() -> None:
    desk = Desk(ScriptedSession())
    await desk.open()
    raised: list[str] = []

    async def wait() -> None:
        with pytest.raises(StoreClosedError) as caught:
            await desk.handler.handle(desk.task_id, desk.session)
        raised.append(type(caught.value).__name__)

    async def down(task_id: str) -> None:
        raise StoreUnavailableError("down")

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await desk.memory.aclose()
        assert raised == ["StoreClosedError"]
        setattr(desk.memory, "get_task", down)  # noqa: B010
        with pytest.raises(StoreUnavailableError):
            await desk.handler.handle(desk.task_id, desk.session)
    assert desk.waiters() == 0


async def test_the_error_of_a_block_that_delivers_is_the_one_that_leaves_it() -> None:
    desk = Desk(ScriptedSession())
    await desk.open()

    async def serve() -> None:
        async with desk.handler.delivering(desk.task_id, desk.session):
            await anyio.lowlevel.checkpoint()
            raise LookupError("mine")

    with anyio.fail_after(PATIENCE):
        with pytest.raises(LookupError, match="mine"):
            await serve()
    assert desk.waiters() == 0


# --- delivering ------------------------------------------------------------------------------------------------


async def ask_and_note(desk: Desk, got: list[Any], message: str = "?") -> None:
    try:
        got.append(await desk.context.elicit(message, FORM))
    except (InvalidTransitionError, ProtocolError) as error:
        got.append(error)


@pytest.mark.parametrize("asked_first", [True, False])
async def test_questions_asked_before_and_after_the_stream_opened_are_delivered(asked_first: bool) -> None:
    """Wire rule B6."""
    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Any] = []
        session = ScriptedSession(answers(ACCEPT))
        async with anyio.create_task_group() as group:
            if asked_first:
                group.start_soon(ask_and_note, desk, got)
                await desk.until_asked()
            group.start_soon(desk.handler.handle, desk.task_id, session)
            await anyio.wait_all_tasks_blocked()
            if not asked_first:
                group.start_soon(ask_and_note, desk, got)
            await until(lambda: bool(got))
            await desk.memory.finish_task(desk.task_id, Outcome.cancelled())
        assert isinstance(got[0], ElicitResult)
        assert session.requests[0][1]["_meta"] == {RELATED: {"taskId": desk.task_id}}
        assert len(session.requests) == 1


async def test_a_question_that_was_never_answered_is_put_again_on_the_next_stream() -> None:
    """L5, F10, wire rule B6: the first client vanished in mid-delivery, without a word or with an error."""
    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note, desk, got)
            vanished = ScriptedSession(never)
            async with anyio.create_task_group() as connection:
                connection.start_soon(desk.handler.handle, desk.task_id, vanished)
                await vanished.until_requested()
                connection.cancel_scope.cancel()
            assert vanished.cancelled == 1
            assert await desk.state() == ("input_required", ["?"])

            broken = ScriptedSession(raises(ConnectionResetError("gone")))
            async with anyio.create_task_group() as connection:
                connection.start_soon(desk.handler.handle, desk.task_id, broken)
                await broken.until_requested()
                await anyio.wait_all_tasks_blocked()
                connection.cancel_scope.cancel()
            assert await desk.state() == ("input_required", ["?"])
            assert got == []

            async with desk.handler.delivering(desk.task_id, ScriptedSession(answers(ACCEPT))):
                await until(lambda: bool(got))
        assert isinstance(got[0], ElicitResult)
        assert await desk.state() == ("working", [])


async def test_a_stream_cancelled_at_any_await_leaves_the_question_open_or_answered() -> None:
    """L5, L6."""

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(answers(ACCEPT)), yielding=True)
        await desk.open()
        await desk.mailboxes.enqueue(
            desk.task_id, QueuedMessage.request("1", "elicitation/create", {"message": "?", "requestedSchema": FORM})
        )
        await desk.memory.update_task(desk.task_id, status="input_required")

        async def operation() -> None:
            async with desk.handler.delivering(desk.task_id, desk.session):
                while await desk.open_keys():
                    await anyio.lowlevel.checkpoint()

        return Trial(operation, desk.state, leftovers=desk.waiters)

    with anyio.fail_after(2 * PATIENCE):
        assert await check_cancellation(setup) > 3


async def test_a_second_stream_takes_over_what_a_broken_one_had_in_hand() -> None:
    """L5: a client that came back before its old connection was found dead."""
    gone = anyio.Event()

    async def breaks(method: str, params: JSON) -> JSON:
        await gone.wait()
        raise ConnectionResetError

    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Any] = []
        first, second = ScriptedSession(breaks), ScriptedSession(answers(ACCEPT))
        async with anyio.create_task_group() as group:
            group.start_soon(desk.handler.handle, desk.task_id, first)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask_and_note, desk, got)
            await first.until_requested()
            group.start_soon(desk.handler.handle, desk.task_id, second)
            await anyio.wait_all_tasks_blocked()
            assert second.requests == [], "the user is not asked twice at once"
            gone.set()
            await until(lambda: bool(got))
            group.start_soon(ask_and_note, desk, got, "again")
            await until(lambda: len(got) == 2)
            await desk.memory.finish_task(desk.task_id, Outcome.cancelled())
        assert [params["message"] for _, params in second.requests] == ["?", "again"]
        assert len(first.requests) == 1


async def test_a_stream_that_ends_hands_its_question_to_another_that_waits() -> None:
    """L5."""
    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Any] = []
        first, second = ScriptedSession(never), ScriptedSession(answers(ACCEPT))
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as connection:
                connection.start_soon(desk.handler.handle, desk.task_id, first)
                await anyio.wait_all_tasks_blocked()
                group.start_soon(ask_and_note, desk, got)
                await first.until_requested()
                group.start_soon(desk.handler.handle, desk.task_id, second)
                await anyio.wait_all_tasks_blocked()
                connection.cancel_scope.cancel()
            await until(lambda: bool(got))
            await desk.memory.finish_task(desk.task_id, Outcome.cancelled())
        assert isinstance(got[0], ElicitResult)


@pytest.mark.parametrize("alive", [True, False])
async def test_a_stream_that_no_longer_answers_is_asked_whether_it_lives(alive: bool) -> None:
    """L5, L7: transports whose streams end without a word; looked at again after five seconds of our clock."""
    living = True

    async def is_alive() -> bool:
        return living

    async with open_desk(delivering=False, yielding=True) as desk:
        got: list[Any] = []
        first, second = ScriptedSession(never), ScriptedSession(answers(ACCEPT))
        async with anyio.create_task_group() as group:
            group.start_soon(partial(desk.handler.handle, desk.task_id, first, is_alive=is_alive))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(ask_and_note, desk, got)
            await first.until_requested()
            group.start_soon(desk.handler.handle, desk.task_id, second)
            await anyio.wait_all_tasks_blocked()
            living = alive
            desk.clock.advance(5)
            await anyio.wait_all_tasks_blocked()
            assert len(second.requests) == (not alive)
            assert len(got) == (not alive)
            await desk.memory.finish_task(desk.task_id, Outcome.cancelled())
            await desk.queue.clear(desk.task_id)


async def test_a_question_answered_elsewhere_is_taken_back_from_the_stream() -> None:
    """L5: two eras, two connections, one answer."""
    async with open_desk(never, yielding=True) as desk:
        got: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note, desk, got)
            await desk.session.until_requested()
            (key,) = await desk.open_keys()
            await answer_questions(desk.store, desk.queue, desk.task_id, {key: Answer.result(ACCEPT)})
        await until(lambda: desk.session.cancelled == 1)
        assert isinstance(got[0], ElicitResult)


async def test_a_withdrawn_question_is_taken_back_from_the_stream() -> None:
    async with open_desk(never, yielding=True) as desk:
        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note, desk, [])
            await desk.session.until_requested()
            group.cancel_scope.cancel()
        await until(lambda: desk.session.cancelled == 1)
        assert await desk.state() == ("working", [])


async def test_one_question_that_nobody_answers_does_not_hold_up_the_next() -> None:
    """L13."""

    async def answer(method: str, params: JSON) -> JSON:
        if params["message"] == "slow":
            await anyio.sleep_forever()
        return ACCEPT

    async with open_desk(answer, yielding=True) as desk:
        got: list[Any] = []
        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note, desk, got, "slow")
            await desk.session.until_requested()
            group.start_soon(ask_and_note, desk, got, "quick")
            await until(lambda: bool(got))
            assert await desk.state() == ("input_required", ["slow"])
            group.cancel_scope.cancel()


async def test_an_answer_that_names_another_task_is_not_taken() -> None:
    """L10, F15."""
    replies = [{**ACCEPT, "_meta": {RELATED: {"taskId": "another"}}}, ACCEPT]

    async def answer(method: str, params: JSON) -> JSON:
        return replies.pop(0)

    async with open_desk(answer) as desk:
        assert (await desk.context.elicit("?", FORM)).action == "accept"
        assert len(desk.session.requests) == 2


async def test_a_client_that_always_answers_for_another_task_is_asked_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """L5, L10, L13: its question ends with an error, and it writes nothing into the server's log."""
    caplog.set_level(logging.INFO)
    async with open_desk(answers({**ACCEPT, "_meta": {RELATED: {"taskId": "another"}}})) as desk:
        with pytest.raises(ProtocolError, match="answered for another task"):
            await desk.context.elicit("?", FORM)
        assert len(desk.session.requests) == 3
        assert await desk.state() == ("working", [])
    assert caplog.records == []


async def test_a_stream_that_cannot_carry_requests_leaves_the_questions_to_others() -> None:
    """L5."""
    deaf = ScriptedSession(answers(DECLINE))
    deaf.can_send_request = False
    async with open_desk(answers(ACCEPT), delivering=False) as desk:
        got: list[Any] = []
        async with anyio.create_task_group() as group, desk.handler.delivering(desk.task_id, deaf):
            group.start_soon(ask_and_note, desk, got)
            await desk.until_asked()
            await anyio.wait_all_tasks_blocked()
            async with desk.handler.delivering(desk.task_id, desk.session):
                await until(lambda: bool(got))
        assert got[0].action == "accept"
        assert deaf.requests == []


@pytest.mark.parametrize("named", [True, False])
async def test_an_answer_may_name_its_own_task_or_none(named: bool) -> None:
    """Wire rule B6."""
    async with open_desk() as desk:
        meta = {"_meta": {RELATED: {"taskId": desk.task_id}}} if named else {}
        desk.session.answers = answers({**ACCEPT, **meta})
        assert (await desk.context.elicit("?", FORM)).action == "accept"
        assert len(desk.session.requests) == 1


async def test_an_answer_that_comes_after_the_end_is_dropped() -> None:
    """L9, L13: neither the task nor the stream notices."""
    release = anyio.Event()

    async def answer(method: str, params: JSON) -> JSON:
        with anyio.CancelScope(shield=True):
            await release.wait()
        return ACCEPT

    async with open_desk(answer, delivering=False, yielding=True) as desk:
        got: list[Any] = []
        outcomes: list[Outcome] = []

        async def wait() -> None:
            outcomes.append(await desk.handler.handle(desk.task_id, desk.session))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(ask_and_note, desk, got)
            await desk.session.until_requested()
            await desk.context.complete({"n": 1})
            await anyio.wait_all_tasks_blocked()
            release.set()
        assert outcomes == [Outcome.completed({"n": 1})]
        assert isinstance(got[0], InvalidTransitionError)
        assert desk.mailboxes.mailboxes == 0


async def test_an_answer_that_comes_in_an_outage_is_stored_after_it_and_not_asked_for_again() -> None:
    """L5, L12."""
    async with open_desk(answers(ACCEPT), yielding=True) as desk:
        got: list[Any] = []
        answer = desk.mailboxes.answer
        tried = anyio.Event()

        async def down(*_: Any) -> bool:
            tried.set()
            raise StoreUnavailableError("down")

        setattr(desk.mailboxes, "answer", down)  # noqa: B010
        async with anyio.create_task_group() as group:
            group.start_soon(ask_and_note, desk, got)
            await tried.wait()
            await anyio.wait_all_tasks_blocked()
            setattr(desk.mailboxes, "answer", answer)  # noqa: B010
            assert len(await desk.open_keys()) == 1
            while not got:  # noqa: ASYNC110 - nothing announces it
                await anyio.sleep(0.05)
        assert len(desk.session.requests) == 1


class UnreachableQueue(YieldingTaskMessageQueue):
    """A queue that cannot be reached for the first two calls of two methods."""

    def __init__(self, queue: TaskMessageQueue) -> None:
        super().__init__(queue)
        self.outages = {"outstanding": 2, "dequeue": 2}

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        self._call("outstanding")
        return await super().outstanding(task_id)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        self._call("dequeue")
        return await super().dequeue(task_id)

    def _call(self, method: str) -> None:
        if self.outages[method]:
            self.outages[method] -= 1
            raise StoreUnavailableError("down")


async def test_a_client_that_waits_for_the_result_takes_no_outage_for_the_end_of_its_task() -> None:
    """L12: questions and notifications come after it."""
    async with open_desk(delivering=False, yielding=True) as desk:
        queue = UnreachableQueue(desk.mailboxes)
        handler = TaskResultHandler(desk.store, queue)
        session = ScriptedSession(answers(ACCEPT))
        outcomes: list[Outcome] = []

        async def wait() -> None:
            outcomes.append(await handler.handle(desk.task_id, session))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await desk.queue.enqueue(desk.task_id, QueuedMessage.notification("notifications/message", {"data": 1}))
            got: list[Any] = []
            await ask_and_note(desk, got)
            assert got[0].action == "accept"
            while not session.notifications:  # noqa: ASYNC110 - nothing announces it
                await anyio.sleep(0.05)
            await desk.context.complete({"n": 1})
        assert outcomes == [Outcome.completed({"n": 1})]
        assert set(queue.outages.values()) == {0}


# --- notifications ---------------------------------------------------------------------------------------------


async def test_notifications_in_the_queue_go_to_the_client_with_their_task() -> None:
    async with open_desk() as desk:
        await desk.queue.enqueue(desk.task_id, QueuedMessage.notification("notifications/message", {"data": 1}))
        await until(lambda: bool(desk.session.notifications))
        assert desk.session.notifications == [
            ("notifications/message", {"data": 1, "_meta": {RELATED: {"taskId": desk.task_id}}})
        ]


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_notifications_queued_just_before_the_end_arrive_before_it(end: str) -> None:
    """Ending the task drops what is queued: what is there goes first."""

    class Slow(ScriptedSession):
        async def send_notification(self, method: str, params: JSON) -> None:
            await anyio.lowlevel.checkpoint()
            await super().send_notification(method, params)

    session = Slow()
    async with open_desk(delivering=False) as desk:
        seen: list[int] = []

        async def wait() -> None:
            await desk.handler.handle(desk.task_id, session)
            seen.append(len(session.notifications))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            for number in range(3):
                await desk.queue.enqueue(desk.task_id, QueuedMessage.notification("m", {"n": number}))
            if end == "complete":
                await desk.context.complete({}, notify=False)
            else:
                await desk.context.fail("no", notify=False)
        assert seen == [3]
        assert [params["n"] for _, params in session.notifications] == [0, 1, 2]


async def test_a_notification_goes_to_the_newest_stream_that_works_or_nowhere() -> None:
    async with open_desk(delivering=False) as desk:
        notify: Callable[[], Awaitable[bool]] = partial(desk.handler.notify, desk.task_id, "n", {})
        assert not await notify()
        older, newer = ScriptedSession(), ScriptedSession()
        async with desk.handler.delivering(desk.task_id, older):
            async with desk.handler.delivering(desk.task_id, newer):
                assert await notify()
            assert await notify()
        assert not await notify()
        assert (len(older.notifications), len(newer.notifications)) == (1, 1)


async def test_a_session_that_breaks_the_protocol_harms_its_own_stream_only() -> None:
    """L13: a session must not raise when its client has left, but one of your own may."""

    class Raising(ScriptedSession):
        async def send_notification(self, method: str, params: JSON) -> None:
            raise ConnectionResetError

    async with open_desk(delivering=False) as desk:
        raised: list[BaseException] = []

        async def wait() -> None:
            try:
                await desk.handler.handle(desk.task_id, Raising())
            except Exception as error:
                raised.append(error)

        outcomes: list[Outcome] = []

        async def wait_well() -> None:
            outcomes.append(await desk.handler.handle(desk.task_id, ScriptedSession()))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await desk.queue.enqueue(desk.task_id, QueuedMessage.notification("m", {}))
            await anyio.wait_all_tasks_blocked()
            group.start_soon(wait_well)
            await anyio.wait_all_tasks_blocked()
            await desk.memory.finish_task(desk.task_id, Outcome.cancelled())
        assert outcomes == [Outcome.cancelled()]


@pytest.mark.parametrize(
    ("status", "result", "says"),
    [
        ("completed", {}, None),
        ("completed", DECLINE, None),
        ("failed", DECLINE, None),
        ("failed", {}, "The client's task failed: out of ink"),
    ],
)
async def test_b12_a_clients_task_that_failed_without_an_answer_is_an_error(
    status: str, result: JSON, says: str | None
) -> None:
    asked: list[str] = []
    related = {"_meta": {RELATED: {"taskId": "theirs"}}}

    async def answer(method: str, params: JSON) -> JSON:
        asked.append(method)
        match method:
            case "tasks/get":
                return {"taskId": "theirs", "status": status, "statusMessage": "out of ink"}
            case "tasks/result":
                return {**result, **related}
            case _:
                return {"task": {"taskId": "theirs", "status": "working", "pollInterval": 0}}

    async with open_desk(answer) as desk:
        if says is not None:
            with pytest.raises(ProtocolError, match=says):
                await desk.context.elicit_as_task("Sure?", FORM)
        elif result:
            assert (await desk.context.elicit_as_task("Sure?", FORM)).action == "decline"
        else:
            with pytest.raises(ProtocolError, match="Invalid answer"):
                await desk.context.elicit_as_task("Sure?", FORM)
    assert asked == ["elicitation/create", "tasks/get", "tasks/result"]


async def test_b12_a_clients_task_is_known_to_the_next_stream_but_not_longer_than_our_task_lives() -> None:
    """L8: a question whose task expired unanswered leaves nothing behind once another one is asked."""
    asked = anyio.Event()

    async def answer(method: str, params: JSON) -> JSON:
        if method == "tasks/get":
            await anyio.sleep_forever()
        asked.set()
        return {"task": {"taskId": "theirs", "status": "working", "pollInterval": 0}}

    async with open_desk(answer, delivering=False) as desk, anyio.create_task_group() as group:
        got: list[Any] = []
        group.start_soon(ask_for_a_task, desk.context, got)
        async with desk.handler.delivering(desk.task_id, desk.session):
            await asked.wait()
            await anyio.wait_all_tasks_blocked()
        assert got == []
        assert desk.handler.statistics() == HandlerStatistics(streams=0, tasks=0, client_tasks=1)
        desk.clock.advance(60)
        await until(lambda: len(got) == 1)
        assert isinstance(got[0], TaskNotFoundError)

        asked = anyio.Event()
        other = await desk.memory.create_task(NewTask(ttl_ms=60_000))
        context = ServerTaskContext(
            task=other.task, store=desk.store, session=desk.session, queue=desk.queue, handler=desk.handler
        )
        group.start_soon(ask_for_a_task, context, got)
        async with desk.handler.delivering(other.task_id, desk.session):
            await asked.wait()
            await anyio.wait_all_tasks_blocked()
            assert desk.handler.statistics() == HandlerStatistics(streams=1, tasks=1, client_tasks=1)
            await desk.memory.finish_task(other.task_id, Outcome.cancelled())
        assert desk.handler.statistics().client_tasks == 0


async def ask_for_a_task(context: ServerTaskContext, got: list[Any]) -> None:
    try:
        got.append(await context.elicit_as_task("Sure?", FORM))
    except Exception as error:
        got.append(error)
