"""`Outbox`: gives the tasks of a runtime to its dispatcher, and offers again what that did not take."""

from __future__ import annotations

import logging
from functools import partial
from typing import Final

import anyio

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.dispatch import Dispatch, StoreDispatcher, TaskDispatcher
from mcp_task_runtime.core.group import IsolatedGroup
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.core.undelivered import Undelivered
from mcp_task_runtime.core.worker_leases import WorkerLeases

__all__ = ["Outbox"]

logger: logging.Logger = logging.getLogger(__name__)

SUBMIT_SECONDS: Final = 5.0
"""How long a dispatcher may take for one task. One that is cut short may get the task twice."""
_AT_ONCE: Final = 32
"""Tasks that are with a dispatcher at once. It may send them together; more would spend their time waiting for its
connections or threads."""
_MOST_WAITING: Final = 1_000
"""Tasks that wait for their turn with the dispatcher. One more is offered later, like one that was not taken."""


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
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            return False
        return await self._group.is_stray(anyio.CancelScope())  # no scope but those around it counts

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
