"""What work sees of its caller where it has no request: in a worker, and when it runs again (law L18)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import anyio
import pytest
from cryptography.fernet import Fernet
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, authenticated_principal
from pydantic import AnyHttpUrl

from mcp_task_runtime import ServerTaskContext, StoreDispatcher, TaskSpec, TaskStore
from mcp_task_runtime.adapters.credentials import Credentials
from mcp_task_runtime.adapters.mcp_v2 import Tasks
from mcp_task_runtime.core.types import TaskRequest
from tests.core.leased_store import LEASE_SECONDS, SETTINGS, Cluster, Process
from tests.mcp_v2.guarded import URL, Verifier
from tests.mcp_v2.raw_client import RawClient, http_client
from tests.support.patience import PATIENCE

pytestmark = pytest.mark.anyio

KEY, NEW_KEY = Fernet.generate_key().decode(), Fernet.generate_key()
TRACE = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}


class Node:
    """One process of a server whose callers are authenticated."""

    def __init__(self, cluster: Cluster, credentials: Credentials | None, *, dispatches: bool = True) -> None:
        process = cluster.process()
        self.link = process.link
        self.tasks = Tasks(
            cast(TaskStore, process.link),
            settings=SETTINGS,
            dispatcher=StoreDispatcher() if dispatches else None,
            credentials=credentials,
        )
        self.process = Process(process.link, self.tasks.runtime)
        self.mcp: MCPServer[Any] = MCPServer(
            "callers",
            auth=AuthSettings(
                issuer_url=AnyHttpUrl("http://127.0.0.1:1"),
                resource_server_url=AnyHttpUrl(URL),
                required_scopes=["s"],
                validate_token_resource=False,
            ),
            token_verifier=Verifier(),
        )
        self.tasks.install(self.mcp)
        self.runs = 0

        @self.tasks.tool(rerunnable=True)
        async def who(ctx: Context, task: ServerTaskContext) -> dict[str, Any]:
            self.runs += 1
            if self.runs == 1 and not dispatches and self is Node.first:
                await anyio.sleep_forever()
            token, caller, meta = get_access_token(), task.caller, ctx.request_context.meta or {}
            return {
                "token": None if token is None else token.token,
                "sdk principal": authenticated_principal(ctx.request_context),
                "principal": caller.principal,
                "elicitation": caller.capabilities.get("elicitation"),
                "protocol": caller.protocol_version,
                "trace": caller.trace_context,
                "meta": {key: meta.get(key) for key in TRACE},
                "headers": dict(ctx.headers or {}),
            }

    first: Node | None = None

    @asynccontextmanager
    async def serve(self, user: str) -> AsyncGenerator[RawClient, None]:
        app = self.mcp.streamable_http_app()
        headers = {"authorization": f"Bearer {user}", "x-tenant": "blue", "x-secret": "not kept"}
        async with app.router.lifespan_context(app), http_client(URL, app=app, headers=headers) as client:
            yield client


async def seen_by_worker(server: Credentials | None, worker: Credentials | None) -> dict[str, Any]:
    """Return the task of a call whose tool ran in a worker."""
    cluster = Cluster()
    nodes = Node(cluster, server), Node(cluster, worker)
    with anyio.fail_after(PATIENCE):
        async with nodes[0].serve("alice") as client, anyio.create_task_group() as group:
            group.start_soon(nodes[1].tasks.work)
            task_id = await client.start("who", meta=TRACE)
            task = await client.until(task_id, "completed", "failed")
            group.cancel_scope.cancel()
    return task


ALWAYS = {
    "principal": '["app","https://one.example","alice"]',
    "elicitation": {"form": {}, "url": {}},
    "protocol": "2026-07-28",
    "trace": TRACE,
    "meta": TRACE,
}


async def test_a_worker_sees_the_caller_and_none_of_its_secrets() -> None:
    task = await seen_by_worker(None, None)
    assert task["result"]["structuredContent"] == {**ALWAYS, "token": None, "sdk principal": None, "headers": {}}


async def test_a_worker_sees_the_credentials_that_are_kept_also_with_a_rotated_key() -> None:
    task = await seen_by_worker(
        Credentials([KEY], headers=["X-Tenant", "X-Absent"]), Credentials([NEW_KEY, KEY], headers=["x-tenant"])
    )
    assert task["result"]["structuredContent"] == {
        **ALWAYS,
        "token": "alice",
        "sdk principal": ALWAYS["principal"],
        "headers": {"x-tenant": "blue"},
    }


@pytest.mark.parametrize("worker", [None, Credentials([NEW_KEY])], ids=["none", "another key"])
async def test_credentials_that_cannot_be_opened_fail_the_task_before_its_work(
    worker: Credentials | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    task = await seen_by_worker(Credentials([KEY]), worker)
    assert task["status"] == "failed"
    assert task["error"]["message"] == "The caller's credentials cannot be used where the work runs"
    assert "cannot be opened" in caplog.text
    assert KEY not in caplog.text


async def test_a_rerun_sees_its_own_caller_whoever_polls(anyio_backend_name: str) -> None:
    cluster = Cluster()
    ring = Credentials([KEY])
    a, b = Node(cluster, ring, dispatches=False), Node(cluster, ring, dispatches=False)
    Node.first = a
    with anyio.fail_after(PATIENCE):
        async with a.serve("alice") as at_a, b.serve("alice-again") as at_b:
            task_id = await at_a.start("who", meta=TRACE)
            await cluster.cut(a.process)
            await cluster.pass_time(LEASE_SECONDS + 1)
            task = await at_b.until(task_id, "completed")
            a.link.is_cut = False
    seen = task["result"]["structuredContent"]
    assert seen == {**ALWAYS, "token": "alice", "sdk principal": ALWAYS["principal"], "headers": {}}


# --- what is sealed -----------------------------------------------------------------------------------------------

SPEC = TaskSpec(owner="ada", request=TaskRequest(name="tool", arguments_json='{"n":7}'))


def test_without_token_and_headers_nothing_is_kept() -> None:
    assert Credentials([KEY]).seal(SPEC, None, {"x-tenant": "blue"}) is SPEC
    assert Credentials([KEY], token=False).seal(SPEC, {"token": "t"}, {"x-tenant": "blue"}) is SPEC


async def test_what_is_sealed_can_be_read_by_nothing_else_and_moved_to_no_other_task() -> None:
    cluster = Cluster()
    spec = Credentials([KEY], headers=["x-tenant"]).seal(SPEC, {"token": "s3cret"}, {"x-tenant": "blue"})
    sealed = spec.request.sealed_credentials
    assert sealed is not None
    assert "s3cret" not in sealed

    async def record_of(spec: TaskSpec) -> Any:
        return await cluster.store.create_task(ttl_ms=None, owner=spec.owner, request=spec.request)

    opened = Credentials([KEY]).open(await record_of(spec))
    assert (opened.token, opened.headers) == ({"token": "s3cret"}, {"x-tenant": "blue"})
    for other in (
        replace(spec, owner="bob"),
        replace(spec, request=replace(spec.request, name="other")),
        replace(spec, request=replace(spec.request, arguments_json='{"n":8}')),
        replace(spec, request=replace(spec.request, sealed_credentials=sealed[:-8])),
        replace(spec, request=replace(spec.request, sealed_credentials="no token")),
    ):
        with pytest.raises(Exception, match="credentials cannot be used"):
            Credentials([KEY]).open(await record_of(other))


@pytest.mark.parametrize("keys", [[], KEY, ["short"], [b"short"], [7]], ids=["none", "key", "text", "bytes", "number"])
def test_malformed_keys_are_refused_and_not_shown(keys: Any) -> None:
    with pytest.raises(ValueError, match="keys must be") as caught:
        Credentials(keys)
    assert KEY not in str(caught.value)
