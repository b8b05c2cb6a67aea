"""Two servers on `mcp` 2.x as two processes on one store: tasks move from the one that is lost to the other (L12)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, cast

import anyio
import anyio.lowlevel
import pytest
from mcp import Client
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult
from pydantic import BaseModel

from mcp_task_runtime import Rerun, ServerTaskContext, TaskSpec, TaskStore
from mcp_task_runtime.adapters._caller import caller_of
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.client import ClientTask, TasksClient
from mcp_task_runtime.core.types import NewTask, TaskRequest
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster, Process
from tests.mcp_v2.listeners import Connection, memory_connection
from tests.mcp_v2.raw_client import accept
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
]


class Name(BaseModel):
    name: str


class Page(BaseModel):
    text: str
    words: int


def ask_for_name() -> Elicit[Name]:
    return Elicit("Who are you?", Name)


class Server:
    """One process: an MCP server with rerunnable tools, and a connection to the shared store.

    Attributes:
        runs: The tools that ran here, in order.
    """

    def __init__(self, cluster: Cluster) -> None:
        process = cluster.process()
        self.link = process.link
        self.mcp: MCPServer[Any] = MCPServer("reruns")
        self.tasks = Tasks(cast(TaskStore, process.link), settings=SETTINGS)
        self.process = Process(process.link, self.tasks.runtime)
        self.tasks.install(self.mcp)
        self.runs: list[str] = []
        self.connection: Connection

        @self.tasks.tool(name="write page", required=True, rerunnable=True)
        async def write(topic: str, task: ServerTaskContext, words: int = 3) -> Page:
            self.runs.append(topic)
            first = await task.elicit("author?", Name)
            second = await task.elicit("editor?", Name)
            assert first.action == second.action == "accept"
            return Page(text=f"{topic} by {first.data.name}, {second.data.name}", words=words)

        @self.tasks.tool(required=True, rerunnable=True)
        async def breaks(how: str, task: ServerTaskContext) -> str:
            self.runs.append(how)
            await task.elicit("go on?", Name)
            if how == "tool error":
                raise ToolError("it is Monday")
            if how == "protocol error":
                raise MCPError(-32050, "no luck", {"a": 1})
            raise RuntimeError("a secret")

        @self.tasks.tool(required=True, rerunnable=True)
        async def with_context(task: ServerTaskContext, ctx: Context) -> str:
            self.runs.append("with_context")
            await task.elicit("go on?", Name)
            return ctx.request_id

        @self.tasks.tool(required=True, rerunnable=True)
        async def with_input(name: Annotated[Name, Resolve(ask_for_name)], task: ServerTaskContext) -> str:
            self.runs.append("with_input")
            await task.elicit("go on?", Name)
            return name.name

        async def write_page(topic: str) -> Page:
            self.runs.append(topic)
            return Page(text=topic, words=1)

        @self.tasks.tool(required=True, rerunnable=True)
        async def stepwise(topic: str, task: ServerTaskContext) -> str:
            page = await task.step("write", write_page, topic)
            await task.elicit("go on?", Name)
            return f"{page.text}, attempt {task.attempt}"

        @self.tasks.tool(required=True, rerunnable=Rerun(max_attempts=3, backoff=2, on=[ConnectionError]))
        async def flaky(failures: int, task: ServerTaskContext) -> str:
            self.runs.append(f"attempt {task.attempt}")
            if task.attempt <= failures:
                raise ConnectionError("the network is down")
            return f"in attempt {task.attempt}"

        @self.tasks.tool(required=True)
        async def once(task: ServerTaskContext) -> str:
            self.runs.append("once")
            await task.elicit("go on?", Name)
            return "done"

        @self.mcp.tool()
        async def adopted(ctx: Context) -> str:
            self.runs.append("adopted")
            await ctx.report_progress(1, 2)
            await ctx.info("running")
            answer = await ctx.elicit("go on?", Name)
            return f"{answer.action} {answer.data.name if answer.action == 'accept' else None}"

        self.tasks.adopt("adopted", required=True, rerunnable=True)

    async def asked(self, task_id: str, message: str) -> str:
        """Poll here until the task asks this; return the key."""
        while True:
            for key, request in (await self.connection.client.asked(task_id)).items():
                if request["params"]["message"] == message:
                    return key

    async def answer(self, task_id: str, message: str, name: str = "Ada") -> None:
        """Answer this question here."""
        await self.connection.client.update(task_id, {await self.asked(task_id, message): accept(name=name)})

    async def until_ended(self, task_id: str) -> Wire:
        """Poll here until the task has ended."""
        return await self.connection.client.until(task_id, "completed", "failed", "cancelled")


@asynccontextmanager
async def two_servers() -> AsyncGenerator[tuple[Cluster, Server, Server], None]:
    cluster = Cluster()
    servers = Server(cluster), Server(cluster)
    with anyio.fail_after(PATIENCE):
        async with AsyncExitStack() as stack:
            for server in servers:
                await stack.enter_async_context(server.tasks)
                server.connection = await stack.enter_async_context(memory_connection(server.mcp))
            try:
                yield cluster, *servers
            finally:
                for server in servers:
                    server.link.is_cut = False
    assert cluster.clock.waiting == 0, "something still waits"


async def lose(cluster: Cluster, server: Server) -> None:
    """Cut a server off, and let time pass until its tasks are lost."""
    await cluster.cut(server.process)
    await cluster.pass_time(LEASE_SECONDS + 1)


async def test_a_task_is_polled_answered_listened_to_and_cancelled_on_either_server() -> None:
    async with two_servers() as (_, a, b):
        task_id = await a.connection.client.start("write page", {"topic": "bees"})
        async with b.connection.listen(task_id) as stream:
            assert await stream.acknowledged() == [task_id]
            await b.answer(task_id, "author?")
            await stream.until(
                lambda task: any(q["params"]["message"] == "editor?" for q in task.get("inputRequests", {}).values())
            )
            await b.connection.client.cancel(task_id)
            await stream.ended()
        assert stream.seen[task_id][-1]["status"] == "cancelled"
        while a.process.running:
            await anyio.lowlevel.checkpoint()
        assert (a.runs, b.runs) == (["bees"], [])


async def test_a_lost_servers_work_goes_on_at_the_other_and_nobody_is_asked_twice() -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("write page", {"topic": "bees", "words": 7})
        await b.answer(task_id, "author?", "Ann")
        key = await b.asked(task_id, "editor?")
        await lose(cluster, a)
        assert (a.runs, b.runs) == (["bees"], ["bees"])
        assert await b.asked(task_id, "editor?") == key
        await b.answer(task_id, "editor?", "Eve")
        task = await b.until_ended(task_id)
        assert task["status"] == "completed"
        assert task["result"]["structuredContent"] == {"text": "bees by Ann, Eve", "words": 7}
        assert task["result"]["isError"] is False

        usual = await b.connection.client.start("write page", {"topic": "bees", "words": 7})
        await b.answer(usual, "author?", "Ann")
        await b.answer(usual, "editor?", "Eve")
        assert (await b.until_ended(usual))["result"] == task["result"], "as if it had run once"


async def test_a_rerun_resumes_behind_the_steps_that_have_ended() -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("stepwise", {"topic": "bees"})
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        await b.answer(task_id, "go on?")
        task = await b.until_ended(task_id)
        assert task["result"]["structuredContent"] == {"result": "bees, attempt 2"}
        assert (a.runs, b.runs) == (["bees"], [])


@pytest.mark.parametrize(("failures", "is_error"), [(1, False), (2, False), (3, True)])
async def test_a_tool_that_raises_what_its_policy_names_runs_again(failures: int, is_error: bool) -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("flaky", {"failures": failures})
        await cluster.settle()
        assert a.runs == ["attempt 1"]
        assert (await b.connection.client.get(task_id))["statusMessage"] == "Runs again in 2 s (attempt 2 of 3)"
        await cluster.pass_time(10)
        task = await b.until_ended(task_id)
        assert a.runs == [f"attempt {number + 1}" for number in range(min(failures + 1, 3))]
        assert task["result"]["isError"] is is_error
        text = "Error executing tool flaky" if is_error else f"in attempt {failures + 1}"
        assert text in task["result"]["content"][0]["text"]


async def test_work_whose_client_no_question_reaches_is_told_so_wherever_it_runs_by_its_name() -> None:
    """L18: as in the process that took the call."""
    async with two_servers() as (_, a, _):
        caller = caller_of({}, undeliverable="the server has no sessions")
        request = TaskRequest(name="once", rerunnable=True, caller_json=caller)
        record = await a.tasks.runtime.submit(TaskSpec(request=request))
        outcome = await a.tasks.runtime.result(record.task_id, owner=None)
        assert "the server has no sessions" in str(outcome.error or outcome.result)


async def test_what_an_adopted_tool_raises_cannot_be_named() -> None:
    tasks = Tasks()
    with pytest.raises(ValueError, match="becomes a result before it is seen"):
        tasks.adopt("any", rerunnable=Rerun(on=[ConnectionError]))
    tasks.adopt("any", rerunnable=Rerun(max_attempts=2))
    with pytest.raises(ValueError, match="must be True, False or a Rerun"):
        tasks.adopt("any", rerunnable=3)  # type: ignore[arg-type]


async def test_a_server_that_stops_hands_its_work_over_at_once() -> None:
    async with two_servers() as (cluster, _, b):
        leaving = Server(cluster)
        async with leaving.tasks, memory_connection(leaving.mcp) as leaving.connection:
            task_id = await leaving.connection.client.start("write page", {"topic": "bees"})
            key = await leaving.asked(task_id, "author?")
        assert await b.asked(task_id, "author?") == key
        assert b.runs == ["bees"], "the poll was enough: no time has passed"
        await b.answer(task_id, "author?")
        await b.answer(task_id, "editor?")
        assert (await b.until_ended(task_id))["status"] == "completed"


async def test_the_sdks_client_resumes_a_moved_task_and_is_asked_what_is_open_alone() -> None:
    async with two_servers() as (cluster, a, b):
        asked: list[str] = []

        async def answer(context: Any, params: Any) -> ElicitResult:
            asked.append(params.message)
            return ElicitResult(action="accept", content={"name": "Eve"})

        tasks_client = TasksClient()
        options: Any = {"extensions": [tasks_client], "elicitation_callback": answer}
        async with Client(a.mcp, **options) as at_a, Client(b.mcp, **options) as at_b:
            started = await tasks_client.start(at_a, "write page", {"topic": "bees"})
            assert isinstance(started, ClientTask)
            await b.answer(started.task_id, "author?", "Ann")
            await b.asked(started.task_id, "editor?")
            await lose(cluster, a)
            result = await tasks_client.resume(at_b, started.task_id).wait()
            assert result.structured_content == {"text": "bees by Ann, Eve", "words": 3}
            assert asked == ["editor?"]


@pytest.mark.parametrize("how", ["tool error", "protocol error", "an exception"])
async def test_a_rerun_that_fails_ends_exactly_as_the_first_run_would(how: str) -> None:
    """Law L11 and wire rule C10."""
    async with two_servers() as (cluster, a, b):
        usual = await b.connection.client.start("breaks", {"how": how})
        await b.answer(usual, "go on?")
        expected = await b.until_ended(usual)
        task_id = await a.connection.client.start("breaks", {"how": how})
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        await b.answer(task_id, "go on?")
        task = await b.until_ended(task_id)
        assert b.runs == [how, how]
        assert task["status"] == expected["status"]
        for name in ("result", "error"):
            assert task.get(name) == expected.get(name)


async def test_an_adopted_tool_runs_again_and_asks_with_its_own_context() -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("adopted")
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        await b.answer(task_id, "go on?", "Eve")
        task = await b.until_ended(task_id)
        assert (a.runs, b.runs) == (["adopted"], ["adopted"])
        assert task["result"]["content"][0]["text"] == "accept Eve"


async def test_work_that_may_not_run_again_fails_and_says_so() -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("once")
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        task = await b.until_ended(task_id)
        assert (task["status"], b.runs) == ("failed", [])
        assert "lost" in task["error"]["message"]
        assert "lost" in task["statusMessage"]


async def test_a_rerun_has_a_context_without_a_request() -> None:
    async with two_servers() as (cluster, a, b):
        task_id = await a.connection.client.start("with_context")
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        await b.answer(task_id, "go on?")
        task = await b.until_ended(task_id)
        assert b.runs == ["with_context"]
        assert task["result"]["content"][0]["text"] == task_id


async def test_input_that_a_resolver_needs_is_asked_through_the_task_when_its_tool_runs_again() -> None:
    """Wire rule C5: that input belonged to the call, which is over; the record has the arguments alone."""
    async with two_servers() as (cluster, a, b):
        first = (await a.connection.client.call("with_input")).result
        assert first["resultType"] == "input_required"
        (key,) = first["inputRequests"]
        answers = {"inputResponses": {key: accept(name="Ada")}, "requestState": first.get("requestState")}
        task_id = await a.connection.client.start("with_input", extra={k: v for k, v in answers.items() if v})
        await a.asked(task_id, "go on?")
        await lose(cluster, a)
        await b.answer(task_id, "Who are you?", "Eve")
        await b.answer(task_id, "go on?")
        task = await b.until_ended(task_id)
        assert b.runs == ["with_input"]
        assert task["result"]["content"][0]["text"] == "Eve"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_worker_runs_the_task_of_a_tool_that_may_not_run_again_and_no_other_one_repeats_it(
    is_lost: bool,
) -> None:
    async with two_servers() as (cluster, a, b):
        waiting = NewTask(
            ttl_ms=None,
            request=TaskRequest(name="once"),
            client_capabilities_json='{"elicitation":{"form":{}}}',
            worker="",
            lease_ms=LEASE_SECONDS * 1000,
        )
        task_id = (await cluster.store.create_task(waiting)).task_id
        async with anyio.create_task_group() as group:
            group.start_soon(b.tasks.runtime.execute, task_id)
            await a.asked(task_id, "go on?")
            if is_lost:
                await lose(cluster, b)
                b.link.is_cut = False
            else:
                await a.answer(task_id, "go on?")
            task = await a.until_ended(task_id)
        assert task["status"] == ("failed" if is_lost else "completed")
        assert (a.runs, b.runs) == ([], ["once"])
