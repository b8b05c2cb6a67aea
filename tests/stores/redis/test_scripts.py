"""What the scripts on the server and Python both know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # of the server's scripts
@pytest.mark.parametrize(
    ("ttl_ms", "retention_ms"), [(None, 0), (None, 5_000), (60_000, 0), (60_000, 59_999), (5_000, 60_000)]
)
async def test_scripts_change_a_task_exactly_as_the_pure_functions(
    server: RedisServer, prefix: str, clock: FakeClock, ttl_ms: int | None, retention_ms: int
) -> None:
    async def compare(
        before: TaskRecord,
        change: Callable[[], Awaitable[TaskRecord]],
        expected: Callable[[], TaskRecord],
    ) -> None:
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

    options: dict[str, Any] = {"ttl_ms": ttl_ms, "retention_ms": retention_ms, "worker": "w", "owner": "ada"}
    statuses: tuple[TaskStatus, ...] = get_args(TaskStatus)
    messages = (None, "", "+now")
    async with RedisTaskStore(server.url, clock=clock, prefix=prefix) as store:
        for current, wanted, message, revision, passed in product(
            statuses, (None, *statuses, "nonsense"), messages, (None, 0, 1, 2), (-0.5, 0.000_999, 1.234_567)
        ):
            before = await _in_status(store, clock, current, **options)
            move = clock.set_back if passed < 0 else clock.advance
            move(timedelta(seconds=abs(passed)))
            asked: dict[str, Any] = {"status": wanted, "status_message": message, "if_revision": revision}
            await compare(
                before,
                partial(store.update_task, before.task_id, **asked),
                partial(update_record, before, now=clock.now(), **asked),
            )
        for current, wanted, message, passed in product(
            statuses, sorted(TERMINAL_STATUSES), messages, (-0.5, 0, 0.001, 0.001_001, 3.999_999)
        ):
            before = await _in_status(store, clock, current, **options)
            move = clock.set_back if passed < 0 else clock.advance
            move(timedelta(seconds=abs(passed)))
            outcome = replace(_outcome(wanted), status_message=message)
            await compare(
                before,
                partial(store.finish_task, before.task_id, outcome),
                partial(finish_record, before, outcome, now=clock.now()),
            )
