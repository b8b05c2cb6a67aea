"""How a client hears of a task while its work runs, in the way of each protocol.

`ServerTaskContext` says what happened; a `TaskNotifier` knows the protocol. No client can hold up the work: one
that does not read misses what became stale meanwhile.
"""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import anyio

from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.types import Outcome, Progress, Task
from mcp_task_runtime.wire import v2025_11_25 as wire_2025

__all__ = [
    "NO_TOKEN",
    "CallNotifier",
    "InTurn",
    "LatestSender",
    "NotifyingSession",
    "StartSoon",
    "StatusNotifier",
    "TaskNotifier",
]

logger: logging.Logger = logging.getLogger(__name__)

NO_TOKEN: Final = "mcp-task-runtime:none"
"""In place of a progress token, for a session that may have a way for progress without one."""

_MISS_SECONDS: Final = 0.5
"""How long the work waits for a client to read one notification, before the client counts as stalled."""

_RETRY_SECONDS: Final = 5.0
"""How long a stalled client is left alone where no background task can wait for it."""

_STEP: Final = 1e-3
"""How much progress grows with a status message."""

StartSoon: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]
"""Starts a function without arguments in the background, as a task group does."""


@runtime_checkable
class TaskNotifier(Protocol):
    """Ability of a `TaskSession` to tell its client of a task in the way of its protocol.

    A session without it is told as under protocol revision 2025-11-25, with `notifications/tasks/status` and
    `notifications/progress`. Neither method may wait long for a client that does not read.
    """

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Tell that the task is now as this snapshot says; `outcome` is how it ended, if it has."""
        ...

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Tell how far the work is; the snapshot says the same in its status message."""
        ...


class NotifyingSession(TaskSession, TaskNotifier, Protocol):
    """A `TaskSession` that tells its client of a task in the way of its protocol, as all of this library do."""


class LatestSender:
    """Sends notifications to a client that may have stopped reading.

    A client that reads gets each of them, in order. Once it has missed one, it is stalled: of each kind only the
    newest is kept, and sent when the client reads again. A session that raises loses what it was to send.
    """

    __slots__ = ("_lock", "_session", "_stalled_until", "_start_soon", "_waiting")

    def __init__(self, session: TaskSession, start_soon: StartSoon | None = None) -> None:
        """Make a sender.

        Args:
            session: The connection.
            start_soon: Starts the wait for a stalled client in the background. Without it, a notification that
                comes some seconds later, or says that the task has ended, tries again.
        """
        self._session = session
        self._start_soon = start_soon
        self._lock: anyio.Lock | None = None
        self._waiting: dict[str, tuple[str, JSONObject]] = {}
        self._stalled_until: float | None = None

    async def send(self, method: str, params: JSONObject, *, is_last: bool = False) -> None:
        """Send a notification, or keep it for later. Returns within about half a second, and does not raise.

        Args:
            method: The notification's method; older ones of the same method become stale.
            params: Its params.
            is_last: Whether the task has ended, so that this is the last one.
        """
        self._waiting.pop(method, None)
        self._waiting[method] = (method, params)
        if self._stalled_until is not None and (
            self._start_soon is not None or (anyio.current_time() < self._stalled_until and not is_last)
        ):
            return
        with anyio.move_on_after(_MISS_SECONDS) as scope:
            await self._send_waiting()
        if scope.cancelled_caught:
            self._stalled_until = anyio.current_time() + _RETRY_SECONDS
            if self._start_soon is not None:
                self._start_soon(self._send_waiting)

    async def _send_waiting(self) -> None:
        lock = self._lock
        if lock is None:  # made when it is needed: most tasks wait for hours between two notifications
            lock = self._lock = anyio.Lock()
        async with lock:
            while self._waiting:
                message = next(iter(self._waiting.values()))
                try:
                    await self._session.send_notification(*message)
                except Exception:
                    logger.debug("A notification could not be sent", exc_info=True)
                if self._waiting.get(message[0]) is message:
                    del self._waiting[message[0]]
            self._stalled_until = None
        if not lock.statistics().tasks_waiting and not lock.locked():
            self._lock = None


class InTurn:
    """Runs functions in the background, one after the other: one task of the event loop for all of a connection.

    It begins with the first function, and waits for more until it is closed.
    """

    __slots__ = ("_functions", "_is_closed", "_is_running", "_scope", "_start_soon", "_woken")

    def __init__(self, start_soon: StartSoon) -> None:
        """Make a queue without functions.

        Args:
            start_soon: Starts what runs them in the background. Where that is cancelled, the next function starts it
                again.
        """
        self._start_soon = start_soon
        self._functions: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._woken: Signal | None = None
        self._scope: anyio.CancelScope | None = None
        self._is_running = False
        self._is_closed = False

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a function after those that wait; nothing happens when it is closed. What it raises is logged.

        Raises:
            Exception: What `start_soon` raised; the function does not run then.
        """
        if self._is_closed:
            return
        if not self._is_running:
            self._is_running = True
            try:  # in a context of its own: what starts it first must not live as long as the connection
                contextvars.Context().run(self._start_soon, self._run)
            except BaseException:
                self._is_running = False
                raise
        self._functions.append(function)
        if self._woken is not None:
            self._woken.set()

    def close(self) -> None:
        """Run no more: what runs is cancelled, and what waits is dropped."""
        self._is_closed = True
        self._functions.clear()
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if self._is_closed:
                    return
                while True:
                    while self._functions:
                        await self._run_next()
                    self._woken = Signal()
                    await self._woken.wait()
                    self._woken = None
        finally:
            self._is_running = False
            self._scope = self._woken = None
            self._functions.clear()

    async def _run_next(self) -> None:
        try:
            await self._functions.popleft()()
        except Exception:
            logger.exception("A change of a task could not be sent to its client")


class StatusNotifier:
    """Tells a client of protocol revision 2025-11-25 of a task (wire rules B10, B11)."""

    def __init__(self, session: TaskSession, progress_token: str | int | None = None) -> None:
        """Make a notifier.

        Args:
            session: The connection.
            progress_token: The token the client gave for progress, if it did.
        """
        self._sender = LatestSender(session)
        self._progress_token = progress_token

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Send the whole task."""
        await self._sender.send(*wire_2025.render_status(task, outcome), is_last=outcome is not None)

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Send the whole task, and progress if the client gave a token for it."""
        await self.notify_status(task, None)
        if self._progress_token is not None:
            await self._sender.send(*wire_2025.render_progress(progress, self._progress_token))


class CallNotifier:
    """The session of a plain call, whose client knows of no task: what the work says is progress of the call.

    A client that gave no token for progress gets log messages on the stream of the call, if it asked for them.
    """

    def __init__(
        self,
        session: TaskSession,
        progress_token: str | int | None,
        *,
        log_levels: Sequence[str] = (),
        may_lack_token: bool = False,
    ) -> None:
        """Wrap a session.

        Args:
            session: The connection, as far as the request of the call reaches.
            progress_token: The token the client gave for progress, if it did.
            log_levels: The levels of log messages that the client asked for.
            may_lack_token: Whether the session may have a way for progress without a token, and drops it otherwise.
        """
        self._session = session
        self._sender = LatestSender(session)
        self._progress_token = progress_token
        self._log_levels = log_levels
        self._may_lack_token = may_lack_token
        self._progress: float | None = None

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared."""
        return self._session.client_capabilities

    @property
    def can_send_request(self) -> bool:
        """Whether a request can be sent to the client now."""
        return self._session.can_send_request

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Send a notification on the stream of the call."""
        await self._session.send_notification(method, params)

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request on the stream of the call, and return its result."""
        return await self._session.send_request(method, params)

    async def notify_status(self, task: Task, outcome: Outcome | None) -> None:
        """Send the status message; the end of the task is the result of the call."""
        if outcome is None and task.status_message is not None:
            await self._say(Progress(0 if self._progress is None else self._progress, None, task.status_message))

    async def notify_progress(self, task: Task, progress: Progress) -> None:
        """Send progress."""
        await self._say(progress)

    async def log(self, params: JSONObject) -> None:
        """Send a log message, if the client asked for its level."""
        if params["level"] in self._log_levels:
            await self._sender.send("notifications/message", params)

    async def _say(self, said: Progress) -> None:
        token = self._progress_token
        if token is not None or self._may_lack_token:
            last = self._progress
            # It must increase with each notification; a status message says nothing of how far the work is.
            self._progress = said.progress if last is None or said.progress > last else last + _STEP
            increasing = replace(said, progress=self._progress)
            await self._sender.send(*wire_2025.render_progress(increasing, NO_TOKEN if token is None else token))
        if token is None:
            text = said.message or f"{said.progress:g}" + ("" if said.total is None else f"/{said.total:g}")
            await self.log({"level": "info", "data": text})
