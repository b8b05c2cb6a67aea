"""`PostgresTaskMessageQueue`: mailboxes in PostgreSQL."""

from __future__ import annotations

from functools import partial
from typing import Any

from psycopg.errors import ForeignKeyViolation
from psycopg_pool import ConnectionPool

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt, NotYet
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._errors import RetryError
from mcp_task_runtime.stores.postgres._rows import (
    answer_of,
    message_of,
    to_key,
    to_object,
    to_payload,
    to_stored,
    to_text,
)
from mcp_task_runtime.stores.postgres._user import DatabaseUser

__all__ = ["PostgresTaskMessageQueue", "message_parameters", "watch"]


class PostgresTaskMessageQueue(DatabaseUser):
    """A `TaskMessageQueue` in PostgreSQL, alone or as the one of a `PostgresTaskStore`.

    The mailbox of a task in the same schema goes when the task ends, is deleted or expires. Any other one is kept
    until `clear` is called for it.
    """

    def __init__(
        self,
        database: str | ConnectionPool[Any] | Database,
        *,
        clock: Clock | None = None,
        schema: str = "mcp_task_runtime",
        max_connections: int = 10,
        timeout: float = 5.0,
    ) -> None:
        """Make a queue.

        Args:
            database: As for `PostgresTaskStore`. A store passes what it shares with its queue; the other
                arguments do not count then.
            clock: As for `PostgresTaskStore`.
            schema: As for `PostgresTaskStore`.
            max_connections: As for `PostgresTaskStore`.
            timeout: As for `PostgresTaskStore`.

        Raises:
            ValueError: An argument makes no sense; the message names it.
        """
        if not isinstance(database, Database):
            database = Database(database, clock=clock, schema=schema, max_connections=max_connections, timeout=timeout)
        super().__init__(database)

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`.

        Raises:
            ValueError: `task_id` or the message's key is longer than 1024 bytes, or `params_json` could not be read
                again.
        """
        parameters = {"task_id": to_key("task_id", task_id), **message_parameters(message)}

        def enqueue(attempt: Attempt) -> bool:
            try:
                if attempt.execute(statements.ENQUEUE, parameters).rowcount:
                    return True
            except ForeignKeyViolation as error:  # the task was deleted at this moment
                raise RetryError from error
            return attempt.is_repeated and _message_with_key(attempt, parameters) == message

        return await self._database.write(enqueue, repeatable=message.key is not None)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        return await self._database.write(partial(self._first, statements.DEQUEUE, task_id), repeatable=False)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        return await self._database.read(partial(self._first, statements.PEEK, task_id))

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return await self.peek(task_id) is None

    async def clear(self, task_id: str) -> None:
        """Drop everything of a task; see `TaskMessageQueue.clear`.

        Raises:
            ValueError: `task_id` is longer than 1024 bytes.
        """
        key = to_key("task_id", task_id)
        await self._database.write(lambda attempt: attempt.execute(statements.CLEAR, {"task_id": key}))
        self._database.fire_cleared(key)

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        had_task = False
        mailbox = to_text(task_id)
        parameters = {"task_id": mailbox, "watcher": self._database.watcher}

        def look(attempt: Attempt) -> NotYet | None:
            nonlocal had_task
            while True:
                row = attempt.fetch(statements.LOOK_FOR_MESSAGE, parameters)
                assert row is not None
                is_queued, has_task, has_expired, expires_at, is_watched, since, has_ended = row
                if is_queued:
                    return None
                if has_expired or has_ended or (had_task and not has_task):
                    raise TaskNotFoundError(task_id)
                had_task = has_task
                if is_watched or not watch(attempt, parameters):
                    return NotYet(expires_at, since)

        await self._database.wait("message", mailbox, look)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        parameters = {"task_id": to_text(task_id)}
        rows = await self._database.read(lambda attempt: list(attempt.fetch_each(statements.OUTSTANDING, parameters)))
        return tuple(message_of(row[1:]) for row in rows)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`.

        Raises:
            ValueError: The answer could not be read again.
        """
        parameters = {
            "task_id": to_text(task_id),
            "key": to_text(key),
            "answer_type": answer.type,
            "answer": to_payload(answer),
        }

        def give(attempt: Attempt) -> bool:
            if attempt.execute(statements.ANSWER, parameters).rowcount:
                return True
            if not attempt.is_repeated:
                return False
            given = attempt.fetch(statements.ANSWERS_OF, {**parameters, "keys": [parameters["key"]]})
            return given is not None and given[1:] == (answer.type, answer.payload_json)

        return await self._database.write(give)

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        mailbox = to_text(task_id)
        parameters = {"task_id": mailbox, "key": to_text(key), "watcher": self._database.watcher}

        def look(attempt: Attempt) -> Answer | NotYet:
            while True:
                row = attempt.fetch(statements.LOOK_FOR_ANSWER, parameters)
                if row is None:
                    raise TaskNotFoundError(task_id)
                answer_type, answer, expires_at, is_watched = row
                if answer_type is not None:
                    return answer_of(answer_type, answer)
                if is_watched or not watch(attempt, parameters):
                    return NotYet(expires_at)

        return await self._database.wait("answer", mailbox, look)

    def _first(self, statement: str, task_id: str, attempt: Attempt) -> QueuedMessage | None:
        row = attempt.fetch(statement, {"task_id": to_text(task_id)})
        return None if row is None else message_of(row[1:])


def message_parameters(message: QueuedMessage) -> dict[str, Any]:
    """Return the parameters of a message.

    Raises:
        ValueError: The key is too long, or `params_json` could not be read again (law L4).
    """
    return {
        "key": None if message.key is None else to_key("key", message.key),
        "method": to_stored("method", message.method),
        "params": to_object("params_json", message.params_json),
    }


def _message_with_key(attempt: Attempt, parameters: dict[str, Any]) -> QueuedMessage | None:
    row = attempt.fetch(statements.MESSAGE_OF_KEY, parameters)
    return None if row is None else message_of(row[1:])


def watch(attempt: Attempt, parameters: dict[str, Any]) -> bool:
    """Have this process notified of changes of the task; `False` if it was before, or there is no task."""
    attempt.count_write()
    watched = {"task_ids": [parameters["task_id"]], "watcher": parameters["watcher"]}
    return attempt.execute(statements.WATCH, watched).rowcount > 0
