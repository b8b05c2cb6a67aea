"""`TaskSettings`: nonsense is refused by name, wanted TTLs come within bounds."""

from __future__ import annotations

import dataclasses
import math
from datetime import datetime, timedelta, timezone
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_task_runtime.core.settings import TaskSettings


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("min_ttl_ms", 0),
        ("min_ttl_ms", -1),
        ("max_ttl_ms", 999),
        ("default_ttl_ms", 0),
        ("default_ttl_ms", -5),
        ("retention_ms", -1),
        ("poll_interval_ms", 0),
        ("shutdown_grace", -0.1),
        ("shutdown_grace", math.nan),
        ("shutdown_grace", math.inf),
        ("retention_ms", 10**30),
        ("lease_ms", 0),
        ("max_answer_bytes", 0),
        ("max_open_questions", 0),
        ("input_ttl_ms", 0),
        ("input_ttl_ms", 10**30),
        ("max_listened_tasks_per_owner", 0),
    ],
)
def test_a_value_out_of_range_raises_value_error_that_names_the_argument(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=argument):
        TaskSettings(**{argument: value})


# The lowest value of a setting is 1 unless it stands here.
LOWEST = {"max_ttl_ms": TaskSettings().min_ttl_ms, "retention_ms": 0, "shutdown_grace": 0, "join_ended_ms": 0}
CENTURY_MS = 100 * 365 * 24 * 60 * 60 * 1_000
HIGHEST = {
    "retention_ms": CENTURY_MS,
    "shutdown_grace": CENTURY_MS // 1_000,
    "join_ended_ms": CENTURY_MS,
    "max_polls_per_second": 1_000_000,
    "input_ttl_ms": CENTURY_MS,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TaskSettings)])
def test_the_bounds_of_a_setting_are_values_that_it_can_have(name: str) -> None:
    lowest = LOWEST.get(name, 1)
    assert getattr(TaskSettings(**{name: lowest}), name) == lowest
    with pytest.raises(ValueError, match=name):
        TaskSettings(**{name: lowest - 1})
    if name in HIGHEST:
        assert getattr(TaskSettings(**{name: HIGHEST[name]}), name) == HIGHEST[name]
        with pytest.raises(ValueError, match=name):
            TaskSettings(**{name: HIGHEST[name] + 1})


OPTIONAL = [name for name, hint in get_type_hints(TaskSettings).items() if type(None) in get_args(hint)]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_setting_that_may_have_no_bound_takes_none(name: str) -> None:
    unbounded: dict[str, Any] = {name: None}
    assert getattr(TaskSettings(**unbounded), name) is None


@pytest.mark.parametrize(
    ("ttl_ms", "stored"),
    [
        (-(10**30), 1000),
        (-1, 1000),
        (0, 1000),
        (999, 1000),
        (1000, 1000),
        (5000, 5000),
        (10**30, 60_000),
        (None, 60_000),
    ],
)
def test_a_wanted_ttl_comes_within_the_bounds(ttl_ms: int | None, stored: int) -> None:
    """L7, design section 5: an unlimited TTL is lowered, too, where there is a maximum."""
    assert TaskSettings(max_ttl_ms=60_000).clamp_ttl(ttl_ms) == stored


def test_without_a_maximum_an_unlimited_ttl_stays_unlimited() -> None:
    assert TaskSettings(max_ttl_ms=None).clamp_ttl(None) is None
    assert TaskSettings(max_ttl_ms=None).clamp_ttl(10**10) == 10**10
    assert TaskSettings(max_ttl_ms=10**30).clamp_ttl(None) == TaskSettings(max_ttl_ms=None).clamp_ttl(10**30)


@given(st.integers())
@example(10**30)
@example(10**15)
@example(2**63)
def test_a_clamped_ttl_is_always_one_that_a_task_can_have(ttl_ms: int) -> None:
    """Without a maximum a client's absurd TTL must not overflow the calendar."""
    clamped = TaskSettings(max_ttl_ms=None).clamp_ttl(ttl_ms)
    assert clamped is not None
    assert (datetime(2100, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=clamped)).year < 2300
