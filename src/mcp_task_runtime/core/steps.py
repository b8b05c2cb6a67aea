"""`TaskSteps`: parts of a task's work whose results are recorded, so that a rerun resumes behind them (law L12).

A step runs at least once, and its result is recorded exactly once: a process that is lost between the two leaves the
step to the rerun, so its effect must bear being repeated. Its key is its name, a digest of its arguments, and how
often the run has asked for these; so steps that run side by side find their results in any order.

Steps that the work itself takes one after the other, in the event loop's task that its context was made in, are
recorded with their position. A rerun that takes another one at that position gets `StepChangedError` before the step
runs. Steps of child tasks, of threads, and within other steps come in any order, and are found only by their keys.
So is what follows a step that raised or was cancelled, or a question that raised: an end of this kind is not recorded
and may differ in a rerun, where the work may then take another path. A step that raised counts as not taken.

Results are recorded where a rerun can find them: in a store with `TaskJournal`, for a run that holds a lease of a task
that may rerun. Elsewhere steps run by the same rules for arguments and results, and are not recorded.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Final, TypeAlias, TypeVar, cast

import anyio
import anyio.lowlevel

from mcp_task_runtime.core.abilities import implements
from mcp_task_runtime.core.backoff import Backoff
from mcp_task_runtime.core.causes import exception_classes, sole_cause
from mcp_task_runtime.core.clock import sleep_by
from mcp_task_runtime.core.event_loop import current_task
from mcp_task_runtime.core.functions import call_in_thread, is_async
from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.step_results import StepResult
from mcp_task_runtime.core.store import TaskJournal, TaskStore
from mcp_task_runtime.core.store_calls import CLEANUP_SECONDS
from mcp_task_runtime.core.text import check_text
from mcp_task_runtime.core.types import Fence
from mcp_task_runtime.errors import LeaseLostError, StepChangedError, StepResultError, StoreUnavailableError

__all__ = ["AtHome", "Retries", "TaskSteps"]

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

AtHome: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Runs a coroutine function in the event loop that the task's store belongs to, and returns what it returns."""

_MAX_NAME: Final = 200
_OUTAGE: Final = Backoff(0.05, 2.0, 1.0)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a step is run that raises, and after which delays.

    Attributes:
        attempts: Most runs, the first one included.
        on: What the step must raise to be run again.
        backoff: The delays.
    """

    attempts: int
    on: tuple[type[Exception], ...]
    backoff: Backoff

    @classmethod
    def of(
        cls, attempts: int, retry_on: type[Exception] | Iterable[type[Exception]], backoff: Backoff | float
    ) -> Retries:
        """Return checked retries.

        Raises:
            ValueError: A number is out of range, or `retry_on` has something other than classes of exceptions.
        """
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        return cls(attempts, exception_classes("retry_on", retry_on), Backoff.of(backoff))

    def allows(self, error: Exception, failures: int) -> bool:
        """Return whether a step that has raised this many times is run again."""
        if failures >= self.attempts or isinstance(sole_cause(error), LeaseLostError):
            return False
        return isinstance(error, self.on) or isinstance(sole_cause(error), self.on)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What an earlier run recorded: a result, and its step's position if that is fixed."""

    position: int | None
    text: str

    @classmethod
    def parse(cls, value_json: str) -> _Recorded:
        position, _, text = value_json[1:-1].partition(",")
        return cls(None if position == "null" else int(position), text)

    def __str__(self) -> str:
        return f"[{'null' if self.position is None else self.position},{self.text}]"


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    content: str
    number: int
    position: int | None

    @property
    def key(self) -> str:
        return f"{self.content}.{self.number}"


class _Numbers:
    """How often a run has asked for steps of one name and arguments: the lowest number that is not taken."""

    def __init__(self) -> None:
        self._next: Counter[str] = Counter()
        self._freed: dict[str, list[int]] = {}

    def take(self, content: str) -> int:
        freed = self._freed.get(content)
        if freed:
            return heappop(freed)
        self._next[content] += 1
        return self._next[content]

    def free(self, content: str, number: int) -> None:
        heappush(self._freed.setdefault(content, []), number)


class TaskSteps:
    """The steps of one run of a task's work."""

    def __init__(
        self,
        task_id: str,
        store: TaskStore,
        *,
        fence: Callable[[], Fence | None],
        may_rerun: bool,
        root: int | None,
        digest_key: bytes = b"",
    ) -> None:
        """Make the steps of a run.

        Args:
            task_id: The task.
            store: Where it is kept.
            fence: Returns what the writes of the run carry; `None` where it holds no lease.
            may_rerun: Whether the work may run again.
            root: The event loop's task that the work runs in, as `current_task` returns it; `None` where there is none.
            digest_key: Keys the digests of arguments; see `TaskRequest.digest_key`.
        """
        self._task_id = task_id
        self._clock = store.clock
        self._journal = cast(TaskJournal, store) if may_rerun and implements(store, TaskJournal) else None
        self._fence = fence
        self._root = root
        self._digest_key = digest_key
        self._is_in_root_step = False
        self._positions: int | None = 0
        self._numbers = _Numbers()
        self._earlier: Mapping[str, _Recorded] | None = None
        self._order: dict[int, str] = {}
        self._reading: anyio.Event | None = None

    async def run(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        retries: Retries,
        returns: Any = None,
        at_home: AtHome | None = None,
    ) -> Any:
        """Run a step, or return what an earlier run of the work recorded for it.

        Args:
            name: Its name.
            function: What it runs.
            args: The function's arguments.
            retries: What happens when it raises.
            returns: Type of the result; the function's return annotation when `None`.
            at_home: For work with an event loop of its own: how to reach that of the store.

        Raises:
            StepChangedError: It does not fit what an earlier run recorded.
            StepResultError: Its arguments or its result have no JSON form.
            InvalidTransitionError: The task has ended.
            TaskNotFoundError: The task has expired or was deleted.
            LeaseLostError: Another run of the work holds the task's lease.
            Exception: What the function raised in its last attempt.
        """
        result = StepResult(name, function, returns)
        step = self._next(name, args)
        at_home = _here if at_home is None else at_home
        try:
            text = await at_home(partial(self._find, step))
            if text is None:
                value = await self._perform(step, function, args, retries, at_home)
                text = await at_home(partial(self._record, step, result.dump(value)))
        except BaseException:
            self._numbers.free(step.content, step.number)
            self.leave_order()
            raise
        return result.load(text)

    def leave_order(self) -> None:
        """Note that what follows may come in another order in a rerun: an end was not recorded."""
        self._positions = None

    def _next(self, name: str, args: tuple[Any, ...]) -> _Step:
        """Return a step's key and position; they depend on what the run has asked for before."""
        if not 1 <= len(check_text("name", name)) <= _MAX_NAME:
            raise ValueError(f"name must have 1 to {_MAX_NAME} characters")
        try:
            arguments = dump_json(args).encode()
        except Exception as error:  # also what a serializer of a model raises
            raise StepResultError(
                name,
                "its arguments have no JSON form, by which steps of one name are told apart; bind other arguments with "
                "functools.partial",
            ) from error
        content = f"{name}({blake2b(arguments, digest_size=9, key=self._digest_key).hexdigest()})"
        position = None
        if self._positions is not None and not self._is_in_root_step and current_task() == self._root:
            position = self._positions
            self._positions += 1
        return _Step(name, content, self._numbers.take(content), position)

    async def _perform(
        self, step: _Step, function: Callable[..., Any], args: tuple[Any, ...], retries: Retries, at_home: AtHome
    ) -> Any:
        is_root = step.position is not None
        self._is_in_root_step |= is_root
        try:
            return await self._attempt(step.name, partial(function, *args), is_async(function), retries, at_home)
        finally:
            self._is_in_root_step &= not is_root

    async def _attempt(
        self, name: str, function: Callable[[], Any], is_coroutine: bool, retries: Retries, at_home: AtHome
    ) -> Any:
        failures = 0
        while True:
            try:
                if is_coroutine:
                    return await function()
                (value,) = await call_in_thread(lambda: (function(),))  # a thread must not return a coroutine itself
                return await value if inspect.isawaitable(value) else value
            except Exception as error:
                failures += 1
                if not retries.allows(error, failures):
                    raise
                logger.info(
                    "Step %r raised %s in attempt %d of %d", name, type(error).__name__, failures, retries.attempts
                )
            await at_home(partial(sleep_by, self._clock, retries.backoff.after(failures)))

    # -- the journal

    async def _find(self, step: _Step) -> str | None:
        """Return what an earlier run recorded for a step, as JSON text; `None` if it is to run.

        Raises:
            StepChangedError: Earlier runs took another step in its place.
        """
        await anyio.lowlevel.checkpoint()
        earlier = await self._read()
        recorded = earlier.get(step.key)
        if step.position is None:
            return None if recorded is None else recorded.text
        expected = self._order.get(step.position)
        if expected not in (None, step.key):
            raise StepChangedError(step.name, f"step {_name(expected)!r} came in its place, or with other arguments")
        if recorded is None:
            return None
        if recorded.position is not None and recorded.position != step.position:
            raise StepChangedError(step.name, "it came earlier or later")
        return recorded.text

    async def _read(self) -> Mapping[str, _Recorded]:
        while self._reading is not None:
            await self._reading.wait()
        if self._earlier is None:
            fence = self._fence()
            if self._journal is None or fence is None or fence.attempt <= 1:
                return {}
            self._reading = anyio.Event()
            try:
                read = await self._until_available(partial(self._journal.read_steps, self._task_id))
                self._earlier = {key: _Recorded.parse(value) for key, value in read.items()}
                self._order = {step.position: key for key, step in self._earlier.items() if step.position is not None}
            finally:
                self._reading.set()
                self._reading = None
        return self._earlier

    async def _record(self, step: _Step, text: str) -> str:
        """Record a result and return what is recorded: the same, or what an earlier call wrote for this key."""
        fence = self._fence()
        if self._journal is None or fence is None:
            return text
        value = str(_Recorded(step.position, text))
        try:
            recorded = await self._until_available(
                partial(self._journal.record_step, self._task_id, step.key, value, fence=fence), is_shielded=True
            )
        except ValueError as error:
            if type(error) is not ValueError:  # the task has ended or is gone
                raise
            raise StepResultError(step.name, "the store refuses its result as a value") from error
        return _Recorded.parse(recorded).text

    async def _until_available(self, call: Callable[[], Awaitable[T]], *, is_shielded: bool = False) -> T:
        """Repeat a call while the store is unavailable; the end of the task or of its lease stops the work.

        Shielded, a cancellation waits for the first try: the step has had its effect.
        """
        failures = 0
        while True:
            try:
                with anyio.move_on_after(CLEANUP_SECONDS, shield=is_shielded):
                    return await call()
            except StoreUnavailableError:
                logger.debug("The store is unavailable to a step", exc_info=True)
            failures += 1
            is_shielded = False
            await sleep_by(self._clock, _OUTAGE.after(failures))


async def _here(function: Callable[[], Awaitable[Any]]) -> Any:
    return await function()


def _name(key: str | None) -> str:
    return "" if key is None else key.rpartition("(")[0]
