"""Worker processes for tests: this program forks one for each line that it reads, a `WorkerOptions` as JSON.

    python -m tests.stores.worker_program

It imports everything once, so that a worker starts in milliseconds. A worker connects to the test, which listens
on loopback, and both speak JSON lines: the test sends commands, the worker replies and reports what happens to its
work.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from functools import partial
from random import Random
from typing import Any, TypeAlias

import anyio
import trio  # noqa: F401 - imported before the fork
from anyio.streams.buffered import BufferedByteReceiveStream
from typing_extensions import Self

from mcp_task_runtime import (
    Answer,
    Execution,
    InvalidTransitionError,
    Outcome,
    ServerTaskContext,
    TaskRequest,
    TaskResultHandler,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
)
from mcp_task_runtime.core import clock
from mcp_task_runtime.core.json import JSONObject, dump_json
from mcp_task_runtime.stores.postgres import PostgresTaskStore
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore

Store: TypeAlias = "SQLiteTaskStore | RedisTaskStore | PostgresTaskStore"
Report: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

LONGEST_LINE = 1_000_000
_time, _time_ns = time.time, time.time_ns
FORM: JSONObject = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Place:
    """Location of a store, the same for all processes.

    Attributes:
        kind: `sqlite`, `redis` or `postgres`.
        address: The file or the server's URL.
        name: The prefix or the database schema.
    """

    kind: str
    address: str
    name: str = ""

    def store(self) -> Store:
        """Return a store at this place, not yet open."""
        if self.kind == "sqlite":
            return SQLiteTaskStore(self.address)
        if self.kind == "redis":
            return RedisTaskStore(self.address, prefix=self.name, timeout=30)
        return PostgresTaskStore(self.address, schema=self.name, max_connections=4, timeout=30)


@dataclass(frozen=True)
class WorkerOptions:
    """Options of a worker.

    Attributes:
        place: Where its store is.
        port: Where the test listens.
        loop: Its event loop.
        lease_ms: How long it may be silent.
    """

    place: Place
    port: int
    loop: str
    lease_ms: int

    def to_json(self) -> str:
        """Return the options as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> WorkerOptions:
        """Return the options of a line."""
        values = json.loads(line)
        return cls(**{**values, "place": Place(**values["place"])})


class Client:
    """A client that can be reached by the task's questions only."""

    client_capabilities: JSONObject = {"elicitation": {"form": {}}}  # noqa: RUF012
    can_send_request = False

    async def send_notification(self, method: str, params: JSONObject) -> None:
        """Drop it."""

    async def send_request(self, method: str, params: JSONObject) -> JSONObject:
        """Never called."""
        raise AssertionError


class LeaseWatch:
    """How long this process left the leases of its tasks without a renewal, for any reason.

    A lease that was lost although this is shorter than a lease was taken from a process that had renewed it.
    """

    def __init__(self, store: Store) -> None:
        """Watch what a process writes of leases through a store."""
        self._renewed: dict[str, float] = {}
        self._longest: dict[str, float] = {}
        create, claim, renew, finish = store.create_task, store.claim_task, store.renew_leases, store.finish_task

        async def create_task(*args: Any, **options: Any) -> Any:
            began = time.monotonic()
            record = await create(*args, **options)
            self._renewed[record.task_id] = began
            return record

        async def claim_task(task_id: str, **options: Any) -> Any:
            began = time.monotonic()
            record = await claim(task_id, **options)
            if record is not None:
                self._renewed[task_id] = began
            return record

        async def renew_leases(worker: str, task_ids: Collection[str], **options: Any) -> Any:
            began = time.monotonic()
            held = await renew(worker, task_ids, **options)
            for task_id in task_ids:
                self.note(task_id)
                if task_id in held:
                    self._renewed[task_id] = began
            return held

        async def finish_task(task_id: str, *args: Any, **options: Any) -> Any:
            try:
                return await finish(task_id, *args, **options)
            finally:
                self.note(task_id)

        for method in (create_task, claim_task, renew_leases, finish_task):
            setattr(store, method.__name__, method)

    def note(self, task_id: str) -> None:
        """Note that the lease of a task was renewed just now, is known to be lost, or is needed no more."""
        if task_id in self._renewed:
            silence = time.monotonic() - self._renewed[task_id]
            self._longest[task_id] = max(self._longest.get(task_id, 0.0), silence)

    def silence(self, task_id: str) -> float:
        """Return the longest time between two renewals of a task's lease, in seconds, and forget the task."""
        self._renewed.pop(task_id, None)
        return self._longest.pop(task_id, 0.0)


class Tool:
    """The one tool of all processes: its arguments say what the work does.

    `statuses`: how often it updates its status, and `pause`: how many seconds it waits after each; `questions`: how
    many it asks, one after the other; `forever`: whether it then goes on until it is stopped. Its result is what it was
    answered.
    """

    NAME = "work"

    def __init__(self, runtime: TaskRuntime, report: Report | None = None, leases: LeaseWatch | None = None) -> None:
        self._runtime = runtime
        self._report = report
        self._leases = leases
        runtime.register(self.NAME, self.run)

    async def start(
        self, *, rerunnable: bool = False, max_attempts: int = 3, owner: str | None = None, **arguments: Any
    ) -> str:
        """Start work; return the task's identifier."""
        request = TaskRequest(
            name=self.NAME, arguments_json=dump_json(arguments), rerunnable=rerunnable, max_attempts=max_attempts
        )
        record = await self._runtime.submit(TaskSpec(owner=owner, request=request), self.run, outcome_of=lambda it: it)
        return record.task_id

    async def run(self, execution: Execution[Outcome]) -> Outcome:
        """Do the work."""
        record, runtime = execution.record, self._runtime
        assert record is not None
        context = ServerTaskContext(
            task=record.task,
            store=runtime.store,
            session=Client(),
            queue=runtime.queue,
            handler=TaskResultHandler(runtime.store, runtime.queue),
            execution=execution,
            attempt=1 if record.lease is None else record.lease.attempt,
        )
        arguments: dict[str, Any] = dict(record.request.arguments)
        heard: list[Any] = []
        try:
            if self._report is not None:
                await self._report({"ran": record.task_id})
            for number in range(arguments.get("statuses", 0)):
                await context.update_status(f"step {number}")
                await anyio.sleep(arguments.get("pause", 0))
            for number in range(arguments.get("questions", 0)):
                heard += [(await context.elicit(f"question {number}?", FORM)).content]
            if arguments.get("forever"):
                await anyio.sleep_forever()
        except BaseException:  # cancelled, or released from a question: whichever comes first
            if self._leases is not None:
                self._leases.note(record.task_id)
            if self._report is not None:
                with anyio.CancelScope(shield=True):
                    await self._report({"cleaned": record.task_id})
            raise
        return Outcome.completed({"heard": heard})


class Worker:
    """A worker, in its own process."""

    def __init__(self, store: Store, runtime: TaskRuntime, report: Report) -> None:
        self._store = store
        self._runtime = runtime
        self._report = report
        self._leases = LeaseWatch(store)
        self._tool = Tool(runtime, report, self._leases)

    async def silences(self, task_ids: list[str]) -> dict[str, float]:
        """Reply for how many seconds at the most this process left the leases of tasks without a renewal."""
        return {task_id: self._leases.silence(task_id) for task_id in task_ids}

    async def handle(self, command: dict[str, Any]) -> None:
        """Run a command and reply."""
        number, do = command.pop("number"), getattr(self, command.pop("do"))
        await self._report({"number": number, "reply": await do(**command)})

    async def start(self, **arguments: Any) -> str:
        """Start work; reply with the task's identifier."""
        return await self._tool.start(**arguments)

    async def skew(self, seconds: float) -> None:
        """Make the wall clock of this process say another time than the machine's."""
        time.time = lambda: _time() + seconds
        time.time_ns = lambda: _time_ns() + int(seconds * 1e9)

        class Skewed(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Self:
                return cls.fromtimestamp(time.time(), tz)

        setattr(clock, "datetime", Skewed)  # noqa: B010

    async def limit_files(self, *, full: bool) -> None:
        """Let this process write nothing more into files, as if the disk were full; or let it write again."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 if full else most, most))

    async def result(self, task_id: str) -> dict[str, Any]:
        """Wait for the end of a task that may run in any process; reply with its outcome."""
        return asdict(await self._runtime.result(task_id, owner=None))

    async def finish(self, task_ids: list[str], name: str) -> list[bool]:
        """End tasks, all at once; reply for each whether this process ended it."""
        return await all_at_once(partial(finish, self._runtime, name), task_ids)

    async def answer(self, task_ids: list[str], name: str, key: str) -> list[bool]:
        """Answer a question of each task, all at once; reply which answers were taken."""
        return await all_at_once(partial(answer, self._store, key, name), task_ids)

    async def churn(self, seed: str, owner: str, most: int) -> None:
        """Start work of all kinds, one after the other, and report each task."""
        random = Random(seed)
        for _ in range(most):
            work = random.choice(KINDS)
            task_id = await self._tool.start(owner=owner, **work)
            await self._report({"started": task_id, "work": work})
            await anyio.sleep(random.random() * 0.02)


KINDS: list[dict[str, Any]] = [
    {},
    {"statuses": 3},
    {"forever": True},
    {"questions": 1},
    {"statuses": 2, "rerunnable": True},
    {"questions": 1, "rerunnable": True},
    {"questions": 3, "statuses": 1, "rerunnable": True},
]


async def all_at_once(do: Callable[[str], Awaitable[bool]], task_ids: list[str]) -> list[bool]:
    """Run an operation for each task, all at once; return the results in the order of the tasks."""
    done = dict.fromkeys(task_ids, False)

    async def one(task_id: str) -> None:
        done[task_id] = await do(task_id)

    async with anyio.create_task_group() as group:
        for task_id in task_ids:
            group.start_soon(one, task_id)
    return list(done.values())


async def finish(runtime: TaskRuntime, name: str, task_id: str) -> bool:
    """End a task, unless it has ended; return whether this call ended it."""
    try:
        await runtime.finish(task_id, Outcome.completed({"by": name}))
    except InvalidTransitionError:
        return False
    return True


async def answer(store: Store, key: str, name: str, task_id: str) -> bool:
    """Answer a question of a task; return whether the answer was taken."""
    result: JSONObject = {"action": "accept", "content": {"by": name}}
    return await store.message_queue.answer(task_id, key, Answer.result(result))


async def work_for(options: WorkerOptions) -> None:
    """Run a worker until the test disconnects."""
    settings = TaskSettings(lease_ms=options.lease_ms, shutdown_grace=0)
    async with await anyio.connect_tcp("127.0.0.1", options.port) as stream:
        lock = anyio.Lock()

        async def report(message: dict[str, Any]) -> None:
            async with lock:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the test has ended
                    await stream.send(json.dumps(message).encode() + b"\n")

        lines = BufferedByteReceiveStream(stream)
        async with options.place.store() as store, TaskRuntime(store, settings=settings) as runtime:
            worker = Worker(store, runtime, report)
            await report({"pid": os.getpid()})
            async with anyio.create_task_group() as group:
                try:
                    while True:
                        command = json.loads(await lines.receive_until(b"\n", LONGEST_LINE))
                        group.start_soon(worker.handle, command)
                except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                    group.cancel_scope.cancel()


def main() -> None:
    """Fork workers until the test closes standard input, then end those that still run."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # their exit codes are not read
    os.setpgid(0, 0)
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                options = WorkerOptions.from_json(line)
                anyio.run(work_for, options, backend=options.loop)
            finally:
                sys.stderr.flush()
                os._exit(0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
