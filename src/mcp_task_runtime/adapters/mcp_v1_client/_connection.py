"""`Connection`: a `ClientSession` of `mcp` 1.x, in JSON terms."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, cast

import anyio
from mcp import ClientSession, McpError
from mcp.types import INVALID_PARAMS, CallToolResult
from pydantic import BaseModel, RootModel, ValidationError

from mcp_task_runtime.adapters.mcp_v1_client._errors import ERRORS, TaskError, UnknownTaskError
from mcp_task_runtime.adapters.task_client.errors import (
    REQUEST_TIMEOUT,
    UNANSWERED,
    ErrorTypes,
    MalformedError,
)
from mcp_task_runtime.adapters.task_client.remote_task import Limits
from mcp_task_runtime.adapters.task_client.snapshots import problems
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Connection"]

_SDK_TIMEOUT: Final = 408
"""The code of a request that was not answered within the session's read time-out."""

_NEVER: Final = timedelta(days=36_500)


class _RawResult(RootModel[dict[str, Any]]):
    """A result as it came."""


class _Request(BaseModel):
    method: str
    params: dict[str, Any]


class Connection:
    """Sends the requests of tasks over a session.

    Attributes:
        session: The SDK's session.
        limits: Seconds that requests may take.
        errors: The classes of the errors that are raised.
        blocks_while_asking: The session of `mcp` 1.x handles nothing else while a callback of its user runs.
    """

    errors: ErrorTypes = ERRORS
    blocks_while_asking = True

    def __init__(self, session: ClientSession, limits: Limits) -> None:
        self.session = session
        self.limits = limits

    async def request(
        self, method: str, params: JSONObject, *, task_id: str, is_limited: bool, read_timeout_seconds: float | None
    ) -> JSONObject:
        """Send a request and return the raw result. Each failure is a `TaskError`."""
        try:
            if not is_limited:
                return await self._send(method, params, _NEVER)
            if read_timeout_seconds is not None:
                return await self._send(method, params, timedelta(seconds=read_timeout_seconds))
            with anyio.fail_after(self.limits.request):  # the session's own limit counts, if it is lower
                return await self._send(method, params, None)
        except UNANSWERED as error:
            self.errors.raise_unanswered(error, method, task_id=task_id)
        except McpError as error:
            code = error.error.code
            if code == _SDK_TIMEOUT:
                raise TaskError(REQUEST_TIMEOUT, f"{method} timed out", task_id=task_id) from TimeoutError()
            kind = UnknownTaskError if code == INVALID_PARAMS else TaskError
            raise kind(code, error.error.message, error.error.data, task_id=task_id) from error

    async def call_tool(self, params: JSONObject, *, read_timeout_seconds: float | None) -> JSONObject:
        """Send `tools/call` and return the raw result, which may be a handle."""
        timeout = None if read_timeout_seconds is None else timedelta(seconds=read_timeout_seconds)
        try:
            return await self._send("tools/call", params, timeout)
        except ValidationError:
            raise self.errors.invalid("the result of tools/call") from None

    def parse_result(self, raw: JSONObject | None) -> CallToolResult:
        """Return the result of a task as that of the call."""
        try:
            return CallToolResult.model_validate(raw)
        except ValidationError as error:
            raise MalformedError(problems(error)) from None

    async def _send(self, method: str, params: JSONObject, read_timeout: timedelta | None) -> JSONObject:
        # The session needs no more of a request than its JSON form.
        request = cast(Any, _Request(method=method, params=params))
        return (await self.session.send_request(request, _RawResult, read_timeout)).root
