"""`Connection`: a client's session on `mcp` 2.x, in JSON terms."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any, ClassVar

import mcp_types as types
from mcp.client import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._errors import ERRORS, TaskError, UnknownTaskError
from mcp_task_runtime.adapters.task_client.errors import UNANSWERED, ErrorTypes, MalformedError
from mcp_task_runtime.adapters.task_client.remote_task import Limits
from mcp_task_runtime.adapters.task_client.snapshots import problems
from mcp_task_runtime.adapters.task_client.time_limit import TimeLimit
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Connection", "listen"]


class _RawRequest:
    """A request that the SDK sends as it is: it asks for no more than these members."""

    name_param: ClassVar[str | None] = None

    def __init__(self, method: str, params: JSONObject) -> None:
        self._message = {"method": method, "params": params}

    def model_dump(self, **_: Any) -> JSONObject:
        """Return the message, whose params the SDK adds to."""
        return self._message


class _RawTaskRequest(_RawRequest):
    name_param: ClassVar[str | None] = "taskId"  # C14: sent as Mcp-Name


class _RawResult:
    """A result type that takes any result as it is."""

    @staticmethod
    def model_validate(value: JSONObject, **_: Any) -> JSONObject:
        """Return the value."""
        return value


class Connection:
    """Sends the requests of tasks over a session.

    Attributes:
        session: The SDK's session.
        limits: Seconds that requests may take.
        errors: The classes of the errors that are raised.
        blocks_while_asking: The session of `mcp` 2.x handles messages while a callback of its user runs.
    """

    errors: ErrorTypes = ERRORS
    blocks_while_asking = False

    def __init__(self, session: ClientSession, limits: Limits, request_limit: TimeLimit) -> None:
        self.session = session
        self.limits = limits
        self._request_limit = request_limit

    async def request(
        self, method: str, params: JSONObject, *, task_id: str, is_limited: bool, read_timeout_seconds: float | None
    ) -> JSONObject:
        """Send a request and return the raw result. Each failure is a `TaskError`."""
        request = (_RawTaskRequest if task_id else _RawRequest)(method, params)
        read_timeout = read_timeout_seconds if is_limited else math.inf
        try:
            if read_timeout is not None:
                return await self._send(request, read_timeout)
            return await self._request_limit.apply(self._send(request))  # a lower limit of the client's own counts
        except UNANSWERED as error:
            self.errors.raise_unanswered(error, method, task_id=task_id)
        except MCPError as error:
            is_unknown = error.code == types.INVALID_PARAMS and method != "tasks/update"
            kind = UnknownTaskError if is_unknown else TaskError
            raise kind(error.code, error.message, error.data, task_id=task_id) from error

    async def call_tool(self, params: JSONObject, *, read_timeout_seconds: float | None) -> JSONObject:
        """Send a call that asks for a task, and return the raw answer.

        The SDK knows only results under 2025-11-25, and refuses a handle as a result without content. Its
        documented exception holds what it refused.
        """
        request = types.CallToolRequest(params=types.CallToolRequestParams.model_validate(params))
        try:
            return await self._send(request, read_timeout_seconds)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False):
                refused = problem["input"]
                if problem["type"] == "missing" and isinstance(refused, dict) and "task" in refused:
                    return refused
            raise self.errors.invalid(f"tools/call: {problems(error)}") from None

    def parse_result(self, raw: JSONObject | None) -> CallToolResult:
        """Return the result of a task as that of the call."""
        try:
            return CallToolResult.model_validate(raw, by_name=False)
        except ValidationError as error:
            raise MalformedError(problems(error)) from None

    def _send(
        self, request: _RawRequest | types.CallToolRequest, read_timeout: float | None = None
    ) -> Awaitable[JSONObject]:
        sent: Any = request
        result_type: Any = _RawResult
        answer: Awaitable[JSONObject] = self.session.send_request(sent, result_type, read_timeout)
        return answer


async def listen(session: ClientSession, task_ids: list[str]) -> None:
    """Have changes of these tasks pushed until the server stops, or until this is cancelled (C11).

    Raises:
        MCPError: The server does not push, or no longer.
    """
    wanted = types.SubscriptionFilter.model_validate({"taskIds": task_ids})
    params = types.SubscriptionsListenRequestParams(notifications=wanted)
    result_type: Any = _RawResult
    # It is answered when the server stops: no read time-out of the client may end it before.
    await session.send_request(types.SubscriptionsListenRequest(params=params), result_type, math.inf)
