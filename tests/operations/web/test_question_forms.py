"""Forms made from the schemas of questions, and the answers that come back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.errors import ProtocolError
from mcp_task_runtime.operations.web._forms import FormError, form_of, read_answer
from mcp_task_runtime.wire.answers import check_answer

TITLED = [{"const": "a", "title": "Alpha"}, {"const": "b", "title": "Beta"}]


def question(properties: Any, required: Any = ()) -> QueuedMessage:
    schema = {"type": "object", "properties": properties, "required": required}
    return QueuedMessage.request("q", "elicitation/create", {"message": "?", "requestedSchema": schema})


@pytest.mark.parametrize(
    ("schema", "is_required", "kind", "choices"),
    [
        ({"type": "string"}, False, "text", []),
        ({"type": "string", "maxLength": 5000}, False, "textarea", []),
        ({"type": "integer"}, True, "number", []),
        ({"type": "boolean"}, True, "checkbox", []),
        ({"type": "boolean", "default": False}, False, "checkbox", []),
        ({"type": "boolean"}, False, "select", ["—", "Yes", "No"]),
        ({"type": "string", "enum": ["a", "b"]}, True, "select", ["a", "b"]),
        (
            {"type": "string", "enum": ["a", "b"], "enumNames": ["Alpha", "Beta"]},
            False,
            "select",
            ["—", "Alpha", "Beta"],
        ),
        ({"type": "string", "enum": ["a", "b"], "enumNames": ["Alpha"]}, True, "select", ["a", "b"]),
        ({"type": "string", "oneOf": TITLED}, True, "select", ["Alpha", "Beta"]),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, False, "checkboxes", ["a", "b"]),
        ({"type": "array", "items": {"anyOf": TITLED}}, False, "checkboxes", ["Alpha", "Beta"]),
        ({"type": "array", "items": "nonsense"}, False, "checkboxes", []),
        ({}, False, "text", []),
    ],
)
def test_a_field_is_shown_as_its_schema_asks(schema: Any, is_required: bool, kind: str, choices: list[str]) -> None:
    (field,) = form_of(question({"f": schema}, ["f"] if is_required else [])).fields
    assert (field.name, field.kind, field.is_required) == ("field.f", kind, is_required)
    assert [choice.label for choice in field.choices] == choices


@pytest.mark.parametrize(
    ("schema", "sent", "value"),
    [
        ({"type": "string"}, ["x\r\ny"], "x\ny"),
        ({"type": "string"}, [""], None),
        ({"type": "integer"}, ["42"], 42),
        ({"type": "integer"}, [""], None),
        ({"type": "number"}, [" 1.5 "], 1.5),
        ({"type": "number"}, ["1e3"], 1000.0),
        ({"type": "boolean"}, ["true"], True),
        ({"type": "boolean"}, ["false"], False),
        ({"type": "boolean"}, [""], None),
        ({"type": "boolean", "default": True}, [], False),
        ({"type": "string", "enum": ["a", "b"]}, ["b"], "b"),
        ({"type": "integer", "enum": [1, 2]}, ["2"], 2),
        ({"type": "string", "oneOf": TITLED}, ["a"], "a"),
        ({"type": "string", "oneOf": ["nonsense"], "anyOf": TITLED}, ["b"], "b"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, ["a", "b"], ["a", "b"]),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, [], None),
    ],
)
def test_what_a_browser_sends_becomes_the_value(schema: Any, sent: list[str], value: Any) -> None:
    answer = read_answer(question({"f": schema}), {"action": ["accept"], "field.f": sent})
    assert answer == {"action": "accept", "content": {} if value is None else {"f": value}}


def test_what_was_sent_is_shown_again_in_place_of_the_defaults() -> None:
    asked = question(
        {"f": {"type": "string", "default": "d"}, "g": {"type": "string", "enum": ["a", "b"], "default": "a"}}
    )
    first = form_of(asked).fields
    assert first[0].value == "d"
    assert [choice.is_chosen for choice in first[1].choices] == [False, True, False]
    again = form_of(asked, {"field.f": ["x"], "field.g": ["b"]}, error="no").fields
    assert again[0].value == "x"
    assert [choice.is_chosen for choice in again[1].choices] == [False, False, True]


@pytest.mark.parametrize("action", ["decline", "cancel", "", "nonsense"])
def test_other_actions_carry_no_content(action: str) -> None:
    assert read_answer(question({"f": {"type": "string"}}), {"action": [action], "field.f": ["x"]}) == {
        "action": action
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYWORDS = ("type", "title", "description", "default", "enum", "enumNames", "oneOf", "anyOf", "items", "format",
            "minimum", "maximum", "minLength", "maxLength")  # fmt: skip
schemas = st.dictionaries(st.sampled_from(KEYWORDS), json_values | st.sampled_from(["string", "integer", "array"]))


@given(
    st.one_of(json_values, st.fixed_dictionaries({"properties": st.dictionaries(st.text(max_size=3), schemas)})),
    st.dictionaries(st.text(max_size=9), st.lists(st.text(max_size=9), max_size=2)),
)
def test_no_schema_and_nothing_sent_breaks_a_form(schema: Any, sent: dict[str, list[str]]) -> None:
    params = {"message": schema, "requestedSchema": schema, "url": schema}
    for method in ("elicitation/create", "sampling/createMessage", "other"):
        asked = QueuedMessage.request("q", method, params)
        form_of(asked)
        form_of(asked, sent, error="no")
        try:
            check_answer(asked, read_answer(asked, {"action": ["accept"], **sent}), max_bytes=10_000)
        except (FormError, ProtocolError):
            continue
