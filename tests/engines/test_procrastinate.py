"""`ProcrastinateDispatcher`: jobs share transactions, none waits for the engine's poll, a database may be away."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

if importlib.util.find_spec("procrastinate") is None:
    pytest.skip("procrastinate is not installed: python3 tests/run.py --suite engines", allow_module_level=True)

from procrastinate.exceptions import ConnectorException
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool

from mcp_task_runtime import Dispatch
from mcp_task_runtime.engines import procrastinate
from mcp_task_runtime.engines.procrastinate import ProcrastinateDispatcher
from tests.stores import postgres_server
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run on the event loop that the engine runs on."""
    return "asyncio"


def test_a_worker_that_is_terminated_while_it_connects_ends(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        environment = {
            **os.environ,
            "REPORTS_FOLDER": str(tmp_path),
            "REPORTS_ENGINE": "procrastinate",
            "REPORTS_BROKER": f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres",
        }
        command = [sys.executable, "-m", "mcp_task_runtime", "worker", "tests.engines.reports:tasks"]
        with subprocess.Popen(command, env=environment) as worker:
            try:
                with silent.accept()[0]:
                    worker.send_signal(signal.SIGTERM)
                    assert worker.wait(PATIENCE) == 0
            finally:
                worker.kill()


PROGRAM = """
import asyncio
from mcp_task_runtime import Dispatch
from mcp_task_runtime.engines.procrastinate import ProcrastinateDispatcher

async def main():
    connected = asyncio.Event()
    server = await asyncio.start_server(lambda *_: connected.set(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    opening = asyncio.create_task(ProcrastinateDispatcher(f"postgresql://127.0.0.1:{port}/x").__aenter__())
    await connected.wait()
    opening.cancel()
    await asyncio.wait([opening])
    print(opening.cancelled())

asyncio.run(main())
"""


def test_a_program_that_is_cancelled_while_it_connects_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout == "True\n"


class Pool(AsyncConnectionPool[Any]):
    """Waits for its connections as long as the test says."""

    patience = PATIENCE

    async def open(self, wait: bool = False, *_: Any) -> None:
        await super().open(wait, self.patience)


async def test_it_connects_when_the_database_is_back_that_was_down_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres_server.running_server() as postgres, postgres_server.running_proxy(postgres.url) as proxy:
        dispatcher = ProcrastinateDispatcher(proxy.url, pool_factory=Pool)
        proxy.close()
        monkeypatch.setattr(Pool, "patience", 0.1)
        with pytest.raises(ConnectorException):
            await dispatcher.__aenter__()
        monkeypatch.undo()
        proxy.open()
        async with dispatcher:
            rows = await dispatcher.app.connector.execute_query_all_async("SELECT 1 AS one")
        assert rows == [{"one": 1}]


class HeldPool(AsyncConnectionPool[Any]):
    """Holds what the worker has read, or fails in a task of the event loop, where the test says so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.holds = False
        self.held, self.goes_on = asyncio.Semaphore(0), asyncio.Semaphore(0)
        self.fails_in = ""
        self.failed = asyncio.Queue[str]()

    @asynccontextmanager
    async def connection(self, *args: Any) -> AsyncIterator[Any]:
        task = asyncio.current_task()
        name = "" if task is None else task.get_name()  # as the engine names it
        if name and name == self.fails_in:
            self.failed.put_nowait(name)
            raise psycopg.OperationalError
        async with super().connection(*args) as connection:
            yield connection
            if self.holds and name == "worker loop":
                self.held.release()
                await self.goes_on.acquire()


class Work:
    """What workers run: it ends when the worker winds down."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self._winds_down = asyncio.Event()
        self._news = asyncio.Condition()

    async def execute(self, task_id: str) -> bool:
        async with self._news:
            self.begun[task_id] += 1
            self._news.notify_all()
        await self.wait_down()
        return True

    async def wind_down(self) -> None:
        self._winds_down.set()

    async def wait_down(self) -> None:
        await self._winds_down.wait()

    async def until_begun(self, count: int) -> None:
        async with self._news:
            await self._news.wait_for(lambda: self.begun.total() == count)


class Site:
    """Two dispatchers of one database: that of a server, and that of a worker in the same process."""

    def __init__(self, postgres: postgres_server.PostgresServer, schema: str) -> None:
        self._postgres = postgres
        self._schema = schema
        url = make_conninfo(postgres.url, options=f"-c search_path={schema}")
        self.server = ProcrastinateDispatcher(url)
        self.worker = ProcrastinateDispatcher(url, pool_factory=HeldPool)
        self.worker.app.worker_defaults["fetch_job_polling_interval"] = 100 * PATIENCE
        self.worker.app.worker_defaults["update_heartbeat_interval"] = 100 * PATIENCE

    @property
    def pool(self) -> Any:
        return self.worker.app.connector.pool

    async def submit(self, *names: str) -> None:
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(self.server.submit, Dispatch(name, "tool", 1, None))

    @asynccontextmanager
    async def working(self, work: Work, concurrency: int) -> AsyncIterator[None]:
        task = asyncio.create_task(self.worker.work(work, concurrency=concurrency, names=None))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()

    def jobs(self) -> Counter[str]:
        """Return how many jobs there are, by status."""
        return Counter(status for (status,) in self.read("SELECT status::text FROM {}.procrastinate_jobs"))

    def read(self, query: str) -> list[tuple[Any, ...]]:
        return self._postgres.execute(query.replace("{}", f'"{self._schema}"'))


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with postgres_server.running_server() as postgres, postgres.fresh_schema() as schema:
        postgres.execute(f'CREATE SCHEMA "{schema}"')
        site = Site(postgres, schema)
        with anyio.fail_after(PATIENCE):
            async with site.server, site.worker:
                await site.server.app.schema_manager.apply_schema_async()
                yield site


NOTHING = '{"type": "job_inserted", "job_id": 0}'


def names(count: int) -> list[str]:
    return [f"task-{number}" for number in range(count)]


async def test_jobs_that_come_together_share_transactions(site: Site) -> None:
    await site.submit(*names(10))
    ((transactions,),) = site.read("SELECT count(DISTINCT xmin::text) FROM {}.procrastinate_jobs")
    assert transactions <= 2
    work = Work()
    async with site.working(work, 20):
        await work.until_begun(10)
        ((transactions,),) = site.read("SELECT count(DISTINCT xmin::text) FROM {}.procrastinate_jobs")
        assert transactions == 4  # of one, two, four, and what was left
        assert site.jobs() == {"doing": 10}
    assert work.begun == dict.fromkeys(names(10), 1)
    assert site.jobs() == {"succeeded": 10}


async def test_a_job_that_waits_already_keeps_no_other_one_from_the_queue(site: Site) -> None:
    await site.submit("task-2")
    await site.submit(*names(4), "task-1")
    rows = site.read("SELECT queueing_lock FROM {}.procrastinate_jobs")
    assert sorted(rows) == [(f"{name}.1",) for name in names(4)]


async def test_a_worker_fetches_no_more_than_it_runs(site: Site) -> None:
    await site.submit(*names(9))
    work = Work()
    async with site.working(work, 3):
        await work.until_begun(3)
        assert site.jobs() == {"doing": 3, "todo": 6}
    assert site.jobs() == {"succeeded": 3, "todo": 6}


async def test_a_job_that_comes_while_a_worker_looks_in_vain_begins_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: asyncio.Queue[int] = asyncio.Queue()
    listen_for_jobs = site.worker.app.job_manager.listen_for_jobs

    async def listen(*, on_notification: Any, queues: Any) -> None:
        async def hear(*, channel: str, notification: Any) -> None:
            await on_notification(channel=channel, notification=notification)
            heard.put_nowait(notification["job_id"])

        await listen_for_jobs(on_notification=hear, queues=queues)

    monkeypatch.setattr(site.worker.app.job_manager, "listen_for_jobs", listen)
    work = Work()
    site.pool.holds = True
    async with site.working(work, 3):
        await site.pool.held.acquire()  # it has found nothing
        first = asyncio.create_task(heard.get())
        while not first.done():  # it may not listen yet
            site.read(f"SELECT pg_notify('procrastinate_queue_v1#mcp-tasks', '{NOTHING}')")
            await asyncio.wait([first], timeout=0.05)
        await site.submit("task-0")
        ((number,),) = site.read("SELECT id FROM {}.procrastinate_jobs")
        while await heard.get() != number:
            pass
        site.pool.holds = False
        site.pool.goes_on.release()
        await work.until_begun(1)


async def test_a_job_that_comes_before_a_worker_listens_begins_as_soon_as_it_does(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    connector = site.worker.app.connector
    listen_notify = connector.listen_notify

    async def listen(**options: Any) -> None:
        await gate.wait()
        await listen_notify(**options)

    monkeypatch.setattr(connector, "listen_notify", listen)
    work = Work()
    site.pool.holds = True
    async with site.working(work, 3):
        await site.pool.held.acquire()  # it has found nothing
        await site.submit("task-0")
        site.pool.holds = False
        site.pool.goes_on.release()
        for _ in range(100):  # turns of the event loop
            await asyncio.sleep(0)
        assert not work.begun
        gate.set()
        await work.until_begun(1)


async def test_what_a_worker_has_fetched_and_not_begun_when_it_stops_waits_for_the_next_one(site: Site) -> None:
    await site.submit(*names(8))
    work = Work()
    site.pool.holds = True
    async with site.working(work, 8):
        for _ in range(2):
            await site.pool.held.acquire()
            site.pool.goes_on.release()
        await site.pool.held.acquire()  # it has fetched four more
        assert site.jobs() == {"doing": 7, "todo": 1}
        pool = site.pool

        async def go_on() -> None:
            await work.wait_down()
            for _ in range(20):  # turns of the event loop: the worker has heard of the stop
                await asyncio.sleep(0)
            pool.holds = False
            pool.goes_on.release()

        going_on = asyncio.create_task(go_on())
    await going_on
    assert work.begun.total() == 4
    assert site.jobs() == {"succeeded": 4, "todo": 4}
    async with site.working(work, 8):
        await work.until_begun(8)
    assert work.begun == dict.fromkeys(names(8), 1)


async def test_what_to_run_is_said_once_where_the_tables_are_missing(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.read("DROP SCHEMA {} CASCADE")
    site.read("CREATE SCHEMA {}")
    monkeypatch.setattr(procrastinate, "_RETRY_SECONDS", 0.0)
    site.worker.app.worker_defaults["fetch_job_polling_interval"] = 0.05  # a job may come before it listens
    starts = asyncio.Semaphore(0)
    run_worker = site.worker.app.run_worker_async

    async def run(**options: Any) -> None:
        starts.release()
        await run_worker(**options)

    monkeypatch.setattr(site.worker.app, "run_worker_async", run)
    with pytest.raises(ConnectorException, match=r"run 'procrastinate schema --apply'") as raised:
        await site.server.submit(Dispatch("task-0", "tool", 1, None))
    assert raised.value.__suppress_context__
    work = Work()
    async with site.working(work, 1):
        for _ in range(3):
            await starts.acquire()
        (record,) = [each for each in caplog.records if each.name == procrastinate.__name__]
        assert "run 'procrastinate schema --apply'" in record.getMessage()
        assert record.exc_info is None
        await site.server.app.schema_manager.apply_schema_async()
        await site.submit("task-0")
        await work.until_begun(1)


async def test_a_worker_that_cannot_listen_for_a_while_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failed = asyncio.Event()

        async def fail(**_: Any) -> None:
            patch.undo()
            failed.set()
            raise ConnectorException

        patch.setattr(site.worker.app.job_manager, "listen_for_jobs", fail)
        work = Work()
        async with site.working(work, 2):
            await failed.wait()
            await site.submit("task-0")
            await work.until_begun(1)


@pytest.mark.parametrize("where", ["worker loop", "update_heartbeats", "listener"])
async def test_a_worker_that_loses_its_database_goes_on_beside_the_tasks_that_it_runs(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """L12, L13: one of them may wait for days, and the engine's worker would not start again before."""
    site.worker.app.worker_defaults.update(fetch_job_polling_interval=0.05, update_heartbeat_interval=0.05)
    is_lost = asyncio.Event()

    async def listen(**_: Any) -> None:
        await is_lost.wait()
        site.pool.failed.put_nowait("listener")
        raise ConnectorException

    monkeypatch.setattr(site.worker.app.connector, "listen_notify", listen)
    work = Work()
    async with site.working(work, 4):
        await site.submit("task-0")
        await work.until_begun(1)
        if where == "listener":
            is_lost.set()
        else:
            site.pool.fails_in = where
        for _ in range(2):
            assert await site.pool.failed.get() == where
        site.pool.fails_in = ""
        await site.submit("task-1")
        await work.until_begun(2)
    assert site.jobs() == {"succeeded": 2}


async def test_a_worker_that_others_took_for_lost_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """L12: its database was away for longer than a heartbeat may be."""
    site.worker.app.worker_defaults["fetch_job_polling_interval"] = 0.05
    monkeypatch.setattr(procrastinate, "_PRUNE_SECONDS", 0.01)
    get_stalled_jobs = site.worker.app.job_manager.get_stalled_jobs
    looks = 0

    async def look(**options: Any) -> Any:
        nonlocal looks
        looks += 1
        return await get_stalled_jobs(**options)

    monkeypatch.setattr(site.worker.app.job_manager, "get_stalled_jobs", look)
    work = Work()
    async with site.working(work, 4):
        await site.submit("task-0")
        await work.until_begun(1)
        site.read("DELETE FROM {}.procrastinate_workers")
        before = looks
        while looks < before + 3:  # noqa: ASYNC110 - one of them has begun after that, and ended
            await asyncio.sleep(0.01)
        assert site.jobs() == {"doing": 1}
        await site.submit("task-1")
        await work.until_begun(2)
    assert site.jobs() == {"succeeded": 2}
    assert site.read("SELECT id FROM {}.procrastinate_workers") == []
