"""What the dispatcher for Celery sends: messages that come together in one batch, and who hears of its failure."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

pytest.importorskip("celery", reason="the engine is not installed")

from celery import Celery
from kombu.connection import ConnectionPool
from kombu.transport.memory import Channel

from mcp_task_runtime.core.dispatch import Dispatch
from mcp_task_runtime.engines.celery import CeleryDispatcher
from tests.stores import redis_server
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class OldProducer:
    """A producer that sends each message at once, as all do before Kombu 5.7."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def send(self, key: str) -> None:
        self.batches.append([key])


class Producer(OldProducer):
    """A producer that notes what is sent in a batch, and can lose one."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[list[str]] = []
        self.is_down = False
        self._of_thread = threading.local()

    @contextmanager
    def batch(self) -> Iterator[None]:
        current: list[str] = []
        self._of_thread.batch = current
        try:
            yield
        except BaseException:
            self.dropped.append(current)
            raise
        finally:
            self._of_thread.batch = None
        if self.is_down:
            raise ConnectionError
        self.batches.append(current)

    def send(self, key: str) -> None:
        current: list[str] | None = getattr(self._of_thread, "batch", None)
        if current is None:
            super().send(key)
        else:
            current.append(key)


class App:
    """In place of an application of Celery. The message of a task named "held" is held until the test lets it go."""

    def __init__(self, producer_class: Callable[[], Any] = Producer) -> None:
        self.producer = producer_class()
        self.declares: list[tuple[str, bool]] = []
        self.revoked: list[list[str]] = []
        self.is_holding, self.goes_on = threading.Event(), threading.Event()
        self.control = self

    @contextmanager
    def producer_or_acquire(self) -> Iterator[Any]:
        yield self.producer

    def send_task(self, name: str, *, task_id: str, queue: str, producer: Any, **options: Any) -> None:
        if task_id.startswith("held"):
            self.is_holding.set()
            assert self.goes_on.wait(PATIENCE)
        if task_id.startswith("bad"):
            raise LookupError(task_id)
        self.declares.append((queue, options.get("declare") is None))
        producer.send(task_id)

    def revoke(self, keys: list[str]) -> None:
        if keys == ["held.1"]:
            self.is_holding.set()
            assert self.goes_on.wait(PATIENCE)
        self.revoked.append(list(keys))


def dispatch_of(task_id: str, name: str = "tool") -> Dispatch:
    return Dispatch(task_id, name, 1, None)


async def until(is_so: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not is_so():  # noqa: ASYNC110 - a thread does it
            await anyio.sleep(0.001)


class Submits:
    """Submits, and how they ended."""

    def __init__(self, dispatcher: CeleryDispatcher) -> None:
        self._dispatcher = dispatcher
        self.ends: dict[str, type[BaseException] | None] = {}

    async def submit(self, task_id: str, name: str = "tool") -> None:
        try:
            await self._dispatcher.submit(dispatch_of(task_id, name))
        except Exception as error:
            self.ends[task_id] = type(error)
        else:
            self.ends[task_id] = None


async def test_messages_that_come_together_are_sent_together() -> None:
    app = App()
    dispatcher = CeleryDispatcher(app, queues={"slow tool": "slow"})
    submits = Submits(dispatcher)
    async with anyio.create_task_group() as group:
        group.start_soon(submits.submit, "held")
        await until(app.is_holding.is_set)
        for task_id, name in [("a", "tool"), ("b", "slow tool"), ("bad", "tool"), ("c", "tool"), ("d", "slow tool")]:
            group.start_soon(submits.submit, task_id, name)
        await anyio.wait_all_tasks_blocked()
        app.goes_on.set()
    first, second = app.producer.batches
    assert first == ["held.1"]
    assert sorted(second) == ["a.1", "b.1", "c.1", "d.1"]
    assert submits.ends == {**dict.fromkeys(["held", "a", "b", "c", "d"]), "bad": LookupError}
    batch = app.declares[1:]  # each queue is declared once
    assert Counter(queue for queue, is_declared in batch if is_declared) == {"mcp-tasks": 1, "slow": 1}
    assert len(batch) == 4


async def test_a_producer_without_batches_sends_one_message_after_the_other() -> None:
    app = App(producer_class=OldProducer)
    submits = Submits(CeleryDispatcher(app))
    async with anyio.create_task_group() as group:
        group.start_soon(submits.submit, "held")
        await until(app.is_holding.is_set)
        for task_id in ("a", "bad", "b"):
            group.start_soon(submits.submit, task_id)
        await anyio.wait_all_tasks_blocked()
        app.goes_on.set()
    assert sorted(app.producer.batches) == [["a.1"], ["b.1"], ["held.1"]]
    assert submits.ends == {"held": None, "a": None, "b": None, "bad": LookupError}


async def test_a_batch_that_is_lost_at_its_end_fails_all_its_messages() -> None:
    app = App()
    submits = Submits(CeleryDispatcher(app))
    async with anyio.create_task_group() as group:
        group.start_soon(submits.submit, "held")
        await until(app.is_holding.is_set)
        for task_id in ("a", "b"):
            group.start_soon(submits.submit, task_id)
        await anyio.wait_all_tasks_blocked()
        app.producer.is_down = True
        app.goes_on.set()
    assert submits.ends == {"held": None, "a": ConnectionError, "b": ConnectionError}
    app.producer.is_down = False
    await submits.submit("later")
    assert submits.ends["later"] is None


async def test_a_lost_connection_is_tried_once_for_a_batch_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    replaced: list[object] = []

    def put(*args: object, **options: object) -> None:
        tried.append(args)
        raise ConnectionResetError

    replace = ConnectionPool.replace

    def note_and_replace(*args: object) -> object:
        replaced.append(args)
        return replace(*args)

    monkeypatch.setattr(Channel, "_put", put)
    monkeypatch.setattr(ConnectionPool, "replace", note_and_replace)
    submits = Submits(CeleryDispatcher(Celery("reports", broker="memory://")))
    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(submits.submit, f"task {number}")
    assert set(submits.ends.values()) == {ConnectionResetError}
    assert len(submits.ends) == 8
    assert len(tried) == len(replaced) < 8


async def test_what_a_cancelled_batch_has_not_sent_is_dropped() -> None:
    app = App()
    submits = Submits(CeleryDispatcher(app))
    async with anyio.create_task_group() as group:
        first, second = anyio.CancelScope(), anyio.CancelScope()

        async def hold(scope: anyio.CancelScope, task_id: str) -> None:
            with scope:
                await submits.submit(task_id)

        group.start_soon(hold, first, "held")
        await until(app.is_holding.is_set)
        app.is_holding.clear()
        group.start_soon(hold, second, "held too")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(submits.submit, "follows")
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await until(app.is_holding.is_set)
        second.cancel()
        await until(lambda: "follows" in submits.ends)
        app.goes_on.set()
        await until(lambda: bool(app.producer.dropped))
    assert submits.ends == {"follows": TimeoutError}
    assert app.producer.dropped == [["held too.1"]]
    assert ["follows.1"] not in app.producer.batches


async def test_tasks_that_are_revoked_together_share_a_message() -> None:
    app = App()
    dispatcher = CeleryDispatcher(app)
    async with anyio.create_task_group() as group:
        group.start_soon(dispatcher.revoke, "held")
        await until(app.is_holding.is_set)
        for number in range(5):
            group.start_soon(dispatcher.revoke, str(number))
        await anyio.wait_all_tasks_blocked()
        app.goes_on.set()
    assert app.revoked[0] == ["held.1"]
    assert sorted(app.revoked[1]) == [f"{number}.1" for number in range(5)]


async def test_a_broker_has_each_message_once() -> None:
    with redis_server.own_server() as redis:
        app = Celery("reports", broker=redis.url)
        dispatcher = CeleryDispatcher(app, queues={"slow tool": "slow"})
        async with anyio.create_task_group() as group:
            for number in range(30):
                name = "slow tool" if number % 3 == 0 else "tool"
                group.start_soon(dispatcher.submit, dispatch_of(str(number), name))
        assert (redis.client.llen("mcp-tasks"), redis.client.llen("slow")) == (20, 10)
        app.close()
