from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    ServerTaskContext,
    TaskResultHandler,
    TaskSession,
)
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.testing import RecordingSession
from tests.support.event_loops import in_virtual_time
from tests.support.patience import PATIENCE

JSON = dict[str, Any]
ACCEPT: JSON = {"action": "accept", "content": {"ok": True}}
FORM: JSON = {"type": "object", "properties": {"ok": {"type": "boolean"}}}


def test_it_is_a_session_whose_client_declares_everything_or_what_it_is_told() -> None:
    assert isinstance(RecordingSession(), TaskSession)
    assert set(RecordingSession().client_capabilities) == {"elicitation", "sampling", "roots", "tasks"}
    assert RecordingSession(capabilities={}).client_capabilities == {}
    RecordingSession().client_capabilities.clear()
    assert RecordingSession().client_capabilities, "each session has capabilities of its own"


async def test_everything_sent_is_noted_as_it_was() -> None:
    session = RecordingSession({"roots/list": {"roots": []}})
    params: JSON = {"n": [1]}
    await session.send_notification("notifications/progress", params)
    await session.send_request("roots/list", params)
    params["n"].append(2)
    assert session.notifications == [("notifications/progress", {"n": [1]})]
    assert session.requests == [("roots/list", {"n": [1]})]
    assert session.methods == ["roots/list"]


async def test_answers_are_found_by_method() -> None:
    async def double(params: JSON) -> JSON:
        return {"n": 2 * params["n"]}

    session = RecordingSession({"a": {"n": 1}, "b": double, "c": ProtocolError(-1, "refused", {"why": "no"})})
    answer = await session.send_request("a", {})
    assert answer == {"n": 1}
    answer["n"] = 9
    assert await session.send_request("a", {}) == {"n": 1}
    assert await session.send_request("b", {"n": 4}) == {"n": 8}
    with pytest.raises(ProtocolError, match="refused") as refused:
        await session.send_request("c", {})
    assert (refused.value.code, refused.value.data) == (-1, {"why": "no"})
    with pytest.raises(ProtocolError, match="'d'") as unknown:
        await session.send_request("d", {})
    assert unknown.value.code == -32601
    assert session.methods == ["a", "a", "b", "c", "d"]


async def test_one_function_can_answer_everything_and_be_replaced() -> None:
    async def echo(method: str, params: JSON) -> JSON:
        return {method: params}

    session = RecordingSession(echo)
    assert await session.send_request("a", {"n": 1}) == {"a": {"n": 1}}
    session.answers = {"a": {}}
    assert await session.send_request("a", {"n": 1}) == {}


@in_virtual_time
async def test_a_client_without_answers_reads_and_keeps_silent() -> None:
    session = RecordingSession()
    with anyio.move_on_after(0.02) as scope:
        await session.send_request("a", {})
    assert scope.cancelled_caught
    assert session.methods == ["a"]
    assert session.cancelled == 1


async def test_all_who_wait_for_a_request_are_woken() -> None:
    session = RecordingSession({"a": {}})
    woken: list[int] = []

    async def wait(count: int) -> None:
        await session.until_requested(count)
        woken.append(count)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for count in (2, 1, 1):
                group.start_soon(wait, count)
            await anyio.wait_all_tasks_blocked()
            await session.send_request("a", {})
            await anyio.wait_all_tasks_blocked()
            assert woken == [1, 1]
            await session.send_request("a", {})
    await session.until_requested(2)


async def test_a_client_that_leaves_answers_nothing_any_more() -> None:
    session = RecordingSession()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:

            async def ask() -> None:
                with pytest.raises(anyio.BrokenResourceError):
                    await session.send_request("a", {})

            group.start_soon(ask)
            await session.until_requested()
            session.disconnect()
    assert not session.can_send_request
    assert session.cancelled == 0, "the client left; the request was not given up"
    with pytest.raises(anyio.BrokenResourceError):
        await session.send_request("b", {})
    await session.send_notification("c", {})
    assert session.methods == ["a"]
    assert session.notifications == []


async def test_a_client_that_leaves_while_it_answers_has_not_answered() -> None:
    async def leave(params: JSON) -> JSON:
        session.disconnect()
        return {}

    session = RecordingSession({"a": leave})
    with pytest.raises(anyio.BrokenResourceError):
        await session.send_request("a", {})


async def test_a_client_that_cannot_be_asked_still_hears() -> None:
    session = RecordingSession({"a": {}})
    session.can_send_request = False
    with pytest.raises(anyio.BrokenResourceError):
        await session.send_request("a", {})
    await session.send_notification("b", {})
    assert session.notifications == [("b", {})]
    session.can_send_request = True
    assert await session.send_request("a", {}) == {}


async def test_work_is_asked_and_told_through_it() -> None:
    """A question outlives the client that left with it, and a refusal raises in the asker (L5)."""
    left, here = RecordingSession(), RecordingSession({"elicitation/create": ACCEPT})
    async with InMemoryTaskStore() as store:
        record = await store.create_task(NewTask(ttl_ms=None))
        queue = store.message_queue
        handler = TaskResultHandler(store, queue)
        context = ServerTaskContext(task=record.task, store=store, session=here, queue=queue, handler=handler)

        async def work() -> None:
            await context.update_status("asking")
            answer = await context.elicit("Go on?", FORM)
            assert answer.action == "accept"
            here.answers = {"elicitation/create": ProtocolError(-32000, "not now")}
            with pytest.raises(ProtocolError, match="not now"):
                await context.elicit("Once more?", FORM)
            await context.complete({"done": True})

        async def lose() -> None:
            await left.until_requested()
            left.disconnect()

        outcomes: list[Outcome] = []

        async def listen(session: RecordingSession) -> None:
            outcomes.append(await handler.handle(record.task_id, session))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(lose)
                group.start_soon(listen, left)
                await anyio.lowlevel.checkpoint()
                group.start_soon(work)
                await left.until_requested()
                group.start_soon(listen, here)
        assert outcomes == [Outcome.completed({"done": True})] * 2
        with pytest.raises(InvalidTransitionError):
            await context.update_status("late")
    assert left.methods == ["elicitation/create"]
    assert here.methods == ["elicitation/create"] * 2
    assert [params["status"] for _, params in here.notifications] == ["working", "completed"]
