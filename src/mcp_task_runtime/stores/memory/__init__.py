"""Tasks in this process's memory: the reference backend, and the fastest.

State ends with the process. Use it on one event loop at a time.
"""

from __future__ import annotations

from mcp_task_runtime.stores.memory.queue import InMemoryTaskMessageQueue
from mcp_task_runtime.stores.memory.store import InMemoryTaskStore, MemoryStatistics

__all__ = ["InMemoryTaskMessageQueue", "InMemoryTaskStore", "MemoryStatistics"]
