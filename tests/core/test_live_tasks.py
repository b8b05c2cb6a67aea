"""`LiveTasks`: each live task counts once for its owner, however often it is added (law L16)."""

from __future__ import annotations

import pytest

from mcp_task_runtime.core.live_tasks import LiveTasks
from mcp_task_runtime.core.transitions import create_record
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.errors import LimitExceededError
from mcp_task_runtime.testing.clock import FakeClock


def new_record(clock: FakeClock, task_id: str = "a", *, ttl_ms: int | None = 60_000) -> TaskRecord:
    return create_record(NewTask(task_id=task_id, owner="ada", ttl_ms=ttl_ms), now=clock.now())


def test_a_task_that_is_taken_over_counts_for_its_owner_until_it_is_discarded() -> None:
    clock = FakeClock()
    live = LiveTasks(clock, 1)
    live.add(new_record(clock))
    assert ("a" in live, len(live), live.owners) == (True, 1, 1)
    with pytest.raises(LimitExceededError):
        live.reserve("ada")
    live.discard("a")
    assert ("a" in live, len(live), live.owners, live.deadlines) == (False, 0, 0, 0)
    live.reserve("ada")


@pytest.mark.parametrize("how", ["reserved", "taken over"])
def test_a_task_whose_ttl_changes_counts_once(how: str) -> None:
    clock = FakeClock()
    live = LiveTasks(clock, 1)
    if how == "reserved":
        live.reserve("ada")
        live.add_reserved(new_record(clock))
    else:
        live.add(new_record(clock))
    assert live.extend(new_record(clock, ttl_ms=120_000))
    live.discard("a")
    live.reserve("ada")


def test_a_task_that_was_taken_over_while_it_was_made_counts_once() -> None:
    clock = FakeClock()
    live = LiveTasks(clock, 2)
    live.reserve("ada")
    live.add(new_record(clock))
    live.add_reserved(new_record(clock))
    assert (len(live), live.owners) == (1, 1)
    live.discard("a")
    assert live.owners == 0


def test_no_deadline_that_has_come_is_extended_nor_one_of_a_task_that_is_not_live() -> None:
    clock = FakeClock()
    live = LiveTasks(clock, None)
    assert not live.extend(new_record(clock))
    live.add(new_record(clock))
    clock.advance(60)
    assert not live.extend(new_record(FakeClock()))
    assert "a" in live
