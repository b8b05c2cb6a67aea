"""`WorkQueue`: slots of its own for the work of one tool, or of several."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkQueue"]


@dataclass(frozen=True, slots=True)
class WorkQueue:
    """Work that waits for its own slots: that of one tool, or of several tools that are given the same queue.

    Each process has its own slots. Work that waits for an answer releases its slot meanwhile.

    Attributes:
        name: Name of the queue, for errors.
        concurrency: Most tasks whose work runs at once.
        max_queued: Tasks that may wait to begin. One more is refused with `LimitExceededError`; `None` for no limit.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    name: str
    concurrency: int
    max_queued: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        if self.max_queued is not None and self.max_queued < 0:
            raise ValueError("max_queued must not be negative")
