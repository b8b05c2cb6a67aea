"""`TaskInspector`: find, see and end the tasks of all owners in a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from time import perf_counter
from typing import Final, Literal

from mcp_task_runtime.core.abilities import queue_of
from mcp_task_runtime.core.endings import TaskEndings
from mcp_task_runtime.core.json import JSONValue
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.questions import answer_questions
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.status_messages import QUEUED
from mcp_task_runtime.core.store import (
    TaskDiagnosis,
    TaskJournal,
    TaskLeases,
    TaskQuestions,
    TaskSearch,
    TaskSharing,
    TaskStore,
    TaskSweeping,
)
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, is_terminal
from mcp_task_runtime.core.types import (
    Finding,
    NewTask,
    Outcome,
    TaskCounts,
    TaskEvent,
    TaskFilter,
    TaskPage,
    TaskRecord,
)
from mcp_task_runtime.errors import SealedError, TaskNotFoundError, TaskRuntimeError
from mcp_task_runtime.operations._numbers import counted
from mcp_task_runtime.wire.answers import check_answer

__all__ = [
    "AmbiguousTaskError",
    "Finding",
    "RetryError",
    "TaskDetails",
    "TaskInspector",
    "WorkerSummary",
    "WorkerSurvey",
]

_BATCH: Final = 200
_LIVE: Final = TaskFilter(statuses=frozenset({"working", "input_required"}))
_SURVEYED: Final = 2_000
"""Live tasks that are read to find the workers."""

_LARGEST_ANSWER: Final = 1024 * 1024
_CLOCK_TOLERANCE: Final = timedelta(seconds=2)
_SEALED: Final = "The task is sealed: give the keys of its servers with MCP_TASKS_SEAL_KEYS"


class AmbiguousTaskError(TaskRuntimeError):
    """More than one task has an identifier that begins so."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"More than one task has an identifier that begins with {prefix!r}")
        self.prefix = prefix


class RetryError(TaskRuntimeError):
    """A task cannot be made again from what is stored of it; the message says why."""


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """All there is to see of one task.

    Attributes:
        record: The task.
        questions: Its open questions, in the order they were asked.
        history: What happened to it, oldest first.
        steps: Recorded results of its steps, as JSON text by key.
    """

    record: TaskRecord
    questions: tuple[QueuedMessage, ...]
    history: tuple[TaskEvent, ...]
    steps: dict[str, str]


@dataclass(frozen=True, slots=True)
class WorkerSummary:
    """One process that runs work.

    Attributes:
        name: Its name; empty for tasks that wait for a worker.
        tasks: Number of tasks whose lease it holds, by tool.
        since: When the oldest of them was created.
        lease_expires_at: The earliest time at which one of its leases lapses unless it is renewed.
        has_lapsed: Whether one has lapsed already: the process is lost, or cannot reach the store.
    """

    name: str
    tasks: dict[str, int]
    since: datetime
    lease_expires_at: datetime
    has_lapsed: bool


@dataclass(frozen=True, slots=True)
class WorkerSurvey:
    """Who runs what, as far as the oldest live tasks say.

    Attributes:
        workers: The processes that hold leases, the one with the most tasks first; one without a name stands for the
            tasks that wait for a worker.
        is_complete: Whether all live tasks were read; otherwise there may be more of everything.
        queued: Number of tasks whose process has them wait for one of its slots (`max_running`, or that of a queue).
    """

    workers: tuple[WorkerSummary, ...]
    is_complete: bool
    queued: int = 0

    @property
    def waiting(self) -> WorkerSummary | None:
        """The tasks that wait for a worker, if there are any."""
        return next((worker for worker in self.workers if not worker.name), None)


class TaskInspector:
    """Finds, shows and ends tasks. It keeps nothing, and works while any number of servers run.

    It asks for no owner (law L10 is for clients): use it for operators only.
    """

    def __init__(self, store: TaskStore) -> None:
        """Make an inspector.

        Args:
            store: The store of the servers; every bundled one will do.

        Raises:
            ValueError: The store does not implement `TaskSearch`, or has no message queue of its own.
        """
        queue = queue_of(store)
        if not isinstance(store, TaskSearch) or queue is None:
            raise ValueError("store must implement TaskSearch and have a message_queue")
        self._store = store
        self._search: TaskSearch = store
        self._queue = queue
        self._endings = TaskEndings(store, queue)

    @property
    def store(self) -> TaskStore:
        """The store that it looks into."""
        return self._store

    def now(self) -> datetime:
        """Return the time by the store's clock."""
        return self._store.clock.now()

    async def page(
        self, wanted: TaskFilter, *, newest_first: bool = True, cursor: str | None = None, limit: int = 50
    ) -> TaskPage:
        """Return a page of tasks; see `TaskSearch.search_tasks`."""
        return await self._search.search_tasks(wanted, newest_first=newest_first, cursor=cursor, limit=limit)

    async def each(self, wanted: TaskFilter, *, newest_first: bool = True) -> AsyncIterator[TaskRecord]:
        """Yield every task that matches, page by page."""
        cursor: str | None = None
        while True:
            page = await self.page(wanted, newest_first=newest_first, cursor=cursor, limit=_BATCH)
            for record in page.records:
                yield record
            cursor = page.next_cursor
            if cursor is None:
                return

    async def counts(self) -> TaskCounts:
        """Return how many tasks there are by status and tool."""
        return await self._search.count_tasks()

    async def resolve(self, prefix: str) -> str:
        """Return the identifier that this is, or that alone begins so.

        Raises:
            AmbiguousTaskError: More than one task begins so.
            TaskNotFoundError: No task begins so.
        """
        if await self._store.get_task(prefix) is not None:
            return prefix
        found = list((await self.page(TaskFilter(id_prefix=prefix), limit=2)).records if prefix else ())
        if not found:
            raise TaskNotFoundError(prefix)
        if len(found) > 1:
            raise AmbiguousTaskError(prefix)
        return found[0].task_id

    async def details(self, task_id: str) -> TaskDetails:
        """Return all there is to see of a task.

        Raises:
            TaskNotFoundError: The task is unknown.
        """
        record, questions = await self._view(task_id)
        steps = dict(await self._store.read_steps(task_id)) if isinstance(self._store, TaskJournal) else {}
        return TaskDetails(record, questions, await self._search.get_history(task_id), steps)

    async def questions(self, task_id: str) -> tuple[QueuedMessage, ...]:
        """Return the open questions of a task, in the order they were asked.

        Raises:
            TaskNotFoundError: The task is unknown.
        """
        return (await self._view(task_id))[1]

    async def _view(self, task_id: str) -> tuple[TaskRecord, tuple[QueuedMessage, ...]]:
        if isinstance(self._store, TaskQuestions):
            view = await self._store.get_view(task_id)
            if view is None:
                raise TaskNotFoundError(task_id)
            return view.record, view.questions
        record = await self._store.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        return record, () if is_terminal(record.status) else await self._queue.outstanding(task_id)

    async def follow(self, task_id: str) -> AsyncGenerator[TaskRecord, None]:
        """Yield a task as it is now, then after each change until it has ended. Changes in between may be skipped.

        Raises:
            TaskNotFoundError: The task is unknown, or expires or is deleted meanwhile.
        """
        record = await self._store.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        yield record
        while not is_terminal(record.status):
            record = await self._store.wait_for_update(task_id, after=record.revision)
            yield record

    async def cancel(self, task_id: str) -> TaskRecord:
        """End a task as `cancelled`; the process that runs its work stops it (law L9).

        Raises:
            TaskNotFoundError: The task is unknown.
            InvalidTransitionError: The task has already ended.
        """
        outcome = Outcome.cancelled(status_message="Cancelled by an operator")
        return await self._endings.finish(task_id, outcome, reason="an operator cancelled it")

    async def retry(self, task_id: str) -> TaskRecord:
        """Make a new task from the request of one that has ended, and return it; the old one stays as it is.

        It has the tool, arguments, owner, declared capabilities and time to live of the old one, an identifier of its
        own, and no attempt yet. It waits for a worker: a process that serves its tool begins the work when it next
        looks for lost work, after a third of a lease at the latest, or when a client reads the task. Cancelled, the
        task may exist.

        Raises:
            TaskNotFoundError: The task is unknown.
            RetryError: It has not ended, does not say which tool to call, or no process looks for work in this store.
        """
        record = await self._store.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        self._check_retry(record)
        return await self._store.create_task(
            NewTask(
                ttl_ms=record.task.ttl_ms,
                poll_interval_ms=record.task.poll_interval_ms,
                owner=record.owner,
                retention_ms=record.retention_ms,
                request=replace(record.request, progress_token=None),  # the token died with the old task
                client_capabilities_json=record.client_capabilities_json,
                worker="",
                lease_ms=1,  # overdue at once: any process that serves the tool may begin
            )
        )

    def _check_retry(self, record: TaskRecord) -> None:
        if not is_terminal(record.status):
            raise RetryError("The task has not ended: cancel it first")
        if is_sealed(record):
            raise RetryError(_SEALED)
        if not record.request.name or record.request.method != "tools/call":
            raise RetryError("The task was not made by a call of a tool: what it ran is not stored")
        if not isinstance(self._store, TaskLeases) or (
            isinstance(self._store, TaskSharing) and not self._store.is_shared
        ):
            raise RetryError("The store belongs to one process, which runs what it is called for: call the tool again")

    async def answer(self, task_id: str, key: str, result: JSONValue) -> bool:
        """Answer an open question in the client's place.

        Args:
            task_id: The task that asks.
            key: The question's key.
            result: What a client would send: for a form `{"action": "accept", "content": {…}}`.

        Returns:
            Whether this answer was taken; not if the question was answered or withdrawn before.

        Raises:
            ProtocolError: The answer is malformed; the question stays open.
            SealedError: The task is sealed, and the store has no keys.
            TaskNotFoundError: The task is unknown.
        """
        record, questions = await self._view(task_id)
        if is_sealed(record):
            raise SealedError(_SEALED)
        question = next((question for question in questions if question.key == key), None)
        if question is None:
            return False
        answer = check_answer(question, result, max_bytes=_LARGEST_ANSWER)
        return bool(await answer_questions(self._store, self._queue, task_id, {key: answer}))

    async def prune(self, wanted: TaskFilter) -> int:
        """Delete the ended tasks that match; return how many. Live tasks stay."""
        ended = TERMINAL_STATUSES if wanted.statuses is None else TERMINAL_STATUSES & wanted.statuses
        count = 0
        async for record in self.each(replace(wanted, statuses=frozenset(ended)), newest_first=False):
            count += await self._store.delete_task(record.task_id)
        return count

    async def workers(self) -> tuple[WorkerSummary, ...]:
        """Return the processes that hold leases, the one with the most tasks first; see `survey_workers`."""
        return (await self.survey_workers()).workers

    async def survey_workers(self) -> WorkerSurvey:
        """Return who runs what and how much waits for a worker, by the 2,000 oldest tasks that have not ended.

        The work that runs is among the oldest: what waits behind it is newer.
        """
        now = self.now()
        page = await self.page(_LIVE, newest_first=False, limit=_SURVEYED)
        tasks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        since: dict[str, datetime] = {}
        until: dict[str, datetime] = {}
        queued = 0
        for record in page.records:
            if record.lease is not None:
                queued += bool(record.lease.worker) and record.task.status_message == QUEUED
                name = record.lease.worker
                tasks[name][record.request.name] += 1
                since[name] = min(since.get(name, record.task.created_at), record.task.created_at)
                until[name] = min(until.get(name, record.lease.expires_at), record.lease.expires_at)
        found = [
            WorkerSummary(name, dict(by_tool), since[name], until[name], until[name] <= now)
            for name, by_tool in tasks.items()
        ]
        found.sort(key=lambda worker: (-sum(worker.tasks.values()), worker.name))
        return WorkerSurvey(tuple(found), page.next_cursor is None, queued)

    async def diagnose(self) -> tuple[Finding, ...]:
        """Check what usually goes wrong: the store and its backend, clocks, lapsed leases, work that waits too long.

        Raises:
            StoreError: The store cannot be used at all; the message says why.
        """
        began = perf_counter()
        counts = await self.counts()
        total = counted(counts.by_status_and_name.values(), counts.counted_up_to)
        findings = [Finding("store", "ok", f"answers in {(perf_counter() - began) * 1000:.0f} ms; {total} tasks")]
        if isinstance(self._store, TaskDiagnosis):
            findings.extend(await self._store.diagnose())
        difference = abs(self.now() - datetime.now(timezone.utc))
        level: Literal["ok", "warning"] = "ok" if difference <= _CLOCK_TOLERANCE else "warning"
        findings.append(
            Finding("clock", level, f"this machine and the store differ by {difference.total_seconds():.1f} s")
        )
        if isinstance(self._store, TaskLeases):
            held, waiting = await self._lapsed(self._store)
            findings.append(
                Finding("leases", "warning", f"{_many(held)} of lost workers; a server with their tools takes over")
                if held
                else Finding("leases", "ok", "no worker is lost")
            )
            if waiting:
                text = f"{_many(waiting)} wait for a worker; is one running that has their tools?"
                findings.append(Finding("waiting work", "warning", text))
        return tuple(findings)

    async def _lapsed(self, store: TaskLeases) -> tuple[int, int]:
        """Return how many tasks lost their worker, and how many wait for one too long; of each `_BATCH` at most."""
        lost = await store.list_lost([], limit=_BATCH) if isinstance(store, TaskSweeping) else ()
        lapsed = await store.list_lapsed(limit=_BATCH + len(lost))
        held = [record for record in lapsed if record.lease is not None and record.lease.worker]
        return min(max(len(held), len(lost)), _BATCH), min(len(lapsed) - len(held), _BATCH)


def _many(count: int) -> str:
    return f"{'at least ' if count >= _BATCH else ''}{count} task{'' if count == 1 else 's'}"
