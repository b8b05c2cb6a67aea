"""What the SDK's own experiment has is here by the same name, or in the tables that say what to write instead."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest
from mcp.client.experimental.tasks import ExperimentalClientFeatures
from mcp.client.session import ClientSession
from mcp.server.experimental.task_context import ServerTaskContext

import mcp_task_runtime
from mcp_task_runtime.adapters import mcp_v1, mcp_v1_client

PACKAGES = ("mcp.server.experimental", "mcp.shared.experimental.tasks")


def named(docstring: str | None) -> set[str]:
    """Return the names in the first column of the tables of a docstring; one that ends in `_…` stands for all."""
    columns = re.findall(r"^\| (.*?) \|", docstring or "", re.MULTILINE)
    return set(re.findall(r"[A-Za-z_]\w+…?", " ".join(columns)))


def names() -> Iterator[tuple[str, str]]:
    """Yield each public class, function and member of the experiment, with the class it belongs to."""
    for package in PACKAGES:
        folder: Any = importlib.import_module(package)
        for found in pkgutil.iter_modules(folder.__path__, f"{package}."):
            module = importlib.import_module(found.name)
            for name, value in vars(module).items():
                is_own = getattr(value, "__module__", None) == module.__name__
                if is_own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
                    yield "", name
                    members = vars(value) if inspect.isclass(value) else {}
                    yield from ((name, member) for member in members if not member.startswith("_"))


@pytest.mark.parametrize(("of", "name"), sorted(set(names())))
def test_each_name_of_the_sdks_experiment_is_in_the_table(of: str, name: str) -> None:
    ours = getattr(mcp_task_runtime, of, None) if of else mcp_task_runtime
    table = named(mcp_v1.__doc__)
    in_table = name in table or any(name.startswith(each[:-1]) for each in table if each.endswith("_…"))
    assert in_table or hasattr(ours, name)


@pytest.mark.parametrize("name", [name for name in vars(ExperimentalClientFeatures) if not name.startswith("_")])
def test_what_the_sdks_session_does_with_tasks_is_in_the_table_of_the_client(name: str) -> None:
    assert name in named(mcp_v1_client.__doc__)


def test_the_names_with_a_unit_of_their_own_are_the_sdks() -> None:
    for method in ("elicit_as_task", "create_message_as_task"):
        theirs, ours = (
            inspect.signature(getattr(context, method)).parameters["ttl"]
            for context in (ServerTaskContext, mcp_task_runtime.ServerTaskContext)
        )
        assert ours.default == theirs.default == 60_000
    assert "read_timeout_seconds" in inspect.signature(ClientSession.call_tool).parameters
