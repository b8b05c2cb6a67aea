"""How `mcp-tasks` shows tasks: as tables for people and as JSON for scripts."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Final

import click
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.operations.inspect import TaskDetails

__all__ = ["age", "console", "json_of", "json_of_details", "plain", "print_json", "question_text", "table_of"]

_NO_WIDTH: Final = 10_000
_SHORT_ID: Final = 12
"""Characters of an identifier on a terminal: commands take the beginning of one."""

_COLOURS: Final = {
    "working": "cyan",
    "input_required": "yellow",
    "completed": "green",
    "failed": "red",
    "cancelled": "magenta",
}


def console() -> Console:
    """Return the terminal, or a plain stream that breaks no lines."""
    # A pipe has no width: nothing is cut there.
    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _NO_WIDTH)


def plain(value: object) -> str:
    """Return text that a terminal shows and does not obey: clients can put anything into a task."""
    return "".join(char if char.isprintable() else "�" for char in str(value))


def age(then: datetime, now: datetime) -> str:
    """Return how long ago a time was, in its largest unit."""
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def json_of(record: TaskRecord, *, values: bool) -> JSONObject:
    """Return a task as scripts see it; `values` adds its arguments and result."""
    task, request, progress, lease = record.task, record.request, record.progress, record.lease
    shown: JSONObject = {
        "taskId": task.task_id,
        "status": task.status,
        "statusMessage": task.status_message,
        "tool": request.name,
        "owner": record.owner,
        "createdAt": task.created_at.isoformat(),
        "lastUpdatedAt": task.last_updated_at.isoformat(),
        "expiresAt": None if task.expires_at is None else task.expires_at.isoformat(),
        "ttlMs": task.ttl_ms,
        "revision": record.revision,
        "progress": None if progress is None else {"progress": progress.progress, "total": progress.total},
        "worker": None if lease is None else lease.worker,
        "attempt": None if lease is None else lease.attempt,
        "leaseExpiresAt": None if lease is None else lease.expires_at.isoformat(),
        "rerunnable": request.rerunnable,
        "isError": record.outcome is not None and record.outcome.is_error,
        "error": None if record.outcome is None else record.outcome.error,
    }
    if values:
        shown["arguments"] = request.arguments
        shown["result"] = None if record.outcome is None else record.outcome.result
    return shown


def print_json(value: JSONValue) -> None:
    """Print a value on one line."""
    click.echo(dump_json(value))


def table_of(records: list[TaskRecord], now: datetime) -> Table:
    """Return a row for each task."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("ID", "STATUS", "TOOL", "AGE", "PROGRESS", "MESSAGE"):
        table.add_column(column, no_wrap=column not in ("TOOL", "MESSAGE"))  # these two are cut where there is no room
    for record in records:
        task = record.task
        is_error = record.outcome is not None and record.outcome.is_error
        table.add_row(
            plain(task.task_id)[: _SHORT_ID if sys.stdout.isatty() else None],
            Text("completed (error)", style="red") if is_error else Text(task.status, style=_COLOURS[task.status]),
            _cut(record.request.name),
            age(task.created_at, now),
            _progress(record),
            _cut(task.status_message or ""),
        )
    return table


def _cut(text: str) -> Text:
    return Text(plain(text), no_wrap=True, overflow="ellipsis")


def _progress(record: TaskRecord) -> str | ProgressBar:
    progress = record.progress
    if progress is None:
        return ""
    if not progress.total:
        return f"{progress.progress:g}"
    if not sys.stdout.isatty():
        return f"{progress.progress:g}/{progress.total:g}"
    return ProgressBar(total=progress.total, completed=min(progress.progress, progress.total), width=16)


def json_of_details(details: TaskDetails, *, values: bool) -> JSONObject:
    """Return all there is of a task as scripts see it; see `json_of`."""
    shown = json_of(details.record, values=values)
    shown["questions"] = [
        {"key": question.key, "method": question.method, **({"params": question.params} if values else {})}
        for question in details.questions
    ]
    shown["history"] = [
        {"at": event.at.isoformat(), "kind": event.kind, "text": event.text} for event in details.history
    ]
    shown["steps"] = {key: load_json(value) for key, value in details.steps.items()} if values else list(details.steps)
    return shown


def question_text(question: QueuedMessage) -> str:
    """Return what a question says to a person."""
    return plain(question.params.get("message") or question.method)
