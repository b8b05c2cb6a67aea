"""What protocol revision 2025-11-25 promises, as behaviour of a server: the same for every SDK line.

Each scenario is a test; the adapters' test modules give it a `World` and run it. The names begin with the wire
rule they prove, or with the fault of the field report that they watch.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, cast

import anyio
import anyio.from_thread
from pydantic import BaseModel

from mcp_task_runtime import CapabilityError, ProtocolError, QueuedMessage, ServerTaskContext, TaskRuntime
from tests.mcp_v1.raw_client import Answer, RawClient, accept, never
from tests.mcp_v1.schemas import RELATED, Wire
from tests.support.patience import PATIENCE

TERMINAL = ("completed", "failed", "cancelled")


class Connect(Protocol):
    def __call__(
        self, *, answer: Answer = never, capabilities: Wire | None = None, hello: list[Wire] | None = None
    ) -> AbstractAsyncContextManager[RawClient]: ...


class Runs(Protocol):
    """The `Tasks` of either adapter."""

    runtime: TaskRuntime

    def tool(self, *, required: bool = ..., ttl_ms: int | None = ...) -> Callable[[Any], Any]: ...
    async def complete(self, task_id: str, result: object) -> None: ...


class World:
    """A server with the tools below, and what its tools tell about themselves."""

    def __init__(self, tasks: Runs, connect: Connect) -> None:
        self.tasks = tasks
        self.connect = connect
        self.entered = 0
        self.left = 0
        self.detached: list[str] = []
        self.changed = anyio.Event()
        self.let_go = anyio.Event()
        self._patience: anyio.CancelScope | None = None

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def ask_patiently(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Wait for an answer until a test has this end."""
        with anyio.CancelScope() as self._patience:
            await ask()
        self.entered += 1
        self.tell()

    def lose_patience(self) -> None:
        """End `ask_patiently`."""
        assert self._patience is not None
        self._patience.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a tool has told that this is true."""
        with anyio.fail_after(PATIENCE):
            while not condition():
                await self.changed.wait()


class Choice(BaseModel):
    ok: bool


def greet(name: str) -> str:
    """A plain tool."""
    return f"Hello, {name}!"


def add_tools(world: World) -> None:
    """Add the tools that run as tasks."""
    tasks = world.tasks

    @tasks.tool()
    async def double(x: int, task: ServerTaskContext) -> int:
        return 2 * x

    @tasks.tool()
    async def last_words(task: ServerTaskContext) -> str:
        await task.elicit("Are you there?", Choice)
        message = QueuedMessage.notification("notifications/message", {"level": "info", "data": "bye"})
        await tasks.runtime.queue.enqueue(task.task_id, message)
        return "said"

    @tasks.tool(ttl_ms=120_000)
    def in_a_thread(task: ServerTaskContext) -> str:
        anyio.from_thread.run(task.update_status, "In a thread")
        return "done in a thread"

    @tasks.tool()
    async def either(task: ServerTaskContext) -> str:
        answer = await task.elicit("Sure?", Choice)
        return answer.action

    @tasks.tool(required=True)
    async def ask(task: ServerTaskContext, question: str = "Sure?") -> str:
        answer = await task.elicit(question, Choice)
        return f"{question} {answer.action} {answer.data.ok if answer.action == 'accept' else None}"

    @tasks.tool(required=True)
    async def ask_two(task: ServerTaskContext) -> str:
        answers: dict[str, str] = {}

        async def put(name: str) -> None:
            answers[name] = (await task.elicit(name, Choice)).action

        async with anyio.create_task_group() as group:
            group.start_soon(put, "first")
            group.start_soon(put, "second")
        return f"{answers['first']} {answers['second']}"

    @tasks.tool(required=True)
    async def haiku(task: ServerTaskContext) -> str:
        message = {"role": "user", "content": {"type": "text", "text": "A haiku, please"}}
        return (await task.create_message([message], max_tokens=50)).text

    @tasks.tool(required=True)
    async def what_went_wrong(task: ServerTaskContext) -> str:
        try:
            await task.elicit("Sure?", Choice)
        except (ProtocolError, CapabilityError) as error:
            return f"{error.code} {error.message}"
        return "nothing"

    @tasks.tool(required=True)
    async def ask_as_task(task: ServerTaskContext) -> str:
        try:
            return (await task.elicit_as_task("Sure?", Choice, ttl=5_000)).action
        except ProtocolError as error:
            return f"{error.code} {error.message}"

    @tasks.tool(required=True)
    async def haiku_as_task(task: ServerTaskContext) -> str:
        message = {"role": "user", "content": {"type": "text", "text": "A haiku, please"}}
        return (await task.create_message_as_task([message], max_tokens=50)).text

    @tasks.tool(required=True)
    async def impatient(task: ServerTaskContext) -> str:
        await world.ask_patiently(lambda: task.elicit("Quick!", Choice))
        return "no answer"

    @tasks.tool(required=True)
    async def gives_up(task: ServerTaskContext) -> str:
        await world.ask_patiently(lambda: task.elicit("Quick!", Choice))
        await anyio.sleep_forever()
        return "never"

    @tasks.tool(required=True)
    async def gives_up_as_task(task: ServerTaskContext) -> str:
        await world.ask_patiently(lambda: task.elicit_as_task("Quick!", Choice))
        await anyio.sleep_forever()
        return "never"

    @tasks.tool()
    async def boom(task: ServerTaskContext) -> str:
        raise RuntimeError("a secret of the server")

    @tasks.tool()
    async def refuse(task: ServerTaskContext) -> str:
        raise ProtocolError(-32050, "The quota is used up", {"retryAfter": 30})

    @tasks.tool(required=True)
    async def wait(task: ServerTaskContext) -> str:
        world.entered += 1
        world.tell()
        try:
            await anyio.sleep_forever()
        finally:
            assert task.is_cancelled
            world.left += 1
            world.tell()
        return "never"

    @tasks.tool(required=True)
    async def stubborn(task: ServerTaskContext) -> str:
        world.entered += 1
        world.tell()
        with anyio.CancelScope(shield=True):
            await world.let_go.wait()
        world.left += 1
        world.tell()
        return "too late"

    @tasks.tool(required=True)
    async def progress(task: ServerTaskContext) -> str:
        await task.report_progress(1, 3, "Reading")
        await task.elicit("Go on?", Choice)
        await task.report_progress(2, 3, "Writing")
        return "done"

    @tasks.tool(required=True)
    async def outside(task: ServerTaskContext) -> str:
        task.detach()
        world.detached.append(task.task_id)
        world.tell()
        return "handed over"


def answering(result: Wire) -> Answer:
    async def answer(question: Wire) -> Wire | None:
        return result

    return answer


async def error_of(call: Awaitable[Wire]) -> Wire:
    message = await call
    assert "error" in message, message
    return cast(Wire, message["error"])


# -- B1 to B4: capability, modes, handles


async def b1_the_server_declares_its_tasks_capability(world: World) -> None:
    hello: list[Wire] = []
    async with world.connect(hello=hello):
        assert hello[0]["capabilities"]["tasks"] == {
            "list": {},
            "cancel": {},
            "requests": {"tools": {"call": {}}},
        }


async def b2_a_list_of_tools_shows_which_run_as_tasks(world: World) -> None:
    async with world.connect() as client:
        tools = {tool["name"]: tool for tool in (await client.result("tools/list"))["tools"]}
        assert tools["ask"]["execution"] == {"taskSupport": "required"}
        assert tools["double"]["execution"] == {"taskSupport": "optional"}
        assert tools["greet"].get("execution", {}).get("taskSupport", "forbidden") == "forbidden"
        assert list(tools["double"]["inputSchema"]["properties"]) == ["x"]


async def b2_fault_23_a_call_in_the_wrong_mode_is_method_not_found(world: World) -> None:
    async with world.connect() as client:
        forbidden = {"name": "greet", "arguments": {"name": "Ada"}, "task": {}}
        assert (await client.error("tools/call", forbidden))["code"] == -32601
        assert (await client.error("tools/call", {"name": "ask", "arguments": {}}))["code"] == -32601
        plain = await client.result("tools/call", {"name": "greet", "arguments": {"name": "Ada"}})
        assert plain["content"][0]["text"] == "Hello, Ada!"


async def b3_fault_22_a_task_call_answers_at_once_and_the_ttl_is_always_there(world: World) -> None:
    async with world.connect() as client:
        created = await client.result("tools/call", {"name": "wait", "arguments": {}, "task": {}})
        assert created.keys() - {"_meta"} == {"task"}
        assert created["task"]["status"] == "working"
        assert isinstance(created["task"]["ttl"], int)
        asked = await client.result("tools/call", {"name": "wait", "arguments": {}, "task": {"ttl": 61_000}})
        assert asked["task"]["ttl"] == 61_000


async def b3_an_absurd_ttl_is_brought_within_bounds_and_a_malformed_one_refused(world: World) -> None:
    async with world.connect() as client:
        for ttl, stored in ((-5, 1_000), (10**30, 7 * 24 * 3600 * 1000), (0, 1_000)):
            created = await client.request("tools/call", {"name": "wait", "arguments": {}, "task": {"ttl": ttl}})
            if "result" in created:
                assert created["result"]["task"]["ttl"] == stored
            else:  # the SDK did not take it at all
                assert created["error"]["code"] == -32602
        malformed = {"name": "wait", "arguments": {}, "task": {"ttl": "soon"}}
        assert (await client.error("tools/call", malformed))["code"] == -32602


async def b3_the_ttl_of_the_tool_holds_where_the_client_asks_for_none(world: World) -> None:
    async with world.connect() as client:
        created = await client.result("tools/call", {"name": "in_a_thread", "arguments": {}, "task": {}})
        assert created["task"]["ttl"] == 120_000
        assert await client.text(created["task"]["taskId"]) == "done in a thread"


async def b4_get_returns_the_task_flat(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("double", {"x": 4})
        task = await client.until(task_id, "completed")
        assert task.keys() <= {"taskId", "status", "statusMessage", "createdAt", "lastUpdatedAt", "ttl", "pollInterval"}
        assert task["createdAt"].endswith("Z")


# -- B5 to B7: results


async def b5_the_result_is_what_the_call_would_have_returned(world: World) -> None:
    async with world.connect() as client:
        plain = await client.result("tools/call", {"name": "double", "arguments": {"x": 21}})
        task_id = await client.start("double", {"x": 21})
        result = await client.result("tasks/result", {"taskId": task_id})
        assert result.pop("_meta") == {RELATED: {"taskId": task_id}}
        plain.pop("_meta", None)
        assert result == plain
        assert result["structuredContent"] == {"result": 42}


async def b5_a_plain_call_of_an_optional_tool_may_ask_too(world: World) -> None:
    async with world.connect(answer=answering(accept(ok=True))) as client:
        result = await client.result("tools/call", {"name": "either", "arguments": {}})
        assert result["content"][0]["text"] == "accept"
        assert RELATED not in client.questions[0]["params"].get("_meta", {}), "there is no task to relate to"


async def b5_fault_9_a_protocol_error_comes_back_verbatim(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("refuse")
        error = await error_of(client.outcome(task_id))
        assert error == {"code": -32050, "message": "The quota is used up", "data": {"retryAfter": 30}}
        assert (await client.task(task_id))["statusMessage"] == "The quota is used up", "B13"
        assert await client.error("tools/call", {"name": "refuse", "arguments": {}}) == error


async def b5_fault_9_a_cancelled_task_answers_with_an_error(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("wait")
        await client.result("tasks/cancel", {"taskId": task_id})
        assert "cancelled" in (await error_of(client.outcome(task_id)))["message"]


async def b5_result_blocks_until_the_task_has_ended(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("outside")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        await world.until(lambda: bool(world.detached))
        assert (await client.task(task_id))["status"] == "working"
        await world.tasks.complete(task_id, "from outside")
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "from outside"


async def b6_fault_1_every_waiter_gets_the_result(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("outside")
        waiting = [await client.start_request("tasks/result", {"taskId": task_id}) for _ in range(5)]
        await world.until(lambda: bool(world.detached))
        await world.tasks.complete(task_id, "for all")
        for identifier in waiting:
            assert (await client.response(identifier))["result"]["content"][0]["text"] == "for all"


async def b6_a_question_is_sent_on_the_result_stream_and_names_its_task(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        await client.until(task_id, "input_required")
        assert not client.questions, "no request waits for the result yet"

        async def answer(question: Wire) -> Wire | None:
            return {"result": {**accept(ok=True)["result"], "_meta": {RELATED: {"taskId": task_id}}}}

        client.answer = answer
        assert await client.text(task_id) == "Sure? accept True"
        assert client.questions[0]["params"]["_meta"][RELATED] == {"taskId": task_id}


async def b6_a_client_that_only_polls_is_asked_at_its_next_poll_and_once(world: World) -> None:
    """Law L15: over the connection's general stream, with the task that asks."""
    async with world.connect(answer=answering(accept(ok=True))) as client:
        task_id = await client.start("ask")
        first = await client.until(task_id, "input_required")
        assert first["statusMessage"] == "Sure?", "it says what is asked"
        await client.until(task_id, "completed")
        assert [question["method"] for question in client.questions] == ["ping", "elicitation/create"]
        assert client.questions[1]["params"]["_meta"][RELATED] == {"taskId": task_id}


async def b6_a_client_that_polls_and_then_waits_is_asked_once(world: World) -> None:
    async def only_pings(question: Wire) -> Wire | None:
        return {"result": {}} if question["method"] == "ping" else None

    def asked(client: RawClient) -> list[Wire]:
        return [question for question in client.questions if question["method"] != "ping"]

    async with world.connect(answer=only_pings) as client:
        task_id = await client.start("ask")
        with anyio.fail_after(PATIENCE):
            while not asked(client):
                await client.task(task_id)
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        for _ in range(10):
            await client.task(task_id)
        assert len(asked(client)) == 1, "in one stream's hands"
        await client.send({"jsonrpc": "2.0", "id": asked(client)[0]["id"], **accept(ok=True)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? accept True"


async def b6_a_client_that_polls_and_reads_nothing_else_is_asked_when_it_waits(world: World) -> None:
    async with world.connect(answer=never) as client:
        task_id = await client.start("ask")
        await client.until(task_id, "input_required")
        for _ in range(5):
            await client.task(task_id)
        assert (await client.asked())["method"] == "ping"
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked(2)
        assert question["method"] == "elicitation/create"
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? accept True"


async def b6_sampling_reaches_the_client(world: World) -> None:
    message = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "old pond"}}
    async with world.connect(answer=answering({"result": message})) as client:
        assert await client.text(await client.start("haiku")) == "old pond"


async def b6_fault_4_two_questions_at_once_keep_the_task_input_required(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask_two")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked(2)
        first, second = client.questions
        await client.send({"jsonrpc": "2.0", "id": first["id"], **accept(ok=True)})
        for _ in range(20):
            await anyio.sleep(0.005)
            assert (await client.task(task_id))["status"] == "input_required"
        await client.send({"jsonrpc": "2.0", "id": second["id"], "result": {"action": "decline"}})
        text = (await client.response(waiting))["result"]["content"][0]["text"]
        assert sorted(text.split()) == ["accept", "decline"]


async def b6_fault_10_a_question_is_delivered_again_on_the_next_stream(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        lost = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        await client.notify("notifications/cancelled", {"requestId": lost})
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        again = await client.asked(2)
        assert again["params"]["message"] == question["params"]["message"]
        assert again["id"] != question["id"]
        await client.send({"jsonrpc": "2.0", "id": again["id"], **accept(ok=False)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? accept False"


async def b6_two_streams_of_one_task_get_each_question_once(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        waiting = [await client.start_request("tasks/result", {"taskId": task_id}) for _ in range(2)]
        question = await client.asked()
        await anyio.sleep(0.05)
        assert len(client.questions) == 1
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        for identifier in waiting:
            assert "result" in await client.response(identifier)


async def b6_the_second_stream_takes_over_when_the_first_ends(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        first = await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked()
        second = await client.start_request("tasks/result", {"taskId": task_id})
        await client.notify("notifications/cancelled", {"requestId": first})
        question = await client.asked(2)
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert "result" in await client.response(second)


async def b6_fault_15_an_answer_that_names_another_task_is_refused(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        foreign = {"action": "accept", "content": {"ok": True}, "_meta": {RELATED: {"taskId": "another"}}}
        await client.send({"jsonrpc": "2.0", "id": question["id"], "result": foreign})
        again = await client.asked(2)
        assert (await client.task(task_id))["status"] == "input_required"
        await client.send({"jsonrpc": "2.0", "id": again["id"], "result": {"action": "decline"}})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? decline None"


async def b6_fault_15_a_late_answer_resolves_no_other_question(world: World) -> None:
    async with world.connect() as client:
        first = await client.start("impatient")
        waiting = await client.start_request("tasks/result", {"taskId": first})
        question = await client.asked()
        world.lose_patience()
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "no answer"
        second = await client.start("ask")
        waiting = await client.start_request("tasks/result", {"taskId": second})
        await client.asked(2)
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=False)})
        await anyio.sleep(0.05)
        assert (await client.task(second))["status"] == "input_required"
        await client.send({"jsonrpc": "2.0", "id": client.questions[1]["id"], **accept(ok=True)})
        assert (await client.response(waiting))["result"]["content"][0]["text"] == "Sure? accept True"


async def fault_17_an_answer_that_crosses_with_the_end_of_its_stream_ends_no_connection(world: World) -> None:
    async with world.connect() as client:
        for number in range(1, 31):
            task_id = await client.start("ask")
            lost = await client.start_request("tasks/result", {"taskId": task_id})
            question = await client.asked(number)
            async with anyio.create_task_group() as group:
                group.start_soon(client.send, {"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
                if number % 2:
                    group.start_soon(client.notify, "notifications/cancelled", {"requestId": lost})
                else:
                    await client.start_request("tasks/cancel", {"taskId": task_id})
        assert await client.text(await client.start("double", {"x": 1})) == "2"


async def b6_fault_3_an_error_answer_raises_in_the_asker_and_the_task_works_on(world: World) -> None:
    error = {"error": {"code": -32042, "message": "The user is not there"}}
    async with world.connect(answer=answering(error)) as client:
        assert await client.text(await client.start("what_went_wrong")) == "-32042 The user is not there"


async def b6_an_error_answer_that_reads_like_a_lost_connection_raises_in_the_asker(world: World) -> None:
    error = {"error": {"code": -32000, "message": "Connection closed"}}
    async with world.connect(answer=answering(error)) as client:
        assert await client.text(await client.start("what_went_wrong")) == "-32000 Connection closed"


async def b6_a_notification_that_was_queued_just_before_the_end_is_delivered(world: World) -> None:
    async with world.connect(answer=answering(accept(ok=True))) as client:
        task_id = await client.start("last_words")
        result = await client.result("tasks/result", {"taskId": task_id})
        assert result["content"][0]["text"] == "said"
        said = await client.notified("notifications/message", data="bye")
        assert said["_meta"][RELATED] == {"taskId": task_id}


async def b6_a_malformed_answer_raises_in_the_asker(world: World) -> None:
    async with world.connect(answer=answering(accept(ok="perhaps"))) as client:
        assert (await client.text(await client.start("what_went_wrong"))).startswith("-32602 ")


async def b6_a_client_without_elicitation_is_not_asked(world: World) -> None:
    async with world.connect(capabilities={}) as client:
        text = await client.text(await client.start("what_went_wrong"))
        assert "does not support elicitation" in text
        assert not client.questions


async def b7_an_error_result_fails_the_task_and_is_still_its_result(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("boom")
        task = await client.until(task_id, *TERMINAL)
        assert task["status"] == "failed"
        assert task["statusMessage"], "B13"
        result = await client.result("tasks/result", {"taskId": task_id})
        assert result["isError"] is True
        assert "_meta" in result
        listed = await client.result("tasks/list")
        assert [each["status"] for each in listed["tasks"]] == ["failed"]


async def fault_11_an_exception_reads_as_in_a_plain_call(world: World) -> None:
    """Law L11; what the SDK alone would show is the differential suite's question."""
    async with world.connect() as client:
        plain = await client.result("tools/call", {"name": "boom", "arguments": {}})
        task_id = await client.start("boom")
        await client.until(task_id, *TERMINAL)
        result = await client.result("tasks/result", {"taskId": task_id})
        assert (result.get("content"), result.get("isError")) == (plain["content"], plain["isError"])


async def bad_arguments_end_the_task_as_failed_like_the_call_would(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("double", {"x": "many"})
        assert (await client.until(task_id, *TERMINAL))["status"] == "failed"
        result = await client.result("tasks/result", {"taskId": task_id})
        plain = await client.result("tools/call", {"name": "double", "arguments": {"x": "many"}})
        assert result["isError"] is True
        assert result["content"] == plain["content"]


async def b3_arguments_that_are_no_object_are_refused_and_make_no_task(world: World) -> None:
    async with world.connect() as client:
        for arguments in (True, False, 0, 5, -1.5, "", "x", "\0", [], [{"x": 1}]):
            plain: Wire = {"name": "double", "arguments": arguments}
            for params in (plain, {**plain, "task": {}}):
                error = await client.error("tools/call", params)
                assert error["code"] == -32602, (arguments, error)
        assert (await client.result("tasks/list"))["tasks"] == []
        assert "task" in await client.result("tools/call", {"name": "double", "arguments": {"x": 1}, "task": {}})


# -- B8 to B10: cancel, list, notifications


async def b8_fault_5_cancel_stops_the_work_and_says_so_at_once(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("wait")
        await world.until(lambda: world.entered == 1)
        cancelled = await client.result("tasks/cancel", {"taskId": task_id})
        assert cancelled["status"] == "cancelled"
        await world.until(lambda: world.left == 1)


async def b8_fault_16_work_that_returns_after_cancel_harms_nobody(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("stubborn")
        await world.until(lambda: world.entered == 1)
        await client.result("tasks/cancel", {"taskId": task_id})
        world.let_go.set()
        await world.until(lambda: world.left == 1)
        for _ in range(10):
            await anyio.sleep(0.005)
            assert (await client.task(task_id))["status"] == "cancelled"
        assert await client.text(await client.start("double", {"x": 1})) == "2"


async def b8_fault_8_a_cancelled_task_never_gets_a_result(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("stubborn")
        await world.until(lambda: world.entered == 1)
        await client.result("tasks/cancel", {"taskId": task_id})
        world.let_go.set()
        await world.until(lambda: world.left == 1)
        await anyio.sleep(0.05)
        assert "error" in await client.outcome(task_id)


async def fault_7_a_question_given_up_leaves_the_task_working(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("gives_up")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        world.lose_patience()
        await world.until(lambda: world.entered == 1)
        assert (await client.task(task_id))["status"] == "working"
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert (await client.task(task_id))["status"] == "working"
        await client.result("tasks/cancel", {"taskId": task_id})
        assert "error" in await client.response(waiting)


async def fault_14_18_work_that_outlives_its_ttl_ends_as_failed(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("wait", task={"ttl": 1_000})
        task = await client.until(task_id, "failed")
        assert "time to live" in task["statusMessage"]
        await world.until(lambda: world.left == 1)


async def fault_20_waiting_for_a_task_ends_with_its_ttl(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask", task={"ttl": 1_000})
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked()
        assert "time to live" in (await client.response(waiting))["error"]["message"]


async def b8_a_task_that_has_ended_cannot_be_cancelled(world: World) -> None:
    async with world.connect() as client:
        for tool in ("double", "boom"):
            task_id = await client.start(tool, {"x": 1} if tool == "double" else {})
            ended = await client.until(task_id, *TERMINAL)
            assert (await client.error("tasks/cancel", {"taskId": task_id}))["code"] == -32602
            assert await client.task(task_id) == ended


async def b8_fault_6_cancel_releases_a_pending_question(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("ask")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        await client.asked()
        await client.result("tasks/cancel", {"taskId": task_id})
        assert "error" in await client.response(waiting)


async def b9_fault_13_list_pages_and_a_bad_cursor_is_refused(world: World) -> None:
    async with world.connect() as client:
        started = [await client.start("double", {"x": x}) for x in range(55)]
        for task_id in started:
            await client.until(task_id, "completed")
        page = await client.result("tasks/list")
        listed = [task["taskId"] for task in page["tasks"]]
        while "nextCursor" in page:
            page = await client.result("tasks/list", {"cursor": page["nextCursor"]})
            listed += [task["taskId"] for task in page["tasks"]]
        assert listed == started
        assert (await client.error("tasks/list", {"cursor": "bm9uc2Vuc2U"}))["code"] == -32602


async def b10_each_change_of_status_is_notified_with_the_whole_task(world: World) -> None:
    async with world.connect(answer=answering(accept(ok=True))) as client:
        task_id = await client.start("ask")
        await client.notified("notifications/tasks/status", taskId=task_id, status="input_required")
        await client.text(task_id)
        await client.notified("notifications/tasks/status", taskId=task_id, status="completed")
        for message in client.notifications:
            assert RELATED not in message["params"].get("_meta", {})
            assert "ttl" in message["params"]


async def b10_a_failure_is_notified_as_one(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("boom")
        await client.notified("notifications/tasks/status", taskId=task_id, status="failed")


async def b11_progress_reaches_the_callers_token_for_the_tasks_life(world: World) -> None:
    async with world.connect() as client:
        task_id = await client.start("progress", _meta={"progressToken": "p-1"})
        first = await client.notified("notifications/progress", progressToken="p-1", progress=1)
        assert (first["total"], first["message"]) == (3, "Reading")
        assert (await client.until(task_id, "input_required"))["statusMessage"] == "Reading (1/3)"
        client.answer = answering(accept(ok=True))
        assert await client.text(task_id) == "done"
        second = await client.notified("notifications/progress", progressToken="p-1", progress=2)
        assert second["_meta"][RELATED] == {"taskId": task_id}


# -- B12: questions that are tasks of the client


class ClientTasks:
    """A client that answers questions with tasks of its own."""

    def __init__(self, statuses: list[str], result: Wire) -> None:
        self.statuses = statuses
        self.result = result
        self.polls = 0
        self.was_cancelled = anyio.Event()
        self.asked_for: Wire = {}

    async def __call__(self, question: Wire) -> Wire | None:
        method, params = question["method"], question["params"]
        if method == "tasks/get":
            assert params["taskId"] == "client-1"
            self.polls += 1
            if not self.statuses:
                return {"error": {"code": -32602, "message": "Task not found"}}
            return {"result": self._task(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])}
        if method == "tasks/result":
            return self.result
        if method == "tasks/cancel":
            self.was_cancelled.set()
            return {"result": self._task("cancelled")}
        self.asked_for = params
        return {"result": {"task": self._task("working")}}

    def _task(self, status: str) -> Wire:
        now = "2025-11-25T00:00:00Z"
        return {
            "taskId": "client-1",
            "status": status,
            "createdAt": now,
            "lastUpdatedAt": now,
            "ttl": 5000,
            "pollInterval": 20,
        }


def _answered(**result: Any) -> Wire:
    return {"result": {**result, "_meta": {RELATED: {"taskId": "client-1"}}}}


async def b12_an_elicitation_may_be_a_task_of_the_client(world: World) -> None:
    client_tasks = ClientTasks(["working", "working", "completed"], _answered(action="accept", content={"ok": True}))
    async with world.connect(answer=client_tasks) as client:
        task_id = await client.start("ask_as_task")
        assert await client.text(task_id) == "accept"
        assert client_tasks.asked_for["task"] == {"ttl": 5_000}
        assert client_tasks.polls == 3


async def b12_sampling_may_be_a_task_of_the_client(world: World) -> None:
    message = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "old pond"}}
    async with world.connect(answer=ClientTasks(["completed"], _answered(**message))) as client:
        assert await client.text(await client.start("haiku_as_task")) == "old pond"


async def b12_the_clients_errors_raise_in_the_asker(world: World) -> None:
    declined = {"error": {"code": -32042, "message": "No user"}}
    expectations = [
        (ClientTasks(["failed"], declined), "-32042 No user"),
        (ClientTasks(["cancelled"], declined), "-32603 The client cancelled its task"),
        (ClientTasks([], declined), "-32602 Task not found"),
    ]
    for client_tasks, text in expectations:
        async with world.connect(answer=client_tasks) as client:
            assert await client.text(await client.start("ask_as_task")) == text


async def b12_cancelling_our_task_cancels_the_clients(world: World) -> None:
    client_tasks = ClientTasks(["working"], {})
    async with world.connect(answer=client_tasks) as client:
        task_id = await client.start("ask_as_task")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        with anyio.fail_after(PATIENCE):
            while not client_tasks.polls:
                await client.changed.wait()
        await client.result("tasks/cancel", {"taskId": task_id})
        assert "error" in await client.response(waiting)
        with anyio.fail_after(PATIENCE):
            await client_tasks.was_cancelled.wait()


async def b12_a_question_given_up_cancels_the_clients_task(world: World) -> None:
    client_tasks = ClientTasks(["working"], {})
    async with world.connect(answer=client_tasks) as client:
        task_id = await client.start("gives_up_as_task")
        await client.start_request("tasks/result", {"taskId": task_id})
        with anyio.fail_after(PATIENCE):
            while not client_tasks.polls:
                await client.changed.wait()
            world.lose_patience()
            await client_tasks.was_cancelled.wait()
        assert (await client.task(task_id))["status"] == "working"


async def b12_the_next_stream_follows_the_same_task_of_the_client(world: World) -> None:
    client_tasks = ClientTasks(["working"], _answered(action="decline"))
    async with world.connect(answer=client_tasks) as client:
        task_id = await client.start("ask_as_task")
        lost = await client.start_request("tasks/result", {"taskId": task_id})
        with anyio.fail_after(PATIENCE):
            while not client_tasks.polls:
                await client.changed.wait()
        await client.notify("notifications/cancelled", {"requestId": lost})
        client_tasks.statuses = ["completed"]
        assert await client.text(task_id) == "decline"
        asked = [question for question in client.questions if question["method"] == "elicitation/create"]
        assert len(asked) == 1
        assert not client_tasks.was_cancelled.is_set()


async def b12_a_client_that_did_not_declare_it_is_not_asked_for_a_task(world: World) -> None:
    async with world.connect(capabilities={"elicitation": {}}) as client:
        error = await error_of(client.outcome(await client.start("ask_as_task")))
        assert "does not support task-augmented elicitation" in error["message"]


# -- A3, owners, many connections


async def a3_unknown_and_malformed_ids_are_invalid_params(world: World) -> None:
    async with world.connect() as client:
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            for params in ({"taskId": "unknown"}, {"taskId": 7}, {}):
                assert (await client.error(method, params))["code"] == -32602


async def fault_19_another_session_sees_nothing_of_a_task(world: World) -> None:
    async with world.connect() as owner, world.connect() as other:
        task_id = await owner.start("wait")
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            error = await other.error(method, {"taskId": task_id})
            assert error == await other.error(method, {"taskId": "unknown"})
        assert (await other.result("tasks/list"))["tasks"] == []
        assert (await owner.task(task_id))["status"] == "working"


async def fault_17_a_connection_that_ends_leaves_the_others_alone(world: World) -> None:
    async with world.connect() as staying:
        async with world.connect() as leaving:
            task_id = await leaving.start("ask")
            await leaving.start_request("tasks/result", {"taskId": task_id})
            await leaving.asked()
            mine = await staying.start("wait")
        await world.until(lambda: world.entered == 1)
        assert (await staying.task(mine))["status"] == "working"
        assert await staying.text(await staying.start("double", {"x": 3})) == "6"


async def fault_2_two_hundred_and_fifty_quick_tasks_all_end(world: World) -> None:
    async with world.connect() as client:
        texts: list[str] = []

        async def once(x: int) -> None:
            texts.append(await client.text(await client.start("double", {"x": x})))

        with anyio.fail_after(PATIENCE):
            for start in range(0, 250, 50):
                async with anyio.create_task_group() as group:
                    for x in range(start, start + 50):
                        group.start_soon(once, x)
        assert sorted(map(int, texts)) == [2 * x for x in range(250)]


async def fault_12_nothing_is_kept_of_connections_that_are_gone(world: World) -> None:
    async def visit() -> None:
        async with world.connect(answer=answering(accept(ok=True))) as client:
            assert await client.text(await client.start("ask")) == "Sure? accept True"

    async def growth() -> int:
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(10):
            await visit()
        gc.collect()
        return len(gc.get_objects()) - before

    await visit()
    # Caches of others grow once, what is kept of a connection each time; the ten tasks are kept until their TTL.
    for _ in range(3):
        if await growth() < 10 * 400:
            return
    raise AssertionError("connections that are gone are kept")


SCENARIOS: dict[str, Callable[[World], Awaitable[None]]] = {
    name: value
    for name, value in list(globals().items())
    if name.startswith(("a3_", "b", "fault_")) and callable(value) and getattr(value, "__module__", "") == __name__
}
