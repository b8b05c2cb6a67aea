"""The values: frozen, JSON all the way down (law L4), and the errors."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timezone
from functools import reduce
from operator import and_, or_
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.json import dump_json, load_json, to_json_value
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import NewTask, Outcome, Task, TaskRecord, TaskRequest, TaskStatus
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    CapabilityError,
    InvalidCursorError,
    InvalidTransitionError,
    LimitExceededError,
    ProtocolError,
    StoreClosedError,
    StoreUnavailableError,
    TaskExistsError,
    TaskNotFoundError,
    TaskRuntimeError,
)

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
TASK = Task("t", "working", None, START, START, 1000, 500)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcé🌍", max_size=5), inner, max_size=4),
    max_leaves=12,
)
json_objects = st.dictionaries(st.text("abcé🌍", max_size=5), json_values, max_size=5)


class Result(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    is_error: bool = False
    structured_content: dict[str, Any] | None = None


@given(json_values)
def test_json_text_gives_back_the_value_that_was_dumped(value: object) -> None:
    assert load_json(dump_json(value)) == value


@pytest.mark.parametrize("value", [object(), {"a": object()}, "\ud800", {"a": [lambda: None]}])
def test_a_value_without_json_form_is_refused_as_value_error(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        dump_json(value)


def test_a_circular_value_is_refused_as_value_error() -> None:
    circular: list[object] = []
    circular.append(circular)
    with pytest.raises(ValueError, match=r".+"):
        dump_json(circular)


def test_numbers_that_json_cannot_say_become_null() -> None:
    assert dump_json([math.nan, math.inf, -math.inf]) == "[null,null,null]"


def test_models_are_dumped_by_alias_and_without_none() -> None:
    assert dump_json(Result(is_error=True)) == '{"isError":true}'
    assert to_json_value(Result()) == {"isError": False}
    assert to_json_value({"x": 1}) == {"x": 1}


@given(json_objects)
def test_an_outcome_is_parsed_anew_for_each_reader(result: dict[str, Any]) -> None:
    """L4: what one reader does to a result, no other reader sees."""
    outcome = Outcome.completed(result)
    first = outcome.result
    assert first == result
    assert first is not None
    first["mine"] = 1
    result["theirs"] = 2
    again = outcome.result
    assert again is not None
    assert again.get("mine") == (1 if "mine" in result else None)
    assert "theirs" not in again
    assert outcome.error is None


@pytest.mark.parametrize("result", [[1], "text", 5, None, True])
def test_a_completed_outcome_needs_a_json_object(result: object) -> None:
    with pytest.raises(ValueError, match="result must be a JSON object"):
        Outcome.completed(result)


def test_a_failed_outcome_has_an_error_and_tells_why_in_its_status_message() -> None:
    outcome = Outcome.failed("no such file", code=-32001, data={"why": [1, None]})
    assert outcome.error == {"code": -32001, "message": "no such file", "data": {"why": [1, None]}}
    assert outcome.status_message == "no such file"
    assert outcome.result is None
    assert Outcome.failed("x").error == {"code": -32603, "message": "x"}
    assert Outcome.failed("x", status_message="y").status_message == "y"


def test_a_cancelled_outcome_has_neither_result_nor_error() -> None:
    outcome = Outcome.cancelled()
    assert (outcome.result, outcome.error, outcome.status_message) == (None, None, None)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (TASK, "status"),
        (TaskRecord(TASK), "revision"),
        (Outcome.cancelled(), "status"),
        (QueuedMessage.request("k", "m", {}), "key"),
        (Answer.withdrawn(), "type"),
        (TaskRequest(), "name"),
    ],
)
def test_values_are_frozen(value: object, field: str) -> None:
    """L4."""
    with pytest.raises(FrozenInstanceError):
        setattr(value, field, "x")


def test_a_request_and_its_capabilities_are_parsed_anew_for_each_reader() -> None:
    """L4."""
    record = TaskRecord(
        TASK, request=TaskRequest(arguments_json='{"a":[1]}'), client_capabilities_json='{"elicitation":{}}'
    )
    record.request.arguments["a"].append(2)
    record.client_capabilities.clear()
    assert record.request.arguments == {"a": [1]}
    assert record.client_capabilities == {"elicitation": {}}


def test_ids_have_192_random_bits_and_never_repeat() -> None:
    """L10, wire rule A2: each of the 192 bits is set in some ids and not in others."""
    ids = {new_task_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(bytes.fromhex(each)) * 8 for each in ids} == {192}
    numbers = [int(each, 16) for each in ids]
    assert reduce(or_, numbers) == 2**192 - 1
    assert reduce(and_, numbers) == 0


def test_a_request_has_a_key_and_a_notification_has_none() -> None:
    with pytest.raises(ValueError, match="key"):
        QueuedMessage("request", "m")
    with pytest.raises(ValueError, match="key"):
        QueuedMessage("notification", "m", key="k")
    assert QueuedMessage.notification("m", {"a": 1}).params == {"a": 1}


def test_an_answer_unwraps_to_its_result_or_raises_the_clients_error_verbatim() -> None:
    """L5, L11."""
    assert Answer.result({"a": 1}).unwrap() == {"a": 1}
    with pytest.raises(ProtocolError, match="nope") as caught:
        Answer.error(-1, "nope", {"d": 2}).unwrap()
    assert (caught.value.code, caught.value.message, caught.value.data) == (-1, "nope", {"d": 2})
    with pytest.raises(ProtocolError, match="withdrawn"):
        Answer.withdrawn().unwrap()


@pytest.mark.parametrize("status", ["working", "input_required"])
def test_a_view_is_input_required_exactly_while_there_are_questions(status: TaskStatus) -> None:
    """L5, even when the store has not settled the status yet."""
    record = TaskRecord(replace(TASK, status=status))
    question = QueuedMessage.request("1", "elicitation/create", {})
    assert TaskView(record).task.status == "working"
    assert TaskView(record, (question,)).task.status == "input_required"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_a_view_of_an_ended_task_shows_its_end_whatever_questions_are_left(status: TaskStatus) -> None:
    record = TaskRecord(replace(TASK, status=status))
    assert TaskView(record, (QueuedMessage.request("1", "m", {}),)).task.status == status


def test_errors_stand_under_one_base_with_the_builtin_ones_people_catch() -> None:
    """Code written against the SDK's store contract catches `ValueError`."""
    assert isinstance(TaskNotFoundError("t"), LookupError | ValueError)
    assert isinstance(TaskExistsError("t"), ValueError)
    assert isinstance(InvalidTransitionError("t", current="a", requested="b"), ValueError)
    assert str(InvalidTransitionError("t", current="a", requested="b")) == "A task that is 'a' cannot become 'b'"
    assert str(InvalidTransitionError("t", current="a", requested="a")) == "A task that is 'a' cannot change any more"
    assert isinstance(InvalidCursorError(), ValueError)
    assert isinstance(StoreUnavailableError("x"), OSError)
    for error in (
        TaskNotFoundError("t"),
        LimitExceededError("tasks", 3),
        CapabilityError("no"),
        ProtocolError(1, "x"),
        StoreClosedError(),
        StoreUnavailableError("x"),
    ):
        assert isinstance(error, TaskRuntimeError)


def test_not_found_never_tells_which_task_or_why() -> None:
    """L10."""
    assert str(TaskNotFoundError("secret-id")) == "Task not found"


def test_a_new_task_is_given_whole_or_by_its_fields_and_not_both() -> None:
    assert NewTask.of(None, {"ttl_ms": 7, "owner": "ada"}) == NewTask(ttl_ms=7, owner="ada")
    assert NewTask.of(NewTask(ttl_ms=7), {}) == NewTask(ttl_ms=7)
    with pytest.raises(TypeError, match="not both"):
        NewTask.of(NewTask(ttl_ms=7), {"owner": "ada"})
    with pytest.raises(TypeError, match="ttl_ms"):
        NewTask.of(None, {})


def test_only_a_completed_result_that_says_so_is_an_error_of_its_tool() -> None:
    """Rules B7 and C10: what a failed task has is a JSON-RPC error."""
    assert Outcome.completed({"isError": True}).is_error
    assert not Outcome.completed({"isError": "yes"}).is_error
    assert not Outcome.completed({"content": ["isError"]}).is_error
    assert not Outcome("failed", dump_json({"isError": True})).is_error
    assert not Outcome.cancelled().is_error
