"""`Workers`: runs work, writes how it ended, and stops it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Container, Hashable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar

import anyio

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.endings import TaskEndings
from mcp_task_runtime.core.execution import Execution, ExecutionState
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.live_tasks import LiveTasks
from mcp_task_runtime.core.open_tasks import OpenTasks
from mcp_task_runtime.core.outbox import Outbox
from mcp_task_runtime.core.postponed import PostponedRuns
from mcp_task_runtime.core.reader import TaskReader
from mcp_task_runtime.core.reruns import may_run_again
from mcp_task_runtime.core.run_end import INTERRUPTED, RunEnd
from mcp_task_runtime.core.run_observer import RunObserver
from mcp_task_runtime.core.run_slots import RunSlots
from mcp_task_runtime.core.status_messages import QUEUED
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS, log_loss
from mcp_task_runtime.core.task_maker import TaskMaker
from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskSpec
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.core.worker_leases import WorkerLeases
from mcp_task_runtime.errors import InvalidTransitionError, StoreError, StoreUnavailableError, TaskNotFoundError

__all__ = ["Workers", "same_outcome"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHUT_DOWN: Final = Outcome.failed("The server was shut down before the task ended")
_EXPIRED: Final = Outcome.failed("The task did not end within its time to live")
_DEADLINE_READS: Final = 10
_DEADLINE_PAUSE_SECONDS: Final = 1.0
_NOT_OPEN: Final = "The runtime is not open: enter it with `async with`, or have the server enter its lifespan"


class Workers:
    """The work of one process. It is the `WorkHost` of its executions.

    Attributes:
        is_accepting: Whether new work is taken.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        group: IsolatedGroup,
        reader: TaskReader,
        maker: TaskMaker,
        endings: TaskEndings,
        followers: TaskFollowers,
        live: LiveTasks,
        slots: RunSlots,
        leases: WorkerLeases | None,
        outbox: Outbox | None,
        is_shared: bool,
        observer: RunObserver | None,
    ) -> None:
        """Make workers without work.

        Args:
            clock: The store's clock.
            group: Runs everything.
            reader: Reads tasks.
            maker: Makes tasks.
            endings: Ends tasks; the workers listen to it.
            followers: Shows what other processes do to tasks.
            live: The live tasks.
            slots: The slots of the runs; makes their tasks.
            leases: The leases of this process, if the store has leases.
            outbox: The way to other processes, for work that runs there.
            is_shared: Whether other processes may end the tasks that run here.
            observer: Hears of tasks and runs.
        """
        self.is_accepting: bool = False
        self._clock = clock
        self._group = group
        self._reader = reader
        self._maker = maker
        self._endings = endings
        self._followers = followers
        self._live = live
        self._slots = slots
        self._leases = leases
        self._outbox = outbox
        self._is_shared = is_shared
        self._observer = observer
        self._runs: set[Execution[Any]] = set()
        self._running: dict[str, Execution[Any]] = {}
        self._reasons: dict[str, str] = {}
        self._open = OpenTasks(followers, self._note_end)
        self._postponed: PostponedRuns | None = None
        endings.on_end(self._on_end)

    @property
    def calls(self) -> int:
        """Number of runs, ordinary calls included."""
        return len(self._runs)

    @property
    def running(self) -> frozenset[str]:
        """The ids of tasks whose work runs here, or whose outcome waits to be written."""
        return frozenset(self._running)

    @property
    def detached(self) -> int:
        """Number of open tasks whose work does not run here, watched for an end by another process."""
        return len(self._open)

    def has(self, task_id: str) -> bool:
        """Return whether a task's work runs here."""
        return task_id in self._running

    def run_of(self, record: TaskRecord) -> Execution[Any] | None:
        """Return the run here that holds the lease in a record of its task, or `None`."""
        run = self._running.get(record.task_id)
        return run if run is not None and record.lease is not None and run.fence == record.lease.fence else None

    def runs_later(self, task_id: str) -> bool:
        """Return whether a task's work runs here again after a delay."""
        return self._postponed is not None and task_id in self._postponed

    def leased(self) -> Mapping[str, Execution[Any]]:
        """Return the runs whose leases must be renewed, by the ids of their tasks."""
        postponed: Container[str] = () if self._postponed is None else self._postponed
        return {
            task_id: run
            for task_id, run in self._running.items()
            if run.state is not ExecutionState.FINISHED_OWN and task_id not in postponed
        }

    @property
    def postponed(self) -> int:
        """Number of tasks whose work runs again after a delay."""
        return 0 if self._postponed is None else len(self._postponed)

    def postpone_with(self, postponed: PostponedRuns) -> None:
        """Set what work waits in that runs again after a delay; without it no work does."""
        self._postponed = postponed

    # -- starting

    def launch(
        self,
        execution: Execution[T],
        work: Callable[[Execution[T]], Awaitable[T]],
        outcome_of: Callable[[T], Outcome],
        *,
        needs_slot: bool = True,
    ) -> None:
        """Start a run of work, with the caller's context variables.

        Raises:
            RuntimeError: The runtime is not open.
        """
        if not self.is_accepting:
            raise RuntimeError(_NOT_OPEN)
        self._group.start(partial(self._run, execution, work, outcome_of, needs_slot), execution.scope)
        self._runs.add(execution)

    async def submit(
        self,
        spec: TaskSpec,
        work: Callable[[Execution[T]], Awaitable[T]],
        outcome_of: Callable[[T], Outcome],
        resource_scope: Hashable,
    ) -> TaskRecord:
        """Create a task and start its work. Cancelled, there is either no task, or one whose work runs.

        Raises:
            RuntimeError: The runtime is not open, or closed meanwhile.
        """
        if not self.is_accepting:
            raise RuntimeError(_NOT_OPEN)
        execution: Execution[T] = Execution(self, resource_scope=resource_scope)
        record, is_new = await self._slots.make_task(spec, execution, shield=True)
        if not is_new:
            return record
        if self._observer is not None:
            self._observer.created(record)
        if not self.is_accepting:  # closed meanwhile
            self._slots.close(execution)
            with anyio.CancelScope(shield=True):
                await self._finish_logged(record.task_id, Outcome.cancelled())
        execution.adopt(record)
        self.launch(execution, work, outcome_of)
        self._track(execution, record)
        return record

    async def dispatch(self, spec: TaskSpec, outbox: Outbox) -> TaskRecord:
        """Create a task that waits for a worker. Cancelled, there is either no task, or one that waits.

        Raises:
            RuntimeError: The runtime is not open.
        """
        if not self.is_accepting:
            raise RuntimeError(_NOT_OPEN)
        record, is_new = await self._maker.make(spec, waits_ms=outbox.grace_ms, is_queued=True, shield=True)
        if not is_new:
            return record
        if self._observer is not None:
            self._observer.created(record)
        outbox.post(record)
        self._open.watch(record)  # this process counts the task, and ends it at its deadline
        if record.task_id not in self._live:  # it has ended already
            self._note_end(record.task_id)
        return record

    def resume(
        self,
        record: TaskRecord,
        work: Callable[[Execution[Outcome]], Awaitable[Outcome]],
        *,
        reason: str | None = None,
        queue: WorkQueue | None = None,
        needs_slot: bool = True,
    ) -> Execution[Outcome]:
        """Start the work of a task that this process has claimed.

        Args:
            record: The task.
            work: Returns its outcome.
            reason: Why the runtime ends the task, for the log.
            queue: Where the work waits for a slot, however many wait there.
            needs_slot: Whether the work waits for a slot.

        Raises:
            RuntimeError: The runtime is not open.
        """
        execution: Execution[Outcome] = Execution(self, record=record)
        execution.queue = queue
        execution.is_queued = record.task.status_message == QUEUED
        self.launch(execution, work, same_outcome, needs_slot=needs_slot)
        self._live.add(record)
        self._track(execution, record)
        if reason is not None:
            self._reasons[record.task_id] = reason
        return execution

    # -- stopping

    def stop(self, task_id: str) -> None:
        """Stop a task's work, if it runs here."""
        run = self._running.get(task_id)
        if run is not None:
            run.stop()

    async def leave(self, task_id: str) -> None:
        """Stop work whose lease was lost, drop its outcome, and wait until it is over."""
        run = self._running.get(task_id)
        if run is not None:
            run.lose()
            await self.join(run)

    def expire(self, task_id: str) -> None:
        """End a task whose deadline has come, unless its TTL was extended."""
        self._group.start(partial(self._expire, task_id), anyio.CancelScope())

    async def hand_over(self, record: TaskRecord) -> None:
        """Let another process run the work of a task that this one has claimed."""
        if self._leases is not None:
            audit.handed_over(record, "it does not run here")
            await self._release(record)

    async def abandon(self, execution: Execution[Any]) -> None:
        """Stop a run whose caller is gone, and cancel its task, whose handle no client will get."""
        execution.stop()
        if execution.record is not None:
            await self._finish_logged(execution.record.task_id, Outcome.cancelled())

    async def settle(self, task_id: str) -> None:
        """Wait, not for long, until a lost task that ends here without its work has ended."""
        run = self._running.get(task_id)
        if run is not None and task_id in self._reasons:
            with anyio.move_on_after(CLEANUP_SECONDS):
                await self.join(run)

    async def join(self, execution: Execution[Any]) -> None:
        """Wait until a run has ended and its outcome is written."""
        if execution in self._runs:
            await execution.wait_closed()

    async def recall(self, execution: Execution[Any]) -> None:
        """Stop a run and wait until it has ended; another process may run its work again."""
        execution.hand_over()
        execution.stop()
        with anyio.CancelScope(shield=True):
            await self.join(execution)

    async def drain(self, grace: float, resource_scope: Hashable | None = None) -> None:
        """Let work end within a grace period, then stop it.

        Args:
            grace: Seconds that the work has.
            resource_scope: Only work that uses these resources; `None` for all.
        """
        if not self.is_accepting and self._leases is None and self._postponed is not None:
            for task_id in self._postponed.task_ids:  # no other process will run them
                await self._finish_logged(task_id, _SHUT_DOWN, "the server was shut down")
        runs = [run for run in self._runs if resource_scope is None or run.resource_scope == resource_scope]
        if not runs:
            return
        try:
            with self._clock.move_on_at(self._clock.now() + timedelta(seconds=grace)):
                await self._wait(runs)
        finally:
            await self._interrupt(runs)
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._wait(runs)

    def give_up(self) -> None:
        """Drop outcomes that still wait to be written, and the watches of open tasks: the runtime closes."""
        for run in self._runs:
            run.give_up()
        if self._postponed is not None:
            for task_id in self._postponed.task_ids:
                self._live.discard(task_id)
            self._postponed.clear()
        self._open.clear()

    async def _wait(self, runs: Iterable[Execution[Any]]) -> None:
        for run in runs:
            await self.join(run)

    async def _interrupt(self, runs: Iterable[Execution[Any]]) -> None:
        """Stop work that a shutdown did not wait for: hand it over, or end its task."""
        remaining = [run for run in runs if run in self._runs]
        try:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                async with anyio.create_task_group() as group:
                    for run in remaining:
                        if run.record is None or run.state is not ExecutionState.PUBLISHED:
                            continue
                        if self._may_hand_over(run, run.record):
                            run.hand_over()  # its lease goes when its work has ended: never two at once
                            if not run.has_begun:
                                run.interrupt()  # before others release the slot that it waits for
                            audit.handed_over(run.record, "the server shuts down")
                        else:
                            reason = "the server was shut down"
                            group.start_soon(self._finish_logged, run.record.task_id, _SHUT_DOWN, reason)
        finally:
            for run in remaining:
                run.interrupt()

    async def _expire(self, task_id: str) -> None:
        record = await self._read_at_deadline(task_id)
        if record is None or not self._live.extend(record):
            await self._finish_logged(task_id, _EXPIRED, audit.EXPIRED)

    async def _read_at_deadline(self, task_id: str) -> TaskRecord | None:
        """Return a task whose TTL may have been extended; an outage is waited out for about a minute at most."""
        for _ in range(_DEADLINE_READS):
            try:
                with anyio.move_on_after(CLEANUP_SECONDS):
                    return await self._reader.get(task_id)
            except StoreUnavailableError:
                logger.debug("A task could not be read at its deadline; trying again", exc_info=True)
            except StoreError:
                logger.debug("A task could not be read at its deadline", exc_info=True)
                break
            if not self.is_accepting:
                break
            await anyio.sleep(_DEADLINE_PAUSE_SECONDS)
        return None

    async def _finish_logged(self, task_id: str, outcome: Outcome, reason: str | None = None) -> None:
        """End a task at once if that is possible; stop its work in any case."""
        run = self._running.get(task_id)
        try:
            await self._endings.finish(task_id, outcome, reason=reason)
        except InvalidTransitionError:
            logger.debug("A task had ended before it was cut short")
        except TaskNotFoundError:
            if outcome is _EXPIRED and run is not None and run.record is not None:
                audit.expired(run.record)
        except Exception as error:
            log_loss(logger, "The end of a task could not be written", error)
        finally:
            self._live.discard(task_id)
            self.stop(task_id)

    # -- what executions need

    @property
    def clock(self) -> Clock:
        """The store's clock."""
        return self._clock

    async def make_task(self, spec: TaskSpec, execution: Execution[Any]) -> tuple[TaskRecord, bool]:
        """Create a task for a run; see `WorkHost`."""
        record, is_new = await self._slots.make_task(spec, execution)
        if not is_new:
            return record, False
        self._track(execution, record)
        return record, True

    async def discard_task(self, record: TaskRecord) -> None:
        """Delete a task that no client has heard of; see `WorkHost`."""
        await self._endings.discard(record)
        self._maker.forget(record)
        run = self._running.pop(record.task_id, None)
        if run is not None and (unwatch := run.take_watch()) is not None:
            unwatch()

    async def cancel_task(self, record: TaskRecord) -> None:
        """End a task as `cancelled`; see `WorkHost`."""
        await self._finish_logged(record.task_id, Outcome.cancelled())

    def own_task_ended(self, record: TaskRecord) -> None:
        """Note that a run has ended its own task; see `WorkHost`."""
        self._live.discard(record.task_id)

    def task_published(self, execution: Execution[Any], record: TaskRecord) -> None:
        """Note that a run is a task for its caller; see `WorkHost`."""
        if self._observer is not None:
            self._observer.created(record)
            self._observer.started(execution, record)

    def lease_lost(self, record: TaskRecord) -> None:
        """Note that a run has lost its lease; see `WorkHost`."""
        if self._observer is not None:
            self._observer.lease_lost(record)

    def start_timer(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Run a function concurrently with the work; see `WorkHost`."""
        self._group.start(function, scope)

    async def acquire_slot(self, execution: Execution[Any]) -> None:
        """Wait for a slot; see `WorkHost`."""
        await self._slots.acquire(execution)

    def release_slot(self, execution: Execution[Any]) -> None:
        """Release a slot; see `WorkHost`."""
        self._slots.release(execution)

    # -- a run

    async def _run(
        self,
        execution: Execution[T],
        work: Callable[[Execution[T]], Awaitable[T]],
        outcome_of: Callable[[T], Outcome],
        needs_slot: bool,
    ) -> None:
        end: RunEnd[T] = RunEnd()
        try:
            if needs_slot and execution.record is not None:
                if not self._slots.has_all(execution):
                    await execution.acquire_slot()
                if self._observer is not None:
                    self._observer.started(execution, execution.record)
            execution.has_begun = True
            running = work(execution)
            del work  # what it holds may be needed only at the beginning
            end.value = await running
        except anyio.get_cancelled_exc_class() as error:
            if await self._group.is_stray(execution.scope):
                end.error = RuntimeError("The work was cancelled by code that does not own it")
                end.error.__cause__ = error
            else:
                end.interrupt()
                raise
        except KeyboardInterrupt:
            end.interrupt()
            raise
        except BaseException as error:
            end.error = error
        finally:
            await self._close(execution, end, outcome_of)

    async def _close(self, execution: Execution[T], end: RunEnd[T], outcome_of: Callable[[T], Outcome]) -> None:
        former = execution.end()
        stays_open = False
        try:
            stays_open = await self._write_end(execution, former, end, outcome_of)
        except Exception:
            logger.exception("The end of work could not be handled")
        finally:
            if self._observer is not None:
                self._observer.stopped(execution, end)
            self._forget(execution, stays_open)
            execution.close(end.value, end.error)

    async def _write_end(
        self, execution: Execution[T], former: ExecutionState, end: RunEnd[T], outcome_of: Callable[[T], Outcome]
    ) -> bool:
        """Write how work ended; return whether its task stays open."""
        record = execution.record
        if record is None or former is ExecutionState.FINISHED_OWN:
            return False
        usual = former is ExecutionState.PUBLISHED and not record.request.rerunnable
        other = None if usual else self._instead(execution, former, record, end)
        if other is not None:
            with execution.writing():
                return bool(await other)
        fence = None if record.lease is None else record.lease.fence
        outcome = end.decide(execution, record, outcome_of)
        reason = "it was interrupted" if outcome is INTERRUPTED else self._reasons.get(record.task_id)
        await self._endings.finish_eventually(
            record, outcome, fence=fence, reason=reason, error=end.unexpected, waiting=execution.writing
        )
        return False

    def _instead(
        self, execution: Execution[Any], former: ExecutionState, record: TaskRecord, end: RunEnd[Any]
    ) -> Awaitable[bool | None] | None:
        """Return what is done with the task of a run instead of ending it, if it does not end."""
        if former is ExecutionState.RESERVED:
            return self.discard_task(record)
        if former is ExecutionState.HANDED_OVER:
            return self._release(record, is_lost=execution.has_begun and not record.request.rerunnable)
        if self._is_lost(execution, record, end):
            return self._release(record, is_lost=True)
        if self._postponed is not None and self._runs_again(execution, record, end):
            return self._postpone(execution, record, end, self._postponed)
        if former is ExecutionState.DETACHED and (end.error is None or end.is_interrupted):
            return self._leave_open(execution, record)
        return None

    def _is_lost(self, execution: Execution[Any], record: TaskRecord, end: RunEnd[Any]) -> bool:
        """Return whether work counts as lost with its worker, and not as failed: it may run again (law L12)."""
        if not may_run_again(record) or self._leases is None or execution.is_stopped:
            return False
        if end.is_interrupted:  # the event loop itself ends
            return True
        if not end.is_outage:
            return False
        audit.handed_over(record, "the store was unavailable")
        return True

    def _runs_again(self, execution: Execution[Any], record: TaskRecord, end: RunEnd[Any]) -> bool:
        """Return whether work asked to run again and can: it was not stopped, and its task lives for so long."""
        delay = execution.rerun_delay
        if delay is None or end.is_interrupted or execution.is_stopped:
            return False
        if not self.is_accepting and self._leases is None:  # no other process will run it
            return False
        return self._live.has_time(record.task_id, delay)

    async def _postpone(
        self, execution: Execution[Any], record: TaskRecord, end: RunEnd[Any], postponed: PostponedRuns
    ) -> bool:
        delay = execution.rerun_delay
        assert delay is not None
        # Watched from now on: an end by this process or another one stops the wait.
        unwatch = execution.take_watch()
        if unwatch is not None:
            self._open.keep(record.task_id, unwatch)
        if await postponed.postpone(record, delay, execution.failure or end.error):
            if record.task_id in self._live:
                return True
            postponed.discard(record.task_id)
        self._note_end(record.task_id)
        return False

    async def _leave_open(self, execution: Execution[Any], record: TaskRecord) -> bool:
        if record.task_id not in self._live:  # something outside was faster than the work
            return False
        unwatch = execution.take_watch()
        if unwatch is not None:
            self._open.keep(record.task_id, unwatch)
        if self._leases is not None:
            await self._leases.forget(record.task_id)
        return record.task_id in self._live

    async def _release(self, record: TaskRecord, *, is_lost: bool = False) -> None:
        """Let another process run the work of a task: a worker, where it is for workers."""
        if self._outbox is not None and self._outbox.has(record.request.name):
            await self._outbox.release(record, is_lost=is_lost)
        elif self._leases is not None:
            await self._leases.release(record.task_id, is_lost=is_lost)

    def _may_hand_over(self, execution: Execution[Any], record: TaskRecord) -> bool:
        """Return whether another process may run the work of a task that stops here: again, or for the first time."""
        if self._leases is None:
            return False
        if record.request.rerunnable:
            return True
        return not execution.has_begun and self._outbox is not None and self._outbox.has(record.request.name)

    def _track(self, execution: Execution[Any], record: TaskRecord) -> None:
        self._running[record.task_id] = execution
        if self._is_shared:
            on_end = partial(self._ended_elsewhere, execution, record.task_id)
            execution.watch_with(self._followers.watch_end(record.task_id, on_end, after=record.revision))

    def _forget(self, execution: Execution[Any], stays_open: bool) -> None:
        record = execution.record
        if record is not None:
            task_id = record.task_id
            if self._running.get(task_id) is execution:
                del self._running[task_id]
                self._reasons.pop(task_id, None)
            if not stays_open and task_id not in self._open:
                self._live.discard(task_id)
        self._slots.close(execution)
        self._runs.discard(execution)

    # -- ends

    def _ended_elsewhere(self, execution: Execution[Any], task_id: str) -> None:
        """Stop work whose task another process ended (law L9)."""
        self._note_end(task_id)
        execution.stop()

    def _on_end(self, task_id: str, record: TaskRecord | None) -> None:
        self._note_end(task_id)
        self.stop(task_id)

    def _note_end(self, task_id: str) -> None:
        """Stop counting a task as live as soon as clients may see its end."""
        self._live.discard(task_id)
        if self._postponed is not None:
            self._postponed.discard(task_id)
        if self._outbox is not None:
            self._outbox.drop(task_id)
        self._open.discard(task_id)


def same_outcome(outcome: Outcome) -> Outcome:
    """Return the outcome of work that returns one."""
    return outcome
