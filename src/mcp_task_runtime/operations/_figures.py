"""How `mcp-tasks` shows the figures of a store: its workers, and how many tasks there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast

from rich.table import Table
from rich.text import Text

from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.types import TaskCounts
from mcp_task_runtime.operations._command import STATUSES
from mcp_task_runtime.operations._numbers import counted
from mcp_task_runtime.operations._rendering import age, plain
from mcp_task_runtime.operations.inspect import WorkerSummary, WorkerSurvey

__all__ = ["json_of_figures", "json_of_worker", "lines_of_figures", "table_of_counts", "table_of_workers"]


def json_of_worker(worker: WorkerSummary) -> JSONObject:
    """Return what a worker runs as scripts see it."""
    return {
        "worker": worker.name or None,
        "tasks": cast(JSONObject, worker.tasks),
        "since": worker.since.isoformat(),
        "leaseExpiresAt": worker.lease_expires_at.isoformat(),
        "hasLapsed": worker.has_lapsed,
    }


def table_of_workers(workers: Sequence[WorkerSummary], now: datetime) -> Table:
    """Return a row for each worker."""
    table = _table()
    for column in ("WORKER", "TASKS", "TOOLS", "OLDEST", "LEASE"):
        table.add_column(column)
    for worker in workers:
        tools = ", ".join(f"{plain(name)} {number}" for name, number in sorted(worker.tasks.items()))
        left = "lapsed" if worker.has_lapsed else f"{(worker.lease_expires_at - now).total_seconds():.0f}s left"
        table.add_row(
            plain(worker.name) or "(waiting for one)",
            str(sum(worker.tasks.values())),
            tools,
            age(worker.since, now),
            Text(left, style="red" if worker.has_lapsed else ""),
        )
    return table


def json_of_figures(counts: TaskCounts, survey: WorkerSurvey) -> JSONObject:
    """Return how many tasks there are, and what waits for a worker, as scripts see it."""
    waiting = survey.waiting
    return {
        "counts": [
            {"status": status, "tool": name, "count": number}
            for (status, name), number in sorted(counts.by_status_and_name.items())
        ],
        "countedUpTo": counts.counted_up_to,
        "errors": [{"tool": name, "count": number} for name, number in sorted(counts.errors_by_name.items()) if number],
        "errorsCountedUpTo": counts.errors_up_to,
        "oldestWorking": _iso(counts.oldest_working),
        "oldestInputRequired": _iso(counts.oldest_input_required),
        "waitingForWorker": 0 if waiting is None else sum(waiting.tasks.values()),
        "oldestWaitingForWorker": None if waiting is None else waiting.since.isoformat(),
        "waitingForSlot": survey.queued,
        "waitingIsComplete": survey.is_complete,
    }


def table_of_counts(counts: TaskCounts) -> Table:
    """Return a row for each tool, and a column for each status."""
    table = _table()
    for column in ("TOOL", *(status.upper() for status in STATUSES), "(ERRORS)"):
        table.add_column(column, justify="left" if column == "TOOL" else "right")
    for name in sorted({name for _, name in counts.by_status_and_name}):
        numbers = [counts.by_status_and_name.get((status, name), 0) for status in STATUSES]
        shown = [counted([number], counts.counted_up_to) if number else "" for number in numbers]
        errors = counts.errors_by_name.get(name, 0)
        table.add_row(plain(name), *shown, counted([errors], counts.errors_up_to) if errors else "")
    return table


def lines_of_figures(counts: TaskCounts, survey: WorkerSurvey, now: datetime) -> list[str]:
    """Return what is said below the table: the oldest live tasks, and what waits for a worker."""
    lines = [
        f"oldest {status}: {age(oldest, now)}"
        for status, oldest in (("working", counts.oldest_working), ("input_required", counts.oldest_input_required))
        if oldest is not None
    ]
    more = "" if survey.is_complete else "+"
    if survey.queued:
        lines.append(f"waiting for a slot of its process: {survey.queued:,}{more}")
    waiting = survey.waiting
    if waiting is not None:
        number = f"{sum(waiting.tasks.values()):,}{more}"
        lines.append(f"waiting for a worker: {number}, the oldest made {age(waiting.since, now)} ago")
    return lines


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold")


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
