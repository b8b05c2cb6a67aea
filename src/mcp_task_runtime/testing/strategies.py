"""Hypothesis strategies for the values of this library."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TypeAlias

from hypothesis import strategies as st

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.transitions import finish_record, update_record
from mcp_task_runtime.core.types import LiveStatus, Outcome, Progress, Task, TaskFilter, TaskRecord, TaskRequest

__all__ = [
    "KEYS",
    "Step",
    "answers",
    "filters",
    "json_objects",
    "json_values",
    "keys",
    "live_statuses",
    "messages",
    "notifications",
    "outcomes",
    "owners",
    "progress",
    "questions",
    "requests",
    "status_messages",
    "steps",
    "task_records",
    "ttls",
]

Step: TypeAlias = "tuple[LiveStatus | None, str | None] | Outcome"
"""One change of a task: the new status and message of an update, or the outcome it ends with."""

KEYS = ("k1", "k2", "k3")
"""The keys of questions that the strategies make."""

_START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def _text(max_size: int = 12) -> st.SearchStrategy[str]:
    """Text that every store can keep: no surrogates, which are refused, and no NUL, which a store may refuse."""
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=max_size)


def json_values() -> st.SearchStrategy[JSONValue]:
    """Return any JSON value, mostly a small one."""
    scalars = (
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    )
    return st.recursive(
        scalars | _text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text(6), inner, max_size=3),
        max_leaves=5,
    )


def json_objects() -> st.SearchStrategy[JSONObject]:
    """Return a JSON object."""
    return st.dictionaries(_text(6), json_values(), max_size=3)


def owners() -> st.SearchStrategy[str | None]:
    """Return one of a few owners, or none."""
    return st.sampled_from([None, "ada", "bob"])


def ttls() -> st.SearchStrategy[int | None]:
    """Return a TTL in milliseconds, or `None`."""
    return st.sampled_from([None, 1, 1_000, 5_000, 60_000])


def live_statuses() -> st.SearchStrategy[LiveStatus]:
    """Return a status of a task that has not ended."""
    return st.sampled_from(["working", "input_required"])


def status_messages() -> st.SearchStrategy[str | None]:
    """Return a status message, or `None`."""
    return st.none() | _text()


def outcomes() -> st.SearchStrategy[Outcome]:
    """Return a way for a task to end."""
    return st.one_of(
        st.just(Outcome.cancelled()),
        st.builds(Outcome.completed, json_objects(), status_message=status_messages()),
        st.builds(Outcome.failed, _text(), code=st.integers(-32_099, -32_000), data=json_values()),
    )


def progress() -> st.SearchStrategy[Progress]:
    """Return progress that work may report."""
    numbers = st.integers(0, 100) | st.floats(0, 1e9, allow_nan=False).map(float)
    return st.builds(Progress, numbers, st.none() | numbers, status_messages())


def filters() -> st.SearchStrategy[TaskFilter]:
    """Return what an operator may look for among the tasks of the other strategies."""
    some = st.sampled_from
    return st.builds(
        TaskFilter,
        statuses=st.none() | st.frozensets(some(["working", "input_required", "completed", "failed", "cancelled"])),
        names=st.none() | st.frozensets(some(["", "report", "forecast", "unknown"])),
        owners=st.none() | st.frozensets(some([None, "ada", "bob", "eve"])),
        id_prefix=some([None, None, "", "task-", "task-1", "other"]),
        text=some([None, None, None, "0"]),
    )


def requests() -> st.SearchStrategy[TaskRequest]:
    """Return what a task may have been made for."""
    return st.builds(
        TaskRequest,
        method=st.just("tools/call"),
        name=st.sampled_from(["report", "forecast"]),
        arguments_json=json_objects().map(dump_json),
        progress_token=st.none() | st.integers(0, 9) | st.just("token"),
        rerunnable=st.booleans(),
    )


def keys() -> st.SearchStrategy[str]:
    """Return one of a few keys, so that they collide."""
    return st.sampled_from(KEYS)


def questions() -> st.SearchStrategy[QueuedMessage]:
    """Return a request to the client."""
    methods = st.sampled_from(["elicitation/create", "sampling/createMessage"])
    return st.builds(QueuedMessage.request, keys(), methods, json_objects())


def notifications() -> st.SearchStrategy[QueuedMessage]:
    """Return a notification to the client."""
    return st.builds(QueuedMessage.notification, st.just("notifications/message"), json_objects())


def messages() -> st.SearchStrategy[QueuedMessage]:
    """Return a message to the client."""
    return questions() | notifications()


def answers() -> st.SearchStrategy[Answer]:
    """Return an answer to a question."""
    return st.one_of(
        st.builds(Answer.result, json_objects()),
        st.builds(Answer.error, st.integers(-32_099, -32_000), _text(), json_values()),
        st.just(Answer.withdrawn()),
    )


def steps() -> st.SearchStrategy[Step]:
    """Return one change of a task."""
    return st.tuples(st.none() | live_statuses(), status_messages()) | outcomes()


@st.composite
def task_records(draw: st.DrawFn) -> TaskRecord:
    """Return a task somewhere in its life, as a store might have kept it."""
    task = Task("task-1", "working", None, _START, _START, draw(ttls()), draw(st.sampled_from([100, 500])))
    record = TaskRecord(task, 1, draw(owners()), draw(st.sampled_from([0, 60_000])), draw(requests()))
    now = _START
    for step in draw(st.lists(steps(), max_size=4)):
        now += timedelta(milliseconds=draw(st.integers(0, 10)))
        if isinstance(step, Outcome):
            return finish_record(record, step, now=now)
        record = update_record(record, now=now, status=step[0], status_message=step[1])
    return record
