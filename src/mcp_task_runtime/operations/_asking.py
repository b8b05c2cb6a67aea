"""How `mcp-tasks answer` asks a form at the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.operations._choices import options_of, text_of
from mcp_task_runtime.operations._rendering import plain, question_text

__all__ = ["ask_at_terminal"]

_TYPES: Final[Mapping[str, Any]] = {"boolean": click.BOOL, "integer": click.INT, "number": click.FLOAT}


class _Several(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Any number of the choices, with commas."""

    name = "choices"

    def __init__(self, choices: list[str]) -> None:
        self._choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        chosen = [part.strip() for part in str(value).split(",") if part.strip()]
        if not set(chosen) <= set(self._choices):
            self.fail(f"choose from {', '.join(self._choices)}, with commas", param, ctx)
        return chosen


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
    """Ask for a field until it can be read, and return its value; `None` to leave it out."""
    label = plain(field.get("title") or name)
    if field.get("description"):
        label += f" ({plain(field['description'])})"
    items = field.get("items")
    is_list = field.get("type") == "array"
    options = options_of(items if is_list and isinstance(items, dict) else field) or []
    for value, title in options:
        if title != text_of(value):
            click.echo(f"  {plain(text_of(value))}: {plain(title)}")
    default: Any = field.get("default")
    if is_list:
        several = _Several([text_of(value) for value, _ in options])
        default = ", ".join(map(text_of, default)) if isinstance(default, list) else None
        label += f" ({', '.join(plain(text_of(value)) for value, _ in options)}; with commas)"
        chosen = _prompt(label, several, default, required)
        return None if chosen is None else [value for value, _ in options if text_of(value) in chosen]
    if options:
        by_text = {text_of(value): value for value, _ in options}
        text = _prompt(label, click.Choice(list(by_text)), None if default is None else text_of(default), required)
        return None if text is None else by_text[text]
    return _prompt(label, _TYPES.get(str(field.get("type")), click.STRING), default, required)


def _prompt(label: str, kind: Any, default: Any, required: bool) -> Any:
    if default is not None or required:
        return click.prompt(label, type=kind, default=default)
    return click.prompt(
        f"{label} [empty: leave out]",
        type=kind,
        default="",
        show_default=False,
        value_proc=lambda text: None if text == "" else kind.convert(text, None, None),
    )
