"""Tasks in Redis. Needs the extra `redis`."""

try:
    import coredis as _coredis  # noqa: F401
except ImportError as _error:
    raise ImportError("A Redis store needs its driver: pip install 'mcp-task-runtime[redis]'") from _error

from mcp_task_runtime.stores.redis._statistics import RedisStatistics
from mcp_task_runtime.stores.redis.queue import RedisTaskMessageQueue
from mcp_task_runtime.stores.redis.store import RedisTaskStore

__all__ = ["RedisStatistics", "RedisTaskMessageQueue", "RedisTaskStore"]
