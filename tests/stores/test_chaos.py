"""Laws L12 and L17 under everything that goes wrong at once: nothing is lost, changed, doubled or stuck.

Two workers on one store run tasks of all kinds while one fault after the other happens: the store is down, the disk is
full, a wall clock jumps, a worker is paused for longer than its lease, or killed. After each fault every task must
end as its work does. Only work of a paused or killed worker that must not run again may have failed as lost. A machine
that gives a worker no time to renew a lease, for as long as the lease lasts, has paused it: workers tell how long each
lease was left without a renewal.
"""

from __future__ import annotations

import os
import secrets
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from mcp_task_runtime import StoreUnavailableError, TaskRecord, TaskRuntime, TaskSettings
from tests.stores import redis_server
from tests.stores.postgres_server import PostgresServer, running_proxy
from tests.stores.worker_program import Place, Store
from tests.stores.workers import Worker, WorkerPool, open_worker_pool

IS_LONG = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"
FAULTS = int(os.environ.get("MCP_TASK_RUNTIME_FAULTS", 500 if IS_LONG else 5))
"""For each store and event loop, of which there are two."""

LEASE_MS = 2000 if IS_LONG else 500
FAULT_SECONDS = 1.5 * LEASE_MS / 1000
"""Longer than a lease: all leases lapse when the store is unavailable, or a worker is silent, for so long."""

SETTLE_SECONDS = 60.0
TASKS = 4

WORK: tuple[dict[str, Any], ...] = (
    {"statuses": 5, "pause": 0.3},
    {"questions": 2},
    {"statuses": 3, "pause": 0.3, "rerunnable": True},
    {"questions": 2, "statuses": 2, "rerunnable": True},
)

Outage = Callable[[], Awaitable[None]]


@dataclass
class Chaos:
    """A store that can be away, for all processes that use it.

    Attributes:
        place: Where it is.
        outage: Makes it unavailable for a while.
    """

    place: Place
    outage: Outage


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def chaos(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chaos]:
    name = f"chaos_{secrets.token_hex(4)}"
    with ExitStack() as stack:
        if request.param == "sqlite":
            path = tmp_path / "tasks.db"
            yield Chaos(Place("sqlite", str(path)), lambda: _lock(path))
        elif request.param == "redis":
            redis = stack.enter_context(redis_server.own_server())

            async def pause() -> None:
                redis.pause()
                await anyio.sleep(FAULT_SECONDS)
                redis.resume()

            yield Chaos(Place("redis", redis.url, name), pause)
        else:
            postgres: PostgresServer = request.getfixturevalue("postgres")
            stack.callback(postgres.drop_schema, name)
            proxy = stack.enter_context(running_proxy(postgres.url))

            async def cut() -> None:
                proxy.close()
                await anyio.sleep(FAULT_SECONDS)
                proxy.open()

            yield Chaos(Place("postgres", proxy.url, name), cut)


async def _lock(path: Path) -> None:
    """Keep everybody else from writing a database file for a while."""
    connection = sqlite3.connect(path, timeout=SETTLE_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        await anyio.to_thread.run_sync(connection.execute, "BEGIN EXCLUSIVE")
        await anyio.sleep(FAULT_SECONDS)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@dataclass
class Observer:
    """What the clients of all tasks know: it answers questions, and checks each task as it goes."""

    store: Store
    runtime: TaskRuntime
    given: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def serve(self, task_id: str) -> TaskRecord | None:
        """Look at a task, and answer what it asks; `None` while the store is unavailable."""
        try:
            view = await self.runtime.get(task_id, owner=None)
            given = self.given.setdefault(task_id, {})
            for question in view.questions:
                message = question.params["message"]
                assert question.key is not None
                content = given.setdefault(message, {"answer": secrets.token_hex(4)})
                await self.runtime.answer(task_id, {question.key: {"action": "accept", "content": content}}, owner=None)
        except StoreUnavailableError:
            return None
        return view.record

    async def until_ended(self, task_id: str) -> TaskRecord:
        """Serve a task until it has ended."""
        with anyio.fail_after(SETTLE_SECONDS):
            while (record := await self.serve(task_id)) is None or record.outcome is None:  # noqa: ASYNC110 - a client polls
                await anyio.sleep(0.02)
        return record


@dataclass
class Crew:
    """Two workers; one that was killed is replaced."""

    pool: WorkerPool
    workers: list[Worker]

    async def replace(self, number: int) -> None:
        """Start another worker in the place of a dead one."""
        await self.workers[number].until_dead()
        self.workers[number] = await self.pool.start()

    def runs_of(self, task_id: str, others: list[Worker]) -> int:
        """Return how often the work of a task was begun, by anyone."""
        workers = {id(worker): worker for worker in (*self.workers, *others)}
        return sum(worker.reports.count({"ran": task_id}) for worker in workers.values())


async def outage(chaos: Chaos, crew: Crew, victim: int) -> None:
    await chaos.outage()


async def skew(chaos: Chaos, crew: Crew, victim: int) -> None:
    """One worker's wall clock jumps an hour ahead, then back."""
    await crew.workers[victim].do("skew", seconds=3600)
    await anyio.sleep(FAULT_SECONDS)
    await crew.workers[victim].do("skew", seconds=0)


async def full_disk(chaos: Chaos, crew: Crew, victim: int) -> None:
    """No worker can write files for longer than a lease; with a server, that is nothing."""
    for worker in crew.workers:
        await worker.do("limit_files", full=True)
    await anyio.sleep(FAULT_SECONDS)
    for worker in crew.workers:
        await worker.do("limit_files", full=False)


async def pause(chaos: Chaos, crew: Crew, victim: int) -> None:
    """A worker stops for longer than its lease, and goes on."""
    os.kill(crew.workers[victim].pid, signal.SIGSTOP)
    await anyio.sleep(FAULT_SECONDS)
    os.kill(crew.workers[victim].pid, signal.SIGCONT)


async def kill(chaos: Chaos, crew: Crew, victim: int) -> None:
    crew.workers[victim].kill()
    await crew.replace(victim)


Fault = Callable[[Chaos, Crew, int], Coroutine[Any, Any, None]]

HARMLESS: tuple[Fault, ...] = (outage, skew, full_disk)
"""Faults that cost no work: each task ends as if nothing had happened."""

HARMFUL: tuple[Fault, ...] = (pause, kill)
"""Faults that cost a worker's leases."""


def name_of(fault: Fault) -> str:
    return getattr(fault, "__name__", "?")


def check_end(record: TaskRecord, work: dict[str, Any], given: dict[str, Any], *, may_be_lost: bool) -> str:
    """A task ended as its work does; return the status."""
    outcome = record.outcome
    assert outcome is not None
    if outcome.status == "completed":
        heard = [given[f"question {number}?"] for number in range(work.get("questions", 0))]
        assert outcome.result == {"heard": heard}
        return "completed"
    assert may_be_lost, f"{record.task_id} of {work}: {outcome.status_message}"
    assert not work.get("rerunnable"), outcome
    assert "lost" in (outcome.status_message or ""), outcome
    return "lost"


async def one_fault(chaos: Chaos, crew: Crew, observer: Observer, random: Random, fault: Fault) -> Counter[str]:
    """Start tasks on both workers, have a fault, see how they end; return how often each happened."""
    seen = Counter({name_of(fault): 1})
    victim = random.randrange(2)
    before = list(crew.workers)
    started: dict[str, tuple[int, dict[str, Any]]] = {}
    for number in range(2):
        for _ in range(TASKS):
            work = dict(random.choice(WORK))
            task_id = await crew.workers[number].do("start", max_attempts=100, **work)
            started[task_id] = number, work
    took = 0.0

    async def have_fault() -> None:
        nonlocal took
        began = time.monotonic()
        await fault(chaos, crew, victim)
        took = time.monotonic() - began

    async with anyio.create_task_group() as group:
        group.start_soon(have_fault)
        records = {}
        for task_id in started:
            records[task_id] = await observer.until_ended(task_id)
    # While the store is down no lease can be renewed; who takes tasks over waits for a lease after that. A process that
    # is paused may hold the lock of a file all the while.
    patience = LEASE_MS / 1000 + (took if fault in (outage, full_disk, pause) else 0)
    silences = [await worker.do("silences", task_ids=list(started)) for worker in crew.workers]
    for task_id, (number, work) in started.items():
        is_victims = fault in HARMFUL and number == victim
        is_starved = not is_victims and silences[number][task_id] >= patience
        may_be_lost = is_victims or is_starved
        end = check_end(records[task_id], work, observer.given.get(task_id, {}), may_be_lost=may_be_lost)
        again = await observer.until_ended(task_id)
        assert again == records[task_id], "a task that had ended has changed"
        runs = crew.runs_of(task_id, before)
        if not may_be_lost or not work.get("rerunnable"):
            assert runs <= 1, f"{runs} runs of {task_id} after {name_of(fault)}"
        seen[f"tasks {end}"] += 1
        seen["leases not renewed in time"] += is_starved
        seen["lost because of that"] += is_starved and (end == "lost" or runs > 1)
    return seen


@asynccontextmanager
async def a_crew(chaos: Chaos, program: subprocess.Popen[str]) -> AsyncIterator[tuple[Crew, Observer]]:
    # The observer takes no work over: its own keeper looks for lost work three times a lease.
    settings = TaskSettings(lease_ms=3_600_000, shutdown_grace=0, max_polls_per_second=None)
    async with (
        chaos.place.store() as store,
        TaskRuntime(store, settings=settings) as runtime,
        open_worker_pool(program, chaos.place, lease_ms=LEASE_MS) as pool,
    ):
        yield Crew(pool, [await pool.start(), await pool.start()]), Observer(store, runtime)


async def test_no_fault_loses_changes_doubles_or_blocks_a_task(
    chaos: Chaos, program: subprocess.Popen[str], anyio_backend_name: str
) -> None:
    seed = secrets.token_hex(4) if IS_LONG else f"{chaos.place.kind} {anyio_backend_name}"
    print(f"seed: {seed}")
    random = Random(seed)
    counts: Counter[str] = Counter()
    with anyio.fail_after(SETTLE_SECONDS * max(2, FAULTS / 4)):
        async with a_crew(chaos, program) as (crew, observer):
            for number in range(0, FAULTS, 5):
                for fault in random.sample(HARMLESS + HARMFUL, k=min(5, FAULTS - number)):
                    counts += await one_fault(chaos, crew, observer, random, fault)
    print(dict(counts))
