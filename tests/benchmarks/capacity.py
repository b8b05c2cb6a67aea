"""How many servers, workers and store nodes a number of live tasks needs, predicted from costs measured here.

    python -m tests.benchmarks.capacity           the table
    python -m tests.benchmarks.capacity --check   the prediction compared with 20,000 live tasks in one process

The model: each task is called, polled as often as `tasks/get` asks for, asks one question, is answered and ends. Time
of the processor and of the store go with the rate of tasks and of polls; memory goes with the number of live tasks.
What fills its budget with the fewest tasks saturates first. A part is planned to be busy for `BUSY` of its time.
"""

from __future__ import annotations

import gc
import logging
import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import anyio
from mcp.server import MCPServer
from pydantic import BaseModel

from mcp_task_runtime import InMemoryTaskStore, ServerTaskContext, TaskSettings
from mcp_task_runtime.server import Tasks
from tests.benchmarks.measuring import resident_kib
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.raw_client import DECLARED, RawClient, accept

LIVE: Final = (10**4, 10**6, 10**8)
LIFE_SECONDS: Final = 600.0
"""How long a task lives on average."""

BUSY: Final = 0.6
SERVER_GIB: Final = 4.0
STORE_OPERATIONS: Final = 10_000.0
"""Operations a second of one store node: a Redis, of which each script counts as one."""

STORE_CONNECTIONS: Final = 10_000
CONNECTIONS_OF_PROCESS: Final = 10
WRITES_OF_TASK: Final = 5
LEASE_SECONDS: Final = 15.0
LEASES_IN_A_WRITE: Final = 500
CHECKED: Final = 20_000
SAMPLE: Final = 1_000
POLLS: Final = 3

UNLIMITED: Final = TaskSettings(
    shutdown_grace=0, max_tasks_per_owner=None, max_stored_tasks_per_owner=None, max_stored_bytes_per_owner=None
)


class Consent(BaseModel):
    ok: bool


@dataclass(frozen=True)
class Costs:
    """What one task costs a server: seconds of the processor, and KiB while it waits."""

    call: float
    poll: float
    answer: float
    kib: float

    def seconds(self, tasks: float, polls: float, ended: float | None = None) -> float:
        """Return the seconds of the processor for so many tasks and polls; all tasks end, unless `ended` says less."""
        return tasks * self.call + (tasks if ended is None else ended) * self.answer + polls * self.poll


def polls_of(life: float) -> float:
    """Return how often a client polls a task that lives for so many seconds; see `core.polls`."""
    age, polls = 0.0, 1
    while age < life:
        age += min(max(min(age / 10, 0.5), age / 100, 0.02), 5.0)
        polls += 1
    return polls


async def measured(tasks: int, polls: int = POLLS, *, ended: int | None = None) -> tuple[Costs, float]:
    """Run so many tasks, all of them alive at once; return the costs of one and the seconds of all.

    The client runs in the same process, so that a server alone needs less.

    Args:
        tasks: How many are called.
        polls: How often each of the last `ended` tasks is polled.
        ended: How many of them are polled, answered and end; `None` for all. The others go with the server.
    """
    mcp: MCPServer[Any] = MCPServer("capacity")
    server = Tasks(InMemoryTaskStore(), settings=UNLIMITED)
    server.install(mcp)

    @server.tool()
    async def ask(task: ServerTaskContext) -> str:
        return (await task.elicit("Sure?", Consent)).action

    async with server, memory_client(mcp) as client:
        await run(client, 100)
        gc.collect()
        before = resident_kib()
        began = time.process_time()
        ids = [await start(client) for _ in range(tasks)]
        await anyio.wait_all_tasks_blocked()
        called = time.process_time()
        kib = (resident_kib() - before) / tasks
        keys: dict[str, str] = {}
        ids = ids[-(ended or tasks) :]
        for _ in range(polls):
            for task_id in ids:
                shown = (await client.request("tasks/get", {"taskId": task_id}, check=False)).result
                (keys[task_id],) = shown["inputRequests"]
        polled = time.process_time()
        for task_id in ids:
            answers = {keys[task_id]: accept(ok=True)}
            await client.request("tasks/update", {"taskId": task_id, "inputResponses": answers}, check=False)
        await anyio.wait_all_tasks_blocked()
        answered = time.process_time()
    costs = Costs((called - began) / tasks, (polled - called) / (polls * len(ids)), (answered - polled) / len(ids), kib)
    return costs, answered - began


async def start(client: RawClient) -> str:
    handle = await client.request("tools/call", {"name": "ask", "arguments": {}}, capabilities=DECLARED, check=False)
    task_id: str = handle.result["taskId"]
    return task_id


async def run(client: RawClient, count: int) -> None:
    for _ in range(count):
        await start(client)


@dataclass(frozen=True)
class Plan:
    """What a number of live tasks needs.

    Attributes:
        by: Servers by what limits them.
        stores: Store nodes by what limits them.
    """

    by: dict[str, float]
    stores: dict[str, float]

    @property
    def servers(self) -> int:
        """Number of server processes: each runs the work of its tasks, so that workers are among them."""
        return math.ceil(max(self.by.values()))

    @property
    def store_nodes(self) -> int:
        """Number of store nodes, by task id."""
        return math.ceil(max(self.stores.values()))

    @property
    def first(self) -> str:
        """What saturates first: on a server, and in the store."""
        return f"{max(self.by, key=lambda name: self.by[name])}; {max(self.stores, key=lambda name: self.stores[name])}"


def plan(live: int, costs: Costs) -> Plan:
    """Return what so many live tasks need."""
    tasks = live / LIFE_SECONDS
    polls = tasks * polls_of(LIFE_SECONDS)
    by = {
        "calls and answers": costs.seconds(tasks, 0) / BUSY,
        "calls, answers and polls": costs.seconds(tasks, polls) / BUSY,
        "memory": live * costs.kib / (SERVER_GIB * BUSY * 1024**2),
    }
    renewals = live / LEASES_IN_A_WRITE / (LEASE_SECONDS / 3)
    writes = tasks * WRITES_OF_TASK + renewals
    servers = max(by.values())
    stores = {
        "writes": writes / (STORE_OPERATIONS * BUSY),
        "writes and polls": (writes + polls) / (STORE_OPERATIONS * BUSY),
        "connections": servers * CONNECTIONS_OF_PROCESS / STORE_CONNECTIONS,
    }
    return Plan(by, stores)


async def table() -> None:
    costs, _ = await measured(SAMPLE)
    print(
        f"Measured: a call {1e3 * costs.call:.2f} ms, a poll {1e3 * costs.poll:.2f} ms, an answer and the end "
        f"{1e3 * costs.answer:.2f} ms of one core, client included; {costs.kib:.1f} KiB a waiting task. "
        f"A task lives {LIFE_SECONDS:.0f} s and is polled {polls_of(LIFE_SECONDS):.0f} times.\n"
    )
    print("| live tasks | server processes | store nodes | saturates first: server; store | with pushes for all |")
    print("| --- | --- | --- | --- | --- |")
    for live in LIVE:
        needed = plan(live, costs)
        pushed = math.ceil(max(needed.by["calls and answers"], needed.by["memory"]))
        print(
            f"| {live:,} | {needed.servers:,} | {needed.store_nodes:,} | {needed.first} | {pushed:,} servers, "
            f"{math.ceil(needed.stores['writes']):,} store nodes |",
            flush=True,
        )


async def check() -> int:
    """Compare the prediction from a small run with a large one; return 0 if it holds within a factor of 1.5."""
    costs, _ = await measured(SAMPLE)
    predicted = costs.seconds(CHECKED, POLLS * CHECKED)
    found, seconds = await measured(CHECKED)
    off = 0
    for what, expected, real in (
        ("seconds of the processor", predicted, seconds),
        ("KiB a waiting task", costs.kib, found.kib),
    ):
        ratio = real / expected
        off += not 1 / 1.5 <= ratio <= 1.5
        print(f"{CHECKED:,} live tasks, {what}: predicted {expected:.1f}, measured {real:.1f}, ratio {ratio:.2f}")
    return off


def main() -> int:
    logging.disable(logging.CRITICAL)
    if "--check" in sys.argv:
        return anyio.run(check)
    anyio.run(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
