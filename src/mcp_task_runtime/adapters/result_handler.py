"""`TaskResultHandler`: brings a task's questions to its client and the answers back."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.answers import check_answer
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import Outcome
from mcp_task_runtime.errors import ProtocolError, TaskNotFoundError
from mcp_task_runtime.wire.v2025_11_25 import with_related_task

__all__ = ["TaskResultHandler"]

logger = logging.getLogger(__name__)


class TaskResultHandler:
    """Delivers the questions of tasks to whoever can answer, and routes answers and errors to the asker."""

    def __init__(
        self,
        store: TaskStore,
        queue: TaskMessageQueue,
        *,
        settings: TaskSettings | None = None,
        undeliverable: str | None = None,
    ) -> None:
        """Make a handler.

        Args:
            store: Where the tasks are kept.
            queue: Where their questions are kept.
            settings: Limits for answers.
            undeliverable: Why no question can reach the client, if that is so. Asking then fails at once
                with a `CapabilityError` that says this, instead of waiting for an answer for ever.
        """
        self.undeliverable = undeliverable
        self._store = store
        self._queue = queue
        self._settings = TaskSettings() if settings is None else settings

    async def handle(self, task_id: str, session: TaskSession) -> Outcome:
        """Serve one client that waits for a task: put its questions, wait for its end, return how it ended.

        Every open question is sent, also one that was sent before on a connection that broke (law L5,
        wire rule B6). Waits without polling. Cancelled, it leaves open what is not answered.

        Raises:
            TaskNotFoundError: The task is unknown, or expires while this waits.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._deliver, task_id, session)
            outcome = await self._wait(task_id)
            group.cancel_scope.cancel()
        if outcome is None:
            raise TaskNotFoundError(task_id)
        return outcome

    @asynccontextmanager
    async def delivering(self, task_id: str, session: TaskSession) -> AsyncIterator[None]:
        """Put a task's questions to a client for as long as the block runs."""
        failure: BaseException | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._deliver, task_id, session)
            try:
                yield
            except BaseException as error:  # the group would wrap it
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _wait(self, task_id: str) -> Outcome | None:
        try:
            record = await self._store.get_task(task_id)
            while record is not None and record.outcome is None:
                record = await self._store.wait_for_update(task_id, after=record.revision)
        except TaskNotFoundError:
            return None
        return None if record is None else record.outcome

    async def _deliver(self, task_id: str, session: TaskSession) -> None:
        async with anyio.create_task_group() as group:
            sent: set[str | None] = set()
            for question in await self._queue.outstanding(task_id):
                sent.add(question.key)
                group.start_soon(self._put, task_id, question, session)
            try:
                while True:
                    await self._queue.wait_for_message(task_id)
                    message = await self._queue.dequeue(task_id)
                    if message is None or message.key in sent:
                        continue
                    if message.type == "notification":
                        await session.send_notification(message.method, with_related_task(message.params, task_id))
                    else:
                        sent.add(message.key)
                        group.start_soon(self._put, task_id, message, session)
            except TaskNotFoundError:
                return  # the mailbox was cleared: the task has ended

    async def _put(self, task_id: str, question: QueuedMessage, session: TaskSession) -> None:
        key = question.key
        assert key is not None
        try:
            result = await session.send_request(question.method, with_related_task(question.params, task_id))
            answer = check_answer(question, result, max_bytes=self._settings.max_answer_bytes)
        except ProtocolError as error:  # from the client, or about what it sent
            answer = Answer.error(error.code, error.message, error.data)
        except Exception:
            logger.debug("A question could not be delivered and stays open", exc_info=True)
            return
        await answer_questions(self._store, self._queue, task_id, {key: answer})
