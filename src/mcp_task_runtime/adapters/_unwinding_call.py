"""A tool call whose request ends before its work begins, so that the work keeps nothing of the request.

`UnwindingCall` takes the work out of the call, and what passes the SDK's tool layer then reaches no client. The result
that the SDK would have made of the work is made at its end (`Convert`), perhaps by an `EndedCall`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._tool_calls import ToolCall
from mcp_task_runtime.adapters.notifications import NotifyingSession
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.types import TaskRecord, TaskRequest
from mcp_task_runtime.errors import INTERNAL_ERROR, ProtocolError, TaskRuntimeError

__all__ = ["Convert", "EndedCall", "NoteFailure", "UnwindingCall"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

NoteFailure: TypeAlias = Callable[[Exception], None]


class UnwindingCall(ToolCall):
    """A call that ends its request as soon as its work begins: the work goes on as a task, without the request.

    Attributes:
        has_begun: Whether the work has begun.
    """

    __slots__ = ("_context", "_has_inbox", "_work", "has_begun")

    def __init__(self, runtime: TaskRuntime, name: str) -> None:
        """Make a call."""
        super().__init__(runtime, name)
        self.has_begun: bool = False
        self._work: Callable[[ServerTaskContext], Awaitable[Any]] | None = None
        self._context: ServerTaskContext | None = None
        self._has_inbox = False

    @property
    def is_task(self) -> bool:
        """Whether the work goes on as a task."""
        return self._context is not None

    @property
    def may_become_task(self) -> bool:
        """Whether it becomes a task when it asks its client: not before the work has begun."""
        return False

    @property
    def has_inbox(self) -> bool:
        """Whether forms for a client that cannot be asked wait for a person."""
        return self._has_inbox

    async def context(self) -> ServerTaskContext:
        """Return the context of the call's task."""
        assert self._context is not None
        return self._context

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Keep the work, and leave the call: with an error that passes what the SDK has around the tool.

        Returns:
            Where the SDK passes a result as well, one that reaches no client.

        Raises:
            ProtocolError: Where it does not.
        """
        self._work = work
        self.has_begun = True
        result: T = self._leave()
        return result

    def _leave(self) -> Any:
        raise self._way_out()

    def _way_out(self) -> Exception:
        return ProtocolError(INTERNAL_ERROR, "The call has become a task")

    async def perform(
        self,
        execution: Execution[T],
        *,
        handler: TaskResultHandler,
        convert: Convert[T],
        connect: Callable[[TaskRecord], NotifyingSession] | None = None,
        context: ServerTaskContext | None = None,
    ) -> T:
        """Do the work of a task, and return what the SDK makes of it.

        Args:
            execution: The run.
            handler: Delivers questions.
            convert: Makes the tool's result of what the work returns or raises.
            connect: Returns the session for the work, where there is no context yet.
            context: The context of the task, where there is one already.
        """
        record = execution.record
        assert record is not None
        self._has_inbox = handler.inbox is not None
        if context is None:
            assert connect is not None
            context = ServerTaskContext.of_run(execution, record, self.runtime, connect(record), handler)
        self._context = context
        work, self._work = self._work, None
        assert work is not None
        self.error: TaskRuntimeError | None = None  # the way out of the request; it holds the frames of that
        end: Callable[[], Any]
        try:
            running = work(context)
            del work, context, connect  # only the work holds them then
            end = partial(_same, await running)
            await handler.flush(record.task_id)
        except Exception as error:
            end = partial(_raise, error)
        return await convert(record.request, end, execution.note_failure)


class EndedCall(ToolCall):
    """A call whose work has ended before: what it ended with passes what the SDK has around the tool."""

    def __init__(self, runtime: TaskRuntime, name: str, end: Callable[[], Any], note: NoteFailure) -> None:
        """Make a call.

        Args:
            runtime: Where it ran.
            name: The tool's name.
            end: Returns what the work returned, or raises what it raised.
            note: Called with the unexpected exception that the work raised.
        """
        super().__init__(runtime, name)
        self._end = end
        self._note = note

    async def run(self, work: Callable[[ServerTaskContext], Awaitable[T]], options: TaskOptions) -> T:
        """Return or raise what the work ended with."""
        result: T = self._end()
        return result

    def note_failure(self, error: Exception) -> bool:
        """Note what left the work; see `ToolCall.note_failure`."""
        self._note(error)
        return True


class Convert(Protocol[T_co]):
    """Makes the result of a tool of what its work ended with, as the SDK does."""

    async def __call__(self, request: TaskRequest, end: Callable[[], Any], note: NoteFailure, /) -> T_co:
        """Return the result.

        Args:
            request: The tool's name, and what it was called with.
            end: Returns what the work returned, or raises what it raised.
            note: Called with the unexpected exception that the result stands for.
        """
        ...


def _raise(error: Exception) -> Any:
    raise error


def _same(value: Any) -> Any:
    return value
