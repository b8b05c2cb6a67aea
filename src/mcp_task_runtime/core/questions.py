"""Asking a task's client, and keeping the task's status true while questions are open (law L5).

Store and queue are two objects, maybe two processes apart, so status and questions cannot change in
one step. Instead, whoever changes the set of open questions afterwards calls `settle_status`, which
derives the status from the queue and writes it only if the task has not changed since it looked.
Every settling writes, so of two that overlap the later one always sees both changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    RevisionConflictError,
    StoreUnavailableError,
    TaskNotFoundError,
)

__all__ = ["CLEANUP_SECONDS", "answer_questions", "ask_question", "settle_status"]

CLEANUP_SECONDS = 5.0
"""Seconds that clean-up may take when it is shielded from cancellation: bounded, so nothing hangs."""


async def settle_status(store: TaskStore, queue: TaskMessageQueue, task_id: str) -> TaskRecord | None:
    """Make a live task `input_required` or `working`, by whether it has open questions.

    Returns:
        The task afterwards; an ended one unchanged; `None` if there is none.
    """
    while True:
        record = await store.get_task(task_id)
        if record is None or is_terminal(record.status):
            return record
        questions = await queue.outstanding(task_id)
        try:
            return await store.update_task(
                task_id, status="input_required" if questions else "working", if_revision=record.revision
            )
        except (RevisionConflictError, InvalidTransitionError, TaskNotFoundError):
            continue  # changed meanwhile: look again


async def answer_questions(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    """Give questions their answers, then settle the status. The first answer to each wins (law L5).

    Cancelled, it still happens in full.

    Returns:
        The keys whose answer was taken: not those that are unknown or were answered already.

    Raises:
        StoreUnavailableError: The store did not answer in time; some answers may have been taken.
    """
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        if taken:
            await settle_status(store, queue, task_id)
        return taken
    raise StoreUnavailableError("The store did not answer in time")


async def ask_question(
    store: TaskStore,
    queue: TaskMessageQueue,
    task_id: str,
    question: QueuedMessage,
    *,
    replays: bool = False,
    stays_open: Callable[[], bool] = bool,
) -> Answer | None:
    """Put a question to the task's client and wait for its answer.

    Cancelled while waiting, it withdraws the question and settles the status.

    Args:
        store: Where the task is kept.
        queue: Where its questions are kept.
        task_id: The task that asks.
        question: A request to the client.
        replays: Whether the work runs again: then a question that the task has had before is the same
            one, and its answer is this one's.
        stays_open: Whether a cancelled question is left open, for a rerun elsewhere to take up.

    Returns:
        The answer, or `None` if the task has had a question with this key before and nothing replays.

    Raises:
        InvalidTransitionError: The task has ended, before or while the question was open.
        TaskNotFoundError: The task is unknown or has expired.
        ValueError: The message is not a request.
    """
    key = question.key
    if key is None:
        raise ValueError("question must be a request")
    finished = False
    try:
        if not await queue.enqueue(task_id, question) and not replays:
            finished = True
            return None
        record = await settle_status(store, queue, task_id)
        if record is not None and not is_terminal(record.status):
            try:
                # A queue knows no time: nobody may be there to clear it when the task expires (law L7).
                with store.clock.move_on_at(record.task.expires_at):
                    answer = await queue.wait_for_answer(task_id, key)
                    finished = True
            except TaskNotFoundError:  # the mailbox was cleared: the task has ended
                pass
            record = await store.get_task(task_id)
            if finished:
                if record is not None and record.status == "input_required":
                    # The answering process may not have settled yet, or may have died.
                    await settle_status(store, queue, task_id)
                return answer
    finally:
        if not finished and not stays_open():
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await _withdraw(store, queue, task_id, key)
    if record is None:
        raise TaskNotFoundError(task_id)
    raise InvalidTransitionError(task_id, current=record.status, requested="input_required")


async def _withdraw(store: TaskStore, queue: TaskMessageQueue, task_id: str, key: str) -> None:
    withdrawn = await queue.answer(task_id, key, Answer.withdrawn())
    record = await settle_status(store, queue, task_id) if withdrawn else await store.get_task(task_id)
    if record is None or is_terminal(record.status):
        await queue.clear(task_id)  # nothing is kept for a task that has ended (law L8)
