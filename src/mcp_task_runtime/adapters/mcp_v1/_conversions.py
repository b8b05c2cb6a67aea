"""What `FastMCP` makes of what a tool's work returns, apart from the call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeAlias, get_args

from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from mcp import types
from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.tools import Tool
from mcp.server.lowlevel import Server
from pydantic import BaseModel

from mcp_task_runtime.core.json import JSONObject

__all__ = ["Conversions"]

_Conversion: TypeAlias = Callable[[Any], JSONObject]

_PLAIN_TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "boolean": bool}
_PLAIN_FIELD: Final = frozenset({"title", "type"})
_PLAIN_KEYS: Final = frozenset({"properties", "required", "title", "type"})

_BLOCKS: Final = frozenset(get_args(types.ContentBlock))
"""The SDK's classes of content."""


class Conversions:
    """The tools whose results can be made apart from their calls: those that were made with `Tasks.tool`.

    Only what works is converted here. Everything else is left to the SDK's tool layer, which says what is wrong.
    """

    def __init__(self, mcp: FastMCP[Any], handler: object) -> None:
        """Know no tools.

        Args:
            mcp: The server.
            handler: What it calls for a `tools/call`.
        """
        self._is_sdks_own = _is_sdks_own(mcp, handler)
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


def _is_sdks_own(mcp: FastMCP[Any], handler: object) -> bool:
    """Return whether nothing of the author's stands between a request and the tool layer."""
    if type(mcp).call_tool is not FastMCP.call_tool or type(mcp).list_tools is not FastMCP.list_tools:
        return False
    if not inspect.isfunction(handler) or handler.__module__ != Server.__module__:
        return False
    return inspect.getclosurevars(handler).nonlocals.get("func") == mcp.call_tool


def _conversion(tool: Tool) -> _Conversion:
    """Return what makes the result of a tool; it raises for what is no result.

    The SDK checks the schema of the result in each call again; this is most of the time of a call.
    """
    validator: Validator | None = None
    schema = tool.output_schema
    if schema is not None:
        kind = validator_for(schema)
        kind.check_schema(schema)
        validator = kind(schema)
    is_plain = functools.partial(_is_plain, {} if schema is None else _plain_fields(schema))

    def convert(value: Any) -> JSONObject:
        converted = tool.fn_metadata.convert_result(value)
        if isinstance(converted, types.CallToolResult):
            if type(converted) is not types.CallToolResult:
                raise TypeError("The SDK says what it sends of a class of the author's")
            return _dump(converted)
        content, structured = (converted, None) if validator is None else converted
        if validator is not None and not is_plain(structured):
            validator.validate(structured)
        blocks = list(content)
        if not all(type(block) in _BLOCKS for block in blocks):
            return _dump(types.CallToolResult(content=blocks, structuredContent=structured, isError=False))
        # What a model of the result makes of these, without the model.
        result: JSONObject = {"content": [_dump(block) for block in blocks]}
        if structured is not None:
            result["structuredContent"] = structured
        result["isError"] = False
        return result

    return convert


def _plain_fields(schema: JSONObject) -> dict[str, type]:
    """Return the fields of an object and the classes of their values, where a schema says just that of all of them.

    That is what the SDK makes of a tool that returns `str`, `int` or `bool`. For any other schema, return nothing.
    """
    fields: JSONObject = schema.get("properties", {})
    if schema.keys() != _PLAIN_KEYS or schema["type"] != "object" or set(schema["required"]) != fields.keys():
        return {}
    classes = {
        name: _PLAIN_TYPES[field["type"]]
        for name, field in fields.items()
        if isinstance(field, dict) and field.keys() == _PLAIN_FIELD and field["type"] in _PLAIN_TYPES
    }
    return classes if classes.keys() == fields.keys() else {}


def _is_plain(fields: dict[str, type], value: object) -> bool:
    """Return whether a value has these fields and no more; it need not be validated then."""
    if not fields or type(value) is not dict or value.keys() != fields.keys():
        return False
    return all(type(value[name]) is kind for name, kind in fields.items())


def _dump(model: BaseModel) -> JSONObject:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)
