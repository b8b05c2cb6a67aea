"""Tasks in a SQLite file: durable with nothing else installed, for any number of processes on one machine.

Needs a local disk: SQLite's locks and its write-ahead log do not work over a network. The stored form
stands in `_schema`; threads, group commit and the wake-up between processes in `_engine`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final

from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import create_record, finish_record, update_record
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    TaskPage,
    TaskRecord,
    TaskRequest,
)
from mcp_task_runtime.errors import InvalidCursorError, StoreClosedError, TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores._cursor import decode_cursor, encode_cursor
from mcp_task_runtime.stores.sqlite._engine import Engine, Transaction
from mcp_task_runtime.stores.sqlite._schema import (
    KEPT_CLEARS,
    RECORD_COLUMNS,
    Synchronous,
    from_stamp,
    insert_values,
    record_of,
    to_sql,
    to_stamp,
    to_text,
)

__all__ = ["SQLiteTaskMessageQueue", "SQLiteTaskStore"]

_NO_REQUEST: Final = TaskRequest()
_MOST_KNOWN: Final = 256
_LARGEST_INTEGER: Final = 2**63 - 1

_ALIVE = "(expires_at IS NULL OR expires_at > ?)"
_SELECT = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE task_id = ? AND {_ALIVE}"
# A sequence is used once, a revision too; beside them only the time of the lease changes.
_IS_UNCHANGED = f"SELECT 1 FROM tasks WHERE sequence = ? AND revision = ? AND lease_expires_at IS ? AND {_ALIVE}"
# Not OR IGNORE: that is silent about whatever else a row may lack.
_INSERT = (
    f"INSERT INTO tasks ({RECORD_COLUMNS}, expires_at)"
    f" VALUES ({', '.join('?' * (RECORD_COLUMNS.count(',') + 2))}) ON CONFLICT (task_id) DO NOTHING"
)
_UPDATE = "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ? WHERE task_id = ?"
_FINISH = (
    "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ?,"
    " outcome_payload = ?, outcome_message = ?, lease_worker = NULL, lease_expires_at = NULL, lease_attempt = NULL"
    " WHERE task_id = ?"
)
# By itself, for it is rare, and SQLite makes the entries of an index anew for whatever is set.
_EXTEND = "UPDATE tasks SET ttl_ms = ?, expires_at = ? WHERE task_id = ?"
# Without INDEXED BY a database that was never analysed may be read in order of creation, all owners.
_PAGE = (
    f"SELECT {RECORD_COLUMNS}, sequence FROM tasks INDEXED BY tasks_by_owner"
    f" WHERE owner IS ? AND sequence > ? AND {_ALIVE} ORDER BY sequence LIMIT ?"
)
_EXPIRED_TASK = "SELECT 1 FROM tasks WHERE task_id = ? AND expires_at <= ?"
_EXPIRED = "SELECT task_id FROM tasks WHERE expires_at <= ? ORDER BY expires_at LIMIT ?"
_RENEW = f"UPDATE tasks SET lease_expires_at = ? WHERE task_id = ? AND lease_worker = ? AND {_ALIVE}"
_LAPSE = "UPDATE tasks SET lease_expires_at = min(lease_expires_at, ?) WHERE task_id = ? AND lease_worker = ?"
_DROP = (
    "UPDATE tasks SET lease_worker = NULL, lease_expires_at = NULL, lease_attempt = NULL"
    " WHERE task_id = ? AND lease_worker = ?"
)
_LAPSED = (
    f"SELECT {RECORD_COLUMNS} FROM tasks WHERE lease_expires_at <= ? AND {_ALIVE} ORDER BY lease_expires_at LIMIT ?"
)
_CLAIM = (
    "UPDATE tasks SET status = ?, status_message = ?, last_updated_at = ?, revision = ?, lease_worker = ?,"
    " lease_expires_at = ?, lease_attempt = ? WHERE task_id = ?"
)

_MESSAGE = "type, method, params, key"
# The mailbox of an expired task is gone with it, even if its rows are still there.
_MAILBOX_ALIVE = "NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = messages.task_id AND expires_at <= ?)"
_ENQUEUE = f"INSERT INTO messages (task_id, {_MESSAGE}) VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id, key) DO NOTHING"
_OLDEST = (
    f"SELECT {_MESSAGE}, position FROM messages INDEXED BY messages_queued"
    f" WHERE task_id = ? AND queued = 1 AND {_MAILBOX_ALIVE} ORDER BY position LIMIT 1"
)
_OPEN = (
    f"SELECT {_MESSAGE} FROM messages INDEXED BY messages_open"
    f" WHERE task_id = ? AND key IS NOT NULL AND answer_type IS NULL AND {_MAILBOX_ALIVE} ORDER BY position"
)
_ANSWER = (
    "UPDATE messages SET queued = 0, params = '{}', answer_type = ?, answer_payload = ?"
    f" WHERE task_id = ? AND key = ? AND answer_type IS NULL AND {_MAILBOX_ALIVE}"
)
_ANSWERED = (
    "SELECT answer_type, answer_payload, expires_at FROM messages LEFT JOIN tasks USING (task_id)"
    f" WHERE task_id = ? AND key = ? AND {_MAILBOX_ALIVE}"
)
_MAIL = (
    "SELECT EXISTS (SELECT 1 FROM messages WHERE task_id = :task_id AND queued = 1),"
    " (SELECT max(number) FROM clears),"
    " EXISTS (SELECT 1 FROM clears WHERE number > :seen AND task_id = :task_id),"
    " EXISTS (SELECT 1 FROM tasks WHERE task_id = :task_id),"
    " (SELECT expires_at FROM tasks WHERE task_id = :task_id)"
)


class SQLiteTaskStore:
    """A `TaskStore` with `TaskLeases` in a SQLite file.

    It opens at its first use, on whatever event loop; `async with` opens it at once, and closes it. Processes,
    and stores, that use one file see each other's changes at once; who waits is woken within about 50 ms.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock | None = None, synchronous: Synchronous = "full"
    ) -> None:
        """Make a store; the file is made when it is opened, its folder must exist.

        Args:
            path: The database file, on a local disk.
            clock: Where time comes from; the system's when `None`. Its `now` is called in threads.
            synchronous: `full` keeps what was acknowledged through a power failure. `normal` is faster
                and keeps it only through the end of the process.

        Raises:
            ValueError: `path` names no file, or `synchronous` is unknown.
        """
        self._engine = _make_engine(path, clock, synchronous)
        self._queue = SQLiteTaskMessageQueue._of_store(self._engine)

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._engine.clock

    @property
    def message_queue(self) -> SQLiteTaskMessageQueue:
        """The queue in the same file: a task's mailbox goes when the task goes."""
        return self._queue

    async def __aenter__(self) -> Self:
        """Open the file.

        Raises:
            SchemaVersionError: A later version of this library wrote it.
            StoreUnavailableError: It cannot be opened or written.
            StoreError: It is not a database, or not one of ours.
        """
        await self._engine.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the file, and the queue with it: whoever waits is woken with `StoreClosedError`."""
        await self._engine.aclose()

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        new = new if new.task_id is not None else replace(new, task_id=new_task_id())

        def create(transaction: Transaction) -> TaskRecord:
            record = create_record(new, now=transaction.now)
            _insert(transaction, record)
            return record

        return await self._engine.write(create, task_id=new.task_id)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        return await self._engine.read(partial(_find, task_id))

    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        progress: Progress | None = None,
        ttl_ms: int | None = None,
        if_revision: int | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord:
        """Change a live task; see `TaskStore.update_task`."""
        if progress is not None or ttl_ms is not None or fence is not None:
            raise NotImplementedError

        def update(transaction: Transaction) -> TaskRecord:
            record = update_record(
                _load(task_id, transaction),
                now=transaction.now,
                status=status,
                status_message=status_message,
                if_revision=if_revision,
            )
            transaction.execute(_UPDATE, _changes(record))
            _keep(transaction, record)
            return record

        return await self._engine.write(update, task_id=task_id)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        if fence is not None:
            raise NotImplementedError

        def finish(transaction: Transaction) -> TaskRecord:
            found = _load(task_id, transaction)
            record = finish_record(found, outcome, now=transaction.now)
            ending = (to_sql(outcome.payload_json), to_sql(outcome.status_message))
            transaction.execute(_FINISH, _changes(record, *ending))
            if record.task.ttl_ms != found.task.ttl_ms:
                assert record.task.expires_at is not None
                extension = (record.task.ttl_ms, to_stamp(record.task.expires_at), to_sql(task_id))
                transaction.execute(_EXTEND, extension)
            transaction.known.pop(task_id, None)
            return record

        return await self._engine.write(finish, task_id=task_id)

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self._engine.read(partial(_load, task_id))
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        position = 0 if cursor is None else decode_cursor(cursor, owner)
        if not 0 <= position <= _LARGEST_INTEGER:
            raise InvalidCursorError
        size = min(limit, _LARGEST_INTEGER - 1)

        def page(transaction: Transaction) -> TaskPage:
            rows = transaction.execute(_PAGE, (to_sql(owner), position, transaction.stamp, size + 1)).fetchall()
            next_cursor = encode_cursor(rows[size - 1][-1], owner) if len(rows) > size else None
            return TaskPage(tuple([record_of(row[:-1]) for row in rows[:size]]), next_cursor)

        return await self._engine.read(page)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""

        def delete(transaction: Transaction) -> bool:
            was_there = _find(task_id, transaction) is not None
            if was_there:
                _remove(transaction, task_id)
                _note_clear(transaction, task_id)
            return was_there

        return await self._engine.write(delete, task_id=task_id)

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""

        def look(transaction: Transaction) -> tuple[TaskRecord | None, datetime | None]:
            record = _load(task_id, transaction)
            return (record if record.revision > after else None), record.task.expires_at

        return await self._engine.wait(task_id, look)

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`.

        Does not wait for the disk: a power failure ends the worker, too.
        """
        wanted = tuple(task_ids)

        def renew(transaction: Transaction) -> frozenset[str]:
            until = to_stamp(transaction.now + timedelta(milliseconds=lease_ms))
            return frozenset(
                [
                    task_id
                    for task_id in wanted
                    if transaction.execute(_RENEW, (until, to_sql(task_id), to_sql(worker), transaction.stamp)).rowcount
                ]
            )

        return await self._engine.write(renew, lasting=False) if wanted else frozenset()

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; see `TaskLeases.drop_leases`."""
        wanted = tuple(task_ids)

        def drop(transaction: Transaction) -> None:
            for task_id in wanted:
                if lapse:
                    transaction.execute(_LAPSE, (transaction.stamp, to_sql(task_id), to_sql(worker)))
                else:
                    transaction.execute(_DROP, (to_sql(task_id), to_sql(worker)))

        if wanted:
            await self._engine.write(drop)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")

        def lapsed(transaction: Transaction) -> tuple[TaskRecord, ...]:
            stamp = transaction.stamp
            rows = transaction.execute(_LAPSED, (stamp, stamp, min(limit, _LARGEST_INTEGER)))
            return tuple([record_of(row) for row in rows])

        return await self._engine.read(lapsed)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; see `TaskLeases.claim_task`."""

        def claim(transaction: Transaction) -> TaskRecord | None:
            found, now = _find(task_id, transaction), transaction.now
            if found is None or found.lease is None or now < found.lease.expires_at:
                return None
            lease = Lease(worker, now + timedelta(milliseconds=lease_ms), found.lease.attempt + 1)
            record = replace(update_record(found, now=now), lease=lease)
            transaction.execute(_CLAIM, _changes(record, to_sql(worker), to_stamp(lease.expires_at), lease.attempt))
            return record

        return await self._engine.write(claim, task_id=task_id)


class SQLiteTaskMessageQueue:
    """A `TaskMessageQueue` in a SQLite file.

    That of a store shares the store's file and threads, and forgets a task's mailbox when the task goes. One
    that is made by itself is a queue for any ids; a task's mailbox is kept until `clear` is called for it, or
    until the task goes if the file has that, too.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, clock: Clock | None = None, synchronous: Synchronous = "full"
    ) -> None:
        """Make a queue; see `SQLiteTaskStore`.

        Args:
            path: The database file, on a local disk.
            clock: What tells when a task in the same file has expired; the system's when `None`.
            synchronous: How safe a commit is.

        Raises:
            ValueError: `path` names no file, or `synchronous` is unknown.
        """
        self._engine = _make_engine(path, clock, synchronous)
        self._owns_engine = True
        self._is_closed = False

    @classmethod
    def _of_store(cls, engine: Engine) -> Self:
        queue = cls.__new__(cls)
        queue._engine = engine
        queue._owns_engine = queue._is_closed = False
        return queue

    async def __aenter__(self) -> Self:
        """Open the file; see `SQLiteTaskStore`."""
        await self._engine.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the queue: whoever waits is woken with `StoreClosedError`. A store stays open."""
        self._is_closed = True
        if self._owns_engine:
            await self._engine.aclose()
        else:
            self._engine.wake_waiters()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        values = (
            to_sql(task_id),
            message.type,
            to_sql(message.method),
            to_sql(message.params_json),
            to_sql(message.key),
        )

        def enqueue(transaction: Transaction) -> bool:
            if transaction.execute(_EXPIRED_TASK, (to_sql(task_id), transaction.stamp)).fetchone() is not None:
                _remove(transaction, task_id)
            return transaction.execute(_ENQUEUE, values).rowcount == 1

        return await self._open_engine().write(enqueue, task_id=task_id)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""

        def dequeue(transaction: Transaction) -> QueuedMessage | None:
            row = transaction.execute(_OLDEST, (to_sql(task_id), transaction.stamp)).fetchone()
            if row is None:
                return None
            if row[3] is None:
                transaction.execute("DELETE FROM messages WHERE position = ?", row[4:])
            else:
                transaction.execute("UPDATE messages SET queued = 0 WHERE position = ?", row[4:])
            return _message_of(row)

        return await self._open_engine().write(dequeue)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""

        def peek(transaction: Transaction) -> QueuedMessage | None:
            row = transaction.execute(_OLDEST, (to_sql(task_id), transaction.stamp)).fetchone()
            return None if row is None else _message_of(row)

        return await self._open_engine().read(peek)

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return await self.peek(task_id) is None

    async def clear(self, task_id: str) -> None:
        """Forget everything of a task; see `TaskMessageQueue.clear`.

        It waits for the disk only if there is something to forget.
        """
        engine = self._open_engine()
        has_rows = await engine.read(partial(_has_messages, task_id))

        def clear(transaction: Transaction) -> None:
            transaction.execute("DELETE FROM messages WHERE task_id = ?", (to_sql(task_id),))
            _note_clear(transaction, task_id)

        await engine.write(clear, task_id=task_id, lasting=has_rows)

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        await self._open_engine().wait(task_id, _MailLook(self, task_id))

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""

        def outstanding(transaction: Transaction) -> tuple[QueuedMessage, ...]:
            rows = transaction.execute(_OPEN, (to_sql(task_id), transaction.stamp))
            return tuple([_message_of(row) for row in rows])

        return await self._open_engine().read(outstanding)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        given = (answer.type, to_sql(answer.payload_json), to_sql(task_id), to_sql(key))

        def take(transaction: Transaction) -> bool:
            return transaction.execute(_ANSWER, (*given, transaction.stamp)).rowcount == 1

        return await self._open_engine().write(take, task_id=task_id)

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""

        def look(transaction: Transaction) -> tuple[Answer | None, datetime | None]:
            self._open_engine()
            row = transaction.execute(_ANSWERED, (to_sql(task_id), to_sql(key), transaction.stamp)).fetchone()
            if row is None:
                raise TaskNotFoundError(task_id)
            kind, payload, expires_at = row
            answer = None if kind is None else Answer(kind, to_text(payload))
            return answer, None if expires_at is None else from_stamp(expires_at)

        return await self._open_engine().wait(task_id, look)

    def _open_engine(self) -> Engine:
        if self._is_closed:
            raise StoreClosedError
        return self._engine


class _MailLook:
    """What one who waits for a message looks for. An empty mailbox leaves no trace, so it remembers.

    Cleared counts as gone, and so does that the task was there before and is no more.
    """

    def __init__(self, queue: SQLiteTaskMessageQueue, task_id: str) -> None:
        self._queue = queue
        self._task_id = task_id
        self._seen: int | None = None
        self._had_task = False

    def __call__(self, transaction: Transaction) -> tuple[bool | None, datetime | None]:
        self._queue._open_engine()
        names = {"task_id": to_sql(self._task_id), "seen": self._seen}
        has_message, seen, was_cleared, has_task, expires_at = transaction.execute(_MAIL, names).fetchone()
        is_expired = expires_at is not None and expires_at <= transaction.stamp
        if was_cleared or is_expired or (self._had_task and not has_task):
            raise TaskNotFoundError(self._task_id)
        self._seen = seen or 0
        self._had_task = bool(has_task)
        return has_message or None, None if expires_at is None else from_stamp(expires_at)


def _make_engine(path: str | os.PathLike[str], clock: Clock | None, synchronous: Synchronous) -> Engine:
    """Return an engine whose writer purges tasks."""
    return Engine(path, clock=SystemClock() if clock is None else clock, synchronous=synchronous, purge=_purge)


def _message_of(row: Sequence[Any]) -> QueuedMessage:
    return QueuedMessage(row[0], to_text(row[1]), to_text(row[2]), to_text(row[3]))


def _has_messages(task_id: str, transaction: Transaction) -> bool:
    row = transaction.execute("SELECT 1 FROM messages WHERE task_id = ? LIMIT 1", (to_sql(task_id),)).fetchone()
    return row is not None


def _note_clear(transaction: Transaction, task_id: str) -> None:
    """Leave a trace for whoever waits for a message in another process."""
    number = transaction.execute("INSERT INTO clears (task_id) VALUES (?)", (to_sql(task_id),)).lastrowid
    transaction.execute("DELETE FROM clears WHERE number <= ?", ((number or 0) - KEPT_CLEARS,))


def _find(task_id: str, transaction: Transaction) -> TaskRecord | None:
    """Return a task.

    Reading a row and making a record of it costs more than a change itself, and most changes are those of the
    process that made the task: so the records of the newest are kept, with their sequences.
    """
    known: tuple[int, TaskRecord] | None = transaction.known.get(task_id)
    if known is not None:
        sequence, record = known
        until = None if record.lease is None else to_stamp(record.lease.expires_at)
        version = (sequence, record.revision, until, transaction.stamp)
        if transaction.execute(_IS_UNCHANGED, version).fetchone() is not None:
            return record
        del transaction.known[task_id]
    row = transaction.execute(_SELECT, (to_sql(task_id), transaction.stamp)).fetchone()
    return None if row is None else record_of(row)


def _keep(transaction: Transaction, record: TaskRecord, sequence: int | None = None) -> None:
    """Keep a record that was written, if its sequence is known."""
    known = transaction.known
    before = known.pop(record.task_id, None)
    if sequence is not None or before is not None:
        if len(known) == _MOST_KNOWN:
            del known[next(iter(known))]
        known[record.task_id] = (before[0] if sequence is None else sequence, record)


def _load(task_id: str, transaction: Transaction) -> TaskRecord:
    record = _find(task_id, transaction)
    if record is None:
        raise TaskNotFoundError(task_id)
    return record


def _changes(record: TaskRecord, *more: Any) -> tuple[Any, ...]:
    """Return what every change of a task writes, then what this one does, then the task's id."""
    task = record.task
    return (
        task.status,
        to_sql(task.status_message),
        to_stamp(task.last_updated_at),
        record.revision,
        *more,
        to_sql(task.task_id),
    )


def _insert(transaction: Transaction, record: TaskRecord) -> None:
    values = insert_values(record)
    inserted = transaction.execute(_INSERT, values)
    if not inserted.rowcount:
        if _find(record.task_id, transaction) is not None:
            raise TaskExistsError(record.task_id)
        _remove(transaction, record.task_id)  # it has expired, and its identifier is free again
        inserted = transaction.execute(_INSERT, values)
    _keep(transaction, record, inserted.lastrowid)


def _remove(transaction: Transaction, task_id: str) -> None:
    transaction.execute("DELETE FROM tasks WHERE task_id = ?", (to_sql(task_id),))
    transaction.execute("DELETE FROM messages WHERE task_id = ?", (to_sql(task_id),))
    transaction.known.pop(task_id, None)


def _purge(transaction: Transaction, most: int) -> Collection[str]:
    """Remove tasks that have expired, the longest expired first; each once, so its creation pays for it."""
    expired = [to_text(task_id) for (task_id,) in transaction.execute(_EXPIRED, (transaction.stamp, most))]
    for task_id in expired:
        _remove(transaction, task_id)
    return expired
