"""`Creation`: makes tasks, and enters them in the indexes that a script cannot reach on a cluster."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.transitions import check_room, create_record, may_join
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import TaskExistsError
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._calls import TaskCalls, loaded, optional
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import dump_record, from_micros, pack, schema_error, to_micros
from mcp_task_runtime.stores.redis._work import WaitingWork

__all__ = ["Creation", "at_most"]

_CALLS_FORGOTTEN: Final = 20
"""Most expired calls that one call removes."""

_LONGEST_CALL_MS: Final = 7 * 24 * 60 * 60 * 1_000


class Creation:
    """Makes tasks, alone or by the key of a call that may be repeated."""

    def __init__(self, backend: Backend, calls: TaskCalls, work: WaitingWork) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._calls = calls
        self._work = work

    async def create(self, new: NewTask) -> TaskRecord:
        """Create a task; see `TaskStore.create_task`."""
        _storable.check_new_task(new)
        task_id = new_task_id() if new.task_id is None else new.task_id
        draft = create_record(replace(new, task_id=task_id), now=self._backend.clock.now())
        tag, mark = self._keys.tag(task_id), self._backend.new_operation()
        if self._backend.is_cluster and new.max_live is not None:  # the index is in another slot
            check_room(await self.count_live(new.owner), new.max_live)
        ends_mark = self._backend.ends_mark
        (reply,) = await self._backend.send(self._call(draft, new, tag, mark))
        self._backend.note_made(tag, ends_mark)
        if reply[0] == b"schema":
            raise schema_error(reply[1])
        if reply[0] == b"full":
            check_room(new.max_live or 0, new.max_live)
        if reply[0] != b"ok":
            raise TaskExistsError(task_id)
        record = create_record(replace(new, task_id=task_id), now=from_micros(reply[1]))
        if reply[3:] and reply[3] is not None:  # it took the place of one that had expired
            self._backend.forget(tag, reply[2], reply[3])
        if self._backend.is_cluster:
            await self._index(record, tag, mark, new.lease_ms)
        return record

    async def count_live(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""
        index = self._keys.search + b"live:" + self._keys.search_owner(owner)
        (reply,) = await self._backend.send(script_call("live", (index,), self._backend.now()))
        return int(reply)

    async def join(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        _storable.check_new_task(new)
        _storable.check_text("key", key)
        own = pack(new_task_id() if new.task_id is None else new.task_id)
        ended = b""
        while True:
            reply = await self._decide(self._keys.call(key), ended, own, _known_ms(new))
            task_id = reply.decode()
            record = await self._get(task_id)
            if record is None:  # the caller whose identifier it is has not come so far, or the task was deleted
                with suppress(TaskExistsError):
                    return await self.create(replace(new, task_id=task_id)), True
                continue
            if may_join(record, now=self._backend.clock.now(), ended_ms=ended_ms):
                return record, False
            ended = reply
            if ended == own:
                own = pack(new_task_id())

    async def _get(self, task_id: str) -> TaskRecord | None:
        reply = await self._calls.read(task_id, "get", 0)
        return None if reply is None else loaded(reply[0])

    async def _decide(self, call: bytes, ended: bytes, own: bytes, known_ms: int) -> bytes:
        """Return the identifier of the task that a call has."""
        now = self._backend.now()
        decide = script_call("join", self._keys.calls, now, call, ended, own, known_ms, _CALLS_FORGOTTEN)
        (reply,) = await self._backend.send(decide)
        identifier: bytes = reply
        return identifier

    def _call(self, record: TaskRecord, new: NewTask, tag: bytes, mark: str) -> Call:
        """Return the call that stores a task, on a single server with its entries in the indexes."""
        ttl_ms = record.task.ttl_ms
        create = self._backend.task_call(
            *("create", tag, mark, _member(mark, tag), pack(record.request.name)),
            "" if ttl_ms is None else max(ttl_ms, 0) + self._backend.margin_ms,
            at_most(record),
            "" if record.lease is None else new.lease_ms,
            "" if new.max_live is None else max(0, int(new.max_live)),
            *dump_record(record, mark),
        )
        if self._backend.is_cluster:
            return create
        return create._replace(keys=(*create.keys, *self._keys.of_owner(record.owner)))

    async def _index(self, record: TaskRecord, tag: bytes, mark: str, lease_ms: int) -> None:
        """Enter a new task in the indexes of a cluster."""
        now, margin_ms, lives_ms = to_micros(record.task.created_at), self._backend.margin_ms, at_most(record)
        latest = "" if lives_ms == "" else now + 1_000 * int(lives_ms)
        owned = script_call("index", self._keys.of_owner(record.owner), now, margin_ms, _member(mark, tag), latest)
        calls = [owned, self.filing(record)]
        if record.lease is not None:
            kept = "" if lives_ms == "" else int(lives_ms) + margin_ms
            calls.append(script_call("lease", (self._keys.leases,), tag, now + 1_000 * lease_ms, kept))
        await self._backend.send(*calls)
        if record.lease is not None and not record.lease.worker:
            await self._work.enter(record)

    def filing(self, record: TaskRecord) -> Call:
        """Return the call that enters a task in the search index of a cluster, in its status."""
        task, name = record.task, pack(record.request.name)
        tag = self._keys.tag(task.task_id)
        return self._backend.call_search(
            *("file", self._backend.margin_ms, self._keys.search, tag, name),
            optional(task.task_id if tag.startswith(b"~") else None),
            *(task.status.encode(), to_micros(task.created_at)),
            *("" if task.ttl_ms is None else task.ttl_ms, record.retention_ms, optional(record.owner)),
            int(record.outcome is not None and record.outcome.is_error),
        )


def _member(mark: str, tag: bytes) -> bytes:
    return mark.encode() + b" " + tag


def at_most(record: TaskRecord) -> int | str:
    """Return after how many milliseconds a task has expired whenever it ends; nothing for a task without TTL."""
    ttl_ms = record.task.ttl_ms
    return "" if ttl_ms is None else max(ttl_ms, 0) + record.retention_ms + 1


def _known_ms(new: NewTask) -> int:
    return _LONGEST_CALL_MS if new.ttl_ms is None else max(new.ttl_ms, 1)
