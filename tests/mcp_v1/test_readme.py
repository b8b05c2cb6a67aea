"""Every Python block of the README for `mcp` 1.x runs as it stands."""

from __future__ import annotations

import sys
import types

import pytest

from tests.readme_blocks import README, python_blocks


@pytest.mark.parametrize("block", [pytest.param(block, id=heading) for heading, block in python_blocks(mcp_1=True)])
def test_a_block_of_the_readme_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are looked up there
    exec(compile(block, str(README), "exec"), module.__dict__)
    assert hasattr(module, "tasks")
