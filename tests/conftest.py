"""What every test shares: both event loops for async tests, and Hypothesis without a deadline."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Generator, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import none

from tests.support.event_loops import EVENT_LOOPS
from tests.support.patience import IS_LONG
from tests.support.servers import postgres, redis

__all__ = ["postgres", "redis"]  # fixtures

# Machines that run tests are shared: how long one example takes says nothing. With CI set, the examples are always the
# same: what lands must not depend on luck.
TESTS = Path(__file__).resolve().parent

# What neither the version of Python nor that of the SDK can change: it proves the kit, a backend, whole
# processes or pages.
# The gate runs these once; on its other Pythons and SDKs, with `-m "not once"`, the rest.
ONCE = (
    "clients/test_agents.py",
    "clients/test_clients.py",
    "clients/test_published_servers.py",
    "faults/test_faults.py",
    "kit/test_checks_kill_mutants.py",
    "kit/test_machine.py",
    "kit/test_runtime_mutants.py",
    "mcp_v2/test_balanced.py",
    "mcp_v2/test_fuzz.py",
    "mcp_v2/test_quick_schema.py",
    "mcp_v2/test_worker_processes.py",
    "operations/test_cli.py",
    "operations/test_web_stores.py",
    "operations/web/test_browser.py",
    "operations/web/test_command.py",
    "stores/redis/test_scripts.py",
    "stores/test_chaos.py",
    "stores/test_crashes.py",
    "stores/test_processes.py",
    "test_claims.py",
    "test_contributing.py",
    "test_examples_index.py",
    "test_readme.py",
)

# No test of these speaks TLS, and each HTTP client would read all certificates of the machine, for 20 ms.
if not IS_LONG:  # those install packages
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = str(TESTS)

settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if "CI" in os.environ else "local")


# coredis leaves the streams of connections that were cut to the garbage collector, and servers on old versions of the
# SDK those of their sessions. Tests that have either in this process ignore that, and collect what is left at the end
# of their module, so that no other test gets the warning.
LEAVING_STREAMS = ("stores/", "operations/", "mcp_v2/test_legacy_http.py")
LEFT_STREAMS = "ignore:Exception ignored in. <function MemoryObject:pytest.PytestUnraisableExceptionWarning"


def leaves_streams(path: Path) -> bool:
    """Whether the tests of a module may leave streams to the garbage collector."""
    return path.relative_to(TESTS).as_posix().startswith(LEAVING_STREAMS)


@pytest.fixture(params=EVENT_LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both event loops, or on those that the environment names."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="module", autouse=True)
def collected(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave no streams to the tests of another module."""
    yield
    if leaves_streams(request.path):
        gc.collect()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Run every async test by anyio's plugin, without a mark (its own setting for that needs anyio 4.11)."""
    test = getattr(obj, "hypothesis", None)
    if inspect.iscoroutinefunction(obj if test is None else test.inner_test) and collector.istestfunction(obj, name):
        pytest.mark.usefixtures("anyio_backend")(obj)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep modules and collected tests, which live until the end, out of each garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        # Hypothesis makes its random numbers in its first test, and warns of garbage where all referrers are frozen.
        given(none())(lambda value: None)()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what need not run on each version of Python and the SDK, and what may leave streams."""
    for path, group in groupby(items, lambda item: item.path):
        leaves, is_once = leaves_streams(path), path.relative_to(TESTS).as_posix() in ONCE
        for item in group:
            if leaves:
                item.add_marker(pytest.mark.filterwarnings(LEFT_STREAMS))
            if is_once or "_on_a_cluster" in item.name:
                item.add_marker(pytest.mark.once)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, object, object]:
    """Escape in a report what no UTF-8 can carry: the process that runs a test could not send it, and would end.

    The report of a test that has passed also has what was logged, which may be any text.
    """
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value if value.isascii() else value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _encodable(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
    return value
