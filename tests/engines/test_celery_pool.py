"""Celery's pool that runs tasks on an event loop: what it takes from a broker."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any

import pytest

pytest.importorskip("celery", reason="the engine is not installed")

from celery import Celery
from kombu import disable_insecure_serializers, enable_insecure_serializers
from kombu.exceptions import ContentDisallowed
from kombu.serialization import dumps

from mcp_task_runtime.engines._celery_pool import FUNCTION, Runner, pool_class


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # a worker of Celery has no other


@pytest.mark.parametrize(("serializer", "is_taken"), [("json", True), ("pickle", False)])
async def test_content_that_the_application_does_not_accept_is_not_decoded(serializer: str, is_taken: bool) -> None:
    app = Celery("reports", broker="memory://")
    app.conf.accept_content = ["json"]
    ran: list[str] = []
    ends: list[Any] = []
    finished = asyncio.Event()

    async def execute(task_id: str) -> None:
        ran.append(task_id)
        finished.set()

    enable_insecure_serializers()  # as another library in the process may have done
    try:
        content_type, encoding, body = dumps([["task"], {}, {}], serializer=serializer)
        pool = pool_class(Runner(asyncio.get_running_loop(), copy_context(), execute, lambda: None))(limit=1, app=app)
        pool.on_start()
        message: tuple[Any, ...] = (FUNCTION, "task.1", {}, body, content_type, encoding)
        pool.on_apply(None, message, {}, ends.append, lambda *_: None)
        if is_taken:
            await asyncio.wait_for(finished.wait(), 60)
        else:
            ((failed, info, _),) = ends
            assert failed
            assert info.type is ContentDisallowed
        pool.on_stop()
    finally:
        disable_insecure_serializers()
    assert ran == (["task"] if is_taken else [])
