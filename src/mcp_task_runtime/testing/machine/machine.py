"""A Hypothesis state machine that drives a backend and a model of it in lock-step.

Each example opens the backend at a fresh location and lets it live through a random story: operations one
by one and racing, waiters that come and give up, questions asked and answered, leases claimed and lost, writes
of runs that lost their lease, time passing, closing and reopening, two processes. After each step everything that
can be read must be what the model says, and exactly the waiters that a change concerns have woken. Hypothesis
shrinks a story that fails to its shortest form, and prints it as the calls that make it up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any, Final, TypeVar

import anyio
from anyio.abc import TaskGroup
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Fence, LiveStatus, Outcome, Progress, TaskFilter, TaskRequest
from mcp_task_runtime.errors import InvalidCursorError
from mcp_task_runtime.testing import strategies
from mcp_task_runtime.testing.checks.bench import (
    BACKENDS,
    LISTING,
    Capability,
    Factory,
    check_capabilities,
    require,
    require_raises,
)
from mcp_task_runtime.testing.checks.questions import TaskBackend
from mcp_task_runtime.testing.machine.comparison import Comparison
from mcp_task_runtime.testing.machine.model import (
    AnswerAll,
    AnswerOne,
    Ask,
    Claim,
    Clear,
    Create,
    Delete,
    Dequeue,
    Drop,
    Ending,
    Enqueue,
    Finish,
    Model,
    Operation,
    Renew,
    Step,
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
    patience: float = 30.0,
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
            a race differently each time must not have them: Hypothesis needs a story to go the same way again.

    Raises:
        AssertionError: The backend and the model differ. What Hypothesis adds to the error (its notes) is
            the shortest story it found.
        ValueError: A capability is unknown, or needs another that is not declared.
    """
    check_capabilities(capabilities)
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


def _matches(model: Model, task: str, wanted: TaskFilter) -> bool:
    """Return whether a task of the model is one that a search wants."""
    its = model.tasks[task]
    message = its["status_message"]
    return (
        (wanted.statuses is None or its["status"] in wanted.statuses)
        and (wanted.names is None or its["request"].name in wanted.names)
        and (wanted.owners is None or its["owner"] in wanted.owners)
        and (wanted.id_prefix is None or task.startswith(wanted.id_prefix))
        and (wanted.text is None or (message is not None and wanted.text in message))
    )


_TTLS = strategies.ttls()
_WORKERS = st.sampled_from(["one", "two", ""])
_LEASES = st.sampled_from([1, 1_000, 20_000])
_FENCES = st.sampled_from(["none", "none", "held", "stale"])
_NEEDS: Final[Mapping[type, str]] = {Ask: "questions", AnswerAll: "questions", Claim: "leases"}
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


def _able_operations() -> st.SearchStrategy[Operation]:
    """Return operations of abilities; a story without the ability leaves them out."""
    return st.one_of(
        st.builds(Ask, strategies.questions()),
        st.builds(AnswerAll, st.tuples(st.tuples(strategies.keys(), strategies.answers()))),
        st.builds(Claim, _WORKERS, st.just(20_000)),
    )


def _races() -> st.SearchStrategy[list[Operation]]:
    """Return operations to race; of those whose order cannot be told afterwards only one."""
    return st.lists(_operations() | _able_operations(), min_size=2, max_size=3).filter(
        lambda racing: sum(isinstance(operation, Enqueue | Ask) for operation in racing) <= 1
    )


class TaskBackendMachine(Comparison):
    """The stories; `check_task_store_machine` makes a subclass that knows what to open."""

    # --- one operation, and several at once ---

    @rule(
        target=_tasks,
        ttl_ms=_TTLS,
        owner=strategies.owners(),
        retention_ms=st.sampled_from([0, 1_500]),
        request=st.just(TaskRequest()) | strategies.requests(),
        worker=st.none() | _WORKERS,
        lease_ms=_LEASES,
    )
    def create(
        self,
        ttl_ms: int | None,
        owner: str | None,
        retention_ms: int,
        request: TaskRequest,
        worker: str | None,
        lease_ms: int,
    ) -> str:
        """A new task."""
        task_id = f"task-{len(self.known) + 1}"
        self.known.append(task_id)
        leased = worker if "leases" in self.capabilities else None
        self._do(task_id, Create(ttl_ms, owner, retention_ms, request, leased, lease_ms))
        return task_id

    @rule(task=_tasks, ttl_ms=_TTLS)
    def create_with_a_known_identifier(self, task: str, ttl_ms: int | None) -> None:
        """An identifier is taken as long as its task exists."""
        if task not in self.model.tasks:
            self._do(task, Clear())
        self._do(task, Create(ttl_ms, "ada"))

    def _fence(self, task: str, which: str) -> Fence | None:
        """Return the fence of the run that holds a task's lease, of one that does not, or none."""
        if which == "none" or "fences" not in self.capabilities:
            return None
        lease = self.model.tasks.get(task, {}).get("lease")
        if lease is None or which == "stale":
            return Fence("one", 0 if lease is not None and lease.attempt == 1 else 1)
        return Fence(lease.worker, lease.attempt)

    @rule(
        task=_tasks,
        status=st.none() | strategies.live_statuses(),
        message=strategies.status_messages(),
        fence=_FENCES,
    )
    def update(self, task: str, status: LiveStatus | None, message: str | None, fence: str) -> None:
        """An update."""
        self._do(task, Update(status, message, fence=self._fence(task, fence)))

    @precondition(lambda self: "fences" in self.capabilities)
    @rule(task=_tasks, progress=strategies.progress(), longer_ms=st.none() | st.sampled_from([1, 60_000]))
    def report(self, task: str, progress: Progress, longer_ms: int | None) -> None:
        """The work reports progress, and may extend the task's life."""
        ttl_ms = self.model.tasks.get(task, {}).get("ttl_ms")
        extended = None if ttl_ms is None or longer_ms is None else ttl_ms + longer_ms
        self._do(task, Update(progress=progress, ttl_ms=extended))

    @rule(task=_tasks, status=st.none() | strategies.live_statuses(), behind=st.sampled_from([0, 1, -1]))
    def update_at_a_revision(self, task: str, status: LiveStatus | None, behind: int) -> None:
        """A conditional update."""
        revision = self.model.tasks.get(task, {}).get("revision", 1)
        self._do(task, Update(status, "conditional", revision - behind))

    @rule(task=_tasks, outcome=strategies.outcomes(), fence=_FENCES)
    def finish(self, task: str, outcome: Outcome, fence: str) -> None:
        """The end of a task."""
        self._do(task, Finish(outcome, self._fence(task, fence)))

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
        operations = [one for one in operations if _NEEDS.get(type(one), "listing") in {*self.capabilities, "listing"}]
        if asking and any(isinstance(one, Enqueue | Ask) for one in operations):
            # A key that is cleared and asked again at once cannot be told from the first by every backend.
            operations = [one for one in operations if not isinstance(one, Clear | Delete | Finish)]
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
        alike: list[Model] = []
        for order in permutations(range(len(racing))):
            model = self.model.copy()
            expected = {number: model.apply(task, racing[number], self.clock.now()) for number in order}
            if all(expected[number] == ending for number, ending in enumerate(endings)):
                alike.append(model)
        left = [model for model in alike if model.state(task) == state]
        if not left and asking:  # the asker may have gone on; what became of the task itself says which order it was
            left = [model for model in alike if model.state(task)[0] == state[0]] or alike
        require(left, f"{racing} raced on {task} and ended as {endings}, leaving {state}: no order gives that")
        self.model: Model = left[0]

    # --- questions ---

    @rule(task=_tasks, key=strategies.keys())
    def ask_and_wait(self, task: str, key: str) -> None:
        """The work asks its client, and waits."""
        self._call(self._ask, task, key)

    async def _ask(self, task: str, key: str) -> None:
        backend = self.backend
        question = QueuedMessage.request(key, "elicitation/create", {"message": key})
        in_one_write = "questions" in self.capabilities
        live = self.model.refusal(task, None) is None
        kind, got = self.model.apply(task, Ask(question) if in_one_write else Enqueue(question), self.clock.now())
        asker = await self._begin(
            f"the asker of {key}", task, lambda: backend.ask(backend.store, backend.queue, task, question)
        )
        if kind == "raised":
            ending = await asker.wait(self.patience)
            require(type(ending).__name__ == got, f"asking ended as {ending!r} and must end as {got}")
        elif not got:
            require(await asker.wait(self.patience) is None, "a used key was used again (L5)")
        elif not live:
            ending = await asker.wait(self.patience)
            require(isinstance(ending, Exception), f"asking for an ended task ended as {ending!r}")
            self.model.mail.pop(task, None)
        else:
            before = self.model.tasks[task]["revision"] - (1 if in_one_write else 0)
            record = None
            with anyio.move_on_after(self.patience):
                record = await backend.store.wait_for_update(task, after=before)
            if record is None:
                raise AssertionError(f"a question was asked and {task} did not change")
            require(record.status == "input_required", f"a question is open and the task is {record.status} (L5)")
            self.askers[task, key] = asker
            await self._adopt(task)

    @rule(task=_tasks, answers=st.dictionaries(strategies.keys(), strategies.answers(), min_size=1, max_size=3))
    def answer_questions(self, task: str, answers: dict[str, Answer]) -> None:
        """The client answers; the status must be true afterwards."""
        now = self.clock.now()
        if "questions" in self.capabilities:
            expected: Collection[str] = self.model.apply(task, AnswerAll(tuple(answers.items())), now)[1]
        else:
            expected = {key for key, one in answers.items() if self.model.apply(task, AnswerOne(key, one), now)[1]}
        backend = self.backend

        async def answer() -> None:
            taken = await backend.answer(backend.store, backend.queue, task, answers)
            require(taken == expected, f"the answers {sorted(taken)} were taken and must be {sorted(expected)} (L5)")
            await self._release_askers()
            if taken:
                await self._adopt(task, settled=True)

        self._call(answer)

    @precondition(lambda self: "questions" in self.capabilities)
    @rule(task=_tasks, question=strategies.questions(), fence=_FENCES)
    def ask(self, task: str, question: QueuedMessage, fence: str) -> None:
        """A question is asked by something that does not wait for its answer here."""
        self._do(task, Ask(question, self._fence(task, fence)))

    @precondition(lambda self: self.askers)
    @rule(data=st.data())
    def give_up_asking(self, data: st.DataObject) -> None:
        """The work is cancelled while it waits for an answer."""
        task, key = data.draw(st.sampled_from(sorted(self.askers)))

        async def give_up() -> None:
            await self.askers.pop((task, key)).give_up(self.patience)
            await self._withdrawn(task, key)

        self._call(give_up)

    # --- leases and steps ---

    @precondition(lambda self: "leases" in self.capabilities)
    @rule(task=_tasks, worker=_WORKERS, lease_ms=_LEASES)
    def claim(self, task: str, worker: str, lease_ms: int) -> None:
        """A worker takes the task over, or it is put back for one."""
        self._do(task, Claim(worker, lease_ms))

    @precondition(lambda self: "leases" in self.capabilities)
    @rule(task=_tasks, worker=st.sampled_from(["one", "two"]), lease_ms=_LEASES)
    def renew(self, task: str, worker: str, lease_ms: int) -> None:
        """A worker renews its lease."""
        self._do(task, Renew(worker, lease_ms))

    @precondition(lambda self: "leases" in self.capabilities)
    @rule(task=_tasks, worker=st.sampled_from(["one", "two"]), lapse=st.booleans())
    def drop(self, task: str, worker: str, lapse: bool) -> None:
        """A worker releases its lease."""
        self._do(task, Drop(worker, lapse))

    @precondition(lambda self: "journal" in self.capabilities)
    @rule(task=_tasks, key=strategies.keys(), value=strategies.json_values().map(dump_json), fence=_FENCES)
    def record_step(self, task: str, key: str, value: str, fence: str) -> None:
        """The work records the result of a step."""
        self._do(task, Step(key, value, self._fence(task, fence) or Fence("one", 1)))

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
        """Wait for a message."""
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

    @precondition(lambda self: "search" in self.capabilities)
    @rule(wanted=strategies.filters(), newest_first=st.booleans(), limit=st.integers(1, 3))
    def search(self, wanted: TaskFilter, newest_first: bool, limit: int) -> None:
        """All tasks that match, in order."""
        expected = [task for task in self.model.order if _matches(self.model, task, wanted)]
        if newest_first:
            expected.reverse()

        async def walk() -> None:
            store: Any = self.backend.store
            seen: list[str] = []
            cursor = None
            while True:
                page = await store.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=limit)
                seen += [record.task_id for record in page.records]
                require(len(page.records) <= limit, f"a page of {limit} has {len(page.records)} tasks")
                for record in page.records:
                    require(record == self.model.record(record.task_id), f"the search shows {record}")
                cursor = page.next_cursor
                if cursor is None or len(seen) > len(expected):
                    break
            require(seen == expected, f"the search for {wanted} shows {seen} and must show {expected}")

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
        self.process: int = 1 - self.process
