"""What `FastMCP` makes of what a tool's work returns, apart from the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, get_args

from mcp import types
from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.tools import Tool
from mcp.server.lowlevel import Server
from pydantic import BaseModel

from mcp_task_runtime.adapters.mcp_v1._schemas import CompiledSchema, function_of
from mcp_task_runtime.core.json import JSONObject

__all__ = ["Conversions"]

_Conversion: TypeAlias = Callable[[Any], JSONObject]

_BLOCKS: Final = frozenset(get_args(types.ContentBlock))
"""The SDK's classes of content."""


class Conversions:
    """The tools whose results can be made apart from their calls: those that were made with `Tasks.tool`.

    Only what works is converted here. Everything else is left to the SDK's tool layer, which says what is wrong.
    """

    def __init__(self, mcp: FastMCP[Any], server: Server[Any, Any], handler: Any) -> None:
        """Make it without tools.

        Args:
            mcp: The server.
            server: The low-level server inside it.
            handler: What it calls for a `tools/call`.
        """
        self._is_sdks_own = _is_sdks_own(mcp, server, handler)
        self._conversions: dict[str, _Conversion | None] = {}

    def add(self, tool: Tool) -> None:
        """Add a tool, which is made like that of the server. Of two with one name, the SDK knows which one runs."""
        is_clear = self._is_sdks_own and tool.name not in self._conversions
        self._conversions[tool.name] = _conversion(tool) if is_clear else None

    def convert(self, name: str, end: Callable[[], Any]) -> JSONObject | None:
        """Return the result of a tool, or `None` where the SDK's tool layer has to make it.

        Args:
            name: The tool.
            end: Returns what its work returned, or raises what it raised.
        """
        convert = self._conversions.get(name)
        if convert is None:
            return None
        try:
            return convert(end())
        except Exception:
            return None


def _is_sdks_own(mcp: FastMCP[Any], server: Server[Any, Any], handler: Any) -> bool:
    """Return whether nothing of the author's stands between a request and the tool layer."""
    if type(mcp).call_tool is not FastMCP.call_tool or type(mcp).list_tools is not FastMCP.list_tools:
        return False
    return function_of(server, handler) == mcp.call_tool


def _conversion(tool: Tool) -> _Conversion:
    """Return what makes the result of a tool; it raises for what is no result."""
    schema = None if tool.output_schema is None else CompiledSchema(tool.output_schema)

    def convert(value: Any) -> JSONObject:
        converted = tool.fn_metadata.convert_result(value)
        if isinstance(converted, types.CallToolResult):
            if type(converted) is not types.CallToolResult:
                raise TypeError("The SDK says what it sends of a class of the author's")
            return _dump(converted)
        content, structured = (converted, None) if schema is None else converted
        if schema is not None and not schema.takes(structured):
            raise ValueError("The SDK says what is wrong")
        blocks = list(content)
        if not _BLOCKS.issuperset(map(type, blocks)):
            return _dump(types.CallToolResult(content=blocks, structuredContent=structured, isError=False))
        # What a model of the result makes of these, without the model.
        result: JSONObject = {"content": [_dump(block) for block in blocks]}
        if structured is not None:
            result["structuredContent"] = structured
        result["isError"] = False
        return result

    return convert


def _dump(model: BaseModel) -> JSONObject:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)
