"""How much waits for a worker, as an observer hears it."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from mcp_task_runtime import Execution, Outcome, StoreDispatcher, TaskRequest, TaskRuntime, TaskSettings, TaskSpec
from mcp_task_runtime.core.observer import Observation, WorkWaiting
from mcp_task_runtime.testing import FakeClock
from tests.core.leased_store import LeasedTaskStore
from tests.support.patience import PATIENCE


class Listener:
    """Keeps what is said of waiting work."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[WorkWaiting](100)

    def trace_context(self) -> Mapping[str, str]:
        return {}

    def observe(self, observation: Observation) -> None:
        if isinstance(observation, WorkWaiting):
            self._send.send_nowait(observation)

    async def next(self) -> WorkWaiting:
        with anyio.fail_after(PATIENCE):
            return await self._receive.receive()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


async def never_runs(_: Execution[Outcome]) -> Outcome:
    raise AssertionError("no worker takes it")


async def test_an_observer_hears_what_waits_for_a_worker() -> None:
    clock = FakeClock()
    listener = Listener()
    settings = TaskSettings(lease_ms=30_000)
    store = LeasedTaskStore(clock=clock)
    async with TaskRuntime(store, settings=settings, dispatcher=StoreDispatcher(), observer=listener) as runtime:
        runtime.register("tool", never_runs, is_dispatched=True)
        assert await listener.next() == WorkWaiting({}, 0.0, is_complete=True)
        spec = TaskSpec(request=TaskRequest(name="tool"), ttl_ms=600_000)
        records = [await runtime.dispatch(spec) for _ in range(3)]
        clock.advance(10)
        assert await listener.next() == WorkWaiting({"tool": 3}, 10.0, is_complete=True)
        await store.claim_task(records[0].task_id, worker="other", lease_ms=600_000)
        await runtime.cancel(records[1].task_id, owner=None)
        clock.advance(10)
        assert await listener.next() == WorkWaiting({"tool": 1}, 20.0, is_complete=True)
        await runtime.cancel(records[2].task_id, owner=None)
        clock.advance(10)
        assert await listener.next() == WorkWaiting({}, 0.0, is_complete=True)
    listener.close()
