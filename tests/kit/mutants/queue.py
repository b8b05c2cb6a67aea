"""Queues with one fault each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.errors import (
    TaskNotFoundError,
)
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue
from tests.kit.mutants.registry import (
    queue_mutant,
)

# --- queue --------------------------------------------------------------------------------------------


@queue_mutant("messages_of_a_task_are_first_in_first_out_and_its_own")
class TheLastMessageComesFirst(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        mailbox = self._mailbox(task_id)
        if mailbox is not None and mailbox.messages:
            mailbox.messages.reverse()
        return await super().dequeue(task_id)


@queue_mutant("messages_of_a_task_are_first_in_first_out_and_its_own")
class PeekRemovesTheMessage(InMemoryTaskMessageQueue):
    async def peek(self, task_id: str) -> QueuedMessage | None:
        return await self.dequeue(task_id)


@queue_mutant("each_message_goes_to_one_of_many_that_dequeue")
class OneMessageGoesToTwo(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await self.peek(task_id)
        await anyio.lowlevel.checkpoint()
        await super().dequeue(task_id)
        return message


@queue_mutant("a_question_stays_one_until_it_is_answered", fault=10)
class ADequeuedQuestionIsNoMoreOutstanding(InMemoryTaskMessageQueue):
    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        mailbox = self._mailbox(task_id)
        return () if mailbox is None else tuple(m for m in mailbox.messages or () if m.key is not None)


@queue_mutant("a_message_is_queued_or_returned_when_dequeue_is_cancelled", fault=10)
class ACancelledDequeueLosesTheMessage(InMemoryTaskMessageQueue):
    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        message = await super().dequeue(task_id)
        await anyio.lowlevel.checkpoint()
        return message


@queue_mutant("a_question_stays_one_until_it_is_answered")
class AnAnsweredQuestionStaysInTheQueue(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        question = None if mailbox is None else mailbox.questions.get(key)
        queued = mailbox is not None and question is not None and question.message in (mailbox.messages or ())
        taken = await super().answer(task_id, key, answer)
        if taken and queued and mailbox is not None and question is not None:
            mailbox.messages = [QueuedMessage("notification", question.message.method), *(mailbox.messages or ())]
        return taken


@queue_mutant("a_key_is_never_used_again", fault=15)
class AKeyCanBeUsedAgain(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        mailbox = self._mailbox(task_id)
        if mailbox is not None and message.key is not None and mailbox.answers:
            mailbox.answers.pop(message.key, None)
        return await super().enqueue(task_id, message)


@queue_mutant("a_key_is_never_used_again")
class ARefusedQuestionIsQueuedAllTheSame(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        taken = await super().enqueue(task_id, message)
        mailbox = self._mailbox(task_id)
        if not taken and mailbox is not None:
            mailbox.messages = [*(mailbox.messages or ()), message]
        return taken


@queue_mutant("the_first_answer_wins")
class TheSecondAnswerOverwrites(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        taken = await super().answer(task_id, key, answer)
        mailbox = self._mailbox(task_id)
        if not taken and mailbox is not None and mailbox.answers and key in mailbox.answers:
            mailbox.answers[key] = answer
        return taken


@queue_mutant("the_first_answer_wins")
class EveryAnswerIsSaidToBeTaken(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        await super().answer(task_id, key, answer)
        return True


@queue_mutant("answers_to_nothing_are_ignored", fault=15)
class AnAnswerFindsAQuestionOfAnotherTask(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        for other, mailbox in self._mailboxes.items():
            if key in mailbox.questions:
                return await super().answer(other, key, answer)
        return False


@queue_mutant("answers_to_nothing_are_ignored")
class WaitingForAnUnknownAnswerNeverEnds(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        try:
            return await super().wait_for_answer(task_id, key)
        except TaskNotFoundError:
            await anyio.sleep_forever()
            raise


@queue_mutant("every_waiter_wakes_when_a_message_comes", fault=1)
class OnlyTheLastListenerWakes(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        mailbox = self._mailbox(task_id)
        if mailbox is not None and not mailbox.messages:
            mailbox.arrived = None
        await super().wait_for_message(task_id)


@queue_mutant("every_waiter_wakes_when_a_message_comes", fault=2)
class AMessageBeforeTheWaitIsLost(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        mailbox = self._mailbox(task_id)
        if mailbox is None:
            return await super().wait_for_message(task_id)
        mailbox.arrived = mailbox.arrived or Signal()
        await mailbox.arrived.wait()
        return None


@queue_mutant("every_asker_gets_the_answer", fault=1)
class OnlyTheLastAskerWakes(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        mailbox = self._mailbox(task_id)
        question = None if mailbox is None else mailbox.questions.get(key)
        if question is not None:
            question.settled = None
        return await super().wait_for_answer(task_id, key)


@queue_mutant("clearing_releases_everyone_who_waits", fault=6)
class ClearLeavesThoseWhoWait(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        self._mailboxes.pop(task_id, None)


@queue_mutant("clearing_forgets_everything_of_one_task")
class ClearKeepsTheAnswers(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        mailbox = self._mailboxes.get(task_id)
        answers = {} if mailbox is None else mailbox.answers
        super().forget(task_id)
        if answers and mailbox is not None:
            mailbox.messages, mailbox.questions = None, {}
            self._mailboxes[task_id] = mailbox


@queue_mutant("clearing_forgets_everything_of_one_task")
class ClearForgetsEveryTask(InMemoryTaskMessageQueue):
    def forget(self, task_id: str) -> None:
        for other in list(self._mailboxes):
            super().forget(other)


@queue_mutant("everyone_who_waits_is_woken_when_the_queue_is_closed")
class ClosingTheQueueWakesNobody(InMemoryTaskMessageQueue):
    async def aclose(self) -> None:
        self._closed = True


@queue_mutant("a_cancelled_waiter_takes_nobody_with_it")
class ACancelledListenerTakesTheEventWithIt(InMemoryTaskMessageQueue):
    async def wait_for_message(self, task_id: str) -> None:
        try:
            await super().wait_for_message(task_id)
        finally:
            mailbox = self._mailboxes.get(task_id)
            if mailbox is not None:
                mailbox.arrived = None


@queue_mutant("what_a_queue_returned_never_changes")
class TheLiveQuestionsAreReturned(InMemoryTaskMessageQueue):
    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        mailbox = self._mailbox(task_id)
        return () if mailbox is None else _LiveQuestions(mailbox.questions)  # type: ignore[return-value]


class _LiveQuestions:
    def __init__(self, questions: Mapping[str, Any]) -> None:
        self._questions = questions

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[QueuedMessage]:
        return (question.message for question in self._questions.values())


@queue_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AQuestionIsWrittenInTwoSteps(InMemoryTaskMessageQueue):
    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        taken = await super().enqueue(task_id, message)
        mailbox = self._mailbox(task_id)
        if taken and mailbox is not None and mailbox.messages:
            mailbox.messages.pop()
            await anyio.lowlevel.checkpoint()
            mailbox.messages.append(message)
        return taken


@queue_mutant("a_cancelled_change_happened_in_full_or_not_at_all")
class AnAnswerIsWrittenInTwoSteps(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        taken = await super().answer(task_id, key, answer)
        if taken and mailbox is not None and mailbox.answers is not None:
            del mailbox.answers[key]
            await anyio.lowlevel.checkpoint()
            mailbox.answers[key] = answer
        return taken


@queue_mutant("changes_that_overlap_have_the_effect_of_some_sequence", "the_first_answer_wins")
class EveryAnswerThatLookedInTimeIsTaken(InMemoryTaskMessageQueue):
    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        mailbox = self._mailbox(task_id)
        is_open = mailbox is not None and key in mailbox.questions
        await anyio.lowlevel.checkpoint()
        await super().answer(task_id, key, answer)
        return is_open


@queue_mutant("a_cancelled_wait_changes_nothing")
class ACancelledAskerForgetsItsQuestion(InMemoryTaskMessageQueue):
    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        try:
            return await super().wait_for_answer(task_id, key)
        except anyio.get_cancelled_exc_class():
            mailbox = self._mailbox(task_id)
            if mailbox is not None:
                mailbox.questions.pop(key, None)
            raise


@queue_mutant("no_operation_costs_more_when_there_are_many_tasks", fault=21)
class EachCallLooksAtEveryMailbox(InMemoryTaskMessageQueue):
    def _check_open(self) -> None:
        super()._check_open()
        for mailbox in self._mailboxes.values():
            mailbox.is_blank()


@queue_mutant("nothing_is_kept_of_mailboxes_that_are_gone", fault=12)
class MailboxesOfThoseWhoOnlyLookedAreKept(InMemoryTaskMessageQueue):
    def _drop_if_blank(self, task_id: str, mailbox: Any) -> None: ...


@queue_mutant("nothing_is_kept_of_mailboxes_that_are_gone", fault=12)
class KeysAreKeptForEver(InMemoryTaskMessageQueue):
    def __init__(self) -> None:
        super().__init__()
        self._keys: set[tuple[str, str]] = set()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        if message.key is not None:
            self._keys.add((task_id, message.key))
        return await super().enqueue(task_id, message)
