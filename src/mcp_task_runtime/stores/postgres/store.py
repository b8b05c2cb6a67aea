"""`PostgresTaskStore`: tasks in PostgreSQL, with every ability a store can have."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from psycopg_pool import ConnectionPool
from typing_extensions import Unpack

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.ids import new_task_id
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, check_room, create_record, finish_record, update_record
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
from mcp_task_runtime.errors import InvalidCursorError, TaskExistsError, TaskNotFoundError
from mcp_task_runtime.stores._cursor import owner_scope, search_scope
from mcp_task_runtime.stores._storable import check_duration
from mcp_task_runtime.stores.postgres import _search
from mcp_task_runtime.stores.postgres import _statements as statements
from mcp_task_runtime.stores.postgres._database import Attempt, Database, DatabaseUser, NotYet
from mcp_task_runtime.stores.postgres._errors import RetryError
from mcp_task_runtime.stores.postgres._rows import (
    COLUMNS,
    DamagedRowError,
    create_parameters,
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
from mcp_task_runtime.stores.postgres.queue import PostgresTaskMessageQueue, message_parameters, watch

__all__ = ["PostgresTaskStore"]

logger: logging.Logger = logging.getLogger(__name__)

_PURGE_EVERY: Final = 16
_PURGE_MOST: Final = 8 * _PURGE_EVERY
_LARGEST_PAGE: Final = 10_000
_LARGEST_POSITION: Final = 2**63 - 1
_MOST_REPORTED: Final = 1_000
_LONGEST_WORKER: Final = 100


class PostgresTaskStore(DatabaseUser):
    """A `TaskStore` in PostgreSQL with `TaskLeases`, `TaskQuestions`, `TaskJournal`, `TaskSearch` and `TaskSharing`.

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
                close. One more connection, made like the pool's, listens while a caller waits.
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
        self._created = 0
        self._reported: set[int] = set()

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
        new, parameters = self._creation(NewTask.of(new, fields))
        purges = self._purges()
        statement = statements.CREATE if new.max_live is None else statements.CREATE_WITHIN

        def create(attempt: Attempt) -> TaskRecord:
            if purges:
                attempt.execute(statements.PURGE, {"limit": _PURGE_MOST})
            while (row := attempt.fetch(statement, parameters)) is None:
                if attempt.is_repeated and (row := attempt.fetch(statements.CREATED, parameters)) is not None:
                    break
                if attempt.execute(statements.DELETE_EXPIRED, parameters).rowcount:
                    continue
                if new.max_live is None or attempt.fetch(statements.TAKEN, parameters) is not None:
                    raise TaskExistsError(new.task_id or "")
                _check_room(attempt, new, parameters)
            return create_record(new, now=utc(row[0]))

        return await self._database.write(create)

    def _creation(self, new: NewTask) -> tuple[NewTask, dict[str, Any]]:
        """Return a new task with its identifier, and the parameters of the statement that makes it."""
        if new.task_id is None:
            new = replace(new, task_id=new_task_id())
        parameters = create_parameters(new, now=self.clock.now())
        return new, {**parameters, "operation": _new_operation(), "watcher": self._database.watcher}

    def _purges(self) -> bool:
        """Return whether it is time to remove expired tasks, when one is made."""
        self._created += 1
        return (self._created - 1) % _PURGE_EVERY == 0

    # --- TaskQuotas ---

    async def count_live_tasks(self, owner: str | None) -> int:
        """Return how many live tasks an owner has; see `TaskQuotas.count_live_tasks`. It costs O(those)."""

        def count(attempt: Attempt) -> int:
            row = attempt.fetch(statements.COUNT_LIVE, {"owner": to_text(owner)})
            return 0 if row is None else int(row[0])

        return await self._database.read(count)

    # --- TaskJoins ---

    async def join_task(self, new: NewTask, *, key: str, ended_ms: int) -> tuple[TaskRecord, bool]:
        """Return the task that was made with this key, or create one; see `TaskJoins.join_task`."""
        new, parameters = self._creation(new)
        check_duration("ended_ms", ended_ms)
        parameters |= {"join_key": to_key("key", key), "ended_ms": ended_ms}
        purges = self._purges()
        statement = statements.JOIN if new.max_live is None else statements.JOIN_WITHIN

        def join(attempt: Attempt) -> tuple[TaskRecord, bool]:
            if purges:
                attempt.execute(statements.PURGE, {"limit": _PURGE_MOST})
            while (row := attempt.fetch(statement, parameters)) is None:
                if attempt.is_repeated and (row := attempt.fetch(statements.CREATED, parameters)) is not None:
                    break
                if (joined := attempt.fetch(statements.JOINED, parameters)) is not None:
                    return record_of(joined), False
                if attempt.fetch(statements.TAKEN, parameters) is not None:
                    raise TaskExistsError(new.task_id or "")
                if not attempt.execute(statements.DELETE_EXPIRED, parameters).rowcount:
                    _check_room(attempt, new, parameters)  # or what was to be joined has gone
            return create_record(new, now=utc(row[0])), True

        return await self._database.write(join)

    async def get_task(self, task_id: str) -> TaskRecord | None:
        """Return the task, or `None`; see `TaskStore.get_task`."""
        return await self._database.read(partial(_get, task_id))

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
        return await self._change(task_id, statements.UPDATE, parameters, apply)

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
        record = await self._change(task_id, statements.FINISH, parameters, apply)
        self._database.fire_cleared(to_text(task_id))
        return record

    async def get_result(self, task_id: str) -> Outcome | None:
        """Return how the task ended, or `None`; see `TaskStore.get_result`."""
        record = await self.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record.outcome

    async def list_tasks(self, *, owner: str | None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """Return a page of one owner's tasks; see `TaskStore.list_tasks`."""
        statement = statements.LIST_OF_NOBODY if owner is None else statements.LIST_OF_OWNER
        parameters = {"owner": to_text(owner)}
        return await self._page(statement, parameters, owner_scope(owner), cursor, limit, position="after")

    async def delete_task(self, task_id: str) -> bool:
        """Delete the task and its mailbox; see `TaskStore.delete_task`."""
        parameters = {"task_id": to_text(task_id)}

        def delete(attempt: Attempt) -> bool:
            return attempt.execute(statements.DELETE, parameters).rowcount > 0 or attempt.is_repeated

        deleted = await self._database.change(parameters["task_id"], delete)
        if deleted:
            self._database.fire_cleared(parameters["task_id"])
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

    # --- TaskLeases ---

    async def renew_leases(self, worker: str, task_ids: Collection[str], *, lease_ms: int) -> frozenset[str]:
        """Reset the expiry of a worker's leases; see `TaskLeases.renew_leases`."""
        check_duration("lease_ms", lease_ms)
        parameters = {
            "worker": to_text(worker),
            "task_ids": [to_text(task_id) for task_id in task_ids],
            "lease_ms": lease_ms,
        }
        rows = await self._database.write(
            lambda attempt: attempt.execute(statements.RENEW_LEASES, parameters).fetchall()
        )
        return frozenset(from_text(task_id) for (task_id,) in rows)

    async def drop_leases(self, worker: str, task_ids: Collection[str], *, lapse: bool) -> None:
        """Release leases of a worker; see `TaskLeases.drop_leases`."""
        parameters = {
            "worker": to_text(worker),
            "task_ids": [to_text(task_id) for task_id in task_ids],
            "lapse": lapse,
            "event": to_text(worker[:_LONGEST_WORKER]),
        }
        await self._database.write(lambda attempt: attempt.execute(statements.DROP_LEASES, parameters))

    async def list_lapsed(self, *, limit: int = 100) -> tuple[TaskRecord, ...]:
        """Return live tasks whose lease has lapsed; see `TaskLeases.list_lapsed`."""
        limit = _checked_limit(limit)

        def read(attempt: Attempt) -> tuple[TaskRecord, ...]:
            found: list[TaskRecord] = []
            offset = 0
            while True:
                parameters = {"limit": limit - len(found), "offset": offset}
                rows = list(attempt.fetch_each(statements.LIST_LAPSED, parameters))
                records = self._intact(rows)
                found += records
                offset += len(rows)
                if len(records) == len(rows) or len(found) == limit:  # damaged rows leave room for others
                    return tuple(found)

        return await self._database.read(read)

    async def claim_task(self, task_id: str, *, worker: str, lease_ms: int) -> TaskRecord | None:
        """Take over a live task whose lease has lapsed or is held by no process; see `TaskLeases.claim_task`."""
        check_duration("lease_ms", lease_ms)
        parameters = {
            "task_id": to_text(task_id),
            "worker": to_stored("worker", worker),
            "lease_ms": lease_ms,
            "event": to_text(worker[:_LONGEST_WORKER]),
            "operation": _new_operation(),
            "watcher": self._database.watcher,
        }

        def claim(attempt: Attempt) -> TaskRecord | None:
            row = _changed_row(attempt, statements.CLAIM, parameters)
            return None if row is None else record_of(row)

        return await self._database.change(str(parameters["task_id"]), claim)

    # --- TaskWork ---

    async def wait_for_work(self, names: Collection[str], *, limit: int) -> tuple[TaskRecord, ...]:
        """Wait until tasks of these tools wait for a worker; see `TaskWork.wait_for_work`.

        The cost of a look is linear in `names` and `limit`.
        """
        limit = _checked_limit(limit)
        stored = [to_text(name) for name in names]

        def look(attempt: Attempt) -> tuple[TaskRecord, ...] | NotYet:
            size = limit
            while True:
                rows = list(attempt.fetch_each(statements.WAITING, {"names": stored, "limit": size}))
                records = self._intact(rows)
                if len(records) >= limit or len(rows) < size:
                    return tuple(records[:limit]) or NotYet(None)
                size *= 2  # those at the head are damaged

        return await self._database.wait("work", "", look)

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
            "operation": _new_operation(),
            "watcher": self._database.watcher,
            **fence_parameters(fence),
        }
        apply = partial(update_record, now=self.clock.now(), status="input_required", fence=fence)

        def ask(attempt: Attempt) -> TaskRecord | None:
            row = _changed_row(attempt, statements.ASK, parameters)
            if row is not None:
                return record_of(row)
            record = _live_record(task_id, attempt, apply)
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
            "operation": _new_operation(),
            "watcher": self._database.watcher,
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
                _live_record(task_id, attempt, apply)
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
        limit = _checked_limit(limit)
        scope = search_scope(wanted, newest_first=newest_first)
        key = await self._database.cursor_key()
        begin = (_LARGEST_POSITION if newest_first else 0) if cursor is None else key.decode(cursor, scope)
        if begin > _LARGEST_POSITION:
            raise InvalidCursorError

        def find(attempt: Attempt) -> tuple[list[Any], int | None]:
            few, further = None, None
            if wanted.id_prefix:
                rows = attempt.execute(_search.BY_PREFIX, _search.prefix_parameters(wanted.id_prefix)).fetchall()
                if len(rows) <= _search.FEW:
                    behind = [position for (position,) in rows if (position < begin) is newest_first]
                    few, further = _search.first(behind, newest_first=newest_first, limit=limit + 1)
            statement, parameters = _search.search_statement(wanted, few, newest_first=newest_first, limit=limit + 1)
            row = attempt.fetch(statement, {**parameters, "position": begin})
            assert row is not None
            positions, stop = row
            stop = further if stop is None else stop
            if len(positions) > limit:
                positions, stop = positions[:limit], positions[limit - 1]
            found = attempt.fetch_each(_search.BY_POSITION, {"positions": positions}) if positions else ()
            return sorted(found, key=lambda row: row[0], reverse=newest_first), stop

        rows, stop = await self._database.read(find)
        return TaskPage(tuple(self._intact(rows)), None if stop is None else key.encode(stop, scope))

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

        def count(attempt: Attempt) -> TaskCounts:
            rows = attempt.execute(_search.COUNT, {}).fetchall()
            errors = attempt.execute(_search.COUNT_ERRORS, {}).fetchall()
            oldest = [attempt.fetch(_search.OLDEST, {"status": status}) for status in ("working", "input_required")]
            working, asking = [None if row is None or row[0] is None else utc(row[0]) for row in oldest]
            return TaskCounts(
                {(status, from_text(name)): number for status, name, number, _ in rows if number},
                working,
                asking,
                errors_by_name={from_text(name): number for _, name, number, _ in errors if number},
                counted_up_to=rows[0][3] if rows else None,
                errors_up_to=errors[0][3] if errors else None,
            )

        return await self._database.read(count)

    async def get_history(self, task_id: str) -> tuple[TaskEvent, ...]:
        """Return what happened to a task; see `TaskSearch.get_history`. Nothing for an unknown task."""
        row = await self._database.read(
            lambda attempt: attempt.fetch(statements.HISTORY, {"task_id": to_text(task_id)})
        )
        if row is None:
            return ()
        created_at, events = row
        return (TaskEvent(utc(created_at), "created"), *map(event_of, events))

    # --- inside ---

    async def _page(
        self,
        statement: str,
        parameters: dict[str, Any],
        scope: bytes,
        cursor: str | None,
        limit: int,
        *,
        position: str,
    ) -> TaskPage:
        limit = _checked_limit(limit)
        key = await self._database.cursor_key()
        begin = 0 if cursor is None else key.decode(cursor, scope)
        if begin > _LARGEST_POSITION:
            raise InvalidCursorError
        page = {**parameters, position: begin, "limit": limit + 1}
        rows = await self._database.read(lambda attempt: list(attempt.fetch_each(statement, page)))
        records = self._intact(rows[:limit])
        return TaskPage(tuple(records), key.encode(rows[limit - 1][0], scope) if len(rows) > limit else None)

    def _intact(self, rows: Iterable[Sequence[Any]]) -> list[TaskRecord]:
        """Return the records of rows that begin with a position, without those that are damaged."""
        records: list[TaskRecord] = []
        for position, *row in rows:
            try:
                records.append(record_of(row))
            except DamagedRowError:
                if position not in self._reported and len(self._reported) < _MOST_REPORTED:
                    self._reported.add(position)
                    logger.error("Left a damaged task out of a list: the row of `tasks` with position %d", position)
        return records

    async def _change(
        self, task_id: str, statement: str, parameters: dict[str, Any], apply: Callable[[TaskRecord], TaskRecord]
    ) -> TaskRecord:
        parameters.update(task_id=to_text(task_id), operation=_new_operation(), watcher=self._database.watcher)

        def change(attempt: Attempt) -> TaskRecord:
            row = _changed_row(attempt, statement, parameters)
            if row is not None:
                return record_of(row)
            _live_record(task_id, attempt, apply)
            raise RetryError  # it was refused for a reason that is no more

        return await self._database.change(parameters["task_id"], change)


def _changed_row(attempt: Attempt, statement: str, parameters: dict[str, Any]) -> Sequence[Any] | None:
    """Run a statement that changes a task, unless an earlier attempt did; return the task's row."""
    if not attempt.is_repeated:
        return attempt.fetch(statement, parameters)
    row = attempt.fetch(statements.BY_OPERATION, parameters)
    if row is None:
        row = attempt.fetch(statement, parameters)
    return attempt.fetch(statements.BY_OPERATION, parameters) if row is None else row


def _check_room(attempt: Attempt, new: NewTask, parameters: dict[str, Any]) -> None:
    """Check, where it could not be created, that the owner of a task may have one more.

    Raises:
        LimitExceededError: It may not.
    """
    if new.max_live is not None:
        row = attempt.fetch(statements.HAS_ROOM, parameters)
        check_room(0 if row is not None and row[0] else new.max_live, new.max_live)


def _get(task_id: str, attempt: Attempt) -> TaskRecord | None:
    row = attempt.fetch(statements.GET, {"task_id": to_text(task_id)})
    if row is None:
        decode_nothing()
        return None
    return record_of(row)


def _live_record(task_id: str, attempt: Attempt, apply: Callable[[TaskRecord], TaskRecord]) -> TaskRecord:
    """Return a task to which a change can be applied; otherwise raise why not."""
    record = _get(task_id, attempt)
    if record is None:
        raise TaskNotFoundError(task_id)
    apply(record)
    return record


def _new_operation() -> int:
    return secrets.randbits(63)


def _checked_limit(limit: int) -> int:
    if limit < 1:
        raise ValueError("limit must be at least 1")
    return min(limit, _LARGEST_PAGE)
