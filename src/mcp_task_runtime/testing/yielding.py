"""Stores and a queue that yield to the event loop around every call, though what they wrap may never do so.

In-memory operations never yield, so nothing can be cancelled or overtaken between them. In these
wrappers everything that a database would allow to happen can happen: with the canceller and the
interleaving driver they exercise the code above a store at each of its awaits.

A wrapper has the abilities of its class, not of what it wraps: `YieldingTaskStore` none, so that code above it
takes store and queue for two objects; `YieldingQuestionStore` those of `TaskQuestions`; `YieldingBundledStore` all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from typing import Protocol, TypeVar

from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import (
    TaskJoins,
    TaskJournal,
    TaskLeases,
    TaskOwners,
    TaskQuestions,
    TaskQuotas,
    TaskSearch,
    TaskSharing,
    TaskStore,
    TaskSweeping,
)
from mcp_task_runtime.core.types import (
    Fence,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView

__all__ = ["YieldingBundledStore", "YieldingQuestionStore", "YieldingTaskMessageQueue", "YieldingTaskStore"]

T = TypeVar("T")


async def _then_checkpoint(operation: Awaitable[T]) -> T:
    result = await operation
    await checkpoint()
    return result


class YieldingTaskStore:
    """A `TaskStore` around another, with a checkpoint before and after each call."""

    def __init__(self, store: TaskStore) -> None:
        """Wrap a store, which stays the caller's to close."""
        self._store = store

    @property
    def clock(self) -> Clock:
        """The wrapped store's clock."""
        return self._store.clock

    @property
    def is_shared(self) -> bool:
        """Whether several runtimes use the wrapped store; see `TaskSharing`."""
        return not isinstance(self._store, TaskSharing) or self._store.is_shared

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        await checkpoint()
        return await _then_checkpoint(self._store.create_task(new))

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        await checkpoint()
        return await _then_checkpoint(self._store.get_task(task_id))

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
        await checkpoint()
        return await _then_checkpoint(
            self._store.update_task(
                task_id,
                status=status,
                status_message=status_message,
                progress=progress,
                ttl_ms=ttl_ms,
                if_revision=if_revision,
                fence=fence,
            )
        )

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        await checkpoint()
        return await _then_checkpoint(self._store.finish_task(task_id, outcome, fence=fence))

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        await checkpoint()
        return await _then_checkpoint(self._store.get_result(task_id))

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        await checkpoint()
        return await _then_checkpoint(self._store.list_tasks(owner=owner, cursor=cursor, limit=limit))

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        await checkpoint()
        return await _then_checkpoint(self._store.delete_task(task_id))

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        await checkpoint()
        return await _then_checkpoint(self._store.wait_for_update(task_id, after=after))


class YieldingTaskMessageQueue:
    """A `TaskMessageQueue` around another, with a checkpoint before and after each call."""

    def __init__(self, queue: TaskMessageQueue) -> None:
        """Wrap a queue, which stays the caller's to close."""
        self._queue = queue

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.enqueue(task_id, message))

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        await checkpoint()
        message = await self._queue.dequeue(task_id)
        await cancel_shielded_checkpoint()  # cancelled here, the message would be neither queued nor returned
        return message

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.peek(task_id))

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.is_empty(task_id))

    async def clear(self, task_id: str) -> None:
        """Drop everything of a task; see `TaskMessageQueue.clear`."""
        await checkpoint()
        await _then_checkpoint(self._queue.clear(task_id))

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        await checkpoint()
        await _then_checkpoint(self._queue.wait_for_message(task_id))

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.outstanding(task_id))

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.answer(task_id, key, answer))

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        await checkpoint()
        return await _then_checkpoint(self._queue.wait_for_answer(task_id, key))


class _QuestionStore(TaskStore, TaskQuestions, Protocol): ...


class YieldingQuestionStore(YieldingTaskStore):
    """A `YieldingTaskStore` that has `TaskQuestions`, as the wrapped store has."""

    def __init__(self, store: _QuestionStore) -> None:
        """Wrap a store and its queue, which stay the caller's to close."""
        super().__init__(store)
        self._asks: TaskQuestions = store
        self._own_queue = YieldingTaskMessageQueue(store.message_queue)

    @property
    def message_queue(self) -> YieldingTaskMessageQueue:
        """The wrapped store's queue, wrapped."""
        return self._own_queue

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Put a question; see `TaskQuestions.ask`."""
        await checkpoint()
        return await _then_checkpoint(self._asks.ask(task_id, question, fence=fence))

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer open questions; see `TaskQuestions.answer_all`."""
        await checkpoint()
        return await _then_checkpoint(self._asks.answer_all(task_id, answers))

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions; see `TaskQuestions.get_view`."""
        await checkpoint()
        return await _then_checkpoint(self._asks.get_view(task_id))


class _BundledStore(
    _QuestionStore, TaskOwners, TaskLeases, TaskSweeping, TaskJoins, TaskJournal, TaskQuotas, TaskSearch, Protocol
): ...


class YieldingBundledStore(YieldingQuestionStore):
    """A `YieldingTaskStore` that has every ability, as the wrapped store has."""

    def __init__(self, store: _BundledStore) -> None:
        """Wrap a store and its queue, which stay the caller's to close."""
        super().__init__(store)
        self._bundled = store

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.get_owned(task_id, owner=owner))

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases; see `TaskLeases.renew_leases`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.renew_leases(worker, task_ids, lease_ms=lease_ms))

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await checkpoint()
        await _then_checkpoint(self._bundled.drop_leases(worker, task_ids, lapse=lapse))

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.list_lapsed(limit=limit))

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers; see `TaskSweeping.list_lost`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.list_lost(names, limit=limit))

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task; see `TaskLeases.claim_task`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.claim_task(task_id, worker=worker, lease_ms=lease_ms))

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that a call joins, or create one; see `TaskJoins.join_task`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.join_task(new, key=key, ended_ms=ended_ms))

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.count_live_tasks(owner))

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; see `TaskJournal.record_step`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.record_step(task_id, key, value_json, fence=fence))

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key; see `TaskJournal.read_steps`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.read_steps(task_id))

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        await checkpoint()
        return await _then_checkpoint(
            self._bundled.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=limit)
        )

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are; see `TaskSearch.count_tasks`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.count_tasks())

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task; see `TaskSearch.get_history`."""
        await checkpoint()
        return await _then_checkpoint(self._bundled.get_history(task_id))
