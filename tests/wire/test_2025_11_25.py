"""Rendering and parsing of revision 2025-11-25, without any I/O; what is rendered validates against the schema."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime import Outcome, ProtocolError, QueuedMessage, Task, TaskPage, TaskRecord, TaskStatus, TaskView
from mcp_task_runtime.core.types import Progress
from mcp_task_runtime.wire import v2025_11_25 as wire
from tests.mcp_v1.schemas import RELATED, needs_schema, validate

NOW = datetime(2025, 11, 25, 12, 0, 0, 1, tzinfo=timezone.utc)


def a_task(
    status: TaskStatus = "working", *, message: str | None = None, ttl_ms: int | None = 60_000, task_id: str = "t-1"
) -> Task:
    return Task(task_id, status, message, NOW, NOW + timedelta(seconds=1), ttl_ms, 500)


def test_b4_a_task_is_rendered_flat() -> None:
    assert wire.render_task(a_task(message="Reading")) == {
        "taskId": "t-1",
        "status": "working",
        "statusMessage": "Reading",
        "createdAt": "2025-11-25T12:00:00.000001Z",
        "lastUpdatedAt": "2025-11-25T12:00:01.000001Z",
        "ttl": 60_000,
        "pollInterval": 500,
    }


def test_a4_an_unlimited_ttl_is_null_and_not_left_out() -> None:
    assert wire.render_task(a_task(ttl_ms=None))["ttl"] is None


@needs_schema
@given(
    status=st.sampled_from(["working", "input_required", "completed", "failed", "cancelled"]),
    message=st.none() | st.text(),
    ttl_ms=st.none() | st.integers(min_value=1, max_value=10**13),
)
def test_every_task_validates(status: TaskStatus, message: str | None, ttl_ms: int | None) -> None:
    task = a_task(status, message=message, ttl_ms=ttl_ms)
    rendered = wire.render_task(task)
    for definition in ("Task", "GetTaskResult", "CancelTaskResult", "TaskStatusNotificationParams"):
        validate(rendered, definition)
    validate(wire.render_created(task, model_immediate_response=message), "CreateTaskResult")
    validate(wire.render_page(TaskPage((TaskRecord(task),), "next")), "ListTasksResult")


def test_b7_a_result_with_is_error_is_a_failure_and_b13_says_what_went_wrong() -> None:
    outcome = Outcome.completed({"isError": True, "content": [{"type": "text", "text": "No such city"}]})
    rendered = wire.render_task(a_task("completed", message="Reading"), outcome)
    assert (rendered["status"], rendered["statusMessage"]) == ("failed", "No such city")
    assert wire.render_result(outcome, "t-1")["isError"] is True


@pytest.mark.parametrize("content", [[], None, [{"type": "image"}], [{"type": "text", "text": ""}], ["?"]])
def test_b13_an_error_result_without_text_still_has_a_message(content: Any) -> None:
    outcome = Outcome.completed({"isError": True, "content": content})
    assert wire.render_task(a_task("completed"), outcome)["statusMessage"] == "The tool reported an error"


def test_b13_a_long_text_is_cut() -> None:
    outcome = Outcome.completed({"isError": True, "content": [{"type": "text", "text": "x" * 10_000}]})
    assert len(wire.render_task(a_task("completed"), outcome)["statusMessage"]) < 1_000


def test_b7_a_result_without_is_error_is_completed() -> None:
    outcome = Outcome.completed({"isError": False, "content": []})
    assert wire.render_task(a_task("completed"), outcome)["status"] == "completed"


def test_b5_the_result_keeps_its_own_meta() -> None:
    outcome = Outcome.completed({"content": [], "_meta": {"mine": 1}})
    assert wire.render_result(outcome, "t-1") == {"content": [], "_meta": {"mine": 1, RELATED: {"taskId": "t-1"}}}


def test_b5_an_error_comes_out_as_it_went_in() -> None:
    with pytest.raises(ProtocolError) as raised:
        wire.render_result(Outcome.failed("No", code=-32050, data={"a": [1]}), "t-1")
    assert (raised.value.code, raised.value.message, raised.value.data) == (-32050, "No", {"a": [1]})


def test_b5_a_cancelled_task_has_an_error_for_a_result() -> None:
    with pytest.raises(ProtocolError, match="cancelled"):
        wire.render_result(Outcome.cancelled(), "t-1")


def test_b1_listing_is_declared_where_requestors_can_be_told_apart() -> None:
    assert wire.render_capability(can_list=True)["list"] == {}
    assert "list" not in wire.render_capability(can_list=False)


@needs_schema
@pytest.mark.parametrize("can_list", [True, False])
def test_b1_the_capability_validates(can_list: bool) -> None:
    validate({"tasks": wire.render_capability(can_list=can_list)}, "ServerCapabilities")


@pytest.mark.parametrize(
    ("task", "ttl_ms"),
    [
        ({}, None),
        ({"ttl": None}, None),
        ({"ttl": 5}, 5),
        ({"ttl": 5.0}, 5),
        ({"ttl": -1}, 0),
        ({"ttl": 10**40}, 10**13),
    ],
)
def test_b3_a_ttl_is_taken_as_far_as_it_makes_sense(task: Any, ttl_ms: int | None) -> None:
    assert wire.parse_ttl(task) == ttl_ms


@pytest.mark.parametrize("task", [None, [], 7, {"ttl": "5"}, {"ttl": True}, {"ttl": 0.5}, {"ttl": {}}])
def test_b3_a_malformed_ttl_is_invalid_params(task: Any) -> None:
    with pytest.raises(ProtocolError) as raised:
        wire.parse_ttl(task)
    assert raised.value.code == -32602


@pytest.mark.parametrize("params", [None, {}, {"taskId": None}, {"taskId": 7}, {"taskId": []}])
def test_a3_a_malformed_id_is_invalid_params(params: Any) -> None:
    with pytest.raises(ProtocolError) as raised:
        wire.parse_task_id(params)
    assert raised.value.code == -32602


def test_b9_a_cursor_is_optional_and_a_string() -> None:
    assert wire.parse_cursor(None) is None
    assert wire.parse_cursor({"cursor": "c"}) == "c"
    with pytest.raises(ProtocolError) as raised:
        wire.parse_cursor({"cursor": 7})
    assert raised.value.code == -32602


@pytest.mark.parametrize(
    ("result", "task_id"),
    [
        ({}, None),
        ({"_meta": None}, None),
        ({"_meta": {RELATED: 7}}, None),
        ({"_meta": {RELATED: {"taskId": "t"}}}, "t"),
    ],
)
def test_b6_an_answer_may_say_which_task_it_belongs_to(result: Any, task_id: str | None) -> None:
    assert wire.related_task_id(result) == task_id


def test_errors_have_the_codes_of_the_rules() -> None:
    assert wire.task_required("x").code == wire.task_forbidden("x").code == -32601
    assert wire.already_ended().code == -32602
    assert wire.list_not_offered().code == -32601


FORM = QueuedMessage.request("a.1", "elicitation/create", {"message": "Publish?", "requestedSchema": {}})
SAMPLE = QueuedMessage.request("b.1", "sampling/createMessage", {"messages": [], "maxTokens": 1})
LONG = QueuedMessage.request("c.1", "elicitation/create", {"message": "x" * 10_000, "requestedSchema": {}})
NAMELESS = QueuedMessage.request("d.1", "elicitation/create", {"message": "", "requestedSchema": {}})
NO_TEXT = QueuedMessage.request("e.1", "elicitation/create", {"message": 7, "requestedSchema": {}})
TEXT_RESULT = {"content": [{"type": "text", "text": "done"}]}
ERROR_RESULT = {"content": [{"type": "text", "text": "No such city"}], "isError": True}

VIEWS: dict[str, tuple[TaskView, str, str | None]] = {
    "working": (TaskView(TaskRecord(a_task())), "working", None),
    "working, with a message": (TaskView(TaskRecord(a_task(message="Reading"))), "working", "Reading"),
    "asking": (TaskView(TaskRecord(a_task("input_required")), (FORM,)), "input_required", "Publish?"),
    "asking, and the store says working": (TaskView(TaskRecord(a_task()), (FORM,)), "input_required", "Publish?"),
    "asking twice": (TaskView(TaskRecord(a_task("input_required")), (FORM, SAMPLE)), "input_required", "Publish?"),
    "asking the model": (
        TaskView(TaskRecord(a_task("input_required")), (SAMPLE,)),
        "input_required",
        "Waiting for an answer to sampling/createMessage",
    ),
    "asking without a text": (
        TaskView(TaskRecord(a_task("input_required")), (NAMELESS,)),
        "input_required",
        "Waiting for an answer to elicitation/create",
    ),
    "asking with what is not a text": (
        TaskView(TaskRecord(a_task("input_required")), (NO_TEXT,)),
        "input_required",
        "Waiting for an answer to elicitation/create",
    ),
    "asking at length": (
        TaskView(TaskRecord(a_task("input_required")), (LONG,)),
        "input_required",
        "x" * 500 + "…",
    ),
    "asking, and saying something": (
        TaskView(TaskRecord(a_task("input_required", message="Reading (1/3)")), (FORM,)),
        "input_required",
        "Reading (1/3)",
    ),
    "no question, and the store says input_required": (TaskView(TaskRecord(a_task("input_required"))), "working", None),
    "completed": (TaskView(TaskRecord(a_task("completed"), outcome=Outcome.completed(TEXT_RESULT))), "completed", None),
    "completed, and a question is left over": (
        TaskView(TaskRecord(a_task("completed"), outcome=Outcome.completed(TEXT_RESULT)), (FORM,)),
        "completed",
        None,
    ),
    "completed with an error": (
        TaskView(TaskRecord(a_task("completed"), outcome=Outcome.completed(ERROR_RESULT))),
        "failed",
        "No such city",
    ),
    "failed": (
        TaskView(TaskRecord(a_task("failed", message="no"), outcome=Outcome.failed("no"))),
        "failed",
        "no",
    ),
    "cancelled": (TaskView(TaskRecord(a_task("cancelled"), outcome=Outcome.cancelled())), "cancelled", None),
}


@pytest.mark.parametrize("name", VIEWS)
def test_b4_a_task_with_its_questions(name: str) -> None:
    view, status, message = VIEWS[name]
    rendered = wire.render_view(view)
    assert rendered == {
        "taskId": "t-1",
        "status": status,
        "createdAt": "2025-11-25T12:00:00.000001Z",
        "lastUpdatedAt": "2025-11-25T12:00:01.000001Z",
        "ttl": 60_000,
        "pollInterval": 500,
        **({} if message is None else {"statusMessage": message}),
    }
    validate(rendered, "GetTaskResult")


@pytest.mark.parametrize(
    ("progress", "params"),
    [
        (Progress(1), {"progress": 1}),
        (Progress(0.5, 2), {"progress": 0.5, "total": 2}),
        (Progress(1, None, "Reading"), {"progress": 1, "message": "Reading"}),
        (Progress(1, 0, ""), {"progress": 1, "total": 0, "message": ""}),
    ],
)
@pytest.mark.parametrize("token", ["t", 0])
def test_b11_progress_names_its_token_and_leaves_out_what_is_unknown(
    progress: Progress, params: dict[str, Any], token: str | int
) -> None:
    assert wire.render_progress(progress, token) == ("notifications/progress", {"progressToken": token, **params})


def test_b10_a_status_notification_is_the_whole_task() -> None:
    assert wire.render_status(a_task()) == ("notifications/tasks/status", wire.render_task(a_task()))
