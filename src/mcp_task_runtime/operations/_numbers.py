"""Numbers of tasks as people read them."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted"]


def counted(numbers: Iterable[int], up_to: int | None) -> str:
    """Return the sum of some numbers of `TaskCounts` as people read it: `10,000+` where one goes up to a bound."""
    found = list(numbers)
    is_more = up_to is not None and any(number >= up_to for number in found)
    return f"{sum(found):,}{'+' if is_more else ''}"
