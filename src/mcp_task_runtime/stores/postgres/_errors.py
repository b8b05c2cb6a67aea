"""What is raised in place of the errors of the driver."""

from __future__ import annotations

import psycopg
from psycopg.errors import ReadOnlySqlTransaction

from mcp_task_runtime.errors import StoreError, StoreUnavailableError
from mcp_task_runtime.stores.postgres._connections import BusyError

__all__ = ["RetryError", "sqlstate_of", "timed_out", "translated"]


class RetryError(Exception):
    """An attempt is to be repeated: it changed nothing, or its effect is unknown.

    Attributes:
        is_doubtful: Whether it may have happened.
        is_outage: Whether it failed because the server cannot be reached, or takes no changes for now.
    """

    def __init__(self, *, is_doubtful: bool = False, is_outage: bool = False) -> None:
        super().__init__()
        self.is_doubtful = is_doubtful
        self.is_outage = is_outage


def timed_out(reason: BaseException | None) -> StoreError:
    """Return what is raised when the timeout is over; `reason` is why the latest attempt failed."""
    return StoreUnavailableError("PostgreSQL did not answer in time") if reason is None else translated(reason)


def sqlstate_of(error: BaseException | None) -> str:
    """Return the code that the server gave an error, empty for one of another kind."""
    return (error.sqlstate or "") if isinstance(error, psycopg.Error) else ""


def translated(error: BaseException | None) -> StoreError:
    """Return what is raised in place of a driver's error."""
    if isinstance(error, ReadOnlySqlTransaction):  # a disk that is nearly full, or another server that takes over
        return StoreUnavailableError("PostgreSQL is read-only")
    is_too_much = sqlstate_of(error).startswith("54")  # and always will be
    unavailable = (psycopg.OperationalError, psycopg.InterfaceError, OSError, BusyError)
    if (error is None or isinstance(error, unavailable)) and not is_too_much:
        return StoreUnavailableError("PostgreSQL could not be reached")
    return StoreError("PostgreSQL refused the operation")
