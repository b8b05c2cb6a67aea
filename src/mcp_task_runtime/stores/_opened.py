"""`Opened`: what `async with` does with a store or a queue that has a connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

from typing_extensions import Self

__all__ = ["Opened"]


class Opened(ABC):
    """Connects when `async with` enters it, and closes when that ends."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect, or fail at once; see `TaskConnecting.connect`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close: waiters wake with `StoreClosedError`."""

    async def __aenter__(self) -> Self:
        """Connect; see `connect`."""
        await self.connect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
