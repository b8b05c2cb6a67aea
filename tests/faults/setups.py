"""The stores and engines of runs with faults, and what happens to them; and the long run itself.

MCP_TASK_RUNTIME_FAULTS_TASKS, MCP_TASK_RUNTIME_FAULTS_COUNT: how many tasks and faults
MCP_TASK_RUNTIME_FAULTS_REPORT: a file to which a line of figures is appended
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from tests.faults.site import Setup, run

__all__ = ["SETUPS", "long_run"]

LONG_PATIENCE = 3_000.0


async def long_run(name: str, folder: Path, setup: Setup) -> None:
    """Run many tasks with many faults; require what must hold, and report the figures."""
    count = int(os.environ.get("MCP_TASK_RUNTIME_FAULTS_TASKS", "1000"))
    faults = int(os.environ.get("MCP_TASK_RUNTIME_FAULTS_COUNT", "50"))
    with anyio.fail_after(LONG_PATIENCE):
        ledger = await run(folder, setup, count=count, faults=faults)
    _report(json.dumps({"setup": name, **ledger.figures()}))
    ledger.check(count)


def _report(line: str) -> None:
    print(line)
    if path := os.environ.get("MCP_TASK_RUNTIME_FAULTS_REPORT"):
        with open(path, "a") as file:
            file.write(f"{line}\n")


async def _kill_redis(server: Any) -> None:
    await anyio.to_thread.run_sync(server.kill)
    await anyio.sleep(0.5)
    await anyio.to_thread.run_sync(server.start)


async def _pause_redis(server: Any) -> None:
    server.pause()
    try:
        await anyio.sleep(1.0)
    finally:
        server.resume()


def _faults_of_redis(server: Any) -> dict[str, Any]:
    return {"broker killed": partial(_kill_redis, server), "broker paused": partial(_pause_redis, server)}


def _backends(server: Any) -> list[int]:
    rows = server.execute(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return [pid for (pid,) in rows]


async def _crash_postgres(server: Any) -> None:
    """Kill the process of one connection: the server ends all others, and recovers."""
    import psycopg

    for pid in (await anyio.to_thread.run_sync(_backends, server))[:1]:
        os.kill(pid, signal.SIGKILL)
    while True:
        try:
            await anyio.to_thread.run_sync(server.execute, "SELECT 1")
            return
        except psycopg.OperationalError:
            await anyio.sleep(0.1)


async def _pause_postgres(server: Any) -> None:
    pids = await anyio.to_thread.run_sync(_backends, server)
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        if sent is signal.SIGSTOP:
            await anyio.sleep(1.0)


def _faults_of_postgres(server: Any) -> dict[str, Any]:
    return {"broker killed": partial(_crash_postgres, server), "broker paused": partial(_pause_postgres, server)}


def _keep_commits(server: Any) -> None:
    """Have a crash of the server lose nothing that it has acknowledged; other tests do without."""
    server.execute("ALTER SYSTEM SET synchronous_commit = on")
    server.execute("SELECT pg_reload_conf()")


@contextmanager
def _sqlite(folder: Path) -> Iterator[Setup]:
    yield Setup(f"sqlite:///{folder}/tasks.db")


@contextmanager
def _redis(folder: Path) -> Iterator[Setup]:
    from tests.stores import redis_server

    with redis_server.keeping_server() as server:
        yield Setup(server.url, broker_faults=_faults_of_redis(server))


@contextmanager
def _postgres(folder: Path) -> Iterator[Setup]:
    from tests.stores import postgres_server

    with postgres_server.running_server() as server:
        _keep_commits(server)
        yield Setup(server.url, broker_faults=_faults_of_postgres(server))


@contextmanager
def _with_redis(engine: str, folder: Path) -> Iterator[Setup]:
    """An engine on a Redis that loses all when it is killed, with the store on PostgreSQL."""
    from tests.stores import postgres_server, redis_server

    with postgres_server.running_server() as store, redis_server.own_server() as broker:
        yield Setup(store.url, engine, broker.url, broker_faults=_faults_of_redis(broker))


@contextmanager
def _procrastinate(folder: Path) -> Iterator[Setup]:
    """Procrastinate and the store on one PostgreSQL."""
    from tests.engines import reports
    from tests.stores import postgres_server

    with postgres_server.running_server() as server:
        _keep_commits(server)
        dispatcher: Any = reports.make_dispatcher("procrastinate", server.url)

        async def prepare() -> None:
            async with dispatcher:
                await dispatcher.app.schema_manager.apply_schema_async()

        from threading import Thread

        thread = Thread(target=anyio.run, args=[prepare])
        thread.start()
        thread.join()
        yield Setup(server.url, "procrastinate", server.url, broker_faults=_faults_of_postgres(server))


SETUPS: dict[str, Callable[[Path], AbstractContextManager[Setup]]] = {
    "sqlite": _sqlite,
    "redis": _redis,
    "postgres": _postgres,
    "docket": partial(_with_redis, "docket"),
    "celery": partial(_with_redis, "celery"),
    "procrastinate": _procrastinate,
}
