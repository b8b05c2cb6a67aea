"""Tasks in Redis, for several machines. Needs the extra `redis`, and Redis 6.2 or later.

Every change is one script (`_scripts`), every operation one round trip, and what is stored has a
documented form (`_form`). Waiting is woken by push: one connection for each store subscribes to the
channels of the tasks that somebody waits for. A message there says only that something happened, so whoever
is woken looks again; after a lost connection everybody does.

On a cluster a task and its mailbox are in one slot, and the indexes that span tasks are in others. What a
script cannot do in one step there is made safe by order: the index is written after the task and checked
against it when it is read. So on a cluster `list_tasks` and `list_lapsed` take two round trips, and `create_task`
two, or three with a lease.

Redis decides how durable it all is: see its `appendonly` and `appendfsync`, and `WAIT` for replicas.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from types import TracebackType
from typing import Any, Final

import anyio

try:
    from coredis import Redis, RedisCluster
except ImportError as _error:
    raise ImportError("A Redis store needs its driver: pip install 'mcp-task-runtime[redis]'") from _error
from typing_extensions import Self

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import create_record, is_expired
from mcp_task_runtime.core.types import Fence, LiveStatus, NewTask, Outcome, Progress, TaskPage, TaskRecord, TaskRequest
from mcp_task_runtime.errors import (
    InvalidTransitionError,
    RevisionConflictError,
    SchemaVersionError,
    StoreClosedError,
    TaskExistsError,
    TaskNotFoundError,
)
from mcp_task_runtime.stores._cursor import decode_cursor, encode_cursor
from mcp_task_runtime.stores.redis._connections import Backend, Call, script_call
from mcp_task_runtime.stores.redis._form import (
    FIELDS,
    SCHEMA_VERSION,
    dump_answer,
    dump_message,
    dump_record,
    load_answer,
    load_message,
    load_record,
    pack,
    to_micros,
)
from mcp_task_runtime.stores.redis._scripts import FOLLOWS, UPDATES

__all__ = ["RedisTaskMessageQueue", "RedisTaskStore"]

_NO_REQUEST: Final = TaskRequest()
_FIELDS: Final = tuple(name.encode() for name in FIELDS)

_UNOWNED_MS: Final = 30 * 24 * 3_600_000
"""Milliseconds that a mailbox is kept after its last message when Redis does not hold its task."""


class RedisTaskStore:
    """A `TaskStore` in Redis, shared by all processes that use the same Redis and prefix; it has `TaskLeases` too.

    Open it with `async with`, or just use it: it connects when it is first used. It opens two connections of
    its own, one of them only when somebody waits. Use it on one event loop at a time.
    """

    def __init__(
        self,
        source: str | Redis[Any] | RedisCluster[Any],
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a store.

        Args:
            source: A URL such as `redis://localhost:6379/0`, or a client of `coredis`, which stays the
                caller's to open and close. A client of one server lends its settings; one of a cluster must
                be open as long as the store is.
            prefix: What all names in Redis begin with.
            clock: Where time comes from; the system's when `None`.
            timeout: Seconds to wait for Redis before `StoreUnavailableError`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._backend = Backend(source, prefix=prefix, clock=clock, timeout=timeout)
        self._keys = self._backend.keys
        self._queue = RedisTaskMessageQueue._of(self._backend)

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._backend.clock

    @property
    def message_queue(self) -> RedisTaskMessageQueue:
        """The queue that belongs to this store: a task's mailbox goes when the task goes."""
        return self._queue

    async def __aenter__(self) -> Self:
        await self._backend.connect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and its queue: whoever waits is woken with `StoreClosedError`."""
        await self._backend.aclose()

    async def create_task(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        now = self.clock.now()
        record = create_record(new, now=now)
        tag, mark = self._keys.tag(record.task_id), self._backend.new_operation()
        (status, *rest), *_ = await self._backend.send(*self._creation(record, tag, mark), in_order=True)
        if status == b"ok":
            if rest and rest[1] is not None:  # it took the place of one that had expired
                self._backend.forget(tag, *rest)
            return record
        if self._backend.is_cluster:
            self._backend.unindex(record.owner, [_member(mark, tag)])
        if status == b"schema":
            raise _schema_error(rest[0])
        raise TaskExistsError(record.task_id)

    def _creation(self, record: TaskRecord, tag: bytes, mark: str) -> list[Call]:
        """Return the call that stores a task with its entries in the indexes, or on a cluster the calls."""
        ttl_ms, margin_ms, now = record.task.ttl_ms, self._backend.margin_ms, to_micros(record.task.created_at)
        left: int | str = "" if ttl_ms is None else max(ttl_ms, 0) + margin_ms
        at_most: int | str = "" if ttl_ms is None else max(ttl_ms, 0) + record.retention_ms + 1 + margin_ms
        latest: int | str = "" if ttl_ms is None else now + 1_000 * (ttl_ms + record.retention_ms + 1)
        lapses: int | str = "" if record.lease is None else to_micros(record.lease.expires_at)
        indexed = (margin_ms, _member(mark, tag), latest)
        create = self._backend.task_call(
            "create", tag, mark, left, *indexed, lapses, at_most, *dump_record(record, mark)
        )
        index = self._keys.of_owner(record.owner)
        if not self._backend.is_cluster:
            return [create._replace(keys=(*create.keys, *index))]
        calls = [create, script_call("index", index, now, *indexed)]
        if record.lease is not None:
            calls.append(script_call("lease", (self._keys.leases,), tag, lapses, at_most))
        return calls

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        tag = self._keys.tag(task_id)
        (values,) = await self._backend.send(Call(b"HMGET", self._keys.of_task(tag)[:1], _FIELDS))
        record = load_record(values)
        if record is None or not is_expired(record.task, self.clock.now()):
            return record
        self._backend.purge(tag)
        return None

    async def update_task(
        self,
        task_id: str,
        *,
        status: LiveStatus | None = None,
        status_message: str | None = None,
        progress: Progress | None = None,
        ttl_ms: int | None = None,
        if_revision: int | None = None,
        fence: Fence | None = None,
    ) -> TaskRecord:
        """Change a live task; see `TaskStore.update_task`."""
        if progress is not None or ttl_ms is not None or fence is not None:
            raise NotImplementedError
        status_text, message = "" if status is None else status, _optional(status_message)
        revision = "" if if_revision is None else int(if_revision)
        allowed = UPDATES.get(status, b" ")
        _, (reply, *rest) = await self._change(task_id, "update", allowed, status_text, message, revision)
        if reply == b"refused":
            current = rest[0].decode()
            raise InvalidTransitionError(task_id, current=current, requested=current if status is None else status)
        if reply == b"conflict":
            raise RevisionConflictError(task_id, expected=int(if_revision or 0), current=int(rest[0]))
        return _loaded(rest[0])

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        if fence is not None:
            raise NotImplementedError
        status, margin_ms = outcome.status, self._backend.margin_ms
        payload, message = _optional(outcome.payload_json), _optional(outcome.status_message)
        _, (reply, *rest) = await self._change(
            task_id, "finish", FOLLOWS.get(status, b" "), status, payload, message, margin_ms
        )
        if reply == b"refused":
            raise InvalidTransitionError(task_id, current=rest[0].decode(), requested=status)
        return _loaded(rest[0])

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        place = 0 if cursor is None else decode_cursor(cursor, owner)
        index = self._keys.of_owner(owner)[0]
        now = self.clock.now()
        found: list[tuple[int, TaskRecord]] = []
        while True:
            wanted = limit + 1 - len(found)
            page = await self._page(index, f"({place}", "+inf", wanted)
            gone: list[bytes] = []
            for member, place, mark, record in page:
                if record is None or not member.startswith(mark + b" ") or is_expired(record.task, now):
                    gone.append(member)
                else:
                    found.append((place, record))
            if gone:  # the index heals when it is read
                self._backend.unindex(owner, gone)
            if len(found) > limit or len(page) < wanted:
                break
        records = tuple(record for _, record in found[:limit])
        return TaskPage(records, encode_cursor(found[limit - 1][0], owner) if len(found) > limit else None)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        # Sent twice it could not say whether there was one.
        tag, (reply, *rest) = await self._change(task_id, "delete", again=False, missing=b"absent")
        if reply != b"ok":
            return False
        self._backend.forget(tag, rest[0], rest[1])
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self.get_task, task_id)
        with (await self._backend.signals()).listen(channel, b"tx") as listener:
            record = await look()
            while record is not None and record.revision <= after:
                with self.clock.move_on_at(record.task.expires_at):
                    await listener.wait()
                record = await self._backend.look_again(look)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        until = self._backend.now() + 1_000 * lease_ms
        held = await self._change_leases("renew", worker, task_ids, until)
        self._move_lapses(until, held)
        return frozenset(held.values())

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Give up leases of a worker; see `TaskLeases.drop_leases`."""
        dropped = await self._change_leases("drop", worker, task_ids, 1 if lapse else 0)
        if lapse:
            self._move_lapses(self._backend.now(), dropped, b"LT")

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        found: dict[str, TaskRecord] = {}
        while True:
            now = self._backend.now()
            page = await self._page(self._keys.leases, "-inf", str(now), limit)
            corrections: list[bytes | int | str] = []
            for tag, score, _, record in page:
                lease = None if record is None or is_expired(record.task, self.clock.now()) else record.lease
                if record is None or lease is None:
                    corrections += tag, score, ""
                elif to_micros(lease.expires_at) > now:
                    corrections += tag, score, to_micros(lease.expires_at)
                else:
                    found[record.task_id] = record
            if corrections:  # the index heals when it is read
                await self._backend.send(script_call("correct", (self._keys.leases,), *corrections))
            if not corrections or len(found) >= limit or len(page) < limit:
                return tuple(sorted(found.values(), key=_lapsed_at)[:limit])

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed; see `TaskLeases.claim_task`."""
        until = self._backend.now() + 1_000 * lease_ms
        tag, (reply, *rest) = await self._change(task_id, "claim", pack(worker), until, missing=b"absent")
        if reply != b"ok":
            return None
        self._move_lapses(until, [tag])
        return _loaded(rest[0])

    async def _change(
        self, task_id: str, script: str, *arguments: bytes | int | str, again: bool = True, missing: bytes = b""
    ) -> tuple[bytes, list[Any]]:
        """Run a script that changes a task; return the task's tag and the reply.

        Raises:
            TaskNotFoundError: There is no such task, and `missing` is not `absent`.
            SchemaVersionError: A later version of this library stored it.
        """
        tag = self._keys.tag(task_id)
        call = self._backend.task_call(script, tag, self._backend.new_operation(), *arguments)
        (reply,) = await self._backend.send(call, again=again)
        if not self._exists(tag, reply):
            if missing != b"absent":
                raise TaskNotFoundError(task_id)
            return tag, [b"absent"]
        return tag, reply

    def _move_lapses(self, when: int, tags: Collection[bytes], *how: bytes) -> None:
        """Move entries of the index of leases where the scripts cannot do it: on a cluster, and some time."""
        if self._backend.is_cluster and tags:
            entries = [part for tag in tags for part in (when, tag)]
            self._backend.post(Call(b"ZADD", (self._keys.leases,), (b"XX", *how, *entries)))

    async def _change_leases(
        self, script: str, worker: str, task_ids: Collection[str], argument: int
    ) -> dict[bytes, str]:
        """Run a script on the leases of a worker; return tag and identifier of those tasks that it changed."""
        tags = {self._keys.tag(task_id): task_id for task_id in task_ids}
        operation, name = self._backend.new_operation(), pack(worker)
        calls = [self._backend.task_call(script, tag, operation, name, argument) for tag in tags]
        replies = await self._backend.send(*calls) if calls else []
        return {
            tag: task_id
            for (tag, task_id), reply in zip(tags.items(), replies, strict=True)
            if self._exists(tag, reply) and reply[0] == b"ok"
        }

    def _exists(self, tag: bytes, reply: list[Any]) -> bool:
        """Return whether a script found its task; clean up after one that it found expired."""
        if reply[0] == b"schema":
            raise _schema_error(reply[1])
        if reply[0] == b"expired":
            self._backend.forget(tag, *reply[1:])
        return reply[0] not in (b"absent", b"expired")

    async def _page(
        self, index: bytes, lowest: str, highest: str, limit: int
    ) -> list[tuple[bytes, int, bytes, TaskRecord | None]]:
        """Return entries of an index: member, score, and the task's mark and record."""
        ends = (b"", b"") if self._backend.is_cluster else (self._keys.opening, b"}:task")
        (page,) = await self._backend.send(script_call("page", (index,), lowest, highest, limit, *ends))
        if page and not ends[0]:
            tags = [member.rpartition(b" ")[2] for member, *_ in page]
            reads = [Call(b"HMGET", self._keys.of_task(tag)[:1], _FIELDS) for tag in tags]
            values = await self._backend.send(*reads)
            page = [(member, score, record) for (member, score, _), record in zip(page, values, strict=True)]
        return [(member, int(float(score)), values[1], load_record(values)) for member, score, values in page]


class RedisTaskMessageQueue:
    """A `TaskMessageQueue` in Redis.

    Get it from a `RedisTaskStore`: then a task's mailbox goes when the task goes. Used without one, it keeps a
    mailbox until `clear` is called for it, or nothing was put in for 30 days.
    """

    def __init__(
        self,
        source: str | Redis[Any] | RedisCluster[Any],
        *,
        prefix: str = "mcp-task-runtime",
        clock: Clock | None = None,
        timeout: float = 5.0,
    ) -> None:
        """Make a queue of its own; the arguments are those of `RedisTaskStore`.

        Raises:
            ValueError: An argument makes no sense.
        """
        self._start(Backend(source, prefix=prefix, clock=clock, timeout=timeout), owns=True)

    @classmethod
    def _of(cls, backend: Backend) -> Self:
        queue = cls.__new__(cls)
        queue._start(backend, owns=False)
        return queue

    def _start(self, backend: Backend, *, owns: bool) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._owns_backend = owns
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._backend.connect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the queue: whoever waits is woken with `StoreClosedError`. A store it came from stays open."""
        self._closed = True
        if self._owns_backend:
            await self._backend.aclose()
        elif not self._backend.is_closed:
            (await self._backend.signals()).wake_all()

    async def enqueue(self, task_id: str, message: QueuedMessage) -> bool:
        """Append a message; see `TaskMessageQueue.enqueue`."""
        field = b"" if message.key is None else b"k" + pack(message.key)
        return bool(await self._use("enqueue", task_id, _UNOWNED_MS, field, dump_message(message)))

    async def dequeue(self, task_id: str) -> QueuedMessage | None:
        """Remove and return the oldest message; see `TaskMessageQueue.dequeue`."""
        operation = self._backend.new_operation()
        with anyio.CancelScope(shield=True):  # a message that is no longer queued must be returned
            taken = await self._use("dequeue", task_id, operation=operation)
        if taken is None:
            return None
        keys = self._keys.of_task(self._keys.tag(task_id))
        self._backend.post(Call(b"HDEL", keys[4:5], (operation,)))
        return load_message(taken)

    async def peek(self, task_id: str) -> QueuedMessage | None:
        """Return the oldest message; see `TaskMessageQueue.peek`."""
        message = await self._use("peek", task_id)
        return None if message is None else load_message(message)

    async def is_empty(self, task_id: str) -> bool:
        """Whether no message is queued; see `TaskMessageQueue.is_empty`."""
        return not await self._use("length", task_id)

    async def clear(self, task_id: str) -> None:
        """Forget everything of a task; see `TaskMessageQueue.clear`."""
        tag, operation = self._keys.tag(task_id), self._backend.new_operation()
        await self._send(self._backend.task_call("clear", tag, operation))

    async def wait_for_message(self, task_id: str) -> None:
        """Wait until a message is queued; see `TaskMessageQueue.wait_for_message`."""
        tag, mark = self._keys.tag(task_id), self._backend.new_operation()
        look = partial(self._use, "look", task_id, _UNOWNED_MS, mark)
        length = 0
        with (await self._backend.signals()).listen(self._keys.channel(tag), b"mx") as listener:
            try:
                length = await look(1)
                while length == 0:
                    await listener.wait()
                    length = await self._backend.look_again(partial(look, 0))
            finally:
                if length == 0:
                    self._backend.post(Call(b"HDEL", self._keys.of_task(tag)[5:], (mark,)))
        if length < 0:
            raise TaskNotFoundError(task_id)

    async def outstanding(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the questions; see `TaskMessageQueue.outstanding`."""
        questions = await self._use("outstanding", task_id)
        return tuple(load_message(question) for question in questions)

    async def answer(self, task_id: str, key: str, answer: Answer) -> bool:
        """Answer a question; see `TaskMessageQueue.answer`."""
        return bool(await self._use("answer", task_id, b"k" + pack(key), dump_answer(answer)))

    async def wait_for_answer(self, task_id: str, key: str) -> Answer:
        """Wait for the answer; see `TaskMessageQueue.wait_for_answer`."""
        channel = self._keys.channel(self._keys.tag(task_id))
        look = partial(self._use, "answer_of", task_id, b"k" + pack(key))
        with (await self._backend.signals()).listen(channel, b"ax") as listener:
            state = await look()
            while state is not None and state.startswith(b"q"):
                await listener.wait()
                state = await self._backend.look_again(look)
        if state is None:
            raise TaskNotFoundError(task_id)
        return load_answer(state.partition(b" ")[2])

    async def _use(self, script: str, task_id: str, *arguments: bytes | int | str, operation: str | None = None) -> Any:
        """Run a script on a mailbox; return what it says."""
        tag = self._keys.tag(task_id)
        if operation is None:
            operation = self._backend.new_operation()
        reply = await self._send(self._backend.task_call(script, tag, operation, *arguments))
        if reply[0] == b"schema":
            raise _schema_error(reply[1])
        _, value, *gone = reply
        if gone[1] is not None:
            self._backend.forget(tag, *gone)
        return value

    async def _send(self, call: Call) -> Any:
        if self._closed:
            raise StoreClosedError
        (reply,) = await self._backend.send(call)
        return reply


def _member(mark: str, tag: bytes) -> bytes:
    return mark.encode() + b" " + tag


def _optional(text: str | None) -> bytes:
    """Return text in a form that is not empty unless it is `None`."""
    return b"" if text is None else b"+" + pack(text)


def _loaded(values: list[bytes | None]) -> TaskRecord:
    record = load_record(values)
    assert record is not None
    return record


def _lapsed_at(record: TaskRecord) -> float:
    return 0.0 if record.lease is None else record.lease.expires_at.timestamp()


def _schema_error(version: bytes) -> SchemaVersionError:
    return SchemaVersionError(found=int(version), supported=SCHEMA_VERSION)
