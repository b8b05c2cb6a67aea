"""The stored form of tasks in SQLite, and how it is opened, migrated and refused.

The version stands in `PRAGMA user_version`, and `PRAGMA application_id` says that the file is ours. Opening a
file applies the missing migrations in one transaction that holds the write lock. A file of a later
version, or of another application, is refused and left as it is.

Version 1. Times are microseconds since 1970-01-01 UTC. Columns are text unless a number is obvious. Text
that has no UTF-8 form, a lone surrogate from JSON, is kept as a blob in `surrogatepass` encoding.

`tasks`, one row a task:

- `sequence`: order of creation, never used twice; positions of list cursors
- `task_id`, `owner`, `status`, `status_message`, `created_at`, `last_updated_at`, `ttl_ms`,
  `poll_interval_ms`, `revision`, `retention_ms`: as in `Task` and `TaskRecord`
- `expires_at`: `created_at` plus `ttl_ms`, or NULL
- `method`, `name`, `arguments`, `progress_token`, `rerunnable`: the `TaskRequest`; `arguments` and
  `progress_token` are JSON
- `client_capabilities`: JSON
- `outcome_payload` (JSON), `outcome_message`: the `Outcome`; there is one when `status` is terminal, and
  its status is that
- `lease_worker`, `lease_expires_at`, `lease_attempt`: the `Lease`, or three times NULL

`messages`, one row for each queued notification and for each request there ever was, kept as long as
the task's mailbox:

- `position`: order of enqueuing among the rows of one task
- `task_id`, `type`, `method`, `params` (JSON), `key`: as in `QueuedMessage`
- `queued`: 1 while the message is in the queue
- `answer_type`, `answer_payload` (JSON): the `Answer`; `params` is `{}` once there is one

`clears`, one row for each of the last `KEPT_CLEARS` mailboxes that were cleared: what tells a process that
waits for a message, and so keeps nothing in the file, that another one cleared the mailbox.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, Literal, TypeAlias, cast

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import Lease, Outcome, Task, TaskRecord, TaskRequest, TerminalStatus
from mcp_task_runtime.errors import SchemaVersionError, StoreError

__all__ = [
    "APPLICATION_ID",
    "KEPT_CLEARS",
    "MIGRATIONS",
    "RECORD_COLUMNS",
    "Synchronous",
    "from_stamp",
    "insert_values",
    "open_database",
    "record_of",
    "to_sql",
    "to_stamp",
    "to_text",
]

Synchronous: TypeAlias = Literal["full", "normal"]
"""How safe a commit is: `full` outlasts a power failure, `normal` only a crash of the process."""

APPLICATION_ID: Final = 0x4D435054
"""`MCPT`: marks a file as ours."""

KEPT_CLEARS: Final = 1024
"""How many cleared mailboxes are remembered for waiters in other processes."""

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE tasks (
            sequence INTEGER PRIMARY KEY AUTOINCREMENT,
            task_id TEXT NOT NULL UNIQUE,
            owner TEXT,
            status TEXT NOT NULL,
            status_message TEXT,
            created_at INTEGER NOT NULL,
            last_updated_at INTEGER NOT NULL,
            ttl_ms INTEGER,
            poll_interval_ms INTEGER NOT NULL,
            expires_at INTEGER,
            revision INTEGER NOT NULL,
            retention_ms INTEGER NOT NULL,
            method TEXT NOT NULL,
            name TEXT NOT NULL,
            arguments TEXT NOT NULL,
            progress_token TEXT,
            rerunnable INTEGER NOT NULL,
            client_capabilities TEXT NOT NULL,
            outcome_payload TEXT,
            outcome_message TEXT,
            lease_worker TEXT,
            lease_expires_at INTEGER,
            lease_attempt INTEGER
        )""",
        "CREATE INDEX tasks_by_owner ON tasks (owner, sequence)",
        "CREATE INDEX tasks_by_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL",
        "CREATE INDEX tasks_by_lease ON tasks (lease_expires_at) WHERE lease_expires_at IS NOT NULL",
        """CREATE TABLE messages (
            position INTEGER PRIMARY KEY,
            task_id TEXT NOT NULL,
            type TEXT NOT NULL,
            method TEXT NOT NULL,
            params TEXT NOT NULL,
            key TEXT,
            queued INTEGER NOT NULL DEFAULT 1,
            answer_type TEXT,
            answer_payload TEXT,
            UNIQUE (task_id, key)
        )""",
        "CREATE INDEX messages_queued ON messages (task_id, position) WHERE queued = 1",
        "CREATE INDEX messages_open ON messages (task_id, position) WHERE key IS NOT NULL AND answer_type IS NULL",
        "CREATE TABLE clears (number INTEGER PRIMARY KEY, task_id TEXT NOT NULL)",
    ),
)
"""The statements that lead from each version to the next; the first from an empty file to version 1."""

RECORD_COLUMNS: Final = (
    "task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, revision, owner,"
    " retention_ms, method, name, arguments, progress_token, rerunnable, client_capabilities, outcome_payload,"
    " outcome_message, lease_worker, lease_expires_at, lease_attempt"
)
"""What `record_of` takes, in its order."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)


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
    """Return the text of a stored form, or `None`."""
    return value.decode("utf-8", "surrogatepass") if type(value) is bytes else value


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
        None if expires_at is None else to_stamp(expires_at),
    )


def record_of(row: Sequence[Any]) -> TaskRecord:
    """Return the record that a row of `RECORD_COLUMNS` holds."""
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
    ) = row
    created = from_stamp(created_at)
    updated = created if updated_at == created_at else from_stamp(updated_at)
    return TaskRecord(
        Task(to_text(task_id), status, to_text(message), created, updated, ttl_ms, poll_interval_ms),
        revision,
        to_text(owner),
        retention_ms,
        TaskRequest(
            to_text(method),
            to_text(name),
            to_text(arguments),
            None if progress_token is None else load_json(to_text(progress_token)),
            bool(rerunnable),
        ),
        to_text(capabilities),
        Outcome(cast("TerminalStatus", status), to_text(payload), to_text(outcome_message))
        if status in TERMINAL_STATUSES
        else None,
        None if worker is None else Lease(to_text(worker), from_stamp(lease_expires_at), attempt),
    )


def open_database(path: str, *, synchronous: Synchronous) -> sqlite3.Connection:
    """Open the file, make it if there is none, and bring its schema up to date.

    Raises:
        SchemaVersionError: A later version of this library wrote it.
        StoreError: It belongs to another application, or cannot be used with a write-ahead log.
        sqlite3.Error: It cannot be opened, is locked, or is no database.
    """
    connection = sqlite3.connect(path, timeout=0.0, isolation_level=None)
    try:
        connection.execute("BEGIN")  # what `_missing` looks at belongs together
        is_behind = bool(_missing(connection))
        connection.execute("COMMIT")
        if is_behind:
            _make_write_ahead(connection)
            connection.execute("BEGIN IMMEDIATE")
            for number, statements in _missing(connection):  # again: another process may have been first
                for statement in statements:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("COMMIT")
        _make_write_ahead(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous.upper()}")
        connection.execute("PRAGMA cache_size = -16000")  # KiB
        connection.execute("PRAGMA journal_size_limit = 67108864")  # bytes: a log that grew is cut again
    except BaseException:
        connection.close()
        raise
    return connection


def _missing(connection: sqlite3.Connection) -> list[tuple[int, tuple[str, ...]]]:
    """Return the migrations the file lacks, each with the version it leads to."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if version > len(MIGRATIONS):
        raise SchemaVersionError(found=version, supported=len(MIGRATIONS))
    if application != APPLICATION_ID:
        is_blank = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if application or version or not is_blank:
            raise StoreError("The database file belongs to another application")
    migrations: list[tuple[int, tuple[str, ...]]] = list(enumerate(MIGRATIONS, 1))
    return migrations[version:]


def _make_write_ahead(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        return
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise StoreError("The database cannot use a write-ahead log where it is")
