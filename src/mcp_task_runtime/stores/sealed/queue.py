"""`seal_queue`: a message queue whose messages and answers are sealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.mirror import mirror, overlay
from mcp_task_runtime.stores._storable import check_answer, check_message
from mcp_task_runtime.stores.sealed._seal import Seal, TaskSeal

__all__ = ["mirrored_queue", "open_question", "seal_queue", "sealed_answer", "sealed_question"]


def seal_queue(queue: TaskMessageQueue, keys: Sequence[str | bytes]) -> TaskMessageQueue:
    """Return a queue that seals what it is given and opens what the other returns; see `stores.sealed`.

    Args:
        queue: Keeps the messages, and stays the caller's to close.
        keys: The first one seals, every one opens.

    Raises:
        ImportError: The extra `credentials` is not installed.
        ValueError: There is no key, or one is malformed.
    """
    return mirrored_queue(queue, Seal(keys))


def mirrored_queue(queue: TaskMessageQueue, seal: Seal) -> TaskMessageQueue:
    """Return a queue over another, with keys that others share."""
    return cast(TaskMessageQueue, mirror(queue, "Sealed", overlay(queue, _SealedQueue(queue, seal))))


class _SealedQueue:
    """The members of a queue that read or write values."""

    def __init__(self, queue: TaskMessageQueue, seal: Seal) -> None:
        self._queue = queue
        self._seal = seal

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        return await self._queue.enqueue(task_id, sealed_question(self._seal.of(task_id), message))

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await self._queue.dequeue(task_id)
        return None if message is None else open_question(self._seal.of(task_id), message)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        message = await self._queue.peek(task_id)
        return None if message is None else open_question(self._seal.of(task_id), message)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        questions = await self._queue.outstanding(task_id)
        seal = self._seal.of(task_id)
        return tuple([open_question(seal, question) for question in questions])

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        return await self._queue.answer(task_id, key, sealed_answer(self._seal.of(task_id), key, answer))

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        answer = await self._queue.wait_for_answer(task_id, key)
        seal = self._seal.of(task_id)
        return replace(answer, payload_json=seal.open_json(_answer_field(key, answer), answer.payload_json))


def sealed_question(seal: TaskSeal, message: QueuedMessage) -> QueuedMessage:
    """Return the sealed form of a message.

    Raises:
        ValueError: It could not be read back (law L4).
    """
    check_message(message)
    return replace(message, params_json=seal.json(_message_field(message), message.params_json))


def open_question(seal: TaskSeal, message: QueuedMessage) -> QueuedMessage:
    """Return a message from its sealed form.

    Raises:
        SealedError: No key opens it, or it belongs elsewhere.
    """
    return replace(message, params_json=seal.open_json(_message_field(message), message.params_json))


def sealed_answer(seal: TaskSeal, key: str, answer: Answer) -> Answer:
    """Return the sealed form of an answer to the question with this key; a withdrawal says nothing and stays.

    Raises:
        ValueError: It could not be read back (law L4).
    """
    check_answer(answer)
    if answer.type == "withdrawn":
        return answer
    return replace(answer, payload_json=seal.json(_answer_field(key, answer), answer.payload_json))


def _message_field(message: QueuedMessage) -> str:
    return f"{message.type} {message.key} {message.method}"


def _answer_field(key: str, answer: Answer) -> str:
    return f"answer {answer.type} {key}"
