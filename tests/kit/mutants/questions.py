"""Code that asks and answers through two objects, with one fault each, and work's view of its task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.context import TaskContext
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import ask_question, sync_status
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.types import (
    Outcome,
)
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock
from tests.kit.mutants.registry import (
    MUTANTS,
    Mutant,
    backend_mutant,
)

# --- questions ----------------------------------------------------------------------------------------


async def _ask(
    store: TaskStore,
    queue: TaskMessageQueue,
    task_id: str,
    question: QueuedMessage,
    *,
    restore: Callable[[], Awaitable[object]] | None = None,
    release: bool = True,
    expire: bool = True,
) -> Answer | None:
    """What `ask_question` does, with places to go wrong in."""
    key = question.key or ""
    if not await queue.enqueue(task_id, question):
        return None
    try:
        record = await sync_status(store, queue, task_id)
        if record is None or record.outcome is not None:
            raise TaskNotFoundError(task_id)
        with store.clock.move_on_at(record.task.expires_at if expire else None):
            try:
                answer = await queue.wait_for_answer(task_id, key)
            except TaskNotFoundError:
                if not release:
                    await anyio.sleep_forever()
                ended = await store.get_task(task_id)
                if ended is None:
                    raise
                raise InvalidTransitionError(task_id, current=ended.status, requested="input_required") from None
            return answer
        raise TaskNotFoundError(task_id)
    except BaseException:
        if restore is None:
            with anyio.CancelScope(shield=True):
                await queue.answer(task_id, key, Answer.withdrawn())
                await sync_status(store, queue, task_id)
        else:
            await restore()
        raise


async def _ask_and_restore_unshielded(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    async def restore() -> None:
        await queue.answer(task_id, question.key or "", Answer.withdrawn())
        await sync_status(store, queue, task_id)

    return await _ask(store, queue, task_id, question, restore=restore)


async def _ask_and_never_withdraw(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    async def restore() -> None:
        with anyio.CancelScope(shield=True):
            await store.update_task(task_id, status="working")

    return await _ask(store, queue, task_id, question, restore=restore)


async def _ask_for_ever(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question, release=False)


async def _ask_beyond_the_ttl(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question, expire=False)


async def _ask_and_say_nothing(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    await queue.enqueue(task_id, question)
    return await queue.wait_for_answer(task_id, question.key or "")


async def _answer_results_only(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if any(answers[key].type == "result" for key in taken):
        await sync_status(store, queue, task_id)
    return taken


async def _ask_and_trust_the_answerer(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    return await _ask(store, queue, task_id, question)


async def _answer_and_resume(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if taken:
        with suppress(InvalidTransitionError, TaskNotFoundError):
            await store.update_task(task_id, status="working")
    return taken


async def _answer_unshielded(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
    if taken:
        await sync_status(store, queue, task_id)
    return taken


async def _settle_without_revision(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    with anyio.CancelScope(shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        record = await store.get_task(task_id)
        if taken and record is not None and record.outcome is None:
            questions = await queue.outstanding(task_id)
            with suppress(InvalidTransitionError, TaskNotFoundError):
                await store.update_task(task_id, status="input_required" if questions else "working")
    return taken


backend_mutant(
    "AnErrorAnswerLeavesInputRequired",
    "an_error_answer_raises_in_the_asker_and_closes_the_question",
    fault=3,
    answer=_answer_results_only,
    ask=_ask_and_trust_the_answerer,
)
backend_mutant(
    "AnsweringOneOfTwoFlipsToWorking",
    "a_task_is_input_required_exactly_while_a_question_is_open",
    fault=4,
    answer=_answer_and_resume,
)
backend_mutant(
    "AnAskerWaitsForEverWhenItsTaskIsCancelled",
    "ending_the_task_releases_every_asker",
    fault=6,
    ask=_ask_for_ever,
)
backend_mutant(
    "TheStatusIsRestoredUnshielded",
    "a_cancelled_asker_withdraws_its_question",
    fault=7,
    ask=_ask_and_restore_unshielded,
)
backend_mutant(
    "ACancelledAskerLeavesItsQuestion", "a_cancelled_asker_withdraws_its_question", ask=_ask_and_never_withdraw
)
backend_mutant(
    "AnAnswerIsSettledUnshielded", "a_cancelled_answer_counts_in_full_or_not_at_all", answer=_answer_unshielded
)
backend_mutant(
    "TheStatusIsDerivedFromAnOldLook",
    "overlapping_questions_and_answers_leave_the_status_true",
    answer=_settle_without_revision,
)
backend_mutant(
    "AnAskerOutlivesItsTask", "a_task_that_expires_releases_every_asker_by_itself", fault=18, ask=_ask_beyond_the_ttl
)
backend_mutant(
    "AskingDoesNotShowInTheStatus",
    "a_task_is_input_required_exactly_while_a_question_is_open",
    ask=_ask_and_say_nothing,
)


async def _answer_and_always_settle(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, answers: Mapping[str, Answer]
) -> frozenset[str]:
    with anyio.CancelScope(shield=True):
        taken = frozenset([key for key, answer in answers.items() if await queue.answer(task_id, key, answer)])
        await sync_status(store, queue, task_id)
    return taken


async def _ask_again_and_withdraw(
    store: TaskStore, queue: TaskMessageQueue, task_id: str, question: QueuedMessage
) -> Answer | None:
    try:
        return await ask_question(store, queue, task_id, question)
    finally:
        await queue.answer(task_id, question.key or "", Answer.withdrawn())


class _LosesDeliveredQuestions(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await super().dequeue(task_id)
        mailbox = self._mailbox(task_id)
        if message is not None and message.key is not None and mailbox is not None:
            mailbox.questions.pop(message.key)
        return message


@asynccontextmanager
async def _loses_delivered_questions(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
    async with InMemoryTaskStore(clock=clock) as store, _LosesDeliveredQuestions() as queue:
        yield TaskBackend(store, queue)


backend_mutant(
    "AnIgnoredAnswerShowsAsAnUpdate", "unknown_late_and_repeated_answers_are_ignored", answer=_answer_and_always_settle
)
backend_mutant("ARefusedQuestionWithdrawsTheFirst", "a_key_that_was_used_asks_nothing", ask=_ask_again_and_withdraw)
MUTANTS.append(
    Mutant(
        "AQuestionIsLostWithItsDeliverer",
        "backend",
        ("a_question_survives_its_deliverer",),
        _loses_delivered_questions,
        fault=10,
    )
)


# --- the work's view ----------------------------------------------------------------------------------


class _FinishesQuietly(TaskContext):
    async def finish(self, outcome: Outcome) -> None:
        try:
            await super().finish(outcome)
        except InvalidTransitionError:
            self._task = replace(self._task, status=outcome.status)


class _SaysThenEnds(TaskContext):
    async def complete(self, result: object) -> None:
        await self.update_status("about to end")
        await super().complete(result)

    async def finish(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            await super().finish(Outcome("failed", None, "it broke"))
        else:
            await super().finish(outcome)


@asynccontextmanager
async def _execute_and_tell(task_id: str, store: TaskStore) -> AsyncIterator[TaskContext]:
    record = await store.get_task(task_id)
    assert record is not None
    context = TaskContext(task=record.task, store=store)
    try:
        yield context
    except Exception as error:
        await context.fail(str(error))


@asynccontextmanager
async def _execute_unshielded(task_id: str, store: TaskStore) -> AsyncIterator[TaskContext]:
    record = await store.get_task(task_id)
    assert record is not None
    context = TaskContext(task=record.task, store=store)
    try:
        yield context
    except BaseException:
        await store.finish_task(task_id, Outcome.failed("interrupted"))
        raise


class _CancelsFirst(TaskContext):
    async def finish(self, outcome: Outcome) -> None:
        try:
            await anyio.lowlevel.checkpoint()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._store.finish_task(self.task_id, Outcome.cancelled())
            raise
        await super().finish(outcome)


backend_mutant("CancelledCompletionEndsTheTaskOtherwise", "cancelled_work_leaves_its_task_whole", context=_CancelsFirst)
backend_mutant("ALateEndIsSwallowed", "work_ends_its_task_once", context=_FinishesQuietly)
backend_mutant("AFailureHasNoError", "work_ends_its_task_once", context=_SaysThenEnds)
backend_mutant(
    "TheTextOfAnExceptionIsTold",
    "what_work_raises_is_told_only_if_it_is_a_protocol_error",
    fault=11,
    execute=_execute_and_tell,
)
backend_mutant(
    "InterruptedWorkEndsItsTaskUnshielded", "interrupted_work_ends_its_task", fault=7, execute=_execute_unshielded
)
