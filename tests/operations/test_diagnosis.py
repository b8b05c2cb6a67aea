"""What `TaskInspector.diagnose` says of leases."""

from __future__ import annotations

import pytest

from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.operations.inspect import TaskInspector
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from mcp_task_runtime.testing.clock import FakeClock

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_lost_first", [False, True])
@pytest.mark.parametrize(
    ("lost", "waiting", "said"),
    [
        (0, 0, [("leases", "ok", "no worker is lost")]),
        (1, 0, [("leases", "warning", "1 task of")]),
        (2, 250, [("leases", "warning", "2 tasks of"), ("waiting work", "warning", "at least 200 tasks wait")]),
        (250, 2, [("leases", "warning", "at least 200 tasks of"), ("waiting work", "warning", "2 tasks wait")]),
    ],
)
async def test_lost_workers_and_waiting_tasks_are_reported_whichever_have_waited_longer(
    lost: int, waiting: int, said: list[tuple[str, str, str]], is_lost_first: bool
) -> None:
    clock = FakeClock()
    async with InMemoryTaskStore(clock=clock) as store:
        for worker, number in sorted([("", waiting), ("lost", lost)], reverse=is_lost_first):
            for _ in range(number):
                await store.create_task(NewTask(ttl_ms=None, worker=worker, lease_ms=0))
            clock.advance(1)
        findings = await TaskInspector(store).diagnose()
        found = {finding.subject: finding for finding in findings}
        assert [(name, found[name].level) for name in found if name in ("leases", "waiting work")] == [
            (name, level) for name, level, _ in said
        ]
        for name, _, text in said:
            assert found[name].text.startswith(text)
