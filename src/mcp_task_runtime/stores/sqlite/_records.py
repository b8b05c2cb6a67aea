"""The stored form of records, messages and times, and what is done with rows that are damaged.

Times are microseconds since 1970-01-01 UTC. Text that has no UTF-8 form, a lone surrogate from JSON, is read as the
blob that version 1 made of it, in `surrogatepass` encoding; it is refused when it is written.

A damaged row is one that this library cannot have written: a value of the wrong type, text that is not UTF-8,
JSON that cannot be parsed. It raises `StoreError` for its own task; lists leave it out, and say so once in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias, cast

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.core.types import (
    Lease,
    Outcome,
    Progress,
    Task,
    TaskEventKind,
    TaskRecord,
    TaskRequest,
    TerminalStatus,
)
from mcp_task_runtime.errors import StoreError

__all__ = [
    "MESSAGE_COLUMNS",
    "RECORD_COLUMNS",
    "DamageLog",
    "StoredEvent",
    "answer_of",
    "events_json",
    "events_of",
    "from_stamp",
    "insert_values",
    "message_of",
    "progress_json",
    "record_of",
    "to_sql",
    "to_stamp",
    "to_text",
]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.sqlite")

RECORD_COLUMNS: Final = (
    "task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, revision, owner,"
    " retention_ms, method, name, arguments, progress_token, rerunnable, client_capabilities, outcome_payload,"
    " outcome_message, lease_worker, lease_expires_at, lease_attempt, max_attempts, caller,"
    " sealed_credentials, progress, lease_handovers"
)
"""What `record_of` takes, in its order."""

MESSAGE_COLUMNS: Final = "type, method, params, key"
"""What `message_of` takes, in its order."""

StoredEvent: TypeAlias = tuple[int, TaskEventKind, "str | None"]
"""Time, kind and text of an event."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_MOST_REPORTED: Final = 1024


def to_stamp(time: datetime) -> int:
    """Return the stored form of a time."""
    return (time - _EPOCH) // _MICROSECOND


def from_stamp(stamp: int) -> datetime:
    """Return the time of a stored form."""
    return _EPOCH + stamp * _MICROSECOND


def to_sql(text: str | None) -> str | bytes | None:
    """Return the stored form of any text."""
    if text is None or text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def to_text(value: Any) -> Any:
    """Return the text of a stored form, or `None`.

    Raises:
        ValueError: The value is damaged.
    """
    if value is None or type(value) is str:
        return value
    if type(value) is bytes:
        return value.decode("utf-8", "surrogatepass")
    raise ValueError("a number where text belongs")


def _to_json(value: Any) -> Any:
    """Return JSON text, which can be parsed, or `None`."""
    if value is None or value == "{}":
        return value
    text = to_text(value)
    load_json(text)
    return text


def _to_integer(value: Any) -> int:
    """Return a number."""
    if type(value) is int:
        return value
    raise ValueError("something else where a number belongs")


def progress_json(progress: Progress | None) -> str | None:
    """Return the stored form of progress."""
    return None if progress is None else dump_json([progress.progress, progress.total, progress.message])


def _progress_of(value: Any) -> Progress | None:
    if value is None:
        return None
    progress, total, message = load_json(to_text(value))
    return Progress(progress, total, message)


def insert_values(record: TaskRecord) -> tuple[Any, ...]:
    """Return the values of `RECORD_COLUMNS` followed by `expires_at`."""
    task, request, outcome, lease = record.task, record.request, record.outcome, record.lease
    expires_at = task.expires_at
    return (
        to_sql(task.task_id),
        task.status,
        to_sql(task.status_message),
        to_stamp(task.created_at),
        to_stamp(task.last_updated_at),
        task.ttl_ms,
        task.poll_interval_ms,
        record.revision,
        to_sql(record.owner),
        record.retention_ms,
        to_sql(request.method),
        to_sql(request.name),
        to_sql(request.arguments_json),
        None if request.progress_token is None else to_sql(dump_json(request.progress_token)),
        request.rerunnable,
        to_sql(record.client_capabilities_json),
        None if outcome is None else to_sql(outcome.payload_json),
        None if outcome is None else to_sql(outcome.status_message),
        None if lease is None else to_sql(lease.worker),
        None if lease is None else to_stamp(lease.expires_at),
        None if lease is None else lease.attempt,
        request.max_attempts,
        to_sql(request.caller_json),
        to_sql(request.sealed_credentials),
        progress_json(record.progress),
        0 if lease is None else lease.handovers,
        None if expires_at is None else to_stamp(expires_at),
    )


def record_of(row: Sequence[Any]) -> TaskRecord:
    """Return the record that a row of `RECORD_COLUMNS` holds.

    Raises:
        StoreError: The row is damaged.
    """
    try:
        return _record_of(row)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(f"What is stored of task {_shown(row[0])} is damaged") from error


def _record_of(row: Sequence[Any]) -> TaskRecord:
    (
        task_id,
        status,
        message,
        created_at,
        updated_at,
        ttl_ms,
        poll_interval_ms,
        revision,
        owner,
        retention_ms,
        method,
        name,
        arguments,
        progress_token,
        rerunnable,
        capabilities,
        payload,
        outcome_message,
        worker,
        lease_expires_at,
        attempt,
        max_attempts,
        caller,
        sealed_credentials,
        progress,
        handovers,
    ) = row
    if status not in TRANSITIONS:
        raise ValueError("an unknown status")
    created = from_stamp(_to_integer(created_at))
    updated = created if updated_at == created_at else from_stamp(_to_integer(updated_at))
    task = Task(
        to_text(task_id),
        status,
        to_text(message),
        created,
        updated,
        None if ttl_ms is None else _to_integer(ttl_ms),
        _to_integer(poll_interval_ms),
    )
    if ttl_ms is not None:
        _ = task.expires_at  # it is a time of the calendar
    return TaskRecord(
        task,
        _to_integer(revision),
        to_text(owner),
        _to_integer(retention_ms),
        TaskRequest(
            to_text(method),
            to_text(name),
            _to_json(arguments),
            None if progress_token is None else load_json(to_text(progress_token)),
            bool(rerunnable),
            _to_integer(max_attempts),
            _to_json(caller),
            to_text(sealed_credentials),
        ),
        _to_json(capabilities),
        Outcome(cast("TerminalStatus", status), _to_json(payload), to_text(outcome_message))
        if status in TERMINAL_STATUSES
        else None,
        None
        if worker is None
        else Lease(
            to_text(worker), from_stamp(_to_integer(lease_expires_at)), _to_integer(attempt), _to_integer(handovers)
        ),
        _progress_of(progress),
    )


def message_of(row: Sequence[Any]) -> QueuedMessage:
    """Return the message that a row of `MESSAGE_COLUMNS` holds.

    Raises:
        StoreError: The row is damaged.
    """
    try:
        if row[0] not in ("request", "notification"):
            raise ValueError("an unknown type")
        return QueuedMessage(row[0], to_text(row[1]), _to_json(row[2]), to_text(row[3]))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError("What is stored of a task's messages is damaged") from error


def answer_of(kind: Any, payload: Any) -> Answer:
    """Return the answer that the two columns hold.

    Raises:
        StoreError: They are damaged.
    """
    try:
        if kind not in ("result", "error", "withdrawn"):
            raise ValueError("an unknown type")
        return Answer(kind, _to_json(payload))
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError("What is stored of a task's answers is damaged") from error


def events_json(events: Sequence[StoredEvent]) -> str:
    """Return the stored form of a history."""
    return dump_json(events)


def events_of(value: Any) -> tuple[StoredEvent, ...]:
    """Return the history that the column holds.

    Raises:
        StoreError: It is damaged.
    """
    if value == "[]":
        return ()
    try:
        events: list[StoredEvent] = [(at, kind, text) for at, kind, text in load_json(to_text(value))]
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError("What is stored of a task's history is damaged") from error
    return tuple(events)


class DamageLog:
    """Decodes the rows of lists, and leaves out those that are damaged, with one log line for each."""

    def __init__(self) -> None:
        self._reported: set[Any] = set()

    def records_of(self, rows: Sequence[Sequence[Any]]) -> list[TaskRecord]:
        """Return the records of all rows of `RECORD_COLUMNS` that can be read."""
        records = []
        for row in rows:
            try:
                records.append(record_of(row))
            except StoreError as error:
                self._report(row[0], error)
        return records

    def _report(self, task_id: Any, error: StoreError) -> None:
        if task_id not in self._reported:
            if len(self._reported) == _MOST_REPORTED:
                self._reported.clear()
            self._reported.add(task_id)
            logger.error("%s, and left out of lists: %s", error, error.__cause__)


def _shown(task_id: Any) -> str:
    """Return the beginning of an identifier: the whole of it may be a secret (law L10)."""
    return f"{task_id if type(task_id) is str else repr(task_id):.8}…"
