"""The laws of store and queue together: questions, and the work's view of its task, as named checks.

They run the code of `core.questions` and `core.context` on a backend. That code is part of the
`TaskBackend`, so something else that asks and answers can be held to the same laws.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.context import TaskContext, task_execution
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions, ask_question
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.core.store import TaskQuestions, TaskStore
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord
from mcp_task_runtime.errors import InvalidTransitionError, ProtocolError, TaskNotFoundError
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
from mcp_task_runtime.testing.concurrency.interleaving import Race, explore_interleavings
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from mcp_task_runtime.testing.yielding import YieldingQuestionStore, YieldingTaskMessageQueue, YieldingTaskStore

__all__ = ["QUESTION_CHECKS", "TaskBackend", "check_task_backend"]


class TaskBackend(NamedTuple):
    """A store, its queue, and the code that asks questions and does work on them.

    Attributes:
        store: State of the tasks.
        queue: Their mailboxes.
        ask: Puts a question and waits; see `ask_question`.
        answer: Answers questions; see `answer_questions`.
        context: Makes the work's view of a task; see `TaskContext`.
        execute: Runs a block as the work of a task; see `task_execution`.
    """

    store: TaskStore
    queue: TaskMessageQueue
    ask: Callable[[TaskStore, TaskMessageQueue, str, QueuedMessage], Awaitable[Answer | None]] = ask_question
    answer: Callable[[TaskStore, TaskMessageQueue, str, Mapping[str, Answer]], Awaitable[frozenset[str]]] = (
        answer_questions
    )
    context: Callable[..., TaskContext] = TaskContext
    execute: Callable[[str, TaskStore], AbstractAsyncContextManager[TaskContext]] = task_execution


QUESTION_CHECKS: Final[list[Check[TaskBackend]]] = []
"""All checks of `check_task_backend`, for a test runner that wants one test for each."""

_check = checks_into(QUESTION_CHECKS)

_Bench: TypeAlias = Bench[TaskBackend]

_YES: Final = Answer.result({"action": "accept", "content": {}})
_NO: Final = Answer.error(-32000, "the user is out", {"until": "noon"})


def check_task_backend(
    factory: Factory[TaskBackend],
    *,
    capabilities: Collection[Capability] = (),
    backends: Collection[str] = BACKENDS,
    patience: float = 30.0,
    footprint: Footprint[TaskBackend] | None = None,
) -> CheckReport:
    """Check every law that holds for a store and a queue together, on each event loop.

    Args:
        factory: Opens a store and its queue: `TaskBackend(store, queue)`; see `Factory`.
        capabilities: What the backend is able to do; see `Capability`. Checks that need more are left out.
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
        QUESTION_CHECKS,
        factory,
        capabilities=capabilities,
        backends=backends,
        patience=patience,
        footprint=footprint,
    )


def _question(key: str) -> QueuedMessage:
    return QueuedMessage.request(key, "elicitation/create", {"message": f"{key}?"})


def _yielding(backend: TaskBackend) -> TaskBackend:
    store = backend.store
    if isinstance(store, TaskQuestions) and store.message_queue is backend.queue:
        yielding = YieldingQuestionStore(store)
        return backend._replace(store=yielding, queue=yielding.message_queue)
    return backend._replace(store=YieldingTaskStore(store), queue=YieldingTaskMessageQueue(backend.queue))


async def _open_keys(backend: TaskBackend, task_id: str) -> list[str | None]:
    return [question.key for question in await backend.queue.outstanding(task_id)]


async def _view(backend: TaskBackend, task_id: str) -> tuple[Any, ...]:
    """Return status and open questions, which must agree (law L5), and how the task ended."""
    record = await backend.store.get_task(task_id)
    keys = await _open_keys(backend, task_id)
    if record is None:
        return ("gone", tuple(keys))
    if record.outcome is None:
        wanted = "input_required" if keys else "working"
        require(record.status == wanted, f"a task with the open questions {keys} is {record.status!r}")
    return record.status, tuple(keys), record.outcome


async def _until(bench: _Bench, backend: TaskBackend, task_id: str, keys: list[str], otherwise: str) -> TaskRecord:
    """Wait until the task has exactly these open questions and the status that belongs to them."""
    status = "input_required" if keys else "working"

    async def reached() -> TaskRecord:
        revision = 0
        while True:
            record = await backend.store.wait_for_update(task_id, after=revision)
            open_keys = await _open_keys(backend, task_id)
            if record.status == status and open_keys == keys:
                return record
            revision = record.revision

    return await bench.within(reached(), otherwise)


@asynccontextmanager
async def _asked(bench: _Bench, task_id: str, *keys: str) -> AsyncIterator[list[Resolver[Answer | None]]]:
    """Have questions asked, one after the other, and waiting for their answers, during a block."""
    backend = bench.subject
    askers: list[Resolver[Answer | None]] = []
    async with anyio.create_task_group() as group:
        for number, key in enumerate(keys):
            askers.append(start(group, partial(backend.ask, backend.store, backend.queue, task_id, _question(key))))
            await _until(bench, backend, task_id, list(keys[: number + 1]), f"{number + 1} asked, and L5 does not hold")
        yield askers
        group.cancel_scope.cancel()


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep tracebacks of exceptions that a check raises on purpose out of the caller's log."""
    logger = logging.getLogger("mcp_task_runtime")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


# --- L5: questions ------------------------------------------------------------------------------------


@_check("L5")
async def a_task_is_input_required_exactly_while_a_question_is_open(bench: _Bench) -> None:
    backend = bench.subject
    for order in (("a", "b"), ("b", "a")):
        task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
        async with _asked(bench, task_id, "a", "b") as (first, second):
            taken = await backend.answer(backend.store, backend.queue, task_id, {order[0]: _YES})
            require(taken == frozenset({order[0]}), f"answering one question took the answers {sorted(taken)}")
            record = await backend.store.get_task(task_id)
            require(
                record is not None and record.status == "input_required",
                "one of two open questions was answered and the task is no longer input_required",
            )
            await backend.answer(backend.store, backend.queue, task_id, {order[1]: _YES})
            for asker in (first, second):
                got = await bench.within(asker.wait(), "an asker did not get the answer to its question")
                require(got == _YES, f"an asker got {got}")
            require(
                await _view(backend, task_id) == ("working", (), None), "all is answered and the task is not working"
            )
        async with _asked(bench, task_id, "c", "d") as (first, second):
            await backend.answer(backend.store, backend.queue, task_id, {"c": _YES, "d": _YES})
            for asker in (first, second):
                await bench.within(asker.wait(), "an asker did not get the answer to its question")
            require(
                await _view(backend, task_id) == ("working", (), None), "all is answered and the task is not working"
            )


@_check("L5")
async def an_error_answer_raises_in_the_asker_and_closes_the_question(bench: _Bench) -> None:
    backend = bench.subject
    task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
    async with _asked(bench, task_id, "k") as (asker,):
        await backend.answer(backend.store, backend.queue, task_id, {"k": _NO})
        answer = await bench.within(asker.wait(), "an asker was not woken by an error")
        require(answer == _NO, f"an asker was given {answer} and not the client's error")
        try:
            _NO.unwrap()
        except ProtocolError as error:
            raised = (error.code, error.message, error.data)
            require(raised == (-32000, "the user is out", {"until": "noon"}), f"the error raises {raised}")
        else:
            raise AssertionError("an error answer does not raise")
        await _until(bench, backend, task_id, [], "an error answer left the task in input_required")


@_check("L5")
async def unknown_late_and_repeated_answers_are_ignored(bench: _Bench) -> None:
    backend = bench.subject
    task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
    async with _asked(bench, task_id, "k", "open") as (asker, _):
        give = partial(backend.answer, backend.store, backend.queue)
        await give(task_id, {"k": _YES})
        await bench.within(asker.wait(), "an asker did not get the answer to its question")
        for answers in ({"k": _NO}, {"unknown": _YES}, {"": _YES}, {}):
            for _ in range(5):  # the other asker may still be settling the status
                before = await backend.store.get_task(task_id)
                taken = await give(task_id, answers)
                require(taken == frozenset(), f"answers to no open question were taken: {answers}")
                if await backend.store.get_task(task_id) == before:
                    break
            else:
                raise AssertionError(f"an ignored answer changed the task: {answers}")
        require(await give("no such task", {"k": _YES}) == frozenset(), "an answer for an unknown task was taken")
        kept = await backend.queue.wait_for_answer(task_id, "k")
        require(kept == _YES, "a second answer replaced the first one")


@_check("L5")
async def a_key_that_was_used_asks_nothing(bench: _Bench) -> None:
    backend = bench.subject
    task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
    async with _asked(bench, task_id, "k") as (asker,):
        again = backend.ask(backend.store, backend.queue, task_id, _question("k"))
        require(await bench.within(again, "a question with a used key waits") is None, "a used key was used again")
        require(
            await _view(backend, task_id) == ("input_required", ("k",), None), "a refused question changed the task"
        )
        await backend.answer(backend.store, backend.queue, task_id, {"k": _YES})
        require(await bench.within(asker.wait(), "the asker was not woken") == _YES, "an asker got another answer")
    late = backend.ask(backend.store, backend.queue, task_id, _question("k"))
    require(await bench.within(late, "a question with a used key waits") is None, "an answered key was used again")
    require(await _view(backend, task_id) == ("working", (), None), "a refused question changed the task")


@_check("L5")
async def a_question_survives_its_deliverer(bench: _Bench) -> None:
    backend = bench.subject
    task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
    async with _asked(bench, task_id, "k") as (asker,):
        await backend.queue.dequeue(task_id)  # a deliverer took it, and its connection broke
        require(
            await backend.queue.outstanding(task_id) == (_question("k"),),
            "a question that was taken and not delivered is lost: reconnecting does not bring it back",
        )
        await quiesce()
        require(not asker.done(), "an asker was released when its question was taken")
        taken = await backend.answer(backend.store, backend.queue, task_id, {"k": _YES})
        require(taken == frozenset({"k"}), "a question that was delivered twice cannot be answered")
        await bench.within(asker.wait(), "an asker did not get the answer to its question")


@_check("L5", "L3")
async def ending_the_task_releases_every_asker(bench: _Bench) -> None:
    backend = bench.subject
    for outcome in (Outcome.cancelled(), Outcome.failed("it broke"), Outcome.completed({})):
        task_id = (await backend.store.create_task(NewTask(ttl_ms=None))).task_id
        async with _asked(bench, task_id, "a", "b") as askers:
            await backend.store.finish_task(task_id, outcome)
            await backend.queue.clear(task_id)
            for asker in askers:
                released = bench.within(asker.wait(), f"an asker waits though its task is {outcome.status}")
                error = await require_raises(InvalidTransitionError, released, "asking while the task ends")
                require(error.current == outcome.status, "the asker's error does not say how the task ended")
            require(await _view(backend, task_id) == (outcome.status, (), outcome), "released askers changed the task")
        late = bench.within(
            backend.ask(backend.store, backend.queue, task_id, _question("late")), "asking for an ended task waits"
        )
        await require_raises(InvalidTransitionError, late, "asking for an ended task")
        require(await _open_keys(backend, task_id) == [], "a question was left with an ended task")
    unknown = bench.within(
        backend.ask(backend.store, backend.queue, "unknown", _question("k")), "asking for an unknown task waits"
    )
    await require_raises(TaskNotFoundError, unknown, "asking for an unknown task")
    require(await _open_keys(backend, "unknown") == [], "a question was left with a task that does not exist")


@_check("L5", "L7", needs=["mailbox"])
async def a_task_that_is_gone_releases_every_asker(bench: _Bench) -> None:
    backend = bench.subject
    for how in ("is deleted", "expires"):
        task_id = (await backend.store.create_task(NewTask(ttl_ms=60_000))).task_id
        async with _asked(bench, task_id, "a", "b") as askers:
            if how == "expires":
                bench.clock.advance(60)
                await backend.store.get_task(task_id)
            else:
                await backend.store.delete_task(task_id)
            for asker in askers:
                released = bench.within(asker.wait(), f"an asker waits though its task {how}")
                await require_raises(TaskNotFoundError, released, f"asking while the task {how}")
            require(await _open_keys(backend, task_id) == [], f"a question is left of a task that {how}")


@_check("L5", "L7")
async def a_task_that_expires_releases_every_asker_by_itself(bench: _Bench) -> None:
    backend = bench.subject
    task_id = (await backend.store.create_task(NewTask(ttl_ms=60_000))).task_id
    async with _asked(bench, task_id, "a", "b") as askers:
        bench.clock.advance(60)
        for asker in askers:
            released = bench.within(asker.wait(), "an asker waits although its task has expired")
            await require_raises(TaskNotFoundError, released, "asking while the task expires")


# --- L6: cancellation, and overlapping ----------------------------------------------------------------


@_check("L6", "L5")
async def a_cancelled_asker_withdraws_its_question(bench: _Bench) -> None:
    backend = _yielding(bench.subject)

    async def setup(with_another: bool) -> Trial:
        task_id = (await bench.subject.store.create_task(NewTask(ttl_ms=None))).task_id
        if with_another:
            await bench.subject.queue.enqueue(task_id, _question("another"))
            await bench.subject.store.update_task(task_id, status="input_required")

        async def meanwhile() -> None:
            revision = 0
            while True:
                record = await backend.store.wait_for_update(task_id, after=revision)
                if "k" in await _open_keys(backend, task_id):
                    await backend.answer(backend.store, backend.queue, task_id, {"k": _YES})
                    return
                revision = record.revision

        return Trial(
            partial(backend.ask, backend.store, backend.queue, task_id, _question("k")),
            partial(_view, bench.subject, task_id),
            meanwhile,
            leftovers=lambda: bench.clock.waiting,
        )

    for with_another in (False, True):
        await check_cancellation(partial(setup, with_another), patience=bench.patience)


@_check("L6", "L5")
async def a_cancelled_answer_counts_in_full_or_not_at_all(bench: _Bench) -> None:
    backend = _yielding(bench.subject)

    async def setup(keys: tuple[str, ...]) -> Trial:
        task_id = (await bench.subject.store.create_task(NewTask(ttl_ms=None))).task_id
        for key in ("a", "b"):
            await bench.subject.queue.enqueue(task_id, _question(key))
        await bench.subject.store.update_task(task_id, status="input_required")
        give = partial(backend.answer, backend.store, backend.queue, task_id, dict.fromkeys(keys, _YES))
        return Trial(give, partial(_view, bench.subject, task_id))

    for keys in (("a",), ("a", "b")):
        await check_cancellation(partial(setup, keys), patience=bench.patience)


@_check("L5", "L6")
async def overlapping_questions_and_answers_leave_the_status_true(bench: _Bench) -> None:
    backend = _yielding(bench.subject)

    async def setup(answers: tuple[Mapping[str, Answer], ...], then: str) -> Race:
        task_id = (await bench.subject.store.create_task(NewTask(ttl_ms=None))).task_id
        for key in ("a", "b"):
            await bench.subject.queue.enqueue(task_id, _question(key))
        await bench.subject.store.update_task(task_id, status="input_required")

        async def finish() -> None:
            await backend.store.finish_task(task_id, Outcome.cancelled())
            await backend.queue.clear(task_id)

        async def answer_new() -> frozenset[str]:
            revision = 0
            while "new" not in await _open_keys(backend, task_id):
                revision = (await backend.store.wait_for_update(task_id, after=revision)).revision
            return await backend.answer(backend.store, backend.queue, task_id, {"new": _YES})

        operations: list[Callable[[], Awaitable[Any]]] = [
            partial(backend.answer, backend.store, backend.queue, task_id, answer) for answer in answers
        ]
        if then == "end":
            operations.append(finish)
        elif then == "ask":
            operations += [answer_new, partial(backend.ask, backend.store, backend.queue, task_id, _question("new"))]
        return Race(operations, partial(_view, bench.subject, task_id))

    stories: tuple[tuple[tuple[Mapping[str, Answer], ...], str, tuple[Any, ...]], ...] = (
        (({"a": _YES}, {"b": _NO}), "", ("working", ())),
        (({"b": _YES},), "ask", ("input_required", ("a",))),
        (({"a": _YES}, {"a": _NO, "b": _YES}), "end", ("cancelled", ())),
    )
    for answers, then, expected in stories:
        for found in await explore_interleavings(partial(setup, answers, then), limit=48, patience=bench.patience):
            # _view has checked that status and questions agree.
            require(found.state[:2] == expected, f"the steps {found.steps} left {found.state[:2]} and not {expected}")
            taken: list[str] = []
            for kind, value in found.endings:
                require(kind == "returned", f"in the steps {found.steps} one raised {value}")
                taken += value if isinstance(value, frozenset) else ()
            require(len(taken) == len(set(taken)), f"the steps {found.steps} took two answers to one of {taken}")


# --- L2, L6, L11: the work's view ---------------------------------------------------------------------


@_check("L2")
async def work_ends_its_task_once(bench: _Bench) -> None:
    backend = bench.subject
    for ending in ("complete", "fail"):
        record = await backend.store.create_task(NewTask(ttl_ms=None))
        context = backend.context(task=record.task, store=backend.store)
        await context.update_status("on it")
        require(context.task.status_message == "on it", "the context does not show its own update")
        await (context.complete({"content": []}) if ending == "complete" else context.fail("it broke"))
        stored = await backend.store.get_task(record.task_id)
        if stored is None:
            raise AssertionError("the task is gone")
        require(context.task == stored.task, "the context does not show the end it made")
        if ending == "complete":
            require(stored.outcome == Outcome.completed({"content": []}), f"complete() stored {stored.outcome}")
        else:
            error = stored.outcome and stored.outcome.error
            require(error == {"code": -32603, "message": "it broke"}, f"fail() stored {stored.outcome}")
        late: tuple[Callable[[], Awaitable[Any]], ...] = (
            partial(context.complete, {"content": [1]}),
            partial(context.fail, "late"),
            partial(context.update_status, "late"),
        )
        for change in late:
            await require_raises(InvalidTransitionError, change(), "changing a task through its context after its end")
        require(await backend.store.get_task(record.task_id) == stored, "a refused change through a context changed it")


@_check("L2", "L6")
async def cancelled_work_leaves_its_task_whole(bench: _Bench) -> None:
    backend = _yielding(bench.subject)

    async def setup(ending: str) -> Trial:
        record = await bench.subject.store.create_task(NewTask(ttl_ms=None))
        context = backend.context(task=record.task, store=backend.store)
        operation = partial(context.complete, {"content": []}) if ending == "complete" else partial(context.fail, "no")

        async def look() -> tuple[Any, ...]:
            stored = await bench.subject.store.get_task(record.task_id)
            outcome = await bench.subject.store.get_result(record.task_id)
            return (None if stored is None else stored.status), outcome

        return Trial(operation, look)

    for ending in ("complete", "fail"):
        await check_cancellation(partial(setup, ending), patience=bench.patience)


@_check("L11")
async def what_work_raises_is_told_only_if_it_is_a_protocol_error(bench: _Bench) -> None:
    backend = bench.subject
    told: tuple[tuple[Exception, dict[str, Any]], ...] = (
        (RuntimeError("password=hunter2"), {"code": -32603, "message": "Internal error"}),
        (ProtocolError(-32042, "not today", {"n": 1}), {"code": -32042, "message": "not today", "data": {"n": 1}}),
    )
    for raised, error in told:
        record = await backend.store.create_task(NewTask(ttl_ms=None))
        with _quiet_log():
            async with backend.execute(record.task_id, backend.store):
                raise raised
        stored = await backend.store.get_task(record.task_id)
        outcome = None if stored is None else stored.outcome
        require(stored is not None and stored.status == "failed", "work that raised did not fail its task")
        require(outcome is not None and outcome.error == error, f"work that raised {raised!r} told {outcome}")
        require("hunter2" not in repr(stored), "the text of an exception went to the client")


@_check("L6")
async def interrupted_work_ends_its_task(bench: _Bench) -> None:
    backend = _yielding(bench.subject)

    async def setup() -> Trial:
        task_id = (await bench.subject.store.create_task(NewTask(ttl_ms=None))).task_id

        async def work() -> None:
            async with backend.execute(task_id, backend.store) as context:
                await context.update_status("on it")
                await context.complete({"content": []})

        async def look() -> str | None:
            stored = await bench.subject.store.get_task(task_id)
            return None if stored is None else stored.status

        return Trial(work, look, also=("failed",))

    await check_cancellation(setup, patience=bench.patience)

    task_id = (await bench.subject.store.create_task(NewTask(ttl_ms=None))).task_id
    with anyio.CancelScope() as scope:
        async with backend.execute(task_id, backend.store):
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    stored = await bench.subject.store.get_task(task_id)
    require(
        stored is not None and stored.status == "failed",
        "work was interrupted and its task goes on: the clean-up was not shielded",
    )


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L8", needs=["mailbox"])
async def nothing_is_kept_of_tasks_that_are_gone(bench: _Bench) -> None:
    backend = bench.subject
    store, queue = backend.store, backend.queue

    async def live_and_die(number: int) -> None:
        task_id = (await store.create_task(NewTask(ttl_ms=1_000, owner=f"owner {number}"))).task_id
        with anyio.move_on_after(0):
            await backend.ask(store, queue, task_id, _question("given up"))
        await queue.enqueue(task_id, _question("k"))
        await backend.answer(store, queue, task_id, {"k": _YES})
        await queue.enqueue(task_id, _question("never answered"))
        if number % 2:
            await store.delete_task(task_id)
        else:
            bench.clock.advance(1)
            await store.get_task(task_id)

    await bench.require_nothing_kept(live_and_die, "tasks")


# --- L12: reopened ------------------------------------------------------------------------------------


@_check("L12", "L5", needs=["durable"])
async def a_question_is_answered_after_everything_was_reopened(bench: _Bench) -> None:
    async with bench.open_again() as first:
        task_id = (await first.store.create_task(NewTask(ttl_ms=None))).task_id
        await first.queue.enqueue(task_id, _question("k"))
        await first.store.update_task(task_id, status="input_required")
    async with bench.open_again() as second:
        require(await _view(second, task_id) == ("input_required", ("k",), None), "a question is lost after reopening")
        await second.answer(second.store, second.queue, task_id, {"k": _YES})
        require(await _view(second, task_id) == ("working", (), None), "an answer after reopening left the task asking")
