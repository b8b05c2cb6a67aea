"""Comparing what a tool that runs as a task answers with what the plain tool does, on every 2.x of the SDK."""

from __future__ import annotations

import json
from typing import Any

from mcp.server.mcpserver import exceptions

from mcp_task_runtime.core.json import to_json_value

SDK_MASKS_CRASHES = hasattr(exceptions, "UnexpectedToolError")
"""`mcp` 2.0 puts the text of any exception into its own tool errors; our tools never do (law L11)."""


def alike(ours: Any, plain: Any) -> bool:
    """Whether two answers are the same, but for the text that `mcp` 2.0 alone shows."""
    if SDK_MASKS_CRASHES or ours == plain:
        return bool(ours == plain)
    given, shown = (json.dumps(to_json_value(each), sort_keys=True) for each in (ours, plain))
    before, masked, after = given.partition(": internal error")
    return bool(masked) and shown.startswith(before) and shown.endswith(after)
