"""Requests for tasks with anything JSON can say in them: never an internal error, a hang, or another's task.

A stranger sends them over HTTP to a server in this process, knowing the ids of another owner's tasks.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Annotated, Any, Literal

import anyio
import anyio.from_thread
import httpx
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from mcp_task_runtime.adapters.forms import form_schema
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.errors import ProtocolError
from mcp_task_runtime.wire.answers import check_answer
from tests.mcp_v1 import schemas as old_schemas
from tests.mcp_v2.guarded import URL, Guarded, as_user
from tests.mcp_v2.raw_client import DECLARED, PROTOCOL_VERSION, RawClient, accept
from tests.mcp_v2.schema_strategies import valid, valid_params, with_a_fault
from tests.mcp_v2.schemas import Schema, Wire, needs_schemas, validate, validate_response
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.filterwarnings("ignore:.AuthSettings.validate_token_resource")

METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]
MINE = "{mine}"
"""Stands for the id of a task of the stranger's own, wherever it comes up."""
THEIRS = "{theirs}"
"""Stands for the id of another owner's task."""
ENDED = "{ended}"
"""Stands for the id of a task of the stranger's own that has ended."""
KEY = "{key}"
"""Stands for the key of the question that his own task asks."""
BAD_REQUESTS = {-32602, -32600, -32601, -32700, -32020, -32021, -32022}
INTERNALS = ("Traceback", "Exception", "pydantic", "validation error", ".py")
"""What comes up in texts that are not for clients."""
PUSHED = "notifications/tasks"
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
ENVELOPE: Wire = {
    "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
    "io.modelcontextprotocol/clientCapabilities": DECLARED,
}


def headers_of(method: str) -> dict[str, str]:
    """Return the headers that a request must have."""
    return {"mcp-protocol-version": PROTOCOL_VERSION, "mcp-method": method}


texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [
        MINE,
        THEIRS,
        ENDED,
        "",
        KEY,
        "1",
        "\0",
        "\ud800",
        "x" * 50_000,
        "__proto__",
        "taskId",
        "$ref",
        "ﬁ",
        "‮",
        "%00",
        "\r\n",
    ]
)
numbers = st.integers() | st.floats() | st.sampled_from([10**300, -0.0, 2**63])
scalars = st.none() | st.booleans() | numbers | texts
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)


DEEP = {f"{{deep {depth}}}": depth for depth in (100, 300, 900, 100_000)}
"""What stands for values that are nested so deep: as such, Hypothesis could not print them."""

values = anything | st.sampled_from(sorted(DEEP))
answers = st.fixed_dictionaries(
    {},
    optional={"action": st.sampled_from(["accept", "decline", "cancel"]) | values, "content": values, "_meta": values},
)
params_of_any_shape = st.fixed_dictionaries(
    {},
    optional={
        "taskId": texts | values,
        "inputResponses": st.dictionaries(texts, values | answers, max_size=4) | values,
        "task": values,
        "cursor": values,
    },
) | st.dictionaries(texts, values, max_size=4)
fuzzing = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Stranger:
    """A user of the server who has got hold of the ids of another owner's tasks.

    Attributes:
        theirs: A task of another owner that asks.
        mine: A task of his own that asks.
        ended: A task of his own that has ended.
    """

    def __init__(self, portal: anyio.from_thread.BlockingPortal, alice: RawClient, bob: RawClient, app: Any) -> None:
        self.portal = portal
        self.alice = alice
        self.bob = bob
        self._app = app
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        self.theirs = ""
        self.mine = ""
        self.ended = ""
        self.key = ""

    @classmethod
    @asynccontextmanager
    async def arrives(cls, portal: anyio.from_thread.BlockingPortal) -> AsyncGenerator[Stranger, None]:
        """Start a server, a task of another owner and one of this user; check in the end how the other is."""
        guarded = Guarded()
        guarded.go_on.set()
        async with (
            guarded.serve(json_response=True, stateless_http=True) as app,
            as_user(app, "alice") as alice,
            as_user(app, "bob") as bob,
        ):
            stranger = cls(portal, alice, bob, app)
            async with stranger._http:
                stranger.theirs = await alice.start("ask")
                question = await alice.asked(stranger.theirs)
                stranger.mine = await stranger.asking()
                stranger.ended = await bob.start("who_in_a_thread")
                await bob.until(stranger.ended, "completed")
                yield stranger
                assert (await alice.get(stranger.theirs))["inputRequests"] == question
                (key,) = question
                await alice.update(stranger.theirs, {key: accept(ok=True)})
                await alice.until(stranger.theirs, "completed")

    async def asking(self) -> str:
        """Start a task of his own, and wait until it asks."""
        task_id = await self.bob.start("ask")
        (self.key,) = await self.bob.asked(task_id)
        return task_id

    def still_asks(self) -> None:
        """See to it that his own task asks, for the next test."""

        async def see() -> None:
            if (await self.bob.get(self.mine))["status"] != "input_required":
                self.mine = await self.asking()

        self.portal.call(see)

    def request(self, method: str, params: Any, headers: dict[str, str] | None = None, envelope: Any = ...) -> Wire:
        """Send a request, with the ids filled in, and check everything that holds for any answer."""
        if isinstance(params, dict):
            params = {**params, "_meta": ENVELOPE if envelope is ... else envelope}
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        response = self.post(message, {**headers_of(method), **(headers or {})})
        reply: Wire = response.json()
        self.check(reply, response.status_code, headers or {})
        if "error" not in reply:
            validate_response(method, reply)
            assert reply["result"].get("taskId") in (None, self.mine, self.ended)
        return reply

    def check(self, reply: Wire, status: int, headers: dict[str, str]) -> None:
        """Check that a reply is no internal error, and shows nothing of the server or of another owner."""
        if "error" not in reply:
            assert self.theirs not in json.dumps(reply)
            return
        error = reply["error"]
        assert error["code"] in BAD_REQUESTS, reply
        assert 400 <= status < 500, reply
        shown = json.dumps(error)
        for secret in (self.theirs, *INTERNALS):
            assert secret not in shown.replace(str(headers.get("mcp-protocol-version")), ""), reply

    def post(self, message: Any, headers: dict[str, str]) -> httpx.Response:
        """Send anything, with the ids filled in."""
        return self.portal.call(self._post, self._encode(json.dumps(message)), headers)

    def listen(self, message: Wire) -> list[Wire]:
        """Send a listen request; return what comes until the stream ends or has shown all it agreed to.

        What comes is checked. A single error is a stream of that alone.
        """
        messages: list[Wire] = self.portal.call(self._listen, self._encode(json.dumps(message)))
        for received in messages:
            if "error" in received:
                self.check(received, 400, {})
            assert self.theirs not in json.dumps(received)
        return messages

    def _encode(self, text: str) -> bytes:
        for marker, meant in ((MINE, self.mine), (THEIRS, self.theirs), (ENDED, self.ended), (KEY, self.key)):
            text = text.replace(marker, meant)
        for marker, depth in DEEP.items():
            text = text.replace(f'"{marker}": ', '"deep": ').replace(f'"{marker}"', "[" * depth + "]" * depth)
        return text.encode()

    async def _post(self, body: bytes, headers: dict[str, str]) -> httpx.Response:
        sent = {"authorization": "Bearer bob", **ACCEPT, **headers}
        encoded = [(name.encode(), value.replace(MINE, self.mine).encode("latin-1")) for name, value in sent.items()]
        with anyio.fail_after(PATIENCE):
            return await self._http.post(URL, content=body, headers=encoded)

    async def _listen(self, body: bytes) -> list[Wire]:
        """Speak ASGI, so as to leave a stream that would go on."""
        headers = {"host": "127.0.0.1:8000", "authorization": "Bearer bob", **ACCEPT}
        headers.update(headers_of("subscriptions/listen"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1),
        }
        messages: list[Wire] = []
        enough = anyio.Event()
        sent = False

        async def receive() -> Wire:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await enough.wait()
            return {"type": "http.disconnect"}

        async def send(event: Wire) -> None:
            if event["type"] == "http.response.start":
                assert event["status"] < 500
                return
            lines = event["body"].decode().splitlines()
            messages.extend(json.loads(line.removeprefix("data:")) for line in lines if line.startswith(("data:", "{")))
            shown = {message["params"]["taskId"] for message in messages if message.get("method") == PUSHED}
            if messages and shown >= set(messages[0].get("params", {}).get("notifications", {}).get("taskIds", [])):
                enough.set()

        with anyio.fail_after(PATIENCE):
            await self._app(scope, receive, send)
        return messages


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def stranger(request: pytest.FixtureRequest) -> Generator[Stranger, None, None]:
    """A stranger to a server that runs in a thread of its own."""
    with anyio.from_thread.start_blocking_portal(request.param) as portal:
        with portal.wrap_async_context_manager(Stranger.arrives(portal)) as arrived:
            yield arrived


@pytest.mark.parametrize("method", METHODS)
@fuzzing
@given(params=params_of_any_shape)
@example(params={})
@example(params={"taskId": THEIRS, "inputResponses": {KEY: {"action": "accept", "content": {"ok": True}}}})
@example(params={"taskId": MINE, "inputResponses": "{deep 900}"})
@example(params={"taskId": MINE, "inputResponses": {KEY: "{deep 900}"}})
@example(params={"taskId": MINE, "inputResponses": {KEY: {"action": "accept", "content": {"ok": "\ud800"}}}})
@example(params={"taskId": MINE, "inputResponses": {"\ud800": {"action": "cancel"}}})
@example(params={"taskId": "\ud800"})
@example(params={"taskId": "\0"})
@example(params={"taskId": THEIRS + "\0"})
@example(params={"task_id": THEIRS})
def test_params_of_any_shape_bring_an_answer_or_a_client_error(stranger: Stranger, method: str, params: Wire) -> None:
    assume(not (params.get("taskId") == MINE and method == "tasks/cancel"))  # that is allowed
    reply = stranger.request(method, params)
    if params.get("taskId") not in (MINE, ENDED):
        assert "error" in reply


@pytest.mark.parametrize("method", METHODS)
@fuzzing
@given(params=st.none() | scalars | st.lists(values, max_size=3))
def test_params_that_are_no_object_are_a_client_error(stranger: Stranger, method: str, params: Any) -> None:
    assert "error" in stranger.request(method, params)


@pytest.mark.parametrize("method", METHODS)
@fuzzing
@given(
    envelope=values
    | st.fixed_dictionaries(
        {},
        optional={
            "io.modelcontextprotocol/protocolVersion": st.just(PROTOCOL_VERSION) | values,
            "io.modelcontextprotocol/clientCapabilities": st.just(DECLARED)
            | st.fixed_dictionaries({"extensions": values})
            | values,
            "io.modelcontextprotocol/clientInfo": values,
            "progressToken": values,
        },
    )
)
def test_an_envelope_of_any_shape_brings_an_answer_or_a_client_error(
    stranger: Stranger, method: str, envelope: Any
) -> None:
    params = {"taskId": THEIRS, "inputResponses": {}}
    assert "error" in stranger.request(method, params, envelope=envelope)


@pytest.mark.parametrize("method", METHODS)
@fuzzing
@given(
    name=st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)
    | st.sampled_from([MINE, f"=?base64?{MINE}?=", "=?base64?4pi6?=", "=?base64?/w==?=", "=?base64?", "=?base64??="])
)
def test_a_name_header_of_any_shape_is_the_tasks_or_refused(stranger: Stranger, method: str, name: str) -> None:
    assume(not (name.strip() == MINE and method == "tasks/cancel"))
    reply = stranger.request(method, {"taskId": MINE, "inputResponses": {}}, {"mcp-name": name})
    if name.strip(" \t") != MINE:
        assert reply["error"]["code"] == -32020


@fuzzing
@given(responses=st.dictionaries(st.sampled_from([KEY, "1", "x", ""]), values | answers, max_size=3))
def test_an_answer_of_any_shape_is_taken_or_refused_and_a_refused_one_leaves_its_question_open(
    stranger: Stranger, responses: Wire
) -> None:
    task_id = stranger.portal.call(stranger.bob.start, "ask")
    asked = stranger.portal.call(stranger.bob.asked, task_id)
    reply = stranger.request("tasks/update", {"taskId": task_id, "inputResponses": responses})
    assert list(asked) == [stranger.key]
    if "error" in reply or KEY not in responses:
        assert stranger.portal.call(stranger.bob.get, task_id)["inputRequests"] == asked
        stranger.portal.call(stranger.bob.cancel, task_id)
    else:
        assert stranger.portal.call(stranger.bob.until, task_id, "completed", "failed")["status"] == "completed"


# Messages that the schemas allow, and the same with one fault


ids = st.sampled_from([MINE, MINE, ENDED, THEIRS, "0123456789abcdefghijkl", "", "ä☃"])
answered = {KEY: st.just(accept(ok=True)) | answers}


def as_sent(method: str, schema: Schema, request: str, **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Wire]:
    """Return valid requests, whose ids and names are such as the server knows, and that declare the extension."""

    def complete(drawn: tuple[Wire, Wire]) -> Wire:
        params, known = drawn
        meta = {**params.get("_meta", {}), **ENVELOPE}
        return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, **known, "_meta": meta}}

    return st.tuples(st.deferred(lambda: valid_params(schema, request)), st.fixed_dictionaries(parts)).map(complete)


arguments = st.dictionaries(texts, values, max_size=2)
tools = st.sampled_from(["ask", "who", "who_in_a_thread", "no such tool"])
filters = st.deferred(lambda: valid("mcp-2026-07-28", "SubscriptionFilter"))
REQUESTS = {
    "tools/call": as_sent(
        "tools/call",
        "mcp-2026-07-28",
        "CallToolRequest",
        name=tools,
        arguments=st.dictionaries(texts, values, max_size=2),
    ),
    "tasks/get": as_sent("tasks/get", "ext-tasks-draft", "GetTaskRequest", taskId=ids),
    "tasks/update": as_sent("tasks/update", "ext-tasks-draft", "UpdateTaskRequest", taskId=ids)
    | as_sent(
        "tasks/update",
        "ext-tasks-draft",
        "UpdateTaskRequest",
        taskId=ids,
        inputResponses=st.fixed_dictionaries({}, optional=answered),
    ),
    "tasks/cancel": as_sent("tasks/cancel", "ext-tasks-draft", "CancelTaskRequest", taskId=ids),
}
LISTEN = as_sent(
    "subscriptions/listen",
    "mcp-2026-07-28",
    "SubscriptionsListenRequest",
    notifications=st.tuples(filters, st.lists(ids, max_size=4)).map(lambda drawn: {**drawn[0], "taskIds": drawn[1]}),
)


def draw_message(data: st.DataObject, valid_ones: st.SearchStrategy[Wire], fault: bool) -> Wire:
    """Return one of the messages, with a fault if there is to be one.

    It does not name another owner's task where JSON-RPC returns what it was sent: an echo looks like a leak.
    """
    message: Wire = data.draw(with_a_fault(valid_ones, values) if fault else valid_ones)
    assume(THEIRS not in (message.get("id"), message.get("method")))
    return message


@needs_schemas
@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("fault", [False, True], ids=["valid", "with a fault"])
@fuzzing
@given(data=st.data())
def test_what_the_schema_allows_and_the_same_with_a_fault_brings_a_valid_answer_or_a_client_error(
    stranger: Stranger, method: str, fault: bool, data: st.DataObject
) -> None:
    message = draw_message(data, REQUESTS[method], fault)
    response = stranger.post(message, headers_of(method))
    if response.status_code == 202:
        assert "id" not in message, "a notification"
        return
    reply: Wire = response.json()
    echoed = method == "tools/call" and THEIRS in json.dumps(message)  # a tool's own error may show its arguments
    if not echoed:
        stranger.check(reply, response.status_code, {})
    if "error" not in reply:
        validate_response(method, reply)
        if method != "tools/call":
            assert message["params"]["taskId"] in (MINE, ENDED)
    elif not fault and method == "tasks/get":
        assert message["params"]["taskId"] not in (MINE, ENDED)
    if method in ("tasks/update", "tasks/cancel"):
        stranger.still_asks()


@needs_schemas
@pytest.mark.parametrize("fault", [False, True], ids=["valid", "with a fault"])
@fuzzing
@given(data=st.data())
def test_a_listen_request_brings_the_callers_own_tasks_or_a_client_error(
    stranger: Stranger, fault: bool, data: st.DataObject
) -> None:
    message = draw_message(data, LISTEN, fault)
    assume("id" in message and isinstance(message["id"], int | str))  # else it is no request
    received = stranger.listen(message)
    if "error" in received[0]:
        assert fault, received
        assert len(received) == 1
        return
    agreed = set(received[0]["params"]["notifications"].get("taskIds", []))
    assert agreed <= {stranger.mine, stranger.ended}
    for pushed in received[1:]:
        if pushed.get("method") == PUSHED:
            assert pushed["params"]["taskId"] in agreed
            validate(pushed, "TaskStatusNotification")
    if not fault:
        wanted = {MINE: stranger.mine, ENDED: stranger.ended}
        assert agreed == {
            wanted[task_id] for task_id in message["params"]["notifications"]["taskIds"] if task_id in wanted
        }


headers_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12)
        | st.sampled_from(usual)
        for name, usual in {
            "mcp-method": ["tasks/get", "tasks/cancel", "initialize", ""],
            "mcp-name": [MINE, "", "=?base64?=?=", "=?base64?eHg=?="],
            "mcp-protocol-version": ["2025-11-25", "2025-06-18", "2024-11-05", "2099-01-01", PROTOCOL_VERSION, ""],
            "content-type": ["application/json; charset=latin-1", "text/plain", "application/json-seq", "", "*/*"],
            "accept": ["*/*", "application/json", "text/event-stream", "text/html", "", "application/*;q=0"],
            "mcp-session-id": ["0", "", "x" * 300],
            "last-event-id": ["0", ""],
            "content-encoding": ["gzip", "identity"],
        }.items()
    },
)


@pytest.mark.parametrize("method", METHODS)
@fuzzing
@given(headers=headers_of_any_kind)
def test_headers_of_any_shape_bring_an_answer_or_a_client_error(
    stranger: Stranger, method: str, headers: dict[str, str]
) -> None:
    params = {"taskId": MINE if method == "tasks/get" else THEIRS, "inputResponses": {}, "_meta": ENVELOPE}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    response = stranger.post(message, {**headers_of(method), **{n: v.strip() for n, v in headers.items()}})
    assert response.status_code < 500, response.text
    assert stranger.theirs not in response.text
    assert not any(secret in response.text for secret in ("Traceback", "pydantic", "validation error"))
    if response.headers.get("content-type", "").startswith("application/json") and "error" not in response.json():
        assert response.json()["result"]["taskId"] == stranger.mine


# Clients of revision 2025-11-25 on the same server


OLD_REQUESTS = {
    method: as_sent(method, "mcp-2025-11-25", definition, **parts)
    for method, definition, parts in (
        ("tools/call", "CallToolRequest", {"name": tools, "arguments": st.just({})}),
        ("tasks/get", "GetTaskRequest", {"taskId": ids}),
        ("tasks/result", "GetTaskPayloadRequest", {"taskId": ids.filter(lambda task_id: task_id != MINE)}),
        ("tasks/cancel", "CancelTaskRequest", {"taskId": ids.filter(lambda task_id: task_id != MINE)}),
        ("tasks/list", "ListTasksRequest", {}),
    )
}


@needs_schemas
@pytest.mark.parametrize("method", OLD_REQUESTS)
@pytest.mark.parametrize("fault", [False, True], ids=["valid", "with a fault"])
@fuzzing
@given(data=st.data())
def test_a_request_of_the_old_revision_brings_a_valid_answer_or_a_client_error(
    stranger: Stranger, method: str, fault: bool, data: st.DataObject
) -> None:
    message = draw_message(data, OLD_REQUESTS[method], fault)
    assume(MINE not in json.dumps(message) or method not in ("tasks/result", "tasks/cancel"))  # it waits, or ends it
    response = stranger.post(message, {"mcp-protocol-version": "2025-11-25"})
    assert response.status_code < 500, response.text
    if response.status_code == 202:
        return
    reply: Wire = response.json()
    if "error" in reply:
        assert reply["error"]["code"] in BAD_REQUESTS, reply
        if reply["id"] is not None:  # else the SDK could not read it as a request, and says so with what it was sent
            assert stranger.theirs not in json.dumps(reply)
            assert not any(secret in json.dumps(reply) for secret in INTERNALS), reply
        return
    if method != "tools/call":
        assert stranger.theirs not in json.dumps(reply)
    if method not in ("tools/call", "tasks/list"):
        assert message["params"]["taskId"] in (MINE, ENDED)
    if method == "tools/call":  # `task: null` asks for none
        message["params"] = {"task": {}} if "task" in reply["result"] else {}
    old_schemas.validate_response(message, reply)


# Forms


class Colour(str, Enum):
    RED = "red"
    GREEN = "green"


class Form(BaseModel):
    """Every kind of field that a form may have, with what JSON Schema can say of it there."""

    text: str
    short: Annotated[str, Field(min_length=1, max_length=3)]
    whole: int
    from_to: Annotated[int, Field(ge=1, le=3)]
    between: Annotated[float, Field(gt=0, lt=1)]
    number: float
    flag: bool
    colour: Colour
    word: Literal["a", "b"]
    colours: Annotated[list[Colour], Field(min_length=1, max_length=2)]
    maybe: int | None = None
    has_default: str = "x"


near_misses: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(max_size=3),
    "short": st.text(max_size=4),
    "whole": numbers,
    "from_to": st.integers(0, 4) | st.floats(0, 4),
    "between": st.floats(-0.5, 1.5) | st.sampled_from([0, 1, 0.0, 1.0]),
    "number": numbers,
    "flag": st.booleans() | st.sampled_from([0, 1, "true"]),
    "colour": st.sampled_from(["red", "green", "RED", ""]),
    "word": st.sampled_from(["a", "b", "c"]),
    "colours": st.lists(st.sampled_from(["red", "green", "blue"]), max_size=3),
    "maybe": st.none() | numbers,
    "has_default": st.text(max_size=2) | st.none(),
}


@settings(max_examples=300)
@given(
    content=st.fixed_dictionaries({}, optional={name: each | scalars for name, each in near_misses.items()}),
    data=st.data(),
)
def test_an_answer_that_is_taken_fits_the_model_that_asked_for_it(content: Wire, data: st.DataObject) -> None:
    good: Wire = {
        "text": "t",
        "short": "s",
        "whole": 1,
        "from_to": 2,
        "between": 0.5,
        "number": 1.5,
        "flag": True,
        "colour": "red",
        "word": "a",
        "colours": ["red"],
    }
    kept = data.draw(st.sets(st.sampled_from(sorted(content)), max_size=2)) if content else set()
    filled = {**good, **{name: content[name] for name in kept}}
    question = QueuedMessage.request("1", "elicitation/create", {"message": "?", "requestedSchema": form_schema(Form)})
    try:
        answer = check_answer(question, {"action": "accept", "content": filled}, max_bytes=10_000)
    except ProtocolError:
        return
    Form.model_validate(answer.unwrap()["content"])
