"""What stores on a server share: the server's time, and the log of an outage."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta, timezone

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime.stores._outage import Outage
from mcp_task_runtime.stores._server_clock import ServerClock
from tests.support.patience import PATIENCE

logger = logging.getLogger("tests.outage")

HOUR = 3_600_000_000


def micros(time: datetime) -> int:
    return (time - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)


def test_the_clock_shows_the_servers_time_and_not_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServerClock()
    assert clock.is_due
    server = micros(datetime.now(timezone.utc)) + HOUR
    clock.observe(server, sent=clock.monotonic(), received=clock.monotonic())
    assert not clock.is_due
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert server <= micros(clock.now()) < server + HOUR // 60


def test_an_offset_that_agrees_stays_and_one_that_does_not_is_replaced_by_a_late_one() -> None:
    clock = ServerClock()
    now = clock.monotonic()
    clock.observe(HOUR, sent=now, received=now + 100)
    first = clock.now() - timedelta(microseconds=clock.monotonic())
    clock.observe(HOUR, sent=now - 50, received=now + 300)
    assert abs(clock.now() - timedelta(microseconds=clock.monotonic()) - first) < timedelta(seconds=30)
    clock.observe(2 * HOUR, sent=now, received=now + 100)
    moved = clock.now() - timedelta(microseconds=clock.monotonic()) - first
    assert abs(moved - timedelta(hours=1)) < timedelta(seconds=30)
    clock.distrust()
    assert clock.is_due


async def test_a_wait_ends_when_the_servers_time_has_come() -> None:
    clock = ServerClock()
    now = clock.monotonic()
    clock.observe(HOUR, sent=now, received=now)
    with anyio.fail_after(PATIENCE):
        with clock.move_on_at(clock.now() + timedelta(milliseconds=5)) as scope:
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        with clock.move_on_at(None) as scope:
            await anyio.lowlevel.checkpoint()
        assert not scope.cancelled_caught


def test_an_outage_is_two_lines_however_many_attempts_fail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger.name)
    outage = Outage(logger, "The backend")
    outage.succeeded()
    assert not outage.is_on
    for _ in range(5):
        outage.failed(time.monotonic())
    assert outage.is_on
    outage.succeeded()
    outage.succeeded()
    assert not outage.is_on
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert caplog.messages[0] == "The backend cannot be reached"
    assert caplog.messages[1].startswith("The backend can be reached again, after 0.")


def test_an_attempt_that_began_before_an_outage_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    """Its thread may note late that it succeeded: the log then said twice that the backend is unavailable."""
    outage = Outage(logger, "The backend")
    started_at = time.monotonic() - 1
    outage.failed(started_at)
    outage.succeeded(started_at)
    assert outage.is_on
    outage.succeeded(time.monotonic())
    assert not outage.is_on
    assert len(caplog.messages) == 2


def test_a_failure_that_a_success_overtook_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logger, "The backend")
    started_at = time.monotonic() - 1
    outage.succeeded()
    outage.failed(started_at)
    assert not outage.is_on
    assert not caplog.messages
