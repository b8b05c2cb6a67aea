"""The import law: who in `src` may import whom, and where an SDK or a driver may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = "mcp_task_runtime"
SOURCE = Path(__file__).resolve().parent.parent / "src" / PACKAGE
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

# Layer -> the layers it may import. A layer is a folder, or a module, at the top of the package.
LAYERS = {
    "errors": set[str](),
    "core": {"core", "errors"},
    "stores": {"core", "errors", "stores"},
    "wire": {"core", "errors", "wire"},
    "adapters": {"adapters", "core", "errors", "stores", "wire"},
    "engines": {"core", "engines", "errors"},
    "client": {"adapters"},
    "server": {"adapters"},
    "operations": {"core", "errors", "operations", "stores", "wire"},
    "testing": {"adapters", "core", "errors", "stores", "testing"},
    "__main__": {"operations"},
    "__init__": {"adapters", "core", "errors", "stores", "wire"},
}

# `wire` renders and parses values: of `core` it knows the values alone, nothing that runs or stores them.
WIRE_MAY_USE = {
    f"{PACKAGE}.{module}"
    for module in ("core.json", "core.message_queue", "core.types", "core.views", "errors", "wire")
}

DEPENDENCIES = {"anyio", "pydantic", "pydantic_core", "typing_extensions"}

# Modules -> what they may import beyond our dependencies.
EXTRAS = {
    "core/causes.py": {"asyncio"},  # its class of cancellations, which the work of any task may raise
    "core/group.py": {"asyncio"},  # a task of its own costs a third of one in a task group
    "core/event_loop.py": {"asyncio", "sniffio", "trio"},  # does what anyio cannot, or only at a higher cost
    "core/signal.py": {"asyncio"},  # a future where an event costs ten times as much
    "adapters/credentials.py": {"cryptography"},
    "adapters/mcp_v1*/*": {"mcp", "starlette"},
    "adapters/mcp_v1/_schemas.py": {"jsonschema"},  # a dependency of mcp 1.x, which validates with it
    "adapters/mcp_v2*/*": {"mcp", "mcp_types", "starlette"},
    "engines/_celery_pool.py": {"asyncio", "billiard", "celery", "kombu"},
    "engines/_loop_jobs.py": {"asyncio"},  # the event loop of a worker of Celery
    "engines/_procrastinate_jobs.py": {"procrastinate", "psycopg"},  # several statements at once, as rows of names
    "engines/_running.py": {"asyncio"},
    "operations/_signals.py": {"asyncio"},  # passes on the signals that its event loops do not handle on Windows
    "engines/celery.py": {"asyncio", "celery", "kombu"},  # a worker has an event loop of its own
    "engines/docket.py": {"asyncio", "docket"},  # the engine runs on nothing else
    "engines/procrastinate.py": {"asyncio", "procrastinate", "psycopg_pool"},  # the engine's own pool
    "operations/_asking.py": {"click"},
    "operations/_command.py": {"click"},
    "operations/_figures.py": {"rich"},
    "operations/_rendering.py": {"click", "rich"},
    "operations/_watching.py": {"click", "rich"},
    "operations/cli.py": {"click", "rich"},
    "operations/web/*": {"jinja2", "markupsafe", "starlette", "uvicorn"},
    "operations/telemetry/*": {"opentelemetry"},
    "stores/redis/*": {"coredis"},
    "stores/sealed/*": {"cryptography"},
    "stores/postgres/*": {"psycopg", "psycopg_pool"},
    "testing/*": {"hypothesis"},
}

# We run on every event loop that anyio knows: a module that names one needs a line in the table above.
EVENT_LOOPS = {"asyncio", "trio"}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in a module, `from a import b` as `a.b`."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"relative import in line {node.lineno}"
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def layer_of(module: str) -> str:
    """Return the layer of a module, given by its path inside the package."""
    return module.partition("/")[0].removesuffix(".py")


def breaches(module: str, source: str) -> list[str]:
    """Return what a module imports against the law."""
    may_use = LAYERS[layer_of(module)]
    extras = {name for pattern, names in EXTRAS.items() if fnmatch(module, pattern) for name in names}
    found = []
    for name in imported_names(ast.parse(source)):
        top, *rest = name.split(".")
        if top == PACKAGE:
            # A name that is no layer is one of the package's public names, which `__init__` gathers.
            layer = rest[0] if rest and rest[0] in LAYERS else "__init__"
            allowed = layer in may_use
            if layer_of(module) == "wire":
                allowed = any(f"{name}.".startswith(f"{part}.") for part in WIRE_MAY_USE)
        elif top in EVENT_LOOPS or top not in sys.stdlib_module_names | DEPENDENCIES:
            allowed = top in extras
        else:
            allowed = True
        if not allowed:
            found.append(name)
    return found


def test_every_module_belongs_to_a_layer_of_the_table() -> None:
    assert MODULES
    assert {layer_of(module) for module in MODULES} <= LAYERS.keys()


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_layer_may(module: str) -> None:
    assert breaches(module, (SOURCE / module).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors.py", "import pydantic_settings"),
        ("errors.py", f"from {PACKAGE} import core"),
        ("core/store.py", f"from {PACKAGE}.stores.memory import InMemoryTaskStore"),
        ("core/store.py", f"import {PACKAGE}.wire"),
        ("core/store.py", f"from {PACKAGE} import TaskRuntime"),
        ("core/store.py", "import asyncio"),
        ("core/store.py", "def later():\n    from trio.lowlevel import checkpoint"),
        ("core/store.py", "import importlib\nimportlib.import_module('mcp')"),
        ("adapters/session.py", "import asyncio"),
        ("stores/memory.py", f"from {PACKAGE}.adapters import session"),
        ("stores/redis/store.py", "import psycopg"),
        ("stores/postgres/store.py", "import coredis"),
        ("wire/v2026_07_28.py", "from mcp_types import CallToolResult"),
        ("wire/v2026_07_28.py", f"from {PACKAGE}.core.runtime import TaskRuntime"),
        ("wire/answers.py", f"from {PACKAGE}.core import settings"),
        ("adapters/session.py", "from mcp.server import Server"),
        ("adapters/session.py", f"from {PACKAGE}.testing import clocks"),
        ("adapters/mcp_v1/_tasks.py", "import mcp_types"),
        ("testing/contract.py", "import pytest"),
        ("core/store.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hypothesis"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    assert len(breaches(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core/store.py", f"import anyio, json\nfrom {PACKAGE} import errors\nfrom {PACKAGE}.core import ids"),
        ("stores/redis/store.py", f"from coredis import Redis\nfrom {PACKAGE}.core.store import TaskStore"),
        ("adapters/mcp_v2_client/_client.py", f"import mcp.client, mcp_types\nfrom {PACKAGE}.wire import v2026_07_28"),
        (
            "testing/machine/machine.py",
            f"import hypothesis\nfrom {PACKAGE}.stores.memory import InMemoryTaskStore",
        ),
    ],
)
def test_a_lawful_import_is_not_taken_for_a_breach(module: str, source: str) -> None:
    assert breaches(module, source) == []


def test_importing_the_package_imports_no_sdk_and_no_driver() -> None:
    """In a fresh interpreter, for this one has imported much more."""
    code = f"import sys, {PACKAGE}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert PACKAGE in loaded
    not_needed = {"httpx", "opentelemetry", "redis"}.union(*EXTRAS.values()) - sys.stdlib_module_names
    assert loaded.isdisjoint(not_needed - {"sniffio"})  # which anyio imports where it is installed
