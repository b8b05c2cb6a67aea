"""`Resolver`: a value that is set once and awaited by many."""

from __future__ import annotations

from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

__all__ = ["Resolver"]

T = TypeVar("T")


class Resolver(Generic[T]):
    """A one-shot value for any number of waiters, on any event loop anyio knows.

    Setting it twice raises `RuntimeError` and changes nothing. A waiter that is cancelled leaves no
    trace.
    """

    __slots__ = ("_error", "_event", "_is_set", "_value")

    def __init__(self) -> None:
        self._event: anyio.Event | None = None  # made by the first waiter, inside an event loop
        self._is_set = False
        self._value: T | None = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Whether a result or an exception was set."""
        return self._is_set

    def set_result(self, value: T) -> None:
        """Set the value and wake every waiter.

        Raises:
            RuntimeError: It was set before.
        """
        self._settle()
        self._value = value

    def set_exception(self, error: BaseException) -> None:
        """Set an exception for every waiter to raise.

        Raises:
            RuntimeError: It was set before.
        """
        self._settle()
        self._error = error

    def _settle(self) -> None:
        if self._is_set:
            raise RuntimeError("Resolver is already set")
        self._is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> T:
        """Return the value, or raise the exception, as soon as it is set."""
        if self._is_set:
            await anyio.lowlevel.checkpoint()
        else:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set, or _error would be
