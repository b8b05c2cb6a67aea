"""The rules A and C of the 2026-07-28 tasks extension, on the wire of `examples/everything_server.py`.

Each test names the rule it proves. The client knows no SDK, and validates every message it receives.

Elsewhere: the headers of C12 and the limits of A6 (`test_wire_rules_headers.py`, `test_wire_rules_limits.py`), owners
where callers are authenticated, A5 (`test_owners.py`), more of C11 (`test_push.py`), and the client's own rules, C14
(`test_client.py`). `test_wire_rules_sdk.py` proves with the SDK's client what that can see of these rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Generator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server import MCPServer

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v2.conftest import ENTRY
from tests.mcp_v2.in_process import memory_client
from tests.mcp_v2.listeners import ENDED, Connection, ListeningStdioServer, http_connection
from tests.mcp_v2.raw_client import DECLARED, EXTENSION_ID, RawClient, accept, http_client
from tests.mcp_v2.schemas import Wire, needs_schemas, validate

pytestmark = pytest.mark.anyio

STATUSES = {"working", "input_required", "completed", "failed", "cancelled"}
UNDECLARED: Wire = {"elicitation": {"form": {}}, "sampling": {}}
TASK_METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]
NO_SUCH_TASK = "0123456789abcdefghijkl"
MALFORMED_IDS = ["", " ", "no such task", "../x", "0", "\0", "ä☃", "x" * 100_000, "%s", "null"]


@pytest.fixture(params=["everything_over_http", "everything_as_json", "everything_over_stdio"])
async def client(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[RawClient, None]:
    """A client of the everything server, over each transport."""
    server = request.getfixturevalue(request.param)
    if isinstance(server, str):
        async with http_client(server) as connected:
            yield connected
    else:
        yield RawClient(server)


@pytest.fixture(scope="module")
def listening_over_stdio() -> Generator[ListeningStdioServer, None, None]:
    with ListeningStdioServer([ENTRY, "stdio"]) as server:
        yield server


@pytest.fixture(params=["everything_over_http", "everything_as_json", "listening_over_stdio"])
async def connection(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[Connection, None]:
    """A client of the everything server that listens, over each transport."""
    server = request.getfixturevalue(request.param)
    if isinstance(server, str):
        async with http_connection(server) as connected:
            yield connected
    else:
        yield server.connection()


def params_of(method: str, task_id: Any) -> Wire:
    return {"taskId": task_id, **({"inputResponses": {}} if method == "tasks/update" else {})}


def text_of(result: Wire) -> str:
    (block,) = result["content"]
    text: str = block["text"]
    return text


# A. Both protocols


async def test_a1_a_task_begins_as_working_has_known_statuses_only_and_its_end_is_final(client: RawClient) -> None:
    handle = (await client.call("slow_compute", {"seconds": 0.05})).result
    assert handle["status"] == "working"
    seen: list[Wire] = []
    final = await client.until(handle["taskId"], "completed", seen=seen)
    assert {task["status"] for task in seen} <= STATUSES
    await client.cancel(handle["taskId"])
    await client.update(handle["taskId"], {"1": accept()})
    assert await client.get(handle["taskId"]) == final


async def test_a2_ids_are_unique_and_have_128_random_bits(client: RawClient) -> None:
    ids = [await client.start("slow_compute", {"seconds": 60}) for _ in range(10)]
    assert len(set(ids)) == len(ids)
    alphabet = set("".join(ids))
    assert len(alphabet) > 10
    assert all(len(task_id) * math.log2(min(len(alphabet), 64)) >= 128 for task_id in ids)
    for position in range(min(map(len, ids)) - 1):
        assert len({task_id[position] for task_id in ids}) > 1, "a part of the id is not random"
    for task_id in ids:
        await client.cancel(task_id)


@pytest.mark.parametrize("method", TASK_METHODS)
async def test_a3_an_unknown_id_and_a_malformed_one_are_the_same_invalid_params(client: RawClient, method: str) -> None:
    unknown = (await client.request(method, params_of(method, NO_SUCH_TASK))).error
    assert unknown["code"] == -32602
    assert unknown["message"] == "Task not found"
    for task_id in MALFORMED_IDS:
        assert (await client.request(method, params_of(method, task_id), headers={"mcp-name": None})).error == unknown


@pytest.mark.parametrize("method", TASK_METHODS)
@pytest.mark.parametrize("task_id", [None, 7, True, [], {}, ["x"], ...], ids=repr)
async def test_a3_an_id_that_is_no_string_or_missing_is_invalid_params(
    client: RawClient, method: str, task_id: Any
) -> None:
    params = {name: value for name, value in params_of(method, task_id).items() if value is not ...}
    assert (await client.request(method, params)).error["code"] == -32602


async def test_a4_times_are_rfc_3339_in_utc_and_durations_integer_milliseconds(client: RawClient) -> None:
    before = datetime.now(timezone.utc)
    handle = (await client.call("slow_compute", {"seconds": 0.02})).result
    final = await client.until(handle["taskId"], "completed")
    for task in (handle, final):
        assert task["createdAt"][-1] == task["lastUpdatedAt"][-1] == "Z"
        created, updated = (
            datetime.fromisoformat(task[name].replace("Z", "+00:00"))  # Python 3.10 reads no Z
            for name in ("createdAt", "lastUpdatedAt")
        )
        assert before - timedelta(seconds=1) <= created <= updated <= datetime.now(timezone.utc)
        assert type(task["ttlMs"]) is int
        assert type(task["pollIntervalMs"]) is int
    assert final["createdAt"] == handle["createdAt"]
    assert final["lastUpdatedAt"] > handle["lastUpdatedAt"]


async def test_a4_an_unlimited_ttl_is_null_in_every_message_and_never_missing() -> None:
    mcp = MCPServer("unlimited")
    tasks = Tasks(settings=TaskSettings(default_ttl_ms=None, max_ttl_ms=None))
    tasks.install(mcp)

    @tasks.tool()
    async def work(task: ServerTaskContext) -> str:
        return "done"

    async with memory_client(mcp) as client:
        handle = (await client.call("work")).result
        final = await client.until(handle["taskId"], "completed")
    assert handle["ttlMs"] is None
    assert final["ttlMs"] is None


async def test_a5_without_authentication_whoever_knows_the_id_reaches_the_task(everything_over_http: str) -> None:
    async with http_client(everything_over_http) as one, http_client(everything_over_http) as other:
        task_id = await one.start("confirm_delete", {"filename": "x"})
        (key,) = await other.asked(task_id)
        await other.update(task_id, {key: accept(confirm=True)})
        assert await one.until(task_id, "completed") == await other.get(task_id)


# C. The extension


async def test_c1_the_server_declares_the_extension_and_not_the_old_capability(client: RawClient) -> None:
    declarations: list[Wire] = [{}, DECLARED, {"tasks": {}}]
    for capabilities in declarations:
        declared = (await client.request("server/discover", capabilities=capabilities)).result["capabilities"]
        assert declared["extensions"][EXTENSION_ID] == {}
        assert "tasks" not in declared


async def test_c1_the_old_capability_alone_does_not_declare_the_extension(client: RawClient) -> None:
    old: Wire = {"tasks": {"list": {}, "cancel": {}, "requests": {"elicitation": {"create": {}}}}}
    declarations: list[Wire] = [old, {"experimental": {EXTENSION_ID: {}}}, {"extensions": {}}]
    for capabilities in declarations:
        plain = await client.call("slow_compute", {"seconds": 0}, capabilities=capabilities)
        assert plain.result["resultType"] == "complete"
        assert (await client.call("failing_job", capabilities=capabilities)).error["code"] == -32021


async def test_c1_the_extension_is_declared_for_each_request_anew(client: RawClient) -> None:
    assert (await client.call("slow_compute", {"seconds": 0})).result["resultType"] == "task"
    undeclared = await client.call("slow_compute", {"seconds": 0}, capabilities=UNDECLARED)
    assert undeclared.result["resultType"] == "complete"
    assert (await client.call("slow_compute", {"seconds": 0})).result["resultType"] == "task"


async def test_c2_an_undeclared_call_of_an_optional_tool_runs_and_returns_its_result(client: RawClient) -> None:
    result = (await client.call("slow_compute", {"seconds": 0.01, "label": "x"}, capabilities={})).result
    assert result["resultType"] == "complete"
    assert text_of(result) == "computed x"


async def test_c2_progress_of_a_call_that_runs_within_its_request_goes_to_its_token(client: RawClient) -> None:
    meta = {"progressToken": f"token-{id(client)}"}
    reply = await client.call("slow_compute", {"seconds": 0.02, "label": "x"}, capabilities={}, meta=meta)
    assert text_of(reply.result) == "computed x"
    if reply.content_type == "application/json":
        assert not reply.notifications  # a JSON response carries nothing else
        return
    progress = [notification["params"]["progress"] for notification in reply.notifications]
    assert progress == [0, 1, 2, 3]
    assert {notification["method"] for notification in reply.notifications} == {"notifications/progress"}


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [("confirm_delete", {"filename": "x"}), ("failing_job", {}), ("write_haiku", {"topic": "bees"})],
)
async def test_c2_an_undeclared_call_of_a_required_tool_says_which_capability_is_missing(
    client: RawClient, tool: str, arguments: Wire
) -> None:
    reply = await client.call(tool, arguments, capabilities=UNDECLARED)
    assert reply.error["code"] == -32021
    assert reply.error["data"]["requiredCapabilities"] == {"extensions": {EXTENSION_ID: {}}}
    assert reply.http_status in (None, 400)


@pytest.mark.parametrize("capabilities", [{}, DECLARED], ids=["undeclared", "declared"])
async def test_c2_a_tool_that_knows_no_tasks_returns_its_result(client: RawClient, capabilities: Wire) -> None:
    result = (await client.call("greet", {"name": "Ada"}, capabilities=capabilities)).result
    assert result["resultType"] == "complete"
    assert text_of(result) == "Hello, Ada!"


@pytest.mark.parametrize("old", [{}, {"ttl": 5}, None], ids=repr)
async def test_c3_the_task_parameter_of_the_old_protocol_is_ignored(client: RawClient, old: Any) -> None:
    extra = {"task": old}
    plain = await client.call("greet", {"name": "Ada"}, extra=extra)
    assert plain.result["resultType"] == "complete"
    undeclared = await client.call("slow_compute", {"seconds": 0}, extra=extra, capabilities={})
    assert undeclared.result["resultType"] == "complete"
    declared = await client.call("slow_compute", {"seconds": 0}, extra=extra)
    assert declared.result["ttlMs"] == (await client.call("slow_compute", {"seconds": 0})).result["ttlMs"]


@pytest.mark.parametrize("method", ["tasks/result", "tasks/list"])
@pytest.mark.parametrize("capabilities", [{}, DECLARED], ids=["undeclared", "declared"])
async def test_c3_the_methods_of_the_old_protocol_do_not_exist(
    client: RawClient, method: str, capabilities: Wire
) -> None:
    task_id = await client.start("slow_compute", {"seconds": 0})
    reply = await client.request(method, {"taskId": task_id}, capabilities=capabilities)
    assert reply.error["code"] == -32601
    assert reply.http_status in (None, 404)


async def test_c4_a_handle_is_a_flat_task_and_holds_nothing_of_the_outcome(client: RawClient) -> None:
    calls: dict[str, Wire] = {"slow_compute": {"seconds": 0}, "confirm_delete": {"filename": "x"}}
    for tool, arguments in calls.items():
        handle = (await client.call(tool, arguments)).result
        assert handle["resultType"] == "task"
        known = {"resultType", "taskId", "status", "statusMessage", "createdAt", "lastUpdatedAt", "ttlMs"}
        assert handle.keys() <= known | {"pollIntervalMs", "_meta"}
        assert not handle.keys() & {"task", "result", "error", "inputRequests", "requestState"}


async def test_c4_a_task_can_be_fetched_as_soon_as_its_handle_is_there(client: RawClient) -> None:
    async def call_and_get() -> None:
        task_id = await client.start("slow_compute", {"seconds": 0})
        assert (await client.get(task_id))["taskId"] == task_id

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(call_and_get)


async def test_c5_input_for_a_tool_is_asked_on_the_call_before_there_is_a_task(client: RawClient) -> None:
    first = (await client.call("test_tool_with_task")).result
    assert first["resultType"] == "input_required"
    assert "taskId" not in first
    ((key, question),) = first["inputRequests"].items()
    assert question["params"]["requestedSchema"]["required"] == ["name"]
    answered = {"inputResponses": {key: accept(name="Ada")}, "requestState": first["requestState"]}
    handle = (await client.call("test_tool_with_task", extra=answered)).result
    assert handle["resultType"] == "task"
    final = await client.until(handle["taskId"], "completed")
    assert text_of(final["result"]) == "Done for Ada"


async def test_c5_declined_input_makes_no_task(client: RawClient) -> None:
    first = (await client.call("test_tool_with_task")).result
    (key,) = first["inputRequests"]
    declined = {"inputResponses": {key: {"action": "decline"}}, "requestState": first["requestState"]}
    reply = await client.call("test_tool_with_task", extra=declined)
    assert "error" in reply.message or reply.result["isError"]


async def test_c6_a_working_task_is_shown_with_its_status_message_alone(client: RawClient) -> None:
    task_id = await client.start("slow_compute", {"seconds": 60, "label": "x"})
    task = await client.said(task_id, "Computing x (0/4)")
    assert task["status"] == "working"
    assert task["resultType"] == "complete"
    await client.cancel(task_id)


async def test_c6_a_task_that_needs_input_shows_every_open_request(client: RawClient) -> None:
    task_id = await client.start("multi_input")
    requests = await client.asked(task_id, 2)
    assert sorted(request["params"]["message"] for request in requests.values()) == [
        "Who is the author?",
        "Who is the editor?",
    ]
    assert {request["method"] for request in requests.values()} == {"elicitation/create"}
    await client.cancel(task_id)


async def test_c6_a_sampling_request_is_shown_and_its_answer_used(client: RawClient) -> None:
    task_id = await client.start("write_haiku", {"topic": "bees"})
    ((key, request),) = (await client.asked(task_id)).items()
    assert request["method"] == "sampling/createMessage"
    answer = {"role": "assistant", "model": "m", "content": {"type": "text", "text": "bees, bees"}}
    await client.update(task_id, {key: answer})
    assert text_of((await client.until(task_id, "completed"))["result"]) == "bees, bees"


async def test_c6_a_completed_task_holds_what_the_call_would_have_returned(client: RawClient) -> None:
    arguments = {"seconds": 0, "label": "x"}
    plain = (await client.call("slow_compute", arguments, capabilities={})).result
    task = await client.until(await client.start("slow_compute", arguments), "completed")
    plain.pop("_meta", None)  # the server's stamp on the response
    task["result"].pop("_meta", None)
    assert task["result"] == plain
    assert plain["structuredContent"] == {"result": "computed x"}


async def test_c6_a_failed_task_holds_the_error_and_says_in_its_status_what_went_wrong(client: RawClient) -> None:
    task = await client.until(await client.start("protocol_error_job"), "failed")
    assert task["error"] == {"code": -32050, "message": "The quota is used up", "data": {"retryAfterSeconds": 30}}
    assert task["statusMessage"] == "The quota is used up"


async def test_c6_a_cancelled_task_holds_neither_result_nor_error_nor_requests(client: RawClient) -> None:
    task_id = await client.start("confirm_delete", {"filename": "x"})
    await client.asked(task_id)
    await client.cancel(task_id)
    assert (await client.until(task_id, "cancelled"))["resultType"] == "complete"


async def test_c6_a_task_that_is_completed_from_outside_holds_that_result(client: RawClient) -> None:
    task_id = await client.start("external_job", {"job_id": "7"})
    assert text_of((await client.until(task_id, "completed"))["result"]) == "job 7 done"


async def test_c7_keys_are_unique_over_the_life_of_a_task_and_never_reused() -> None:
    mcp = MCPServer("asking")
    tasks = Tasks()
    tasks.install(mcp)
    form = {"type": "object", "properties": {}}

    @tasks.tool()
    async def ask(task: ServerTaskContext) -> str:
        for _ in range(3):
            await task.elicit("One?", form)
            async with anyio.create_task_group() as group:
                group.start_soon(task.elicit, "Two?", form)
                group.start_soon(task.elicit, "Three?", form)
        return "done"

    async with memory_client(mcp) as client:
        task_id = await client.start("ask")
        messages: dict[str, str] = {}
        while (task := await client.until(task_id, "input_required", "completed"))["status"] != "completed":
            for key, request in task["inputRequests"].items():
                assert messages.setdefault(key, request["params"]["message"]) == request["params"]["message"]
            await client.update(task_id, {key: accept() for key in task["inputRequests"]})
    assert sorted(messages.values()) == sorted(["One?", "Two?", "Three?"] * 3)


async def test_c7_keys_that_are_open_at_once_differ_and_stay_with_their_questions(client: RawClient) -> None:
    task_id = await client.start("multi_input")
    requests = await client.asked(task_id, 2)
    assert len(requests) == 2
    assert (await client.get(task_id))["inputRequests"] == requests
    await client.cancel(task_id)


async def test_c8_an_update_is_acknowledged_with_nothing_but_that(client: RawClient) -> None:
    task_id = await client.start("confirm_delete", {"filename": "x"})
    (key,) = await client.asked(task_id)
    acknowledged = (await client.update(task_id, {key: accept(confirm=True)})).result
    assert acknowledged.pop("_meta", {}).keys() <= {"io.modelcontextprotocol/serverInfo"}
    assert acknowledged == {"resultType": "complete"}
    assert text_of((await client.until(task_id, "completed"))["result"]) == "Deleted x"


async def test_c8_a_subset_is_accepted_and_the_rest_stays_open(client: RawClient) -> None:
    task_id = await client.start("multi_input")
    requests = await client.asked(task_id, 2)
    by_role = {request["params"]["message"].split()[-1].rstrip("?"): key for key, request in requests.items()}
    await client.update(task_id, {by_role["editor"]: accept(name="Eve")})
    left = await client.get(task_id)
    assert left["status"] == "input_required"
    assert left["inputRequests"] == {by_role["author"]: requests[by_role["author"]]}
    await client.update(task_id, {by_role["author"]: accept(name="Ada")})
    assert text_of((await client.until(task_id, "completed"))["result"]) == "Written by Ada, edited by Eve"


async def test_c8_unknown_and_answered_keys_are_ignored_and_the_first_answer_wins(client: RawClient) -> None:
    task_id = await client.start("multi_input")
    first, second = await client.asked(task_id, 2)
    await client.update(task_id, {})
    await client.update(task_id, {"no such key": accept(), "": "nonsense", first: accept(name="first")})
    await client.update(task_id, {first: accept(name="late"), "again": None})
    await client.update(task_id, {first: "not even an answer", second: accept(name="second")})
    text = text_of((await client.until(task_id, "completed"))["result"])
    assert "first" in text
    assert "second" in text
    assert "late" not in text
    assert (await client.update(task_id, {first: accept(name="too late")})).result["resultType"] == "complete"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "yes",
        [],
        {},
        {"action": "maybe"},
        {"action": "accept"},
        {"action": "accept", "content": None},
        {"action": "accept", "content": []},
        {"action": "accept", "content": {}},
        {"action": "accept", "content": {"confirm": "yes"}},
        {"action": "accept", "content": {"confirm": 1}},
        {"action": "accept", "content": {"confirm": None}},
        {"action": "accept", "content": {"confirm": True, "padding": "x" * 2_000_000}},
        {"content": {"confirm": True}},
    ],
    ids=lambda answer: repr(answer)[:60],
)
async def test_c8_a_malformed_answer_is_refused_and_its_question_stays_open(client: RawClient, answer: Any) -> None:
    task_id = await client.start("confirm_delete", {"filename": "x"})
    requests = await client.asked(task_id)
    (key,) = requests
    refused = await client.update(task_id, {key: answer})
    assert refused.error["code"] == -32602
    assert key in refused.error["message"]
    assert (await client.get(task_id))["inputRequests"] == requests
    await client.update(task_id, {key: accept(confirm=False)})
    assert text_of((await client.until(task_id, "completed"))["result"]) == "Kept x"


@pytest.mark.parametrize("responses", [..., None, [], "x", 7], ids=repr)
async def test_c8_input_responses_that_are_no_object_are_invalid_params(client: RawClient, responses: Any) -> None:
    task_id = await client.start("confirm_delete", {"filename": "x"})
    params = {"taskId": task_id, **({} if responses is ... else {"inputResponses": responses})}
    assert (await client.request("tasks/update", params)).error["code"] == -32602
    await client.cancel(task_id)


async def test_c9_cancel_is_acknowledged_and_the_status_follows(client: RawClient) -> None:
    task_id = await client.start("slow_compute", {"seconds": 60})
    acknowledged = (await client.cancel(task_id)).result
    assert acknowledged.pop("_meta", {}).keys() <= {"io.modelcontextprotocol/serverInfo"}
    assert acknowledged == {"resultType": "complete"}
    await client.until(task_id, "cancelled")


@pytest.mark.parametrize(
    ("tool", "status"), [("slow_compute", "completed"), ("protocol_error_job", "failed"), ("failing_job", "completed")]
)
async def test_c9_cancelling_an_ended_task_is_acknowledged_and_changes_nothing(
    client: RawClient, tool: str, status: str
) -> None:
    task_id = await client.start(tool, {"seconds": 0} if tool == "slow_compute" else {})
    ended = await client.until(task_id, status)
    assert (await client.cancel(task_id)).result["resultType"] == "complete"
    assert await client.get(task_id) == ended


async def test_c9_cancelling_twice_is_acknowledged_twice(client: RawClient) -> None:
    task_id = await client.start("slow_compute", {"seconds": 60})
    await client.cancel(task_id)
    cancelled = await client.until(task_id, "cancelled")
    assert (await client.cancel(task_id)).result["resultType"] == "complete"
    assert await client.get(task_id) == cancelled


async def test_c10_a_tool_error_completes_the_task(client: RawClient) -> None:
    task = await client.until(await client.start("failing_job"), "completed")
    assert task["result"]["isError"] is True
    assert "error" not in task


async def test_c10_only_a_json_rpc_error_fails_a_task(client: RawClient) -> None:
    task = await client.until(await client.start("protocol_error_job"), "failed")
    assert task["error"]["code"] == -32050
    assert "result" not in task


def shown(task: Wire) -> Wire:
    """Return what is the same in a look and a push: the poll interval goes by the time of each."""
    return {name: value for name, value in task.items() if name not in ("resultType", "_meta", "pollIntervalMs")}


async def as_get_shows_it(connection: Connection, task_id: str) -> Wire:
    task = await connection.client.get(task_id)
    return shown(task)


async def test_c11_a_listener_gets_the_acknowledgement_then_each_change_and_the_end(connection: Connection) -> None:
    task_id = await connection.client.start("confirm_delete", {"filename": "x"})
    async with connection.listen(task_id) as stream:
        assert await stream.acknowledged() == [task_id]
        assert stream.agreed == {"taskIds": [task_id]}
        asking = await stream.until(lambda task: task["status"] == "input_required")
        assert shown(asking) == await as_get_shows_it(connection, task_id)
        (key,) = asking["inputRequests"]
        await connection.client.update(task_id, {key: accept(confirm=True)})
        last = await stream.until(lambda task: task["status"] in ENDED)
        await stream.ended()
    assert shown(last) == await as_get_shows_it(connection, task_id)
    assert text_of(last["result"]) == "Deleted x"


async def test_c11_each_status_message_is_pushed_in_order_and_no_progress_with_it(connection: Connection) -> None:
    meta = {"progressToken": f"listened-{id(connection)}"}
    task_id = await connection.client.start("slow_compute", {"seconds": 0.4, "label": "x"}, meta=meta)
    async with connection.listen(task_id) as stream:
        await stream.acknowledged()
        await stream.ended()  # the stream refuses notifications of other kinds
    said = [task["statusMessage"] for task in stream.seen[task_id] if "statusMessage" in task]
    assert said[-1] == "Computing x (3/4)"
    assert said == sorted(said)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_c11_a_failed_or_cancelled_end_is_pushed_as_tasks_get_shows_it(connection: Connection, how: str) -> None:
    task_id = await connection.client.start("protocol_error_job" if how == "failed" else "multi_input")
    async with connection.listen(task_id) as stream:
        await stream.acknowledged()
        if how == "cancelled":
            await connection.client.cancel(task_id)
        await stream.ended()
    assert shown(stream.seen[task_id][-1]) == await as_get_shows_it(connection, task_id)
    assert stream.seen[task_id][-1]["status"] == how


async def test_c11_who_did_not_declare_the_extension_is_told_what_is_missing(connection: Connection) -> None:
    task_id = await connection.client.start("confirm_delete", {"filename": "x"})
    for core in ({}, {"toolsListChanged": True}):
        async with connection.listen(task_id, capabilities=UNDECLARED, **core) as stream:
            error = await stream.refused()
        assert error["code"] == -32021
        assert error["data"]["requiredCapabilities"] == {"extensions": {EXTENSION_ID: {}}}
    await connection.client.cancel(task_id)


async def test_c11_ids_of_no_task_of_the_caller_are_left_out(connection: Connection) -> None:
    task_id = await connection.client.start("slow_compute", {"seconds": 0})
    async with connection.listen(NO_SUCH_TASK, task_id, "", "ä☃") as stream:
        assert await stream.acknowledged() == [task_id]
        await stream.ended()
    assert stream.seen.keys() == {task_id}


@pytest.mark.parametrize("task_ids", ["x", {}, [7], [None], [["x"]]], ids=repr)
async def test_c11_task_ids_that_are_no_list_of_strings_are_invalid_params(
    connection: Connection, task_ids: Any
) -> None:
    async with connection.listen_raw({"taskIds": task_ids}) as stream:
        assert (await stream.refused())["code"] == -32602


async def test_c11_other_filters_of_the_same_request_keep_working(connection: Connection) -> None:
    first, second = [await connection.client.start("confirm_delete", {"filename": "x"}) for _ in range(2)]
    async with connection.listen(first, second, toolsListChanged=True) as stream:
        assert sorted(await stream.acknowledged()) == sorted([first, second])
        assert stream.agreed is not None
        assert stream.agreed["toolsListChanged"] is True
        for task_id in (first, second):  # the end of the first ends nothing else
            await connection.client.cancel(task_id)
            await stream.until(lambda task, ending=task_id: (task["taskId"], task["status"]) == (ending, "cancelled"))  # type: ignore[misc]


@pytest.mark.parametrize("method", TASK_METHODS)
async def test_c13_an_undeclared_request_for_a_task_says_which_capability_is_missing(
    client: RawClient, method: str
) -> None:
    task_id = await client.start("slow_compute", {"seconds": 60})
    for asked in (task_id, NO_SUCH_TASK):
        reply = await client.request(method, params_of(method, asked), capabilities=UNDECLARED)
        assert reply.error["code"] == -32021
        assert reply.error["data"]["requiredCapabilities"] == {"extensions": {EXTENSION_ID: {}}}
        assert reply.http_status in (None, 400)
    assert (await client.get(task_id))["status"] == "working"
    await client.cancel(task_id)


async def test_the_tools_of_the_everything_server_show_what_a_client_may_pass(client: RawClient) -> None:
    tools = {tool["name"]: tool for tool in (await client.request("tools/list")).result["tools"]}
    assert {name: set(tool["inputSchema"].get("properties", {})) for name, tool in tools.items()} == {
        "greet": {"name"},
        "slow_compute": {"seconds", "label"},
        "failing_job": set(),
        "protocol_error_job": set(),
        "confirm_delete": {"filename"},
        "multi_input": set(),
        "write_haiku": {"topic"},
        "external_job": {"job_id"},
        "test_tool_with_task": set(),
    }
    assert all("outputSchema" in tool for tool in tools.values())


RULES = Path(__file__).resolve().parents[3] / "shared" / "wire-rules.md"
NOT_FOR_THE_SDK = {"c12", "c14"}  # that file says why


@pytest.mark.skipif(not RULES.is_file(), reason=f"the rules are not in {RULES}")
def test_every_rule_has_tests_with_its_number() -> None:
    rules = {number.lower() for number in re.findall(r"^- ([AC]\d+) ", RULES.read_text(), re.MULTILINE)}
    assert len(rules) == 20
    tested = {
        file.name: set(re.findall(r"def test_\w*?([ac]\d+)(?=_|\()", file.read_text()))
        for file in Path(__file__).parent.glob("test_*.py")
    }
    without_sdk = [tested[name] for name in tested if name.startswith("test_wire_rules") and "sdk" not in name]
    assert rules - set().union(*without_sdk) == {"c14"}
    assert rules - tested["test_wire_rules_sdk.py"] == NOT_FOR_THE_SDK
    assert "c14" in tested["test_client.py"]


@needs_schemas
def test_the_schemas_tell_wrong_messages_from_right_ones() -> None:
    task = {"taskId": "x", "status": "working", "createdAt": "x", "lastUpdatedAt": "x", "ttlMs": None}
    validate(task, "WorkingTask")
    with pytest.raises(AssertionError, match="ttlMs"):
        validate({name: value for name, value in task.items() if name != "ttlMs"}, "WorkingTask")
