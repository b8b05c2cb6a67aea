"""What `error.type` says of the end of work."""

from __future__ import annotations

from mcp_task_runtime.core.types import Outcome

__all__ = ["error_type"]


def error_type(outcome: Outcome | None, error: BaseException | None) -> str | None:
    """Return the class of an exception, the code of a JSON-RPC error, `tool_error` for a result that is one, or `None`.

    Args:
        outcome: What a run ended with.
        error: What it raised.
    """
    if error is not None:
        return type(error).__qualname__
    if outcome is None:
        return None
    if outcome.status == "failed":
        code = (outcome.error or {}).get("code")
        return str(code)
    is_tool_error = '"isError"' in (outcome.payload_json or "") and (outcome.result or {}).get("isError") is True
    return "tool_error" if is_tool_error else None
