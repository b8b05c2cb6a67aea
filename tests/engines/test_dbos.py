"""The recipe for DBOS in the docstring of `mcp_task_runtime.engines`, with DBOS itself on SQLite."""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

import mcp_task_runtime.engines
from mcp_task_runtime import Dispatch
from tests.engines import reports
from tests.mcp_v2.listeners import memory_connection
from tests.mcp_v2.raw_client import accept
from tests.support.patience import PATIENCE

if importlib.util.find_spec("dbos") is None:
    pytest.skip("dbos is not installed: python3 tests/run.py --suite engines", allow_module_level=True)

from dbos import DBOS, DBOSClient

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Run on the event loop that DBOS runs on."""
    return "asyncio"


def recipe() -> str:
    """Return the code of the recipe."""
    text = mcp_task_runtime.engines.__doc__ or ""
    begin = text.index("    class DBOSDispatcher")
    return textwrap.dedent(text[begin : text.index("Its worker calls")])


async def test_the_recipe_runs_tasks_in_a_worker_of_dbos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "FOLDER", tmp_path)
    url = f"sqlite:///{tmp_path}/dbos.sqlite"
    names: dict[str, Any] = {"DBOS": DBOS, "DBOSClient": DBOSClient, "Dispatch": Dispatch}
    DBOS(config={"name": "reports", "system_database_url": url, "run_admin_server": False})
    try:
        exec(compile(recipe(), "recipe", "exec", dont_inherit=True), names)
        mcp, tasks = reports.make(tmp_path, names["DBOSDispatcher"](url))
        _, worker_tasks = reports.make(tmp_path, names["DBOSDispatcher"](url))
        names["tasks"] = worker_tasks
        with anyio.fail_after(PATIENCE):
            async with worker_tasks.worker():
                DBOS.launch()
                await DBOS.register_queue_async("mcp-tasks", polling_interval_sec=0.05)
                async with tasks, memory_connection(mcp) as connection:
                    client = connection.client
                    task_id = await client.start("ask", {"n": 1})
                    (key,) = await client.asked(task_id)
                    assert worker_tasks.runtime.statistics().running == {task_id}
                    assert tasks.runtime.statistics().running == frozenset()
                    await client.update(task_id, {key: accept(name="Ada")})
                    task = await client.until(task_id, "completed", "failed")
                    assert task["result"]["structuredContent"] == {"result": "Ada"}
                    cancelled = await client.start("ask", {"n": 2})
                    await client.asked(cancelled)
                    await client.cancel(cancelled)
                    while worker_tasks.runtime.statistics().running:  # noqa: ASYNC110 - of a worker
                        await anyio.sleep(0.01)
                    assert (await client.get(cancelled))["status"] == "cancelled"
                await worker_tasks.wind_down()
        for each in (tasks, worker_tasks):
            store: Any = each.runtime.store
            await store.aclose()
    finally:
        DBOS.destroy()
    assert (tmp_path / "runs").read_text().count("ask") == 2
