"""`TaskDispatcher`: carries the work of tasks to other processes.

The store is the truth: it has the task, its state, questions, outcome and lease. A dispatcher is a messenger: it
carries the task's id and nothing else. What it does not take is offered to it again until it does. What it loses costs
time, not a task: a task that no worker has started after `TaskDispatcher.start_grace_ms` is submitted again, by any
process of the server.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, runtime_checkable

__all__ = ["Dispatch", "EngineDispatcher", "StoreDispatcher", "TaskDispatcher", "TaskExecutor"]


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A task that waits for a worker.

    Attributes:
        task_id: The task.
        name: The tool's name, to choose a queue by.
        attempt: The number of the run that is wanted, 1 for the first.
        not_after: When the task expires, as an aware UTC time; `None` for never.
    """

    task_id: str
    name: str
    attempt: int
    not_after: datetime | None

    @property
    def key(self) -> str:
        """A name for this run, for engines that drop what was submitted before."""
        return f"{self.task_id}.{self.attempt}"

    @staticmethod
    def first_key(task_id: str) -> str:
        """Return the key of the first run of a task."""
        return f"{task_id}.1"


@runtime_checkable
class TaskDispatcher(Protocol):
    """Carries tasks to worker processes, where `TaskRuntime.execute` runs them.

    Both methods are cancelled after 5 seconds, and may raise anything: that is logged, and the task is submitted
    again later. They are called concurrently, `submit` for up to 32 tasks at once. A task may be submitted twice.
    """

    @property
    def start_grace_ms(self) -> int:
        """Milliseconds after which a task that no worker has started is submitted again; 0 for never.

        With 0 the process that makes a task offers it until it is taken. What is not taken when that process ends, or
        is lost by the engine, waits until its TTL ends it.
        """
        ...

    async def submit(self, dispatch: Dispatch) -> None:
        """Have a worker call `TaskRuntime.execute` with the task's id."""
        ...

    async def revoke(self, task_id: str) -> None:
        """Drop what was submitted of a task that has ended, where that is possible; a worker would find nothing.

        It is called once, in the process that ends the task. `first_key` names what was submitted for the first run.
        """
        ...


class TaskExecutor(Protocol):
    """What a worker of an engine needs of the `Tasks` of a server."""

    async def execute(self, task_id: str) -> bool:
        """Run a task that waits for a worker; see `TaskRuntime.execute`."""
        ...

    async def wind_down(self) -> None:
        """Take no more tasks, give what runs its grace period, and hand over the rest."""
        ...


@runtime_checkable
class EngineDispatcher(TaskDispatcher, Protocol):
    """A `TaskDispatcher` whose engine has workers that run in a process of ours: `Tasks.work` is one."""

    async def work(self, tasks: TaskExecutor, *, concurrency: int, names: Collection[str] | None) -> None:
        """Run tasks that the engine delivers, until cancelled.

        Cancelled, it fetches no more, calls `tasks.wind_down`, and returns when what runs has ended.

        Args:
            tasks: Runs them.
            concurrency: Most tasks that run at once, in each queue.
            names: Only the queues of these tools; `None` for all queues.
        """
        ...


class StoreDispatcher:
    """The `TaskDispatcher` without an engine: tasks wait in the store, which wakes processes that call `work`."""

    start_grace_ms: Final = 0

    async def submit(self, dispatch: Dispatch) -> None:
        """Do nothing: the store has the task, and has woken the workers."""

    async def revoke(self, task_id: str) -> None:
        """Do nothing: a task that has ended no longer waits."""
