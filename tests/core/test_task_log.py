"""The log for operators (law L11): one line for each task that ends without a result, and no id below WARNING."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from mcp_task_runtime import (
    Execution,
    InMemoryTaskStore,
    Outcome,
    ProtocolError,
    TaskRequest,
    TaskRuntime,
    TaskSpec,
    task_execution,
)
from mcp_task_runtime.core.types import NewTask, TaskRecord
from tests.core.leased_store import LEASE_SECONDS, open_cluster
from tests.core.worlds import World, open_world

RERUNNABLE = TaskSpec(request=TaskRequest(name="tool", rerunnable=True))
OWNER = "alice@example.org"
SPEC = TaskSpec(owner=OWNER, ttl_ms=10_000, request=TaskRequest(name="report"))
SECRET = "a secret of the client"


class Log:
    """What the library has logged about one task."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        self.records = [
            each
            for each in records
            if each.name.startswith("mcp_task_runtime") and each.name != "mcp_task_runtime.audit"
        ]

    def lines_of(self, task_id: str) -> list[tuple[str, str]]:
        return [(each.levelname, each.getMessage()) for each in self.records if task_id in each.getMessage()]

    def check(self, task_id: str) -> None:
        """No line below WARNING has the id or its beginning, no line has an owner or a text of the client."""
        for each in self.records:
            text = each.getMessage()
            assert OWNER not in text
            assert SECRET not in text
            assert each.levelno >= logging.WARNING or task_id[:8] not in text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], Log]:
    caplog.set_level(logging.DEBUG)
    return lambda: Log(caplog.records)


@asynccontextmanager
async def a_task(world: World, work: Callable[[Execution[Any]], Awaitable[Any]]) -> AsyncIterator[TaskRecord]:
    record = await world.runtime.submit(SPEC, work)
    await anyio.wait_all_tasks_blocked()
    yield record


async def raises(execution: Execution[Any]) -> Any:
    raise ValueError(SECRET)


async def raises_on_purpose(execution: Execution[Any]) -> Any:
    raise ProtocolError(-32050, SECRET)


async def returns_an_error(execution: Execution[Any]) -> Any:
    return {"content": [{"type": "text", "text": SECRET}], "isError": True}


async def forever(execution: Execution[Any]) -> Any:
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("work", "level", "reason"),
    [
        (raises, "ERROR", "failed: its work raised an exception"),
        (raises_on_purpose, "WARNING", "failed: error -32050"),
        (returns_an_error, "WARNING", "failed: its tool returned an error"),
    ],
)
async def test_work_that_fails_is_one_line(
    work: Callable[[Execution[Any]], Awaitable[Any]], level: str, reason: str, log: Callable[[], Log]
) -> None:
    async with open_world() as world, a_task(world, work) as record:
        await world.runtime.result(record.task_id, owner=OWNER)
    assert log().lines_of(record.task_id) == [(level, f"Task {record.task_id} ('report') {reason}")]
    log().check(record.task_id)
    has_traceback = [each.exc_info is not None for each in log().records if record.task_id in each.getMessage()]
    assert has_traceback == [level == "ERROR"]


async def test_a_task_that_is_ended_from_outside_is_one_line(log: Callable[[], Log]) -> None:
    async with open_world() as world:
        async with a_task(world, forever) as cancelled:
            await world.runtime.cancel(cancelled.task_id, owner=OWNER)
        async with a_task(world, forever) as expired:
            world.clock.advance(9.5)
            await world.until(expired.task_id, "failed")
        async with a_task(world, forever) as failed:
            await world.runtime.finish(failed.task_id, Outcome.failed(SECRET))
        async with a_task(world, forever) as interrupted:
            pass
    for record, reason in (
        (cancelled, "was cancelled"),
        (expired, "failed: its time to live passed"),
        (failed, "failed: error -32603"),
        (interrupted, "failed: the server was shut down"),
    ):
        assert log().lines_of(record.task_id) == [("WARNING", f"Task {record.task_id} ('report') {reason}")]
        log().check(record.task_id)


async def test_a_task_that_has_expired_before_its_end_could_be_written_is_one_line(log: Callable[[], Log]) -> None:
    """An event loop that is late for more than the margin of a deadline."""
    async with open_world() as world, a_task(world, forever) as record:
        world.clock.advance(11)
        await world.until_idle()
    expected = f"Task {record.task_id} ('report') failed: its time to live passed"
    assert log().lines_of(record.task_id) == [("WARNING", expected)]


async def test_an_exception_after_the_end_is_a_line_of_its_own(log: Callable[[], Log]) -> None:
    async def cleans_up_badly(execution: Execution[Any]) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError(SECRET)

    async with open_world() as world, a_task(world, cleans_up_badly) as record:
        await world.runtime.cancel(record.task_id, owner=OWNER)
        await world.until_idle()
    assert log().lines_of(record.task_id) == [
        ("WARNING", f"Task {record.task_id} ('report') was cancelled"),
        ("ERROR", f"The work of task {record.task_id} ('report') raised an exception after its end"),
    ]
    log().check(record.task_id)


async def test_a_block_that_runs_a_task_by_hand_fails_in_one_line(log: Callable[[], Log]) -> None:
    async with InMemoryTaskStore() as store:
        record = await store.create_task(NewTask(ttl_ms=None, owner=OWNER, request=TaskRequest(name="report")))
        async with task_execution(record.task_id, store):
            raise ValueError(SECRET)
    expected = f"Task {record.task_id} ('report') failed: its work raised an exception"
    assert log().lines_of(record.task_id) == [("ERROR", expected)]


async def test_a_result_that_the_store_refuses_is_one_line(log: Callable[[], Log]) -> None:
    class Store(InMemoryTaskStore):
        async def finish_task(self, task_id: str, outcome: Outcome, **options: Any) -> TaskRecord:
            if outcome.status == "completed":
                raise ValueError("NUL")
            return await super().finish_task(task_id, outcome, **options)

    async def work(execution: Execution[Any]) -> Any:
        return {}

    async with Store() as store, TaskRuntime(store) as runtime:
        record = await runtime.submit(SPEC, work)
        await runtime.result(record.task_id, owner=OWNER)
    expected = f"Task {record.task_id} ('report') failed: the store refuses its outcome"
    assert log().lines_of(record.task_id) == [("ERROR", expected)]


async def test_a_lost_task_that_must_not_run_again_is_one_line(log: Callable[[], Log]) -> None:
    async with open_cluster() as (cluster, (a, _)):
        record = await a.runtime.submit(replace(SPEC, ttl_ms=None), forever)
        await cluster.settle()
        await cluster.cut(a)
        await cluster.pass_time(3 * LEASE_SECONDS)
        assert cluster.store.record(record.task_id).status == "failed"
    expected = f"Task {record.task_id} ('report') failed: its worker was lost in attempt 1"
    assert log().lines_of(record.task_id) == [("WARNING", expected)]
    log().check(record.task_id)


async def test_work_that_is_handed_over_shows_no_id_where_it_was(log: Callable[[], Log]) -> None:
    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", forever)
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.settle()
    assert log().lines_of(task_id) == []
    assert [each.levelname for each in log().records if "handed over" in each.getMessage()] == ["INFO"]
    log().check(task_id)
