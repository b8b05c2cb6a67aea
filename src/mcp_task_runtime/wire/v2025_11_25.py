"""The `tasks` capability of protocol revision 2025-11-25 (wire rules B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import Outcome, Progress, Task, TaskPage, TaskRecord, TaskStatus
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, ProtocolError
from mcp_task_runtime.wire.timestamps import format_timestamp

__all__ = [
    "MODEL_IMMEDIATE_RESPONSE_META_KEY",
    "PROGRESS_NOTIFICATION",
    "PROTOCOL_VERSION",
    "RELATED_TASK_META_KEY",
    "STATUS_NOTIFICATION",
    "TaskSupport",
    "already_ended",
    "list_not_offered",
    "parse_cursor",
    "parse_task_id",
    "parse_ttl",
    "related_task_id",
    "render_capability",
    "render_created",
    "render_page",
    "render_progress",
    "render_record",
    "render_result",
    "render_status",
    "render_task",
    "render_view",
    "task_forbidden",
    "task_required",
    "with_related_task",
]

PROTOCOL_VERSION: Final = "2025-11-25"
RELATED_TASK_META_KEY: Final = "io.modelcontextprotocol/related-task"
MODEL_IMMEDIATE_RESPONSE_META_KEY: Final = "io.modelcontextprotocol/model-immediate-response"
STATUS_NOTIFICATION: Final = "notifications/tasks/status"
PROGRESS_NOTIFICATION: Final = "notifications/progress"

TaskSupport: TypeAlias = Literal["required", "optional", "forbidden"]
"""Whether a tool is called as a task (B2)."""

_LONGEST_TTL_MS: Final = 10**13
"""Some 300 years: what is longer is as good as this, and still a date."""

_LONGEST_REASON: Final = 500


# What leaves us


def render_capability(*, can_list: bool) -> JSONObject:
    """Return the server's `tasks` capability (B1); listing needs requestors that can be told apart."""
    listing: JSONObject = {"list": {}} if can_list else {}
    return {**listing, "cancel": {}, "requests": {"tools": {"call": {}}}}


def render_task(task: Task, outcome: Outcome | None = None) -> JSONObject:
    """Return a task as `tasks/get` and status notifications show it (B4, B10); `ttl` is always there (A4)."""
    status: TaskStatus = task.status
    message = task.status_message
    if outcome is not None and outcome.is_error:
        # Under this revision such a result is a failure (B7), and the message says what went wrong (B13).
        status, message = "failed", _reason(outcome.result or {})
    created_at = format_timestamp(task.created_at)
    is_new = task.last_updated_at is task.created_at
    rendered: JSONObject = {
        "taskId": task.task_id,
        "status": status,
        "createdAt": created_at,
        "lastUpdatedAt": created_at if is_new else format_timestamp(task.last_updated_at),
        "ttl": task.ttl_ms,
        "pollInterval": task.poll_interval_ms,
    }
    if message is not None:
        rendered["statusMessage"] = message
    return rendered


def render_view(view: TaskView) -> JSONObject:
    """Return a task with its open questions as `tasks/get` shows it (B4).

    Where the work has said nothing of itself, the message says what is asked.
    """
    rendered = render_task(view.task, view.record.outcome)
    if view.questions and rendered["status"] == "input_required":
        rendered.setdefault("statusMessage", _asked(view.questions))
    return rendered


def render_record(record: TaskRecord) -> JSONObject:
    """Return a stored task as `render_task` does."""
    return render_task(record.task, record.outcome)


def render_status(task: Task, outcome: Outcome | None = None) -> tuple[str, JSONObject]:
    """Return the method and params of a status notification (B10)."""
    return STATUS_NOTIFICATION, render_task(task, outcome)


def render_progress(progress: Progress, token: str | int) -> tuple[str, JSONObject]:
    """Return the method and params of a progress notification (B11)."""
    params: JSONObject = {"progressToken": token, "progress": progress.progress}
    if progress.total is not None:
        params["total"] = progress.total
    if progress.message is not None:
        params["message"] = progress.message
    return PROGRESS_NOTIFICATION, params


def render_created(task: Task, *, model_immediate_response: str | None = None) -> JSONObject:
    """Return the answer to a call that became a task (B3)."""
    created: JSONObject = {"task": render_task(task)}
    if model_immediate_response is not None:
        created["_meta"] = {MODEL_IMMEDIATE_RESPONSE_META_KEY: model_immediate_response}
    return created


def render_page(page: TaskPage) -> JSONObject:
    """Return the answer to `tasks/list` (B9)."""
    rendered: JSONObject = {"tasks": [render_record(record) for record in page.records]}
    if page.next_cursor is not None:
        rendered["nextCursor"] = page.next_cursor
    return rendered


def render_result(outcome: Outcome, task_id: str) -> JSONObject:
    """Return the answer to `tasks/result`: what the call would have returned (B5).

    Raises:
        ProtocolError: The task ended with this error, or was cancelled.
    """
    result = outcome.result
    if result is not None:
        return with_related_task(result, task_id)
    error = outcome.error
    if error is None:
        raise ProtocolError(INTERNAL_ERROR, "The task was cancelled")
    raise ProtocolError(error["code"], error["message"], error.get("data"))


def with_related_task(params: JSONObject, task_id: str) -> JSONObject:
    """Return params, or a result, that say which task they belong to (B5, B6)."""
    meta = params.get("_meta")
    return {
        **params,
        "_meta": {**(meta if isinstance(meta, dict) else {}), RELATED_TASK_META_KEY: {"taskId": task_id}},
    }


# What comes in


def parse_task_id(params: Mapping[str, JSONValue] | None) -> str:
    """Return the `taskId` of a `tasks/*` request.

    Raises:
        ProtocolError: It is missing, or not a string (A3).
    """
    task_id = (params or {}).get("taskId")
    if not isinstance(task_id, str):
        raise ProtocolError(INVALID_PARAMS, "taskId must be a string")
    return task_id


def parse_cursor(params: Mapping[str, JSONValue] | None) -> str | None:
    """Return the `cursor` of a `tasks/list` request.

    Raises:
        ProtocolError: It is no string (B9).
    """
    cursor = (params or {}).get("cursor")
    if cursor is not None and not isinstance(cursor, str):
        raise ProtocolError(INVALID_PARAMS, "Invalid cursor")
    return cursor


def parse_ttl(task: JSONValue) -> int | None:
    """Return the TTL that the `task` of a request asks for, in milliseconds; `None` if it asks for none.

    Negative and absurd values are for `TaskSettings` to bring within its bounds.

    Raises:
        ProtocolError: `task` is no object, or its `ttl` no integer.
    """
    if not isinstance(task, Mapping):
        raise ProtocolError(INVALID_PARAMS, "task must be an object")
    ttl = task.get("ttl")
    if ttl is None:
        return None
    if isinstance(ttl, float) and ttl.is_integer():
        ttl = int(ttl)
    if not isinstance(ttl, int) or isinstance(ttl, bool):
        raise ProtocolError(INVALID_PARAMS, "task.ttl must be an integer, in milliseconds")
    return max(0, min(ttl, _LONGEST_TTL_MS))


def related_task_id(result: Mapping[str, JSONValue]) -> str | None:
    """Return the task that an answer says it belongs to; `None` if it does not say (B6)."""
    meta = result.get("_meta")
    related = meta.get(RELATED_TASK_META_KEY) if isinstance(meta, Mapping) else None
    task_id = related.get("taskId") if isinstance(related, Mapping) else None
    return task_id if isinstance(task_id, str) else None


# Errors


def task_required(name: str) -> ProtocolError:
    """Return the error for a plain call of a tool that runs as a task only (B2)."""
    return ProtocolError(METHOD_NOT_FOUND, f"Tool {name!r} must be called as a task")


def task_forbidden(name: str) -> ProtocolError:
    """Return the error for a task call of a tool that does not run as one (B2)."""
    return ProtocolError(METHOD_NOT_FOUND, f"Tool {name!r} cannot be called as a task")


def already_ended() -> ProtocolError:
    """Return the error for `tasks/cancel` of a task that has ended (B8)."""
    return ProtocolError(INVALID_PARAMS, "The task has already ended and cannot be cancelled")


def list_not_offered() -> ProtocolError:
    """Return the error for `tasks/list` where requestors cannot be told apart (B1)."""
    return ProtocolError(METHOD_NOT_FOUND, "Tasks are not listed here: requestors cannot be told apart")


def _asked(questions: Sequence[QueuedMessage]) -> str:
    """Return what the first question asks, for people to read."""
    first = questions[0]
    message = first.params.get("message")
    if not isinstance(message, str) or not message:
        message = f"Waiting for an answer to {first.method}"
    return message if len(message) <= _LONGEST_REASON else message[:_LONGEST_REASON] + "…"


def _reason(result: JSONObject) -> str:
    content = result.get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and isinstance(text := block.get("text"), str) and text:
            return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"
    return "The tool reported an error"
