"""What every test shares: the event loops, and Hypothesis without a deadline."""

from __future__ import annotations

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
