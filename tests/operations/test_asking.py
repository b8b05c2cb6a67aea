"""How `mcp-tasks answer` asks a form: each kind of field, until its value can be read."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("click", reason="the extra `cli` is not installed")
pytest.importorskip("rich", reason="the extra `cli` is not installed")

from click.testing import CliRunner

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.operations._asking import ask_at_terminal
from mcp_task_runtime.wire.answers import check_answer

TITLED = [{"const": "r", "title": "Red"}, {"const": "g", "title": "Green"}]


def asked(field: dict[str, Any], typed: str, *, required: bool = True) -> tuple[Any, str]:
    """Return what is answered for a form of one field, and what was shown."""
    schema = {"type": "object", "properties": {"x": field}, "required": ["x"] if required else []}
    question = QueuedMessage.request("q", "elicitation/create", {"message": "Well?", "requestedSchema": schema})
    with CliRunner().isolation(input=f"accept\n{typed}\n") as (shown, *_):
        answer = ask_at_terminal(question)
        text = shown.getvalue().decode()
    assert check_answer(question, answer, max_bytes=1_000) == Answer.result(answer)
    return answer["content"].get("x"), text


@pytest.mark.parametrize(
    ("field", "typed", "value"),
    [
        ({"type": "string"}, "text", "text"),
        ({"type": "boolean"}, "y", True),
        ({"type": "integer"}, "x\n7", 7),
        ({"type": "number"}, "1.5", 1.5),
        ({"type": "string", "enum": ["a", "b"]}, "c\nb", "b"),
        ({"type": "integer", "enum": [1, 2]}, "2", 2),
        ({"type": "string", "oneOf": TITLED}, "g", "g"),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b", "c"]}}, "a,x\nc, a", ["a", "c"]),
        ({"type": "array", "items": {"anyOf": TITLED}}, "r", ["r"]),
        ({"type": "array", "items": {"anyOf": TITLED}, "default": ["g"]}, "", ["g"]),
    ],
)
def test_each_kind_of_field_is_asked_until_it_can_be_read(field: dict[str, Any], typed: str, value: Any) -> None:
    assert asked(field, typed)[0] == value


@pytest.mark.parametrize(
    ("field", "typed", "value"),
    [
        ({"type": "integer"}, "", None),
        ({"type": "integer"}, "x\n7", 7),
        ({"type": "string", "enum": ["a", "b"]}, "", None),
        ({"type": "string", "enum": ["a", "b"]}, "c\nb", "b"),
        ({"type": "array", "items": {"anyOf": TITLED}}, "", None),
        ({"type": "array", "items": {"anyOf": TITLED}}, "g,r", ["r", "g"]),
    ],
)
def test_a_field_that_is_not_required_can_be_left_out(field: dict[str, Any], typed: str, value: Any) -> None:
    assert asked(field, typed, required=False)[0] == value


def test_choices_are_shown_with_their_titles() -> None:
    _, text = asked({"type": "array", "items": {"anyOf": TITLED}, "title": "Colours"}, "r")
    assert "r: Red" in text
    assert "Colours (r, g; with commas)" in text
