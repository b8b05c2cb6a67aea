"""What is logged of a store that fails: its own errors in full; an outage not again, for the store logs that once."""

from __future__ import annotations

import logging

from mcp_task_runtime.errors import StoreUnavailableError

__all__ = ["log_loss", "log_store_error"]


def log_store_error(log: logging.Logger, text: str, error: Exception) -> None:
    """Log that an operation failed, at ERROR with its traceback; in an outage, where each operation does, at DEBUG.

    Args:
        log: The logger.
        text: What failed.
        error: Why.
    """
    log.log(logging.DEBUG if isinstance(error, StoreUnavailableError) else logging.ERROR, text, exc_info=error)


def log_loss(log: logging.Logger, text: str, error: Exception) -> None:
    """Log that something was lost because the store failed, at WARNING; in an outage in one line.

    Args:
        log: The logger.
        text: What was lost.
        error: Why.
    """
    if isinstance(error, StoreUnavailableError):
        log.warning("%s: %s", text, error)
    else:
        log.warning(text, exc_info=error)
