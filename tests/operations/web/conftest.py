"""The dashboard over a store that nothing else uses, and what asks it as a browser does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mcp_task_runtime import open_store
from mcp_task_runtime.stores.url import BundledTaskStore

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("jinja2", reason="the extra `web` is not installed")


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop, but where a test names both."""
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Return the URL of a store of its own."""
    return f"sqlite:///{tmp_path / 'tasks.db'}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[BundledTaskStore]:
    """Open the store as a server would."""
    async with open_store(url) as store:
        yield store
