"""Tasks in an SQLite file."""

from mcp_task_runtime.stores.sqlite.store import SQLiteTaskMessageQueue, SQLiteTaskStore

__all__ = ["SQLiteTaskMessageQueue", "SQLiteTaskStore"]
