"""How a sealed value is told from a plain one. What seals and opens is `stores.sealed`; this knows no key."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.transitions import EVENT_TEXT_LENGTH
from mcp_task_runtime.core.types import TaskRecord

__all__ = ["EXCERPT_END", "SEALED_JSON", "SEALED_TEXT", "event_excerpt", "is_sealed"]

SEALED_TEXT: Final = "sealed:1:"
"""How sealed text begins."""

SEALED_JSON: Final = '{"sealed:1":"'
"""How the sealed form of a JSON text begins: an object with one member."""

EXCERPT_END: Final = "."
"""What follows the part of a sealed text that the history of a task keeps, where that is not all of it."""


_LONGEST_EXCERPT: Final = 8 * EVENT_TEXT_LENGTH
"""More than the sealed form of `EVENT_TEXT_LENGTH` characters takes."""


def is_sealed(record: TaskRecord) -> bool:
    """Return whether a task is sealed, as a store without the keys returns it."""
    return record.request.arguments_json.startswith(SEALED_JSON)


def event_excerpt(text: str) -> str:
    """Return what the history of a task keeps of a text: `EVENT_TEXT_LENGTH` characters, or their sealed form.

    Stores call it for `TaskEvent.text`: a sealed text that is cut elsewhere cannot be opened.
    """
    if not text.startswith(SEALED_TEXT):
        return text[:EVENT_TEXT_LENGTH]
    excerpt, end, _ = text.partition(EXCERPT_END)
    return (excerpt + end)[:_LONGEST_EXCERPT]
