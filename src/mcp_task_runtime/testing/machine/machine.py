"""A Hypothesis state machine that drives a backend and a model of it in lock-step.

Each example opens the backend at a fresh location and lets it live through a random story: operations one
by one and racing, waiters that come and give up, questions asked and answered, time passing, closing and
reopening, two processes. After each step everything that can be read must be what the model says, and
exactly those who should have been woken have been. Hypothesis shrinks a story that fails to its shortest
form, and prints it as the calls that make it up.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any, ClassVar, Final, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import LiveStatus, Outcome, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError, TaskNotFoundError
from mcp_task_runtime.testing import strategies
from mcp_task_runtime.testing.checks.bench import BACKENDS, LISTING, Capability, Factory, require, require_raises
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.clock import FakeClock
from mcp_task_runtime.testing.concurrency.stepping import quiesce
from mcp_task_runtime.testing.machine.model import (
    AnswerOne,
    Clear,
    Create,
    Delete,
    Dequeue,
    Ending,
    Enqueue,
    Finish,
    Model,
    Operation,
    Update,
    perform,
)

__all__ = ["PROFILES", "TaskBackendMachine", "check_task_store_machine"]

T = TypeVar("T")

_COMMON: Final = settings(
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

PROFILES: Final[Mapping[str, settings]] = {
    "quick": settings(_COMMON, max_examples=12, stateful_step_count=30, derandomize=True),
    "ci": settings(_COMMON, max_examples=60, stateful_step_count=30, derandomize=True),
    "long": settings(_COMMON, max_examples=1_000, stateful_step_count=60),
}
"""Hypothesis settings by name. `ci` takes seconds and is the same each time; `quick` is the same for backends
whose operations take milliseconds; `long` is meant to be repeated."""


def check_task_store_machine(
    factory: Factory[TaskBackend],
    *,
    capabilities: Collection[Capability] = LISTING,
    backends: Collection[str] = BACKENDS,
    settings: settings = PROFILES["ci"],
    patience: float = 5.0,
    races: bool = True,
) -> None:
    """Drive a store and its queue through random stories, in lock-step with a model.

    Args:
        factory: Opens a store and its queue: `TaskBackend(store, queue)`; see `Factory`.
        capabilities: What the backend is able to do; see `Capability`. Stories that need more are not told.
        backends: The event loops, by their anyio names; each gets its own run.
        settings: How many stories, and how long; see `PROFILES`.
        patience: Seconds that something which must happen may take.
        races: Whether the stories have operations that race. A backend whose threads or server decide such
            a race anew each time must not have them: Hypothesis needs a story to go the same way again.

    Raises:
        AssertionError: The backend and the model differ. What Hypothesis adds to the error (its notes) is
            the shortest story it found.
    """
    for backend in backends:
        with start_blocking_portal(backend) as portal:
            opened = portal.wrap_async_context_manager(_task_group())
            members: dict[str, Any] = {
                "factory": staticmethod(factory),
                "portal": portal,
                "group": opened.__enter__(),
                "capabilities": frozenset(capabilities),
                "patience": patience,
                "races": races,
            }
            machine = type("TaskBackendMachine", (TaskBackendMachine,), members)
            try:
                run_state_machine_as_test(machine, settings=settings)
            finally:
                opened.__exit__(None, None, None)  # without the error: the group would wrap it


@asynccontextmanager
async def _task_group() -> AsyncIterator[TaskGroup]:
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


class _Waiter:
    """Something that waits on the event loop: can be given up, and says how it ended."""

    def __init__(self, what: str, task_id: str, operation: Callable[[], Awaitable[Any]]) -> None:
        self.what = what
        self.task_id = task_id
        self.ending: Any = None
        self._operation = operation
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    async def run(self) -> None:
        with self._scope:
            try:
                self.ending = await self._operation()
            except Exception as error:
                self.ending = error
        self._ended.set()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self, patience: float) -> Any:
        with anyio.move_on_after(patience):
            await self._ended.wait()
            return self.ending
        raise AssertionError(f"{self.what} of {self.task_id} was not woken (L3)")

    async def give_up(self, patience: float) -> None:
        self._scope.cancel()
        await self.wait(patience)


_TTLS = strategies.ttls()
_tasks: Bundle[str] = Bundle("tasks")


def _operations() -> st.SearchStrategy[Operation]:
    return st.one_of(
        st.builds(Update, st.none() | strategies.live_statuses(), strategies.status_messages()),
        st.builds(Finish, strategies.outcomes()),
        st.builds(AnswerOne, strategies.keys(), strategies.answers()),
        st.builds(Enqueue, strategies.questions()),
        st.just(Dequeue()),
        st.just(Update(if_revision=0)),  # 0 stands for the revision before the race
        st.just(Delete()),
        st.just(Clear()),
    )


def _races() -> st.SearchStrategy[list[Operation]]:
    """Return operations to race; of those whose order cannot be told afterwards only one."""
    return st.lists(_operations(), min_size=2, max_size=3).filter(
        lambda racing: sum(isinstance(operation, Enqueue) for operation in racing) <= 1
    )


class TaskBackendMachine(RuleBasedStateMachine):
    """The stories; `check_task_store_machine` makes a subclass that knows what to open."""

    factory: ClassVar[Callable[..., Any]]
    portal: ClassVar[BlockingPortal]
    group: ClassVar[TaskGroup]
    capabilities: ClassVar[frozenset[str]] = frozenset()
    races: ClassVar[bool] = True
    patience: ClassVar[float] = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.clock: FakeClock = FakeClock()
        self.model: Model = Model(mailbox_goes_with_task="mailbox" in self.capabilities)
        self.known: list[str] = []
        self.waiters: list[tuple[_Waiter, int]] = []  # with the revision each one waits to be passed
        self.listeners: list[_Waiter] = []
        self.askers: dict[tuple[str, str], _Waiter] = {}
        self.location: str = f"kit_{secrets.token_hex(8)}"
        self.processes: list[tuple[AbstractContextManager[Any], TaskBackend]] = []
        self.process: int = 0
        self._open()

    # --- the stage ---

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

    async def _begin(self, what: str, task_id: str, operation: Callable[[], Awaitable[Any]]) -> _Waiter:
        waiter = _Waiter(what, task_id, operation)
        self.group.start_soon(waiter.run)
        await quiesce()
        return waiter

    # --- one operation, and several at once ---

    def _do(self, task_id: str, operation: Operation) -> Ending:
        expected = self.model.apply(task_id, operation, self.clock.now())
        got = self._call(perform, self.backend.store, self.backend.queue, task_id, operation)
        require(got == expected, f"{operation} on {task_id} ended as {got}, and must end as {expected}")
        return got

    @rule(
        target=_tasks,
        ttl_ms=_TTLS,
        owner=strategies.owners(),
        retention_ms=st.sampled_from([0, 1_500]),
        request=st.just(TaskRequest()) | strategies.requests(),
    )
    def create(self, ttl_ms: int | None, owner: str | None, retention_ms: int, request: TaskRequest) -> str:
        """A new task."""
        task_id = f"task-{len(self.known) + 1}"
        self.known.append(task_id)
        self._do(task_id, Create(ttl_ms, owner, retention_ms, request))
        return task_id

    @rule(task=_tasks, ttl_ms=_TTLS)
    def create_with_a_known_identifier(self, task: str, ttl_ms: int | None) -> None:
        """An identifier is taken as long as its task exists."""
        if task not in self.model.tasks:
            self._do(task, Clear())
        self._do(task, Create(ttl_ms, "ada"))

    @rule(task=_tasks, status=st.none() | strategies.live_statuses(), message=strategies.status_messages())
    def update(self, task: str, status: LiveStatus | None, message: str | None) -> None:
        """An update."""
        self._do(task, Update(status, message))

    @rule(task=_tasks, status=st.none() | strategies.live_statuses(), behind=st.sampled_from([0, 1, -1]))
    def update_at_a_revision(self, task: str, status: LiveStatus | None, behind: int) -> None:
        """A conditional update."""
        revision = self.model.tasks.get(task, {}).get("revision", 1)
        self._do(task, Update(status, "conditional", revision - behind))

    @rule(task=_tasks, outcome=strategies.outcomes())
    def finish(self, task: str, outcome: Outcome) -> None:
        """The end of a task."""
        self._do(task, Finish(outcome))

    @rule(task=_tasks)
    def delete(self, task: str) -> None:
        """A deletion."""
        self._do(task, Delete())

    @rule(task=_tasks, message=strategies.messages())
    def enqueue(self, task: str, message: QueuedMessage) -> None:
        """A message for the client."""
        self._do(task, Enqueue(message))

    @rule(task=_tasks)
    def dequeue(self, task: str) -> None:
        """A message is taken."""
        self._do(task, Dequeue())

    @rule(task=_tasks, key=strategies.keys(), answer=strategies.answers())
    def answer(self, task: str, key: str, answer: Answer) -> None:
        """An answer that only the queue hears of."""
        self._do(task, AnswerOne(key, answer))

    @rule(task=_tasks)
    def clear(self, task: str) -> None:
        """A mailbox is cleared."""
        self._do(task, Clear())

    @precondition(lambda self: self.races)
    @rule(task=_tasks, operations=_races())
    def race(self, task: str, operations: list[Operation]) -> None:
        """Several operations at once: they must have the effect that some order of them has."""
        asking = any(asked == task for asked, _ in self.askers)
        if asking and any(isinstance(one, Enqueue) for one in operations):
            # A key that is cleared and asked again at once cannot be told from the first by every backend.
            operations = [one for one in operations if not isinstance(one, Clear | Delete)]
        revision = self.model.tasks.get(task, {}).get("revision", 1)
        racing: list[Operation] = [
            replace(one, if_revision=revision) if isinstance(one, Update) and one.if_revision == 0 else one
            for one in operations
        ]
        endings: list[Ending] = [("never", None)] * len(racing)

        async def run(number: int) -> None:
            _, backend = self.processes[number % len(self.processes)]
            endings[number] = await perform(backend.store, backend.queue, task, racing[number])

        async def run_all() -> tuple[Any, ...]:
            async with anyio.create_task_group() as group:
                for number in range(len(racing)):
                    group.start_soon(run, number)
            return await self._state(self.backend, task)

        state = self._call(run_all)
        for order in permutations(range(len(racing))):
            model = self.model.copy()
            expected = {number: model.apply(task, racing[number], self.clock.now()) for number in order}
            alike = all(expected[number] == ending for number, ending in enumerate(endings))
            if alike and (asking or model.state(task) == state):
                self.model = model
                return
        raise AssertionError(f"{racing} raced on {task} and ended as {endings}, leaving {state}: no order gives that")

    # --- questions ---

    @rule(task=_tasks, key=strategies.keys())
    def ask_and_wait(self, task: str, key: str) -> None:
        """The work asks its client, and waits."""
        self._call(self._ask, task, key)

    async def _ask(self, task: str, key: str) -> None:
        backend = self.backend
        question = QueuedMessage.request(key, "elicitation/create", {"message": key})
        live = task in self.model.tasks and self.model.tasks[task]["outcome"] is None
        accepted = self.model.apply(task, Enqueue(question), self.clock.now())[1]
        asker = await self._begin(
            f"the asker of {key}", task, lambda: backend.ask(backend.store, backend.queue, task, question)
        )
        if not accepted:
            require(await asker.wait(self.patience) is None, "a used key was used again (L5)")
        elif not live:
            ending = await asker.wait(self.patience)
            require(isinstance(ending, Exception), f"asking for an ended task ended as {ending!r}")
            self.model.mail.pop(task, None)
        else:
            record = None
            with anyio.move_on_after(self.patience):
                record = await backend.store.wait_for_update(task, after=self.model.tasks[task]["revision"])
            if record is None:
                raise AssertionError(f"a question was asked and {task} did not change")
            require(record.status == "input_required", f"a question is open and the task is {record.status} (L5)")
            self.askers[task, key] = asker
            await self._adopt(task)

    @rule(task=_tasks, answers=st.dictionaries(strategies.keys(), strategies.answers(), min_size=1, max_size=3))
    def answer_questions(self, task: str, answers: dict[str, Answer]) -> None:
        """The client answers; the status must be true afterwards."""
        expected = {
            key for key, one in answers.items() if self.model.apply(task, AnswerOne(key, one), self.clock.now())[1]
        }
        backend = self.backend

        async def answer() -> None:
            taken = await backend.answer(backend.store, backend.queue, task, answers)
            require(taken == expected, f"the answers {sorted(taken)} were taken and must be {sorted(expected)} (L5)")
            await self._release_askers()
            if taken:
                await self._adopt(task, settled=True)

        self._call(answer)

    @precondition(lambda self: self.askers)
    @rule(data=st.data())
    def give_up_asking(self, data: st.DataObject) -> None:
        """The work is cancelled while it waits for an answer."""
        task, key = data.draw(st.sampled_from(sorted(self.askers)))

        async def give_up() -> None:
            await self.askers.pop((task, key)).give_up(self.patience)
            await self._withdrawn(task, key)

        self._call(give_up)

    async def _withdrawn(self, task: str, key: str) -> None:
        taken = self.model.apply(task, AnswerOne(key, Answer.withdrawn()), self.clock.now())[1]
        if task not in self.model.tasks or self.model.tasks[task]["outcome"] is not None:
            self.model.mail.pop(task, None)
        elif taken:
            await self._adopt(task, settled=True)

    async def _adopt(self, task: str, *, settled: bool = False) -> None:
        """Take over status and revision after code above the store changed them, if they are right."""
        held = self.model.tasks.get(task)
        if held is None or held["outcome"] is not None:
            return
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

    # --- waiting ---

    @rule(task=_tasks, behind=st.sampled_from([0, 0, 1]), waiters=st.integers(1, 3))
    def wait_for_update(self, task: str, behind: int, waiters: int) -> None:
        """Some wait for a task to change."""
        store = self.backend.store
        after = self.model.tasks.get(task, {}).get("revision", 1) - behind

        async def begin() -> None:
            for _ in range(waiters):
                waiter = await self._begin("a waiter", task, lambda: store.wait_for_update(task, after=after))
                self.waiters.append((waiter, after))

        self._call(begin)

    @rule(task=_tasks)
    def wait_for_message(self, task: str) -> None:
        """Somebody waits for a message."""
        queue = self.backend.queue

        async def begin() -> None:
            if not self.model.mail.get(task, {}).get("queue"):
                self.listeners.append(await self._begin("a listener", task, lambda: queue.wait_for_message(task)))

        self._call(begin)

    @precondition(lambda self: self.waiters or self.listeners)
    @rule()
    def give_up_waiting(self) -> None:
        """The one who waits longest is cancelled."""
        waiter = self.waiters.pop(0)[0] if self.waiters else self.listeners.pop(0)
        self._call(waiter.give_up, self.patience)

    # --- lists ---

    @precondition(lambda self: "listing" in self.capabilities)
    @rule(owner=strategies.owners(), limit=st.integers(1, 3))
    def walk_the_pages(self, owner: str | None, limit: int) -> None:
        """All of an owner's tasks, oldest first."""
        expected = [task for task in self.model.order if self.model.tasks[task]["owner"] == owner]

        async def walk() -> None:
            store, seen, cursor = self.backend.store, [], None
            while True:
                page = await store.list_tasks(owner=owner, cursor=cursor, limit=limit)
                seen += [record.task_id for record in page.records]
                require(len(page.records) <= limit, f"a page of {limit} has {len(page.records)} tasks")
                for record in page.records:
                    require(record == self.model.record(record.task_id), f"the list shows {record}")
                cursor = page.next_cursor
                if cursor is None or len(seen) > len(expected):
                    break
                other = store.list_tasks(owner=f"not {owner}", cursor=cursor, limit=limit)
                await require_raises(InvalidCursorError, other, "list_tasks with another owner's cursor")
            require(seen == expected, f"the pages of {owner} show {seen} and must show {expected}")

        self._call(walk)

    # --- time, and processes ---

    @rule(ms=st.sampled_from([1, 250, 1_000, 5_000, 60_000]))
    def time_passes(self, ms: int) -> None:
        """Time passes; what expires is gone."""
        self._call(self._advance, timedelta(milliseconds=ms))

    @rule(task=_tasks, early=st.booleans())
    def time_passes_to_the_end_of(self, task: str, early: bool) -> None:
        """Time passes until a task expires, or almost."""
        record = self.model.record(task)
        if record is not None and record.task.expires_at is not None:
            until = record.task.expires_at - timedelta(milliseconds=1 if early else 0)
            self._call(self._advance, max(until - self.clock.now(), timedelta(0)))

    async def _advance(self, by: timedelta) -> None:
        self.clock.advance(by)
        for task in self.model.expire(self.clock.now()):
            require(await self.backend.store.get_task(task) is None, f"{task} has expired and is still there (L7)")
            await self.backend.queue.clear(task)  # a store may take its time to forget what expired
            self.model.mail.pop(task, None)

    @precondition(lambda self: "durable" in self.capabilities)
    @rule()
    def reopen(self) -> None:
        """Everything is closed and opened again."""
        self._close()
        self._open()

    @precondition(lambda self: "shared" in self.capabilities)
    @rule()
    def go_to_the_other_process(self) -> None:
        """From now on the other process is used."""
        self.process = 1 - self.process

    # --- what holds after each step ---

    @invariant()
    def compare(self) -> None:
        """Waiters are woken and everything that can be read is as the model says."""
        self._call(self._compare)

    async def _compare(self) -> None:
        await self._release_askers()
        for task, _ in list(self.askers):  # whoever ends a task clears its mailbox, as the runtime does
            if task in self.model.tasks and self.model.tasks[task]["outcome"] is not None:
                await self.backend.queue.clear(task)
                self.model.mail.pop(task, None)
        await self._release_askers()
        await self._release_waiters()
        for task in self.known:
            expected = self.model.state(task)
            for _, backend in self.processes:
                state = await self._state(backend, task)
                for name, seen, wanted in zip(
                    ("get_task", "get_result", "outstanding", "peek", "wait_for_answer"), state, expected, strict=True
                ):
                    require(seen == wanted, f"{name} of {task} is {seen} and must be {wanted}")

    async def _release_waiters(self) -> None:
        still: list[tuple[_Waiter, int]] = []
        for waiter, after in self.waiters:
            held = self.model.tasks.get(waiter.task_id)
            if held is None:
                ending = await waiter.wait(self.patience)
                require(
                    type(ending) is TaskNotFoundError, f"a waiter of {waiter.task_id}, which is gone, got {ending!r}"
                )
            elif held["revision"] > after:
                ending = await waiter.wait(self.patience)
                revision = getattr(ending, "revision", None)
                require(
                    revision is not None and after < revision <= held["revision"],
                    f"a waiter of {waiter.task_id} after revision {after} got {ending!r}",
                )
            else:
                require(not waiter.ended, f"a waiter of {waiter.task_id} was woken by nothing, with {waiter.ending!r}")
                still.append((waiter, after))
        self.waiters = still
        listening: list[_Waiter] = []
        for listener in self.listeners:
            if self.model.mail.get(listener.task_id, {}).get("queue"):
                ending = await listener.wait(self.patience)
                require(
                    ending is None or type(ending) is TaskNotFoundError,  # cleared first, in a race
                    f"who waited for a message of {listener.task_id} got {ending!r}",
                )
            elif not listener.ended:
                listening.append(listener)
        self.listeners = listening

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
