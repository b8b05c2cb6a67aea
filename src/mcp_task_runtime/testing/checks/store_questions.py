"""The laws of `TaskQuestions`, as named checks: questions, answers and the status change in one write (law L5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.message_queue import Answer, QueuedMessage
from mcp_task_runtime.core.store import TaskQuestions, TaskStore
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.errors import InvalidTransitionError, LeaseLostError, TaskNotFoundError
from mcp_task_runtime.testing.checks.abilities import (
    AbleStore,
    able,
    fence_of,
    leased_task,
    question,
    require_unchanged,
)
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require, require_raises
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench, read_task
from mcp_task_runtime.testing.concurrency.cancellation import Trial, check_cancellation
from mcp_task_runtime.testing.concurrency.cost import count_work
from mcp_task_runtime.testing.concurrency.interleaving import Race, check_interleavings, explore_interleavings
from mcp_task_runtime.testing.concurrency.stepping import quiesce

__all__ = ["QUESTION_STORE_CHECKS"]

QUESTION_STORE_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(QUESTION_STORE_CHECKS)

_YES: Final = Answer.result({"action": "accept", "content": {"city": "Zürich"}})
_NO: Final = Answer.error(-32000, "the user is out", {"until": "noon"})


def _asking(bench: StoreBench) -> AbleStore:
    return able(bench.subject, TaskQuestions)


async def _make(store: AbleStore, *keys: str, **options: Any) -> TaskRecord:
    record = await store.create_task(NewTask(**{"ttl_ms": None, **options}))
    for key in keys:
        asked = await store.ask(record.task_id, question(key))
        if asked is None:
            raise AssertionError(f"a question with the new key {key!r} was refused")
        record = asked
    return record


async def _open(store: AbleStore, task_id: str) -> tuple[str | None, ...]:
    return tuple(one.key for one in await store.message_queue.outstanding(task_id))


async def _view(store: AbleStore, task_id: str) -> tuple[Any, ...]:
    """Return what matters of a task and its questions, which must agree; comparable between tasks."""
    record = await store.get_task(task_id)
    keys = await _open(store, task_id)
    if record is None:
        return ("gone", keys)
    answers: list[str] = []
    for key in ("a", "b", "k"):
        if key not in keys and record.status not in TERMINAL_STATUSES:
            try:
                answers.append(f"{key}: {(await store.message_queue.wait_for_answer(task_id, key)).type}")
            except TaskNotFoundError:
                continue
    return record.status, record.revision, keys, tuple(answers)


def _require_true(view: TaskView | None) -> None:
    """Require of a view that status and questions agree."""
    if view is None:
        raise AssertionError("get_view does not find a task that exists")
    record, keys = view.record, [one.key for one in view.questions]
    if record.status in TERMINAL_STATUSES:
        require(keys == [], f"get_view shows a task that is {record.status!r} with the open questions {keys}")
    else:
        wanted = "input_required" if keys else "working"
        require(
            record.status == wanted, f"get_view shows the open questions {keys} of a task that is {record.status!r}"
        )


# --- one write ----------------------------------------------------------------------------------------


@_check("L5", "L3", needs=["questions"])
async def asking_is_one_revision_and_wakes_every_waiter_once(bench: StoreBench) -> None:
    store = _asking(bench)
    record = await _make(store)
    for number, key in enumerate(("a", "b"), start=1):
        bench.clock.advance(1)
        wait = partial(store.wait_for_update, record.task_id, after=record.revision)
        listen = partial(store.message_queue.wait_for_message, record.task_id)
        async with bench.waiting(wait, wait, listen) as (first, second, listener):
            asked = await store.ask(record.task_id, question(key))
            if asked is None:
                raise AssertionError("a question with a new key was refused")
            require(asked.status == "input_required", f"asking left the task {asked.status!r}")
            require(asked.revision == record.revision + 1, "asking did not add exactly one to the revision")
            require(asked.task.last_updated_at == bench.clock.now(), "asking did not stamp last_updated_at")
            await require_unchanged(store, asked, "something that ask did not return")
            for waiter in (first, second):
                woken = await bench.within(waiter.wait(), "a waiter was not woken by a question")
                require(woken == asked, "a waiter was woken by a question and given another state than the stored one")
            await bench.within(listener.wait(), "a queue's waiter was not woken by a question")
        questions = tuple(question(one) for one in ("a", "b")[:number])
        require(await store.message_queue.outstanding(record.task_id) == questions, "ask did not put the question")
        view = await store.get_view(record.task_id)
        require(view == TaskView(asked, questions), f"get_view shows {view} and not the task with its open questions")
        record = asked
    require(await store.message_queue.dequeue(record.task_id) == question("a"), "ask did not queue the question")


@_check("L5", "L3", needs=["questions"])
async def one_answer_is_one_revision(bench: StoreBench) -> None:
    store = _asking(bench)
    for answers, status in (
        ({"a": _YES}, "input_required"),
        ({"a": _YES, "b": _NO}, "input_required"),
        ({"c": Answer.withdrawn(), "a": _NO, "b": _YES}, "working"),
        ({"a": _YES, "unknown": _NO, "b": _YES, "c": _YES}, "working"),
    ):
        record = await _make(store, "a", "b", "c")
        bench.clock.advance(1)
        askers = [partial(store.message_queue.wait_for_answer, record.task_id, key) for key in ("a", "b", "c")]
        wait = partial(store.wait_for_update, record.task_id, after=record.revision)
        async with bench.waiting(*askers) as asking, bench.waiting(wait) as (waiter,):
            taken = await store.answer_all(record.task_id, answers)
            require(isinstance(taken, frozenset), f"answer_all returned a {type(taken).__name__} and not a frozenset")
            wanted = frozenset(answers) - {"unknown"}
            require(taken == wanted, f"answer_all took {sorted(taken)} and not {sorted(wanted)}")
            answered = await read_task(store, record.task_id)
            require(answered.revision == record.revision + 1, "answers in one call did not move the revision by one")
            require(answered.status == status, f"answers left the task {answered.status!r} and not {status!r}")
            require(answered.task.last_updated_at == bench.clock.now(), "answers did not stamp last_updated_at")
            woken = await bench.within(waiter.wait(), "a waiter was not woken by an answer")
            require(woken == answered, "a waiter was woken by an answer and given another state than the stored one")
            await quiesce()
            for key, asker in zip(("a", "b", "c"), asking, strict=True):
                if key in answers:
                    got = await bench.within(asker.wait(), "an asker was not woken by its answer")
                    require(got == answers[key], f"the asker of {key!r} got {got} and not {answers[key]}")
                else:
                    require(not asker.done(), "an asker was woken by the answer to another question")
        await require_unchanged(store, answered, "waking askers and waiters")
        _require_true(await store.get_view(record.task_id))


@_check("L5", "L1", needs=["questions"])
async def answers_that_are_not_taken_change_nothing(bench: StoreBench) -> None:
    store = _asking(bench)
    record = await _make(store, "a", "b")
    await store.answer_all(record.task_id, {"a": _YES})
    record = await read_task(store, record.task_id)
    for answers in ({"a": _NO}, {"unknown": _YES}, {"": _YES}, {}):
        wait = partial(store.wait_for_update, record.task_id, after=record.revision)
        async with bench.waiting(wait) as (waiter,):
            taken = await store.answer_all(record.task_id, answers)
            require(taken == frozenset(), f"answers to no open question were taken: {sorted(taken)}")
            await require_unchanged(store, record, "an answer that was not taken")
            require(not waiter.done(), "an answer that was not taken woke a waiter")
    kept = await store.message_queue.wait_for_answer(record.task_id, "a")
    require(kept == _YES, "a late answer replaced the first one")
    require(await store.answer_all("unknown", {"a": _YES}) == frozenset(), "an answer for an unknown task was taken")
    for outcome in OUTCOMES:
        ended = await store.finish_task((await _make(store, "a")).task_id, outcome)
        require(await store.answer_all(ended.task_id, {"a": _YES}) == frozenset(), "an ended task took an answer")
        await require_unchanged(store, ended, "an answer for an ended task")
    gone = await _make(store, "a", ttl_ms=1_000)
    bench.clock.advance(1)
    require(await store.answer_all(gone.task_id, {"a": _YES}) == frozenset(), "an expired task took an answer")


@_check("L5", "L1", needs=["questions"])
async def a_refused_question_changes_nothing(bench: StoreBench) -> None:
    store = _asking(bench)
    record = await _make(store, "open", "answered")
    await store.answer_all(record.task_id, {"answered": _YES})
    record = await read_task(store, record.task_id)
    before = await _open(store, record.task_id)
    other = QueuedMessage.request("open", "sampling/createMessage", {"other": True})
    for used in (other, question("answered")):
        require(await store.ask(record.task_id, used) is None, "a question with a used key was not refused")
    note = store.ask(record.task_id, QueuedMessage.notification("notifications/message", {}))
    await require_raises(ValueError, note, "asking a notification")
    await require_unchanged(store, record, "a refused question")
    require(await _open(store, record.task_id) == before, "a refused question changed the mailbox")
    for outcome in OUTCOMES:
        ended = await store.finish_task((await _make(store, "a")).task_id, outcome)
        for key in ("a", "new"):
            late = store.ask(ended.task_id, question(key))
            error = await require_raises(InvalidTransitionError, late, "asking for an ended task")
            require(error.current == outcome.status, "the error of a late question does not say how the task ended")
        await require_unchanged(store, ended, "a question for an ended task")
        require(await _open(store, ended.task_id) == (), "a question was left with an ended task")
    expired = await _make(store, ttl_ms=1_000)
    bench.clock.advance(1)
    for task_id in ("unknown", expired.task_id):
        missing = store.ask(task_id, question("k"))
        await require_raises(TaskNotFoundError, missing, "asking for a task that is unknown or has expired")
        require(await _open(store, task_id) == (), "a question was left with a task that does not exist")
        require(await store.get_view(task_id) is None, "get_view shows a task that does not exist")


@_check("L5", "L12", needs=["questions", "leases", "fences"])
async def a_run_that_lost_its_lease_asks_nothing(bench: StoreBench) -> None:
    store = _asking(bench)
    created = await leased_task(store)
    lost = fence_of(created)
    asked = await store.ask(created.task_id, question("a"), fence=lost)
    require(asked is not None, "the run that holds the lease could not ask")
    bench.clock.advance(10)
    claimed = await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    if claimed is None:
        raise AssertionError("a lost task with an open question cannot be claimed")
    require(claimed.status == "input_required", "a claim changed the status of a task with an open question")
    for key in ("a", "b"):  # also for a key that was used
        late = store.ask(created.task_id, question(key), fence=lost)
        await require_raises(LeaseLostError, late, "asking by a run that lost its lease")
    await require_unchanged(store, claimed, "a question of a run that lost its lease")
    require(await _open(store, created.task_id) == ("a",), "a question of a run that lost its lease is open")
    again = await store.ask(created.task_id, question("b"), fence=fence_of(claimed))
    require(again is not None, "the run that claimed a task could not ask")


# --- the end ------------------------------------------------------------------------------------------


@_check("L5", "L3", needs=["questions"])
async def finishing_releases_every_asker_in_the_same_step(bench: StoreBench) -> None:
    store = _asking(bench)
    queue = store.message_queue
    for end in (*OUTCOMES, None):
        record = await _make(store, "a", "b", "answered")
        await store.answer_all(record.task_id, {"answered": _YES})
        for _ in range(3):
            await queue.dequeue(record.task_id)
        waits: list[Callable[[], Awaitable[Any]]] = [
            partial(queue.wait_for_answer, record.task_id, "a"),
            partial(queue.wait_for_answer, record.task_id, "a"),
            partial(queue.wait_for_answer, record.task_id, "b"),
        ]
        if end is not None:  # of a deleted task nothing is left that could end a wait which begins later
            waits.append(partial(queue.wait_for_message, record.task_id))
        how = "deleted" if end is None else end.status
        async with bench.waiting(*waits) as askers:
            if end is None:
                await store.delete_task(record.task_id)
            else:
                await store.finish_task(record.task_id, end)
            for asker in askers:  # and nothing else is called
                released = bench.within(asker.wait(), f"an asker still waits though its task is {how}")
                await require_raises(TaskNotFoundError, released, f"waiting in a mailbox whose task is {how}")
        require(await _open(store, record.task_id) == (), f"a task that is {how} has open questions")
        require(await queue.is_empty(record.task_id), f"a task that is {how} has queued messages")
        if end is not None:
            late = bench.within(queue.wait_for_message(record.task_id), f"a wait begun in a task that is {how} goes on")
            await require_raises(TaskNotFoundError, late, f"waiting for a message of a task that is {how}")
        answer = queue.wait_for_answer(record.task_id, "answered")
        await require_raises(TaskNotFoundError, answer, f"reading an answer of a task that is {how}")
        view = await store.get_view(record.task_id)
        if end is None:
            require(view is None, "get_view shows a deleted task")
        else:
            require(view is not None and view.questions == (), f"get_view shows questions of a task that is {how}")


@_check("L5", "L12", needs=["questions", "leases", "fences"])
async def an_end_that_is_refused_leaves_the_questions(bench: StoreBench) -> None:
    store = _asking(bench)
    created = await leased_task(store)
    lost = fence_of(created)
    await store.ask(created.task_id, question("a"), fence=lost)
    bench.clock.advance(10)
    await store.claim_task(created.task_id, worker="two", lease_ms=10_000)
    wait = partial(store.message_queue.wait_for_answer, created.task_id, "a")
    async with bench.waiting(wait) as (asker,):
        late = store.finish_task(created.task_id, OUTCOMES[0], fence=lost)
        await require_raises(LeaseLostError, late, "finishing by a run that lost its lease")
        require(not asker.done(), "an end that was refused released an asker")
        require(await _open(store, created.task_id) == ("a",), "an end that was refused dropped a question")
        await store.answer_all(created.task_id, {"a": _YES})
        got = await bench.within(asker.wait(), "an asker was not woken after an end that was refused")
        require(got == _YES, f"after an end that was refused an asker got {got}")


# --- L6: cancellation, and overlapping ----------------------------------------------------------------


@_check("L6", "L5", needs=["questions"])
async def a_cancelled_question_or_answer_happened_in_full_or_not_at_all(bench: StoreBench) -> None:
    store = _asking(bench)
    changes: dict[str, Callable[[str], Awaitable[Any]]] = {
        "ask": lambda task_id: store.ask(task_id, question("k")),
        "answer_all": lambda task_id: store.answer_all(task_id, {"a": _YES, "b": _NO}),
        "finish_task": lambda task_id: store.finish_task(task_id, OUTCOMES[0]),
        "get_view": store.get_view,
    }
    for name, change in changes.items():

        async def setup(change: Callable[[str], Awaitable[Any]] = change) -> Trial:
            task_id = (await _make(store, "a", "b")).task_id
            return Trial(
                partial(change, task_id), partial(_view, store, task_id), leftovers=lambda: bench.clock.waiting
            )

        try:
            await check_cancellation(setup, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of {name}: {error}") from error


@_check("L5", "L6", "L2", needs=["questions"])
async def questions_and_answers_that_overlap_have_the_effect_of_some_sequence(bench: StoreBench) -> None:
    store = _asking(bench)

    async def setup(*kinds: str) -> Race:
        task_id = (await _make(store, "a", "b")).task_id

        async def ask() -> bool:
            return await store.ask(task_id, question("k")) is not None

        async def finish() -> str:
            return (await store.finish_task(task_id, OUTCOMES[0])).status

        async def answer(answers: dict[str, Answer]) -> list[str]:
            return sorted(await store.answer_all(task_id, answers))

        operations: dict[str, Callable[[], Awaitable[Any]]] = {
            "ask": ask,
            "answer one": partial(answer, {"a": _YES}),
            "answer both": partial(answer, {"a": _NO, "b": _YES}),
            "answer all": partial(answer, {"a": _NO, "b": _YES, "k": _YES}),
            "finish": finish,
        }
        return Race([operations[kind] for kind in kinds], partial(_view, store, task_id))

    for kinds in (
        ("ask", "ask"),
        ("ask", "answer both"),
        ("ask", "answer all", "finish"),
        ("answer one", "answer both"),
        ("answer both", "finish"),
    ):
        try:
            await check_interleavings(partial(setup, *kinds), limit=16, patience=bench.patience)
        except AssertionError as error:
            raise AssertionError(f"of the overlapping operations {', '.join(kinds)}: {error}") from error


@_check("L5", "L2", needs=["questions"])
async def a_view_never_shows_questions_that_belie_the_status(bench: StoreBench) -> None:
    store = _asking(bench)

    async def setup(kind: str) -> Race:
        task_id = (await _make(store, *(() if kind == "ask" else ("a",)))).task_id

        async def change() -> None:
            if kind == "ask":
                await store.ask(task_id, question("a"))
            elif kind == "answer":
                await store.answer_all(task_id, {"a": _YES})
            else:
                await store.finish_task(task_id, OUTCOMES[0])

        async def look() -> None:
            for _ in range(3):
                _require_true(await store.get_view(task_id))

        return Race([change, look], partial(_view, store, task_id))

    for kind in ("ask", "answer", "finish"):
        for found in await explore_interleavings(partial(setup, kind), limit=12, patience=bench.patience):
            for how, value in found.endings:
                require(
                    how == "returned", f"while a task changed ({kind}) get_view showed what was never true: {value}"
                )


@_check("L5", "L2", needs=["questions"])
async def of_many_that_ask_or_answer_exactly_one_wins(bench: StoreBench) -> None:
    store = _asking(bench)
    for _ in range(3):
        record = await _make(store)
        asked = await bench.race(*[partial(store.ask, record.task_id, question("k"))] * 6)
        won = [one for one in asked if isinstance(one, TaskRecord)]
        require(len(won) == 1, f"{len(won)} of 6 concurrent questions with one key were accepted, not one")
        await require_unchanged(store, won[0], "a question that came late")
        answers = [Answer.result({"n": n}) for n in range(6)]
        racers = [partial(store.answer_all, record.task_id, {"k": answer}) for answer in answers]
        endings = await bench.race(*racers)
        taken = [answer for answer, ending in zip(answers, endings, strict=True) if ending == frozenset({"k"})]
        require(len(taken) == 1, f"{len(taken)} of 6 concurrent answers to one question were taken, not one")
        kept = await store.message_queue.wait_for_answer(record.task_id, "k")
        require(kept == taken[0], "another answer is stored than the one that was taken")
        stored = await read_task(store, record.task_id)
        require(stored.revision == won[0].revision + 1, "answers that came late moved the revision")


# --- L8: cost -----------------------------------------------------------------------------------------


@_check("L8", needs=["questions"])
async def a_question_costs_the_same_among_many(bench: StoreBench) -> None:
    store = _asking(bench)
    rounds, count = 8, 0
    record = await _make(store)

    async def ask() -> None:
        nonlocal count
        for _ in range(rounds):
            count += 1
            await store.ask(record.task_id, question(f"{count}"))

    async def answer() -> None:
        await store.answer_all(record.task_id, {f"{count - n}": _YES for n in range(rounds)})

    async def measure() -> dict[str, int]:
        asking = await count_work(ask)
        return {"ask": asking, "answer_all": await count_work(answer)}

    async def populate(number: int) -> None:
        for _ in range(number):
            await _make(store, "k")
            await ask()
            await answer()

    await populate(1)
    few = await measure()
    await populate(40)
    many = await measure()
    for name, work in many.items():
        require(
            work <= 3 * few[name] + 400 * rounds,
            f"{name} costs {work} steps after 320 questions and {few[name]} after 8: it looks at all",
        )


@_check("L8", needs=["questions"])
async def answers_cost_in_proportion_to_their_number(bench: StoreBench) -> None:
    store = _asking(bench)
    costs: list[int] = []
    for number in (25, 100):
        keys = [f"{n}" for n in range(number)]
        record = await _make(store, *keys)
        answers = dict.fromkeys(keys, _YES)
        costs.append(await count_work(partial(store.answer_all, record.task_id, answers)))
        require((await read_task(store, record.task_id)).status == "working", "answered questions are still open")
    require(costs[1] <= 8 * costs[0] + 4_000, f"100 answers cost {costs[1]} steps and 25 cost {costs[0]}")


@_check("L8", needs=["questions"])
async def nothing_is_kept_of_questions_that_are_gone(bench: StoreBench) -> None:
    store = _asking(bench)

    async def live_and_die(number: int) -> None:
        task_id = (await _make(store, "a", "b", f"key {number}", ttl_ms=1_000)).task_id
        await store.answer_all(task_id, {"a": _YES})
        if number % 3:
            await store.finish_task(task_id, OUTCOMES[number % 3])
        if number % 2:
            await store.delete_task(task_id)
        else:
            bench.clock.advance(1)
            await store.get_view(task_id)
        await store.delete_task(task_id)

    await bench.require_nothing_kept(live_and_die, "tasks with questions")


# --- reopened, and shared -----------------------------------------------------------------------------


@_check("L12", "L5", needs=["questions", "durable"])
async def a_reopened_store_has_every_question_and_answer(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        first = able(opened, TaskQuestions)
        record = await _make(first, "a", "b")
        await first.answer_all(record.task_id, {"a": _YES})
        before = await first.get_view(record.task_id)
    async with bench.open_again() as opened:
        second = able(opened, TaskQuestions)
        require(await second.get_view(record.task_id) == before, "after reopening get_view shows another state")
        require(await second.ask(record.task_id, question("a")) is None, "after reopening a used key was used again")
        kept = await second.message_queue.wait_for_answer(record.task_id, "a")
        require(kept == _YES, "an answer is lost after reopening")
        await second.answer_all(record.task_id, {"b": _NO})
        require((await read_task(second, record.task_id)).status == "working", "an answer after reopening did nothing")


@_check("L5", "L3", needs=["questions", "shared"])
async def an_asker_is_woken_by_another_process(bench: StoreBench) -> None:
    store = _asking(bench)
    async with bench.open_again() as opened:
        other = able(opened, TaskQuestions)
        record = await _make(store, "a", "b")
        wait = partial(store.wait_for_update, record.task_id, after=record.revision)
        ask = partial(store.message_queue.wait_for_answer, record.task_id)
        async with bench.waiting(partial(ask, "a"), partial(ask, "b")) as (a, b), bench.waiting(wait) as (waiter,):
            require(await other.answer_all(record.task_id, {"a": _YES}) == {"a"}, "another process sees no question")
            got = await bench.within(a.wait(), "an asker was not woken by an answer in another process")
            require(got == _YES, f"an asker got {got} from another process")
            woken = await bench.within(waiter.wait(), "a waiter was not woken by an answer in another process")
            require(
                woken.revision == record.revision + 1,
                "an answer in another process did not add exactly one to the revision",
            )
            await other.finish_task(record.task_id, OUTCOMES[0])
            released = bench.within(b.wait(), "an asker was not released by the end in another process")
            await require_raises(TaskNotFoundError, released, "asking while another process ends the task")
