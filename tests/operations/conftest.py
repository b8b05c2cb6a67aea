"""A store of each kind, by the URL that an operator would name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from secrets import token_hex

import pytest

from mcp_task_runtime import open_store
from mcp_task_runtime.stores.url import BundledTaskStore

pytest.importorskip("click", reason="the extra `cli` is not installed")


@pytest.fixture(scope="session", params=["sqlite", "redis", "postgres"])
def server(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return a kind of store, and the URL of its server."""
    kind: str = request.param
    return kind, "" if kind == "sqlite" else request.getfixturevalue(kind).url


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
