"""The JSON Schemas of the protocol, and which definition each message has to match.

They are kept next to the project. Where they are missing, messages are not checked, and the tests that are about
nothing else are skipped.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest
from jsonschema import Draft202012Validator

from tests.support.quick_schema import QuickSchema

SCHEMAS = Path(__file__).resolve().parents[3] / "shared" / "schemas"

Wire: TypeAlias = dict[str, Any]
Schema = Literal["ext-tasks-draft", "mcp-2026-07-28", "mcp-2025-11-25"]

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"the protocol's JSON Schemas are not in {SCHEMAS}")
"""Skips a test where the schemas are missing."""

_TASKS: Schema = "ext-tasks-draft"
_CORE: Schema = "mcp-2026-07-28"

_DEFINITION_OF_STATUS = {
    "working": "WorkingTask",
    "input_required": "InputRequiredTask",
    "completed": "CompletedTask",
    "failed": "FailedTask",
    "cancelled": "CancelledTask",
}
_DEFINITION_OF_ERROR = {-32021: "MissingRequiredClientCapabilityError", -32020: "HeaderMismatchError"}
_DEFINITION_OF_RESULT = {
    "tools/list": (_CORE, "ListToolsResult"),
    "server/discover": (_CORE, "DiscoverResult"),
    "tasks/get": (_TASKS, "GetTaskResult"),
    "tasks/update": (_TASKS, "UpdateTaskResult"),
    "tasks/cancel": (_TASKS, "CancelTaskResult"),
}
_DEFINITION_OF_NOTIFICATION = {
    "notifications/progress": "ProgressNotification",
    "notifications/message": "LoggingMessageNotification",
}
_DETAILS = {"inputRequests", "result", "error"}
_DETAIL_OF_STATUS = {"input_required": {"inputRequests"}, "completed": {"result"}, "failed": {"error"}}


@lru_cache
def document(schema: Schema) -> Wire:
    """Return a whole schema."""
    whole: Wire = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    return whole


@lru_cache
def validator(schema: Schema, definition: str) -> Draft202012Validator:
    """Return what says all that is wrong with a message."""
    definitions = document(schema)["$defs"]
    assert definition in definitions
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": definitions})


@lru_cache
def quick(schema: Schema) -> QuickSchema:
    """Return what finds quickly that a message is valid."""
    return QuickSchema(document(schema)["$defs"])


def validate(message: Any, definition: str, schema: Schema = _TASKS) -> None:
    """Check a message against a definition of a schema; the error shows the message."""
    if not SCHEMAS.is_dir() or quick(schema).matches(definition)(message):
        return
    problems = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in validator(schema, definition).iter_errors(message)
    ]
    assert not problems, f"{definition}: {problems} in {message}"


def validate_response(method: str, response: Wire) -> None:
    """Check the response to a request: its envelope, and its result or error, inner ones included."""
    if "error" in response:
        validate(response, "JSONRPCErrorResponse", _CORE)
        definition = _DEFINITION_OF_ERROR.get(response["error"]["code"])
        if definition is not None:
            validate(response, definition, _CORE)
        return
    validate(response, "JSONRPCResultResponse", _CORE)
    result = response["result"]
    if method == "tools/call":
        _validate_call_result(result)
        return
    assert result["resultType"] == "complete", f"only tools/call may answer with {result['resultType']!r}"
    schema, definition = _DEFINITION_OF_RESULT[method]
    validate(result, definition, schema)
    if method == "tasks/get":
        _validate_task(result)


def validate_notification(message: Wire) -> None:
    """Check a notification from the server."""
    validate(message, "JSONRPCNotification", _CORE)
    validate(message, _DEFINITION_OF_NOTIFICATION[message["method"]], _CORE)


def _validate_call_result(result: Wire) -> None:
    kind = result["resultType"]
    if kind == "task":
        validate(result, "CreateTaskResult")
        assert not result.keys() & _DETAILS, "a handle has no details, also where a call joins a task that has them"
    elif kind == "input_required":
        validate(result, "InputRequiredResult", _CORE)
    else:
        assert kind == "complete"
        validate(result, "CallToolResult", _CORE)


def _validate_task(task: Wire) -> None:
    status = task["status"]
    validate(task, _DEFINITION_OF_STATUS[status])
    assert task.keys() & _DETAILS == _DETAIL_OF_STATUS.get(status, set()), f"{status} task with {sorted(task)}"
    if status == "input_required":
        assert task["inputRequests"], "a task that needs input asks for something"
        validate(task["inputRequests"], "InputRequests", _CORE)
    elif status == "completed":
        validate(task["result"], "CallToolResult", _CORE)
    elif status == "failed":
        validate(task["error"], "Error", _CORE)
