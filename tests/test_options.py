"""Every option is explained where a user looks for it, with its unit."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import mcp_task_runtime
from mcp_task_runtime import TaskSettings
from mcp_task_runtime.adapters._options import TaskOptions, TaskOptionsDict
from mcp_task_runtime.adapters.base_tasks import BaseTasks
from mcp_task_runtime.core.reruns import Rerun
from mcp_task_runtime.core.work_queue import WorkQueue
from mcp_task_runtime.operations.cli import main as mcp_tasks
from mcp_task_runtime.server import Tasks

README = Path(__file__).resolve().parents[1] / "README.md"
SOURCE = README.parent / "src" / "mcp_task_runtime"

EXPLAINED: list[Callable[..., Any]] = [TaskOptions, TaskSettings, Rerun, WorkQueue, Tasks.__init__]

# Options that have a duration, and no unit in their name: their unit is the second.
SECONDS = {"promote_after", "shutdown_grace", "inbox", "backoff", "max_backoff"}


def explanations(docstring: str | None) -> dict[str, str]:
    """Return what a Google docstring says of each argument or attribute."""
    section = re.search(r"^(Attributes|Args):\n((?:[ ]{4}.*\n|\n)+)", f"{docstring}\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): ((?:.*\n)(?:[ ]{8}.*\n)*)", section[2] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def options() -> Iterator[Any]:
    for explained in EXPLAINED:
        for name in inspect.signature(explained).parameters:
            if name != "self":
                yield pytest.param(explained, name, id=f"{explained.__qualname__}-{name}")


@pytest.mark.parametrize(("explained", "name"), list(options()))
def test_an_option_is_explained_with_its_unit(explained: Callable[..., Any], name: str) -> None:
    explanation = explanations(inspect.getdoc(explained))[name]
    if name.endswith("_ms"):
        assert re.search(r"\bmilliseconds\b", explanation, re.IGNORECASE)
    elif name in SECONDS:
        assert re.search(r"\bseconds\b", explanation, re.IGNORECASE)
    else:
        assert not re.search(r"\bin (milli)?seconds\b", explanation, re.IGNORECASE)


@pytest.mark.parametrize("explained", EXPLAINED, ids=lambda explained: explained.__qualname__)
def test_nothing_is_explained_that_is_no_option(explained: Callable[..., Any]) -> None:
    assert set(explanations(inspect.getdoc(explained))) <= set(inspect.signature(explained).parameters)


@pytest.mark.parametrize("setting", dataclasses.fields(TaskSettings), ids=lambda setting: setting.name)
def test_a_setting_is_explained_with_its_default(setting: dataclasses.Field[int | float | None]) -> None:
    default = "`None`" if setting.default is None else f"{setting.default:,}"
    said = re.search(r"Default: (\S+?)\.?( \(.*\)\.)?$", explanations(inspect.getdoc(TaskSettings))[setting.name])
    assert said is not None
    assert said[1] == default


def readme_options() -> dict[str, str]:
    table = README.read_text().split("Options of `tool`, `task`, `run` and `adopt`")[1].split("\n\n")[1]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))


def test_the_readme_has_a_row_for_each_option_of_a_tool() -> None:
    assert set(readme_options()) == {field.name for field in dataclasses.fields(TaskOptions)}
    assert set(readme_options()) == set(TaskOptionsDict.__annotations__)


@pytest.mark.parametrize("method", ["tool", "task", "run", "adopt"])
def test_each_method_that_makes_tasks_takes_each_option(method: str) -> None:
    """And `Tasks` of neither SDK line has a method of its own."""
    taken = inspect.signature(getattr(BaseTasks, method)).parameters["options"]
    assert (taken.kind, taken.annotation) == (taken.VAR_KEYWORD, "Unpack[TaskOptionsDict]")
    for line in ("mcp_v1", "mcp_v2"):
        assert f"def {method}(" not in (SOURCE / "adapters" / line / "_tasks.py").read_text()


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


# What the SDK has named: the rule of durations in the docstring of the package names both.
OF_THE_SDK = {"read_timeout_seconds", "request_read_timeout_seconds", "ttl"}

UNIT = re.compile(r"(?<!per)_(ns|us|millis|milliseconds|s|secs?|seconds?|mins?|minutes?|hours?|days?)$")


def public_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield each public function, argument and attribute of a module, with what a docstring says of it."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name, args=args) | ast.AsyncFunctionDef(name=name, args=args):
                if name == "__init__" or not name.startswith("_"):
                    said = explanations(ast.get_docstring(node))
                    names = [argument.arg for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
                    yield from ((each, said.get(each, "")) for each in (name, *names))
            case ast.ClassDef(body=body):
                said = explanations(ast.get_docstring(node))
                targets = [each.target for each in body if isinstance(each, ast.AnnAssign)]
                yield from ((each.id, said.get(each.id, "")) for each in targets if isinstance(each, ast.Name))


def breaks_the_rule_of_durations(name: str, said: str) -> bool:
    """Whether the name has another unit than `_ms`, or its explanation another one than its name."""
    units = set(re.findall(r"\b(milliseconds|seconds)\b", said.split(". ")[0].lower()))
    return bool(UNIT.search(name) or (units and ("milliseconds" in units) != name.endswith("_ms")))


def breaches(source: str) -> set[str]:
    """Return the public names of a module that break the rule of durations."""
    names = [(name, said) for name, said in public_names(source) if not name.startswith("_")]
    return {name for name, said in names if name not in OF_THE_SDK and breaks_the_rule_of_durations(name, said)}


@pytest.mark.parametrize("module", sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")))
def test_a_duration_is_in_seconds_or_its_name_ends_in_ms(module: str) -> None:
    assert breaches((SOURCE / module).read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "def wait(pause_seconds: float): ...",
        "class Settings:\n    longest_s: float = 1",
        "class Settings:\n    def rest_minutes(self): ...",
        'def wait(pause: float):\n    """Wait.\n\n    Args:\n        pause: How long, in milliseconds.\n    """',
        'class Settings:\n    """Some.\n\n    Attributes:\n        rest_ms: Seconds.\n    """\n    rest_ms: int',
    ],
)
def test_a_duration_against_the_rule_is_found(source: str) -> None:
    assert len(breaches(source)) == 1


def test_the_rule_of_durations_is_in_the_docstring_of_the_package() -> None:
    rule = " ".join((mcp_task_runtime.__doc__ or "").split())
    assert "a name that ends in `_ms` holds milliseconds" in rule
    assert "any other number is in seconds" in rule
    assert all(f"`{name}`" in rule for name in OF_THE_SDK if not name.startswith("request_"))
