"""`DatabaseUser`: what is opened and closed: a store or a queue, with its database."""

from __future__ import annotations

from mcp_task_runtime.core.clock import Clock
from mcp_task_runtime.stores._opened import Opened
from mcp_task_runtime.stores.postgres._database import Database
from mcp_task_runtime.stores.postgres._statistics import PostgresStatistics

__all__ = ["DatabaseUser"]


class DatabaseUser(Opened):
    """What a store and its queue have in common."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def clock(self) -> Clock:
        """The clock of tasks: it follows the server's time, unless one was injected.

        What is stored is stamped by the server itself. This clock serves what a process decides without asking
        it. The difference between server and process is measured at connecting and every 15 seconds of use.
        """
        return self._database.clock

    def statistics(self) -> PostgresStatistics:
        """Return what the store and its queue do in this process. Call it on the event loop that uses them."""
        return self._database.statistics()

    async def connect(self) -> None:
        """Connect, and bring the schema up to date, unless that was done.

        Raises:
            StoreUnavailableError: The server cannot be reached; the message names host, port and database.
            SchemaVersionError: A later version of this library wrote the schema.
            StoreError: The schema is another application's, or cannot be read.
        """
        await self._database.open()

    async def aclose(self) -> None:
        """Close the store and its queue, which are one: waiters wake with `StoreClosedError`.

        A pool that was handed in stays open.
        """
        await self._database.aclose()
