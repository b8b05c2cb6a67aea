"""`Search`: finds and counts tasks of all owners."""

from __future__ import annotations

from typing import Any

from mcp_task_runtime.core.types import TaskCounts, TaskFilter, TaskPage
from mcp_task_runtime.stores._cursor import search_scope
from mcp_task_runtime.stores.postgres import _search_statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._pages import LARGEST_POSITION, Pages, checked_limit, position_of
from mcp_task_runtime.stores.postgres._rows import from_text, utc

__all__ = ["Search"]


class Search:
    """Runs the statements of a search."""

    def __init__(self, database: Database, pages: Pages) -> None:
        self._database = database
        self._pages = pages

    async def find(self, wanted: TaskFilter, *, newest_first: bool, cursor: str | None, limit: int) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        limit = checked_limit(limit)
        scope = search_scope(wanted, newest_first=newest_first)
        key = await self._database.cursor_key()
        first = LARGEST_POSITION if newest_first else 0
        begin = first if cursor is None else position_of(key, cursor, scope)

        def find(attempt: Attempt) -> tuple[list[Any], int | None]:
            few, further = None, None
            if wanted.id_prefix:
                found = statements.prefix_parameters(wanted.id_prefix)
                rows = attempt.execute(statements.BY_PREFIX, found).fetchall()
                if len(rows) <= statements.FEW:
                    behind = [position for (position,) in rows if (position < begin) is newest_first]
                    few, further = statements.first(behind, newest_first=newest_first, limit=limit + 1)
            statement, parameters = statements.search_statement(wanted, few, newest_first=newest_first, limit=limit + 1)
            row = attempt.fetch(statement, {**parameters, "position": begin})
            assert row is not None
            positions, stop = row
            stop = further if stop is None else stop
            if len(positions) > limit:
                positions, stop = positions[:limit], positions[limit - 1]
            tasks = attempt.fetch_each(statements.BY_POSITION, {"positions": positions}) if positions else ()
            return sorted(tasks, key=lambda row: row[0], reverse=newest_first), stop

        rows, stop = await self._database.read(find)
        return TaskPage(tuple(self._pages.intact(rows)), None if stop is None else key.encode(stop, scope))

    async def count(self) -> TaskCounts:
        """Return how many tasks there are, or up to how many there were counted; see `TaskSearch.count_tasks`."""

        def count(attempt: Attempt) -> TaskCounts:
            rows = attempt.execute(statements.COUNT, {}).fetchall()
            errors = attempt.execute(statements.COUNT_ERRORS, {}).fetchall()
            oldest = [attempt.fetch(statements.OLDEST, {"status": status}) for status in ("working", "input_required")]
            working, asking = [None if row is None or row[0] is None else utc(row[0]) for row in oldest]
            return TaskCounts(
                {(status, from_text(name)): number for status, name, number, _ in rows if number},
                working,
                asking,
                errors_by_name={from_text(name): number for _, name, number, _ in errors if number},
                counted_up_to=rows[0][3] if rows else None,
                errors_up_to=errors[0][3] if errors else None,
            )

        return await self._database.read(count)
