"""`PrivateTaskContext`: the context of a call whose client takes no task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

from mcp_task_runtime.adapters.result_handler import TaskResultHandler
from mcp_task_runtime.adapters.server_context import ServerTaskContext
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.types import NewTask
from mcp_task_runtime.errors import StoreClosedError
from mcp_task_runtime.stores.memory import InMemoryTaskStore

__all__ = ["PrivateTaskContext"]

_making: Final = threading.RLock()
"""Held while a private task is made: plain functions use their contexts in threads."""


class PrivateTaskContext(ServerTaskContext):
    """The context of a task that ends with its call, in a store of its own.

    Connection, store, task and handler are made when the work first uses the context: most work for a client that
    takes no task never does.
    """

    __slots__ = ("_client", "_connect", "_is_closed", "_private", "_undeliverable")

    def __init__(self, connect: Callable[[], TaskSession], undeliverable: str | None) -> None:
        """Make the context of a call.

        Args:
            connect: Returns the connection, as far as the request of the call reaches.
            undeliverable: As for `TaskResultHandler`.
        """
        self._connect = connect
        self._undeliverable = undeliverable
        self._private: InMemoryTaskStore | None = None
        self._is_closed = False

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return an attribute of `ServerTaskContext` that is not set yet: make the task, which sets all of them."""
            if name not in ServerTaskContext.__slots__:
                raise AttributeError(name)
            self._make()
            return object.__getattribute__(self, name)

    def delivering(self) -> AbstractAsyncContextManager[None]:
        """Return a block in which the client is asked what the work asks."""
        self._make()
        assert self._handler is not None
        return self._handler.delivering(self.task_id, self._client, related=False)

    async def aclose(self) -> None:
        """End the private task. The context cannot be used afterwards."""
        self._is_closed = True
        if self._private is not None:
            await self._private.aclose()

    def _make(self) -> None:
        """Make the private task, once.

        Raises:
            StoreClosedError: The call is over.
        """
        with _making:
            if self._private is not None:
                return
            if self._is_closed:
                raise StoreClosedError()
            store = self._private = InMemoryTaskStore()
            self._client = self._connect()
            super().__init__(
                task=store.add_task(NewTask(ttl_ms=None)).task,
                store=store,
                session=self._client,
                queue=store.message_queue,
                handler=TaskResultHandler(store, store.message_queue, undeliverable=self._undeliverable),
            )
