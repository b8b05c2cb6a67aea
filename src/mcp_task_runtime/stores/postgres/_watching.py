"""`Watching`: one job for all watchers of an event loop. It has tasks notified, and looks at those that are stale."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Final, TypeAlias

import anyio

from mcp_task_runtime.core.event_loop import start_background_task
from mcp_task_runtime.errors import StoreClosedError, StoreError, StoreUnavailableError
from mcp_task_runtime.stores.postgres._watchers import Look, Watchers

__all__ = ["LookAt", "Watching"]

LookAt: TypeAlias = Callable[[Mapping[str, bool]], Awaitable[Mapping[str, Look | None]]]

logger: logging.Logger = logging.getLogger("mcp_task_runtime.stores.postgres")

_AT_ONCE: Final = 500
"""Tasks that one look reads."""
_FIRST_RETRY_SECONDS: Final = 0.1
_LONGEST_RETRY_SECONDS: Final = 5.0
_DOUBT_SECONDS: Final = 5.0
"""How often a task is looked at that may change without notice."""
_IDLE_SECONDS: Final = 30.0


class _Session:
    """The job, from the first watcher until none has been there for a while."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()


class Watching:
    """Looks at watched tasks, many with one statement: when they are first watched, and after changes may be missed."""

    def __init__(self, watchers: Watchers, listen: Callable[[], Awaitable[None]]) -> None:
        """Make one that has nothing to do.

        Args:
            watchers: Whom it calls.
            listen: Begins to hear of changes; what happens from then on is not missed.
        """
        self._watchers = watchers
        self._listen = listen
        self._session: _Session | None = None
        self._delay = 0.0
        self._doubt_at = -math.inf

    @property
    def is_on(self) -> bool:
        """Whether the job runs."""
        return self._session is not None

    def begin(self, look: LookAt) -> None:
        """Begin, unless it has begun. The caller has added a watcher.

        Args:
            look: Has this process notified of changes of tasks, or only of the end of those of which only that matters;
                returns what each is like, `None` for one that is gone.
        """
        if self._session is None:
            self._session = _Session()
            # In a context of its own: that of the caller would be kept.
            Context().run(start_background_task, partial(self._run, look))

    async def aclose(self) -> None:
        """End the job."""
        session = self._session
        if session is not None:
            session.scope.cancel()
            await session.ended.wait()

    async def _run(self, look: LookAt) -> None:
        session = self._session
        assert session is not None
        try:
            with session.scope:
                while await self._turn_safely(look):
                    pass
        finally:
            self._session = None
            session.ended.set()

    async def _turn_safely(self, look: LookAt) -> bool:
        """Take a turn. An error that is not the store's, of a watcher for one, is logged and ends this turn alone."""
        try:
            return await self._turn(look)
        except Exception:
            logger.exception("Watching tasks in PostgreSQL failed; going on")
            await anyio.sleep(_FIRST_RETRY_SECONDS)
            return True

    async def _turn(self, look: LookAt) -> bool:
        """Wait until there are tasks to look at, and look at some; return whether to go on."""
        watchers = self._watchers
        with anyio.move_on_after(_DOUBT_SECONDS if watchers.has_doubtful else _IDLE_SECONDS):
            await watchers.stirred.wait()
        if watchers.has_doubtful and anyio.current_time() >= self._doubt_at:
            self._doubt_at = anyio.current_time() + _DOUBT_SECONDS
            watchers.mark_doubtful(anyio.current_time())
        if not watchers.stirred.is_set:
            return bool(watchers)
        tasks: dict[str, bool] = {}
        try:
            await self._listen()
            tasks = watchers.take_stale(_AT_ONCE)
            if tasks:  # those that began this turn may be watched no more
                watchers.looked(await look(tasks))
        except StoreClosedError:
            return False
        except StoreError as error:
            tasks = tasks or watchers.take_stale(_AT_ONCE)
            watchers.mark(tasks)
            if not isinstance(error, StoreUnavailableError):
                watchers.failed(tasks)
            self._delay = min(2 * self._delay, _LONGEST_RETRY_SECONDS) or _FIRST_RETRY_SECONDS
            await anyio.sleep(self._delay)
        else:
            self._delay = 0.0
        return True
