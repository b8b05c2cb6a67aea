"""What the SDK makes of the end of a tool's work, apart from the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mcp.server.context import HandlerResult
from mcp.server.mcpserver import Context as SDKContext
from mcp.server.mcpserver import exceptions as sdk_exceptions
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, InputRequiredResult, TextContent

from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters._unwinding_call import EndedCall, NoteFailure
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import TaskRequest
from mcp_task_runtime.errors import ProtocolError

__all__ = ["Conversions"]

_UNEXPECTED_TOOL_ERROR: Final[type[Exception] | tuple[()]] = getattr(sdk_exceptions, "UnexpectedToolError", ())
"""What the SDK makes of an exception that is no `ToolError`, since `mcp` 2.1; before, a `ToolError` from it."""


class Conversions:
    """The tools whose results can be made apart from their calls: those that were made with `Tasks.tool`."""

    def __init__(self, runtime: TaskRuntime) -> None:
        """Make it without tools."""
        self._runtime = runtime
        self._tools: dict[str, Tool] = {}
        self._unclear: set[str] = set()

    def add(self, tool: Tool) -> None:
        """Add a tool, which is made like that of the server. Of two with one name, the SDK knows which one runs."""
        if self._tools.setdefault(tool.name, tool) is not tool:
            self._unclear.add(tool.name)

    def get(self, name: str) -> Tool | None:
        """Return a tool, or `None` where the results of a name cannot be made apart from its calls."""
        return None if name in self._unclear else self._tools.get(name)

    async def convert(self, request: TaskRequest, end: Callable[[], Any], note: NoteFailure) -> HandlerResult:
        """Return what the SDK makes of the end of a tool's work; see `Convert`.

        Raises:
            ProtocolError: The work ended with the SDK's own.
        """
        tool = self._tools[request.name]
        try:
            return tool.fn_metadata.convert_result(end())
        except Exception:
            return await self._as_error(tool, request.arguments, end, note)

    async def _as_error(
        self, tool: Tool, arguments: JSONObject, end: Callable[[], Any], note: NoteFailure
    ) -> HandlerResult:
        """Let the SDK say what is wrong, in a call of the tool whose work has ended before."""
        with calling(EndedCall(self._runtime, tool.name, end, note)):
            try:
                result: CallToolResult | InputRequiredResult = await tool.run(
                    arguments, SDKContext(), convert_result=True
                )
            except MCPError as error:
                raise ProtocolError(error.code, error.message, error.data) from error
            except Exception as error:
                if not isinstance(error.__cause__ or error, ToolError) or isinstance(error, _UNEXPECTED_TOOL_ERROR):
                    note(error)
                return CallToolResult(content=[TextContent(text=str(error))], is_error=True)
        return result
