"""Servers on `mcp` 2.x whose store cannot be reached, and requests while it is unavailable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from mcp.server import MCPServer
from mcp_types import INTERNAL_ERROR

from mcp_task_runtime import InMemoryTaskStore, StoreError, StoreUnavailableError
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.views import TaskView
from tests.mcp_v2.in_process import memory_client
from tests.support.unreachable_store import check_errors, errors_of_start


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
def test_a_server_whose_store_cannot_be_reached_fails_at_its_start(transport: str, tmp_path: Path) -> None:
    away = f"{tmp_path}/missing/tasks.db"
    errors = errors_of_start(tmp_path, transport, f"sqlite:///{away}")
    check_errors(errors, away, "secret")


@pytest.mark.skipif("not __import__('importlib').util.find_spec('coredis')", reason="coredis is not installed")
def test_the_address_of_a_server_is_named_and_no_password(tmp_path: Path) -> None:
    errors = errors_of_start(tmp_path, "streamable-http", "redis://:secret@127.0.0.1:1/0")
    check_errors(errors, "127.0.0.1:1", "secret")


class _Away(InMemoryTaskStore):
    """A store that can be away."""

    error: StoreError | None = None

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        if self.error is not None:
            raise self.error
        return await super().get_owned(task_id, owner=owner)


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), StoreError("damaged")])
async def test_requests_in_an_outage_add_nothing_to_the_log(
    error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    """The store logs it once. What is no outage is logged each time, in full."""
    caplog.set_level(logging.INFO)
    store, server = _Away(), MCPServer("away")
    Tasks(store).install(server)
    async with memory_client(server) as client:
        store.error = error
        for _ in range(5):
            assert (await client.request("tasks/get", {"taskId": "x"})).error["code"] == INTERNAL_ERROR
        store.error = None
    said = [record for record in caplog.records if record.name.startswith("mcp_task_runtime")]
    assert len(said) == (0 if isinstance(error, StoreUnavailableError) else 5)
