"""`ServerTaskContext`: asking the client, telling it, and ending the task."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Annotated, Any

import anyio
import mcp_types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.validation import validate_tool_use_result_messages
from pydantic import BaseModel, Field

from mcp_task_runtime import (
    AcceptedElicitation,
    CancelledElicitation,
    CapabilityError,
    DeclinedElicitation,
    ElicitResult,
    Execution,
    InMemoryTaskStore,
    InvalidTransitionError,
    Outcome,
    ProtocolError,
    QueuedMessage,
    ServerTaskContext,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRecord,
    TaskResultHandler,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.adapters.sampling import check_tool_messages
from mcp_task_runtime.core import endings
from mcp_task_runtime.core.types import Fence, NewTask
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.session import Answerer
from tests.adapters.scripted import (
    ACCEPT,
    EVERYTHING,
    FORM,
    JSON,
    MESSAGE,
    Desk,
    ScriptedSession,
    answers,
    open_desk,
    raises,
)
from tests.support.patience import PATIENCE

Ask = Callable[[ServerTaskContext], Awaitable[Any]]

HELLO: JSON = {"role": "user", "content": {"type": "text", "text": "hello"}}
TOOL: JSON = {"name": "t", "inputSchema": {"type": "object"}}

ASKS: dict[str, Ask] = {
    "elicit": lambda task: task.elicit("?", FORM),
    "elicit_url": lambda task: task.elicit_url("?", "https://x", "e1"),
    "create_message": lambda task: task.create_message([HELLO], max_tokens=5),
    "elicit_as_task": lambda task: task.elicit_as_task("?", FORM),
    "create_message_as_task": lambda task: task.create_message_as_task([HELLO], max_tokens=5),
}


class Choice(BaseModel):
    ok: bool
    name: str = "x"


class Even(BaseModel):
    """A form with a rule that is not checked before its answer counts."""

    number: Annotated[int, Field(multiple_of=2)]


# --- abilities of the client -----------------------------------------------------------------------------------

NO_ELICITATION = "Client does not support elicitation capability"
NO_SAMPLING = "Client does not support sampling capability"


@pytest.mark.parametrize(
    ("method", "capabilities", "message"),
    [
        ("elicit", {}, NO_ELICITATION),
        ("elicit", {"sampling": {}}, NO_ELICITATION),
        ("elicit", {"elicitation": None}, NO_ELICITATION),
        ("elicit", {"elicitation": {"url": {}}}, "Client does not support elicitation in form mode"),
        ("elicit", {"elicitation": True}, NO_ELICITATION),
        ("elicit_url", {}, NO_ELICITATION),
        ("elicit_url", {"elicitation": {}}, "Client does not support elicitation in url mode"),
        ("elicit_url", {"elicitation": {"form": {}}}, "Client does not support elicitation in url mode"),
        ("create_message", {}, NO_SAMPLING),
        ("create_message", {"elicitation": {}}, NO_SAMPLING),
        ("elicit_as_task", {"elicitation": {}}, "Client does not support task-augmented elicitation"),
        ("elicit_as_task", {"tasks": True}, "Client does not support task-augmented elicitation"),
        (
            "elicit_as_task",
            {"tasks": {"requests": {"sampling": {"createMessage": {}}}}},
            "Client does not support task-augmented elicitation",
        ),
        ("create_message_as_task", {"sampling": {}}, "Client does not support task-augmented sampling"),
        (
            "create_message_as_task",
            {"tasks": {"requests": {"elicitation": {"create": {}}}}},
            "Client does not support task-augmented sampling",
        ),
    ],
)
async def test_a_client_is_not_asked_for_what_it_did_not_declare(method: str, capabilities: JSON, message: str) -> None:
    """The reference's checks with its messages and its code, -32600; nothing is asked."""
    async with open_desk(capabilities=capabilities) as desk:
        with pytest.raises(CapabilityError) as caught:
            await ASKS[method](desk.context)
        assert (caught.value.code, caught.value.message) == (-32600, message)
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize(
    ("method", "params", "asks"),
    [
        ("elicitation/create", {}, True),
        ("elicitation/create", {"mode": "form"}, True),
        ("elicitation/create", {"mode": "url"}, False),
        ("elicitation/create", {"task": {"ttl": 1_000}}, False),
        ("sampling/createMessage", {}, False),
    ],
)
@pytest.mark.parametrize(("inbox", "capabilities"), [(60, {}), (None, {}), (60, {"elicitation": {}})])
async def test_only_a_form_for_a_client_that_cannot_be_asked_waits_for_a_person(
    method: str, params: JSON, asks: bool, inbox: float | None, capabilities: JSON
) -> None:
    """L15."""
    desk = Desk(ScriptedSession(capabilities=capabilities))
    desk.handler = TaskResultHandler(desk.store, desk.queue, inbox=inbox)
    await desk.open()
    assert desk.context.asks_person(method, params) is (asks and inbox is not None and not capabilities)


@pytest.mark.parametrize(
    ("method", "capabilities"),
    [
        ("elicit", {"elicitation": {}}),
        ("elicit", {"elicitation": {"form": {}}}),
        ("elicit", {"elicitation": {"form": {}, "url": {}}}),
        ("elicit_url", {"elicitation": {"url": {}}}),
    ],
)
async def test_an_empty_elicitation_declaration_means_forms(method: str, capabilities: JSON) -> None:
    async with open_desk(answers(ACCEPT), capabilities=capabilities) as desk:
        assert (await ASKS[method](desk.context)).action == "accept"


@pytest.mark.parametrize("more", [{"tools": [TOOL]}, {"tools": []}, {"tool_choice": {"mode": "auto"}}])
@pytest.mark.parametrize("method", ["create_message", "create_message_as_task"])
async def test_tools_need_the_sampling_tools_capability(method: str, more: JSON) -> None:
    """As in the reference: -32602, and tools that are an empty list are tools."""
    capabilities = {**EVERYTHING, "sampling": {}}
    async with open_desk(capabilities=capabilities) as desk:
        with pytest.raises(CapabilityError, match="Client does not support sampling tools capability") as caught:
            await getattr(desk.context, method)([HELLO], max_tokens=1, **more)
        assert caught.value.code == -32602
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("method", ASKS)
async def test_asking_needs_a_handler(method: str) -> None:
    async with open_desk(with_handler=False) as desk:
        with pytest.raises(RuntimeError, match=rf"handler is required for {method}\(\)"):
            await ASKS[method](desk.context)
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("method", ASKS)
async def test_a_client_that_no_question_can_reach_is_not_asked_and_the_work_is_told_why(method: str) -> None:
    async with open_desk() as desk:
        handler = TaskResultHandler(desk.store, desk.queue, undeliverable="stateless server")
        with pytest.raises(CapabilityError, match="stateless server"):
            await ASKS[method](desk.another_context(handler=handler))
        assert await desk.state() == ("working", [])


async def test_no_request_of_a_context_without_a_handler_waits_for_a_person() -> None:
    async with open_desk(with_handler=False) as desk:
        assert not desk.context.asks_person("elicitation/create", {"message": "?", "requestedSchema": {}})


async def test_detaching_needs_a_runtime() -> None:
    async with open_desk() as desk:
        with pytest.raises(RuntimeError, match="detach"):
            desk.context.detach()


# --- asking ----------------------------------------------------------------------------------------------------


async def test_a_form_reaches_the_client_with_the_task_it_belongs_to() -> None:
    """Wire rule B6."""
    async with open_desk(answers(ACCEPT)) as desk:
        answer = await desk.context.elicit("Sure?", FORM)
        assert isinstance(answer, ElicitResult)
        assert (answer.action, answer.content) == ("accept", {"ok": True})
        assert desk.session.requests == [
            (
                "elicitation/create",
                {
                    "message": "Sure?",
                    "requestedSchema": FORM,
                    "_meta": {"io.modelcontextprotocol/related-task": {"taskId": desk.task_id}},
                },
            )
        ]
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"action": "accept", "content": {"ok": True, "name": "n"}}, AcceptedElicitation(Choice(ok=True, name="n"))),
        ({"action": "accept", "content": {"ok": False}}, AcceptedElicitation(Choice(ok=False))),
        ({"action": "decline"}, DeclinedElicitation()),
        ({"action": "decline", "content": {"ok": 5}}, DeclinedElicitation()),
        ({"action": "cancel"}, CancelledElicitation()),
    ],
)
async def test_a_form_asked_for_as_a_model_comes_back_as_one(result: JSON, expected: object) -> None:
    async with open_desk(answers(result)) as desk:
        answer = await desk.context.elicit("?", Choice)
        assert answer == expected
        assert desk.session.requests[0][1]["requestedSchema"]["required"] == ["ok"]


async def test_content_that_fits_the_schema_and_not_the_model_raises_in_the_asker() -> None:
    async with open_desk(answers({"action": "accept", "content": {"number": 3}})) as desk:
        with pytest.raises(ProtocolError, match="malformed") as caught:
            await desk.context.elicit("?", Even)
        assert caught.value.code == -32602
        assert await desk.state() == ("working", [])


async def test_a_model_that_is_no_flat_form_is_refused_before_anything_is_asked() -> None:
    class Nested(BaseModel):
        choice: Choice

    async with open_desk(answers(ACCEPT)) as desk:
        with pytest.raises(TypeError, match=r"Nested\.choice"):
            await desk.context.elicit("?", Nested)
        assert desk.session.requests == []


@pytest.mark.parametrize("method", ["elicit", "elicit_as_task"])
@pytest.mark.parametrize("form", [str, "object", None, Choice(ok=True)])
async def test_what_is_no_form_is_refused_before_anything_is_asked(method: str, form: Any) -> None:
    async with open_desk(answers(ACCEPT)) as desk:
        with pytest.raises(TypeError, match="requested_schema must be a pydantic model class"):
            await getattr(desk.context, method)("?", form)
        assert desk.session.requests == []


async def test_a_url_is_asked_for_in_url_mode() -> None:
    async with open_desk(answers({"action": "accept"})) as desk:
        answer = await desk.context.elicit_url("Log in", "https://login", "e-1")
        assert (answer.action, answer.content) == ("accept", None)
        method, params = desk.session.requests[0]
        del params["_meta"]
        assert method == "elicitation/create"
        assert params == {"mode": "url", "message": "Log in", "url": "https://login", "elicitationId": "e-1"}


async def test_a_message_is_asked_for_with_every_option_that_was_given_and_no_other() -> None:
    async with open_desk(answers(MESSAGE)) as desk:
        answer = await desk.context.create_message(
            [HELLO, mcp_types.SamplingMessage(role="assistant", content=mcp_types.TextContent(type="text", text="x"))],
            max_tokens=7,
            system_prompt="s",
            include_context="none",
            temperature=0.0,
            stop_sequences=("a", "b"),
            metadata={"m": 1},
            model_preferences=mcp_types.ModelPreferences(cost_priority=0.5),
            tools=[mcp_types.Tool(name="t", input_schema={"type": "object"})],
            tool_choice={"mode": "none"},
        )
        assert (answer.text, answer.model, answer.role, answer.stop_reason) == ("hi", "m", "assistant", "endTurn")
        method, params = desk.session.requests[0]
        del params["_meta"]
        assert method == "sampling/createMessage"
        assert params == {
            "messages": [HELLO, {"role": "assistant", "content": {"type": "text", "text": "x"}}],
            "maxTokens": 7,
            "systemPrompt": "s",
            "includeContext": "none",
            "temperature": 0.0,
            "stopSequences": ["a", "b"],
            "metadata": {"m": 1},
            "modelPreferences": {"costPriority": 0.5},
            "tools": [{"name": "t", "inputSchema": {"type": "object"}}],
            "toolChoice": {"mode": "none"},
        }
        await desk.context.create_message([HELLO], max_tokens=1)
        assert set(desk.session.requests[1][1]) == {"messages", "maxTokens", "_meta"}


@pytest.mark.parametrize("method", ASKS)
async def test_an_error_answer_raises_in_the_asker_and_the_task_works_again(method: str) -> None:
    """L5, F3: code, message and data as the client sent them."""
    async with open_desk(raises(ProtocolError(-1, "user closed the window", {"why": 1}))) as desk:
        with pytest.raises(ProtocolError, match="user closed the window") as caught:
            await ASKS[method](desk.context)
        assert (caught.value.code, caught.value.data) == (-1, {"why": 1})
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("method", ASKS)
@pytest.mark.parametrize("result", [{}, {"action": "maybe"}, {"role": "assistant"}, {"action": "accept", "content": 1}])
async def test_a_malformed_answer_on_a_stream_raises_in_the_asker(method: str, result: JSON) -> None:
    async with open_desk(answers(result)) as desk:
        with pytest.raises(ProtocolError) as caught:
            await ASKS[method](desk.context)
        assert caught.value.code == -32602
        assert await desk.state() == ("working", [])


async def test_an_oversized_answer_on_a_stream_raises_in_the_asker() -> None:
    async with open_desk(answers({**ACCEPT, "more": "x" * 200}), max_answer_bytes=100) as desk:
        with pytest.raises(ProtocolError, match="100 bytes"):
            await desk.context.elicit("?", FORM)


async def test_two_contexts_of_one_task_never_use_a_key_twice() -> None:
    """L5, F15."""
    async with open_desk(delivering=False) as desk:
        other = desk.another_context()
        async with anyio.create_task_group() as group:
            for context in (desk.context, other, desk.context, other):
                group.start_soon(context.elicit, "?", FORM)
            await desk.until_asked(4)
            keys = await desk.open_keys()
            group.cancel_scope.cancel()
        assert len(set(keys)) == 4
        assert await desk.state() == ("working", [])


async def test_two_questions_at_once_each_get_their_own_answer() -> None:
    """F2, F4, F15: answered in reverse order."""
    release = anyio.Event()

    async def answer(method: str, params: JSON) -> JSON:
        if params["message"] == "first":
            await release.wait()
        return {"action": "accept", "content": {"ok": params["message"] == "first"}}

    async with open_desk(answer, yielding=True) as desk:
        got: JSON = {}

        async def ask(message: str) -> None:
            got[message] = (await desk.context.elicit(message, FORM)).content
            if message == "second":
                assert await desk.state() == ("input_required", ["first"])
                release.set()

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "first")
            await desk.session.until_requested()
            group.start_soon(ask, "second")
        assert got == {"first": {"ok": True}, "second": {"ok": False}}
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("method", ["elicit", "create_message"])
async def test_asking_cancelled_at_any_await_restores_the_status_and_withdraws_the_question(method: str) -> None:
    """L5, L6, F7: at each await of the store."""

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(answers(ACCEPT if method == "elicit" else MESSAGE)), yielding=True)
        await desk.open()

        async def deliver() -> None:
            async with desk.handler.delivering(desk.task_id, desk.session):
                await anyio.sleep_forever()

        return Trial(
            partial(ASKS[method], desk.context), desk.state, meanwhile=deliver, leftovers=lambda: desk.clock.waiting
        )

    with anyio.fail_after(3 * PATIENCE):
        assert await check_cancellation(setup) > 8


@pytest.mark.parametrize("end", ["complete", "fail"])
async def test_ending_the_task_releases_every_open_question(end: str) -> None:
    """L5, F6."""
    async with open_desk(yielding=True) as desk:
        released: list[str] = []

        async def ask(method: str) -> None:
            try:
                await ASKS[method](desk.context)
            except InvalidTransitionError as error:
                released.append(error.current)

        async with anyio.create_task_group() as group:
            for method in ASKS:
                group.start_soon(ask, method)
            await desk.until_asked(len(ASKS))
            await (desk.context.complete({"n": 1}) if end == "complete" else desk.context.fail("x"))
        assert released == [await desk.status()] * len(ASKS)
        assert desk.mailboxes.mailboxes == 0


@pytest.mark.parametrize("method", ["elicit", "elicit_as_task", "create_message", "create_message_as_task"])
async def test_while_a_question_waits_its_text_is_all_that_is_kept_of_it(method: str) -> None:
    """A prompt may have megabytes, and its answer may take days."""
    asks: dict[str, Callable[[ServerTaskContext], Coroutine[Any, Any, Any]]] = {
        "elicit": lambda task: task.elicit(unique(), FORM),
        "elicit_as_task": lambda task: task.elicit_as_task(unique(), FORM),
        "create_message": lambda task: task.create_message([said(unique())], max_tokens=5),
        "create_message_as_task": lambda task: task.create_message_as_task([said(unique())], max_tokens=5),
    }

    def unique() -> str:
        return f"{method} {desk.task_id}"

    def said(text: str) -> JSON:
        return {"role": "user", "content": {"type": "text", "text": text}}

    async with open_desk(delivering=False) as desk, anyio.create_task_group() as group:
        group.start_soon(asks[method], desk.context)
        await desk.until_asked()
        gc.collect()
        forms = [each.get("message") for each in gc.get_objects() if type(each) is dict]
        prompts = [each.get("content") for each in gc.get_objects() if type(each) is dict]
        texts = [*forms, *(each.get("text") for each in prompts if type(each) is dict)]
        assert unique() not in [each for each in texts if type(each) is str]
        group.cancel_scope.cancel()


async def test_asking_after_the_end_raises_and_leaves_nothing() -> None:
    """L8."""
    async with open_desk(answers(ACCEPT), delivering=False) as desk:
        await desk.context.complete({})
        with pytest.raises(InvalidTransitionError):
            await desk.context.elicit("?", FORM)
        assert desk.mailboxes.mailboxes == 0


async def test_the_question_of_an_expired_task_is_released() -> None:
    """L7, F18: with no runtime to watch the deadline."""
    async with open_desk(delivering=False, ttl_ms=10_000) as desk:

        async def ask() -> None:
            with pytest.raises(TaskNotFoundError):
                await desk.context.elicit("?", FORM)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await desk.until_asked()
            desk.clock.advance(10)


async def test_work_that_runs_again_gets_the_answers_it_had_and_asks_only_what_is_new() -> None:
    """L12."""
    async with open_desk(answers(ACCEPT)) as desk:
        await desk.context.elicit("first", FORM)
        again = desk.another_context(attempt=2)
        desk.session.answers = answers({"action": "accept", "content": {"ok": False}})
        assert (await again.elicit("first", FORM)).content == {"ok": True}
        assert (await again.elicit("second", FORM)).content == {"ok": False}
        assert [params["message"] for _, params in desk.session.requests] == ["first", "second"]


# --- sampling with tools ---------------------------------------------------------------------------------------

ids = st.sampled_from(["1", "2", "3"])
blocks = st.one_of(
    st.just({"type": "text", "text": "x"}),
    st.builds(lambda each: {"type": "tool_use", "id": each, "name": "t", "input": {}}, ids),
    st.builds(lambda each: {"type": "tool_result", "toolUseId": each, "content": []}, ids),
)
conversations = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant"]),
        blocks | st.lists(blocks, min_size=1, max_size=3),
    ),
    max_size=4,
)


def refusal(check: Callable[[Any], None], messages: Any) -> str | None:
    try:
        check(messages)
    except ValueError as error:
        return str(error)
    return None


@given(conversations)
def test_tool_messages_are_refused_exactly_as_the_reference_refuses_them(messages: list[JSON]) -> None:
    """The SDK's own validation is the oracle: same verdict, same words."""
    theirs = [mcp_types.SamplingMessage.model_validate(message) for message in messages]
    assert refusal(check_tool_messages, messages) == refusal(validate_tool_use_result_messages, theirs)


@pytest.mark.parametrize("ids", [["a"], ["a", "b"]])
def test_tool_results_that_answer_all_tool_uses_are_accepted(ids: list[str]) -> None:
    uses = [{"type": "tool_use", "id": one, "name": "look", "input": {}} for one in ids]
    results = [{"type": "tool_result", "toolUseId": one, "content": []} for one in reversed(ids)]
    check_tool_messages([{"role": "assistant", "content": uses}, {"role": "user", "content": results}])


@pytest.mark.parametrize("method", ["create_message", "create_message_as_task"])
@pytest.mark.parametrize("messages", ["hi", ["hi"], [None]])
async def test_what_is_no_message_is_refused_before_anything_is_asked(method: str, messages: Any) -> None:
    async with open_desk(answers(MESSAGE)) as desk:
        with pytest.raises(TypeError, match="messages must be JSON objects"):
            await getattr(desk.context, method)(messages, max_tokens=1)
        assert desk.session.requests == []


@pytest.mark.parametrize("method", ["create_message", "create_message_as_task"])
async def test_tool_results_that_answer_nothing_are_refused_before_anything_is_asked(method: str) -> None:
    result = {"role": "user", "content": {"type": "tool_result", "toolUseId": "1", "content": []}}
    async with open_desk(answers(MESSAGE)) as desk:
        with pytest.raises(ValueError, match="tool_result"):
            await getattr(desk.context, method)([result], max_tokens=1)
        assert desk.session.requests == []


# --- telling ---------------------------------------------------------------------------------------------------


async def test_a_status_message_is_stored_and_the_client_is_told_unless_asked_not_to() -> None:
    """Wire rule B10."""
    async with open_desk() as desk:
        await desk.context.update_status("quietly", notify=False)
        assert desk.session.notifications == []
        await desk.context.update_status("aloud")
        method, params = desk.session.notifications[0]
        assert method == "notifications/tasks/status"
        assert (params["taskId"], params["status"], params["statusMessage"]) == (desk.task_id, "working", "aloud")
        assert (params["ttl"], params["pollInterval"]) == (60_000, 500)
        assert "_meta" not in params
        assert desk.context.task.status_message == "aloud"


@pytest.mark.parametrize("notify", [True, False])
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda task, notify: task.complete({"n": 1}, notify=notify), "completed"),
        (lambda task, notify: task.complete({"isError": True}, notify=notify), "failed"),  # wire rule B7
        (lambda task, notify: task.fail("broken", notify=notify), "failed"),
    ],
    ids=["complete", "complete with isError", "fail"],
)
async def test_the_client_is_told_of_the_end_unless_asked_not_to(
    end: Callable[[ServerTaskContext, bool], Awaitable[None]], status: str, notify: bool
) -> None:
    async with open_desk() as desk:
        await end(desk.context, notify)
        assert [params["status"] for _, params in desk.session.notifications] == ([status] if notify else [])
        assert desk.context.task.status != "working"
        with pytest.raises(InvalidTransitionError):
            await end(desk.context, notify)
        assert len(desk.session.notifications) == notify, "nothing is told that did not happen"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "1"),
        ((1, 4), "1/4"),
        ((0.5, 1.0), "0.5/1"),
        ((2, 4, "Reading"), "Reading (2/4)"),
        ((1_234_567, 7_654_321), "1234567/7654321"),
        ((10**15, None), "1000000000000000"),
        ((100 / 3, 100), "33.3333/100"),
        ((2_500_000.5, 1e7), "2500000/10000000"),
    ],
)
async def test_progress_shows_in_the_status_message(arguments: Any, message: str) -> None:
    async with open_desk() as desk:
        await desk.context.report_progress(*arguments)
        assert desk.context.task.status_message == message
        assert [method for method, _ in desk.session.notifications] == ["notifications/tasks/status"]


@pytest.mark.parametrize("token", ["t", 0, 7])
async def test_progress_goes_to_the_callers_token_for_the_tasks_life(token: str | int) -> None:
    """Wire rule B11; 0 is a token, too."""
    async with open_desk(progress_token=token) as desk:
        await desk.context.report_progress(1)
        await desk.context.report_progress(2, 4, "Reading")
        sent = [params for method, params in desk.session.notifications if method == "notifications/progress"]
        assert sent == [
            {"progressToken": token, "progress": 1},
            {"progressToken": token, "progress": 2, "total": 4, "message": "Reading"},
        ]


# --- ending ----------------------------------------------------------------------------------------------------


async def test_completing_cancelled_at_any_await_happens_in_full_or_not_at_all() -> None:
    """L2, L6, F8: never a status without its outcome, and no question is left."""

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(), yielding=True)
        await desk.open()
        await desk.mailboxes.enqueue(desk.task_id, QueuedMessage.request("1", "m", {}))

        async def observe() -> Any:
            record = await desk.memory.get_task(desk.task_id)
            assert record is not None
            assert (record.outcome is None) == (record.status == "working")
            return record.status, record.outcome, desk.mailboxes.mailboxes

        return Trial(partial(desk.context.complete, {"n": 1}), observe)

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 4


async def test_completing_with_a_store_that_hangs_raises_instead_of_claiming_success(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A result that was not stored must not be announced."""

    class Hanging(InMemoryTaskStore):
        async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
            await anyio.sleep_forever()
            raise AssertionError

    monkeypatch.setattr(endings, "CLEANUP_SECONDS", 0.05)
    store = Hanging(clock=FakeClock())
    session = ScriptedSession()
    record = await store.create_task(NewTask(ttl_ms=None))
    context = ServerTaskContext(task=record.task, store=store, session=session, queue=store.message_queue)
    with anyio.fail_after(PATIENCE):
        with pytest.raises(StoreUnavailableError):
            await context.complete({})
    assert session.notifications == []


async def test_is_cancelled_is_true_before_the_work_is_cancelled_and_its_question_is_released() -> None:
    """L5, L9, F5, F6."""
    store = InMemoryTaskStore()
    runtime = TaskRuntime(store, settings=TaskSettings(shutdown_grace=0))
    handler = TaskResultHandler(store, runtime.queue)
    session = ScriptedSession()
    seen: list[tuple[bool, bool]] = []

    async def work(execution: Execution[JSON]) -> JSON:
        assert execution.record is not None
        task = ServerTaskContext(
            task=execution.record.task,
            store=store,
            session=session,
            queue=runtime.queue,
            handler=handler,
            execution=execution,
        )
        before = task.is_cancelled
        try:
            await task.elicit("?", FORM)
        finally:
            seen.append((before, task.is_cancelled))
        return {}

    with anyio.fail_after(PATIENCE):
        async with runtime:
            record = await runtime.submit(TaskSpec(), work)
            async with anyio.create_task_group() as group:
                group.start_soon(handler.handle, record.task_id, session)
                await session.until_requested()
                await runtime.cancel(record.task_id, owner=None)
    assert seen == [(False, True)]
    assert session.cancelled == 1, "the request without a waiter"
    assert store.message_queue.mailboxes == 0
    assert handler._streams == {}


# --- clients with tasks of their own (wire rule B12) -----------------------------------------------------------


class TaskingClient:
    """Answers a request with a task of its own, and serves that."""

    def __init__(self, *statuses: JSON | Exception, result: JSON | Exception = ACCEPT) -> None:
        self.statuses = list(statuses)
        self.result = result
        self.polled = anyio.Event()
        self.created: JSON = {"task": {"taskId": "c-1", "status": "working", "pollInterval": 0, "ttl": 60_000}}

    async def __call__(self, method: str, params: JSON) -> JSON:
        if method == "tasks/get":
            self.polled.set()
            reply = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            return self._reply(reply, {"taskId": "c-1", "pollInterval": 0})
        if method == "tasks/result":
            return self._reply(self.result, {})
        if method == "tasks/cancel":
            return {"taskId": "c-1", "status": "cancelled"}
        return self.created

    @staticmethod
    def _reply(reply: JSON | Exception, more: JSON) -> JSON:
        if isinstance(reply, Exception):
            raise reply
        return {**more, **reply}


WORKING: JSON = {"status": "working"}
COMPLETED: JSON = {"status": "completed"}


@pytest.mark.parametrize(
    "statuses", [(COMPLETED,), (WORKING, WORKING, COMPLETED), (WORKING, {"status": "input_required"})]
)
async def test_a_clients_own_task_is_polled_until_it_ends_and_its_result_fetched(statuses: tuple[JSON, ...]) -> None:
    client = TaskingClient(*statuses)
    async with open_desk(client) as desk:
        answer = await desk.context.elicit_as_task("?", FORM, ttl=5000)
        assert (answer.action, answer.content) == ("accept", {"ok": True})
        assert desk.session.requests[0][1]["task"] == {"ttl": 5000}
        assert desk.session.methods == ["elicitation/create", *["tasks/get"] * len(statuses), "tasks/result"]
        assert desk.session.requests[-1][1]["taskId"] == "c-1"
        assert await desk.state() == ("working", [])


async def test_a_message_as_a_task_and_a_typed_form_as_a_task_come_back_typed() -> None:
    async with open_desk(TaskingClient(COMPLETED, result=MESSAGE)) as desk:
        assert (await desk.context.create_message_as_task([HELLO], max_tokens=3, ttl=9)).text == "hi"
        assert desk.session.requests[0][1]["maxTokens"] == 3
        assert desk.session.requests[0][1]["task"] == {"ttl": 9}
    async with open_desk(TaskingClient(COMPLETED)) as desk:
        assert await desk.context.elicit_as_task("?", Choice) == AcceptedElicitation(Choice(ok=True))


async def test_a_client_may_answer_at_once_instead_of_making_a_task() -> None:
    async with open_desk(answers(ACCEPT)) as desk:
        assert (await desk.context.elicit_as_task("?", FORM)).content == {"ok": True}
        assert desk.session.methods == ["elicitation/create"]


GONE = ProtocolError(-32602, "Task not found")


@pytest.mark.parametrize(
    ("client", "code"),
    [
        (TaskingClient(GONE), -32602),  # it expired
        (TaskingClient({"status": "cancelled"}), None),
        (TaskingClient({"status": "failed", "statusMessage": "no model"}, result=ProtocolError(-7, "no model")), -7),
        (TaskingClient({"status": "failed", "statusMessage": "no model"}, result={}), None),
        (TaskingClient(COMPLETED, result=ProtocolError(-7, "nope")), -7),
        (TaskingClient(COMPLETED, result={"action": "maybe"}), -32602),
        (TaskingClient(COMPLETED, result={"action": "accept", "content": {"ok": "yes"}}), -32602),
        (TaskingClient(COMPLETED, result={**ACCEPT, "more": "x" * 20_000}), -32602),
    ],
    ids=[
        "expired",
        "cancelled",
        "failed",
        "failed without a reason",
        "error",
        "malformed",
        "not the form",
        "oversized",
    ],
)
async def test_whatever_goes_wrong_with_the_clients_task_raises_in_the_asker(
    client: Answerer, code: int | None
) -> None:
    async with open_desk(client) as desk:
        with pytest.raises(ProtocolError) as caught:
            await desk.context.elicit_as_task("?", FORM)
        assert code is None or caught.value.code == code
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("task", [{}, {"taskId": 5}, {"taskId": None, "status": "working"}])
async def test_a_clients_task_without_an_id_raises_in_the_asker(task: JSON) -> None:
    client = TaskingClient(COMPLETED)
    client.created = {"task": task}
    async with open_desk(client) as desk:
        with pytest.raises(ProtocolError):
            await desk.context.elicit_as_task("?", FORM)
        assert await desk.state() == ("working", [])


@pytest.mark.parametrize("interval", [None, -5, 0, True, "soon", [], 1e-9])
async def test_a_nonsense_poll_interval_neither_hurries_nor_breaks_the_polling(
    interval: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    client = TaskingClient({**WORKING, "pollInterval": interval}, COMPLETED)
    client.created["task"]["pollInterval"] = interval
    async with open_desk(client) as desk:
        monkeypatch.setattr(anyio, "sleep", nap)
        assert (await desk.context.elicit_as_task("?", FORM)).action == "accept"
    assert len(naps) == 2
    assert all(0.01 <= seconds <= 1 for seconds in naps)


@pytest.mark.parametrize("interval", [10**400, 1e308, 10**9], ids=["no float", "huge", "days"])
async def test_a_client_cannot_put_its_polling_off_for_ever(interval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    client = TaskingClient({**WORKING, "pollInterval": interval}, COMPLETED)
    client.created["task"]["pollInterval"] = interval
    async with open_desk(client) as desk:
        monkeypatch.setattr(anyio, "sleep", nap)
        assert (await desk.context.elicit_as_task("?", FORM)).action == "accept"
    assert len(naps) == 2
    assert all(seconds <= 60 for seconds in naps)


async def test_cancelling_the_asker_cancels_the_clients_task() -> None:
    """L9."""
    client = TaskingClient(WORKING)
    async with open_desk(client) as desk:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(desk.context.elicit_as_task, "?", FORM))
            await client.polled.wait()
            group.cancel_scope.cancel()
        assert await desk.state() == ("working", [])
        while "tasks/cancel" not in desk.session.methods:
            await desk.session.until_requested(len(desk.session.requests) + 1)
        assert desk.session.requests[-1] == ("tasks/cancel", {"taskId": "c-1"})


async def test_a_client_gone_while_its_task_is_polled_is_asked_for_the_same_task_when_it_is_back() -> None:
    """L5, F10: the question stays open, and the user is not asked twice."""
    client = TaskingClient(OSError("connection lost"))
    async with open_desk(client, delivering=False) as desk:
        got: list[Any] = []

        async def ask() -> None:
            got.append(await desk.context.elicit_as_task("?", FORM))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            async with desk.handler.delivering(desk.task_id, desk.session):
                await client.polled.wait()
                await anyio.wait_all_tasks_blocked()
            assert await desk.state() == ("input_required", ["?"])
            again = ScriptedSession(TaskingClient(COMPLETED))
            async with desk.handler.delivering(desk.task_id, again):
                while not got:
                    await again.until_requested(len(again.requests) + 1)
                    await anyio.wait_all_tasks_blocked()
        assert got[0].content == {"ok": True}
        assert again.methods == ["tasks/get", "tasks/result"]


async def test_l15_a_session_of_ones_own_is_no_stream_for_the_tasks_questions() -> None:
    """Its author delivers them, with a handler; the SDK's real session alone is a way to the client of its own."""
    async with open_desk(delivering=False) as desk:
        assert desk.session.can_send_request
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(desk.context.elicit, "Sure?", FORM)
                await anyio.wait_all_tasks_blocked()
                assert len(await desk.open_keys()) == 1
                assert not desk.handler.has_stream(desk.task_id)
                assert desk.session.requests == []
                group.cancel_scope.cancel()
