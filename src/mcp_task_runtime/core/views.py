"""`TaskView`: a task together with its open questions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Task, TaskRecord, TaskStatus

__all__ = ["TaskView"]


@dataclass(frozen=True, slots=True)
class TaskView:
    """A task as its client is to see it: the record together with the open questions.

    Attributes:
        record: What the store has.
        questions: The open questions in the order they were asked; none once the task has ended.
    """

    record: TaskRecord
    questions: tuple[QueuedMessage, ...] = ()

    @property
    def task(self) -> Task:
        """The snapshot, `input_required` exactly while there are questions (law L5)."""
        task = self.record.task
        if is_terminal(task.status):
            return task
        status: TaskStatus = "input_required" if self.questions else "working"
        return task if task.status == status else replace(task, status=status)
