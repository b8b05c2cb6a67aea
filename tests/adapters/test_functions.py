"""`ToolFunction`: an author's function, with its context parameter found, hidden and filled."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import anyio
import pytest
from pydantic import Field, create_model

from mcp_task_runtime import ServerTaskContext, TaskContext
from mcp_task_runtime.adapters.tool_function import ToolFunction
from tests.adapters.scripted import Desk, ScriptedSession
from tests.support.patience import PATIENCE


async def make_context() -> ServerTaskContext:
    desk = Desk(ScriptedSession())
    await desk.open()
    return desk.context


Count = Annotated[int, Field(ge=1)]


async def report(topic: str, task: ServerTaskContext, count: Count = 3) -> list[str]:
    """Write a report."""
    return [topic, task.task_id, str(count)]


def report_in_thread(topic: str, *, task: ServerTaskContext) -> tuple[str, str, bool]:
    return topic, task.task_id, threading.current_thread() is threading.main_thread()


class Reporter:
    async def method(self, topic: str, task: ServerTaskContext) -> str:
        return topic + task.task_id

    async def __call__(self, topic: str, task: ServerTaskContext) -> str:
        return topic + task.task_id


async def body(**arguments: Any) -> Any:
    return arguments


async def test_an_async_function_gets_its_context_under_the_name_it_gave_it() -> None:
    context = await make_context()
    assert await ToolFunction(report).call({"topic": "x"}, context) == ["x", context.task_id, "3"]


async def test_a_plain_function_runs_in_a_thread() -> None:
    context = await make_context()
    with anyio.fail_after(PATIENCE):
        assert await ToolFunction(report_in_thread).call({"topic": "x"}, context) == ("x", context.task_id, False)


async def test_a_function_without_a_context_is_called_without_one() -> None:
    async def plain(topic: str) -> str:
        return topic

    assert await ToolFunction(plain).call({"topic": "x"}, await make_context()) == "x"


@pytest.mark.parametrize(
    "function",
    [Reporter().method, Reporter(), functools.partial(report, topic="x"), functools.partial(Reporter().method, "x")],
    ids=["method", "callable object", "partial", "partial of a method"],
)
async def test_every_kind_of_callable_gets_its_context(function: Callable[..., Any]) -> None:
    context = await make_context()
    arguments = {} if isinstance(function, functools.partial) else {"topic": "x"}
    result = await ToolFunction(function, "report").call(arguments, context)
    assert context.task_id in (result if isinstance(result, list) else result.removeprefix("x"))


async def test_a_partial_of_a_plain_function_runs_in_a_thread_too() -> None:
    context = await make_context()
    function = functools.partial(report_in_thread, "x")
    with anyio.fail_after(PATIENCE):
        assert (await ToolFunction(function).call({}, context))[2] is False


def test_two_contexts_are_one_too_many() -> None:
    async def greedy(one: ServerTaskContext, two: ServerTaskContext) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="one, two"):
        ToolFunction(greedy)


def test_a_disguised_body_looks_like_the_function_without_its_context() -> None:
    """An SDK derives its schemas from signature and hints: what the client may pass, and nothing else."""
    wrapper = ToolFunction(report).disguise(body)
    signature = inspect.signature(wrapper)
    assert list(signature.parameters) == ["topic", "count"]
    assert signature.parameters["topic"].annotation is str
    assert signature.parameters["count"].default == 3
    assert signature.parameters["count"].annotation is Count
    assert signature.return_annotation == list[str]
    assert get_type_hints(wrapper) == {"topic": str, "count": int, "return": list[str]}
    assert (wrapper.__name__, wrapper.__doc__) == ("report", "Write a report.")
    assert not hasattr(wrapper, "__wrapped__")
    assert inspect.iscoroutinefunction(wrapper)


def test_a_function_without_annotations_keeps_its_parameters() -> None:
    def bare(a, b=1):  # type: ignore[no-untyped-def]
        raise AssertionError

    assert str(inspect.signature(ToolFunction(bare).disguise(body))) == "(a, b=1)"


async def test_a_cancelled_plain_function_is_left_to_end_by_itself_and_can_see_it() -> None:
    """L9: a thread cannot be stopped; it can look at `is_cancelled`."""
    context = await make_context()
    entered, release = threading.Event(), threading.Event()
    seen: list[bool] = []
    ended = threading.Event()

    def slow(task: ServerTaskContext) -> None:
        entered.set()
        release.wait(10)
        seen.append(task.is_cancelled)
        ended.set()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(ToolFunction(slow).call, {}, context)
            await anyio.to_thread.run_sync(entered.wait, 5)
            context.request_cancellation()
            group.cancel_scope.cancel()
        release.set()
        await anyio.to_thread.run_sync(ended.wait, 5)
    assert seen == [True]


async def test_plain_functions_that_block_do_not_use_up_the_threads_of_others() -> None:
    """L13: a hundred slow tools, and the server's own threads are still free."""
    context = await make_context()
    release = threading.Event()

    def slow() -> None:
        release.wait(10)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for _ in range(60):
                group.start_soon(ToolFunction(slow).call, {}, context)
            await anyio.lowlevel.checkpoint()
            try:
                assert await anyio.to_thread.run_sync(lambda: "free") == "free"
            finally:
                release.set()


def optional(task: ServerTaskContext | None = None) -> None: ...


def annotated(task: Annotated[ServerTaskContext, "mine"]) -> None: ...


def pure(context: TaskContext) -> None: ...


def bare(topic: str, task) -> None: ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("function", [optional, annotated, pure, bare])
async def test_a_context_parameter_that_would_not_be_filled_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"must be annotated as (task|context): ServerTaskContext"):
        ToolFunction(function)


async def test_parameters_of_other_names_need_no_annotation() -> None:
    def loose(topic, *task, **others) -> str:  # type: ignore[no-untyped-def]
        return str(topic)

    assert await ToolFunction(loose).call({"topic": "x"}, await make_context()) == "x"


async def test_a_tool_that_shows_its_context_to_clients_says_which_decorator_it_lacks() -> None:
    arguments = create_model("Arguments", __config__={"arbitrary_types_allowed": True}, task=(ServerTaskContext, ...))
    with pytest.raises(TypeError, match=r"@tasks\.tool\(\), or @tasks\.task\(\) between"):
        arguments.model_json_schema()


def test_the_context_may_be_imported_for_type_checkers_alone() -> None:
    code = """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mcp_task_runtime import ServerTaskContext
    from elsewhere import Unknown

async def good(topic: str, task: ServerTaskContext) -> str: ...
async def bad(topic: Unknown, task: ServerTaskContext) -> str: ...
"""
    module: dict[str, Any] = {"__name__": "lazy"}
    exec(compile(code, "lazy", "exec"), module)
    assert list(inspect.signature(ToolFunction(module["good"]).disguise(body)).parameters) == ["topic"]
    with pytest.raises(TypeError, match=r"bad cannot be resolved: name 'Unknown'.*outside `if TYPE_CHECKING:`"):
        ToolFunction(module["bad"])


async def streams(topic: str) -> Any:
    yield topic


def yields(topic: str) -> Any:
    yield topic


@pytest.mark.parametrize("function", [streams, yields, functools.partial(streams, "x")])
def test_a_generator_is_refused_with_what_to_do_instead(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"(streams|yields) is a generator.*return a list.*update_status"):
        ToolFunction(function)


def test_a_partial_has_the_name_and_the_documentation_of_its_function() -> None:
    wrapper = ToolFunction(functools.partial(report, count=2)).disguise(body)
    assert (wrapper.__name__, wrapper.__doc__) == ("report", "Write a report.")
    assert list(inspect.signature(wrapper).parameters) == ["topic", "count"]


def test_an_object_without_a_name_needs_one() -> None:
    with pytest.raises(TypeError, match="Reporter objects have no name: write name="):
        ToolFunction(Reporter())
    assert ToolFunction(Reporter(), "report").disguise(body).__name__ == "report"


@pytest.mark.parametrize(("rename", "name"), [(True, "other"), (False, "report")])
def test_a_body_has_the_given_name_where_the_sdk_asks_it_for_one(rename: bool, name: str) -> None:
    assert ToolFunction(report, "other").disguise(body, rename=rename).__name__ == name
