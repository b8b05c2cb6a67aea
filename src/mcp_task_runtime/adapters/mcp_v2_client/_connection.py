"""`Connection`: a client's session on `mcp` 2.x, in JSON terms."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import anyio
import mcp_types as types
from mcp.client import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import RootModel, ValidationError

from mcp_task_runtime.adapters.mcp_v2_client._errors import ERRORS, TaskError, UnknownTaskError
from mcp_task_runtime.adapters.task_client.errors import UNANSWERED, ErrorTypes, MalformedError
from mcp_task_runtime.adapters.task_client.remote_task import Limits
from mcp_task_runtime.adapters.task_client.snapshots import problems
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Connection"]


class _RawResult(RootModel[dict[str, Any]]):
    """A result as it came."""


class _Request(types.Request[dict[str, Any], str]):
    method: str
    params: dict[str, Any]


class _TaskRequest(_Request):
    name_param: ClassVar[str | None] = "taskId"  # C14: sent as Mcp-Name


class Connection:
    """Sends the requests of tasks over a session.

    Attributes:
        session: The SDK's session.
        limits: Seconds that requests may take.
        errors: The classes of the errors that are raised.
    """

    errors: ErrorTypes = ERRORS

    def __init__(self, session: ClientSession, limits: Limits) -> None:
        self.session = session
        self.limits = limits

    async def request(
        self, method: str, params: JSONObject, *, task_id: str, is_limited: bool, read_timeout_seconds: float | None
    ) -> JSONObject:
        """Send a request and return the raw result. Each failure is a `TaskError`."""
        request = (_TaskRequest if task_id else _Request)(method=method, params=params)
        read_timeout = read_timeout_seconds if is_limited else math.inf
        try:
            if read_timeout is not None:
                return (await self.session.send_request(request, _RawResult, read_timeout)).root
            # The client's own limit counts, if it is lower than this.
            with anyio.CancelScope(deadline=anyio.current_time() + self.limits.request):
                return (await self.session.send_request(request, _RawResult)).root
            raise TimeoutError
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
            return (await self.session.send_request(request, _RawResult, read_timeout_seconds)).root
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False):
                refused = problem["input"]
                if problem["type"] == "missing" and isinstance(refused, dict) and "task" in refused:
                    return refused
            raise self.errors.invalid(f"tools/call: {problems(error)}") from None

    async def listen(self, task_ids: list[str]) -> None:
        """Have changes of these tasks pushed until the server stops, or until this is cancelled (C11).

        Raises:
            MCPError: The server does not push, or no longer.
        """
        wanted = types.SubscriptionFilter.model_validate({"taskIds": task_ids})
        params = types.SubscriptionsListenRequestParams(notifications=wanted)
        # It is answered when the server stops: no read time-out of the client may end it before.
        await self.session.send_request(types.SubscriptionsListenRequest(params=params), _RawResult, math.inf)

    def parse_result(self, raw: JSONObject | None) -> CallToolResult:
        """Return the result of a task as that of the call."""
        try:
            return CallToolResult.model_validate(raw, by_name=False)
        except ValidationError as error:
            raise MalformedError(problems(error)) from None
