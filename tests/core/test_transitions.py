"""The status table and the two functions that change a record (laws L1, L2, L7)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_task_runtime.core.transitions import (
    TERMINAL_STATUSES,
    TRANSITIONS,
    finish_record,
    is_expired,
    is_terminal,
    update_record,
)
from mcp_task_runtime.core.types import Lease, LiveStatus, Outcome, Task, TaskRecord, TaskStatus, TerminalStatus
from mcp_task_runtime.errors import InvalidTransitionError, RevisionConflictError

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)
LIVE: tuple[LiveStatus, ...] = get_args(LiveStatus)

times = st.timedeltas(min_value=timedelta(days=-30), max_value=timedelta(days=30)).map(lambda delta: START + delta)
messages = st.none() | st.text(max_size=10)
outcomes = st.one_of(
    st.builds(Outcome.completed, st.just({"a": 1}), status_message=messages),
    st.builds(Outcome.failed, st.text(max_size=5), status_message=messages),
    st.builds(Outcome.cancelled, status_message=messages),
)
updates = st.tuples(times, st.none() | st.sampled_from(LIVE), messages)


def new_record(*, ttl_ms: int | None = 60_000, retention_ms: int = 0) -> TaskRecord:
    task = Task("t", "working", None, START, START, ttl_ms, 500)
    return TaskRecord(task, owner="o", retention_ms=retention_ms, lease=Lease("w", START))


def record_in(status: TaskStatus) -> TaskRecord:
    record = new_record()
    if status in TERMINAL_STATUSES:
        payload = None if status == "cancelled" else "{}"
        return finish_record(record, Outcome(cast("TerminalStatus", status), payload), now=START)
    return replace(record, task=replace(record.task, status=status))


def test_the_table_names_every_status_and_terminal_ones_absorb() -> None:
    """L1."""
    assert set(TRANSITIONS) == set(STATUSES)
    assert {"completed", "failed", "cancelled"} == TERMINAL_STATUSES
    for status in STATUSES:
        assert is_terminal(status) == (status in TERMINAL_STATUSES)
        assert TRANSITIONS[status] == (frozenset() if is_terminal(status) else frozenset(STATUSES))


@pytest.mark.parametrize("current", STATUSES)
@pytest.mark.parametrize("requested", STATUSES)
def test_every_pair_of_statuses_is_allowed_or_refused_by_the_table(current: TaskStatus, requested: TaskStatus) -> None:
    """L1: a refused step raises and names both statuses, an allowed one counts one revision."""
    record = record_in(current)
    later = START + timedelta(seconds=1)

    def step() -> TaskRecord:
        if requested in TERMINAL_STATUSES:
            return finish_record(record, Outcome(cast("TerminalStatus", requested)), now=later)
        return update_record(record, now=later, status=cast("LiveStatus", requested))

    if requested in TRANSITIONS[current]:
        changed = step()
        assert changed.status == requested
        assert changed.revision == record.revision + 1
        assert changed.task.last_updated_at == later
    else:
        with pytest.raises(InvalidTransitionError) as caught:
            step()
        assert (caught.value.task_id, caught.value.current, caught.value.requested) == ("t", current, requested)


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_an_update_cannot_end_a_task_because_an_end_comes_with_its_outcome(status: TaskStatus) -> None:
    """L2."""
    with pytest.raises(InvalidTransitionError):
        update_record(new_record(), now=START, status=cast("LiveStatus", status))


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_an_ended_task_takes_no_status_message_either(status: TaskStatus) -> None:
    """L1."""
    with pytest.raises(InvalidTransitionError):
        update_record(record_in(status), now=START, status_message="late")


def test_an_update_with_another_revision_is_refused_and_with_the_same_one_taken() -> None:
    record = new_record()
    with pytest.raises(RevisionConflictError) as caught:
        update_record(record, now=START, status_message="x", if_revision=2)
    assert (caught.value.expected, caught.value.current) == (2, 1)
    assert update_record(record, now=START, status_message="x", if_revision=1).revision == 2


def test_an_ended_task_answers_a_wrong_revision_with_invalid_transition() -> None:
    """A caller that retries on a conflict must not retry without end on an ended task."""
    with pytest.raises(InvalidTransitionError):
        update_record(record_in("completed"), now=START, if_revision=99)


@given(steps=st.lists(updates, max_size=8), end=outcomes, end_at=times)
def test_any_life_of_a_task_keeps_its_invariants(
    steps: list[tuple[datetime, LiveStatus | None, str | None]], end: Outcome, end_at: datetime
) -> None:
    """L1, L2: revisions count up by one, time never runs back, what is not changed stays."""
    record = new_record()
    for now, status, message in steps:
        before = record
        frozen = repr(before)
        record = update_record(before, now=now, status=status, status_message=message)
        assert repr(before) == frozen
        assert record.revision == before.revision + 1
        assert record.task.last_updated_at == max(now, before.task.last_updated_at)
        assert record.task.status == (before.task.status if status is None else status)
        assert record.task.status_message == (before.task.status_message if message is None else message)
        assert record.outcome is None
        assert record.lease == before.lease
        assert (record.owner, record.task.created_at, record.task.ttl_ms) == ("o", START, 60_000)
    before = record
    record = finish_record(record, end, now=end_at)
    assert record.revision == before.revision + 1
    assert record.status == end.status
    assert record.outcome == end
    assert record.lease is None, "an ended task has no lease"
    assert record.task.last_updated_at == max(end_at, before.task.last_updated_at)
    for _ in range(2):
        with pytest.raises(InvalidTransitionError):
            finish_record(record, end, now=end_at)


@given(
    lived=st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3)),
    ttl_ms=st.integers(1, 3 * 86_400_000),
    retention_ms=st.integers(0, 3 * 86_400_000),
)
def test_finishing_keeps_the_outcome_for_the_retention_time_and_never_shortens_the_ttl(
    lived: timedelta, ttl_ms: int, retention_ms: int
) -> None:
    """L7."""
    now = START + lived
    record = finish_record(new_record(ttl_ms=ttl_ms, retention_ms=retention_ms), Outcome.cancelled(), now=now)
    expires_at = record.task.expires_at
    assert expires_at is not None
    assert expires_at >= now + timedelta(milliseconds=retention_ms)
    assert record.task.ttl_ms is not None
    assert record.task.ttl_ms >= ttl_ms
    if record.task.ttl_ms > ttl_ms:  # no longer than needed, to the millisecond
        assert expires_at < now + timedelta(milliseconds=retention_ms + 1)
    assert not is_expired(record.task, now + timedelta(milliseconds=retention_ms - 1)) or retention_ms == 0


def test_a_task_without_ttl_never_expires_and_keeps_none_when_it_ends() -> None:
    """L7."""
    record = finish_record(new_record(ttl_ms=None, retention_ms=1000), Outcome.cancelled(), now=START)
    assert record.task.ttl_ms is None
    assert record.task.expires_at is None
    assert not is_expired(record.task, datetime.max.replace(tzinfo=timezone.utc))


def test_a_task_is_gone_exactly_at_its_ttl() -> None:
    """L7."""
    task = new_record(ttl_ms=1000).task
    assert not is_expired(task, START + timedelta(milliseconds=999))
    assert is_expired(task, START + timedelta(milliseconds=1000))
    assert task.expires_at == START + timedelta(milliseconds=1000)


def test_an_outcome_without_status_message_keeps_what_the_work_last_said() -> None:
    record = update_record(new_record(), now=START, status_message="halfway")
    assert finish_record(record, Outcome.cancelled(), now=START).task.status_message == "halfway"
    assert finish_record(record, Outcome.failed("broken"), now=START).task.status_message == "broken"
