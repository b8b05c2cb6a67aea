"""The form in which tasks and mailboxes stand in Redis; a later version must be able to read it.

A task's keys share one hash tag, so they live in one slot of a cluster. `P` is the store's prefix and `T`
the task's tag: its identifier, or a digest of it when that holds anything but letters, digits, `-` and `_`.

| key | type | holds |
|---|---|---|
| `P:{T}:task` | hash | the record, field by field; see `FIELDS` |
| `P:{T}:queue` | list | messages that wait, oldest first: JSON |
| `P:{T}:asked` | list | questions without an answer, as they were asked: JSON |
| `P:{T}:answers` | hash | `k` + key -> `q` + operation + space + question, or `a` + operation + space + answer |
| `P:{T}:taken` | hash | operation -> message that it took, until its caller has it |
| `P:{T}:waiting` | hash | a field for each process that waits for a message |
| `P:{owner:D}:tasks` | sorted set | one owner's tasks in order of creation: `mark` + space + `T` by place |
| `P:{owner:D}:expiry` | sorted set | the same members by the latest time at which the task can expire |
| `P:{leases:}` | sorted set | `T` by a time that is never later than the one at which the task's lease lapses |

`D` is a digest of the owner, empty without one. The last three are indexes: what they say is checked against
the task. Whatever happens to a task or its mailbox is told on the channel `P:{T}`.

Times are microseconds since 1970 UTC, as decimal integers. In a record a field that is not there is `None`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from hashlib import blake2b
from typing import Any, Final

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.types import Lease, Outcome, Task, TaskRecord, TaskRequest
from mcp_task_runtime.errors import SchemaVersionError, StoreError

__all__ = [
    "FIELDS",
    "SCHEMA_VERSION",
    "Keys",
    "dump_answer",
    "dump_message",
    "dump_record",
    "from_micros",
    "load_answer",
    "load_message",
    "load_record",
    "pack",
    "to_micros",
]

SCHEMA_VERSION: Final = 1
"""The version of this form. Whatever was stored with a later one is refused."""

FIELDS: Final = (
    "v",  # version of this form
    "mark",  # the operation that created the task; distinguishes it from another one with its identifier
    "task_id",
    "status",
    "status_message",
    "created_at",
    "last_updated_at",
    "ttl_ms",
    "poll_interval_ms",
    "revision",
    "owner",
    "retention_ms",
    "request",  # JSON array: method, name, arguments as JSON text, progress token, rerunnable
    "client_capabilities",  # JSON
    "outcome",  # JSON: the result or the error
    "outcome_message",  # the outcome's own status message
    "worker",
    "lease_expires_at",
    "attempt",
)
"""The fields of a record. There is also `op`, the operation that last changed it."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_NO_REQUEST: Final = TaskRequest()


def to_micros(time: datetime) -> int:
    """Return a time as microseconds since 1970 UTC."""
    return (time - _EPOCH) // _MICROSECOND


def from_micros(micros: bytes | int) -> datetime:
    """Return the time that `to_micros` made microseconds of."""
    return _EPOCH + timedelta(microseconds=int(micros))


def pack(text: str) -> bytes:
    """Return text as bytes. Any `str` has such a form, even one that is not proper Unicode."""
    return text.encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _maybe(data: bytes | None) -> str | None:
    return None if data is None else _unpack(data)


def _digest(text: str) -> bytes:
    return blake2b(pack(text), digest_size=20).hexdigest().encode()


class Keys:
    """The names of keys and channels of one store. Nothing from a client gets into them unescaped."""

    def __init__(self, prefix: str) -> None:
        """Make the names that begin with a prefix.

        Raises:
            ValueError: `prefix` is empty, or has braces or anything that is not printable ASCII.
        """
        if not (prefix.isascii() and prefix.isprintable()) or not prefix or "{" in prefix or "}" in prefix:
            raise ValueError("prefix must be printable ASCII without braces")
        self.opening: bytes = prefix.encode() + b":{"
        self.leases: bytes = self.opening + b"leases:}"

    @staticmethod
    def tag(task_id: str) -> bytes:
        """Return what stands for a task in the names of its keys."""
        return task_id.encode() if _PLAIN.fullmatch(task_id) else b"~" + _digest(task_id)

    def of_task(self, tag: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes, bytes]:
        """Return the keys of one task: record, queue, open questions, answers, taken messages, who waits."""
        stem = self.opening + tag + b"}:"
        return stem + b"task", stem + b"queue", stem + b"asked", stem + b"answers", stem + b"taken", stem + b"waiting"

    def channel(self, tag: bytes) -> bytes:
        """Return the channel on which everything about one task is told."""
        return self.opening + tag + b"}"

    def of_owner(self, owner: str | None) -> tuple[bytes, bytes]:
        """Return the keys of an owner's index: tasks by place, and by expiry."""
        stem = self.opening + b"owner:" + (b"" if owner is None else _digest(owner))
        return stem + b"}:tasks", stem + b"}:expiry"


def dump_record(record: TaskRecord, mark: str) -> list[bytes | int]:
    """Return the fields of a new record and their values, in turn.

    Raises:
        ValueError: Something in the request has no JSON form.
    """
    task = record.task
    created_at = to_micros(task.created_at)
    flat: list[bytes | int] = [
        *(b"v", SCHEMA_VERSION, b"mark", mark.encode(), b"op", mark.encode(), b"task_id", pack(task.task_id)),
        *(b"status", task.status.encode(), b"created_at", created_at, b"last_updated_at", created_at),
        *(b"poll_interval_ms", task.poll_interval_ms, b"revision", record.revision),
        *(b"retention_ms", record.retention_ms),
    ]
    if task.ttl_ms is not None:
        flat += b"ttl_ms", task.ttl_ms
    if record.owner is not None:
        flat += b"owner", pack(record.owner)
    if record.request != _NO_REQUEST:
        flat += b"request", _dump_request(record.request)
    if record.client_capabilities_json != "{}":
        flat += b"client_capabilities", pack(record.client_capabilities_json)
    if record.lease is not None:
        flat += b"worker", pack(record.lease.worker), b"lease_expires_at", to_micros(record.lease.expires_at)
        flat += b"attempt", record.lease.attempt
    return flat


def _dump_request(request: TaskRequest) -> bytes:
    parts = [request.method, request.name, request.arguments_json, request.progress_token, request.rerunnable]
    return dump_json(parts).encode()


def load_record(values: Sequence[bytes | None]) -> TaskRecord | None:
    """Return the record whose `FIELDS` have these values, or `None` if there is none.

    Raises:
        SchemaVersionError: A later version of this library stored it.
        StoreError: It cannot be read.
    """
    if values[0] is None:
        return None
    try:
        if int(values[0]) > SCHEMA_VERSION:
            raise SchemaVersionError(found=int(values[0]), supported=SCHEMA_VERSION)
        return _load_record(values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise StoreError("A stored task cannot be read") from error


def _load_record(values: Sequence[Any]) -> TaskRecord:
    _, _, task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, *others = values
    revision, owner, retention_ms, request, capabilities, payload, outcome_message, *leased = others
    worker, lease_expires_at, attempt = leased
    task = Task(
        _unpack(task_id),
        status.decode(),
        _maybe(status_message),
        from_micros(created_at),
        from_micros(last_updated_at),
        None if ttl_ms is None else int(ttl_ms),
        int(poll_interval_ms),
    )
    ended = task.status in ("completed", "failed", "cancelled")
    return TaskRecord(
        task,
        int(revision),
        _maybe(owner),
        int(retention_ms),
        _NO_REQUEST if request is None else TaskRequest(*load_json(request.decode())),
        "{}" if capabilities is None else _unpack(capabilities),
        Outcome(task.status, _maybe(payload), _maybe(outcome_message)) if ended else None,  # type: ignore[arg-type]
        None if worker is None else Lease(_unpack(worker), from_micros(lease_expires_at), int(attempt)),
    )


def dump_message(message: QueuedMessage) -> bytes:
    """Return a message as it is stored.

    Raises:
        ValueError: Something in it has no JSON form.
    """
    parts = [SCHEMA_VERSION, message.type, message.method, message.params_json, message.key]
    return dump_json(parts).encode()


def load_message(data: bytes) -> QueuedMessage:
    """Return a stored message.

    Raises:
        SchemaVersionError: A later version of this library stored it.
        StoreError: It cannot be read.
    """
    return QueuedMessage(*_load_parts(data))


def dump_answer(answer: Answer) -> bytes:
    """Return an answer as it is stored."""
    return dump_json([SCHEMA_VERSION, answer.type, answer.payload_json]).encode()


def load_answer(data: bytes) -> Answer:
    """Return a stored answer; see `load_message`."""
    return Answer(*_load_parts(data))


def _load_parts(data: bytes) -> list[Any]:
    try:
        version: int
        parts: list[Any]
        version, *parts = load_json(data.decode())
        newer = version > SCHEMA_VERSION
    except (TypeError, ValueError) as error:
        raise StoreError("Something stored cannot be read") from error
    if newer:
        raise SchemaVersionError(found=version, supported=SCHEMA_VERSION)
    return parts
