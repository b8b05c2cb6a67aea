"""`Execution`: one run of work, from an ordinary call to a task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.types import Outcome, TaskRecord, TaskSpec
from mcp_task_runtime.errors import InvalidTransitionError, TaskNotFoundError

if TYPE_CHECKING:
    from mcp_task_runtime.core.runtime import TaskRuntime

__all__ = ["Execution"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")


class Execution(Generic[T]):
    """One run of work. It is an ordinary call until it becomes a task.

    Attributes:
        record: The task as it was when the run became one, or `None` for a call.
        is_detached: Whether the task stays open when the work returns; see `detach`.
        is_ended: Whether the work has ended its own task, and goes on nevertheless.
        is_left_open: Whether the work has returned, and its task is still open.
        is_released: Whether the work was stopped here so that another process runs it again.
    """

    __slots__ = (
        "_announced",
        "_creating",
        "_ended",
        "_error",
        "_has_turn",
        "_home",
        "_is_over",
        "_on_cancel",
        "_runtime",
        "_scope",
        "_settled",
        "_timer",
        "_turn_wanted",
        "_value",
        "_watch",
        "is_detached",
        "is_ended",
        "is_left_open",
        "is_released",
        "record",
    )

    def __init__(self, runtime: TaskRuntime, home: Hashable) -> None:
        self.record: TaskRecord | None = None
        self.is_detached: bool = False
        self.is_ended: bool = False
        self.is_left_open: bool = False
        self.is_released: bool = False
        self._runtime = runtime
        self._home = home
        self._scope = anyio.CancelScope()
        self._announced = False
        self._has_turn = False
        self._turn_wanted: anyio.Event | None = None
        self._is_over = False
        self._settled: anyio.Event | None = None  # until the caller of `run` may go on
        self._creating: anyio.Event | None = None
        self._ended: anyio.Event | None = None
        self._timer: anyio.CancelScope | None = None
        self._watch: Callable[[], None] | None = None
        self._on_cancel: Callable[[], None] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None

    async def begin(self, new: TaskSpec, *, quietly: bool = False, is_work: bool = True) -> TaskRecord:
        """Make this run a task, once; later calls return the same.

        From then on it outlives its caller, who gets the task's record. Cancelled before the task exists,
        there is none; cancelled meanwhile, it ends as `cancelled`.

        Args:
            new: What the task is made with.
            quietly: Do not tell the caller yet, until `announce`. Work that ends before is an ordinary
                call for its caller, and leaves no task.
            is_work: Whether the work itself calls this; then it waits for its turn where
                `TaskSettings.max_running` asks for that.

        Raises:
            LimitExceededError: The owner has as many tasks as it may have.
            StoreError: The store could not create it.
        """
        while self._creating is not None:
            await self._creating.wait()
        if self.record is None:
            await anyio.lowlevel.checkpoint_if_cancelled()
            self._creating = anyio.Event()
            try:
                with anyio.CancelScope(shield=True):
                    record = await self._runtime._create(new, self)
                    if self._is_over:  # it ended as an ordinary call meanwhile
                        await self._runtime._discard(record)
                        return record
                    self.record = record
                    if self._scope.cancel_called:
                        self._announced = True
                        await self._runtime._conclude(record.task_id, Outcome.cancelled())
            finally:
                self._creating.set()
                self._creating = None
            await anyio.lowlevel.checkpoint_if_cancelled()
        if not quietly:
            self.announce()
        if is_work:
            await self.take_turn()
        assert self.record is not None
        return self.record

    @property
    def is_announced(self) -> bool:
        """Whether the caller was told that this run is a task: until then it is an ordinary call for it."""
        return self._announced

    def announce(self) -> None:
        """Tell the caller that this run is a task, unless it is over."""
        if self.record is not None and not self._is_over:
            self._announced = True
            self._settle()

    def promote_after(self, seconds: float, new: TaskSpec) -> None:
        """Make this run a task, and announce it, if it has not ended in so many seconds.

        A later call replaces an earlier one.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = anyio.CancelScope()
        self._runtime._runner.start(partial(self._promote, seconds, new), self._timer)

    async def _promote(self, seconds: float, new: TaskSpec) -> None:
        clock = self._runtime.store.clock
        with clock.move_on_at(clock.now() + timedelta(seconds=seconds)):
            await anyio.sleep_forever()
        await self.begin(new, is_work=False)

    def detach(self) -> None:
        """Leave the task open when the work returns: something else ends it by its id (`TaskRuntime.finish`).

        Work that raises still ends the task as `failed`. A shutdown leaves a detached task alone; its
        TTL does not.
        """
        self.is_detached = True
        self.announce()

    @contextmanager
    def ending(self) -> Generator[None, None, None]:
        """A block in which the work ends its own task, which is no reason to stop the work."""
        self.is_ended = True
        try:
            yield
        except BaseException as error:
            self.is_ended = False
            if isinstance(error, InvalidTransitionError | TaskNotFoundError):  # somebody else was first
                self._stop()
            raise

    def give_turn(self) -> None:
        """Let other work run instead of this, which is about to wait (`TaskSettings.max_running`)."""
        self._runtime._give_turn(self)

    async def take_turn(self) -> None:
        """Wait until this work may run beside the others; it gives its turn away at its end, or by `give_turn`."""
        while self._runtime._turns is not None and not self._has_turn:
            if self._turn_wanted is not None:  # another coroutine of this work waits for it
                await self._turn_wanted.wait()
                continue
            taken = self._turn_wanted = anyio.Event()
            try:
                await self._runtime._turns.acquire_on_behalf_of(self)
                self._has_turn = True
            finally:
                self._turn_wanted = None
                taken.set()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Call this when the work is to stop, just before its scope is cancelled (law L9)."""
        self._on_cancel = callback

    def _stop(self) -> None:
        callback, self._on_cancel = self._on_cancel, None  # once is enough
        try:
            if callback is not None:
                callback()
        except Exception:
            logger.exception("A callback of on_cancel raised an exception")
        finally:
            self._scope.cancel()

    def _settle(self) -> None:
        if self._settled is not None:
            self._settled.set()
            self._settled = None

    def _close(self) -> None:
        """Stop what belongs to the run: it has ended."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch()
        self._settle()
        if self._ended is not None:
            self._ended.set()
