"""`Jobs`: the jobs of procrastinate, several in one transaction where the engine takes one each."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final

import anyio
from procrastinate import sql
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager, get_channel_for_queues
from procrastinate.sync_psycopg_connector import wrap_exceptions
from psycopg.errors import ForeignKeyViolation, UndefinedFunction, UndefinedObject, UndefinedTable
from psycopg.rows import dict_row

from mcp_task_runtime.engines._batches import Batch, Batches

__all__ = ["NO_TABLES", "Jobs", "lacks_tables"]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.engines.procrastinate")

_RETRY_SECONDS: Final = 1.0

NO_TABLES: Final = (
    "The database has no tables of procrastinate, or those of another version: run 'procrastinate schema --apply', or "
    "await dispatcher.app.schema_manager.apply_schema_async()"
)


_ANY_JOB: Final = '{"type": "job_inserted", "job_id": 0}'


def lacks_tables(error: ConnectorException) -> bool:
    """Return whether an error says that the database lacks something of the engine."""
    return isinstance(error.__cause__, UndefinedTable | UndefinedFunction | UndefinedObject)


class Jobs(JobManager):  # type: ignore[misc]  # of untyped code
    """In place of the engine's own manager of jobs.

    A transaction for each job that is deferred, and for each that is fetched, costs more than the job: what comes at
    one time shares one. And the engine's worker forgets a notification that comes while it fetches: the job would wait
    until the worker polls, 5 s later. Where a call of that worker fails because the database is down, it would end, and
    wait for all that it runs before it could start again: here it polls until the database is back.
    """

    def __init__(self, connector: Any) -> None:
        super().__init__(connector)
        self._batches: Batches[Any] = Batches(self._defer_batch)
        self._slots = 1
        self._held: set[Any] = set()
        self._fetched: deque[Any] = deque()
        self._wanted = 1
        self._notices = 0
        self._numbers: dict[int, int] = {}
        self._is_failing = False

    async def defer(self, job: Any) -> None:
        """Defer a job, unless one waits that has its queueing lock."""
        await self._batches.put(job)

    @asynccontextmanager
    async def worker(self, slots: int) -> AsyncIterator[None]:
        """Be the manager of a worker that runs so many jobs at once, for a block.

        At its end, jobs that were fetched and have not begun are deferred again, which wakes other workers at once.
        """
        self._slots = slots
        try:
            yield
        finally:
            rest = list(self._fetched)
            self._fetched.clear()
            self._held.clear()
            if rest:
                with suppress(ConnectorException):  # their tasks are submitted again later
                    await self._defer(rest)
                    for job in rest:
                        await super().finish_job(job, status=Status.ABORTED, delete_job=True)

    async def fail_stalled(self, task_name: str) -> None:
        """Mark the jobs of workers that were killed as failed; not those of this one, which others took for killed."""
        for job in await self.get_stalled_jobs(task_name=task_name):
            if job.id not in self._held:
                await self.finish_job_by_id_async(job.id, status=Status.FAILED, delete_job=False)

    # -- what the engine's worker calls

    async def unregister_worker(self, worker_id: int) -> None:
        """Remove a worker from the database."""
        await super().unregister_worker(self._numbers.pop(worker_id, worker_id))

    async def update_heartbeat(self, worker_id: int) -> None:
        """Note that a worker is alive, if the database answers."""
        with suppress(ConnectorException):
            await super().update_heartbeat(self._numbers.get(worker_id, worker_id))

    async def fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> Any:
        """Return a job that was fetched, or fetch some; `None` if none waits, or the database does not answer."""
        while not self._fetched:
            notices = self._notices
            try:
                self._fetched.extend(await self._fetch(queues, self._numbers.get(worker_id, worker_id)))
            except ConnectorException as error:
                await self._note_failure(error, worker_id)
                return None
            self._is_failing = False
            if not self._fetched and notices == self._notices:
                return None
        return self._fetched.popleft()

    async def finish_job(self, job: Any, status: Any, delete_job: bool) -> None:
        """End a job."""
        try:
            await super().finish_job(job, status, delete_job)
        finally:
            self._held.discard(job.id)

    async def retry_job(self, job: Any, *args: Any, **options: Any) -> None:
        """Let a job run again; those of tasks never do."""
        try:
            await super().retry_job(job, *args, **options)
        finally:
            self._held.discard(job.id)

    async def listen_for_jobs(self, *, on_notification: Any, queues: Iterable[str] | None = None) -> None:
        """Hear of jobs, until cancelled: those of before, or of an outage, are looked for."""

        async def notice(*, channel: str, payload: str) -> None:
            self._notices += 1
            await on_notification(channel=channel, notification=json.loads(payload))

        async with anyio.create_task_group() as group:
            look = partial(group.start_soon, partial(notice, channel="", payload=_ANY_JOB))
            channels = _Channels(get_channel_for_queues(queues=queues), look)
            while True:
                with suppress(ConnectorException):
                    await self.connector.listen_notify(on_notification=notice, channels=channels)
                await anyio.sleep(_RETRY_SECONDS)

    # -- inside

    async def _defer_batch(self, batch: Batch[Any]) -> None:
        await self._defer(batch.items)

    async def _defer(self, jobs: Sequence[Any]) -> None:
        try:
            await self.batch_defer_jobs_async(list(jobs))
        except AlreadyEnqueued:  # one of them, and so none was deferred
            for job in jobs:
                with suppress(AlreadyEnqueued):
                    await self.defer_job_async(job)
        except ConnectorException as error:
            if lacks_tables(error):
                raise ConnectorException(NO_TABLES) from None
            raise

    async def _note_failure(self, error: ConnectorException, worker_id: int) -> None:
        """Log an outage once; register a worker again, under another number, if others took it for lost meanwhile."""
        if isinstance(error.__cause__, ForeignKeyViolation):
            with suppress(ConnectorException):
                self._numbers[worker_id] = await self.register_worker()
        elif not self._is_failing:
            self._is_failing = True
            logger.warning("The worker of procrastinate cannot fetch jobs; it tries again", exc_info=error)

    async def _fetch(self, queues: Iterable[str] | None, worker_id: int) -> list[Any]:
        """Fetch jobs, as many as may begin at once, and twice as many as the last time if there were enough then."""
        count = max(1, min(self._wanted, self._slots - len(self._held)))
        parameters = {"queues": queues, "worker_id": worker_id}
        with wrap_exceptions():
            async with self.connector.pool.connection() as connection:
                cursor = connection.cursor(row_factory=dict_row)
                await cursor.executemany(sql.queries["fetch_job"], [parameters] * count, returning=True)
                rows = [await cursor.fetchone()]
                while cursor.nextset():
                    rows.append(await cursor.fetchone())
        jobs = [Job.from_row(row) for row in rows if row["id"] is not None]
        self._held.update(job.id for job in jobs)
        self._wanted = 2 * count if len(jobs) == count else 1
        return jobs


class _Channels:
    """The channels that a connection listens to, one after the other; and what is done when it listens to all."""

    def __init__(self, names: Iterable[str], when_listening: Callable[[], object]) -> None:
        self._names = tuple(names)
        self._when_listening = when_listening

    def __iter__(self) -> Iterator[str]:  # again with each new connection
        yield from self._names
        self._when_listening()
