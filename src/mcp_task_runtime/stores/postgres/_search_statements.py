"""The statements with which operators find and count tasks of all owners in PostgreSQL. Imports no driver.

A page walks the smallest set that has all tasks of the wanted kind: one set for each pair of a status and a tool, one
for each owner, or those whose identifier begins as wanted, if they are few. Each set is in the order of creation and
has an index. Of each the page looks at so many tasks; what else the filter says is asked of these alone. So a page
costs the same with a million tasks, and may end before it is full.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from mcp_task_runtime.core.transitions import TRANSITIONS
from mcp_task_runtime.core.types import COUNTED_AT_MOST, LOOKED_AT_MOST, TaskFilter
from mcp_task_runtime.stores._matching import shifted
from mcp_task_runtime.stores.postgres._rows import to_text
from mcp_task_runtime.stores.postgres._schema import NAME_LENGTH
from mcp_task_runtime.stores.postgres._statements import ALIVE, COLUMNS

__all__ = [
    "BY_POSITION",
    "BY_PREFIX",
    "COUNT",
    "COUNT_ERRORS",
    "FEW",
    "OLDEST",
    "first",
    "prefix_parameters",
    "search_statement",
]

_STATUSES: Final = ", ".join(f"'{status}'" for status in TRANSITIONS)
FEW: Final = 2_000
"""Tasks that are sorted rather than looked for."""

_AT_ONCE: Final = 500
"""Tasks with the wanted prefix that one page looks at."""

_SLACK: Final = timedelta(seconds=5)
"""How much later than the tasks behind it a task may have been created: transactions overlap, clocks are corrected."""

# A loose scan of an index: each step leads to the next tool.
_KINDS: Final = """kinds (status, tool) AS (
        SELECT s.status, (SELECT tool FROM {{tasks}} WHERE status = s.status ORDER BY tool LIMIT 1)
        FROM unnest({statuses}) AS s (status)
        UNION ALL
        SELECT k.status, (SELECT tool FROM {{tasks}} WHERE status = k.status AND tool > k.tool ORDER BY tool LIMIT 1)
        FROM kinds AS k WHERE k.tool IS NOT NULL
    )"""
_ERRORS: Final = """errors (tool) AS (
        SELECT (SELECT tool FROM {tasks} WHERE is_error ORDER BY tool LIMIT 1)
        UNION ALL
        SELECT (SELECT tool FROM {tasks} WHERE is_error AND tool > k.tool ORDER BY tool LIMIT 1)
        FROM errors AS k WHERE k.tool IS NOT NULL
    )"""

_OF_KIND: Final = "t.status = s.status AND t.tool = s.tool"
_OF_ERROR: Final = "t.is_error AND t.tool = s.tool"
_OF_OWNER: Final = "t.owner = s.owner"
_OF_NO_OWNER: Final = "s.owner IS NULL AND t.owner IS NULL"  # `IS NOT DISTINCT FROM` would use no index


def _number_of(condition: str, columns: str) -> str:
    """Return a query for the numbers of tasks of sets: by tool, or by name where a tool has only its beginning."""
    return f""", most AS MATERIALIZED (
        SELECT greatest({COUNTED_AT_MOST} / greatest(count(*), 1) / 1000, 1) * 1000 AS number FROM sets
    )
    SELECT {columns}, s.tool, n.number, (SELECT number FROM most) FROM sets AS s, LATERAL (
        SELECT count(*) AS number FROM (
            SELECT expires_at FROM {{tasks}} AS t WHERE {condition} LIMIT (SELECT number FROM most)
        ) AS few WHERE {ALIVE}
    ) AS n WHERE s.tool IS NOT NULL AND char_length(s.tool) < {NAME_LENGTH}
    UNION ALL
    SELECT {columns}, n.request_name, n.number, (SELECT number FROM most) FROM sets AS s, LATERAL (
        SELECT request_name, count(*) AS number FROM (
            SELECT request_name, expires_at FROM {{tasks}} AS t WHERE {condition} LIMIT (SELECT number FROM most)
        ) AS few WHERE {ALIVE} GROUP BY request_name
    ) AS n WHERE char_length(s.tool) = {NAME_LENGTH}"""


COUNT: Final = (
    "WITH RECURSIVE "
    + _KINDS.format(statuses=f"ARRAY[{_STATUSES}]")
    + ", sets AS (TABLE kinds)"
    + (_number_of(_OF_KIND, "s.status"))
)
"""Returns status, tool, number, and what the numbers go up to."""

COUNT_ERRORS: Final = "WITH RECURSIVE " + _ERRORS + ", sets AS (TABLE errors)" + _number_of(_OF_ERROR, "'completed'")
"""The same for tasks that completed with a result that says `isError`."""

OLDEST: Final = (
    "WITH RECURSIVE "
    + _KINDS.format(statuses="ARRAY[%(status)s]")
    + """
    SELECT min(first.created_at) FROM kinds AS s, LATERAL (
        SELECT created_at FROM {tasks} AS t WHERE """
    + f"{_OF_KIND} AND {ALIVE}"
    + " ORDER BY position LIMIT 1) AS first"
)

BY_PREFIX: Final = (
    "SELECT position FROM {tasks} WHERE task_id >= %(prefix)s AND (%(prefix_end)s::text IS NULL"
    f" OR task_id < %(prefix_end)s::text) AND starts_with(task_id, %(prefix)s) LIMIT {FEW + 1}"
)
"""Returns the positions of the tasks whose identifier begins so; of more than `FEW`, not all."""

BY_POSITION: Final = "SELECT position, " + COLUMNS + " FROM {tasks} WHERE position = ANY(%(positions)s) AND " + ALIVE

# The position of the first task that was created at a time or later; `>=` skips those that are gone.
_POSITION_AT: Final = """(
        WITH RECURSIVE part (low, high) AS (
            SELECT coalesce(min(position), 0), coalesce(max(position), 0) + 1 FROM {{tasks}}
            UNION ALL
            SELECT CASE WHEN is_before THEN middle + 1 ELSE low END, CASE WHEN is_before THEN high ELSE middle END
            FROM (SELECT low, high, (low + high) / 2 AS middle FROM part WHERE low < high) AS half, LATERAL (
                SELECT created_at < {time} AS is_before FROM {{tasks}} WHERE position >= middle
                ORDER BY position LIMIT 1
            ) AS task
        ) SELECT max(low) FROM part
    )"""


def first(positions: list[int], *, newest_first: bool, limit: int) -> tuple[list[int], int | None]:
    """Return the positions that a page looks at, and the last of them where there are more."""
    positions.sort(reverse=newest_first)
    most = max(limit, _AT_ONCE)
    return positions[:most], positions[most - 1] if len(positions) > most else None


def prefix_parameters(prefix: str) -> dict[str, Any]:
    """Return the parameters of `BY_PREFIX`."""
    stored = to_text(prefix)
    # None where the next character cannot be stored.
    end = stored[:-1] + chr(ord(stored[-1]) + 1) if stored and stored[-1] < "\ud7ff" else None
    return {"prefix": stored, "prefix_end": end}


def search_statement(
    wanted: TaskFilter, few: list[int] | None, *, newest_first: bool, limit: int
) -> tuple[str, dict[str, Any]]:
    """Return the statement of a search and its parameters, but for `position`, where it begins.

    It returns up to `limit` positions, in order, and the one that it looked up to, or NULL where that is the end.

    Args:
        wanted: What is searched for.
        few: The positions of all tasks whose identifier begins as wanted, if they are few.
        newest_first: Whether the newest come first.
        limit: Tasks to return.
    """
    order, behind, last, furthest = ("DESC", "<", "min", "max") if newest_first else ("ASC", ">", "max", "min")
    parameters: dict[str, Any] = {"limit": limit}
    conditions = _conditions(wanted, parameters)
    sets, of, uses = _sets(wanted, few, parameters)
    left = [condition for name, condition in conditions.items() if name not in uses]
    # Where nothing else is asked of the tasks of a set, each of them is on the page.
    each = f"greatest(%(limit)s, {LOOKED_AT_MOST} / (SELECT count(*) FROM sets))" if left else "%(limit)s"
    bounds = [f"position {behind} %(position)s", *_bounds(wanted, parameters)]
    if few is not None:
        parameters["few"] = few
        each = str(FEW + 1)
    walks = [
        f"(SELECT * FROM {{tasks}} AS t WHERE {' AND '.join([each_of, *bounds, ALIVE])}"
        f" ORDER BY position {order} LIMIT {each})"
        for each_of in ([of, _OF_NO_OWNER] if of == _OF_OWNER else [of])
    ]
    return (
        f"""WITH RECURSIVE {sets}, looked AS MATERIALIZED (
        SELECT s.number, t.position, ({" AND ".join(left) or "true"}) AS matches FROM sets AS s, LATERAL (
            {" UNION ALL ".join(walks)}
        ) AS t
    ), stop AS (
        SELECT {furthest}(last) AS position FROM (
            SELECT {last}(position) AS last FROM looked GROUP BY number HAVING count(*) >= {each}
        ) AS more
    )
    SELECT ARRAY(
        SELECT position FROM looked
        WHERE matches AND NOT position {behind} coalesce((SELECT position FROM stop), position)
        ORDER BY position {order} LIMIT %(limit)s
    ), (SELECT position FROM stop)""",
        parameters,
    )


def _sets(wanted: TaskFilter, few: list[int] | None, parameters: dict[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    """Return a query for the sets to walk, what a task of a set is, and the conditions that this meets already."""
    numbered = "sets AS (SELECT row_number() OVER () AS number, found.* FROM ({}) AS found)"
    if few is not None:
        return numbered.format("SELECT"), "t.position = ANY(%(few)s::bigint[])", ("prefix",)
    if wanted.names is not None:
        parameters["tools"] = [to_text(name)[:NAME_LENGTH] for name in sorted(wanted.names)]
    tools = "SELECT DISTINCT tool FROM unnest(%(tools)s::text[]) AS n (tool)"
    met = "" if _is_cut(wanted) else "names"
    if wanted.errors_only:
        if wanted.names is not None:
            return numbered.format(tools), _OF_ERROR, ("errors", met)
        return f"{_ERRORS}, {numbered.format('SELECT tool FROM errors WHERE tool IS NOT NULL')}", _OF_ERROR, ("errors",)
    if wanted.owners is not None:
        owners = "SELECT owner FROM unnest(%(owners)s::text[]) AS n (owner)"
        return numbered.format(owners), _OF_OWNER, ("owners",)
    if wanted.statuses is None and wanted.names is None:
        return numbered.format("SELECT"), "true", ()
    statuses = f"ARRAY[{_STATUSES}]"
    if wanted.statuses is not None:
        parameters["statuses"] = sorted(wanted.statuses)
        statuses = "%(statuses)s::text[]"
    if wanted.names is not None:
        kinds = f"SELECT status, tool FROM unnest({statuses}) AS m (status), ({tools}) AS n"
        return numbered.format(kinds), _OF_KIND, ("statuses", met)
    kinds = "SELECT status, tool FROM kinds WHERE tool IS NOT NULL"
    return f"{_KINDS.format(statuses=statuses)}, {numbered.format(kinds)}", _OF_KIND, ("statuses",)


def _is_cut(wanted: TaskFilter) -> bool:
    """Return whether a wanted name is not the only one that may begin as its tool does."""
    return any(len(to_text(name)) >= NAME_LENGTH for name in wanted.names or ())


def _conditions(wanted: TaskFilter, parameters: dict[str, Any]) -> dict[str, str]:
    """Return by name what a task `t` must be."""
    found: dict[str, str] = {}
    if wanted.errors_only:
        found["errors"] = "t.is_error"
    if wanted.owners is not None:
        parameters["owners"] = sorted({None if owner is None else to_text(owner) for owner in wanted.owners}, key=str)
        also = " OR t.owner IS NULL" if None in wanted.owners else ""
        found["owners"] = f"(t.owner = ANY(%(owners)s::text[]){also})"
    if wanted.names is not None:
        parameters["names"] = sorted(map(to_text, wanted.names))
        found["names"] = "t.request_name = ANY(%(names)s::text[])"
    if wanted.statuses is not None:
        parameters["statuses"] = sorted(wanted.statuses)
        found["statuses"] = "t.status = ANY(%(statuses)s::text[])"
    if wanted.id_prefix is not None:
        parameters["prefix"] = to_text(wanted.id_prefix)
        found["prefix"] = "starts_with(t.task_id, %(prefix)s::text)"
    if wanted.text is not None:
        parameters["text"] = to_text(wanted.text)
        found["text"] = 'strpos(lower(t.status_message COLLATE "C"), lower(%(text)s COLLATE "C")) > 0'  # of ASCII
    if wanted.created_after is not None:
        parameters["created_after"] = wanted.created_after
        found["after"] = "t.created_at >= %(created_after)s"
    if wanted.created_before is not None:
        parameters["created_before"] = wanted.created_before
        found["before"] = "t.created_at < %(created_before)s"
    return found


def _bounds(wanted: TaskFilter, parameters: dict[str, Any]) -> list[str]:
    """Return between which positions the tasks are that were created when they should be."""
    found = []
    for sign, name, time, slack in (
        (">=", "first_after", wanted.created_after, -_SLACK),
        ("<", "first_before", wanted.created_before, _SLACK),
    ):
        if time is not None:
            parameters[name] = shifted(time, slack)
            found.append(f"position {sign} " + _POSITION_AT.format(time=f"%({name})s::timestamptz"))
    return found
