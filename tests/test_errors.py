"""The errors of the library: one base, and a cause and cure for each."""

from __future__ import annotations

import inspect

import pytest

import mcp_task_runtime
from mcp_task_runtime import errors

ERRORS = [name for name in errors.__all__ if name != "TaskRuntimeError"]


@pytest.mark.parametrize("name", ERRORS)
def test_each_error_has_the_one_base_and_is_listed_with_its_cure(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.TaskRuntimeError)
    assert f"- `{name}`: " in (errors.__doc__ or "")


def test_every_error_of_the_module_is_exported() -> None:
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_imported_from_the_package(name: str) -> None:
    assert name in mcp_task_runtime.__all__
    assert getattr(mcp_task_runtime, name) is getattr(errors, name)
