"""`DocketDispatcher`: carries tasks by `docket` (the distribution `pydocket`), on Redis. Needs the extra `docket`.

A queue is a docket of its own, so that `docket` shows each apart. Who may write to that Redis can run code in the
workers: the engine pickles arguments. A worker of this engine that has lost its Redis ends what it runs before it
connects again, and then takes up to a minute to fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Final

try:
    from docket import Docket, Worker
except ImportError as _error:
    raise ImportError("DocketDispatcher needs: pip install 'mcp-task-runtime[docket]'") from _error
import anyio
from typing_extensions import Self

from mcp_task_runtime.core.dispatch import Dispatch, TaskExecutor
from mcp_task_runtime.engines._batches import Batch, Batches
from mcp_task_runtime.engines._running import run_workers

__all__ = ["DocketDispatcher"]

_FUNCTION: Final = "execute_mcp_task"
_SHORTEST_REDELIVERY_MS: Final = 1_000
FULL_PAUSE: Final = timedelta(milliseconds=30)
"""How long a full worker sleeps before it looks for free slots. So often an idle one reads: 0.3 % of a processor more
than with the engine's 250 ms, in which a full one makes 4 tasks a second for each slot."""


class DocketDispatcher:
    """A `TaskDispatcher` and worker over dockets. It runs on asyncio, and connects when it is first used.

    `async with` or `aclose` closes it.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "mcp-tasks",
        queues: Mapping[str, str] | None = None,
        start_grace_ms: int = 15_000,
    ) -> None:
        """Make a dispatcher.

        Args:
            url: URL of the Redis.
            name: Name of the docket for tools without a queue; that of a queue is `name-queue`.
            queues: The queue of a tool, by the tool's name.
            start_grace_ms: Milliseconds after which a task that no worker has started is submitted again. The engine
                drops what it has already; after the same time it delivers what a lost worker had fetched.
        """
        self.start_grace_ms = start_grace_ms
        self._url = url
        self._name = name
        self._queues = dict(queues or {})
        self._stacks: dict[str, AsyncExitStack] = {}
        self._dockets: dict[str, Docket] = {}
        self._opening = asyncio.Lock()
        self._submits: dict[str, Batches[Dispatch]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        self._dockets.clear()
        while self._stacks:
            await self._stacks.popitem()[1].aclose()

    async def submit(self, dispatch: Dispatch) -> None:
        """Add the task to its docket, once for each run. What is submitted together shares a round trip."""
        name = self._name_of(dispatch.name)
        submits = self._submits.get(name)
        if submits is None:
            submits = self._submits[name] = Batches(partial(self._add, name))
        await submits.put(dispatch)

    async def _add(self, name: str, batch: Batch[Dispatch]) -> None:
        docket = await self._docket(name)
        try:
            if len(batch.items) == 1:  # which takes one round trip, and several take two
                (dispatch,) = batch.items
                await docket.add(_FUNCTION, key=dispatch.key)(dispatch.task_id)
                return
            calls = [docket.call(_FUNCTION, key=dispatch.key)(dispatch.task_id) for dispatch in batch.items]
            added = await docket.add_many(calls)
        except BaseException:  # its pool may hold more connections that are lost
            if self._dockets.get(name) is docket:
                del self._dockets[name]
                with anyio.CancelScope(shield=True):
                    await self._stacks.pop(name).aclose()
            raise
        batch.errors += [execution.schedule_exception for execution in added]

    async def revoke(self, task_id: str) -> None:
        """Take what waits for the first run of a task out of the dockets; a worker that has it stops its work."""
        for name in sorted({self._name, *map(self._name_of, self._queues)}):
            await (await self._docket(name)).cancel(Dispatch.first_key(task_id))

    async def work(self, tasks: TaskExecutor, *, concurrency: int, names: Collection[str] | None) -> None:
        """Run tasks until cancelled; see `EngineDispatcher.work`."""
        everything = {self._name, *map(self._name_of, self._queues)}
        chosen = everything if names is None else {self._name_of(name) for name in names}
        await run_workers([self._work(name, tasks, concurrency) for name in sorted(chosen)], tasks)

    async def _work(self, name: str, tasks: TaskExecutor, concurrency: int) -> None:
        async with Docket(name=name, url=self._url) as docket:

            async def execute_mcp_task(task_id: str) -> None:
                await tasks.execute(task_id)

            docket.register(execute_mcp_task, names=[_FUNCTION])
            redelivery = timedelta(milliseconds=max(self.start_grace_ms, _SHORTEST_REDELIVERY_MS))
            async with Worker(
                docket,
                concurrency=concurrency,
                redelivery_timeout=redelivery,
                minimum_check_interval=FULL_PAUSE,
            ) as worker:
                await worker.run_forever()

    def _name_of(self, tool: str) -> str:
        queue = self._queues.get(tool)
        return self._name if queue is None else f"{self._name}-{queue}"

    async def _docket(self, name: str) -> Docket:
        async with self._opening:
            known = self._dockets.get(name)
            if known is not None:
                return known
            async with AsyncExitStack() as stack:
                docket: Docket = await stack.enter_async_context(Docket(name=name, url=self._url))
                docket.register(_stand_in, names=[_FUNCTION])  # a docket adds what it knows
                self._dockets[name], self._stacks[name] = docket, stack.pop_all()
                return docket


async def _stand_in(task_id: str) -> None:
    """In place of the function that workers run."""
