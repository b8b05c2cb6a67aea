"""The web page over each kind of store that servers share."""

from __future__ import annotations

import pytest

from mcp_task_runtime.core.types import Progress
from mcp_task_runtime.stores.url import BundledTaskStore

pytest.importorskip("starlette", reason="the extra `web` is not installed")
pytest.importorskip("jinja2", reason="the extra `web` is not installed")

from mcp_task_runtime.operations.web import dashboard
from tests.operations.web.visitor import Visitor, following, some_tasks


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop: what differs here are the stores."""
    return "asyncio"


async def test_an_operator_finds_follows_answers_and_retries(store: BundledTaskStore) -> None:
    await some_tasks(store)
    app = dashboard(store)
    visitor = Visitor(app)
    listed = await visitor.get("/?status=failed")
    assert ("ddd-broken" in listed.text, "aaa-build" in listed.text) == (True, False)
    for path in ("/waiting", "/workers", "/statistics"):
        assert (await visitor.get(path)).status_code == 200
    async with following(app, "/events/task", "id=aaa-build") as stream:
        await stream.until("regions")
        await store.update_task("aaa-build", status_message="nearly", progress=Progress(9, 10))
        await stream.until("regions", "nearly")
        await visitor.send("/cancel", {"task": "aaa-build"})
        await stream.until("end")
    form = {"task": "bbb-ask", "key": "q1", "action": "accept", "field.ok": "true", "field.copies": "3"}
    assert (await visitor.send("/answer", form)).headers["location"] == "/task?id=bbb-ask&said=answered"
    retried = await visitor.send("/retry", {"task": "ddd-broken"})
    assert "This is a new task" in (await visitor.get(retried.headers["location"])).text
