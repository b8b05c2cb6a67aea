"""A store in memory that two runtimes share as two processes share a database, and how one of them is cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import anyio
import anyio.lowlevel

from mcp_task_runtime import InMemoryTaskStore, TaskRuntime, TaskSettings, TaskStore
from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.core.dispatch import TaskDispatcher
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.sealed import is_sealed
from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.errors import StoreError, StoreUnavailableError
from mcp_task_runtime.testing.clock import FakeClock
from tests.support.patience import PATIENCE

LEASE_SECONDS = 15
TURN_SECONDS = LEASE_SECONDS / 3
"""How often a process renews its leases and looks for lapsed ones."""

SETTINGS = TaskSettings(lease_ms=LEASE_SECONDS * 1000, shutdown_grace=0)


class LeasedTaskStore(InMemoryTaskStore):
    """An `InMemoryTaskStore` that several runtimes use, as processes use a database."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        """Make an empty store."""
        super().__init__(clock=clock)
        self.is_shared = True

    def record(self, task_id: str) -> TaskRecord:
        """Return a task that has not been removed, without looking at the clock."""
        return self._entries[task_id].record


class Link:
    """One process's connection to a store: it can be cut, and every call gives the others a chance to run.

    Attributes:
        is_cut: Whether every call fails. One that waits fails as soon as it would have returned.
        fails: Names of methods that fail while the others work.
        error: What a call raises that fails.
        calls: Every call that was made, by name.
        before: Called with a call's name before it is made, and may raise.
        after: Called with a call's name when it has been made, and may raise: its answer is lost.
        unheard: The answer of the last call, if it was lost.
    """

    def __init__(self, store: InMemoryTaskStore, *, name: str = "") -> None:
        self.is_cut = False
        self.fails: set[str] = set()
        self.error: StoreError = StoreUnavailableError("The connection is cut")
        self.calls: list[str] = []
        self.before: Callable[[str], Any] | None = None
        self.after: Callable[[str], Any] | None = None
        self.unheard: Any = None
        self._target: Any = store
        self.clock: Clock = store.clock
        self.message_queue: Any = _LinkedQueue(self, store.message_queue)

    async def _call(self, target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        await anyio.lowlevel.checkpoint()
        self._check(name)
        if self.before is not None:
            await self.before(name)
        result = self.unheard = await getattr(target, name)(*args, **kwargs)
        if name.startswith("wait_"):
            self._check(name)
        if self.after is not None:
            await self.after(name)
        self.unheard = None
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return result

    def _check(self, name: str) -> None:
        if self.is_cut or name in self.fails:
            raise self.error


class _LinkedQueue:
    def __init__(self, link: Link, queue: Any) -> None:
        self._link = link
        self._target = queue

    async def _call(self, target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        return await self._link._call(target, name, *args, **kwargs)


class TakingTaskStore(LeasedTaskStore):
    """One that finds and claims tasks for a worker in one step, and tells of ends alone."""

    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        is_told = False

        def changed(record: TaskRecord | None) -> None:
            nonlocal is_told
            if not is_told and (record is None or is_terminal(record.status)):
                is_told = True
                on_end()

        return self.watch_task(task_id, changed, after=0)

    async def take_work(
        self, names: Collection[str], *, worker: str, lease_ms: int, limit: int, with_sealed: bool = False
    ) -> tuple[TaskRecord, ...]:
        if limit < 1:
            raise ValueError("limit must be at least 1")
        while True:
            found = await self.wait_for_work(names, limit=1_000)
            wanted = [record for record in found if with_sealed or not is_sealed(record)][:limit]
            claims = [await self.claim_task(each.task_id, worker=worker, lease_ms=lease_ms) for each in wanted]
            if claims:
                return tuple(record for record in claims if record is not None)
            await anyio.lowlevel.checkpoint()

    async def take_task(
        self, task_id: str, names: Collection[str], *, worker: str, lease_ms: int, with_sealed: bool = False
    ) -> TaskRecord | None:
        record = await self.get_task(task_id)
        if record is None or record.lease is None or record.lease.worker or record.request.name not in names:
            return None
        if is_sealed(record) and not with_sealed:
            return None
        return await self.claim_task(task_id, worker=worker, lease_ms=lease_ms)


def _forward(cls: type[Any], *names: str) -> None:
    for name in names:

        async def method(self: Any, *args: Any, _name: str = name, **kwargs: Any) -> Any:
            return await self._call(self._target, _name, *args, **kwargs)

        setattr(cls, name, method)


_forward(Link, "create_task", "get_task", "update_task", "finish_task", "get_result", "list_tasks", "delete_task")
_forward(Link, "wait_for_update", "renew_leases", "drop_leases", "list_lapsed", "list_lost", "claim_task")
_forward(Link, "wait_for_work", "ask", "answer_all", "get_view", "get_owned", "record_step", "read_steps", "join_task")
_forward(Link, "count_live_tasks")
_forward(_LinkedQueue, "enqueue", "dequeue", "peek", "is_empty", "clear", "wait_for_message", "outstanding")
_forward(_LinkedQueue, "answer", "wait_for_answer")


class TakingLink(Link):
    """One to a store that finds and claims tasks for a worker in one step. What is taken reaches its caller.

    The next call has what a call without an answer has taken, as with the bundled stores.
    """

    _taken: Any = None

    def watch_end(self, task_id: str, on_end: Callable[[], None]) -> Callable[[], None]:
        stop: Callable[[], None] = self._target.watch_end(task_id, on_end)
        return stop

    async def take_work(self, *args: Any, **kwargs: Any) -> Any:
        taken, self._taken = self._taken, None
        if taken is not None:
            return taken
        try:
            return await self._call(self._target, "take_work", *args, **kwargs)
        except StoreUnavailableError:
            self._taken = self.unheard
            raise

    async def take_task(self, *args: Any, **kwargs: Any) -> Any:
        return await self._call(self._target, "take_task", *args, **kwargs)


class Client:
    """A client that can do everything, out of reach but for the task's questions."""

    client_capabilities: JSONObject = {"elicitation": {"form": {}}, "sampling": {}}  # noqa: RUF012
    can_send_request = False

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Drop it."""

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Never called."""
        raise AssertionError


@dataclass
class Process:
    """A runtime with a connection of its own.

    Attributes:
        link: Its connection.
        runtime: The runtime.
    """

    link: Link
    runtime: TaskRuntime

    @property
    def worker(self) -> str:
        """Its name in leases."""
        worker = self.runtime.statistics().worker
        assert worker is not None
        return worker

    @property
    def running(self) -> set[str]:
        """The tasks whose work runs here."""
        return set(self.runtime.statistics().running)

    def context(self, execution: Execution[Any]) -> ServerTaskContext:
        """Return what work here sees of its task."""
        record = execution.record
        assert record is not None
        store, queue = self.runtime.store, self.runtime.queue
        return ServerTaskContext(
            task=record.task,
            store=store,
            session=Client(),
            queue=queue,
            handler=TaskResultHandler(store, queue),
            execution=execution,
            attempt=1 if record.lease is None else record.lease.attempt,
        )


class Cluster:
    """Processes that share a store, and its clock."""

    def __init__(self, *, takes: bool = False) -> None:
        """Make a cluster.

        Args:
            takes: Whether the store finds and claims tasks for a worker in one step.
        """
        self.clock = FakeClock()
        self.store = TakingTaskStore(clock=self.clock) if takes else LeasedTaskStore(clock=self.clock)
        self.processes: list[Process] = []

    def process(self, settings: TaskSettings = SETTINGS, dispatcher: TaskDispatcher | None = None) -> Process:
        """Make a process whose runtime is not open."""
        link = TakingLink(self.store) if isinstance(self.store, TakingTaskStore) else Link(self.store)
        process = Process(link, TaskRuntime(cast(TaskStore, link), settings=settings, dispatcher=dispatcher))
        assert process.runtime.statistics().worker is not None, "the link brings leases"
        self.processes.append(process)
        return process

    async def settle(self) -> None:
        """Wait until everybody waits for something that only the test can bring."""
        quiet, seen = 0, -1
        while quiet < 60:
            calls = sum(len(process.link.calls) for process in self.processes)
            quiet, seen = (quiet + 1 if calls == seen else 0), calls
            await anyio.lowlevel.checkpoint()

    async def cut(self, process: Process) -> None:
        """Cut a process off, when it has done all it can."""
        await self.settle()
        process.link.is_cut = True

    async def pass_time(self, seconds: float) -> None:
        """Let time pass second by second: everybody who waits wakes at the right one."""
        while seconds > 0:
            step = min(seconds, 1.0)
            self.clock.advance(step)
            await self.settle()
            seconds -= step

    async def pass_time_until_taken(self, task_id: str, process: Process) -> None:
        """Let time pass until a process has claimed the task, and no longer."""
        while task_id not in process.running:
            await self.pass_time(1)

    async def pass_time_until_ended(self, task_id: str) -> None:
        """Let time pass until a task has ended, and no longer."""
        while self.store.record(task_id).outcome is None:
            await self.pass_time(1)

    async def questions(self, task_id: str) -> list[QueuedMessage]:
        """Return the open questions of a task."""
        return list(await self.store.message_queue.outstanding(task_id))

    async def asks(self, task_id: str) -> dict[str, str]:
        """Return the open questions: their keys by what they ask."""
        return {question.params["message"]: question.key or "" for question in await self.questions(task_id)}

    async def until_asked(self, task_id: str, *messages: str) -> None:
        """Wait until exactly these questions are open, and the status says so."""
        while list(await self.asks(task_id)) != list(messages) or self.store.record(task_id).status != "input_required":
            await anyio.lowlevel.checkpoint()

    async def answer(self, process: Process, task_id: str, message: str, content: JSONObject) -> None:
        """Have a client that a process serves answer an open question."""
        key = (await self.asks(task_id))[message]
        await process.runtime.answer(task_id, {key: {"action": "accept", "content": content}}, owner=None)

    async def until_ended(self, task_id: str) -> TaskRecord:
        """Wait until the task has ended."""
        record = self.store.record(task_id)
        while not is_terminal(record.status):
            record = await self.store.wait_for_update(task_id, after=record.revision)
        return record


@asynccontextmanager
async def open_cluster(
    size: int = 2,
    *,
    settings: TaskSettings = SETTINGS,
    dispatcher: TaskDispatcher | None = None,
    takes: bool = False,
) -> AsyncIterator[tuple[Cluster, list[Process]]]:
    """Open processes for a block; afterwards nothing may be left of them."""
    cluster = Cluster(takes=takes)
    processes = [cluster.process(settings, dispatcher) for _ in range(size)]
    with anyio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            for process in processes:
                await stack.enter_async_context(process.runtime)
            await cluster.settle()  # the first turn is over
            try:
                yield cluster, processes
            finally:
                for process in cluster.processes:
                    process.link.is_cut = False
                    process.link.fails.clear()
        for process in processes:
            assert process.running == set()
            assert process.runtime.statistics().calls == 0
    assert cluster.clock.waiting == 0, "something still waits"
