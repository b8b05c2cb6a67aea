"""The laws of `TaskStore`: all named checks in one list, and one call that runs them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from mcp_task_runtime.core.store import TaskStore
from mcp_task_runtime.testing.checks.bench import (
    BACKENDS,
    LISTING,
    Capability,
    Check,
    CheckReport,
    Factory,
    Footprint,
    run_checks,
)
from mcp_task_runtime.testing.checks.connecting import CONNECTING_CHECKS
from mcp_task_runtime.testing.checks.diagnosis import DIAGNOSIS_CHECKS
from mcp_task_runtime.testing.checks.ends import END_CHECKS
from mcp_task_runtime.testing.checks.fences import FENCE_CHECKS
from mcp_task_runtime.testing.checks.joins import JOIN_CHECKS
from mcp_task_runtime.testing.checks.journal import JOURNAL_CHECKS
from mcp_task_runtime.testing.checks.leases import LEASE_CHECKS
from mcp_task_runtime.testing.checks.owners import OWNER_CHECKS
from mcp_task_runtime.testing.checks.quotas import QUOTA_CHECKS
from mcp_task_runtime.testing.checks.search import SEARCH_CHECKS
from mcp_task_runtime.testing.checks.store_cost import STORE_COST_CHECKS
from mcp_task_runtime.testing.checks.store_life import STORE_LIFE_CHECKS
from mcp_task_runtime.testing.checks.store_listing import STORE_LISTING_CHECKS
from mcp_task_runtime.testing.checks.store_questions import QUESTION_STORE_CHECKS
from mcp_task_runtime.testing.checks.store_sharing import STORE_SHARING_CHECKS
from mcp_task_runtime.testing.checks.store_time import STORE_TIME_CHECKS
from mcp_task_runtime.testing.checks.store_values import STORE_VALUE_CHECKS
from mcp_task_runtime.testing.checks.store_waiting import STORE_WAITING_CHECKS
from mcp_task_runtime.testing.checks.sweeping import SWEEPING_CHECKS
from mcp_task_runtime.testing.checks.taking import TAKING_CHECKS
from mcp_task_runtime.testing.checks.unheld_leases import UNHELD_LEASE_CHECKS
from mcp_task_runtime.testing.checks.watching import WATCHING_CHECKS
from mcp_task_runtime.testing.checks.work import WORK_CHECKS

__all__ = ["ABILITY_CHECKS", "STORE_CHECKS", "check_task_store"]

STORE_CHECKS: Final[list[Check[TaskStore]]] = [
    *STORE_LIFE_CHECKS,
    *STORE_WAITING_CHECKS,
    *STORE_TIME_CHECKS,
    *STORE_COST_CHECKS,
    *STORE_LISTING_CHECKS,
    *STORE_SHARING_CHECKS,
    *LEASE_CHECKS,
]
"""The checks of a `TaskStore` and its leases, for a test runner that wants one test for each."""

ABILITY_CHECKS: Final[list[Check[TaskStore]]] = [
    *STORE_VALUE_CHECKS,
    *UNHELD_LEASE_CHECKS,
    *FENCE_CHECKS,
    *QUESTION_STORE_CHECKS,
    *OWNER_CHECKS,
    *JOIN_CHECKS,
    *QUOTA_CHECKS,
    *JOURNAL_CHECKS,
    *SEARCH_CHECKS,
    *WORK_CHECKS,
    *SWEEPING_CHECKS,
    *TAKING_CHECKS,
    *WATCHING_CHECKS,
    *END_CHECKS,
    *CONNECTING_CHECKS,
    *DIAGNOSIS_CHECKS,
]
"""The further checks of `check_task_store`: values, and the abilities that are declared."""


def check_task_store(
    factory: Factory[TaskStore],
    *,
    capabilities: Collection[Capability] = LISTING,
    backends: Collection[str] = BACKENDS,
    patience: float = 30.0,
    footprint: Footprint[TaskStore] | None = None,
) -> CheckReport:
    """Check every law that holds for any `TaskStore`, and for the abilities that are declared, on each event loop.

    Args:
        factory: Opens a store; see `Factory`.
        capabilities: What the store is able to do; see `Capability`. Checks that need more are left out.
        backends: The event loops, by their anyio names.
        patience: Seconds that something which must happen may take.
        footprint: Counts what the backend keeps; without it this process's memory is measured.

    Returns:
        What was checked and what was left out.

    Raises:
        AssertionError: A law is broken; the message says which and how, for each broken one.
        ValueError: A capability is unknown, or needs another that is not declared.
    """
    return run_checks(
        [*STORE_CHECKS, *ABILITY_CHECKS],
        factory,
        capabilities=capabilities,
        backends=backends,
        patience=patience,
        footprint=footprint,
    )
