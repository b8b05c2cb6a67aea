"""Two servers on `mcp` 1.x as two processes on one store: the work of the one that is lost runs at the other (L12)."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest
from mcp.server.fastmcp import Context, FastMCP
from pydantic import BaseModel

from mcp_task_runtime import Rerun, ServerTaskContext, TaskStore
from mcp_task_runtime.adapters.mcp_v1 import Tasks
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster, Process
from tests.mcp_v1.in_memory import connect
from tests.mcp_v1.raw_client import accept
from tests.mcp_v1.schemas import Wire
from tests.support.patience import PATIENCE


class Name(BaseModel):
    name: str


async def say(question: Wire) -> Wire | None:
    return accept(name="Eve")


class Server:
    """One process: a server with rerunnable tools, and a connection to the shared store."""

    def __init__(self, cluster: Cluster) -> None:
        process = cluster.process()
        self.link = process.link
        self.mcp: FastMCP[Any] = FastMCP("reruns", log_level="CRITICAL")
        self.tasks = Tasks(cast(TaskStore, process.link), settings=SETTINGS, principal=lambda ctx: "everybody")
        self.process = Process(process.link, self.tasks.runtime)
        self.tasks.install(self.mcp)
        self.runs: list[str] = []

        @self.tasks.tool(rerunnable=True)
        async def declared(topic: str, task: ServerTaskContext) -> str:
            self.runs.append(topic)
            return f"{topic} {(await task.elicit('go on?', Name)).action}"

        async def write_page(topic: str) -> str:
            self.runs.append(topic)
            return topic.upper()

        @self.tasks.tool(rerunnable=True)
        async def stepwise(topic: str, task: ServerTaskContext) -> str:
            page = await task.step("write", write_page, topic)
            await task.elicit("go on?", Name)
            return f"{page}, attempt {task.attempt}"

        @self.tasks.tool(rerunnable=Rerun(max_attempts=3, backoff=2, on=[ConnectionError]))
        async def flaky(failures: int, task: ServerTaskContext) -> str:
            self.runs.append(f"attempt {task.attempt}")
            if task.attempt <= failures:
                raise ConnectionError("the network is down")
            return f"in attempt {task.attempt}"

        @self.mcp.tool()
        async def adopted(topic: str, ctx: Context) -> str:  # type: ignore[type-arg]
            self.runs.append(topic)
            await ctx.report_progress(1, 2)
            await ctx.info("running")
            return f"{topic} {(await ctx.elicit('go on?', Name)).action}"

        self.tasks.adopt("adopted", rerunnable=True)


@pytest.mark.parametrize("name", ["declared", "adopted"])
async def test_the_work_of_a_lost_server_runs_again_and_asks_through_its_task(name: str) -> None:
    cluster = Cluster()
    a, b = Server(cluster), Server(cluster)
    with anyio.fail_after(PATIENCE):
        async with a.tasks, b.tasks:
            async with connect(a.mcp) as at_a, connect(b.mcp, say) as at_b:
                task_id = await at_a.start(name, {"topic": "bees"})
                await at_a.until(task_id, "input_required")
                await cluster.cut(a.process)
                await cluster.pass_time(LEASE_SECONDS + 1)
                assert await at_b.text(task_id) == "bees accept"
            a.link.is_cut = False
    assert (a.runs, b.runs) == (["bees"], ["bees"])


async def test_a_rerun_resumes_behind_the_steps_that_have_ended() -> None:
    cluster = Cluster()
    a, b = Server(cluster), Server(cluster)
    with anyio.fail_after(PATIENCE):
        async with a.tasks, b.tasks:
            async with connect(a.mcp) as at_a, connect(b.mcp, say) as at_b:
                task_id = await at_a.start("stepwise", {"topic": "bees"})
                await at_a.until(task_id, "input_required")
                await cluster.cut(a.process)
                await cluster.pass_time(LEASE_SECONDS + 1)
                assert await at_b.text(task_id) == "BEES, attempt 2"
            a.link.is_cut = False
    assert (a.runs, b.runs) == (["bees"], [])


async def test_a_tool_that_raises_what_its_policy_names_runs_again() -> None:
    cluster = Cluster()
    a = Server(cluster)
    with anyio.fail_after(PATIENCE):
        async with a.tasks, connect(a.mcp) as at_a:
            task_id = await at_a.start("flaky", {"failures": 2})
            await cluster.settle()
            assert a.runs == ["attempt 1"]
            await cluster.pass_time(10)
            assert await at_a.text(task_id) == "in attempt 3"
    assert a.runs == ["attempt 1", "attempt 2", "attempt 3"]
