"""`parse_task`: a task as a server of 2026-07-28 sends it (wire rules C4, C6)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

from mcp_task_runtime.adapters.task_client.errors import MalformedError
from mcp_task_runtime.adapters.task_client.snapshots import TaskFields, TaskSnapshot, problems
from mcp_task_runtime.core.json import JSONObject, dump_json

__all__ = ["parse_task"]


class _ErrorFields(BaseModel):
    code: StrictInt
    message: StrictStr
    data: Any = None


class _InputRequired(BaseModel):
    requests: dict[str, dict[str, Any]] = Field(alias="inputRequests")


class _Completed(BaseModel):
    result: dict[str, Any]


class _Failed(BaseModel):
    error: _ErrorFields


def parse_task(raw: JSONObject, task_id: str, *, is_detailed: bool = True) -> TaskSnapshot:
    """Return the snapshot that a server sent.

    Args:
        raw: What it sent.
        task_id: The task that it should be of.
        is_detailed: Whether it must hold what belongs to its status (C6); a handle must not (C4).

    Raises:
        MalformedError: It is no snapshot of this task.
    """
    details: dict[str, str] = {}
    try:
        fields = TaskFields.model_validate(raw)
        if is_detailed and fields.status == "input_required":
            details["input_requests_json"] = dump_json(_InputRequired.model_validate(raw).requests)
        elif is_detailed and fields.status == "completed":
            details["result_json"] = dump_json(_Completed.model_validate(raw).result)
        elif is_detailed and fields.status == "failed":
            details["error_json"] = dump_json(_Failed.model_validate(raw).error.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise MalformedError(problems(error)) from None
    except ValueError:  # only from a server in this process: anything else came as JSON
        raise MalformedError("not JSON") from None
    return fields.snapshot(task_id, **details)
