"""Tasks in this process's memory: the reference backend, and the fastest.

State is gone with the process. Use it on one event loop at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime
from types import TracebackType
from typing import Final

import anyio
from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import create_record, finish_record, update_record
from mcp_task_runtime.core.types import Fence, LiveStatus, NewTask, Outcome, Progress, TaskPage, TaskRecord, TaskRequest
from mcp_task_runtime.errors import StoreClosedError, TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores._cursor import decode_cursor, encode_cursor

__all__ = ["InMemoryTaskMessageQueue", "InMemoryTaskStore"]

_NO_REQUEST: Final = TaskRequest()


class _Entry:
    """One stored task; `changed` exists while somebody waits for its next revision."""

    __slots__ = ("changed", "record", "removed", "sequence")

    def __init__(self, record: TaskRecord, sequence: int) -> None:
        self.record = record
        self.sequence = sequence
        self.removed = False
        self.changed: anyio.Event | None = None

    def wake(self) -> None:
        if self.changed is not None:
            self.changed.set()
            self.changed = None


class _OwnerIndex:
    """One owner's entries by sequence; removed ones are dropped in bulk, so removal is O(1) amortised."""

    __slots__ = ("entries", "removed")

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.removed = 0

    def mark_removed(self) -> None:
        self.removed += 1
        if 2 * self.removed > len(self.entries):
            self.entries = [entry for entry in self.entries if not entry.removed]
            self.removed = 0

    def after(self, sequence: int, limit: int) -> list[_Entry]:
        """Return up to `limit` live entries behind a sequence number, dropping removed ones on the way."""
        start = stop = bisect_right(self.entries, sequence, key=_sequence_of)
        found: list[_Entry] = []
        while stop < len(self.entries) and len(found) < limit:
            if not self.entries[stop].removed:
                found.append(self.entries[stop])
            stop += 1
        self.removed -= stop - start - len(found)
        self.entries[start:stop] = found
        return found


def _sequence_of(entry: _Entry) -> int:
    return entry.sequence


class InMemoryTaskStore:
    """A `TaskStore` in memory. Every operation but listing costs O(log n) or less in the number of tasks.

    Attributes:
        is_shared: Whether several runtimes use this store object. Otherwise its runtime need not watch for
            what others do to the tasks it runs. Set it to `True` where several share it.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        """Make an empty store.

        Args:
            clock: Where time comes from; the system's when `None`.
        """
        self._clock: Clock = SystemClock() if clock is None else clock
        self._entries: dict[str, _Entry] = {}
        self._owners: dict[str | None, _OwnerIndex] = {}
        self._expiry = DeadlineHeap()
        self._sequence = 0
        self._closed = False
        self.is_shared: bool = False
        self._queue = InMemoryTaskMessageQueue()

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._clock

    @property
    def message_queue(self) -> InMemoryTaskMessageQueue:
        """The queue that belongs to this store: a task's mailbox goes when the task goes."""
        return self._queue

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and its queue: whoever waits is woken with `StoreClosedError`."""
        self._closed = True
        for entry in self._entries.values():
            entry.wake()
        await self._queue.aclose()

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        now = self._purge()
        record = create_record(new, now=now)
        task_id = record.task_id
        if task_id in self._entries:
            raise TaskExistsError(task_id)
        self._sequence += 1
        entry = self._entries[task_id] = _Entry(record, self._sequence)
        index = self._owners.get(record.owner)
        if index is None:
            index = self._owners[record.owner] = _OwnerIndex()
        index.entries.append(entry)
        self._expiry.set(task_id, record.task.expires_at)
        return record

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        self._purge()
        entry = self._entries.get(task_id)
        return None if entry is None else entry.record

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
        now = self._purge()
        entry = self._entry(task_id)
        entry.record = update_record(
            entry.record,
            now=now,
            status=status,
            status_message=status_message,
            progress=progress,
            ttl_ms=ttl_ms,
            if_revision=if_revision,
            fence=fence,
        )
        if ttl_ms is not None:
            self._expiry.set(task_id, entry.record.task.expires_at)
        entry.wake()
        return entry.record

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        now = self._purge()
        entry = self._entry(task_id)
        ttl_ms = entry.record.task.ttl_ms
        entry.record = finish_record(entry.record, outcome, now=now, fence=fence)
        if entry.record.task.ttl_ms != ttl_ms:
            self._expiry.set(task_id, entry.record.task.expires_at)
        entry.wake()
        return entry.record

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        self._purge()
        return self._entry(task_id).record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self._purge()
        position = 0 if cursor is None else decode_cursor(cursor, owner)
        index = self._owners.get(owner)
        if index is None:
            return TaskPage(())
        found = index.after(position, limit + 1)
        page = tuple(entry.record for entry in found[:limit])
        return TaskPage(page, encode_cursor(found[limit - 1].sequence, owner) if len(found) > limit else None)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        self._purge()
        if task_id not in self._entries:
            return False
        self._expiry.discard(task_id)
        self._remove(task_id)
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        while True:
            self._purge()
            entry = self._entry(task_id)
            if entry.record.revision > after:
                return entry.record
            if entry.changed is None:
                entry.changed = anyio.Event()
            with self._clock.move_on_at(entry.record.task.expires_at):
                await entry.changed.wait()
            if entry.removed:  # a new task may have the identifier by now
                raise TaskNotFoundError(task_id)

    def _entry(self, task_id: str) -> _Entry:
        entry = self._entries.get(task_id)
        if entry is None:
            raise TaskNotFoundError(task_id)
        return entry

    def _purge(self) -> datetime:
        """Drop what has expired, each task once, so that the cost is part of its creation's; return the time."""
        if self._closed:
            raise StoreClosedError
        now = self._clock.now()
        if self._expiry.is_due(now):
            while (task_id := self._expiry.pop_due(now)) is not None:
                self._remove(task_id)
        return now

    def _remove(self, task_id: str) -> None:
        entry = self._entries.pop(task_id)
        entry.removed = True
        entry.wake()
        index = self._owners[entry.record.owner]
        index.mark_removed()
        if not index.entries:
            del self._owners[entry.record.owner]
        self._queue.forget(task_id)


class _Mailbox:
    """One task's messages; the events exist while somebody waits."""

    __slots__ = ("answers", "arrived", "messages", "questions", "settled", "waiting")

    def __init__(self) -> None:
        self.messages: list[QueuedMessage] = []
        self.questions: dict[str, QueuedMessage] = {}
        self.answers: dict[str, Answer] = {}
        self.settled: dict[str, anyio.Event] = {}
        self.arrived: anyio.Event | None = None
        self.waiting = 0

    def is_blank(self) -> bool:
        return not (self.messages or self.questions or self.answers or self.waiting)

    def wake(self) -> None:
        if self.arrived is not None:
            self.arrived.set()
            self.arrived = None
        for event in self.settled.values():
            event.set()
        self.settled.clear()


class InMemoryTaskMessageQueue:
    """A `TaskMessageQueue` in memory.

    Used without an `InMemoryTaskStore` it keeps a task's mailbox until `clear` is called for it.
    """

    def __init__(self) -> None:
        self._mailboxes: dict[str, _Mailbox] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the queue: whoever waits is woken with `StoreClosedError`."""
        self._closed = True
        for mailbox in self._mailboxes.values():
            mailbox.wake()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            mailbox = self._mailboxes[task_id] = _Mailbox()
        if message.key is not None:
            if message.key in mailbox.questions or message.key in mailbox.answers:
                return False
            mailbox.questions[message.key] = message
        mailbox.messages.append(message)
        if mailbox.arrived is not None:
            mailbox.arrived.set()
            mailbox.arrived = None
        return True

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        mailbox = self._mailbox(task_id)
        if mailbox is None or not mailbox.messages:
            return None
        message = mailbox.messages.pop(0)
        self._drop_if_blank(task_id, mailbox)
        return message

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        mailbox = self._mailbox(task_id)
        return mailbox.messages[0] if mailbox is not None and mailbox.messages else None

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        mailbox = self._mailbox(task_id)
        return mailbox is None or not mailbox.messages

    async def clear(self, task_id: str) -> None:
        """Forget everything of a task; see `TaskMessageQueue.clear`."""
        self._check_open()
        self.forget(task_id)

    def forget(self, task_id: str) -> None:
        """Do what `clear` does, for a caller that may not wait: a store that removes the task."""
        mailbox = self._mailboxes.pop(task_id, None)
        if mailbox is not None:
            mailbox.wake()

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            mailbox = self._mailboxes[task_id] = _Mailbox()
        mailbox.waiting += 1
        try:
            while not mailbox.messages:
                if mailbox.arrived is None:
                    mailbox.arrived = anyio.Event()
                await mailbox.arrived.wait()
                if self._mailbox(task_id) is not mailbox:
                    raise TaskNotFoundError(task_id)
        finally:
            mailbox.waiting -= 1
            self._drop_if_blank(task_id, mailbox)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        mailbox = self._mailbox(task_id)
        return () if mailbox is None else tuple(mailbox.questions.values())

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            return False
        question = mailbox.questions.pop(key, None)
        if question is None:
            return False
        mailbox.messages = [message for message in mailbox.messages if message is not question]
        mailbox.answers[key] = answer
        settled = mailbox.settled.pop(key, None)
        if settled is not None:
            settled.set()
        return True

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        while True:
            mailbox = self._mailbox(task_id)
            if mailbox is None:
                raise TaskNotFoundError(task_id)
            answer = mailbox.answers.get(key)
            if answer is not None:
                return answer
            if key not in mailbox.questions:
                raise TaskNotFoundError(task_id)
            event = mailbox.settled.get(key)
            if event is None:
                event = mailbox.settled[key] = anyio.Event()
            await event.wait()
            if self._mailbox(task_id) is not mailbox:  # cleared, though there may be a new one by now
                raise TaskNotFoundError(task_id)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError

    def _mailbox(self, task_id: str) -> _Mailbox | None:
        self._check_open()
        return self._mailboxes.get(task_id)

    def _drop_if_blank(self, task_id: str, mailbox: _Mailbox) -> None:
        if mailbox.is_blank() and self._mailboxes.get(task_id) is mailbox:
            del self._mailboxes[task_id]
