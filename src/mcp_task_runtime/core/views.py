"""`TaskView`: a task together with its open questions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Task, TaskRecord, TaskStatus

__all__ = ["TaskView", "as_client_sees"]

_WAITS_FOR_PERSON: Final = "Waiting for a person to answer"


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as its client is to see it: the record together with the open questions.

    Attributes:
        record: What the store has.
        questions: The open questions in the order they were asked; none once the task has ended.
        poll_interval_ms: Milliseconds that the client is asked to wait before its next poll, where they depend on the
            task's age; `None` for what the task says.
    """

    record: TaskRecord
    questions: tuple[QueuedMessage, ...] = ()
    poll_interval_ms: int | None = None

    @property
    def task(self) -> Task:
        """The snapshot, `input_required` exactly while there are questions (law L5)."""
        task = self.record.task
        if is_terminal(task.status):
            return task
        status: TaskStatus = "input_required" if self.questions else "working"
        interval = task.poll_interval_ms if self.poll_interval_ms is None else self.poll_interval_ms
        if task.status == status and task.poll_interval_ms == interval:
            return task
        return Task(
            task.task_id,
            status,
            task.status_message,
            task.created_at,
            task.last_updated_at,
            task.ttl_ms,
            interval,
        )


def as_client_sees(view: TaskView) -> TaskView:
    """Return a task without the questions that wait for a person: to its client, the task works meanwhile.

    Where the work has said nothing of itself, the status message says what it waits for.
    """
    if not view.questions:
        return view
    questions = tuple([question for question in view.questions if not question.is_for_person])
    if len(questions) == len(view.questions):
        return view
    record = view.record
    if record.task.status_message is None:
        record = replace(record, task=replace(record.task, status_message=_WAITS_FOR_PERSON))
    return TaskView(record, questions)
