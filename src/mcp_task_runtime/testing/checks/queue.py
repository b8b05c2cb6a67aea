"""The laws of `TaskMessageQueue`, as named checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Final, TypeAlias

import anyio

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.errors import StoreClosedError, TaskNotFoundError
from mcp_task_runtime.testing.checks.bench import (
    BACKENDS,
    Bench,
    Capability,
    Check,
    CheckReport,
    Factory,
    Footprint,
    checks_into,
    require,
    require_raises,
    run_checks,
    start,
)
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.cost import count_work
from mcp_task_runtime.testing.concurrency.interleaving import Race, check_interleavings
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["QUEUE_CHECKS", "check_task_message_queue"]

QUEUE_CHECKS: Final[list[Check[TaskMessageQueue]]] = []
"""All checks of `check_task_message_queue`, for a test runner that wants one test for each."""

_check = checks_into(QUEUE_CHECKS)

_Bench: TypeAlias = Bench[TaskMessageQueue]

_NOTE: Final = QueuedMessage.notification("notifications/progress", {"text": "grüß 🌍", "n": [1, None]})
_ANSWERS: Final = (
    Answer.result({"action": "accept", "content": {"city": "Zürich"}}),
    Answer.error(-32000, "no", {"why": [1]}),
    Answer.withdrawn(),
)


def check_task_message_queue(
    factory: Factory[TaskMessageQueue],
    *,
    capabilities: Collection[Capability] = (),
    backends: Collection[str] = BACKENDS,
    patience: float = 30.0,
    footprint: Footprint[TaskMessageQueue] | None = None,
) -> CheckReport:
    """Check every law that holds for any `TaskMessageQueue`, on each event loop.

    Args:
        factory: Opens a queue; see `Factory`.
        capabilities: What the queue is able to do; see `Capability`. Checks that need more are left out.
        backends: The event loops, by their anyio names.
        patience: Seconds that something which must happen may take.
        footprint: Counts what the backend keeps; without it this process's memory is measured.

    Returns:
        What was checked and what was left out.

    Raises:
        AssertionError: A law is broken; the message says which and how, for each broken one.
        ValueError: A capability is unknown, or needs another that is not declared.
    """
    return run_checks(
        QUEUE_CHECKS,
        factory,
        capabilities=capabilities,
        backends=backends,
        patience=patience,
        footprint=footprint,
    )


def _question(key: str) -> QueuedMessage:
    return QueuedMessage.request(
        key, "elicitation/create", {"message": f"{key}?", "requestedSchema": {"type": "object"}}
    )


def _note(number: int) -> QueuedMessage:
    return QueuedMessage.notification("notifications/message", {"number": number})


async def _contents(queue: TaskMessageQueue, task_id: str) -> list[QueuedMessage]:
    messages: list[QueuedMessage] = []
    while (message := await queue.dequeue(task_id)) is not None:
        messages.append(message)
    return messages


async def _view(queue: TaskMessageQueue, task_id: str) -> tuple[Any, ...]:
    """Return what matters of a mailbox, and empty its queue."""
    open_keys = tuple(question.key for question in await queue.outstanding(task_id))
    answers: list[Answer | None] = []
    for key in ("k", "old", "new"):
        try:
            answers.append(None if key in open_keys else await queue.wait_for_answer(task_id, key))
        except TaskNotFoundError:
            continue
    return open_keys, tuple(await _contents(queue, task_id)), tuple(answers)


async def _enqueue(queue: TaskMessageQueue, task_id: str, *messages: QueuedMessage) -> None:
    for message in messages:
        require(await queue.enqueue(task_id, message) is True, f"enqueue refused a message that is new: {message}")


# --- order and delivery -------------------------------------------------------------------------------


@_check("L5")
async def messages_of_a_task_are_first_in_first_out_and_its_own(bench: _Bench) -> None:
    queue = bench.subject
    require(await queue.is_empty("a") is True, "a mailbox that was never used is not empty")
    require(await queue.peek("a") is None, "peek found a message in a mailbox that was never used")
    require(await queue.dequeue("a") is None, "dequeue found a message in a mailbox that was never used")
    mine = [_note(1), _question("k1"), _NOTE, _question("k2"), _note(1)]
    theirs = [_question("k1"), _note(9)]
    await _enqueue(queue, "a", *mine[:2])
    await _enqueue(queue, "b", *theirs)
    await _enqueue(queue, "a", *mine[2:])
    for message in mine:
        require(await queue.is_empty("a") is False, "a mailbox with messages is empty")
        require(await queue.peek("a") == message, "peek is not the oldest message")
        require(await queue.peek("a") == message, "peek removed the message")
        require(await queue.dequeue("a") == message, "dequeue is not the oldest message, as it was put in")
    require(await queue.is_empty("a") is True, "a mailbox is not empty after its last message was taken")
    require(await queue.dequeue("a") is None, "dequeue found a message in an empty mailbox")
    require(await _contents(queue, "b") == theirs, "one task's messages affected another's")


@_check("L5")
async def each_message_goes_to_one_of_many_that_dequeue(bench: _Bench) -> None:
    queue = bench.subject
    messages = [_note(number) for number in range(6)]
    await _enqueue(queue, "a", *messages)
    taken = await bench.race(*[partial(queue.dequeue, "a")] * 9)
    got = [message for message in taken if isinstance(message, QueuedMessage)]
    require(
        len(got) == 6 and all(message in got for message in messages), f"6 messages went to {len(got)} of 9 callers"
    )
    require(taken.count(None) == 3, "a caller that found no message did not get None")


# --- questions and answers ----------------------------------------------------------------------------


@_check("L5")
async def a_question_stays_one_until_it_is_answered(bench: _Bench) -> None:
    queue = bench.subject
    require(await queue.outstanding("a") == (), "a mailbox that was never used has questions")
    questions = [_question(key) for key in ("k2", "k1", "k3")]
    await _enqueue(queue, "a", questions[0], _NOTE, *questions[1:])
    require(list(await queue.outstanding("a")) == questions, "outstanding is not the questions as they were asked")
    for _ in range(2):
        await queue.dequeue("a")
    require(
        list(await queue.outstanding("a")) == questions,
        "a question is lost when it is dequeued: a deliverer that dies takes it along",
    )
    require(await queue.answer("a", "k1", _ANSWERS[0]) is True, "the first answer to a question was not taken")
    left = [questions[0], questions[2]]
    require(list(await queue.outstanding("a")) == left, "outstanding is not the questions without an answer")
    require(await _contents(queue, "a") == [questions[2]], "an answered question was left in the queue, or others not")
    for key in ("k2", "k3"):
        require(await queue.answer("a", key, _ANSWERS[1]) is True, "a question that was dequeued cannot be answered")
    require(await queue.outstanding("a") == (), "an answered question is still outstanding")


@_check("L5")
async def a_key_is_never_used_again(bench: _Bench) -> None:
    queue = bench.subject
    await _enqueue(queue, "a", _question("k"))
    again = QueuedMessage.request("k", "sampling/createMessage", {"other": True})
    stages: tuple[tuple[str, Callable[[], Awaitable[Any]]], ...] = (
        ("is queued", partial(queue.is_empty, "a")),
        ("was delivered", partial(queue.dequeue, "a")),
        ("was answered", partial(queue.answer, "a", "k", _ANSWERS[0])),
    )
    for stage, reach in stages:
        await reach()
        before = await queue.outstanding("a"), await queue.peek("a")
        require(await queue.enqueue("a", again) is False, f"a key was used again while its question {stage}")
        after = await queue.outstanding("a"), await queue.peek("a")
        require(before == after, f"a refused question changed the mailbox while the first one {stage}")
    kept = await bench.within(queue.wait_for_answer("a", "k"), "the answer is gone after a refused question")
    require(kept == _ANSWERS[0], "a refused question changed the answer of the first one")
    await _enqueue(queue, "b", _question("k"))
    won = await bench.race(*[partial(queue.enqueue, "c", _question("k"))] * 5)
    require(won.count(True) == 1, f"{won.count(True)} of 5 concurrent questions with one key were accepted, not one")
    require(len(await queue.outstanding("c")) == 1, "one key has several questions")
    require(len(await _contents(queue, "c")) == 1, "refused questions were queued")


@_check("L5")
async def the_first_answer_wins(bench: _Bench) -> None:
    queue = bench.subject
    for number, answer in enumerate(_ANSWERS):
        key = f"k{number}"
        await _enqueue(queue, "a", _question(key))
        require(await queue.answer("a", key, answer) is True, "the first answer to a question was not taken")
        for late in _ANSWERS:
            require(await queue.answer("a", key, late) is False, "a second answer to a question was taken")
        for _ in range(2):
            kept = await bench.within(queue.wait_for_answer("a", key), "an answer cannot be read")
            require(kept == answer, f"the answer {answer} reads {kept}")
    await _enqueue(queue, "a", _question("raced"))
    racers = [partial(queue.answer, "a", "raced", Answer.result({"n": number})) for number in range(5)]
    taken = await bench.race(*racers)
    require(taken.count(True) == 1, f"{taken.count(True)} of 5 concurrent answers were taken, not one")
    kept = await bench.within(queue.wait_for_answer("a", "raced"), "an answer cannot be read")
    require(kept == Answer.result({"n": taken.index(True)}), "the answer that was kept is not the one that was taken")


@_check("L5")
async def answers_to_nothing_are_ignored(bench: _Bench) -> None:
    queue = bench.subject
    await _enqueue(queue, "a", _question("k"), _NOTE)
    for task_id, key in (("a", "other"), ("b", "k"), ("a", ""), ("a", _NOTE.method)):
        require(await queue.answer(task_id, key, _ANSWERS[0]) is False, f"an answer to no question was taken: {key!r}")
        missing = bench.within(
            queue.wait_for_answer(task_id, key), "wait_for_answer waits for a question that was never asked"
        )
        await require_raises(TaskNotFoundError, missing, "wait_for_answer for a question that was never asked")
    require(
        await _view(queue, "a") == (("k",), (_question("k"), _NOTE), (None,)), "an ignored answer changed the mailbox"
    )
    require(await queue.enqueue("b", _question("k")) is True, "an ignored answer used up its key")


@_check("L5")
async def clearing_forgets_everything_of_one_task(bench: _Bench) -> None:
    queue = bench.subject
    for task_id in ("a", "b"):
        await _enqueue(queue, task_id, _question("open"), _question("answered"), _NOTE)
        await queue.answer(task_id, "answered", _ANSWERS[0])
    await queue.clear("a")
    await queue.clear("never used")
    require(await _view(queue, "a") == ((), (), ()), "messages or questions are left after clear")
    require(await queue.answer("a", "open", _ANSWERS[0]) is False, "a question can be answered after clear")
    for key in ("open", "answered"):
        missing = bench.within(queue.wait_for_answer("a", key), "wait_for_answer waits for a question that was cleared")
        await require_raises(TaskNotFoundError, missing, "wait_for_answer after clear")
    await _enqueue(queue, "a", _question("answered"))
    require(await _view(queue, "b") == (("open",), (_question("open"), _NOTE), ()), "clear affected another task")
    kept = await bench.within(queue.wait_for_answer("b", "answered"), "clear took another task's answer")
    require(kept == _ANSWERS[0], "clear changed another task's answer")


# --- L3: no lost wake-up ------------------------------------------------------------------------------


@_check("L3")
async def every_waiter_wakes_when_a_message_comes(bench: _Bench) -> None:
    queue = bench.subject
    for number, message in enumerate((_NOTE, _question("k"))):
        task_id = f"task {number}"
        wait = partial(queue.wait_for_message, task_id)
        async with bench.waiting(wait, wait, wait) as waiters:
            await _enqueue(queue, "another task", _note(number))
            await quiesce()
            for waiter in waiters:
                require(not waiter.done(), "wait_for_message returned with no message")
            await _enqueue(queue, task_id, message)
            for place, waiter in enumerate(waiters, 1):
                await bench.within(waiter.wait(), f"waiter {place} of 3 was not woken by a message")
        await bench.within(queue.wait_for_message(task_id), "a message that came before the wait began was lost")
        require(await queue.dequeue(task_id) == message, "waiting changed the queue")


@_check("L3", "L5")
async def every_asker_gets_the_answer(bench: _Bench) -> None:
    queue = bench.subject
    await _enqueue(queue, "a", *[_question(f"k{number}") for number in range(3)], _question("other"))
    for number, answer in enumerate(_ANSWERS):
        key = f"k{number}"
        wait = partial(queue.wait_for_answer, "a", key)
        async with bench.waiting(wait, wait, wait, partial(queue.wait_for_answer, "a", "other")) as waiters:
            for waiter in waiters:
                require(not waiter.done(), "wait_for_answer returned with no answer")
            await queue.answer("a", key, answer)
            for place, waiter in enumerate(waiters[:3], 1):
                got = await bench.within(waiter.wait(), f"waiter {place} of 3 was not woken by the answer")
                require(got == answer, f"a waiter was given {got}, not {answer}")
            await quiesce()
            require(not waiters[3].done(), "an answer woke who waits for another one")
        got = await bench.within(wait(), "an answer that came before the wait began was lost")
        require(got == answer, "an answer changed after it was read")


async def _clear_until_released(queue: TaskMessageQueue, waiter: Resolver[None]) -> None:
    """Clear a mailbox that is empty anyway: who had not begun to wait by then cannot know that it was cleared."""
    while not waiter.done():
        await queue.clear("b")
        await quiesce()
    await waiter.wait()


@_check("L3", "L5")
async def clearing_releases_everyone_who_waits(bench: _Bench) -> None:
    queue = bench.subject
    await _enqueue(queue, "a", _question("k"))
    answer = partial(queue.wait_for_answer, "a", "k")
    async with bench.waiting(answer, answer) as askers:
        await queue.clear("a")
        for asker in askers:
            woken = bench.within(asker.wait(), "an asker was left waiting by clear")
            await require_raises(TaskNotFoundError, woken, "waiting for an answer while the mailbox is cleared")
    message = partial(queue.wait_for_message, "b")
    async with bench.waiting(message, message) as waiters:
        for waiter in waiters:
            released = bench.within(_clear_until_released(queue, waiter), "who waited was left waiting by clear")
            await require_raises(TaskNotFoundError, released, "waiting for a message while the mailbox is cleared")


@_check("L3")
async def everyone_who_waits_is_woken_when_the_queue_is_closed(bench: _Bench) -> None:
    async with anyio.create_task_group() as group:
        async with bench.open_again() as queue:
            await _enqueue(queue, "a", _question("k"))
            asker = start(group, partial(queue.wait_for_answer, "a", "k"))
            waiter = start(group, partial(queue.wait_for_message, "b"))
            await quiesce()
        asked = bench.within(asker.wait(), "an asker was not woken when the queue was closed")
        await require_raises(StoreClosedError, asked, "waiting for an answer while the queue is closed")
        waited = bench.within(waiter.wait(), "who waited for a message was not woken when the queue was closed")
        await require_raises(StoreClosedError, waited, "waiting for a message while the queue is closed")
        group.cancel_scope.cancel()


@_check("L3", "L6")
async def a_cancelled_waiter_takes_nobody_with_it(bench: _Bench) -> None:
    queue = bench.subject
    await _enqueue(queue, "a", _question("k"))
    answer, message = partial(queue.wait_for_answer, "a", "k"), partial(queue.wait_for_message, "b")
    async with bench.waiting(answer) as (asker,), bench.waiting(message) as (waiter,):
        async with bench.waiting(answer), bench.waiting(message):
            pass
        await queue.answer("a", "k", _ANSWERS[0])
        await _enqueue(queue, "b", _NOTE)
        got = await bench.within(asker.wait(), "an asker was not woken after another one was cancelled")
        require(got == _ANSWERS[0], "an asker was given another answer")
        await bench.within(waiter.wait(), "who waits for a message was not woken after another one was cancelled")


# --- L4: snapshots ------------------------------------------------------------------------------------


@_check("L4")
async def what_a_queue_returned_never_changes(bench: _Bench) -> None:
    queue = bench.subject
    given = {"message": "kept"}
    question = QueuedMessage.request("k", "elicitation/create", given)
    await _enqueue(queue, "a", question)
    given["message"] = "changed by the caller"
    questions, peeked = await queue.outstanding("a"), await queue.peek("a")
    if peeked is None:
        raise AssertionError("a queued message is not found")
    for message in (*questions, peeked):
        message.params["message"] = "changed by the caller"
    require(isinstance(questions, tuple), "outstanding returned something that can be changed")
    await queue.answer("a", "k", Answer.result({"kept": True}))
    await _enqueue(queue, "a", _question("k2"))
    require(questions == (question,), "what outstanding returned changed when the questions did")
    require(peeked.params == {"message": "kept"}, "a caller changed a message through what it held")
    answer = await bench.within(queue.wait_for_answer("a", "k"), "an answer cannot be read")
    answer.unwrap().clear()
    again = await bench.within(queue.wait_for_answer("a", "k"), "an answer cannot be read twice")
    require(again.unwrap() == {"kept": True}, "a caller changed an answer through what it held")


# --- L6: cancellation safety --------------------------------------------------------------------------


@_check("L6")
async def a_cancelled_change_happened_in_full_or_not_at_all(bench: _Bench) -> None:
    queue = bench.subject
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "enqueue": lambda task_id: queue.enqueue(task_id, _question("new")),
        "answer": lambda task_id: queue.answer(task_id, "old", _ANSWERS[0]),
        "clear": queue.clear,
        "peek": queue.peek,
        "outstanding": queue.outstanding,
    }
    count = 0
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change) -> Trial:
            nonlocal count
            count += 1
            task_id = f"task {count}"
            await _enqueue(queue, task_id, _question("old"), _NOTE)
            return Trial(partial(change, task_id), partial(_view, queue, task_id))

        try:
            await check_cancellation(setup, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {name}: {error}") from error


@_check("L6", "L5")
async def a_message_is_queued_or_returned_when_dequeue_is_cancelled(bench: _Bench) -> None:
    queue, count = bench.subject, 0

    async def setup() -> Trial:
        nonlocal count
        count += 1
        task_id = f"task {count}"
        await _enqueue(queue, task_id, _NOTE)
        returned: list[QueuedMessage | None] = []

        async def take() -> None:
            returned.append(await queue.dequeue(task_id))

        async def look() -> tuple[Any, ...]:
            return tuple(returned), await queue.peek(task_id)

        return Trial(take, look)

    await check_cancellation(setup, patience=bench.patience)


@_check("L6")
async def a_cancelled_wait_changes_nothing(bench: _Bench) -> None:
    queue, count = bench.subject, 0

    async def setup(for_answer: bool) -> Trial:
        nonlocal count
        count += 1
        task_id = f"task {count}"
        await _enqueue(queue, task_id, _question("k"))
        if for_answer:
            wait: Callable[[], Awaitable[Any]] = partial(queue.wait_for_answer, task_id, "k")
            return Trial(wait, partial(_view, queue, task_id), partial(queue.answer, task_id, "k", _ANSWERS[0]))
        await queue.dequeue(task_id)
        wait = partial(queue.wait_for_message, task_id)
        return Trial(wait, partial(_view, queue, task_id), partial(queue.enqueue, task_id, _NOTE))

    for for_answer in (True, False):
        await check_cancellation(partial(setup, for_answer), patience=bench.patience)


@_check("L5", "L6")
async def changes_that_overlap_have_the_effect_of_some_sequence(bench: _Bench) -> None:
    queue, count = bench.subject, 0

    async def setup(*kinds: str) -> Race:
        nonlocal count
        count += 1
        task_id = f"task {count}"
        await _enqueue(queue, task_id, _question("old"))
        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "ask": partial(queue.enqueue, task_id, _question("new")),
            "answer": partial(queue.answer, task_id, "old", _ANSWERS[0]),
            "refuse": partial(queue.answer, task_id, "old", _ANSWERS[1]),
            "dequeue": partial(queue.dequeue, task_id),
            "clear": partial(queue.clear, task_id),
        }
        return Race([operations[kind] for kind in kinds], partial(_view, queue, task_id))

    for kinds in (("ask", "ask", "dequeue"), ("answer", "refuse", "clear"), ("dequeue", "dequeue", "answer")):
        try:
            await check_interleavings(partial(setup, *kinds), limit=24, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of the overlapping operations {', '.join(kinds)}: {error}") from error


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L8")
async def no_operation_costs_more_when_there_are_many_tasks(bench: _Bench) -> None:
    queue = bench.subject

    async def use(task_id: str) -> None:
        await queue.enqueue(task_id, _question("k"))
        await queue.outstanding(task_id)
        await queue.wait_for_message(task_id)
        await queue.dequeue(task_id)
        await queue.answer(task_id, "k", _ANSWERS[0])
        await queue.wait_for_answer(task_id, "k")
        await queue.clear(task_id)

    async def populate(prefix: str, count: int) -> None:
        for number in range(count):
            await queue.enqueue(f"{prefix} {number}", _question("k") if number % 2 else _NOTE)

    await populate("few", 16)
    few = await count_work(partial(use, "a"))
    await populate("many", 400)
    many = await count_work(partial(use, "b"))
    require(many <= 3 * few + 400, f"using a mailbox costs {many} steps with 400 others and {few} with 16")


@_check("L8")
async def nothing_is_kept_of_mailboxes_that_are_gone(bench: _Bench) -> None:
    queue = bench.subject

    async def live_and_die(number: int) -> None:
        task_id = f"task {number}"
        with anyio.CancelScope() as scope:  # a look for messages where there never were any
            scope.cancel()
            await queue.wait_for_message(f"unknown {number}")
        await queue.peek(f"unknown {number}")
        await queue.answer(f"unknown {number}", "k", _ANSWERS[0])
        await queue.enqueue(task_id, _question("open"))
        await queue.enqueue(task_id, _question("k"))
        await queue.enqueue(task_id, _NOTE)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await queue.wait_for_answer(task_id, "k")
        await queue.dequeue(task_id)
        await queue.answer(task_id, "k", _ANSWERS[0])
        await queue.clear(task_id)
        await queue.is_empty(task_id)

    await bench.require_nothing_kept(live_and_die, "mailboxes")


# --- L12, L3: reopened, and shared --------------------------------------------------------------------


@_check("L12", needs=["durable"])
async def a_reopened_queue_has_every_message_question_and_answer(bench: _Bench) -> None:
    async with bench.open_again() as first:
        await _enqueue(first, "a", _question("delivered"), _NOTE, _question("queued"), _question("answered"))
        await first.dequeue("a")
        await first.answer("a", "answered", _ANSWERS[1])
        await _enqueue(first, "b", _question("k"))
        await first.clear("b")
    async with bench.open_again() as second:
        keys = [question.key for question in await second.outstanding("a")]
        require(keys == ["delivered", "queued"], f"after reopening the questions are {keys}")
        kept = await bench.within(second.wait_for_answer("a", "answered"), "an answer is lost after reopening")
        require(kept == _ANSWERS[1], "an answer changed after reopening")
        for key in ("delivered", "queued", "answered"):
            require(await second.enqueue("a", _question(key)) is False, "a key was used again after reopening")
        require(
            await _contents(second, "a") == [_NOTE, _question("queued")], "after reopening the queue is another one"
        )
        require(await second.answer("a", "delivered", _ANSWERS[0]) is True, "a question is lost after reopening")
        require(await _view(second, "b") == ((), (), ()), "what was cleared is back after reopening")


@_check("L3", "L5", needs=["shared"])
async def whoever_waits_is_woken_by_another_process(bench: _Bench) -> None:
    queue = bench.subject
    async with bench.open_again() as other:
        message = partial(queue.wait_for_message, "a")
        async with bench.waiting(message, message) as waiters:
            await _enqueue(other, "a", _question("k"))
            for waiter in waiters:
                await bench.within(waiter.wait(), "who waited was not woken by a message from another process")
        answer = partial(queue.wait_for_answer, "a", "k")
        async with bench.waiting(answer, answer) as askers:
            require(await other.answer("a", "k", _ANSWERS[0]) is True, "another process cannot answer a question")
            for asker in askers:
                got = await bench.within(asker.wait(), "an asker was not woken by an answer from another process")
                require(got == _ANSWERS[0], "an answer from another process is another one")
        await _enqueue(queue, "a", _question("open"))
        async with (
            bench.waiting(partial(queue.wait_for_answer, "a", "open")) as (asker,),
            bench.waiting(partial(queue.wait_for_message, "b")) as (waiter,),
        ):
            await other.clear("a")
            released = bench.within(asker.wait(), "an asker was left waiting by another process's clear")
            await require_raises(TaskNotFoundError, released, "waiting for an answer while another process clears")
            woken = bench.within(_clear_until_released(other, waiter), "who waits was left waiting by another's clear")
            await require_raises(TaskNotFoundError, woken, "waiting for a message while another process clears")


@_check("L5", needs=["shared"])
async def of_many_processes_one_takes_and_one_answers(bench: _Bench) -> None:
    queue = bench.subject
    async with bench.open_again() as other:
        for number in range(5):
            task_id = f"task {number}"
            asked = await bench.race(*[partial(side.enqueue, task_id, _question("k")) for side in (queue, other) * 2])
            require(asked.count(True) == 1, f"{asked.count(True)} of 4 questions with one key were accepted, not one")
            taken = await bench.race(*[partial(side.dequeue, task_id) for side in (queue, other) * 2])
            require(taken.count(None) == 3, "one message went to several processes, or to none")
            racers = [partial(side.answer, task_id, "k", _ANSWERS[0]) for side in (queue, other) * 2]
            answered = await bench.race(*racers)
            require(answered.count(True) == 1, f"{answered.count(True)} of 4 answers were taken, not one")
