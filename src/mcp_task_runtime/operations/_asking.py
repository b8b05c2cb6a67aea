"""How `mcp-tasks answer` asks a form at the terminal."""

from __future__ import annotations

from typing import Any

import click

from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.operations._rendering import plain, question_text

__all__ = ["ask_at_terminal"]


def ask_at_terminal(question: QueuedMessage) -> JSONObject:
    """Ask for each field of a form, and return the answer as a client would send it."""
    schema = question.params.get("requestedSchema")
    if question.method != "elicitation/create" or not isinstance(schema, dict):
        raise click.UsageError(f"a question of the kind {question.method} is answered with --json")
    click.echo(question_text(question))
    action = click.prompt("accept, decline or cancel", type=click.Choice(["accept", "decline", "cancel"]))
    if action != "accept":
        return {"action": action}
    required = schema.get("required") or []
    content: JSONObject = {}
    for name, field in (schema.get("properties") or {}).items():
        value = _ask_field(name, field, required=name in required)
        if value is not None:
            content[name] = value
    return {"action": "accept", "content": content}


def _ask_field(name: str, field: JSONObject, *, required: bool) -> JSONValue:
    kinds: dict[str, Any] = {"boolean": click.BOOL, "integer": click.INT, "number": click.FLOAT}
    kind: Any = kinds.get(str(field.get("type")), click.STRING)
    if isinstance(field.get("enum"), list):
        kind = click.Choice([str(each) for each in field["enum"]])
    label = plain(field.get("title") or name)
    if field.get("description"):
        label += f" ({plain(field['description'])})"
    default = field.get("default")
    if default is None and not required:
        text = click.prompt(f"{label} [empty: leave out]", default="", show_default=False)
        return None if text == "" else kind.convert(text, None, None) if hasattr(kind, "convert") else text
    return click.prompt(label, type=kind, default=default)
