"""What holds for clients of revision 2025-11-25 over Streamable HTTP, on a server of either SDK line.

Each function is called with the URL of a server that has the tools of `scenarios`: one with sessions, one without, or
one that answers with JSON.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from tests.mcp_v1.raw_client import ALL_CAPABILITIES, accept, http_client
from tests.mcp_v1.schemas import RELATED, Wire

__all__ = ["WITHOUT_SESSIONS", "WITH_JSON", "WITH_SESSIONS", "Scenario", "say_yes"]

Scenario: TypeAlias = Callable[[str], Awaitable[None]]


async def say_yes(question: Wire) -> Wire | None:
    return accept(ok=True)


async def b6_b10_b11_questions_and_progress_need_no_stream_of_the_connection(url: str) -> None:
    async with http_client(url) as client:
        task_id = await client.start("progress", _meta={"progressToken": 7})
        waiting = await client.start_request("tasks/result", {"taskId": task_id})
        question = await client.asked()
        await client.send({"jsonrpc": "2.0", "id": question["id"], **accept(ok=True)})
        assert "result" in await client.response(waiting)
        progress = await client.notified("notifications/progress", progressToken=7, progress=2)
        assert progress["_meta"][RELATED] == {"taskId": task_id}


async def b6_changes_of_status_ride_the_stream_of_the_connection(url: str) -> None:
    async with http_client(url, answer=say_yes) as client:
        await client.listen()
        task_id = await client.start("ask")
        await client.notified("notifications/tasks/status", taskId=task_id, status="input_required")
        assert await client.text(task_id) == "Sure? accept True"
        await client.notified("notifications/tasks/status", taskId=task_id, status="completed")


async def b6_fault_10_a_stream_that_drops_without_a_word_loses_no_question(url: str) -> None:
    async with http_client(url) as client:
        task_id = await client.start("ask")
        for drops in range(1, 4):
            lost = await client.start_request("tasks/result", {"taskId": task_id})
            await client.asked(drops)
            client.drop(lost)
        client.answer = say_yes
        assert await client.text(task_id) == "Sure? accept True"
        assert len({question["id"] for question in client.questions}) == len(client.questions)


async def fault_19_without_principals_each_session_is_its_own_and_can_be_resumed(url: str) -> None:
    async with http_client(url) as owner, http_client(url) as other:
        task_id = await owner.start("ask")
        assert (await other.error("tasks/get", {"taskId": task_id}))["code"] == -32602
        assert (await other.result("tasks/list"))["tasks"] == []
        # The same session again, after everything of the connection was lost.
        async with http_client(url, resumes=owner, answer=say_yes) as again:
            assert await again.text(task_id) == "Sure? accept True"


async def b1_with_sessions_listing_is_offered_and_served(url: str) -> None:
    async with http_client(url, initialize=False) as client:
        hello = await client.initialize(ALL_CAPABILITIES)
        assert hello["capabilities"]["tasks"]["list"] == {}
        task_id = await client.start("double", {"x": 2})
        assert task_id in [task["taskId"] for task in (await client.result("tasks/list"))["tasks"]]


async def b1_without_sessions_listing_is_not_offered_and_the_id_is_the_secret(url: str) -> None:
    async with http_client(url, initialize=False) as client:
        hello = await client.initialize(ALL_CAPABILITIES)
        assert hello["capabilities"]["tasks"] == {"cancel": {}, "requests": {"tools": {"call": {}}}}
        assert (await client.error("tasks/list"))["code"] == -32601
        assert await client.text(await client.start("double", {"x": 2})) == "4"


async def without_sessions_a_question_fails_and_says_why(url: str) -> None:
    async with http_client(url) as client:
        error = (await client.outcome(await client.start("ask")))["error"]
        assert "stateless" in error["message"]


async def with_json_responses_a_question_fails_and_says_why(url: str) -> None:
    async with http_client(url) as client:
        error = (await client.outcome(await client.start("ask")))["error"]
        assert "JSON" in error["message"]
        assert await client.text(await client.start("double", {"x": 2})) == "4"


def _named(*scenarios: Scenario) -> dict[str, Scenario]:
    return {scenario.__name__: scenario for scenario in scenarios}


WITH_SESSIONS = _named(
    b6_b10_b11_questions_and_progress_need_no_stream_of_the_connection,
    b6_changes_of_status_ride_the_stream_of_the_connection,
    b6_fault_10_a_stream_that_drops_without_a_word_loses_no_question,
    fault_19_without_principals_each_session_is_its_own_and_can_be_resumed,
    b1_with_sessions_listing_is_offered_and_served,
)
WITHOUT_SESSIONS = _named(
    b1_without_sessions_listing_is_not_offered_and_the_id_is_the_secret,
    without_sessions_a_question_fails_and_says_why,
)
WITH_JSON = _named(with_json_responses_a_question_fails_and_says_why)
