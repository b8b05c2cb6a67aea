"""Each engine under faults: 1,000 tasks and 50 faults with `MCP_TASK_RUNTIME_FAULTS=long` (L2, L5, L9, L12).

A run takes longer than a test may otherwise: `-o faulthandler_timeout=0`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.faults.setups import SETUPS, long_run

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run the clients on one event loop: the processes have their own."""
    return "asyncio"


@pytest.mark.skipif(os.environ.get("MCP_TASK_RUNTIME_FAULTS") != "long", reason="minutes: MCP_TASK_RUNTIME_FAULTS=long")
@pytest.mark.parametrize("engine", ["docket", "procrastinate", "celery"])
async def test_a_thousand_tasks_survive_fifty_faults_with_an_engine(engine: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed: python3 tests/run.py --suite engines")
    with SETUPS[engine](tmp_path) as setup:
        await long_run(engine, tmp_path, setup)
