"""What the record of a task keeps of its caller: protocol, trace context, and the tasks that its call names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mcp_task_runtime.core.json import JSONObject, JSONValue, dump_json
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import store_errors
from mcp_task_runtime.core.text import shared_text
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.wire.trace_context import trace_context
from mcp_task_runtime.wire.v2026_07_28 import parse_related_task_ids

__all__ = ["TaskCaller", "caller_in", "caller_of", "implicit_owner", "related_tasks_of", "undeliverable_in"]

_KEY: Final = "relatedTaskIds"
_PROTOCOL: Final = "protocolVersion"
_UNDELIVERABLE: Final = "undeliverable"
_IMPLICIT: Final = "implicit:"
"""Begins the owners of tasks that clients do not know of."""


@dataclass(frozen=True, slots=True)
class TaskCaller:
    """Who made a task, the same in its first run, in a rerun and in a worker (law L18).

    Attributes:
        principal: The principal that the task belongs to; `None` for an unknown one, and for a plain call.
        capabilities: What the client declared.
        protocol_version: The protocol revision of the call.
        trace_context: `traceparent` and `tracestate` of the call, as far as it had them.
    """

    principal: str | None
    capabilities: JSONObject
    protocol_version: str | None
    trace_context: JSONObject


def caller_of(meta: JSONValue, protocol_version: object = None, undeliverable: str | None = None) -> str:
    """Return what a task keeps of the caller (`TaskRequest.caller_json`).

    Args:
        meta: The `_meta` of its call.
        protocol_version: The protocol revision of the call.
        undeliverable: Why no question can reach the client, if that is so.
    """
    kept: JSONObject = trace_context(meta)
    if related := parse_related_task_ids(meta):
        kept[_KEY] = related
    if not kept and undeliverable is None and isinstance(protocol_version, str):
        return _usual_caller(protocol_version)
    if isinstance(protocol_version, str):
        kept[_PROTOCOL] = protocol_version
    if undeliverable is not None:
        kept[_UNDELIVERABLE] = undeliverable
    return shared_text(dump_json(kept))


@lru_cache(maxsize=16)
def _usual_caller(protocol_version: str) -> str:
    return dump_json({_PROTOCOL: protocol_version})


def caller_in(record: TaskRecord | None) -> TaskCaller:
    """Return who made a task."""
    if record is None:
        return TaskCaller(None, {}, None, {})
    caller = record.request.caller
    return TaskCaller(
        _principal_of(record.owner), record.client_capabilities, caller.get(_PROTOCOL), trace_context(caller)
    )


def implicit_owner(principal: str | None) -> str:
    """Return whose a task is that the client of this principal does not know of: no method of a protocol shows it."""
    return f"{_IMPLICIT}{principal or ''}"


def _principal_of(owner: str | None) -> str | None:
    if owner is None or not owner.startswith(_IMPLICIT):
        return owner
    return owner.removeprefix(_IMPLICIT) or None


def undeliverable_in(record: TaskRecord) -> str | None:
    """Return why no question can reach the client that made a task, if that is so."""
    reason: str | None = record.request.caller.get(_UNDELIVERABLE)
    return reason


async def related_tasks_of(store: TaskStore, task_id: str) -> tuple[TaskRecord, ...]:
    """Return the tasks that the caller of a task named: those that exist and belong to the same owner (law L10).

    Raises:
        StoreError: The store failed.
    """
    with store_errors():
        own = await store.get_task(task_id)
        if own is None:
            return ()
        found = [await store.get_task(each) for each in own.request.caller.get(_KEY, ())]
    return tuple(record for record in found if record is not None and record.owner == own.owner)
