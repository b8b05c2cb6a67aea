"""Between the values of `core` and the columns of `_schema`. Imports no driver."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from functools import cache
from math import isfinite
from typing import Any, Final, cast, overload

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.sealed import event_excerpt
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS, create_record
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    NewTask,
    Outcome,
    Progress,
    Task,
    TaskEvent,
    TaskEventKind,
    TaskRecord,
    TaskRequest,
    TaskStatus,
    TerminalStatus,
)
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.stores._storable import check_duration, check_integer, check_json, check_object, check_text
from mcp_task_runtime.stores.postgres._schema import KEY_BYTES

__all__ = [
    "COLUMNS",
    "DamagedRowError",
    "answer_of",
    "create_parameters",
    "decode_nothing",
    "event",
    "event_of",
    "fence_parameters",
    "from_text",
    "message_of",
    "record_of",
    "sources",
    "to_bigint",
    "to_json",
    "to_key",
    "to_object",
    "to_payload",
    "to_progress",
    "to_stored",
    "to_text",
]

COLUMNS: Final = 26
"""How many columns of a row make a record."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LARGEST_BIGINT: Final = 2**63 - 1
_DEEP: Final = 100

_NO_TASK: Final = (
    *("0" * 43, "working", "working", _EPOCH, _EPOCH, 3_600_000, 500, 1, "owner", 3_600_000, "tools/call", "name"),
    *("{}", None, False, "{}", None, None, "worker", _EPOCH, 1, 3, "{}", None, None, 0),
)

_ESCAPE: Final = "\x1a"
_UNSTORABLE: Final = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPED: Final = re.compile(_ESCAPE + "([0-9a-f]{4})")
_LONG_NUMBER: Final = re.compile("[0-9]{4000}")


class DamagedRowError(StoreError):
    """A stored row holds what this library does not write."""

    def __init__(self) -> None:
        super().__init__("A stored task is damaged")


# --- text ---


@overload
def to_text(text: str) -> str: ...
@overload
def to_text(text: None) -> None: ...
@overload
def to_text(text: str | None) -> str | None: ...
def to_text(text: str | None) -> str | None:
    """Return the stored form of any text."""
    if text is None or _UNSTORABLE.search(text) is None:
        return text
    return _UNSTORABLE.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


@overload
def from_text(text: str) -> str: ...
@overload
def from_text(text: None) -> None: ...
@overload
def from_text(text: str | None) -> str | None: ...
def from_text(text: str | None) -> str | None:
    """Return the text of a stored form, or `None`."""
    if text is None or _ESCAPE not in text:
        return text
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)


@overload
def to_stored(name: str, text: str) -> str: ...
@overload
def to_stored(name: str, text: None) -> None: ...
@overload
def to_stored(name: str, text: str | None) -> str | None: ...
def to_stored(name: str, text: str | None) -> str | None:
    """Return the stored form of text that is written.

    Raises:
        ValueError: It is not Unicode; the message names it.
    """
    check_text(name, text)
    return to_text(text)


def to_key(name: str, text: str) -> str:
    """Return the stored form of text that is written and indexed.

    Raises:
        ValueError: It is not Unicode, or too long; the message names it.
    """
    key = to_stored(name, text)
    if len(key) > KEY_BYTES // 4 and len(key.encode()) > KEY_BYTES:
        raise ValueError(f"{name} must not be longer than {KEY_BYTES} bytes")
    return key


def to_bigint(number: int) -> int:
    """Return a number to compare with; -1, which no row has, for one that PostgreSQL cannot hold."""
    return number if -_LARGEST_BIGINT <= number <= _LARGEST_BIGINT else -1


# --- JSON ---


def to_json(name: str, text: str) -> str:
    """Return JSON text that can be read again (law L4).

    Raises:
        ValueError: It cannot, or holds what JSON does not know, such as NaN; the message names it.
    """
    check_json(name, text)
    return text


def to_object(name: str, text: str) -> str:
    """Return JSON text of an object that can be read again (law L4).

    Raises:
        ValueError: It is none; the message names it.
    """
    check_object(name, text)
    return text


def _object(text: Any) -> str:
    """Check that stored text is a JSON object that can be read; PostgreSQL has checked that it is JSON."""
    if not isinstance(text, str) or not text.lstrip().startswith("{"):
        raise DamagedRowError
    if "\\u" in text or text.count("[") + text.count("{") > _DEEP or _LONG_NUMBER.search(text):
        load_json(text)
    return text


# --- records ---


@cache
def sources(status: TaskStatus | None) -> str:
    """Return the statuses that `TRANSITIONS` lets a step to `status` begin at; `None` is a step to the same.

    They are an array in PostgreSQL's own form, for the driver takes long to make one of a list.
    """
    found = [now for now, following in TRANSITIONS.items() if (now if status is None else status) in following]
    return "{" + ",".join(found) + "}"


def fence_parameters(fence: Fence | None) -> dict[str, Any]:
    """Return the parameters of a fence."""
    if fence is None:
        return {"fence_worker": None, "fence_attempt": None}
    return {"fence_worker": to_text(fence.worker), "fence_attempt": to_bigint(fence.attempt)}


def create_parameters(new: NewTask, *, now: datetime) -> dict[str, Any]:
    """Return the parameters of `CREATE` for a new task, all but those of the process.

    Args:
        new: The task; it has an identifier.
        now: Any time of this century.

    Raises:
        ValueError: Something of it could not be read again (law L4), or is too long; the message names it.
    """
    for name in ("ttl_ms", "retention_ms", "lease_ms"):
        check_duration(name, getattr(new, name))
    check_integer("poll_interval_ms", new.poll_interval_ms)
    check_integer("max_attempts", new.request.max_attempts)
    record = create_record(new, now=now)
    task, request, lease = record.task, record.request, record.lease
    token = request.progress_token
    if isinstance(token, str):
        token = to_stored("progress_token", token)
    return {
        "task_id": to_key("task_id", task.task_id),
        "owner": None if record.owner is None else to_key("owner", record.owner),
        "status": task.status,
        "status_message": to_stored("status_message", task.status_message),
        "ttl_ms": task.ttl_ms,
        "poll_interval_ms": task.poll_interval_ms,
        "retention_ms": record.retention_ms,
        "revision": record.revision,
        "method": to_stored("method", request.method),
        "name": to_stored("name", request.name),
        "arguments": to_object("arguments_json", request.arguments_json),
        "progress_token": None if token is None else to_json("progress_token", dump_json(token)),
        "rerunnable": request.rerunnable,
        "max_attempts": request.max_attempts,
        "caller": to_object("caller_json", request.caller_json),
        "sealed_credentials": to_stored("sealed_credentials", request.sealed_credentials),
        "client_capabilities": to_object("client_capabilities_json", record.client_capabilities_json),
        "lease_worker": None if lease is None else to_stored("worker", lease.worker),
        "lease_ms": None if lease is None else new.lease_ms,
        "max_live": None if new.max_live is None else to_bigint(new.max_live),
        "lease_attempt": None if lease is None else lease.attempt,
    }


def record_of(row: Sequence[Any]) -> TaskRecord:
    """Return the record of a row that begins with the columns of a task.

    Raises:
        DamagedRowError: The row holds what this library does not write.
    """
    try:
        return _record_of(row)
    except DamagedRowError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise DamagedRowError from error


def decode_nothing() -> None:
    """Spend the time that decoding a record takes, so that an unknown task and a foreign one look the same (L10)."""
    _record_of(_NO_TASK)


def _record_of(row: Sequence[Any]) -> TaskRecord:
    (
        task_id,
        status,
        message,
        created_at,
        updated_at,
        ttl_ms,
        poll_interval_ms,
        revision,
        owner,
        retention_ms,
        method,
        name,
        arguments,
        token,
        rerunnable,
        capabilities,
        outcome,
        outcome_message,
        worker,
        lease_expires_at,
        attempt,
        max_attempts,
        caller,
        sealed_credentials,
        progress,
        handovers,
    ) = row[:COLUMNS]
    if status not in TRANSITIONS or not (worker is None) == (lease_expires_at is None) == (attempt is None):
        raise DamagedRowError
    task = Task(
        from_text(task_id),
        status,
        from_text(message),
        utc(created_at),
        utc(updated_at),
        ttl_ms,
        poll_interval_ms,
    )
    _ = task.expires_at  # raises where it is no time
    return TaskRecord(
        task,
        revision,
        from_text(owner),
        retention_ms,
        TaskRequest(
            from_text(method),
            from_text(name),
            _object(arguments),
            None if token is None else _token_of(load_json(token)),
            rerunnable,
            max_attempts,
            _object(caller),
            from_text(sealed_credentials),
        ),
        _object(capabilities),
        _outcome_of(status, outcome, outcome_message),
        None if worker is None else Lease(from_text(worker), utc(lease_expires_at), attempt, handovers),
        None if progress is None else _progress_of(load_json(progress)),
    )


def _outcome_of(status: TaskStatus, payload: str | None, message: str | None) -> Outcome | None:
    if (payload is not None) != (status in ("completed", "failed")):
        raise DamagedRowError
    if status not in TERMINAL_STATUSES:
        return None
    return Outcome(cast("TerminalStatus", status), None if payload is None else _object(payload), from_text(message))


def _token_of(token: Any) -> str | int:
    if isinstance(token, str):
        return from_text(token)
    if type(token) is not int:
        raise DamagedRowError
    return token


def to_progress(progress: Progress) -> str:
    """Return the stored form of progress.

    Raises:
        ValueError: It is no number that JSON knows.
    """
    if not (_is_number(progress.progress) and (progress.total is None or _is_number(progress.total))):
        raise ValueError("progress must be of finite numbers")
    return dump_json([progress.progress, progress.total, to_stored("progress.message", progress.message)])


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and isfinite(value))


def _progress_of(value: Any) -> Progress:
    progress, total, message = value
    if not (_is_number(progress) and (total is None or _is_number(total))):
        raise DamagedRowError
    return Progress(progress, total, from_text(message))


# --- messages and answers ---


def message_of(row: Sequence[Any]) -> QueuedMessage:
    """Return the message of a row of key, method and params.

    Raises:
        DamagedRowError: The row holds what this library does not write.
    """
    key, method, params = row
    try:
        return QueuedMessage(
            "notification" if key is None else "request", from_text(method), _object(params), from_text(key)
        )
    except ValueError as error:
        raise DamagedRowError from error


def answer_of(answer_type: str, payload: str) -> Answer:
    """Return a stored answer.

    Raises:
        DamagedRowError: The row holds what this library does not write.
    """
    try:
        if answer_type not in ("result", "error", "withdrawn"):
            raise DamagedRowError
        if answer_type != "withdrawn":
            _object(payload)
    except ValueError as error:
        raise DamagedRowError from error
    return Answer(cast("Any", answer_type), payload)


def to_payload(answer: Answer) -> str:
    """Return the stored form of what an answer says.

    Raises:
        ValueError: It could not be read again (law L4).
    """
    return (to_json if answer.type == "withdrawn" else to_object)("payload_json", answer.payload_json)


# --- events ---


def event(kind: TaskEventKind, text: str | None = None) -> str:
    """Return the stored form of an event, but for its time."""
    return kind if text is None else f"{kind} {to_text(event_excerpt(text))}"


def event_of(stored: str) -> TaskEvent:
    """Return a stored event.

    Raises:
        DamagedRowError: It is none.
    """
    try:
        at, kind, *text = stored.split(" ", 2)
        when = _EPOCH + timedelta(microseconds=int(at))
    except (ArithmeticError, ValueError) as error:
        raise DamagedRowError from error
    return TaskEvent(when, cast("TaskEventKind", kind), from_text(text[0]) if text else None)


def utc(time: datetime) -> datetime:
    """Return a time that came in the session's time zone."""
    return time.astimezone(timezone.utc)
