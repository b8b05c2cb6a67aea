"""The trace that a request belongs to, as its `_meta` says by the names of W3C Trace Context."""

from __future__ import annotations

import re
from typing import Any, Final

from mcp_task_runtime.core.json import JSONObject

__all__ = ["trace_context"]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_LONGEST_STATE: Final = 512
"""Characters of a `tracestate` that must be passed on; a longer one is left out."""


def trace_context(meta: Any) -> JSONObject:
    """Return `traceparent` and `tracestate` of a request's `_meta`, as far as they are there and well-formed.

    Args:
        meta: The `_meta` of its params; anything, for it comes from a client.
    """
    parent = meta.get("traceparent") if isinstance(meta, dict) else None
    if not isinstance(parent, str) or _TRACEPARENT.fullmatch(parent) is None:
        return {}
    state = meta.get("tracestate")
    is_passed_on = isinstance(state, str) and state.isascii() and 0 < len(state) <= _LONGEST_STATE
    return {"traceparent": parent, "tracestate": state} if is_passed_on else {"traceparent": parent}
