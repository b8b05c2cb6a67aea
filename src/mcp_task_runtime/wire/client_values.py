"""What clients send and a task keeps: it is refused where it could not be stored and read back (law L4)."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.json import MAX_DEPTH, MAX_DIGITS, JSONValue, dump_json
from mcp_task_runtime.errors import INVALID_PARAMS, ProtocolError

__all__ = ["client_json", "parse_progress_token"]

_LONGEST_TOKEN: Final = 1024
"""Characters of a progress token: each task keeps one (law L16)."""


def client_json(name: str, value: object) -> str:
    """Return a value that a client sent as JSON text that every store takes.

    Args:
        name: What the value is, for the error.
        value: The value.

    Raises:
        ProtocolError: It has text with a lone surrogate, is nested too deeply, or has a number with too many digits.
    """
    try:
        return dump_json(value)
    except ValueError:
        nested = f"lists and objects nested at most {MAX_DEPTH} levels deep"
        reason = f"text must be Unicode, {nested}, and numbers have at most {MAX_DIGITS} digits"
        raise ProtocolError(INVALID_PARAMS, f"Invalid {name}: {reason}") from None


def parse_progress_token(meta: JSONValue) -> str | int | None:
    """Return the progress token that the `_meta` of a call has, or `None`.

    Raises:
        ProtocolError: It is too long, or contains a lone surrogate.
    """
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    if not isinstance(token, str):
        return token if isinstance(token, int) else None
    if len(token) > _LONGEST_TOKEN:
        raise ProtocolError(INVALID_PARAMS, f"Invalid progressToken: it has more than {_LONGEST_TOKEN} characters")
    if not token.isascii():
        client_json("progressToken", token)
    return token
