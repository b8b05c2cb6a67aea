"""`TaskCalls`: scripts about one task, and what they reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcp_task_runtime.core.types import Fence, TaskRecord
from mcp_task_runtime.errors import LeaseLostError, StoreError, TaskNotFoundError
from mcp_task_runtime.stores.redis._backend import Backend
from mcp_task_runtime.stores.redis._form import load_nothing, load_record, pack, schema_error

__all__ = ["TaskCalls", "fencing", "loaded", "optional"]


class TaskCalls:
    """Runs scripts about one task, and cleans up after a task that they find expired."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._keys = backend.keys

    async def read(self, task_id: str, script: str, kind: int, *arguments: bytes) -> list[Any] | None:
        """Return what a script reads of a task, or `None` if there is none."""
        tag = self._keys.tag(task_id)
        ((reply, *rest),) = await self._backend.send(self._backend.read_call(script, tag, kind, *arguments))
        if reply == b"schema":
            raise schema_error(rest[0])
        if reply == b"expired":
            self._backend.purge(tag, *rest)
        if reply == b"absent" and rest:
            load_nothing()
        return rest if reply == b"ok" else None

    async def change(
        self, task_id: str, script: str, *arguments: bytes | int | str, again: bool = True, missing: bytes = b""
    ) -> tuple[bytes, list[Any]]:
        """Run a script about a task; return the task's tag and the reply.

        Raises:
            TaskNotFoundError: The task does not exist, and `missing` is not `absent`.
            SchemaVersionError: A later version of this library stored it.
        """
        tag = self._keys.tag(task_id)
        call = self._backend.task_call(script, tag, self._backend.new_operation(), *arguments)
        (reply,) = await self._backend.send(call, again=again)
        if not self.exists(tag, reply):
            if missing != b"absent":
                raise TaskNotFoundError(task_id)
            return tag, [b"absent"]
        return tag, reply

    async def end(
        self, task_id: str, script: str, *arguments: bytes | int | str, again: bool = True, missing: bytes = b""
    ) -> tuple[bytes, list[Any]]:
        """Run a script that ends a task, as `change`.

        This object is not told of an end that it made itself: where it cannot know whether it did, it looks.
        """
        try:
            return await self.change(task_id, script, *arguments, again=again, missing=missing)
        except BaseException:
            self._backend.doubt_end(self._keys.tag(task_id))
            raise

    def exists(self, tag: bytes, reply: list[Any]) -> bool:
        """Return whether a script found its task; clean up after one that it found expired."""
        if reply[0] == b"schema":
            raise schema_error(reply[1])
        if reply[0] == b"expired":
            self._backend.forget(tag, *reply[1:])
        return reply[0] not in (b"absent", b"expired")

    @staticmethod
    def changed(task_id: str, reply: bytes, rest: Sequence[Any]) -> TaskRecord:
        """Return the record that a script changed."""
        if reply == b"lost":
            raise LeaseLostError(task_id)
        return loaded(rest[0])


def optional(text: str | None) -> bytes:
    """Return text in a form that is not empty unless it is `None`."""
    return b"" if text is None else b"+" + pack(text)


def fencing(fence: Fence | None) -> tuple[bytes, int | str]:
    """Return a fence as scripts take it."""
    return (b"", "") if fence is None else (optional(fence.worker), fence.attempt)


def loaded(values: list[bytes | None]) -> TaskRecord:
    """Return the record that a script returned.

    Raises:
        StoreError: It is damaged.
    """
    record = load_record(values)
    if record is None:
        raise StoreError("A stored task is damaged")
    return record
