"""The audit log of wire rule A6: who did what with which task, for operators who turn it on."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from mcp_task_runtime import Execution, Outcome, TaskContext, TaskNotFoundError, TaskRequest, TaskSpec
from mcp_task_runtime.core import audit
from mcp_task_runtime.core.types import NewTask
from tests.core.worlds import open_world

AUDIT = "mcp_task_runtime.audit"
ADA = TaskSpec(owner="ada", request=TaskRequest(name="report"))


async def quick(execution: Execution[dict[str, Any]]) -> dict[str, Any]:
    return {}


async def test_a6_creation_end_and_retrieval_are_logged_with_who_it_was(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, AUDIT)
    async with open_world() as world:
        task_id = (await world.runtime.submit(ADA, quick)).task_id
        await world.runtime.result(task_id, owner="ada")
        await world.runtime.get(task_id, owner="ada", rate_limited=True)
    assert [record.getMessage() for record in caplog.records if record.name == AUDIT] == [
        f"Task {task_id} of ada was created by report",
        f"Task {task_id} of ada ended as completed",
        f"The outcome of task {task_id} was given to ada",
    ]


@pytest.mark.parametrize("how", ["cancel", "finish", "context"])
async def test_a6_every_way_to_end_a_task_is_logged_once(how: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, AUDIT)
    async with open_world() as world:
        record = await world.store.create_task(NewTask(ttl_ms=None, owner="ada"))
        if how == "cancel":
            await world.runtime.cancel(record.task_id, owner="ada")
        elif how == "finish":
            await world.runtime.finish(record.task_id, Outcome.failed("no"))
        else:
            await TaskContext(task=record.task, store=world.store).fail("no")
    assert sum("ended as" in message for message in caplog.messages) == 1


async def test_l10_who_asks_for_the_task_of_another_is_logged_and_told_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, AUDIT)
    async with open_world() as world:
        record = await world.store.create_task(NewTask(ttl_ms=None, owner="ada"))
        with pytest.raises(TaskNotFoundError):
            await world.runtime.get(record.task_id, owner="bob", rate_limited=True)
    assert f"Task {record.task_id!r} was refused to bob" in caplog.messages


async def test_no_id_is_in_a_log_at_info_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with open_world() as world:
        task_id = (await world.runtime.submit(ADA, quick)).task_id
        await world.runtime.result(task_id, owner="ada")
        await world.runtime.get(task_id, owner="ada", rate_limited=True)
        with pytest.raises(TaskNotFoundError):
            await world.runtime.get(task_id, owner="bob", rate_limited=True)
    assert task_id not in caplog.text


@pytest.mark.parametrize(("attempt", "lost"), [(2, 1), (3, 2)])
async def test_the_attempt_whose_worker_was_lost_is_named(
    attempt: int, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        record = await world.store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=1_000))
        assert record.lease is not None
        audit.lost(replace(record, lease=replace(record.lease, attempt=attempt)), "it fails")
    assert f"lost its worker in attempt {lost}: it fails" in caplog.text


@pytest.mark.parametrize(("attempt", "said"), [(1, ""), (2, " in attempt 2")])
async def test_the_attempt_whose_outcome_is_dropped_is_named_unless_it_is_the_first(
    attempt: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_world() as world:
        record = await world.store.create_task(NewTask(ttl_ms=None, worker="w", lease_ms=1_000))
        assert record.lease is not None
        audit.dropped(
            replace(record, lease=replace(record.lease, attempt=attempt)), Outcome.completed({}), "the store is away"
        )
    assert f"The outcome 'completed' of task {record.task_id} (''){said} was dropped: the store is away" in caplog.text
