from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import pytest
from hypothesis import Phase, given, settings

from mcp_task_runtime.core.transitions import is_terminal
from mcp_task_runtime.core.types import TaskRecord
from mcp_task_runtime.stores.memory import InMemoryTaskMessageQueue, InMemoryTaskStore
from mcp_task_runtime.testing import PROFILES, Capability, FakeClock, TaskBackend, check_task_store_machine, strategies
from mcp_task_runtime.testing.checks.bench import LISTING
from tests.kit.memory import ABILITIES, memory_backend
from tests.kit.mutants import MUTANTS, Mutant

NAME = os.environ.get("MCP_TASK_RUNTIME_PROFILE", "ci")
PROFILE = PROFILES[NAME]
# Hypothesis remembers each story of a run, so a long run is many runs.
ROUNDS = pytest.mark.parametrize("round", range(12 if NAME == "long" else 1))
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "trio"])


@ROUNDS
@LOOPS
def test_the_in_memory_backend_and_the_model_agree(loop: str, round: int) -> None:
    check_task_store_machine(memory_backend, capabilities=ABILITIES, backends=[loop], settings=PROFILE)


@ROUNDS
@LOOPS
def test_they_agree_when_reopened_and_shared_by_two_processes(loop: str, round: int) -> None:
    kept: dict[str, InMemoryTaskStore] = {}

    def factory(clock: FakeClock, location: str) -> AbstractAsyncContextManager[TaskBackend]:
        if location not in kept:
            kept.clear()
        store = kept.setdefault(location, InMemoryTaskStore(clock=clock))
        return nullcontext(TaskBackend(store, store.message_queue))

    capabilities: tuple[Capability, ...] = ("durable", "shared", *ABILITIES)
    check_task_store_machine(factory, capabilities=capabilities, backends=[loop], settings=PROFILE)


@LOOPS
def test_a_store_and_a_queue_of_different_makers_and_the_model_agree(loop: str) -> None:
    @asynccontextmanager
    async def factory(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with InMemoryTaskStore(clock=clock) as store, InMemoryTaskMessageQueue() as queue:
            yield TaskBackend(store, queue)

    check_task_store_machine(factory, capabilities=LISTING, backends=[loop], settings=PROFILE)


FOUND_BY_STORIES: dict[str, tuple[Capability, ...]] = {  # the checks find them all; these, a few dozen stories do, too
    "OnlyTheLastWaiterWakes": ABILITIES,
    "AChangeBeforeTheWaitIsLost": ABILITIES,
    "FinishingExtendsTheTTLInTheAnswerOnly": ABILITIES,
    "EveryFinisherThatLookedInTimeWins": ABILITIES,
    "ADequeuedQuestionIsNoMoreOutstanding": LISTING,
    "ACancelledAskerLeavesItsQuestion": LISTING,
}


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.name in FOUND_BY_STORIES], ids=str)
def test_a_story_is_found_that_shows_the_fault(mutant: Mutant) -> None:
    @asynccontextmanager
    async def factory(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with mutant.factory(clock, location) as opened:
            match opened:
                case TaskBackend():
                    yield opened
                case InMemoryTaskMessageQueue():
                    async with InMemoryTaskStore(clock=clock) as store:
                        yield TaskBackend(store, opened)
                case store:
                    yield TaskBackend(store, store.message_queue)

    without_shrinking = settings(PROFILES["ci"], max_examples=300, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        check_task_store_machine(
            factory,
            capabilities=FOUND_BY_STORIES[mutant.name],
            backends=["asyncio"],
            settings=without_shrinking,
            patience=1.0,
        )


def test_the_story_that_shows_a_fault_is_short_and_readable() -> None:
    (mutant,) = [one for one in MUTANTS if one.name == "AnEndedTaskCanBeUpdated"]

    @asynccontextmanager
    async def factory(clock: FakeClock, location: str) -> AsyncIterator[TaskBackend]:
        async with mutant.factory(clock, location) as store, InMemoryTaskMessageQueue() as queue:
            yield TaskBackend(store, queue)

    with pytest.raises(AssertionError) as failure:
        check_task_store_machine(
            factory,
            capabilities=LISTING,
            backends=["asyncio"],
            settings=settings(
                PROFILES["ci"], max_examples=3_000, stateful_step_count=5, phases=[Phase.generate, Phase.shrink]
            ),
        )
    story = "\n".join(getattr(failure.value, "__notes__", []))
    if story:  # from Python 3.11 on; before, Hypothesis prints it
        steps = [line for line in story.splitlines() if "state." in line and "state.compare()" not in line]
        assert len(steps) <= 7, story
        assert "tasks_0 = state.create(" in story


@given(strategies.task_records())
def test_each_task_of_the_strategy_could_have_been_kept_by_a_store(record: TaskRecord) -> None:
    assert (record.outcome is not None) == is_terminal(record.status)
    assert record.task.last_updated_at >= record.task.created_at
    assert record.revision >= 1
