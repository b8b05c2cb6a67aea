"""`SQLiteTaskStore`: tasks in a SQLite file.

Durable with nothing else installed, for any number of processes on one machine. Needs a local disk: SQLite's locks
and its write-ahead log do not work over a network. `_schema` describes the stored form; `_engine` the threads,
group commit and the wake-up between processes; `_clock` whose time counts.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from typing_extensions import Unpack

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import (
    finish_record,
    is_terminal,
    update_record,
)
from mcp_task_runtime.core.types import (
    Fence,
    Finding,
    LiveStatus,
    NewTask,
    NewTaskFields,
    Outcome,
    Progress,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import TaskNotFoundError
from mcp_task_runtime.stores import _storable
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.sqlite import _mailbox, _search, _tasks
from mcp_task_runtime.stores.sqlite._creation import Creation
from mcp_task_runtime.stores.sqlite._leases import Leases
from mcp_task_runtime.stores.sqlite._pages import Pages
from mcp_task_runtime.stores.sqlite._records import (
    MESSAGE_COLUMNS,
    RECORD_COLUMNS,
    DamageLog,
    events_of,
    from_stamp,
    message_of,
    record_of,
    to_sql,
    to_text,
)
from mcp_task_runtime.stores.sqlite._schema import Synchronous
from mcp_task_runtime.stores.sqlite._statistics import SQLiteStatistics
from mcp_task_runtime.stores.sqlite._tasks import ALIVE
from mcp_task_runtime.stores.sqlite._transaction import Transaction
from mcp_task_runtime.stores.sqlite._updates import UpdateLook, WatchLook
from mcp_task_runtime.stores.sqlite._waiters import Watcher
from mcp_task_runtime.stores.sqlite._work import WaitingWork
from mcp_task_runtime.stores.sqlite.queue import SQLiteTaskMessageQueue

__all__ = ["SQLiteTaskStore"]

_NO_MESSAGE: Final = ", ".join(["NULL"] * (RECORD_COLUMNS.count(",") + 1 - len(MESSAGE_COLUMNS.split(","))))
_VIEW: Final = (
    f"SELECT 0, {RECORD_COLUMNS} FROM tasks WHERE task_id = ?1 AND (expires_at IS NULL OR expires_at > ?2)"
    f" UNION ALL SELECT position, {MESSAGE_COLUMNS}, {_NO_MESSAGE} FROM messages INDEXED BY messages_open"
    " WHERE task_id = ?1 AND key IS NOT NULL AND answer_type IS NULL"
)
_OWNED: Final = f"SELECT {RECORD_COLUMNS} FROM tasks WHERE task_id = ? AND owner IS ? AND {ALIVE}"
_HISTORY: Final = f"SELECT created_at, events FROM tasks WHERE task_id = ? AND {ALIVE}"
_STEP: Final = "SELECT value FROM steps WHERE task_id = ? AND key = ?"
_RECORD_STEP: Final = "INSERT INTO steps (task_id, key, value) VALUES (?, ?, ?)"
_STEPS: Final = (
    "SELECT position, key, value FROM steps WHERE task_id = ?1"
    " AND EXISTS (SELECT 1 FROM tasks WHERE task_id = ?1 AND (expires_at IS NULL OR expires_at > ?2))"
)

STATEMENTS: Final = (_VIEW, _OWNED, _HISTORY, _STEP, _STEPS)
"""All statements of this module that read or change rows which are there."""


class SQLiteTaskStore(Opened):
    """A `TaskStore` in a SQLite file, with all abilities: leases, questions, journal, search.

    It opens at its first use, on any event loop; `async with` opens it at once, and closes it. Processes, and
    stores, that use one file see each other's changes at once; waiters wake within about 50 ms.

    An operation that finds the file locked or unavailable is repeated for `timeout` seconds, and then raises
    `StoreUnavailableError`, which names the file. An outage is logged once. If the file is deleted or replaced while
    it is in use, everything is refused: tasks that were acknowledged are in that file alone.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Clock | None = None,
        synchronous: Synchronous = "full",
        timeout: float = 5.0,
    ) -> None:
        """Make a store; the file is made when it is opened, its folder must exist.

        Args:
            path: The database file, on a local disk. One that is made can be read and written by its owner alone;
                change its permissions where processes of other users share it.
            clock: Where time comes from; its `now` is called in threads. `None` is the time of the file, which all
                processes share: it starts as the wall clock at the first use after a boot, and then moves as the
                machine's monotonic clock does, so that no process is harmed when a wall clock jumps.
            synchronous: `full` keeps what was acknowledged through a power failure. `normal` is faster
                and keeps it only through the end of the process.
            timeout: Seconds that an operation is repeated while the file is locked or unavailable.

        Raises:
            ValueError: `path` does not name a file, `synchronous` is unknown, or `timeout` is not above 0.
        """
        self._engine = _tasks.open_engine(path, clock=clock, synchronous=synchronous, timeout=timeout)
        self._queue = SQLiteTaskMessageQueue(self._engine)
        damage = DamageLog()
        self._creation = Creation(self._engine, damage)
        self._leases = Leases(self._engine, damage)
        self._work = WaitingWork(self._engine, damage)
        self._pages = Pages(self._engine, damage)

    @property
    def clock(self) -> Clock:
        """The clock that stamps and expires tasks."""
        return self._engine.clock

    @property
    def message_queue(self) -> SQLiteTaskMessageQueue:
        """The queue in the same file: a task's mailbox goes when the task ends or goes."""
        return self._queue

    @property
    def is_shared(self) -> bool:
        """Whether other processes may change the tasks: always."""
        return True

    async def connect(self) -> None:
        """Open the file. A lock is waited for; everything else that prevents it is raised at once.

        Raises:
            SchemaVersionError: A later version of this library wrote it.
            StoreUnavailableError: It cannot be opened or written; the message names the file.
            StoreError: It is not a database, or belongs to another application.
        """
        await self._engine.open()

    async def aclose(self) -> None:
        """Close the file, and the queue with it: waiters wake with `StoreClosedError`."""
        await self._engine.aclose()

    def statistics(self) -> SQLiteStatistics:
        """Return figures of this store and its queue in this process."""
        return self._engine.statistics()

    async def diagnose(self) -> tuple[Finding, ...]:
        """Return the file's size, version and journal; see `TaskDiagnosis`."""

        def look(transaction: Transaction) -> tuple[Finding, ...]:
            version, pages, size, free, journal = (
                transaction.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("user_version", "page_count", "page_size", "freelist_count", "journal_mode")
            )
            used = f"{pages * size / 2**20:.1f} MiB, {free * size / 2**20:.1f} of them free"
            log = Finding("journal", "ok", "write-ahead log")
            if journal != "wal":
                log = Finding("journal", "warning", f"{journal}, so readers and writers wait for each other")
            return Finding("schema", "ok", f"version {version}; SQLite {sqlite3.sqlite_version}; {used}"), log

        return await self._engine.read(look)

    # --- TaskStore ---

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        """Create a task, given whole or by its fields; see `TaskStore.create_task`."""
        return await self._creation.create(NewTask.of(new, fields))

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`."""
        return await self._creation.count_live(owner)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        return await self._creation.join(new, key=key, ended_ms=ended_ms)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        return await self._engine.read(partial(_tasks.read_record, task_id=task_id))

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
        _storable.check_text("status_message", status_message)
        _storable.check_progress(progress)
        _storable.check_duration("ttl_ms", ttl_ms)

        def update(transaction: Transaction) -> TaskRecord:
            found = _tasks.load(transaction, task_id)
            record = update_record(
                found.record,
                now=transaction.now,
                status=status,
                status_message=status_message,
                progress=progress,
                ttl_ms=ttl_ms,
                if_revision=if_revision,
                fence=fence,
            )
            _tasks.update(transaction, found, record, [] if status_message is None else [("status", status_message)])
            return record

        return await self._engine.write(update)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome; see `TaskStore.finish_task`."""
        _storable.check_outcome(outcome)

        def finish(transaction: Transaction) -> TaskRecord:
            found = _tasks.load(transaction, task_id)
            record = finish_record(found.record, outcome, now=transaction.now, fence=fence)
            _tasks.finish(transaction, found, record)
            return record

        return await self._engine.write(finish)

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`. Damaged tasks are left out."""
        return await self._pages.of_owner(owner, cursor=cursor, limit=limit)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task; see `TaskStore.delete_task`."""

        def delete(transaction: Transaction) -> bool:
            was_there = _tasks.exists(transaction, task_id)
            if was_there:
                _tasks.remove(transaction, task_id)
                _tasks.note_clear(transaction, task_id)
            return was_there

        return await self._engine.write(delete)

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        return await self._engine.wait(task_id, UpdateLook(task_id, after))

    # --- TaskWatching ---

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        """Call a function after each change of a task; see `TaskWatching.watch_task`."""
        unwatch = self._engine.watch(Watcher(task_id, WatchLook(task_id, after), on_change))
        on_change(None)
        return unwatch

    # --- TaskLeases ---

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Extend leases of a worker; see `TaskLeases.renew_leases`.

        Does not wait for the disk: a power failure ends the worker, too.
        """
        return await self._leases.renew(worker, task_ids, lease_ms=lease_ms)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await self._leases.drop(worker, task_ids, lapse=lapse)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`. Damaged tasks are left out."""
        return await self._leases.lapsed(limit=limit)

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, and of these tools those that wait; see `TaskSweeping.list_lost`."""
        return await self._leases.lost(names, limit=limit)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a task that no process runs; see `TaskLeases.claim_task`."""
        return await self._leases.claim(task_id, worker=worker, lease_ms=lease_ms)

    # --- TaskWork ---

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`. Damaged tasks are left out.

        The cost of a look is linear in `names` and `limit`.
        """
        return await self._work.wait(names, limit=limit)

    # --- TaskQuestions ---

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Ask a question and set the status in one write; see `TaskQuestions.ask`."""
        key = question.key
        if key is None:
            raise ValueError("question must be a request")
        _storable.check_message(question)

        def ask(transaction: Transaction) -> TaskRecord | None:
            found = _tasks.load(transaction, task_id)
            record = update_record(found.record, now=transaction.now, status="input_required", fence=fence)
            if not _mailbox.append(transaction, task_id, question):
                return None
            _tasks.update(transaction, found, record, [("asked", key)])
            return record

        return await self._engine.write(ask)

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer questions and set the status in one write; see `TaskQuestions.answer_all`."""
        given = dict(answers)
        for answer in given.values():
            _storable.check_answer(answer)

        def give(transaction: Transaction) -> frozenset[str]:
            found = _tasks.look_up(transaction, task_id)
            if found is None or is_terminal(found.record.status):
                return frozenset()
            taken = _mailbox.give_answers(transaction, task_id, given)
            if taken:
                status: LiveStatus = (
                    "input_required" if _mailbox.has_open_questions(transaction, task_id) else "working"
                )
                record = update_record(found.record, now=transaction.now, status=status)
                events: list[_tasks.Event] = [
                    ("withdrawn" if answer.type == "withdrawn" else "answered", key) for key, answer in taken.items()
                ]
                _tasks.update(transaction, found, record, events)
                transaction.tell(task_id, taken)
            return frozenset(taken)

        return await self._engine.write(give) if given else frozenset()

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions in one read; see `TaskQuestions.get_view`."""
        return await self._engine.read(partial(_view, task_id=task_id))

    # --- TaskOwners ---

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""

        def find(transaction: Transaction) -> TaskView | None:
            row = transaction.execute(_OWNED, (to_sql(task_id), to_sql(owner), transaction.stamp)).fetchone()
            if row is None:
                return None
            record = record_of(row)
            if record.status != "input_required":
                return TaskView(record)
            view = _view(transaction, task_id)  # again: status and questions must be of one time
            return view if view is not None and view.record.owner == owner else None

        return await self._engine.read(find)

    # --- TaskJournal ---

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step, once; see `TaskJournal.record_step`."""
        _storable.check_text("key", key)
        _storable.check_json("value_json", value_json)

        def record_step(transaction: Transaction) -> str:
            found = _tasks.load(transaction, task_id)
            update_record(found.record, now=transaction.now, fence=fence)  # refuses what must not write
            names = (to_sql(task_id), to_sql(key))
            row = transaction.execute(_STEP, names).fetchone()
            if row is None:
                transaction.execute(_RECORD_STEP, (*names, to_sql(value_json)))
                return value_json
            earlier: str = to_text(row[0])
            return earlier

        return await self._engine.write(record_step)

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded results by key; see `TaskJournal.read_steps`."""

        def read_steps(transaction: Transaction) -> dict[str, str]:
            rows = transaction.execute(_STEPS, (to_sql(task_id), transaction.stamp)).fetchall()
            rows.sort(key=_first)
            return {to_text(key): to_text(value) for _, key, value in rows}

        return await self._engine.read(read_steps)

    # --- TaskSearch ---

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`. Damaged tasks are left out."""
        return await self._pages.find(wanted, newest_first=newest_first, cursor=cursor, limit=limit)

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are; see `TaskSearch.count_tasks`."""
        return await self._engine.read(_search.count)

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task, oldest first; see `TaskSearch.get_history`."""

        def history(transaction: Transaction) -> tuple[TaskEvent, ...]:
            row = transaction.execute(_HISTORY, (to_sql(task_id), transaction.stamp)).fetchone()
            if row is None:
                return ()
            events = [TaskEvent(from_stamp(at), kind, text) for at, kind, text in events_of(row[1])]
            return (TaskEvent(from_stamp(row[0]), "created"), *events)

        return await self._engine.read(history)


def _view(transaction: Transaction, task_id: str) -> TaskView | None:
    """Return a task with its open questions, by one statement."""
    rows = transaction.execute(_VIEW, (to_sql(task_id), transaction.stamp)).fetchall()
    rows.sort(key=_first)
    if not rows or rows[0][0] != 0:
        _tasks.miss()
        return None
    record = record_of(rows[0][1:])
    if is_terminal(record.status):
        return TaskView(record)
    return TaskView(record, tuple([message_of(row[1:5]) for row in rows[1:]]))


def _first(row: tuple[Any, ...]) -> Any:
    return row[0]
