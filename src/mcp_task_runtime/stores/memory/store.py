"""`InMemoryTaskStore`: tasks in this process's memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from secrets import token_bytes
from types import TracebackType

from typing_extensions import Self, Unpack

from mcp_task_runtime.core.clock import Clock, SystemClock
from mcp_task_runtime.core.deadlines import DeadlineHeap
from mcp_task_runtime.core.functions import do_nothing
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.signal import Signal
from mcp_task_runtime.core.store_calls import never_waits
from mcp_task_runtime.core.transitions import (
    check_fence,
    check_room,
    claim_record,
    create_record,
    finish_record,
    is_terminal,
    lapsed_lease,
    may_join,
    update_record,
)
from mcp_task_runtime.core.types import (
    Fence,
    Lease,
    LiveStatus,
    NewTask,
    NewTaskFields,
    Outcome,
    Progress,
    TaskCounts,
    TaskEvent,
    TaskEventKind,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import InvalidTransitionError, StoreClosedError, TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores._cursor import CursorKey, owner_scope, search_scope
from mcp_task_runtime.stores._storable import (
    check_duration,
    check_json,
    check_new_task,
    check_outcome,
    check_progress,
    check_text,
)
from mcp_task_runtime.stores.memory._entry import Entry
from mcp_task_runtime.stores.memory._index import Indexed
from mcp_task_runtime.stores.memory._leases import LeaseIndex
from mcp_task_runtime.stores.memory._search import Search
from mcp_task_runtime.stores.memory.queue import InMemoryTaskMessageQueue

__all__ = ["InMemoryTaskStore", "MemoryStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatistics:
    """A snapshot of `InMemoryTaskStore.statistics`.

    Attributes:
        tasks: Tasks that are kept, those included that have expired since the last operation.
        live: Those that have not ended.
        owners: Owners of these tasks; tasks without an owner count as those of one.
        expiring: Tasks that expire some time.
        leases: Tasks with a lease.
        mailboxes: Tasks with a mailbox.
        waiting: Callers that wait for a message or an answer.
    """

    tasks: int
    live: int
    owners: int
    expiring: int
    leases: int
    mailboxes: int
    waiting: int


class InMemoryTaskStore:
    """A `TaskStore` in memory, with every ability. Operations cost O(log n) or less, pages O(page).

    No operation yields but those that wait, so each one happens in full.

    Attributes:
        is_shared: Whether several runtimes use this store object. Otherwise its runtime need not watch for
            what others do to the tasks it runs. Set it to `True` where several share it.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        """Make an empty store.

        Args:
            clock: Where time comes from; the system's when `None`.
        """
        self._clock: Clock = SystemClock() if clock is None else clock
        self._entries: dict[str, Entry] = {}
        self._search = Search(self._entries)
        self._expiry = DeadlineHeap()
        self._leases = LeaseIndex()
        self._joins: dict[str, str] = {}
        """The last task that was made for a call that may be joined, by the call's key."""
        self._join_keys: dict[str, str] = {}
        self._cursors = CursorKey(token_bytes(32))
        self._sequence = 0
        self._closed = False
        self.is_shared: bool = False
        self._queue = InMemoryTaskMessageQueue(self._has_ended)
        self._work: Signal | None = None
        """Exists while workers wait for tasks."""

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._clock

    @property
    def message_queue(self) -> InMemoryTaskMessageQueue:
        """The queue that belongs to this store: a task's mailbox is dropped when the task ends or is gone."""
        return self._queue

    def statistics(self) -> MemoryStatistics:
        """Return what the store keeps now; linear in the number of tools and of mailboxes."""
        counts = self._search.counts().by_status_and_name
        return MemoryStatistics(
            tasks=len(self._entries),
            live=sum(count for (status, _), count in counts.items() if not is_terminal(status)),
            owners=self._search.owners,
            expiring=len(self._expiry),
            leases=len(self._leases),
            mailboxes=self._queue.mailboxes,
            waiting=self._queue.waiting,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the store and its queue: every waiter wakes with `StoreClosedError`."""
        self._closed = True
        if self._work is not None:
            self._work.set()
        for entry in self._entries.values():
            entry.wake()
        await self._queue.aclose()

    # --- TaskStore ---

    @never_waits
    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        """Create a task, given whole or by its fields; see `TaskStore.create_task`."""
        return self.add_task(NewTask.of(new, fields))

    def add_task(self, new: NewTask) -> TaskRecord:
        """Create a task, as `create_task` does, without an event loop."""
        now = self._purge()
        check_new_task(new)
        record = create_record(new, now=now)
        task_id, expires_at = record.task.task_id, record.task.expires_at
        if task_id in self._entries:
            raise TaskExistsError(task_id)
        if new.max_live is not None:
            check_room(self._search.live(new.owner), new.max_live)
        self._sequence += 1
        entry = self._entries[task_id] = Entry(record, self._sequence)
        self._search.add(entry)
        self._expiry.set(task_id, expires_at)
        if record.lease is not None:
            self._leases.set(record)
            self._tell_workers(record.lease)
        return record

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""
        self._purge()
        return self._search.live(owner)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        now = self._purge()
        check_text("key", key)
        joined = self._joins.get(key)
        known = None if joined is None else self._entries.get(joined)
        if known is not None and may_join(known.record, now=now, ended_ms=ended_ms):
            return known.record, False
        record = await self.create_task(new)
        if known is not None:
            del self._join_keys[known.record.task_id]
        self._joins[key] = record.task_id
        self._join_keys[record.task_id] = key
        return record, True

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        self._purge()
        entry = self._entries.get(task_id)
        return None if entry is None else entry.record

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
        now = self._purge()
        check_text("status_message", status_message)
        check_progress(progress)
        check_duration("ttl_ms", ttl_ms)
        entry = self._entry(task_id)
        record = update_record(
            entry.record,
            now=now,
            status=status,
            status_message=status_message,
            progress=progress,
            ttl_ms=ttl_ms,
            if_revision=if_revision,
            fence=fence,
        )
        if ttl_ms is not None:
            self._expiry.set(task_id, record.task.expires_at)
        return self._write(entry, record, () if status_message is None else [("status", status_message)])

    @never_waits
    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        now = self._purge()
        check_outcome(outcome)
        entry = self._entry(task_id)
        record = finish_record(entry.record, outcome, now=now, fence=fence)
        if record.task.ttl_ms != entry.record.task.ttl_ms:
            self._expiry.set(task_id, record.task.expires_at)
        if entry.record.lease is not None:
            self._leases.discard(record)
        self._queue.forget(task_id)
        entry.steps = None
        return self._write(entry, record, ())

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        self._purge()
        return self._entry(task_id).record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        _check_limit(limit)
        self._purge()
        scope = owner_scope(owner)
        position = 0 if cursor is None else self._cursors.decode(cursor, scope)
        return self._page(self._search.owned(owner, position), limit, scope)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""
        self._purge()
        if task_id not in self._entries:
            return False
        self._expiry.discard(task_id)
        self._remove(task_id)
        return True

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        while True:
            self._purge()
            entry = self._entry(task_id)
            if entry.record.revision > after:
                return entry.record
            if entry.changed is None:
                entry.changed = Signal()
            with self._clock.move_on_at(entry.record.task.expires_at):
                await entry.changed.wait()
            if entry.is_removed:  # a new task may have the identifier by now
                raise TaskNotFoundError(task_id)

    # --- TaskWatching ---

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        """Call a function after each change of a task; see `TaskWatching.watch_task`."""
        if self._closed:
            raise StoreClosedError
        entry = self._entries.get(task_id)
        if entry is None:
            on_change(None)
            return do_nothing
        unwatch = entry.watch(on_change)
        if entry.record.revision > after:
            on_change(entry.record)
        return unwatch

    # --- TaskLeases ---

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases; see `TaskLeases.renew_leases`."""
        expires_at = self._purge() + timedelta(milliseconds=lease_ms)
        held = []
        for task_id in task_ids:
            entry = self._held(task_id, worker)
            if entry is not None and entry.record.lease is not None:
                self._set_lease(entry, replace(entry.record.lease, expires_at=expires_at))
                held.append(task_id)
        return frozenset(held)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        now = self._purge()
        for task_id in task_ids:
            entry = self._held(task_id, worker)
            lease = None if entry is None else entry.record.lease
            if entry is not None and lease is not None:
                self._set_lease(entry, lapsed_lease(lease, now=now) if lapse else None)
                entry.note(now, [("released", _run_of(lease))])

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        _check_limit(limit)
        now = self._purge()
        return tuple([self._entries[task_id].record for task_id in self._leases.lapsed(now, limit)])

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, and of these tools those that wait; see `TaskSweeping.list_lost`."""
        _check_limit(limit)
        now = self._purge()
        return tuple([self._entries[task_id].record for task_id in self._leases.lost(names, now, limit)])

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed or is not held; see `TaskLeases.claim_task`."""
        now = self._purge()
        check_text("worker", worker)
        entry = self._entries.get(task_id)
        claimed = None if entry is None else claim_record(entry.record, now=now, worker=worker, lease_ms=lease_ms)
        if entry is None or claimed is None or claimed.lease is None:
            return None
        self._leases.set(claimed)
        self._tell_workers(claimed.lease)
        return self._write(entry, claimed, [("claimed" if worker else "released", _run_of(claimed.lease))])

    # --- TaskWork ---

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`."""
        _check_limit(limit)
        while True:
            waiting = self._leases.waiting(names, self._purge(), limit)
            if waiting:
                return tuple([self._entries[task_id].record for task_id in waiting])
            if self._work is None:
                self._work = Signal()
            await self._work.wait()

    def _tell_workers(self, lease: Lease) -> None:
        if self._work is not None and not lease.worker:
            self._work.set()
            self._work = None

    # --- TaskQuestions ---

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Put a question and make the task `input_required`; see `TaskQuestions.ask`."""
        now = self._purge()
        if question.key is None:
            raise ValueError("question must be a request")
        entry = self._entry(task_id)
        if is_terminal(entry.record.status):
            raise InvalidTransitionError(task_id, current=entry.record.status, requested="input_required")
        record = update_record(entry.record, now=now, status="input_required", fence=fence)
        if not self._queue.put(task_id, question):
            return None
        return self._write(entry, record, [("asked", question.key)])

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer open questions and set the status; see `TaskQuestions.answer_all`."""
        now = self._purge()
        entry = self._entries.get(task_id)
        if entry is None or is_terminal(entry.record.status):
            return frozenset()
        taken = self._queue.take(task_id, answers)
        if taken:
            status: LiveStatus = "input_required" if self._queue.has_questions(task_id) else "working"
            events: list[tuple[TaskEventKind, str | None]] = [
                ("withdrawn" if answers[key].type == "withdrawn" else "answered", key) for key in taken
            ]
            self._write(entry, update_record(entry.record, now=now, status=status), events)
        return frozenset(taken)

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions; see `TaskQuestions.get_view`."""
        self._purge()
        entry = self._entries.get(task_id)
        if entry is None:
            return None
        return TaskView(entry.record, () if is_terminal(entry.record.status) else self._queue.questions(task_id))

    # --- TaskOwners ---

    @never_waits
    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""
        self._purge()
        entry = self._entries.get(task_id)
        if entry is None or entry.record.owner != owner:
            return None
        return TaskView(entry.record, () if is_terminal(entry.record.status) else self._queue.questions(task_id))

    # --- TaskJournal ---

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; see `TaskJournal.record_step`."""
        self._purge()
        check_text("key", key)
        check_json("value_json", value_json)
        entry = self._entry(task_id)
        if is_terminal(entry.record.status):
            raise InvalidTransitionError(task_id, current=entry.record.status, requested=entry.record.status)
        check_fence(entry.record, fence)
        if entry.steps is None:
            entry.steps = {}
        return entry.steps.setdefault(key, value_json)

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key; see `TaskJournal.read_steps`."""
        self._purge()
        entry = self._entries.get(task_id)
        return {} if entry is None or entry.steps is None else dict(entry.steps)

    # --- TaskSearch ---

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        _check_limit(limit)
        self._purge()
        scope = search_scope(wanted, newest_first=newest_first)
        position = None if cursor is None else self._cursors.decode(cursor, scope)
        found, stop = self._search.page(wanted, position, newest_first=newest_first, limit=limit)
        next_cursor = None if stop is None else self._cursors.encode(stop, scope)
        return TaskPage(tuple([entry.record for entry in found]), next_cursor)

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are; see `TaskSearch.count_tasks`."""
        self._purge()
        return self._search.counts()

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task; see `TaskSearch.get_history`."""
        self._purge()
        entry = self._entries.get(task_id)
        return () if entry is None else entry.history()

    # --- one task ---

    def _has_ended(self, task_id: str) -> bool:
        entry = self._entries.get(task_id)
        return entry is not None and is_terminal(entry.record.status)

    def _entry(self, task_id: str) -> Entry:
        entry = self._entries.get(task_id)
        if entry is None:
            raise TaskNotFoundError(task_id)
        return entry

    def _write(
        self, entry: Entry, record: TaskRecord, events: Iterable[tuple[TaskEventKind, str | None]]
    ) -> TaskRecord:
        moved = record.task.status != entry.record.task.status
        entry.record = record
        if moved:
            self._search.move(entry)
        if events:
            entry.note(record.task.last_updated_at, events)
        entry.wake()
        return record

    def _held(self, task_id: str, worker: str) -> Entry | None:
        """Return the entry of a task whose lease is a worker's; only a live task has one."""
        entry = self._entries.get(task_id)
        lease = None if entry is None else entry.record.lease
        return entry if lease is not None and lease.worker == worker else None

    def _set_lease(self, entry: Entry, lease: Lease | None) -> None:
        entry.record = replace(entry.record, lease=lease)
        self._leases.set(entry.record)

    def _page(self, walk: Iterable[Indexed], limit: int, scope: bytes) -> TaskPage:
        found = list(islice(walk, limit + 1))
        records = tuple(entry.record for entry in found[:limit])
        return TaskPage(records, self._cursors.encode(found[limit - 1].sequence, scope) if len(found) > limit else None)

    def _purge(self) -> datetime:
        """Drop what has expired, each task once, so that the cost is part of its creation's; return the time."""
        if self._closed:
            raise StoreClosedError
        now = self._clock.now()
        if self._expiry.is_due(now):
            while (task_id := self._expiry.pop_due(now)) is not None:
                self._remove(task_id)
        return now

    def _remove(self, task_id: str) -> None:
        entry = self._entries.pop(task_id)
        key = self._join_keys.pop(task_id, None)
        if key is not None:
            del self._joins[key]
        self._search.remove(entry)
        self._leases.discard(entry.record)
        self._queue.forget(task_id)
        entry.wake()


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError("limit must be at least 1")


def _run_of(lease: Lease) -> str:
    return f"{lease.worker}#{lease.attempt}"
