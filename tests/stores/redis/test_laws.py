"""The shipped kit on a real Redis."""

from __future__ import annotations

from typing import get_args

import pytest

from mcp_task_runtime.core.message_queue import TaskMessageQueue
from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.testing.checks.bench import Capability, Check
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS, TaskBackend
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS
from mcp_task_runtime.testing.machine.machine import check_task_store_machine
from tests.stores.profile import PROFILE
from tests.stores.redis.parts import Opener

CAPABILITIES: tuple[Capability, ...] = get_args(Capability)


@pytest.mark.parametrize("check", [*STORE_CHECKS, *ABILITY_CHECKS], ids=str)
async def test_the_store_keeps_the_laws(check: Check[TaskStore], opener: Opener) -> None:
    await check.run(opener.store, footprint=opener.count_items)


@pytest.mark.parametrize("check", QUEUE_CHECKS, ids=str)
async def test_the_queue_keeps_the_laws(check: Check[TaskMessageQueue], opener: Opener) -> None:
    await check.run(opener.queue, footprint=opener.count_items)


@pytest.mark.parametrize("check", QUESTION_CHECKS, ids=str)
async def test_store_and_queue_keep_the_laws_together(check: Check[TaskBackend], opener: Opener) -> None:
    await check.run(opener.backend, footprint=opener.count_items)


@pytest.mark.parametrize("event_loop", ["asyncio", "trio"])
def test_random_stories_go_as_the_model_says(event_loop: str, opener: Opener) -> None:
    check_task_store_machine(
        opener.backend,
        capabilities=CAPABILITIES,
        backends=[event_loop],
        settings=PROFILE,
        races=False,
    )
