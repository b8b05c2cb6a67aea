"""Work in worker processes: how soon it starts and stops, and how much of it, next to the bare jobs of an engine.

    python -m tests.benchmarks.bench_workers               the table
    python -m tests.benchmarks.bench_workers SETUP ...     the rows of some setups, by their names in `SETUPS`
    python -m tests.benchmarks.bench_workers --bare        a worker for bare jobs; the environment says which

This process is the server: it makes tasks through its runtime, which watches them until they have ended. A bare job is
what the engine alone does: it is submitted, and a worker runs it. In neither case does a client read the result. The
two are not alike: a task leaves its state and its outcome in the store, where its client finds them, and a bare job
leaves nothing. So there are two ratios. In the first, this process makes tasks and submits jobs, as fast as it can.
In the second, a client of the SDK in this process calls tools: one that is dispatched, and one that an author would
write without this library, which submits a bare job and returns.

Workers of tasks and of bare jobs are up at the same time and get work in turns, so that a ratio is one of neighbouring
rounds; where there are fewer processors than processes, they share them with the broker and with this process. Work
reports its first line in a datagram to this process, with the time of the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp import Client
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, TaskRequest, TaskSettings, TaskSpec, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import TasksClient
from tests.benchmarks.measuring import row, seconds
from tests.stores import postgres_server, redis_server

SETTING = "BENCH_WORKERS"
STARTS = int(os.environ.get("BENCH_STARTS", "100"))
JOBS = int(os.environ.get("BENCH_JOBS", "300"))
ROUNDS = 3
CONCURRENCY = 16
AT_A_TIME = 64
WORKERS = (1, 2, 4)
LEAST = 0.5


@dataclass(frozen=True)
class Place:
    """Where work is done, as the environment of worker processes says it.

    Attributes:
        engine: The engine that carries tasks; empty for plain workers.
        url: The server that has the tasks, and what the engine carries.
        rival: The engine of the bare jobs.
        reports: Path of the socket that work reports to.
    """

    engine: str
    url: str
    rival: str
    reports: str


# Name -> the engine of tasks, that of bare jobs, and the server of both and of the store.
SETUPS = {
    "plain workers, Redis": ("", "docket that pauses for 30 ms", "redis"),
    "plain workers, PostgreSQL": ("", "procrastinate", "postgres"),
    "docket, Redis": ("docket", "docket", "redis"),
    "docket, Redis, next to bare workers with our pause": ("docket", "docket that pauses for 30 ms", "redis"),
    "procrastinate, PostgreSQL": ("procrastinate", "procrastinate", "postgres"),
    "Celery, Redis": ("celery", "celery", "redis"),
}


class Reporter:
    """Sends what work says to the process that measures."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.connect(path)

    def say(self, event: str, n: int) -> None:
        """Report an event of work, with the time."""
        self._socket.send(f"{event} {n} {time.monotonic()}".encode())


class Reports:
    """What work has said."""

    def __init__(self, path: str) -> None:
        self.count = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)
        self._times: dict[str, float] = {}
        self._came = anyio.Event()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Read reports for a block."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._socket)

    def _read(self) -> None:
        try:
            for _ in range(100):
                event, n, at = self._socket.recv(100).decode().split()
                self._times[f"{event} {n}"] = float(at)
                self.count += 1
        except BlockingIOError:
            pass
        self._came.set()
        self._came = anyio.Event()

    async def of(self, event: str, n: int) -> float:
        """Wait for an event; return its time."""
        while f"{event} {n}" not in self._times:
            await self._came.wait()
        return self._times.pop(f"{event} {n}")

    async def until(self, count: int) -> None:
        """Wait until so many reports came, and forget them."""
        while self.count < count:
            await self._came.wait()
        self._times.clear()


def make_tasks(place: Place) -> tuple[MCPServer[Any], Tasks, Any]:
    """Return the server, its tasks, and their dispatcher."""
    dispatcher: Any = StoreDispatcher()
    if place.engine == "docket":
        from mcp_task_runtime.engines.docket import DocketDispatcher

        dispatcher = DocketDispatcher(place.url)
    elif place.engine == "procrastinate":
        from mcp_task_runtime.engines.procrastinate import ProcrastinateDispatcher

        dispatcher = ProcrastinateDispatcher(place.url)
    elif place.engine == "celery":
        from celery import Celery

        from mcp_task_runtime.engines.celery import CeleryDispatcher

        dispatcher = CeleryDispatcher(Celery("tasks", broker=place.url))
    settings = TaskSettings(shutdown_grace=0.1, max_tasks_per_owner=None)
    tasks = Tasks(open_store(place.url), settings=settings, dispatcher=dispatcher)
    server: MCPServer[Any] = MCPServer("bench")
    tasks.install(server)
    reporter: list[Reporter] = []

    def say(event: str, n: int) -> None:
        if not reporter:
            reporter.append(Reporter(place.reports))
        reporter[0].say(event, n)

    @tasks.tool(rerunnable=True)
    async def quick(n: int, task: ServerTaskContext) -> int:
        say("began", n)
        return n

    @tasks.tool(rerunnable=True)
    async def wait(n: int, task: ServerTaskContext) -> int:
        say("began", n)
        try:
            await anyio.sleep_forever()
        finally:
            say("stopped", n)
        return n

    return server, tasks, dispatcher


class BareDocket:
    """Bare jobs of docket.

    A worker that has as much as it may run sleeps for its `minimum_check_interval`. With the 250 ms of the engine the
    rate is that of the sleep: one worker makes 65 jobs a second, and four that are never full make twenty times as
    many. So there is a rival with the setting of our workers, too.
    """

    def __init__(self, place: Place) -> None:
        from docket import Docket

        self._docket = Docket(name="bare", url=place.url)
        self._place = place

    async def work(self) -> None:
        """Be a worker."""
        from docket import Worker

        from mcp_task_runtime.engines.docket import FULL_PAUSE

        reporter = Reporter(self._place.reports)
        settings = {} if self._place.rival == "docket" else {"minimum_check_interval": FULL_PAUSE}

        async def job(n: int) -> None:
            reporter.say("began", n)

        async with self._docket as docket:
            docket.register(job)
            async with Worker(docket, concurrency=CONCURRENCY, **settings) as worker:
                await worker.run_forever()

    async def __aenter__(self) -> BareDocket:
        async def job(n: int) -> None:
            """In place of the function of workers."""

        await self._docket.__aenter__()
        self._docket.register(job)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._docket.__aexit__(None, None, None)

    async def submit(self, n: int) -> None:
        """Submit a job."""
        await self._docket.add("job")(n)

    async def submit_all(self, jobs: int) -> None:
        """Submit so many jobs."""
        await in_turns(self.submit, jobs)


class BareProcrastinate:
    """Bare jobs of procrastinate."""

    def __init__(self, place: Place) -> None:
        from procrastinate import App, PsycopgConnector

        self._app = App(connector=PsycopgConnector(conninfo=place.url))
        self._place = place

    async def work(self) -> None:
        """Be a worker."""
        reporter = Reporter(self._place.reports)

        async def job(n: int) -> None:
            reporter.say("began", n)

        self._app.task(name="job")(job)
        async with self._app.open_async():
            await self._app.run_worker_async(queues=["bare"], concurrency=CONCURRENCY)

    async def __aenter__(self) -> BareProcrastinate:
        await self._app.open_async()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._app.close_async()

    async def submit(self, n: int) -> None:
        """Submit a job."""
        await self._app.configure_task("job", queue="bare").defer_async(n=n)

    async def submit_all(self, jobs: int) -> None:
        """Submit so many jobs."""
        await in_turns(self.submit, jobs)


class BareCelery:
    """Bare jobs of Celery."""

    def __init__(self, place: Place) -> None:
        from celery import Celery

        self.app = Celery("bare", broker=place.url)
        self._place = place
        self.app.task(name="job", ignore_result=True)(self._job)
        self._reporter: Reporter | None = None

    def _job(self, n: int) -> None:
        if self._reporter is None:
            self._reporter = Reporter(self._place.reports)
        self._reporter.say("began", n)

    async def __aenter__(self) -> BareCelery:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.app.close()

    async def submit(self, n: int) -> None:
        """Submit a job, as code in an event loop must."""
        await anyio.to_thread.run_sync(self._send, n)

    async def submit_all(self, jobs: int) -> None:
        """Submit so many jobs, as code without an event loop does: one by one."""

        def submit() -> None:
            for n in range(jobs):
                self._send(n)

        await anyio.to_thread.run_sync(submit)

    def _send(self, n: int) -> None:
        self.app.send_task("job", args=[n], queue="bare", ignore_result=True)


BARE: dict[str, Callable[[Place], Any]] = {
    "docket": BareDocket,
    "docket that pauses for 30 ms": BareDocket,
    "procrastinate": BareProcrastinate,
    "celery": BareCelery,
}


async def in_turns(one: Callable[[int], Awaitable[None]], jobs: int) -> None:
    """Do it so often, some of them at once."""
    numbers = iter(range(jobs))

    async def more() -> None:
        for n in numbers:
            await one(n)

    async with anyio.create_task_group() as group:
        for _ in range(AT_A_TIME):
            group.start_soon(more)


@asynccontextmanager
async def workers(place: Place, folder: Path, count: int, *, bare: bool) -> AsyncIterator[None]:
    """Run worker processes for a block, which begins when they work."""
    here = "tests.benchmarks.bench_workers"
    python = [sys.executable, "-W", "ignore", "-m"]
    command = [*python, "mcp_task_runtime", "worker", f"{here}:tasks", "--concurrency", str(CONCURRENCY)]
    if bare:
        command = [*python, here, "--bare"]
    if (place.rival if bare else place.engine) == "celery":
        app, queue = ("bare_celery", "bare") if bare else ("celery", "mcp-tasks")
        command = [*python, "celery", "-A", f"{here}:{app}", "worker", "--pool", "threads", "-Q", queue, "-l", "INFO"]
        command += ["--concurrency", str(CONCURRENCY), "--without-mingle", "--without-gossip"]
    environment = {**os.environ, SETTING: json.dumps(asdict(place))}
    async with AsyncExitStack() as stack:
        logs: list[tuple[Any, Path]] = []
        for _ in range(count):
            log = folder / f"{os.urandom(4).hex()}.log"
            name = ["-n", f"{log.stem}@%h"] if "celery" in command else []
            with log.open("wb") as file:
                opened = await anyio.open_process([*command, *name], env=environment, stdout=file, stderr=file)
            process = await stack.enter_async_context(opened)
            stack.callback(process.kill)
            logs.append((process, log))
        for process, log in logs:
            while not any(each in log.read_text() for each in ("Working bare", "Working for", " ready.")):
                assert process.returncode is None, log.read_text()
                await anyio.sleep(0.05)
        yield


async def latencies(tasks: Tasks, reports: Reports) -> tuple[list[float], list[float]]:
    """Return the milliseconds from each call to the first line of its work, and from each cancel to its end."""
    starts, stops = [], []
    for n in range(STARTS):
        called = time.monotonic()
        record = await tasks.runtime.dispatch(spec_of("wait", n))
        starts.append(1_000 * (await reports.of("began", n) - called))
        cancelled = time.monotonic()
        await tasks.runtime.cancel(record.task_id, owner=None)
        stops.append(1_000 * (await reports.of("stopped", n) - cancelled))
    return starts, stops


def spec_of(tool: str, n: int) -> TaskSpec:
    return TaskSpec(request=TaskRequest(name=tool, arguments_json=json.dumps({"n": n}), rerunnable=True))


class Rates:
    """Measures how many tasks, and how many bare jobs, workers end in a second."""

    def __init__(self, tasks: Tasks, bare: Any, reports: Reports, client: Client, tasks_client: TasksClient) -> None:
        self._tasks = tasks
        self._bare = bare
        self._reports = reports
        self._client = client
        self._tasks_client = tasks_client

    async def made(self, jobs: int) -> tuple[float, float]:
        """Return both rates where this process makes the tasks, and submits the jobs."""

        async def one(n: int) -> None:
            await self._tasks.runtime.dispatch(spec_of("quick", n))

        return (
            await self._rate(lambda: in_turns(one, jobs), jobs),
            await self._rate(lambda: self._bare.submit_all(jobs), jobs),
        )

    async def called(self, jobs: int) -> tuple[float, float]:
        """Return both rates where a client calls tools for them."""

        async def task(n: int) -> None:
            await self._tasks_client.start(self._client, "quick", {"n": n})

        async def job(n: int) -> None:
            await self._client.call_tool("submit", {"n": n})

        return (
            await self._rate(lambda: in_turns(task, jobs), jobs),
            await self._rate(lambda: in_turns(job, jobs), jobs),
        )

    async def _rate(self, submit: Callable[[], Awaitable[None]], jobs: int) -> float:
        async def run() -> None:
            before = self._reports.count
            await submit()
            await self._reports.until(before + jobs)
            while self._tasks.runtime.statistics().live_tasks:  # noqa: ASYNC110 - the last ends follow at once
                await anyio.sleep(0.005)

        return jobs / await seconds(run)


def shown(values: list[float]) -> str:
    p50, p99 = statistics.median(values), sorted(values)[int(0.99 * (len(values) - 1))]
    return f"{p50:.1f} ms; 99th percentile {p99:.1f} ms"


async def measure(name: str, place: Place, folder: Path) -> None:
    """Print the rows of a setup."""
    reports = Reports(place.reports)
    server, tasks, dispatcher = make_tasks(place)
    store: Any = tasks.runtime.store
    async with AsyncExitStack() as stack:
        stack.enter_context(reports.read())
        if hasattr(dispatcher, "aclose"):
            stack.push_async_callback(dispatcher.aclose)
        await stack.enter_async_context(store)
        await stack.enter_async_context(tasks)
        if place.rival == "procrastinate":
            await prepare(place)
        async with workers(place, folder, 1, bare=False):
            starts, stops = await latencies(tasks, reports)
        row(f"{name}: from a call to the first line of its work, median", "", shown(starts))
        row(f"{name}: from a cancel to the end of work, median", "", shown(stops))
        bare = await stack.enter_async_context(BARE[place.rival](place))

        @server.tool()
        async def submit(n: int) -> str:
            await bare.submit(n)
            return "submitted"

        tasks_client = TasksClient()
        client = await stack.enter_async_context(Client(server, extensions=[tasks_client]))
        rates = Rates(tasks, bare, reports, client, tasks_client)
        for count in WORKERS:
            found: dict[str, list[tuple[float, float]]] = {"": [], " of calls": []}
            async with workers(place, folder, count, bare=False), workers(place, folder, count, bare=True):
                await rates.made(JOBS // 5)  # connections are opened
                for _ in range(ROUNDS):
                    found[""].append(await rates.made(JOBS))
                    found[" of calls"].append(await rates.called(JOBS // 2))
            for how, pairs in found.items():
                ratio = statistics.median(ours / theirs for ours, theirs in pairs)
                ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
                what = f"{name}: rate of tasks{how} with {count} worker{'s' * (count > 1)} / that of bare jobs{how}"
                row(f"{what} of {place.rival}", f"≥ {LEAST}", f"{ratio:.2f} ({ours:,.0f} / {theirs:,.0f} a second)")


async def prepare(place: Place) -> None:
    from procrastinate import App, PsycopgConnector

    async with App(connector=PsycopgConnector(conninfo=place.url)).open_async() as app:
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()


async def main(names: Sequence[str]) -> None:
    logging.disable(logging.CRITICAL)
    for name in names or SETUPS:
        engine, rival, kind = SETUPS[name]
        server = redis_server.own_server() if kind == "redis" else postgres_server.running_server()
        with server as running, tempfile.TemporaryDirectory() as folder:
            place = Place(engine, running.url, rival, f"{folder}/reports")
            await measure(name, place, Path(folder))


def work_bare(place: Place) -> None:
    print("Working bare", flush=True)
    asyncio.run(BARE[place.rival](place).work())


if __name__ == "__main__":
    if sys.argv[1:] == ["--bare"]:
        work_bare(Place(**json.loads(os.environ[SETTING])))
    else:
        asyncio.run(main(sys.argv[1:]))
elif SETTING in os.environ:
    _place = Place(**json.loads(os.environ[SETTING]))
    _server, tasks, _dispatcher = make_tasks(_place)
    if _place.engine == "celery":
        celery = _dispatcher.app
        _dispatcher.serve(tasks)
    if _place.rival == "celery":
        bare_celery = BareCelery(_place).app
