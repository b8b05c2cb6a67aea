"""The index of the examples names each of them, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
EXAMPLES = TESTS.parent / "examples"
PARTS = {"everything_tools.py", "own_broker.py", "agents/server.py"}
"""What examples import or start; they do not run alone."""


def test_the_index_names_every_example_and_no_other() -> None:
    named = re.findall(r"(?<!\.)\b((?:agents/)?\w+\.py)\b", (EXAMPLES / "README.md").read_text())
    there = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert sorted(named) == sorted(there - PARTS), "each once"


PORTS = {"telemetry_prometheus.py"}
"""What serves at a port of its own."""


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_each_example_is_run_by_the_gate_or_by_a_test(example: str) -> None:
    head = (EXAMPLES / example).read_text().splitlines()[:10]
    is_marked = any(re.fullmatch(r"# ci: run( mcp1)?", line) for line in head)
    tests = [path for path in TESTS.rglob("test_*.py") if path.name not in ("test_claims.py", Path(__file__).name)]
    is_tested = any(f'"{example}"' in path.read_text() for path in tests)
    assert (is_marked or is_tested) != (example in PORTS | PARTS)
