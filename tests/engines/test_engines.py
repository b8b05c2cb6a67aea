"""Each engine itself, with two workers: one is killed, the broker is down, one is stopped (L5, L9, L12)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.engines import reports
from tests.mcp_v2.listeners import memory_connection
from tests.mcp_v2.raw_client import RawClient, accept

PATIENCE = 240.0
"""Seconds: a worker of docket that has lost its Redis takes up to a minute to fetch again."""

WORKERS = {
    "docket": [sys.executable, "-m", "mcp_task_runtime", "worker", "tests.engines.reports:tasks"],
    "procrastinate": [sys.executable, "-m", "mcp_task_runtime", "worker", "tests.engines.reports:tasks"],
    "celery": [
        *(sys.executable, "-m", "celery", "-A", "tests.engines.reports:celery", "worker", "--pool", "threads"),
        *("--concurrency", "20", "-Q", "mcp-tasks,slow", "--without-mingle", "--without-gossip", "-l", "INFO"),
    ],
}
SAYS = {"docket": "Working for", "procrastinate": "Working for", "celery": " ready."}


@pytest.fixture
def anyio_backend() -> str:
    """Run on the event loop that the engines run on."""
    return "asyncio"


@dataclass
class Broker:
    """The server of an engine.

    Attributes:
        engine: The engine's name.
        url: Where the server is.
        server: What can be stopped and started.
    """

    engine: str
    url: str
    server: Any

    def kill(self) -> None:
        """Stop the server, with what it has in memory."""
        self.server.kill() if self.engine != "procrastinate" else self.server.close()

    def start(self) -> None:
        """Start it again."""
        self.server.start() if self.engine != "procrastinate" else self.server.open()


def needs(engine: str) -> pytest.MarkDecorator:
    """Skip a test where an engine is not installed."""
    reason = f"{engine} is not installed: python3 tests/run.py --suite engines"
    return pytest.mark.skipif(importlib.util.find_spec(engine) is None, reason=reason)


@pytest.fixture(params=["docket", "procrastinate", "celery"])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    engine: str = request.param
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed: python3 tests/run.py --suite engines")
    with broker_of(engine) as broker:
        yield broker


@contextmanager
def broker_of(engine: str) -> Iterator[Broker]:
    if engine != "procrastinate":
        from tests.stores import redis_server

        with redis_server.own_server() as redis:
            yield Broker(engine, redis.url, redis)
        return
    from tests.stores import postgres_server

    with postgres_server.running_server() as postgres, postgres.fresh_schema() as schema:
        with postgres_server.running_proxy(postgres.url) as proxy:
            postgres.execute(f'CREATE SCHEMA "{schema}"')
            yield Broker(engine, f"{proxy.url} options='-c search_path={schema}'", proxy)


@dataclass
class Site:
    """A server in this process, its client, and workers of an engine in others."""

    folder: Path
    broker: Broker
    tasks: Tasks
    client: RawClient
    dispatcher: Any

    @asynccontextmanager
    async def worker(self, *options: str) -> AsyncIterator[anyio.abc.Process]:
        environment = {
            **os.environ,
            "REPORTS_FOLDER": str(self.folder),
            "REPORTS_ENGINE": self.broker.engine,
            "REPORTS_BROKER": self.broker.url,
            "PYTHONUNBUFFERED": "1",
        }
        command = [*WORKERS[self.broker.engine], *options]
        if self.broker.engine == "celery":
            command += ["-n", f"{os.urandom(4).hex()}@%h"]
        with (self.folder / f"worker-{os.urandom(4).hex()}.log").open("wb") as log:
            async with await anyio.open_process(command, env=environment, stdout=log, stderr=log) as process:
                try:
                    while SAYS[self.broker.engine] not in _text(log.name):
                        assert process.returncode is None, _text(log.name)
                        await anyio.sleep(0.05)
                    yield process
                finally:
                    if process.returncode is None:
                        process.kill()

    def log_lines(self) -> list[str]:
        """Return what the workers logged."""
        return [line for log in self.folder.glob("worker-*.log") for line in _text(str(log)).splitlines()]

    def runs(self) -> list[tuple[str, int, int]]:
        """Return tool, number and process of each run."""
        path = self.folder / "runs"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(tool, int(n), int(pid)) for tool, n, pid in map(str.split, lines)]

    async def until_runs(self, *wanted: tuple[str, int], times: int = 1) -> None:
        """Wait until these were begun so often."""
        while True:
            counts = Counter((tool, n) for tool, n, _ in self.runs())
            if all(counts[each] >= times for each in wanted):
                return
            await anyio.sleep(0.05)

    async def start(self, tool: str, *numbers: int) -> dict[tuple[str, int], str]:
        """Call a tool for each number; return the tasks."""
        return {(tool, n): await self.client.start(tool, {"n": n}) for n in numbers}

    async def end(self, started: dict[tuple[str, int], str]) -> None:
        """Answer what is asked until all tasks have ended well."""
        for (tool, n), task_id in started.items():
            if tool == "ask":
                await self.client.until(task_id, "input_required")
                (key,) = await self.client.asked(task_id)
                await self.client.update(task_id, {key: accept(name=f"Ada {n}")})
            task = await self.client.until(task_id, "completed", "failed")
            assert task["status"] == "completed", task
            assert task["result"]["structuredContent"] == {"result": f"Ada {n}" if tool == "ask" else n}


def _text(path: str) -> str:
    return Path(path).read_text(errors="replace")


@asynccontextmanager
async def a_site(folder: Path, broker: Broker, *, start_grace_ms: int = reports.GRACE_MS) -> AsyncIterator[Site]:
    dispatcher: Any = reports.make_dispatcher(broker.engine, broker.url, start_grace_ms=start_grace_ms)
    if broker.engine == "procrastinate":
        async with dispatcher:
            await dispatcher.app.schema_manager.apply_schema_async()
    mcp, tasks = reports.make(folder, dispatcher)
    store: Any = tasks.runtime.store
    with anyio.fail_after(PATIENCE):
        try:
            async with store, tasks, memory_connection(mcp) as connection:
                yield Site(folder, broker, tasks, connection.client, dispatcher)
        finally:
            if hasattr(dispatcher, "aclose"):
                await dispatcher.aclose()


async def test_no_task_is_lost_with_a_worker_or_with_the_broker(broker: Broker, tmp_path: Path) -> None:
    async with a_site(tmp_path, broker) as site:
        async with site.worker() as killed:
            started = {**await site.start("ask", 1, 2), **await site.start("wait", 1, 2)}
            await site.until_runs(*started)
            async with site.worker() as other:
                killed.kill()
                await site.until_runs(*started, times=2)
                broker.kill()
                while_away = await site.start("ask", 3)
                (tmp_path / "gate").touch()
                await site.end(started)  # what runs does not need the broker
                broker.start()
                await site.until_runs(*while_away)
                cancelled = await site.start("ask", 4)
                await site.until_runs(*cancelled)
                await site.client.cancel(cancelled["ask", 4])
                await site.end(while_away)
                assert (await site.client.get(cancelled["ask", 4]))["status"] == "cancelled"
                other.send_signal(signal.SIGTERM)
                assert await other.wait() == 0
        counts = Counter((tool, n) for tool, n, _ in site.runs())
        assert counts == {**dict.fromkeys(started, 2), ("ask", 3): 1, ("ask", 4): 1}


async def test_a_worker_that_is_terminated_gives_its_work_to_another_one(broker: Broker, tmp_path: Path) -> None:
    async with a_site(tmp_path, broker) as site:
        async with site.worker() as first:
            started = await site.start("wait", 1)
            await site.until_runs(*started)
            first.send_signal(signal.SIGTERM)
            assert await first.wait() == 0
        async with site.worker():
            await site.until_runs(*started, times=2)
            (tmp_path / "gate").touch()
            await site.end(started)
        if broker.engine != "celery":  # whose log is that of its own command
            (task_id,) = started.values()
            said = [line for line in site.log_lines() if " INFO " in line]
            assert said
            assert [line for line in said if task_id in line] == []


async def test_a_cancelled_task_is_taken_out_of_the_engine(broker: Broker, tmp_path: Path) -> None:
    """The job of a task that waits for a worker; for Celery, whose messages stay, the workers know that it is void."""
    async with a_site(tmp_path, broker) as site:
        dispatcher: Any = site.dispatcher
        if broker.engine == "celery":
            async with site.worker():
                started = await site.start("ask", 1)
                await site.until_runs(*started)
                (task_id,) = started.values()
                await site.client.cancel(task_id)
                while f"{task_id}.1" not in await anyio.to_thread.run_sync(revoked, dispatcher.app):  # noqa: ASYNC110 - of an engine
                    await anyio.sleep(0.05)
            return
        started = await site.start("ask", 1, 2)
        while len(await waiting(dispatcher, broker.url)) < 2:  # noqa: ASYNC110 - of an engine
            await anyio.sleep(0.05)
        cancelled, kept = started.values()
        await site.client.cancel(cancelled)
        while await waiting(dispatcher, broker.url) != {f"{kept}.1"}:  # noqa: ASYNC110 - of an engine
            await anyio.sleep(0.05)


@needs("docket")
async def test_what_a_lost_worker_of_docket_had_fetched_is_delivered_again(tmp_path: Path) -> None:
    with broker_of("docket") as broker:
        async with a_site(tmp_path, broker) as site:
            started = await site.start("ask", 1)
            while await waiting(site.dispatcher, broker.url) != {f"{started['ask', 1]}.1"}:  # noqa: ASYNC110 - of an engine
                await anyio.sleep(0.05)
            redis = broker.server.client
            fetched = redis.xreadgroup("docket-workers", "lost", {"mcp-tasks:stream": ">"})
            assert fetched
            async with site.worker():
                await site.until_runs(*started)
                await site.end(started)
    assert site.runs()[1:] == []


@needs("celery")
async def test_what_a_terminated_worker_of_celery_has_fetched_and_not_begun_is_delivered_at_once(
    tmp_path: Path,
) -> None:
    with broker_of("celery") as broker:
        async with a_site(tmp_path, broker, start_grace_ms=3_600_000) as site:
            async with site.worker("--concurrency", "1") as first:
                running = await site.start("wait", 1)
                await site.until_runs(*running)
                fetched = await site.start("ask", 1, 2)
                keys = {f"{task_id}.1" for task_id in fetched.values()}
                while not keys <= set(await anyio.to_thread.run_sync(reserved, site.dispatcher.app)):  # noqa: ASYNC110 - of an engine
                    await anyio.sleep(0.05)
                first.send_signal(signal.SIGTERM)
                assert await first.wait() == 0
            async with site.worker():
                await site.until_runs(*fetched)
                await site.end(fetched)
    assert Counter(n for tool, n, _ in site.runs() if tool == "ask") == {1: 1, 2: 1}


@needs("celery")
async def test_celery_shows_what_runs_in_its_worker(tmp_path: Path) -> None:
    with broker_of("celery") as broker:
        async with a_site(tmp_path, broker) as site:
            async with site.worker():
                started = await site.start("wait", 1)
                await site.until_runs(*started)
                key = f"{started['wait', 1]}.1"
                while key not in await anyio.to_thread.run_sync(active, site.dispatcher.app):  # noqa: ASYNC110 - of an engine
                    await anyio.sleep(0.05)
                (tmp_path / "gate").touch()
                await site.end(started)
                while key in await anyio.to_thread.run_sync(active, site.dispatcher.app):  # noqa: ASYNC110 - of an engine
                    await anyio.sleep(0.05)


@needs("celery")
async def test_a_worker_of_celery_that_is_shut_down_by_a_command_gives_its_work_to_another_one(tmp_path: Path) -> None:
    with broker_of("celery") as broker:
        async with a_site(tmp_path, broker) as site:
            async with site.worker() as first:
                started = await site.start("wait", 1)
                await site.until_runs(*started)
                await anyio.to_thread.run_sync(active, site.dispatcher.app)  # until it takes commands
                await anyio.to_thread.run_sync(site.dispatcher.app.control.shutdown)
                assert await first.wait() == 0
            async with site.worker():
                await site.until_runs(*started, times=2)
                (tmp_path / "gate").touch()
                await site.end(started)


def active(app: Any) -> list[str]:
    found: dict[str, list[dict[str, str]]] | None = None
    while not found:  # the worker may be slow to answer
        found = app.control.inspect(timeout=5).active()
    return [request["id"] for requests in found.values() for request in requests]


def reserved(app: Any) -> list[str]:
    found: dict[str, list[dict[str, str]]] = app.control.inspect(timeout=5).reserved() or {}
    return [request["id"] for requests in found.values() for request in requests]


def revoked(app: Any) -> list[str]:
    found: dict[str, list[str]] = app.control.inspect(timeout=5).revoked() or {}
    return [key for keys in found.values() for key in keys]


async def stand_in(task_id: str) -> None:
    """In place of what workers run."""


async def waiting(dispatcher: Any, url: str) -> set[str]:
    """Return the keys of what waits in the engine."""
    if hasattr(dispatcher, "app"):
        jobs = await dispatcher.app.job_manager.list_jobs_async(status="todo")
        return {job.queueing_lock for job in jobs}
    from docket import Docket

    async with Docket(name="mcp-tasks", url=url) as docket:
        docket.register(stand_in, names=["execute_mcp_task"])
        snapshot = await docket.snapshot()
        return {execution.key for execution in (*snapshot.future, *snapshot.running)}


@needs("celery")
async def test_a_worker_of_celery_with_processes_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "tests.engines.reports:celery", "worker", "--pool", "prefork"]
    environment = {
        **os.environ,
        "REPORTS_FOLDER": str(tmp_path),
        "REPORTS_ENGINE": "celery",
        "REPORTS_BROKER": "memory://",
    }
    done = await anyio.run_process(command, env=environment, check=False, stderr=subprocess.STDOUT)
    assert done.returncode != 0
    assert "--pool threads" in done.stdout.decode()
