"""Time limits around a store cost nothing where it never waits, and hold where it may."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from typing_extensions import Unpack

from mcp_task_runtime import InMemoryTaskStore
from mcp_task_runtime.core.store_calls import never_waits, time_limit
from mcp_task_runtime.core.types import NewTask, NewTaskFields, Outcome, TaskRecord

pytestmark = pytest.mark.anyio

COMPLETED = Outcome.completed({})


class SlowStore(InMemoryTaskStore):
    """A store that may wait where the one that it is made of never does."""

    async def create_task(self, new: NewTask | None = None, **fields: Unpack[NewTaskFields]) -> TaskRecord:
        await anyio.sleep_forever()
        return await super().create_task(new, **fields)


async def is_limited(operation: Callable[..., Any]) -> bool:
    """Return whether a block around a call of an operation can be ended by its limit."""
    with anyio.fail_after(30):
        with time_limit(operation, 0):
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            return False
    return True


@pytest.mark.parametrize("name", ["create_task", "finish_task"])
async def test_what_never_waits_has_no_limit(name: str) -> None:
    assert not await is_limited(getattr(InMemoryTaskStore(), name))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SlowStore().create_task,
        lambda: SlowStore().join_task,  # which calls the one that was overridden
        lambda: wrapped(InMemoryTaskStore().create_task),
    ],
)
async def test_what_overrides_or_wraps_it_is_limited(make: Callable[[], Callable[..., Any]]) -> None:
    assert await is_limited(make())


async def test_a_function_can_be_marked() -> None:
    async def quick() -> None: ...

    assert await is_limited(quick)
    assert not await is_limited(never_waits(quick))


@pytest.mark.parametrize("name", ["create_task", "finish_task"])
async def test_what_is_marked_ends_although_its_caller_is_cancelled(name: str) -> None:
    store = InMemoryTaskStore()
    made = await store.create_task(NewTask(ttl_ms=None))
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "create_task": lambda: store.create_task(NewTask(ttl_ms=None)),
        "finish_task": lambda: store.finish_task(made.task_id, COMPLETED),
    }
    done = False
    with anyio.CancelScope() as scope:
        scope.cancel()
        await operations[name]()
        done = True
    assert done


def wrapped(operation: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(operation)
    async def slow(*args: Any, **kwargs: Any) -> Any:
        await anyio.sleep_forever()

    return slow
