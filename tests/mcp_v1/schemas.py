"""The JSON Schema of protocol revision 2025-11-25, and which definition each message has to match.

It is kept next to the project. Where it is missing, messages are not checked, and the tests that are about
nothing else are skipped.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from jsonschema import Draft202012Validator

from tests.support.quick_schema import QuickSchema

SCHEMA = Path(__file__).resolve().parents[3] / "shared" / "schemas" / "mcp-2025-11-25.schema.json"
RELATED = "io.modelcontextprotocol/related-task"

Wire: TypeAlias = dict[str, Any]

needs_schema = pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the protocol's JSON Schema is not in {SCHEMA}")
"""Skips a test where the schema is missing."""

_RESULTS = {
    "initialize": "InitializeResult",
    "ping": "EmptyResult",
    "tools/list": "ListToolsResult",
    "tasks/get": "GetTaskResult",
    "tasks/cancel": "CancelTaskResult",
    "tasks/list": "ListTasksResult",
    "tasks/result": "CallToolResult",
}
_REQUESTS = {
    "elicitation/create": "ElicitRequest",
    "sampling/createMessage": "CreateMessageRequest",
    "tasks/get": "GetTaskRequest",
    "tasks/result": "GetTaskPayloadRequest",
    "tasks/cancel": "CancelTaskRequest",
    "roots/list": "ListRootsRequest",
    "ping": "PingRequest",
}
_NOTIFICATIONS = {
    "notifications/tasks/status": "TaskStatusNotification",
    "notifications/progress": "ProgressNotification",
    "notifications/message": "LoggingMessageNotification",
    "notifications/cancelled": "CancelledNotification",
}


@lru_cache
def _definitions() -> Wire:
    definitions: Wire = json.loads(SCHEMA.read_text())["$defs"]
    return definitions


@lru_cache
def _quick() -> QuickSchema:
    return QuickSchema(_definitions())


@lru_cache
def _validator(definition: str) -> Draft202012Validator:
    assert definition in _definitions()
    return Draft202012Validator({"$ref": f"#/$defs/{definition}", "$defs": _definitions()})


def validate(message: Any, definition: str) -> None:
    """Check a message against a definition; the error shows the message."""
    if not SCHEMA.is_file() or _quick().matches(definition)(message):
        return
    problems = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _validator(definition).iter_errors(message)
    ]
    assert not problems, f"{definition}: {problems} in {message}"


def validate_response(request: Wire, response: Wire) -> None:
    """Check a response to a request, its result included."""
    if "error" in response:
        validate(response, "JSONRPCErrorResponse")
        return
    validate(response, "JSONRPCResultResponse")
    method, result = request["method"], response["result"]
    if method == "tools/call":
        validate(result, "CreateTaskResult" if "task" in request["params"] else "CallToolResult")
    elif method in _RESULTS:
        validate(result, _RESULTS[method])
    if method in ("tasks/get", "tasks/cancel"):
        assert RELATED not in result.get("_meta", {}), "the task is in the result already (B4)"


def validate_from_server(message: Wire) -> None:
    """Check a request or a notification of the server."""
    if "id" in message:
        validate(message, "JSONRPCRequest")
        validate(message, _REQUESTS[message["method"]])
        return
    validate(message, "JSONRPCNotification")
    validate(message, _NOTIFICATIONS[message["method"]])
