"""`TaskMessageQueue`: a task's mailbox, with the questions it asks and the answers it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.errors import ProtocolError

__all__ = ["Answer", "QueuedMessage", "TaskMessageQueue"]

_FOR_PERSON: Final = "inbox."


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message for the client of a task. Frozen, and nothing but JSON.

    Attributes:
        type: `request` expects an answer, `notification` does not.
        method: JSON-RPC method, such as `elicitation/create`.
        params_json: The params as JSON text.
        key: Name of a request, unique in its task's life (wire rule C7); `None` for a notification.
    """

    type: Literal["request", "notification"]
    method: str
    params_json: str = "{}"
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.type == "request") != (self.key is not None):
            raise ValueError("key: a request has one and a notification has none")

    @classmethod
    def request(cls, key: str, method: str, params: JSONObject) -> QueuedMessage:
        """Return a request to the client."""
        return cls("request", method, dump_json(params), key)

    @classmethod
    def notification(cls, method: str, params: JSONObject) -> QueuedMessage:
        """Return a notification to the client."""
        return cls("notification", method, dump_json(params))

    @classmethod
    def key_for_person(cls, key: str) -> str:
        """Return the key of a question that waits for a person at the operators' inbox instead of for the client."""
        return _FOR_PERSON + key

    @property
    def is_for_person(self) -> bool:
        """Whether this question waits for a person at the operators' inbox: the client neither sees nor answers it."""
        return self.key is not None and self.key.startswith(_FOR_PERSON)

    @property
    def params(self) -> JSONObject:
        """The params, parsed again at each access."""
        value: JSONObject = load_json(self.params_json)
        return value


@dataclass(frozen=True, slots=True)
class Answer:
    """What ended the wait for a request: a result, an error, or nothing because the asker gave up.

    Attributes:
        type: Which of the three.
        payload_json: The result or the JSON-RPC error as JSON text; `null` when withdrawn.
    """

    type: Literal["result", "error", "withdrawn"]
    payload_json: str = "null"

    @classmethod
    def result(cls, result: JSONObject) -> Answer:
        """Return the answer of a client that gave a result."""
        return cls("result", dump_json(result))

    @classmethod
    def error(cls, code: int, message: str, data: JSONValue = None) -> Answer:
        """Return the answer of a client that gave a JSON-RPC error."""
        return cls("error", dump_json({"code": code, "message": message, "data": data}))

    @classmethod
    def withdrawn(cls) -> Answer:
        """Return the answer that closes a question whose asker has given up."""
        return cls("withdrawn")

    def unwrap(self) -> JSONObject:
        """Return the result, parsed again at each call.

        Raises:
            ProtocolError: The client answered with an error (law L5), or the question was withdrawn.
        """
        value: JSONObject = load_json(self.payload_json)
        if self.type == "result":
            return value
        if self.type == "error":
            raise ProtocolError(value["code"], value["message"], value.get("data"))
        raise ProtocolError(-32603, "The question was withdrawn")


@runtime_checkable
class TaskMessageQueue(Protocol):
    """A mailbox for each task: requests to its client, notifications, and the answers.

    Messages of one task are first in, first out; tasks do not affect each other. For every method:
    atomic also when cancelled (L6), except that a message is either still queued or was returned. The
    process that asks and the one that receives the answer may be different ones.

    A *question* is a request that was enqueued and has no answer. It stays one when it is dequeued,
    so a deliverer that dies loses nothing (L5).
    """

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; a request becomes a question.

        Returns:
            `False` if the task has had a request with this key before: then nothing was changed.
        """
        ...

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message, or return `None`. Each message goes to one caller."""
        ...

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message without removing it, or `None`."""
        ...

    async def is_empty(self, task_id: str) -> bool:
        """Return whether no message is queued."""
        ...

    async def clear(self, task_id: str) -> None:
        """Drop everything of a task: messages, questions, answers, keys. Releases all waiters (L5).

        The code that ends a task calls this afterwards; nothing else tells a queue that the task has ended.
        """
        ...

    async def wait_for_message(self, task_id: str) -> None:
        """Return as soon as a message is queued; at once if one is (L3). Every waiter wakes.

        Raises:
            TaskNotFoundError: The mailbox was cleared while waiting. Or the task has ended, and this is the queue of a
                store that keeps it: then also at once. Of a task that is gone a queue knows nothing; it waits.
        """
        ...

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions, in the order they were asked."""
        ...

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question. The first answer wins (L5); the question also leaves the queue.

        Returns:
            Whether this answer was taken. `False`, and nothing changed, for a key that is unknown or
            answered already.
        """
        ...

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Return the answer as soon as there is one; at once if there is (L3). Every waiter wakes.

        An answer stays readable until the mailbox is cleared.

        Raises:
            TaskNotFoundError: No request has this key, or the mailbox was cleared while waiting.
        """
        ...
