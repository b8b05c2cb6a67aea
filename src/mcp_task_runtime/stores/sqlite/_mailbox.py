"""Rows of `messages`: the statements, and what callers wait for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.sqlite._records import MESSAGE_COLUMNS, answer_of, from_stamp, message_of, to_sql
from mcp_task_runtime.stores.sqlite._tasks import remove
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.stores.sqlite._waiters import IRRELEVANT

__all__ = [
    "STATEMENTS",
    "AnswerLook",
    "MessageLook",
    "append",
    "clear",
    "drop_expired",
    "give_answers",
    "has_messages",
    "has_open_questions",
    "oldest",
    "open_questions",
    "take_oldest",
]

# The mailbox of an expired task is gone with it, even if its rows are still there.
_ALIVE: Final = "NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.task_id = messages.task_id AND expires_at <= ?)"
_EXPIRED_TASK: Final = "SELECT 1 FROM tasks WHERE task_id = ? AND expires_at <= ?"
_APPEND: Final = (
    f"INSERT INTO messages (task_id, {MESSAGE_COLUMNS}) VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id, key) DO NOTHING"
)
_OLDEST: Final = (
    f"SELECT {MESSAGE_COLUMNS}, position FROM messages INDEXED BY messages_queued"
    f" WHERE task_id = ? AND queued = 1 AND {_ALIVE} ORDER BY position LIMIT 1"
)
_OPEN: Final = (
    f"SELECT {MESSAGE_COLUMNS} FROM messages INDEXED BY messages_open"
    f" WHERE task_id = ? AND key IS NOT NULL AND answer_type IS NULL AND {_ALIVE} ORDER BY position"
)
_HAS_OPEN: Final = (
    "SELECT 1 FROM messages INDEXED BY messages_open"
    " WHERE task_id = ? AND key IS NOT NULL AND answer_type IS NULL LIMIT 1"
)
_ANSWER: Final = (
    "UPDATE messages SET queued = 0, params = '{}', answer_type = ?, answer_payload = ?"
    f" WHERE task_id = ? AND key = ? AND answer_type IS NULL AND {_ALIVE}"
)
_ANSWERED: Final = (
    "SELECT answer_type, answer_payload, expires_at FROM messages LEFT JOIN tasks USING (task_id)"
    f" WHERE task_id = ? AND key = ? AND {_ALIVE}"
)
_MAIL: Final = (
    "SELECT EXISTS (SELECT 1 FROM messages WHERE task_id = :task_id AND queued = 1),"
    " (SELECT max(number) FROM clears),"
    " EXISTS (SELECT 1 FROM clears WHERE number > :seen AND task_id = :task_id),"
    " (SELECT status FROM tasks WHERE task_id = :task_id),"
    " (SELECT expires_at FROM tasks WHERE task_id = :task_id)"
)
_HAS_MESSAGES: Final = "SELECT 1 FROM messages WHERE task_id = ? LIMIT 1"
_CLEAR: Final = "DELETE FROM messages WHERE task_id = ?"
_REMOVE: Final = "DELETE FROM messages WHERE position = ?"
_UNQUEUE: Final = "UPDATE messages SET queued = 0 WHERE position = ?"

STATEMENTS: Final = (
    _EXPIRED_TASK,
    _OLDEST,
    _OPEN,
    _HAS_OPEN,
    _ANSWER,
    _ANSWERED,
    _MAIL,
    _HAS_MESSAGES,
    _CLEAR,
    _REMOVE,
    _UNQUEUE,
)
"""All statements of this module that read or change rows which are there."""


def append(transaction: Transaction, task_id: str, message: QueuedMessage) -> bool:
    """Append a message; return whether the mailbox has had none with its key before."""
    values = (
        to_sql(task_id),
        message.type,
        to_sql(message.method),
        to_sql(message.params_json),
        to_sql(message.key),
    )
    return transaction.execute(_APPEND, values).rowcount == 1


def drop_expired(transaction: Transaction, task_id: str) -> None:
    """Remove the task, and so what was in the mailbox, if it has expired."""
    if transaction.execute(_EXPIRED_TASK, (to_sql(task_id), transaction.stamp)).fetchone() is not None:
        remove(transaction, task_id)


def oldest(transaction: Transaction, task_id: str) -> QueuedMessage | None:
    """Return the oldest queued message."""
    row = transaction.execute(_OLDEST, (to_sql(task_id), transaction.stamp)).fetchone()
    return None if row is None else message_of(row)


def take_oldest(transaction: Transaction, task_id: str) -> QueuedMessage | None:
    """Remove and return the oldest queued message; a question stays one."""
    row = transaction.execute(_OLDEST, (to_sql(task_id), transaction.stamp)).fetchone()
    if row is None:
        return None
    message = message_of(row)
    transaction.execute(_REMOVE if message.key is None else _UNQUEUE, row[4:])
    return message


def open_questions(transaction: Transaction, task_id: str) -> tuple[QueuedMessage, ...]:
    """Return the questions without an answer, in the order they were asked."""
    rows = transaction.execute(_OPEN, (to_sql(task_id), transaction.stamp)).fetchall()
    return tuple([message_of(row) for row in rows])


def has_open_questions(transaction: Transaction, task_id: str) -> bool:
    """Whether the mailbox has a question without an answer."""
    return transaction.execute(_HAS_OPEN, (to_sql(task_id),)).fetchone() is not None


def give_answers(transaction: Transaction, task_id: str, answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Answer open questions; return the answers that were taken."""
    taken = {}
    for key, answer in answers.items():
        values = (answer.type, to_sql(answer.payload_json), to_sql(task_id), to_sql(key), transaction.stamp)
        if transaction.execute(_ANSWER, values).rowcount:
            taken[key] = answer
    return taken


def has_messages(transaction: Transaction, task_id: str) -> bool:
    """Whether anything is kept of the mailbox."""
    return transaction.execute(_HAS_MESSAGES, (to_sql(task_id),)).fetchone() is not None


def clear(transaction: Transaction, task_id: str) -> None:
    """Delete everything of the mailbox."""
    transaction.execute(_CLEAR, (to_sql(task_id),))


class AnswerLook:
    """What a caller looks for that waits for the answer to a question."""

    __slots__ = ("_expires_at", "_key", "_task_id")

    def __init__(self, task_id: str, key: str) -> None:
        self._task_id = task_id
        self._key = key
        self._expires_at: datetime | None = None

    def __call__(self, transaction: Transaction) -> tuple[Answer | None, datetime | None]:
        values = (to_sql(self._task_id), to_sql(self._key), transaction.stamp)
        row = transaction.execute(_ANSWERED, values).fetchone()
        if row is None:
            raise TaskNotFoundError(self._task_id)
        kind, payload, expires_at = row
        self._expires_at = None if expires_at is None else from_stamp(expires_at)
        return None if kind is None else answer_of(kind, payload), self._expires_at

    def accept(self, change: object) -> Any:
        """Return the answer if it is among those that were given."""
        if isinstance(change, dict):
            return change.get(self._key, IRRELEVANT)
        if isinstance(change, TaskRecord) and not is_terminal(change.status):
            return IRRELEVANT if change.task.expires_at == self._expires_at else None
        return None


class MessageLook:
    """What a caller looks for that waits for a message. An empty mailbox leaves no trace, so it remembers.

    The mailbox is gone when it was cleared, when the task was there before and is no more, and when the task has ended
    and no message came after that.
    """

    __slots__ = ("_had_task", "_seen", "_task_id")

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._seen: int | None = None
        self._had_task = False

    def __call__(self, transaction: Transaction) -> tuple[bool | None, datetime | None]:
        names = {"task_id": to_sql(self._task_id), "seen": self._seen}
        has_message, seen, was_cleared, status, expires_at = transaction.execute(_MAIL, names).fetchone()
        is_expired = expires_at is not None and expires_at <= transaction.stamp
        is_gone = self._had_task if status is None else status in TERMINAL_STATUSES and not has_message
        if was_cleared or is_expired or is_gone:
            raise TaskNotFoundError(self._task_id)
        self._seen = seen or 0
        self._had_task = status is not None
        return has_message or None, None if expires_at is None else from_stamp(expires_at)

    def accept(self, change: object) -> Any:
        """Have the caller look after every change."""
        return None
