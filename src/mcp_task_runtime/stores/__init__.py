"""Backends: in each package a `TaskStore` and the `TaskMessageQueue` of the same backend.

What all stores share, for authors of further ones: cursors that show nothing of other owners' tasks, and checks that
refuse a value that could not be read back (law L4).
"""

from __future__ import annotations

from mcp_task_runtime.stores._cursor import CursorKey, owner_scope, search_scope
from mcp_task_runtime.stores._storable import (
    check_answer,
    check_duration,
    check_json,
    check_message,
    check_new_task,
    check_object,
    check_outcome,
    check_progress,
    check_text,
)

__all__ = [
    "CursorKey",
    "check_answer",
    "check_duration",
    "check_json",
    "check_message",
    "check_new_task",
    "check_object",
    "check_outcome",
    "check_progress",
    "check_text",
    "owner_scope",
    "search_scope",
]
