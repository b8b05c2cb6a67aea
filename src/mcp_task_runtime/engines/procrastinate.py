"""`ProcrastinateDispatcher`: carries tasks by `procrastinate`, on PostgreSQL. Needs the extra `procrastinate`.

Its tables must be there: `procrastinate schema --apply`, or `await dispatcher.app.schema_manager.apply_schema_async()`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Final

import anyio

try:
    from procrastinate import App, PsycopgConnector
    from procrastinate.exceptions import ConnectorException
    from procrastinate.jobs import Status
    from psycopg_pool import PoolTimeout
except ImportError as _error:
    raise ImportError("ProcrastinateDispatcher needs: pip install 'mcp-task-runtime[procrastinate]'") from _error
from typing_extensions import Self

from mcp_task_runtime.core.dispatch import Dispatch, TaskExecutor
from mcp_task_runtime.engines._procrastinate_jobs import NO_TABLES, Jobs, lacks_tables
from mcp_task_runtime.engines._running import run_workers

__all__ = ["ProcrastinateDispatcher"]

logger: logging.Logger = logging.getLogger(__name__)

_FUNCTION: Final = "execute_mcp_task"
_RETRY_SECONDS: Final = 1.0
_PRUNE_SECONDS: Final = 60.0


class ProcrastinateDispatcher:
    """A `TaskDispatcher` and worker over jobs. It runs on asyncio, and connects when it is first used.

    `async with` or `aclose` closes it.

    Attributes:
        app: The engine's own application.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str = "mcp-tasks",
        queues: Mapping[str, str] | None = None,
        start_grace_ms: int = 15_000,
        **options: Any,
    ) -> None:
        """Make a dispatcher.

        Args:
            url: URL or connection string of the database.
            queue: The queue for tools without one of their own.
            queues: The queue of a tool, by the tool's name.
            start_grace_ms: Milliseconds after which a task that no worker has started is submitted again.
            **options: As for `procrastinate.PsycopgConnector`, which hands them to the pool.
        """
        self.start_grace_ms = start_grace_ms
        defaults = {"timeout": 5.0, "configure": _set_autocommit}
        self.app: Any = App(connector=PsycopgConnector(conninfo=url, **{**defaults, **options}))
        self._jobs = self.app.job_manager = Jobs(self.app.connector)
        self._queue = queue
        self._queues = dict(queues or {})
        self._opening = asyncio.Lock()
        self._is_open = False

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, also those that are being opened."""
        async with self._opening:
            self._is_open = False
            await self.app.close_async()

    async def submit(self, dispatch: Dispatch) -> None:
        """Defer a job for the task, unless one waits for this run already."""
        await self._open()
        queue = self._queues.get(dispatch.name, self._queue)
        job = self.app.configure_task(_FUNCTION, queue=queue, queueing_lock=dispatch.key)
        await self._jobs.defer(job.make_new_job(task_id=dispatch.task_id))

    async def revoke(self, task_id: str) -> None:
        """Cancel the job that waits for the first run of a task."""
        await self._open()
        jobs = self._jobs
        for job in await jobs.list_jobs_async(queueing_lock=Dispatch.first_key(task_id), status=Status.TODO.value):
            await jobs.cancel_job_by_id_async(job.id)

    async def work(self, tasks: TaskExecutor, *, concurrency: int, names: Collection[str] | None) -> None:
        """Run tasks until cancelled; see `EngineDispatcher.work`. It goes on when the database is back.

        At the end it closes the connections; what is submitted afterwards opens others.
        """

        async def execute_mcp_task(task_id: str) -> None:
            await tasks.execute(task_id)

        if _FUNCTION not in self.app.tasks:
            self.app.task(name=_FUNCTION)(execute_mcp_task)
        everything = {self._queue, *self._queues.values()}
        queues = everything if names is None else {self._queues.get(name, self._queue) for name in names}
        pruning = asyncio.create_task(self._prune())
        try:
            await run_workers([self._work_again(sorted(queues), concurrency)], tasks)
        finally:
            pruning.cancel()
            with anyio.CancelScope(shield=True):
                await self.aclose()  # a pool that connects does not end with its event loop

    async def _work_again(self, queues: list[str], concurrency: int) -> None:
        is_told = False
        while True:
            try:
                await self._open()
                async with self._jobs.worker(concurrency):  # cancelled, it waits for what it runs
                    await self.app.run_worker_async(
                        queues=queues, concurrency=concurrency, install_signal_handlers=False
                    )
            except ConnectorException as error:  # the engine's worker does not survive it
                if not lacks_tables(error):
                    logger.warning("The worker of procrastinate lost its database; it starts again", exc_info=True)
                elif not is_told:
                    is_told = True
                    logger.error("%s. The worker starts when they are there", NO_TABLES)
            else:
                logger.warning("The worker of procrastinate ended; it starts again")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _prune(self) -> None:
        """Mark the jobs of workers that were killed as failed: the engine leaves them as they are."""
        while True:
            try:
                await self._jobs.fail_stalled(_FUNCTION)
            except Exception:
                logger.debug("Stalled jobs could not be marked", exc_info=True)
            await asyncio.sleep(_PRUNE_SECONDS)

    async def _open(self) -> None:
        async with self._opening:
            if not self._is_open:
                try:
                    await self.app.open_async()
                except PoolTimeout as error:
                    await self.app.close_async()  # else the engine takes the pool that failed for an open one
                    raise ConnectorException("the database does not answer") from error
                self._is_open = True


async def _set_autocommit(connection: Any) -> None:
    """Have no transaction around a single statement: it would take two more."""
    await connection.set_autocommit(True)
