"""A store of your own, and how to check that it keeps the laws.

This one keeps tasks in a dict. Which changes a task may go through is decided by `core.transitions`; a store
reads a record, applies one of its functions, and writes what they return, atomically. It has none of the abilities
of the bundled stores: `TaskRuntime` does without them. Needs the extra `testing` for the checks.
"""
# ci: run

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from secrets import token_bytes
from types import TracebackType

import anyio
from typing_extensions import Self

from mcp_task_runtime import InMemoryTaskMessageQueue, StoreClosedError, TaskExistsError, TaskNotFoundError, TaskRuntime
from mcp_task_runtime.core import (
    Clock,
    DeadlineHeap,
    Fence,
    LiveStatus,
    NewTask,
    Outcome,
    Progress,
    SystemClock,
    TaskPage,
    TaskRecord,
    TaskSpec,
    create_record,
    finish_record,
    update_record,
)
from mcp_task_runtime.stores import (
    CursorKey,
    check_duration,
    check_new_task,
    check_outcome,
    check_progress,
    check_text,
    owner_scope,
)
from mcp_task_runtime.testing import FakeClock, check_task_store


class DictTaskStore:
    """The eight methods of `TaskStore` over a dict, and a list for each owner to show pages from."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.clock: Clock = SystemClock() if clock is None else clock
        self._records: dict[str, tuple[int, TaskRecord]] = {}  # with a number to list them by
        self._owned: dict[str | None, list[tuple[int, str]]] = {}
        self._changed: dict[str, anyio.Event] = {}
        self._expiry = DeadlineHeap()
        self._cursors = CursorKey(token_bytes(32))
        self._numbers = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for task_id in list(self._changed):
            self._wake(task_id)

    async def create_task(self, new: NewTask) -> TaskRecord:
        now = self._drop_expired()
        check_new_task(new)
        record = create_record(new, now=now)
        if record.task_id in self._records:
            raise TaskExistsError(record.task_id)
        self._numbers += 1
        self._owned.setdefault(record.owner, []).append((self._numbers, record.task_id))
        self._write(self._numbers, record)
        return record

    async def get_task(self, task_id: str) -> TaskRecord | None:
        self._drop_expired()
        _, record = self._records.get(task_id, (0, None))
        return record

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
        now = self._drop_expired()
        check_text("status_message", status_message)
        check_progress(progress)
        check_duration("ttl_ms", ttl_ms)
        number, record = self._read(task_id)
        changed = update_record(
            record,
            now=now,
            status=status,
            status_message=status_message,
            progress=progress,
            ttl_ms=ttl_ms,
            if_revision=if_revision,
            fence=fence,
        )
        self._write(number, changed)
        return changed

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        now = self._drop_expired()
        check_outcome(outcome)
        number, record = self._read(task_id)
        finished = finish_record(record, outcome, now=now, fence=fence)
        self._write(number, finished)
        return finished

    async def get_result(self, task_id: str) -> Outcome | None:
        self._drop_expired()
        return self._read(task_id)[1].outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        self._drop_expired()
        after = 0 if cursor is None else self._cursors.decode(cursor, owner_scope(owner))
        owned = self._owned.get(owner, [])
        start = bisect_left(owned, (after + 1, ""))
        page = owned[start : start + limit]
        more = self._cursors.encode(page[-1][0], owner_scope(owner)) if start + limit < len(owned) else None
        return TaskPage(tuple(self._records[task_id][1] for _, task_id in page), more)

    async def delete_task(self, task_id: str) -> bool:
        self._drop_expired()
        if task_id not in self._records:
            return False
        self._expiry.discard(task_id)
        self._drop(task_id)
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        while True:
            self._drop_expired()
            _, record = self._read(task_id)
            if record.revision > after:
                return record
            changed = self._changed.setdefault(task_id, anyio.Event())
            with self.clock.move_on_at(record.task.expires_at):
                await changed.wait()

    def _read(self, task_id: str) -> tuple[int, TaskRecord]:
        if task_id not in self._records:
            raise TaskNotFoundError(task_id)
        return self._records[task_id]

    def _write(self, number: int, record: TaskRecord) -> None:
        self._records[record.task_id] = (number, record)
        self._expiry.set(record.task_id, record.task.expires_at)
        self._wake(record.task_id)

    def _drop_expired(self) -> datetime:
        if self._closed:
            raise StoreClosedError
        now = self.clock.now()
        while (task_id := self._expiry.pop_due(now)) is not None:
            self._drop(task_id)
        return now

    def _drop(self, task_id: str) -> None:
        number, record = self._records.pop(task_id)
        owned = self._owned[record.owner]
        del owned[bisect_left(owned, (number, task_id))]
        if not owned:
            del self._owned[record.owner]
        self._wake(task_id)

    def _wake(self, task_id: str) -> None:
        changed = self._changed.pop(task_id, None)
        if changed is not None:
            changed.set()


def open_store(clock: FakeClock, location: str) -> DictTaskStore:
    return DictTaskStore(clock=clock)


async def use_it() -> None:
    queue = InMemoryTaskMessageQueue()  # a store that brings no queue of its own is given one
    async with DictTaskStore() as store, TaskRuntime(store, queue) as runtime:

        async def work(execution: object) -> dict[str, object]:
            return {"content": [{"type": "text", "text": "done"}]}

        record = await runtime.submit(TaskSpec(), work)
        print((await runtime.result(record.task_id, owner=None)).result)


if __name__ == "__main__":
    print(check_task_store(open_store, capabilities=["listing"]))
    anyio.run(use_it)
