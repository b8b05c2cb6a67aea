"""The stored form of tasks in PostgreSQL, and the statements that read and write it. Imports no driver.

Everything stands in a database schema of its own (`mcp_task_runtime` unless another is named), so that
`DROP SCHEMA … CASCADE` removes all of it and nothing else. Version 1, which later versions can read:

`schema_migrations`: one row for each migration applied; the highest `version` is the schema's.

`tasks`, one row a task:

- `position`: order of creation; positions of list cursors
- `task_id`, `owner`, `status`, `status_message`, `created_at`, `last_updated_at`, `ttl_ms`,
  `poll_interval_ms`, `revision`, `retention_ms`: as in `Task` and `TaskRecord`
- `expires_at`: `created_at` plus `ttl_ms`, or NULL
- `request_method`, `request_name`, `request_arguments` (JSON), `progress_token` (JSON), `rerunnable`: the
  `TaskRequest`
- `client_capabilities`: JSON
- `outcome` (JSON), `outcome_message`: the payload and message of the `Outcome`; there is one exactly when
  `status` is terminal, and its status is that
- `lease_worker`, `lease_expires_at`, `lease_attempt`: the `Lease`, or three times NULL
- `watchers`: random numbers of the processes to notify of changes: the one that made the task, and
  whoever waited for it; some may be gone

`messages`, one row for each queued notification and for each request there ever was, kept as long as
the task's mailbox:

- `position`: order of enqueuing
- `mailbox`: the identifier of the task
- `task_id`: the same if there is such a task in `tasks`, which then takes its messages with it when it
  is deleted; otherwise NULL
- `key`, `method`, `params` (JSON): the `QueuedMessage`; `key` is NULL for a notification
- `queued`: whether the message is in the queue
- `answer_type`, `answer` (JSON): the `Answer`, once there is one

JSON is kept as text that PostgreSQL has checked (`json`, not `jsonb`): it comes back as it was given, and may
hold an escaped NUL. Other text cannot hold a NUL or a lone surrogate in PostgreSQL: these, and the escape
character itself, are kept as U+001A followed by four hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any, Final, cast, overload

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.core.types import Lease, Outcome, Task, TaskRecord, TaskRequest, TaskStatus, TerminalStatus

__all__ = [
    "ANSWER",
    "CLAIM",
    "CLEAR",
    "CREATE",
    "DELETE",
    "DELETE_EXPIRED",
    "DEQUEUE",
    "DROP_LEASES",
    "ENQUEUE",
    "FINISH",
    "GET",
    "KEY_BYTES",
    "LIST_LAPSED",
    "LIST_OF_NOBODY",
    "LIST_OF_OWNER",
    "LOOK_FOR_ANSWER",
    "LOOK_FOR_MESSAGE",
    "MAKE_MIGRATIONS",
    "MIGRATED",
    "MIGRATIONS",
    "OUTSTANDING",
    "PEEK",
    "PURGE",
    "RENEW_LEASES",
    "UPDATE",
    "VERSION",
    "WATCH",
    "create_parameters",
    "from_text",
    "record_of",
    "sources",
    "to_key",
    "to_text",
]

MIGRATIONS: Final = (
    """
    CREATE TABLE {tasks} (
        task_id text COLLATE "C" PRIMARY KEY,
        position bigint GENERATED ALWAYS AS IDENTITY,
        owner text COLLATE "C",
        status text NOT NULL,
        status_message text,
        created_at timestamptz NOT NULL,
        last_updated_at timestamptz NOT NULL,
        ttl_ms bigint,
        expires_at timestamptz,
        poll_interval_ms bigint NOT NULL,
        retention_ms bigint NOT NULL,
        revision bigint NOT NULL,
        request_method text NOT NULL,
        request_name text NOT NULL,
        request_arguments json NOT NULL,
        progress_token json,
        rerunnable boolean NOT NULL,
        client_capabilities json NOT NULL,
        outcome json,
        outcome_message text,
        lease_worker text,
        lease_expires_at timestamptz,
        lease_attempt integer,
        watchers bigint[] NOT NULL
    ) WITH (fillfactor = 85);
    CREATE INDEX tasks_by_owner ON {tasks} (owner, position);
    CREATE INDEX tasks_by_expiry ON {tasks} (expires_at) WHERE expires_at IS NOT NULL;
    CREATE INDEX tasks_by_lease ON {tasks} (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
    CREATE TABLE {messages} (
        position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        mailbox text COLLATE "C" NOT NULL,
        task_id text COLLATE "C" REFERENCES {tasks} ON DELETE CASCADE,
        key text COLLATE "C",
        method text NOT NULL,
        params json NOT NULL,
        queued boolean NOT NULL DEFAULT true,
        answer_type text,
        answer json,
        UNIQUE (mailbox, key)
    );
    CREATE INDEX messages_unanswered ON {messages} (mailbox, position) WHERE answer_type IS NULL;
    CREATE INDEX messages_by_task ON {messages} (task_id) WHERE task_id IS NOT NULL;
    """,
)
"""The statements that lead from each version to the next; the first from an empty schema to version 1."""

MAKE_MIGRATIONS: Final = (
    "CREATE TABLE {schema_migrations} (version integer PRIMARY KEY, applied_at timestamptz NOT NULL)"
)
MIGRATED: Final = "INSERT INTO {schema_migrations} (version, applied_at) VALUES (%(version)s, %(now)s)"
VERSION: Final = "SELECT max(version) FROM {schema_migrations}"

KEY_BYTES: Final = 1024
"""The longest identifier, owner or key: PostgreSQL indexes no text of more than some 2,700 bytes."""

# Every statement takes the time as a parameter, and none sees a task that has expired by it (law L7).
_ALIVE: Final = "(expires_at IS NULL OR expires_at > %(now)s)"
_MAIL: Final = (
    "mailbox = %(task_id)s AND NOT EXISTS"
    " (SELECT FROM {tasks} AS t WHERE t.task_id = m.task_id AND t.expires_at <= %(now)s)"
)
# A letter for what happened, the transaction that did it where the order matters, and whom it happened to.
_NOTIFY_UPDATE: Final = (
    "CASE WHEN NOT watchers <@ ARRAY[%(watcher)s]::bigint[] THEN pg_notify({channel}, 'u:' || task_id) END"
)
_NOTIFY_GONE: Final = "pg_notify({channel}, 'd' || pg_current_xact_id()::text || ':' || task_id)"

_COLUMNS: Final = (
    "task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, revision, owner,"
    " retention_ms, request_method, request_name, request_arguments::text, progress_token::text, rerunnable,"
    " client_capabilities::text, outcome::text, outcome_message, lease_worker, lease_expires_at, lease_attempt"
)
_RETURNING: Final = " RETURNING " + _COLUMNS + ", " + _NOTIFY_UPDATE

CREATE: Final = """
    INSERT INTO {tasks} (
        task_id, owner, status, created_at, last_updated_at, ttl_ms, expires_at, poll_interval_ms, retention_ms,
        revision, request_method, request_name, request_arguments, progress_token, rerunnable, client_capabilities,
        lease_worker, lease_expires_at, lease_attempt, watchers
    ) VALUES (
        %(task_id)s, %(owner)s, %(status)s, %(now)s, %(now)s, %(ttl_ms)s, %(expires_at)s, %(poll_interval_ms)s,
        %(retention_ms)s, %(revision)s, %(method)s, %(name)s, %(arguments)s, %(progress_token)s, %(rerunnable)s,
        %(client_capabilities)s, %(lease_worker)s, %(lease_expires_at)s, %(lease_attempt)s,
        ARRAY[%(watcher)s]::bigint[]
    ) ON CONFLICT (task_id) DO NOTHING"""

DELETE_EXPIRED: Final = "DELETE FROM {tasks} WHERE task_id = %(task_id)s AND expires_at <= %(now)s"

PURGE: Final = """
    DELETE FROM {tasks} WHERE task_id IN (
        SELECT task_id FROM {tasks} WHERE expires_at <= %(now)s ORDER BY expires_at
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )"""

GET: Final = "SELECT " + _COLUMNS + " FROM {tasks} WHERE task_id = %(task_id)s AND " + _ALIVE

# What an update and an end do stands in `core.transitions`; a test holds these to it.
UPDATE: Final = (
    """
    UPDATE {tasks} SET
        status = coalesce(%(status)s, status),
        status_message = coalesce(%(status_message)s, status_message),
        last_updated_at = greatest(%(now)s, last_updated_at),
        revision = revision + 1
    WHERE task_id = %(task_id)s AND status = ANY(%(sources)s::text[])
        AND (%(if_revision)s::bigint IS NULL OR revision = %(if_revision)s::bigint) AND """
    + _ALIVE
    + _RETURNING
)

_TTL: Final = """CASE WHEN ttl_ms IS NOT NULL THEN greatest(
            ttl_ms,
            ceil(extract(epoch FROM greatest(%(now)s, last_updated_at) - created_at) * 1000)::bigint + retention_ms
        ) END"""

FINISH: Final = (
    """
    UPDATE {tasks} SET
        status = %(status)s,
        status_message = CASE WHEN %(status_message)s::text IS NULL AND %(status)s::text <> 'completed'
            THEN status_message ELSE %(status_message)s::text END,
        last_updated_at = greatest(%(now)s, last_updated_at),
        ttl_ms = """
    + _TTL
    + """,
        expires_at = created_at + """
    + _TTL
    + """ * interval '1 millisecond',
        outcome = %(outcome)s,
        outcome_message = %(status_message)s,
        lease_worker = NULL,
        lease_expires_at = NULL,
        lease_attempt = NULL,
        revision = revision + 1
    WHERE task_id = %(task_id)s AND status = ANY(%(sources)s::text[]) AND """
    + _ALIVE
    + _RETURNING
)

WATCH: Final = (
    "UPDATE {tasks} SET watchers = watchers || %(watcher)s::bigint"
    " WHERE task_id = %(task_id)s AND NOT watchers @> ARRAY[%(watcher)s]::bigint[]"
)

DELETE: Final = "DELETE FROM {tasks} WHERE task_id = %(task_id)s AND " + _ALIVE + " RETURNING " + _NOTIFY_GONE

# Two statements: `owner IS NOT DISTINCT FROM` would use no index.
_LIST: Final = "SELECT position, " + _COLUMNS + " FROM {tasks} WHERE "
_PAGE: Final = " AND position > %(after)s AND " + _ALIVE + " ORDER BY position LIMIT %(limit)s"
LIST_OF_OWNER: Final = _LIST + "owner = %(owner)s" + _PAGE
LIST_OF_NOBODY: Final = _LIST + "owner IS NULL" + _PAGE

RENEW_LEASES: Final = (
    "UPDATE {tasks} SET lease_expires_at = %(lease_expires_at)s"
    " WHERE task_id = ANY(%(task_ids)s) AND lease_worker = %(worker)s AND " + _ALIVE + " RETURNING task_id"
)

DROP_LEASES: Final = """
    UPDATE {tasks} SET
        lease_expires_at = CASE WHEN %(lapse)s THEN least(%(now)s, lease_expires_at) END,
        lease_worker = CASE WHEN %(lapse)s THEN lease_worker END,
        lease_attempt = CASE WHEN %(lapse)s THEN lease_attempt END
    WHERE task_id = ANY(%(task_ids)s) AND lease_worker = %(worker)s"""

_LAPSED: Final = "lease_expires_at <= %(now)s AND " + _ALIVE
LIST_LAPSED: Final = (
    "SELECT " + _COLUMNS + " FROM {tasks} WHERE " + _LAPSED + (" ORDER BY lease_expires_at LIMIT %(limit)s")
)

CLAIM: Final = (
    """
    UPDATE {tasks} SET
        lease_worker = %(worker)s,
        lease_expires_at = %(lease_expires_at)s,
        lease_attempt = lease_attempt + 1,
        last_updated_at = greatest(%(now)s, last_updated_at),
        revision = revision + 1
    WHERE task_id = %(task_id)s AND """
    + _LAPSED
    + _RETURNING
)

ENQUEUE: Final = (
    """
    INSERT INTO {messages} AS m (mailbox, task_id, key, method, params) VALUES (
        %(task_id)s, (SELECT task_id FROM {tasks} WHERE task_id = %(task_id)s AND """
    + _ALIVE
    + """), %(key)s, %(method)s, %(params)s
    ) ON CONFLICT (mailbox, key) DO NOTHING RETURNING pg_notify({channel}, 'm:' || mailbox)"""
)

_HEAD: Final = (
    "SELECT m.position, m.key, m.method, m.params::text AS params FROM {messages} AS m WHERE "
    + _MAIL
    + " AND queued AND answer_type IS NULL ORDER BY position LIMIT 1"
)
PEEK: Final = _HEAD

# A request stays, for its answer; a notification goes.
DEQUEUE: Final = (
    "WITH head AS ("
    + _HEAD
    + """ FOR UPDATE),
    taken AS (
        UPDATE {messages} AS m SET queued = false FROM head WHERE m.position = head.position AND m.key IS NOT NULL
    ), gone AS (
        DELETE FROM {messages} AS m USING head WHERE m.position = head.position AND m.key IS NULL
    )
    SELECT position, key, method, params FROM head"""
)

OUTSTANDING: Final = (
    "SELECT m.position, m.key, m.method, m.params::text FROM {messages} AS m WHERE "
    + _MAIL
    + " AND key IS NOT NULL AND answer_type IS NULL ORDER BY position"
)

ANSWER: Final = (
    "UPDATE {messages} AS m SET answer_type = %(answer_type)s, answer = %(answer)s, queued = false WHERE "
    + _MAIL
    + " AND key = %(key)s AND answer_type IS NULL RETURNING pg_notify({channel}, 'a:' || mailbox)"
)

CLEAR: Final = """
    WITH gone AS (DELETE FROM {messages} WHERE mailbox = %(task_id)s)
    SELECT pg_notify({channel}, 'c' || pg_current_xact_id()::text || ':' || %(task_id)s::text)"""

LOOK_FOR_ANSWER: Final = (
    "SELECT answer_type, answer::text, (SELECT expires_at FROM {tasks} AS t WHERE t.task_id = m.task_id)"
    " FROM {messages} AS m WHERE " + _MAIL + " AND key = %(key)s"
)

# The last column bounds the transactions that this look, or whatever came before it, can have seen.
LOOK_FOR_MESSAGE: Final = (
    "SELECT EXISTS (SELECT FROM {messages} AS m WHERE "
    + _MAIL
    + """ AND queued AND answer_type IS NULL),
        t.task_id IS NOT NULL,
        t.expires_at,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint
    FROM (VALUES (true)) AS one LEFT JOIN {tasks} AS t ON t.task_id = %(task_id)s"""
)

_ESCAPE: Final = "\x1a"
_UNSTORABLE: Final = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED: Final = re.compile(_ESCAPE + "([0-9a-f]{4})")


@overload
def to_text(text: str) -> str: ...
@overload
def to_text(text: None) -> None: ...
@overload
def to_text(text: str | None) -> str | None: ...
def to_text(text: str | None) -> str | None:
    """Return the stored form of any text."""
    if text is None or _UNSTORABLE.search(text) is None:
        return text
    return _UNSTORABLE.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


@overload
def from_text(text: str) -> str: ...
@overload
def from_text(text: None) -> None: ...
@overload
def from_text(text: str | None) -> str | None: ...
def from_text(text: str | None) -> str | None:
    """Return the text of a stored form, or `None`."""
    if text is None or _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


def to_key(name: str, text: str) -> str:
    """Return the stored form of text that is indexed.

    Raises:
        ValueError: The text is too long; the message names it.
    """
    key = to_text(text)
    if len(key) > KEY_BYTES // 4 and len(key.encode()) > KEY_BYTES:
        raise ValueError(f"{name} must not be longer than {KEY_BYTES} bytes")
    return key


@cache
def sources(status: TaskStatus | None) -> str:
    """Return the statuses that `TRANSITIONS` lets a step to `status` begin at; `None` is a step to the same.

    They are an array in PostgreSQL's own form, for the driver takes long to make one of a list.
    """
    found = [now for now, following in TRANSITIONS.items() if (now if status is None else status) in following]
    return "{" + ",".join(found) + "}"


def create_parameters(record: TaskRecord, watcher: int) -> dict[str, Any]:
    """Return the parameters of `CREATE` for a new task."""
    task, request, lease = record.task, record.request, record.lease
    token = request.progress_token
    return {
        "task_id": to_key("task_id", task.task_id),
        "owner": None if record.owner is None else to_key("owner", record.owner),
        "status": task.status,
        "now": task.created_at,
        "ttl_ms": task.ttl_ms,
        "expires_at": task.expires_at,
        "poll_interval_ms": task.poll_interval_ms,
        "retention_ms": record.retention_ms,
        "revision": record.revision,
        "method": to_text(request.method),
        "name": to_text(request.name),
        "arguments": request.arguments_json,
        "progress_token": None if token is None else dump_json(to_text(token) if isinstance(token, str) else token),
        "rerunnable": request.rerunnable,
        "client_capabilities": record.client_capabilities_json,
        "lease_worker": None if lease is None else to_text(lease.worker),
        "lease_expires_at": None if lease is None else lease.expires_at,
        "lease_attempt": None if lease is None else lease.attempt,
        "watcher": watcher,
    }


def record_of(row: Sequence[Any]) -> TaskRecord:
    """Return the record of a row of `_COLUMNS`; what follows them is ignored."""
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
        outcome,
        outcome_message,
        worker,
        lease_expires_at,
        attempt,
    ) = row[:21]
    return TaskRecord(
        Task(
            from_text(task_id),
            status,
            from_text(message),
            utc(created_at),
            utc(updated_at),
            ttl_ms,
            poll_interval_ms,
        ),
        revision,
        from_text(owner),
        retention_ms,
        TaskRequest(
            from_text(method),
            from_text(name),
            arguments,
            None if progress_token is None else _token_of(load_json(progress_token)),
            rerunnable,
        ),
        capabilities,
        Outcome(cast("TerminalStatus", status), outcome, from_text(outcome_message))
        if status in TERMINAL_STATUSES
        else None,
        None if worker is None else Lease(from_text(worker), utc(lease_expires_at), attempt),
    )


def _token_of(token: str | int) -> str | int:
    return from_text(token) if isinstance(token, str) else token


def utc(time: datetime) -> datetime:
    """Return a time that came in the session's time zone."""
    return time.astimezone(timezone.utc)
