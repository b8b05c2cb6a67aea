"""`TaskRuntime`: store, queue and runner together; the one object an adapter holds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import anyio
import anyio.lowlevel
from typing_extensions import Self

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.context import outcome_of_exception
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.endings import TaskEndings, queue_of
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.json import JSONValue
from mcp_task_runtime.core.lease_keeper import LeaseKeeper
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import CLEANUP_SECONDS, answer_questions
from mcp_task_runtime.core.rate_limit import RateLimit
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.statistics import RuntimeStatistics
from mcp_task_runtime.core.store import TaskLeases, TaskSharing, TaskStore
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import NewTask, Outcome, Task, TaskPage, TaskRecord, TaskSpec
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import (
    INTERNAL_ERROR,
    InvalidTransitionError,
    LimitExceededError,
    ProtocolError,
    StoreError,
    StoreUnavailableError,
    TaskNotFoundError,
    TaskRuntimeError,
)

__all__ = ["Rerun", "TaskRuntime"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_LATEST_MARGIN = timedelta(seconds=1)
_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 5.0
_FINISH_SECONDS = 60.0
_NOT_OPEN = "The runtime is not open: enter it with `async with`, or have the server enter its lifespan"
_INTERRUPTED = Outcome.failed("The work was interrupted")


Rerun: TypeAlias = "Callable[[Execution[Outcome]], Awaitable[Outcome]]"
"""Work that is run again; see `TaskRuntime.rerun_with`."""


@runtime_checkable
class _BringsQueue(Protocol):
    @property
    def message_queue(self) -> TaskMessageQueue: ...


class TaskRuntime:
    """Runs work as tasks, and serves them to whoever may see them.

    A process-level async context manager: open it once for the server's life, never once for a
    connection. Closing it gives running work `TaskSettings.shutdown_grace` seconds to end, then cancels
    it; its tasks end as `failed`. It may be opened again afterwards.

    Every method that takes `owner` raises `TaskNotFoundError` for a task of another owner, exactly as
    for one that does not exist (law L10).
    """

    def __init__(
        self,
        store: TaskStore,
        queue: TaskMessageQueue | None = None,
        *,
        settings: TaskSettings | None = None,
    ) -> None:
        """Make a runtime. It closes neither store nor queue.

        Args:
            store: Where tasks are kept.
            queue: Where questions are kept; the store's own when `None`.
            settings: Limits and defaults.

        Raises:
            ValueError: `queue` is `None` and the store brings none; or an argument is no such thing.
        """
        if isinstance(store, type) or not isinstance(store, TaskStore):
            raise ValueError("store must be a TaskStore; open_store(url) makes one of a URL")
        if settings is not None and not isinstance(settings, TaskSettings):
            raise ValueError("settings must be TaskSettings")
        if queue is None:
            if not isinstance(store, _BringsQueue):
                raise ValueError("queue is required with a store that has no message_queue of its own")
            queue = store.message_queue
        self.store = store
        self.queue = queue
        self.settings: TaskSettings = TaskSettings() if settings is None else settings
        self._runner = IsolatedGroup()
        own = queue_of(store)
        self._reader = TaskReader(store, queue, is_own_queue=queue is own)
        self.followers = TaskFollowers(store, self._runner, self._reader.view)
        self._endings = TaskEndings(store, queue)
        self._endings.on_end(lambda task_id, record: None if record is None else self.followers.feed(record))
        self._calls: set[Execution[Any]] = set()
        self._running: dict[str, Execution[Any]] = {}
        self._deadlines = DeadlineHeap()
        self._deadline_changed = anyio.Event()
        self._watched_until: datetime | None = None
        self._live: dict[str, str | None] = {}
        self._live_of: Counter[str | None] = Counter()
        self._outside: dict[str, Callable[[], None]] = {}
        """Who watches tasks that are open although their work has returned, where others may end them."""
        self._turns: anyio.CapacityLimiter | None = None
        most = self.settings.max_polls_per_second
        self._polls = None if most is None else RateLimit("polls of one task a second", most)
        self._reruns: dict[str, Rerun] = {}
        self._keeper = (
            LeaseKeeper(
                store,
                store.clock,
                lease_ms=self.settings.lease_ms,
                running=self._leased,
                stop=self._lose,
                adopt=self._adopt,
                adopts=self._adopts,
            )
            if isinstance(store, TaskLeases) and (not isinstance(store, TaskSharing) or store.is_shared)
            else None
        )
        self._stack: AsyncExitStack | None = None
        self._accepts = False

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("The runtime is already open")
        self.followers.reset()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._runner)
            duties = [self._watch_deadlines] if self._keeper is None else [self._watch_deadlines, self._keeper.run]
            for duty in duties:
                scope = anyio.CancelScope()
                stack.callback(scope.cancel)
                self._runner.start(duty, scope)
            self._stack = stack.pop_all()
        if self.settings.max_running is not None:
            self._turns = anyio.CapacityLimiter(self.settings.max_running)
        self._accepts = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stack = self._stack
        assert stack is not None
        try:
            await self.wind_down()
        finally:
            self._outside.clear()
            self.followers.reset()
            try:
                await stack.aclose()
            finally:
                self._stack = None

    async def run(
        self,
        work: Callable[[Execution[T]], Awaitable[T]],
        *,
        outcome_of: Callable[[T], Outcome] = Outcome.completed,
        home: Hashable = None,
    ) -> T | TaskRecord:
        """Run work apart from the caller until it has ended or has become a task.

        The work decides: calling `Execution.begin` makes it a task. Work that ends before is an ordinary
        call, and what it returned or raised comes back here. A caller that is cancelled while it waits
        here cancels the work, and its task if there is one by then.

        Args:
            work: What to run; it gets its `Execution`.
            outcome_of: Turns what the work returns into the task's outcome.
            home: Whose resources the work uses; see `drain`.

        Returns:
            What the work returned, or the record of the task it became.

        Raises:
            RuntimeError: The runtime is not open.
        """
        execution: Execution[T] = Execution(self, home)
        settled = execution._settled = anyio.Event()
        self._launch(execution, work, outcome_of)
        try:
            await settled.wait()
        except BaseException:
            execution._stop()
            if execution.record is not None:  # nobody will ever get its handle
                with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                    await self._conclude(execution.record.task_id, Outcome.cancelled())
            raise
        if execution.record is not None:
            return execution.record
        if execution._error is not None:
            raise execution._error
        return execution._value  # type: ignore[return-value]  # the work has returned it

    async def start(
        self,
        work: Callable[[Execution[T]], Awaitable[T]],
        new: TaskSpec | None = None,
        *,
        outcome_of: Callable[[T], Outcome] = Outcome.completed,
        home: Hashable = None,
    ) -> TaskRecord:
        """Create a task and run work for it; return as soon as the task exists (wire rule C4).

        Cancelled, there is either no task, or one whose work runs.

        Args:
            work: What to run; it gets its `Execution`.
            new: What the task is made with.
            outcome_of: Turns what the work returns into the task's outcome.
            home: Whose resources the work uses; see `drain`.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            RuntimeError: The runtime is not open.
            StoreError: The store could not create the task.
        """
        if not self._accepts:
            raise RuntimeError(_NOT_OPEN)
        execution: Execution[T] = Execution(self, home)
        execution._announced = True
        with anyio.CancelScope(shield=True):
            execution.record = await self._create(TaskSpec() if new is None else new, execution)
            if not self._accepts:  # closed meanwhile
                self._forget(execution)
                await self._conclude(execution.record.task_id, Outcome.cancelled())
        self._launch(execution, work, outcome_of)
        assert execution.record is not None
        return execution.record

    def rerun_with(self, name: str, rerun: Rerun) -> None:
        """Say how to run the work of a tool again whose process was lost (law L12).

        Only tasks made with `TaskRequest.rerunnable` are run again, and only with a store that implements
        `TaskLeases`; any process that has the tool may do it.

        Args:
            name: `TaskRequest.name` of the tasks.
            rerun: The work; its `Execution` has the task's record, and it returns the outcome.
        """
        self._reruns[name] = rerun

    def _launch(
        self,
        execution: Execution[T],
        work: Callable[[Execution[T]], Awaitable[T]],
        outcome_of: Callable[[T], Outcome],
    ) -> None:
        if not self._accepts:
            raise RuntimeError(_NOT_OPEN)
        self._runner.start(partial(self._execute, execution, work, outcome_of), execution._scope)
        self._calls.add(execution)

    async def get(self, task_id: str, *, owner: str | None) -> TaskView:
        """Return the task with its open questions.

        Raises:
            TaskNotFoundError: No such task, for this owner.
        """
        record = await self._owned(task_id, owner)
        if self._keeper is not None and await self._keeper.take_over(record):
            record = await self._owned(task_id, owner)
        if is_terminal(record.status):
            return TaskView(record)
        return TaskView(record, await self.queue.outstanding(task_id))

    async def poll(self, task_id: str, *, owner: str | None) -> TaskView:
        """Return what `get` does, to a client that asks again and again.

        Raises:
            LimitExceededError: It asks more often than `TaskSettings.max_polls_per_second`.
            TaskNotFoundError: No such task, for this owner.
        """
        if self._polls is not None:  # by owner, too: nobody else must see that a task is polled (law L10)
            self._polls.admit((owner, task_id), self.store.clock.now())
        view = await self.get(task_id, owner=owner)
        if is_terminal(view.record.status):
            audit.retrieved(task_id, owner)
        return view

    async def result(self, task_id: str, *, owner: str | None) -> Outcome:
        """Wait until the task has ended; return how.

        Raises:
            TaskNotFoundError: No such task, for this owner; or it expired meanwhile.
        """
        record = await self._owned(task_id, owner)
        with self.followers.follow(task_id, after=record.revision) as follower:
            while record.outcome is None:
                record = await follower.changed()
            return record.outcome

    async def list(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of the owner's tasks; see `TaskStore.list_tasks`."""
        return await self.store.list_tasks(owner=owner, cursor=cursor, limit=limit)

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
            owner: Who answers.
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
                result = results[key]
                accepted[key] = Answer.result(result) if check is None else check(question, result)
        if accepted:
            await answer_questions(self.store, self.queue, task_id, accepted)

    async def cancel(self, task_id: str, *, owner: str | None) -> TaskRecord:
        """End the task as `cancelled`, then stop its work (law L9).

        The work is cancelled at its next await and runs its clean-up; what it returns is dropped.

        Raises:
            TaskNotFoundError: No such task, for this owner.
            InvalidTransitionError: The task has already ended (an error only in wire rule B8).
            StoreError: As for `finish`.
        """
        await self._owned(task_id, owner)
        return await self.finish(task_id, Outcome.cancelled())

    async def finish(self, task_id: str, outcome: Outcome) -> TaskRecord:
        """End a task by its id, from anywhere; its work, if it still runs, is stopped.

        For the server's own use: it asks for no owner. Cancelled, it happened in full or not at all.

        Raises:
            TaskNotFoundError: No such task.
            InvalidTransitionError: The task has already ended; nothing changed.
            StoreUnavailableError: The store did not answer in time; the task may have ended.
        """
        with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
            record = await self._endings.finish(task_id, outcome)
            self._make_room(task_id)
            self._deadlines.discard(task_id)
            self._stop(task_id)
            return record
        raise StoreUnavailableError("The store did not answer in time")

    def statistics(self) -> RuntimeStatistics:
        """Return what the runtime is doing now; its cost is linear in the running tasks."""
        return RuntimeStatistics(
            calls=len(self._calls),
            running=frozenset(self._running),
            live_tasks=sum(self._live_of.values()),
            owners=len(self._live_of),
            deadlines=len(self._deadlines),
            detached=len(self._outside),
            worker=None if self._keeper is None else self._keeper.worker,
        )

    async def wind_down(self) -> None:
        """Do what closing does to the work: accept no more, and drain. Tasks can still be read and answered."""
        self._accepts = False
        await self.drain()

    async def drain(self, *, home: Hashable | None = None) -> None:
        """Let running work end within the grace period, then stop it; its tasks end as `failed`.

        Args:
            home: Only work that was started with this home; `None` for all.
        """
        executions = [e for e in self._calls if home is None or e._home == home]
        if not executions:
            return
        try:
            clock = self.store.clock
            with clock.move_on_at(clock.now() + timedelta(seconds=self.settings.shutdown_grace)):
                await self._wait_for(executions)
        finally:
            await self._interrupt(executions)
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._wait_for(executions)

    async def _owned(self, task_id: str, owner: str | None) -> TaskRecord:
        record = await self.store.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        if record.owner != owner:
            audit.refused(record, owner)
            raise TaskNotFoundError(task_id)
        return record

    async def _create(self, new: TaskSpec, execution: Execution[Any]) -> TaskRecord:
        settings = self.settings
        limit = settings.max_tasks_per_owner
        if limit is not None and self._live_of[new.owner] >= limit:
            raise LimitExceededError("tasks at once", limit)
        self._live_of[new.owner] += 1  # before the store is asked: others may be on their way too
        try:
            with anyio.fail_after(_FINISH_SECONDS):
                record = await self.store.create_task(
                    NewTask(
                        ttl_ms=settings.clamp_ttl(settings.default_ttl_ms if new.ttl_ms is None else new.ttl_ms),
                        poll_interval_ms=settings.poll_interval_ms
                        if new.poll_interval_ms is None
                        else new.poll_interval_ms,
                        owner=new.owner,
                        retention_ms=settings.retention_ms,
                        request=new.request,
                        client_capabilities_json=new.client_capabilities_json,
                        worker=None if self._keeper is None else self._keeper.worker,
                        lease_ms=settings.lease_ms,
                    )
                )
        except BaseException as error:
            self._count_down(new.owner)
            if isinstance(error, TimeoutError):
                raise StoreUnavailableError("The store did not answer in time") from error
            raise
        self._track(execution, record)
        audit.created(record)
        return record

    def _track(self, execution: Execution[Any], record: TaskRecord) -> None:
        self._running[record.task_id] = execution
        self._live[record.task_id] = record.owner
        self._set_deadline(record.task)
        if not isinstance(self.store, TaskSharing) or self.store.is_shared:  # another process may end the task
            execution._watch = self.followers.watch(
                record.task_id, partial(self._on_change, execution, record.task_id), after=record.revision
            )

    def _make_room(self, task_id: str) -> None:
        """Count a task no more, as soon as a client may see that it has ended: its work may still clean up."""
        if task_id in self._live:
            self._count_down(self._live.pop(task_id))
        watch = self._outside.pop(task_id, None)
        if watch is not None:
            watch()

    def _count_down(self, owner: str | None) -> None:
        self._live_of[owner] -= 1
        if not self._live_of[owner]:
            del self._live_of[owner]

    def _give_turn(self, execution: Execution[Any]) -> None:
        if self._turns is not None and execution._has_turn:
            execution._has_turn = False
            self._turns.release_on_behalf_of(execution)

    def _on_change(self, execution: Execution[Any], task_id: str, record: TaskRecord | None) -> None:
        """Stop work whose task another process ended (law L9)."""
        if record is None or is_terminal(record.status):
            self._make_room(task_id)
            if not execution.is_ended:
                execution._stop()

    def _stop(self, task_id: str) -> None:
        execution = self._running.get(task_id)
        if execution is not None:
            execution._stop()

    def _leased(self) -> Collection[str]:
        return [task_id for task_id, execution in self._running.items() if not execution.is_ended]

    def _lose(self, task_id: str) -> None:
        """Stop work whose lease is another's by now, or gone with its task: how it ends concerns nobody any more."""
        execution = self._running.get(task_id)
        if execution is not None:
            execution.is_released = True
            execution._stop()

    def _adopts(self, record: TaskRecord) -> bool:
        """Whether a lost task is for this process: it must not run here, late as its lease may be."""
        if record.task_id in self._running:
            return False
        return not record.request.rerunnable or (self._accepts and record.request.name in self._reruns)

    async def _adopt(self, record: TaskRecord) -> None:
        """Take over a task whose process was lost: run it again, or say what happened."""
        rerun = self._reruns.get(record.request.name) if record.request.rerunnable else None
        if rerun is None:
            logger.warning("A task's worker was lost")
            await self._conclude(record.task_id, Outcome.failed("The worker that ran this task was lost"))
        elif self._accepts:
            logger.warning("A task's worker was lost; its work runs again")
            execution: Execution[Outcome] = Execution(self, None)
            execution.record = record
            execution._announced = True
            self._live_of[record.owner] += 1
            self._track(execution, record)
            self._launch(execution, rerun, _same_outcome)

    async def _execute(
        self,
        execution: Execution[T],
        work: Callable[[Execution[T]], Awaitable[T]],
        outcome_of: Callable[[T], Outcome],
    ) -> None:
        outcome: Outcome | None = None
        try:
            if execution.record is not None:
                await execution.take_turn()
            value = execution._value = await work(execution)
            if execution._announced and not execution.is_detached:
                outcome = outcome_of(value)
        except (anyio.get_cancelled_exc_class(), KeyboardInterrupt):
            execution._error = ProtocolError(INTERNAL_ERROR, "The call was interrupted")
            outcome = None if execution.is_detached else _INTERRUPTED
            raise
        except BaseException as error:
            execution._error = error
            if execution._announced:
                ended = execution._scope.cancel_called and _says_ended(error)
                outcome = _INTERRUPTED if ended else outcome_of_exception(error)
        finally:
            execution._is_over = True
            try:
                if execution.record is not None:
                    with anyio.move_on_after(_FINISH_SECONDS, shield=True):
                        await self._end(execution, execution.record, outcome)
            finally:  # whatever the store raises
                self._forget(execution)

    async def _end(self, execution: Execution[Any], record: TaskRecord, outcome: Outcome | None) -> None:
        cut_short = execution._scope.cancel_called
        if not execution._announced:  # its caller waits for the result itself
            execution.record = None
            await self._discard(record)
        elif execution.is_released:
            await self._release(record.task_id)
        elif self._keeper is not None and outcome is _INTERRUPTED and record.request.rerunnable and not cut_short:
            await self._release(record.task_id)  # the event loop itself ends: it may run again elsewhere
        elif outcome is not None:
            await self._conclude(record.task_id, outcome)
        elif record.task_id in self._live:  # something outside ends it
            if execution._watch is not None:
                self._outside[record.task_id], execution._watch = execution._watch, None
            execution.is_left_open = True
            if self._keeper is not None:
                await self._keeper.forget(record.task_id)

    async def _discard(self, record: TaskRecord) -> None:
        """Leave nothing of a task that nobody has heard of."""
        self._running.pop(record.task_id, None)
        self._make_room(record.task_id)
        self._deadlines.discard(record.task_id)
        await self.store.delete_task(record.task_id)
        await self.queue.clear(record.task_id)

    async def _conclude(self, task_id: str, outcome: Outcome) -> None:
        """Record how work ended, unless its task has ended already: a late outcome is dropped (law L9)."""
        delay = _RETRY_SECONDS
        while True:
            try:
                audit.ended(await self.store.finish_task(task_id, outcome))
            except (InvalidTransitionError, TaskNotFoundError):
                logger.debug("Dropped the outcome of work whose task had ended")
            except StoreUnavailableError:
                logger.warning("The store is unavailable; an outcome waits to be written")
                await anyio.sleep(delay)
                delay = min(2 * delay, _LONGEST_RETRY_SECONDS)
                continue
            except TaskRuntimeError:
                logger.exception("An outcome could not be written")
                return
            self._make_room(task_id)
            self._deadlines.discard(task_id)
            await self.queue.clear(task_id)
            return

    def _forget(self, execution: Execution[Any]) -> None:
        record = execution.record
        if record is not None:
            self._running.pop(record.task_id, None)
            if not execution.is_left_open:
                self._make_room(record.task_id)
                self._deadlines.discard(record.task_id)
        self._give_turn(execution)
        self._calls.discard(execution)
        execution._close()

    async def _interrupt(self, executions: Iterable[Execution[Any]]) -> None:
        """Stop work that the shutdown did not wait for, and say so in its tasks."""
        outcome = Outcome.failed("The server was shut down before the task ended")
        remaining = [execution for execution in executions if execution in self._calls]
        try:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                async with anyio.create_task_group() as group:
                    for execution in remaining:
                        if execution.record is None or execution.is_detached:
                            continue
                        if self._keeper is not None and execution.record.request.rerunnable:
                            execution.is_released = True  # its lease goes when its work has ended: never two at once
                        else:
                            group.start_soon(self._cut_short, execution.record.task_id, outcome)
        finally:
            for execution in remaining:
                execution._stop()

    async def _release(self, task_id: str) -> None:
        """Let another process run the work of a task again, unless the task is not this one's any more."""
        assert self._keeper is not None
        try:
            await self._keeper.release(task_id)
        except StoreError:
            logger.warning("A lease could not be released; it will lapse", exc_info=True)

    async def _cut_short(self, task_id: str, outcome: Outcome) -> None:
        try:
            await self.finish(task_id, outcome)
        except (InvalidTransitionError, TaskNotFoundError):
            logger.debug("A task had ended before it was cut short")
        except Exception:  # whatever a store raises
            logger.exception("The end of a task could not be written")
        finally:
            self._make_room(task_id)
            self._stop(task_id)

    async def _wait_for(self, executions: Iterable[Execution[Any]]) -> None:
        for execution in executions:
            if execution in self._calls:
                if execution._ended is None:
                    execution._ended = anyio.Event()
                await execution._ended.wait()

    def _set_deadline(self, task: Task) -> None:
        """Note when running work must stop: shortly before its task expires, so that its end is stored (law L7)."""
        expires_at = task.expires_at
        if expires_at is None:
            return
        deadline = expires_at - min(_LATEST_MARGIN, (expires_at - task.created_at) / 3)
        self._deadlines.set(task.task_id, deadline)
        if self._watched_until is None or deadline < self._watched_until:
            self._deadline_changed.set()

    async def _watch_deadlines(self) -> None:
        clock = self.store.clock
        while True:
            while (task_id := self._deadlines.pop_due(clock.now())) is not None:
                self._runner.start(partial(self._expire, task_id), anyio.CancelScope())
            self._deadline_changed = anyio.Event()
            self._watched_until = self._deadlines.next_due()
            with clock.move_on_at(self._watched_until):
                await self._deadline_changed.wait()

    async def _expire(self, task_id: str) -> None:
        await self._cut_short(task_id, Outcome.failed("The task did not end within its time to live"))


def _says_ended(error: BaseException) -> bool:
    """Whether all that went wrong is that the task has ended, which stops its work anyway."""
    if isinstance(inner := getattr(error, "exceptions", None), tuple):
        return all(map(_says_ended, inner))
    return isinstance(error, InvalidTransitionError | TaskNotFoundError | anyio.get_cancelled_exc_class())


def _same_outcome(outcome: Outcome) -> Outcome:
    return outcome
