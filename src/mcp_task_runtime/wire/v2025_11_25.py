"""The `tasks` capability of protocol revision 2025-11-25 (wire rules B)."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.types import Outcome, Task, TaskStatus
from mcp_task_runtime.wire.timestamps import format_timestamp

__all__ = ["PROTOCOL_VERSION", "RELATED_TASK_META_KEY", "STATUS_NOTIFICATION", "render_task", "with_related_task"]

PROTOCOL_VERSION: Final = "2025-11-25"
RELATED_TASK_META_KEY: Final = "io.modelcontextprotocol/related-task"
STATUS_NOTIFICATION: Final = "notifications/tasks/status"


def _status(task: Task, outcome: Outcome | None) -> TaskStatus:
    """Return the status under this revision: a result with `isError` is a failure (B7)."""
    result = None if outcome is None else outcome.result
    return "failed" if result is not None and result.get("isError") is True else task.status


def render_task(task: Task, outcome: Outcome | None = None) -> JSONObject:
    """Return a task as `tasks/get` and status notifications show it (B4, B10); `ttl` is always there (A4)."""
    rendered: JSONObject = {
        "taskId": task.task_id,
        "status": _status(task, outcome),
        "createdAt": format_timestamp(task.created_at),
        "lastUpdatedAt": format_timestamp(task.last_updated_at),
        "ttl": task.ttl_ms,
        "pollInterval": task.poll_interval_ms,
    }
    if task.status_message is not None:
        rendered["statusMessage"] = task.status_message
    return rendered


def with_related_task(params: JSONObject, task_id: str) -> JSONObject:
    """Return params that say which task they belong to (B6)."""
    meta = params.get("_meta")
    return {
        **params,
        "_meta": {**(meta if isinstance(meta, dict) else {}), RELATED_TASK_META_KEY: {"taskId": task_id}},
    }
