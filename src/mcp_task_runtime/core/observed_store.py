"""A store and its queue as an observer sees them: every call passes here, with what it does to the status of tasks."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import perf_counter
from types import TracebackType
from typing import Any, cast

from mcp_task_runtime.core.abilities import has_questions, queue_of
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.mirror import mirror, public_members
from mcp_task_runtime.core.observer import (
    IsolatedObserver,
    Observation,
    QuestionAsked,
    QuestionClosed,
    StoreCalled,
    TaskChange,
    TaskObserver,
    WorkStopped,
)
from mcp_task_runtime.core.store import TaskQuestions, TaskStore
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import StoreError, TaskRuntimeError

__all__ = ["observed"]

_WAITING = ("wait_", "take_work")
"""How the names of methods begin that wait, so that their time says nothing."""

logger: logging.Logger = logging.getLogger(__name__)


def observed(
    store: TaskStore, queue: TaskMessageQueue, observer: IsolatedObserver
) -> tuple[TaskStore, TaskMessageQueue]:
    """Return a store and a queue that report to an observer; they have every public member that the given ones have.

    Reported are calls, questions, and each status that a task of this process gets. New tasks are left to the caller,
    who knows when a task is more than a precaution.

    Args:
        store: Where tasks are kept.
        queue: Where questions are kept.
        observer: Hears of it.
    """
    questions = _OpenQuestions(observer, store.clock)
    observer.add(questions)
    seen_queue = _observed_queue(queue, questions, observer)
    members: dict[str, object] = {}
    if (own := queue_of(store)) is not None:
        members["message_queue"] = seen_queue if own is queue else _observed_queue(own, questions, observer)
    after: dict[str, Callable[..., None]] = {
        "answer_all": questions.answered,
        "ask": questions.asked,
        "finish_task": questions.finished,
        "update_task": questions.updated,
    }
    seen = _mirror(store, observer, after, members)
    if has_questions(store):
        seen.ask = _replaying(seen.ask, cast(TaskQuestions, store), questions)
    return cast(TaskStore, seen), seen_queue


def _observed_queue(queue: TaskMessageQueue, questions: _OpenQuestions, observer: TaskObserver) -> TaskMessageQueue:
    async def wait_for_answer(task_id: str, key: str) -> Answer:
        with _Wait(questions, task_id, key) as wait:
            wait.answer = await queue.wait_for_answer(task_id, key)
            return wait.answer

    after: dict[str, Callable[..., None]] = {"answer": questions.answered_one, "enqueue": questions.enqueued}
    seen = _mirror(queue, observer, after, {})
    seen.wait_for_answer = wait_for_answer
    return cast(TaskMessageQueue, seen)


def _replaying(
    ask: Callable[..., Awaitable[TaskRecord | None]], store: TaskQuestions, questions: _OpenQuestions
) -> Callable[..., Awaitable[TaskRecord | None]]:
    """Return an `ask` that looks whether a question of an earlier run is still open."""

    async def call(task_id: str, question: QueuedMessage, **kwargs: Any) -> TaskRecord | None:
        record = await ask(task_id, question, **kwargs)
        if record is None:
            with suppress(Exception):  # only the observer needs it
                questions.replayed(await store.get_view(task_id), question)
        return record

    return call


class _Task:
    """A task whose work here waits for answers: what is known of it, and its open questions by key."""

    __slots__ = ("questions", "record")

    def __init__(self, record: TaskRecord | None) -> None:
        self.record = record
        self.questions: dict[str, tuple[str, float]] = {}

    @property
    def name(self) -> str:
        return "" if self.record is None else self.record.request.name


class _OpenQuestions:
    """The open questions of the work of this process: they say what the status of its tasks becomes.

    An answer may be given in any process; the work that it wakes is here. Nothing is kept of a task whose work has no
    open question, or is over (law L8).
    """

    def __init__(self, observer: TaskObserver, clock: Clock) -> None:
        self._observer = observer
        self._clock = clock
        self._tasks: dict[str, _Task] = {}

    def trace_context(self) -> Mapping[str, str]:
        """Return nothing; see `TaskObserver`."""
        return {}

    def observe(self, observation: Observation) -> None:
        """Forget a task whose work is over here."""
        if isinstance(observation, WorkStopped):
            self._forget(observation.record.task_id)

    # -- what calls of the store and the queue have returned

    def asked(self, record: TaskRecord | None, task_id: str, question: QueuedMessage, **_: Any) -> None:
        """Note a question that is asked in the write that sets the status; no record if it was asked before."""
        if record is None:
            return
        is_first = task_id not in self._tasks
        self._add(task_id, question, record)
        if is_first:
            self._observer.observe(TaskChange.of(record))

    def replayed(self, view: TaskView | None, question: QueuedMessage) -> None:
        """Note a question that an earlier run of the work asked."""
        if view is not None and any(other.key == question.key for other in view.questions):
            self._add(view.record.task_id, question, view.record)

    def enqueued(self, is_new: bool, task_id: str, message: QueuedMessage, **_: Any) -> None:
        """Note a question in a queue apart from the store: the status follows in a write of its own."""
        if is_new and message.type == "request":
            self._add(task_id, message, None)

    def updated(self, record: TaskRecord, task_id: str, **changes: Any) -> None:
        """Note the write that sets the status."""
        task = self._tasks.get(task_id)
        if task is None or task.record is not None or changes.get("status") != "input_required":
            return
        task.record = record
        for key in task.questions:
            self._announce(task_id, task, key)
        self._observer.observe(TaskChange.of(record))

    def answered(self, taken: frozenset[str], task_id: str, answers: Mapping[str, Answer], **_: Any) -> None:
        """Note that questions were withdrawn; the answers of others are noted where they are waited for."""
        for key in taken:
            self.answered_one(True, task_id, key, answers[key])

    def answered_one(self, is_taken: bool, task_id: str, key: str, answer: Answer, **_: Any) -> None:
        """Note that a question was withdrawn; an answer is noted where it is waited for."""
        task = self._tasks.get(task_id)
        if is_taken and answer.type == "withdrawn" and task is not None:
            self._resume_if_done(task_id, task)

    def finished(self, record: TaskRecord, task_id: str, *_: Any, **__: Any) -> None:
        """Note the end of a task."""
        self._forget(task_id)
        self._observer.observe(TaskChange.of(record))

    def waited(self, task_id: str, key: str, answer: Answer | None) -> None:
        """Note the end of a wait: with an answer, or without where it was cancelled or the task ended."""
        task = self._tasks.get(task_id)
        if task is not None and key in task.questions:
            self._close(task_id, task, key, "withdrawn" if answer is None else answer.type)
            if answer is not None:
                self._resume_if_done(task_id, task)

    def _add(self, task_id: str, question: QueuedMessage, record: TaskRecord | None) -> None:
        task = self._tasks.setdefault(task_id, _Task(record))
        key = question.key or ""
        task.questions[key] = (question.method, perf_counter())
        if task.record is not None:
            self._announce(task_id, task, key)

    def _announce(self, task_id: str, task: _Task, key: str) -> None:
        self._observer.observe(QuestionAsked(task_id, task.name, key, task.questions[key][0]))

    def _close(self, task_id: str, task: _Task, key: str, result: str) -> None:
        method, asked_at = task.questions.pop(key)
        if task.record is not None:
            waited = perf_counter() - asked_at
            self._observer.observe(QuestionClosed(task_id, task.name, key, method, result, waited))

    def _forget(self, task_id: str) -> None:
        task = self._tasks.pop(task_id, None)
        while task is not None and task.questions:
            self._close(task_id, task, next(iter(task.questions)), "withdrawn")

    def _resume_if_done(self, task_id: str, task: _Task) -> None:
        if task.questions or task.record is None:
            return
        del self._tasks[task_id]
        asked = TaskChange.of(task.record)
        self._observer.observe(replace(asked, status="working", at=max(self._clock.now(), asked.at)))


class _Wait:
    """A wait for an answer."""

    __slots__ = ("_key", "_questions", "_task_id", "answer")

    def __init__(self, questions: _OpenQuestions, task_id: str, key: str) -> None:
        self._questions = questions
        self._task_id = task_id
        self._key = key
        self.answer: Answer | None = None

    def __enter__(self) -> _Wait:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._questions.waited(self._task_id, self._key, self.answer)


def _mirror(
    target: object, observer: TaskObserver, after: Mapping[str, Callable[..., None]], members: Mapping[str, object]
) -> Any:
    """Return an object with the public members of another, whose calls are reported.

    Args:
        target: The other object.
        observer: Hears of each call that does not wait.
        after: Called with the result and the arguments of a method, by its name.
        members: Members that replace those of the other.
    """
    reporting = {
        name: _reporting(getattr(target, name), name, observer, after.get(name))
        for name, member in public_members(target)
        if name not in members and inspect.iscoroutinefunction(member) and not name.startswith(_WAITING)
    }
    return mirror(target, "Observed", {**reporting, **members})


def _reporting(
    method: Callable[..., Awaitable[Any]], name: str, observer: TaskObserver, after: Callable[..., None] | None
) -> Callable[..., Awaitable[Any]]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            result = await method(*args, **kwargs)
        except Exception as error:
            is_refusal = isinstance(error, TaskRuntimeError | ValueError) and not isinstance(error, StoreError)
            observer.observe(StoreCalled(name, perf_counter() - began, None if is_refusal else error))
            raise
        observer.observe(StoreCalled(name, perf_counter() - began, None))
        if after is not None:
            try:
                after(result, *args, **kwargs)
            except Exception:  # a value that a store must not return (law L13)
                logger.debug("What a store returned could not be reported", exc_info=True)
        return result

    return call
