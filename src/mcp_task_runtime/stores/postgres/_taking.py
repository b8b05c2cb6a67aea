"""`Taking`: finds tasks for a worker and claims them, in one statement."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any, Final

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores._storable import check_duration
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt, NotYet
from mcp_task_runtime.stores.postgres._calls import TaskCalls, claimed_record
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._leases import LONGEST_WORKER
from mcp_task_runtime.stores.postgres._pages import Pages, checked_limit
from mcp_task_runtime.stores.postgres._rows import COLUMNS, to_stored, to_text

__all__ = ["Taking"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.postgres")


_MOST_IN_DOUBT: Final = 10
"""Calls without an answer whose tasks a worker looks for."""


class Taking:
    """Takes tasks for workers. A look that has begun is not cancelled: what it claims must reach the worker."""

    def __init__(self, database: Database, calls: TaskCalls, pages: Pages) -> None:
        self._database = database
        self._calls = calls
        self._pages = pages
        self._has_complained = False
        self._in_doubt: dict[str, list[int]] = {}

    async def work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool
    ) -> tuple[TaskRecord, ...]:
        """Wait for tasks and take them; see `TaskTaking.take_work`."""
        limit = checked_limit(limit)
        parameters = {**_parameters(names, worker, lease_ms, with_sealed), "limit": limit, **self._calls.marks()}
        # One number for all looks of a call. What a look without an answer has taken is found by it: by the next look,
        # or by the worker's next call.
        operations = [*self._in_doubt.pop(worker, ()), parameters["operation"]]
        parameters["operations"] = operations
        unanswered = len(operations) - 1

        def look(attempt: Attempt) -> tuple[TaskRecord, ...] | NotYet:
            nonlocal unanswered
            is_in_doubt = unanswered > 0
            unanswered += 1
            while rows := self._take(attempt, parameters, is_in_doubt=is_in_doubt):
                # One that is damaged was claimed, too: it is in the way of no other.
                if records := self._pages.intact(sorted(rows, key=_order)):
                    return tuple(records)
                is_in_doubt = False
            unanswered -= 1
            return NotYet(None)

        mark = self._database.ends_mark
        try:
            taken = await self._database.wait("work", "", look, writes=True)
            unanswered = 0
        finally:
            if unanswered:
                self._in_doubt[worker] = operations[-_MOST_IN_DOUBT:]
        for record in taken:
            self._database.fire_changed(record)
            self._database.note_made(to_text(record.task_id), mark)
        return taken

    async def task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool
    ) -> TaskRecord | None:
        """Take a task; see `TaskTaking.take_task`."""
        stored = to_text(task_id)
        parameters = {**_parameters(names, worker, lease_ms, with_sealed), "task_id": stored, **self._calls.marks()}

        def take(attempt: Attempt) -> TaskRecord | None:
            return claimed_record(attempt, statements.TAKE, parameters)

        mark = self._database.ends_mark
        taken: TaskRecord | None = None
        await anyio.lowlevel.checkpoint_if_cancelled()
        with anyio.CancelScope(shield=True):
            taken = await self._database.change(stored, take)
        if taken is not None:
            self._database.note_made(stored, mark)
        return taken

    def _take(self, attempt: Attempt, parameters: dict[str, Any], *, is_in_doubt: bool) -> list[Sequence[Any]]:
        """Take tasks; return their rows, in any order.

        Args:
            attempt: Where.
            parameters: Those of the statements.
            is_in_doubt: Whether an earlier attempt may have taken some, or may be about to.
        """
        if is_in_doubt:
            rows: list[Sequence[Any]] = list(attempt.fetch_each(statements.TAKEN_BY_OPERATION, parameters))
            if not rows:  # it waits for one that is about to take some, and these may be left for it
                attempt.execute(statements.TAKE_WORK_IN_TURN, parameters)
                rows = list(attempt.fetch_each(statements.TAKEN_BY_OPERATION, parameters))
            return rows
        for statement in (statements.TAKE_WORK, statements.TAKE_WORK_IN_TURN):
            rows = list(attempt.fetch_each(statement, parameters))
            if rows[0][0] is not None:
                return rows
            *_, others_look, are_sealed = rows[0]
            if are_sealed and not self._has_complained:
                self._has_complained = True
                logger.warning("Waiting tasks are left to others: they are sealed, and this worker has no seal key")
            if not others_look:
                break
        return []


def _order(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a row of a task that was taken is sorted by: how long it has waited; one that is unreadable first."""
    return (row[1 + COLUMNS], row[0]) if len(row) > 1 else ()


def _parameters(names: Collection[str], worker: str, lease_ms: int, with_sealed: bool) -> dict[str, Any]:
    """Return the parameters that say which tasks a worker takes, and for how long.

    Raises:
        ValueError: The worker has no name, or one that is not Unicode, or the duration is too long.
    """
    check_duration("lease_ms", lease_ms)
    if not worker:
        raise ValueError("worker must not be empty")
    return {
        "names": sorted({to_text(name) for name in names}),  # in one order: workers that wait for each other do not
        "worker": to_stored("worker", worker),
        "lease_ms": lease_ms,
        "event": to_text(worker[:LONGEST_WORKER]),
        "with_sealed": with_sealed,
    }
