"""Identifiers: without a principal the id is the secret, so it must not be guessable (law L10)."""

from __future__ import annotations

import secrets

__all__ = ["new_task_id", "new_worker_name"]


def new_task_id() -> str:
    """Return a new task identifier: 192 random bits as hexadecimal text (wire rule A2)."""
    return secrets.token_bytes(24).hex()


def new_worker_name() -> str:
    """Return a name for this process that no other process has: 96 random bits as text."""
    return secrets.token_urlsafe(12)
