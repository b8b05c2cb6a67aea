"""`TaskRuntime`: puts the rooms of the core together; the one object that an adapter holds."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Hashable, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import anyio
from typing_extensions import Self

from mcp_task_runtime.core.abilities import implements, is_queue, is_store, queue_of
from mcp_task_runtime.core.backlog import Backlog
from mcp_task_runtime.core.change_hook import ChangeCallback, ChangeHook
from mcp_task_runtime.core.claims import TaskClaims
from mcp_task_runtime.core.dispatch import TaskDispatcher
from mcp_task_runtime.core.doubtful_claims import DoubtfulClaims
from mcp_task_runtime.core.endings import TaskEndings
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.json import JSONValue
from mcp_task_runtime.core.lease_keeper import LeaseKeeper
from mcp_task_runtime.core.live_tasks import LiveTasks
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.observed_store import observed
from mcp_task_runtime.core.observer import IsolatedObserver, TaskObserver
from mcp_task_runtime.core.outbox import Outbox
from mcp_task_runtime.core.polls import Polls
from mcp_task_runtime.core.postponed import PostponedRuns
from mcp_task_runtime.core.questions import answer_questions
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.resumption import NamedWork, Resumption
from mcp_task_runtime.core.run_observer import RunObserver
from mcp_task_runtime.core.run_slots import RunSlots
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.slots import WorkSlots
from mcp_task_runtime.core.statistics import RuntimeStatistics
from mcp_task_runtime.core.status_messages import CANCELLED, says_where_work_stands
from mcp_task_runtime.core.store import TaskConnecting, TaskLeases, TaskSearch, TaskSharing, TaskStore
from mcp_task_runtime.core.store_calls import store_errors
from mcp_task_runtime.core.stored_tasks import StoredTasks
from mcp_task_runtime.core.task_maker import TaskMaker
from mcp_task_runtime.core.types import Outcome, TaskPage, TaskRecord, TaskSpec
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.core.work_loop import WorkLoop
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.core.workers import Workers, same_outcome
from mcp_task_runtime.errors import StoreError

__all__ = ["TaskRuntime"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")


class TaskRuntime:
    """Runs work as tasks, and serves the tasks to their owners.

    A process-level async context manager: open it once for the server's life, not once for a connection. Closing it
    gives running work `TaskSettings.shutdown_grace` seconds to end, then cancels it: rerunnable work is handed over
    to another process, other tasks end as `failed`. It can be opened again afterwards.

    Every method that takes `owner` raises `TaskNotFoundError` for a task of another owner, exactly as
    for an unknown one (law L10).

    Attributes:
        store: Where tasks are kept.
        queue: Where questions are kept.
        settings: Limits and defaults.
        followers: Changes of tasks, for adapters; see `core.followers`.
    """

    def __init__(
        self,
        store: TaskStore,
        queue: TaskMessageQueue | None = None,
        *,
        settings: TaskSettings | None = None,
        dispatcher: TaskDispatcher | None = None,
        observer: TaskObserver | None = None,
        on_change: ChangeCallback | None = None,
    ) -> None:
        """Make a runtime. It closes neither store nor queue.

        Args:
            store: Where tasks are kept.
            queue: Where questions are kept; the store's own when `None`.
            settings: Limits and defaults.
            dispatcher: Carries tasks to worker processes; see `register`. `None`: all work runs here.
            observer: Hears of tasks, runs and calls of the store; see `core.observer`.
            on_change: Called with each new status that this process gives a task; see `ChangeHook`.

        Raises:
            ValueError: No queue was given and the store has none, or an argument has the wrong type, or there is a
                dispatcher and no other process shares the store.
        """
        store, queue = _checked(store, queue, settings)
        self._hook = None if on_change is None else ChangeHook(on_change)
        observers = [each for each in (observer, self._hook) if each is not None]
        self._observer = IsolatedObserver(*observers) if observers else None
        if self._observer is not None:
            store, queue = observed(store, queue, self._observer)
        self.store: TaskStore = store
        self.queue: TaskMessageQueue = queue
        self.settings: TaskSettings = TaskSettings() if settings is None else settings
        self._group = IsolatedGroup()
        self._reader = TaskReader(store, queue, is_own_queue=queue is queue_of(store))
        self.followers: TaskFollowers = TaskFollowers(store, self._group, self._reader.view)
        self._endings = TaskEndings(store, queue, max_bytes=self.settings.max_payload_bytes)
        self._live = LiveTasks(store.clock, self.settings.max_tasks_per_owner)
        self._stored = StoredTasks(
            store.clock,
            max_tasks=self.settings.max_stored_tasks_per_owner,
            max_bytes=self.settings.max_stored_bytes_per_owner,
        )
        self._slots = WorkSlots(self.settings.max_running)
        self._polls = Polls(self.settings, store.clock, self._observer)
        is_shared = not isinstance(store, TaskSharing) or store.is_shared
        leases = WorkerLeases(store, self.settings.lease_ms) if isinstance(store, TaskLeases) else None
        self._leases = leases if is_shared else None  # a store that only this runtime uses shows no lost process
        self._outbox = self._outbox_of(dispatcher)
        self._workers = self._make_workers(leases, is_shared=is_shared)
        self._resumption = Resumption(self._workers, self._outbox)
        if leases is not None:
            run_again = partial(self._resumption.run_again, leases)
            self._workers.postpone_with(PostponedRuns(store, self._group, leases, run_again))
        self._keeper: LeaseKeeper | None = None
        self._claims: TaskClaims | None = None
        if self._leases is not None:
            doubtful = DoubtfulClaims(self._reader, self._leases, self._workers, self._resumption, store.clock)
            self._keeper = LeaseKeeper(self._leases, self._workers, self._resumption, doubtful, store.clock)
            self._claims = TaskClaims(self._reader, self._leases, self._keeper, self._workers, self._resumption)
        self._backlog = None if observer is None else self._backlog_of(store)
        self._stack: AsyncExitStack | None = None
        self._endings.on_end(self._note_end)

    def _make_workers(self, leases: WorkerLeases | None, *, is_shared: bool) -> Workers:
        store, clock = self.store, self.store.clock
        maker = TaskMaker(store, self.settings, self._live, self._stored, leases, self._observer, is_shared=is_shared)
        observer = None if self._observer is None else RunObserver(self._observer, clock)
        return Workers(
            clock=clock,
            group=self._group,
            reader=self._reader,
            maker=maker,
            endings=self._endings,
            followers=self.followers,
            live=self._live,
            slots=RunSlots(clock, self._slots, maker, self._reader, self._group, observer),
            leases=self._leases,
            outbox=self._outbox,
            is_shared=is_shared,
            observer=observer,
        )

    def _backlog_of(self, store: TaskStore) -> Backlog | None:
        if self._observer is None or self._outbox is None or not isinstance(store, TaskSearch):
            return None
        return Backlog(store, self.store.clock, self._observer, lease_ms=self.settings.lease_ms)

    def _outbox_of(self, dispatcher: TaskDispatcher | None) -> Outbox | None:
        if dispatcher is None:
            return None
        if not implements(dispatcher, TaskDispatcher):
            raise ValueError("dispatcher must be a TaskDispatcher, as StoreDispatcher() is")
        if self._leases is None:
            raise ValueError(
                "dispatcher needs a store that worker processes share: open_store() with a sqlite, redis or postgresql "
                "URL opens one"
            )
        return Outbox(dispatcher, self._leases, self._group, self.store.clock)

    async def __aenter__(self) -> Self:
        """Open the runtime, and connect its store where that is `TaskConnecting`.

        Raises:
            RuntimeError: It is open already.
            StoreUnavailableError: The store cannot be reached; the message names its address.
            StoreError: The store cannot be used.
        """
        await self._connect()
        if self._stack is not None:
            raise RuntimeError("The runtime is already open")
        self.followers.reset()
        self._slots.reset()
        if self._outbox is not None:
            self._outbox.reset()
        if self._hook is not None:
            self._hook.reset()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._group)
            duties: list[Callable[[], Awaitable[None]]] = [partial(self._live.run, self._workers.expire)]
            if self._keeper is not None:
                duties.append(self._keeper.run)
            if self._hook is not None:
                duties.append(partial(self._hook.run, self._group))
            if self._outbox is not None:
                duties.append(self._outbox.run)
            if self._backlog is not None:
                duties.append(self._backlog.run)
            for duty in duties:
                scope = anyio.CancelScope()
                stack.callback(scope.cancel)
                self._group.start(duty, scope)
            self._stack = stack.pop_all()
        self._workers.is_accepting = True
        return self

    async def _connect(self) -> None:
        for backend in (self.store, self.queue):
            if isinstance(backend, TaskConnecting):
                with store_errors():
                    await backend.connect()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack = self._stack
        assert stack is not None
        try:
            await self.drain(accept_new=False)
        finally:
            self._workers.give_up()
            self.followers.reset()
            if self._hook is not None:
                await self._hook.flush()
            try:
                await stack.aclose()
            finally:
                self._stack = None

    @property
    def is_open(self) -> bool:
        """Whether it takes work: it was entered, and has not begun to close."""
        return self._workers.is_accepting

    # -- work

    async def run(
        self,
        work: Callable[[Execution[T]], Awaitable[T]],
        *,
        outcome_of: Callable[[T], Outcome] = Outcome.completed,
        resource_scope: Hashable = None,
        begin_after: tuple[float, TaskSpec] | None = None,
    ) -> T | TaskRecord:
        """Run work apart from the caller until it has ended or has become a task.

        The work decides: `Execution.begin` makes it a task. Work that ends before is an ordinary
        call, and what it returned or raised is returned or raised here. A caller that is cancelled while it waits
        here cancels the work, and its task if there is one by then.

        Args:
            work: What to run; it gets its `Execution`.
            outcome_of: Turns what the work returns into the task's outcome.
            resource_scope: Whose resources the work uses; see `drain`.
            begin_after: Seconds after which work that has neither ended nor become a task becomes one, and what that
                is made with. Where it cannot be made, that is logged, and the work goes on.

        Returns:
            What the work returned, or the record of the task it became.

        Raises:
            RuntimeError: The runtime is not open.
        """
        execution: Execution[T] = Execution(self._workers, resource_scope=resource_scope)
        caller = execution.expect_caller()
        self._workers.launch(execution, work, outcome_of)
        try:
            if begin_after is not None:
                seconds, spec = begin_after
                with self.store.clock.move_on_at(self.store.clock.now() + timedelta(seconds=seconds)):
                    return await caller.wait()
                if not caller.done():
                    await self._begin(execution, spec)
            return await caller.wait()
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt):
            await self._workers.abandon(execution)
            raise

    async def _begin(self, execution: Execution[Any], spec: TaskSpec) -> None:
        """Make a call a task that has taken too long for a call; where that fails, its work may still do so."""
        try:
            await execution.begin(spec, wait_for_slot=False)
        except Exception:
            logger.exception("A call could not become a task")

    async def submit(
        self,
        spec: TaskSpec,
        work: Callable[[Execution[T]], Awaitable[T]] | None = None,
        *,
        outcome_of: Callable[[T], Outcome] = Outcome.completed,
        resource_scope: Hashable = None,
    ) -> TaskRecord:
        """Create a task and run its work in this process; return as soon as the task exists (wire rule C4).

        Cancelled, there is either no task, or one whose work runs.

        Args:
            spec: What the task is made with.
            work: What to run, with the values at hand; the work registered for `spec.request.name` when `None`.
            outcome_of: Turns what `work` returns into the task's outcome.
            resource_scope: Whose resources the work uses; see `drain`.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            LookupError: `work` is `None` and no work is registered.
            RuntimeError: The runtime is not open.
            StoreError: The store could not create the task.
        """
        if work is not None:
            return await self._workers.submit(spec, work, outcome_of, resource_scope)
        named = self._resumption.find(spec.request.name)
        if named is None:
            raise LookupError("No work is registered for this name")
        return await self._workers.submit(spec, named, same_outcome, resource_scope)

    async def dispatch(self, spec: TaskSpec) -> TaskRecord:
        """Create a task whose work a worker process runs, and submit it; return as soon as the task exists.

        It can be read, answered, cancelled and awaited here as any other. A dispatcher that fails costs time: the task
        is submitted again. Cancelled, there is either no task, or one that waits for a worker.

        Args:
            spec: What the task is made with; `spec.request.name` must be registered as dispatched.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            LookupError: The tasks of this tool run here.
            RuntimeError: The runtime is not open.
            StoreError: The store could not create the task.
        """
        if self._outbox is None or not self._outbox.has(spec.request.name):
            raise LookupError("No work is registered as dispatched for this name")
        return await self._workers.dispatch(spec, self._outbox)

    def is_dispatched(self, name: str) -> bool:
        """Return whether the tasks of a tool are for worker processes."""
        return self._outbox is not None and self._outbox.has(name)

    def register(
        self, name: str, work: NamedWork, *, queue: WorkQueue | None = None, is_dispatched: bool = False
    ) -> None:
        """Set the work for the tasks of a tool, by its name.

        `submit` runs it where it is given none, `execute` runs it for a task that waits for a worker, and a task made
        with `TaskRequest.rerunnable` whose process was lost runs it again (law L12), in any process that registered it.

        Args:
            name: `TaskRequest.name` of the tasks.
            work: The work; its `Execution` has the task's record, and it returns the outcome.
            queue: Where the work waits for a slot when `execute` runs it, or when it runs again.
            is_dispatched: Whether tasks of this tool are for workers: `dispatch` makes them, and a process that finds
                one of them lost puts it back for a worker. It needs a dispatcher.

        Raises:
            ValueError: `is_dispatched`, and there is no dispatcher; or there is another queue of the same name.
        """
        if queue is not None:
            self._slots.know(queue)
        if is_dispatched:
            if self._outbox is None:
                raise ValueError("is_dispatched needs a runtime with a dispatcher")
            self._outbox.add(name)
        self._resumption.register(name, work, queue)

    async def execute(self, task_id: str) -> bool:
        """Claim a task that no process runs, run its registered work, and wait until it has ended.

        For workers. A task can be claimed whose lease no process holds, or has lapsed. A tool's failure is an outcome,
        and raises nothing here. Cancelled, the work is stopped and the lease released: another process may claim it.

        Returns:
            Whether there was a task to claim; not where its work is not registered, or the runtime closes.

        Raises:
            RuntimeError: The store has no leases, or this runtime alone uses it.
            StoreError: The store failed.
        """
        if self._claims is None:
            raise RuntimeError("execute() needs a shared store that implements TaskLeases")
        return await self._claims.execute(task_id)

    async def work(self, *, concurrency: int = 8, names: Collection[str] | None = None) -> None:
        """Be a worker: take tasks that wait for one, and run their registered work, until cancelled.

        Any number of processes may do so on one store, which wakes them (`TaskWork`). When this is cancelled no more
        tasks are taken; what runs goes on until the runtime closes, which gives it the grace period.

        Args:
            concurrency: Most tasks that run at once; those that wait for an answer count.
            names: Only tasks of these tools; `None` for all that are registered.

        Raises:
            LookupError: No work is registered, or none for one of the names.
            RuntimeError: The store has no leases, or this runtime alone uses it, or the runtime is not open.
            ValueError: `concurrency` is below 1.
        """
        store = self.store
        if self._claims is None or not isinstance(store, TaskLeases):
            raise RuntimeError("work() needs a shared store that implements TaskLeases")
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        if not self._workers.is_accepting:
            raise RuntimeError("work() needs an open runtime")
        registered = self._claims.names
        missing = set(() if names is None else names) - set(registered)
        if missing or not registered:
            raise LookupError(f"No work is registered for {', '.join(sorted(missing)) or 'any tool'}")
        lease_ms = self.settings.lease_ms
        loop = WorkLoop(store, self._claims, store.clock, names=names, concurrency=concurrency, lease_ms=lease_ms)
        await loop.run()

    # -- reading

    async def get(self, task_id: str, *, owner: str | None, rate_limited: bool = False) -> TaskView:
        """Return the task with its open questions.

        Args:
            task_id: The task.
            owner: The principal that asks.
            rate_limited: Whether this counts as a client's poll, which is told when to come again; see
                `core.polls`.

        Raises:
            LimitExceededError: Polled more often than `TaskSettings.max_polls_per_second`.
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            StoreError: The store failed.
        """
        if rate_limited:
            self._polls.admit(task_id, owner)
        view = await self._reader.view_owned(task_id, owner)
        if self._keeper is not None:
            is_claimed = False
            try:
                with store_errors():
                    is_claimed = await self._keeper.claim_if_lost(view.record)
            except StoreError:  # the reaper tries again; this has read what it was asked for
                logger.debug("A lost task could not be claimed when it was read", exc_info=True)
            if is_claimed:
                await self._workers.settle(task_id)
                view = await self._reader.view_owned(task_id, owner)
        return self._polls.answered(view) if rate_limited else view

    def paced(self, view: TaskView) -> TaskView:
        """Return a task as a client is to see it now: with the poll interval for its age; see `core.polls`."""
        return self._polls.paced(view)

    async def result(self, task_id: str, *, owner: str | None) -> Outcome:
        """Wait until the task has ended; return how. Outages of the store are waited out.

        Raises:
            TaskNotFoundError: The task is unknown, belongs to another owner, or expired meanwhile.
            StoreError: The store failed.
        """
        record = await self._reader.get_owned(task_id, owner)
        with self.followers.follow(task_id, after=record.revision) as follower:
            while record.outcome is None:
                record = await follower.changed()
            return record.outcome

    async def list(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of the owner's tasks; see `TaskStore.list_tasks`.

        Raises:
            InvalidCursorError: The cursor was not made for this owner.
            ValueError: `limit` is below 1.
            StoreError: The store failed.
        """
        if limit < 1:
            raise ValueError("limit must be at least 1")
        with store_errors():
            return await self.store.list_tasks(owner=owner, cursor=cursor, limit=limit)

    # -- acting

    async def answer(
        self,
        task_id: str,
        results: Mapping[str, JSONValue],
        *,
        owner: str | None,
        check: Callable[[QueuedMessage, JSONValue], Answer] | None = None,
    ) -> None:
        """Answer questions by key (wire rule C8). Keys without an open question are ignored.

        Either all answers are accepted or, if `check` refuses one of them, none is and all stay open.

        Args:
            task_id: The task.
            results: What the client sent, by the key of the question.
            owner: The principal that answers.
            check: Turns what the client sent for an open question into its answer, or raises `ProtocolError`;
                `mcp_task_runtime.wire.answers.check_answer` for what comes from a client. `None` accepts
                any JSON object.

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            ProtocolError: `check` refused an answer.
            StoreUnavailableError: The store did not answer in time; some answers may have been taken.
        """
        view = await self.get(task_id, owner=owner)
        accepted: dict[str, Answer] = {}
        for question in view.questions:
            key = question.key
            if key is not None and key in results:
                value = results[key]
                accepted[key] = Answer.result(value) if check is None else check(question, value)
        if accepted:
            with store_errors():
                await answer_questions(self.store, self.queue, task_id, accepted)

    async def cancel(self, task_id: str, *, owner: str | None) -> TaskRecord:
        """End the task as `cancelled`, then stop its work (law L9).

        The work is cancelled at its next await and runs its clean-up; what it returns is dropped. The status message
        that the work has set stays; one of the runtime that it waits, or runs, is replaced.

        Raises:
            TaskNotFoundError: The task is unknown, or belongs to another owner.
            InvalidTransitionError: The task has already ended (an error only in wire rule B8).
            StoreError: As for `finish`.
        """
        record = await self._reader.get_owned(task_id, owner)
        is_stale = says_where_work_stands(record.task.status_message)
        return await self.finish(task_id, Outcome.cancelled(status_message=CANCELLED if is_stale else None))

    async def finish(self, task_id: str, outcome: Outcome) -> TaskRecord:
        """End a task by its id, from anywhere; its work, if it still runs, is stopped.

        For the server's own use: it asks for no owner. Cancelled, it happened in full or not at all.

        Raises:
            TaskNotFoundError: The task is unknown.
            InvalidTransitionError: The task has already ended; nothing changed.
            LimitExceededError: The outcome is larger than `TaskSettings.max_payload_bytes`; nothing changed.
            StoreError: The store failed, or refuses the outcome as a value; nothing changed.
            StoreUnavailableError: The store did not answer in time; the task may have ended.
        """
        record = await self._endings.finish(task_id, outcome)
        if self._outbox is not None and self._outbox.has(record.request.name) and self._group.is_open:
            self._outbox.revoke(task_id)
        return record

    async def drain(self, *, resource_scope: Hashable | None = None, accept_new: bool = True) -> None:
        """Let running work end within the grace period, then stop it: hand it over, or end its tasks as `failed`.

        Tasks can still be read and answered.

        Args:
            resource_scope: Only work that was started with this; `None` for all.
            accept_new: Whether new work is still taken; closing the runtime takes none.
        """
        if not accept_new:
            self._workers.is_accepting = False
        await self._workers.drain(self.settings.shutdown_grace, resource_scope)

    def statistics(self) -> RuntimeStatistics:
        """Return what the runtime is doing now; the cost is linear in the running and followed tasks."""
        return RuntimeStatistics(
            calls=self._workers.calls,
            running=self._workers.running,
            live_tasks=len(self._live),
            owners=self._live.owners,
            deadlines=self._live.deadlines,
            next_deadline=self._live.next_deadline,
            detached=self._workers.detached,
            postponed=self._workers.postponed,
            waiting_outcomes=self._endings.waiting,
            stored_tasks=len(self._stored),
            stored_bytes=self._stored.bytes,
            followed=len(self.followers),
            readers=self.followers.readers,
            used_slots=len(self._slots),
            queued=self._slots.queued,
            worker=None if self._leases is None else self._leases.worker,
        )

    def _note_end(self, task_id: str, record: TaskRecord | None) -> None:
        if record is not None:
            self._stored.set(record)
            self.followers.feed(record)


def _checked(
    store: TaskStore, queue: TaskMessageQueue | None, settings: TaskSettings | None
) -> tuple[TaskStore, TaskMessageQueue]:
    """Return the arguments of a runtime, with the queue that it uses.

    Raises:
        ValueError: One has the wrong type, or there is no queue.
    """
    if not is_store(store):
        raise ValueError("store must be a TaskStore; open_store(url) makes one of a URL")
    if settings is not None and not isinstance(settings, TaskSettings):
        raise ValueError("settings must be TaskSettings")
    queue = queue_of(store) if queue is None else queue
    if queue is None:
        raise ValueError("queue is required with a store that has no message_queue of its own")
    if not is_queue(queue):
        raise ValueError("queue must be a TaskMessageQueue")
    return store, queue
