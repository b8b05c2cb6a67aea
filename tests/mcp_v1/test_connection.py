"""What is mended of the SDK's own connections, apart from any server."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from mcp import types
from mcp.server.models import InitializationOptions
from mcp.server.session import ServerSession
from mcp.shared.memory import create_client_server_memory_streams
from mcp.shared.message import SessionMessage

from mcp_task_runtime.adapters.mcp_v1._connection import Connection, cancellable, is_about_lost_connection
from tests.support.patience import PATIENCE

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

MOMENTS = 12
"""Steps of the event loop before an answer is sent, and before its request is cancelled."""


async def test_a_request_may_be_cancelled_at_any_moment_of_the_handling_of_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of `mcp` 1.x ends the connection where the answer has been taken and its asker is gone."""
    monkeypatch.setattr("mcp_task_runtime.adapters.mcp_v1._connection._PAUSE_SECONDS", PATIENCE)
    options = InitializationOptions(server_name="server", server_version="1", capabilities=types.ServerCapabilities())
    answered: list[Any] = []

    async def ask(session: ServerSession, scope: anyio.CancelScope) -> None:
        with scope:
            answered.append(await cancellable(session.send_ping))

    async with create_client_server_memory_streams() as ((read, write), (server_read, server_write)):
        connection = Connection(server_read)

        async def take() -> types.RequestId:
            received: Any = await read.receive()
            request_id: types.RequestId = received.message.root.id
            return request_id

        async def answer(request_id: types.RequestId, moment: int = 0) -> None:
            for _ in range(moment):
                await anyio.lowlevel.checkpoint()
            response = types.JSONRPCResponse(jsonrpc="2.0", id=request_id, result={})
            await write.send(SessionMessage(types.JSONRPCMessage(response)))

        async def take_late_answers(session: ServerSession) -> None:
            async for _ in session.incoming_messages:
                pass

        with anyio.fail_after(PATIENCE), connection.current():
            async with (
                ServerSession(connection, server_write, options) as session,  # type: ignore[arg-type]
                anyio.create_task_group() as server,
            ):
                server.start_soon(take_late_answers, session)
                for answered_at, cancelled_at in product(range(MOMENTS), repeat=2):
                    async with anyio.create_task_group() as group:
                        scope = anyio.CancelScope()
                        group.start_soon(ask, session, scope)
                        group.start_soon(answer, await take(), answered_at)
                        for _ in range(cancelled_at):
                            await anyio.lowlevel.checkpoint()
                        scope.cancel()
                assert 0 < len(answered) < MOMENTS**2, "some are cancelled, and some are answered before"
                async with anyio.create_task_group() as group:
                    group.start_soon(ask, session, anyio.CancelScope())
                    await answer(await take())
                server.cancel_scope.cancel()


CLOSED, BROKEN, OTHER = anyio.ClosedResourceError(), anyio.BrokenResourceError(), ValueError("something else")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CLOSED, True),
        (ExceptionGroup("", [CLOSED, ExceptionGroup("", [BROKEN])]), True),
        (ExceptionGroup("", [CLOSED, OTHER]), False),
        (OTHER, False),
    ],
)
def test_an_error_is_about_a_lost_connection_if_everything_in_it_is(error: Exception, expected: bool) -> None:
    assert is_about_lost_connection(error) is expected
