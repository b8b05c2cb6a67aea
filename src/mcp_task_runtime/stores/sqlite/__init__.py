"""Tasks in a SQLite file: `SQLiteTaskStore`, and its queue."""

from mcp_task_runtime.stores.sqlite._statistics import SQLiteStatistics
from mcp_task_runtime.stores.sqlite.queue import SQLiteTaskMessageQueue
from mcp_task_runtime.stores.sqlite.store import SQLiteTaskStore

__all__ = ["SQLiteStatistics", "SQLiteTaskMessageQueue", "SQLiteTaskStore"]
