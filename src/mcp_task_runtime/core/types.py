"""The values everything else passes around: frozen, era-neutral, JSON all the way down."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.errors import INTERNAL_ERROR

__all__ = [
    "Lease",
    "LiveStatus",
    "Outcome",
    "Task",
    "TaskPage",
    "TaskRecord",
    "TaskRequest",
    "TaskStatus",
    "TerminalStatus",
]

LiveStatus: TypeAlias = Literal["working", "input_required"]
"""The statuses of a task that has not ended."""

TerminalStatus: TypeAlias = Literal["completed", "failed", "cancelled"]
"""The statuses a task ends in, once and for all."""

TaskStatus: TypeAlias = Literal["working", "input_required", "completed", "failed", "cancelled"]
"""Where a task stands (wire rule A1). A task begins as `working`."""


@dataclass(frozen=True, slots=True)
class Task:
    """A snapshot of one task, the same for both protocols; it never changes.

    Attributes:
        task_id: Unguessable identifier, at least 128 random bits (wire rule A2).
        status: Where the task stands.
        status_message: What the work last said of itself, or why the task failed.
        created_at: Aware UTC time of creation.
        last_updated_at: Aware UTC time of the last change; never earlier than a previous one.
        ttl_ms: Milliseconds from creation until the task is gone; `None` means never.
        poll_interval_ms: Milliseconds a client should wait between two polls.
    """

    task_id: str
    status: TaskStatus
    status_message: str | None
    created_at: datetime
    last_updated_at: datetime
    ttl_ms: int | None
    poll_interval_ms: int

    @property
    def expires_at(self) -> datetime | None:
        """When the task is gone for every caller at once (law L7), or `None` for never."""
        return None if self.ttl_ms is None else self.created_at + timedelta(milliseconds=self.ttl_ms)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: a terminal status together with what belongs to it.

    Make one with `completed`, `failed` or `cancelled`. A result whose `isError` is true is a
    *completed* outcome here; each wire renders it by its own rule (B7, C10).

    Attributes:
        status: The terminal status.
        payload_json: The result of a completed task, the JSON-RPC error of a failed one, as JSON text.
        status_message: Replaces the task's status message, unless `None`.
    """

    status: TerminalStatus
    payload_json: str | None = None
    status_message: str | None = None

    @classmethod
    def completed(cls, result: object, *, status_message: str | None = None) -> Outcome:
        """Return the outcome of work that gave a result: a JSON object, or a pydantic model of one.

        Raises:
            ValueError: The result has no JSON form, or is not a JSON object.
        """
        payload = dump_json(result)
        if not payload.startswith("{"):
            raise ValueError("result must be a JSON object")
        return cls("completed", payload, status_message)

    @classmethod
    def failed(
        cls, message: str, *, code: int = INTERNAL_ERROR, data: JSONValue = None, status_message: str | None = None
    ) -> Outcome:
        """Return the outcome of work that ended in a JSON-RPC error.

        The error's message is also the status message, unless another is given (wire rule B13).

        Raises:
            ValueError: `data` has no JSON form.
        """
        error: JSONObject = {"code": code, "message": message}
        if data is not None:
            error["data"] = data
        return cls("failed", dump_json(error), message if status_message is None else status_message)

    @classmethod
    def cancelled(cls, *, status_message: str | None = None) -> Outcome:
        """Return the outcome of a task that was cancelled."""
        return cls("cancelled", None, status_message)

    @property
    def result(self) -> JSONObject | None:
        """The result of a completed task, parsed anew at each access; otherwise `None`."""
        return self._payload() if self.status == "completed" else None

    @property
    def error(self) -> JSONObject | None:
        """The JSON-RPC error of a failed task, parsed anew at each access; otherwise `None`."""
        return self._payload() if self.status == "failed" else None

    def _payload(self) -> JSONObject | None:
        if self.payload_json is None:
            return None
        value: JSONObject = load_json(self.payload_json)
        return value


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The request a task was made for: enough to show it, and to run it again.

    Attributes:
        method: The JSON-RPC method.
        name: What was called: the tool's name.
        arguments_json: The arguments as JSON text.
        progress_token: The caller's progress token, valid for the task's life (wire rule B11).
        rerunnable: Whether the work may be run again when the process that ran it is lost (law L12).
    """

    method: str = "tools/call"
    name: str = ""
    arguments_json: str = "{}"
    progress_token: str | int | None = None
    rerunnable: bool = False

    @property
    def arguments(self) -> JSONObject:
        """The arguments, parsed anew at each access."""
        value: JSONObject = load_json(self.arguments_json)
        return value


_NO_REQUEST = TaskRequest()


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs a task's work, and until when that holds unless it is renewed (law L12).

    Attributes:
        worker: Name of the process that runs the work, different for each.
        expires_at: When the worker counts as lost.
        attempt: 1 for the first run of the work, one more for each rerun.
    """

    worker: str
    expires_at: datetime
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What a store keeps of one task.

    Attributes:
        task: The snapshot that clients see.
        revision: 1 at creation, one more with each change of the task; never the same twice.
        owner: The principal the task belongs to (law L10); `None` where there is none.
        retention_ms: Milliseconds the outcome can be fetched after the end, at the least (law L7).
        request: The request the task was made for.
        client_capabilities_json: What the client declared when it made the task, as JSON text.
        outcome: How the task ended; `None` exactly while it has not (law L2).
        lease: Who runs the work of a live task; `None` where nobody must, as after `Execution.detach`.
    """

    task: Task
    revision: int = 1
    owner: str | None = None
    retention_ms: int = 0
    request: TaskRequest = field(default=_NO_REQUEST)
    client_capabilities_json: str = "{}"
    outcome: Outcome | None = None
    lease: Lease | None = None

    @property
    def task_id(self) -> str:
        """The task's identifier."""
        return self.task.task_id

    @property
    def status(self) -> TaskStatus:
        """Where the task stands."""
        return self.task.status

    @property
    def client_capabilities(self) -> JSONObject:
        """What the client declared when it made the task, parsed anew at each access."""
        value: JSONObject = load_json(self.client_capabilities_json)
        return value


@dataclass(frozen=True, slots=True)
class TaskPage:
    """One page of a list of tasks.

    Attributes:
        records: The tasks, oldest first.
        next_cursor: Opaque token for the next page; `None` after the last.
    """

    records: tuple[TaskRecord, ...]
    next_cursor: str | None = None
