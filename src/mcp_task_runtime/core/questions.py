"""Asking a task's client, and keeping the task's status true while questions are open (law L5).

With a store that has `TaskQuestions`, used with its own queue, asking and answering are one write each: the
question or the answers, and the status.

A store and a queue of different makers are two objects, perhaps in two processes, so status and questions
cannot change in one step. Then the code that changes the set of open questions calls `sync_status` afterwards, which
derives the status from the queue and writes it only if the task has not changed since it was read. It writes
each time, so of two calls that overlap the later one sees both changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import anyio

from mcp_task_runtime.core.abilities import has_questions, queue_of
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.store import TaskQuestions, TaskStore
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS, outlasting, pause_after
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import Fence, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    LeaseLostError,
    RevisionConflictError,
    StoreUnavailableError,
    TaskNotFoundError,
)

__all__ = [
    "answer_questions",
    "ask_question",
    "get_view",
    "sync_status",
    "withdraw_question",
]


def _own(store: TaskStore, queue: TaskMessageQueue) -> TaskQuestions | None:
    """Return the store as one that asks and answers in one write, if it does so in this queue."""
    return cast(TaskQuestions, store) if has_questions(store) and queue_of(store) is queue else None


async def sync_status(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, *, fence: Fence | None = None
) -> TaskRecord | None:
    """Make a live task `input_required` or `working`, by whether it has open questions.

    Returns:
        The task afterwards; an ended one unchanged; `None` if there is none.

    Raises:
        LeaseLostError: `fence` names a run that no longer holds the task's lease.
    """
    while True:
        record = await store.get_task(task_id)
        if record is None or is_terminal(record.status):
            return record
        questions = await queue.outstanding(task_id)
        try:
            return await store.update_task(
                task_id,
                status="input_required" if questions else "working",
                if_revision=record.revision,
                fence=fence,
            )
        except (RevisionConflictError, InvalidTransitionError, TaskNotFoundError):
            continue  # changed meanwhile: read it again


async def get_view(store: TaskStore, queue: TaskMessageQueue, task_id: str) -> TaskView | None:
    """Return a task with its open questions, or `None` if there is none."""
    own = _own(store, queue)
    if own is not None:
        return await own.get_view(task_id)
    record = await store.get_task(task_id)
    if record is None:
        return None
    return TaskView(record, () if is_terminal(record.status) else await queue.outstanding(task_id))


async def answer_questions(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    """Answer questions and set the status. The first answer to each wins (law L5).

    Cancelled, all of it happened or, with a store that has `TaskQuestions`, nothing of it.

    Returns:
        The keys whose answer was taken: not those that are unknown or were answered already.

    Raises:
        StoreUnavailableError: The store did not answer in time; some answers may have been taken.
    """
    own = _own(store, queue)
    if own is not None:
        return await own.answer_all(task_id, answers)
    with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        if taken:
            await sync_status(store, queue, task_id)
        return taken
    raise StoreUnavailableError("The store did not answer in time")


async def withdraw_question(store: TaskStore, queue: TaskMessageQueue, task_id: str, key: str) -> None:
    """Close a question whose asker no longer waits, and set the status; nothing happens if it is not open."""
    own = _own(store, queue)
    if own is not None:
        await own.answer_all(task_id, {key: Answer.withdrawn()})
        return
    withdrawn = await queue.answer(task_id, key, Answer.withdrawn())
    record = await sync_status(store, queue, task_id) if withdrawn else await store.get_task(task_id)
    if record is None or is_terminal(record.status):
        await queue.clear(task_id)  # nothing is kept for a task that has ended (law L8)


async def ask_question(
    store: TaskStore,
    queue: TaskMessageQueue,
    task_id: str,
    question: QueuedMessage,
    *,
    replays: bool = False,
    stays_open: Callable[[], bool] = bool,
    fence: Fence | None = None,
    ends_at_deadline: bool = False,
) -> Answer | None:
    """Put a question to the task's client and wait for its answer, also through outages of the store.

    Cancelled while waiting, it withdraws the question and sets the status, unless `fence` names a run that has lost
    the task's lease: the question belongs to the run that has it.

    Args:
        store: Where the task is kept.
        queue: Where its questions are kept.
        task_id: The task that asks.
        question: A request to the client.
        replays: Whether the work runs again: then a question that the task has had before is the same
            one, and its answer is this one's.
        stays_open: Whether a cancelled question is left open, for a rerun elsewhere to take up.
        fence: The run of the work that asks: it must hold the task's lease (law L12).
        ends_at_deadline: Whether something else in this process, a runtime, ends the task at its deadline, which
            releases the asker. Otherwise it keeps a timer of its own, for the cost of a cancel scope.

    Returns:
        The answer, or `None` if the task has had a question with this key before and nothing replays.

    Raises:
        InvalidTransitionError: The task has ended, before or while the question was open.
        TaskNotFoundError: The task is unknown or has expired.
        LeaseLostError: The run that `fence` names no longer holds the task's lease.
        ValueError: The message is not a request.
    """
    key = question.key
    if key is None:
        raise ValueError("question must be a request")
    own = _own(store, queue)
    settled = False  # whether there is nothing to withdraw
    failures = 0
    try:
        record = await _put(store, queue, own, task_id, question, replays=replays, fence=fence)
        if record is None:
            settled = True
            return None
        while not is_terminal(record.status):
            # A queue knows no time, and no other call may come to notice that the task has expired (law L7).
            expires_at = None if ends_at_deadline else record.task.expires_at
            dropped = False
            del record  # the answer may take days
            try:
                waiting = queue.wait_for_answer(task_id, key)
                if expires_at is None:
                    answer = await waiting
                    settled = True
                else:
                    with store.clock.move_on_at(expires_at):
                        answer = await waiting
                        settled = True
                failures = 0
            except TaskNotFoundError:
                dropped = True
            except StoreUnavailableError:
                failures += 1
                await pause_after(failures)
            if settled:
                if own is None:
                    await outlasting(partial(_resume, store, queue, task_id, fence))
                return answer
            found = await outlasting(partial(store.get_task, task_id))
            if found is None:
                raise TaskNotFoundError(task_id)
            record = found
            if dropped:
                break
        raise InvalidTransitionError(task_id, current=record.status, requested="input_required")
    except (LeaseLostError, InvalidTransitionError, TaskNotFoundError):
        settled = settled or own is not None  # the store has dropped the question, or never had it
        raise
    finally:
        if not settled and not stays_open():
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await outlasting(partial(_give_up, store, queue, task_id, key, fence))


async def _put(
    store: TaskStore,
    queue: TaskMessageQueue,
    own: TaskQuestions | None,
    task_id: str,
    question: QueuedMessage,
    *,
    replays: bool,
    fence: Fence | None,
) -> TaskRecord | None:
    """Ask; return the task afterwards, or `None` if the key was used before and nothing replays."""
    may_be_asked = replays
    if own is not None:
        ask = partial(own.ask, task_id, question, fence=fence)
        try:
            record = await ask()
        except StoreUnavailableError:
            may_be_asked = True
            record = await outlasting(ask)
        if record is not None or not may_be_asked:
            return record
        record = await outlasting(partial(store.get_task, task_id))
    else:
        enqueue = partial(queue.enqueue, task_id, question)
        try:
            is_new = await enqueue()
        except StoreUnavailableError:
            may_be_asked = True
            is_new = await outlasting(enqueue)
        if not is_new and not may_be_asked:
            return None
        try:
            record = await outlasting(partial(sync_status, store, queue, task_id, fence=fence))
        except LeaseLostError:
            if is_new:
                with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                    await withdraw_question(store, queue, task_id, question.key or "")
            raise
    if record is None:
        raise TaskNotFoundError(task_id)
    return record


async def _give_up(store: TaskStore, queue: TaskMessageQueue, task_id: str, key: str, fence: Fence | None) -> None:
    """Withdraw a question, unless it is another run's."""
    if fence is None or await _holds_lease(store, task_id, fence):
        await withdraw_question(store, queue, task_id, key)


async def _holds_lease(store: TaskStore, task_id: str, fence: Fence) -> bool:
    """Return whether a run may still write; also of a task that has ended, where nothing is left to be spoiled."""
    record = await store.get_task(task_id)
    return record is None or is_terminal(record.status) or (record.lease is not None and record.lease.fence == fence)


async def _resume(store: TaskStore, queue: TaskMessageQueue, task_id: str, fence: Fence | None) -> None:
    """Set the status after an answer: the answering process may not have done so yet, or may have died."""
    record = await store.get_task(task_id)
    if record is not None and record.status == "input_required":
        await sync_status(store, queue, task_id, fence=fence)
