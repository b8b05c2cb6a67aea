"""Wire rule C12: the headers of requests for tasks, over real HTTP against `examples/everything_server.py`.

A proxy may route and limit by them, so that a server which goes by the body must not let them differ. What the
SDK's client sends, also for ids that need an encoding, is in `test_wire_rules_sdk.py`; any text at all as a header is
in `test_fuzz.py`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest

from tests.mcp_v2.listeners import listen_request
from tests.mcp_v2.raw_client import DECLARED, PROTOCOL_VERSION, HTTPExchange, RawClient, Reply
from tests.mcp_v2.schemas import Wire, validate_response
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

METHODS = ["tasks/get", "tasks/update", "tasks/cancel"]
HEADER_MISMATCH = -32020


def encoded(text: str) -> str:
    """Return the form in which a header carries text that it could not carry as it is."""
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


@dataclass
class World:
    """A server over HTTP with a task that asks.

    Attributes:
        client: Sends requests with the headers that belong to them.
        task_id: The task.
    """

    client: RawClient
    task_id: str
    _http: httpx.AsyncClient
    _url: str

    async def post(self, method: str, headers: list[tuple[str, Any]], *, task_id: str | None = None) -> Reply:
        """Send a request with just these headers and those of HTTP, in this order, also twice the same."""
        params: Wire = {
            "taskId": self.task_id if task_id is None else task_id,
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
                "io.modelcontextprotocol/clientCapabilities": DECLARED,
            },
        }
        if method == "tasks/update":
            (key,) = (await self.client.get(self.task_id)).get("inputRequests", {"": {}})
            params["inputResponses"] = {key: {"action": "accept", "content": {"confirm": True}}}
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await self.post_body(body, headers)

    async def post_body(self, body: Wire, headers: list[tuple[str, Any]]) -> Reply:
        """Send this body with just these headers and those of HTTP."""
        basic = [("accept", "application/json, text/event-stream"), ("content-type", "application/json")]
        raw = [(name.encode(), str(value).encode("latin-1")) for name, value in [*basic, *headers]]
        with anyio.fail_after(PATIENCE):
            response = await self._http.post(self._url, content=json.dumps(body).encode(), headers=raw)
        reply = Reply(response.json(), (), response.status_code, response.headers["content-type"])
        validate_response(body["method"], reply.message)
        return reply

    async def assert_untouched(self) -> None:
        """Check that nothing has happened to the task."""
        task = await self.client.get(self.task_id)
        assert task["status"] == "input_required"
        assert len(task["inputRequests"]) == 1


@pytest.fixture(params=["everything_over_http", "everything_as_json"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncGenerator[World, None]:
    """The everything server with a task that asks, with SSE and with JSON responses."""
    url = request.getfixturevalue(request.param)
    async with httpx.AsyncClient(timeout=PATIENCE) as http:
        client = RawClient(HTTPExchange(http, url))
        task_id = await client.start("confirm_delete", {"filename": "x"})
        await client.asked(task_id)
        yield World(client, task_id, http, url)
        await client.cancel(task_id)


def headers_of(method: str, *names: str) -> list[tuple[str, Any]]:
    """Return the headers of a request, with an `Mcp-Name` for each name."""
    return [
        ("mcp-protocol-version", PROTOCOL_VERSION),
        ("mcp-method", method),
        *[("mcp-name", name) for name in names],
    ]


def refused(reply: Reply) -> bool:
    return (reply.http_status, reply.error["code"]) == (400, HEADER_MISMATCH)


WRONG_NAMES: dict[str, Callable[[str], str]] = {
    "another": lambda task_id: "another",
    "empty": lambda task_id: "",
    "a tool": lambda task_id: "confirm_delete",
    "a part": lambda task_id: task_id[:-1],
    "more": lambda task_id: task_id + "x",
    "other case": lambda task_id: task_id.swapcase(),
    "quoted": lambda task_id: f'"{task_id}"',
    "a list": lambda task_id: f"{task_id}, {task_id}",
    "escaped": lambda task_id: f"%{ord(task_id[0]):02x}{task_id[1:]}",
    "another, encoded": lambda task_id: encoded("another"),
    "nothing, encoded": lambda task_id: encoded(""),
    "with a space, encoded": lambda task_id: encoded(f"{task_id} "),
    "encoded twice": lambda task_id: encoded(encoded(task_id)),
    "no base64": lambda task_id: "=?base64?not base64?=",
    "no padding": lambda task_id: encoded(task_id + "x" * (2 - len(task_id) % 3)).replace("=?=", "?="),
    "no UTF-8": lambda task_id: "=?base64?/w==?=",
    "without an end": lambda task_id: encoded(task_id)[:-2],
    "another marker": lambda task_id: encoded(task_id).replace("base64", "BASE64"),
    "another encoding": lambda task_id: f"=?utf-8?b?{base64.b64encode(task_id.encode()).decode()}?=",
}


@pytest.mark.parametrize("method", METHODS)
async def test_c12_a_name_header_that_does_not_name_the_task_is_refused_and_nothing_happens(
    world: World, method: str
) -> None:
    for wrong, name_of in WRONG_NAMES.items():
        assert refused(await world.post(method, headers_of(method, name_of(world.task_id)))), wrong
    await world.assert_untouched()


@pytest.mark.parametrize("method", METHODS)
async def test_c12_a_name_header_that_comes_twice_is_refused(world: World, method: str) -> None:
    for names in ((world.task_id, world.task_id), (world.task_id, "another"), ("another", world.task_id)):
        assert refused(await world.post(method, headers_of(method, *names))), names
    await world.assert_untouched()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", ["plain", "encoded", "not at all", "in capitals"])
async def test_c12_a_name_header_that_names_the_task_or_is_absent_is_accepted(
    world: World, method: str, given: str
) -> None:
    headers = headers_of(method)
    if given != "not at all":
        value = encoded(world.task_id) if given == "encoded" else world.task_id
        headers.append(("MCP-NAME" if given == "in capitals" else "mcp-name", value))
    assert (await world.post(method, headers)).result["resultType"] == "complete"
    if method != "tasks/get":
        await world.client.until(world.task_id, "completed" if method == "tasks/update" else "cancelled")


@pytest.mark.parametrize("method", METHODS)
async def test_c12_a_name_that_needs_an_encoding_matches_in_it_and_in_no_other_form(world: World, method: str) -> None:
    for task_id in ("ä☃", " x", "x ", "\0", "=?base64?eHg=?="):
        reply = await world.post(method, headers_of(method, encoded(task_id)), task_id=task_id)
        assert reply.error == {"code": -32602, "message": "Task not found"}
        plain = task_id.encode().decode("latin-1").replace("\0", "").strip()  # HTTP takes no more of it
        assert refused(await world.post(method, headers_of(method, plain), task_id=task_id)), task_id


@pytest.mark.parametrize("method", METHODS)
async def test_c12_a_method_header_of_another_method_is_refused_and_nothing_happens(world: World, method: str) -> None:
    more = ["tasks/list", "tools/call", "", "tasks", method.upper(), method.title(), f"{method}/", encoded(method)]
    for given in [*(set(METHODS) - {method}), *more]:
        assert refused(await world.post(method, headers_of(given, world.task_id))), given
    await world.assert_untouched()


@pytest.mark.parametrize("method", METHODS)
async def test_c12_a_method_or_version_header_that_is_missing_or_comes_twice_is_refused(
    world: World, method: str
) -> None:
    version, right = ("mcp-protocol-version", PROTOCOL_VERSION), ("mcp-method", method)
    for headers in ([version], [version, right, right], [version, version, right]):
        assert refused(await world.post(method, headers))
    await world.assert_untouched()


async def test_c12_the_headers_of_a_call_that_becomes_a_task_must_match_too(world: World) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "multi_input", "arguments": {}}}
    body["params"]["_meta"] = {  # type: ignore[index]
        "io.modelcontextprotocol/protocolVersion": PROTOCOL_VERSION,
        "io.modelcontextprotocol/clientCapabilities": DECLARED,
    }
    for headers in (headers_of("tools/call", "greet"), headers_of("tasks/get", "multi_input")):
        assert refused(await world.post_body(body, headers))
    handle = (await world.post_body(body, headers_of("tools/call", "multi_input"))).result
    await world.client.cancel(handle["taskId"])


async def test_c12_the_method_header_of_a_listen_request_must_match_too(world: World) -> None:
    body = listen_request({"taskIds": [world.task_id]}, DECLARED)
    for headers in (headers_of("tasks/get", world.task_id), headers_of("tasks/get"), headers_of("subscriptions")):
        assert refused(await world.post_body(body, headers))
