"""`TaskSnapshot`: what a server said of a task, after it was checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, ValidationError
from typing_extensions import NotRequired, TypedDict

from mcp_task_runtime.adapters.task_client.errors import MalformedError
from mcp_task_runtime.core.json import JSONObject, load_json
from mcp_task_runtime.core.types import TaskStatus

__all__ = ["Milliseconds", "TaskFields", "TaskSnapshot", "problems", "snapshot_of"]


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """What a server said of a task at one time; it never changes.

    Under protocol revision 2025-11-25 it holds no questions, no result and no error: those come with
    `ClientTask.wait`. A result with `isError` makes the task `failed` there, and `completed` under 2026-07-28.

    Attributes:
        task_id: The task's identifier.
        status: Where the task stands.
        status_message: What the work last said of itself, or why it failed.
        created_at: Aware UTC time of creation.
        last_updated_at: Aware UTC time of the last change, by the server's clock.
        ttl_ms: Milliseconds from creation until the task expires; `None` means never.
        poll_interval_ms: Milliseconds between two polls as the server suggests them, unclamped; `None` if
            it suggests nothing.
        input_requests_json: The open questions as JSON text.
        result_json: The result of a completed task as JSON text.
        error_json: The JSON-RPC error of a failed task as JSON text.
    """

    task_id: str
    status: TaskStatus
    status_message: str | None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None
    poll_interval_ms: int | None
    input_requests_json: str = "{}"
    result_json: str | None = None
    error_json: str | None = None

    @property
    def input_requests(self) -> dict[str, JSONObject]:
        """The open questions of a task that needs input, by key; parsed at each access."""
        value: dict[str, JSONObject] = load_json(self.input_requests_json)
        return value

    @property
    def result(self) -> JSONObject | None:
        """The result of a completed task, parsed at each access; otherwise `None`."""
        return None if self.result_json is None else load_json(self.result_json)

    @property
    def error(self) -> JSONObject | None:
        """The JSON-RPC error of a failed task, parsed at each access; otherwise `None`."""
        return None if self.error_json is None else load_json(self.error_json)


def _without_fraction(value: object) -> object:
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


Milliseconds: TypeAlias = int | Annotated[int, BeforeValidator(_without_fraction)]
"""Any number that JSON can say: the protocols want integers, which need no call of Python, and a fraction or 1e300 must
not cost the task."""


class TaskFields(TypedDict):
    """What every form of a task has, by its name on the wire."""

    taskId: str
    status: TaskStatus
    statusMessage: NotRequired[str | None]
    createdAt: datetime
    lastUpdatedAt: datetime


def snapshot_of(
    fields: TaskFields,
    task_id: str,
    *,
    ttl_ms: int | None,
    poll_interval_ms: int | None,
    input_requests_json: str = "{}",
    result_json: str | None = None,
    error_json: str | None = None,
) -> TaskSnapshot:
    """Return what was said, if it was said of this task.

    Raises:
        MalformedError: It was said of another task, or a time lies outside of the calendar.
    """
    if fields["taskId"] != task_id:
        raise MalformedError("another task than the one asked for")
    try:
        created_at, last_updated_at = _utc(fields["createdAt"]), _utc(fields["lastUpdatedAt"])
    except OverflowError:  # the first and the last day of the calendar, in a time zone
        raise MalformedError("no date in UTC") from None
    return TaskSnapshot(
        task_id,
        fields["status"],
        fields.get("statusMessage"),
        created_at,
        last_updated_at,
        ttl_ms,
        poll_interval_ms,
        input_requests_json,
        result_json,
        error_json,
    )


def problems(error: ValidationError) -> str:
    """Return what is wrong, without the values: those are the server's, and may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:5])


def _utc(when: datetime) -> datetime:
    """Return the time in UTC, which it is in already where it does not say so (A4)."""
    return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when.astimezone(timezone.utc)
