"""A browser without a window: asks an application in this process, keeps cookies, and sends forms with their tokens."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from html import unescape
from typing import Any
from urllib.parse import urlencode

import anyio
import httpx

from mcp_task_runtime import Outcome, TaskRequest
from mcp_task_runtime.core.message_queue import QueuedMessage
from mcp_task_runtime.core.types import NewTask, Progress
from mcp_task_runtime.stores.url import BundledTaskStore
from tests.support.patience import PATIENCE

ORIGIN = "http://127.0.0.1:8321"

FORM = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean", "title": "Really publish"},
        "copies": {"type": "integer", "minimum": 1, "maximum": 5},
        "note": {"type": "string", "description": "Shown to readers"},
    },
    "required": ["ok", "copies"],
}
QUESTION = QueuedMessage.request("q1", "elicitation/create", {"message": "Publish it?", "requestedSchema": FORM})


class Visitor:
    """Asks an application as a browser on some machine."""

    def __init__(self, app: Any, *, origin: str = ORIGIN, client: str = "127.0.0.1", base: str = "") -> None:
        transport = httpx.ASGITransport(app, client=(client, 50_000))
        self.http = httpx.AsyncClient(transport=transport, base_url=origin)
        self.origin = origin
        self.base = base

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """Open an address."""
        return await self.http.get(f"{self.base}{path}", headers=headers)

    async def send(
        self, path: str, fields: Mapping[str, str], *, csrf: str | None = None, origin: str | None = "", **headers: str
    ) -> httpx.Response:
        """Send a form; as a page of the dashboard does, unless told otherwise."""
        if csrf is None:
            task = urlencode({"id": fields.get("task", "")})
            pages = [await self.get(path) for path in ("/login", f"/task?{task}", "/waiting")]
            csrf = next(filter(None, [csrf_of(page.text) for page in pages]), "")
        sent = self.origin if origin == "" else origin
        all_headers = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        if sent is not None:
            all_headers["Origin"] = sent
        body = urlencode({"csrf": csrf, **fields})
        return await self.http.post(f"{self.base}{path}", content=body, headers=all_headers)


def csrf_of(html: str) -> str:
    """Return the token in the forms of a page."""
    found = re.search(r'name="csrf" value="([^"]+)"', html)
    return "" if found is None else unescape(found[1])


async def make(store: BundledTaskStore, task_id: str, tool: str, owner: str | None = None, **arguments: Any) -> None:
    """Make a task."""
    request = TaskRequest(name=tool, arguments_json=json.dumps(arguments))
    await store.create_task(NewTask(ttl_ms=3_600_000, task_id=task_id, owner=owner, request=request))


async def some_tasks(store: BundledTaskStore) -> None:
    """Four tasks: one that reports progress, one that asks, two that have ended."""
    await make(store, "aaa-build", "build", "ada", secret="s3cret")
    await store.update_task("aaa-build", status_message="half", progress=Progress(1, 2))
    await make(store, "bbb-ask", "ask", "bob")
    await store.ask("bbb-ask", QUESTION)  # type: ignore[attr-defined]
    await make(store, "ccc-done", "build")
    await store.finish_task("ccc-done", Outcome.completed({"content": [], "hidden": "s3cret"}))
    await make(store, "ddd-broken", "mail")
    await store.finish_task("ddd-broken", Outcome.failed("no paper", data={"hidden": "s3cret"}))


class Stream:
    """The events of a live page, as a browser gets them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.status = 0
        self._text = ""
        self._more = anyio.Event()
        self.left = anyio.Event()
        self.ended = anyio.Event()

    async def take(self, message: Mapping[str, Any]) -> None:
        """Take what the application sends."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self._text += message.get("body", b"").decode()
        while "\n\n" in self._text:
            event, _, self._text = self._text.partition("\n\n")
            fields = dict(line.split(": ", 1) for line in event.splitlines())
            if "event" in fields:
                self.events.append((fields["event"], json.loads(fields["data"])))
        self._more.set()
        self._more = anyio.Event()

    async def until(self, name: str, text: str = "") -> Any:
        """Wait for an event that contains a text; return its data."""
        with anyio.fail_after(PATIENCE):
            while True:
                for event, data in self.events:
                    if event == name and text in json.dumps(data):
                        return data
                await self._more.wait()


@asynccontextmanager
async def following(app: Any, path: str, query: str = "", cookies: str = "") -> AsyncIterator[Stream]:
    """Open a live page for as long as the block runs."""
    stream = Stream()

    async def receive() -> dict[str, Any]:
        await stream.left.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1:8321"), (b"cookie", cookies.encode())],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8321),
    }

    async def serve() -> None:
        await app(scope, receive, stream.take)
        stream.ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        yield stream
        stream.left.set()
        with anyio.fail_after(PATIENCE):
            await stream.ended.wait()
