"""`ClientTasks`: questions that a client answers with a task of its own (wire rule B12)."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

import anyio

from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.json import JSONObject, JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import INTERNAL_ERROR, ProtocolError

__all__ = ["ClientTasks"]

logger: logging.Logger = logging.getLogger(__name__)

_SHORTEST_POLL_SECONDS: Final = 0.02
_LONGEST_POLL_SECONDS: Final = 30.0
_DEFAULT_POLL_SECONDS: Final = 0.5
_CANCEL_SECONDS: Final = 1.0


class ClientTasks:
    """Follows the tasks of clients to their answers, and keeps their ids for the next stream of the task that asks."""

    def __init__(self, store: TaskStore, queue: TaskMessageQueue) -> None:
        """Make it without tasks.

        Args:
            store: Where the tasks that ask are kept.
            queue: Where their questions are kept.
        """
        self._store = store
        self._queue = queue
        self._ids: dict[str, dict[str, str]] = {}
        """By the task that asks, and the key of its question."""
        self._expiry = DeadlineHeap()

    def __len__(self) -> int:
        """Return how many tasks of ours have questions that their clients answer by tasks."""
        return len(self._ids)

    async def request(
        self, record: TaskRecord, question: QueuedMessage, params: JSONObject, session: TaskSession
    ) -> JSONObject:
        """Send a question and return the answer; where the client makes a task of it, follow that to its end.

        Args:
            record: The task that asks.
            question: What it asks.
            params: The question's params, as they are sent.
            session: The connection of its client.

        Raises:
            ProtocolError: The client answered with an error, or its task did not end with an answer.
            Exception: As for `TaskSession.send_request`.
        """
        if "task" not in params:
            return await session.send_request(question.method, params)
        key = question.key or ""
        client_task_id = self._ids.get(record.task_id, {}).get(key)
        if client_task_id is not None:  # it was asked before, on a stream that broke
            try:
                task = await session.send_request("tasks/get", {"taskId": client_task_id})
            except ProtocolError:
                logger.debug("The client no longer has its task; it is asked again")
            else:
                return await self._follow(record, key, {**task, "taskId": client_task_id}, session)
        result = await session.send_request(question.method, params)
        created = result.get("task")
        if not isinstance(created, dict):
            return result  # it answered at once
        if not isinstance(created.get("taskId"), str):
            raise ProtocolError(INTERNAL_ERROR, "The client's task has no taskId")
        return await self._follow(record, key, created, session)

    async def _follow(self, record: TaskRecord, key: str, task: JSONObject, session: TaskSession) -> JSONObject:
        """Poll a client's task at its own interval until it ends, and fetch what it ended with."""
        reference = {"taskId": task["taskId"]}
        self._remember(record, key, task["taskId"])
        try:
            while task.get("status") not in ("completed", "failed", "input_required"):
                if task.get("status") == "cancelled":
                    raise ProtocolError(INTERNAL_ERROR, "The client cancelled its task")
                await anyio.sleep(_poll_seconds(task.get("pollInterval")))
                task = await session.send_request("tasks/get", reference)
            result = await session.send_request("tasks/result", reference)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CANCEL_SECONDS, shield=True):
                with suppress(Exception):  # otherwise the TTL of the client's task ends it
                    if await self._is_closed(record.task_id, key):
                        self._forget(record.task_id, key)
                        await session.send_request("tasks/cancel", reference)
            raise
        except ProtocolError:
            self._forget(record.task_id, key)
            raise
        self._forget(record.task_id, key)
        answer = {name: value for name, value in result.items() if name != "_meta"}  # which names the client's task
        if task.get("status") == "failed" and not answer:
            reason = task.get("statusMessage", "no reason given")
            raise ProtocolError(INTERNAL_ERROR, f"The client's task failed: {reason}")
        return answer

    async def _is_closed(self, task_id: str, key: str) -> bool:
        """Whether the question is closed; otherwise only this stream has ended."""
        record = await self._store.get_task(task_id)
        if record is None or is_terminal(record.status):
            return True
        return all(question.key != key for question in await self._queue.outstanding(task_id))

    def _remember(self, record: TaskRecord, key: str, client_task_id: str) -> None:
        """Keep the id of a client's task for the next stream, but not longer than our task lives (law L8)."""
        now = self._store.clock.now()
        while (expired := self._expiry.pop_due(now)) is not None:
            self._ids.pop(expired, None)
        if record.task.expires_at is not None:
            self._ids.setdefault(record.task_id, {})[key] = client_task_id
            self._expiry.set(record.task_id, record.task.expires_at)

    def _forget(self, task_id: str, key: str) -> None:
        kept = self._ids.get(task_id)
        if kept is not None:
            kept.pop(key, None)
            if not kept:
                del self._ids[task_id]
                self._expiry.discard(task_id)


def _poll_seconds(poll_interval_ms: JSONValue) -> float:
    if not isinstance(poll_interval_ms, int | float):
        return _DEFAULT_POLL_SECONDS
    # Bounds first: JSON knows integers that no float holds.
    return min(max(1000 * _SHORTEST_POLL_SECONDS, poll_interval_ms), 1000 * _LONGEST_POLL_SECONDS) / 1000
