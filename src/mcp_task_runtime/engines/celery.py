"""`CeleryDispatcher`: carries tasks by `celery`, to workers with threads. Needs the extra `celery`.

In the module that has the tasks of the server:

    app = Celery("reports", broker="redis://localhost")
    dispatcher = CeleryDispatcher(app)
    tasks = Tasks(store, dispatcher=dispatcher)
    dispatcher.serve(tasks)

A worker is then `celery -A reports.server worker --pool threads --concurrency 8 -Q mcp-tasks`. Prefork is refused: a
question to a client would hold a process, and a process that Celery ends by force loses its work. Work runs in one
event loop: `--concurrency` says how many tasks, and no thread waits for them. Celery's events and `inspect` show them;
its signals around a task, such as `task_prerun`, and its log line of a success are for work in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, nullcontext
from contextvars import copy_context
from typing import Any, Protocol

try:
    from celery import signals
    from kombu.exceptions import OperationalError
except ImportError as _error:
    raise ImportError("CeleryDispatcher needs: pip install 'mcp-task-runtime[celery]'") from _error
from anyio.from_thread import BlockingPortal, start_blocking_portal

from mcp_task_runtime.core.dispatch import Dispatch, TaskExecutor
from mcp_task_runtime.engines._batches import Batch, ThreadBatches
from mcp_task_runtime.engines._celery_pool import FUNCTION, Runner, pool_class

__all__ = ["CeleryDispatcher"]

logger: logging.Logger = logging.getLogger(__name__)


class Worker(TaskExecutor, Protocol):
    """What a worker process needs of the `Tasks` of a server."""

    def worker(self) -> AbstractAsyncContextManager[object]:
        """Hold open what the work of tools needs."""
        ...


class CeleryDispatcher:
    """A `TaskDispatcher` over messages of Celery.

    Attributes:
        app: The engine's own application.
    """

    def __init__(
        self,
        app: Any,
        *,
        queue: str = "mcp-tasks",
        queues: Mapping[str, str] | None = None,
        start_grace_ms: int = 60_000,
    ) -> None:
        """Make a dispatcher.

        Args:
            app: The engine's own application, a `Celery` with a broker.
            queue: The queue for tools without one of their own.
            queues: The queue of a tool, by the tool's name.
            start_grace_ms: Milliseconds after which a task that no worker has started is submitted again. The engine
                does not drop the second message, which finds nothing to do.
        """
        self.start_grace_ms = start_grace_ms
        self.app: Any = app
        self._queue = queue
        self._queues = dict(queues or {})
        self._submits = ThreadBatches(self._send)
        self._revokes = ThreadBatches(self._broadcast)

    async def submit(self, dispatch: Dispatch) -> None:
        """Send a message for the task, in a thread that is left alone when it takes too long."""
        await self._submits.put(dispatch)

    async def revoke(self, task_id: str) -> None:
        """Tell the workers that are there to drop the message for the first run of a task."""
        await self._revokes.put(Dispatch.first_key(task_id))

    def _send(self, batch: Batch[Dispatch]) -> None:
        """Send messages, in one round trip where the transport can."""
        errors: list[Exception | None] = []
        with self.app.producer_or_acquire() as producer, _sending_together(producer, len(batch.items)):
            declared: set[str] = set()
            for dispatch in batch.items:
                if batch.is_abandoned:  # what was not sent is dropped
                    raise TimeoutError("The messages were not sent in time")
                queue = self._queues.get(dispatch.name, self._queue)
                try:
                    self._send_one(dispatch, queue, producer, is_declared=queue in declared)
                except (OSError, OperationalError):  # the pool replaces the connection; the others would fail as well
                    raise
                except Exception as error:
                    errors.append(error)
                else:
                    declared.add(queue)
                    errors.append(None)
        batch.errors += errors  # not before: all of them may have waited for the end of the block

    def _send_one(self, dispatch: Dispatch, queue: str, producer: Any, *, is_declared: bool) -> None:
        self.app.send_task(
            FUNCTION,
            args=[dispatch.task_id],
            argsrepr=repr((dispatch.task_id,)),  # which it would make with more effort
            kwargsrepr="{}",
            task_id=dispatch.key,
            queue=queue,
            expires=dispatch.not_after,
            ignore_result=True,
            retry=False,
            producer=producer,
            declare=[] if is_declared else None,  # what is missing
        )

    def _broadcast(self, batch: Batch[str]) -> None:
        self.app.control.revoke(batch.items)

    def serve(self, tasks: Worker) -> None:
        """Let the worker processes of the application run tasks of a server."""
        process = _WorkerProcess(tasks)
        self.app.task(name=FUNCTION, ignore_result=True)(_run_by_the_pool)
        # Strong references: the engine would drop bound methods.
        signals.worker_init.connect(process.start, weak=False)
        signals.worker_shutting_down.connect(process.wind_down, weak=False)
        signals.worker_shutdown.connect(process.stop, weak=False)


class _WorkerProcess:
    """A worker process: an event loop in a thread, which runs all tasks of the server."""

    def __init__(self, tasks: Worker) -> None:
        self._tasks = tasks
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None
        self._runner: Runner | None = None
        self._winds_down = False

    def start(self, sender: Any = None, **_: Any) -> None:
        pool = getattr(sender, "pool_cls", None)
        name = pool if isinstance(pool, str) else getattr(pool, "__module__", "")
        if "thread" not in name:
            raise SystemExit(
                "Tasks of MCP servers need a worker with threads: celery worker --pool threads. In a prefork worker a "
                "question to a client would hold a process, and a process that is ended by force loses its work"
            )
        self._portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        self._stack.enter_context(self._portal.wrap_async_context_manager(self._tasks.worker()))
        self._runner = self._portal.call(self._make_runner)
        sender.pool_cls = pool_class(self._runner)

    def wind_down(self, **_: Any) -> None:
        """Give what runs its grace period, for which the engine waits without end; what waits, the broker has still."""
        if self._portal is not None and self._runner is not None and not self._winds_down:
            self._winds_down = True
            if self._runner.jobs is not None:
                self._runner.jobs.close()
            self._portal.start_task_soon(self._tasks.wind_down)

    def stop(self, **_: Any) -> None:
        self._portal = self._runner = None
        self._stack.close()

    async def _make_runner(self) -> Runner:
        return Runner(asyncio.get_running_loop(), copy_context(), self._tasks.execute, self.wind_down)


def _run_by_the_pool(task_id: str) -> None:
    """In place of what the pool does with a message."""


def _sending_together(producer: Any, count: int) -> AbstractContextManager[object]:
    """Have a producer send so many messages at the end of a block, and none if the block raises, where it can.

    Without this, and with a producer of an older version of Kombu or a broker other than Redis, each is sent at once.
    """
    if count == 1 or not hasattr(producer, "batch"):
        return nullcontext()
    together: AbstractContextManager[object] = producer.batch()
    return together
