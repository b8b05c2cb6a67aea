"""Law L12 where it matters: processes are killed at any moment, and no task is lost or ends wrongly.

Workers start tasks of all kinds until they are killed. The test's own process, a server with a short lease, answers
their questions and takes over the tasks of dead workers, as the living workers do. All the time it checks every
task it knows.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio

from mcp_task_runtime import StoreUnavailableError, TaskRecord, TaskRuntime, TaskSettings
from mcp_task_runtime.core.transitions import is_terminal
from tests.stores.worker_program import Place, Store, Tool
from tests.stores.workers import Worker, WorkerPool, open_worker_pool

IS_LONG = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"
KILLS = 100 if IS_LONG else 10
"""For each store and event loop, of which there are two."""

KILLERS = 2
LEASE_MS = 300
MOST_TASKS = 25
PATIENCE = 20.0 * KILLS
SETTLE_SECONDS = 60.0


@dataclass
class Server:
    """The process that survives, and what its clients know.

    Attributes:
        store: The store.
        runtime: Its runtime.
        seen: Each task as it was at the last look.
        given: The answers that were acknowledged, by task and question.
    """

    store: Store
    runtime: TaskRuntime
    seen: dict[str, TaskRecord] = field(default_factory=dict)
    given: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def look(self, task_id: str) -> TaskRecord:
        """Read a task and check that nothing seen before was undone."""
        record = await self.store.get_task(task_id)
        assert record is not None, f"{task_id} is lost"
        before = self.seen.get(task_id)
        if before is not None:
            if before.outcome is not None:
                assert record == before, "a task that had ended has changed"
            assert record.revision >= before.revision
            assert record.task.last_updated_at >= before.task.last_updated_at
            assert record.task.created_at == before.task.created_at
            attempts = [lease.attempt for lease in (before.lease, record.lease) if lease is not None]
            assert attempts == sorted(attempts)
        assert (record.outcome is not None) == is_terminal(record.status)
        self.seen[task_id] = record
        return record

    async def serve(self, task_id: str) -> TaskRecord:
        """Read a task and answer its questions, each one once."""
        record = await self.look(task_id)
        if record.outcome is not None:
            return record
        given = self.given.setdefault(task_id, {})
        try:
            view = await self.runtime.get(task_id, owner=record.owner)
        except StoreUnavailableError:  # the machine left it no time to take a lost task over
            return record
        for question in view.questions:
            key, message = question.key, question.params["message"]
            assert key is not None
            assert message not in given, f"{task_id} asked again what had been answered"
            content = {"answer": f"{message} {secrets.token_hex(4)}"}
            await self.runtime.answer(task_id, {key: {"action": "accept", "content": content}}, owner=record.owner)
            given[message] = content
        return record


def check_end(record: TaskRecord, work: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that a task ended as its work does, or failed as lost if it must not run again."""
    outcome = record.outcome
    assert outcome is not None
    if outcome.status == "completed":
        assert not work.get("forever")
        heard = [given[f"question {number}?"] for number in range(work.get("questions", 0))]
        assert outcome.result == {"heard": heard}, "the answers are those that were given, each to its question"
    else:
        assert not work.get("rerunnable"), outcome
        assert outcome.status == "failed"
        assert outcome.error is not None
        assert "worker" in outcome.error["message"]
        assert "lost" in outcome.error["message"]


async def tasks_of(store: Store, owner: str) -> dict[str, TaskRecord]:
    """Return all tasks of an owner."""
    found: dict[str, TaskRecord] = {}
    cursor = None
    while True:
        page = await store.list_tasks(owner=owner, cursor=cursor)
        assert not found.keys() & {record.task_id for record in page.records}
        found |= {record.task_id: record for record in page.records}
        cursor = page.next_cursor
        if cursor is None:
            return found


async def serve_started(server: Server, worker: Worker) -> None:
    """Serve the tasks that a worker has reported, until it is dead."""
    while not worker.is_dead:
        for message in list(worker.reports):
            if "started" in message:
                await server.serve(message["started"])
        await anyio.sleep(0.005)


async def kill_one(server: Server, pool: WorkerPool, random: Random, owner: str) -> None:
    """Start a worker, kill it at some moment, and check how its tasks end."""
    worker = await pool.start()
    await worker.send("churn", seed=owner, owner=owner, most=MOST_TASKS)
    async with anyio.create_task_group() as group:
        group.start_soon(serve_started, server, worker)
        await worker.until_reports(random.randrange(4))
        await anyio.sleep(random.random() * 0.2)
        worker.kill()
        await worker.until_dead()
    acknowledged = {message["started"]: message["work"] for message in worker.reports if "started" in message}
    stored = await tasks_of(server.store, owner)
    assert acknowledged.keys() <= stored.keys(), "a task that was acknowledged is lost"
    assert len(stored) <= len(acknowledged) + 1
    with anyio.fail_after(SETTLE_SECONDS):
        open_ids = list(stored)
        while open_ids:
            open_ids = [task_id for task_id in open_ids if (await server.serve(task_id)).outcome is None]
            await anyio.sleep(0.005)
    for task_id, record in stored.items():
        work = acknowledged.get(task_id, record.request.arguments | {"rerunnable": record.request.rerunnable})
        check_end(await server.look(task_id), work, server.given.get(task_id, {}))
        assert await server.store.message_queue.outstanding(task_id) == ()


async def test_no_kill_loses_a_task_or_leaves_one_working(
    program: subprocess.Popen[str], place: Place, anyio_backend_name: str
) -> None:
    seed = secrets.token_hex(4) if IS_LONG else f"{place.kind} {anyio_backend_name}"
    print(f"seed: {seed}")
    settings = TaskSettings(lease_ms=LEASE_MS, shutdown_grace=0)
    with anyio.fail_after(PATIENCE):
        async with place.store() as store, TaskRuntime(store, settings=settings) as runtime:
            Tool(runtime)
            server = Server(store, runtime)
            async with open_worker_pool(program, place, lease_ms=LEASE_MS) as pool:

                async def killer(number: int) -> None:
                    random = Random(f"{seed} {number}")
                    for kill in range(number, KILLS, KILLERS):
                        await kill_one(server, pool, random, f"{seed} {kill}")

                async with anyio.create_task_group() as group:
                    for number in range(KILLERS):
                        group.start_soon(killer, number)
            statuses = [(await server.look(task_id)).status for task_id in list(server.seen)]
            assert set(statuses) <= {"completed", "failed"}
