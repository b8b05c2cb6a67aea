"""Tool functions: which parameter is the task's context, how to hide it, how to call them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, cast, get_args, get_origin, get_type_hints

from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.context import TaskContext
from mcp_task_runtime.core.functions import call_in_thread, code_of, is_async

__all__ = ["ToolFunction"]

_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class ToolFunction:
    """A tool's function, as its author wrote it.

    `ServerTaskContext` may be imported under `TYPE_CHECKING`; other names in annotations may not.

    Attributes:
        name: The tool's name.

    Raises:
        TypeError: More than one parameter is a `ServerTaskContext`; or one is something made of it, or is
            called `task` and has no annotation; or an annotation cannot be resolved; or it is a generator; or it
            has no name and none is given.
    """

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        """Look at a function.

        Args:
            function: The function, or a partial, or any callable object.
            name: The tool's name; the function's own when `None`.
        """
        self._function = function
        self._is_async = is_async(function)
        code = code_of(function)
        own_name = getattr(function, "__name__", None) or (
            getattr(code, "__name__", None) if isinstance(function, functools.partial) else None
        )
        if name is None and own_name is None:
            raise TypeError(f"{type(function).__name__} objects have no name: write name=...")
        self.name: str = name or str(own_name)
        if inspect.isasyncgenfunction(code) or inspect.isgeneratorfunction(code):
            raise TypeError(
                f"{self.name} is a generator, and a tool has one result: return a list, and say how far the work is "
                "with task.update_status() or task.report_progress()"
            )
        self._hints = _hints(code, self.name)
        contexts = [name for name, hint in self._hints.items() if hint is ServerTaskContext and name != "return"]
        if len(contexts) > 1:
            raise TypeError(f"More than one parameter is a ServerTaskContext: {', '.join(contexts)}")
        for name, parameter in inspect.signature(function).parameters.items():
            unclear = name == "task" if name not in self._hints else _mentions_context(self._hints[name])
            if unclear and name not in contexts and parameter.kind not in _COLLECTING:
                raise TypeError(f"Parameter {name!r} must be annotated as {name}: ServerTaskContext, and nothing else")
        self._parameter = contexts[0] if contexts else None

    def takes(self, kind: type) -> bool:
        """Return whether a parameter is annotated with this class, something made of it, or an object of it."""
        return any(_mentions(hint, kind) for name, hint in self._hints.items() if name != "return")

    def call(self, arguments: Mapping[str, Any], context: ServerTaskContext) -> Coroutine[Any, Any, Any]:
        """Return a call of the function, to be awaited.

        A plain function runs in a thread, which is left to end on its own when the call is cancelled.
        """
        if self._parameter is not None:
            arguments = {**arguments, self._parameter: context}
        if self._is_async:
            call: Coroutine[Any, Any, Any] = self._function(**arguments)
            return call
        return call_in_thread(functools.partial(self._function, **arguments))

    def disguise(self, body: Callable[..., Any], *, rename: bool = False) -> Callable[..., Any]:
        """Return `body` looking like the function without its context parameter, annotations resolved.

        An SDK that derives schemas from it sees what the client may pass, and nothing else.

        Args:
            body: What is called.
            rename: Whether it has the name that was given, and not the function's own.
        """
        wrapper = cast(Any, functools.wraps(self._function)(body))
        if rename or not hasattr(self._function, "__name__"):
            wrapper.__name__ = self.name
        if isinstance(self._function, functools.partial):  # whose own documentation is about partials
            wrapper.__doc__ = code_of(self._function).__doc__
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


def _hints(code: Callable[..., Any], name: str) -> dict[str, Any]:
    """Return the resolved annotations of a function."""
    try:
        return get_type_hints(code, include_extras=True)
    except NameError:
        pass
    try:  # where it is imported only under TYPE_CHECKING
        return get_type_hints(code, localns={"ServerTaskContext": ServerTaskContext}, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"An annotation of {name} cannot be resolved: {error}. Import it outside `if TYPE_CHECKING:`, at the top "
            "of the module"
        ) from error


def _mentions_context(hint: object) -> bool:
    return hint is ServerTaskContext or hint is TaskContext or any(map(_mentions_context, get_args(hint)))


def _mentions(hint: object, kind: type) -> bool:
    if isinstance(hint, type) and issubclass(hint, kind):
        return True
    if get_origin(hint) is kind or isinstance(hint, kind):
        return True
    return any(_mentions(each, kind) for each in get_args(hint))
