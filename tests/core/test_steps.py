"""Steps: what runs again when work runs again, how results come back, and what changed in between (law L12)."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel, Field

from mcp_task_runtime import (
    Backoff,
    Execution,
    Outcome,
    ServerTaskContext,
    StepChangedError,
    StepResultError,
    TaskSpec,
)
from mcp_task_runtime.core.types import TaskRequest
from mcp_task_runtime.errors import LeaseLostError, QuestionTimeoutError
from mcp_task_runtime.testing.concurrency.stepping import Stepper
from tests.core.leased_store import Cluster, Process, open_cluster
from tests.core.worlds import open_world

Short = Annotated[str, Field(max_length=3)]
Program = Callable[[ServerTaskContext], Awaitable[Any]]

RERUNNABLE = TaskSpec(ttl_ms=600_000, request=TaskRequest(name="tool", rerunnable=True, max_attempts=9))
ONCE = TaskSpec(ttl_ms=600_000, request=TaskRequest(name="tool"))


def as_work(process: Process, program: Program) -> Callable[[Execution[Any]], Awaitable[Outcome]]:
    async def work(execution: Execution[Any]) -> Outcome:
        return Outcome.completed({"result": await program(process.context(execution))})

    return work


async def journal(cluster: Cluster, task_id: str) -> Mapping[str, str]:
    return await cluster.store.read_steps(task_id)


class Runs:
    """Two processes: the first one runs a program and is lost where the program waits, the second runs it again."""

    def __init__(self, cluster: Cluster, lost: Process, other: Process) -> None:
        self.cluster, self.lost, self.other = cluster, lost, other
        self.task_id = ""

    async def first(self, program: Program, *, reached: Callable[[], object] = lambda: True) -> None:
        """Run a program until it waits, and lose its process."""
        self.lost.runtime.register("tool", as_work(self.lost, program))
        self.task_id = (await self.lost.runtime.submit(RERUNNABLE)).task_id
        while not reached():  # threads have a part in it
            await anyio.lowlevel.checkpoint()
        await self.cluster.cut(self.lost)

    async def again(self, program: Program) -> Outcome:
        """Run it in the other process, where it ends."""
        self.other.runtime.register("tool", as_work(self.other, program))
        while self.cluster.store.record(self.task_id).outcome is None:
            await self.cluster.pass_time(1)
        outcome = self.cluster.store.record(self.task_id).outcome
        assert outcome is not None
        return outcome

    async def raises(self, program: Program, message: str) -> None:
        """Check that the program raises this `StepChangedError` when it runs again."""
        raised: list[StepChangedError] = []

        async def noting(task: ServerTaskContext) -> None:
            try:
                await program(task)
            except StepChangedError as error:
                raised.append(error)
                raise

        assert (await self.again(noting)).status == "failed"
        assert [message in str(error) for error in raised] == [True], raised


class Effects(list[str]):
    """What steps did, in order."""

    def of(self, name: str, result: Any = None) -> Callable[..., Awaitable[Any]]:
        async def effect(*args: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            self.append(name)
            await anyio.lowlevel.checkpoint()
            return result if result is not None else [name, *args]

        return effect


async def waits(task: ServerTaskContext) -> None:
    await anyio.sleep_forever()


# --- a rerun ------------------------------------------------------------------------------------------------------


async def test_a_program_killed_at_every_moment_has_each_effect_and_records_each_result_once() -> None:
    """The process stops for good at one await after the other; another one runs the program again."""
    killed_at = 0
    while True:
        killed_at += 1
        if await _kill_at(killed_at):
            break
    assert killed_at > 25, "five steps have more moments than that"


async def _kill_at(moment: int) -> bool:
    """Stop a process at this await of its work; return whether the work had ended before."""
    names = ["a", "b", "c", "d", "e"]
    async with open_cluster() as (cluster, (lost, other)):
        before, after = Effects(), Effects()
        release = anyio.Event()

        async def program(effects: Effects, task: ServerTaskContext) -> list[Any]:
            return [await task.step(name, effects.of(name), number) for number, name in enumerate(names)]

        async def dying(execution: Execution[Any]) -> Outcome:
            async def hold() -> None:
                if stepper.yields >= moment:
                    lost.link.is_cut = True
                    await release.wait()

            async def run() -> list[Any]:
                return await program(before, lost.context(execution))

            stepper = Stepper(run, before_resume=hold)
            return Outcome.completed({"result": await stepper})

        lost.runtime.register("tool", dying)
        other.runtime.register("tool", as_work(other, functools.partial(program, after)))
        task_id = (await lost.runtime.submit(RERUNNABLE)).task_id
        await cluster.settle()
        recorded = [key.partition("(")[0] for key in await journal(cluster, task_id)]
        has_ended = cluster.store.record(task_id).outcome is not None
        while cluster.store.record(task_id).outcome is None:
            await cluster.pass_time(5)
        outcome = cluster.store.record(task_id).outcome
        assert outcome is not None
        assert outcome.result == {"result": [[name, number] for number, name in enumerate(names)]}
        assert recorded == names[: len(recorded)]
        assert [name for name in after if name in recorded] == [], "a finished step ran again"
        for name in names:
            assert before.count(name) <= 1
            assert after.count(name) <= 1
            assert name in before + after
        assert len(before + after) <= len(names) + 1, "at most the interrupted step runs twice"
        calls = lost.link.calls + other.link.calls
        assert calls.count("record_step") <= len(names) + 1
        lost.link.is_cut = False
        release.set()
    return has_ended


async def test_a_rerun_reads_the_steps_once_and_writes_only_new_ones() -> None:
    effects = Effects()
    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)

        async def program(task: ServerTaskContext) -> list[Any]:
            first = [await task.step(name, effects.of(name)) for name in "abc"]
            if task.attempt == 1:
                await waits(task)
            return [*first, await task.step("d", effects.of("d"))]

        await runs.first(program)
        assert a.link.calls.count("read_steps") == 0, "the first run has nothing to read"
        assert a.link.calls.count("record_step") == 3
        outcome = await runs.again(program)
        assert outcome.result == {"result": [["a"], ["b"], ["c"], ["d"]]}
        assert effects == ["a", "b", "c", "d"]
        assert b.link.calls.count("read_steps") == 1
        assert b.link.calls.count("record_step") == 1


async def test_steps_side_by_side_find_their_results_in_any_order() -> None:
    effects = Effects()
    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)

        async def program(task: ServerTaskContext) -> dict[str, Any]:
            results: dict[str, Any] = {}

            async def branch(url: str, delay: int) -> None:
                for _ in range(delay * 40):
                    await anyio.lowlevel.checkpoint()
                results[url] = await task.step("fetch", effects.of(url, url.upper()), url)
                if url == "x" and task.attempt == 1:
                    await waits(task)

            async with anyio.create_task_group() as group:
                for number, url in enumerate("xyz"):
                    group.start_soon(branch, url, number if task.attempt == 1 else 3 - number)
            return results

        await runs.first(program)
        outcome = await runs.again(program)
        assert outcome.result == {"result": {"x": "X", "y": "Y", "z": "Z"}}
        assert sorted(effects) == ["x", "y", "z"], "none ran again"


async def test_the_same_step_is_recorded_as_often_as_it_is_asked_for() -> None:
    numbers = iter(range(100))

    async def draw() -> int:
        return next(numbers)

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)

        async def program(task: ServerTaskContext) -> list[int]:
            drawn = [await task.step("draw", draw) for _ in range(2)]
            if task.attempt == 1:
                await waits(task)
            return [*drawn, await task.step("draw", draw)]

        await runs.first(program)
        assert (await runs.again(program)).result == {"result": [0, 1, 2]}
        assert len(set(await journal(cluster, runs.task_id))) == 0, "steps go with their task"


async def test_answered_questions_stay_answered_among_steps() -> None:
    effects = Effects()
    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)

        async def program(task: ServerTaskContext) -> list[Any]:
            first = await task.step("a", effects.of("a"))
            answer = await task.elicit("?", {"type": "object", "properties": {}})
            second = await task.step("b", effects.of("b"), answer.action)
            if task.attempt == 1:
                await waits(task)
            return [first, second]

        a.runtime.register("tool", as_work(a, program))
        runs.task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.until_asked(runs.task_id, "?")
        await cluster.answer(a, runs.task_id, "?", {})
        await cluster.cut(a)
        assert (await runs.again(program)).result == {"result": [["a"], ["b", "accept"]]}
        assert effects == ["a", "b"]


async def test_a_lost_run_records_nothing_and_is_stopped() -> None:
    raised: list[Exception] = []
    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        go_on = anyio.Event()

        async def program(task: ServerTaskContext) -> Any:
            if task.attempt > 1:
                return await task.step("a", Effects().of("a", "of the new run"))
            await go_on.wait()
            try:
                return await task.step("a", Effects().of("a", "of the lost run"))
            except LeaseLostError as error:
                raised.append(error)
                raise

        await runs.first(program)
        assert (await runs.again(program)).result == {"result": "of the new run"}
        a.link.is_cut = False
        go_on.set()
        await cluster.settle()
        assert len(raised) <= 1
        assert a.running == set()


async def test_a_result_is_recorded_although_the_store_is_away_for_a_while() -> None:
    async with open_cluster(1) as (cluster, (a,)):
        effects = Effects()
        a.link.fails = {"record_step"}
        a.runtime.register("tool", as_work(a, lambda task: task.step("a", effects.of("a"))))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.pass_time(4)
        assert cluster.store.record(task_id).outcome is None
        a.link.fails.clear()
        await cluster.pass_time(2)
        assert cluster.store.record(task_id).status == "completed"
        assert effects == ["a"]


async def test_a_cancelled_task_stops_its_step() -> None:
    stopped: list[str] = []

    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append("step")

    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", as_work(a, lambda task: task.step("a", endless, attempts=5)))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.settle()
        await a.runtime.cancel(task_id, owner=None)
        await cluster.settle()
        assert stopped == ["step"]
        assert a.running == set()


async def test_a_step_that_has_ended_is_recorded_before_a_cancellation_arrives() -> None:
    async with open_cluster(1) as (cluster, (a,)):

        async def program(task: ServerTaskContext) -> None:
            with anyio.CancelScope() as scope:

                async def effect() -> str:
                    scope.cancel()
                    return "done"

                await task.step("a", effect)
            await waits(task)

        a.runtime.register("tool", as_work(a, program))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.settle()
        assert list((await journal(cluster, task_id)).values()) == ['[0,"done"]']


# --- without a memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [ONCE, RERUNNABLE], ids=["not rerunnable", "a store of one process"])
async def test_steps_run_without_being_recorded_where_no_rerun_can_find_them(spec: TaskSpec) -> None:
    effects = Effects()
    if spec is ONCE:
        async with open_cluster(1) as (cluster, (a,)):
            a.runtime.register("tool", as_work(a, lambda task: task.step("a", effects.of("a"), 1)))
            task_id = (await a.runtime.submit(spec)).task_id
            assert (await cluster.until_ended(task_id)).status == "completed"
            assert {"record_step", "read_steps"}.isdisjoint(a.link.calls)
    else:
        async with open_world() as world:
            process = Process(None, world.runtime)  # type: ignore[arg-type]
            world.runtime.register("tool", as_work(process, lambda task: task.step("a", effects.of("a"), 1)))
            record = await world.runtime.submit(spec)
            assert (await world.runtime.result(record.task_id, owner=None)).result == {"result": ["a", 1]}
    assert effects == ["a"]


# --- what changed -------------------------------------------------------------------------------------------------


def program_of(effects: Effects, *steps: tuple[Any, ...], then: Program | None = None) -> Program:
    async def program(task: ServerTaskContext) -> None:
        for name, *args in steps:
            await task.step(name, effects.of(f"{name}{args}"), *args)
        if then is not None:
            await then(task)

    return program


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ([("a", 2)], "step 'a' came in its place, or with other arguments"),
        ([("new",), ("a", 1), ("b",)], "Step 'new' does not fit"),
        ([("b",)], "step 'a' came in its place"),
        ([("a", 1), ("a", 1)], "step 'b' came in its place"),
        ([("b",), ("a", 1)], "step 'a' came in its place"),
    ],
    ids=["arguments", "inserted", "removed", "once more", "swapped"],
)
async def test_a_rerun_that_takes_other_steps_is_told_before_one_runs(
    again: list[tuple[Any, ...]], message: str
) -> None:
    effects = Effects()
    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(program_of(effects, ("a", 1), ("b",), then=waits))
        ran = list(effects)
        await runs.raises(program_of(effects, *again), message)
        assert effects == ran, "no effect of the changed program"


async def test_a_rerun_whose_result_has_another_type_is_told() -> None:
    async def number() -> int:
        return 7

    async def text() -> date:
        raise AssertionError("it is recorded")

    async def first(task: ServerTaskContext) -> None:
        await task.step("a", number)
        await waits(task)

    async def again(task: ServerTaskContext) -> None:
        await task.step("a", text, returns=list[str])

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(first)
        await runs.raises(again, "its result is of another type")


async def short() -> Short:
    return "longer than it may be"


async def test_what_an_annotation_says_of_a_result_beyond_its_type_holds() -> None:
    async def program(task: ServerTaskContext) -> None:
        await task.step("a", short)

    async with open_cluster() as (_, (a, _)):
        a.runtime.register("tool", as_work(a, program))
        record = await a.runtime.submit(RERUNNABLE)
        outcome = await a.runtime.result(record.task_id, owner=None)
        assert outcome.status == "failed"


@pytest.mark.parametrize("how", ["raises", "is cancelled", "question"])
async def test_work_may_take_another_way_after_an_end_that_is_not_recorded(how: str) -> None:
    """A step that raised in the first run may return in the second: that is no change of the program."""
    effects = Effects()

    async def fragile(attempt: int) -> str:
        effects.append("fragile")
        if attempt == 1 and how == "is cancelled":
            await anyio.sleep_forever()
        if attempt == 1:
            raise LookupError
        return "ok"

    async def program(task: ServerTaskContext) -> str:
        await task.step("before", effects.of("before"))
        result = None
        try:
            if how == "question":
                await task.elicit("?", {"type": "object", "properties": {}}, timeout=0)
            else:
                with anyio.move_on_after(0):
                    result = await task.step("fragile", functools.partial(fragile, task.attempt))
        except (LookupError, QuestionTimeoutError):
            pass
        if result is None and task.attempt == 1:
            await task.step("fallback", effects.of("fallback"))
            await waits(task)
        await task.step("other", effects.of("other"))
        return "done"

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(program)
        assert (await runs.again(program)).result == {"result": "done"}
        assert effects.count("before") == 1


async def test_a_step_that_the_work_repeats_itself_is_found_where_it_succeeded() -> None:
    tries = Effects()

    async def fetch() -> str:
        tries.append("try")
        if len(tries) < 3:
            raise ConnectionError
        return "page"

    async def program(task: ServerTaskContext) -> str:
        while True:
            try:
                page = await task.step("fetch", fetch)
                break
            except ConnectionError:
                continue
        if task.attempt == 1:
            await waits(task)
        return page

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(program)
        assert (await runs.again(program)).result == {"result": "page"}
        assert len(tries) == 3


async def test_steps_within_steps_have_no_position() -> None:
    effects = Effects()

    async def program(task: ServerTaskContext) -> str:
        async def outer() -> str:
            await task.step("inner", effects.of("inner"))
            return "outer"

        result = await task.step("outer", outer)
        await task.step("next", effects.of("next"))
        if task.attempt == 1:
            await waits(task)
        return result

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(program)
        assert (await runs.again(program)).result == {"result": "outer"}
        assert effects == ["inner", "next"]


# --- retries ------------------------------------------------------------------------------------------------------


class Failing:
    """Fails some times; notes when it was called, in seconds since the start."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        self.at: list[float] = []
        self.clock: Any = None
        self._times = times
        self._error = ConnectionError() if error is None else error

    async def __call__(self) -> str:
        now = self.clock.now()
        self.start = getattr(self, "start", now)
        self.at.append((now - self.start).total_seconds())
        if len(self.at) <= self._times:
            raise self._error
        return "ok"


@pytest.mark.parametrize(
    ("backoff", "times"),
    [
        (Backoff(1, 2, 3), [0, 1, 3, 6, 9]),
        (2.0, [0, 2, 4, 6, 8]),
        (0, [0, 0, 0, 0, 0]),
    ],
)
async def test_a_step_that_raises_is_run_again_after_growing_delays(
    backoff: Backoff | float, times: list[float]
) -> None:
    async with open_cluster(1) as (cluster, (a,)):
        failing = Failing(4)
        failing.clock = cluster.clock
        a.runtime.register("tool", as_work(a, lambda task: task.step("a", failing, attempts=5, backoff=backoff)))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.settle()
        await cluster.pass_time(10)
        assert cluster.store.record(task_id).status == "completed"
        assert failing.at == times


class Grouped(Exception):
    """A group that holds one exception, on Pythons without groups, too."""

    exceptions = (ConnectionError(),)


@pytest.mark.parametrize(
    ("error", "retry_on", "runs"),
    [
        (Grouped(), Grouped, 3),
        (Grouped(), OSError, 3),
        (ConnectionError(), OSError, 3),
        (ConnectionError(), [LookupError, OSError], 3),
        (ConnectionError(), LookupError, 1),
        (ConnectionError(), (), 1),
        (LeaseLostError("x"), Exception, 1),
    ],
)
async def test_only_what_was_named_is_tried_again_and_the_last_error_is_raised(
    error: Exception, retry_on: Any, runs: int
) -> None:
    raised: list[Exception] = []
    async with open_cluster(1) as (cluster, (a,)):
        failing = Failing(99, error)
        failing.clock = cluster.clock

        async def program(task: ServerTaskContext) -> None:
            try:
                await task.step("a", failing, attempts=3, retry_on=retry_on, backoff=0)
            except Exception as caught:
                raised.append(caught)

        a.runtime.register("tool", as_work(a, program))
        await a.runtime.submit(RERUNNABLE)
        await cluster.settle()
        assert raised == [error]
        assert len(failing.at) == runs


@pytest.mark.parametrize(
    "options", [{"attempts": 0}, {"retry_on": BaseException}, {"retry_on": ["x"]}, {"backoff": -1}, {"backoff": "x"}]
)
async def test_nonsense_is_refused_before_the_step_runs(options: dict[str, Any]) -> None:
    effects = Effects()
    async with open_world() as world:
        process = Process(None, world.runtime)  # type: ignore[arg-type]
        refused: list[Exception] = []

        async def program(task: ServerTaskContext) -> None:
            for arguments in ({"name": "a", **options}, {"name": ""}, {"name": "x" * 201}, {"name": "\ud800"}):
                try:
                    await task.step(**{"function": effects.of("a"), **arguments})
                except (ValueError, TypeError) as error:
                    refused.append(error)

        world.runtime.register("tool", as_work(process, program))
        record = await world.runtime.submit(RERUNNABLE)
        await world.runtime.result(record.task_id, owner=None)
        assert len(refused) == 4
        assert effects == []


@pytest.mark.parametrize("numbers", [(-1, 2, 3), (1, 0.5, 3), (1, 2, float("nan")), (1, float("inf"), 3)])
def test_a_backoff_out_of_range_is_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Backoff(*numbers)


def test_a_backoff_grows_up_to_its_bound() -> None:
    assert [Backoff(1, 3, 20).after(n).total_seconds() for n in (1, 2, 3, 4, 10_000)] == [1, 3, 9, 20, 20]
    assert Backoff(0, 3, 20).after(10_000).total_seconds() == 0


# --- results ------------------------------------------------------------------------------------------------------


class Page(BaseModel):
    title: str = Field(alias="Title")
    seen: date


@dataclass
class Point:
    x: int


async def page() -> Page:
    return Page(Title="t", seen=date(2026, 1, 2))


async def pages() -> list[Page]:
    return [await page()]


def plain(x: int) -> tuple[int, date]:
    return (x, date(2026, 1, 2))


def awaitable() -> Awaitable[Page]:
    return page()


async def nothing() -> None:
    pass


async def untyped(value):  # type: ignore[no-untyped-def]
    return value


async def returns_five() -> int:
    return 5


GOOD: dict[str, tuple[Callable[..., Any], tuple[Any, ...], Any]] = {
    "model": (page, (), Page(Title="t", seen=date(2026, 1, 2))),
    "models": (pages, (), [Page(Title="t", seen=date(2026, 1, 2))]),
    "plain function": (plain, (3,), (3, date(2026, 1, 2))),
    "plain function that gives an awaitable": (awaitable, (), Page(Title="t", seen=date(2026, 1, 2))),
    "partial": (functools.partial(plain, 3), (), (3, date(2026, 1, 2))),
    "lambda": (lambda: {"a": [1, None]}, (), {"a": [1, None]}),
    "lambda that gives a coroutine": (lambda: returns_five(), (), 5),
    "built in": (len, ([1, 2],), 2),
    "nothing": (nothing, (), None),
    "untyped": (untyped, ({"a": [1.5, "ü", True, None]},), {"a": [1.5, "ü", True, None]}),
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_result_comes_back_as_its_type_in_each_run(name: str) -> None:
    function, args, expected = GOOD[name]
    got: list[Any] = []

    async def program(task: ServerTaskContext) -> None:
        got.append(await task.step("a", function, *args))
        if task.attempt == 1:
            await waits(task)

    async with open_cluster() as (cluster, (a, b)):
        runs = Runs(cluster, a, b)
        await runs.first(program, reached=lambda: got)
        await runs.again(program)
    assert got == [expected, expected]
    assert type(got[0]) is type(got[1]) is type(expected)


async def point() -> Point:
    return Point(1)


async def file() -> anyio.Event:
    raise AssertionError("it must not run")


async def wrong() -> int:
    return "text"  # type: ignore[return-value]


async def unknown() -> Missing:  # type: ignore[name-defined]  # noqa: F821
    raise AssertionError("it must not run")


async def nan() -> float:
    return float("nan")


BAD: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "type": (file, (), "has no JSON form; annotate"),
    "another type": (wrong, (), "its result has no JSON form"),
    "unknown type": (unknown, (), "cannot be resolved"),
    "NaN": (nan, (), "its result has no JSON form"),
    "untyped tuple": (lambda: (1, 2), (), "does not give its result back as it was"),
    "untyped keys": (lambda: {1: 2}, (), "does not give its result back as it was"),
    "untyped model": (lambda: Page(Title="t", seen=date(2026, 1, 2)), (), "does not give its result back as it was"),
    "untyped NaN": (lambda: float("nan"), (), "does not give its result back as it was"),
    "object": (lambda: object(), (), "its result has no JSON form"),
    "surrogate": (lambda: "\ud800", (), "its result has no JSON form"),
    "large": (lambda: "x" * (4 * 1024 * 1024), (), "takes more than"),
    "arguments": (untyped, (object(),), "its arguments have no JSON form"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_cannot_come_back_is_a_clear_error(name: str) -> None:
    function, args, message = BAD[name]
    raised: list[StepResultError] = []

    async def program(task: ServerTaskContext) -> None:
        try:
            await task.step("a", function, *args)
        except StepResultError as error:
            raised.append(error)

    async with open_cluster(1) as (cluster, (a,)):
        a.runtime.register("tool", as_work(a, program))
        task_id = (await a.runtime.submit(RERUNNABLE)).task_id
        await cluster.until_ended(task_id)
        assert "record_step" not in a.link.calls
    assert [message in str(error) for error in raised] == [True], raised
    assert str(raised[0]).startswith("Step 'a': ")


async def test_a_dataclass_comes_back() -> None:
    got: list[Any] = []

    async def program(task: ServerTaskContext) -> None:
        got.append(await task.step("a", point))
        got.append(await task.step("b", lambda: {"x": 2}, returns=Point))

    async with open_world() as world:
        process = Process(None, world.runtime)  # type: ignore[arg-type]
        world.runtime.register("tool", as_work(process, program))
        record = await world.runtime.submit(RERUNNABLE)
        await world.runtime.result(record.task_id, owner=None)
    assert got[0] == Point(1)
