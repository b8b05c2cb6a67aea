"""`Backoff`: how long to wait before something that failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Backoff"]

_LONGEST_SECONDS = 365 * 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that grow with each failure, up to a bound.

    Attributes:
        first: Seconds to wait after the first failure.
        factor: What the delay is multiplied with after each further one; 1 keeps it.
        longest: Longest delay, in seconds.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    first: float = 1.0
    factor: float = 2.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        for name, seconds in (("first", self.first), ("longest", self.longest)):
            if not 0 <= seconds <= _LONGEST_SECONDS:  # false for NaN, too
                raise ValueError(f"{name} must be between 0 seconds and a year")
        if not 1 <= self.factor <= 1_000:
            raise ValueError("factor must be between 1 and 1000")

    @classmethod
    def of(cls, value: Backoff | float) -> Backoff:
        """Return a `Backoff`; a number of seconds is the same delay after each failure.

        Raises:
            ValueError: The number is out of range.
        """
        return value if isinstance(value, Backoff) else cls(value, 1.0, value)

    def after(self, failures: int) -> timedelta:
        """Return the delay after this many failures, at least one."""
        delay = self.first
        for _ in range(failures - 1):
            if delay >= self.longest or not delay:
                break
            delay *= self.factor
        return timedelta(seconds=min(delay, self.longest))
