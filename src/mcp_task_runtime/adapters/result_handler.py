"""`TaskResultHandler`: brings a task's questions to its client and the answers back.

A client that waits for a task in this process is a *stream* of it. Each open question is held by at most one
stream at a time. When that stream ends or turns out to be dead, the question goes to the next one that is there or
comes (law L5, wire rule B6).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.abc

from mcp_task_runtime.adapters._client_tasks import ClientTasks
from mcp_task_runtime.adapters.sdk_session import as_task_session
from mcp_task_runtime.adapters.session import TaskSession
from mcp_task_runtime.core.abilities import is_queue, is_store
from mcp_task_runtime.core.followers import TaskFollowers
from mcp_task_runtime.core.inbox import Inbox
from mcp_task_runtime.core.json import JSONObject
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage, TaskMessageQueue
from mcp_task_runtime.core.questions import answer_questions
from mcp_task_runtime.core.settings import TaskSettings
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.core.store_calls import log_loss, outlasting
from mcp_task_runtime.core.types import Outcome, TaskRecord
from mcp_task_runtime.errors import INVALID_PARAMS, ProtocolError, StoreError, TaskNotFoundError
from mcp_task_runtime.wire.answers import check_answer
from mcp_task_runtime.wire.v2025_11_25 import related_task_id, with_related_task

__all__ = ["HandlerStatistics", "TaskResultHandler"]

logger: logging.Logger = logging.getLogger(__name__)

_USUAL_SETTINGS = TaskSettings()
_FAREWELL_SECONDS = 1.0
_PING_SECONDS = 2.0
_MOST_WRONG_TASKS = 3
"""How often a client may answer one question with the id of another task."""
_RECHECK = timedelta(seconds=5)
"""How often a stream asks whether another one, which holds a question, is still alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerStatistics:
    """A snapshot of `TaskResultHandler.statistics`. It is about this process only.

    Attributes:
        streams: Streams of clients that wait for tasks.
        tasks: Tasks that have streams.
        client_tasks: Tasks of ours with questions that their clients answer by tasks of their own.
    """

    streams: int
    tasks: int
    client_tasks: int


class _Stream:
    """One client that waits for a task in this process."""

    __slots__ = ("group", "held", "is_alive", "is_broken", "is_general", "sending", "session", "wait", "woken")

    def __init__(
        self, session: TaskSession, is_alive: Callable[[], Awaitable[bool]] | None, *, is_general: bool = False
    ) -> None:
        self.session = session
        self.is_alive = is_alive
        self.is_general = is_general
        self.is_broken = False
        self.sending = anyio.Lock()
        self.held: dict[str, anyio.CancelScope] = {}
        self.group: anyio.abc.TaskGroup | None = None
        self.wait: anyio.CancelScope | None = None
        self.woken = False

    def wake(self) -> None:
        self.woken = True
        if self.wait is not None:
            self.wait.cancel()


class TaskResultHandler:
    """Delivers the questions of tasks to their clients, and routes answers and errors to the asker."""

    def __init__(
        self,
        store: TaskStore,
        queue: TaskMessageQueue,
        *,
        settings: TaskSettings | None = None,
        undeliverable: str | None = None,
        followers: TaskFollowers | None = None,
        inbox: float | Inbox | None = None,
    ) -> None:
        """Make a handler.

        Args:
            store: Where the tasks are kept.
            queue: Where their questions are kept.
            settings: Limits for answers.
            undeliverable: Why no question can reach the client, if that is so. Asking then fails at once
                with a `CapabilityError` that says this, instead of waiting for an answer that cannot come.
            followers: Those of the runtime, so that the process waits for each task once; `None` to wait in the store.
            inbox: How long, in seconds, or where a form waits for a person where the client cannot be asked; `None` for
                no inbox.

        Raises:
            ValueError: An argument has the wrong type; the message names it.
        """
        if not is_store(store):
            raise ValueError("store must be a TaskStore")
        if not is_queue(queue):
            raise ValueError("queue must be a TaskMessageQueue")
        if settings is not None and not isinstance(settings, TaskSettings):
            raise ValueError("settings must be TaskSettings")
        self.undeliverable = undeliverable
        self.inbox: Inbox | None = Inbox.of(inbox)
        self.settings: TaskSettings = _USUAL_SETTINGS if settings is None else settings
        self._followers = followers
        self._store = store
        self._queue = queue
        self._streams: dict[str, list[_Stream]] = {}
        self._client_tasks = ClientTasks(store, queue)

    def silent(self, undeliverable: str) -> TaskResultHandler:
        """Return a handler of the same tasks for a client that no question can reach.

        Args:
            undeliverable: Why.
        """
        return TaskResultHandler(
            self._store, self._queue, settings=self.settings, undeliverable=undeliverable, inbox=self.inbox
        )

    def statistics(self) -> HandlerStatistics:
        """Return what the handler keeps now; the cost is linear in the tasks that have streams."""
        return HandlerStatistics(
            streams=sum(map(len, self._streams.values())),
            tasks=len(self._streams),
            client_tasks=len(self._client_tasks),
        )

    async def handle(
        self, task_id: str, session: TaskSession | Any, *, is_alive: Callable[[], Awaitable[bool]] | None = None
    ) -> Outcome:
        """Serve one client that waits for a task: put its questions, wait for its end, return how it ended.

        Every open question is sent, also one that was sent before on a connection that broke (law L5,
        wire rule B6), but none that another stream in this process holds. Waits without polling, and
        through outages of the store. Cancelled, it leaves open what is not answered.

        Args:
            task_id: The task.
            session: Where its questions go: a `TaskSession`, or a `ServerSession` of `mcp` 1.x or 2.x.
            is_alive: Returns whether the client still reads this stream, for transports whose streams end
                unnoticed. Called only when another stream could take over.

        Raises:
            TaskNotFoundError: The task is unknown, or expires while this waits.
            StoreError: The store failed, or cannot be reached when this begins.
            ValueError: `session` is neither.
        """
        async with self._stream(task_id, as_task_session(session), is_alive) as stream:
            return await self._serve(task_id, stream, related=True)

    @asynccontextmanager
    async def delivering(
        self, task_id: str, session: TaskSession, *, related: bool = True, is_general: bool = False
    ) -> AsyncGenerator[None, None]:
        """Put a task's questions to a client for as long as the block runs.

        Args:
            task_id: The task.
            session: Where its questions go.
            related: Whether the questions say which task they belong to; not where the client knows of none.
            is_general: Whether this is a connection's general stream: a client that waits for the result is preferred.
        """

        async def serve(stream: _Stream) -> None:
            try:
                await self._serve(task_id, stream, related=related)
            except (TaskNotFoundError, ConnectionError):
                pass
            except StoreError as error:
                log_loss(logger, "Questions of a task are no longer delivered", error)

        is_alive = partial(_answers_ping, session) if is_general else None
        async with self._stream(task_id, session, is_alive, is_general=is_general) as stream:
            assert stream.group is not None
            stream.group.start_soon(serve, stream)
            yield

    def has_stream(self, task_id: str) -> bool:
        """Whether a client waits for this task in this process, and is there."""
        return self._newest(task_id) is not None

    async def deliver_to_poller(self, task_id: str, session: TaskSession) -> None:
        """Put a task's questions to a client that polls it instead of waiting for its result (law L15).

        They go over the connection's general stream, until the task has ended or the client is gone. Does nothing
        where the task has a stream in this process, or where the client does not answer a ping: there are transports
        that drop what is sent to a stream that the client has not opened. Does not raise.

        Args:
            task_id: The task.
            session: The client's connection.
        """
        if self.has_stream(task_id):
            return
        is_alive = partial(_answers_ping, session)
        try:
            async with self._stream(task_id, session, is_alive, is_general=True) as stream:
                if await is_alive():
                    await self._serve(task_id, stream, related=True)
        except (TaskNotFoundError, ConnectionError):
            return
        except StoreError as error:
            log_loss(logger, "Questions of a task are no longer delivered to a client that polls", error)

    async def notify(self, task_id: str, method: str, params: JSONObject) -> bool:
        """Send a notification on the newest stream of a task; return whether there is one in this process."""
        stream = self._newest(task_id)
        if stream is None:
            return False
        await stream.session.send_notification(method, params)
        return True

    async def flush(self, task_id: str) -> None:
        """Send the notifications that are queued for a task's client, if it has a stream in this process.

        Ending a task drops what is queued, so what ends it calls this first. Bounded; it does not raise.
        """
        stream = self._newest(task_id)
        if stream is None:
            return
        try:
            with anyio.move_on_after(_FAREWELL_SECONDS):
                while not await self._queue.is_empty(task_id):
                    await self._pass_on(task_id, stream)
        except (TaskNotFoundError, StoreError):
            logger.debug("Queued notifications of a task were not sent", exc_info=True)

    def _newest(self, task_id: str) -> _Stream | None:
        streams = self._streams.get(task_id)
        if streams is None:
            return None
        return next((stream for stream in reversed(streams) if not stream.is_broken), None)

    @asynccontextmanager
    async def _stream(
        self,
        task_id: str,
        session: TaskSession,
        is_alive: Callable[[], Awaitable[bool]] | None,
        *,
        is_general: bool = False,
    ) -> AsyncGenerator[_Stream, None]:
        stream = _Stream(session, is_alive, is_general=is_general)
        failure: BaseException | None = None
        self._streams.setdefault(task_id, []).append(stream)
        try:
            async with anyio.create_task_group() as group:
                stream.group = group
                try:
                    yield stream
                except BaseException as error:  # the group would wrap it
                    failure = error
                group.cancel_scope.cancel()
        finally:
            streams = self._streams[task_id]
            streams.remove(stream)
            if not streams:
                del self._streams[task_id]
            for other in streams:
                other.wake()
        if failure is not None:
            raise failure

    async def _serve(self, task_id: str, stream: _Stream, *, related: bool) -> Outcome:
        record = await self._store.get_task(task_id)
        if record is None:
            raise TaskNotFoundError(task_id)
        assert stream.group is not None
        stream.group.start_soon(self._pass_on_notifications, task_id, stream)
        with self._following(record) as changed:
            while record.outcome is None:
                stream.woken = False
                recheck = await self._take_questions(record, stream, related=related)
                if stream.is_general and stream.is_broken:
                    raise ConnectionError("The client has left")
                if stream.woken:
                    continue
                # Each question that is asked, answered or withdrawn gives the task a new revision.
                clock = self._store.clock
                with clock.move_on_at(clock.now() + _RECHECK if recheck else None) as stream.wait:
                    record = await changed(record)
                stream.wait = None
        with anyio.move_on_after(_FAREWELL_SECONDS):
            async with stream.sending:  # a notification that was taken from the queue goes first
                pass
        return record.outcome

    @contextmanager
    def _following(self, record: TaskRecord) -> Generator[Callable[[TaskRecord], Awaitable[TaskRecord]], None, None]:
        """Yield a function that waits until a record has changed, and returns it."""
        if self._followers is None:
            wait = self._store.wait_for_update
            yield lambda record: outlasting(partial(wait, record.task_id, after=record.revision))
            return
        with self._followers.follow(record.task_id, after=record.revision) as follower:
            yield lambda record: follower.changed()

    async def _take_questions(self, record: TaskRecord, stream: _Stream, *, related: bool) -> bool:
        """Send the open questions that no stream holds; cancel the sending of those that are closed.

        Returns:
            Whether to look again after a while: another stream holds a question and may be dead.
        """
        if stream.is_broken or not stream.session.can_send_request:
            return False
        if record.status != "input_required" and not stream.held:
            return False
        others = [other for other in self._streams[record.task_id] if other is not stream]
        if stream.is_general and not stream.held and any(not (o.is_general or o.is_broken) for o in others):
            return False  # a client that waits for the result is asked there
        found = await outlasting(partial(self._queue.outstanding, record.task_id))
        questions = {question.key or "": question for question in found if not question.is_for_person}
        for key, scope in list(stream.held.items()):
            if key not in questions:  # answered elsewhere, or withdrawn
                scope.cancel()
        recheck = False
        for key, question in questions.items():
            holder = next((other for other in others if key in other.held), None)
            if holder is not None and holder.is_alive is not None:
                if await holder.is_alive():
                    recheck = True
                else:
                    _break(holder)
                    holder = None
            if holder is None and not any(key in each.held for each in self._streams[record.task_id]):
                scope = stream.held[key] = anyio.CancelScope()
                assert stream.group is not None
                stream.group.start_soon(partial(self._put, record, question, stream, scope, related=related))
        return recheck

    async def _put(
        self, record: TaskRecord, question: QueuedMessage, stream: _Stream, scope: anyio.CancelScope, *, related: bool
    ) -> None:
        key = question.key or ""
        task_id = record.task_id
        try:
            with scope:
                answer = await self._answer(record, question, stream, related=related)
                if answer is not None:
                    await outlasting(partial(answer_questions, self._store, self._queue, task_id, {key: answer}))
        except StoreError as error:
            log_loss(logger, "An answer could not be stored; its question stays open", error)
        finally:
            if stream.held.get(key) is scope:
                del stream.held[key]

    async def _answer(
        self, record: TaskRecord, question: QueuedMessage, stream: _Stream, *, related: bool
    ) -> Answer | None:
        """Ask the client and return its answer, or `None` if there is none: the question stays open."""
        task_id = record.task_id
        params = with_related_task(question.params, task_id) if related else question.params
        try:
            for _ in range(_MOST_WRONG_TASKS):
                result = await self._client_tasks.request(record, question, params, stream.session)
                if related_task_id(result) in (None, task_id):
                    return check_answer(question, result, max_bytes=self.settings.max_answer_bytes)
                logger.debug("A client answered for another task than it was asked for; it is asked again")
            return Answer.error(INVALID_PARAMS, "The client answered for another task")
        except ProtocolError as error:  # from the client, or about what it sent
            return Answer.error(error.code, error.message, error.data)
        except Exception:
            logger.debug("A question could not be delivered and stays open", exc_info=True)
            _break(stream)
            for other in self._streams.get(task_id, ()):
                other.wake()
            return None

    async def _pass_on_notifications(self, task_id: str, stream: _Stream) -> None:
        """Send queued notifications; questions are delivered by `_take_questions`."""
        try:
            while True:
                await outlasting(partial(self._queue.wait_for_message, task_id))
                await outlasting(partial(self._pass_on, task_id, stream))
        except (TaskNotFoundError, StoreError):
            return  # the mailbox was cleared: the task has ended

    async def _pass_on(self, task_id: str, stream: _Stream) -> None:
        """Take the oldest message from the queue, and send it if it is a notification."""
        async with stream.sending:
            message = await self._queue.dequeue(task_id)
            if message is not None and message.type == "notification":
                await stream.session.send_notification(message.method, with_related_task(message.params, task_id))


async def _answers_ping(session: TaskSession) -> bool:
    with anyio.move_on_after(_PING_SECONDS):
        try:
            await session.send_request("ping", {})
        except ProtocolError:
            return True  # an answer, too
        except Exception:
            return False
        return True
    return False


def _break(stream: _Stream) -> None:
    """Release the questions of a stream that cannot deliver them."""
    stream.is_broken = True
    for scope in stream.held.values():
        scope.cancel()
    stream.held.clear()
