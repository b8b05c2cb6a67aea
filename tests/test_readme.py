"""Every Python block of the README runs as it stands, and what it says of examples and numbers is so."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types

import anyio
import pytest
from typing_extensions import get_protocol_members

from mcp_task_runtime import ServerTaskContext, TaskSettings, TaskStore
from tests.readme_blocks import README, python_blocks
from tests.support.patience import PATIENCE


@pytest.mark.parametrize("block", [pytest.param(block, id=heading) for heading, block in python_blocks(mcp_1=False)])
def test_a_block_of_the_readme_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are looked up there
    exec(compile(block, str(README), "exec"), module.__dict__)
    if hasattr(module, "main"):

        async def main() -> None:
            with anyio.fail_after(PATIENCE):
                await module.main()

        anyio.run(main)


def test_the_quickstart_of_the_readme_is_the_quickstart_of_the_examples() -> None:
    _, block = python_blocks(mcp_1=False)[0]
    tool = block[block.index("@tasks.tool()") :]
    assert tool in (README.parent / "examples" / "quickstart.py").read_text()


def test_the_quickstart_prints_what_the_readme_shows() -> None:
    """Which messages a client sees between two changes is a matter of time; the changes are not."""
    (shown,) = re.findall(r"^```\n(calling build_report\n.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    command = [sys.executable, str(README.parent / "examples" / "quickstart.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    printed = iter(line.partition(":")[0] if line.startswith("  ") else line for line in done.stdout.splitlines())
    for line in shown.splitlines():
        assert (line.partition(":")[0] if line.startswith("  ") else line) in printed
    assert "the server asks: Publish it?" in done.stdout


def test_work_can_call_what_the_readme_lists() -> None:
    table = README.read_text().split("| call | what it does |")[1].split("\n\n")[0]
    calls = re.findall(r"`(\w+)(\(.*?\))?`", " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert len(calls) >= 10
    for name, arguments in calls:
        method = inspect.getattr_static(ServerTaskContext, name)
        assert isinstance(method, property) == (arguments == ""), name
        if arguments:
            parameters = inspect.signature(getattr(ServerTaskContext, name)).parameters
            named = [each.strip("* ") for each in arguments[1:-1].split(",") if each]
            assert len(named) < len(parameters)
            assert {each.removesuffix("=…") for each in named if each.endswith("=…")} <= set(parameters)


def test_a_store_has_as_many_members_as_the_readme_says() -> None:
    assert len(get_protocol_members(TaskStore)) == 9
    assert "implements the nine members of `TaskStore`" in " ".join(README.read_text().split())


def test_the_grace_of_a_shutdown_is_as_long_as_the_readme_says() -> None:
    assert TaskSettings().shutdown_grace == 1
    assert "`shutdown_grace` (1 second)" in README.read_text()


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.read_text().splitlines()) <= 300
