"""`SQLiteTaskMessageQueue`: the mailboxes of tasks in a SQLite file."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.sqlite import _mailbox, _tasks
from mcp_task_runtime.stores.sqlite._engine import Engine
from mcp_task_runtime.stores.sqlite._schema import Synchronous
from mcp_task_runtime.stores.sqlite._statistics import SQLiteStatistics
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.stores.sqlite._waiters import Look

__all__ = ["SQLiteTaskMessageQueue"]

T = TypeVar("T")


class SQLiteTaskMessageQueue(Opened):
    """A `TaskMessageQueue` in a SQLite file.

    The queue of a store shares the store's file and threads, and a task's mailbox goes when the task ends or goes. A
    queue on its own serves any ids; a task's mailbox is kept until `clear` is called for it, or until the task
    goes if the file has that, too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Engine,
        *,
        clock: Clock | None = None,
        synchronous: Synchronous = "full",
        timeout: float = 5.0,
    ) -> None:
        """Make a queue; see `SQLiteTaskStore`.

        Args:
            path: The database file, on a local disk. A store passes what it has opened, and the other arguments
                do not matter then.
            clock: What tells when a task in the same file has expired; the machine's when `None`.
            synchronous: How safe a commit is.
            timeout: Seconds that an operation is repeated while the file is locked or unavailable.

        Raises:
            ValueError: `path` does not name a file, `synchronous` is unknown, or `timeout` is not above 0.
        """
        self._owns_engine = not isinstance(path, Engine)
        self._engine = (
            path
            if isinstance(path, Engine)
            else _tasks.open_engine(path, clock=clock, synchronous=synchronous, timeout=timeout)
        )
        self._is_closed = False

    async def connect(self) -> None:
        """Open the file; see `SQLiteTaskStore.connect`."""
        await self._engine.open()

    async def aclose(self) -> None:
        """Close the queue: waiters wake with `StoreClosedError`. A store stays open."""
        self._is_closed = True
        if self._owns_engine:
            await self._engine.aclose()
        else:
            self._engine.wake_waiters()

    def statistics(self) -> SQLiteStatistics:
        """Return figures of this queue; those of a store's queue are the store's."""
        return self._engine.statistics()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        _storable.check_text("task_id", task_id)
        _storable.check_message(message)

        def enqueue(transaction: Transaction) -> bool:
            _mailbox.drop_expired(transaction, task_id)
            transaction.tell(task_id)
            return _mailbox.append(transaction, task_id, message)

        return await self._open_engine().write(enqueue)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        return await self._open_engine().write(partial(_mailbox.take_oldest, task_id=task_id))

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        return await self._open_engine().read(partial(_mailbox.oldest, task_id=task_id))

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return await self.peek(task_id) is None

    async def clear(self, task_id: str) -> None:
        """Delete everything of a task; see `TaskMessageQueue.clear`.

        It waits for the disk only if there is something to delete.
        """
        engine = self._open_engine()
        has_messages = await engine.read(partial(_mailbox.has_messages, task_id=task_id))

        def clear(transaction: Transaction) -> None:
            _mailbox.clear(transaction, task_id)
            _tasks.note_clear(transaction, task_id)

        await engine.write(clear, is_lasting=has_messages)

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        await self._wait(task_id, _mailbox.MessageLook(task_id))

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        return await self._open_engine().read(partial(_mailbox.open_questions, task_id=task_id))

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        _storable.check_answer(answer)

        def take(transaction: Transaction) -> bool:
            taken = _mailbox.give_answers(transaction, task_id, {key: answer})
            if taken:
                transaction.tell(task_id, taken)
            return bool(taken)

        return await self._open_engine().write(take)

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        return await self._wait(task_id, _mailbox.AnswerLook(task_id, key))

    async def _wait(self, task_id: str, look: Look[T]) -> T:
        return await self._open_engine().wait(task_id, _WhileOpen(look, self._open_engine))

    def _open_engine(self) -> Engine:
        if self._is_closed:
            raise StoreClosedError
        return self._engine


class _WhileOpen(Generic[T]):
    """A look that ends when the queue is closed, though the store's engine is not."""

    __slots__ = ("_check", "_look")

    def __init__(self, look: Look[T], check: Callable[[], object]) -> None:
        self._look = look
        self._check = check

    def __call__(self, transaction: Transaction) -> tuple[T | None, datetime | None]:
        self._check()
        return self._look(transaction)

    def accept(self, change: object) -> Any:
        """Leave it to the look."""
        return self._look.accept(change)
