"""A server whose callers are authenticated, served in this process over HTTP without a socket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, authenticated_principal
from pydantic import AnyHttpUrl, BaseModel

from mcp_task_runtime import ServerTaskContext, TaskSettings
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from tests.mcp_v2.raw_client import RawClient, http_client

URL = "http://127.0.0.1:8000/mcp"

# token: client, user, issuer
USERS = {
    "alice": ("app", "alice", "https://one.example"),
    "alice-again": ("app", "alice", "https://one.example"),
    "bob": ("app", "bob", "https://one.example"),
    "alice-elsewhere": ("app", "alice", "https://two.example"),
    "alice-in-other-app": ("other", "alice", "https://one.example"),
    "nobody-in-app": ("app", None, None),
}


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in USERS:
            return None
        client, user, issuer = USERS[token]
        claims = {} if issuer is None else {"iss": issuer}
        return AccessToken(token=token, client_id=client, subject=user, scopes=["s"], claims=claims)


class Publish(BaseModel):
    ok: bool


class Guarded:
    """A server whose callers are authenticated, and what its work saw."""

    def __init__(self, *, principal: Any = None, **settings: Any) -> None:
        tasks = self.tasks = Tasks(
            settings=TaskSettings(shutdown_grace=0.01, max_polls_per_second=None, **settings), principal=principal
        )
        self.mcp = MCPServer(
            "guarded",
            extensions=[tasks],
            middleware=[tasks.middleware],
            lifespan=tasks.lifespan(),
            auth=AuthSettings(
                issuer_url=AnyHttpUrl("http://127.0.0.1:1"),
                resource_server_url=AnyHttpUrl(URL),
                required_scopes=["s"],
                validate_token_resource=False,
            ),
            token_verifier=Verifier(),
        )
        self.go_on = anyio.Event()

        @self.mcp.tool()
        @tasks.task()
        async def who(ctx: Context, task: ServerTaskContext) -> list[str | None]:
            await self.go_on.wait()
            token = get_access_token()
            assert token is not None
            return [token.token, token.subject, authenticated_principal(ctx.request_context)]

        @self.mcp.tool()
        @tasks.task()
        def who_in_a_thread(task: ServerTaskContext) -> list[str | None]:
            token = get_access_token()
            assert token is not None
            return [token.token, token.subject]

        @self.mcp.tool()
        @tasks.task()
        async def ask(task: ServerTaskContext) -> str:
            return (await task.elicit("Publish it?", Publish)).action

    @asynccontextmanager
    async def serve(self, **options: Any) -> AsyncGenerator[Any, None]:
        """Serve in this process, without a socket."""
        app = self.mcp.streamable_http_app(**options)
        async with app.router.lifespan_context(app):
            yield app


@asynccontextmanager
async def as_user(app: Any, token: str) -> AsyncGenerator[RawClient, None]:
    async with http_client(URL, app=app, headers={"authorization": f"Bearer {token}"}) as client:
        yield client
