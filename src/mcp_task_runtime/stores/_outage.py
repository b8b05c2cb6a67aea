"""`Outage`: one log line when a backend can no longer be reached, and one when it can be again."""

from __future__ import annotations

import logging
from threading import Lock
from time import monotonic

__all__ = ["Outage"]


class Outage:
    """Whether a backend can be reached, as far as this process knows. May be used from any thread."""

    def __init__(self, logger: logging.Logger, backend: str, *, ability: str = "be reached") -> None:
        """Start with a backend that can be reached.

        Args:
            logger: Where the two lines go, at level WARNING.
            backend: What the lines call the backend; no password.
            ability: What the backend cannot do in an outage.
        """
        self._logger = logger
        self._backend = backend
        self._ability = ability
        self._lock = Lock()
        self._began_at: float | None = None
        self._noted_at = 0.0
        self._reached_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the latest attempt to reach the backend failed."""
        return self._began_at is not None

    def failed(self, started_at: float) -> None:
        """Note an attempt that did not reach the backend; one that was overtaken by a success does not count.

        Args:
            started_at: When the attempt began, by `time.monotonic`.
        """
        with self._lock:
            if self._began_at is not None or started_at < self._reached_at:
                return
            self._began_at, self._noted_at = started_at, monotonic()
        self._logger.warning("%s cannot %s", self._backend, self._ability)

    def succeeded(self, started_at: float | None = None) -> None:
        """Note that the backend was reached; an attempt that began before the outage was noted does not end it.

        Args:
            started_at: When the attempt began, by `time.monotonic`; `None` for one that began just now.
        """
        now = monotonic()
        if self._began_at is None:
            self._reached_at = now
            return
        with self._lock:
            if started_at is not None and started_at < self._noted_at:
                return
            began_at, self._began_at, self._reached_at = self._began_at, None, now
        if began_at is not None:
            self._logger.warning("%s can %s again, after %.1f seconds", self._backend, self._ability, now - began_at)
