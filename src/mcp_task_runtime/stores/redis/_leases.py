"""`Leases`: the leases of tasks, and their index."""

from __future__ import annotations

from collections.abc import Collection

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._calls import TaskCalls, loaded
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import event_text, pack, schema_error, to_micros
from mcp_task_runtime.stores.redis._pages import SET_ASIDE_MICROS, Pages
from mcp_task_runtime.stores.redis._work import WaitingWork

__all__ = ["Leases"]


class Leases:
    """Renews, releases, lists and claims leases; the index heals when it is read."""

    def __init__(self, backend: Backend, calls: TaskCalls, pages: Pages, work: WaitingWork) -> None:
        self._backend = backend
        self._keys = backend.keys
        self._calls = calls
        self._pages = pages
        self._work = work

    async def renew(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`."""
        _storable.check_duration("lease_ms", lease_ms)
        held = await self._change_leases("renew", worker, task_ids, lease_ms)
        return frozenset(held)

    async def drop(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await self._change_leases("drop", worker, task_ids, 1 if lapse else 0, event_text(worker))

    async def lapsed(self, *, limit: int) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        found: dict[str, TaskRecord] = {}
        while True:
            now, page = await self._pages.read(self._keys.leases, "-inf", "", limit)
            corrections: list[bytes | int | str] = []
            for entry in page:
                record = entry.record
                lease = None if record is None else record.lease
                if entry.is_damaged:
                    corrections += entry.member, entry.place, now + SET_ASIDE_MICROS
                elif record is None or lease is None or not entry.is_live:
                    corrections += entry.member, entry.place, ""
                elif to_micros(lease.expires_at) > now:
                    corrections += entry.member, entry.place, to_micros(lease.expires_at)
                else:
                    found[record.task_id] = record
            if corrections:  # the index heals when it is read
                await self._backend.send(script_call("correct", (self._keys.leases,), *corrections))
            if not corrections or len(found) >= limit or len(page) < limit:
                self._work.mend(found.values())
                return tuple(sorted(found.values(), key=_lapsed_at)[:limit])

    async def claim(
        self, task_id: str, *, worker: str, lease_ms: int, waits: tuple[bytes, int] | None = None
    ) -> TaskRecord | None:
        """Take over a live task; see `TaskLeases.claim_task`.

        Args:
            task_id: The task.
            worker: The worker.
            lease_ms: How long the lease lasts.
            waits: Only a task that waits: the tags of its tools, a space around each, and whether it may be sealed.
        """
        _storable.check_text("worker", worker)
        _storable.check_duration("lease_ms", lease_ms)
        since = self._backend.subscription
        tag, (reply, *rest) = await self._calls.change(
            *(task_id, "claim", pack(worker), lease_ms, event_text(worker)), *(waits or ()), missing=b"absent"
        )
        if reply != b"ok":
            return None
        self._backend.note_made(tag, since)
        record = loaded(rest[0])
        if record.lease is not None:
            self._move_lapse(tag, to_micros(record.lease.expires_at))
        if worker:
            self._work.leave(tag, self._keys.name_tag(record.request.name))
        else:
            await self._work.enter(record)
        return record

    async def _change_leases(
        self, script: str, worker: str, task_ids: Collection[str], *arguments: bytes | int | str
    ) -> list[str]:
        """Run a script on the leases of a worker; return the identifiers of those tasks that it changed."""
        tags = {self._keys.tag(task_id): task_id for task_id in task_ids}
        operation, name = self._backend.new_operation(), pack(worker)
        calls = [self._backend.task_call(script, tag, operation, name, *arguments) for tag in tags]
        replies = await self._backend.send(*calls, keeps_errors=True) if calls else []
        changed: list[str] = []
        for (tag, task_id), reply in zip(tags.items(), replies, strict=True):
            if isinstance(reply, Exception):
                self._pages.report(tag, reply)
            elif reply[0] == b"schema":
                self._pages.report(tag, schema_error(reply[1]))
            elif self._calls.exists(tag, reply) and reply[0] == b"ok":
                changed.append(task_id)
                if len(reply) > 1:
                    self._move_lapse(tag, int(reply[1]))
        return changed

    def _move_lapse(self, tag: bytes, when: int) -> None:
        """Move an entry of the index of leases where the scripts cannot do it: on a cluster, without waiting."""
        if self._backend.is_cluster:
            self._backend.post(Call(b"ZADD", (self._keys.leases,), (b"XX", when, tag)))


def _lapsed_at(record: TaskRecord) -> float:
    return 0.0 if record.lease is None else record.lease.expires_at.timestamp()
