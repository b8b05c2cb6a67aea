"""`mcp-tasks worker` as processes on SQLite: one is killed, one is paused, one is stopped (L5, L12)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import StoreUnavailableError, TaskStore, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.operations.worker import load_worker
from tests.mcp_v2.listeners import memory_connection
from tests.mcp_v2.raw_client import RawClient, accept
from tests.mcp_v2.worker_server import make

pytestmark = pytest.mark.anyio

PATIENCE = 120.0
EACH = 8

FAULTY_LIFESPAN = """
from contextlib import asynccontextmanager

from mcp.server import MCPServer

from mcp_task_runtime import StoreDispatcher, open_store
from mcp_task_runtime.adapters.mcp_v2 import Tasks


@asynccontextmanager
async def lifespan(server):
    raise RuntimeError("no setting")
    yield


mcp = MCPServer("faulty", lifespan=lifespan)
tasks = Tasks(open_store("sqlite:///tasks.db"), dispatcher=StoreDispatcher())
tasks.install(mcp)


@tasks.tool()
async def work() -> str:
    return "done"
"""


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: the workers run on both."""
    return "asyncio"


@dataclass
class Worker:
    """A worker process."""

    process: anyio.abc.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    async def until_working(self) -> None:
        """Wait until it says that it works."""
        assert self.process.stderr is not None
        said = ""
        while "Working for" not in said:
            said += (await self.process.stderr.receive()).decode()


@dataclass
class Site:
    """A server in this process, its client, and workers in others."""

    folder: Path
    tasks: Tasks
    client: RawClient

    @asynccontextmanager
    async def worker(self, *options: str) -> AsyncIterator[Worker]:
        command = [sys.executable, "-m", "mcp_task_runtime", "worker", "tests.mcp_v2.worker_server:tasks", *options]
        environment = {**os.environ, "WORKER_SERVER_FOLDER": str(self.folder)}
        async with await anyio.open_process(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                worker = Worker(process)
                await worker.until_working()
                yield worker
            finally:
                if process.returncode is None:
                    process.kill()

    def runs(self) -> list[tuple[str, int, int]]:
        """Return tool, number and process of each run."""
        path = self.folder / "runs"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(tool, int(n), int(pid)) for tool, n, pid in map(str.split, lines)]

    async def until_runs(self, *wanted: tuple[str, int], times: int = 1, by: Worker | None = None) -> None:
        """Wait until these were begun so often, by a worker or by any."""
        while True:
            counts = Counter((tool, n) for tool, n, pid in self.runs() if by is None or pid == by.pid)
            if all(counts[each] >= times for each in wanted):
                return
            await anyio.sleep(0.05)

    async def until_running(self, count: int) -> None:
        """Wait until so many runs have begun."""
        while len(self.runs()) < count:  # noqa: ASYNC110 - of other processes
            await anyio.sleep(0.05)


@asynccontextmanager
async def a_site(folder: Path) -> AsyncIterator[Site]:
    mcp, tasks = make(folder)
    with anyio.fail_after(PATIENCE):
        async with tasks.runtime.store, tasks, memory_connection(mcp) as connection:  # type: ignore[attr-defined]
            yield Site(folder, tasks, connection.client)


async def pause(worker: Worker, store: TaskStore) -> None:
    """Stop a worker, at a moment when it does not hold the lock of the file."""
    probe: Any = store
    while True:
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            await probe.renew_leases("nobody", ["nothing"], lease_ms=1)
            return
        except StoreUnavailableError:
            os.kill(worker.pid, signal.SIGCONT)


async def test_no_task_is_lost_when_a_worker_is_killed_and_another_one_paused(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        client = site.client
        async with site.worker("--concurrency", "12") as killed, site.worker("--loop", "trio") as paused:
            started = {}
            for n in range(EACH):
                for tool in ("ask", "wait", "once"):
                    started[tool, n] = await client.start(tool, {"n": n})
            await site.until_running(12 + 8)  # all that they may: what is claimed has begun
            killed.process.kill()
            lost_with = {(tool, n) for tool, n, pid in site.runs() if pid == killed.pid}
            async with site.worker("--concurrency", "100") as other:
                await site.until_runs(*(each for each in lost_with if each[0] != "once"), times=2)
                await pause(paused, site.tasks.runtime.store)
                held = {(tool, n) for tool, n, pid in site.runs() if pid == paused.pid}
                await site.until_runs(*(each for each in held if each[0] != "once"), by=other)
                (tmp_path / "gate").touch()
                ended = await end_all(client, started)
                os.kill(paused.pid, signal.SIGCONT)
                for worker in (paused, other):
                    worker.process.terminate()
                    assert await worker.process.wait() == 0
            assert await end_all(client, started) == ended, "a task that had ended has changed"
        check(ended, Counter((tool, n) for tool, n, _ in site.runs()), lost_with | held)


async def end_all(client: RawClient, started: dict[tuple[str, int], str]) -> dict[tuple[str, int], Any]:
    """Answer what is asked until all tasks have ended; return how."""
    ended = {}
    for (tool, n), task_id in started.items():
        if tool == "ask" and (await client.until(task_id, "input_required", "completed"))["status"] != "completed":
            (key,) = await client.asked(task_id)
            await client.update(task_id, {key: accept(name=f"Ada {n}")})
        task = await client.until(task_id, "completed", "failed")
        ended[tool, n] = (task["status"], task.get("result", {}).get("structuredContent"))
    return ended


def check(ended: dict[tuple[str, int], Any], runs: Counter[tuple[str, int]], lost: set[tuple[str, int]]) -> None:
    for (tool, n), (status, result) in ended.items():
        if tool == "once":
            assert runs[tool, n] <= 1
            assert status == "completed" or (tool, n) in lost or runs[tool, n] == 1
        else:
            assert (status, result) == ("completed", {"result": f"Ada {n}" if tool == "ask" else n})


async def test_a_worker_that_is_terminated_gives_its_work_to_another_one_at_once(tmp_path: Path) -> None:
    async with a_site(tmp_path) as site:
        async with site.worker("--tools", "wait") as first:
            task_id = await site.client.start("wait", {"n": 1})
            ignored = await site.client.start("once", {"n": 1})
            await site.until_runs(("wait", 1))
            first.process.terminate()
            assert await first.process.wait() == 0
        record = await site.tasks.runtime.store.get_task(task_id)
        assert record is not None
        assert record.lease is not None
        assert (record.lease.worker, record.lease.attempt) == ("", 1)
        async with site.worker():
            await site.until_runs(("wait", 1), times=2)
            await site.until_runs(("once", 1))
            (tmp_path / "gate").touch()
            for each in (task_id, ignored):
                assert (await site.client.until(each, "completed", "failed"))["status"] == "completed"


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("tool", ["block", "hold"])
async def test_a_worker_that_is_terminated_ends_although_its_work_blocks_a_thread(
    tool: str, loop: str, tmp_path: Path
) -> None:
    async with a_site(tmp_path) as site:
        async with site.worker("--loop", loop) as worker:
            task_id = await site.client.start(tool, {"n": 1})
            await site.until_runs((tool, 1))
            worker.process.terminate()
            assert await worker.process.wait() == 0
        async with site.worker() as other:
            await site.until_runs((tool, 1), by=other)
            other.process.terminate()
            other.process.kill()
        assert (await site.client.get(task_id))["status"] == "working"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.mcp_v2.worker_server", "package.module:tasks"),
        ("tests.mcp_v2.no_server:tasks", "there is no module 'tests.mcp_v2.no_server'"),
        ("tests.mcp_v2.worker_server:nothing", "has no 'nothing'"),
        ("tests.mcp_v2.worker_server:mcp", "is no Tasks object"),
        ("./worker_server:tasks", "there is no module './worker_server'"),
        ("..worker_server:tasks", "there is no module '..worker_server'"),
        ("worker_server.py/:tasks", "there is no module 'worker_server.py/'"),
        ("tests..mcp_v2:tasks", "there is no module 'tests..mcp_v2'"),
    ],
)
def test_a_path_that_names_no_tasks_is_refused_with_what_to_write(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_worker(path)


@pytest.mark.parametrize(
    ("options", "hidden", "message"),
    [
        (["--tools", "no"], "", "No work is registered for no"),
        (["--tools", ""], "", "--tools names no tool"),
        (["--tools", " , "], "", "--tools names no tool"),
        (["--concurrency", "0"], "", "0 is not in the range"),
        (["--loop", "trio"], "trio", "--loop trio needs: pip install 'anyio[trio]'"),
    ],
)
async def test_wrong_usage_is_one_line(options: list[str], hidden: str, message: str, tmp_path: Path) -> None:
    hide = "import runpy, sys; sys.modules[sys.argv.pop(1)] = None"
    program = f"{hide}; runpy.run_module('mcp_task_runtime', run_name='__main__')"
    command = [sys.executable, "-c", program, hidden, "worker", "tests.mcp_v2.worker_server:tasks", *options]
    environment = {**os.environ, "WORKER_SERVER_FOLDER": str(tmp_path)}
    done = await anyio.run_process(command, env=environment, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()


async def test_a_worker_of_tasks_without_a_dispatcher_says_that_it_gets_little(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mcp: MCPServer[Any] = MCPServer("alone")
    tasks = Tasks(open_store(f"sqlite:///{tmp_path}/tasks.db"))
    tasks.install(mcp)
    with pytest.raises(LookupError, match="No work is registered for any tool"):
        await tasks.work()
    assert "These Tasks have no dispatcher" in caplog.text


@pytest.mark.parametrize("fault", ['raise ValueError("no setting")', FAULTY_LIFESPAN], ids=["import", "lifespan"])
async def test_an_error_of_the_server_itself_shows_its_traceback(tmp_path: Path, fault: str) -> None:
    (tmp_path / "faulty.py").write_text(fault)
    command = [sys.executable, "-m", "mcp_task_runtime", "worker", "faulty:tasks"]
    done = await anyio.run_process(command, cwd=tmp_path, check=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    said = done.stderr.decode()
    assert "faulty.py" in said
    assert said.rstrip().endswith("Error: no setting")


async def test_without_its_extra_the_command_says_what_it_needs() -> None:
    hide_click = "import runpy, sys; sys.modules['click'] = None"
    program = f"{hide_click}; runpy.run_module('mcp_task_runtime', run_name='__main__')"
    done = await anyio.run_process([sys.executable, "-c", program], check=False, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode().strip() == "Error: The command mcp-tasks needs: pip install 'mcp-task-runtime[cli]'"
