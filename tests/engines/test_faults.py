"""Each engine under faults: 1,000 tasks and 50 faults in the long profile, some of each always (L2, L5, L9, L12).

`MCP_TASK_RUNTIME_FAULTS=long` makes the run long; with `-o faulthandler_timeout=0`, since a run takes longer than a
test may otherwise.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import anyio
import pytest

from tests.faults.setups import SETUPS, long_run
from tests.faults.site import run

ENGINES = ("docket", "procrastinate", "celery")
PATIENCE = 240.0

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run the clients on one event loop: the processes have their own."""
    return "asyncio"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of an engine that is installed."""
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: python3 tests/run.py --suite engines")
    return name


async def test_tasks_survive_the_faults_of_servers_workers_and_the_broker(engine: str, tmp_path: Path) -> None:
    kinds = ("worker killed", "broker killed", "worker paused beyond its lease", "server killed", "worker terminated")
    with SETUPS[engine](tmp_path) as setup, anyio.fail_after(PATIENCE):
        ledger = await run(tmp_path, setup, count=40, faults=len(kinds), only=kinds)
    ledger.check(40)
    assert ledger.faults == dict.fromkeys(kinds, 1)


@pytest.mark.skipif(os.environ.get("MCP_TASK_RUNTIME_FAULTS") != "long", reason="minutes: MCP_TASK_RUNTIME_FAULTS=long")
async def test_a_thousand_tasks_survive_fifty_faults_with_an_engine(engine: str, tmp_path: Path) -> None:
    with SETUPS[engine](tmp_path) as setup:
        await long_run(engine, tmp_path, setup)
