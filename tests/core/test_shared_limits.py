"""The limit of an owner's live tasks where processes share a store: one for all of them (law L16)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace

import anyio
import pytest

from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.types import Outcome, TaskRequest, TaskSpec
from mcp_task_runtime.errors import LimitExceededError
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster
from tests.support.patience import PATIENCE

ADA = TaskSpec(owner="ada", request=TaskRequest(name="tool"))


async def wait(execution: Execution[Outcome]) -> Outcome:
    await anyio.sleep_forever()
    raise AssertionError


async def test_an_owner_has_one_limit_in_all_processes() -> None:
    cluster = Cluster()
    limited = replace(SETTINGS, max_tasks_per_owner=2)
    one, two = cluster.process(limited).runtime, cluster.process(limited).runtime
    with anyio.fail_after(PATIENCE):
        async with one, two:
            made = [await runtime.submit(ADA, wait) for runtime in (one, two)]
            for runtime in (one, two):
                with pytest.raises(LimitExceededError, match=r"Limit reached: tasks at once \(at most 2\)"):
                    await runtime.submit(ADA, wait)
            await one.submit(TaskSpec(owner="bob"), wait)
            await two.cancel(made[0].task_id, owner="ada")
            await two.submit(ADA, wait)
            with pytest.raises(LimitExceededError):
                await one.submit(ADA, wait)


async def test_a_lost_process_leaves_no_count_behind() -> None:
    cluster = Cluster()
    limited = replace(SETTINGS, max_tasks_per_owner=1)
    lost, other = cluster.process(limited), cluster.process(limited)
    with anyio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(lost.runtime)
            await stack.enter_async_context(other.runtime)
            await lost.runtime.submit(ADA, wait)
            await cluster.cut(lost)
            with pytest.raises(LimitExceededError):
                await other.runtime.submit(ADA, wait)
            await cluster.pass_time(3 * LEASE_SECONDS)  # its task is not rerunnable: it has failed
            assert await cluster.store.count_live_tasks("ada") == 0
            await other.runtime.submit(ADA, wait)
            lost.link.is_cut = False
