"""Two servers and three workers as processes, clients that call them over HTTP, and faults of all of them.

`run` makes tasks until so many have ended, and does faults meanwhile: the next one whenever its share of the tasks has
ended, while clients hold back the tasks of later faults. So each fault meets tasks that run, and a slow machine takes
longer and sees the same. What must hold is in `Ledger.check`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import anyio
import anyio.abc
import httpx

from tests.mcp_v2.raw_client import HTTPExchange, RawClient, Reply, accept

CALLS_AT_ONCE = 24
STARTS = 5
"""How often a process is started that ends before it is ready: its store may be away."""

STORE_SECONDS = 30
"""How long a store waits out an outage. No fault here is one that stops work: a process that is paused while it has a
database locked keeps the others waiting, on a slow machine for longer than the default."""

CALL_SECONDS = 15.0
"""How long a client waits for a server that says nothing, before it asks the other one."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        store: URL of the store.
        engine: Name of the engine; empty for plain workers.
        broker: URL of its broker.
        lease_ms: How long leases last.
        broker_faults: Faults of what the store or the engine is, by name: each returns when it is back.
    """

    store: str
    engine: str = ""
    broker: str = ""
    lease_ms: int = 3_000
    broker_faults: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)


@dataclass
class Member:
    """A server or worker process, which is started again when it has gone."""

    command: Sequence[str]
    ready: re.Pattern[str]
    environment: dict[str, str]
    folder: Path
    name: str
    process: anyio.abc.Process | None = None
    starts: int = 0
    said: str = ""

    async def start(self) -> None:
        """Start it, and wait until it says that it is ready; a few times more, where it cannot."""
        for _ in range(STARTS):
            await self.stop()
            self.starts += 1
            log = self.folder / f"{self.name}-{self.starts}.log"
            with log.open("wb") as file:
                process = self.process = await anyio.open_process(
                    self.command, env=self.environment, stdout=file, stderr=file
                )
            while process.returncode is None:
                found = self.ready.search(log.read_text(errors="replace"))
                if found:
                    self.said = found[1]
                    return
                await anyio.sleep(0.05)
        raise RuntimeError(f"{self.name} does not start: {log.read_text(errors='replace')}")

    async def kill(self) -> None:
        """End it at once, and start it again."""
        await self.stop()
        await self.start()

    async def terminate(self) -> None:
        """End it in good order, and start it again."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
            with anyio.move_on_after(30):
                await self.process.wait()
        await self.kill()

    async def pause(self, seconds: float) -> None:
        """Let it stand still for so long."""
        assert self.process is not None
        if self.process.returncode is not None:
            await self.start()
        self.process.send_signal(signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)
        finally:
            self.process.send_signal(signal.SIGCONT)

    async def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()
            await self.process.aclose()
            self.process = None


@dataclass
class Ledger:
    """What clients saw, and what runs of work wrote.

    Attributes:
        journal: The file that runs append to.
        tools: The tool of each number.
        task_ids: The task of each number.
        ends: Each task as a client saw it ended.
        asked: The keys of questions that clients saw of each task.
        faults: How often each fault happened.
        calls_again: Requests that clients sent again.
        seconds: How long the run took.
    """

    journal: Path
    tools: dict[int, str] = field(default_factory=dict)
    task_ids: dict[int, str] = field(default_factory=dict)
    ends: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, set[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    calls_again: int = 0
    seconds: float = 0.0

    def lines(self, event: str) -> list[tuple[str, str, int, int]]:
        """Return tool, task, attempt and number of each line about an event."""
        text = self.journal.read_text() if self.journal.exists() else ""
        rows = [line.split() for line in text.splitlines()]
        return [(tool, task_id, int(attempt), int(n)) for what, tool, task_id, attempt, n, _ in rows if what == event]

    def figures(self) -> dict[str, Any]:
        """Return what the run was."""
        runs = self.lines("began")
        return {
            "tasks": len(self.task_ids),
            "seconds": round(self.seconds, 1),
            "ends": dict(Counter(end["status"] for end in self.ends.values())),
            "runs": len(runs),
            "reruns": len(runs) - len({task_id for _, task_id, _, _ in runs}),
            "late_writers_refused": len(self.lines("refused")),
            "requests_sent_again": self.calls_again,
            "faults": dict(self.faults),
        }

    def check(self, count: int) -> None:
        """Require what must hold after any failure."""
        assert set(self.task_ids) == set(range(count)), "a call was not answered"
        assert set(self.ends) == set(self.task_ids.values()), "a task was lost"
        assert len(self.ends) == count, "two calls got one task"
        runs: dict[str, list[int]] = {}
        for tool, task_id, attempt, n in self.lines("began"):
            assert self.task_ids[n] == task_id, f"the work of number {n} was done for two tasks"
            assert self.tools[n] == tool
            runs.setdefault(task_id, []).append(attempt)
        for task_id, attempts in runs.items():
            assert len(set(attempts)) == len(attempts), f"two runs of {task_id} had the same number: {attempts}"
        for n, task_id in self.task_ids.items():
            tool, end, attempts = self.tools[n], self.ends[task_id], runs.get(task_id, [])
            if tool == "once":
                assert len(attempts) <= 1, f"work that may not run again ran {len(attempts)} times"
            if tool == "wait":
                assert end["status"] == "cancelled", end
                continue
            if tool == "once" and end["status"] == "failed":
                assert re.search("lost|shut down|interrupted", end["error"]["message"]), end
                continue
            assert end["status"] == "completed", end
            written = end["result"]["structuredContent"]
            assert written["n"] == n
            assert written["attempt"] == max(attempts), "the outcome is not that of the last run"
            if tool == "ask":
                assert len(self.asked[task_id]) == 1, f"a question was asked again: {self.asked[task_id]}"


class Site:
    """The processes of a run."""

    def __init__(self, folder: Path, setup: Setup, workers: int = 3) -> None:
        self._setup = setup
        self.journal = folder / "journal"
        environment = {
            **os.environ,
            "FAULTS_JOURNAL": str(self.journal),
            "FAULTS_STORE": patient(setup.store),
            "FAULTS_ENGINE": setup.engine,
            "FAULTS_BROKER": setup.broker,
            "FAULTS_LEASE_MS": str(setup.lease_ms),
            "PYTHONUNBUFFERED": "1",
        }
        serve = [sys.executable, "-m", "tests.faults.program"]
        listens = re.compile(r"running on (http://\S+)")
        self.servers = [Member(serve, listens, environment, folder, f"server-{n}") for n in range(2)]
        works = re.compile(r"(Working for| ready\.)")
        self.workers = [
            Member(worker_command(setup.engine), works, environment, folder, f"worker-{n}") for n in range(workers)
        ]

    @property
    def members(self) -> list[Member]:
        return [*self.servers, *self.workers]

    def faults(self, random: Random) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what may happen, by name."""
        beyond = 1.6 * self._setup.lease_ms / 1000
        assert beyond < STORE_SECONDS / 4, "the store gives up during a fault"
        return {
            "server killed": lambda: random.choice(self.servers).kill(),
            "server paused": lambda: random.choice(self.servers).pause(random.uniform(0.1, 1.0)),
            "server paused beyond its lease": lambda: random.choice(self.servers).pause(beyond),
            "worker killed": lambda: random.choice(self.workers).kill(),
            "worker paused": lambda: random.choice(self.workers).pause(random.uniform(0.1, 1.0)),
            "worker paused beyond its lease": lambda: random.choice(self.workers).pause(beyond),
            "worker terminated": lambda: random.choice(self.workers).terminate(),
            **self._setup.broker_faults,
        }


def patient(store: str) -> str:
    """Return the URL of a store that waits out all that happens in a run."""
    return f"{store}{'&' if '?' in store else '?'}timeout={STORE_SECONDS}"


def worker_command(engine: str) -> list[str]:
    if engine == "celery":
        return [
            *(sys.executable, "-m", "celery", "-A", "tests.faults.program:celery", "worker", "--pool", "threads"),
            *("--concurrency", "12", "-Q", "mcp-tasks,slow", "--without-mingle", "--without-gossip", "-l", "INFO"),
            *("-n", f"{os.urandom(4).hex()}@%h"),
        ]
    return [sys.executable, "-m", "mcp_task_runtime", "worker", "tests.faults.program:tasks", "--concurrency", "12"]


@asynccontextmanager
async def a_site(folder: Path, setup: Setup) -> AsyncIterator[Site]:
    site = Site(folder, setup)
    try:
        async with anyio.create_task_group() as group:
            for member in site.members:
                group.start_soon(member.start)
        yield site
    finally:
        with anyio.CancelScope(shield=True):
            for member in site.members:
                await member.stop()


class Level:
    """A number that grows, and what waits until it is high enough."""

    def __init__(self) -> None:
        self._value = 0
        self._waiting: list[tuple[int, anyio.Event]] = []

    async def reach(self, value: int) -> None:
        """Wait until the number is that high."""
        if self._value < value:
            event = anyio.Event()
            self._waiting.append((value, event))
            await event.wait()

    def rise(self, by: int) -> None:
        """Let the number grow."""
        self._value += by
        for due in [each for each in self._waiting if each[0] <= self._value]:
            self._waiting.remove(due)
            due[1].set()


class Clients:
    """Clients that find the other server when one does not answer.

    Attributes:
        ended: How many tasks have ended.
        allowed: How many tasks may begin.
    """

    def __init__(self, site: Site, ledger: Ledger, http: httpx.AsyncClient) -> None:
        self._site = site
        self._ledger = ledger
        self._http = http
        self.ended = Level()
        self.allowed = Level()

    async def live(self, n: int) -> None:
        """Call a tool, answer what it asks, or cancel it, and see how it ends."""
        await self.allowed.reach(n + 1)
        tool = "wait" if n % 12 == 5 else ("ask", "report", "once")[n % 3]
        self._ledger.tools[n] = tool
        handle = await self._send(n, "tools/call", {"name": tool, "arguments": {"n": n}})
        task_id: str = handle["taskId"]
        self._ledger.task_ids[n] = task_id
        while True:
            task = await self._send(n, "tasks/get", {"taskId": task_id})
            if task["status"] not in ("working", "input_required"):
                break
            if task["status"] == "input_required":
                keys = task["inputRequests"]
                self._ledger.asked.setdefault(task_id, set()).update(keys)
                answers = {key: accept(number=n) for key in keys}
                await self._send(n, "tasks/update", {"taskId": task_id, "inputResponses": answers})
            elif tool == "wait" and str(task.get("statusMessage")).startswith("at it"):
                await self._send(n, "tasks/cancel", {"taskId": task_id})
            await anyio.sleep(task.get("pollIntervalMs", 250) / 1000)
        self._ledger.ends[task_id] = task
        self.ended.rise(1)

    async def _send(self, n: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request until a server answers it; what concerns the task itself is no reason to send it again."""
        tries = n
        while True:
            url = f"{self._site.servers[tries % 2].said}/mcp"
            tries += 1
            reply = await self._exchange(url, method, params)
            if reply is not None:
                message = reply.message
                if "result" in message and not (method == "tools/call" and "taskId" not in message["result"]):
                    result: dict[str, Any] = message["result"]
                    return result
                text = str(message)
                assert "-32602" not in text, (method, params, text)  # the task is unknown
            self._ledger.calls_again += 1
            await anyio.sleep(0.1)

    async def _exchange(self, url: str, method: str, params: dict[str, Any]) -> Reply | None:
        try:
            with anyio.fail_after(CALL_SECONDS):
                return await RawClient(HTTPExchange(self._http, url)).request(method, params, check=False)
        except (httpx.HTTPError, TimeoutError):
            return None


async def run(
    folder: Path, setup: Setup, *, count: int, faults: int, seed: int = 1, only: Sequence[str] = ()
) -> Ledger:
    """Run so many tasks with so many faults, of these kinds where they are named, in turn; return what happened."""
    async with a_site(folder, setup) as site:
        ledger = Ledger(site.journal)
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(timeout=CALL_SECONDS, limits=limits) as http, anyio.create_task_group() as group:
            clients = Clients(site, ledger, http)
            began = monotonic()
            group.start_soon(_do_faults, site, clients, ledger, count, faults, Random(seed), only)
            numbers = iter(range(count))

            async def live_in_turn() -> None:
                for n in numbers:
                    await clients.live(n)

            for _ in range(CALLS_AT_ONCE):
                group.start_soon(live_in_turn)
            await clients.ended.reach(count)
            ledger.seconds = monotonic() - began
        return ledger


async def _do_faults(
    site: Site, clients: Clients, ledger: Ledger, count: int, faults: int, random: Random, only: Sequence[str]
) -> None:
    kinds = site.faults(random)
    names = list(only) or list(kinds)
    share = count // (faults + 2)
    clients.allowed.rise(share + 2 * share // 3)  # so many tasks live when a fault begins
    for number in range(faults):
        await clients.ended.reach((number + 1) * share)
        name = names[number % len(names)]
        ledger.faults[name] += 1
        await kinds[name]()
        clients.allowed.rise(share)
    clients.allowed.rise(count)
