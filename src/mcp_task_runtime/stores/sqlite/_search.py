"""The tasks of all owners by status, tool, owner and identifier, for operators.

A page walks the smallest set that has all matching tasks: the tasks of the wanted statuses and tools, one set for each
pair of them, of which `counts` knows the size; those that completed with an error; those of the wanted owners; or, if
they are few, those whose identifier begins as wanted. The sets are in the order of creation and are merged. Everything
else that a filter says is looked for among them, as far as one page looks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from heapq import merge
from typing import Any, Final, NamedTuple, cast

from mcp_task_runtime.core.transitions import TRANSITIONS
from mcp_task_runtime.core.types import COUNTED_AT_MOST, LOOKED_AT_MOST, TaskCounts, TaskFilter, TaskStatus
from mcp_task_runtime.stores.sqlite._records import from_stamp, to_sql, to_stamp, to_text
from mcp_task_runtime.stores.sqlite._tasks import ALIVE
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = ["STATEMENTS", "Found", "count", "find"]

_FEW: Final = 5_000
"""Tasks that are sorted rather than looked for."""

_CHUNK: Final = 64
_LARGEST_CHUNK: Final = 512

_SLACK: Final = timedelta(seconds=5)
"""How much later than the tasks behind it a task may have been created: processes wait for each other."""

_PAIRS: Final = "SELECT status, name, number FROM counts WHERE number > 0"
_OLDEST: Final = (
    f"SELECT created_at FROM tasks INDEXED BY tasks_by_kind WHERE status = ? AND name = ? AND {ALIVE}"
    " ORDER BY sequence LIMIT 1"
)
_OF_KIND: Final = "tasks INDEXED BY tasks_by_kind WHERE status = ? AND name = ?"
_OF_ERROR: Final = "tasks INDEXED BY tasks_by_error WHERE is_error = 1 AND name = ?"
_OF_OWNER: Final = "tasks INDEXED BY tasks_by_owner WHERE owner IS ?"
_ALL: Final = "tasks WHERE 1"
_BY_PREFIX: Final = "SELECT sequence FROM tasks WHERE task_id >= ? AND task_id < ? LIMIT ?"
_COUNT_ERRORS: Final = f"SELECT count(*) FROM (SELECT 1 FROM {_OF_ERROR} AND {ALIVE} LIMIT ?)"
_AT_OR_BEHIND: Final = "SELECT created_at FROM tasks WHERE sequence >= ? ORDER BY sequence LIMIT 1"
_ENDS: Final = "SELECT (SELECT min(sequence) FROM tasks), (SELECT max(sequence) FROM tasks)"

STATEMENTS: Final = (
    _OLDEST,
    _BY_PREFIX,
    _AT_OR_BEHIND,
    f"SELECT 1 FROM {_OF_ERROR} AND {ALIVE} LIMIT ?",
    "SELECT sequence FROM tasks INDEXED BY tasks_by_kind WHERE status = ?",
)
"""Statements of this module that must use an index; `counts` is as small as the number of tools."""


class Found(NamedTuple):
    """What a search found.

    Attributes:
        sequences: The matching tasks, in order.
        stop: The sequence up to which it looked; `None` where that is the end.
    """

    sequences: list[int]
    stop: int | None


def find(
    transaction: Transaction, wanted: TaskFilter, position: int | None, *, newest_first: bool, limit: int
) -> Found:
    """Return up to `limit` matching tasks behind a position, or fewer where it would take too long to find as many."""
    few = None if not wanted.id_prefix else _few_with_prefix(transaction, wanted.id_prefix)
    if few is not None:
        few = [sequence for sequence in few if _is_behind(sequence, position, newest_first)]
        few.sort(reverse=newest_first)
        condition, values = _condition(wanted)
        statement = f"SELECT 1 FROM tasks WHERE sequence = ? AND {ALIVE} AND {condition}"
        alive = ((sequence, transaction.stamp, *values) for sequence in few)
        matching = (parameters[0] for parameters in alive if transaction.execute(statement, parameters).fetchone())
        return _page(((sequence, 1) for sequence in matching), limit)
    bounds = _bounds(transaction, wanted)
    sources, rest = _sources(transaction, wanted)
    condition, values = _condition(rest)
    walks = [
        _walk(transaction, f"{source}{bounds}", keys, condition, values, position, newest_first, limit)
        for source, keys in sources
    ]
    return _page(merge(*walks, reverse=newest_first), limit)


def _page(walked: Iterator[tuple[int, Any]], limit: int) -> Found:
    found: list[int] = []
    for number, (sequence, matches) in enumerate(walked, 1):
        if matches:
            found.append(sequence)
        if len(found) == limit or number >= max(limit, LOOKED_AT_MOST):
            return Found(found, sequence)
    return Found(found, None)


def count(transaction: Transaction) -> TaskCounts:
    """Return how many tasks there are."""
    pairs = _pairs(transaction)
    oldest: dict[str, int] = {}
    for status, name, _ in pairs:
        if status in ("working", "input_required"):
            row = transaction.execute(_OLDEST, (status, to_sql(name), transaction.stamp)).fetchone()
            if row is not None:
                oldest[status] = min(row[0], oldest.get(status, row[0]))
    times = {status: from_stamp(created_at) for status, created_at in oldest.items()}
    errors: dict[str, int] = {}
    completed = [name for status, name, _ in pairs if status == "completed"]
    most = max(COUNTED_AT_MOST // max(1, len(completed)) // 1_000, 1) * 1_000
    for name in completed:
        (number,) = transaction.execute(_COUNT_ERRORS, (to_sql(name), transaction.stamp, most)).fetchone()
        if number:
            errors[name] = number
    return TaskCounts(
        {(status, name): number for status, name, number in pairs},
        times.get("working"),
        times.get("input_required"),
        errors,
        errors_up_to=most,
    )


def _sources(transaction: Transaction, wanted: TaskFilter) -> tuple[list[tuple[str, tuple[Any, ...]]], TaskFilter]:
    """Return the sets to walk, each with the values that it is named by, and what is still to be asked of the tasks."""
    kinds = [
        (status, name, number)
        for status, name, number in _pairs(transaction)
        if (wanted.statuses is None or status in wanted.statuses) and (wanted.names is None or name in wanted.names)
    ]
    if wanted.errors_only:
        rest = replace(wanted, statuses=None, names=None, errors_only=False)
        return [(_OF_ERROR, (to_sql(name),)) for status, name, _ in kinds if status == "completed"], rest
    if wanted.owners is not None:
        size = sum(number for *_, number in kinds)
        owned = 0
        for owner in wanted.owners:
            statement = f"SELECT count(*) FROM (SELECT 1 FROM {_OF_OWNER} LIMIT ?)"
            owned += transaction.execute(statement, (to_sql(owner), _FEW)).fetchone()[0]
        if owned < _FEW or owned < size:
            return [(_OF_OWNER, (to_sql(owner),)) for owner in wanted.owners], replace(wanted, owners=None)
    if wanted.statuses is None and wanted.names is None:
        return [(_ALL, ())], wanted
    rest = replace(wanted, statuses=None, names=None)
    return [(_OF_KIND, (status, to_sql(name))) for status, name, _ in kinds], rest


def _pairs(transaction: Transaction) -> list[tuple[TaskStatus, str, int]]:
    """Return the statuses and tools that there are tasks of, with their numbers; damaged ones are left out."""
    pairs: list[tuple[TaskStatus, str, int]] = []
    for status, name, number in transaction.execute(_PAIRS).fetchall():
        with suppress(ValueError):
            if status in TRANSITIONS:
                pairs.append((status, to_text(name), number))
    return pairs


def _walk(
    transaction: Transaction,
    source: str,
    keys: tuple[Any, ...],
    condition: str,
    values: tuple[Any, ...],
    position: int | None,
    newest_first: bool,
    limit: int,
) -> Iterator[tuple[int, Any]]:
    """Yield the sequences of the tasks of a set behind a position, in order, each with whether it matches."""
    behind, order = ("<", "DESC") if newest_first else (">", "ASC")
    size = min(limit, _CHUNK)
    while True:
        bound = "" if position is None else f" AND sequence {behind} {position:d}"
        rows = transaction.execute(
            f"SELECT sequence, {condition} FROM {source}{bound} AND {ALIVE} ORDER BY sequence {order} LIMIT {size:d}",
            (*values, *keys, transaction.stamp),
        ).fetchall()
        yield from rows
        if len(rows) < size:
            return
        position = rows[-1][0]
        size = min(4 * size, _LARGEST_CHUNK)


def _bounds(transaction: Transaction, wanted: TaskFilter) -> str:
    """Return between which sequences the tasks are that were created when they should be."""
    bounds = ""
    if wanted.created_after is not None:
        bounds += f" AND sequence >= {_sequence_at(transaction, wanted.created_after, -_SLACK):d}"
    if wanted.created_before is not None:
        bounds += f" AND sequence < {_sequence_at(transaction, wanted.created_before, _SLACK):d}"
    return bounds


def _sequence_at(transaction: Transaction, time: datetime, slack: timedelta) -> int:
    """Return the sequence of the first task that was created at a time or later."""
    stamp = to_stamp(time) + slack // timedelta(microseconds=1)
    first, last = transaction.execute(_ENDS).fetchone()
    if first is None:
        return 0
    low, high = first, last + 1
    while low < high:
        middle = (low + high) // 2
        row = transaction.execute(_AT_OR_BEHIND, (middle,)).fetchone()
        if row is not None and row[0] < stamp:
            low = middle + 1
        else:
            high = middle
    return cast("int", low)


def _condition(wanted: TaskFilter) -> tuple[str, tuple[Any, ...]]:
    """Return what a task must be, and the values of the parameters in it."""
    terms: list[str] = []
    values: list[Any] = []

    def add(term: str, *more: Any) -> None:
        terms.append(term)
        values.extend(more)

    for column, choice in (("status", wanted.statuses), ("name", wanted.names)):
        if choice is not None:
            add(_among(column, choice), *map(to_sql, choice))
    if wanted.owners is not None:
        named = wanted.owners - {None}
        among = _among("owner", named)
        add(among if named == wanted.owners else f"({among} OR owner IS NULL)", *map(to_sql, named))
    if wanted.id_prefix is not None:
        add("task_id >= ? AND task_id < ?", *_range(wanted.id_prefix))
    if wanted.text is not None:
        add("instr(lower(status_message), lower(?)) > 0", to_sql(wanted.text))
    if wanted.created_after is not None:
        add("created_at >= ?", to_stamp(wanted.created_after))
    if wanted.created_before is not None:
        add("created_at < ?", to_stamp(wanted.created_before))
    if wanted.errors_only:
        add("is_error = 1")
    return " AND ".join(terms) or "1", tuple(values)


def _among(column: str, choice: Collection[str | None]) -> str:
    """Return the condition that a column has one of these values: SQLite takes more of them in one than with `OR`."""
    return f"{column} IN ({', '.join('?' * len(choice))})"


def _few_with_prefix(transaction: Transaction, prefix: str) -> list[int] | None:
    """Return the sequences of the tasks whose identifier begins so, or `None` if they are many."""
    rows = transaction.execute(_BY_PREFIX, (*_range(prefix), _FEW + 1)).fetchall()
    return None if len(rows) > _FEW else [sequence for (sequence,) in rows]


def _range(prefix: str) -> tuple[Any, Any]:
    """Return the bounds between which all texts are that begin so: the second is above all of them."""
    return to_sql(prefix), to_sql(prefix + "\U0010ffff" * 8)


def _is_behind(sequence: int, position: int | None, newest_first: bool) -> bool:
    if position is None:
        return True
    return sequence < position if newest_first else sequence > position
