"""`Creation`: makes tasks, alone or by the key of a call that may be repeated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.transitions import check_room, create_record
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import TaskExistsError
from mcp_task_runtime.stores._storable import check_duration
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt
from mcp_task_runtime.stores.postgres._calls import TaskCalls
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._rows import create_parameters, record_of, to_key, to_text, utc

__all__ = ["Creation"]

_PURGE_EVERY: Final = 16
_PURGE_MOST: Final = 8 * _PURGE_EVERY


class Creation:
    """Makes tasks, and removes expired ones from time to time."""

    def __init__(self, database: Database, calls: TaskCalls) -> None:
        self._database = database
        self._calls = calls
        self._created = 0

    async def create(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        new, parameters = self._prepare(new)
        purges = self._purges()
        statement = statements.CREATE if new.max_live is None else statements.CREATE_WITHIN

        def create(attempt: Attempt) -> TaskRecord:
            if purges:
                attempt.execute(statements.PURGE, {"limit": _PURGE_MOST})
            while (row := attempt.fetch(statement, parameters)) is None:
                if attempt.is_repeated and (row := attempt.fetch(statements.CREATED, parameters)) is not None:
                    break
                if attempt.execute(statements.DELETE_EXPIRED, parameters).rowcount:
                    continue
                if new.max_live is None or attempt.fetch(statements.TAKEN, parameters) is not None:
                    raise TaskExistsError(new.task_id or "")
                _check_room(attempt, new, parameters)
            return create_record(new, now=utc(row[0]))

        mark = self._database.ends_mark
        record = await self._database.write(create)
        self._database.note_made(parameters["task_id"], mark)
        return record

    async def join(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        new, parameters = self._prepare(new)
        check_duration("ended_ms", ended_ms)
        parameters |= {"join_key": to_key("key", key), "ended_ms": ended_ms}
        purges = self._purges()
        statement = statements.JOIN if new.max_live is None else statements.JOIN_WITHIN

        def join(attempt: Attempt) -> tuple[TaskRecord, bool]:
            if purges:
                attempt.execute(statements.PURGE, {"limit": _PURGE_MOST})
            while (row := attempt.fetch(statement, parameters)) is None:
                if attempt.is_repeated and (row := attempt.fetch(statements.CREATED, parameters)) is not None:
                    break
                if (joined := attempt.fetch(statements.JOINED, parameters)) is not None:
                    return record_of(joined), False
                if attempt.fetch(statements.TAKEN, parameters) is not None:
                    raise TaskExistsError(new.task_id or "")
                if not attempt.execute(statements.DELETE_EXPIRED, parameters).rowcount:
                    _check_room(attempt, new, parameters)  # or what was to be joined has gone
            return create_record(new, now=utc(row[0])), True

        mark = self._database.ends_mark
        record, is_new = await self._database.write(join)
        if is_new:
            self._database.note_made(parameters["task_id"], mark)
        return record, is_new

    async def count_live(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""

        def count(attempt: Attempt) -> int:
            row = attempt.fetch(statements.COUNT_LIVE, {"owner": to_text(owner)})
            return 0 if row is None else int(row[0])

        return await self._database.read(count)

    def _prepare(self, new: NewTask) -> tuple[NewTask, dict[str, Any]]:
        """Return a new task with its identifier, and the parameters of the statement that makes it."""
        if new.task_id is None:
            new = replace(new, task_id=new_task_id())
        parameters = create_parameters(new, now=self._database.clock.now())
        return new, {**parameters, **self._calls.marks()}

    def _purges(self) -> bool:
        """Return whether it is time to remove expired tasks, when one is made."""
        self._created += 1
        return (self._created - 1) % _PURGE_EVERY == 0


def _check_room(attempt: Attempt, new: NewTask, parameters: dict[str, Any]) -> None:
    """Check, where it could not be created, that the owner of a task may have one more.

    Raises:
        LimitExceededError: It may not.
    """
    if new.max_live is not None:
        row = attempt.fetch(statements.HAS_ROOM, parameters)
        check_room(0 if row is not None and row[0] else new.max_live, new.max_live)
