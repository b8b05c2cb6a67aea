"""Run the tests: `python3 tests/run.py [--suite NAME] [pytest arguments]`.

Needs nothing but Python 3.10 or newer with pip. It keeps an environment for each Python and suite under
`.venvs`, and makes a new one whenever `pyproject.toml` or the table below has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
NO_TESTS_COLLECTED = 5  # pytest's exit code

# How a whole suite runs: its tests wait longer than they compute, so there are more processes than cores.
# The last option that pytest gets counts: `-n 0` runs them in one process, as a debugger needs it.
PARALLEL = ("--numprocesses", str((os.cpu_count() or 1) + 2), "--dist", "worksteal")


# Variables that would have each process compile the tests again, or change what commands print.
UNWANTED = ("PYTHONDONTWRITEBYTECODE", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")


@dataclass(frozen=True)
class Suite:
    """An environment, and the tests that run in it."""

    install: tuple[str, ...]
    path: Path | None = TESTS  # None: an environment of tools, without tests
    ignore: tuple[Path, ...] = ()
    on_demand: bool = False  # runs only when it is named

    def holds(self, path: Path) -> bool:
        """Whether the tests at `path` are this suite's."""
        mine = self.path is not None and path.is_relative_to(self.path)
        return mine and not any(map(path.is_relative_to, self.ignore))


GROUPS = tuple(part for name in ("test", "servers") for part in ("--group", f"{ROOT / 'pyproject.toml'}:{name}"))
PROJECT = ("--editable", f"{ROOT}[testing,redis,postgres]", *GROUPS)

# The oldest versions that `pyproject.toml` allows; the drivers, and mcp 2.x, need a newer anyio than mcp 1.x does.
OLDEST_V1 = ("mcp==1.23", "anyio==4.5", "pydantic==2.11", "typing-extensions==4.12.2", "trio==0.26.1")
OLDEST_DRIVERS = ("hypothesis==6.100", "coredis==6.4", "psycopg==3.2.1", "psycopg-pool==3.2")
OLDEST_V2 = ("mcp==2.0.0", "pydantic==2.12", *OLDEST_DRIVERS)

# The two major versions of the SDK cannot stand in one environment.
SUITES = {
    "mcp2": Suite((*PROJECT, "mcp>=2,<3"), ignore=(TESTS / "mcp_v1", TESTS / "fastmcp", TESTS / "engines")),
    "mcp1": Suite((*PROJECT, "mcp>=1.23,<2"), path=TESTS / "mcp_v1"),
    "mcp2-oldest": Suite((*PROJECT, *OLDEST_V2), path=TESTS / "mcp_v2", on_demand=True),
    "mcp1-oldest": Suite(
        ("--editable", f"{ROOT}[testing]", *GROUPS, *OLDEST_V1), path=TESTS / "mcp_v1", on_demand=True
    ),
    "engines": Suite(
        (
            "--editable",
            f"{ROOT}[testing,cli,redis,postgres,docket,procrastinate,celery]",
            *GROUPS,
            "mcp>=2,<3",
            "dbos>=3.4",
        ),
        path=TESTS / "engines",
        on_demand=True,
    ),
    "fastmcp": Suite((*PROJECT, "fastmcp>=4,<5"), path=TESTS / "fastmcp", on_demand=True),
    "lint": Suite(("--group", f"{ROOT / 'pyproject.toml'}:lint"), path=None),
}


def say(message: str) -> None:
    """Print to standard error: standard output is for pytest, or for the path that `--python` asks for."""
    print(f"[tests/run.py] {message}", file=sys.stderr, flush=True)


def prepare(name: str) -> Path:
    """Return the Python of the suite's environment, after installing it where that is needed."""
    suite = SUITES[name]
    home = ROOT / ".venvs" / f"py{sys.version_info[0]}.{sys.version_info[1]}-{name}"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "installed"
    wanted = hashlib.sha256(
        repr((sys.version, sys.base_prefix, suite)).encode() + (ROOT / "pyproject.toml").read_bytes()
    ).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        say(f"{name}: environment {home.relative_to(ROOT)}")
        return python
    say(f"{name}: installing {home.relative_to(ROOT)}")
    began = time.monotonic()
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    # Compiling all of it takes half of the time, and Python compiles what it imports.
    pip: list[str | Path] = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    for what in (("pip>=25.1",), suite.install):  # pip knows --group since 25.1
        subprocess.run([*pip, *what], check=True, stdout=sys.stderr, cwd=ROOT)
    stamp.write_text(wanted)
    say(f"{name}: installed in {time.monotonic() - began:.0f} s")
    return python


def test_path(argument: str) -> Path | None:
    """Return the path of the tests that a pytest argument names, or None when it is no such argument."""
    path = Path(argument.partition("::")[0]).resolve()
    return path if path.is_relative_to(TESTS) and path.exists() else None


def run(name: str, arguments: list[str]) -> int:
    """Run one suite and return pytest's exit code."""
    suite = SUITES[name]
    mine = [argument for argument in arguments if (path := test_path(argument)) is None or suite.holds(path)]
    if not any(map(test_path, mine)):
        mine = [*PARALLEL, str(suite.path), *mine]
    ignores = [f"--ignore={path}" for path in suite.ignore]
    environment = dict(os.environ)
    for variable in UNWANTED:
        environment.pop(variable, None)
    for variable in ("NO_PROXY", "no_proxy"):  # servers of the tests are on this machine
        environment[variable] = ",".join(filter(None, [environment.get(variable), "127.0.0.1", "localhost"]))
    command: list[str | Path] = [prepare(name), "-m", "pytest", *ignores, *mine]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Run the tests with pytest.", usage="%(prog)s [options] [pytest arguments]", allow_abbrev=False
    )
    parser.add_argument("--suite", choices=SUITES, help="only this one")
    parser.add_argument("--python", action="store_true", help="print the path of the suite's Python instead")
    options, arguments = parser.parse_known_args()
    if options.python:
        if options.suite is None:
            parser.error("--python needs --suite")
        print(prepare(options.suite))
        return 0
    named = [path for path in map(test_path, arguments) if path]
    chosen = [
        name
        for name, suite in SUITES.items()
        if suite.path is not None
        and suite.path.exists()
        and (name == options.suite if options.suite else not suite.on_demand)
        and (not named or any(map(suite.holds, named)))
    ]
    for name in chosen:
        prepare(name)  # all of them first: a test may start a server in the environment of another suite
    codes = {}
    for name in chosen:
        codes[name] = code = run(name, arguments)
        if code not in (0, NO_TESTS_COLLECTED):
            break  # what failed is then the last of the output
    for name, code in codes.items():
        say(f"{name}: {'passed' if code == 0 else f'pytest exit code {code}'}")
    if all(code == NO_TESTS_COLLECTED for code in codes.values()):
        say("no test was run")
        return NO_TESTS_COLLECTED
    # A filter such as -k may leave one suite without tests, as long as another has some.
    return next((code for code in codes.values() if code not in (0, NO_TESTS_COLLECTED)), 0)


if __name__ == "__main__":
    sys.exit(main())
