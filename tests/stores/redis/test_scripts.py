"""What the scripts on the server and Python both know."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, get_args

import pytest

from mcp_task_runtime.core.transitions import TERMINAL_STATUSES, TRANSITIONS, finish_record, update_record
from mcp_task_runtime.core.types import NewTask, Outcome, TaskRecord, TaskStatus
from mcp_task_runtime.stores.redis import RedisTaskStore
from mcp_task_runtime.stores.redis._scripts import FOLLOWS, UPDATES
from mcp_task_runtime.testing.clock import FakeClock
from tests.stores.redis.parts import DONE
from tests.stores.redis_server import RedisServer


def test_the_scripts_status_table_is_the_one_of_transitions() -> None:
    for current, requested in product(TRANSITIONS, TRANSITIONS):
        word = f" {current} ".encode()
        assert (word in FOLLOWS[requested]) == (requested in TRANSITIONS[current])
        allowed = requested in TRANSITIONS[current] and requested not in TERMINAL_STATUSES
        assert (word in UPDATES[requested]) == allowed
    for current in TRANSITIONS:
        assert (f" {current} ".encode() in UPDATES[None]) == (current in TRANSITIONS[current])


def _outcome(status: TaskStatus) -> Outcome:
    made = {"completed": DONE, "failed": Outcome.failed("no", data=[1]), "cancelled": Outcome.cancelled()}
    return made[status]


async def _in_status(store: RedisTaskStore, clock: FakeClock, status: TaskStatus, **options: Any) -> TaskRecord:
    record = await store.create_task(NewTask(**options))
    if status in TERMINAL_STATUSES:
        return await store.finish_task(record.task_id, _outcome(status))
    if status != "working":
        clock.advance(0.000_001)
        return await store.update_task(record.task_id, status="input_required", status_message="asked")
    return record


STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)
MESSAGES = (None, "", "+now")
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])  # of the server's scripts


@pytest.fixture
async def store(server: RedisServer, prefix: str, clock: FakeClock) -> AsyncIterator[RedisTaskStore]:
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        yield store


def _move(clock: FakeClock, seconds: float) -> None:
    move = clock.set_back if seconds < 0 else clock.advance
    move(timedelta(seconds=abs(seconds)))


async def _compare(
    store: RedisTaskStore,
    before: TaskRecord,
    change: Callable[[], Awaitable[TaskRecord]],
    expected: Callable[[], TaskRecord],
) -> None:
    """Change a task, which must end, and leave the task, as the pure function says."""
    wanted: Any
    got: Any
    try:
        wanted = expected()
    except Exception as error:
        wanted = (type(error), vars(error))
    try:
        got = await change()
    except Exception as error:
        got = (type(error), vars(error))
        assert await store.get_task(before.task_id) == before
    else:
        assert await store.get_task(before.task_id) == got
    assert got == wanted


@on_asyncio
@pytest.mark.parametrize(("ttl_ms", "retention_ms"), [(None, 0), (60_000, 59_999)])
async def test_the_script_of_an_update_changes_a_task_exactly_as_the_pure_function(
    store: RedisTaskStore, clock: FakeClock, ttl_ms: int | None, retention_ms: int
) -> None:
    options: dict[str, Any] = {"ttl_ms": ttl_ms, "retention_ms": retention_ms, "worker": "w", "owner": "ada"}
    for current, wanted, message, revision, passed in product(
        STATUSES, (None, *STATUSES, "nonsense"), MESSAGES, (None, 0, 1, 2), (-0.5, 0.000_999, 1.234_567)
    ):
        before = await _in_status(store, clock, current, **options)
        _move(clock, passed)
        asked: dict[str, Any] = {"status": wanted, "status_message": message, "if_revision": revision}
        await _compare(
            store,
            before,
            partial(store.update_task, before.task_id, **asked),
            partial(update_record, before, now=clock.now(), **asked),
        )


@on_asyncio
@pytest.mark.parametrize(
    ("ttl_ms", "retention_ms"), [(None, 0), (None, 5_000), (60_000, 0), (60_000, 59_999), (5_000, 60_000)]
)
async def test_the_script_of_an_end_changes_a_task_exactly_as_the_pure_function(
    store: RedisTaskStore, clock: FakeClock, ttl_ms: int | None, retention_ms: int
) -> None:
    options: dict[str, Any] = {"ttl_ms": ttl_ms, "retention_ms": retention_ms, "worker": "w", "owner": "ada"}
    for current, wanted, message, passed in product(
        STATUSES, sorted(TERMINAL_STATUSES), MESSAGES, (-0.5, 0, 0.001, 0.001_001, 3.999_999)
    ):
        before = await _in_status(store, clock, current, **options)
        _move(clock, passed)
        outcome = replace(_outcome(wanted), status_message=message)
        await _compare(
            store,
            before,
            partial(store.finish_task, before.task_id, outcome),
            partial(finish_record, before, outcome, now=clock.now()),
        )
