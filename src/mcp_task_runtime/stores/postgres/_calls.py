"""`TaskCalls`: statements about one task, and why one that changed nothing did not."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreUnavailableError, TaskNotFoundError
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._errors import RetryError
from mcp_task_runtime.stores.postgres._rows import decode_nothing, record_of, to_text
from mcp_task_runtime.stores.postgres._watchers import Look

__all__ = ["TaskCalls", "changed_row", "claimed_record", "live_record", "read_record"]


class TaskCalls:
    """Runs statements that change one task."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def marks(self) -> dict[str, int]:
        """Return the parameters that say which operation changes a task, and in which process."""
        return {"operation": secrets.randbits(63), "watcher": self._database.watcher}

    async def change(
        self, task_id: str, statement: str, parameters: dict[str, Any], apply: Callable[[TaskRecord], TaskRecord]
    ) -> TaskRecord:
        """Run a statement that changes a task; return the task.

        Args:
            task_id: The task.
            statement: What to run.
            parameters: Its parameters, without those that say which task and which operation.
            apply: The change, as `core.transitions` has it: it raises why a task is not changed.

        Raises:
            TaskNotFoundError: There is no task.
        """
        stored = to_text(task_id)
        parameters = {**parameters, "task_id": stored, **self.marks()}

        def change(attempt: Attempt) -> TaskRecord:
            row = changed_row(attempt, statement, parameters)
            if row is not None:
                return record_of(row)
            live_record(task_id, attempt, apply)
            raise RetryError  # it was refused for a reason that is no more

        return await self._database.change(stored, change)

    async def look_at_watched(self, tasks: Mapping[str, bool]) -> dict[str, Look | None]:
        """Have this process notified of changes of tasks; return what they are like from then on, `None` for none.

        Args:
            tasks: The tasks, in their stored form, and whether only their ends matter.
        """
        parameters = {"task_ids": list(tasks), "watcher": self._database.watcher}

        def look(attempt: Attempt) -> dict[str, Look | None]:
            while True:
                rows = attempt.execute(statements.LOOK_AT_WATCHED, parameters).fetchall()
                unwatched = [
                    task_id
                    for task_id, _, _, is_watched, is_end_watched in rows
                    if not is_watched and not (is_end_watched and tasks[task_id])
                ]
                if not unwatched:
                    found = {task_id: Look(revision, has_ended) for task_id, revision, has_ended, *_ in rows}
                    return {task_id: found.get(task_id) for task_id in tasks}
                attempt.count_write()
                attempt.execute(statements.WATCH, {**parameters, "task_ids": unwatched})
                # Look again: only changes from now on notify.

        return await self._database.read(look)


def changed_row(attempt: Attempt, statement: str, parameters: dict[str, Any]) -> Sequence[Any] | None:
    """Run a statement that changes a task, unless an earlier attempt did; return the task's row."""
    if not attempt.is_repeated:
        return attempt.fetch(statement, parameters)
    row = attempt.fetch(statements.BY_OPERATION, parameters)
    if row is None:
        row = attempt.fetch(statement, parameters)
    return attempt.fetch(statements.BY_OPERATION, parameters) if row is None else row


def claimed_record(attempt: Attempt, statement: str, parameters: dict[str, Any]) -> TaskRecord | None:
    """Run a statement that claims a task for a worker, unless an earlier attempt did; return the task.

    Raises:
        StoreUnavailableError: An earlier attempt may have claimed it, and it was changed since: the worker holds it.
    """
    row = changed_row(attempt, statement, parameters)
    if row is not None:
        return record_of(row)
    if attempt.is_repeated and parameters["worker"]:
        row = attempt.fetch(statements.GET, parameters)
        held = None if row is None else record_of(row).lease
        if held is not None and to_text(held.worker) == parameters["worker"]:
            raise StoreUnavailableError("It is not known whether the task was claimed")
    return None


def read_record(task_id: str, attempt: Attempt) -> TaskRecord | None:
    """Return a task, or `None` if there is none."""
    row = attempt.fetch(statements.GET, {"task_id": to_text(task_id)})
    if row is None:
        decode_nothing()
        return None
    return record_of(row)


def live_record(task_id: str, attempt: Attempt, apply: Callable[[TaskRecord], TaskRecord]) -> TaskRecord:
    """Return a task to which a change can be applied; otherwise raise why not."""
    record = read_record(task_id, attempt)
    if record is None:
        raise TaskNotFoundError(task_id)
    apply(record)
    return record
