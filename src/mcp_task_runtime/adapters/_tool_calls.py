"""The tool call that runs in this context: what `Tasks.run` does in it.

A call is *plain* when its client takes no task, and its work runs within the request. Otherwise it is a run of the
runtime that becomes a task: `_task_call`, and `_unwinding_call` for those whose request ends before their work begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import ClassVar, Protocol, TypeVar

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._private_task import PrivateTaskContext
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.reruns import Rerun
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.errors import TaskRuntimeError

__all__ = [
    "PlainCall",
    "PromotedCall",
    "ToolCall",
    "calling",
    "current_call",
    "run_with_reruns",
    "run_within_request",
]

T = TypeVar("T")


class ToolCall(ABC):
    """A call of a tool.

    Attributes:
        runtime: Where its task lives, if it becomes one.
        name: The tool's name.
        error: The protocol error that left the work, for SDK lines whose tool layer hides it.
        raises_as_is: Whether what `run` raises is an error of the SDK, and the same to every client.
    """

    __slots__ = ("error", "name", "runtime")

    raises_as_is: ClassVar[bool] = False

    def __init__(self, runtime: TaskRuntime, name: str) -> None:
        self.runtime: TaskRuntime = runtime
        self.name: str = name
        self.error: TaskRuntimeError | None = None

    @abstractmethod
    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Run work for this call, as a task if its client takes one; return what the work returns."""

    def note_failure(self, error: Exception) -> bool:
        """Note the unexpected exception that left the work; return whether it is logged with the end of a task."""
        return False


class PlainCall(ToolCall):
    """A call whose client takes no task: what its work needs is made when it is needed, for most tools need nothing."""

    def __init__(
        self,
        runtime: TaskRuntime,
        name: str,
        *,
        connect: Callable[[], TaskSession],
        undeliverable: Callable[[], str | None],
        refusal: Callable[[], TaskRuntimeError],
    ) -> None:
        """Make a call.

        Args:
            runtime: Where it runs.
            name: The tool's name.
            connect: Returns the connection, as far as the request of the call reaches.
            undeliverable: Returns why no question can reach the client, if that is so.
            refusal: Makes the error for work that needs a task.
        """
        super().__init__(runtime, name)
        self._connect = connect
        self._undeliverable = undeliverable
        self._refusal = refusal

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Run work within the request.

        Raises:
            TaskRuntimeError: The work needs a task.
        """
        if options.required:
            raise self._refusal()
        return await run_within_request(work, self._connect, undeliverable=self._undeliverable())


class PromotedCall(Protocol):
    """What the SDK's session inside a call needs to know of it."""

    @property
    def is_task(self) -> bool:
        """Whether the client knows this call as a task."""
        ...

    @property
    def may_become_task(self) -> bool:
        """Whether it becomes a task when it asks its client."""
        ...

    @property
    def has_inbox(self) -> bool:
        """Whether forms for a client that cannot be asked wait for a person."""
        ...

    async def context(self) -> ServerTaskContext:
        """Return the context of the call's task."""
        ...


_current_call: ContextVar[ToolCall | None] = ContextVar("mcp_task_runtime_tool_call", default=None)


def current_call(runtime: TaskRuntime) -> ToolCall | None:
    """Return the call that runs in this context, if it belongs to this runtime."""
    call = _current_call.get()
    return call if call is not None and call.runtime is runtime else None


class calling:  # read as a verb: with calling(call)
    """Context manager that runs a block as part of a call; `None` for a request that is none."""

    __slots__ = ("_call", "_token")

    def __init__(self, call: ToolCall | None) -> None:
        self._call = call

    def __enter__(self) -> None:
        self._token = _current_call.set(self._call)

    def __exit__(self, *_: object) -> None:
        _current_call.reset(self._token)


async def run_with_reruns(
    work: Callable[[ServerTaskContext], Awaitable[T]], rerun: Rerun, context: ServerTaskContext
) -> T:
    """Run work and have it run again where it raises what the policy names; what it raises here goes on."""
    try:
        return await work(context)
    except Exception as error:
        delay = rerun.delay(error, context.attempt)
        if delay is not None:
            context.run_again(delay)
        raise


async def run_within_request(
    work: Callable[[ServerTaskContext], Awaitable[T]],
    connect: Callable[[], TaskSession],
    *,
    undeliverable: str | None,
) -> T:
    """Run work for a client that takes no task: its task is a private one that ends with the call.

    Args:
        work: What to run; it gets the private task's context.
        connect: Returns the connection, as far as the request of the call reaches.
        undeliverable: As for `TaskResultHandler`.
    """
    context = PrivateTaskContext(connect, undeliverable)
    try:
        if undeliverable is not None:
            return await work(context)
        async with context.delivering():
            return await work(context)
    finally:
        await context.aclose()
