"""Requests for tasks with anything JSON can say in them: never an internal error, a hang, or another's task.

A stranger sends them over HTTP to a server in this process, knowing the ids of somebody else's tasks.
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
from mcp_task_runtime.core.answers import check_answer
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.errors import ProtocolError
from tests.mcp_v2.guarded import URL, Guarded, as_user
from tests.mcp_v2.raw_client import DECLARED, PATIENCE, PROTOCOL_VERSION, RawClient, accept
from tests.mcp_v2.schemas import Wire, needs_schemas, validate_response

pytestmark = [
    needs_schemas,
    pytest.mark.filterwarnings("ignore:.AuthSettings.validate_token_resource"),
]

METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]
MINE = "{mine}"
"""Stands for the id of a task of the stranger's own, wherever it comes up."""
THEIRS = "{theirs}"
"""Stands for the id of somebody else's task."""
BAD_REQUESTS = {-32602, -32600, -32601, -32700, -32020, -32021, -32022}

texts = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [MINE, THEIRS, "", "1", "2", "\0", "\ud800", "x" * 50_000, "__proto__", "taskId", "$ref", "ﬁ", "‮", "%00", "\r\n"]
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
    """Somebody who may use the server, and who has got hold of the ids of another's tasks."""

    def __init__(self, portal: anyio.from_thread.BlockingPortal, alice: RawClient, bob: RawClient, http: Any) -> None:
        self.portal = portal
        self.alice = alice
        self.bob = bob
        self._http: httpx.AsyncClient = http
        self.theirs = ""
        self.mine = ""

    @classmethod
    @asynccontextmanager
    async def arrives(cls, portal: anyio.from_thread.BlockingPortal) -> AsyncGenerator[Stranger, None]:
        """Start a server, a task of somebody else's and one of his own; check in the end how the other is."""
        async with (
            Guarded().serve(json_response=True, stateless_http=True) as app,
            as_user(app, "alice") as alice,
            as_user(app, "bob") as bob,
            httpx.AsyncClient(transport=httpx.ASGITransport(app), headers={"authorization": "Bearer bob"}) as http,
        ):
            stranger = cls(portal, alice, bob, http)
            stranger.theirs = await alice.start("ask")
            question = await alice.asked(stranger.theirs)
            stranger.mine = await bob.start("ask")
            await bob.asked(stranger.mine)
            yield stranger
            assert (await alice.get(stranger.theirs))["inputRequests"] == question
            (key,) = question
            await alice.update(stranger.theirs, {key: accept(ok=True)})
            await alice.until(stranger.theirs, "completed")

    def request(self, method: str, params: Any, headers: dict[str, str] | None = None, envelope: Any = ...) -> Wire:
        """Send a request, with the ids filled in, and check everything that holds for any answer."""
        return self.portal.call(self._request, method, params, headers or {}, envelope)

    async def _request(self, method: str, params: Any, headers: dict[str, str], envelope: Any) -> Wire:
        if isinstance(params, dict):
            meta = {
                "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
                "io.modelcontextprotocol/clientCapabilities": DECLARED,
            }
            params = {**params, "_meta": meta if envelope is ... else envelope}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        body = body.replace(MINE, self.mine).replace(THEIRS, self.theirs)
        for marker, depth in DEEP.items():
            body = body.replace(f'"{marker}": ', '"deep": ').replace(f'"{marker}"', "[" * depth + "]" * depth)
        sent = {
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "mcp-protocol-version": PROTOCOL_VERSION,
            "mcp-method": method,
            **headers,
        }
        encoded = [(name.encode(), value.replace(MINE, self.mine).encode("latin-1")) for name, value in sent.items()]
        with anyio.fail_after(PATIENCE):
            response = await self._http.post(URL, content=body.encode(), headers=encoded)
        reply: Wire = response.json()
        if "error" in reply:
            error = reply["error"]
            assert error["code"] in BAD_REQUESTS, reply
            assert 400 <= response.status_code < 500
            shown = json.dumps(error)
            for secret in (self.theirs, "Traceback", "Exception", "pydantic", "validation error", ".py"):
                assert secret not in shown.replace(str(headers.get("mcp-protocol-version")), ""), reply
        else:
            validate_response(method, reply)
            assert reply["result"].get("taskId") in (None, self.mine)
            assert self.theirs not in json.dumps(reply)
        return reply


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
@example(params={"taskId": THEIRS, "inputResponses": {"1": {"action": "accept", "content": {"ok": True}}}})
@example(params={"taskId": MINE, "inputResponses": "{deep 900}"})
@example(params={"taskId": MINE, "inputResponses": {"1": "{deep 900}"}})
@example(params={"taskId": MINE, "inputResponses": {"1": {"action": "accept", "content": {"ok": "\ud800"}}}})
@example(params={"taskId": MINE, "inputResponses": {"\ud800": {"action": "cancel"}}})
@example(params={"taskId": "\ud800"})
@example(params={"taskId": "\0"})
@example(params={"taskId": THEIRS + "\0"})
@example(params={"task_id": THEIRS})
def test_params_of_any_shape_bring_an_answer_or_a_client_error(stranger: Stranger, method: str, params: Wire) -> None:
    assume(not (params.get("taskId") == MINE and method == "tasks/cancel"))  # that is allowed
    reply = stranger.request(method, params)
    if params.get("taskId") != MINE:
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
@given(responses=st.dictionaries(st.sampled_from(["1", "2", "x", ""]), values | answers, max_size=3))
def test_an_answer_of_any_shape_is_taken_or_refused_and_a_refused_one_leaves_its_question_open(
    stranger: Stranger, responses: Wire
) -> None:
    task_id = stranger.portal.call(stranger.bob.start, "ask")
    asked = stranger.portal.call(stranger.bob.asked, task_id)
    reply = stranger.request("tasks/update", {"taskId": task_id, "inputResponses": responses})
    if "error" in reply or "1" not in responses:
        assert stranger.portal.call(stranger.bob.get, task_id)["inputRequests"] == asked
        stranger.portal.call(stranger.bob.cancel, task_id)
    else:
        assert stranger.portal.call(stranger.bob.until, task_id, "completed", "failed")["status"] == "completed"


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
