"""How long the stories are that the tests of stores tell."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

from mcp_task_runtime.testing import PROFILES

PROFILE: Final[settings] = PROFILES[os.environ.get("MCP_TASK_RUNTIME_PROFILE", "quick")]
