"""Every coroutine of core and adapters that uses a store, cancelled at each of its awaits (law L6).

Store and queue are the kit's yielding ones, so each call of them is two places to be cancelled at. What is
compared is what anybody can see of the tasks, and all that the runtime keeps: work, deadlines, waiters.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mcp_task_runtime import (
    Execution,
    Outcome,
    QueuedMessage,
    ServerTaskContext,
    TaskContext,
    TaskRecord,
    TaskRuntime,
    TaskSettings,
    TaskSpec,
    task_execution,
)
from mcp_task_runtime.adapters._options import TaskOptions
from mcp_task_runtime.adapters._task_call import TaskCall
from mcp_task_runtime.adapters._tool_calls import run_within_request
from mcp_task_runtime.adapters._unwinding_call import UnwindingCall
from mcp_task_runtime.adapters.host import RuntimeHost
from mcp_task_runtime.adapters.requestor import Requestor
from mcp_task_runtime.adapters.task_methods import TaskMethods
from mcp_task_runtime.core.types import TaskFilter
from mcp_task_runtime.testing import RecordingSession, Trial, check_cancellation
from tests.adapters.scripted import ACCEPT, FORM, MESSAGE, Desk, ScriptedSession
from tests.core.worlds import ACCEPT as ACCEPTED
from tests.core.worlds import World, ask, make_world
from tests.support.patience import PATIENCE

JSON = dict[str, Any]
Operation = Callable[[], Awaitable[Any]]
CALL: JSON = {"name": "tool", "arguments": {}, "task": {}}
HELLO: JSON = {"role": "user", "content": {"type": "text", "text": "hello"}}


async def forever(execution: Execution[JSON]) -> JSON:
    await anyio.sleep_forever()
    raise AssertionError


async def slowly(script: JSON, method: str, params: JSON) -> JSON:
    """Answer as over a network: what is asked can be cancelled while it is on its way."""
    await anyio.lowlevel.checkpoint()
    answer: JSON = script[method]
    return answer


# --- the runtime --------------------------------------------------------------------------------------


@dataclass
class Plan:
    """An operation on a runtime, what happens at the same time, and what is done before the check."""

    operation: Operation
    meanwhile: Operation | None = None
    finally_: Operation | None = None
    also: tuple[Any, ...] = ()


async def still() -> None:
    """Let everything else run until it waits; on asyncio, asking for that too early sleeps."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()
    await anyio.wait_all_tasks_blocked()


async def seen(world: World) -> tuple[Any, ...]:
    """Return all there is: each task with its outcome and open questions, and what is kept."""
    await still()
    tasks: list[tuple[Any, ...]] = []
    for record in (await world.memory.search_tasks(TaskFilter(), newest_first=False)).records:
        questions = await world.memory.message_queue.outstanding(record.task_id)
        tasks.append(
            (record.status, record.task.status_message, record.outcome, sorted(each.key or "" for each in questions))
        )
    waiting = world.clock.waiting - (world.runtime.statistics().next_deadline is not None)  # the watcher of deadlines
    running = len(world.runtime.statistics().running)
    return tasks, world.kept(), running, waiting, world.memory.statistics().waiting


def only(*statuses: str) -> tuple[Any, ...]:
    """Return what is seen when cancelled tasks are all there is."""
    tasks: list[Any] = [(status, None, Outcome.cancelled(), []) for status in statuses]
    return tasks, {"calls": 0, "running": 0, "deadlines": 0, "mailboxes": 0}, 0, 0, 0


Planner = Callable[[World, RuntimeHost], Awaitable[Plan]]
PLANS: dict[str, Planner] = {}


def plan(planner: Planner) -> Planner:
    PLANS[getattr(planner, "__name__", "")] = planner
    return planner


async def started(world: World, work: Callable[[Execution[JSON]], Awaitable[JSON]] = forever) -> str:
    record = await world.runtime.submit(TaskSpec(owner="me"), work)
    await still()
    return record.task_id


def asking(world: World, *keys: str) -> Callable[[Execution[JSON]], Awaitable[JSON]]:
    async def work(execution: Execution[JSON]) -> JSON:
        assert execution.record is not None
        async with anyio.create_task_group() as group:
            for key in keys:
                group.start_soon(ask, world.store, world.queue, execution.record.task_id, key)
        return {"asked": len(keys)}

    return work


@plan
async def start(world: World, host: RuntimeHost) -> Plan:
    return Plan(partial(world.runtime.submit, TaskSpec(owner="me"), forever))


@plan
async def run_a_call(world: World, host: RuntimeHost) -> Plan:
    async def work(execution: Execution[JSON]) -> JSON:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        return {}

    return Plan(lambda: world.runtime.run(work))


@plan
async def run_a_task(world: World, host: RuntimeHost) -> Plan:
    async def work(execution: Execution[JSON]) -> JSON:
        await execution.begin(TaskSpec(owner="me"))
        return await forever(execution)

    return Plan(partial(world.runtime.run, work), also=(only("cancelled"),))


@plan
async def begin(world: World, host: RuntimeHost) -> Plan:
    """As a timer does that promotes a slow call."""
    executions: list[Execution[JSON]] = []
    returned: list[bool] = []
    go = anyio.Event()

    async def work(execution: Execution[JSON]) -> JSON:
        executions.append(execution)
        await go.wait()
        return {}

    async def call() -> None:
        made = await world.runtime.run(work)
        returned.append(isinstance(made, TaskRecord))

    async def end() -> None:
        go.set()
        await world.until_idle()
        await still()
        tasks = await world.statuses()
        assert returned == [bool(tasks)], f"the caller was told {returned}, and there is {tasks}"

    host.start_soon(call)
    await still()
    return Plan(partial(executions[0].begin, TaskSpec(owner="me"), wait_for_slot=False), finally_=end)


@plan
async def get(world: World, host: RuntimeHost) -> Plan:
    return Plan(partial(world.runtime.get, await started(world, asking(world, "1")), owner="me"))


@plan
async def result(world: World, host: RuntimeHost) -> Plan:
    task_id = await started(world)
    outcome = Outcome.completed({"n": 1})
    return Plan(
        partial(world.runtime.result, task_id, owner="me"),
        meanwhile=partial(world.runtime.finish, task_id, outcome),
    )


@plan
async def list_(world: World, host: RuntimeHost) -> Plan:
    await started(world)
    return Plan(partial(world.runtime.list, owner="me"))


@plan
async def answer_one(world: World, host: RuntimeHost) -> Plan:
    task_id = await started(world, asking(world, "1"))
    return Plan(partial(world.runtime.answer, task_id, {"1": ACCEPTED}, owner="me"))


@plan
async def answer_two_of_three(world: World, host: RuntimeHost) -> Plan:
    task_id = await started(world, asking(world, "1", "2", "3"))
    return Plan(partial(world.runtime.answer, task_id, {"1": ACCEPTED, "3": ACCEPTED}, owner="me"))


@plan
async def cancel(world: World, host: RuntimeHost) -> Plan:
    return Plan(partial(world.runtime.cancel, await started(world), owner="me"))


@plan
async def cancel_while_it_asks(world: World, host: RuntimeHost) -> Plan:
    return Plan(partial(world.runtime.cancel, await started(world, asking(world, "1", "2")), owner="me"))


@plan
async def finish(world: World, host: RuntimeHost) -> Plan:
    return Plan(partial(world.runtime.finish, await started(world), Outcome.completed({"n": 1})))


@plan
async def drain(world: World, host: RuntimeHost) -> Plan:
    """The grace period passes; one connection of two closes."""
    await started(world)
    await world.runtime.submit(TaskSpec(owner="me"), forever, resource_scope="A")
    await world.runtime.submit(TaskSpec(owner="me"), asking(world, "1"), resource_scope="A")
    await still()

    async def pass_the_time() -> None:
        world.clock.advance(1)

    return Plan(partial(world.runtime.drain, resource_scope="A"), meanwhile=pass_the_time)


ME = Requestor("me")


def methods_2025(world: World, host: RuntimeHost) -> TaskMethods:
    return TaskMethods(world.runtime, host)


async def called(world: World, methods: TaskMethods) -> str:
    created = await methods.call(CALL, begin_and_wait, ME, RecordingSession(), undeliverable=None)
    await still()
    task_id: str = created["task"]["taskId"]
    return task_id


async def begin_and_wait(call: TaskCall | UnwindingCall) -> JSON:
    assert isinstance(call, TaskCall)
    await call.begin()
    return await call.run(lambda context: context.ask("roots/list", {}), TaskOptions())


@plan
async def tools_call_2025(world: World, host: RuntimeHost) -> Plan:
    methods = methods_2025(world, host)
    return Plan(
        partial(methods.call, CALL, begin_and_wait, ME, RecordingSession(), undeliverable=None),
        also=(only("cancelled"),),
    )


@plan
async def tasks_get_2025(world: World, host: RuntimeHost) -> Plan:
    methods = methods_2025(world, host)
    return Plan(partial(methods.get, {"taskId": await called(world, methods)}, ME))


@plan
async def tasks_result_2025(world: World, host: RuntimeHost) -> Plan:
    """The question is answered on the stream of `tasks/result`; then the work ends."""
    methods = methods_2025(world, host)
    task_id = await called(world, methods)
    stream = RecordingSession(partial(slowly, {"roots/list": {"roots": []}}))
    return Plan(partial(methods.result, {"taskId": task_id}, ME, lambda: stream))


@plan
async def tasks_list_2025(world: World, host: RuntimeHost) -> Plan:
    methods = methods_2025(world, host)
    await called(world, methods)
    return Plan(partial(methods.list, None, ME))


@plan
async def tasks_cancel_2025(world: World, host: RuntimeHost) -> Plan:
    methods = methods_2025(world, host)
    return Plan(partial(methods.cancel, {"taskId": await called(world, methods)}, ME))


@asynccontextmanager
async def trials(planner: Planner, runtime: type[TaskRuntime] = TaskRuntime) -> AsyncIterator[Any]:
    """Make trials on runtimes that are open outside of what is cancelled."""
    with anyio.fail_after(5 * PATIENCE):
        async with AsyncExitStack() as hosts:

            async def setup() -> Trial:
                world = make_world(yielding=True, settings=TaskSettings(shutdown_grace=1))
                world.runtime.__class__ = runtime
                host = await hosts.enter_async_context(RuntimeHost(world.runtime))
                hosts.push_async_callback(stop, world)
                made = await planner(world, host)

                async def observe() -> tuple[Any, ...]:
                    if made.finally_ is not None:
                        await made.finally_()
                    return await seen(world)

                return Trial(made.operation, observe, made.meanwhile, also=made.also)

            yield setup


async def stop(world: World) -> None:
    """Stop all work without its grace period."""
    async with anyio.create_task_group() as group:
        group.start_soon(world.runtime.drain)
        await anyio.wait_all_tasks_blocked()
        world.clock.advance(1)


@pytest.mark.parametrize("planner", PLANS.values(), ids=PLANS.keys())
async def test_what_a_runtime_does_happens_in_full_or_not_at_all(planner: Planner) -> None:
    async with trials(planner) as setup:
        assert await check_cancellation(setup) >= 1


@pytest.mark.parametrize("steps", range(8))
async def test_a_call_given_up_while_its_task_begins_takes_the_task_with_it(steps: int) -> None:
    """A caller waits at one place while the work makes its task: so what counts is how far that is."""
    handed: list[JSON] = []

    async with trials(tools_call_2025) as setup:
        trial = await setup()
        before = await trial.observe()
        async with anyio.create_task_group() as group:

            async def call() -> None:
                handed.append(await trial.operation())

            group.start_soon(call)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        tasks = (await trial.observe())[0]
        if handed:
            ((status, outcome, message, asked),) = tasks
            assert (status, outcome, message, len(asked)) == ("input_required", None, None, 1)
        else:
            assert await trial.observe() in (before, *trial.also)


async def test_it_is_found_when_an_end_is_written_unshielded() -> None:
    class Unshielded(TaskRuntime):
        async def finish(self, task_id: str, outcome: Outcome) -> TaskRecord:
            record = await self.store.finish_task(task_id, outcome)
            await anyio.lowlevel.checkpoint()
            self._workers.stop(task_id)
            return record

    async with trials(cancel, Unshielded) as setup:
        with pytest.raises(AssertionError, match="neither"):
            await check_cancellation(setup)


# --- the work's view ----------------------------------------------------------------------------------

ENDINGS = ("complete", "fail", "finish")

CONTEXT: dict[str, Callable[[TaskContext], Awaitable[Any]]] = {
    "refresh": lambda context: context.refresh(),
    "update_status": lambda context: context.update_status("at work"),
    "complete": lambda context: context.complete({"n": 1}),
    "fail": lambda context: context.fail("it broke"),
    "finish": lambda context: context.finish(Outcome.cancelled()),
}


async def record_of(desk: Desk) -> tuple[Any, ...]:
    record = await desk.memory.get_task(desk.task_id)
    assert record is not None
    assert (record.outcome is None) == (record.status in ("working", "input_required"))
    return record.status, record.task.status_message, record.outcome, await desk.open_keys()


@pytest.mark.parametrize("method", CONTEXT)
async def test_what_a_context_does_happens_in_full_or_not_at_all(method: str) -> None:
    async def setup() -> Trial:
        desk = Desk(ScriptedSession(), yielding=True)
        await desk.open()
        context = TaskContext(task=desk.context.task, store=desk.store)
        return Trial(partial(CONTEXT[method], context), partial(record_of, desk), leftovers=desk.waiters)

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) == 2


@pytest.mark.parametrize("end", ["return", "raise"])
async def test_the_work_of_a_worker_process_leaves_its_task_ended_or_untouched(end: str) -> None:
    async def setup() -> Trial:
        desk = Desk(ScriptedSession(), yielding=True)
        await desk.open()
        begun: list[bool] = []

        async def operation() -> None:
            async with task_execution(desk.task_id, desk.store) as context:
                begun.append(True)
                await context.update_status("at work")
                if end == "raise":
                    raise ValueError
                await context.complete({"n": 1})

        async def observe() -> str:
            status, message, outcome, _ = await record_of(desk)
            if not begun:
                return "untouched" if (status, message, outcome) == ("working", None, None) else "touched"
            assert outcome is not None, "the work is gone and its task has not ended"
            return "ended" if status == ("completed" if end == "return" else "failed") else outcome.error["message"]

        return Trial(operation, observe, leftovers=desk.waiters, also=("The work was interrupted",))

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 4


CLIENT_TASK: JSON = {"task": {"taskId": "c-1", "status": "completed"}}
TELLS: dict[str, Callable[[Desk], Awaitable[Any]]] = {
    "update_status": lambda desk: desk.context.update_status("at work"),
    "report_progress": lambda desk: desk.context.report_progress(1, 2, "at work"),
    "complete": lambda desk: desk.context.complete({"n": 1}),
    "fail": lambda desk: desk.context.fail("it broke"),
}
ASKS: dict[str, tuple[Callable[[Desk], Awaitable[Any]], JSON]] = {
    "ask": (lambda desk: desk.context.ask("roots/list", {}), {"roots/list": {"roots": []}}),
    "elicit": (lambda desk: desk.context.elicit("?", FORM), {"elicitation/create": ACCEPT}),
    "elicit_url": (
        lambda desk: desk.context.elicit_url("?", "https://example.org", "e-1"),
        {"elicitation/create": {"action": "accept"}},
    ),
    "create_message": (
        lambda desk: desk.context.create_message([HELLO], max_tokens=3),
        {"sampling/createMessage": MESSAGE},
    ),
    "elicit_as_task": (
        lambda desk: desk.context.elicit_as_task("?", FORM),
        {"elicitation/create": CLIENT_TASK, "tasks/result": ACCEPT, "tasks/cancel": {}},
    ),
    "create_message_as_task": (
        lambda desk: desk.context.create_message_as_task([HELLO], max_tokens=3),
        {"sampling/createMessage": CLIENT_TASK, "tasks/result": MESSAGE, "tasks/cancel": {}},
    ),
}


@pytest.mark.parametrize("method", TELLS)
async def test_what_work_tells_is_stored_in_full_or_not_at_all(method: str) -> None:
    """An end releases the questions that others of the work still ask."""

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(), yielding=True)
        await desk.open(progress_token="p")
        await desk.mailboxes.enqueue(desk.task_id, QueuedMessage.request("1", "m", {}))
        await desk.memory.update_task(desk.task_id, status="input_required")
        return Trial(partial(TELLS[method], desk), partial(record_of, desk), leftovers=desk.waiters)

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 2


@pytest.mark.parametrize("method", ASKS)
async def test_a_question_given_up_is_withdrawn(method: str) -> None:
    asks, script = ASKS[method]

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(partial(slowly, script)), yielding=True)
        await desk.open()

        async def deliver() -> None:
            async with desk.handler.delivering(desk.task_id, desk.session):
                await anyio.sleep_forever()

        return Trial(partial(asks, desk), partial(record_of, desk), meanwhile=deliver, leftovers=desk.waiters)

    with anyio.fail_after(2 * PATIENCE):
        assert await check_cancellation(setup) > 8


@pytest.mark.parametrize("questions", [0, 1, 2])
async def test_a_client_that_waits_no_longer_leaves_its_questions_open_or_answered(questions: int) -> None:
    """`TaskResultHandler.handle`: each question is answered or open, and the status says which."""
    keys = [str(number) for number in range(questions)]

    async def setup() -> Trial:
        desk = Desk(ScriptedSession(partial(slowly, {"elicitation/create": ACCEPT})), yielding=True)
        await desk.open()
        for key in keys:
            params = {"message": "?", "requestedSchema": FORM}
            await desk.mailboxes.enqueue(desk.task_id, QueuedMessage.request(key, "elicitation/create", params))
            await desk.memory.update_task(desk.task_id, status="input_required")

        async def end() -> None:
            while await desk.open_keys():
                await anyio.lowlevel.checkpoint()
            await desk.memory.finish_task(desk.task_id, Outcome.completed({}))

        async def observe() -> str:
            status, open_keys = await desk.state()
            true = {"working": not open_keys, "input_required": bool(open_keys), "completed": not open_keys}
            return "true" if true[status] else f"{status} with the questions {open_keys}"

        operation = partial(desk.handler.handle, desk.task_id, desk.session)
        return Trial(operation, observe, meanwhile=end, leftovers=desk.waiters)

    with anyio.fail_after(2 * PATIENCE):
        assert await check_cancellation(setup) >= 2


async def test_a_notification_that_is_given_up_is_heard_or_not() -> None:
    async def setup() -> Trial:
        session = RecordingSession()
        desk = Desk(ScriptedSession(), yielding=True)
        await desk.open()

        async def operation() -> None:
            async with desk.handler.delivering(desk.task_id, session):
                await anyio.lowlevel.checkpoint()
                await desk.handler.notify(desk.task_id, "notifications/message", {"n": 1})

        async def observe() -> int:
            return len(session.notifications)

        return Trial(operation, observe, leftovers=desk.waiters)

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 1


async def test_a_call_that_takes_no_task_leaves_no_request_behind() -> None:
    """`run_within_request`: its private task goes with it."""

    async def setup() -> Trial:
        session = RecordingSession(partial(slowly, {"elicitation/create": ACCEPT}))
        ended: list[str] = []

        async def work(context: ServerTaskContext) -> None:
            try:
                await context.elicit("?", FORM)
            finally:
                ended.append(context.task_id)

        async def observe() -> bool:
            return bool(ended)

        operation = partial(run_within_request, work, lambda: session, undeliverable=None)
        return Trial(operation, observe, leftovers=lambda: len(session._in_flight))

    with anyio.fail_after(PATIENCE):
        assert await check_cancellation(setup) >= 2
