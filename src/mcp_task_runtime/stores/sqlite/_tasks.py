"""Rows of `tasks` and what belongs to a task: the statements, and what they do within a transaction."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.sealed import event_excerpt
from mcp_task_runtime.core.text import clean_text
from mcp_task_runtime.core.transitions import EVENTS_KEPT, TERMINAL_STATUSES, check_room, is_terminal
from mcp_task_runtime.core.types import NewTask, TaskEventKind, TaskRecord
from mcp_task_runtime.errors import TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._records import (
    RECORD_COLUMNS,
    StoredEvent,
    events_json,
    events_of,
    insert_values,
    progress_json,
    record_of,
    to_sql,
    to_stamp,
    to_text,
)
from mcp_task_runtime.stores.sqlite._schema import KEPT_CLEARS, Synchronous
from mcp_task_runtime.stores.sqlite._transaction import Transaction

__all__ = [
    "ALIVE",
    "KNOWN_TASKS",
    "STATEMENTS",
    "WORK_TOPIC",
    "Event",
    "Found",
    "add_event",
    "claim",
    "exists",
    "finish",
    "insert",
    "load",
    "look_up",
    "miss",
    "note_clear",
    "open_engine",
    "purge",
    "read_record",
    "remove",
    "update",
]

Event: TypeAlias = tuple[TaskEventKind, "str | None"]
"""What happened to a task, and the text of the event."""

KNOWN_TASKS: Final = 256
"""How many tasks are kept in memory."""

ALIVE: Final = "(expires_at IS NULL OR expires_at > ?)"
"""Whether a task has not expired at the time that is the parameter."""

WORK_TOPIC: Final = "\0work"
"""In place of a task's id, which is never this: wakes those that wait for work."""

_SELECT: Final = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE task_id = ? AND {ALIVE}"
_FIND: Final = f"SELECT {RECORD_COLUMNS}, events, sequence FROM tasks WHERE task_id = ? AND {ALIVE}"
_EXISTS: Final = f"SELECT 1 FROM tasks WHERE task_id = ? AND {ALIVE}"
_KIND: Final = "SELECT status, name, owner FROM tasks WHERE task_id = ?"
_COUNT: Final = (
    "INSERT INTO counts (status, name, number) VALUES (?, ?, ?)"
    " ON CONFLICT (status, name) DO UPDATE SET number = number + excluded.number"
)
_DROP_COUNTS: Final = "DELETE FROM counts WHERE number <= 0"
_COUNT_LIVE: Final = (
    "INSERT INTO owners (owner, live) VALUES (?, ?) ON CONFLICT (owner) DO UPDATE SET live = live + excluded.live"
)
_DROP_OWNER: Final = "DELETE FROM owners WHERE owner = ? AND live <= 0"
_LIVE: Final = "SELECT live FROM owners WHERE owner = ?"
_EXPIRED_LIVE: Final = (
    "SELECT count(*) FROM tasks INDEXED BY tasks_by_expiry"
    " WHERE expires_at <= ? AND status IN ('working', 'input_required') AND owner IS ?"
)
_NO_OWNER: Final = b""
_ADD_EVENTS: Final = "UPDATE tasks SET events = ? WHERE task_id = ?"
# A sequence is used once, a revision too; of the rest only the time of the lease changes.
_IS_UNCHANGED: Final = (
    "SELECT 1 FROM tasks"
    f" WHERE sequence = ? AND revision = ? AND lease_expires_at IS ? AND lease_worker IS ? AND {ALIVE}"
)
# Not OR IGNORE: that is silent about everything else that a row may lack.
_INSERT: Final = (
    f"INSERT INTO tasks ({RECORD_COLUMNS}, expires_at)"
    f" VALUES ({', '.join('?' * (RECORD_COLUMNS.count(',') + 2))}) ON CONFLICT (task_id) DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ?, progress = ?, events = ?"
    " WHERE task_id = ?"
)
_FINISH: Final = (
    "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ?, progress = ?, events = ?,"
    " outcome_payload = ?, outcome_message = ?, arguments = ?, sealed_credentials = ?, is_error = ?,"
    " lease_worker = NULL, lease_expires_at = NULL, lease_attempt = NULL, lease_handovers = 0 WHERE task_id = ?"
)
# A separate, rare statement: setting an indexed column rewrites its index entry.
_EXTEND: Final = "UPDATE tasks SET ttl_ms = ?, expires_at = ? WHERE task_id = ?"
_CLAIM: Final = (
    "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ?, progress = ?, events = ?,"
    " lease_worker = ?, lease_expires_at = ?, lease_attempt = ? WHERE task_id = ?"
)
_EXPIRED: Final = "SELECT task_id FROM tasks WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
_DELETE: Final = "DELETE FROM tasks WHERE task_id = ?"
_DELETE_MESSAGES: Final = "DELETE FROM messages WHERE task_id = ?"
_DELETE_STEPS: Final = "DELETE FROM steps WHERE task_id = ?"

STATEMENTS: Final = (
    _SELECT,
    _FIND,
    _EXISTS,
    _KIND,
    _LIVE,
    _EXPIRED_LIVE,
    _DROP_OWNER,
    _IS_UNCHANGED,
    _UPDATE,
    _FINISH,
    _EXTEND,
    _CLAIM,
    _EXPIRED,
    _DELETE,
    _DELETE_MESSAGES,
    _DELETE_STEPS,
    _ADD_EVENTS,
)
"""All statements of this module that read or change rows which are there."""


def open_engine(
    path: str | os.PathLike[str], *, clock: Clock | None, synchronous: Synchronous, timeout: float
) -> Engine:
    """Return an engine that keeps tasks; see `Engine`."""
    return Engine(path, clock=clock, synchronous=synchronous, timeout=timeout, purge=purge, complete=write_counts)


def read_record(transaction: Transaction, task_id: str) -> TaskRecord | None:
    """Return a task, or `None` in about the same time."""
    row = transaction.execute(_SELECT, (to_sql(task_id), transaction.stamp)).fetchone()
    if row is None:
        miss()
        return None
    return record_of(row)


def miss() -> None:
    """Take as long as it takes to decode a row, so that the time tells no foreign task from an unknown one (L10)."""
    record_of(_DECOY)


def exists(transaction: Transaction, task_id: str) -> bool:
    """Whether there is a task, damaged or not."""
    return transaction.execute(_EXISTS, (to_sql(task_id), transaction.stamp)).fetchone() is not None


# fmt: off
_DECOY: Final[tuple[Any, ...]] = (
    "decoy-decoy-decoy-decoy", "working", "Working", 1_767_225_600_000_000, 1_767_225_601_000_000, 3_600_000, 500, 2,
    "owner", 3_600_000, "tools/call", "tool", '{"topic":"decoy","count":1}', None, 0,
    '{"elicitation":{},"sampling":{}}', None, None, "worker", 1_767_225_630_000_000, 1, 3, "{}", None, None, 0,
)
# fmt: on


class Found(NamedTuple):
    """A task that is about to be changed.

    Attributes:
        record: The task.
        events: Its history but for `created`: time, kind and text of each event.
        sequence: Its place in the order of creation.
    """

    record: TaskRecord
    events: tuple[StoredEvent, ...]
    sequence: int


def look_up(transaction: Transaction, task_id: str) -> Found | None:
    """Return a task that is about to be changed.

    Reading a row and making a record of it costs more than a change, and most changes are those of the process
    that made the task: so the newest are kept in memory.
    """
    known: Found | None = transaction.known.get(task_id)
    if known is not None:
        lease = known.record.lease
        until = (None, None) if lease is None else (to_stamp(lease.expires_at), to_sql(lease.worker))
        values = (known.sequence, known.record.revision, *until, transaction.stamp)
        if transaction.execute(_IS_UNCHANGED, values).fetchone() is not None:
            return known
        del transaction.known[task_id]
    row = transaction.execute(_FIND, (to_sql(task_id), transaction.stamp)).fetchone()
    return None if row is None else Found(record_of(row[:-2]), events_of(row[-2]), row[-1])


def load(transaction: Transaction, task_id: str) -> Found:
    """Return a task that is about to be changed.

    Raises:
        TaskNotFoundError: There is none.
        StoreError: What is stored of it is damaged.
    """
    found = look_up(transaction, task_id)
    if found is None:
        raise TaskNotFoundError(task_id)
    return found


def insert(transaction: Transaction, record: TaskRecord) -> None:
    """Add a task.

    Raises:
        TaskExistsError: Its identifier is taken.
    """
    values = insert_values(record)
    inserted = transaction.execute(_INSERT, values)
    if not inserted.rowcount:
        if exists(transaction, record.task_id):
            raise TaskExistsError(record.task_id)
        remove(transaction, record.task_id)  # it has expired, and its identifier is free again
        inserted = transaction.execute(_INSERT, values)
    assert inserted.lastrowid is not None
    transaction.count(record.status, to_sql(record.request.name), 1)
    transaction.count_live(_owner_key(to_sql(record.owner)), 1)
    _keep(transaction, Found(record, (), inserted.lastrowid))
    transaction.tell(record.task_id, record)
    if record.lease is not None and not record.lease.worker:
        transaction.tell(WORK_TOPIC)


def update(transaction: Transaction, found: Found, record: TaskRecord, events: Iterable[Event] = ()) -> None:
    """Write a record that `update_record` made of the one that was found."""
    history = _with_events(found, record.task.last_updated_at, events)
    transaction.execute(_UPDATE, _changes(record, history))
    _move(transaction, found.record, record)
    _keep(transaction, Found(record, history, found.sequence))
    transaction.tell(record.task_id, record)


def claim(transaction: Transaction, found: Found, record: TaskRecord) -> None:
    """Write a record that `claim_record` made of the one that was found."""
    lease = record.lease
    assert lease is not None
    event: Event = ("claimed" if lease.worker else "released", f"{lease.worker}#{lease.attempt}")
    history = _with_events(found, record.task.last_updated_at, [event])
    claimed = (to_sql(lease.worker), to_stamp(lease.expires_at), lease.attempt)
    transaction.execute(_CLAIM, _changes(record, history, *claimed))
    _keep(transaction, Found(record, history, found.sequence))
    transaction.tell(record.task_id, record)
    if not lease.worker:
        transaction.tell(WORK_TOPIC)


def finish(transaction: Transaction, found: Found, record: TaskRecord) -> None:
    """Write a record that `finish_record` made of the one that was found; its mailbox goes."""
    outcome, request = record.outcome, record.request
    assert outcome is not None
    ending = (
        to_sql(outcome.payload_json),
        to_sql(outcome.status_message),
        to_sql(request.arguments_json),
        to_sql(request.sealed_credentials),
        int(outcome.is_error),
    )
    history = _with_events(found, record.task.last_updated_at, [(outcome.status, outcome.status_message)])
    transaction.execute(_FINISH, _changes(record, history, *ending))
    _move(transaction, found.record, record)
    transaction.execute(_DELETE_MESSAGES, (to_sql(record.task_id),))
    transaction.known.pop(record.task_id, None)
    transaction.tell(record.task_id, record)


def remove(transaction: Transaction, task_id: str) -> None:
    """Delete a task and all that belongs to it, whether it has expired or not."""
    stored = (to_sql(task_id),)
    for status, name, owner in transaction.execute(_KIND, stored).fetchall():
        transaction.count(status, name, -1)
        if status not in TERMINAL_STATUSES:
            transaction.count_live(_owner_key(owner), -1)
    for statement in (_DELETE, _DELETE_MESSAGES, _DELETE_STEPS):
        transaction.execute(statement, stored)
    transaction.known.pop(task_id, None)
    transaction.tell(task_id)


def purge(transaction: Transaction, most: int) -> int:
    """Remove tasks that have expired, the longest expired first; each once, so its creation pays for it."""
    expired = transaction.execute(_EXPIRED, (transaction.stamp, most)).fetchall()
    for (task_id,) in expired:
        remove(transaction, to_text(task_id))
    transaction.execute(_DROP_COUNTS)
    return len(expired)


def write_counts(transaction: Transaction) -> None:
    """Write what was counted, before the commit: once for each status and name, however many tasks changed."""
    for (status, name), difference in transaction.counted.items():
        if difference:
            transaction.execute(_COUNT, (status, name, difference))
    for owner, difference in transaction.counted_live.items():
        if difference:
            transaction.execute(_COUNT_LIVE, (owner, difference))
        if difference < 0:
            transaction.execute(_DROP_OWNER, (owner,))


def count_live(transaction: Transaction, owner: str | None, *, at_least: int = 0) -> int:
    """Return how many live tasks an owner has, or `at_least` or fewer.

    Expired tasks that are still there are counted apart, if the number depends on them.

    Args:
        transaction: What the count is part of.
        owner: Whose tasks.
        at_least: Fewer need not be exact.
    """
    stored = to_sql(owner)
    key = _owner_key(stored)
    row = transaction.execute(_LIVE, (key,)).fetchone()
    live: int = transaction.counted_live.get(key, 0) + (0 if row is None else row[0])
    if live < at_least or not live:
        return live
    (expired,) = transaction.execute(_EXPIRED_LIVE, (transaction.stamp, stored)).fetchone()
    return live - int(expired)


def check_room_for(transaction: Transaction, new: NewTask) -> None:
    """Check that the owner of a new task may have one more.

    Raises:
        LimitExceededError: It may not.
    """
    if new.max_live is not None:
        check_room(count_live(transaction, new.owner, at_least=new.max_live), new.max_live)


def _owner_key(stored: object) -> object:
    return _NO_OWNER if stored is None else stored


def add_event(transaction: Transaction, found: Found, event: Event) -> None:
    """Add an event to the history of a task that is otherwise left as it is."""
    history = _with_events(found, transaction.now, [event])
    transaction.execute(_ADD_EVENTS, (events_json(history), to_sql(found.record.task_id)))
    transaction.known.pop(found.record.task_id, None)


def note_clear(transaction: Transaction, task_id: str) -> None:
    """Leave a trace for callers that wait for a message in another process."""
    number = transaction.execute("INSERT INTO clears (task_id) VALUES (?)", (to_sql(task_id),)).lastrowid
    transaction.execute("DELETE FROM clears WHERE number <= ?", ((number or 0) - KEPT_CLEARS,))
    transaction.tell(task_id)


def _with_events(found: Found, at: datetime, events: Iterable[Event]) -> tuple[StoredEvent, ...]:
    """Return the history of a task with more events; the oldest go where there are too many."""
    more: list[StoredEvent] = [
        (to_stamp(at), kind, None if text is None else clean_text(event_excerpt(text))) for kind, text in events
    ]
    return (*found.events, *more)[-EVENTS_KEPT:]


def _changes(record: TaskRecord, history: tuple[StoredEvent, ...], *more: Any) -> tuple[Any, ...]:
    """Return what every change of a task writes, then what this one does, then the task's id."""
    task = record.task
    return (
        task.status,
        to_sql(task.status_message),
        to_stamp(task.last_updated_at),
        record.revision,
        progress_json(record.progress),
        events_json(history),
        *more,
        to_sql(task.task_id),
    )


def _move(transaction: Transaction, found: TaskRecord, record: TaskRecord) -> None:
    """Change what stands in indexes and counts, if the record changed there."""
    task = record.task
    if task.status != found.task.status:
        name = to_sql(record.request.name)
        transaction.count(found.task.status, name, -1)
        transaction.count(task.status, name, 1)
        if is_terminal(task.status):
            transaction.count_live(_owner_key(to_sql(record.owner)), -1)
    if task.ttl_ms != found.task.ttl_ms:
        expires_at = None if task.expires_at is None else to_stamp(task.expires_at)
        transaction.execute(_EXTEND, (task.ttl_ms, expires_at, to_sql(task.task_id)))


def _keep(transaction: Transaction, found: Found) -> None:
    """Keep a task that was written, in place of the one that was kept longest."""
    known = transaction.known
    known.pop(found.record.task_id, None)
    if len(known) == KNOWN_TASKS:
        del known[next(iter(known))]
    known[found.record.task_id] = found
