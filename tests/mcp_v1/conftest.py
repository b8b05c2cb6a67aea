"""What the SDK itself warns of, in one version or another."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # mcp 1.23 with later releases of pydantic-settings.
    config.addinivalue_line("filterwarnings", "ignore:Field 'lifespan' has an incomplete definition")
    # From mcp 1.28: of its own client for tasks.
    config.addinivalue_line("filterwarnings", "ignore:The experimental tasks API is deprecated")
