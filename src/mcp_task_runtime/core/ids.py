"""Identifiers: without a principal the id is the secret, so it must not be guessable (law L10)."""

from __future__ import annotations

import secrets
from typing import Final

__all__ = ["handle_of", "new_task_id", "new_worker_name"]

_OWN_LENGTH: Final = 48
_HANDLE_LENGTH: Final = 16


def handle_of(task_id: str) -> str:
    """Return what stands for a task in an address: the beginning of its identifier where that is a secret.

    Identifiers that this library makes are long and random; their beginning names the task and does not reveal it.
    """
    is_own = len(task_id) == _OWN_LENGTH and all(char in "0123456789abcdef" for char in task_id)
    return task_id[:_HANDLE_LENGTH] if is_own else task_id


def new_task_id() -> str:
    """Return a new task identifier: 192 random bits as hexadecimal text (wire rule A2)."""
    return secrets.token_bytes(24).hex()


def new_worker_name() -> str:
    """Return a name for this process that no other process has: 96 random bits as text."""
    return secrets.token_urlsafe(12)
