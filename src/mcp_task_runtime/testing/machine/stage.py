"""What a story takes place on: a backend, a model of it, a clock, and those that wait."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal
from hypothesis.stateful import RuleBasedStateMachine

from mcp_task_runtime.core.message_queue import Answer
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.testing import strategies
from mcp_task_runtime.testing.checks.bench import require
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from mcp_task_runtime.testing.machine.model import AnswerAll, AnswerOne, Ending, Model, Operation, perform

__all__ = ["Stage", "Waiter"]

T = TypeVar("T")


class Waiter:
    """Something that waits on the event loop: can be given up, and says how it ended."""

    def __init__(self, what: str, task_id: str, operation: Callable[[], Awaitable[Any]]) -> None:
        self.what = what
        self.task_id = task_id
        self.ending: Any = None
        self._operation = operation
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    async def run(self) -> None:
        """Wait, and note how that ended."""
        with self._scope:
            try:
                self.ending = await self._operation()
            except Exception as error:
                self.ending = error
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether the wait is over."""
        return self._ended.is_set()

    async def wait(self, patience: float) -> Any:
        """Return how the wait ended, once it has.

        Raises:
            AssertionError: It did not end within so many seconds.
        """
        with anyio.move_on_after(patience):
            await self._ended.wait()
            return self.ending
        raise AssertionError(f"{self.what} of {self.task_id} was not woken (L3)")

    async def give_up(self, patience: float) -> None:
        """Cancel the wait, and wait until it is over; see `wait`."""
        self._scope.cancel()
        await self.wait(patience)


class Stage(RuleBasedStateMachine):
    """A state machine without rules: it opens and closes the backend, and keeps the model true to it."""

    factory: ClassVar[Callable[..., Any]]
    portal: ClassVar[BlockingPortal]
    group: ClassVar[TaskGroup]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    races: ClassVar[bool] = True
    patience: ClassVar[float] = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.clock: FakeClock = FakeClock()
        self.model: Model = Model(
            mailbox_goes_with_task="mailbox" in self.capabilities,
            mailbox_goes_with_end="questions" in self.capabilities,
        )
        self.known: list[str] = []
        self.waiters: list[tuple[Waiter, int]] = []  # with the revision each one waits to be passed
        self.listeners: list[Waiter] = []
        self.askers: dict[tuple[str, str], Waiter] = {}
        self.location: str = f"kit_{secrets.token_hex(8)}"
        self.processes: list[tuple[AbstractContextManager[Any], TaskBackend]] = []
        self.process: int = 0
        self._open()

    def _open(self) -> None:
        for _ in range(2 if "shared" in self.capabilities else 1):
            opened = self.portal.wrap_async_context_manager(type(self).factory(self.clock, self.location))
            self.processes.append((opened, opened.__enter__()))

    def _close(self) -> None:
        self._call(self._give_up_all)
        while self.processes:
            opened, _ = self.processes.pop()
            opened.__exit__(None, None, None)

    def teardown(self) -> None:
        """Close what the story used."""
        self._close()

    @property
    def backend(self) -> TaskBackend:
        """What the story's process uses."""
        return self.processes[self.process][1]

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        async def limited() -> T:
            with anyio.move_on_after(12 * self.patience):
                return await function(*args)
            raise AssertionError("an operation that need not wait did not end")

        return self.portal.call(limited)

    async def _give_up_all(self) -> None:
        for waiter in [waiter for waiter, _ in self.waiters] + self.listeners:
            await waiter.give_up(self.patience)
        for (task_id, key), asker in self.askers.items():
            await asker.give_up(self.patience)
            await self._withdrawn(task_id, key)
        self.waiters, self.listeners, self.askers = [], [], {}

    async def _begin(self, what: str, task_id: str, operation: Callable[[], Awaitable[Any]]) -> Waiter:
        waiter = Waiter(what, task_id, operation)
        self.group.start_soon(waiter.run)
        await quiesce()
        return waiter

    def _do(self, task_id: str, operation: Operation) -> Ending:
        expected = self.model.apply(task_id, operation, self.clock.now())
        got = self._call(perform, self.backend.store, self.backend.queue, task_id, operation)
        require(got == expected, f"{operation} on {task_id} ended as {got}, and must end as {expected}")
        return got

    async def _withdrawn(self, task: str, key: str) -> None:
        if "questions" in self.capabilities:
            self.model.apply(task, AnswerAll(((key, Answer.withdrawn()),)), self.clock.now())
            return
        taken = self.model.apply(task, AnswerOne(key, Answer.withdrawn()), self.clock.now())[1]
        if task not in self.model.tasks or self.model.tasks[task]["outcome"] is not None:
            self.model.mail.pop(task, None)
        elif taken:
            await self._adopt(task, settled=True)

    async def _adopt(self, task: str, *, settled: bool = False) -> None:
        """Take over status and revision after code above the store changed them, if they are right."""
        held = self.model.tasks.get(task)
        if held is None or held["outcome"] is not None or "questions" in self.capabilities:
            return  # with one write there is nothing to adopt: the model knows what it is
        record = await self.backend.store.get_task(task)
        if record is None:
            raise AssertionError(f"{task} is gone")
        if settled:
            wanted = "input_required" if self.model.mail.get(task, {}).get("open") else "working"
            require(record.status == wanted, f"{task} is {record.status} and must be {wanted} (L5)")
        require(record.status in ("working", "input_required"), f"{task} is {record.status} and has not ended")
        require(record.revision >= held["revision"], f"the revision of {task} went back")
        if record.revision > held["revision"]:
            held.update(status=record.status, revision=record.revision, last_updated_at=record.task.last_updated_at)

    async def _release_askers(self) -> None:
        for (task, key), asker in list(self.askers.items()):
            box = self.model.mail.get(task)
            if box is not None and key in box["open"] and task in self.model.tasks:
                require(not asker.ended, f"the asker of {key} of {task} was released with {asker.ending!r}")
                continue
            del self.askers[task, key]
            ending = await asker.wait(self.patience)
            if box is not None and key in box["answers"] and task in self.model.tasks:
                require(ending == box["answers"][key], f"the asker of {key} got {ending!r}, not {box['answers'][key]}")
                await self._adopt(task)
            else:
                require(isinstance(ending, Exception), f"the asker of {key} got {ending!r} to a question that is gone")
                held = self.model.tasks.get(task)
                if held is None or held["outcome"] is not None:
                    self.model.mail.pop(task, None)

    @staticmethod
    async def _state(backend: TaskBackend, task: str) -> tuple[Any, ...]:
        record = await backend.store.get_task(task)
        try:
            outcome: Any = await backend.store.get_result(task)
        except TaskNotFoundError:
            outcome = "gone"
        questions = await backend.queue.outstanding(task)
        answers: dict[str, Answer] = {}
        for key in strategies.KEYS:
            if all(question.key != key for question in questions):
                try:
                    answers[key] = await backend.queue.wait_for_answer(task, key)
                except TaskNotFoundError:
                    continue
        return record, outcome, questions, await backend.queue.peek(task), answers
