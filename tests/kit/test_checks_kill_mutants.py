from __future__ import annotations

from typing import Any

import pytest

from mcp_task_runtime.testing.checks.bench import Check
from mcp_task_runtime.testing.checks.questions import QUESTION_CHECKS
from mcp_task_runtime.testing.checks.queue import QUEUE_CHECKS
from mcp_task_runtime.testing.checks.store import ABILITY_CHECKS, STORE_CHECKS
from tests.kit.mutants import MUTANTS, Mutant
from tests.support.event_loops import virtual_time

__all__ = ["virtual_time"]  # a fixture

CHECKS: dict[str, dict[str, Check[Any]]] = {
    kind: {check.name: check for check in checks}
    for kind, checks in (
        ("store", [*STORE_CHECKS, *ABILITY_CHECKS]),
        ("queue", QUEUE_CHECKS),
        ("backend", QUESTION_CHECKS),
    )
}
PATIENCE = 0.25  # what never happens is waited for this long


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
async def test_each_fault_is_found_by_the_checks_made_for_it(mutant: Mutant) -> None:
    for killer in mutant.killers:
        check = CHECKS[mutant.kind][killer]
        with pytest.raises(AssertionError, match=rf"^{' and '.join(check.laws)} broken \({killer}\): ") as found:
            await check.run(mutant.factory, patience=PATIENCE)
        # Found by the fault, and not because the mutant no longer fits the class it changes.
        assert not isinstance(found.value.__cause__, AttributeError | NameError | TypeError)


@pytest.mark.parametrize("law", [*(f"L{number}" for number in range(1, 9)), "L10", "L12"])
def test_each_law_is_named_by_a_check_that_kills_a_mutant(law: str) -> None:
    checks = [check for checks in CHECKS.values() for check in checks.values() if law in check.laws]
    killers = {killer for mutant in MUTANTS for killer in mutant.killers}
    assert killers.intersection(check.name for check in checks)


ABILITIES = {"connecting", "diagnosis", "ends", "fences", "joins", "journal", "leases", "owners", "questions"} | {
    "quotas",
    "search",
    "sweeping",
    "taking",
    "watching",
    "work",
}


def test_each_check_of_an_unconditional_law_or_of_an_ability_kills_a_mutant() -> None:
    killers = {(mutant.kind, killer) for mutant in MUTANTS for killer in mutant.killers}
    idle = {
        check.name
        for kind, checks in CHECKS.items()
        for check in checks.values()
        if (kind, check.name) not in killers
        and (check.needs & (ABILITIES - {"listing"}) or not check.needs - ABILITIES)
    }
    assert idle == set()


def test_each_fault_that_a_backend_can_have_has_a_mutant() -> None:
    # 5, 9, 14, 16, 17, 19, 22, 23 are faults of a runtime, a wire or an adapter: see `test_runtime_mutants.py`.
    assert {mutant.fault for mutant in MUTANTS if mutant.fault} == {1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 15, 18, 20, 21}
