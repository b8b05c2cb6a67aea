"""The `tasks/*` methods of protocol 2025-11-25, apart from any SDK."""

from __future__ import annotations

import pytest

from mcp_task_runtime import InMemoryTaskStore, ProtocolError, TaskRuntime
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.task_methods import Requestor, TaskMethods


async def test_b1_who_cannot_be_told_apart_is_not_shown_a_list() -> None:
    runtime = TaskRuntime(InMemoryTaskStore())
    host = RuntimeHost(runtime)
    methods = TaskMethods(runtime, host)
    async with host:
        with pytest.raises(ProtocolError) as refused:
            await methods.list(None, Requestor(None))
        assert refused.value.code == -32601
        assert await methods.list(None, Requestor("ada")) == {"tasks": []}
