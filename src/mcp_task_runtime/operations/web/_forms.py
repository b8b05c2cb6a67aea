"""Forms made from the schema of a question, and answers made from what a browser sends for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.operations._choices import options_of, text_of

__all__ = ["Choice", "Field", "FormError", "QuestionForm", "form_of", "read_answer"]

Kind: TypeAlias = Literal["text", "textarea", "number", "checkbox", "select", "checkboxes"]

_INPUT_TYPES: Final[Mapping[str, str]] = {"email": "email", "uri": "url", "date": "date"}
_PREFIX: Final = "field."
_LONG_TEXT: Final = 200
"""A text that may be longer than this gets several lines."""

_MODEL: Final = "human"
"""What an answer of a person says its model was."""


class FormError(ValueError):
    """A field holds what its schema does not allow; the message names the field."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values to choose from.

    Attributes:
        value: What the form sends for it.
        label: What a person reads.
        is_chosen: Whether it is chosen at first.
    """

    value: str
    label: str
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form.

    Attributes:
        name: Name of the form's field.
        label: What a person reads.
        kind: How it is shown.
        help: What it is about, or empty.
        is_required: Whether it must be filled.
        value: What is in it at first.
        input_type: The `type` of its `input`.
        choices: The values to choose from.
        attributes: What else HTML can check: lengths and bounds.
    """

    name: str
    label: str
    kind: Kind
    help: str = ""
    is_required: bool = False
    value: str = ""
    input_type: str = "text"
    choices: tuple[Choice, ...] = ()
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """How a question is shown.

    Attributes:
        key: The question's key.
        message: What it says.
        method: Its JSON-RPC method.
        fields: The fields to fill.
        url: The address that it asks to open, where a browser can; otherwise empty.
        shown: The rest of its params, as JSON text, where no field shows it; otherwise empty.
        can_decline: Whether declining is an answer to it.
        is_for_person: Whether the client cannot be asked, so that it waits for a person.
        error: What was wrong with the last try to answer, or empty.
    """

    key: str
    message: str
    method: str
    fields: tuple[Field, ...]
    url: str = ""
    shown: str = ""
    can_decline: bool = False
    is_for_person: bool = False
    error: str = ""


def form_of(
    question: QueuedMessage, sent: Mapping[str, Sequence[str]] | None = None, *, error: str = ""
) -> QuestionForm:
    """Return the form of a question.

    Args:
        question: The open question.
        sent: What a browser sent before, to show it again; `None` for what the schema proposes.
        error: What was wrong with that.
    """
    params = question.params
    key = question.key or ""
    if question.method == "elicitation/create":
        schema = params.get("requestedSchema")
        url = params.get("url")
        return QuestionForm(
            key,
            str(params.get("message", "")),
            question.method,
            tuple(_field(name, part, _required(schema), sent) for name, part in _properties(schema).items()),
            url=url if isinstance(url, str) and _can_be_opened(url) else "",
            shown=url if isinstance(url, str) and not _can_be_opened(url) else "",
            can_decline=True,
            is_for_person=question.is_for_person,
            error=error,
        )
    if question.method == "sampling/createMessage":
        field = Field(
            f"{_PREFIX}text", "Message to write", "textarea", is_required=True, value=_first(sent, f"{_PREFIX}text")
        )
        return QuestionForm(
            key, "Write the next message", question.method, (field,), shown=dump_json(params), error=error
        )
    field = Field(
        f"{_PREFIX}json", "Result, as JSON", "textarea", is_required=True, value=_first(sent, f"{_PREFIX}json")
    )
    return QuestionForm(key, question.method, question.method, (field,), shown=dump_json(params), error=error)


def read_answer(question: QueuedMessage, sent: Mapping[str, Sequence[str]]) -> JSONValue:
    """Return the answer that a browser sent, as a client would send it. Its content is not checked here.

    Raises:
        FormError: A field cannot be read.
    """
    if question.method == "elicitation/create":
        action = _first(sent, "action")
        if action != "accept":
            return {"action": action}
        schema = question.params.get("requestedSchema")
        content: JSONObject = {}
        for name, part in _properties(schema).items():
            value = _value(name, part, sent.get(_PREFIX + name, ()), is_required=name in _required(schema))
            if value is not None:
                content[name] = value
        return {"action": "accept", "content": content}
    if question.method == "sampling/createMessage":
        text = _first(sent, f"{_PREFIX}text")
        return {"role": "assistant", "content": {"type": "text", "text": text}, "model": _MODEL}
    try:
        return load_json(_first(sent, f"{_PREFIX}json"))
    except ValueError:
        raise FormError("The result is not JSON.") from None


def _field(name: str, schema: JSONObject, required: frozenset[str], sent: Mapping[str, Sequence[str]] | None) -> Field:
    default = schema.get("default")
    is_required = name in required
    if sent is None:
        values = [text_of(each) for each in (default if isinstance(default, list) else [default]) if each is not None]
    else:
        values = list(sent.get(_PREFIX + name, ()))
    kind, choices = _kind(schema, is_required=is_required)
    title = schema.get("title")
    return Field(
        _PREFIX + name,
        title if isinstance(title, str) and title else name,
        kind,
        help=str(schema.get("description") or ""),
        is_required=is_required,
        value=values[0] if values else "",
        input_type="text" if kind != "text" else _INPUT_TYPES.get(str(schema.get("format")), "text"),
        choices=tuple(Choice(value, label, value in values) for value, label in choices),
        attributes=_attributes(schema, kind),
    )


def _kind(schema: JSONObject, *, is_required: bool) -> tuple[Kind, list[tuple[str, str]]]:
    """Return how a field is shown, and what there is to choose from as value and label."""
    kind = schema.get("type")
    choices = _choices(schema)
    if choices is not None:
        return "select", [*([] if is_required else [("", "—")]), *choices]
    if kind == "array":
        items = schema.get("items")
        return "checkboxes", (_choices(items) if isinstance(items, dict) else None) or []
    if kind == "boolean":
        if is_required or schema.get("default") is not None:
            return "checkbox", []
        return "select", [("", "—"), ("true", "Yes"), ("false", "No")]
    if kind in ("number", "integer"):
        return "number", []
    longest = schema.get("maxLength")
    return ("textarea" if isinstance(longest, int) and longest > _LONG_TEXT else "text"), []


def _choices(schema: JSONObject) -> list[tuple[str, str]] | None:
    """Return what there is to choose from, as a form sends it and as a person reads it."""
    options = options_of(schema)
    return None if options is None else [(text_of(value), label) for value, label in options]


def _attributes(schema: JSONObject, kind: Kind) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    if kind == "number":
        found.append(("step", "1" if schema.get("type") == "integer" else "any"))
        pairs = [("minimum", "min"), ("maximum", "max")]
    elif kind in ("text", "textarea"):
        pairs = [("minLength", "minlength"), ("maxLength", "maxlength")]
    else:
        pairs = []
    for keyword, attribute in pairs:
        bound = schema.get(keyword)
        if isinstance(bound, int | float) and not isinstance(bound, bool):
            found.append((attribute, f"{bound}"))
    return tuple(found)


def _value(name: str, schema: JSONObject, sent: Sequence[str], *, is_required: bool) -> JSONValue:
    """Return what a browser sent for a field, or `None` where it was left empty."""
    kind, _ = _kind(schema, is_required=is_required)
    if kind == "checkbox":
        return bool(sent)
    if kind == "checkboxes":
        return list(sent) if sent or is_required else None
    text = sent[0] if sent else ""
    if kind == "select":
        if schema.get("type") == "boolean":
            return None if text == "" else text == "true"
        return next((value for value, _ in options_of(schema) or () if text_of(value) == text), text or None)
    if kind == "number":
        return None if text.strip() == "" else _number(name, text.strip())
    if text == "" and not is_required:
        return None
    return text.replace("\r\n", "\n")  # a browser sends each line's end so


def _number(name: str, text: str) -> JSONValue:
    if re.fullmatch(r"[+-]?\d{1,300}", text, re.ASCII):
        return int(text)
    try:
        return float(text)
    except ValueError:
        raise FormError(f"{name} is not a number.") from None


def _properties(schema: JSONValue) -> dict[str, JSONObject]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: part if isinstance(part, dict) else {} for name, part in properties.items()}


def _required(schema: JSONValue) -> frozenset[str]:
    required = schema.get("required") if isinstance(schema, dict) else None
    return frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset()


def _first(sent: Mapping[str, Sequence[str]] | None, name: str) -> str:
    values = (sent or {}).get(name, ())
    return values[0] if values else ""


def _can_be_opened(url: str) -> bool:
    """Return whether a link may lead there: no other scheme can run code in the page."""
    try:
        return urlsplit(url).scheme in ("http", "https")
    except ValueError:
        return False
