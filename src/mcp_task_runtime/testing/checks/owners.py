"""The laws of `TaskOwners`, as named checks: a task of another owner is an unknown one (law L10)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from mcp_task_runtime.core.message_queue import Answer
from mcp_task_runtime.core.store import TaskOwners, TaskQuestions, TaskStore
from mcp_task_runtime.core.transitions import TERMINAL_STATUSES
from mcp_task_runtime.core.types import NewTask, TaskRecord
from mcp_task_runtime.core.views import TaskView
from mcp_task_runtime.testing.checks.abilities import AbleStore, able, question
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import OUTCOMES, StoreBench
from mcp_task_runtime.testing.concurrency.interleaving import Race, explore_interleavings

__all__ = ["OWNER_CHECKS"]

OWNER_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(OWNER_CHECKS)

_OWNERS: Final = ("ada", "Ada", "ada ", "", "None", "grüß 🌍", None)
_NO_OWNER: Final = "\ud800"  # no owner has a name that is no Unicode


async def _require_found_by_its_owner_alone(store: AbleStore, record: TaskRecord, wanted: TaskView) -> None:
    for owner in (*_OWNERS, _NO_OWNER, record.task_id):
        found = await store.get_owned(record.task_id, owner=owner)
        if owner == record.owner:
            require(found == wanted, f"get_owned shows its owner {found} and must show {wanted}")
        else:
            require(found is None, f"get_owned shows {owner!r} a task of {record.owner!r}")


async def _require_gone(store: AbleStore, task_id: str, owner: str | None, why: str) -> None:
    require(await store.get_owned(task_id, owner=owner) is None, f"get_owned shows a task that {why}")


@_check("L10", needs=["owners"])
async def a_task_is_found_for_its_owner_alone(bench: StoreBench) -> None:
    store = able(bench.subject, TaskOwners)
    for number, owner in enumerate(_OWNERS):
        record = await store.create_task(NewTask(ttl_ms=60_000, owner=owner))
        await _require_found_by_its_owner_alone(store, record, TaskView(record))
        record = await store.update_task(record.task_id, status_message="on it")
        await _require_found_by_its_owner_alone(store, record, TaskView(record))
        record = await store.finish_task(record.task_id, OUTCOMES[number % 3])
        await _require_found_by_its_owner_alone(store, record, TaskView(record))


@_check("L10", "L7", needs=["owners"])
async def a_task_that_is_gone_is_found_for_no_owner(bench: StoreBench) -> None:
    store = able(bench.subject, TaskOwners)
    for owner in ("ada", None):
        for task_id in ("never-made", "", "x" * 500, "\ud800", "\0"):
            await _require_gone(store, task_id, owner, "was never made")
        deleted = await store.create_task(NewTask(ttl_ms=None, owner=owner))
        await store.delete_task(deleted.task_id)
        await _require_gone(store, deleted.task_id, owner, "was deleted")
        expired = await store.create_task(NewTask(ttl_ms=1_000, owner=owner))
        bench.clock.advance(1)
        await _require_gone(store, expired.task_id, owner, "has expired")
        again = await store.create_task(NewTask(ttl_ms=None, task_id=expired.task_id, owner="eve"))
        await _require_found_by_its_owner_alone(store, again, TaskView(again))
        await _require_gone(store, again.task_id, owner, "has the identifier of one that has expired")


@_check("L10", "L5", needs=["owners", "questions"])
async def an_owner_sees_the_open_questions_of_its_task(bench: StoreBench) -> None:
    store = able(bench.subject, TaskOwners, TaskQuestions)
    for owner in ("ada", None):
        record = await store.create_task(NewTask(ttl_ms=None, owner=owner))
        asked: Any = None
        for key in ("a", "b"):
            asked = await store.ask(record.task_id, question(key))
        await _require_found_by_its_owner_alone(store, asked, TaskView(asked, (question("a"), question("b"))))
        await store.answer_all(record.task_id, {"a": Answer.result({})})
        view = await store.get_owned(record.task_id, owner=owner)
        require(
            view is not None and view.questions == (question("b"),),
            f"after an answer get_owned shows {view}, and one question is open",
        )
        ended = await store.finish_task(record.task_id, OUTCOMES[0])
        await _require_found_by_its_owner_alone(store, ended, TaskView(ended))


@_check("L5", "L2", needs=["owners", "questions"])
async def an_owner_never_sees_questions_that_belie_the_status(bench: StoreBench) -> None:
    store = able(bench.subject, TaskOwners, TaskQuestions)

    async def setup(kind: str) -> Race:
        task_id = (await store.create_task(NewTask(ttl_ms=None, owner="ada"))).task_id
        if kind != "ask":
            await store.ask(task_id, question("a"))

        async def change() -> None:
            if kind == "ask":
                await store.ask(task_id, question("a"))
            elif kind == "answer":
                await store.answer_all(task_id, {"a": Answer.result({})})
            else:
                await store.finish_task(task_id, OUTCOMES[0])

        async def look() -> None:
            for _ in range(3):
                _require_true(await store.get_owned(task_id, owner="ada"))

        return Race([change, look], partial(_status, store, task_id))

    for kind in ("ask", "answer", "finish"):
        for found in await explore_interleavings(partial(setup, kind), limit=12, patience=bench.patience):
            for how, value in found.endings:
                require(
                    how == "returned", f"while a task changed ({kind}) get_owned showed what was never true: {value}"
                )


def _require_true(view: TaskView | None) -> None:
    if view is None:
        raise AssertionError("get_owned does not find a task that exists")
    keys, status = [one.key for one in view.questions], view.record.status
    wanted = status if status in TERMINAL_STATUSES and not keys else "input_required" if keys else "working"
    require(status == wanted, f"it shows the open questions {keys} of a task that is {status!r}")


async def _status(store: AbleStore, task_id: str) -> object:
    record = await store.get_task(task_id)
    return None if record is None else record.status
