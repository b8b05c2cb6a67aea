"""What a server of the package `fastmcp` 4 needs that a low-level `Server` does not.

Its tool layer makes a result of any error, and its context asks no client of a revision after 2025-11-25, and reports
progress only to a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import ToolCall
from mcp_task_runtime.adapters.mcp_v2._requests import Context, is_modern
from mcp_task_runtime.wire.v2025_11_25 import PROTOCOL_VERSION

__all__ = ["FastMCPServer", "call_fastmcp"]


class FastMCPServer(Protocol):
    """A `FastMCP` of the package `fastmcp` 4, for type checkers: that package need not be installed."""

    @property
    def http_app(self) -> Callable[..., Any]:
        """Make an application that serves it over HTTP."""
        ...


async def call_fastmcp(call: ToolCall, ctx: Context, call_next: CallNext) -> HandlerResult:
    """Run a tool of a `fastmcp` server as part of a call.

    Raises:
        MCPError: The error that left the work, which the server made a result of.
    """
    result = await call_next(_through_task(ctx) if isinstance(call, TaskCall) and call.may_become_task else ctx)
    error = call.error
    if error is not None and _tells_of(result, str(error)):
        raise MCPError(getattr(error, "code", error.jsonrpc_code), str(error), error.data)
    return result


def _through_task(ctx: Context) -> Context:
    """Return a context that lets its tool ask and report: the session does so through the task."""
    meta: Any = {"progress_token": "", **(ctx.meta or {})}
    return replace(ctx, meta=meta, protocol_version=PROTOCOL_VERSION if is_modern(ctx) else ctx.protocol_version)


def _tells_of(result: HandlerResult, text: str) -> bool:
    if not isinstance(result, CallToolResult) or not result.is_error or len(result.content) != 1:
        return False
    content = result.content[0]
    return isinstance(content, TextContent) and content.text.endswith(text)
