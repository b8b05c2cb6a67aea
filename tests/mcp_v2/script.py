"""What the scripted servers share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["CREATED_AT", "POLL_INTERVAL_MS", "TASK_ID", "Received", "Wire"]

TASK_ID = "task-1"
POLL_INTERVAL_MS = 10
CREATED_AT = "2026-07-28T12:00:00Z"

Wire: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    method: str
    params: Wire
    headers: Mapping[str, str]
