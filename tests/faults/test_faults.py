"""Plain workers under faults: 1,000 tasks and 50 faults in the long profile, some of each always (L2, L5, L9, L12).

`MCP_TASK_RUNTIME_FAULTS=long` makes the run long, on each store; with `-o faulthandler_timeout=0`, since a run takes
longer than a test may otherwise.
"""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from mcp_task_runtime import open_store
from tests.faults.setups import SETUPS, long_run
from tests.faults.site import Setup, patient, run

pytestmark = pytest.mark.anyio

PATIENCE = 240.0


@pytest.fixture
def anyio_backend() -> str:
    """Run the clients on one event loop: the processes have their own."""
    return "asyncio"


async def test_tasks_survive_the_faults_of_servers_and_workers(tmp_path: Path) -> None:
    setup = Setup(f"sqlite:///{tmp_path}/tasks.db", lease_ms=2_500)
    kinds = ("worker killed", "server paused", "worker paused beyond its lease", "server killed")
    with anyio.fail_after(PATIENCE):
        ledger = await run(tmp_path, setup, count=40, faults=len(kinds), only=kinds)
    ledger.check(40)
    assert ledger.faults == dict.fromkeys(kinds, 1)


@pytest.mark.parametrize(
    "url",
    ["sqlite:///tasks.db", "redis://localhost/0?prefix=a", "postgresql://localhost/a?host=/run", "redis://localhost"],
)
def test_a_store_waits_for_longer_than_a_process_is_paused_that_has_it_locked(url: str) -> None:
    """Work that may not run again fails where its store is away for longer than it waits."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pytest.importorskip("coredis", reason="coredis is not installed")
    assert patient(url).startswith(f"{url}&timeout=" if "?" in url else f"{url}?timeout=")
    open_store(patient(url))


@pytest.mark.skipif(os.environ.get("MCP_TASK_RUNTIME_FAULTS") != "long", reason="minutes: MCP_TASK_RUNTIME_FAULTS=long")
@pytest.mark.parametrize("name", ["sqlite", "redis", "postgres"])
async def test_a_thousand_tasks_survive_fifty_faults(name: str, tmp_path: Path) -> None:
    with SETUPS[name](tmp_path) as setup:
        await long_run(name, tmp_path, setup)
