"""Every wire rule of revision 2025-11-25 on `mcp` 1.x, by a client that knows no SDK."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.mcp_v1.scenarios import SCENARIOS, World
from tests.mcp_v1.worlds import make_world


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
async def test_it_holds_that(scenario: Callable[[World], Awaitable[None]]) -> None:
    world = make_world()
    async with world.tasks:  # type: ignore[attr-defined]
        await scenario(world)
