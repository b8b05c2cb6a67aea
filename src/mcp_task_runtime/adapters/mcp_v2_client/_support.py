"""What both renderings of the client for `mcp` 2.x need: errors, snapshots, and the requests for one task."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeAlias

import anyio
import mcp_types as types
from mcp.client import ClientSession
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import BaseModel, BeforeValidator, ConfigDict, RootModel, ValidationError
from pydantic.alias_generators import to_camel
from typing_extensions import Self

from mcp_task_runtime.core.json import JSONObject, load_json
from mcp_task_runtime.core.types import TaskStatus
from mcp_task_runtime.errors import TaskRuntimeError

__all__ = [
    "MAX_FAILED_REQUESTS",
    "MAX_POLL_INTERVAL_MS",
    "MIN_POLL_INTERVAL_MS",
    "Beside",
    "InvalidTaskResponseError",
    "Looks",
    "Milliseconds",
    "RawResult",
    "RemoteTask",
    "Report",
    "TaskCancelledError",
    "TaskError",
    "TaskFailedError",
    "TaskFields",
    "TaskSnapshot",
    "Timeouts",
    "UnknownTaskError",
    "is_passing",
    "parse_result",
    "problems",
    "retry_after_seconds",
]

logger: logging.Logger = logging.getLogger(__name__)

MIN_POLL_INTERVAL_MS: Final = 50
"""Milliseconds between two polls at the least, also where a server suggests 0 or less."""

MAX_POLL_INTERVAL_MS: Final = 60_000
"""Milliseconds between two polls at the most, also where a server suggests to come back next year."""

MAX_FAILED_REQUESTS: Final = 3
"""How often in a row a request may fail for a reason that may pass, before its error is raised."""

_PASSING_CODES: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT, types.INTERNAL_ERROR})
"""Errors that may pass: a response was lost or late, or server or gateway are at fault (-32603 is also HTTP 502)."""


class TaskError(MCPError, TaskRuntimeError):
    """A task could not be followed to its result. Raised itself, it is the error of a `tasks/*` request.

    Attributes:
        task_id: The task, which `TasksClient.resume` takes; empty if the server did not name one.
    """

    def __init__(self, code: int, message: str, data: Any = None, *, task_id: str = "") -> None:
        super().__init__(code, message, data)
        self.task_id = task_id


class TaskFailedError(TaskError):
    """The task ended as `failed`: exactly the error that the call would have had, code, message and data."""


class TaskCancelledError(TaskError):
    """The task ended as `cancelled`, by this client or somebody else."""

    @classmethod
    def _of(cls, final: TaskSnapshot) -> Self:
        """Return the error of a cancelled task, with its last status message: maybe it says why."""
        told = f": {final.status_message}" if final.status_message else ""
        return cls(types.INTERNAL_ERROR, f"The task was cancelled{told}", task_id=final.task_id)


class UnknownTaskError(TaskError):
    """The server has no such task: it never had, it has expired, or it is somebody else's (wire rule A3)."""


class InvalidTaskResponseError(TaskError):
    """The server sent something that the protocol does not allow."""

    def __init__(
        self, code: int = types.PARSE_ERROR, message: str = "", data: Any = None, *, task_id: str = ""
    ) -> None:
        super().__init__(code, message, data, task_id=task_id)

    @classmethod
    def _because(cls, problem: str, *, task_id: str = "") -> InvalidTaskResponseError:
        return cls(message=f"Invalid response from the server: {problem}", task_id=task_id)


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """What a server said of a task at one time; it never changes.

    Under protocol revision 2025-11-25 it holds no questions, no result and no error: those come with
    `ClientTask.wait`. A result with `isError` makes the task `failed` there, and `completed` under 2026-07-28.

    Attributes:
        task_id: The task's identifier.
        status: Where the task stands.
        status_message: What the work last said of itself, or why it failed.
        created_at: Aware UTC time of creation.
        last_updated_at: Aware UTC time of the last change, by the server's clock.
        ttl_ms: Milliseconds from creation until the task is gone; `None` means never.
        poll_interval_ms: Milliseconds between two polls as the server suggests them, unclamped; `None` if
            it suggests nothing.
        input_requests_json: The open questions as JSON text.
        result_json: The result of a completed task as JSON text.
        error_json: The JSON-RPC error of a failed task as JSON text.
    """

    task_id: str
    status: TaskStatus
    status_message: str | None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None
    poll_interval_ms: int | None
    input_requests_json: str = "{}"
    result_json: str | None = None
    error_json: str | None = None

    @property
    def input_requests(self) -> dict[str, JSONObject]:
        """The open questions of a task that needs input, by key, parsed anew at each access."""
        value: dict[str, JSONObject] = load_json(self.input_requests_json)
        return value

    @property
    def result(self) -> JSONObject | None:
        """The result of a completed task, parsed anew at each access; otherwise `None`."""
        return None if self.result_json is None else load_json(self.result_json)

    @property
    def error(self) -> JSONObject | None:
        """The JSON-RPC error of a failed task, parsed anew at each access; otherwise `None`."""
        return None if self.error_json is None else load_json(self.error_json)


class RawResult(RootModel[dict[str, Any]]):
    """A result as it came."""


def _without_fraction(value: object) -> object:
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


Milliseconds: TypeAlias = Annotated[int, BeforeValidator(_without_fraction)]
"""Any number that JSON can say: the protocols want whole ones, and a fraction or 1e300 must not cost the task."""


class TaskFields(BaseModel):
    """What every form of a task has. Serialisers that drop nulls lose the TTL: it may be missing."""

    model_config: ClassVar[ConfigDict] = ConfigDict(alias_generator=to_camel)

    task_id: str
    status: TaskStatus
    status_message: str | None = None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: Milliseconds | None = None
    poll_interval_ms: Milliseconds | None = None

    def snapshot(self, task_id: str, method: str, **details: Any) -> TaskSnapshot:
        """Return what was said, if it was said of this task.

        Raises:
            InvalidTaskResponseError: It was said of another task, or at no time that there is.
        """
        if self.task_id != task_id:
            problem = f"{method}: another task than the one asked for"
            raise InvalidTaskResponseError._because(problem, task_id=task_id)
        try:
            created_at, last_updated_at = _utc(self.created_at), _utc(self.last_updated_at)
        except OverflowError:  # the first and the last day there are, in a time zone
            raise InvalidTaskResponseError._because(f"{method}: no date in UTC", task_id=task_id) from None
        return TaskSnapshot(
            task_id,
            self.status,
            self.status_message,
            created_at,
            last_updated_at,
            self.ttl_ms,
            self.poll_interval_ms,
            **details,
        )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that requests may take: one `tasks/*` request, and `tasks/cancel` when this side gives up."""

    request: float
    cancel: float


class Looks(Protocol):
    """Looks at a task again and again, as often as its server suggests."""

    @property
    def begun(self) -> int:
        """How many looks have begun."""
        ...

    def wake(self) -> None:
        """Make the next look due now."""
        ...

    async def next(self) -> TaskSnapshot:
        """Return how the task stands when the next look is due."""
        ...


Report: TypeAlias = Callable[[TaskSnapshot], Awaitable[None]]
"""Tells a snapshot to whoever wants to know."""

Beside: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""What runs while a task is followed, and is cancelled with the end."""


class RemoteTask(ABC):
    """A task on a server, as one protocol revision renders it: what `ClientTask` is made of.

    Attributes:
        session: The connection.
        task_id: The task's identifier.
        handle: What the call was answered with, until it is reported.
        has_ended: Whether the server was seen to say so.
    """

    def __init__(
        self, session: ClientSession, task_id: str, timeouts: Timeouts, *, read_timeout_seconds: float | None = None
    ) -> None:
        self.session = session
        self.task_id = task_id
        self.handle: TaskSnapshot | None = None
        self.has_ended = False
        self._timeouts = timeouts
        self._read_timeout_seconds = read_timeout_seconds
        self._abandoned = False

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
    async def subscribe(self) -> None:
        """Have changes pushed until this is cancelled. It returns, or raises, when the server does not, or stops."""

    @abstractmethod
    async def follow(self, looks: Looks, report: Report, beside: Beside) -> CallToolResult:
        """Follow the task to its end, answer its questions, and return its result or raise its error.

        Args:
            looks: When to look at it.
            report: Told the handle, if nobody was told it yet, and each look.
            beside: What else to run.
        """

    async def report_handle(self, report: Report) -> None:
        """Report what the call was answered with, once."""
        handle, self.handle = self.handle, None
        if handle is not None:
            await report(handle)

    async def request(self, request: types.Request[Any, Any], *, limited: bool = True) -> JSONObject:
        """Send a request and return the raw result. Whatever goes wrong is a `TaskError`.

        Args:
            request: The request.
            limited: Whether it may take only so long; not where the answer waits for the task's end.
        """
        method, task_id = request.method, self.task_id
        read_timeout: float | None = self._read_timeout_seconds if limited else float("inf")
        try:
            with anyio.fail_after(self._timeouts.request if read_timeout is None else None):
                raw = await self.session.send_request(request, RawResult, read_timeout)
        except MCPError as error:
            unknown = error.code == types.INVALID_PARAMS and method != "tasks/update"
            kind = UnknownTaskError if unknown else TaskError
            raise kind(error.code, error.message, error.data, task_id=task_id) from error
        except ValidationError:
            raise self.invalid(f"the result of {method}") from None
        except TimeoutError as error:
            raise TaskError(types.REQUEST_TIMEOUT, f"{method} timed out", task_id=task_id) from error
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise TaskError(types.CONNECTION_CLOSED, "Connection closed", task_id=task_id) from error
        return raw.root

    async def abandon(self) -> None:
        """Cancel the task because this side gives up; also when cancelled, but never for long."""
        if self._abandoned or self.has_ended:
            return
        self._abandoned = True
        with anyio.move_on_after(self._timeouts.cancel, shield=True):
            while True:
                try:
                    return await self.cancel()
                except Exception as error:  # whatever it is, it must not hide why the task was given up
                    rest = retry_after_seconds(error)
                    if rest is None:
                        logger.debug("A task that was given up could not be cancelled", exc_info=True)
                        return
                    await anyio.sleep(rest)

    def invalid(self, problem: str) -> InvalidTaskResponseError:
        """Return the error for something that the server must not send."""
        return InvalidTaskResponseError._because(problem, task_id=self.task_id)


def parse_result(raw: JSONObject | None, task_id: str) -> CallToolResult:
    """Return the result of a task as that of the call.

    Raises:
        InvalidTaskResponseError: It is none.
    """
    try:
        return CallToolResult.model_validate(raw, by_name=False)
    except ValidationError as error:
        raise InvalidTaskResponseError._because(f"result: {problems(error)}", task_id=task_id) from None


def is_passing(error: TaskError) -> bool:
    """Whether what failed may go well later."""
    return error.code in _PASSING_CODES or retry_after_seconds(error) is not None


def retry_after_seconds(error: Exception) -> float | None:
    """Return when a server that was asked too often, or has too much to do, wants to be asked again.

    Returns:
        Seconds, within bounds; `None` if the error says no such thing.
    """
    data = error.data if isinstance(error, TaskError) and error.code == types.INVALID_REQUEST else None
    wanted = data.get("retryAfterMs") if isinstance(data, dict) else None
    if not isinstance(wanted, int | float) or isinstance(wanted, bool) or not wanted >= 0:
        return None
    return min(max(wanted, MIN_POLL_INTERVAL_MS), MAX_POLL_INTERVAL_MS) / 1000


def problems(error: ValidationError) -> str:
    """Return what is wrong, without the values: those are the server's, and may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in found[:5])


def _utc(when: datetime) -> datetime:
    """Return the time in UTC, which it is in already where it does not say so (A4)."""
    return when.replace(tzinfo=timezone.utc) if when.tzinfo is None else when.astimezone(timezone.utc)
