"""Work in a thread with an event loop of its own: it may block that loop for as long as it likes."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Generic, TypeAlias, TypeVar

import anyio
import anyio.abc
import anyio.to_thread

from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.steps import Retries
from mcp_task_runtime.stores._event_loop import call_from_any_thread, current_backend

__all__ = ["in_own_loop"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_BACKOFF: Final = Backoff()

_CallSoon: TypeAlias = Callable[[Callable[[], object]], None]


async def in_own_loop(work: Callable[[ServerTaskContext], Awaitable[T]], context: ServerTaskContext) -> T:
    """Run work in a thread with an event loop of its own, and wait for it.

    The context's methods work there, too; they run in this event loop. Cancelled, it cancels the work at its next
    `await`, and does not wait for that: Python cannot stop a thread.
    """
    end: _End[T] = _End()
    async with anyio.create_task_group() as group:
        thread = _Thread(work, _Home(group, call_from_any_thread()), context)
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


class _Home:
    """The event loop that the context belongs to."""

    def __init__(self, group: anyio.abc.TaskGroup, call_soon: _CallSoon) -> None:
        self._group = group
        self.call_soon = call_soon

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

        def start() -> None:
            try:
                self._group.start_soon(there)
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

    def __init__(
        self, work: Callable[[ServerTaskContext], Awaitable[Any]], home: _Home, context: ServerTaskContext
    ) -> None:
        self._work = work
        self._context = _BridgedContext(context, home)
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
            return await self._work(self._context)
        return None  # cancelled: no caller waits for it

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._cancel is not None:
                self._cancel()


class _BridgedContext(ServerTaskContext):
    """A context whose methods run in the event loop that it belongs to; the function of a step runs in this one."""

    def __init__(self, inner: ServerTaskContext, home: _Home) -> None:
        self._inner = inner
        self._home = home

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        value = getattr(self._inner, name)
        if name == "step":
            return self._step_here
        if inspect.iscoroutinefunction(value):
            return functools.partial(self._run, value)
        if inspect.ismethod(value):
            return functools.partial(self._call, value)
        return value

    async def _run(self, method: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        return await self._home.run(functools.partial(method, *args, **kwargs))

    async def _step_here(
        self,
        name: str,
        function: Callable[..., Any],
        *args: Any,
        attempts: int = 1,
        retry_on: type[Exception] | Iterable[type[Exception]] = Exception,
        backoff: Backoff | float = _BACKOFF,
        returns: Any = None,
    ) -> Any:
        retries = Retries.of(attempts, retry_on, backoff)
        return await self._inner._step(name, function, args, retries, returns, self._home.run)

    def _call(self, method: Callable[..., object], *args: Any) -> None:
        def call() -> None:
            try:
                method(*args)
            except Exception:  # it must not reach the event loop
                logger.exception("A method of a task's context raised an exception")

        self._home.call_soon(call)
