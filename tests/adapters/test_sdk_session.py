"""A real `ServerSession` where a `TaskSession` is wanted: recognised by its members, on both SDK lines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel

from mcp_task_runtime import ProtocolError
from mcp_task_runtime.adapters.sdk_session import SDKSession, as_task_session
from tests.adapters.scripted import ACCEPT, FORM, ScriptedSession, open_desk
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio


class Capabilities(BaseModel):
    elicitation: dict[str, Any] | None = None
    sampling: dict[str, Any] | None = None


class SDKError(Exception):
    def __init__(self, code: int, message: str) -> None:
        self.error = SimpleNamespace(code=code, message=message, data=None)


class Line1:
    """The members of the session of `mcp` 1.x that are used."""

    def __init__(self, answer: Any = ACCEPT) -> None:
        self.client_params: Any = SimpleNamespace(capabilities=Capabilities(elicitation={}))
        self.sent: list[tuple[str, Any]] = []
        self.answer = answer
        self.is_closed = False

    def check_client_capability(self, capability: object) -> bool:
        raise NotImplementedError

    async def send_notification(self, notification: Any, related_request_id: Any = None) -> None:
        await self._send(notification)

    async def send_request(self, request: Any, result_type: Any, **_: Any) -> Any:
        await self._send(request)
        if request.model_dump()["method"] == "ping":
            return result_type.model_validate({})
        if isinstance(self.answer, Exception):
            raise self.answer
        return result_type.model_validate(self.answer)

    async def _send(self, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if self.is_closed:
            raise anyio.ClosedResourceError
        wire = message.model_dump(by_alias=True, mode="json", exclude_none=True)
        self.sent.append((wire["method"], wire["params"]))


class Line2(Line1):
    """The members of the session of `mcp` 2.x that are used; this one is a `TaskSession` by its names."""

    @property
    def client_capabilities(self) -> Any:
        return self.client_params.capabilities

    can_send_request = True

    async def _send(self, message: Any) -> None:
        if self.is_closed:
            raise SDKError(-32000, "Connection closed")
        await super()._send(message)


LINES = pytest.mark.parametrize("line", [Line1, Line2])


@LINES
async def test_a_real_session_is_wrapped_and_a_session_of_ones_own_is_not(line: type[Line1]) -> None:
    session = as_task_session(line())
    assert isinstance(session, SDKSession)
    assert session.client_capabilities == {"elicitation": {}}
    assert session.can_send_request
    own = ScriptedSession()
    assert as_task_session(own) is own


@LINES
async def test_a_context_over_a_real_session_notifies_and_asks_without_any_stream(line: type[Line1]) -> None:
    """Law L15: the connection's general stream is a way to the client."""
    session = line()
    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=session)
        await context.update_status("Reading")
        assert (await context.elicit("Sure?", FORM)).action == "accept"
        await context.complete({"content": []})
        assert [method for method, _ in session.sent] == [
            "notifications/tasks/status",
            "elicitation/create",
            "notifications/tasks/status",
        ]
        assert session.sent[1][1]["message"] == "Sure?"


@LINES
async def test_a_real_session_that_waits_for_the_result_is_asked_once(line: type[Line1]) -> None:
    session = line()
    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=session)
        async with anyio.create_task_group() as group:
            group.start_soon(desk.handler.handle, desk.task_id, session)
            await anyio.wait_all_tasks_blocked()
            assert (await context.elicit("Sure?", FORM)).action == "accept"
            await context.complete({"content": []}, notify=False)
        assert [method for method, _ in session.sent] == ["elicitation/create"]


@LINES
@pytest.mark.parametrize(("code", "message"), [(-32042, "away"), (-32000, "Connection closed")])
async def test_an_error_that_the_client_answers_with_raises_in_the_asker(
    line: type[Line1], code: int, message: str
) -> None:
    async with open_desk(delivering=False) as desk:
        context = desk.another_context(session=line(SDKError(code, message)))
        with pytest.raises(ProtocolError, match=message) as caught:
            await context.elicit("Sure?", FORM)
        assert caught.value.code == code


@LINES
async def test_a_lost_connection_is_no_answer(line: type[Line1]) -> None:
    session = line()
    session.is_closed = True
    wrapped = as_task_session(session)
    with anyio.fail_after(PATIENCE), pytest.raises((ConnectionError, anyio.ClosedResourceError)):
        await wrapped.send_request("elicitation/create", {})
