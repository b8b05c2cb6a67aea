"""The context of a call whose client takes no task: made when it is needed, and over with the call."""

from __future__ import annotations

import threading

import anyio
import pytest

from mcp_task_runtime import ServerTaskContext
from mcp_task_runtime.adapters._tool_calls import run_within_request
from mcp_task_runtime.adapters.session import DetachedSession, TaskSession
from mcp_task_runtime.errors import CapabilityError, StoreClosedError

pytestmark = pytest.mark.anyio


class Connections:
    """Counts the connections that are asked for."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> TaskSession:
        self.made += 1
        return DetachedSession()


async def test_work_that_leaves_its_context_alone_makes_nothing() -> None:
    connect = Connections()

    async def work(context: ServerTaskContext) -> str:
        return "done"

    assert await run_within_request(work, connect, undeliverable="no way") == "done"
    assert connect.made == 0


async def test_the_task_is_made_once_and_stays_the_same() -> None:
    connect = Connections()

    async def work(context: ServerTaskContext) -> None:
        first = context.task_id
        await context.update_status("Reading")
        assert (context.task_id, context.task.status_message, context.is_cancelled) == (first, "Reading", False)
        with pytest.raises(CapabilityError, match="no way"):
            await context.elicit("Sure?", {"type": "object", "properties": {}})

    await run_within_request(work, connect, undeliverable="no way")
    assert connect.made == 1


async def test_threads_that_use_a_context_first_share_its_task() -> None:
    connect = Connections()
    barrier = threading.Barrier(4)

    async def work(context: ServerTaskContext) -> None:
        ids: list[str] = []

        def use() -> None:
            barrier.wait()
            ids.append(context.task_id)

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(anyio.to_thread.run_sync, use)
        assert len(ids) == 4
        assert len(set(ids)) == 1

    await run_within_request(work, connect, undeliverable="no way")
    assert connect.made == 1


@pytest.mark.parametrize("is_used", [True, False])
async def test_after_the_call_the_context_is_closed(is_used: bool) -> None:
    kept: list[ServerTaskContext] = []

    async def work(context: ServerTaskContext) -> None:
        kept.append(context)
        if is_used:
            await context.update_status("Reading")

    await run_within_request(work, DetachedSession, undeliverable="no way")
    with pytest.raises(StoreClosedError):
        await kept[0].update_status("Too late")


async def test_an_attribute_that_no_context_has_is_missed() -> None:
    async def work(context: ServerTaskContext) -> None:
        with pytest.raises(AttributeError):
            getattr(context, "no_such_attribute")  # noqa: B009

    await run_within_request(work, DetachedSession, undeliverable="no way")
