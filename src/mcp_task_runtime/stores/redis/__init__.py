"""Tasks in Redis."""

from mcp_task_runtime.stores.redis.store import RedisTaskMessageQueue, RedisTaskStore

__all__ = ["RedisTaskMessageQueue", "RedisTaskStore"]
