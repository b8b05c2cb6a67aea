"""`RunEnd`: how a run of work ended, and what that makes of its task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from mcp_task_runtime.core.causes import is_store_outage, says_ended, sole_cause
from mcp_task_runtime.core.context import outcome_of_exception
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    LeaseLostError,
    ProtocolError,
)

__all__ = ["INTERRUPTED", "RunEnd"]

T = TypeVar("T")

INTERRUPTED: Final = Outcome.failed("The work was interrupted")


class RunEnd(Generic[T]):
    """What a run of work returned or raised.

    Attributes:
        value: What it returned.
        error: What it raised; `None` if it returned.
        is_interrupted: Whether it was cancelled, or the program was.
        outcome: What it made of its task; `None` where the run does not end the task.
        unexpected: The unexpected exception behind that outcome, for the log.
    """

    __slots__ = ("error", "is_interrupted", "outcome", "unexpected", "value")

    def __init__(self) -> None:
        """Make the end of a run that still goes on."""
        self.value: T | None = None
        self.error: BaseException | None = None
        self.is_interrupted: bool = False
        self.outcome: Outcome | None = None
        self.unexpected: BaseException | None = None

    @property
    def is_outage(self) -> bool:
        """Whether it was a failure of the store that ended the work."""
        return self.error is not None and is_store_outage(self.error)

    def interrupt(self) -> None:
        """Note that the work was interrupted."""
        self.error = ProtocolError(INTERNAL_ERROR, "The call was interrupted")
        self.is_interrupted = True

    def decide(self, execution: Execution[T], record: TaskRecord, outcome_of: Callable[[T], Outcome]) -> Outcome:
        """Set and return the outcome of the run's task.

        Args:
            execution: The run.
            record: Its task.
            outcome_of: Turns what the work returned into an outcome.
        """
        self.outcome, self.unexpected = self._decide(execution, record, outcome_of)
        return self.outcome

    def _decide(
        self, execution: Execution[T], record: TaskRecord, outcome_of: Callable[[T], Outcome]
    ) -> tuple[Outcome, BaseException | None]:
        error = self.error
        if error is None:
            try:
                return outcome_of(self.value), execution.failure  # type: ignore[arg-type]  # the work has returned it
            except Exception as raised:
                error = raised
        if self.is_interrupted or (execution.is_stopped and says_ended(error)):
            return INTERRUPTED, None
        if isinstance(cause := sole_cause(error), LeaseLostError) and cause.task_id == record.task_id:
            return INTERRUPTED, None  # its fence refuses it
        return outcome_of_exception(error)
