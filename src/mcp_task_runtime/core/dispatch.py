"""`TaskDispatcher`: carries the work of tasks to other processes, and `Outbox`, which gives it the tasks of a runtime.

The store is the truth: it has the task, its state, questions, outcome and lease. A dispatcher is a messenger, and
carries the task's id alone. What it does not take is offered to it again until it does. What it loses costs time and no
task: a task that no worker has started after `TaskDispatcher.start_grace_ms` is submitted again, by any process of the
server.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Protocol, runtime_checkable

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.undelivered import Undelivered
from mcp_task_runtime.core.worker_leases import WorkerLeases

__all__ = ["Dispatch", "EngineDispatcher", "Outbox", "StoreDispatcher", "TaskDispatcher", "TaskExecutor"]

logger: logging.Logger = logging.getLogger(__name__)

SUBMIT_SECONDS: Final = 5.0
"""How long a dispatcher may take for one task. One that is only slow, on a busy machine, would get it twice."""
_AT_ONCE: Final = 32
"""Tasks that a dispatcher has at once. It may send them together; the time for one must not pass while it waits for
connections or threads."""
_MOST_WAITING: Final = 1_000
"""Tasks that wait for their turn with the dispatcher. One more has it after those, like one that was not taken."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A task that waits for a worker.

    Attributes:
        task_id: The task.
        name: The tool's name, to choose a queue by.
        attempt: The number of the run that is wanted, 1 for the first.
        not_after: When the task expires, as an aware UTC time; `None` for never.
    """

    task_id: str
    name: str
    attempt: int
    not_after: datetime | None

    @property
    def key(self) -> str:
        """A name for this run, for engines that drop what was submitted before."""
        return f"{self.task_id}.{self.attempt}"

    @staticmethod
    def first_key(task_id: str) -> str:
        """Return the key of the first run of a task."""
        return f"{task_id}.1"


@runtime_checkable
class TaskDispatcher(Protocol):
    """Carries tasks to worker processes, where `TaskRuntime.execute` runs them.

    Both methods are cancelled after 5 seconds, and may raise anything: that is logged, and the task is submitted
    again later. They are called concurrently, `submit` for up to 32 tasks at once. A task may be submitted twice.
    """

    @property
    def start_grace_ms(self) -> int:
        """Milliseconds after which a task that no worker has started is submitted again; 0 for never.

        With 0 the process that makes a task offers it until it is taken. What is not taken when that process ends, or
        is lost by the engine, waits until its TTL ends it.
        """
        ...

    async def submit(self, dispatch: Dispatch) -> None:
        """Have a worker call `TaskRuntime.execute` with the task's id."""
        ...

    async def revoke(self, task_id: str) -> None:
        """Drop what was submitted of a task that has ended, where that is possible; a worker would find nothing.

        It is called once, in the process that ends the task. `first_key` names what was submitted for the first run.
        """
        ...


class TaskExecutor(Protocol):
    """What a worker of an engine needs of the `Tasks` of a server."""

    async def execute(self, task_id: str) -> bool:
        """Run a task that waits for a worker; see `TaskRuntime.execute`."""
        ...

    async def wind_down(self) -> None:
        """Take no more tasks, give what runs its grace period, and hand over the rest."""
        ...


@runtime_checkable
class EngineDispatcher(TaskDispatcher, Protocol):
    """A `TaskDispatcher` whose engine has workers that run in a process of ours: `Tasks.work` is one."""

    async def work(self, tasks: TaskExecutor, *, concurrency: int, names: Collection[str] | None) -> None:
        """Run tasks that the engine delivers, until cancelled.

        Cancelled, it fetches no more, calls `tasks.wind_down`, and returns when what runs has ended.

        Args:
            tasks: Runs them.
            concurrency: Most tasks that run at once, in each queue.
            names: Only the queues of these tools; `None` for all queues.
        """
        ...


class StoreDispatcher:
    """The `TaskDispatcher` without an engine: tasks wait in the store, which wakes processes that call `work`."""

    start_grace_ms: Final = 0

    async def submit(self, dispatch: Dispatch) -> None:
        """Do nothing: the store has the task, and has woken the workers."""

    async def revoke(self, task_id: str) -> None:
        """Do nothing: a task that has ended no longer waits."""


class Outbox:
    """The tools of a runtime whose work runs elsewhere, and the way there."""

    def __init__(self, dispatcher: TaskDispatcher, leases: WorkerLeases, group: IsolatedGroup, clock: Clock) -> None:
        """Make the outbox of a runtime.

        Args:
            dispatcher: Carries the tasks.
            leases: The leases of this process.
            group: Runs what is not waited for.
            clock: Where time comes from.
        """
        self._dispatcher = dispatcher
        self._leases = leases
        self._group = group
        self._carries = getattr(type(dispatcher), "submit", None) is not StoreDispatcher.submit
        self._names: set[str] = set()
        self._is_failing = False
        self._waiting = 0
        self._room: anyio.Semaphore | None = None
        self._offered: dict[str, Dispatch] = {}
        self._undelivered = Undelivered(clock, self._offer)

    def reset(self) -> None:
        """Forget what an event loop before has left: the runtime opens."""
        self._waiting = 0
        self._room = anyio.Semaphore(_AT_ONCE)
        self._offered.clear()
        self._undelivered.reset(keeps_all=self._carries and not self.grace_ms)

    async def run(self) -> None:
        """Submit again what the dispatcher did not take, until cancelled: all of it as soon as it takes tasks again."""
        await self._undelivered.run()

    @property
    def grace_ms(self) -> int:
        """How long a task may wait for a worker before it is submitted again; 0 for as long as it takes."""
        return self._dispatcher.start_grace_ms

    def add(self, name: str) -> None:
        """Let the tasks of a tool run elsewhere."""
        self._names.add(name)

    def has(self, name: str) -> bool:
        """Return whether the tasks of a tool run elsewhere."""
        return name in self._names

    def post(self, record: TaskRecord) -> None:
        """Submit a task, without waiting for it."""
        if self._carries:  # the store itself wakes the workers otherwise
            self._group.start(partial(self.submit, record), anyio.CancelScope())

    async def submit(self, record: TaskRecord) -> None:
        """Submit a task in its turn; it is submitted again later if this fails."""
        attempt = 1 if record.lease is None else record.lease.attempt + 1
        dispatch = Dispatch(record.task_id, record.request.name, attempt, record.task.expires_at)
        if self._waiting >= _MOST_WAITING:
            self._undelivered.add(dispatch.task_id, dispatch)
            return
        self._offered[dispatch.task_id] = dispatch
        try:
            is_taken = await self._submit_in_turn(dispatch)
        finally:
            is_wanted = self._offered.get(dispatch.task_id) is dispatch
            if is_wanted:
                del self._offered[dispatch.task_id]
        if is_taken:
            self._undelivered.note_success()
        elif is_wanted:  # otherwise it has ended meanwhile, or a later run of it is on its way
            self._undelivered.add(dispatch.task_id, dispatch)

    async def _submit_in_turn(self, dispatch: Dispatch) -> bool:
        assert self._room is not None, "the runtime is not open"
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._submit(dispatch)
        finally:
            self._room.release()

    async def _offer(self, dispatch: Dispatch) -> bool:
        """Submit a task that the dispatcher did not take before; return whether it takes it now."""
        assert self._room is not None, "the runtime is not open"
        async with self._room:
            return await self._submit(dispatch)

    async def _submit(self, dispatch: Dispatch) -> bool:
        """Submit a task; return whether the dispatcher took it. An outage is logged once, and its end."""
        try:
            with anyio.fail_after(SUBMIT_SECONDS):
                await self._dispatcher.submit(dispatch)
        except BaseException as error:
            if not isinstance(error, Exception) and not await self._is_stray(error):
                raise
            if not self._is_failing:
                self._is_failing = True
                logger.warning("Tasks could not be submitted to their workers; they will be again", exc_info=True)
            return False
        if self._is_failing:
            self._is_failing = False
            logger.warning("Tasks are submitted to their workers again")
        return True

    async def _is_stray(self, error: BaseException) -> bool:
        """Return whether a dispatcher let the cancellation of something of its own pass."""
        is_cancellation = isinstance(error, anyio.get_cancelled_exc_class())
        return is_cancellation and await self._group.is_stray(
            anyio.CancelScope()
        )  # no scope but those around it counts

    def drop(self, task_id: str) -> None:
        """Offer a task no longer that was not taken: it has ended."""
        self._offered.pop(task_id, None)
        self._undelivered.discard(task_id)

    def revoke(self, task_id: str) -> None:
        """Revoke a task that has ended, without waiting for it. A failure is not worth a warning: nothing runs."""
        self._group.start(partial(self._revoke, task_id), anyio.CancelScope())

    async def put_back(self, record: TaskRecord) -> bool:
        """Put a task back whose worker was lost, or that no worker has started in time; return whether that was due.

        Of many processes one does.

        Raises:
            StoreError: The store failed.
        """
        lease = record.lease
        if lease is None or not (lease.worker or self.grace_ms):
            return False
        waiting = None
        try:
            waiting = await self._leases.put_back(record.task_id, self.grace_ms)
        except BaseException:
            if not self.grace_ms:  # it may wait now, and then it is never overdue
                self.post(record)
            raise
        if waiting is None:
            return False
        self.post(waiting)  # leases are renewed meanwhile, however long the dispatcher takes
        return True

    async def release(self, record: TaskRecord, *, is_lost: bool) -> None:
        """Put a task back whose work was stopped here. A failure is logged: its lease lapses later.

        Args:
            record: The task.
            is_lost: Whether its run counts as lost; see `WorkerLeases.release`.
        """
        waiting = await self._leases.release(record.task_id, self.grace_ms, is_lost=is_lost)
        if waiting is not None:
            await self.submit(waiting)

    async def _revoke(self, task_id: str) -> None:
        try:
            with anyio.move_on_after(SUBMIT_SECONDS):
                await self._dispatcher.revoke(task_id)
        except Exception:
            logger.debug("A task could not be revoked", exc_info=True)
