"""Clients of revision 2025-11-25 on `mcp` 2.x over HTTP, together with those of 2026-07-28 on the same endpoint."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import pytest

from tests.mcp_v1.http_scenarios import WITH_JSON, WITH_SESSIONS, WITHOUT_SESSIONS, Scenario, say_yes
from tests.mcp_v1.raw_client import http_client
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


@pytest.mark.parametrize("scenario", WITH_SESSIONS.values(), ids=WITH_SESSIONS.keys())
async def test_it_holds_with_sessions_that(scenario: Scenario, url: str) -> None:
    await scenario(url)


@pytest.mark.parametrize("scenario", WITHOUT_SESSIONS.values(), ids=WITHOUT_SESSIONS.keys())
async def test_it_holds_without_sessions_that(scenario: Scenario, url_without_sessions: str) -> None:
    await scenario(url_without_sessions)


@pytest.mark.parametrize("scenario", WITH_JSON.values(), ids=WITH_JSON.keys())
async def test_it_holds_with_json_that(scenario: Scenario, url_with_json: str) -> None:
    await scenario(url_with_json)


async def test_l10_a_question_fails_where_nothing_checks_who_answers(url_of_gateway: str) -> None:
    """Anyone who knows the session's id could post the response."""
    async with http_client(url_of_gateway, headers={"x-user": "ada"}, answer=say_yes) as client:
        text = await client.text(await client.start("what_went_wrong"))
        assert "nothing checks who answers" in text
        assert not client.questions
