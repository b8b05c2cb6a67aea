"""The rules of `TaskDiagnosis`, as named checks: what a store says of its backend can be shown, and changes nothing."""

from __future__ import annotations

from typing import Final

from mcp_task_runtime.core.store import TaskDiagnosis, TaskStore
from mcp_task_runtime.core.types import Finding, NewTask
from mcp_task_runtime.errors import StoreError
from mcp_task_runtime.testing.checks.abilities import able, require_unchanged
from mcp_task_runtime.testing.checks.bench import Check, checks_into, require
from mcp_task_runtime.testing.checks.store_bench import StoreBench

__all__ = ["DIAGNOSIS_CHECKS"]

DIAGNOSIS_CHECKS: Final[list[Check[TaskStore]]] = []

_check = checks_into(DIAGNOSIS_CHECKS)


@_check("L4", needs=["diagnosis"])
async def a_diagnosis_says_something_of_each_subject_once(bench: StoreBench) -> None:
    store = bench.subject
    created = await store.create_task(NewTask(ttl_ms=None))
    findings = await able(store, TaskDiagnosis).diagnose()
    require(isinstance(findings, tuple), f"diagnose returned a {type(findings).__name__} and not a tuple")
    require(findings, "diagnose returned nothing")
    for finding in findings:
        require(isinstance(finding, Finding), f"diagnose returned a {type(finding).__name__} among its findings")
        require(finding.level in ("ok", "warning", "error"), f"a finding has the level {finding.level!r}")
        for text in (finding.subject, finding.text):
            require(bool(text) and text.isprintable(), f"a finding says {text!r}, which no terminal shows on one line")
    subjects = [finding.subject for finding in findings]
    require(len(set(subjects)) == len(subjects), f"diagnose has more than one finding of a subject: {subjects}")
    await require_unchanged(store, created, "diagnose")


@_check("L13", needs=["diagnosis"])
async def a_closed_store_cannot_be_diagnosed(bench: StoreBench) -> None:
    async with bench.open_again() as opened:
        store = able(opened, TaskDiagnosis)
        await store.diagnose()
    try:
        await store.diagnose()
    except StoreError:
        return
    raise AssertionError("diagnosing a closed store raised no StoreError")
