"""`TaskObserver`: hears what a runtime does with its tasks, for telemetry and hooks.

A runtime without an observer pays nothing for it. One with an observer reports:

| observation | when |
| --- | --- |
| `TaskChange` | a task was made, asks, was answered, or ended, in this process |
| `WorkStarted`, `WorkStopped` | a run of a task's work began, or is over |
| `SlotAwaited`, `SlotAcquired` | work waits for one of the `max_running` slots, or has got it |
| `WorkWaiting` | three times a lease, where a dispatcher has other processes run work: what waits for a worker |
| `QuestionAsked`, `QuestionClosed` | the work put a question to the client, or waits for its answer no longer |
| `LeaseLost` | a run was stopped because another process may run the work |
| `PollRefused` | a client polled too often |
| `StoreCalled` | the store has returned or raised; not for calls that wait |

More kinds may come: an observer ignores those that it does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeAlias

from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskStatus

__all__ = [
    "IsolatedObserver",
    "LeaseLost",
    "Observation",
    "PollRefused",
    "QuestionAsked",
    "QuestionClosed",
    "SlotAcquired",
    "SlotAwaited",
    "StoreCalled",
    "TaskChange",
    "TaskObserver",
    "WorkStarted",
    "WorkStopped",
    "WorkWaiting",
    "error_type_of",
]

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskChange:
    """A task has a new status.

    Attributes:
        task_id: The task. Where no principal is known, a client that has it can read the task (law L10).
        name: The tool.
        owner: The principal it belongs to.
        status: The status it has now; `working` for a new task, too.
        status_message: The status message it has now.
        created_at: When it was made.
        at: When its status changed.
        is_new: Whether the task was made by this change.
        error_type: Why it counts as an error: the JSON-RPC code, as text, of a task that failed, `_OTHER` where it has
            none; `tool_error` for one that completed with a result that says `isError`; otherwise `None`.
    """

    task_id: str
    name: str
    owner: str | None
    status: TaskStatus
    status_message: str | None
    created_at: datetime
    at: datetime
    is_new: bool = False
    error_type: str | None = None

    @classmethod
    def of(cls, record: TaskRecord, *, is_new: bool = False) -> TaskChange:
        """Return the change that led to a record."""
        task = record.task
        return cls(
            task.task_id,
            record.request.name,
            record.owner,
            task.status,
            task.status_message,
            task.created_at,
            task.last_updated_at,
            is_new,
            error_type_of(record.outcome),
        )


@dataclass(frozen=True, slots=True)
class WorkStarted:
    """A run of a task's work begins, or a call that runs already has become a task.

    It is reported by the work itself, in its context variables, unless time made the call a task.

    Attributes:
        record: The task. Its lease has the worker and the attempt.
        waited: Seconds since the task was made.
    """

    record: TaskRecord
    waited: float


@dataclass(frozen=True, slots=True)
class WorkStopped:
    """A run that `WorkStarted` reported is over, and its outcome is written.

    Attributes:
        record: The task, as `WorkStarted` had it.
        outcome: What the run ended with; `None` where another process runs the work again, or the task stays open.
        error: What the work raised.
    """

    record: TaskRecord
    outcome: Outcome | None
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class SlotAwaited:
    """Work waits for one of the `max_running` slots. `SlotAcquired` follows, also where it gave up waiting.

    Attributes:
        record: Its task.
    """

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class SlotAcquired:
    """Work waits for a slot no longer.

    Attributes:
        record: Its task.
        waited: Seconds that it waited.
    """

    record: TaskRecord
    waited: float


@dataclass(frozen=True, slots=True)
class WorkWaiting:
    """How much work waits for a worker in the whole store, as far as its 500 oldest tasks that work say.

    Attributes:
        by_name: Number of tasks for each tool that has any.
        oldest: Seconds since the oldest of them was made; 0 where none waits.
        is_complete: Whether there are no more tasks than were read.
    """

    by_name: Mapping[str, int]
    oldest: float
    is_complete: bool


@dataclass(frozen=True, slots=True)
class QuestionAsked:
    """The work asks the client, or asks again in a rerun and finds the question open. `QuestionClosed` follows.

    Attributes:
        task_id: The task.
        name: The tool.
        key: The question's key.
        method: The method of the request to the client.
    """

    task_id: str
    name: str
    key: str
    method: str


@dataclass(frozen=True, slots=True)
class QuestionClosed:
    """The work waits for an answer no longer.

    Attributes:
        task_id: The task.
        name: The tool.
        key: The question's key.
        method: The method of the request to the client.
        result: `result` or `error` as the client answered; `withdrawn` if there was no answer, or the task ended.
        waited: Seconds since it was asked.
    """

    task_id: str
    name: str
    key: str
    method: str
    result: str
    waited: float


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """A run was stopped because it no longer holds the task's lease.

    Attributes:
        record: The task, as the run began.
    """

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class PollRefused:
    """A client polled a task more often than `TaskSettings.max_polls_per_second` allows."""


@dataclass(frozen=True, slots=True)
class StoreCalled:
    """The store or its queue has returned or raised.

    Attributes:
        operation: The method.
        seconds: How long it took.
        error: The exception, if the store failed. A refusal, such as of an unknown task, is no failure.
    """

    operation: str
    seconds: float
    error: Exception | None


Observation: TypeAlias = (
    TaskChange
    | WorkStarted
    | WorkStopped
    | SlotAwaited
    | SlotAcquired
    | WorkWaiting
    | QuestionAsked
    | QuestionClosed
    | LeaseLost
    | PollRefused
    | StoreCalled
)
"""What is reported to an observer."""


class TaskObserver(Protocol):
    """Hears what a runtime does. Both methods are called on the event loop, and must return at once.

    What they raise is logged, and affects no task (law L13). For what takes time, such as a request to another server,
    there is `on_change`.
    """

    def trace_context(self) -> Mapping[str, str]:
        """Return what to keep with a task that is about to be made: the fields of its caller's trace context.

        They go into `TaskRequest.caller_json`, so that every run of the work has them, in any process (law L18).
        """
        ...

    def observe(self, observation: Observation) -> None:
        """Take note of something that has happened."""
        ...


class IsolatedObserver:
    """Passes observations on to observers, none of which can break the caller or each other (law L13)."""

    def __init__(self, *observers: TaskObserver) -> None:
        """Make the observer.

        Args:
            *observers: They hear everything, in this order.
        """
        self._observers = list(observers)
        self._has_failed = False

    def add(self, observer: TaskObserver) -> None:
        """Let one more observer hear everything."""
        self._observers.append(observer)

    def trace_context(self) -> Mapping[str, str]:
        """Return what all observers want to keep with a new task."""
        fields: dict[str, str] = {}
        for observer in self._observers:
            try:
                fields.update({str(name): str(value) for name, value in observer.trace_context().items()})
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # nothing is awaited: a cancellation is not meant for the caller
                self._log()
        return fields

    def observe(self, observation: Observation) -> None:
        """Report something to all observers."""
        for observer in self._observers:
            try:
                observer.observe(observation)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                self._log()

    def _log(self) -> None:
        """Log an exception: the first in full, for an observer that fails always would fill the log."""
        if self._has_failed:
            logger.debug("An observer of tasks raised an exception", exc_info=True)
        else:
            self._has_failed = True
            logger.exception("An observer of tasks raised an exception; more of them are logged at DEBUG")


def error_type_of(outcome: Outcome | None) -> str | None:
    """Return why an outcome counts as an error; see `TaskChange.error_type`."""
    if outcome is None or outcome.status == "cancelled":
        return None
    try:
        if outcome.status == "failed":
            return str((outcome.error or {}).get("code", "_OTHER"))
        return "tool_error" if outcome.is_error else None
    except (ValueError, AttributeError):  # a store that gives damaged values back
        return "_OTHER" if outcome.status == "failed" else None
