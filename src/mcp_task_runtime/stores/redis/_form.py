"""The form in which tasks and mailboxes stand in Redis; a later version must be able to read it.

A task's keys share one hash tag, so they live in one slot of a cluster. `P` is the store's prefix and `T`
the task's tag: its identifier, or a digest of it when that contains anything but letters, digits, `-` and `_`.

| key | type | holds |
|---|---|---|
| `P:{T}:task` | hash | the record, field by field; see `FIELDS` |
| `P:{T}:queue` | list | messages that wait, oldest first: JSON |
| `P:{T}:asked` | list | questions without an answer, as they were asked: JSON |
| `P:{T}:answers` | hash | `k` + key -> `q` + operation + space + question, or `a` + operation + space + answer |
| `P:{T}:taken` | hash | operation -> message that it took, until its caller has it |
| `P:{T}:waiting` | hash | a field for each process that waits for a message |
| `P:{T}:events` | list | what happened to the task, oldest first: time, kind and, if there is one, text |
| `P:{T}:steps` | hash | key of a step -> its number + space + its result as JSON |
| `P:{owner:D}:tasks` | sorted set | one owner's tasks in order of creation: `mark` + space + `T` by place |
| `P:{owner:D}:expiry` | sorted set | the same members by the latest time at which the task can expire |
| `P:{calls:}:tasks` | hash | digest of a call's key -> identifier of the task that a repeated call joins |
| `P:{calls:}:expiry` | sorted set | the same digests by the time until which that is known |
| `P:{leases:}` | sorted set | `T` by a time that is never later than the one at which the task's lease lapses |
| `P:{leases:}:waiting:N` | sorted set | tasks of the tool whose tag is `N` that no process holds: `T` by that time |
| `P:{leases:}:taken:U` | string | the tags of what the operation `U` took for a worker, until its caller has them |
| `P:{leases:}:waiting` | string | is there once those tasks of an earlier version stand in these sets, too |
| `P:{search:}:all` | sorted set | all tasks in order of creation: entries by place |
| `P:{search:}:S:N` | sorted set | those in status `S` of the tool whose tag is `N`, by the same places |
| `P:{search:}:error:N` | sorted set | those of the tool whose tag is `N` that completed with an error |
| `P:{search:}:owner:O` | sorted set | those of the owner whose tag is `O`, by the same places |
| `P:{search:}:live:O` | sorted set | those of them that have not ended, by the time at which they expire or `inf` |
| `P:{search:}:expiry` | sorted set | entries by the latest time at which the task can expire |
| `P:{search:}:ids` | sorted set | identifier (of another tag: 128 bytes of it) + NUL + entry, all with score 0 |
| `P:{search:}:names` | hash | `N` -> name of the tool |

`D` is a digest of the owner, empty without one. `N` is a tool's name, or a digest where it contains anything but
letters, digits, `-` and `_`; `O` the beginning of a digest of the owner, `-` without one. An entry is `T` + space +
`N` + space + `O`, and where `T` is a digest + space + 128 bytes of the identifier in hexadecimal digits. The keys of
owners, leases and the search are indexes: what they say is checked against the task. Changes of a task or its
mailbox are published on the channel `P:{T}`, and a task that waits for a worker on the channel `P:{leases:}`. The tag
of a task that has ended or was deleted is also published on the channels `P:{store:U}` of the store objects that made
it and that were the last to claim it: `U` is what their operations, the fields `mark` and `claim`, begin with.

In `P:{leases:}` tasks that no process holds stand apart from those that a worker holds: their time is less by `WAITS`.
One that stands among the others, because an earlier version or, on a cluster, a process that ended left it there, is
moved when these are read. One that a worker holds and that stands among the waiting ones is moved when a worker looks
for work.

Times are microseconds since 1970 UTC, as decimal integers. In a record a field that is missing is `None`.

Version 1 had no events, steps and search, and no `progress`, `name` and `owner_tag`; its requests ended after
`rerunnable`. A task of version 1 is added to the search when its status changes. The first tasks of version 2 have no
`handovers`, and stand in no set of waiting tasks until a worker or a sweep of leases adds them; who does not know that
field and these sets may ignore them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from hashlib import blake2b, sha1
from typing import Any, Final

from mcp_task_runtime.core.json import dump_json, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.sealed import event_excerpt
from mcp_task_runtime.core.text import clean_text
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS
from mcp_task_runtime.core.types import (
    Lease,
    Outcome,
    Progress,
    Task,
    TaskEvent,
    TaskRecord,
    TaskRequest,
    TaskStatus,
)
from mcp_task_runtime.errors import SchemaVersionError, StoreError

__all__ = [
    "ANSWERS",
    "ASKED",
    "EVENTS",
    "FIELDS",
    "HEAD",
    "QUEUE",
    "SCHEMA_VERSION",
    "STEPS",
    "TAKEN",
    "WAITING",
    "WAITS",
    "Keys",
    "dump_answer",
    "dump_message",
    "dump_progress",
    "dump_record",
    "event_text",
    "from_micros",
    "key_field",
    "lease_place",
    "load_answer",
    "load_event",
    "load_message",
    "load_nothing",
    "load_record",
    "pack",
    "schema_error",
    "to_micros",
]

SCHEMA_VERSION: Final = 2
"""The version of this form. What was stored with a later one is refused."""

WAITS: Final = 2**53
"""Microseconds until the year 2255: by so much a task that no process holds comes earlier in the index of leases."""

_MESSAGE_VERSION: Final = 1
"""The version of the form of messages and answers."""

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
    "request",  # JSON array: the attributes of `TaskRequest` in turn
    "client_capabilities",  # JSON
    "outcome",  # JSON: the result or the error
    "outcome_message",  # the outcome's own status message
    "worker",
    "lease_expires_at",
    "attempt",
    "progress",  # JSON array: the attributes of `Progress` in turn
    "handovers",  # of the lease; missing for 0
)
"""The fields of a record. There are also `op`, the operation that last changed it, `claim`, the one that last claimed
it, and for the scripts `name`, the tool's, and `owner_tag`, the digest of the owner."""

HEAD: Final = (
    *("v", "created_at", "ttl_ms", "status", "revision", "last_updated_at", "retention_ms"),
    *("op", "owner", "mark", "claim", "worker", "lease_expires_at", "attempt", "handovers", "name", "owner_tag"),
)
"""The fields that each script about a task reads: all are short."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_NO_REQUEST: Final = TaskRequest()
_REQUEST_FIELDS: Final = tuple(item.name for item in fields(TaskRequest))
_KINDS: Final = (b"task", b"queue", b"asked", b"answers", b"taken", b"waiting", b"events", b"steps")
QUEUE, ASKED, ANSWERS, TAKEN, WAITING, EVENTS, STEPS = range(1, 8)
"""Where the keys of a task stand among `Keys.of_task`; the first is the record's."""


def to_micros(time: datetime) -> int:
    """Return a time as microseconds since 1970 UTC."""
    return (time - _EPOCH) // _MICROSECOND


def lease_place(lease: Lease) -> int:
    """Return the score that a task with this lease has in the index of leases."""
    return to_micros(lease.expires_at) - (0 if lease.worker else WAITS)


def from_micros(micros: bytes | int) -> datetime:
    """Return the time that `to_micros` made microseconds of."""
    return _EPOCH + timedelta(microseconds=int(micros))


def pack(text: str) -> bytes:
    """Return text as bytes.

    Raises:
        ValueError: It contains a lone surrogate.
    """
    return text.encode()


def _unpack(data: bytes) -> str:
    return data.decode()


def _maybe(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest().encode()


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
        self.all_waiting: bytes = self.leases + b":waiting"
        self.search: bytes = self.opening + b"search:}:"
        self.calls: tuple[bytes, bytes] = (self.opening + b"calls:}:tasks", self.opening + b"calls:}:expiry")

    @staticmethod
    def tag(task_id: str) -> bytes:
        """Return what stands for a task in the names of its keys."""
        return task_id.encode() if _PLAIN.fullmatch(task_id) else b"~" + _digest(task_id)

    def of_task(self, tag: bytes) -> tuple[bytes, ...]:
        """Return the keys of one task: record, queue, open questions, answers, taken, waiting, events, steps."""
        stem = self.opening + tag + b"}:"
        return tuple(stem + kind for kind in _KINDS)

    def channel(self, tag: bytes) -> bytes:
        """Return the channel on which changes of one task are published."""
        return self.opening + tag + b"}"

    def channel_of_store(self, name: str) -> bytes:
        """Return the channel on which a store object is told of the ends of tasks that it made or claimed."""
        return self.opening + b"store:" + name.encode() + b"}"

    @staticmethod
    def owner_tag(owner: str | None) -> bytes:
        """Return what stands for an owner in the names of keys."""
        return b"" if owner is None else _digest(owner)

    def of_owner(self, owner: str | None) -> tuple[bytes, bytes]:
        """Return the keys of an owner's index: tasks by place, and by expiry."""
        stem = self.opening + b"owner:" + self.owner_tag(owner)
        return stem + b"}:tasks", stem + b"}:expiry"

    @staticmethod
    def call(key: str) -> bytes:
        """Return what stands for a call that may be joined."""
        return _digest(key)

    @staticmethod
    def name_tag(name: str) -> bytes:
        """Return what stands for a tool in the names of keys, as in `sets.lua`."""
        plain = _PLAIN_NAME.fullmatch(name)
        data = name.encode("utf-8", "surrogatepass")
        return data if plain else b"~" + sha1(data, usedforsecurity=False).hexdigest().encode()

    @staticmethod
    def search_owner(owner: str | None) -> bytes:
        """Return what stands for an owner in the search index, as in `filing.lua`; several may have the same."""
        if owner is None:
            return b"-"
        data = owner.encode("utf-8", "surrogatepass")
        return sha1(data, usedforsecurity=False).hexdigest()[:12].encode()

    def waiting(self, name_tag: bytes) -> bytes:
        """Return the key of the tasks of a tool that wait for a worker, as in `task.lua`."""
        return self.all_waiting + b":" + name_tag

    def taken(self, operation: str) -> bytes:
        """Return the key of what an operation has taken for a worker."""
        return self.leases + b":taken:" + operation.encode()

    def entry(self, record: TaskRecord) -> bytes:
        """Return a task's entry in the search index, as in `filing.lua`."""
        tag = self.tag(record.task_id)
        entry = b" ".join((tag, self.name_tag(record.request.name), self.search_owner(record.owner)))
        return entry + b" " + record.task_id.encode()[:128].hex().encode() if tag.startswith(b"~") else entry


def dump_record(record: TaskRecord, mark: str) -> list[bytes | int]:
    """Return the fields of a new record and their values, in turn, without the times: those are the script's."""
    task = record.task
    flat: list[bytes | int] = [
        *(b"v", SCHEMA_VERSION, b"mark", mark.encode(), b"op", mark.encode()),
        *(b"task_id", pack(task.task_id), b"status", task.status.encode()),
        *(b"poll_interval_ms", task.poll_interval_ms, b"revision", record.revision),
        *(b"retention_ms", record.retention_ms, b"owner_tag", Keys.owner_tag(record.owner)),
    ]
    if task.status_message is not None:
        flat += b"status_message", pack(task.status_message)
    if task.ttl_ms is not None:
        flat += b"ttl_ms", task.ttl_ms
    if record.owner is not None:
        flat += b"owner", pack(record.owner)
    if record.request != _NO_REQUEST:
        flat += b"request", _dump_request(record.request), b"name", pack(record.request.name)
    if record.client_capabilities_json != "{}":
        flat += b"client_capabilities", pack(record.client_capabilities_json)
    if record.lease is not None:
        flat += b"worker", pack(record.lease.worker), b"attempt", record.lease.attempt
    return flat


def _dump_request(request: TaskRequest) -> bytes:
    return dump_json([getattr(request, name) for name in _REQUEST_FIELDS]).encode()


def dump_progress(progress: Progress) -> bytes:
    """Return progress as it is stored."""
    return dump_json([progress.progress, progress.total, progress.message]).encode()


def load_record(values: Sequence[bytes | None]) -> TaskRecord | None:
    """Return the record whose `FIELDS` have these values, or `None` if there is none.

    Raises:
        SchemaVersionError: A later version of this library stored it.
        StoreError: It is damaged.
    """
    if values[0] is None:
        return None
    try:
        if int(values[0]) > SCHEMA_VERSION:
            raise schema_error(values[0])
        return _load_record(values)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError("A stored task is damaged") from error


_NO_TASK: Final = dict.fromkeys(FIELDS) | {
    "v": b"2",
    "mark": b"0",
    "task_id": b"0" * 48,
    "status": b"working",
    "status_message": b"working",
    "created_at": b"1767225600000000",
    "last_updated_at": b"1767225600000000",
    "ttl_ms": b"3600000",
    "poll_interval_ms": b"500",
    "revision": b"1",
    "owner": b"owner",
    "retention_ms": b"0",
    "request": b'["tools/call","name","{}",null,false,3,"{}",null]',
    "client_capabilities": b"{}",
    "worker": b"worker",
    "lease_expires_at": b"1767225600000000",
    "attempt": b"1",
}


def load_nothing() -> None:
    """Spend the time that loading a record takes, so that an unknown task is not told from a foreign one (L10)."""
    load_record(tuple(_NO_TASK.values()))


def _load_record(values: Sequence[Any]) -> TaskRecord:
    _, _, task_id, status, status_message, created_at, last_updated_at, ttl_ms, poll_interval_ms, *others = values
    revision, owner, retention_ms, request, capabilities, payload, outcome_message, *leased = others
    worker, lease_expires_at, attempt, progress, handovers = leased
    task = Task(
        _unpack(task_id),
        _status(status),
        _maybe(status_message),
        from_micros(created_at),
        from_micros(last_updated_at),
        None if ttl_ms is None else int(ttl_ms),
        int(poll_interval_ms),
    )
    _ = task.expires_at  # which a damaged time would make impossible
    ended = task.status in TERMINAL_STATUSES
    return TaskRecord(
        task,
        int(revision),
        _maybe(owner),
        int(retention_ms),
        _NO_REQUEST if request is None else _load_request(request),
        "{}" if capabilities is None else _json(capabilities),
        Outcome(task.status, None if payload is None else _json(payload), _maybe(outcome_message))  # type: ignore[arg-type]
        if ended
        else None,
        None
        if worker is None
        else Lease(_unpack(worker), from_micros(lease_expires_at), int(attempt), int(handovers or 0)),
        None if progress is None else _load_progress(progress),
    )


def _status(data: bytes) -> TaskStatus:
    status = data.decode()
    if status not in TRANSITIONS:
        raise ValueError("unknown status")
    return status  # type: ignore[return-value]


def _json(data: bytes) -> str:
    text = data.decode()
    load_json(text)  # its readers must be able to
    return text


def _load_request(data: bytes) -> TaskRequest:
    request = TaskRequest(*load_json(data.decode()))
    for text in (request.arguments_json, request.caller_json):
        load_json(text)
    if not all(isinstance(text, str) for text in (request.name, request.method)):
        raise TypeError("name and method must be text")
    return request


def _load_progress(data: bytes) -> Progress:
    progress, total, message = load_json(data.decode())
    numbers = [progress] if total is None else [progress, total]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("progress and total must be numbers")
    return Progress(progress, total, message)


def dump_message(message: QueuedMessage) -> bytes:
    """Return a message as it is stored."""
    parts = [_MESSAGE_VERSION, message.type, message.method, message.params_json, message.key]
    return dump_json(parts).encode()


def load_message(data: bytes) -> QueuedMessage:
    """Return a stored message.

    Raises:
        SchemaVersionError: A later version of this library stored it.
        StoreError: It is damaged.
    """
    try:
        message = QueuedMessage(*_load_parts(data))
        load_json(message.params_json)
        if message.type not in ("request", "notification"):
            raise ValueError("unknown type")
    except (TypeError, ValueError) as error:
        raise StoreError("A stored message is damaged") from error
    return message


def key_field(key: str) -> bytes:
    """Return the field of a question among the answers. Any text has one, though none is stored for some."""
    return b"k" + key.encode("utf-8", "surrogatepass")


def dump_answer(answer: Answer) -> bytes:
    """Return an answer as it is stored."""
    return dump_json([_MESSAGE_VERSION, answer.type, answer.payload_json]).encode()


def load_answer(data: bytes) -> Answer:
    """Return a stored answer; see `load_message`."""
    try:
        answer = Answer(*_load_parts(data))
        load_json(answer.payload_json)
        if answer.type not in ("result", "error", "withdrawn"):
            raise ValueError("unknown type")
    except (TypeError, ValueError) as error:
        raise StoreError("A stored answer is damaged") from error
    return answer


def _load_parts(data: bytes) -> list[Any]:
    version: int
    parts: list[Any]
    version, *parts = load_json(data.decode())
    if version > _MESSAGE_VERSION:
        raise SchemaVersionError(found=version, supported=_MESSAGE_VERSION)
    return parts


def event_text(text: str | None) -> bytes:
    """Return the text of an event as scripts take it, empty for none."""
    return b"" if text is None else event_excerpt(clean_text(text)).encode()


def load_event(data: bytes) -> TaskEvent:
    """Return a stored event.

    Raises:
        StoreError: It is damaged.
    """
    try:
        at, kind, *text = data.decode().split(" ", 2)
        return TaskEvent(from_micros(int(at)), kind, event_excerpt(text[0]) if text else None)  # type: ignore[arg-type]
    except (ArithmeticError, ValueError) as error:
        raise StoreError("A stored event is damaged") from error


def schema_error(version: bytes) -> SchemaVersionError:
    """Return the error for what a later version of this library stored."""
    return SchemaVersionError(found=int(version), supported=SCHEMA_VERSION)
