"""`RateLimit`: so many times a second for each key, and what is kept for keys that fell silent."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime import LimitExceededError, TaskNotFoundError, TaskSettings
from mcp_task_runtime.core.rate_limit import RateLimit
from mcp_task_runtime.core.types import NewTask
from tests.core.worlds import open_world

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)


def admitted(limit: RateLimit, key: str, now: datetime) -> bool:
    try:
        limit.admit(key, now)
    except LimitExceededError:
        return False
    return True


def test_after_a_pause_a_burst_is_admitted_and_then_one_for_each_share_of_a_second() -> None:
    limit = RateLimit("polls", 10)
    assert [admitted(limit, "a", NOON) for _ in range(12)] == [True] * 10 + [False] * 2
    assert not admitted(limit, "a", NOON + SECOND / 11)
    assert admitted(limit, "a", NOON + SECOND / 10)
    assert not admitted(limit, "a", NOON + SECOND / 10)


def test_keys_do_not_count_for_each_other() -> None:
    limit = RateLimit("polls", 1)
    assert admitted(limit, "a", NOON)
    assert admitted(limit, "b", NOON)
    assert not admitted(limit, "a", NOON)


def test_the_error_says_what_is_limited_and_when_to_come_again() -> None:
    limit = RateLimit("polls", 4)
    for _ in range(4):
        assert admitted(limit, "a", NOON)
    with pytest.raises(LimitExceededError, match=r"polls \(at most 4\)") as caught:
        limit.admit("a", NOON + timedelta(microseconds=1))
    assert caught.value.retry_after_ms == 250
    assert caught.value.data == {"retryAfterMs": 250}
    assert admitted(limit, "a", NOON + timedelta(milliseconds=250))


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 300)), max_size=300),
)
def test_no_second_admits_more_than_a_burst_and_a_seconds_share_and_silent_keys_are_forgotten(
    per_second: int, story: list[tuple[str, int]]
) -> None:
    limit, now = RateLimit("polls", per_second), NOON
    times: dict[str, list[datetime]] = {}
    for key, pause_ms in story:
        now += timedelta(milliseconds=pause_ms)
        if admitted(limit, key, now):
            times.setdefault(key, []).append(now)
    for each in times.values():
        for start in each:
            assert sum(start <= time < start + SECOND for time in each) <= 2 * per_second
    limit.admit("last", now + 2 * SECOND)
    assert len(limit) == 1


def test_a_clock_that_is_set_back_locks_nobody_out_and_leaves_nothing_behind() -> None:
    limit = RateLimit("polls", 1)
    assert admitted(limit, "a", NOON)
    assert admitted(limit, "b", NOON)
    earlier = NOON - timedelta(hours=1)
    assert admitted(limit, "a", earlier)
    assert not admitted(limit, "a", earlier)
    assert len(limit) == 1


async def test_a_client_that_polls_a_task_too_often_is_refused_and_loses_nothing() -> None:
    async with open_world(settings=TaskSettings(max_polls_per_second=2, shutdown_grace=0)) as world:
        record = await world.store.create_task(NewTask(ttl_ms=None, owner="a"))
        other = await world.store.create_task(NewTask(ttl_ms=None, owner="a"))
        for _ in range(2):
            await world.runtime.get(record.task_id, owner="a", rate_limited=True)
        with pytest.raises(LimitExceededError):
            await world.runtime.get(record.task_id, owner="a", rate_limited=True)
        await world.runtime.get(other.task_id, owner="a", rate_limited=True)
        assert (await world.runtime.get(record.task_id, owner="a")).task.status == "working", "the server itself"
        with pytest.raises(TaskNotFoundError):  # law L10: any other owner learns nothing of it
            await world.runtime.get(record.task_id, owner="b", rate_limited=True)
        world.clock.advance(0.5)
        assert (await world.runtime.get(record.task_id, owner="a")).task.status == "working"
