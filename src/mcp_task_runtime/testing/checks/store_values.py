"""The laws of what a `TaskStore` takes and returns, as named checks: progress, more time, values at their limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.json import MAX_DEPTH, load_json
from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.store import TaskJournal, TaskQuestions, TaskSearch, TaskStore
from mcp_task_runtime.core.types import NewTask, Outcome, Progress, TaskFilter, TaskRecord, TaskRequest
from mcp_task_runtime.errors import InvalidTransitionError, TaskNotFoundError
from mcp_task_runtime.testing.checks.abilities import able, fence_of, leased_task, question, require_unchanged
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task, require_gone
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation

__all__ = ["STORE_VALUE_CHECKS"]

STORE_VALUE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(STORE_VALUE_CHECKS)


# --- progress, and more time --------------------------------------------------------------------------


@_check("L1", "L4")
async def progress_is_part_of_the_task_and_outlives_its_end(bench: StoreBench) -> None:
    store = bench.subject
    for outcome in OUTCOMES:
        created = await store.create_task(NewTask(ttl_ms=None))
        require(created.progress is None, "a new task has progress")
        before = await store.update_task(created.task_id, status_message="so far")
        for progress in (Progress(0.0), Progress(1, 4), Progress(2.5, 4, "grüß 🌍"), Progress(3.0, None, "")):
            bench.clock.advance(1)
            changed = await store.update_task(created.task_id, progress=progress)
            task = replace(before.task, last_updated_at=bench.clock.now())
            expected = replace(before, task=task, revision=before.revision + 1, progress=progress)
            require(changed == expected, f"update_task(progress={progress}) made {changed} and not {expected}")
            await require_unchanged(store, changed, "something that update_task did not return")
            before = changed
        other = await store.update_task(created.task_id, status="input_required")
        require(other.progress == before.progress, "an update without progress changed the progress")
        ended = await store.finish_task(created.task_id, outcome)
        require(ended.progress == before.progress, "the end of a task changed its progress")
        await require_unchanged(store, ended, "something that finish_task did not return")
        late = store.update_task(created.task_id, progress=Progress(9))
        await require_raises(InvalidTransitionError, late, "update_task with progress on an ended task")
        await require_unchanged(store, ended, "refused progress")


@_check("L7")
async def a_live_task_can_be_given_more_time_or_less(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=10_000))
    wait = partial(store.wait_for_update, created.task_id, after=2)
    extended = await store.update_task(created.task_id, ttl_ms=30_000)
    require(extended.task.ttl_ms == 30_000, "update_task did not set ttl_ms")
    require(extended.task.created_at == created.task.created_at, "more time changed created_at")
    await require_unchanged(store, extended, "something that update_task did not return")
    async with bench.waiting(wait) as (waiter,):
        bench.clock.advance(29.999)
        require(
            (await read_task(store, created.task_id)).revision == 2, "a task that was given more time is gone early"
        )
        require(not waiter.done(), "a waiter was woken at the deadline that the task had before it was given more time")
        bench.clock.advance(0.001)
        gone = bench.within(waiter.wait(), "a waiter still waits though the task has expired")
        await require_raises(TaskNotFoundError, gone, "waiting for a task that expires later than it was made to")
    await require_gone(store, created.task_id, "was given more time and has expired")
    short = await store.create_task(NewTask(ttl_ms=60_000))
    await store.update_task(short.task_id, ttl_ms=5_000)
    never = await store.create_task(NewTask(ttl_ms=None))
    bounded = await store.update_task(never.task_id, ttl_ms=7_000)
    require(bounded.task.ttl_ms == 7_000, "a task without a ttl was not given one")
    bench.clock.advance(5)
    await require_gone(store, short.task_id, "was given less time and has expired")
    await read_task(store, never.task_id)
    bench.clock.advance(2)
    await require_gone(store, never.task_id, "was given a ttl and has expired")
    ended = await store.create_task(NewTask(ttl_ms=10_000, retention_ms=20_000))
    finished = await store.finish_task(ended.task_id, OUTCOMES[0])
    late = store.update_task(ended.task_id, ttl_ms=90_000)
    await require_raises(InvalidTransitionError, late, "update_task with ttl_ms on an ended task")
    await require_unchanged(store, finished, "a refused ttl_ms")


@_check("L6", "L7")
async def more_time_or_progress_that_is_cancelled_happened_in_full_or_not_at_all(bench: StoreBench) -> None:
    store = bench.subject

    async def setup() -> Trial:
        created = await store.create_task(NewTask(ttl_ms=60_000))

        async def look() -> tuple[Any, ...]:
            record = await read_task(store, created.task_id)
            return record.revision, record.task.ttl_ms, record.progress

        change = partial(store.update_task, created.task_id, ttl_ms=90_000, progress=Progress(1, 2, "x"))
        return Trial(change, look, leftovers=lambda: bench.clock.waiting)

    await check_cancellation(setup, patience=bench.patience)


# --- L4: what is accepted can be given back -----------------------------------------------------------

_SURROGATES: Final = ("\ud800", "file-\udcff.txt", "\udfff\ud800")
_TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x1a0000",
    "\\u0000",
    "\x01\x1f\x7f",
    "\u2028\ufeff\uffff",
    "e\u0301 is not \u00e9",
    "🌍" * 50,
    "x" * 70_000,
    *_SURROGATES,
)


def _nested(depth: int) -> str:
    return '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


_JSON: Final = (
    "{}",
    '{ "spaces" : [ 1 , 2 ] }',
    '{"a":1,"a":2}',
    r'{"a":"\u0000"}',
    r'{"a":"\ud800"}',
    '{"a":"\ud800"}',
    '{"a":"\0"}',
    '{"a":' + "9" * 19 + "}",
    '{"a":' + "9" * 4_300 + "}",
    '{"a":' + "9" * 4_301 + "}",
    '{"a":1e999}',
    '{"a":-0.0,"b":1e-320,"c":1.7976931348623157e308}',
    '{"a":NaN}',
    '{"a":Infinity}',
    '{"a":"' + "y" * 1_000_000 + '"}',
    _nested(MAX_DEPTH - 1),
    _nested(MAX_DEPTH),
    _nested(MAX_DEPTH + 1),
    _nested(5_000),
    "{",
    "",
    "no JSON",
)

_EVERYTHING: Final = TaskFilter()
_NUMBERS: Final = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**70, 10**400)


async def _offer(write: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Return what a write returned, or `None` if the value was refused."""
    try:
        return await write()
    except ValueError:
        return None
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}, which is not a ValueError") from error


def _require_unicode(value: object, what: str) -> None:
    """Require that what was accepted has a UTF-8 form."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise AssertionError(f"{what} was accepted, which is not Unicode") from None


def _require_json(text: str, what: str) -> None:
    """Require that JSON text that was accepted can be parsed."""
    _require_unicode(text, what)
    try:
        load_json(text)
    except (ValueError, RecursionError):
        raise AssertionError(f"{what} was accepted, and cannot be read back") from None


def _shown(value: object) -> str:
    text = (
        ascii(value) if not isinstance(value, int) or abs(value) < 10**40 else f"an integer of {len(str(value))} digits"
    )
    return text if len(text) < 60 else f"{text[:40]}… ({len(text)} characters)"


def _new_tasks(task_id: str) -> Iterable[tuple[str, Any, NewTask]]:
    """Yield each argument of a new task with each value at its limits."""
    plain = NewTask(ttl_ms=None, task_id=task_id, worker="one")

    def with_request(name: str, value: Any) -> NewTask:
        return replace(plain, request=replace(plain.request, **{name: value}))

    def with_number(name: str, value: Any) -> NewTask:
        return replace(plain, **{name: value})

    for text in _TEXTS:
        yield "task_id", text, replace(plain, task_id=text)
        yield "owner", text, replace(plain, owner=text)
        yield "worker", text, replace(plain, worker=text)
        for name in ("method", "name", "sealed_credentials", "progress_token"):
            yield name, text, with_request(name, text)
    for text in _JSON:
        yield "client_capabilities_json", text, replace(plain, client_capabilities_json=text)
        for name in ("arguments_json", "caller_json"):
            yield name, text, with_request(name, text)
    for number in _NUMBERS:
        for name in ("ttl_ms", "poll_interval_ms", "retention_ms", "lease_ms"):
            yield name, number, with_number(name, number)
        for name in ("progress_token", "max_attempts"):
            yield name, number, with_request(name, number)


def _kept(record: TaskRecord, name: str) -> object:
    """Return what a record keeps of an argument of its creation."""
    if name in ("ttl_ms", "poll_interval_ms", "task_id"):
        return getattr(record.task, name)
    if name in ("owner", "retention_ms", "client_capabilities_json"):
        return getattr(record, name)
    if name == "worker":
        return None if record.lease is None else record.lease.worker
    if name == "lease_ms":
        return None
    return getattr(record.request, name)


@_check("L4", "L13")
async def what_create_task_accepts_it_can_give_back(bench: StoreBench) -> None:
    store = bench.subject
    other = await store.create_task(NewTask(ttl_ms=None, task_id="other", request=TaskRequest(name="other")))
    for name, value, new in _new_tasks("one"):
        what = f"{name}={_shown(value)}"
        made = await _offer(partial(store.create_task, new), f"create_task with {what}")
        if made is None:
            require(value not in (" ", "{}", 1), f"create_task refused {what}")
            if name != "task_id":
                require(await store.get_task("one") is None, f"create_task refused {what} and made a task all the same")
            continue
        (_require_json if name.endswith("_json") else _require_unicode)(value, what)
        if name != "lease_ms":
            require(_kept(made, name) == value, f"create_task accepted {what} and made {_shown(_kept(made, name))}")
        if name != "ttl_ms" or (isinstance(value, int) and value > 0):
            require(
                await store.get_task(made.task_id) == made, f"a task with {what} is read otherwise than it was made"
            )
            page = await store.search_tasks(_EVERYTHING, limit=5) if isinstance(store, TaskSearch) else None
            require(
                page is None or made in page.records, f"a task with {what} is missing in a search, or shown otherwise"
            )
            require(await store.delete_task(made.task_id), f"a task with {what} cannot be deleted")
        else:
            require(await store.get_task(made.task_id) is None, f"a task with {what} exists")
        require(await store.get_task("other") == other, f"a task with {what} changed another task")


@_check("L4", "L13")
async def what_a_change_accepts_can_be_given_back(bench: StoreBench) -> None:
    store = bench.subject
    other = await store.create_task(NewTask(ttl_ms=None))
    record = await store.create_task(NewTask(ttl_ms=None))
    updates: list[tuple[str, Any]] = [("status_message", text) for text in _TEXTS]
    updates += [("progress", Progress(1, 2, text)) for text in _TEXTS]
    numbers: tuple[float, ...] = (*_NUMBERS, 0.1, -0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
    updates += [("progress", Progress(number)) for number in numbers]
    updates += [("progress", Progress(1, number)) for number in numbers]
    updates += [("ttl_ms", number) for number in _NUMBERS if number > 2**53 or number < 0]
    for name, value in updates:
        what = f"{name}={_shown(value)}"
        write: Callable[[], Awaitable[Any]] = partial(store.update_task, record.task_id, **{name: value})
        changed = await _offer(write, f"update_task with {what}")
        if changed is None:
            await require_unchanged(store, record, f"update_task that refused {what}")
            continue
        _require_unicode(value.message if isinstance(value, Progress) else value, what)
        kept = changed.progress if name == "progress" else getattr(changed.task, name)
        require(kept == value, f"update_task accepted {what} and made {_shown(kept)}")
        if name == "ttl_ms" and not isinstance(value, str | Progress) and value < 0:
            await require_gone(store, record.task_id, "was given a negative ttl")
            record = await store.create_task(NewTask(ttl_ms=None))
            continue
        require(await store.get_task(record.task_id) == changed, f"{what} is read otherwise than it was written")
        record = changed
    outcomes = [("payload_json", Outcome("completed", text)) for text in _JSON]
    outcomes += [("payload_json", Outcome("failed", text, "x")) for text in _JSON]
    outcomes += [("status_message", Outcome("cancelled", None, text)) for text in _TEXTS]
    for name, outcome in outcomes:
        value = getattr(outcome, name)
        what = f"an outcome with {name}={_shown(value)}"
        one = await store.create_task(NewTask(ttl_ms=None))
        ended = await _offer(partial(store.finish_task, one.task_id, outcome), f"finish_task with {what}")
        if ended is None:
            await require_unchanged(store, one, f"finish_task that refused {what}")
            ended = await store.finish_task(one.task_id, OUTCOMES[0])
            require(ended.outcome == OUTCOMES[0], f"after {what} was refused a task cannot be ended")
        else:
            (_require_json if name == "payload_json" else _require_unicode)(value, what)
            require(ended.outcome == outcome, f"finish_task accepted {what} and made another one")
            require(await store.get_result(one.task_id) == outcome, f"{what} is read otherwise than it was written")
            await require_unchanged(store, ended, f"storing {what}")
        await store.delete_task(one.task_id)
    await require_unchanged(store, other, "values at their limits in another task")


@_check("L4", "L13", needs=["questions"])
async def what_a_question_or_answer_accepts_can_be_given_back(bench: StoreBench) -> None:
    store = able(bench.subject, TaskQuestions)
    other = await store.create_task(NewTask(ttl_ms=None))
    asked = await store.ask(other.task_id, question("k"))
    messages = [("key", QueuedMessage("request", "m", "{}", text)) for text in _TEXTS]
    messages += [("method", QueuedMessage("request", text, "{}", "k")) for text in _TEXTS]
    messages += [("params_json", QueuedMessage("request", "m", text, "k")) for text in _JSON]
    for name, message in messages:
        value = getattr(message, name)
        what = f"a question with {name}={_shown(value)}"
        one = await store.create_task(NewTask(ttl_ms=None))
        done = await _offer(partial(store.ask, one.task_id, message), f"asking {what}")
        queued = await store.message_queue.outstanding(one.task_id)
        if done is None:
            await require_unchanged(store, one, f"refusing {what}")
            require(queued == (), f"{what} was refused, and is open")
        else:
            (_require_json if name == "params_json" else _require_unicode)(value, what)
            require(queued == (message,), f"{what} is read otherwise than it was asked")
            taken = await store.answer_all(one.task_id, {message.key or "": Answer.result({})})
            require(taken == {message.key}, f"{what} cannot be answered")
        await store.delete_task(one.task_id)
    for text in _JSON:
        what = f"an answer with {_shown(text)}"
        one = await store.create_task(NewTask(ttl_ms=None))
        before = await store.ask(one.task_id, question("k"))
        answer = Answer("result", text)
        taken = await _offer(partial(store.answer_all, one.task_id, {"k": answer}), what)
        if taken is None:
            if before is not None:
                await require_unchanged(store, before, f"refusing {what}")
            require(
                len(await store.message_queue.outstanding(one.task_id)) == 1,
                f"{what} was refused, and closed its question",
            )
        else:
            _require_json(text, what)
            kept = await store.message_queue.wait_for_answer(one.task_id, "k")
            require(kept == answer, f"{what} is read otherwise than it was given")
        await store.delete_task(one.task_id)
    if asked is not None:
        await require_unchanged(store, asked, "questions at their limits in another task")


@_check("L4", "L13", needs=["journal", "leases"])
async def what_a_step_accepts_can_be_given_back(bench: StoreBench) -> None:
    store = able(bench.subject, TaskJournal)
    created = await leased_task(store)
    steps: list[tuple[str, str]] = [(text, "1") for text in _TEXTS]
    steps += [(f"step {number}", text) for number, text in enumerate(_JSON)]
    wanted: dict[str, str] = {}
    for key, value in steps:
        what = f"a step with key={_shown(key)} and the result {_shown(value)}"
        write = partial(store.record_step, created.task_id, key, value, fence=fence_of(created))
        recorded = await _offer(write, f"recording {what}")
        if recorded is not None:
            _require_unicode(key, what)
            _require_json(value, what)
            require(recorded == value, f"{what} was recorded otherwise")
            wanted[key] = value
        require(dict(await store.read_steps(created.task_id)) == wanted, f"after {what} other steps are recorded")
    await require_unchanged(store, created, "recording steps at their limits")


@_check("L4", "L13")
async def an_identifier_that_is_no_text_finds_nothing(bench: StoreBench) -> None:
    store = bench.subject
    for text in (*_SURROGATES, "\0", "x" * 70_000, "%", "_", "*", "' OR 1=1 --"):
        await require_gone(store, text, f"cannot exist: its identifier is {_shown(text)}")
