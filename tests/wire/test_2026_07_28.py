"""Rendering of the extension of revision 2026-07-28, without any I/O; what is rendered validates against the schema."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime import Outcome, QueuedMessage, Task, TaskRecord, TaskStatus, TaskView
from mcp_task_runtime.wire import v2026_07_28 as wire
from tests.mcp_v2.schemas import needs_schemas, validate

NOW = datetime(2026, 7, 28, 12, 0, 0, 1, tzinfo=timezone.utc)
ALWAYS = {
    "taskId": "t-1",
    "createdAt": "2026-07-28T12:00:00.000001Z",
    "lastUpdatedAt": "2026-07-28T12:00:01.000001Z",
    "ttlMs": 60_000,
    "pollIntervalMs": 500,
}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
FORM = QueuedMessage.request("a.1", "elicitation/create", {"message": "Publish?", "requestedSchema": SCHEMA})
SAMPLE = QueuedMessage.request("b.1", "sampling/createMessage", {"messages": [], "maxTokens": 1})
ROOTS = QueuedMessage.request("c.1", "roots/list", {})
ASKED_FORM = {
    "a.1": {"method": "elicitation/create", "params": {"message": "Publish?", "requestedSchema": SCHEMA}},
}
ASKED_SAMPLE = {"b.1": {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}}
ASKED_ROOTS = {"c.1": {"method": "roots/list", "params": {}}}
TEXT = {"content": [{"type": "text", "text": "done"}]}
FAILED_CALL = {"content": [{"type": "text", "text": "no"}], "isError": True}


def a_view(
    status: TaskStatus,
    *questions: QueuedMessage,
    outcome: Outcome | None = None,
    message: str | None = None,
    ttl_ms: int | None = 60_000,
) -> TaskView:
    task = Task("t-1", status, message, NOW, NOW + timedelta(seconds=1), ttl_ms, 500)
    return TaskView(TaskRecord(task, outcome=outcome), questions)


def completed(result: Any, *, status_message: str | None = None) -> TaskView:
    outcome = Outcome.completed(result, status_message=status_message)
    return a_view("completed", outcome=outcome, message=status_message)


def failed(message: str = "no", **error: Any) -> TaskView:
    outcome = Outcome.failed(message, **error)
    return a_view("failed", outcome=outcome, message=outcome.status_message)


VIEWS: dict[str, tuple[TaskView, dict[str, Any]]] = {
    "working": (a_view("working"), {"status": "working"}),
    "working, with a message": (
        a_view("working", message="Reading"),
        {"status": "working", "statusMessage": "Reading"},
    ),
    "an empty message": (a_view("working", message=""), {"status": "working", "statusMessage": ""}),
    "a message that is not ASCII": (
        a_view("working", message="Größe 🌍\0"),
        {"status": "working", "statusMessage": "Größe 🌍\0"},
    ),
    "no limit of time": (a_view("working", ttl_ms=None), {"status": "working", "ttlMs": None}),
    "no time left": (a_view("working", ttl_ms=0), {"status": "working", "ttlMs": 0}),
    "one question": (a_view("input_required", FORM), {"status": "input_required", "inputRequests": ASKED_FORM}),
    "a question, and the store says working": (
        a_view("working", FORM),
        {"status": "input_required", "inputRequests": ASKED_FORM},
    ),
    "no question, and the store says input_required": (a_view("input_required"), {"status": "working"}),
    "two questions": (
        a_view("input_required", FORM, SAMPLE),
        {"status": "input_required", "inputRequests": {**ASKED_FORM, **ASKED_SAMPLE}},
    ),
    "three questions": (
        a_view("input_required", FORM, SAMPLE, ROOTS),
        {"status": "input_required", "inputRequests": {**ASKED_FORM, **ASKED_SAMPLE, **ASKED_ROOTS}},
    ),
    "a question and a message": (
        a_view("input_required", ROOTS, message="Asking"),
        {"status": "input_required", "statusMessage": "Asking", "inputRequests": ASKED_ROOTS},
    ),
    "completed": (completed(TEXT), {"status": "completed", "result": {"resultType": "complete", **TEXT}}),
    "completed, with a message": (
        completed(TEXT, status_message="All read"),
        {"status": "completed", "statusMessage": "All read", "result": {"resultType": "complete", **TEXT}},
    ),
    "C10: isError is completed": (
        completed(FAILED_CALL),
        {"status": "completed", "result": {"resultType": "complete", **FAILED_CALL}},
    ),
    "an empty result": (completed({}), {"status": "completed", "result": {"resultType": "complete"}}),
    "a result with a type of its own": (
        completed({"resultType": "x", **TEXT}),
        {"status": "completed", "result": {"resultType": "x", **TEXT}},
    ),
    "structured content": (
        completed({**TEXT, "structuredContent": {"n": [1, None, 2.5]}}),
        {
            "status": "completed",
            "result": {"resultType": "complete", **TEXT, "structuredContent": {"n": [1, None, 2.5]}},
        },
    ),
    "a result with metadata": (
        completed({**TEXT, "_meta": {"k": 1}}),
        {"status": "completed", "result": {"resultType": "complete", **TEXT, "_meta": {"k": 1}}},
    ),
    "a completed task without a payload": (
        a_view("completed", outcome=Outcome("completed")),
        {"status": "completed", "result": {"resultType": "complete"}},
    ),
    "completed, although a question is left over": (
        a_view("completed", FORM, outcome=Outcome.completed(TEXT)),
        {"status": "completed", "result": {"resultType": "complete", **TEXT}},
    ),
    "failed": (
        failed(),
        {"status": "failed", "statusMessage": "no", "error": {"code": -32603, "message": "no"}},
    ),
    "failed, with a code": (
        failed(code=-32050),
        {"status": "failed", "statusMessage": "no", "error": {"code": -32050, "message": "no"}},
    ),
    "failed, with data": (
        failed(data={"file": "a"}),
        {
            "status": "failed",
            "statusMessage": "no",
            "error": {"code": -32603, "message": "no", "data": {"file": "a"}},
        },
    ),
    "failed, with a false datum": (
        failed(data=False),
        {"status": "failed", "statusMessage": "no", "error": {"code": -32603, "message": "no", "data": False}},
    ),
    "failed, with another message than the error's": (
        failed(status_message="It broke"),
        {"status": "failed", "statusMessage": "It broke", "error": {"code": -32603, "message": "no"}},
    ),
    "failed with no text": (
        failed(""),
        {"status": "failed", "statusMessage": "", "error": {"code": -32603, "message": ""}},
    ),
    "failed, although a question is left over": (
        a_view("failed", FORM, outcome=Outcome.failed("no"), message="no"),
        {"status": "failed", "statusMessage": "no", "error": {"code": -32603, "message": "no"}},
    ),
    "cancelled": (a_view("cancelled", outcome=Outcome.cancelled()), {"status": "cancelled"}),
    "cancelled, with a message": (
        a_view("cancelled", outcome=Outcome.cancelled(status_message="Enough"), message="Enough"),
        {"status": "cancelled", "statusMessage": "Enough"},
    ),
    "cancelled, although a question is left over": (
        a_view("cancelled", SAMPLE, outcome=Outcome.cancelled()),
        {"status": "cancelled"},
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_c6_a_task_in_detail(name: str) -> None:
    view, expected = VIEWS[name]
    rendered = wire.render_view(view)
    assert rendered == {**ALWAYS, **expected}
    validate({"resultType": "complete", **rendered}, "GetTaskResult")


@pytest.mark.parametrize("name", VIEWS)
def test_c4_a_handle_has_nothing_of_the_outcome(name: str) -> None:
    record = VIEWS[name][0].record
    rendered = wire.render_handle(record)
    message = {} if record.task.status_message is None else {"statusMessage": record.task.status_message}
    assert rendered == {
        **ALWAYS,
        "resultType": "task",
        "status": record.status,
        "ttlMs": record.task.ttl_ms,
        **message,
    }
    validate(rendered, "CreateTaskResult")


@needs_schemas
@given(
    status=st.sampled_from(["working", "completed", "failed", "cancelled"]),
    message=st.none() | st.text(),
    keys=st.sets(st.text(min_size=1), max_size=3),
    text=st.text(),
    ttl_ms=st.none() | st.integers(min_value=0, max_value=10**13),
)
def test_every_view_validates(
    status: TaskStatus, message: str | None, keys: set[str], text: str, ttl_ms: int | None
) -> None:
    outcome = {
        "completed": Outcome.completed({"content": [{"type": "text", "text": text}]}),
        "failed": Outcome.failed(text),
        "cancelled": Outcome.cancelled(),
    }.get(status)
    questions = [QueuedMessage.request(key, "roots/list", {}) for key in keys]
    view = a_view(status, *questions, outcome=outcome, message=message, ttl_ms=ttl_ms)
    validate({"resultType": "complete", **wire.render_view(view)}, "GetTaskResult")


def test_what_is_rendered_belongs_to_the_caller_alone() -> None:
    view = VIEWS["completed"][0]
    wire.render_view(view)["result"]["content"].clear()
    assert wire.render_view(view)["result"]["content"] == TEXT["content"]


def test_c8_c9_an_acknowledgement_says_nothing_else() -> None:
    assert wire.acknowledge() == {"resultType": "complete"}


def test_c2_a_missing_capability_names_what_is_required() -> None:
    error = wire.missing_capability()
    assert error.code == -32021
    assert error.data == {"requiredCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
    assert "io.modelcontextprotocol/tasks" in error.message


@pytest.mark.parametrize(
    ("meta", "lowest"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"io.modelcontextprotocol/logLevel": "debug"}, "debug"),
        ({"io.modelcontextprotocol/logLevel": "info"}, "info"),
        ({"io.modelcontextprotocol/logLevel": "emergency"}, "emergency"),
        ({"io.modelcontextprotocol/logLevel": ["info"]}, None),
        ({"logLevel": "info"}, None),
    ],
)
def test_a_request_asks_for_log_messages_by_their_level(meta: Any, lowest: str | None) -> None:
    levels = wire.log_levels(meta)
    assert (levels[0] if levels else None) == lowest
    assert not levels or levels[-1] == "emergency"


def test_a_call_that_asks_by_multi_round_trip_input_is_rendered_with_its_state() -> None:
    rendered = wire.render_input_required([FORM, ROOTS], "state")
    assert rendered == {
        "resultType": "input_required",
        "inputRequests": {**ASKED_FORM, **ASKED_ROOTS},
        "requestState": "state",
    }
