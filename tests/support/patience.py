"""How long a test waits for what must happen."""

from __future__ import annotations

from typing import Final

PATIENCE: Final = 60.0
"""Seconds until a test gives up. It is a net: nothing waits so long on a machine that is as slow as it may be."""
