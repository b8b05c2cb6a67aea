"""Checking what a client answers before it counts: a refused answer leaves its question open.

Clients are hostile until checked. An answer must have the shape its method asks for; the content of
an accepted form must also match the form's schema, in the flat subset of JSON Schema that
elicitation allows. Keywords outside that subset are not checked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mcp_task_runtime.core.json import JSONValue
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.errors import INVALID_PARAMS, ProtocolError

__all__ = ["check_answer"]


def check_answer(question: QueuedMessage, result: JSONValue, *, max_bytes: int) -> Answer:
    """Return the answer to store for a client's result.

    Args:
        question: The open question.
        result: What the client sent for it.
        max_bytes: Size of the largest answer to accept, as compact JSON in UTF-8.

    Raises:
        ProtocolError: -32602 with what is wrong; never with the content itself.
    """
    problem = _problem(question, result)
    if problem is not None:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question.key!r}: {problem}")
    try:
        answer = Answer.result(result)
    except ValueError:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question.key!r}: it is not JSON") from None
    if len(answer.payload_json.encode()) > max_bytes:
        raise ProtocolError(INVALID_PARAMS, f"Invalid answer to {question.key!r}: it is larger than {max_bytes} bytes")
    return answer


def _problem(question: QueuedMessage, result: JSONValue) -> str | None:
    if not isinstance(result, dict):
        return "it must be an object"
    if isinstance(result.get("task"), dict) and "task" in question.params:
        return None  # the client answers with a task of its own (wire rule B12)
    if question.method == "elicitation/create":
        return _elicitation_problem(question, result)
    if question.method == "sampling/createMessage":
        if result.get("role") not in ("user", "assistant"):
            return "role must be 'user' or 'assistant'"
        if not isinstance(result.get("model"), str):
            return "model must be a string"
        if not isinstance(result.get("stopReason"), str | None):
            return "stopReason must be a string"
        content = result.get("content")
        if not all(map(_is_block, content if isinstance(content, list) else [content])):
            return "content must be a block of text, image, audio or tool_use, or a list of them"
    elif question.method == "roots/list" and not isinstance(result.get("roots"), list):
        return "roots must be a list"
    return None


_BLOCKS: Mapping[str, Mapping[str, type]] = {
    "text": {"text": str},
    "image": {"data": str, "mimeType": str},
    "audio": {"data": str, "mimeType": str},
    "tool_use": {"id": str, "name": str, "input": dict},
}


def _is_block(block: JSONValue) -> bool:
    if not isinstance(block, dict):
        return False
    kind = block.get("type")
    fields = _BLOCKS.get(kind) if isinstance(kind, str) else None
    return fields is not None and all(isinstance(block.get(name), wanted) for name, wanted in fields.items())


def _is_field(value: JSONValue) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))


def _elicitation_problem(question: QueuedMessage, result: Mapping[str, JSONValue]) -> str | None:
    action = result.get("action")
    if action not in ("accept", "decline", "cancel"):
        return "action must be 'accept', 'decline' or 'cancel'"
    content = result.get("content")
    if content is not None and not isinstance(content, dict):
        return "content must be an object"
    if content is not None and not all(map(_is_field, content.values())):
        return "content must have only strings, numbers, booleans and lists of strings"
    params = question.params
    if action != "accept" or params.get("mode", "form") != "form":
        return None
    return _schema_problem(params.get("requestedSchema"), {} if content is None else content, "content")


_LARGEST_EXACT = 2**53
"""Up to here a double holds every integer."""

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def _has_type(value: JSONValue, name: JSONValue) -> bool:
    if not isinstance(name, str) or name not in _TYPES:
        return True
    if name in ("number", "integer"):
        return isinstance(value, int | float) and _is_number(value, whole=name == "integer")
    return isinstance(value, _TYPES[name])


def _is_number(value: float, *, whole: bool) -> bool:
    """Whether a double holds it, which is what `number` means to most of the world; parsers let more through."""
    try:
        as_double = float(value)
    except OverflowError:
        return False
    if isinstance(value, bool) or not math.isfinite(as_double):
        return False
    return not whole or isinstance(value, int) or (value.is_integer() and abs(value) <= _LARGEST_EXACT)


def _schema_problem(schema: JSONValue, value: JSONValue, where: str) -> str | None:
    if not isinstance(schema, dict):
        return None
    names = schema.get("type")
    if names is not None and not (
        any(_has_type(value, name) for name in names) if isinstance(names, list) else _has_type(value, names)
    ):
        return f"{where} must be of type {names if isinstance(names, str) else ' or '.join(map(str, names))}"
    if "const" in schema and value != schema["const"]:
        return f"{where} is not one of the allowed values"
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return f"{where} is not one of the allowed values"
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and all(_schema_problem(option, value, where) for option in options):
            return f"{where} is not one of the allowed values"
    if isinstance(value, str):
        return _bounds_problem(schema, len(value), where, "minLength", "maxLength", "characters")
    if isinstance(value, int | float) and not isinstance(value, bool):
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        if isinstance(above, int | float) and value <= above:
            return f"{where} must be above {above}"
        if isinstance(below, int | float) and value >= below:
            return f"{where} must be below {below}"
        return _bounds_problem(schema, value, where, "minimum", "maximum", "")
    if isinstance(value, list):
        return _array_problem(schema, value, where)
    if isinstance(value, dict):
        return _object_problem(schema, value, where)
    return None


def _bounds_problem(
    schema: Mapping[str, JSONValue], size: float, where: str, lowest: str, highest: str, unit: str
) -> str | None:
    low, high = schema.get(lowest), schema.get(highest)
    if isinstance(low, int | float) and size < low:
        return f"{where} must be at least {low} {unit}".rstrip()
    if isinstance(high, int | float) and size > high:
        return f"{where} must be at most {high} {unit}".rstrip()
    return None


def _array_problem(schema: Mapping[str, JSONValue], value: Sequence[JSONValue], where: str) -> str | None:
    problem = _bounds_problem(schema, len(value), where, "minItems", "maxItems", "items")
    if problem is not None:
        return problem
    for index, item in enumerate(value):
        problem = _schema_problem(schema.get("items"), item, f"{where}[{index}]")
        if problem is not None:
            return problem
    return None


def _object_problem(schema: Mapping[str, JSONValue], value: Mapping[str, JSONValue], where: str) -> str | None:
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        if name not in value:
            return f"{where}.{name} is missing"
    properties = schema.get("properties")
    for name, part in properties.items() if isinstance(properties, dict) else ():
        if name in value:
            problem = _schema_problem(part, value[name], f"{where}.{name}")
            if problem is not None:
                return problem
    return None
