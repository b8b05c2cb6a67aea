"""What `Tasks` is on every line of the SDK: a runtime that is held open, and tasks that are ended by their id."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from typing_extensions import Self

from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.core.json import JSONObject, to_json_value
from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.runtime import TaskRuntime
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["BaseTasks", "TaskOptions", "check_seconds", "to_call_result"]

_LONGEST_SECONDS = 100 * 365 * 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """How the calls of a tool become tasks; the fields are arguments of `Tasks.tool`.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    required: bool = False
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None
    promote_after: float | None = None
    model_immediate_response: str | None = None
    rerunnable: bool = False

    def __post_init__(self) -> None:
        if self.ttl_ms is not None and self.ttl_ms < 1:
            raise ValueError("ttl_ms must be at least 1")
        if self.poll_interval_ms is not None and self.poll_interval_ms < 1:
            raise ValueError("poll_interval_ms must be at least 1")
        check_seconds("promote_after", self.promote_after)


class BaseTasks:
    """The part of `Tasks` that knows no SDK.

    Attributes:
        runtime: What runs the tasks, and serves them to the server itself.
    """

    def __init__(self, store: TaskStore | None, queue: TaskMessageQueue | None, settings: TaskSettings | None) -> None:
        self.runtime: TaskRuntime = TaskRuntime(
            InMemoryTaskStore() if store is None else store, queue, settings=settings
        )
        self._host = RuntimeHost(self.runtime)

    async def __aenter__(self) -> Self:
        """Hold the runtime open, whatever lifespans and connections come and go."""
        await self._host.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go of the runtime; the last who does waits until it has drained and closed."""
        await self._host.__aexit__(exc_type, exc, traceback)

    async def complete(self, task_id: str, result: object) -> None:
        """End a task as `completed`, from anywhere in the server.

        Args:
            task_id: The task, usually one that was detached.
            result: A `CallToolResult` or its JSON object; or a text, for a tool that returns `str`.

        Raises:
            TaskNotFoundError: No such task.
            InvalidTransitionError: The task has already ended; nothing changed.
            ValueError: The result is none of these.
        """
        if isinstance(result, str):
            result = {"content": [{"type": "text", "text": result}], "structuredContent": {"result": result}}
        await self.runtime.finish(task_id, Outcome.completed(to_call_result(result)))

    async def fail(self, task_id: str, error: str) -> None:
        """End a task as `failed`, from anywhere in the server.

        Args:
            task_id: The task, usually one that was detached.
            error: What went wrong. The client reads it.

        Raises:
            TaskNotFoundError: No such task.
            InvalidTransitionError: The task has already ended; nothing changed.
        """
        await self.runtime.finish(task_id, Outcome.failed(error))


def to_call_result(result: object) -> JSONObject:
    """Return a tool's result in its wire form.

    Raises:
        ValueError: It has none.
    """
    value = to_json_value(result)
    if not isinstance(value, dict):
        raise ValueError("result must be a CallToolResult or its JSON object")
    return value


def check_seconds(name: str, seconds: float | None) -> None:
    """Check a number of seconds.

    Raises:
        ValueError: It is out of range; the message has the name.
    """
    if seconds is not None and not 0 <= seconds <= _LONGEST_SECONDS:  # false for NaN, too
        raise ValueError(f"{name} must not be negative, nor above a hundred years")
