"""`RedisTaskMessageQueue`: the mailboxes of tasks in Redis."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.errors import StoreClosedError, TaskNotFoundError
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.redis._backend import Backend, Source
from mcp_task_runtime.stores.redis._connections import Call
from mcp_task_runtime.stores.redis._form import (
    ANSWERS,
    ASKED,
    QUEUE,
    TAKEN,
    WAITING,
    dump_answer,
    dump_message,
    key_field,
    load_answer,
    load_message,
    schema_error,
)
from mcp_task_runtime.stores.redis._scripts import LIVE

__all__ = ["RedisTaskMessageQueue", "queue_of"]

_UNOWNED_MS: Final = 30 * 24 * 3_600_000
"""Milliseconds that a mailbox is kept after its last message when Redis does not hold its task."""


class RedisTaskMessageQueue(Opened):
    """A `TaskMessageQueue` in Redis.

    Get it from a `RedisTaskStore`: then a task's mailbox is deleted with the task. Used without one, it keeps a
    mailbox until `clear` is called for it, or nothing was put in for 30 days.
    """

    def __init__(
        self,
        source: Source,
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a queue of its own; the arguments are those of `RedisTaskStore`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._start(Backend(source, prefix=prefix, clock=clock, timeout=timeout), owns=True)

    def _start(self, backend: Backend, *, owns: bool) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._owns_backend = owns
        self._closed = False

    async def connect(self) -> None:
        """Connect, or fail at once; see `TaskConnecting.connect`."""
        await self._backend.connect()

    async def aclose(self) -> None:
        """Close the queue: waiters wake with `StoreClosedError`. A store it came from stays open."""
        self._closed = True
        if self._owns_backend:
            await self._backend.aclose()
        elif not self._backend.is_closed:
            (await self._backend.signals()).wake_all()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        _storable.check_text("task_id", task_id)
        _storable.check_message(message)
        field = b"" if message.key is None else key_field(message.key)
        return bool(await self._use("enqueue", task_id, _UNOWNED_MS, field, dump_message(message)))

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        operation = self._backend.new_operation()
        with anyio.CancelScope(shield=True):  # a message that is no longer queued must be returned
            taken = await self._use("dequeue", task_id, operation=operation)
        if taken is None:
            return None
        keys = self._keys.of_task(self._keys.tag(task_id))
        self._backend.post(Call(b"HDEL", keys[TAKEN : TAKEN + 1], (operation,)))
        return load_message(taken)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        message = await self._look("peek", task_id, QUEUE)
        return None if message is None else load_message(message)

    async def is_empty(self, task_id: str) -> bool:
        """Return whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return not await self._look("length", task_id, QUEUE)

    async def clear(self, task_id: str) -> None:
        """Delete everything of a task's mailbox; see `TaskMessageQueue.clear`."""
        tag, operation = self._keys.tag(task_id), self._backend.new_operation()
        await self._send(self._backend.task_call("clear", tag, operation))

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        tag, mark = self._keys.tag(task_id), self._backend.new_operation()
        look = partial(self._use, "look", task_id, _UNOWNED_MS, mark)
        length = 0
        with (await self._backend.signals()).listen(self._keys.channel(tag), b"mx") as listener:
            try:
                length = await look(1, LIVE)
                while length == 0:
                    await listener.wait()
                    length = await self._backend.look_again(partial(look, 0, LIVE))
            finally:
                if length == 0:
                    self._backend.post(Call(b"HDEL", self._keys.of_task(tag)[WAITING : WAITING + 1], (mark,)))
        if length < 0:
            raise TaskNotFoundError(task_id)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        questions = await self._look("outstanding", task_id, ASKED)
        return tuple(load_message(question) for question in questions or ())

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        _storable.check_answer(answer)
        return bool(await self._use("answer", task_id, key_field(key), dump_answer(answer)))

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self._look, "answer_of", task_id, ANSWERS, key_field(key))
        with (await self._backend.signals()).listen(channel, b"ax") as listener:
            state = await look()
            while state is not None and state.startswith(b"q"):
                await listener.wait()
                state = await self._backend.look_again(look)
        if state is None:
            raise TaskNotFoundError(task_id)
        return load_answer(state.partition(b" ")[2])

    async def _look(self, script: str, task_id: str, kind: int, *arguments: bytes) -> Any:
        """Run a script that reads one key of a mailbox; return its value."""
        tag = self._keys.tag(task_id)
        reply = await self._send(self._backend.read_call(script, tag, kind, *arguments))
        value, owner, mark = self._value(reply)
        if mark is not None:
            self._backend.purge(tag, owner, mark)
        return value

    async def _use(self, script: str, task_id: str, *arguments: bytes | int | str, operation: str | None = None) -> Any:
        """Run a script on a mailbox; return its value."""
        tag = self._keys.tag(task_id)
        if operation is None:
            operation = self._backend.new_operation()
        reply = await self._send(self._backend.task_call(script, tag, operation, *arguments))
        value, owner, mark = self._value(reply)
        if mark is not None:
            self._backend.forget(tag, owner, mark)
        return value

    @staticmethod
    def _value(reply: list[Any]) -> tuple[Any, Any, Any]:
        """Return the value that a script read, and of a task that has expired the owner and the mark."""
        if reply[0] == b"schema":
            raise schema_error(reply[1])
        _, value, owner, mark = reply
        return value, owner, mark

    async def _send(self, call: Call) -> Any:
        if self._closed:
            raise StoreClosedError
        (reply,) = await self._backend.send(call)
        return reply


class _BelongingQueue(RedisTaskMessageQueue):
    """The queue of a store, over the store's connections."""

    def __init__(self, backend: Backend) -> None:
        self._start(backend, owns=False)


def queue_of(backend: Backend) -> RedisTaskMessageQueue:
    """Return the queue of a store."""
    return _BelongingQueue(backend)
