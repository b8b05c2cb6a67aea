"""What a field of a form lets people choose from."""

from __future__ import annotations

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json

__all__ = ["options_of", "text_of"]


def options_of(schema: JSONObject) -> list[tuple[JSONValue, str]] | None:
    """Return the values to choose from and their labels, in each of the ways that the protocol has had."""
    for keyword in ("oneOf", "anyOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and options and all(isinstance(o, dict) and "const" in o for o in options):
            return [(option["const"], text_of(option.get("title", option["const"]))) for option in options]
    values = schema.get("enum")
    if not isinstance(values, list):
        return None
    names = schema.get("enumNames")
    labels = names if isinstance(names, list) and len(names) == len(values) else values
    return [(value, text_of(label)) for value, label in zip(values, labels, strict=True)]


def text_of(value: JSONValue) -> str:
    """Return what people read and type for a value."""
    return value if isinstance(value, str) else dump_json(value)
