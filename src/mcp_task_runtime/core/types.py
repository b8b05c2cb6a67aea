"""The values everything else passes around: frozen, era-neutral, JSON all the way down."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from secrets import token_urlsafe
from typing import Final, Literal, TypeAlias

from typing_extensions import TypedDict

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json, load_json
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.errors import INTERNAL_ERROR

__all__ = [
    "COUNTED_AT_MOST",
    "DEFAULT_POLL_INTERVAL_MS",
    "LOOKED_AT_MOST",
    "Fence",
    "Finding",
    "Lease",
    "LiveStatus",
    "NewTask",
    "NewTaskFields",
    "Outcome",
    "Progress",
    "Task",
    "TaskCounts",
    "TaskEvent",
    "TaskEventKind",
    "TaskFilter",
    "TaskPage",
    "TaskRecord",
    "TaskRequest",
    "TaskSpec",
    "TaskStatus",
    "TerminalStatus",
]

DEFAULT_POLL_INTERVAL_MS: Final = 500
"""How long clients are asked to wait between polls where nothing else is said; see `core.polls`."""

COUNTED_AT_MOST: Final = 50_000
"""How many tasks a store counts one by one for `TaskCounts`, of all statuses and tools together."""

LOOKED_AT_MOST: Final = 2_000
"""How many tasks one page of a search looks at where no index finds those that match; see `TaskSearch`."""

_MILLISECOND: Final = timedelta(milliseconds=1)
_IS_ERROR: Final = re.compile(r'"isError"\s*:\s*true')

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
        return None if self.ttl_ms is None else self.created_at + self.ttl_ms * _MILLISECOND


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
        """The result of a completed task, parsed again at each access; otherwise `None`."""
        return self._payload() if self.status == "completed" else None

    @property
    def error(self) -> JSONObject | None:
        """The JSON-RPC error of a failed task, parsed again at each access; otherwise `None`."""
        return self._payload() if self.status == "failed" else None

    @property
    def is_error(self) -> bool:
        """Whether the task completed with a result whose `isError` is true."""
        if self.status != "completed" or self.payload_json is None or "true" not in self.payload_json:
            return False
        if _IS_ERROR.search(self.payload_json) is None:
            return False
        result: JSONValue = load_json(self.payload_json)
        return isinstance(result, dict) and result.get("isError") is True

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
        max_attempts: Most runs of rerunnable work, the first one included (law L12). Runs that were handed over
            do not count; see `Lease.used_attempts`.
        caller_json: What a rerun or a worker elsewhere needs to know of the caller, as a JSON object: its
            protocol version, trace context, principal (law L18). No secrets.
        sealed_credentials: The caller's credentials, encrypted by the adapter; `None` unless asked for.
    """

    method: str = "tools/call"
    name: str = ""
    arguments_json: str = "{}"
    progress_token: str | int | None = None
    rerunnable: bool = False
    max_attempts: int = 3
    caller_json: str = "{}"
    sealed_credentials: str | None = None

    @property
    def arguments(self) -> JSONObject:
        """The arguments, parsed again at each access."""
        value: JSONObject = load_json(self.arguments_json)
        return value

    @property
    def caller(self) -> JSONObject:
        """What is known of the caller, parsed again at each access."""
        value: JSONObject = load_json(self.caller_json)
        return value

    @property
    def digest_key(self) -> bytes:
        """What keys the digests of values that become names of questions and steps; empty where nothing is sealed."""
        key: str = self.caller.get(_DIGEST_KEY, "")
        return key.encode()

    def with_digest_key(self) -> TaskRequest:
        """Return this request with a `digest_key` of its own, which is sealed together with it."""
        return replace(self, caller_json=dump_json({**self.caller, _DIGEST_KEY: token_urlsafe(16)}))


_NO_REQUEST = TaskRequest()
_DIGEST_KEY: Final = "digestKey"


@dataclass(frozen=True, slots=True)
class Fence:
    """Names one run of a task's work. A write that carries it is refused once the run has lost its lease (law L12).

    Attributes:
        worker: Name of the process that runs the work.
        attempt: The run's number.
    """

    worker: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Who runs a task's work, and until when that holds unless it is renewed (law L12).

    Attributes:
        worker: Name of the process that runs the work, different for each. Empty while no process holds the
            lease: the work waits for a worker.
        expires_at: When the worker counts as lost; of a lease that no process holds, when the wait for a worker
            is overdue.
        attempt: 1 for the first run of the work, one more for each rerun; 0 before the first run.
        handovers: How many runs were handed over to another process before their lease lapsed, as a worker does when
            it shuts down.
    """

    worker: str
    expires_at: datetime
    attempt: int = 1
    handovers: int = 0

    @property
    def used_attempts(self) -> int:
        """How many of `TaskRequest.max_attempts` are used, by this run too: those handed over do not count."""
        return self.attempt - self.handovers

    @property
    def fence(self) -> Fence:
        """What the writes of the run that holds this lease carry."""
        return Fence(self.worker, self.attempt)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work of a task is.

    Attributes:
        progress: More each time it is reported.
        total: What `progress` will be at the end; `None` where that is unknown.
        message: What the work is doing.
    """

    progress: float
    total: float | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """What a store keeps of one task.

    Attributes:
        task: The snapshot that clients see.
        revision: 1 at creation, one more with each change of the task; never the same twice.
        owner: The principal the task belongs to (law L10); `None` where there is none.
        retention_ms: Fewest milliseconds for which the outcome can be fetched after the end (law L7).
        request: The request the task was made for.
        client_capabilities_json: What the client declared when it made the task, as JSON text.
        outcome: How the task ended; `None` exactly while it has not (law L2).
        lease: Who runs the work of a live task; `None` where no process must, as after `Execution.detach`.
        progress: The last progress that the work reported; it stays when the task ends.
    """

    task: Task
    revision: int = 1
    owner: str | None = None
    retention_ms: int = 0
    request: TaskRequest = field(default=_NO_REQUEST)
    client_capabilities_json: str = "{}"
    outcome: Outcome | None = None
    lease: Lease | None = None
    progress: Progress | None = None

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
        """What the client declared when it made the task, parsed again at each access."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task to be stored; `TaskStore.create_task` takes it.

    Attributes:
        ttl_ms: Milliseconds until the task expires; `None` for never.
        poll_interval_ms: Milliseconds a client should wait between polls.
        task_id: Identifier to use; the store makes one with at least 128 random bits when it is `None`.
        owner: Principal the task belongs to (law L10).
        retention_ms: Fewest milliseconds for which the outcome can be fetched after the end (law L7).
        request: The request the task is made for.
        client_capabilities_json: What the client declared, as JSON text.
        worker: Name of the process that runs the work: it holds the first lease (law L12). Empty for a lease
            that no process holds yet, `None` for no lease. A store without `TaskLeases` only records it.
        lease_ms: How long that lease lasts, in milliseconds.
        status_message: The first status message.
        max_live: Live tasks that the owner may have, this one included. A store with `TaskQuotas` refuses one more.
            With 0 it creates none: `TaskJoins.join_task` joins a task then, or is refused.
    """

    ttl_ms: int | None
    poll_interval_ms: int = DEFAULT_POLL_INTERVAL_MS
    task_id: str | None = None
    owner: str | None = None
    retention_ms: int = 0
    request: TaskRequest = _NO_REQUEST
    client_capabilities_json: str = "{}"
    worker: str | None = None
    lease_ms: int = 30_000
    status_message: str | None = None
    max_live: int | None = None

    @classmethod
    def of(cls, new: NewTask | None, fields: NewTaskFields) -> NewTask:
        """Return the task that was given whole or by its fields, as the bundled stores take it.

        Raises:
            TypeError: Both were given, or neither, or there is no field of that name.
        """
        if new is None:
            return cls(**fields)  # type: ignore[typeddict-item, unused-ignore]
        if fields:
            raise TypeError("create_task takes a NewTask or its fields, not both")
        return new


class NewTaskFields(TypedDict, total=False):
    """The fields of `NewTask` as keyword arguments."""

    ttl_ms: int | None
    poll_interval_ms: int
    task_id: str | None
    owner: str | None
    retention_ms: int
    request: TaskRequest
    client_capabilities_json: str
    worker: str | None
    lease_ms: int
    status_message: str | None
    max_live: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task as a caller wants it; `TaskRuntime` brings it within the bounds of `TaskSettings`.

    Attributes:
        owner: Principal the task belongs to, if there is one (law L10).
        ttl_ms: Wanted TTL in milliseconds; `None` for the default of `TaskSettings`.
        poll_interval_ms: Milliseconds clients wait between polls; `None` for the default.
        request: The request the task is made for.
        client_capabilities_json: What the client declared, as JSON text.
        task_id: Its identifier, by `new_task_id`; a new one when `None`.
        queue: Where its work waits for a slot, besides those of all work; `None` for no queue.
        join_key: Names the call and its owner: a task that was made with the same key may take the place of this one
            (`TaskJoins`). `None`: none does.
    """

    owner: str | None = None
    ttl_ms: int | None = None
    poll_interval_ms: int | None = None
    request: TaskRequest = _NO_REQUEST
    client_capabilities_json: str = "{}"
    task_id: str | None = None
    queue: WorkQueue | None = None
    join_key: str | None = None


TaskEventKind: TypeAlias = Literal[
    "created", "claimed", "released", "status", "asked", "answered", "withdrawn", "completed", "failed", "cancelled"
]
"""What happened to a task."""


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """One entry in the history of a task, for operators.

    Attributes:
        at: Aware UTC time.
        kind: What happened.
        text: The status message, the key of the question, the worker and attempt of a claim as `worker#attempt`;
            cut to `EVENT_TEXT_LENGTH` characters by `event_excerpt`.
    """

    at: datetime
    kind: TaskEventKind
    text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks an operator wants to see; what is `None` does not matter.

    Attributes:
        statuses: In one of these statuses.
        names: For one of these tools (`TaskRequest.name`).
        owners: Of one of these owners; `None` among them stands for tasks without an owner.
        id_prefix: With an identifier that begins so.
        text: With a status message that contains this, regardless of ASCII case.
        created_after: Created at this aware time or later.
        created_before: Created before this aware time.
        errors_only: Completed with a result whose `isError` is true; a task that failed has a status of its own.
    """

    statuses: frozenset[TaskStatus] | None = None
    names: frozenset[str] | None = None
    owners: frozenset[str | None] | None = None
    id_prefix: str | None = None
    text: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    errors_only: bool = False


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How many tasks a store has.

    Attributes:
        by_status_and_name: Number of tasks for each status and tool that has any.
        oldest_working: When the oldest task in `working` was created.
        oldest_input_required: When the oldest task in `input_required` was created.
        errors_by_name: Number of tasks for each tool that completed with a result whose `isError` is true. They count
            as `completed`, too.
        counted_up_to: What the numbers by status and tool go up to: one of that size means at least so many. `None`
            where they are exact.
        errors_up_to: The same for the numbers of errors.
    """

    by_status_and_name: dict[tuple[TaskStatus, str], int]
    oldest_working: datetime | None = None
    oldest_input_required: datetime | None = None
    errors_by_name: dict[str, int] = field(default_factory=dict)
    counted_up_to: int | None = None
    errors_up_to: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, for operators.

    Attributes:
        subject: What was checked.
        level: `ok`, `warning` or `error`.
        text: What was found, and what to do about it.
    """

    subject: str
    level: Literal["ok", "warning", "error"]
    text: str
