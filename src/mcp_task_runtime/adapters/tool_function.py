"""Tool functions: which parameter is the task's context, how to hide it, how to call them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args, get_type_hints

import anyio
import anyio.to_thread

from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.context import TaskContext

__all__ = ["ToolFunction"]

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class ToolFunction:
    """A tool's function, as its author wrote it.

    Raises:
        TypeError: More than one parameter is a `ServerTaskContext`; or one is something made of it, or is
            called `task` and has no annotation.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._hints = get_type_hints(_code(function), include_extras=True)
        contexts = [name for name, hint in self._hints.items() if hint is ServerTaskContext and name != "return"]
        if len(contexts) > 1:
            raise TypeError(f"More than one parameter is a ServerTaskContext: {', '.join(contexts)}")
        for name, parameter in inspect.signature(function).parameters.items():
            unclear = name == "task" if name not in self._hints else _mentions_context(self._hints[name])
            if unclear and name not in contexts and parameter.kind not in _COLLECTING:
                raise TypeError(f"Parameter {name!r} must be annotated as {name}: ServerTaskContext, and nothing else")
        self._parameter = contexts[0] if contexts else None

    async def call(self, arguments: Mapping[str, Any], context: ServerTaskContext) -> Any:
        """Call the function. A plain one runs in a thread, which is left to end by itself when this is cancelled."""
        if self._parameter is not None:
            arguments = {**arguments, self._parameter: context}
        if _is_async(self._function):
            return await self._function(**arguments)
        return await anyio.to_thread.run_sync(
            functools.partial(self._function, **arguments),
            abandon_on_cancel=True,
            # Not the common pool, which a stdio server reads its input with: work may hold its thread for hours.
            limiter=anyio.CapacityLimiter(1),
        )

    def disguise(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """Return `body` looking like the function without its context parameter, annotations resolved.

        An SDK that derives schemas from it sees what the client may pass, and nothing else.
        """
        wrapper = cast(Any, functools.wraps(self._function)(body))
        signature = inspect.signature(self._function)
        wrapper.__signature__ = signature.replace(
            parameters=[
                each.replace(annotation=self._hints.get(each.name, each.annotation))
                for each in signature.parameters.values()
                if each.name != self._parameter
            ],
            return_annotation=self._hints.get("return", signature.return_annotation),
        )
        wrapper.__annotations__ = {name: hint for name, hint in self._hints.items() if name != self._parameter}
        del wrapper.__wrapped__  # or type hints would be read from the function itself
        return cast(Callable[..., Any], wrapper)


def _mentions_context(hint: object) -> bool:
    return hint is ServerTaskContext or hint is TaskContext or any(map(_mentions_context, get_args(hint)))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(_code(function))


def _code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs when this is called: under a partial, or in a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__
