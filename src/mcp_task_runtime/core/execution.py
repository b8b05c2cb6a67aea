"""`Execution`: one run of work, from an ordinary call to a task.

The table says which state may follow which; `Execution` is the only code that moves a run. It knows no runtime: what
it needs of one is `WorkHost`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator, Hashable, Mapping
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.core import audit
from mcp_task_runtime.core.clock import Clock, sleep_by
from mcp_task_runtime.core.reruns import may_run_again
from mcp_task_runtime.core.resolver import Resolver
from mcp_task_runtime.core.types import Fence, TaskRecord, TaskSpec
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.errors import InvalidTransitionError, TaskNotFoundError

__all__ = ["STEPS", "Execution", "ExecutionState", "WorkHost"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")


class ExecutionState(str, Enum):  # str: its hash is that of a text
    """Where a run of work stands."""

    CALL = "an ordinary call: its caller waits for its result"
    RESERVED = "it has a task that no client has heard of; for its caller it is an ordinary call"
    PUBLISHED = "it is a task: its caller has the record, and its outcome ends the task"
    DETACHED = "it is a task that something outside ends, unless the work raises"
    FINISHED_OWN = "it has ended its own task, and goes on"
    HANDED_OVER = "another process runs the work: its outcome here is dropped"
    DONE = "the work has returned or raised"


_S = ExecutionState

STEPS: Final[Mapping[ExecutionState, frozenset[ExecutionState]]] = {
    _S.CALL: frozenset({_S.RESERVED, _S.DONE}),
    _S.RESERVED: frozenset({_S.PUBLISHED, _S.DONE}),
    _S.PUBLISHED: frozenset({_S.DETACHED, _S.FINISHED_OWN, _S.HANDED_OVER, _S.DONE}),
    _S.DETACHED: frozenset({_S.FINISHED_OWN, _S.HANDED_OVER, _S.DONE}),
    _S.FINISHED_OWN: frozenset({_S.PUBLISHED, _S.DETACHED, _S.DONE}),  # back, where the end was not written
    _S.HANDED_OVER: frozenset({_S.DONE}),
    _S.DONE: frozenset(),
}
"""From each state, those that may follow."""


class WorkHost(Protocol):
    """What a run needs of the runtime that it is part of."""

    @property
    def clock(self) -> Clock:
        """The store's clock."""
        ...

    async def make_task(self, spec: TaskSpec, execution: Execution[Any]) -> tuple[TaskRecord, bool]:
        """Create a task for this run, or return the one that its call joins; return also whether it is new."""
        ...

    async def discard_task(self, record: TaskRecord) -> None:
        """Delete a task that no client has heard of. It does not raise."""
        ...

    async def cancel_task(self, record: TaskRecord) -> None:
        """End a task as `cancelled`, as soon as the store takes it. It does not raise."""
        ...

    def own_task_ended(self, record: TaskRecord) -> None:
        """Note that a run has ended its own task."""
        ...

    def task_published(self, execution: Execution[Any], record: TaskRecord) -> None:
        """Note that a run, an ordinary call until now, is a task for its caller."""
        ...

    def lease_lost(self, record: TaskRecord) -> None:
        """Note that a run was stopped because it has lost its lease."""
        ...

    def start_timer(self, function: Callable[[], Awaitable[None]], scope: anyio.CancelScope) -> None:
        """Run a function concurrently with the work."""
        ...

    async def acquire_slot(self, execution: Execution[Any]) -> None:
        """Wait for one of the `max_running` slots; a run that holds one has it."""
        ...

    def release_slot(self, execution: Execution[Any]) -> None:
        """Release the run's slot, if it holds one."""
        ...


class Execution(Generic[T]):
    """One run of work. It is an ordinary call until it becomes a task.

    Attributes:
        record: The task as it was when the run became one, or was claimed; `None` for a call.
        scope: The cancel scope that the work runs in.
        resource_scope: Whose resources the work uses; see `TaskRuntime.drain`.
        queue: Where the work waits for a slot, in addition to those of all work.
        is_queued: Whether the task's status message says that it waits.
        has_begun: Whether the work itself has begun; before, it waits for a slot.
        failure: The unexpected exception that the returned result stands for, as noted with `note_failure`.
    """

    __slots__ = (
        "_caller",
        "_done",
        "_former",
        "_host",
        "_is_stopped",
        "_making",
        "_on_cancel",
        "_rerun_delay",
        "_state",
        "_timer",
        "_unwatch",
        "_writing",
        "failure",
        "has_begun",
        "is_queued",
        "queue",
        "record",
        "resource_scope",
        "scope",
    )

    def __init__(self, host: WorkHost, *, resource_scope: Hashable = None, record: TaskRecord | None = None) -> None:
        """Make a run: an ordinary call, or that of a task which clients know.

        Args:
            host: The runtime that it is part of.
            resource_scope: Whose resources the work uses.
            record: The task; `None` for a call.
        """
        self.record: TaskRecord | None = record
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.resource_scope: Hashable = resource_scope
        self.queue: WorkQueue | None = None
        self.is_queued: bool = False
        self.has_begun: bool = False
        self.failure: BaseException | None = None
        self._host = host
        self._state = ExecutionState.CALL if record is None else ExecutionState.PUBLISHED
        self._former = self._state  # before the work was done
        self._caller: Resolver[T | TaskRecord] | None = None
        self._making: anyio.Event | None = None
        self._done: anyio.Event | None = None
        self._timer: anyio.CancelScope | None = None
        self._unwatch: Callable[[], None] | None = None
        self._writing: anyio.CancelScope | None = None
        self._on_cancel: Callable[[], None] | None = None
        self._rerun_delay: timedelta | None = None
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<Execution {self._state.name.lower()}>"

    @property
    def state(self) -> ExecutionState:
        """Where the run stands; `STEPS` says what may follow."""
        return self._state

    @property
    def is_published(self) -> bool:
        """Whether this run is a task for its caller; before that it is an ordinary call."""
        return self._former not in (ExecutionState.CALL, ExecutionState.RESERVED)

    @property
    def is_stopped(self) -> bool:
        """Whether the work was told to stop. A runtime that is cancelled itself cancels work without that."""
        return self._is_stopped

    @property
    def is_handed_over(self) -> bool:
        """Whether the work was stopped here so that another process runs it again."""
        return self._former is ExecutionState.HANDED_OVER

    @property
    def fence(self) -> Fence | None:
        """What the writes of this run carry (law L12).

        `None` without a lease, and for work that has returned and left its task open: its lease is gone.
        """
        if self.record is None or self.record.lease is None:
            return None
        if self._state is ExecutionState.DONE and self._former is ExecutionState.DETACHED:
            return None
        return self.record.lease.fence

    def current_fence(self) -> Fence | None:
        """Return `fence`, for what outlives the run."""
        return self.fence

    def hands_over(self) -> bool:
        """Return `is_handed_over`, for what outlives the run."""
        return self.is_handed_over

    @property
    def rerun_delay(self) -> timedelta | None:
        """After which delay the work runs again, instead of ending the task; `None` if it does not."""
        return self._rerun_delay

    # -- for the work, and the adapter around it

    async def reserve(self, spec: TaskSpec) -> TaskRecord:
        """Make a task for this run, once, without telling the caller; later calls return the same.

        Work that ends before `publish` is an ordinary call for its caller, and leaves no task. Waits for a slot.
        Cancelled before the task exists, there is none.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            StoreError: The store could not create it.
        """
        record = await self._make(spec)
        await self.acquire_slot()
        return record

    async def begin(self, spec: TaskSpec, *, wait_for_slot: bool = True) -> TaskRecord:
        """Make this run a task, once, and publish it; later calls return the same.

        From then on it outlives its caller, who gets the task's record. Cancelled before the task exists,
        there is none; cancelled meanwhile, it ends as `cancelled`.

        Args:
            spec: What the task is made with.
            wait_for_slot: Whether to wait for one of the `max_running` slots, as the work itself must.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            StoreError: The store could not create it.
        """
        record = await self._make(spec)
        self.publish()
        if wait_for_slot:
            await self.acquire_slot()
        return record

    def publish(self) -> None:
        """Return the task's record to the caller, once; without a task, or when the work is over, nothing happens."""
        if self._state is ExecutionState.RESERVED:
            assert self.record is not None
            self._move(ExecutionState.PUBLISHED)
            self._host.task_published(self, self.record)
            self._settle(self.record)

    def promote_after(self, seconds: float, spec: TaskSpec) -> None:
        """Begin a task if the run has not ended in this many seconds. A later call replaces an earlier one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = anyio.CancelScope()
        self._host.start_timer(partial(self._promote, seconds, spec), self._timer)

    def detach(self) -> None:
        """Leave the task open when the work returns: something outside ends it by its id (`TaskRuntime.finish`).

        Work that raises still ends the task as `failed`. A shutdown leaves a detached task open; its TTL still ends it.

        Raises:
            RuntimeError: This run is not a task.
        """
        if self.record is None:
            raise RuntimeError("Only a task can be detached; this work is an ordinary call")
        self.publish()
        if self._state is ExecutionState.PUBLISHED:
            self._move(ExecutionState.DETACHED)

    @contextmanager
    def finishing(self) -> Generator[None, None, None]:
        """Context manager for work that ends its own task and keeps running.

        If the block raises, the task is not ended; if it raises because the task has already ended, the work is
        stopped.
        """
        former = self._state
        moves = former in (ExecutionState.PUBLISHED, ExecutionState.DETACHED)
        if moves:
            self._move(ExecutionState.FINISHED_OWN)
        try:
            yield
        except BaseException as error:
            if moves and self._state is ExecutionState.FINISHED_OWN:
                self._move(former)
            if isinstance(error, InvalidTransitionError | TaskNotFoundError):
                self.stop()
            raise
        if self._state is ExecutionState.FINISHED_OWN and self.record is not None:
            self._host.own_task_ended(self.record)

    def run_again(self, delay: timedelta) -> bool:
        """Have the work run again in a while, when it has returned or raised, instead of ending the task.

        Returns:
            Whether it will: not for a call, for work that may not rerun or has had its last attempt, nor where the
            store has no leases.
        """
        record = self.record
        if record is None or not may_run_again(record):
            return False
        if self._state not in (ExecutionState.PUBLISHED, ExecutionState.DETACHED):
            return False
        self._rerun_delay = delay
        return True

    def release_slot(self) -> None:
        """Let other work run while this one waits (`TaskSettings.max_running`)."""
        self._host.release_slot(self)

    async def acquire_slot(self) -> None:
        """Acquire one of the `max_running` slots; released when the work ends or by `release_slot`."""
        await self._host.acquire_slot(self)

    def note_failure(self, error: BaseException) -> None:
        """Note the unexpected exception that an error result stands for, for the log; the first one counts."""
        if self.failure is None:
            self.failure = error

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call a function when the work is to stop, just before its scope is cancelled (law L9)."""
        self._on_cancel = callback

    # -- for the host

    def expect_caller(self) -> Resolver[T | TaskRecord]:
        """Return what the run's caller waits for: the task's record, or what the call returned or raised."""
        self._caller = Resolver()
        return self._caller

    def adopt(self, record: TaskRecord) -> None:
        """Make the run that of a task which its caller has, before it starts."""
        self.record = record
        self._move(ExecutionState.RESERVED)
        self._move(ExecutionState.PUBLISHED)

    def watch_with(self, unwatch: Callable[[], None]) -> None:
        """Keep the function that stops the watch for ends by other processes, until the run closes."""
        self._unwatch = unwatch

    def take_watch(self) -> Callable[[], None] | None:
        """Return that function: the watch goes on after the run."""
        unwatch, self._unwatch = self._unwatch, None
        return unwatch

    def hand_over(self) -> bool:
        """Leave the work to another process, if this run's outcome still counts; return whether it did."""
        if ExecutionState.HANDED_OVER not in STEPS[self._state]:
            return False
        self._move(ExecutionState.HANDED_OVER)
        return True

    def lose(self) -> None:
        """Stop the work and drop its outcome: the run has lost its lease (law L12)."""
        if self.record is not None and self.hand_over():
            audit.handed_over(self.record, "its lease is lost")
            self._host.lease_lost(self.record)
        self.stop()

    def stop(self) -> None:
        """Tell the work to stop and cancel its scope; nothing happens when it is over or has ended its own task."""
        if self._state in (ExecutionState.DONE, ExecutionState.FINISHED_OWN):
            return
        callback, self._on_cancel = self._on_cancel, None  # once is enough
        try:
            if callback is not None:
                callback()
        except Exception:
            logger.exception("A callback of on_cancel raised an exception")
        finally:
            self._cancel()

    def interrupt(self) -> None:
        """Stop the work although it has ended its own task: the runtime closes."""
        if self._state is ExecutionState.FINISHED_OWN:
            self._cancel()
        else:
            self.stop()

    def end(self) -> ExecutionState:
        """Note that the work has returned or raised; return the state in which it did."""
        self._move(ExecutionState.DONE)
        return self._former

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """Shield a block that writes how the work ended; `give_up` cancels it."""
        with anyio.CancelScope(shield=True) as self._writing:
            yield

    def give_up(self) -> None:
        """Stop waiting for a store that does not take the outcome."""
        if self._writing is not None:
            self._writing.cancel()

    def close(self, value: T | None = None, error: BaseException | None = None) -> None:
        """Release what belongs to the run, and its caller with a value or an error: it is over."""
        self._on_cancel = None
        if self._timer is not None:
            self._timer.cancel()
        if self._unwatch is not None:
            self._unwatch()
        if self._caller is not None:
            if error is not None:
                self._caller.set_exception(error)
                self._caller = None
            else:
                self._settle(value)  # type: ignore[arg-type]  # the work has returned it
        if self._done is not None:
            self._done.set()

    async def wait_closed(self) -> None:
        """Wait until the run is closed. Call this only for a run that is open."""
        if self._done is None:
            self._done = anyio.Event()
        await self._done.wait()

    def _cancel(self) -> None:
        self._is_stopped = True
        self.scope.cancel()

    async def _make(self, spec: TaskSpec) -> TaskRecord:
        while self._making is not None:
            await self._making.wait()
        if self.record is None:
            await anyio.lowlevel.checkpoint_if_cancelled()
            self._making = anyio.Event()
            try:
                with anyio.CancelScope(shield=True):
                    record, is_new = await self._host.make_task(spec, self)
                    if is_new and self._state is ExecutionState.DONE:  # it ended as an ordinary call meanwhile
                        await self._host.discard_task(record)
                        return record
                    if is_new:
                        await self._take(record)
                    else:  # the work of its task is done elsewhere
                        self._settle(record)
                        self.stop()
            finally:
                self._making.set()
                self._making = None
            await anyio.lowlevel.checkpoint_if_cancelled()
        if self.record is None:
            raise RuntimeError("The call has joined the task of an earlier one")
        return self.record

    async def _take(self, record: TaskRecord) -> None:
        self.record = record
        self._move(ExecutionState.RESERVED)
        if self._is_stopped:
            self._move(ExecutionState.PUBLISHED)
            self._host.task_published(self, record)
            await self._host.cancel_task(record)

    async def _promote(self, seconds: float, spec: TaskSpec) -> None:
        await sleep_by(self._host.clock, timedelta(seconds=seconds))
        await self.begin(spec, wait_for_slot=False)

    def _move(self, state: ExecutionState) -> None:
        if state not in STEPS[self._state]:
            raise RuntimeError(f"A run of work that is {self._state.name} cannot become {state.name}")
        self._state = state
        if state is not ExecutionState.DONE:
            self._former = state

    def _settle(self, value: T | TaskRecord) -> None:
        if self._caller is not None:
            self._caller.set_result(value)
            self._caller = None
