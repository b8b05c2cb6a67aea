"""Tasks in PostgreSQL 14 or later: for those who have one already. Needs the extra `postgres`.

Every operation is one statement on a pooled connection, in a worker thread; the server's clock stamps and
expires. A change that a condition refused is explained by `core.transitions`. The stored form stands in
`_schema`, how an operation gets its connection and outlasts an outage in `_database`.

Use a store on one event loop at a time.
"""

try:
    import psycopg  # noqa: F401 - says at once what is missing
    import psycopg_pool  # noqa: F401
except ImportError as _error:
    raise ImportError("A PostgreSQL store needs its driver: pip install 'mcp-task-runtime[postgres]'") from _error

from mcp_task_runtime.stores.postgres._statistics import PostgresStatistics
from mcp_task_runtime.stores.postgres.queue import PostgresTaskMessageQueue
from mcp_task_runtime.stores.postgres.store import PostgresTaskStore

__all__ = ["PostgresStatistics", "PostgresTaskMessageQueue", "PostgresTaskStore"]
