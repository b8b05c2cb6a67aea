"""`PostgresTaskStore`: tasks in PostgreSQL, with every ability a store can have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from psycopg_pool import ConnectionPool
from typing_extensions import Unpack

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, finish_record, update_record
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
from mcp_task_runtime.stores._storable import check_duration
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._attempt import Attempt, NotYet
from mcp_task_runtime.stores.postgres._calls import TaskCalls, changed_row, live_record, read_record
from mcp_task_runtime.stores.postgres._creation import Creation
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._errors import RetryError
from mcp_task_runtime.stores.postgres._leases import Leases
from mcp_task_runtime.stores.postgres._pages import Pages
from mcp_task_runtime.stores.postgres._rows import (
    COLUMNS,
    decode_nothing,
    event,
    event_of,
    fence_parameters,
    from_text,
    message_of,
    record_of,
    sources,
    to_bigint,
    to_json,
    to_key,
    to_object,
    to_payload,
    to_progress,
    to_stored,
    to_text,
    utc,
)
from mcp_task_runtime.stores.postgres._search import Search
from mcp_task_runtime.stores.postgres._taking import Taking
from mcp_task_runtime.stores.postgres._user import DatabaseUser
from mcp_task_runtime.stores.postgres._work import WaitingWork
from mcp_task_runtime.stores.postgres.queue import PostgresTaskMessageQueue, message_parameters, watch

__all__ = ["PostgresTaskStore"]

logger: logging.Logger = logging.getLogger(__name__)


class PostgresTaskStore(DatabaseUser):
    """A `TaskStore` in PostgreSQL with all abilities.

    It connects when it is first used, or by `async with`. A server that cannot be reached for a moment is waited
    out; the log says once that it is unreachable, and once that it is back.

    A task whose row is damaged raises `StoreError`. Lists leave it out, and the log says so once.

    Attributes:
        is_shared: `True`: other processes may change the tasks.
    """

    is_shared: Final = True

    def __init__(
        self,
        database: str | ConnectionPool[Any],
        *,
        clock: Clock | None = None,
        schema: str = "mcp_task_runtime",
        max_connections: int = 10,
        timeout: float = 5.0,
    ) -> None:
        """Make a store.

        Args:
            database: URL or connection string of a database; or a pool, which stays the caller's to open and
                close. One more connection, made like the pool's, listens while a caller waits. Connections of a pool in
                autocommit mode must have the isolation level READ COMMITTED, which is PostgreSQL's own default.
            clock: Where time comes from; the server's clock when `None`, so that processes whose own clocks
                disagree see the same time.
            schema: Name of the database schema that holds the tables; made if there is none.
            max_connections: The most connections of the pool, unless one was handed in.
            timeout: Seconds to wait for a server that cannot be reached or does not answer, before an operation
                raises `StoreUnavailableError`.

        Raises:
            ValueError: An argument makes no sense; the message names it.
        """
        super().__init__(
            Database(database, clock=clock, schema=schema, max_connections=max_connections, timeout=timeout)
        )
        self._queue = PostgresTaskMessageQueue(self._database)
        self._calls = TaskCalls(self._database)
        self._pages = Pages(self._database)
        self._search = Search(self._database, self._pages)
        self._work = WaitingWork(self._database, self._pages)
        self._leases = Leases(self._database, self._calls, self._pages)
        self._taking = Taking(self._database, self._calls, self._pages)
        self._creation = Creation(self._database, self._calls)

    @property
    def message_queue(self) -> PostgresTaskMessageQueue:
        """The queue that belongs to this store, on the same pool: a task's mailbox goes with the task."""
        return self._queue

    # --- TaskStore ---

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        """Create a task, given whole or by its fields; see `TaskStore.create_task`.

        Raises:
            ValueError: `task_id` or `owner` is longer than 1024 bytes, a duration is longer than 250 years, or
                something could not be read back.
        """
        return await self._creation.create(NewTask.of(new, fields))

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`. It costs O(those)."""
        return await self._creation.count_live(owner)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        return await self._creation.join(new, key=key, ended_ms=ended_ms)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        return await self._database.read(partial(read_record, task_id))

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
        """Change a live task; see `TaskStore.update_task`.

        Raises:
            ValueError: `ttl_ms` is longer than 250 years, or `progress` could not be read back.
        """
        check_duration("ttl_ms", ttl_ms)
        parameters = {
            "status": status,
            "status_message": to_stored("status_message", status_message),
            "progress": None if progress is None else to_progress(progress),
            "ttl_ms": ttl_ms,
            "if_revision": None if if_revision is None else to_bigint(if_revision),
            "event": None if status_message is None else event("status", status_message),
            "sources": "{}" if status in TERMINAL_STATUSES else sources(status),
            **fence_parameters(fence),
        }
        apply = partial(
            update_record,
            now=self.clock.now(),
            status=status,
            status_message=status_message,
            if_revision=if_revision,
            fence=fence,
        )
        return await self._calls.change(task_id, statements.UPDATE, parameters, apply)

    async def finish_task(self, task_id: str, outcome: Outcome, *, fence: Fence | None = None) -> TaskRecord:
        """Record a terminal status and its outcome, and drop the mailbox; see `TaskStore.finish_task`.

        Raises:
            ValueError: The outcome could not be read back, or a completed or failed task has none.
        """
        payload = outcome.payload_json
        if (payload is None) != (outcome.status == "cancelled"):
            raise ValueError("outcome must have a payload unless the task was cancelled")
        parameters = {
            "status": outcome.status,
            "status_message": to_stored("status_message", outcome.status_message),
            "outcome": None if payload is None else to_object("outcome", payload),
            "is_error": outcome.is_error,
            "event": event(outcome.status, outcome.status_message),
            "sources": sources(outcome.status),
            **fence_parameters(fence),
        }
        apply = partial(finish_record, outcome=outcome, now=self.clock.now(), fence=fence)
        record = await self._calls.change(task_id, statements.FINISH, parameters, apply)
        self._database.fire_ended(to_text(task_id))
        return record

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        return await self._pages.of_owner(owner, cursor, limit)

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task and its mailbox; see `TaskStore.delete_task`."""
        parameters = {"task_id": to_text(task_id)}

        def delete(attempt: Attempt) -> bool:
            return attempt.execute(statements.DELETE, parameters).rowcount > 0 or attempt.is_repeated

        deleted = await self._database.change(parameters["task_id"], delete)
        if deleted:
            self._database.fire_ended(parameters["task_id"])
        return deleted

    async def wait_for_update(self, task_id: str, *, after: int) -> TaskRecord:
        """Wait until the revision is greater than `after`; see `TaskStore.wait_for_update`."""
        parameters = {"task_id": to_text(task_id), "watcher": self._database.watcher}

        def look(attempt: Attempt) -> TaskRecord | NotYet:
            while True:
                row = attempt.fetch(statements.LOOK_FOR_UPDATE, parameters)
                if row is None:
                    raise TaskNotFoundError(task_id)
                record = record_of(row)
                if record.revision > after:
                    return record
                if row[COLUMNS] or not watch(attempt, parameters):
                    return NotYet(record.task.expires_at)
                # Look again: only changes from now on notify.

        return await self._database.wait("task", to_text(task_id), look)

    # --- TaskWatching ---

    def watch_task(
        self, task_id: str, on_change: Callable[[TaskRecord | None], None], *, after: int
    ) -> Callable[[], None]:
        """Call a function after each change of a task; see `TaskWatching.watch_task`.

        It is called with the task where this process changes it, and with `None` for what other processes do.
        """
        return self._database.watch(to_text(task_id), on_change, after=after, look=self._calls.look_at_watched)

    # --- TaskEndWatching ---

    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call a function when a task has ended; see `TaskEndWatching.watch_end`.

        A task is read only if its end may have been missed: one that was made before this process listened.
        """
        return self._database.watch_end(to_text(task_id), on_end, look=self._calls.look_at_watched)

    # --- TaskLeases ---

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases; see `TaskLeases.renew_leases`."""
        return await self._leases.renew(worker, task_ids, lease_ms=lease_ms)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        await self._leases.drop(worker, task_ids, lapse=lapse)

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        return await self._leases.lapsed(limit=limit)

    async def list_lost(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Return tasks of lost workers, and of these tools those that wait; see `TaskSweeping.list_lost`."""
        return await self._leases.lost(names, limit=limit)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed or is held by no process; see `TaskLeases.claim_task`."""
        return await self._leases.claim(task_id, worker=worker, lease_ms=lease_ms)

    # --- TaskWork ---

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`.

        The cost of a look is linear in `names` and `limit`.
        """
        return await self._work.wait(names, limit=limit)

    # --- TaskTaking ---

    async def take_work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool = False
    ) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker, and claim them; see `TaskTaking.take_work`.

        One statement for all. Its cost is linear in `names` and `limit`.
        """
        return await self._taking.work(names, worker=worker, lease_ms=lease_ms, limit=limit, with_sealed=with_sealed)

    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool = False
    ) -> TaskRecord | None:
        """Claim a task of these tools that waits for a worker; see `TaskTaking.take_task`."""
        return await self._taking.task(task_id, names, worker=worker, lease_ms=lease_ms, with_sealed=with_sealed)

    # --- TaskQuestions ---

    async def ask(self, task_id: str, question: QueuedMessage, *, fence: Fence | None = None) -> TaskRecord | None:
        """Ask a question; see `TaskQuestions.ask`.

        Raises:
            ValueError: The question is a notification, its key is longer than 1024 bytes, or `params_json` could not
                be read back.
        """
        if question.key is None:
            raise ValueError("question must be a request")
        parameters = {
            "task_id": to_text(task_id),
            **message_parameters(question),
            "event": event("asked", question.key),
            **self._calls.marks(),
            **fence_parameters(fence),
        }
        apply = partial(update_record, now=self.clock.now(), status="input_required", fence=fence)

        def ask(attempt: Attempt) -> TaskRecord | None:
            row = changed_row(attempt, statements.ASK, parameters)
            if row is not None:
                return record_of(row)
            record = live_record(task_id, attempt, apply)
            row = attempt.fetch(statements.MESSAGE_OF_KEY, parameters)
            if row is None:
                raise RetryError  # it was refused for a reason that is no more
            return record if attempt.is_repeated and message_of(row[1:]) == question else None

        return await self._database.change(str(parameters["task_id"]), ask, topics=("task", "message"))

    async def answer_all(self, task_id: str, answers: Mapping[str, Answer]) -> frozenset[str]:
        """Answer questions; see `TaskQuestions.answer_all`.

        Raises:
            ValueError: An answer could not be read back.
        """
        given = {to_text(key): (answer.type, to_payload(answer)) for key, answer in answers.items()}
        if not given:
            return frozenset()
        parameters = {
            "task_id": to_text(task_id),
            "keys": list(given),
            "types": [answer_type for answer_type, _ in given.values()],
            "answers": [payload for _, payload in given.values()],
            "events": [event("withdrawn" if a.type == "withdrawn" else "answered", key) for key, a in answers.items()],
            **self._calls.marks(),
        }

        def answer(attempt: Attempt) -> frozenset[str]:
            row = attempt.fetch(statements.ANSWER_ALL, parameters)
            if row is not None:
                return frozenset(map(from_text, row[0]))
            if not attempt.is_repeated:
                return frozenset()
            rows = attempt.execute(statements.ANSWERS_OF, parameters).fetchall()
            return frozenset(from_text(key) for key, *its in rows if tuple(its) == given[key])

        return await self._database.change(str(parameters["task_id"]), answer, topics=("task", "answer"))

    async def get_view(self, task_id: str) -> TaskView | None:
        """Return the task with its open questions; see `TaskQuestions.get_view`."""

        def read(attempt: Attempt) -> TaskView | None:
            row = attempt.fetch(statements.GET_VIEW, {"task_id": to_text(task_id)})
            if row is None:
                decode_nothing()
                return None
            return TaskView(record_of(row), tuple(map(message_of, row[COLUMNS])))

        return await self._database.read(read)

    # --- TaskOwners ---

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        """Return an owner's task with its open questions; see `TaskOwners.get_owned`."""
        parameters = {"task_id": to_text(task_id), "owner": None if owner is None else to_text(owner)}

        def read(attempt: Attempt) -> TaskView | None:
            row = attempt.fetch(statements.GET_OWNED, parameters)
            return None if row is None else TaskView(record_of(row), tuple(map(message_of, row[COLUMNS])))

        return await self._database.read(read)

    # --- TaskJournal ---

    async def record_step(self, task_id: str, key: str, value_json: str, *, fence: Fence) -> str:
        """Record the result of a step; see `TaskJournal.record_step`.

        Raises:
            ValueError: `key` is longer than 1024 bytes, or `value_json` could not be read back.
        """
        parameters = {
            "task_id": to_text(task_id),
            "key": to_key("key", key),
            "value": to_json("value_json", value_json),
            **fence_parameters(fence),
        }
        apply = partial(update_record, now=self.clock.now(), fence=fence)

        def record(attempt: Attempt) -> str:
            row = attempt.fetch(statements.RECORD_STEP, parameters)
            if row is None:
                live_record(task_id, attempt, apply)
                row = attempt.fetch(statements.STEP, parameters)
            if row is None:
                raise RetryError  # it was refused for a reason that is no more
            recorded: str = row[0]
            return recorded

        return await self._database.write(record)

    async def read_steps(self, task_id: str) -> Mapping[str, str]:
        """Return the recorded steps; see `TaskJournal.read_steps`."""
        parameters = {"task_id": to_text(task_id)}
        rows = await self._database.read(lambda attempt: attempt.execute(statements.READ_STEPS, parameters).fetchall())
        return {from_text(key): value for key, value in rows}

    # --- TaskSearch ---

    async def search_tasks(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of the tasks that match; see `TaskSearch.search_tasks`."""
        return await self._search.find(wanted, newest_first=newest_first, cursor=cursor, limit=limit)

    async def diagnose(self) -> tuple[Finding, ...]:
        """Return the server's and the schema's version, and what endangers tasks; see `TaskDiagnosis`."""
        row = await self._database.read(lambda attempt: attempt.fetch(statements.DIAGNOSE, {}))
        assert row is not None
        schema, server, syncs, commits, is_standby = row
        found = [Finding("server", "ok", f"PostgreSQL {server}"), Finding("schema", "ok", f"version {schema}")]
        if is_standby:
            found[0] = Finding("server", "error", f"PostgreSQL {server} is a standby, which takes no changes")
        if not syncs:
            found.append(Finding("persistence", "error", "fsync is off: a crash of the machine may destroy everything"))
        elif not commits:
            text = "synchronous_commit is off: a crash of the server may lose the latest changes"
            found.append(Finding("persistence", "warning", text))
        return tuple(found)

    async def count_tasks(self) -> TaskCounts:
        """Return how many tasks there are, or up to how many there were counted; see `TaskSearch.count_tasks`."""
        return await self._search.count()

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task; see `TaskSearch.get_history`. Nothing for an unknown task."""
        row = await self._database.read(
            lambda attempt: attempt.fetch(statements.HISTORY, {"task_id": to_text(task_id)})
        )
        if row is None:
            return ()
        created_at, events = row
        return (TaskEvent(utc(created_at), "created"), *map(event_of, events))
