"""How long a test waits for what must happen, and how much it may do."""

from __future__ import annotations

import os
from typing import Final

PATIENCE: Final = 60.0
"""Seconds until a test gives up. It is a net: nothing waits so long on a machine that is as slow as it may be."""

IS_LONG: Final = os.environ.get("MCP_TASK_RUNTIME_PROFILE") == "long"
"""Whether tests may take hours, and may look at what a busy machine can change."""
