"""What the SDK's handler for `tools/call` checks, with each schema of a tool compiled once.

The SDK checks the schema itself in each call again: this is most of the time of a call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, Final, TypeAlias

from jsonschema.validators import validator_for
from mcp import types
from mcp.server.lowlevel import Server

from mcp_task_runtime.core.json import JSONObject

__all__ = ["CompiledSchema", "ToolHandler", "function_of"]

_Handler: TypeAlias = Callable[[Any], Awaitable[types.ServerResult]]
_Function: TypeAlias = Callable[[str, JSONObject], Awaitable[Any]]

_PLAIN_TYPES: Final[dict[str, type]] = {"string": str, "integer": int, "boolean": bool}
_PLAIN_FIELD: Final = frozenset({"title", "type"})
_PLAIN_KEYS: Final = frozenset({"properties", "required", "title", "type"})


class CompiledSchema:
    """A JSON Schema that was checked, and checks values as `jsonschema.validate` does.

    Attributes:
        schema: The schema.
    """

    def __init__(self, schema: JSONObject) -> None:
        """Compile a schema.

        Raises:
            SchemaError: It is none.
        """
        kind = validator_for(schema)
        kind.check_schema(schema)
        self.schema = schema
        self._validator = kind(schema)
        self._plain_fields = _plain_fields(schema)

    def takes(self, value: Any) -> bool:
        """Return whether a value is valid; `False` also where that cannot be decided, for the SDK to say why."""
        if _is_plain(self._plain_fields, value):
            return True
        try:
            return self._validator.is_valid(value)
        except Exception:
            return False


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
        if isinstance(field, dict) and field.keys() == _PLAIN_FIELD and str(field["type"]) in _PLAIN_TYPES
    }
    return classes if classes.keys() == fields.keys() else {}


def _is_plain(fields: dict[str, type], value: object) -> bool:
    """Return whether a value has these fields and no more; it need not be validated then."""
    if not fields or type(value) is not dict or value.keys() != fields.keys():
        return False
    return all(type(value[name]) is kind for name, kind in fields.items())


class ToolHandler:
    """A server's handler for `tools/call`, which leaves out checks whose end is known.

    What is valid passes without the SDK's check, and everything else goes through it, so that the SDK says what is
    wrong. A handler that is not the SDK's own is called as it is.
    """

    def __init__(self, server: Server[Any, Any], handler: _Handler) -> None:
        """Take over the handler of a server, whose entry in `request_handlers` it leaves to be replaced.

        Args:
            server: The server.
            handler: What it calls for a `tools/call`.
        """
        self._handler = handler
        self._unchecking: _Handler | None = None
        self._checks_input = True
        self._tools: dict[str, _ToolSchemas] = {}
        function = function_of(server, handler)
        if function is not None:
            self._checks_input = inspect.getclosurevars(handler).nonlocals.get("validate_input") is not False
            server.call_tool(validate_input=False)(functools.partial(self._checked, function))
            self._unchecking = server.request_handlers[types.CallToolRequest]

    def note_listed(self, tools: list[types.Tool], *, is_all: bool) -> None:
        """Note what `tools/list` has just shown, which the SDK notes too.

        Args:
            tools: The tools.
            is_all: Whether there are no others.
        """
        if self._unchecking is None:
            return
        known = self._tools
        if is_all:
            self._tools = {}
        for tool in tools:
            own = known.get(tool.name)
            if own is None or not own.are_of(tool):
                own = _ToolSchemas(tool)
            self._tools[tool.name] = own

    def __call__(self, request: types.CallToolRequest) -> Awaitable[types.ServerResult]:
        """Return a call of the handler for a request, to be awaited."""
        unchecking = self._unchecking
        if unchecking is None:
            return self._handler(request)
        params = request.params
        if self._checks_input:
            schemas = self._tools.get(params.name)
            if schemas is None or not schemas.take(params.arguments or {}):
                return self._handler(request)
        return unchecking(_Request(params.name, params.arguments))

    async def _checked(self, function: _Function, name: str, arguments: JSONObject) -> Any:
        """Return what a tool returns, in a form that the SDK takes as it is if it is valid."""
        returned = await function(name, arguments)
        if not isinstance(returned, tuple) or len(returned) != 2:
            return returned
        schemas = self._tools.get(name)
        content, structured = returned
        if schemas is None or not schemas.give(structured):
            return returned
        return types.CallToolResult(content=list(content), structuredContent=structured, isError=False)


class _Request:
    """What the SDK's own handler reads of a request, which it holds until the tool returns, perhaps for days."""

    __slots__ = ("arguments", "name")

    def __init__(self, name: str, arguments: JSONObject | None) -> None:
        self.name = name
        self.arguments = arguments

    @property
    def params(self) -> _Request:
        return self


def function_of(server: Server[Any, Any], handler: _Handler) -> _Function | None:
    """Return the author's function that a handler of the SDK's own calls, or `None` for another handler."""
    if not (_is_sdks_own(handler) and _is_sdks_own(type(server).call_tool)):
        return None
    variables = inspect.getclosurevars(handler).nonlocals
    function: _Function | None = variables.get("func")
    return function if variables.get("self") is server else None


def _is_sdks_own(function: object) -> bool:
    """Return whether a function is the SDK's, and none that an author or a tracer has put in its place."""
    return type(function) is FunctionType and function.__code__.co_filename == inspect.getfile(Server)


class _ToolSchemas:
    """The schemas of a tool, compiled when they are needed first."""

    __slots__ = ("_input", "_is_compiled", "_output", "_schemas")

    def __init__(self, tool: types.Tool) -> None:
        self._schemas = (tool.inputSchema, tool.outputSchema)
        self._input: CompiledSchema | None = None
        self._output: CompiledSchema | None = None
        self._is_compiled = False

    def are_of(self, tool: types.Tool) -> bool:
        return self._schemas == (tool.inputSchema, tool.outputSchema)

    def take(self, arguments: JSONObject) -> bool:
        """Return whether arguments are valid."""
        self._compile()
        return self._input is not None and self._input.takes(arguments)

    def give(self, structured: object) -> bool:
        """Return whether the structured part of a result is valid; not where there need be none."""
        self._compile()
        return self._output is not None and self._output.takes(structured)

    def _compile(self) -> None:
        if self._is_compiled:
            return
        self._is_compiled = True
        self._input, self._output = map(_compiled, self._schemas)


def _compiled(schema: JSONObject | None) -> CompiledSchema | None:
    try:
        return None if schema is None else CompiledSchema(schema)
    except Exception:  # the SDK says why, in each call
        return None
