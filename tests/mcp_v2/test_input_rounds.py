"""Clients of 2026-07-28 that have not declared the tasks extension are asked by multi-round-trip input (law L15)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import anyio
import mcp_types as types
import pytest
from mcp import Client
from mcp.server import MCPServer, Server
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, Elicit, RequestStateSecurity, Resolve
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    CreateMessageResult,
    ElicitResult,
    ListToolsResult,
    TextContent,
    Tool,
)
from pydantic import BaseModel

from mcp_task_runtime import (
    CapabilityError,
    LimitExceededError,
    ProtocolError,
    QuestionTimeoutError,
    ServerTaskContext,
    StoreUnavailableError,
    TaskRecord,
    TaskSettings,
)
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.stores.memory import InMemoryTaskStore
from mcp_task_runtime.stores.sqlite import SQLiteTaskStore
from mcp_task_runtime.testing import FakeClock
from mcp_task_runtime.testing.yielding import YieldingBundledStore
from tests.mcp_v2.guarded import Guarded, as_user
from tests.mcp_v2.in_process import memory_client, served_over_http
from tests.mcp_v2.raw_client import DECLARED, RawClient, accept
from tests.mcp_v2.schemas import Wire
from tests.support.patience import PATIENCE

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning"),
    # Where the SDK's client leaves a stream before its end, its HTTP library leaves generators to trio to close.
    pytest.mark.filterwarnings("ignore:Async generator '(httpx2|httpcore2|httpx_sse|mcp)[._]:ResourceWarning"),
]

CAPABILITIES: Wire = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
KEYS = ["0123456789abcdef0123456789abcdef"]
DECLINE: Wire = {"action": "decline"}


class Name(BaseModel):
    name: str


def text_of(result: CallToolResult) -> str:
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def filled(answer: Any) -> str:
    return str(answer.data.name) if answer.action == "accept" else str(answer.action)


def who() -> Elicit[Name]:
    return Elicit("Who asks?", Name)


async def greet(task: ServerTaskContext, greeting: str = "Hello") -> str:
    return f"{greeting}, {filled(await task.elicit('Who are you?', Name))}"


class World:
    """A server in this process, and a client that knows no SDK.

    Attributes:
        ended: What the work of `record` ended with: a result, or the name of what it raised.
    """

    def __init__(self, tasks: Tasks, mcp: MCPServer[Any], clock: FakeClock, client: RawClient) -> None:
        self.tasks = tasks
        self.mcp = mcp
        self.clock = clock
        self.client = client
        self.ended: list[str] = []
        self.has_ended = anyio.Event()

    async def record(self, work: Callable[[], Awaitable[str]]) -> str:
        """Run work, and note how it ends."""
        try:
            result = await work()
            self.ended.append(result)
            return result
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        finally:
            self.has_ended.set()

    async def until_ended(self) -> None:
        """Wait until work that was recorded has ended."""
        with anyio.fail_after(PATIENCE):
            await self.has_ended.wait()
        await anyio.wait_all_tasks_blocked()

    async def call(self, tool: str, arguments: Wire | None = None, **extra: Any) -> Wire:
        return (await self.client.call(tool, arguments, extra=extra)).result

    async def asked(self, tool: str, arguments: Wire | None = None, *, questions: int = 1) -> tuple[Wire, str]:
        """Call a tool that asks; return its questions and its state."""
        return round_of(await self.call(tool, arguments), questions)

    async def retry(self, tool: str, state: str, answers: Wire | None, arguments: Wire | None = None) -> Wire:
        """Send a later request of a call; return its response."""
        given = {} if answers is None else {"inputResponses": answers}
        reply = await self.client.call(tool, arguments, extra={"requestState": state, **given})
        return reply.message

    async def statuses(self) -> list[str]:
        """Return the statuses of all tasks of clients that take none."""
        return [record.status for record in (await self.tasks.runtime.list(owner="implicit:")).records]


def round_of(result: Wire, questions: int = 1) -> tuple[Wire, str]:
    assert result["resultType"] == "input_required", result
    assert len(result["inputRequests"]) == questions
    return result["inputRequests"], result["requestState"]


def refused(message: Wire) -> None:
    assert message["error"]["code"] == -32602, message
    assert message["error"]["message"] == "Invalid or expired requestState"


def text(message: Wire) -> str:
    assert message["result"]["resultType"] == "complete", message
    content: str = message["result"]["content"][0]["text"]
    return content


@asynccontextmanager
async def open_world(kind: type[InMemoryTaskStore] = InMemoryTaskStore, **settings: Any) -> AsyncGenerator[World, None]:
    clock = FakeClock()
    async with kind(clock=clock) as store:
        mcp: MCPServer[Any] = MCPServer("rounds")
        tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0, **settings))
        tasks.install(mcp)
        tasks.tool()(greet)
        async with tasks, memory_client(mcp) as client:
            client.capabilities = CAPABILITIES
            yield World(tasks, mcp, clock, client)


@pytest.fixture
async def world(anyio_backend: str) -> AsyncGenerator[World, None]:
    async with open_world() as made:
        yield made


# The SDK's own client, whose callbacks are asked


async def answer_form(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="accept", content={"name": params.message})


async def decline_form(context: Any, params: Any) -> ElicitResult:
    return ElicitResult(action="decline")


async def write(context: Any, params: Any) -> CreateMessageResult:
    return CreateMessageResult(role="assistant", model="m", content=TextContent(text="written"))


async def by_task(task: ServerTaskContext) -> str:
    first = filled(await task.elicit("Ada", Name))
    drafted = await task.create_message([{"role": "user", "content": {"type": "text", "text": "?"}}], max_tokens=5)
    names: list[str] = []

    async def ask(message: str) -> None:
        names.append(filled(await task.elicit(message, Name)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "Bob")
        group.start_soon(ask, "Cyd")
    return f"{first} {drafted.text} {sorted(names)}"


async def by_sdk(ctx: Context) -> str:
    first = filled(await ctx.elicit("Ada", Name))
    prompt = types.SamplingMessage(role="user", content=TextContent(text="?"))
    drafted = await ctx.session.create_message([prompt], max_tokens=5)
    assert isinstance(drafted.content, TextContent)
    names: list[str] = []

    async def ask(message: str) -> None:
        names.append(filled(await ctx.elicit(message, Name)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "Bob")
        group.start_soon(ask, "Cyd")
    return f"{first} {drafted.content.text} {sorted(names)}"


Kind = Literal["tool", "task", "blocking", "adopted", "adopted, blocking", "low-level"]


def make_server(kind: Kind) -> tuple[MCPServer[Any] | Server[Any], Tasks]:
    """Return a server whose tool `work` asks four times."""
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0))
    if kind == "low-level":

        async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
            return ListToolsResult(tools=[Tool(name="work", input_schema={"type": "object"})])

        async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
            return CallToolResult(content=[TextContent(text=await tasks.run(by_task))])

        server: Server[Any] = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
        tasks.install(server)
        return server, tasks
    mcp: MCPServer[Any] = MCPServer("high")
    tasks.install(mcp)
    if kind == "task":
        mcp.tool(name="work")(tasks.task(name="work")(by_task))
    elif kind in ("adopted", "adopted, blocking"):
        mcp.tool(name="work")(by_sdk)
        tasks.adopt("work", blocking=kind == "adopted, blocking")
    else:
        tasks.tool(name="work", blocking=kind == "blocking")(by_task)
    return mcp, tasks


@pytest.mark.parametrize("kind", get_args(Kind))
async def test_every_kind_of_tool_asks_in_rounds_and_side_by_side(kind: Kind) -> None:
    server, _ = make_server(kind)
    with anyio.fail_after(PATIENCE):
        async with Client(server, elicitation_callback=answer_form, sampling_callback=write) as client:
            assert text_of(await client.call_tool("work")) == "Ada written ['Bob', 'Cyd']"
        async with Client(server, elicitation_callback=decline_form, sampling_callback=write) as client:
            assert text_of(await client.call_tool("work")) == "decline written ['decline', 'decline']"


async def test_over_http_too() -> None:
    with served_over_http(lambda: make_mcp("tool")) as url, anyio.fail_after(PATIENCE):
        async with Client(url, elicitation_callback=answer_form, sampling_callback=write) as client:
            assert text_of(await client.call_tool("work")) == "Ada written ['Bob', 'Cyd']"


def make_mcp(kind: Kind) -> MCPServer[Any]:
    server, _ = make_server(kind)
    assert isinstance(server, MCPServer)
    return server


async def test_a_plain_function_asks_from_its_thread(world: World) -> None:
    def in_a_thread(task: ServerTaskContext) -> str:
        return filled(anyio.from_thread.run(task.elicit, "Ada", Name))

    world.tasks.tool()(in_a_thread)
    questions, state = await world.asked("in_a_thread")
    assert text(await world.retry("in_a_thread", state, {key: accept(name="Eve") for key in questions})) == "Eve"


async def test_roots_and_urls_are_asked_for_too(world: World) -> None:
    async def where(task: ServerTaskContext) -> str:
        roots = await task.ask("roots/list", {})
        visited = await task.elicit_url("Log in", "https://example.org/", "e1")
        return f"{roots['roots'][0]['uri']} {visited.action}"

    world.tasks.tool()(where)
    questions, state = await world.asked("where")
    ((key, question),) = questions.items()
    assert question["method"] == "roots/list"
    questions, state = round_of((await world.retry("where", state, {key: {"roots": [{"uri": "file:///a"}]}}))["result"])
    ((key, question),) = questions.items()
    assert question["params"]["url"] == "https://example.org/"
    assert text(await world.retry("where", state, {key: {"action": "accept"}})) == "file:///a accept"


async def test_the_questions_of_the_sdk_come_first_and_ours_after_them(world: World) -> None:
    @world.tasks.tool()
    async def both(name: Annotated[Name, Resolve(who)], task: ServerTaskContext) -> str:
        return f"{name.name} {filled(await task.elicit('Who answers?', Name))}"

    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": params.message})

    with anyio.fail_after(PATIENCE):
        async with Client(world.mcp, elicitation_callback=answer) as client:
            assert text_of(await client.call_tool("both")) == "Who asks? Who answers?"


# A call that asks nothing


async def test_a_call_that_asks_nothing_leaves_no_task_and_is_told_progress(world: World) -> None:
    @world.tasks.tool()
    async def quiet(task: ServerTaskContext) -> str:
        await task.update_status("looking")
        await task.report_progress(1, 2, "half")
        with pytest.raises(RuntimeError, match="detach"):
            task.detach()
        return task.task_id

    reply = await world.client.call("quiet", meta={"progressToken": "p"})
    assert [each["params"]["message"] for each in reply.notifications] == ["looking", "half"]
    assert reply.result["content"][0]["text"]
    assert await world.statuses() == []
    assert world.tasks.runtime.statistics().stored_tasks == 0


@pytest.mark.parametrize("capabilities", [{}, CAPABILITIES, DECLARED], ids=["nothing", "questions", "tasks"])
async def test_a_tool_that_needs_a_task_is_refused_without_the_extension(world: World, capabilities: Wire) -> None:
    world.tasks.tool(name="strict", required=True)(greet)
    message = (await world.client.call("strict", capabilities=capabilities)).message
    assert message.get("error", {}).get("code") == (None if capabilities is DECLARED else -32021)


async def test_arguments_that_no_store_takes_reach_a_call_that_asks_nothing(world: World) -> None:
    @world.tasks.tool()
    async def echo(value: Any) -> str:
        return str(len(value))

    with anyio.fail_after(PATIENCE):
        async with Client(world.mcp, elicitation_callback=answer_form) as client:  # it passes objects, and no text
            assert text_of(await client.call_tool("echo", {"value": "\ud800"})) == "1"


async def test_a_client_that_declared_nothing_is_told_so(world: World) -> None:
    error = (await world.client.call("greet", capabilities={})).error
    assert error["message"].startswith("The client cannot be asked: it declared neither elicitation")


async def test_what_the_client_did_not_declare_is_not_asked(world: World) -> None:
    @world.tasks.tool()
    async def careful(task: ServerTaskContext) -> list[str]:
        said: list[str] = []
        for method, params in (("roots/list", {}), ("ping", {}), ("elicitation/create", {"task": {"ttl": 1}})):
            try:
                await task.ask(method, params)
            except CapabilityError as error:
                said.append(error.message)
        try:
            await task.ask("elicitation/create", {"message": 1})
        except ValueError as error:
            said.append(str(error).partition(":")[0])
        return said

    reply = await world.client.call("careful", capabilities={"elicitation": {}})
    assert reply.result["structuredContent"]["result"] == [
        "Client does not support roots capability",
        "A client that has not declared the tasks extension cannot be asked ping",
        "A client that has not declared the tasks extension cannot be asked elicitation/create as a task of its own",
        "The params of 'elicitation/create' cannot be sent",
    ]
    assert await world.statuses() == []


# The state


async def test_the_same_retry_has_the_same_result_and_a_retry_without_answers_the_same_questions(world: World) -> None:
    questions, state = await world.asked("greet")
    for answers in (None, {}, {"unknown": accept(name="Eve")}):
        again, state = round_of((await world.retry("greet", state, answers))["result"])
        assert again == questions
    answers = {key: accept(name="Ada") for key in questions}
    assert [text(await world.retry("greet", state, answers)) for _ in range(3)] == ["Hello, Ada"] * 3
    late = {key: accept(name="Bob") for key in questions}
    assert text(await world.retry("greet", state, late)) == "Hello, Ada"


async def test_some_of_the_answers_leave_the_other_questions_open(world: World) -> None:
    @world.tasks.tool()
    async def two(task: ServerTaskContext) -> list[str]:
        names: dict[str, str] = {}

        async def ask(message: str) -> None:
            names[message] = filled(await task.elicit(message, Name))

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "a?")
            group.start_soon(ask, "b?")
        return [names["a?"], names["b?"]]

    questions, state = await world.asked("two", questions=2)
    keys = {question["params"]["message"]: key for key, question in questions.items()}
    rest, state = round_of((await world.retry("two", state, {keys["b?"]: accept(name="Bea")}))["result"])
    assert list(rest) == [keys["a?"]]
    result = (await world.retry("two", state, {keys["a?"]: accept(name="Ada")}))["result"]
    assert result["structuredContent"]["result"] == ["Ada", "Bea"]


async def test_concurrent_retries_of_one_state_have_one_result_and_the_work_runs_once(world: World) -> None:
    @world.tasks.tool()
    async def once(task: ServerTaskContext) -> str:
        return await world.record(lambda: greet(task))

    questions, state = await world.asked("once")
    texts: list[str] = []

    async def retry(name: str) -> None:
        texts.append(text(await world.retry("once", state, {key: accept(name=name) for key in questions})))

    async with anyio.create_task_group() as group:
        for name in ("Ada", "Bob", "Cyd"):
            group.start_soon(retry, name)
    assert texts == world.ended * 3


async def test_a_malformed_answer_is_refused_and_its_question_stays_open(world: World) -> None:
    questions, state = await world.asked("greet")
    (key,) = questions
    message = await world.retry("greet", state, {key: accept(name=7)})
    assert message["error"]["code"] == -32602
    assert "content.name" in message["error"]["message"]
    assert text(await world.retry("greet", state, {key: accept(name="Ada")})) == "Hello, Ada"


@pytest.mark.parametrize("kind", ["tool", "low-level"])
async def test_a_state_that_is_tampered_with_or_made_up_is_refused(kind: Kind) -> None:
    server, tasks = make_server(kind)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(server) as client:
            client.capabilities = CAPABILITIES
            questions, state = round_of((await client.call("work")).result)
            answers = {key: accept(name="Ada") for key in questions}
            last = "A" if state[-1] != "A" else "B"
            for wrong in (state[:-1] + last, state[:-1], "mcp-task-runtime:" + 48 * "0", "mcp-task-runtime:"):
                refused((await client.call("work", extra={"requestState": wrong, "inputResponses": answers})).message)
            assert round_of((await client.call("work", extra={"requestState": state})).result)[0] == questions


async def test_a_state_is_of_one_tool_and_its_arguments() -> None:
    """The task is checked, and not the seal alone, which a low-level server need not have."""
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0))

    async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"}) for name in ("a", "b")])

    async def call_tool(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
        return CallToolResult(content=[TextContent(text=await tasks.run(greet))])

    server: Server[Any] = Server("low", on_call_tool=call_tool, on_list_tools=list_tools)
    tasks.install(server)
    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(server) as client:
            client.capabilities = CAPABILITIES
            questions, state = round_of((await client.call("a", {"x": 1, "y": [True]})).result)
            extra = {"requestState": state, "inputResponses": {key: accept(name="Ada") for key in questions}}
            for tool, arguments in (
                ("b", {"x": 1, "y": [True]}),
                ("a", {"x": 2, "y": [True]}),
                ("a", {}),
                ("a", {"x": 1, "y": [1]}),
            ):
                refused((await client.call(tool, arguments, extra=extra)).message)
            result = (await client.call("a", {"y": [True], "x": 1}, extra=extra)).result
            assert result["content"][0]["text"] == "Hello, Ada"


async def test_l10_a_state_is_of_one_principal() -> None:
    guarded = Guarded()
    with anyio.fail_after(PATIENCE):
        async with guarded.serve() as app, as_user(app, "alice") as alice, as_user(app, "bob") as bob:
            alice.capabilities = bob.capabilities = CAPABILITIES
            questions, state = round_of((await alice.call("ask")).result)
            extra = {"requestState": state, "inputResponses": {key: accept(ok=True) for key in questions}}
            refused((await bob.call("ask", extra=extra)).message)
            async with as_user(app, "alice-again") as again:
                assert (await again.call("ask", extra=extra)).result["content"][0]["text"] == "accept"


async def test_l10_a_principal_that_the_server_names_is_checked_where_the_seal_does_not_know_it() -> None:
    user = "ada"
    mcp: MCPServer[Any] = MCPServer("named")
    tasks = Tasks(settings=TaskSettings(shutdown_grace=0), principal=lambda ctx: user)
    tasks.install(mcp)

    @tasks.tool()
    async def who_am_i(task: ServerTaskContext) -> str:
        await task.elicit("Who are you?", Name)
        return f"{task.caller.principal} {task.caller.protocol_version}"

    with anyio.fail_after(PATIENCE):
        async with tasks, memory_client(mcp) as client:
            client.capabilities = CAPABILITIES
            questions, state = round_of((await client.call("who_am_i")).result)
            extra = {"requestState": state, "inputResponses": {key: accept(name="Ada") for key in questions}}
            user = "bob"
            refused((await client.call("who_am_i", extra=extra)).message)
            user = "ada"
            assert (await client.call("who_am_i", extra=extra)).result["content"][0]["text"] == "ada 2026-07-28"


async def test_l10_calls_of_a_tool_that_joins_are_asked_each_for_itself(world: World) -> None:
    world.tasks.tool(name="joins", join=True)(greet)
    first, second = [await world.asked("joins") for _ in range(2)]
    for (questions, state), name in ((first, "Ada"), (second, "Bob")):
        answers = {key: accept(name=name) for key in questions}
        assert text(await world.retry("joins", state, answers)) == f"Hello, {name}"


async def test_no_method_of_the_extension_shows_the_task(world: World) -> None:
    await world.asked("greet")
    ((record),) = (await world.tasks.runtime.list(owner="implicit:")).records
    for method in ("tasks/get", "tasks/cancel"):
        message = (await world.client.request(method, {"taskId": record.task_id}, capabilities=DECLARED)).message
        assert message["error"]["code"] == -32602
    assert await world.statuses() == ["input_required"]


# A client that leaves


async def test_a_client_that_never_returns_ends_the_work(world: World) -> None:
    @world.tasks.tool()
    async def forlorn(task: ServerTaskContext) -> str:
        return await world.record(lambda: greet(task))

    questions, state = await world.asked("forlorn")
    world.clock.advance(597)
    await anyio.wait_all_tasks_blocked()
    assert world.ended == []
    world.clock.advance(2.5)  # shortly before its task is gone
    await world.until_ended()
    message = await world.retry("forlorn", state, {key: accept(name="Ada") for key in questions})
    assert message["error"]["message"] == "The task did not end within its time to live"
    world.clock.advance(3600)
    refused(await world.retry("forlorn", state, None))


async def test_each_round_gives_the_client_its_time_again(world: World) -> None:
    @world.tasks.tool()
    async def patient(task: ServerTaskContext) -> str:
        return await world.record(lambda: in_turn(task))

    async def in_turn(task: ServerTaskContext) -> str:
        return "".join([filled(await task.elicit(f"Letter {number}?", Name)) for number in range(4)])

    questions, state = await world.asked("patient")
    for _ in range(3):
        world.clock.advance(500)
        result = (await world.retry("patient", state, {key: accept(name="x") for key in questions}))["result"]
        questions, state = round_of(result)
    world.clock.advance(500)
    assert text(await world.retry("patient", state, {key: accept(name="y") for key in questions})) == "xxxy"


async def test_work_lives_as_long_as_a_request_waits_for_it(world: World) -> None:
    go = anyio.Event()

    @world.tasks.tool()
    async def slow(task: ServerTaskContext) -> str:
        name = filled(await task.elicit("Who?", Name))
        await go.wait()
        return name

    questions, state = await world.asked("slow")
    async with anyio.create_task_group() as group:

        async def retry() -> None:
            assert text(await world.retry("slow", state, {key: accept(name="Ada") for key in questions})) == "Ada"

        group.start_soon(retry)
        for _ in range(10):
            await anyio.wait_all_tasks_blocked()
            world.clock.advance(190)
        go.set()


async def test_a_call_lives_no_longer_than_a_task_may() -> None:
    """L7: however often its client returns."""
    async with open_world(input_ttl_ms=60_000, max_ttl_ms=90_000) as world:

        @world.tasks.tool()
        async def forlorn(task: ServerTaskContext) -> str:
            return await world.record(lambda: greet(task))

        questions, state = await world.asked("forlorn")
        world.clock.advance(50)
        again = (await world.retry("forlorn", state, None))["result"]
        assert round_of(again) == (questions, state)
        world.clock.advance(20)  # it would have been gone by now
        await anyio.wait_all_tasks_blocked()
        assert world.ended == []
        world.clock.advance(19.9)
        await world.until_ended()
        assert await world.statuses() == ["failed"]


class UnextendableStore(InMemoryTaskStore):
    """A store that is unavailable whenever a task is to live longer."""

    refusals = 0

    async def update_task(self, task_id: str, **changes: Any) -> TaskRecord:
        if changes.get("ttl_ms") is not None:
            self.refusals += 1
            raise StoreUnavailableError("the store is unavailable")
        return await super().update_task(task_id, **changes)


async def test_a_store_that_is_unavailable_when_a_call_is_to_live_longer_ends_no_call() -> None:
    """L12."""
    async with open_world(UnextendableStore) as world:
        questions, state = await world.asked("greet")
        world.clock.advance(100)
        again = (await world.retry("greet", state, None))["result"]
        assert round_of(again) == (questions, state)
        message = await world.retry("greet", state, {key: accept(name="Ada") for key in questions})
        assert text(message) == "Hello, Ada"
        store = world.tasks.runtime.store
        assert isinstance(store, UnextendableStore)
        assert store.refusals > 0


class UnreadableStore(InMemoryTaskStore):
    """A store that cannot be reached for some reads of a task with its questions.

    Attributes:
        outages: How often each method is to fail.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.outages = {"get_view": 2, "get_owned": 1}

    async def get_view(self, task_id: str) -> TaskView | None:
        self._read("get_view")
        return await super().get_view(task_id)

    async def get_owned(self, task_id: str, *, owner: str | None) -> TaskView | None:
        self._read("get_owned")
        return await super().get_owned(task_id, owner=owner)

    def _read(self, method: str) -> None:
        if self.outages[method]:
            self.outages[method] -= 1
            raise StoreUnavailableError("the store is unavailable")


async def test_a_store_that_is_unavailable_while_the_questions_are_read_ends_no_call() -> None:
    """L12."""
    async with open_world(UnreadableStore) as world:
        questions, state = await world.asked("greet")
        store = world.tasks.runtime.store
        assert isinstance(store, UnreadableStore)
        assert store.outages == {"get_view": 0, "get_owned": 0}
        message = await world.retry("greet", state, {key: accept(name="Ada") for key in questions})
        assert text(message) == "Hello, Ada"


class SlowStore(UnextendableStore):
    """A store whose first read of a task with its questions has no answer, and that lets no task live longer."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.has_begun = anyio.Event()

    async def get_view(self, task_id: str) -> TaskView | None:
        if not self.has_begun.is_set():
            self.has_begun.set()
            await anyio.sleep_forever()
        return await super().get_view(task_id)


async def test_questions_whose_read_takes_long_are_asked_when_they_are_read() -> None:
    """L3: nothing more happens to the task, which waits for its answer."""
    async with open_world(SlowStore, input_ttl_ms=60_000) as world:
        store = world.tasks.runtime.store
        assert isinstance(store, SlowStore)
        rounds: list[tuple[Wire, str]] = []

        async def ask() -> None:
            rounds.append(await world.asked("greet"))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await store.has_begun.wait()
                world.clock.advance(21)
        ((questions, state),) = rounds
        message = await world.retry("greet", state, {key: accept(name="Ada") for key in questions})
        assert text(message) == "Hello, Ada"


async def test_the_time_for_a_client_to_return_is_a_setting() -> None:
    async with open_world(input_ttl_ms=5_000) as world:

        @world.tasks.tool()
        async def forlorn(task: ServerTaskContext) -> str:
            return await world.record(lambda: greet(task))

        await world.asked("forlorn")
        world.clock.advance(4.5)
        await world.until_ended()
        assert await world.statuses() == ["failed"]


async def test_a_question_that_times_out_between_the_rounds_lets_the_work_go_on(world: World) -> None:
    @world.tasks.tool()
    async def brief(task: ServerTaskContext) -> str:
        return await world.record(lambda: hurried(task))

    async def hurried(task: ServerTaskContext) -> str:
        try:
            return filled(await task.elicit("Quick?", Name, timeout=5))
        except QuestionTimeoutError:
            return "too late"

    questions, state = await world.asked("brief")
    world.clock.advance(6)
    await world.until_ended()
    assert text(await world.retry("brief", state, {key: accept(name="Ada") for key in questions})) == "too late"


@pytest.mark.parametrize("round_", ["first", "later"])
async def test_a_request_that_is_cancelled_while_it_waits_cancels_the_work(world: World, round_: str) -> None:
    entered = anyio.Event()

    async def endless(task: ServerTaskContext) -> str:
        await task.elicit("Who?", Name)
        entered.set()
        await anyio.sleep_forever()
        return ""

    async def endless_at_once(task: ServerTaskContext) -> str:
        entered.set()
        await anyio.sleep_forever()
        return ""

    @world.tasks.tool()
    async def wait(task: ServerTaskContext) -> str:
        return await world.record(lambda: (endless_at_once if round_ == "first" else endless)(task))

    with anyio.fail_after(PATIENCE):
        async with Client(world.mcp, elicitation_callback=answer_form) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "wait")
                await entered.wait()
                group.cancel_scope.cancel()
            await world.until_ended()
    assert len(world.ended) == 1
    assert "Cancelled" in world.ended[0]
    assert await world.statuses() == ([] if round_ == "first" else ["cancelled"])


async def test_a_request_that_leaves_cancels_no_work_that_another_request_waits_for(world: World) -> None:
    go = anyio.Event()

    @world.tasks.tool()
    async def shared(task: ServerTaskContext) -> str:
        name = filled(await task.elicit("Who?", Name))
        await go.wait()
        return name

    with anyio.fail_after(PATIENCE):
        async with Client(world.mcp, elicitation_callback=answer_form) as client:
            questions = await client.session.call_tool("shared", {}, allow_input_required=True)
            assert isinstance(questions, types.InputRequiredResult)
            texts: list[str] = []

            async def retry() -> None:
                answers: Any = {key: ElicitResult(action="accept", content={"name": "Ada"}) for key in keys}
                result = await client.session.call_tool(
                    "shared", {}, input_responses=answers, request_state=state, allow_input_required=True
                )
                assert isinstance(result, CallToolResult)
                texts.append(text_of(result))

            keys, state = list(questions.input_requests or {}), questions.request_state
            async with anyio.create_task_group() as staying:
                staying.start_soon(retry)
                async with anyio.create_task_group() as leaving:
                    leaving.start_soon(retry)
                    await anyio.wait_all_tasks_blocked()
                    leaving.cancel_scope.cancel()
                await anyio.wait_all_tasks_blocked()
                go.set()
    assert texts == ["Ada"]


async def test_a_shutdown_ends_the_work_and_the_request_that_waits_for_it(world: World) -> None:
    @world.tasks.tool()
    async def endless(task: ServerTaskContext) -> str:
        await task.elicit("Who?", Name)
        return await world.record(forever)

    async def forever() -> str:
        await anyio.sleep_forever()
        return ""

    questions, state = await world.asked("endless")
    answers = {key: accept(name="Ada") for key in questions}
    async with anyio.create_task_group() as group:

        async def retry() -> None:
            message = await world.retry("endless", state, answers)
            assert message["error"]["message"] == "The server was shut down before the task ended"

        group.start_soon(retry)
        await anyio.wait_all_tasks_blocked()
        await world.tasks.runtime.drain()
    assert len(world.ended) == 1


# How the work ends


async def test_what_the_work_raises_after_a_question_is_what_a_plain_call_would_show(world: World) -> None:
    @world.tasks.tool()
    async def raises(how: str, task: ServerTaskContext) -> str:
        if how.startswith("late"):
            await task.elicit("Who?", Name)
        if how.endswith("protocol"):
            raise ProtocolError(-32050, "The quota is used up", {"n": 1})
        raise ValueError("no such paper")

    for kind in ("protocol", "other"):
        early = (await world.client.call("raises", {"how": f"early {kind}"})).message
        questions, state = await world.asked("raises", {"how": f"late {kind}"})
        answers = {key: accept(name="Ada") for key in questions}
        late = await world.retry("raises", state, answers, {"how": f"late {kind}"})
        assert late.get("error") == early.get("error")
        for name in ("content", "isError", "structuredContent"):
            assert late.get("result", {}).get(name) == early.get("result", {}).get(name)


async def test_a_structured_result_after_a_question_is_that_of_a_plain_call(world: World) -> None:
    @world.tasks.tool()
    async def structured(ask: bool, task: ServerTaskContext) -> Name:
        if ask:
            await task.elicit("Who?", Name)
        return Name(name="Ada")

    expected = await world.call("structured", {"ask": False})
    questions, state = await world.asked("structured", {"ask": True})
    answers = {key: accept(name="Ada") for key in questions}
    assert (await world.retry("structured", state, answers, {"ask": True}))["result"] == expected


async def test_the_id_of_the_task_stays_and_what_it_said_before(world: World) -> None:
    @world.tasks.tool()
    async def stays(task: ServerTaskContext) -> bool:
        before = task.task_id
        await task.elicit("Who?", Name)
        return before == task.task_id

    questions, state = await world.asked("stays")
    (record,) = (await world.tasks.runtime.list(owner="implicit:")).records
    answers = {key: accept(name="Ada") for key in questions}
    assert (await world.retry("stays", state, answers))["result"]["structuredContent"] == {"result": True}
    assert record.request.name == "stays"


async def test_progress_after_a_question_goes_to_the_request_that_waits_then(world: World) -> None:
    @world.tasks.tool()
    async def tells(task: ServerTaskContext) -> str:
        await task.report_progress(1, 4, "first")
        await task.elicit("Who?", Name)
        await task.report_progress(2, 4, "second")
        return "done"

    first = await world.client.call("tells", meta={"progressToken": "one"})
    questions, state = round_of(first.result)
    answers = {key: accept(name="Ada") for key in questions}
    second = await world.client.call(
        "tells", extra={"requestState": state, "inputResponses": answers}, meta={"progressToken": "two"}
    )
    for reply, token, message in ((first, "one", "first"), (second, "two", "second")):
        (said,) = [each["params"] for each in reply.notifications]
        assert (said["progressToken"], said["message"]) == (token, message)


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
@pytest.mark.parametrize("blocking", [False, True])
async def test_what_an_existing_tool_says_after_a_question_goes_to_the_request_that_waits_then(blocking: bool) -> None:
    async def tells(ctx: Context) -> str:
        await ctx.info("first")
        await ctx.elicit("Who?", Name)
        await ctx.debug("too low")
        await ctx.warning({"second": 2}, logger_name="tool")
        said = types.LoggingMessageNotificationParams(level="error", data="third")
        await ctx.session.send_notification(types.LoggingMessageNotification(params=said))
        reached = types.ProgressNotificationParams(progress_token="of the first request", progress=2, total=4)
        await ctx.session.send_notification(types.ProgressNotification(params=reached))
        await ctx.report_progress(3, 4)
        await ctx.session.send_tool_list_changed()  # which no request carries
        return "done"

    async with open_world() as world:
        world.mcp.tool()(tells)
        world.tasks.adopt("tells", blocking=blocking)
        first = await world.client.call("tells", meta={LOG_LEVEL: "info"})
        questions, state = round_of(first.result)
        extra = {"requestState": state, "inputResponses": {key: accept(name="Ada") for key in questions}}
        second = await world.client.call("tells", extra=extra, meta={LOG_LEVEL: "warning", "progressToken": "two"})
    assert heard(first) == [{"level": "info", "data": "first"}]
    assert heard(second) == [
        {"level": "warning", "data": {"second": 2}, "logger": "tool"},
        {"level": "error", "data": "third"},
        {"progressToken": "two", "progress": 2, "total": 4},
        {"progressToken": "two", "progress": 3, "total": 4},
    ]


LOG_LEVEL = "io.modelcontextprotocol/logLevel"


def heard(reply: Any) -> list[Wire]:
    return [{key: value for key, value in each["params"].items() if key != "_meta"} for each in reply.notifications]


async def test_what_the_work_says_as_soon_as_it_is_answered_reaches_the_request_that_brought_the_answer() -> None:
    """The work may go on before the call that answers it has returned."""

    class Slow(YieldingBundledStore):
        async def answer_all(self, *args: Any, **kwargs: Any) -> Any:
            done = await super().answer_all(*args, **kwargs)
            await spoken.wait()
            return done

    async def tells(task: ServerTaskContext) -> str:
        await task.elicit("Who?", Name)
        await task.report_progress(1, 2, "at once")
        spoken.set()
        return "done"

    spoken = anyio.Event()
    async with InMemoryTaskStore() as inner:
        mcp: MCPServer[Any] = MCPServer("rounds")
        tasks = Tasks(Slow(inner), settings=TaskSettings(shutdown_grace=0))
        tasks.install(mcp)
        tasks.tool()(tells)
        with anyio.fail_after(PATIENCE):
            async with tasks, memory_client(mcp) as client:
                client.capabilities = CAPABILITIES
                questions, state = round_of((await client.call("tells")).result)
                extra = {"requestState": state, "inputResponses": {key: accept(name="Ada") for key in questions}}
                reply = await client.call("tells", extra=extra, meta={"progressToken": "p"})
    assert [each["message"] for each in heard(reply)] == ["at once"]


async def test_the_sdks_client_in_process_hears_of_every_round_without_a_token() -> None:
    async def tells(task: ServerTaskContext) -> str:
        await task.report_progress(1, 4, "first")
        await task.elicit("Ada", Name)
        await task.report_progress(2, 4, "second")
        return "done"

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    told: list[Any] = []
    async with open_world() as world:
        world.tasks.tool()(tells)
        async with Client(world.mcp, elicitation_callback=answer_form) as client:
            assert text_of(await client.call_tool("tells", progress_callback=note)) == "done"
    assert told == [(1, "first"), (2, "second")]


async def test_l16_an_owner_with_too_many_open_calls_is_refused_where_it_asks() -> None:
    async with open_world(max_tasks_per_owner=1) as world:

        @world.tasks.tool()
        async def bounded(task: ServerTaskContext) -> str:
            try:
                return await greet(task)
            except LimitExceededError as error:
                return str(error)

        await world.asked("bounded")
        assert "at once" in text((await world.client.call("bounded")).message)


# Several processes


@pytest.mark.parametrize("keys", [KEYS, None], ids=["one key", "each its own key"])
@pytest.mark.parametrize("wired", ["install", "constructor"])
async def test_another_server_on_the_same_store_takes_the_call_over(
    tmp_path: Path, wired: str, keys: list[str] | None
) -> None:
    """The SDK's key is needed where its boundary stands in front of the tasks, and there a state is refused without."""

    def serve(store: SQLiteTaskStore) -> tuple[MCPServer[Any], Tasks]:
        security = None if keys is None else RequestStateSecurity(keys=keys)
        tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0))
        mcp: MCPServer[Any]
        if wired == "install":
            mcp = MCPServer("shared", request_state_security=security)
            tasks.install(mcp)
        else:
            mcp = MCPServer(
                "shared",
                request_state_security=security,
                extensions=[tasks],
                middleware=[tasks.middleware],
                lifespan=tasks.lifespan(),
            )
        mcp.tool()(tasks.task()(greet))
        return mcp, tasks

    path = tmp_path / "tasks.db"
    with anyio.fail_after(PATIENCE):
        async with SQLiteTaskStore(path) as one, SQLiteTaskStore(path) as two:
            (mcp_one, tasks_one), (mcp_two, tasks_two) = serve(one), serve(two)
            async with tasks_one, tasks_two, memory_client(mcp_one) as client, memory_client(mcp_two) as other:
                client.capabilities = other.capabilities = CAPABILITIES
                questions, state = round_of((await client.call("greet")).result)
                extra = {"requestState": state, "inputResponses": {key: accept(name="Ada") for key in questions}}
                if wired == "constructor" and keys is None:
                    refused((await other.call("greet", extra=extra)).message)
                else:
                    assert (await other.call("greet", extra=extra)).result["content"][0]["text"] == "Hello, Ada"
                assert (await client.call("greet", extra=extra)).result["content"][0]["text"] == "Hello, Ada"


async def test_a_request_in_another_process_hears_how_far_the_work_is(tmp_path: Path) -> None:
    go_on = anyio.Event()

    async def tells(task: ServerTaskContext) -> str:
        await task.elicit("Who?", Name)
        await task.report_progress(1, 2, "half")
        await go_on.wait()
        await task.update_status("not sent to the client", notify=False)
        return "done"

    heard: list[Any] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))
        go_on.set()

    path = tmp_path / "tasks.db"
    with anyio.fail_after(PATIENCE):
        async with SQLiteTaskStore(path) as one, SQLiteTaskStore(path) as two:
            servers = []
            for store in (one, two):
                tasks = Tasks(store, settings=TaskSettings(shutdown_grace=0))
                mcp: MCPServer[Any] = MCPServer("shared")
                tasks.install(mcp)
                tasks.tool()(tells)
                servers.append((tasks, mcp))
            (tasks_one, mcp_one), (tasks_two, mcp_two) = servers
            one_client = Client(mcp_one, elicitation_callback=answer_form)
            other_client = Client(mcp_two, elicitation_callback=answer_form)
            async with tasks_one, tasks_two, one_client as client, other_client as other:
                questions = await client.session.call_tool("tells", {}, allow_input_required=True)
                assert isinstance(questions, types.InputRequiredResult)
                answer = ElicitResult(action="accept", content={"name": "Ada"})
                result = await other.session.call_tool(
                    "tells",
                    {},
                    input_responses=dict.fromkeys(questions.input_requests or {}, answer),
                    request_state=questions.request_state,
                    progress_callback=note,
                )
    assert text_of(result) == "done"
    assert heard == [(1, 2, "half")]


async def test_without_an_open_runtime_a_plain_call_stays_one_and_says_what_is_missing() -> None:
    tasks = Tasks()
    mcp: MCPServer[Any] = MCPServer("no lifespan", extensions=[tasks], middleware=[tasks.middleware])
    mcp.tool()(tasks.task()(greet))

    @mcp.tool()
    async def plain() -> str:
        return "plain"

    with anyio.fail_after(PATIENCE):
        async with Client(mcp, elicitation_callback=answer_form) as client:
            assert text_of(await client.call_tool("plain")) == "plain"
            with pytest.raises(MCPError, match=r"lifespan=tasks.lifespan\(\)"):
                await client.call_tool("greet")
