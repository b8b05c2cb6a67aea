"""Every option is explained where a user looks for it, with its unit."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters._options import TaskOptions, TaskOptionsDict
from mcp_task_runtime.core.reruns import Rerun
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.operations.cli import main as mcp_tasks
from mcp_task_runtime.server import Tasks

README = Path(__file__).resolve().parents[1] / "README.md"

EXPLAINED: list[Callable[..., Any]] = [TaskOptions, TaskSettings, Rerun, WorkQueue, Tasks.__init__]

# Options that have a duration, and no unit in their name: their unit is the second.
SECONDS = {"promote_after", "shutdown_grace", "inbox", "backoff", "max_backoff"}


def explanations(of: Callable[..., Any]) -> dict[str, str]:
    """Return what a Google docstring says of each argument or attribute."""
    section = re.search(r"^(Attributes|Args):\n((?:[ ]{4}.*\n|\n)+)", inspect.getdoc(of) or "", re.MULTILINE)
    assert section is not None
    entries = re.findall(r"^    (\w+): ((?:.*\n)(?:[ ]{8}.*\n)*)", section[2], re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def options() -> Iterator[Any]:
    for explained in EXPLAINED:
        for name in inspect.signature(explained).parameters:
            if name != "self":
                yield pytest.param(explained, name, id=f"{explained.__qualname__}-{name}")


@pytest.mark.parametrize(("explained", "name"), list(options()))
def test_an_option_is_explained_with_its_unit(explained: Callable[..., Any], name: str) -> None:
    explanation = explanations(explained)[name]
    if name.endswith("_ms"):
        assert re.search(r"\bmilliseconds\b", explanation, re.IGNORECASE)
    elif name in SECONDS:
        assert re.search(r"\bseconds\b", explanation, re.IGNORECASE)
    else:
        assert not re.search(r"\bin (milli)?seconds\b", explanation, re.IGNORECASE)


@pytest.mark.parametrize("explained", EXPLAINED, ids=lambda explained: explained.__qualname__)
def test_nothing_is_explained_that_is_no_option(explained: Callable[..., Any]) -> None:
    assert set(explanations(explained)) <= set(inspect.signature(explained).parameters)


@pytest.mark.parametrize("setting", dataclasses.fields(TaskSettings), ids=lambda setting: setting.name)
def test_a_setting_is_explained_with_its_default(setting: dataclasses.Field[int | float | None]) -> None:
    default = "`None`" if setting.default is None else f"{setting.default:,}"
    said = re.search(r"Default: (\S+?)\.?( \(.*\)\.)?$", explanations(TaskSettings)[setting.name])
    assert said is not None
    assert said[1] == default


def readme_options() -> dict[str, str]:
    table = README.read_text().split("Options of `tool`, `task`, `run` and `adopt`")[1].split("\n\n")[1]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


def test_the_readme_has_a_row_for_each_option_of_a_tool() -> None:
    assert set(readme_options()) == {field.name for field in dataclasses.fields(TaskOptions)}
    assert set(readme_options()) == set(TaskOptionsDict.__annotations__)


@pytest.mark.parametrize(("name", "meaning"), sorted(readme_options().items()))
def test_the_readme_names_the_unit_of_an_option(name: str, meaning: str) -> None:
    assert ("milliseconds" in meaning) == name.endswith("_ms")
    assert (" seconds " in f" {meaning} ") == (name in SECONDS)


@pytest.mark.parametrize("line", sorted(set(re.findall(r"mcp-tasks (\w[^\n`;#]*)", README.read_text()))))
def test_a_command_of_the_readme_has_the_options_that_are_shown(line: str) -> None:
    name, *words = line.split()
    command = mcp_tasks.get_command(click.Context(mcp_tasks), name)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def commands() -> Iterator[Any]:
    for name, command in mcp_tasks.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield pytest.param(parameter, id=f"{name}{parameter.opts[0]}")


@pytest.mark.parametrize("option", list(commands()))
def test_an_option_of_a_command_says_what_it_does(option: click.Option) -> None:
    assert option.help
    assert option.help.endswith(".")
