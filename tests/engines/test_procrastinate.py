"""`ProcrastinateDispatcher` where its database does not answer when it connects."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("procrastinate") is None:
    pytest.skip("procrastinate is not installed: python3 tests/run.py --suite engines", allow_module_level=True)

from procrastinate.exceptions import ConnectorException
from psycopg_pool import AsyncConnectionPool

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

    async def open(self, wait: bool = False, timeout: float = 0) -> None:
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
