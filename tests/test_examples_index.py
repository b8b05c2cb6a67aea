"""The index of the examples names each of them, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PARTS = {"everything_tools.py", "agents/server.py"}
"""What examples import or start; they do not run alone."""


def test_the_index_names_every_example_and_no_other() -> None:
    named = re.findall(r"(?<!\.)\b((?:agents/)?\w+\.py)\b", (EXAMPLES / "README.md").read_text())
    there = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert sorted(named) == sorted(there - PARTS), "each once"
