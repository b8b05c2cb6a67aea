"""Tasks in PostgreSQL."""

from mcp_task_runtime.stores.postgres.store import PostgresTaskMessageQueue, PostgresTaskStore

__all__ = ["PostgresTaskMessageQueue", "PostgresTaskStore"]
