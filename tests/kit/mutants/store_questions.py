"""Stores with `TaskQuestions` that have one fault each."""

from __future__ import annotations

from collections.abc import Mapping

import anyio.lowlevel

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, Outcome, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from tests.core.leased_store import LeasedTaskStore, Link
from tests.kit.mutants.leases import leased_process_mutant
from tests.kit.mutants.registry import live, store_mutant


@store_mutant("asking_is_one_revision_and_wakes_every_waiter_once")
class AskingIsTwoRevisions(InMemoryTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        asked = await super().ask(task_id, question, fence=fence)
        return asked and await self.update_task(task_id, status="input_required")


@store_mutant("asking_is_one_revision_and_wakes_every_waiter_once")
class AQuestionWakesNoWaiter(InMemoryTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        entry = live(self, task_id)
        entry.changed, waited_for = None, entry.changed
        try:
            return await super().ask(task_id, question, fence=fence)
        finally:
            entry.changed = waited_for


@store_mutant("one_answer_is_one_revision")
class AnswersAreWrittenOneByOne(InMemoryTaskStore):
    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        taken: set[str] = set()
        for key, answer in answers.items():
            taken |= await super().answer_all(task_id, {key: answer})
        return frozenset(taken)


@store_mutant("answers_that_are_not_taken_change_nothing")
class AnIgnoredAnswerIsAChange(InMemoryTaskStore):
    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        taken = await super().answer_all(task_id, answers)
        if not taken and task_id in self._entries and live(self, task_id).record.outcome is None:
            await self.update_task(task_id)
        return taken


@store_mutant("a_refused_question_changes_nothing")
class ARefusedQuestionChangesTheTask(InMemoryTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        asked = await super().ask(task_id, question, fence=fence)
        if asked is None:
            await self.update_task(task_id, status="input_required")
        return asked


@store_mutant("a_run_that_lost_its_lease_asks_nothing")
class AskingIgnoresTheFence(LeasedTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        return await super().ask(task_id, question)


@store_mutant("finishing_releases_every_asker_in_the_same_step")
class AWaitForAMessageOutlivesItsTask(InMemoryTaskStore):
    def __init__(self, *, clock: Clock | None = None) -> None:
        super().__init__(clock=clock)
        self._queue = InMemoryTaskMessageQueue()  # that asks no store whether a task has ended


@store_mutant("finishing_releases_every_asker_in_the_same_step")
class FinishingLeavesTheMailbox(InMemoryTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        mailbox = self._queue._mailboxes.pop(task_id, None)
        try:
            return await super().finish_task(task_id, outcome, fence=fence)
        finally:
            if mailbox is not None:
                self._queue._mailboxes[task_id] = mailbox


@store_mutant("an_end_that_is_refused_leaves_the_questions")
class ARefusedEndDropsTheQuestions(LeasedTaskStore):
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        self._queue.forget(task_id)
        return await super().finish_task(task_id, outcome, fence=fence)


@store_mutant("a_cancelled_question_or_answer_happened_in_full_or_not_at_all")
class TheStatusFollowsTheAnswers(InMemoryTaskStore):
    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        taken = frozenset([key for key, answer in answers.items() if await self._queue.answer(task_id, key, answer)])
        await anyio.lowlevel.checkpoint()
        if taken:
            await self.update_task(
                task_id, status="input_required" if self._queue.has_questions(task_id) else "working"
            )
        return taken


@store_mutant(
    "questions_and_answers_that_overlap_have_the_effect_of_some_sequence",
    "of_many_that_ask_or_answer_exactly_one_wins",
)
class EveryAnswerThatLookedInTimeWins(InMemoryTaskStore):
    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        is_open = {question.key for question in self._queue.questions(task_id)}
        await anyio.lowlevel.checkpoint()
        await super().answer_all(task_id, answers)
        return frozenset(answers) & {key for key in is_open if key is not None}


@store_mutant("a_view_never_shows_questions_that_belie_the_status")
class AViewIsReadInTwoSteps(InMemoryTaskStore):
    async def get_view(self, task_id: str) -> TaskView | None:
        record = await self.get_task(task_id)
        await anyio.lowlevel.checkpoint()
        return None if record is None else TaskView(record, self._queue.questions(task_id))


@store_mutant("a_question_costs_the_same_among_many")
class AskingLooksAtEveryAnswer(InMemoryTaskStore):
    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        for mailbox in self._queue._mailboxes.values():
            for key in mailbox.answers or ():
                assert key is not None
        return await super().ask(task_id, question, fence=fence)


@store_mutant("answers_cost_in_proportion_to_their_number")
class AnswersAreComparedWithEachOther(InMemoryTaskStore):
    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        for key in answers:
            assert sum(key == other for other in answers) == 1
        return await super().answer_all(task_id, answers)


@store_mutant("nothing_is_kept_of_questions_that_are_gone")
class KeysOfQuestionsAreKept(InMemoryTaskStore):
    asked: dict[str, str]

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        self.__dict__.setdefault("asked", {})[task_id] = question.key
        return await super().ask(task_id, question, fence=fence)


def _forget_mailboxes(store: LeasedTaskStore) -> LeasedTaskStore:
    for task_id in store._entries:
        store._queue.forget(task_id)
    return store


class _SeesNoQuestions(Link):
    """A process's connection."""

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        return frozenset()


leased_process_mutant(
    "OpeningForgetsTheQuestions", "a_reopened_store_has_every_question_and_answer", process=_forget_mailboxes
)
leased_process_mutant(
    "AProcessSeesNoQuestionsOfOthers", "an_asker_is_woken_by_another_process", process=_SeesNoQuestions
)
