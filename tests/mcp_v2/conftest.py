"""The everything server, as processes that all tests share."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.mcp_v2.everything_entry import EXAMPLES
from tests.mcp_v2.raw_client import StdioServer
from tests.support.processes import HTTPServerProcess

ENTRY = str(EXAMPLES.parent / "tests" / "mcp_v2" / "everything_entry.py")


@pytest.fixture(scope="session")
def everything_over_http() -> Generator[str, None, None]:
    """The URL of the example as its own program runs it: responses are SSE streams or JSON."""
    with HTTPServerProcess([str(EXAMPLES / "everything_server.py"), "--port", "0"]) as server:
        yield server.url


@pytest.fixture(scope="session")
def everything_as_json() -> Generator[str, None, None]:
    """The URL of the example with JSON responses and no sessions."""
    with HTTPServerProcess([ENTRY, "streamable-http", "--json-response", "--stateless-http"]) as server:
        yield server.url


@pytest.fixture(scope="session")
def everything_over_stdio() -> Generator[StdioServer, None, None]:
    """The example over stdio."""
    with StdioServer([ENTRY, "stdio"]) as server:
        yield server
