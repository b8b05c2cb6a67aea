"""Every error of this library, under one base, with its cause and what to do about it.

`jsonrpc_code` is a hint for code that renders the error on a wire; the wire decides which code it sends. A message here
is written for the client too: it does not say whether another owner has a task, and has no text of an exception that
the work raised.

- `TaskNotFoundError`: the task has expired, was deleted, never was, or has another owner. Read outcomes within
  `retention_ms`; give work a longer `ttl_ms`; for owners that lose their tasks see `principal=`.
- `TaskExistsError`: `create_task` got an identifier that is taken. Leave it out: the store makes one.
- `InvalidTransitionError`: the task has ended before, by a cancel, its deadline or another process. Stop the work.
- `RevisionConflictError`: the task changed since it was read. Read it again, decide again.
- `LeaseLostError`: this run was silent for longer than its lease, and another has the work. Stop; nothing was written.
  Where that is frequent, something blocks the event loop (`blocking=True`), or `lease_ms` is too short.
- `InvalidCursorError`: the cursor of a listing is from another store or owner. List from the beginning.
- `LimitExceededError`: the limit of `TaskSettings` that it names was reached. Wait for `retryAfterMs` where it is
  given, let tasks end, or raise the limit.
- `CapabilityError`: the client cannot be asked what the work asks. Catch it and go on without, or see
  `Tasks(inbox=...)`.
- `ProtocolError`: raised by your work for its client, or the client's own answer to a question. Catch it where the
  client may refuse.
- `QuestionTimeoutError`: no answer came within `timeout=`. The question is withdrawn; ask again or go on without.
- `StepResultError`: what a step takes or returns is not JSON. Return plain values or a pydantic model.
- `StepChangedError`: a rerun takes other steps than the run before. Make steps depend only on arguments and the
  results of steps; after a change of code, start the task again.
- `StoreUnavailableError`: the backend did not answer within the store's `timeout`. Retry; `mcp-tasks doctor` shows
  more.
- `StoreClosedError`: the store is used outside of its `async with`, or after it. Keep it open as long as the server.
- `SchemaVersionError`: a later version of this library wrote the data. Update this process, too.
- `SealedError`: a sealed value has no key here, was changed, or was moved. Give all processes the same keys (`seal=`,
  MCP_TASKS_SEAL_KEYS); where they have them, find out who else writes to the store.
- `StoreError`: anything else of a store: values it cannot keep, damaged data, a refused statement; see `__cause__`.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CapabilityError",
    "InvalidCursorError",
    "InvalidTransitionError",
    "LeaseLostError",
    "LimitExceededError",
    "ProtocolError",
    "QuestionTimeoutError",
    "RevisionConflictError",
    "SchemaVersionError",
    "SealedError",
    "StepChangedError",
    "StepResultError",
    "StoreClosedError",
    "StoreError",
    "StoreUnavailableError",
    "TaskExistsError",
    "TaskNotFoundError",
    "TaskRuntimeError",
]

INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603


class TaskRuntimeError(Exception):
    """Base of all errors of this library.

    Attributes:
        data: What goes to the client with the message, as JSON; `None` for nothing.
    """

    jsonrpc_code: ClassVar[int] = INTERNAL_ERROR
    data: Any = None


class TaskNotFoundError(TaskRuntimeError, LookupError, ValueError):
    """The task is unknown, has expired, was deleted, or belongs to another owner.

    One error with one message for all four, so that a client does not learn of a foreign task.
    """

    jsonrpc_code = INVALID_PARAMS

    def __init__(self, task_id: str) -> None:
        super().__init__("Task not found")
        self.task_id = task_id


class TaskExistsError(TaskRuntimeError, ValueError):
    """A task with this identifier exists already."""

    jsonrpc_code = INVALID_PARAMS

    def __init__(self, task_id: str) -> None:
        super().__init__("A task with this identifier exists already")
        self.task_id = task_id


class InvalidTransitionError(TaskRuntimeError, ValueError):
    """The status table does not allow this step; nothing was changed."""

    jsonrpc_code = INVALID_PARAMS

    def __init__(self, task_id: str, *, current: str, requested: str) -> None:
        step = "change any more" if requested == current else f"become {requested!r}"
        super().__init__(f"A task that is {current!r} cannot {step}")
        self.task_id = task_id
        self.current = current
        self.requested = requested


class RevisionConflictError(TaskRuntimeError):
    """The task changed since the revision that the caller named; nothing was written."""

    def __init__(self, task_id: str, *, expected: int, current: int) -> None:
        super().__init__(f"Expected revision {expected}, found {current}")
        self.task_id = task_id
        self.expected = expected
        self.current = current


class LeaseLostError(TaskRuntimeError):
    """The run that writes no longer holds the task's lease: another run has it. Nothing was changed (law L12)."""

    def __init__(self, task_id: str) -> None:
        super().__init__("This run of the work no longer holds the lease of its task")
        self.task_id = task_id


class InvalidCursorError(TaskRuntimeError, ValueError):
    """The cursor was not made by this store for this owner."""

    jsonrpc_code = INVALID_PARAMS

    def __init__(self) -> None:
        super().__init__("Invalid cursor")


class LimitExceededError(TaskRuntimeError):
    """A configured limit was reached; nothing was changed or lost.

    Where waiting helps, `data` says for how long: `{"retryAfterMs": milliseconds}`.
    """

    jsonrpc_code = INVALID_REQUEST

    def __init__(self, limit: str, maximum: int, *, retry_after_ms: int | None = None) -> None:
        super().__init__(f"Limit reached: {limit} (at most {maximum})")
        self.limit = limit
        self.maximum = maximum
        self.retry_after_ms = retry_after_ms
        self.data: Any = None if retry_after_ms is None else {"retryAfterMs": retry_after_ms}


class CapabilityError(TaskRuntimeError):
    """The client lacks an ability that the work asked for: elicitation, sampling or tasks.

    Raised by work and not handled there, it reaches the client as a JSON-RPC error with `code`.
    """

    jsonrpc_code = INVALID_REQUEST

    def __init__(self, message: str, *, code: int = INVALID_REQUEST, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: Any = data


class ProtocolError(TaskRuntimeError):
    """A JSON-RPC error that travels verbatim: code, message and data.

    Work raises it to answer its client with exactly this error. It is also what asking the client
    raises when the client answers with an error.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: Any = data


class QuestionTimeoutError(TaskRuntimeError, TimeoutError):
    """The client did not answer a question in time; the question is withdrawn.

    Attributes:
        timeout: Seconds that were waited.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__(f"The client did not answer within {timeout:g} seconds")
        self.timeout = timeout


class StepResultError(TaskRuntimeError, TypeError):
    """A step's result, its type or its arguments have no JSON form that gives the same value back.

    Attributes:
        step: Name of the step.
    """

    def __init__(self, step: str, problem: str) -> None:
        super().__init__(f"Step {step!r}: {problem}")
        self.step = step


class StepChangedError(TaskRuntimeError):
    """Work that runs again takes other steps than the run before: its code changed, or depends on time or chance.

    The step was not run. What earlier runs recorded stays as it is.

    Attributes:
        step: Name of the step that does not fit.
    """

    def __init__(self, step: str, change: str) -> None:
        super().__init__(f"Step {step!r} does not fit what an earlier run of this task recorded: {change}")
        self.step = step


class StoreError(TaskRuntimeError):
    """A store or message queue failed. The driver's exception, if any, is the `__cause__`."""


class StoreUnavailableError(StoreError, OSError):
    """The backend could not be reached; the operation may be tried again.

    A store that raises it logs the outage, once for as long as it lasts.
    """


class StoreClosedError(StoreError):
    """The store or queue was used after it was closed."""

    def __init__(self) -> None:
        super().__init__("The store is closed")


class SchemaVersionError(StoreError):
    """The stored data was written by a later version of this library, and is left alone."""

    def __init__(self, *, found: int, supported: int) -> None:
        super().__init__(f"Stored schema version {found} is newer than {supported}, the latest this version supports")
        self.found = found
        self.supported = supported


class SealedError(StoreError):
    """A sealed value of a task cannot be opened: its key is not here, or it was changed or moved. Others still open."""
