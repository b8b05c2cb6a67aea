"""How long clients are asked to wait between polls."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mcp_task_runtime import InMemoryTaskStore, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.execution import Execution
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.testing import FakeClock

pytestmark = pytest.mark.anyio


async def told(age_ms: int, *, of_tool: int | None = None, ends: bool = False, **settings: Any) -> tuple[int, int, int]:
    """Return what the handle of a task says, what a poll is told at an age, and what the server itself reads then."""
    clock = FakeClock()
    runtime = TaskRuntime(InMemoryTaskStore(clock=clock), settings=TaskSettings(shutdown_grace=0, **settings))

    async def work(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
        execution.detach()
        return {}

    async with runtime:
        made: TaskRecord = await runtime.submit(TaskSpec(poll_interval_ms=of_tool), work)
        clock.advance(timedelta(milliseconds=age_ms))
        if ends:
            await runtime.finish(made.task_id, Outcome.cancelled())
        polled = await runtime.get(made.task_id, owner=None, rate_limited=True)
        read = await runtime.get(made.task_id, owner=None)
        return made.task.poll_interval_ms, polled.task.poll_interval_ms, read.task.poll_interval_ms


@pytest.mark.parametrize(
    ("age_ms", "interval"),
    [
        (0, 20),
        (199, 20),
        (210, 21),
        (1_000, 100),
        (5_000, 500),
        (49_999, 500),
        (60_000, 600),
        (500_000, 5_000),
        (3_600_000, 5_000),
    ],
)
async def test_a_poll_is_told_by_the_age_of_the_task(age_ms: int, interval: int) -> None:
    assert await told(age_ms) == (500, interval, 500)


async def test_what_the_tool_or_the_settings_say_holds_at_any_age() -> None:
    assert await told(60_000, of_tool=2_000) == (2_000, 2_000, 2_000)
    assert await told(60_000, poll_interval_ms=250) == (250, 250, 250)
    assert await told(0, poll_interval_ms=500) == (500, 500, 500)


async def test_nobody_is_asked_to_poll_more_often_than_it_may() -> None:
    assert (await told(0, max_polls_per_second=3))[1] == 334


async def test_an_ended_task_is_shown_as_it_is() -> None:
    assert await told(60_000, ends=True) == (500, 500, 500)
