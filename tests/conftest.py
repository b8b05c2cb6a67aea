"""What every test shares: both event loops for async tests, and Hypothesis without a deadline."""

from __future__ import annotations

import inspect
import os

import pytest
from hypothesis import settings

# Machines that run tests are shared: how long one example takes says nothing. With CI set, the examples are always the
# same: what lands must not depend on luck.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if "CI" in os.environ else "local")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both event loops."""
    backend: str = request.param
    return backend


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Run every async test by anyio's plugin, without a mark (its own setting for that needs anyio 4.11)."""
    test = getattr(obj, "hypothesis", None)
    if inspect.iscoroutinefunction(obj if test is None else test.inner_test) and collector.istestfunction(obj, name):
        pytest.mark.usefixtures("anyio_backend")(obj)
