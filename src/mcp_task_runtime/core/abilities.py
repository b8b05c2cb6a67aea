"""What an object can do, found once per class: `isinstance` with a protocol looks at every member."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, runtime_checkable

from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskQuestions, TaskStore

__all__ = ["has_questions", "implements", "is_queue", "is_store", "queue_of"]


@runtime_checkable
class _BringsQueue(Protocol):
    @property
    def message_queue(self) -> TaskMessageQueue: ...


_known: set[tuple[type, Any]] = set()
"""Classes with the protocols that their objects have."""

_MOST_KNOWN = 1_000


def is_store(value: object) -> TypeGuard[TaskStore]:
    """Return whether a value is a `TaskStore`, and not a class."""
    return implements(value, TaskStore)


def is_queue(value: object) -> TypeGuard[TaskMessageQueue]:
    """Return whether a value is a `TaskMessageQueue`, and not a class."""
    return implements(value, TaskMessageQueue)


def has_questions(store: TaskStore) -> bool:
    """Return whether a store has the ability `TaskQuestions`."""
    return _implements(store, TaskQuestions)


def queue_of(store: TaskStore) -> TaskMessageQueue | None:
    """Return the message queue that a store brings, or `None`; every bundled store has one."""
    if not _implements(store, _BringsQueue):
        return None
    queue: TaskMessageQueue = getattr(store, "message_queue")  # noqa: B009  # the protocol's member
    return queue


def implements(value: object, protocol: Any) -> bool:
    """Return whether a value has what a protocol asks for, and is not a class.

    Args:
        value: Any object.
        protocol: A protocol that can be checked at run time.
    """
    return not isinstance(value, type) and _implements(value, protocol)


def _implements(value: object, protocol: Any) -> bool:
    pair = (type(value), protocol)
    if pair in _known:
        return True
    found = isinstance(value, protocol)
    if found:
        if len(_known) >= _MOST_KNOWN:  # classes that are made at run time are not kept for long
            _known.clear()
        _known.add(pair)
    return found
