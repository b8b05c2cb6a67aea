"""`InMemoryTaskMessageQueue`: mailboxes in this process's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType

from typing_extensions import Self

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.errors import StoreClosedError, TaskNotFoundError
from mcp_task_runtime.stores._storable import check_answer, check_message

__all__ = ["InMemoryTaskMessageQueue"]

_FEW = 16
"""How many answered questions may stay in the list of messages."""


class _Question:
    """An open question."""

    __slots__ = ("message", "settled")

    def __init__(self, message: QueuedMessage) -> None:
        self.message = message
        self.settled: Signal | None = None  # set when it has its answer, or never gets one


class _Mailbox:
    """One task's messages; containers and signals exist while there is something in them."""

    __slots__ = ("answered", "answers", "arrived", "messages", "questions", "waiting")

    def __init__(self) -> None:
        self.messages: list[QueuedMessage] | None = None
        self.answered = 0  # upper bound of the questions among the messages that have an answer
        self.questions: dict[str, _Question] = {}
        self.answers: dict[str, Answer] | None = None
        self.arrived: Signal | None = None
        self.waiting = 0

    def is_blank(self) -> bool:
        return not (self.head() or self.questions or self.answers or self.waiting)

    def has_had(self, key: str) -> bool:
        return key in self.questions or (self.answers is not None and key in self.answers)

    def put(self, message: QueuedMessage) -> None:
        if message.key is not None:
            self.questions[message.key] = _Question(message)
        if self.messages is None:
            self.messages = [message]
        else:
            self.messages.append(message)
        if self.arrived is not None:
            self.arrived.set()
            self.arrived = None

    def head(self) -> QueuedMessage | None:
        """Return the oldest message that is still to be taken."""
        messages = self.messages
        while messages:
            if not self._is_answered(messages[0]):
                return messages[0]
            del messages[0]
            self.answered -= 1
        self.messages = None
        self.answered = 0
        return None

    def answer(self, key: str, answer: Answer) -> None:
        settled = self.questions.pop(key).settled
        if self.answers is None:
            self.answers = {}
        self.answers[key] = answer
        if self.messages is not None:  # dropped in bulk, so that each answer costs O(1) amortised
            self.answered += 1
            if len(self.messages) < 2 * self.answered - _FEW:
                self.messages = [message for message in self.messages if not self._is_answered(message)]
                self.answered = 0
        if settled is not None:
            settled.set()

    def wake(self) -> None:
        if self.arrived is not None:
            self.arrived.set()
            self.arrived = None
        for question in self.questions.values():
            if question.settled is not None:
                question.settled.set()
                question.settled = None

    def _is_answered(self, message: QueuedMessage) -> bool:
        return message.key is not None and message.key not in self.questions


class InMemoryTaskMessageQueue:
    """A `TaskMessageQueue` in memory.

    Used without an `InMemoryTaskStore` it keeps a task's mailbox until `clear` is called for it.
    """

    def __init__(self, has_ended: Callable[[str], bool] | None = None) -> None:
        """Make an empty queue.

        Args:
            has_ended: Tells whether a task is known to have ended; a store passes it.
        """
        self._has_ended = has_ended
        self._mailboxes: dict[str, _Mailbox] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the queue: every waiter wakes with `StoreClosedError`."""
        self._closed = True
        for mailbox in self._mailboxes.values():
            mailbox.wake()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        self._check_open()
        return self.put(task_id, message)

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        mailbox = self._mailbox(task_id)
        message = None if mailbox is None else mailbox.head()
        if mailbox is not None and mailbox.messages:
            del mailbox.messages[0]
            self._drop_if_blank(task_id, mailbox)
        return message

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        mailbox = self._mailbox(task_id)
        return None if mailbox is None else mailbox.head()

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return await self.peek(task_id) is None

    async def clear(self, task_id: str) -> None:
        """Drop everything of a task; see `TaskMessageQueue.clear`."""
        self._check_open()
        self.forget(task_id)

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            mailbox = self._mailboxes[task_id] = _Mailbox()
        mailbox.waiting += 1
        try:
            while mailbox.head() is None:
                if self._has_ended is not None and self._has_ended(task_id):
                    raise TaskNotFoundError(task_id)
                if mailbox.arrived is None:
                    mailbox.arrived = Signal()
                await mailbox.arrived.wait()
                if self._mailbox(task_id) is not mailbox:
                    raise TaskNotFoundError(task_id)
        finally:
            mailbox.waiting -= 1
            self._drop_if_blank(task_id, mailbox)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        self._check_open()
        return self.questions(task_id)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        self._check_open()
        return bool(self.take(task_id, {key: answer}))

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        while True:
            mailbox = self._mailbox(task_id)
            if mailbox is None:
                raise TaskNotFoundError(task_id)
            answer = None if mailbox.answers is None else mailbox.answers.get(key)
            if answer is not None:
                return answer
            question = mailbox.questions.get(key)
            if question is None:
                raise TaskNotFoundError(task_id)
            if question.settled is None:
                question.settled = Signal()
            await question.settled.wait()
            if self._mailbox(task_id) is not mailbox:  # cleared, though there may be a new one by now
                raise TaskNotFoundError(task_id)

    @property
    def mailboxes(self) -> int:
        """How many tasks have a mailbox."""
        return len(self._mailboxes)

    @property
    def waiting(self) -> int:
        """How many callers wait for a message or an answer."""
        return sum(mailbox.waiting for mailbox in self._mailboxes.values())

    # The same without waiting, for a store that changes a task and its mailbox in one step.

    def put(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message, unless the task has had a request with its key; return whether it was appended."""
        check_message(message)
        mailbox = self._mailboxes.get(task_id)
        if mailbox is None:
            mailbox = self._mailboxes[task_id] = _Mailbox()
        elif message.key is not None and mailbox.has_had(message.key):
            return False
        mailbox.put(message)
        return True

    def take(self, task_id: str, answers: Mapping[str, Answer]) -> list[str]:
        """Take the answers to open questions and wake those who asked; return the keys of these questions."""
        mailbox = self._mailboxes.get(task_id)
        if mailbox is None:
            return []
        keys = [key for key in answers if key in mailbox.questions]
        for key in keys:
            check_answer(answers[key])
        for key in keys:
            mailbox.answer(key, answers[key])
        return keys

    def questions(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the open questions of a task, in the order they were asked."""
        mailbox = self._mailboxes.get(task_id)
        return () if mailbox is None else tuple(question.message for question in mailbox.questions.values())

    def has_had(self, task_id: str, key: str) -> bool:
        """Whether the task has had a request with this key."""
        mailbox = self._mailboxes.get(task_id)
        return mailbox is not None and mailbox.has_had(key)

    def has_questions(self, task_id: str) -> bool:
        """Whether a question of the task is open."""
        mailbox = self._mailboxes.get(task_id)
        return mailbox is not None and bool(mailbox.questions)

    def forget(self, task_id: str) -> None:
        """Drop the mailbox of a task: every waiter wakes."""
        mailbox = self._mailboxes.pop(task_id, None)
        if mailbox is not None:
            mailbox.wake()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError

    def _mailbox(self, task_id: str) -> _Mailbox | None:
        self._check_open()
        return self._mailboxes.get(task_id)

    def _drop_if_blank(self, task_id: str, mailbox: _Mailbox) -> None:
        if mailbox.is_blank() and self._mailboxes.get(task_id) is mailbox:
            del self._mailboxes[task_id]
