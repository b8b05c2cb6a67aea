"""The tables in a SQLite file, and how a file is opened, migrated and refused.

The version stands in `PRAGMA user_version`, and `PRAGMA application_id` says that the file is ours. Opening a
file applies the missing migrations in one transaction that holds the write lock. A file of a later
version, or of another application, is refused and left as it is.

Columns are text unless a number is obvious; `_records` says how times and odd text are stored.

`tasks`, one row for each task:

- `sequence`: order of creation, never used twice; positions of list cursors
- `task_id`, `owner`, `status`, `status_message`, `created_at`, `last_updated_at`, `ttl_ms`,
  `poll_interval_ms`, `revision`, `retention_ms`: as in `Task` and `TaskRecord`
- `expires_at`: `created_at` plus `ttl_ms`, or NULL
- `method`, `name`, `arguments`, `progress_token`, `rerunnable`, from version 2 on `max_attempts`, `caller`,
  `sealed_credentials`: the `TaskRequest`; `arguments`, `progress_token` and `caller` are JSON
- `client_capabilities`: JSON
- `outcome_payload` (JSON), `outcome_message`: the `Outcome`; there is one when `status` is terminal, and
  its status is that
- `lease_worker`, `lease_expires_at`, `lease_attempt`: the `Lease`, or three times NULL; `lease_handovers`, from version
  3 on: its `handovers`
- `progress`, from version 2 on: the `Progress` as a JSON list of its three values, or NULL
- `events`, from version 2 on: the history without `created`, a JSON list of lists of time, kind and text
- `join_key`, from version 2 on: names the call that the task was made for, if a repeated call joins it
- `is_error`, from version 3 on: 1 if the task completed with a result that says `isError`; 0 for one that completed
  before

`messages`, one row for each queued notification and for each request there ever was, kept as long as
the task's mailbox:

- `position`: order of enqueuing among the rows of one task
- `task_id`, `type`, `method`, `params` (JSON), `key`: as in `QueuedMessage`
- `queued`: 1 while the message is in the queue
- `answer_type`, `answer_payload` (JSON): the `Answer`; `params` is `{}` once there is one

`clears`, one row for each of the last `KEPT_CLEARS` mailboxes that were cleared: tells a process that waits for a
message, which leaves no trace in the file, that another process cleared the mailbox.

From version 2 on:

- `steps`: the recorded results of steps, in the order of `position`
- `counts`: how many rows `tasks` has for each status and name; those without any may be there for a while
- `clock`: one row, or none: the time of the file, see `_clock`. `ahead` is added to the machine's uptime, `uptime`
  and `asleep` are what the machine said when the row was written, `boot` which boot that was
- `secrets`: `cursor` encrypts the positions in list cursors

From version 3 on:

- `owners`: how many live tasks each owner has, expired ones that are still there included; an empty blob stands for
  tasks without an owner

Indexes may change without a new version, so that processes of an earlier version of this library go on with the file:
those of 0.2.0 made `tasks_by_lease` in place of `tasks_held`.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from mcp_task_runtime.errors import SchemaVersionError, StoreError

__all__ = ["APPLICATION_ID", "KEPT_CLEARS", "MIGRATIONS", "Synchronous", "open_database"]

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
    (
        "ALTER TABLE tasks ADD COLUMN max_attempts INTEGER NOT NULL DEFAULT 3",
        "ALTER TABLE tasks ADD COLUMN caller TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE tasks ADD COLUMN sealed_credentials TEXT",
        "ALTER TABLE tasks ADD COLUMN progress TEXT",
        "ALTER TABLE tasks ADD COLUMN events TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE tasks ADD COLUMN join_key TEXT",
        "CREATE INDEX tasks_by_join_key ON tasks (join_key, sequence) WHERE join_key IS NOT NULL",
        "CREATE INDEX tasks_by_kind ON tasks (status, name, sequence)",
        """CREATE TABLE counts (
            status TEXT NOT NULL,
            name TEXT NOT NULL,
            number INTEGER NOT NULL,
            PRIMARY KEY (status, name)
        ) WITHOUT ROWID""",
        "INSERT INTO counts (status, name, number) SELECT status, name, count(*) FROM tasks GROUP BY status, name",
        """CREATE TABLE steps (
            position INTEGER PRIMARY KEY,
            task_id TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            UNIQUE (task_id, key)
        )""",
        """CREATE TABLE clock (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            boot TEXT NOT NULL,
            ahead INTEGER NOT NULL,
            uptime INTEGER NOT NULL,
            asleep INTEGER NOT NULL
        )""",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
        "INSERT INTO secrets (name, value) VALUES ('cursor', randomblob(32))",
    ),
    (
        "ALTER TABLE tasks ADD COLUMN is_error INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX tasks_by_error ON tasks (name, sequence) WHERE is_error = 1",
        "ALTER TABLE tasks ADD COLUMN lease_handovers INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX tasks_waiting ON tasks (name, lease_expires_at) WHERE lease_worker = ''",
        "CREATE TABLE owners (owner PRIMARY KEY NOT NULL, live INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO owners (owner, live) SELECT ifnull(owner, x''), count(*) FROM tasks"
        " WHERE status IN ('working', 'input_required') GROUP BY 1",
    ),
)
"""The statements that lead from each version to the next; the first from an empty file to version 1."""

_REINDEX: Final = (
    "DROP INDEX IF EXISTS tasks_by_lease",
    "CREATE INDEX tasks_held ON tasks (lease_expires_at) WHERE lease_worker <> ''",
)
"""The statements that give a file of the latest version the indexes of this version of the library."""


def open_database(path: str, *, synchronous: Synchronous, create: bool) -> sqlite3.Connection:
    """Open the file and bring its schema up to date.

    Args:
        path: The file's absolute path.
        synchronous: How safe a commit is.
        create: Whether to make the file if there is none, for its owner alone.

    Raises:
        SchemaVersionError: A later version of this library wrote it.
        StoreError: It belongs to another application, or cannot be used with a write-ahead log; the text goes
            behind the name of the file.
        sqlite3.Error: It cannot be opened, is locked, or is no database.
    """
    if create:
        _make_private(path)
    url = f"{Path(path).as_uri()}?mode={'rwc' if create else 'rw'}"
    connection = sqlite3.connect(url, timeout=0.0, isolation_level=None, uri=True)
    try:
        connection.execute("BEGIN")  # what `_missing` looks at belongs together
        is_behind = bool(_missing(connection, path))
        connection.execute("COMMIT")
        if is_behind:
            _make_write_ahead(connection)
            connection.execute("BEGIN IMMEDIATE")
            for number, statements in _missing(connection, path):  # again: another process may have been first
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


def _make_private(path: str) -> None:
    """Make an empty file that its owner alone can read, if there is none; SQLite gives its log the same permissions."""
    with suppress(OSError):  # it exists, or SQLite says why it cannot be made
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _missing(connection: sqlite3.Connection, path: str) -> list[tuple[int, tuple[str, ...]]]:
    """Return the migrations the file lacks, each with the version it leads to, and then the indexes it lacks."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if version > len(MIGRATIONS):
        raise SchemaVersionError(found=version, supported=len(MIGRATIONS))
    if application != APPLICATION_ID:
        is_blank = connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        if application or version or not is_blank:
            raise StoreError("belongs to another application")
    missing: list[tuple[int, tuple[str, ...]]] = []
    missing += list(enumerate(MIGRATIONS, 1))[version:]
    has_index = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'tasks_held'").fetchone() == (1,)
    if not has_index and os.access(path, os.W_OK):  # one who may only read goes on without
        missing.append((len(MIGRATIONS), _REINDEX))
    return missing


def _make_write_ahead(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        return
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise StoreError("cannot use a write-ahead log where it is")
