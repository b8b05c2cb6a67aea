"""The client of the 2026-07-28 tasks extension, against a server that does as a script says."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import queue
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import FrozenInstanceError
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import mcp_types as types
import pytest
import uvicorn
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitResult, ErrorData, TextContent
from pydantic import ValidationError

from mcp_task_runtime.adapters.task_client import remote_task
from mcp_task_runtime.adapters.task_client.polling import PollSettings
from mcp_task_runtime.adapters.task_client.unfinished import UnfinishedTasks
from mcp_task_runtime.client import (
    ClientTask,
    InvalidTaskResponseError,
    TaskCancelledError,
    TaskError,
    TaskFailedError,
    TasksClient,
    TaskSnapshot,
    UnknownTaskError,
)
from mcp_task_runtime.errors import TaskRuntimeError
from tests.mcp_v2.script import TASK_ID, Received, Wire
from tests.mcp_v2.scripted_server import (
    Look,
    ScriptedServer,
    asking,
    asks_once,
    completed,
    elicit,
    error,
    failed,
    quick_client,
    rare_client,
    sample,
    task,
    working,
)
from tests.support.event_loops import in_virtual_time, on_one_loop
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

MAX_FAILURES = 3


@asynccontextmanager
async def connected(
    scripted: ScriptedServer, tasks: TasksClient | None = None, **options: Any
) -> AsyncGenerator[Client, None]:
    async with Client(scripted.server, extensions=[tasks or quick_client()], **options) as client:
        with anyio.fail_after(PATIENCE):
            yield client


def at_first(act: Callable[[], object]) -> Callable[[TaskSnapshot], Awaitable[None]]:
    """Return an `on_update` that does this when a task has begun."""

    async def on_update(snapshot: TaskSnapshot) -> None:
        act()

    return on_update


def text_of(result: CallToolResult | ClientTask) -> str:
    assert isinstance(result, CallToolResult)
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


async def accept(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={})


class Prompt:
    """An elicitation callback that shows each question until the test answers it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self._answers: dict[str, ElicitResult | ErrorData | Exception] = {}
        self._changed = anyio.Event()

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def answer(self, message: str, answer: ElicitResult | ErrorData | Exception) -> None:
        self._answers[message] = answer
        self._change()

    async def shown(self, times: int = 1) -> None:
        while len(self.asked) < times:
            await self._changed.wait()

    async def was_cancelled(self) -> None:
        while not self.cancelled:
            await self._changed.wait()

    async def __call__(self, context: Any, params: Any) -> ElicitResult | ErrorData:
        self.asked.append(params.message)
        self._change()
        try:
            while params.message not in self._answers:
                await self._changed.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(params.message)
            self._change()
            raise
        answer = self._answers[params.message]
        if isinstance(answer, Exception):
            raise answer
        return answer


# A call that becomes a task


async def test_a_call_that_became_a_task_returns_the_result_of_the_task() -> None:
    scripted = ScriptedServer(working(), working("half way"), completed("report"))
    async with connected(scripted) as client:
        assert text_of(await client.call_tool("work", {"topic": "x"})) == "report"
    assert scripted.of("tools/call")[0].params["arguments"] == {"topic": "x"}
    assert len(scripted.of("tasks/get")) == 3
    assert scripted.methods == ["tools/call"]


async def test_a_call_that_became_no_task_returns_its_result_c14() -> None:
    scripted = ScriptedServer()
    scripted.handle = {"resultType": "complete", "content": [{"type": "text", "text": "at once"}]}
    async with connected(scripted) as client:
        assert text_of(await client.call_tool("work")) == "at once"
    assert scripted.methods == ["tools/call"]


async def test_every_request_declares_the_extension_c1() -> None:
    scripted = asks_once()
    async with connected(scripted, elicitation_callback=accept) as client:
        await client.call_tool("work")
    assert {request.method for request in scripted.received} == {"tools/call", "tasks/get", "tasks/update"}
    for request in scripted.received:
        capabilities = request.params["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        assert capabilities["extensions"] == {"io.modelcontextprotocol/tasks": {}}


async def test_a_tool_error_is_a_result_and_raises_nothing_c10() -> None:
    scripted = ScriptedServer(completed("it broke", isError=True))
    async with connected(scripted) as client:
        result = await client.call_tool("work")
    assert result.is_error
    assert text_of(result) == "it broke"


@pytest.mark.parametrize("data", [None, {"retry": None, "after": [1, 2.5]}, "text", 0, False])
async def test_a_failed_task_raises_exactly_the_error_of_the_server(data: Any) -> None:
    scripted = ScriptedServer(failed(-32099, "rate limit", **({} if data is None else {"data": data})))
    async with connected(scripted) as client:
        with pytest.raises(TaskFailedError) as caught:
            await client.call_tool("work")
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32099, "rate limit", data)
    assert caught.value.task_id == TASK_ID
    assert isinstance(caught.value, MCPError)
    assert scripted.methods == ["tools/call"]


async def test_a_task_cancelled_by_somebody_else_raises_that_it_was() -> None:
    scripted = ScriptedServer(task("cancelled", statusMessage="The operator stopped it"))
    async with connected(scripted) as client:
        with pytest.raises(TaskCancelledError, match="The task was cancelled: The operator stopped it") as caught:
            await client.call_tool("work")
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/call"]


async def test_the_result_of_a_task_is_checked_against_the_output_schema() -> None:
    scripted = ScriptedServer(completed(structuredContent={"n": "one"}))
    scripted.tool["outputSchema"] = {"type": "object", "properties": {"n": {"type": "integer"}}}
    async with connected(scripted) as client:
        with pytest.raises(RuntimeError, match="Invalid structured content"):
            await client.call_tool("work")


def test_the_newest_thousand_unfinished_tasks_are_kept() -> None:
    unfinished = UnfinishedTasks()
    for number in range(1_001):
        unfinished.add(str(number))
    assert unfinished.ids == tuple(map(str, range(1, 1_001)))


# How often it polls


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"request_timeout": 0}, "request_timeout must be positive"),
        ({"cancel_timeout": math.nan}, "cancel_timeout must be positive"),
        ({"max_listen_streams": 0}, "max_listen_streams must be positive"),
        ({"poll_bounds_ms": (0, 10)}, "poll_bounds_ms must be two positive numbers, the smaller one first"),
        ({"poll_bounds_ms": (10, 5)}, "poll_bounds_ms must be two positive numbers, the smaller one first"),
        ({"poll_interval_ms": 0}, "^poll_interval_ms must be positive"),
        ({"pushed_poll_interval_ms": -1}, "pushed_poll_interval_ms must be positive"),
        ({"retry_pause": -0.1}, "retry_pause must not be negative"),
        ({"max_failures": 0}, "max_failures must be positive"),
    ],
)
def test_a_client_with_a_limit_that_is_none_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TasksClient(**options)


@pytest.mark.parametrize(
    ("suggested", "seconds"),
    [(None, 1.0), (0, 0.05), (-5, 0.05), (49, 0.05), (500, 0.5), (60_000, 60.0), (10**30, 60.0)],
)
def test_the_suggested_poll_interval_is_kept_within_bounds_c14(suggested: int | None, seconds: float) -> None:
    assert PollSettings().seconds(suggested) == seconds


@pytest.mark.parametrize("suggested", [0, -1, ...])
async def test_a_server_that_suggests_no_time_between_polls_is_not_polled_without_rest(suggested: Any) -> None:
    scripted = ScriptedServer(working(pollIntervalMs=suggested))
    async with connected(scripted, rare_client(push=False)) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await scripted.saw("tasks/get")
        await anyio.wait_all_tasks_blocked()
        assert len(scripted.of("tasks/get")) == 1
        group.cancel_scope.cancel()


async def test_a_huge_poll_interval_does_not_hang_the_call() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=2**53), completed())
    async with connected(scripted, quick_client(push=False, poll_bounds_ms=(5, 10))) as client:
        assert text_of(await client.call_tool("work")) == "done"


# Questions


async def test_a_question_is_answered_by_the_client_s_own_callback() -> None:
    scripted = asks_once()
    contexts = []

    async def callback(context: Any, params: types.ElicitRequestParams) -> ElicitResult:
        contexts.append(context)
        assert params.message == "Publish it?"
        return ElicitResult(action="accept", content={"note": None, "count": 3})

    async with connected(scripted, elicitation_callback=callback) as client:
        assert text_of(await client.call_tool("work")) == "accept"
        assert contexts[0].session is client.session
        assert contexts[0].request_id == "consent"
    (update,) = scripted.of("tasks/update")
    assert update.params["taskId"] == TASK_ID
    assert update.params["inputResponses"] == {"consent": {"action": "accept", "content": {"note": None, "count": 3}}}


async def test_sampling_and_roots_are_answered_by_their_callbacks() -> None:
    scripted = ScriptedServer(asking(draft=sample(), places={"method": "roots/list"}))

    async def write(context: Any, params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
        assert params.max_tokens == 10
        return types.CreateMessageResult(role="assistant", content=TextContent(text="Once"), model="m")

    async def list_roots(context: Any) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[])

    async def complete_when_answered(request: Received) -> None:
        if scripted.answers.keys() | request.params.get("inputResponses", {}).keys() == {"draft", "places"}:
            scripted.show(completed())

    scripted.reply = complete_when_answered
    async with connected(scripted, sampling_callback=write, list_roots_callback=list_roots) as client:
        await client.call_tool("work")
    assert scripted.answers["draft"]["content"] == {"type": "text", "text": "Once"}
    assert scripted.answers["draft"]["role"] == "assistant"
    assert scripted.answers["places"]["roots"] == []


async def test_a_question_is_asked_and_answered_once_however_often_it_is_shown_c14() -> None:
    """Also when the server goes on showing it after the answer, with another `_meta` each time."""
    question = asking(consent=elicit())
    scripted = ScriptedServer(question)
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown()
        await scripted.looked()
        prompt.answer("Publish it?", ElicitResult(action="decline"))
        await scripted.saw("tasks/update")
        scripted.show(asking(consent=elicit(_meta={"trace": 1})), asking(consent=elicit(_meta={"trace": 2})))
        await scripted.looked()
        scripted.show(completed())
    assert prompt.asked == ["Publish it?"]
    assert len(scripted.of("tasks/update")) == 1


async def test_questions_are_asked_at_the_same_time_and_each_answer_is_sent_when_it_is_there() -> None:
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown(2)
        prompt.answer("second", ElicitResult(action="accept"))
        await scripted.saw("tasks/update")
        assert scripted.of("tasks/update")[0].params["inputResponses"] == {"b": {"action": "accept"}}
        prompt.answer("first", ElicitResult(action="decline"))
        await scripted.saw("tasks/update", 2)
        scripted.show(completed())
    assert scripted.answers == {"a": {"action": "decline"}, "b": {"action": "accept"}}


async def test_each_answer_is_given_in_the_context_of_the_call() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    asked: list[tuple[str, str]] = []
    second = anyio.Event()
    scripted = ScriptedServer(asking(a=elicit("first")))

    async def callback(context: Any, params: Any) -> ElicitResult:
        asked.append((params.message, who.get()))
        if params.message == "first":
            scripted.show(asking(a=elicit("first"), b=elicit("second")))
            await second.wait()
        else:
            second.set()
            scripted.show(completed())
        return ElicitResult(action="accept", content={})

    async def on_update(snapshot: TaskSnapshot) -> None:
        seen.append(who.get())

    seen: list[str] = []
    async with connected(scripted, quick_client(on_update=on_update), elicitation_callback=callback) as client:
        who.set("the caller")
        await client.call_tool("work")
    assert asked == [("first", "the caller"), ("second", "the caller")]
    assert set(seen) == {"the caller"}


async def test_a_question_that_comes_while_another_is_open_is_asked_too() -> None:
    scripted = ScriptedServer(asking(a=elicit("first")))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown()
        scripted.show(asking(a=elicit("first"), b=elicit("second")))
        await prompt.shown(2)
        scripted.show(completed())
    assert prompt.asked == ["first", "second"]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (completed("anyway"), None),
        (failed(-32050, "too late"), TaskFailedError),
        (task("cancelled"), TaskCancelledError),
        (error(types.INVALID_PARAMS, "Task not found"), UnknownTaskError),
    ],
    ids=["completed", "failed", "cancelled", "vanished"],
)
async def test_a_task_that_ends_while_the_user_is_asked_ends_the_call_and_the_prompt(
    end: Look, expected: type[Exception] | None
) -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client:
        async with anyio.create_task_group() as group:

            async def end_it() -> None:
                await prompt.shown()
                scripted.show(end)

            group.start_soon(end_it)
            if expected is None:
                assert text_of(await client.call_tool("work")) == "anyway"
            else:
                with pytest.raises(expected):
                    await client.call_tool("work")
    assert prompt.cancelled == ["Publish it?"]
    assert scripted.methods == ["tools/call"]


async def test_a_prompt_is_cancelled_when_the_server_no_longer_wants_to_know() -> None:
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown(2)
        scripted.show(asking(b=elicit("second")))
        await prompt.was_cancelled()
        assert prompt.cancelled == ["first"]
        prompt.answer("second", ElicitResult(action="accept"))
        await scripted.saw("tasks/update")
        scripted.show(completed())
    assert scripted.answers.keys() == {"b"}


async def test_a_withdrawn_prompt_that_fails_while_it_is_cleared_away_does_no_harm() -> None:
    scripted = ScriptedServer(asking(a=elicit()))
    shown = anyio.Event()

    async def clumsy(context: Any, params: Any) -> ElicitResult:
        shown.set()
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the window was gone")

    async with connected(scripted, elicitation_callback=clumsy) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await shown.wait()
        scripted.show(working())
        await scripted.looked()
        scripted.show(completed())
    assert scripted.methods == ["tools/call"]


async def test_a_prompt_that_fails_while_it_is_cleared_away_does_not_hide_why_the_call_ended() -> None:
    scripted = ScriptedServer(asking(a=elicit()), error(types.INVALID_PARAMS, "Task not found"))

    async def clumsy(context: Any, params: Any) -> ElicitResult:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("the window was gone")

    async with connected(scripted, elicitation_callback=clumsy) as client:
        with pytest.raises(UnknownTaskError):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call"]


async def test_a_question_that_was_withdrawn_unanswered_and_comes_back_is_asked_again() -> None:
    scripted = ScriptedServer(asking(a=elicit("first")))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown()
        scripted.show(working())
        await prompt.was_cancelled()
        scripted.show(asking(a=elicit("first")))
        await prompt.shown(2)
        scripted.show(completed())


async def test_a_callback_that_refuses_cancels_the_task_and_raises_its_error() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def refuse(context: Any, params: Any) -> ErrorData:
        return ErrorData(code=-32042, message="Not today", data={"why": "holiday"})

    async with connected(scripted, elicitation_callback=refuse) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("work")
    assert (caught.value.code, caught.value.message, caught.value.data) == (-32042, "Not today", {"why": "holiday"})
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@in_virtual_time
@pytest.mark.parametrize("seconds", [0.01, 0.1], ids=["at once", "late"])
@pytest.mark.parametrize("questions", [1, 2])
async def test_a_user_who_refuses_is_asked_no_more_although_a_look_is_due(seconds: float, questions: int) -> None:
    scripted = ScriptedServer(asking(**{f"question-{number}": elicit() for number in range(questions)}))
    asked: list[str] = []

    async def refuse(context: Any, params: Any) -> ErrorData:
        asked.append(params.message)
        await anyio.sleep(seconds)
        return ErrorData(code=-32042, message="Not today")

    async with connected(scripted, elicitation_callback=refuse) as client:
        with pytest.raises(MCPError, match="Not today"):
            await client.call_tool("work")
    assert len(asked) == questions
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_a_callback_that_raises_cancels_the_task_and_raises_its_exception() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    trouble = ZeroDivisionError("no user")

    async def crash(context: Any, params: Any) -> ElicitResult:
        raise trouble

    async with connected(scripted, elicitation_callback=crash) as client:
        with pytest.raises(ZeroDivisionError) as caught:
            await client.call_tool("work")
    assert caught.value is trouble
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_callback_that_waits_for_something_that_is_cancelled_cancels_the_task_and_says_so() -> None:
    """On trio, a task does not see the cancellation of another one."""
    scripted = ScriptedServer(asking(consent=elicit()))

    async def callback(context: Any, params: Any) -> ElicitResult:
        dialog: asyncio.Future[ElicitResult] = asyncio.Future()
        dialog.cancel()
        return await dialog

    async with connected(scripted, elicitation_callback=callback) as client:
        with pytest.raises(MCPError, match="callback was cancelled"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_one_refusal_ends_the_other_prompts() -> None:
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client:
        async with anyio.create_task_group() as group:

            async def refuse() -> None:
                await prompt.shown(2)
                prompt.answer("second", ErrorData(code=-32042, message="No"))

            group.start_soon(refuse)
            with pytest.raises(MCPError, match="No"):
                await client.call_tool("work")
    assert prompt.cancelled == ["first"]
    assert len(scripted.of("tasks/cancel")) == 1


async def test_of_two_refusals_at_once_one_is_raised_and_the_task_is_cancelled_once() -> None:
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))

    async def refuse(context: Any, params: Any) -> ErrorData:
        return ErrorData(code=-32042, message="No")

    async with connected(scripted, elicitation_callback=refuse) as client:
        with pytest.raises(MCPError, match="No"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_a_client_without_the_callback_cancels_the_task_and_says_so() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    async with connected(scripted) as client:
        with pytest.raises(MCPError, match="Elicitation not supported"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@pytest.mark.parametrize("nonsense", [None, {"action": "accept"}, types.ListRootsResult(roots=[])])
async def test_a_callback_that_answers_nonsense_cancels_the_task_and_says_so(nonsense: Any) -> None:
    """C14: the same care as for a direct request."""
    scripted = ScriptedServer(asking(consent=elicit()))

    async def callback(context: Any, params: Any) -> Any:
        return nonsense

    async with connected(scripted, elicitation_callback=callback) as client:
        with pytest.raises(MCPError, match="invalid result"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_an_answer_that_is_not_json_cancels_the_task_and_says_so_and_the_connection_lives_on() -> None:
    """A terminal gives half a surrogate pair for a byte it does not understand; no transport can send that."""
    scripted = ScriptedServer(asking(consent=elicit()))

    async def callback(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "\udcff"})

    async with connected(scripted, elicitation_callback=callback) as client:
        with pytest.raises(MCPError, match="not JSON"):
            await client.call_tool("work")
        assert scripted.methods == ["tools/call", "tasks/cancel"]
        scripted.show(completed())
        assert text_of(await client.call_tool("work")) == "done"


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "elicitation/future", "params": {}},
        {"method": ["elicitation/create"]},
        {"params": {}},
        {"method": "elicitation/create"},
        {"method": "elicitation/create", "params": {"message": 7}},
        {"method": "sampling/createMessage", "params": {"messages": "hello"}},
    ],
)
async def test_a_question_nobody_can_read_cancels_the_task_and_is_an_invalid_response(request_: Wire) -> None:
    scripted = ScriptedServer(asking(strange=request_))
    async with connected(scripted, elicitation_callback=accept) as client:
        with pytest.raises(InvalidTaskResponseError, match="strange") as caught:
            await client.call_tool("work")
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@pytest.mark.parametrize("answered", [True, False])
async def test_a_key_that_is_used_for_another_question_is_an_invalid_response_c7(answered: bool) -> None:
    scripted = ScriptedServer(asking(consent=elicit("Publish it?")))
    prompt = Prompt()
    if answered:
        prompt.answer("Publish it?", ElicitResult(action="accept"))
    async with connected(scripted, elicitation_callback=prompt) as client:
        async with anyio.create_task_group() as group:

            async def ask_otherwise() -> None:
                await prompt.shown()
                if answered:
                    await scripted.saw("tasks/update")
                scripted.show(asking(consent=elicit("Delete it?")))

            group.start_soon(ask_otherwise)
            with pytest.raises(InvalidTaskResponseError, match="'consent' of an input request was used twice"):
                await client.call_tool("work")
    assert prompt.asked == ["Publish it?"]
    assert scripted.methods[-1] == "tasks/cancel"


async def test_an_answer_that_the_server_refuses_cancels_the_task_and_raises_its_error() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def refuse(request: Received) -> None:
        if request.method == "tasks/update":
            raise error(types.INVALID_PARAMS, "The answer is too large", {"max": 1})

    scripted.reply = refuse
    async with connected(scripted, elicitation_callback=accept) as client:
        with pytest.raises(TaskError, match="The answer is too large") as caught:
            await client.call_tool("work")
    assert (caught.value.code, caught.value.data) == (types.INVALID_PARAMS, {"max": 1})
    assert not isinstance(caught.value, UnknownTaskError)
    assert scripted.methods == ["tools/call", "tasks/update", "tasks/cancel"]


async def test_an_answer_that_is_refused_because_the_task_has_ended_does_not_hide_the_result() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def end_and_refuse(request: Received) -> None:
        if request.method == "tasks/update":
            scripted.show(completed("in time"))
            raise error(types.INVALID_PARAMS, "The task has ended")

    scripted.reply = end_and_refuse
    async with connected(scripted, elicitation_callback=accept) as client:
        assert text_of(await client.call_tool("work")) == "in time"


async def test_an_answer_that_is_refused_during_a_look_is_judged_by_the_next_look() -> None:
    """The look under way may have been answered before the task ended."""
    scripted = ScriptedServer(asking(consent=elicit()))
    refused = anyio.Event()

    async def refuse_during_the_second_look(request: Received) -> Wire | None:
        if request.method == "tasks/update":
            await scripted.saw("tasks/get", 2)
            refused.set()
            raise error(types.INVALID_PARAMS, "The task has ended")
        if request.method == "tasks/get" and len(scripted.of("tasks/get")) == 2:
            scripted.show(completed("in time"))
            await refused.wait()
            await anyio.wait_all_tasks_blocked()
            return asking(consent=elicit())
        return None

    scripted.reply = refuse_during_the_second_look
    async with connected(scripted, elicitation_callback=accept) as client:
        assert text_of(await client.call_tool("work")) == "in time"


async def test_a_refused_answer_is_looked_into_without_waiting_for_the_next_poll() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def refuse(request: Received) -> None:
        if request.method == "tasks/update":
            raise error(types.INVALID_PARAMS, "No")

    scripted.reply = refuse
    async with connected(scripted, rare_client(push=False), elicitation_callback=accept) as client:
        with pytest.raises(TaskError, match="No"):
            await client.call_tool("work")


async def test_after_a_refused_answer_polling_rests_again() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def refuse(request: Received) -> None:
        if request.method == "tasks/update":
            scripted.show(working())
            raise error(types.INVALID_PARAMS, "Another client was faster")

    scripted.reply = refuse
    async with (
        connected(scripted, rare_client(push=False), elicitation_callback=accept) as client,
        anyio.create_task_group() as group,
    ):
        group.start_soon(client.call_tool, "work")
        await scripted.saw("tasks/get", 2)
        await anyio.wait_all_tasks_blocked()
        assert len(scripted.of("tasks/get")) == 2
        group.cancel_scope.cancel()


async def test_an_answer_that_got_lost_is_sent_again_without_asking_again() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    prompt.answer("Publish it?", ElicitResult(action="accept"))

    async def fail_once(request: Received) -> None:
        if request.method == "tasks/update":
            if len(scripted.of("tasks/update")) == 1:
                raise error(types.INTERNAL_ERROR, "Bad gateway")
            scripted.show(completed())

    scripted.reply = fail_once
    async with connected(scripted, elicitation_callback=prompt) as client:
        await client.call_tool("work")
    assert prompt.asked == ["Publish it?"]
    assert scripted.answers == {"consent": {"action": "accept"}}


async def test_an_answer_that_gets_lost_again_and_again_raises_why_and_leaves_the_task_alone() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def fail(request: Received) -> None:
        if request.method == "tasks/update":
            raise error(types.INTERNAL_ERROR, "Bad gateway")

    scripted.reply = fail
    async with connected(scripted, elicitation_callback=accept) as client:
        with pytest.raises(TaskError, match="Bad gateway"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", *["tasks/update"] * MAX_FAILURES]


# Servers and connections that fail


async def test_a_look_that_fails_for_a_moment_is_tried_again() -> None:
    moments: list[Look] = [error(types.INTERNAL_ERROR), error(types.CONNECTION_CLOSED)]
    scripted = ScriptedServer(*moments, working(), *moments, completed())
    async with connected(scripted) as client:
        assert text_of(await client.call_tool("work")) == "done"


async def test_a_look_that_keeps_failing_raises_why_and_leaves_the_task_alone() -> None:
    scripted = ScriptedServer(error(types.INTERNAL_ERROR, "The store is down", [1]))
    async with connected(scripted) as client:
        with pytest.raises(TaskError) as caught:
            await client.call_tool("work")
    assert (caught.value.code, caught.value.message, caught.value.data) == (
        types.INTERNAL_ERROR,
        "The store is down",
        [1],
    )
    assert caught.value.task_id == TASK_ID
    assert len(scripted.of("tasks/get")) == MAX_FAILURES
    assert scripted.methods == ["tools/call"]


async def test_another_error_of_a_look_is_raised_at_once() -> None:
    scripted = ScriptedServer(error(-32021, "Missing required client capability", {"requiredCapabilities": {}}))
    async with connected(scripted) as client:
        with pytest.raises(TaskError) as caught:
            await client.call_tool("work")
    assert (caught.value.code, caught.value.data) == (-32021, {"requiredCapabilities": {}})
    assert len(scripted.of("tasks/get")) == 1


async def test_a_task_that_vanishes_raises_that_it_is_unknown() -> None:
    scripted = ScriptedServer(working(), error(types.INVALID_PARAMS, "Task not found"))
    async with connected(scripted) as client:
        with pytest.raises(UnknownTaskError, match="Task not found") as caught:
            await client.call_tool("work")
    assert caught.value.code == types.INVALID_PARAMS
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/call"]


async def never(request: Received) -> None:
    if request.method != "tools/call":
        await anyio.sleep_forever()


@in_virtual_time
async def test_a_server_that_does_not_answer_does_not_hang_the_call() -> None:
    scripted = ScriptedServer()
    scripted.reply = never
    async with connected(scripted, quick_client(request_timeout=0.01)) as client:
        with pytest.raises(TaskError) as caught:
            await client.call_tool("work")
    assert caught.value.code == types.REQUEST_TIMEOUT


@in_virtual_time
async def test_the_read_time_out_of_a_call_goes_for_the_requests_of_its_task() -> None:
    scripted = ScriptedServer()
    scripted.reply = never
    async with connected(scripted) as client:
        with pytest.raises(TaskError) as caught:
            await client.call_tool("work", read_timeout_seconds=0.01)
    assert caught.value.code == types.REQUEST_TIMEOUT


async def test_a_client_that_is_closed_fails_its_tasks_with_a_closed_connection() -> None:
    scripted = ScriptedServer()
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, TASK_ID)
    with anyio.fail_after(PATIENCE):
        for use in (handle.get, handle.wait, handle.cancel):
            with pytest.raises(TaskError) as caught:
                await use()
            assert caught.value.code == types.CONNECTION_CLOSED


def validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        types.CallToolResult.model_validate({})
    return caught.value


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (validation_error(), types.PARSE_ERROR),
        (TimeoutError(), types.REQUEST_TIMEOUT),
        (OSError("broken pipe"), types.CONNECTION_CLOSED),
        (anyio.ClosedResourceError(), types.CONNECTION_CLOSED),
        (anyio.BrokenResourceError(), types.CONNECTION_CLOSED),
    ],
    ids=repr,
)
async def test_whatever_the_sdk_raises_for_a_request_becomes_an_error_of_the_task(
    raised: Exception, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*args: Any) -> None:
        raise raised

    tasks = quick_client()
    async with connected(ScriptedServer(), tasks) as client:
        monkeypatch.setattr(client.session, "send_request", fail)
        with pytest.raises(TaskError) as caught:
            await tasks.resume(client, TASK_ID).wait()
        assert (caught.value.code, caught.value.task_id) == (expected, TASK_ID)


# Servers that want to be asked later


def limited(milliseconds: Any = 1) -> MCPError:
    """Return what our own server says when it is asked too often."""
    return error(types.INVALID_REQUEST, "Limit reached: polls", {"retryAfterMs": milliseconds})


async def test_a_look_that_is_refused_for_coming_too_soon_comes_again_later_however_often() -> None:
    scripted = ScriptedServer(*[limited(), limited()] * MAX_FAILURES, working(), completed())
    async with connected(scripted) as client:
        assert text_of(await client.call_tool("work")) == "done"
    assert scripted.methods == ["tools/call"]


async def test_a_push_does_not_hasten_a_look_that_the_server_wants_later() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=3_600_000), limited(3_600_000))
    scripted.serve_listen()
    async with connected(scripted) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await scripted.listens()
        for _ in range(3):
            await scripted.push({"taskId": TASK_ID})
            await anyio.wait_all_tasks_blocked()
            assert len(scripted.of("tasks/get")) == 2
        group.cancel_scope.cancel()


async def test_a_look_that_the_server_wanted_later_does_not_wait_for_the_next_poll_too() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=3_600_000), limited(), completed())
    scripted.serve_listen()

    async def push() -> None:
        await scripted.listens()
        await scripted.push({"taskId": TASK_ID})

    async with connected(scripted) as client, anyio.create_task_group() as group:
        group.start_soon(push)
        assert text_of(await client.call_tool("work")) == "done"


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [(0, 0.05), (1, 0.05), (250, 0.25), (250.5, 0.2505), (10**30, 60.0)],
)
def test_how_much_later_is_kept_within_bounds(wanted: Any, seconds: float) -> None:
    refused = TaskError(types.INVALID_REQUEST, "Limit reached", {"retryAfterMs": wanted})
    assert PollSettings().rest_after(refused) == seconds


@pytest.mark.parametrize(
    "data", [None, {}, {"retryAfterMs": None}, {"retryAfterMs": "1"}, {"retryAfterMs": True}, {"retryAfterMs": -1}, [1]]
)
async def test_a_refusal_that_does_not_say_when_to_come_again_is_raised_at_once(data: Any) -> None:
    scripted = ScriptedServer(error(types.INVALID_REQUEST, "no", data))
    async with connected(scripted) as client:
        with pytest.raises(TaskError, match="no") as caught:
            await client.call_tool("work")
    assert caught.value.data == data
    assert len(scripted.of("tasks/get")) == 1


async def test_an_answer_that_is_refused_for_coming_too_soon_is_sent_again_later() -> None:
    scripted = asks_once()
    complete = scripted.reply
    assert complete is not None
    prompt = Prompt()
    prompt.answer("Publish it?", ElicitResult(action="decline"))

    async def reply(request: Received) -> None:
        if request.method == "tasks/update" and len(scripted.of("tasks/update")) <= 4:
            raise limited()
        await complete(request)

    scripted.reply = reply
    async with connected(scripted, elicitation_callback=prompt) as client:
        assert text_of(await client.call_tool("work")) == "decline"
    assert prompt.asked == ["Publish it?"]
    assert scripted.methods == ["tools/call", *["tasks/update"] * 5]


async def test_a_cancellation_that_is_refused_for_coming_too_soon_is_sent_again_later() -> None:
    scripted = ScriptedServer()
    scope = anyio.CancelScope()
    tasks = quick_client(on_update=at_first(scope.cancel))

    async def reply(request: Received) -> None:
        if request.method == "tasks/cancel" and len(scripted.of("tasks/cancel")) == 1:
            raise limited()

    scripted.reply = reply
    async with connected(scripted, tasks) as client:
        with scope:
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel", "tasks/cancel"]


# Servers that break the rules

OTHER_SPELLING: Wire = {
    "method": "elicitation/create",
    "params": {"message": "?", "requested_schema": {"type": "object"}},
}
"""What the SDK's models are called in Python is not what is sent."""

BROKEN_TASKS: dict[str, Any] = {
    "empty": {},
    "another task": task(taskId="task-2"),
    "no id": task(taskId=...),
    "no status": task(status=...),
    "unknown status": task("resting"),
    "status of the wrong type": task(status=["working"]),
    "status message of the wrong type": task(statusMessage=5),
    "no creation": task(createdAt=...),
    "no last update": task(lastUpdatedAt=...),
    "no time": task(createdAt="yesterday"),
    "no time in UTC": task(createdAt="0001-01-01T00:00:00+05:00"),
    "no last update in UTC": task(lastUpdatedAt="9999-12-31T23:59:59-05:00"),
    "ttl of the wrong type": task(ttlMs="forever"),
    "poll interval of the wrong type": task(pollIntervalMs="often"),
    "poll interval that is no number": task(pollIntervalMs=math.nan),
    "input required without requests": task("input_required"),
    "input requests of the wrong type": task("input_required", inputRequests=[elicit()]),
    "input request of the wrong type": task("input_required", inputRequests={"a": "elicit"}),
    "input request with another spelling": task("input_required", inputRequests={"a": OTHER_SPELLING}),
    "completed without result": task("completed"),
    "completed with null": task("completed", result=None),
    "result of the wrong type": task("completed", result="text"),
    "failed without error": task("failed"),
    "error of the wrong type": task("failed", error="it broke"),
    "error without code": task("failed", error={"message": "it broke"}),
    "error without message": task("failed", error={"code": -32000}),
    "error code of the wrong type": task("failed", error={"code": "E1", "message": "it broke"}),
    "error code that is a bool": task("failed", error={"code": True, "message": "it broke"}),
    "error message of the wrong type": task("failed", error={"code": 1, "message": None}),
    "error that is not JSON": task("failed", error={"code": 1, "message": "it broke", "data": object()}),
    "a handle": {"resultType": "task", **working()},
    "another result type": {"resultType": "input_required", **working()},
    "result type of the wrong type": {"resultType": 1, **working()},
}


@pytest.mark.parametrize("broken", BROKEN_TASKS.values(), ids=BROKEN_TASKS)
async def test_a_broken_task_is_an_invalid_response_and_is_cancelled(broken: Wire) -> None:
    """C6; C14 for a handle that answers another method than `tools/call`."""
    scripted = ScriptedServer(working(), broken)
    async with connected(scripted) as client:
        with pytest.raises(InvalidTaskResponseError, match="Invalid response from the server") as caught:
            await client.call_tool("work")
    assert isinstance(caught.value, MCPError)
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/call", "tasks/cancel"]


BROKEN_RESULTS: dict[str, Wire] = {
    "that is no tool result": task("completed", result={"contents": []}),
    "with broken content": task("completed", result={"content": [{"type": "smell"}]}),
    "that is a task": completed(resultType="task"),
    "that asks for input": completed(resultType="input_required"),
}


@pytest.mark.parametrize("broken", BROKEN_RESULTS.values(), ids=BROKEN_RESULTS)
async def test_a_broken_result_is_an_invalid_response(broken: Wire) -> None:
    scripted = ScriptedServer(broken)
    async with connected(scripted) as client:
        with pytest.raises(InvalidTaskResponseError, match="result") as caught:
            await client.call_tool("work")
    assert caught.value.task_id == TASK_ID
    assert scripted.methods == ["tools/call"]


async def test_the_message_of_an_invalid_response_names_the_place_and_not_the_value() -> None:
    scripted = ScriptedServer(task(createdAt="s3cret", ttlMs="s3cret"))
    async with connected(scripted) as client:
        with pytest.raises(InvalidTaskResponseError) as caught:
            await client.call_tool("work")
    assert "createdAt" in caught.value.message
    assert "ttlMs" in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    "tolerable",
    [
        task("completed", ttlMs=..., pollIntervalMs=..., result=completed()["result"]),
        task("completed", createdAt="2026-07-28T14:00:00.123456789+02:00", result=completed()["result"]),
        task("completed", createdAt="2026-07-28T12:00:00", result=completed()["result"]),
        task("completed", pollIntervalMs=10.0, result=completed()["result"], novelty={"x": 1}),
        task("completed", pollIntervalMs=0.5, ttlMs=99.9, result=completed()["result"]),
        task("completed", pollIntervalMs=1e308, ttlMs=1e308, result=completed()["result"]),
        task("completed", error={"code": 1}, inputRequests=7, result=completed()["result"]),
        {"resultType": "complete", **completed(resultType="complete")},
    ],
    ids=[
        "nulls dropped",
        "offset",
        "naive time",
        "whole float",
        "fractions",
        "huge floats",
        "superfluous fields",
        "explicit result types",
    ],
)
async def test_a_small_slip_does_not_cost_the_result(tolerable: Wire) -> None:
    async with connected(ScriptedServer(tolerable)) as client:
        assert text_of(await client.call_tool("work")) == "done"


@pytest.mark.parametrize("task_id", [..., None, "", 7, ["task-1"]])
async def test_a_handle_without_an_id_is_an_invalid_response(task_id: Any) -> None:
    scripted = ScriptedServer()
    scripted.handle = {"resultType": "task", **task(taskId=task_id)}
    async with connected(scripted) as client:
        with pytest.raises(InvalidTaskResponseError):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call"]


@pytest.mark.parametrize("broken", [task("resting"), task(createdAt=...), task(pollIntervalMs="often")])
async def test_a_broken_handle_is_an_invalid_response_and_its_task_is_cancelled(broken: Wire) -> None:
    scripted = ScriptedServer()
    scripted.handle = {"resultType": "task", **broken}
    async with connected(scripted) as client:
        with pytest.raises(InvalidTaskResponseError, match="tools/call"):
            await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_a_handle_whose_task_has_ended_is_no_result_yet_c4() -> None:
    scripted = ScriptedServer(completed("from tasks/get"))
    scripted.handle = {"resultType": "task", **task("completed")}
    async with connected(scripted) as client:
        assert text_of(await client.call_tool("work")) == "from tasks/get"


@pytest.mark.parametrize("acknowledgement", [{"resultType": "task", **working()}, {"resultType": "input_required"}])
async def test_an_acknowledgement_of_another_type_is_an_invalid_response_c8_c9(acknowledgement: Wire) -> None:
    scripted = ScriptedServer()
    tasks = quick_client()

    async def answer(request: Received) -> Wire:
        return acknowledgement

    scripted.reply = answer
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, TASK_ID)
        with pytest.raises(InvalidTaskResponseError):
            await handle.update({})
        with pytest.raises(InvalidTaskResponseError):
            await handle.cancel()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("tools/list", lambda client: client.list_tools()),
        ("prompts/get", lambda client: client.get_prompt("p")),
        ("resources/read", lambda client: client.read_resource("file:///r")),
    ],
    ids=["tools/list", "prompts/get", "resources/read"],
)
async def test_a_handle_that_answers_another_method_is_an_invalid_response_c14(
    method: str, request_: Callable[[Client], Awaitable[object]]
) -> None:
    """The SDK itself says so: only `tools/call` is claimed."""
    scripted = ScriptedServer()

    async def hand_out(context: Any, params: Any) -> Wire:
        return {"resultType": "task", **task()}

    scripted.server.add_request_handler(method, types.RequestParams, hand_out)
    async with connected(scripted) as client:
        with pytest.raises((ValidationError, MCPError)):
            await request_(client)
    assert scripted.received == []


async def test_a_server_that_restarts_in_mid_task_goes_on_where_it_was() -> None:
    """It is disconnected for a moment, and does not know that it has shown the question before."""
    gone = error(types.INTERNAL_ERROR, "Bad Gateway")
    question = asking(consent=elicit())
    scripted = ScriptedServer(working(), question, gone, gone, question, gone, gone, question)
    prompt = Prompt()

    async def reply(request: Received) -> None:
        if request.method == "tasks/update":
            if len(scripted.of("tasks/update")) == 1:
                raise gone
            scripted.show(completed())

    scripted.reply = reply
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown()
        await scripted.saw("tasks/get", 6)
        prompt.answer("Publish it?", ElicitResult(action="accept"))
    assert prompt.asked == ["Publish it?"]
    assert scripted.answers == {"consent": {"action": "accept"}}


async def test_a_server_that_restarts_in_mid_task_without_its_tasks_is_not_waited_for() -> None:
    scripted = ScriptedServer(asking(consent=elicit()), error(types.INVALID_PARAMS, "Task not found"))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client:
        with pytest.raises(UnknownTaskError):
            await client.call_tool("work")
    assert prompt.asked == prompt.cancelled
    assert scripted.methods == ["tools/call"]


# Giving up


async def test_a_cancelled_call_cancels_its_task_on_the_server_c14() -> None:
    scripted = ScriptedServer()
    async with connected(scripted) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "work")
            await scripted.looked()
            group.cancel_scope.cancel()
        assert scripted.methods == ["tools/call", "tasks/cancel"]
        assert scripted.of("tasks/cancel")[0].params["taskId"] == TASK_ID


async def test_a_call_that_times_out_cancels_its_task_on_the_server() -> None:
    scripted = ScriptedServer()
    scope = anyio.CancelScope()
    tasks = quick_client(on_update=at_first(lambda: setattr(scope, "deadline", anyio.current_time())))
    async with connected(scripted, tasks) as client:
        with scope:
            await client.call_tool("work")
    assert scope.cancelled_caught
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_a_cancelled_call_cancels_its_prompt_and_then_its_task() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work")
        await prompt.shown()
        group.cancel_scope.cancel()
    assert prompt.cancelled == ["Publish it?"]
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@on_one_loop
@pytest.mark.parametrize("questions", [1, 2])
async def test_a_call_that_asyncio_cancels_while_the_user_is_asked_cancels_its_task(
    questions: int,
) -> None:
    scripted = ScriptedServer(asking(**{f"question-{number}": elicit() for number in range(questions)}))
    prompt = Prompt()
    async with connected(scripted, elicitation_callback=prompt) as client:
        call = asyncio.get_running_loop().create_task(client.call_tool("work"))
        await prompt.shown(questions)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert prompt.cancelled == ["Publish it?"] * questions
    assert scripted.methods == ["tools/call", "tasks/cancel"]


@in_virtual_time
async def test_a_cancelled_call_does_not_wait_long_for_a_server_that_does_not_answer() -> None:
    scripted = ScriptedServer()
    scripted.reply = never
    async with connected(scripted, quick_client(cancel_timeout=0.05)) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "work")
            await scripted.saw("tasks/get")
            group.cancel_scope.cancel()
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_a_task_that_cannot_be_cancelled_does_not_hide_why_it_was_given_up() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))

    async def fail(request: Received) -> None:
        if request.method == "tasks/cancel":
            raise error(types.INTERNAL_ERROR)

    scripted.reply = fail
    async with connected(scripted) as client:
        with pytest.raises(MCPError, match="Elicitation not supported"):
            await client.call_tool("work")


async def test_a_task_that_was_given_up_and_could_not_be_cancelled_is_named_until_it_is_resumed() -> None:
    scripted = ScriptedServer()
    scopes: list[anyio.CancelScope] = []
    tasks = quick_client(on_update=at_first(lambda: scopes[-1].cancel()))

    async def fail(request: Received) -> None:
        if request.method == "tasks/cancel":
            raise error(types.INTERNAL_ERROR)

    async with connected(scripted, tasks) as client:
        for reply, unfinished in ((None, ()), (fail, (TASK_ID,))):
            scripted.reply = reply
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await client.call_tool("work")
            assert tasks.unfinished == unfinished
        tasks.resume(client, TASK_ID)
        assert tasks.unfinished == ()


async def test_a_connection_that_is_lost_raises_that_it_was_with_the_id_of_the_task() -> None:
    scripted = ScriptedServer()
    lost: list[TaskError] = []

    async def call(client: Client) -> None:
        try:
            await client.call_tool("work")
        except TaskError as closed:
            lost.append(closed)

    async with anyio.create_task_group() as group:
        async with connected(scripted) as client:
            group.start_soon(call, client)
            await scripted.looked()
    assert [(each.code, each.task_id) for each in lost] == [(types.CONNECTION_CLOSED, TASK_ID)]


async def test_a_task_is_cancelled_by_no_other_message_than_tasks_cancel_c14() -> None:
    scripted = ScriptedServer(working(pollIntervalMs=60_000))
    sent: list[Wire] = []
    async with Client(scripted.tapped(sent), extensions=[quick_client(push=False)]) as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await scripted.saw("tasks/get")
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
        methods = [message["method"] for message in sent]
    assert methods[-3:] == ["tools/call", "tasks/get", "tasks/cancel"]
    assert not any("cancelled" in method for method in methods)


async def test_a_time_out_around_the_client_does_not_hang() -> None:
    """The connection goes down with the call: whether the server hears of it is left open."""
    scripted = ScriptedServer()
    scope = anyio.CancelScope()
    with anyio.fail_after(PATIENCE), scope:
        async with Client(scripted.tapped([]), extensions=[quick_client(on_update=at_first(scope.cancel))]) as client:
            await client.call_tool("work")
    assert scope.cancelled_caught


# Updates


async def test_on_update_gets_the_handle_and_then_each_change_up_to_the_end() -> None:
    scripted = ScriptedServer(working("one"), working("one"), working("two"), asking(a=elicit()))
    seen: list[TaskSnapshot] = []

    async def note(snapshot: TaskSnapshot) -> None:
        seen.append(snapshot)
        if snapshot.status == "input_required":
            scripted.show(completed())

    async with connected(scripted, quick_client(on_update=note), elicitation_callback=accept) as client:
        await client.call_tool("work")
    assert [(each.status, each.status_message) for each in seen] == [
        ("working", None),
        ("working", "one"),
        ("working", "two"),
        ("input_required", None),
        ("completed", None),
    ]
    assert seen[3].input_requests == {"a": elicit()}
    assert {each.task_id for each in seen} == {TASK_ID}


async def test_on_update_that_raises_is_logged_and_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async def crash(snapshot: TaskSnapshot) -> None:
        raise ValueError("no screen")

    with caplog.at_level(logging.ERROR, remote_task.__name__):
        async with connected(ScriptedServer(completed()), quick_client(on_update=crash)) as client:
            assert text_of(await client.call_tool("work")) == "done"
    assert "no screen" in caplog.text


async def test_one_tasks_client_serves_several_calls_at_once() -> None:
    first, second = asks_once(), asks_once()
    tasks = quick_client()
    async with (
        connected(first, tasks, elicitation_callback=accept) as one,
        connected(second, tasks, elicitation_callback=accept) as two,
        anyio.create_task_group() as group,
    ):
        group.start_soon(one.call_tool, "work")
        group.start_soon(two.call_tool, "work")
    assert first.answers.keys() == second.answers.keys() == {"consent"}


# Tasks held by hand


async def start(tasks: TasksClient, client: Client) -> ClientTask:
    handle = await tasks.start(client, "work")
    assert isinstance(handle, ClientTask)
    return handle


async def test_start_returns_the_task_without_looking_at_it() -> None:
    scripted = ScriptedServer(completed())
    tasks = quick_client()
    meta: Any = {"trace": "t1"}
    async with connected(scripted, tasks) as client:
        handle = await tasks.start(client, "work", {"topic": "x"}, meta=meta)
        assert isinstance(handle, ClientTask)
        assert handle.task_id == TASK_ID
        assert [request.method for request in scripted.received] == ["tools/call"]
        assert scripted.received[0].params["arguments"] == {"topic": "x"}
        assert scripted.received[0].params["_meta"]["trace"] == "t1"
        assert text_of(await handle.wait()) == "done"


async def test_start_returns_the_result_of_a_call_that_became_no_task_c14() -> None:
    scripted = ScriptedServer()
    scripted.handle = {"resultType": "complete", "content": [{"type": "text", "text": "at once"}]}
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        assert text_of(await tasks.start(client, "work")) == "at once"


async def test_start_raises_the_error_of_the_call() -> None:
    scripted = ScriptedServer()
    scripted.handle = error(-32021, "Missing required client capability")
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        with pytest.raises(MCPError, match="Missing required"):
            await tasks.start(client, "work")


@pytest.mark.parametrize(
    "handle", [{"resultType": "task"}, {"resultType": "task", **task("resting")}, {"resultType": "complete"}]
)
async def test_start_raises_that_what_came_is_neither_task_nor_result(handle: Wire) -> None:
    scripted = ScriptedServer()

    async def answer(request: Received) -> Wire:
        return handle

    scripted.reply = answer
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        with pytest.raises(MCPError):
            await tasks.start(client, "work")


async def test_start_answers_what_is_asked_before_there_is_a_task_c5() -> None:
    scripted = ScriptedServer(completed())

    async def ask_first(request: Received) -> Wire | None:
        if request.method == "tools/call" and "inputResponses" not in request.params:
            return {"resultType": "input_required", "inputRequests": {"who": elicit()}, "requestState": "s"}
        return None

    scripted.reply = ask_first
    tasks = quick_client()
    async with connected(scripted, tasks, elicitation_callback=accept) as client:
        task_ = await start(tasks, client)
    assert task_.task_id == TASK_ID
    assert scripted.of("tools/call")[1].params["inputResponses"] == {"who": {"action": "accept", "content": {}}}
    assert scripted.of("tools/call")[1].params["requestState"] == "s"


async def test_a_call_made_by_a_callback_while_a_task_is_started_is_followed_to_its_result() -> None:
    scripted = ScriptedServer(completed("inner"))

    async def ask_first(request: Received) -> Wire | None:
        outer = request.method == "tools/call" and request.params.get("arguments") == {"outer": True}
        if outer and "inputResponses" not in request.params:
            return {"resultType": "input_required", "inputRequests": {"who": elicit()}, "requestState": "s"}
        return None

    scripted.reply = ask_first
    tasks = quick_client()
    inner = []

    async def call_inside(context: Any, params: Any) -> ElicitResult:
        inner.append(text_of(await client.call_tool("work")))
        return ElicitResult(action="accept")

    async with connected(scripted, tasks, elicitation_callback=call_inside) as client:
        handle = await tasks.start(client, "work", {"outer": True})
        assert isinstance(handle, ClientTask)
    assert inner == ["inner"]


async def test_a_call_that_a_server_in_this_process_makes_while_a_task_is_started_is_followed_to_its_result() -> None:
    """A gateway: its handler runs in the caller's context, and is a client itself."""
    behind = ScriptedServer(completed("behind"))
    gateway = ScriptedServer()
    relayed = []
    tasks = quick_client()
    async with connected(behind, tasks) as inner, connected(gateway, tasks) as client:

        async def relay(request: Received) -> None:
            relayed.append(text_of(await inner.call_tool("work")))

        gateway.reply = relay
        await start(tasks, client)
    assert relayed == ["behind"]


async def test_after_start_a_call_is_followed_to_its_result_again() -> None:
    scripted = ScriptedServer(completed())
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        await start(tasks, client)
        assert text_of(await client.call_tool("work")) == "done"


async def test_a_task_is_resumed_from_its_bare_id_on_another_connection_c14() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        task_id = (await start(tasks, client)).task_id

    async def complete(request: Received) -> None:
        if request.method == "tasks/update":
            scripted.show(completed("after the restart"))

    scripted.reply = complete
    later = quick_client()
    async with connected(scripted, later, elicitation_callback=accept) as client:
        handle = later.resume(client, task_id)
        assert (await handle.get()).status == "input_required"
        assert text_of(await handle.wait()) == "after the restart"
        assert text_of(await handle.wait()) == "after the restart"


async def test_a_task_that_is_unknown_shows_at_the_first_request() -> None:
    scripted = ScriptedServer(error(types.INVALID_PARAMS, "Task not found"))
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, "forgotten")
        with pytest.raises(UnknownTaskError) as caught:
            await handle.get()
        assert caught.value.task_id == "forgotten"
        with pytest.raises(UnknownTaskError):
            await handle.wait()
        with pytest.raises(UnknownTaskError):
            async for _ in handle.snapshots():
                pass


async def test_resume_takes_no_empty_id() -> None:
    tasks = quick_client()
    async with connected(ScriptedServer(), tasks) as client:
        with pytest.raises(ValueError, match="task_id"):
            tasks.resume(client, "")


async def test_resume_says_that_an_older_protocol_revision_has_no_such_tasks() -> None:
    tasks = quick_client()
    async with connected(ScriptedServer(), tasks, mode="legacy") as client:
        with pytest.raises(TaskError, match="2025-11-25"):
            tasks.resume(client, TASK_ID)


async def test_get_returns_what_the_server_says() -> None:
    scripted = ScriptedServer(
        working("busy", ttlMs=60_000, pollIntervalMs=0, lastUpdatedAt="2026-07-28T14:00:01.5+02:00"),
        failed(-1, "no", data={"a": None}),
    )
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, TASK_ID)
        snapshot = await handle.get()
        assert snapshot == TaskSnapshot(
            TASK_ID,
            "working",
            "busy",
            datetime(2026, 7, 28, 12, tzinfo=timezone.utc),
            datetime(2026, 7, 28, 12, 0, 1, 500_000, tzinfo=timezone.utc),
            60_000,
            0,
        )
        assert (snapshot.input_requests, snapshot.result, snapshot.error) == ({}, None, None)
        assert (await handle.get()).error == {"code": -1, "message": "no", "data": {"a": None}}


async def test_a_snapshot_never_changes() -> None:
    scripted = ScriptedServer(completed())
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        snapshot = await tasks.resume(client, TASK_ID).get()
    assert isinstance(scripted.looks[0], dict)
    scripted.looks[0]["result"]["content"].clear()
    assert snapshot.result is not None
    snapshot.result["content"].clear()
    assert snapshot.result["content"]
    with pytest.raises(FrozenInstanceError):
        snapshot.status = "working"  # type: ignore[misc]


async def test_update_sends_answers_as_they_are_given() -> None:
    scripted = ScriptedServer(asking(a=elicit(), b=elicit()))
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, TASK_ID)
        await handle.update({"a": {"action": "accept", "content": {"x": None}}, "b": ElicitResult(action="decline")})
    assert scripted.answers == {"a": {"action": "accept", "content": {"x": None}}, "b": {"action": "decline"}}


@pytest.mark.parametrize("answers", [{"a": {"content": object()}}, {"a": {"content": "\ud800"}}, {"\ud800": {}}])
async def test_update_takes_nothing_that_is_not_json(answers: Any) -> None:
    scripted = ScriptedServer()
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        with pytest.raises(ValueError, match=r"serializ|surrogates"):
            await tasks.resume(client, TASK_ID).update(answers)
    assert scripted.received == []


async def test_cancel_asks_the_server_and_leaves_the_rest_to_it_c9() -> None:
    scripted = ScriptedServer(working())
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = tasks.resume(client, TASK_ID)
        await handle.cancel()
        assert (await handle.get()).status == "working"
        scripted.show(task("cancelled"))
        with pytest.raises(TaskCancelledError):
            await handle.wait()
    assert scripted.methods == ["tasks/cancel"]


async def test_cancelling_wait_leaves_the_task_alone_and_it_can_be_waited_for_again() -> None:
    scripted = ScriptedServer(working())
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = await start(tasks, client)
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await scripted.looked()
            group.cancel_scope.cancel()
        assert scripted.methods == ["tools/call"]
        scripted.show(completed())
        assert text_of(await handle.wait()) == "done"


async def test_waiting_again_asks_only_what_was_not_answered_the_first_time() -> None:
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))
    prompt = Prompt()
    prompt.answer("first", ElicitResult(action="accept"))
    tasks = quick_client()
    async with connected(scripted, tasks, elicitation_callback=prompt) as client:
        handle = await start(tasks, client)
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await prompt.shown(2)
            await scripted.saw("tasks/update")
            await scripted.looked()
            group.cancel_scope.cancel()
        assert prompt.cancelled == ["second"]
        prompt.answer("second", ElicitResult(action="decline"))
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await scripted.saw("tasks/update", 2)
            scripted.show(completed())
    assert sorted(prompt.asked) == ["first", "second", "second"]
    assert scripted.answers == {"a": {"action": "accept"}, "b": {"action": "decline"}}


async def test_an_answer_that_was_not_delivered_when_wait_was_cancelled_is_delivered_by_the_next() -> None:
    scripted = ScriptedServer(asking(a=elicit("first")))
    prompt = Prompt()
    prompt.answer("first", ElicitResult(action="accept"))
    tasks = quick_client()

    async def hold_first_update(request: Received) -> None:
        if request.method == "tasks/update":
            if len(scripted.of("tasks/update")) == 1:
                await anyio.sleep_forever()
            scripted.show(completed())

    scripted.reply = hold_first_update
    async with connected(scripted, tasks, elicitation_callback=prompt) as client:
        handle = await start(tasks, client)
        async with anyio.create_task_group() as group:
            group.start_soon(handle.wait)
            await scripted.saw("tasks/update")
            group.cancel_scope.cancel()
        await handle.wait()
    assert prompt.asked == ["first"]
    assert scripted.answers == {"a": {"action": "accept"}}


async def test_a_refusal_while_waiting_cancels_the_task() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        with pytest.raises(MCPError, match="Elicitation not supported"):
            await tasks.resume(client, TASK_ID).wait()
    assert scripted.methods == ["tasks/cancel"]


async def test_a_broken_task_that_is_held_by_hand_is_not_cancelled() -> None:
    scripted = ScriptedServer({})
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        with pytest.raises(InvalidTaskResponseError):
            await tasks.resume(client, TASK_ID).wait()
    assert scripted.methods == []


async def test_an_answer_given_by_hand_closes_the_prompt_of_wait() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    tasks = quick_client()

    async def go_on(request: Received) -> None:
        if request.method == "tasks/update":
            scripted.show(working())

    scripted.reply = go_on
    async with connected(scripted, tasks, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        handle = tasks.resume(client, TASK_ID)
        group.start_soon(handle.wait)
        await prompt.shown()
        await handle.update({"consent": {"action": "accept"}})
        await prompt.was_cancelled()
        scripted.show(completed())
    assert len(scripted.of("tasks/update")) == 1


@pytest.mark.parametrize("of", ["one object", "two objects", "a call and an object"])
async def test_all_who_wait_for_a_task_get_its_result_and_the_user_is_asked_once(of: str) -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    tasks = quick_client()
    results: list[str] = []

    async def wait(follow: Callable[[], Awaitable[CallToolResult]]) -> None:
        results.append(text_of(await follow()))

    async with connected(scripted, tasks, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        handle = tasks.resume(client, TASK_ID)
        other = handle if of == "one object" else tasks.resume(client, TASK_ID)
        group.start_soon(wait, handle.wait)
        await prompt.shown()
        group.start_soon(wait, other.wait if "call" not in of else partial(client.call_tool, "work"))
        await scripted.looked()
        prompt.answer("Publish it?", ElicitResult(action="accept"))
        await scripted.saw("tasks/update")
        scripted.show(completed())
    assert results == ["done", "done"]
    assert prompt.asked == ["Publish it?"]
    assert len(scripted.of("tasks/update")) == 1


async def test_those_who_wait_share_a_refusal_and_each_has_a_result_of_its_own() -> None:
    scripted = ScriptedServer(asking(consent=elicit()))
    prompt = Prompt()
    tasks = quick_client()
    refused: list[str] = []

    async def wait() -> None:
        with pytest.raises(MCPError) as caught:
            await tasks.resume(client, TASK_ID).wait()
        refused.append(caught.value.message)

    async with connected(scripted, tasks, elicitation_callback=prompt) as client:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(wait)
            await prompt.shown()
            await anyio.wait_all_tasks_blocked()
            prompt.answer("Publish it?", ErrorData(code=-32042, message="No"))
        assert refused == ["No", "No"]
        assert prompt.asked == ["Publish it?"]
        assert scripted.methods == ["tasks/cancel"]

        results: list[CallToolResult] = []

        async def finish() -> None:
            results.append(await tasks.resume(client, "task-2").wait())

        scripted.show(task("completed", taskId="task-2", result=completed()["result"]))
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(finish)
        for result in results:
            result.content.clear()
            result.content.append(TextContent(text="mine"))
        assert len({id(result.content) for result in results}) == 3


async def test_who_waits_goes_on_where_one_who_was_cancelled_left_off() -> None:
    """The open question is asked again, as after a `wait` that was cancelled; one that was answered is not."""
    scripted = ScriptedServer(asking(a=elicit("first"), b=elicit("second")))
    prompt = Prompt()
    prompt.answer("first", ElicitResult(action="accept"))
    tasks = quick_client()
    results: list[str] = []

    async def wait() -> None:
        results.append(text_of(await tasks.resume(client, TASK_ID).wait()))

    async with connected(scripted, tasks, elicitation_callback=prompt) as client, anyio.create_task_group() as group:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(wait)
            await prompt.shown(2)
            await scripted.saw("tasks/update")
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        await prompt.shown(3)
        prompt.answer("second", ElicitResult(action="decline"))
        await scripted.saw("tasks/update", 2)
        scripted.show(completed())
    assert results == ["done"]
    assert sorted(prompt.asked) == ["first", "second", "second"]
    assert "tasks/cancel" not in scripted.methods


async def test_wait_checks_the_result_of_a_started_task_against_the_output_schema() -> None:
    scripted = ScriptedServer(completed(structuredContent={"n": "one"}))
    scripted.tool["outputSchema"] = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        handle = await start(tasks, client)
        with pytest.raises(RuntimeError, match="Invalid structured content"):
            await handle.wait()
        scripted.show(completed(structuredContent={"n": "one"}, isError=True))
        assert (await handle.wait()).is_error
        scripted.show(completed(structuredContent={"n": 1}))
        assert not (await handle.wait()).is_error


async def test_snapshots_yield_each_change_and_end_with_the_task_and_answer_nothing() -> None:
    scripted = ScriptedServer(
        working("one"), working("one"), working("two"), asking(a=elicit()), asking(a=elicit()), failed(-1, "no")
    )
    prompt = Prompt()
    tasks = quick_client()
    async with connected(scripted, tasks, elicitation_callback=prompt) as client:
        handle = await start(tasks, client)
        seen = [(snapshot.status, snapshot.status_message) async for snapshot in handle.snapshots()]
    assert seen == [("working", "one"), ("working", "two"), ("input_required", None), ("failed", None)]
    assert prompt.asked == []
    assert scripted.methods == ["tools/call"]


async def test_snapshots_survive_a_look_that_fails_for_a_moment() -> None:
    scripted = ScriptedServer(working(), error(types.INTERNAL_ERROR), completed())
    tasks = quick_client()
    async with connected(scripted, tasks) as client:
        seen = [snapshot.status async for snapshot in tasks.resume(client, TASK_ID).snapshots()]
    assert seen == ["working", "completed"]


# Values


@pytest.mark.parametrize("name", ["request_timeout", "cancel_timeout"])
@pytest.mark.parametrize("value", [0, -1.0, math.nan])
def test_a_nonsensical_setting_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        TasksClient(**{name: value})


@pytest.mark.parametrize(
    "kind", [TaskError, TaskFailedError, TaskCancelledError, UnknownTaskError, InvalidTaskResponseError]
)
def test_an_error_of_a_task_is_an_error_of_the_sdk_and_of_this_library_and_survives_pickling(
    kind: type[TaskError],
) -> None:
    original = kind(-32000, "text", {"a": 1}, task_id="t")
    assert isinstance(original, MCPError)
    assert isinstance(original, TaskRuntimeError)
    copy = pickle.loads(pickle.dumps(original))
    assert type(copy) is kind
    assert (copy.code, copy.message, copy.data, copy.task_id) == (-32000, "text", {"a": 1}, "t")
    assert str(copy) == "text"


def test_the_client_of_the_other_line_says_what_to_install() -> None:
    with pytest.raises(ImportError, match=r"needs mcp 1\.x: pip install"):
        import_module("mcp_task_runtime.adapters.mcp_v1_client")


# Over real transports


@contextmanager
def served_over_http(
    make: Callable[[], ScriptedServer], **options: Any
) -> Generator[tuple[ScriptedServer, str, Callable[[], None]], None, None]:
    """Serve in a thread of its own, where everything is made as well: uvicorn runs on asyncio alone."""
    made: queue.Queue[tuple[ScriptedServer, uvicorn.Server]] = queue.Queue()

    def serve() -> None:
        scripted = make()
        app = scripted.server.streamable_http_app(**options)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        made.put((scripted, server))
        server.run(sockets=[listener])

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        scripted, server = made.get(timeout=PATIENCE)

        def stop() -> None:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()

        try:
            yield scripted, f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", stop
        finally:
            stop()


@pytest.mark.parametrize("options", [{}, {"json_response": True}, {"stateless_http": True}], ids=repr)
async def test_over_streamable_http_every_request_for_a_task_carries_mcp_name_c14(options: dict[str, Any]) -> None:
    tasks = quick_client()
    with served_over_http(asks_once, **options) as (scripted, url, _):
        async with Client(url, extensions=[tasks], elicitation_callback=accept) as client:
            with anyio.fail_after(PATIENCE):
                assert text_of(await client.call_tool("work")) == "accept"
                await tasks.resume(client, TASK_ID).cancel()
    about_task = [request for request in scripted.received if request.method != "tools/call"]
    assert {request.method for request in about_task} == {"tasks/get", "tasks/update", "tasks/cancel"}
    assert {request.headers.get("mcp-name") for request in about_task} == {TASK_ID}
    assert all(request.headers["mcp-method"] == request.method for request in about_task)


async def test_over_streamable_http_a_cancelled_call_cancels_its_task() -> None:
    scope = anyio.CancelScope()
    tasks = quick_client(on_update=at_first(scope.cancel))
    with served_over_http(ScriptedServer) as (scripted, url, _):
        async with Client(url, extensions=[tasks]) as client:
            with anyio.fail_after(PATIENCE), scope:
                await client.call_tool("work")
    assert scripted.methods == ["tools/call", "tasks/cancel"]


async def test_over_streamable_http_a_server_that_is_gone_does_not_hang_the_call_and_its_task_is_named() -> None:
    """The SDK ends the whole client when it cannot connect: the call is cancelled and can raise nothing."""
    with served_over_http(ScriptedServer) as (_, url, stop):

        async def go(snapshot: TaskSnapshot) -> None:
            await anyio.to_thread.run_sync(stop)

        tasks = quick_client(on_update=go)
        with anyio.fail_after(PATIENCE):
            with pytest.RaisesGroup(pytest.RaisesExc(Exception, match="connect"), flatten_subgroups=True):
                async with Client(url, extensions=[tasks]) as client:
                    await client.call_tool("work")
    (task_id,) = tasks.unfinished
    scripted = ScriptedServer(completed("after the restart"))
    async with connected(scripted, tasks) as client:
        assert text_of(await tasks.resume(client, task_id).wait()) == "after the restart"
    assert not tasks.unfinished


async def test_over_stdio_a_task_is_followed_to_its_result() -> None:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "tests.mcp_v2.scripted_server"],
        cwd=Path(__file__).parents[2],
        env=dict(os.environ),
    )
    with anyio.fail_after(3 * PATIENCE):
        async with Client(stdio_client(parameters), extensions=[quick_client()], elicitation_callback=accept) as client:
            assert text_of(await client.call_tool("work")) == "accept"
