"""Answers are hostile until checked: a refused one leaves its question open (design section 5)."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mcp_task_runtime.adapters.answers import CreateMessageResult, ElicitResult
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.errors import INVALID_PARAMS, ProtocolError
from mcp_task_runtime.wire.answers import check_answer

FORM = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}}, "required": ["name"]}
TEXT = {"type": "text", "text": "hi"}
MESSAGE = {"role": "assistant", "model": "m", "content": TEXT}


def form_question(schema: Any = FORM, **params: Any) -> QueuedMessage:
    return QueuedMessage.request("q", "elicitation/create", {"message": "?", "requestedSchema": schema, **params})


def sampling_question(**params: Any) -> QueuedMessage:
    return QueuedMessage.request("q", "sampling/createMessage", {"messages": [], "maxTokens": 1, **params})


def is_refused(question: QueuedMessage, result: Any, max_bytes: int = 10_000) -> bool:
    """Check that a refusal is -32602 and names the question."""
    refusal: ProtocolError | None = None
    try:
        answer = check_answer(question, result, max_bytes=max_bytes)
    except ProtocolError as error:
        refusal = error
    if refusal is None:
        assert answer.type == "result"
        return False
    assert refusal.code == INVALID_PARAMS
    assert refusal.message.startswith("Invalid answer to 'q': ")
    return True


# The flat subset of JSON Schema that elicitation allows.
bounds = st.integers(-3, 5)
sizes = st.integers(0, 4)
words = st.text("abé🌍", max_size=4)


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def merged(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda dicts: {key: value for each in dicts for key, value in each.items()})


def of_type(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.just({"type": name})


choices = st.one_of(
    merged(of_type("string"), st.builds(lambda options: {"enum": options}, st.lists(words, min_size=1, unique=True))),
    merged(
        of_type("string"),
        st.builds(
            lambda options: {"oneOf": [{"const": each, "title": each} for each in options]},
            st.lists(words, min_size=1, unique=True),
        ),
    ),
)
untyped_choices = st.builds(
    lambda options: {"anyOf": [{"const": each, "title": each} for each in options]},
    st.lists(words, min_size=1, unique=True),
)
fields = st.one_of(
    merged(of_type("string"), optional(minLength=sizes, maxLength=sizes, title=words)),
    merged(
        st.sampled_from([{"type": "number"}, {"type": "integer"}]),
        optional(minimum=bounds | st.floats(-3, 5), maximum=bounds),
    ),
    merged(of_type("boolean"), optional(default=st.booleans())),
    choices,
    st.builds(
        lambda items, size: {"type": "array", "items": items, **size},
        choices | untyped_choices,
        optional(minItems=sizes, maxItems=sizes),
    ),
)
names = st.sampled_from(["a", "b", "c"])
forms = st.builds(
    lambda properties, required: {"type": "object", "properties": properties, "required": required},
    st.dictionaries(names, fields, min_size=1),
    st.lists(names, unique=True),
)
primitives = st.one_of(
    words, bounds, st.floats(-4, 6), st.booleans(), st.lists(words, max_size=5), st.sampled_from([1.0, 0.0, -0.0, 2.5])
)
contents = st.dictionaries(names, primitives)


@given(forms, contents)
@settings(max_examples=300)
def test_a_form_is_refused_exactly_when_json_schema_refuses_its_content(
    schema: dict[str, Any], content: dict[str, Any]
) -> None:
    valid = Draft202012Validator(schema).is_valid(content)
    assert is_refused(form_question(schema), {"action": "accept", "content": content}) == (not valid)


@given(st.data())
def test_what_fits_one_field_is_accepted_and_its_neighbours_do_not_matter(data: st.DataObject) -> None:
    """Drawn near the bounds, so that valid and invalid content are both frequent."""
    low, span = data.draw(bounds), data.draw(sizes)
    value = data.draw(st.integers(low - 2, low + span + 2))
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": low, "maximum": low + span}}}
    assert is_refused(form_question(schema), {"action": "accept", "content": {"n": value, "extra": "x"}}) == (
        not low <= value <= low + span
    )


@pytest.mark.parametrize("result", [None, [], "accept", 1, True])
@pytest.mark.parametrize("question", [form_question(), sampling_question()])
def test_an_answer_must_be_an_object(question: QueuedMessage, result: Any) -> None:
    assert is_refused(question, result)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"action": "ACCEPT"},
        {"action": None},
        {"action": ["accept"]},
        {"action": {"accept": 1}},
        {"action": "accept"},  # the form requires a name
        {"action": "accept", "content": None},
        {"action": "accept", "content": {}},
        {"action": "accept", "content": {"name": ""}},
        {"action": "accept", "content": {"name": 5}},
        {"action": "accept", "content": [["name", "x"]]},
        {"action": "decline", "content": "no"},
        {"action": "accept", "content": {"name": "x", "more": {"nested": 1}}},
        {"action": "accept", "content": {"name": "x", "more": [1, 2]}},
        {"action": "decline", "content": {"more": {"nested": 1}}},
    ],
)
def test_a_malformed_elicitation_answer_is_refused(result: Any) -> None:
    assert is_refused(form_question(), result)


@pytest.mark.parametrize(
    "result",
    [
        {"action": "accept", "content": {"name": "x"}},
        {"action": "accept", "content": {"name": "x", "extra": 1, "tags": ["a"], "none": None}},
        {"action": "decline"},
        {"action": "cancel", "content": None},
        {"action": "decline", "content": {}},  # what was not accepted need not match the form
        {"action": "accept", "content": {"name": "x"}, "_meta": {"a": 1}},
    ],
)
def test_a_well_formed_elicitation_answer_is_accepted(result: Any) -> None:
    assert not is_refused(form_question(), result)
    assert ElicitResult.model_validate(result).action == result["action"]


def test_an_accepted_url_needs_no_content() -> None:
    question = QueuedMessage.request("q", "elicitation/create", {"mode": "url", "message": "?", "url": "https://x"})
    assert not is_refused(question, {"action": "accept"})


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        [TEXT, {"type": "image", "data": "AA==", "mimeType": "image/png"}],
        {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
        [{"type": "tool_use", "id": "1", "name": "t", "input": {}}],
        [],
    ],
)
def test_a_well_formed_sampling_answer_is_accepted(content: Any) -> None:
    result = {**MESSAGE, "content": content}
    assert not is_refused(sampling_question(), result)
    assert CreateMessageResult.model_validate(result).model == "m"


@pytest.mark.parametrize(
    "change",
    [
        {"role": "system"},
        {"role": None},
        {"role": ["user"]},
        {"model": None},
        {"model": 5},
        {"content": None},
        {"content": "hi"},
        {"content": {"type": 5}},
        {"content": [TEXT, "hi"]},
        {"content": {"type": "text"}},
        {"content": {"type": "text", "text": 5}},
        {"content": {"type": "video", "data": "AA==", "mimeType": "video/mp4"}},
        {"content": {"type": "image", "data": "AA=="}},
        {"content": [{"type": "tool_use", "id": "1", "name": "t", "input": None}]},
        {"stopReason": 5},
    ],
)
def test_a_malformed_sampling_answer_is_refused(change: dict[str, Any]) -> None:
    """What the asker could not read must be refused while the question can still be answered."""
    assert is_refused(sampling_question(), {**MESSAGE, **change})


def test_an_answer_to_roots_must_have_a_list_of_them() -> None:
    question = QueuedMessage.request("q", "roots/list", {})
    assert is_refused(question, {"roots": "x"})
    assert not is_refused(question, {"roots": []})


def test_an_unknown_method_takes_any_object() -> None:
    assert not is_refused(QueuedMessage.request("q", "my/method", {}), {"any": "thing"})


def test_a_client_may_answer_with_a_task_of_its_own_only_where_it_was_asked_to() -> None:
    """Wire rule B12."""
    handle = {"task": {"taskId": "c", "status": "working"}}
    assert not is_refused(form_question(task={"ttl": 1000}), handle)
    assert not is_refused(sampling_question(task={"ttl": 1000}), handle)
    assert is_refused(form_question(), handle)
    assert is_refused(form_question(task={"ttl": 1000}), {"task": "c"})


def test_an_answer_of_exactly_the_largest_size_is_accepted_and_one_byte_more_is_not() -> None:
    result = {"action": "accept", "content": {"name": "é"}}
    size = len('{"action":"accept","content":{"name":"é"}}'.encode())
    assert not is_refused(form_question(), result, max_bytes=size)
    assert is_refused(form_question(), result, max_bytes=size - 1)


@pytest.mark.parametrize("depth", [300, 100_000])
def test_a_deeply_nested_answer_is_refused_and_no_recursion_error(depth: int) -> None:
    nested: Any = []
    for _ in range(depth):
        nested = [nested]
    question = QueuedMessage.request("q", "my/method", {})
    assert is_refused(question, {"x": nested}) in (True, False)
    assert is_refused(form_question(), {"action": "accept", "content": {"name": nested}})
    assert is_refused(form_question(), {"action": "decline", "content": {"x": nested}})
    while nested:  # or its destructor recurses
        nested = nested.pop()


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_text_that_is_no_unicode_is_refused(text: str) -> None:
    assert is_refused(form_question(), {"action": "accept", "content": {"name": text}})


def test_numbers_beyond_floats_are_refused_and_never_raise() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number", "maximum": 10.5}}}
    for value in (10**400, -(10**400), math.inf, 1e308):
        assert is_refused(form_question(schema), {"action": "accept", "content": {"n": value}})


@pytest.mark.parametrize(
    "schema", [None, True, [], {"type": 5}, {"properties": []}, {"required": "name"}, {"type": "x"}]
)
def test_a_schema_that_says_nothing_we_know_refuses_nothing(schema: Any) -> None:
    """The work's author wrote it; the client is not to blame."""
    assert not is_refused(form_question(schema), {"action": "accept", "content": {"n": 1}})


def test_a_refusal_never_repeats_what_the_client_sent() -> None:
    with pytest.raises(ProtocolError) as caught:
        check_answer(form_question(), {"action": "my password"}, max_bytes=1000)
    assert "password" not in caught.value.message
