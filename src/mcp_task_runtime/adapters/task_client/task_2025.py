"""A task of the `tasks` capability of protocol revision 2025-11-25, from the client's side.

The session of the SDK answers the questions that come while a result is awaited, with its own callbacks
(wire rule B6). While a task needs input, `tasks/result` is open; looks tell where the task stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel
from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired

from mcp_task_runtime.adapters.task_client.errors import (
    CONNECTION_CLOSED,
    REQUEST_TIMEOUT,
    BaseInvalidTaskResponseError,
    BaseTaskCancelledError,
    BaseTaskError,
    BaseTaskFailedError,
    BaseUnknownTaskError,
    MalformedError,
    is_passing,
    retry_after_ms,
)
from mcp_task_runtime.adapters.task_client.polling import Watch
from mcp_task_runtime.adapters.task_client.remote_task import RemoteTask, TaskConnection
from mcp_task_runtime.adapters.task_client.snapshots import (
    Milliseconds,
    TaskFields,
    TaskSnapshot,
    problems,
    snapshot_of,
)
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.errors import INTERNAL_ERROR, METHOD_NOT_FOUND
from mcp_task_runtime.wire.v2025_11_25 import related_task_id

__all__ = ["Fields2025", "Task2025", "parse_result", "problem_of", "snapshot_2025"]

ResultT = TypeVar("ResultT")

_AMBIGUOUS_CODES: Final = frozenset({CONNECTION_CLOSED, REQUEST_TIMEOUT})
"""Codes of requests that were not answered, which may also be the codes of a task's own error."""

_LATE_SECONDS: Final = 1.0
"""How long the result of a task may take after its server has said that it has forgotten the task."""


def parse_result(connection: TaskConnection[ResultT], raw: JSONObject, task_id: str = "") -> ResultT:
    """Return the result of a call.

    Raises:
        BaseInvalidTaskResponseError: It is none.
    """
    try:
        return connection.parse_result(raw)
    except MalformedError as error:
        raise connection.errors.invalid(f"the result of tools/call: {error}", task_id=task_id) from None


class Task2025(RemoteTask[ResultT]):
    """A task of the `tasks` capability: its questions come while its result is awaited."""

    _open_streams = 0

    def take_handle(self, raw: JSONObject) -> None:
        """Keep the handle that a call was answered with (B3).

        Raises:
            BaseInvalidTaskResponseError: It is no task.
        """
        self.handle: TaskSnapshot | None = self._parse(raw, "tools/call")

    async def get(self) -> TaskSnapshot:
        """Ask the server how the task stands (B4)."""
        is_limited = not (self._open_streams and self.connection.blocks_while_asking)
        return self._parse(await self.request("tasks/get", is_limited=is_limited), "tasks/get")

    async def update(self, answers: Mapping[str, JSONObject]) -> None:
        """Refuse: this revision has no request for it."""
        message = "Protocol revision 2025-11-25 has no tasks/update: questions are answered while wait() waits"
        raise self.connection.errors.error(METHOD_NOT_FOUND, message, task_id=self.task_id)

    async def cancel(self) -> None:
        """Have the server cancel the task; one that has ended is no error, as under the later revision."""
        try:
            raw = await self.request("tasks/cancel")
        except BaseUnknownTaskError as refused:  # or it has ended: the code is the same (B8)
            if is_terminal((await self.get()).status):
                return
            raise self.connection.errors.error(
                refused.code, refused.message, refused.data, task_id=self.task_id
            ) from refused
        self._parse(raw, "tasks/cancel")

    async def payload(self, *, has_ended: bool = False) -> ResultT:
        """Return the result when there is one (B5); the server sends the task's questions meanwhile (B6).

        Args:
            has_ended: Whether the result should be there at once, so that the request may take only so long.

        Raises:
            BaseTaskError: The task's own error, or that of the request.
        """
        if not has_ended:
            self._open_streams += 1
        try:
            raw = await self.request("tasks/result", is_limited=has_ended)
        finally:
            if not has_ended:
                self._open_streams -= 1
        if related_task_id(raw) not in (None, self.task_id):
            raise self.invalid("tasks/result: another task than the one asked for")
        if raw.keys() <= {"_meta"}:
            raise _NoResultError
        return parse_result(
            self.connection, {name: value for name, value in raw.items() if name != "resultType"}, self.task_id
        )

    def watch(self) -> Watch:
        """Return a watch, which is told changes from now on: no stream repeats what it missed (B10)."""
        watch = super().watch()
        if self._pushes is not None:
            self._pushes.follow(watch)
        return watch

    async def follow(self, watch: Watch) -> ResultT:
        """Follow the task to its end, with `tasks/result` open while it needs input."""
        return await _Following(self, watch).run()

    def _parse(self, raw: JSONObject, method: str) -> TaskSnapshot:
        try:
            return snapshot_2025(_FIELDS.validate_python(raw), self.task_id)
        except (ValidationError, MalformedError) as error:
            raise self.invalid(f"{method}: {problem_of(error)}") from None


class _NoResultError(Exception):
    """A result without anything in it."""


class _Following(Generic[ResultT]):
    """One run of following a task to its end."""

    def __init__(self, task: Task2025[ResultT], watch: Watch) -> None:
        self._task = task
        self._watch = watch
        self._max_failures = task.connection.limits.polling.max_failures
        self._results: list[ResultT] = []  # one, or none yet
        self._is_open = False
        self._closed: anyio.Event | None = None
        self._opened = 0  # the last look that had begun by then
        self._failed = 0  # the same
        self._failure: BaseTaskError | None = None
        self._failures = 0  # those in a row that came at once

    async def run(self) -> ResultT:
        """Return the result.

        Raises:
            BaseTaskError: The task's own error, or it could not be followed.
        """
        while True:  # no task group before there is a question
            snapshot = await self._watch.next()
            await self._task.report(snapshot)
            if is_terminal(snapshot.status):
                return await self._outcome(snapshot)
            if snapshot.status == "input_required":
                return await self._run_with_stream()

    async def _run_with_stream(self) -> ResultT:
        failure: Exception | None = None
        results: list[ResultT] = []
        async with anyio.create_task_group() as group:
            self._open(group)
            try:
                results.append(await self._until_end(group))
            except Exception as error:  # raised below: from here it would come out in an exception group
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return results[0]

    async def _until_end(self, group: anyio.abc.TaskGroup) -> ResultT:
        while True:
            try:
                snapshot = await self._watch.next()
            except BaseTaskError as error:
                if isinstance(error, BaseUnknownTaskError):
                    await self._until_closed()
                if self._results:  # some servers forget a task whose result was fetched
                    return self._results[0]
                raise
            await self._task.report(snapshot)
            if is_terminal(snapshot.status):
                return await self._outcome(snapshot)
            if self._results:
                return self._results[0]
            if snapshot.status == "input_required" and not self._is_open:
                self._open(group)

    async def _outcome(self, final: TaskSnapshot) -> ResultT:
        """Return the result of a task that ended, or raise its error."""
        self._task.has_ended = True
        failures = 0
        while True:
            try:
                return await self._fetch(final, is_certain=failures > 0)
            except (BaseTaskFailedError, BaseTaskCancelledError):
                raise
            except BaseTaskError as error:
                failures += 1
                if not is_passing(error) or failures == self._max_failures:
                    raise
                await anyio.sleep(self._task.connection.limits.polling.pause_after(error, failures))

    async def _fetch(self, final: TaskSnapshot, *, is_certain: bool) -> ResultT:
        """Fetch the result of a task that ended.

        Args:
            final: How it ended.
            is_certain: Whether an answer that looks like a failed request was given before, so that it is the
                task's own error.
        """
        if final.status == "cancelled":
            raise self._task.cancelled(final)
        if self._results:
            return self._results[0]
        errors = self._task.connection.errors
        try:
            return await self._task.payload(has_ended=True)
        except _NoResultError:
            if final.status != "failed":
                raise self._task.invalid("tasks/result: nothing") from None
            # The runtime of `mcp` 1.x keeps no errors: its status messages say what they were.
            message = final.status_message or "The task failed"
            raise errors.failed(INTERNAL_ERROR, message, task_id=final.task_id) from None
        except BaseInvalidTaskResponseError:
            raise
        except BaseTaskError as error:
            is_ambiguous = error.code in _AMBIGUOUS_CODES or retry_after_ms(error) is not None
            was_not_answered = isinstance(error.__cause__, TimeoutError)  # this side's own clock
            if final.status != "failed" or was_not_answered or (is_ambiguous and not is_certain):
                raise
            raise errors.failed(error.code, error.message, error.data, task_id=final.task_id) from error

    def _open(self, group: anyio.abc.TaskGroup) -> None:
        """Open the stream that brings the questions, unless it failed too often, or a moment ago.

        Raises:
            BaseTaskError: It failed too often, or for a reason that will not pass.
        """
        if self._failure is not None:
            if self._watch.begun == self._failed:
                return  # this snapshot may be from before the failure
            if not is_passing(self._failure) or self._failures == self._max_failures:
                raise self._failure
            if self._watch.begun == self._failed + 1:
                return  # this look was made at once
        self._is_open = True
        self._opened = self._watch.begun
        group.start_soon(self._stream)

    async def _until_closed(self) -> None:
        """Wait, not for long, until the stream has ended: the result may be on its way."""
        if self._is_open:
            self._closed = anyio.Event()
            with anyio.move_on_after(_LATE_SECONDS):
                await self._closed.wait()

    async def _stream(self) -> None:
        try:
            self._results.append(await self._task.payload())
        except _NoResultError:
            self._fail(self._task.invalid("tasks/result: nothing"))
        except BaseTaskError as error:  # the task's own, or the stream's: the next look tells
            if isinstance(error, BaseUnknownTaskError):  # whether there is this task, the looks tell
                error = self._task.connection.errors.error(error.code, error.message, error.data, task_id=error.task_id)
            self._fail(error)
        self._is_open = False
        if self._closed is not None:
            self._closed.set()
        self._watch.wake()

    def _fail(self, error: BaseTaskError) -> None:
        self._failures = self._failures + 1 if self._watch.begun <= self._opened + 1 else 1
        self._failed = self._watch.begun
        self._failure = error


class Fields2025(TaskFields):
    """A task as a server of 2025-11-25 sends it (B4)."""

    ttl: NotRequired[Milliseconds | None]  # serialisers that drop nulls lose it
    pollInterval: NotRequired[Milliseconds | None]


_FIELDS: Final = TypeAdapter(Fields2025)


def snapshot_2025(fields: Fields2025, task_id: str) -> TaskSnapshot:
    """Return what was said of a task; see `snapshot_of`."""
    return snapshot_of(fields, task_id, ttl_ms=fields.get("ttl"), poll_interval_ms=fields.get("pollInterval"))


def problem_of(error: ValidationError | MalformedError) -> str:
    """Return what is wrong with a task, without the values."""
    return problems(error) if isinstance(error, ValidationError) else str(error)
