"""Texts that tasks share: one object for what many clients say alike, and nothing kept of what they no longer say."""

from __future__ import annotations

import ast
import tracemalloc
from pathlib import Path

import mcp_task_runtime
from mcp_task_runtime.core.text import shared_text

SOURCE = Path(mcp_task_runtime.__file__).parent


def test_tasks_whose_clients_say_the_same_share_one_text() -> None:
    first, second = ("".join(["declared by ", str(number - number)]) for number in (1, 2))
    assert first is not second
    assert shared_text(first) is shared_text(second)


def test_what_clients_said_is_not_kept_however_much_it_was() -> None:
    tracemalloc.start()
    try:
        for number in range(5_000):
            shared_text(f"{number:01000}")
            assert len(shared_text(f"{number:09000}")) == 9_000
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


def test_no_text_is_interned_which_python_3_12_would_never_free() -> None:
    found = {
        path.name
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "intern")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "intern" for alias in node.names))
    }
    assert not found
