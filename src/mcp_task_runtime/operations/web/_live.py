"""The live part of a page: regions of it, sent again by server-sent events when something in them has changed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import anyio
from markupsafe import Markup
from starlette.types import Receive, Scope, Send

from mcp_task_runtime.core.json import dump_json
from mcp_task_runtime.core.web_server import until_web_server_stops
from mcp_task_runtime.errors import StoreError, TaskNotFoundError
from mcp_task_runtime.operations.web._templates import render

__all__ = ["Item", "LiveResponse", "Regions", "Show", "Streams", "make_item"]

logger: logging.Logger = logging.getLogger(__name__)

_HEARTBEAT_SECONDS: Final = 15.0
_LONGEST_SECONDS: Final = 300.0
"""A stream ends after so long, and the browser opens the next."""

_RECONNECT_MS: Final = 1000
_MOST_STREAMS: Final = 100


@dataclass(frozen=True, slots=True)
class Item:
    """One element of a region.

    Attributes:
        id: The element's `id`.
        digest: Changes with `html`.
        html: The element.
    """

    id: str
    digest: str
    html: Markup


Regions: TypeAlias = Mapping[str, Sequence[Item]]
"""The items of each region of a page, by the `id` of the region's element."""

Show: TypeAlias = Callable[[Regions], Awaitable[None]]
"""Sends what has changed since the last call."""


def make_item(template: str, item_id: str, **values: Any) -> Item:
    """Return an item of a template, whose outermost element begins with `id` and an empty `data-hash`."""
    html = str(render(template, item_id=item_id, **values))  # of Markup, `replace` would escape what it puts in
    digest = blake2b(html.encode(), digest_size=6).hexdigest()
    return Item(item_id, digest, Markup(html.replace('data-hash=""', f'data-hash="{digest}"', 1)))


class Streams:
    """The open streams of one dashboard: bounded in number, and ended together when the server is to stop."""

    def __init__(self) -> None:
        """Begin without any."""
        self._scopes: set[anyio.CancelScope] = set()
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether no further stream is taken."""
        return self._is_closed or len(self._scopes) >= _MOST_STREAMS

    def add(self, scope: anyio.CancelScope) -> None:
        """Take a stream."""
        self._scopes.add(scope)

    def remove(self, scope: anyio.CancelScope) -> None:
        """Drop a stream that has ended."""
        self._scopes.discard(scope)

    def close(self) -> None:
        """End all streams, and take no more."""
        self._is_closed = True
        for scope in list(self._scopes):
            scope.cancel()


class LiveResponse:
    """An ASGI response that lasts until the browser leaves, its time is over, or there is nothing more to tell."""

    def __init__(self, pump: Callable[[Show], Awaitable[None]], streams: Streams) -> None:
        """Make a response.

        Args:
            pump: Calls what it is given with the page's regions, again and again; returns when nothing more can change.
            streams: Where the response counts while it is open.
        """
        self._pump = pump
        self._streams = streams
        self._sent: dict[str, tuple[str, ...]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events."""
        if self._streams.is_full:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        lock = anyio.Lock()

        async def write(text: str) -> None:
            async with lock:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        with anyio.move_on_after(_LONGEST_SECONDS) as stream:
            self._streams.add(stream)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(_until_gone, receive, group.cancel_scope)
                    group.start_soon(_until_stopped, group.cancel_scope)
                    group.start_soon(_keep_alive, write)
                    await self._run(write)
                    group.cancel_scope.cancel()
            finally:
                self._streams.remove(stream)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, write: Callable[[str], Awaitable[None]]) -> None:
        async def show(regions: Regions) -> None:
            changed = {}
            for name, items in regions.items():
                digests = tuple(f"{item.id} {item.digest}" for item in items)
                if self._sent.get(name) != digests:
                    self._sent[name] = digests
                    changed[name] = [[item.id, item.digest, str(item.html)] for item in items]
            if changed:
                await write(_event("regions", dump_json(changed)))

        await write(f"retry: {_RECONNECT_MS}\n\n")
        try:
            await self._pump(show)
        except TaskNotFoundError:
            await write(_event("gone", "{}"))
        except StoreError:
            logger.warning("The live part of a page ends: the store cannot be used", exc_info=True)
        else:
            await write(_event("end", "{}"))


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _until_stopped(scope: anyio.CancelScope) -> None:
    await until_web_server_stops()
    scope.cancel()


async def _keep_alive(write: Callable[[str], Awaitable[None]]) -> None:
    while True:
        await anyio.sleep(_HEARTBEAT_SECONDS)
        await write(": here\n\n")


def _event(name: str, json_text: str) -> str:
    return f"event: {name}\ndata: {json_text}\n\n"
