"""Backends with one fault each, to show that the kit finds it.

A mutant is the in-memory backend, or the code above it, with as little changed as makes the fault. Those that
carry a number have that fault of the SDK's own runtime. A file for each thing that is mutated.
"""

from __future__ import annotations

from tests.kit.mutants import (
    fences,
    joins,
    journal,
    leases,
    owners,
    questions,
    queue,
    quotas,
    search,
    store_life,
    store_questions,
    store_time,
    values,
    work,
)
from tests.kit.mutants.registry import MUTANTS, Mutant

__all__ = [
    "MUTANTS",
    "Mutant",
    "fences",
    "joins",
    "journal",
    "leases",
    "owners",
    "questions",
    "queue",
    "quotas",
    "search",
    "store_life",
    "store_questions",
    "store_time",
    "values",
    "work",
]
