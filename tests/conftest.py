"""What every test shares: the event loops, and Hypothesis without a deadline."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Machines that run tests are shared: how long one example takes says nothing. With CI set, Hypothesis has a
# profile of its own, which is also deterministic.
settings.register_profile("local", deadline=None, print_blob=True)
if "CI" not in os.environ:
    settings.load_profile("local")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on both event loops."""
    backend: str = request.param
    return backend
