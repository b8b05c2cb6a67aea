"""`WaitingWork`: the tasks that wait for a worker, by tool.

On a single server the scripts keep each tool's set in step with its tasks. On a cluster, where the sets are in another
slot, the store changes them after the task. What a set says is checked against the task when it is read, and an
entry that is missing is added when the index of leases is read: after the crash of a process of a cluster,
and for a task of an earlier version of this library, which kept no sets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._connections import Call, script_call
from mcp_task_runtime.stores.redis._form import WAITS, lease_place, to_micros
from mcp_task_runtime.stores.redis._pages import SET_ASIDE_MICROS, Entry, Pages

__all__ = ["WaitingWork"]

_BATCH: Final = 500
"""Tasks that one call enters, or one round trip of the first look reads."""


class WaitingWork:
    """Finds tasks that wait for a worker: those of other tools cost nothing."""

    def __init__(self, backend: Backend, pages: Pages) -> None:
        self._backend = backend
        self._pages = pages
        self._keys = backend.keys
        self._is_complete = False

    async def wait(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`."""
        if limit < 1:
            raise ValueError("limit must be at least 1")
        return await self.until_found(partial(self.find, sorted(set(names)), limit))

    async def until_found(self, look: Callable[[], Awaitable[tuple[TaskRecord, ...]]]) -> tuple[TaskRecord, ...]:
        """Look whenever a task may wait, until something is found."""
        if not self._is_complete:
            await self._complete()
        signals = await self._backend.signals()
        with signals.listen(self._keys.leases, b"w") as listener:
            waiting = await look()
            while not waiting:
                await listener.wait()
                waiting = await self._backend.look_again(look)
            return waiting

    async def enter(self, record: TaskRecord) -> None:
        """Add a task that no process holds, where the scripts cannot: on a cluster."""
        if self._backend.is_cluster:
            await self._backend.send(*self.entering([record]))

    async def leave_to_worker(self, record: TaskRecord, before: int) -> None:
        """Move a task that a worker has claimed to the leases that are held, where the scripts cannot: on a cluster.

        If that fails, the next look of a worker does it. A task that was put back meanwhile stays where it is.

        Args:
            record: The task.
            before: When the lease before it would have lapsed, in microseconds.
        """
        if self._backend.is_cluster and record.lease is not None:
            keys = self._keys.leases, self._keys.waiting(self._keys.name_tag(record.request.name))
            place = lease_place(record.lease)
            with suppress(StoreError):
                await self._backend.send(script_call("leave", keys, self._keys.tag(record.task_id), place, before))

    def leave(self, tag: bytes, name_tag: bytes) -> None:
        """Remove a task that has ended, where the scripts cannot: on a cluster, without waiting for it."""
        if self._backend.is_cluster:
            self._backend.post(Call(b"ZREM", (self._keys.waiting(name_tag),), (tag,)))

    def mend(self, records: Iterable[TaskRecord]) -> None:
        """Add those of these tasks that wait and may be missing, without waiting for it."""
        waiting = [record for record in records if record.lease is not None and not record.lease.worker]
        self._backend.post(*self.entering(waiting[:_BATCH]))

    async def find(self, names: Sequence[str], limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks that wait, the longest waiting first."""
        if not names:
            return ()
        keys = tuple(self._keys.waiting(self._keys.name_tag(name)) for name in names)
        found: dict[str, TaskRecord] = {}
        while True:
            look = script_call("waiting", keys, self._backend.now(), limit, *self._pages.record_ends)
            ((now, page),) = await self._backend.send(look)
            numbers = [number for *_, number in page]
            tasks = [(tag, tag, lapses, values) for tag, lapses, values, _ in page]
            entries = await self._pages.entries(int(now), tasks, are_marked=False)
            corrections: list[Call] = []
            for number, entry in zip(numbers, entries, strict=True):
                right = _right_place(entry, int(now))
                if right is None and entry.record is not None:
                    found[entry.record.task_id] = entry.record
                elif right is not None:
                    key = keys[int(number) - 1]
                    if right == "":
                        corrections.append(self._leaving(entry))
                    corrections.append(script_call("correct", (key,), entry.member, entry.place, right))
            if corrections:
                await self._backend.send(*corrections)
            if not corrections or len(found) >= limit or len(page) < limit:
                return tuple(list(found.values())[:limit])

    def _leaving(self, entry: Entry) -> Call:
        """Return the call that moves in the index of leases a task that a worker has claimed, or that is gone."""
        lease = entry.record.lease if entry.record is not None and entry.is_live else None
        if lease is None:
            return script_call("correct", (self._keys.leases,), entry.tag, entry.place - WAITS, "")
        return Call(b"ZADD", (self._keys.leases,), (b"XX", lease_place(lease), entry.tag))

    async def _complete(self) -> None:
        """Add what an earlier version of this library stored: once, and noted in Redis."""
        (is_known,) = await self._backend.send(Call(b"EXISTS", (self._keys.all_waiting,)))
        if not int(is_known):
            cursor: Any = b"0"
            while True:
                scan = Call(b"ZSCAN", (self._keys.leases,), (cursor, b"COUNT", _BATCH))
                ((cursor, flat),) = await self._backend.send(scan)
                await self._enter_all(flat[::2])
                if int(cursor) == 0:
                    break
            await self._backend.send(Call(b"SET", (self._keys.all_waiting,), (b"1",)))
        self._is_complete = True

    async def _enter_all(self, tags: Sequence[bytes]) -> None:
        for start in range(0, len(tags), _BATCH):
            records = await self._pages.load(tags[start : start + _BATCH])
            waiting = [each for each in records if each.lease is not None and not each.lease.worker]
            if waiting:
                await self._backend.send(*self.entering(waiting))

    def entering(self, waiting: Sequence[TaskRecord]) -> list[Call]:
        """Return the call that adds tasks, and moves them in the index of leases; none for no task."""
        keys: list[bytes] = [self._keys.leases]
        arguments: list[bytes | int | str] = []
        for record in waiting:
            if record.lease is not None:
                expires_at = record.task.expires_at
                keys.append(self._keys.waiting(self._keys.name_tag(record.request.name)))
                arguments += self._keys.tag(record.task_id), to_micros(record.lease.expires_at)
                arguments.append("" if expires_at is None else to_micros(expires_at))
        if not arguments:
            return []
        return [script_call("wait", tuple(keys), self._backend.now(), self._backend.margin_ms, *arguments)]


def _right_place(entry: Entry, now: int) -> int | str | None:
    """Return where an entry belongs, empty for nowhere; `None` where it stands for a task that waits."""
    if entry.is_damaged:
        return now + SET_ASIDE_MICROS
    lease = None if entry.record is None or not entry.is_live else entry.record.lease
    if lease is None or lease.worker:
        return ""
    lapses = to_micros(lease.expires_at)
    return lapses if lapses > now else None
