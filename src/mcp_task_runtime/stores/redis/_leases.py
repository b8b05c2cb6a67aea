"""`Leases`: the leases of tasks, and their index."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._calls import TaskCalls, loaded
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import WAITS, event_text, lease_place, pack, schema_error, to_micros
from mcp_task_runtime.stores.redis._pages import SET_ASIDE_MICROS, Entry, Pages
from mcp_task_runtime.stores.redis._work import WaitingWork

__all__ = ["Leases"]

_HELD: Final = "0", ""
_UNHELD: Final = "-inf", "waits"
"""The parts of the index, as scores; see `_form`."""


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
        found = await self._first(limit, _HELD, _UNHELD)
        self._work.mend(found)
        return tuple(sorted(found, key=_lapsed_at)[:limit])

    async def lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, then those of these tools that wait; see `TaskSweeping.list_lost`."""
        held = sorted(await self._first(limit, _HELD), key=_lapsed_at)
        waiting = await self._work.find(sorted(set(names)), limit)
        found = {record.task_id: record for record in (*held, *waiting)}  # one may have been put back in between
        return tuple(found.values())[:limit]

    async def _first(self, limit: int, *parts: tuple[str, str]) -> list[TaskRecord]:
        """Return the tasks whose lease lapsed first in each of these parts of the index; it heals when it is read."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        while True:
            now, page = await self._pages.read(self._keys.leases, *parts, limit=limit)
            found: list[TaskRecord] = []
            waiting: list[TaskRecord] = []
            corrections: list[bytes | int | str] = []
            for entry in page:
                record, right = entry.record, _right_place(entry, now)
                is_apart = isinstance(right, int) and (right < 0) != (entry.place < 0)
                if record is not None and isinstance(right, int) and _is_due(right, now) and not is_apart:
                    found.append(record)
                    continue
                corrections += entry.member, entry.place, right
                if record is not None and is_apart and entry.place >= 0:
                    waiting.append(record)
            if waiting:  # they stand in the sets of their tools before a sweep no longer sees them here
                await self._backend.send(*self._work.entering(waiting))
            if corrections:
                await self._backend.send(script_call("correct", (self._keys.leases,), *corrections))
            if not corrections or len(found) >= limit:
                return found

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
        ends_mark = self._backend.ends_mark
        tag, (reply, *rest) = await self._calls.change(
            *(task_id, "claim", pack(worker), lease_ms, event_text(worker)), *(waits or ()), missing=b"absent"
        )
        if reply != b"ok":
            return None
        self._backend.note_made(tag, ends_mark)
        record = loaded(rest[0])
        if worker:
            await self._work.leave_to_worker(record, int(rest[1]) if len(rest) > 1 else 0)
        elif record.lease is not None:
            self._move_lapse(tag, to_micros(record.lease.expires_at))
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


def _right_place(entry: Entry, now: int) -> int | str:
    """Return the score that an entry should have; empty for none."""
    if entry.is_damaged:
        return now + SET_ASIDE_MICROS - (WAITS if entry.place < 0 else 0)
    lease = None if entry.record is None or not entry.is_live else entry.record.lease
    return "" if lease is None else lease_place(lease)


def _is_due(place: int, now: int) -> bool:
    return (place if place >= 0 else place + WAITS) <= now


def _lapsed_at(record: TaskRecord) -> float:
    return 0.0 if record.lease is None else record.lease.expires_at.timestamp()
