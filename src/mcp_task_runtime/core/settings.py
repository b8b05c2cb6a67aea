"""`TaskSettings`: every number a server may want to change, with its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["LONGEST_SECONDS", "TaskSettings", "check_duration"]

LONGEST_SECONDS: Final = 100 * 365 * 24 * 60 * 60
"""Longest supported duration: a hundred years."""

_SECOND: Final = 1_000
_DAY: Final = 24 * 60 * 60 * _SECOND
_LONGEST: Final = LONGEST_SECONDS * _SECOND


def check_duration(name: str, seconds: float) -> None:
    """Check a number of seconds.

    Raises:
        ValueError: It is out of range; the message has the name.
    """
    if not 0 <= seconds <= LONGEST_SECONDS:  # false for NaN, too
        raise ValueError(f"{name} must not be negative, nor above a hundred years, in seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """Limits and defaults of a task runtime.

    Attributes:
        default_ttl_ms: TTL of a task when neither its tool nor its client names one, in milliseconds. `None` for the
            longest that `max_ttl_ms` allows. Default: 86,400,000 (a day).
        min_ttl_ms: Lowest TTL in milliseconds; a shorter one is raised to it. Default: 1,000.
        max_ttl_ms: Highest TTL in milliseconds; a longer one, and an unlimited one, is lowered to it. `None` allows
            both, within a hundred years. Default: 604,800,000 (seven days).
        retention_ms: Shortest time for which an outcome can be fetched after the end, in milliseconds. Default: 600,000
            (ten minutes).
        poll_interval_ms: How long clients are asked to wait between polls, in milliseconds, unless the tool says it.
            `None`: 500 in the answer to the call; in the answer to a poll, 20 to 5,000 by the age of the task.
            Default: `None`.
        shutdown_grace: Seconds that running work has to end when the runtime closes. Most clients kill a
            stdio server two seconds after they closed its input. Default: 1.0.
        lease_ms: How long a process that runs a task may be silent before it counts as lost, in milliseconds; for
            stores that several processes share. It renews its leases three times as often. Default: 15,000.
        max_tasks_per_owner: Live tasks that one owner may have: in all processes together where they share a store with
            `TaskQuotas`, as the bundled ones have, otherwise in this process. Those without an owner count together, so
            that without authentication this is the limit of all callers. A waiting task takes up to 50 KiB: the default
            fits a server of 512 MB. One more is refused with `LimitExceededError`. `None` for no limit. Default: 5,000.
        max_stored_tasks_per_owner: Tasks of one owner that this process made and that have not expired, ended ones
            included. One more is refused with `LimitExceededError`. `None` for no limit. Default: 20,000.
        max_stored_bytes_per_owner: Bytes that the arguments, declared capabilities and results of these tasks may take.
            A task that would exceed it is refused with `LimitExceededError`; a result is stored in any case. `None` for
            no limit. Default: 134,217,728 (128 MiB).
        join_ended_ms: How long after the end of a task a repeated call of a tool with `join` still gets that task, in
            milliseconds. Default: 60,000 (a minute).
        max_running: Tasks whose work runs in this process at once; other work waits for a slot. Work that waits for an
            answer releases its slot meanwhile. `None` for no limit. Default: `None`.
        max_polls_per_second: Polls of one task that this process answers in a second. More polls are refused with
            `LimitExceededError`, which says when to retry. `None` for no limit. Default: 100.
        max_payload_bytes: Size of the largest arguments, result, error, question or status message of one task, as
            UTF-8. Larger arguments, questions and messages are refused with `LimitExceededError`; work whose result is
            larger ends as `failed`, and the client reads why. `None` for no limit. Default: 16,777,216 (16 MiB).
        max_answer_bytes: Size of the largest answer a client may give to one question, as JSON. Default: 1,048,576 (1
            MiB).
        max_listened_tasks_per_owner: Tasks that the open streams of one owner may listen to in this process, each task
            counted once for each stream; those without an owner count together. A stream that would listen to more is
            refused with `LimitExceededError`. `None` for no limit. Default: 5,000.
        max_open_questions: Questions that the work of one task may have open at once. One more is refused with
            `LimitExceededError`. `None` for no limit. Default: 1,000.
        input_ttl_ms: How long a call waits for a client that was asked by multi-round-trip input to return with the
            answers, in milliseconds. Then its work ends. For calls of clients that have not declared the tasks
            extension. Default: 600,000 (ten minutes).

    Raises:
        ValueError: A value is out of range; the message names it.
    """

    default_ttl_ms: int | None = _DAY
    min_ttl_ms: int = _SECOND
    max_ttl_ms: int | None = 7 * _DAY
    retention_ms: int = 10 * 60 * _SECOND
    poll_interval_ms: int | None = None
    shutdown_grace: float = 1.0
    lease_ms: int = 15 * _SECOND
    max_tasks_per_owner: int | None = 5_000
    max_stored_tasks_per_owner: int | None = 20_000
    max_stored_bytes_per_owner: int | None = 128 * 1024 * 1024
    join_ended_ms: int = 60 * _SECOND
    max_running: int | None = None
    max_polls_per_second: int | None = 100
    max_payload_bytes: int | None = 16 * 1024 * 1024
    max_answer_bytes: int = 1024 * 1024
    max_listened_tasks_per_owner: int | None = 5_000
    max_open_questions: int | None = 1_000
    input_ttl_ms: int = 10 * 60 * _SECOND

    def __post_init__(self) -> None:
        if self.min_ttl_ms < 1:
            raise ValueError("min_ttl_ms must be at least 1")
        if self.max_ttl_ms is not None and self.max_ttl_ms < self.min_ttl_ms:
            raise ValueError("max_ttl_ms must not be below min_ttl_ms")
        if self.default_ttl_ms is not None and self.default_ttl_ms < 1:
            raise ValueError("default_ttl_ms must be at least 1")
        if not 0 <= self.retention_ms <= _LONGEST:
            raise ValueError("retention_ms must be between 0 and 100 years")
        if self.poll_interval_ms is not None and self.poll_interval_ms < 1:
            raise ValueError("poll_interval_ms must be at least 1")
        check_duration("shutdown_grace", self.shutdown_grace)
        if self.lease_ms < 1:
            raise ValueError("lease_ms must be at least 1")
        if self.max_tasks_per_owner is not None and self.max_tasks_per_owner < 1:
            raise ValueError("max_tasks_per_owner must be at least 1")
        if self.max_stored_tasks_per_owner is not None and self.max_stored_tasks_per_owner < 1:
            raise ValueError("max_stored_tasks_per_owner must be at least 1")
        if self.max_stored_bytes_per_owner is not None and self.max_stored_bytes_per_owner < 1:
            raise ValueError("max_stored_bytes_per_owner must be at least 1")
        if not 0 <= self.join_ended_ms <= _LONGEST:
            raise ValueError("join_ended_ms must be between 0 and 100 years")
        if self.max_running is not None and self.max_running < 1:
            raise ValueError("max_running must be at least 1")
        if self.max_polls_per_second is not None and not 1 <= self.max_polls_per_second <= 1_000_000:
            raise ValueError("max_polls_per_second must be between 1 and 1,000,000")
        if self.max_payload_bytes is not None and self.max_payload_bytes < 1:
            raise ValueError("max_payload_bytes must be at least 1")
        if self.max_answer_bytes < 1:
            raise ValueError("max_answer_bytes must be at least 1")
        if self.max_listened_tasks_per_owner is not None and self.max_listened_tasks_per_owner < 1:
            raise ValueError("max_listened_tasks_per_owner must be at least 1")
        if self.max_open_questions is not None and self.max_open_questions < 1:
            raise ValueError("max_open_questions must be at least 1")
        if not 1 <= self.input_ttl_ms <= _LONGEST:
            raise ValueError("input_ttl_ms must be between 1 and 100 years, in milliseconds")

    def clamp_ttl(self, ttl_ms: int | None) -> int | None:
        """Return the TTL within its bounds; `None` is unlimited, where that is allowed."""
        if ttl_ms is None and self.max_ttl_ms is None:
            return None
        longest = _LONGEST if self.max_ttl_ms is None else min(self.max_ttl_ms, _LONGEST)
        return longest if ttl_ms is None else min(max(ttl_ms, self.min_ttl_ms), longest)
