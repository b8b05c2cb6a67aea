"""`parse_task`: a task as a server of 2026-07-28 sends it (wire rules C4, C6)."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, StrictInt, StrictStr, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from mcp_task_runtime.adapters.task_client.errors import MalformedError
from mcp_task_runtime.adapters.task_client.snapshots import (
    Milliseconds,
    TaskFields,
    TaskSnapshot,
    problems,
    snapshot_of,
)
from mcp_task_runtime.core.json import JSONObject, dump_json

__all__ = ["parse_task"]


class _Fields(TaskFields):
    ttlMs: NotRequired[Milliseconds | None]  # serialisers that drop nulls lose it
    pollIntervalMs: NotRequired[Milliseconds | None]


class _ErrorFields(BaseModel):
    code: StrictInt
    message: StrictStr
    data: Any = None


class _InputRequired(TypedDict):
    inputRequests: dict[str, dict[str, Any]]


class _Completed(TypedDict):
    result: dict[str, Any]


class _Failed(TypedDict):
    error: _ErrorFields


_FIELDS: Final = TypeAdapter(_Fields)
_INPUT_REQUIRED: Final = TypeAdapter(_InputRequired)
_COMPLETED: Final = TypeAdapter(_Completed)
_FAILED: Final = TypeAdapter(_Failed)


def parse_task(raw: JSONObject, task_id: str, *, is_detailed: bool = True) -> TaskSnapshot:
    """Return the snapshot that a server sent.

    Args:
        raw: What it sent.
        task_id: The task that it should be of.
        is_detailed: Whether it must hold what belongs to its status (C6); a handle must not (C4).

    Raises:
        MalformedError: It is no snapshot of this task.
    """
    input_requests_json, result_json, error_json = "{}", None, None
    try:
        fields = _FIELDS.validate_python(raw)
        status = fields["status"] if is_detailed else None
        if status == "input_required":
            input_requests_json = dump_json(_INPUT_REQUIRED.validate_python(raw)["inputRequests"])
        elif status == "completed":
            result_json = dump_json(_COMPLETED.validate_python(raw)["result"])
        elif status == "failed":
            error_json = dump_json(_FAILED.validate_python(raw)["error"].model_dump(exclude_unset=True))
    except ValidationError as error:
        raise MalformedError(problems(error)) from None
    except ValueError:  # only from a server in this process: anything else came as JSON
        raise MalformedError("not JSON") from None
    return snapshot_of(
        fields,
        task_id,
        ttl_ms=fields.get("ttlMs"),
        poll_interval_ms=fields.get("pollIntervalMs"),
        input_requests_json=input_requests_json,
        result_json=result_json,
        error_json=error_json,
    )
