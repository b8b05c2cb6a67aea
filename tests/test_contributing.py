"""What `.github` says of the repository holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / ".github").glob("*.md"))
PLACES = (ROOT, ROOT / "src", ROOT / "src" / "mcp_task_runtime")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`([\w.]+(?:/[\w.]+)+/?)`", page.read_text())
    missing = [path for path in named if not any((place / path).exists() for place in PLACES)]
    assert missing == []


def test_the_commands_of_the_page_for_contributors_name_what_is_there() -> None:
    page = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    commands = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    paths = re.findall(r"\b(tests/[\w/.]+)", "".join(commands))
    assert len(paths) >= 3
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_lint_tools_of_the_hooks_are_those_of_the_lint_group() -> None:
    group = re.search(r"^lint = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)
    assert group is not None
    tools = set(re.findall(r'"(\w+)', group[1]))
    hooks = set(re.findall(r"entry: (\w+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert hooks <= tools
