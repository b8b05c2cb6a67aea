"""A task on a server, as one connection sees it, and the one run in which any number of callers follow it."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

import anyio

from mcp_task_runtime.adapters.task_client.errors import (
    BaseInvalidTaskResponseError,
    BaseTaskCancelledError,
    ErrorTypes,
)
from mcp_task_runtime.adapters.task_client.polling import PollSettings, Pushes, Watch
from mcp_task_runtime.adapters.task_client.snapshots import TaskSnapshot
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.errors import INTERNAL_ERROR

__all__ = ["Limits", "OnUpdate", "RemoteTask", "TaskConnection"]

logger: logging.Logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

OnUpdate: TypeAlias = Callable[[TaskSnapshot], Awaitable[None]]
"""Called with each new snapshot of a followed task."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that requests may take, and how often a task is looked at.

    Attributes:
        request: Seconds that one `tasks/*` request may take.
        cancel: Seconds that `tasks/cancel` may take when this side gives up.
        polling: How often a task is looked at.

    Raises:
        ValueError: A number of seconds is not positive; the message names it as the client's argument.
    """

    request: float
    cancel: float
    polling: PollSettings

    def __post_init__(self) -> None:
        for name, seconds in (("request_timeout", self.request), ("cancel_timeout", self.cancel)):
            if not seconds > 0:
                raise ValueError(f"{name} must be positive")


class TaskConnection(Protocol[ResultT_co]):
    """A session of one line of the SDK, in JSON terms."""

    @property
    def errors(self) -> ErrorTypes:
        """The classes of the errors that are raised."""
        ...

    @property
    def limits(self) -> Limits:
        """Seconds that requests may take."""
        ...

    @property
    def blocks_while_asking(self) -> bool:
        """Whether the session handles nothing else while a callback of its user runs, so that looks wait for it."""
        ...

    async def request(
        self, method: str, params: JSONObject, *, task_id: str, is_limited: bool, read_timeout_seconds: float | None
    ) -> JSONObject:
        """Send a request and return the raw result.

        Args:
            method: The method's name.
            params: Its params.
            task_id: The task that errors name.
            is_limited: Whether it may take only so long; not where the answer waits for the task's end.
            read_timeout_seconds: Seconds that it may take, instead of the limit of the connection.

        Raises:
            BaseTaskError: It failed, in any way.
        """
        ...

    async def call_tool(self, params: JSONObject, *, read_timeout_seconds: float | None) -> JSONObject:
        """Send `tools/call` and return the raw result, which may be a handle.

        Raises:
            Exception: The server refused the call: the SDK's own error.
            BaseInvalidTaskResponseError: What came is neither a handle nor a result.
        """
        ...

    def parse_result(self, raw: JSONObject | None) -> ResultT_co:
        """Return the result of a task as that of the call.

        Raises:
            MalformedError: It is none.
        """
        ...


class RemoteTask(ABC, Generic[ResultT]):
    """A task on a server, as one protocol revision renders it.

    All handles of one client for one task on one connection share it: what the user was asked and answered
    is kept here, and only one run at a time follows the task.

    Attributes:
        connection: The session that it is reached by.
        task_id: The task's identifier.
        handle: What the call was answered with, until it is reported.
        has_ended: Whether the server was seen to say so.
    """

    def __init__(
        self,
        connection: TaskConnection[ResultT],
        task_id: str,
        *,
        pushes: Pushes | None = None,
        on_update: OnUpdate | None = None,
        read_timeout_seconds: float | None = None,
    ) -> None:
        self.connection = connection
        self.task_id = task_id
        self.handle: TaskSnapshot | None = None
        self.has_ended = False
        self._pushes = pushes
        self._on_update = on_update
        self._read_timeout_seconds = read_timeout_seconds
        self._reported: TaskSnapshot | None = None
        self._was_given_up = False
        self._run: _Run[ResultT] | None = None

    @property
    def is_followed(self) -> bool:
        """Whether a caller waits for the end."""
        return self._run is not None

    @abstractmethod
    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands."""

    @abstractmethod
    async def update(self, answers: Mapping[str, JSONObject]) -> None:
        """Answer questions by their keys."""

    @abstractmethod
    async def cancel(self) -> None:
        """Ask the server to cancel the task; one that has ended is no error (C9)."""

    @abstractmethod
    async def follow(self, watch: Watch) -> ResultT:
        """Follow the task to its end, answer its questions, and return its result or raise its error."""

    def watch(self) -> Watch:
        """Return a watch of the task."""
        polling = self.connection.limits.polling
        return Watch(self.task_id, self.get, polling, self._pushes, handle=self.handle)

    async def result(self) -> ResultT:
        """Follow the task to its end, together with all others who do.

        One caller runs and the others wait for what comes of it. A caller that is cancelled while it runs is
        followed by another one.
        """
        while (run := self._run) is not None:
            if await run.is_over():
                return run.outcome()
        run = self._run = _Run()
        watch = self.watch()
        try:
            if self.handle is not None:
                handle, self.handle = self.handle, None
                await self.report(handle)
            run.result = await self.follow(watch)
            run.has_result = True
            return run.result
        except Exception as error:
            run.error = error
            raise
        finally:
            watch.close()
            self._run = None
            run.end()

    async def report(self, snapshot: TaskSnapshot) -> None:
        """Report a snapshot, unless it was the last one that was reported."""
        if self._on_update is None or snapshot == self._reported:
            return
        self._reported = snapshot
        try:
            await self._on_update(snapshot)
        except Exception:
            logger.exception("on_update raised")

    async def request(self, method: str, params: JSONObject | None = None, *, is_limited: bool = True) -> JSONObject:
        """Send a request for this task and return the raw result."""
        return await self.connection.request(
            method,
            {"taskId": self.task_id, **(params or {})},
            task_id=self.task_id,
            is_limited=is_limited,
            read_timeout_seconds=self._read_timeout_seconds,
        )

    async def give_up(self) -> bool:
        """Cancel the task because this side gives up, also when cancelled, but never for long.

        Returns:
            Whether the task has ended, or the server has agreed to cancel it.
        """
        if self.has_ended or self._was_given_up:
            return True
        limits = self.connection.limits
        with anyio.move_on_after(limits.cancel, shield=True):
            while not self._was_given_up:
                try:
                    await self.cancel()
                    self._was_given_up = True
                except Exception as error:  # it must not hide why the task was given up
                    rest = limits.polling.rest_after(error)
                    if rest is None:
                        logger.debug("A task that was given up could not be cancelled", exc_info=True)
                        break
                    await anyio.sleep(rest)
        return self._was_given_up

    def invalid(self, problem: object) -> BaseInvalidTaskResponseError:
        """Return the error for something that the server must not send."""
        return self.connection.errors.invalid(str(problem), task_id=self.task_id)

    def cancelled(self, final: TaskSnapshot) -> BaseTaskCancelledError:
        """Return the error of a cancelled task, with its last status message: it may say why."""
        reason = f": {final.status_message}" if final.status_message else ""
        return self.connection.errors.cancelled(INTERNAL_ERROR, f"The task was cancelled{reason}", task_id=self.task_id)


class _Run(Generic[ResultT]):
    """One run of following a task, and those who wait for what comes of it."""

    result: ResultT

    def __init__(self) -> None:
        self.has_result = False
        self.error: Exception | None = None
        self._ended: anyio.Event | None = None

    def end(self) -> None:
        if self._ended is not None:
            self._ended.set()

    async def is_over(self) -> bool:
        """Wait for the end; return whether there is an outcome. There is none if the run was cancelled."""
        if self._ended is None:
            self._ended = anyio.Event()
        await self._ended.wait()
        return self.has_result or self.error is not None

    def outcome(self) -> ResultT:
        """Return a copy of the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return copy.deepcopy(self.result)
