"""The low-level server inside a high-level one, which no SDK shows by a public name."""

from __future__ import annotations

from typing import Any

__all__ = ["low_level"]

_NAMES = ("_lowlevel_server", "_mcp_server")
"""What `mcp` 2.x, and `mcp` 1.x and the package fastmcp, call it."""


def low_level(server: Any) -> Any:
    """Return the low-level server inside a high-level one of any SDK line, or the server itself where it is one."""
    return next((getattr(server, name) for name in _NAMES if hasattr(server, name)), server)
