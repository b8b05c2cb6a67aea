"""Functions of authors: what a call of one runs, and how to call one in a thread; and tuples of callbacks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

__all__ = ["call_in_thread", "code_of", "do_nothing", "is_async", "without"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs when a function is called: under a partial, or in a callable object."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call of a function gives a coroutine."""
    return inspect.iscoroutinefunction(code_of(function))


async def call_in_thread(function: Callable[[], Any]) -> Any:
    """Call a plain function in a thread, which goes on to its end when this is cancelled."""
    return await anyio.to_thread.run_sync(
        function,
        abandon_on_cancel=True,
        # Not the common pool, which a stdio server reads its input with: work may hold its thread for hours.
        limiter=anyio.CapacityLimiter(1),
    )


def without(functions: tuple[FunctionT, ...], function: FunctionT) -> tuple[FunctionT, ...]:
    """Return callbacks without one of them: the first that is equal, if there is one."""
    if function not in functions:
        return functions
    index = functions.index(function)
    return functions[:index] + functions[index + 1 :]


def do_nothing() -> None:
    """Do nothing: what stops a watch that is over already."""
