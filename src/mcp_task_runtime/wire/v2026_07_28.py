"""The extension `io.modelcontextprotocol/tasks` of protocol revision 2026-07-28 (wire rules C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import Task, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import ProtocolError
from mcp_task_runtime.wire.timestamps import format_timestamp

__all__ = [
    "EXTENSION_ID",
    "HEADER_MISMATCH",
    "MISSING_CLIENT_CAPABILITY",
    "NOTIFICATION",
    "PROTOCOL_VERSION",
    "acknowledge",
    "log_levels",
    "missing_capability",
    "parse_related_task_ids",
    "render_handle",
    "render_input_required",
    "render_view",
]

PROTOCOL_VERSION: Final = "2026-07-28"
EXTENSION_ID: Final = "io.modelcontextprotocol/tasks"
MISSING_CLIENT_CAPABILITY: Final = -32021
HEADER_MISMATCH: Final = -32020
NOTIFICATION: Final = "notifications/tasks"
_LOG_LEVEL_META_KEY: Final = "io.modelcontextprotocol/logLevel"
_LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_RELATED_META_KEY: Final = "io.modelcontextprotocol/relatedTaskIds"
_MOST_RELATED: Final = 100
_LONGEST_ID: Final = 256


def log_levels(meta: JSONValue) -> Sequence[str]:
    """Return the levels of log messages that a request with this `_meta` asked for."""
    level = meta.get(_LOG_LEVEL_META_KEY) if isinstance(meta, Mapping) else None
    return _LOG_LEVELS[_LOG_LEVELS.index(level) :] if level in _LOG_LEVELS else ()


def parse_related_task_ids(meta: JSONValue) -> list[str]:
    """Return the ids of the tasks that the `_meta` of a call names as related, each once and at most a hundred.

    They are advice: what is malformed is left out.
    """
    named = meta.get(_RELATED_META_KEY) if isinstance(meta, dict) else None
    if not isinstance(named, list):
        return []
    ids = [each for each in named if isinstance(each, str) and each.isprintable() and 0 < len(each) <= _LONGEST_ID]
    return list(dict.fromkeys(ids))[:_MOST_RELATED]


def missing_capability() -> ProtocolError:
    """Return the error for a request that needs the extension and did not declare it (C2, C11, C13)."""
    return ProtocolError(
        MISSING_CLIENT_CAPABILITY,
        f"This needs the client extension {EXTENSION_ID!r}",
        {"requiredCapabilities": {"extensions": {EXTENSION_ID: {}}}},
    )


def render_handle(record: TaskRecord) -> JSONObject:
    """Return the answer to a call that became a task: the task and nothing of its outcome (C4)."""
    return {"resultType": "task", **_render_task(record.task)}


def render_view(view: TaskView) -> JSONObject:
    """Return a task in detail: with its open questions, its result or its error, never two of them (C6)."""
    task = view.task
    rendered = _render_task(task)
    outcome = view.record.outcome
    if task.status == "input_required":
        rendered["inputRequests"] = _render_questions(view.questions)
    elif outcome is not None:
        if outcome.status == "completed":
            # A result that came from elsewhere than the SDK may lack what the protocol requires.
            rendered["result"] = {"resultType": "complete", **(outcome.result or {})}
        elif outcome.status == "failed":
            rendered["error"] = outcome.error
    return rendered


def render_input_required(questions: Sequence[QueuedMessage], request_state: str | None = None) -> JSONObject:
    """Return the answer to a call whose client is asked by multi-round-trip input.

    Args:
        questions: What it is asked.
        request_state: What it sends with the answers, in the same call again.
    """
    result: JSONObject = {"resultType": "input_required", "inputRequests": _render_questions(questions)}
    return result if request_state is None else {**result, "requestState": request_state}


def _render_questions(questions: Sequence[QueuedMessage]) -> JSONObject:
    return {str(question.key): {"method": question.method, "params": question.params} for question in questions}


def acknowledge() -> JSONObject:
    """Return the answer to `tasks/update` and `tasks/cancel` (C8, C9)."""
    return {"resultType": "complete"}


def _render_task(task: Task) -> JSONObject:
    created_at = format_timestamp(task.created_at)
    is_new = task.last_updated_at is task.created_at
    rendered: JSONObject = {
        "taskId": task.task_id,
        "status": task.status,
        "createdAt": created_at,
        "lastUpdatedAt": created_at if is_new else format_timestamp(task.last_updated_at),
        "ttlMs": task.ttl_ms,
        "pollIntervalMs": task.poll_interval_ms,
    }
    if task.status_message is not None:
        rendered["statusMessage"] = task.status_message
    return rendered
