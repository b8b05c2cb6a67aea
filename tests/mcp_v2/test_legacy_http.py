"""Clients of revision 2025-11-25 on `mcp` 2.x over HTTP, together with those of 2026-07-28 on the same endpoint."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import pytest

from tests.mcp_v1.raw_client import ALL_CAPABILITIES, accept, http_client
from tests.mcp_v1.schemas import RELATED, Wire
from tests.mcp_v2 import raw_client as modern
from tests.mcp_v2.in_process import served_over_http
from tests.mcp_v2.serve_legacy import make_server
from tests.support.event_loops import on_one_loop

pytestmark = on_one_loop


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with served_over_http(make_server) as url:
        yield url


@pytest.fixture(scope="module")
def url_with_json() -> Generator[str, None, None]:
    with served_over_http(make_server, json_response=True) as url:
        yield url


@pytest.fixture(scope="module")
def url_without_sessions() -> Generator[str, None, None]:
    with served_over_http(make_server, stateless_http=True) as url:
        yield url


@pytest.fixture(scope="module")
def url_of_gateway() -> Generator[str, None, None]:
    with served_over_http(partial(make_server, gateway=True)) as url:
        yield url


async def say_yes(question: Wire) -> Wire | None:
    return accept(ok=True)


async def test_both_eras_are_served_on_one_endpoint_and_see_nothing_of_each_other(url: str) -> None:
    async with http_client(url, answer=say_yes) as old, modern.http_client(url) as new:
        theirs = await new.start("ask", {})
        ours = await old.start("ask")
        assert await old.text(ours) == "Sure? accept True"
        (key,) = await new.asked(theirs)
        await new.update(theirs, {key: modern.accept(ok=False)})
        done = await new.until(theirs, "completed")
        assert done["result"]["content"][0]["text"] == "Sure? accept False"
        assert (await old.error("tasks/get", {"taskId": theirs}))["code"] == -32602
        assert [task["taskId"] for task in (await old.result("tasks/list"))["tasks"]] == [ours]


async def test_c1_the_old_capability_is_not_shown_to_the_new_era(url: str) -> None:
    async with modern.http_client(url) as client:
        assert "tasks" not in (await client.request("server/discover")).result["capabilities"]
        assert (await client.request("tasks/list", check=False)).error["code"] == -32601
        assert (await client.request("tasks/result", {"taskId": "t"}, check=False)).error["code"] == -32601


async def test_b6_b10_b11_everything_has_its_stream(url: str) -> None:
    async with http_client(url) as client:
        await client.listen()
        task_id = await client.start("progress", _meta={"progressToken": 7})
        await client.notified("notifications/tasks/status", taskId=task_id, status="input_required")
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert "result" in await client.response(waiting)
        progress = await client.notified("notifications/progress", progressToken=7, progress=2)
        assert progress["_meta"][RELATED] == {"taskId": task_id}


async def test_b6_fault_10_a_stream_that_drops_without_a_word_loses_no_question(url: str) -> None:
    async with http_client(url) as client:
        task_id = await client.start("ask")
        for drops in range(1, 4):
            lost = await client.start_request("tasks/result", {"taskId": task_id})
            await client.asked(drops)
            client.drop(lost)
        client.answer = say_yes
        assert await client.text(task_id) == "Sure? accept True"


async def test_fault_19_each_session_is_its_own_and_can_be_resumed(url: str) -> None:
    async with http_client(url) as owner, http_client(url) as other:
        task_id = await owner.start("ask")
        assert (await other.error("tasks/get", {"taskId": task_id}))["code"] == -32602
        assert (await other.result("tasks/list"))["tasks"] == []
        async with http_client(url, resumes=owner, answer=say_yes) as again:
            assert await again.text(task_id) == "Sure? accept True"


async def test_b1_without_sessions_listing_is_not_offered_and_the_id_is_the_secret(url_without_sessions: str) -> None:
    async with http_client(url_without_sessions, initialize=False) as client:
        hello = await client.initialize(ALL_CAPABILITIES)
        assert hello["capabilities"]["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
        assert (await client.error("tasks/list"))["code"] == -32601
        assert await client.text(await client.start("double", {"x": 2})) == "4"


async def test_without_sessions_a_question_fails_and_says_why(url_without_sessions: str) -> None:
    async with http_client(url_without_sessions) as client:
        error = (await client.outcome(await client.start("ask")))["error"]
        assert "stateless" in error["message"]


async def test_with_json_responses_a_question_fails_and_says_why(url_with_json: str) -> None:
    async with http_client(url_with_json) as client:
        error = (await client.outcome(await client.start("ask")))["error"]
        assert "JSON" in error["message"]
        assert await client.text(await client.start("double", {"x": 2})) == "4"


async def test_l10_a_question_fails_where_nothing_checks_who_answers(url_of_gateway: str) -> None:
    """Anyone who knows the session's id could post the response."""
    async with http_client(url_of_gateway, headers={"x-user": "ada"}, answer=say_yes) as client:
        text = await client.text(await client.start("what_went_wrong"))
        assert "nothing checks who answers" in text
        assert not client.questions


async def test_b1_with_sessions_listing_is_offered_and_served(url: str) -> None:
    async with http_client(url, initialize=False) as client:
        hello = await client.initialize(ALL_CAPABILITIES)
        assert hello["capabilities"]["tasks"]["list"] == {}
        task_id = await client.start("double", {"x": 2})
        assert task_id in [task["taskId"] for task in (await client.result("tasks/list"))["tasks"]]
