"""Work in a thread with an event loop of its own, which it may block."""

from __future__ import annotations

import contextvars
import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from mcp_task_runtime.adapters._tool_calls import calling
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.event_loop import call_from_any_thread, current_backend
from mcp_task_runtime.core.steps import AtHome, Retries

__all__ = ["HomeLoop", "in_own_loop", "run_in_own_loop"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_CallSoon: TypeAlias = Callable[[Callable[[], object]], None]


async def in_own_loop(work: Callable[[ServerTaskContext], Awaitable[T]], context: ServerTaskContext) -> T:
    """Run the work of a task by `run_in_own_loop`; the context's methods work there, too."""
    return await run_in_own_loop(lambda home: work(_BridgedContext(context, home)))


async def run_in_own_loop(work: Callable[[HomeLoop], Awaitable[T]]) -> T:
    """Run a coroutine function in a thread with an event loop of its own, and wait for it.

    What belongs to this event loop is used there through the `HomeLoop` that the function gets. The context variables
    are those of the caller; `Tasks.run` works only in the server's event loop. Cancelled, it cancels the function at
    its next `await`, and does not wait for that: Python cannot stop a thread.
    """
    end: _End[T] = _End()
    async with anyio.create_task_group() as group:
        thread = _Thread(work, HomeLoop(group, call_from_any_thread()))
        try:
            end.value = await anyio.to_thread.run_sync(
                functools.partial(anyio.run, thread.main, backend=current_backend()),
                abandon_on_cancel=True,
                limiter=anyio.CapacityLimiter(1),  # not the common pool: it may be held for hours
            )
        except anyio.get_cancelled_exc_class():
            thread.cancel()
            raise
        except BaseException as error:  # the group would wrap it
            end.error = error
        group.cancel_scope.cancel()
    return end.get()


class _End(Generic[T]):
    """How something ended."""

    value: T
    error: BaseException | None = None

    def get(self) -> T:
        if self.error is not None:
            raise self.error
        return self.value


class HomeLoop:
    """The event loop that the work was started from, as another event loop sees it."""

    def __init__(self, group: anyio.abc.TaskGroup, call_soon: _CallSoon) -> None:
        self._group = group
        self.call_soon = call_soon

    def bridge(self, value: Any) -> Any:
        """Return an object that belongs there, for use here: its coroutine functions run there."""
        return _Bridged(value, self)

    def bridge_function(self, function: Any) -> Any:
        """Return a coroutine function that runs there, and anything else as it is."""
        if not inspect.iscoroutinefunction(inspect.unwrap(function)):
            return function

        async def run_there(*args: Any, **kwargs: Any) -> Any:
            return await self.run(functools.partial(function, *args, **kwargs))

        return run_there

    async def run(self, method: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function there, and wait for it here, in another event loop."""
        end: _End[T] = _End()
        end.error = RuntimeError("The task's work is over")  # unless it comes to an end
        call_soon_here = call_from_any_thread()
        ended = anyio.Event()
        scope = anyio.CancelScope()

        async def there() -> None:
            try:
                with scope:
                    end.value = await method()
                    end.error = None
            except Exception as error:
                end.error = error
            finally:
                call_soon_here(ended.set)

        context = contextvars.copy_context()  # trio would take that of its own callbacks

        def start() -> None:
            try:
                _ = context.run(self._group.start_soon, there)
            except RuntimeError:  # the group is closed: the work was abandoned
                call_soon_here(ended.set)

        self.call_soon(start)
        try:
            await ended.wait()
        except BaseException:
            self.call_soon(scope.cancel)
            raise
        return end.get()


class _Thread:
    """The work while it runs, and the way to cancel it from another thread."""

    def __init__(self, work: Callable[[HomeLoop], Awaitable[Any]], home: HomeLoop) -> None:
        self._work = work
        self._home = home
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._cancel: Callable[[], None] | None = None

    async def main(self) -> Any:
        call_soon = call_from_any_thread()
        with anyio.CancelScope() as scope:
            with self._lock:
                self._cancel = functools.partial(call_soon, scope.cancel)
                if self._is_cancelled:
                    scope.cancel()
            with calling(None):  # a call belongs to the event loop of its runtime
                return await self._work(self._home)
        return None  # cancelled: no caller waits for it

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._cancel is not None:
                self._cancel()


class _Bridged:
    """An object whose coroutine functions run in the event loop that it belongs to."""

    __slots__ = ("_home", "_inner")

    def __init__(self, inner: Any, home: HomeLoop) -> None:
        self._inner = inner
        self._home = home

    def __getattr__(self, name: str) -> Any:
        return self._home.bridge_function(getattr(self._inner, name))


class _BridgedContext(ServerTaskContext):
    """A context whose methods run in the event loop that it belongs to; the function of a step runs in this one."""

    def __init__(self, inner: ServerTaskContext, home: HomeLoop) -> None:
        self._inner = inner
        self._home = home

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_") or name == "step":
            return object.__getattribute__(self, name)
        value = getattr(self._inner, name)
        if inspect.ismethod(value) and not inspect.iscoroutinefunction(value):
            return functools.partial(self._call, value)
        return self._home.bridge_function(value)

    async def _step(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        retries: Retries,
        returns: Any,
        at_home: AtHome | None,
    ) -> Any:
        return await self._inner._step(name, function, args, retries, returns, self._home.run)

    def _call(self, method: Callable[..., object], *args: Any) -> None:
        def call() -> None:
            try:
                method(*args)
            except Exception:  # it must not reach the event loop
                logger.exception("A method of a task's context raised an exception")

        self._home.call_soon(call)
