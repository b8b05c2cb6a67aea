"""Every Python block of the README runs as it stands."""

from __future__ import annotations

import sys
import types

import anyio
import pytest

from tests.readme_blocks import README, python_blocks


@pytest.mark.parametrize("block", [pytest.param(block, id=heading) for heading, block in python_blocks(mcp_1=False)])
def test_a_block_of_the_readme_runs(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # annotations are looked up there
    exec(compile(block, str(README), "exec"), module.__dict__)
    if hasattr(module, "main"):

        async def main() -> None:
            with anyio.fail_after(20):
                await module.main()

        anyio.run(main)


def test_the_quickstart_of_the_readme_is_the_quickstart_of_the_examples() -> None:
    _, block = python_blocks(mcp_1=False)[0]
    tool = block[block.index("@tasks.tool()") :]
    assert tool in (README.parent / "examples" / "quickstart.py").read_text()
