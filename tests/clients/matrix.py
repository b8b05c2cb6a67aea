"""Drive real clients against a server of each SDK line: `python3 tests/clients/matrix.py [NAME...]` prints what works.

Each client gets an environment of its own under `.venvs`, made when it is first needed; those of npm need node. A cell
says "works", or what the client itself cannot do; one that begins with FAULT is ours, and the exit code is then 1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DRIVERS = HERE / "drivers"
LINES = {"mcp1": "server on mcp 1.x", "mcp2": "server on mcp 2.x"}
CELLS = ("plain", "task", "question, plain", "question, task", "sampling", "cancel", "progress")


@dataclass(frozen=True)
class RealClient:
    """A client that others wrote, and how it is installed."""

    title: str
    driver: str
    install: tuple[str, ...]  # the first is the package whose version the matrix shows
    suite: str = ""  # the environment of `tests/run.py` that has it already
    hidden: bool = False  # drops tools that advertise tasks: the server then has `advertise=False`

    @property
    def npm(self) -> bool:
        """Whether the packages come from npm."""
        return self.driver.endswith(".mjs")

    @property
    def package(self) -> str:
        """The name of the package whose version counts."""
        found = re.match(r"@?[\w./-]+", self.install[0])
        assert found is not None
        return found[0]


CLIENTS = {
    "mcp-1": RealClient("`mcp` 1.x `ClientSession`, experimental tasks", "mcp_1.py", ("mcp",), suite="mcp1"),
    "mcp-2": RealClient("`mcp` 2.x `Client`", "mcp_2.py", ("mcp",), suite="mcp2"),
    "tasks-client-1": RealClient("our `TasksClient` on `mcp` 1.x", "tasks_client_1.py", ("mcp",), suite="mcp1"),
    "tasks-client-2": RealClient("our `TasksClient` on `mcp` 2.x", "tasks_client_2.py", ("mcp",), suite="mcp2"),
    "typescript-1": RealClient(
        "TypeScript SDK 1.x, `callToolStream`", "typescript_1.mjs", ("@modelcontextprotocol/sdk@1",)
    ),
    "typescript-2": RealClient(
        "TypeScript client 2.x, `ext-tasks`",
        "typescript_2.mjs",
        ("@modelcontextprotocol/client@2", "@modelcontextprotocol/ext-tasks"),
    ),
    "fastmcp-3": RealClient("fastmcp 3, `task=True`", "fastmcp_3.py", ("fastmcp>=3,<4",)),
    "fastmcp-4": RealClient("fastmcp 4", "fastmcp_4.py", ("fastmcp>=4,<5",)),
    "strands-1": RealClient("Strands, `tasks_config`, on `mcp` 1.x", "strands_1.py", ("strands-agents", "mcp<2")),
    "strands-2": RealClient("Strands, `tasks_config`, on `mcp` 2.x", "strands_1.py", ("strands-agents", "mcp>=2")),
    "pydantic-ai": RealClient("pydantic-ai 2", "pydantic_ai_2.py", ("pydantic-ai-slim[mcp]>=2",)),
    "langchain": RealClient("langchain-mcp-adapters", "langchain.py", ("langchain-mcp-adapters",)),
    "openai-agents": RealClient("openai-agents", "openai_agents.py", ("openai-agents",)),
    "agent-framework": RealClient(
        "Microsoft agent-framework, `advertise=False`",
        "agent_framework_1.py",
        ("agent-framework-core", "mcp", "tenacity"),
        hidden=True,
    ),
}


def suite_python(suite: str) -> Path:
    """Return the Python of one of the environments of `tests/run.py`."""
    command = [sys.executable, str(ROOT / "tests" / "run.py"), "--suite", suite, "--python"]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def environment(name: str, *requirements: str) -> Path:
    """Return the Python of an environment of its own, after installing the requirements where they are not there."""
    home = ROOT / ".venvs" / name
    python, stamp = home / "bin" / "python", home / "installed"
    if not (stamp.is_file() and stamp.read_text() == repr(requirements)):
        say_installing(home)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True)
        stamp.write_text(repr(requirements))
    return python


def npm_environment(name: str, *packages: str) -> Path:
    """Return a folder where the programs of the drivers find these packages of npm."""
    home = ROOT / ".venvs" / name
    stamp = home / "installed"
    if not (stamp.is_file() and stamp.read_text() == repr(packages)):
        say_installing(home)
        home.mkdir(parents=True)
        (home / "package.json").write_text('{"private": true, "type": "module"}')
        subprocess.run(["npm", "install", "--silent", *packages], check=True, cwd=home)
        stamp.write_text(repr(packages))
    for file in DRIVERS.glob("*.mjs"):
        shutil.copy(file, home)  # node looks for packages from the folder of the program
    return home


def say_installing(home: Path) -> None:
    """Remove what is there, and say what takes its time."""
    print(f"installing {home.relative_to(ROOT)}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)


def python_of(name: str) -> Path:
    """Return the Python that has a client from PyPI."""
    client = CLIENTS[name]
    return suite_python(client.suite) if client.suite else environment(f"client-{name}", *client.install)


def version_of(name: str) -> str:
    """Return the version of the client that is installed."""
    client = CLIENTS[name]
    if client.npm:
        packages = npm_environment(f"client-{name}", *client.install) / "node_modules"
        return str(json.loads((packages / client.package / "package.json").read_text())["version"])
    program = f"from importlib.metadata import version; print(version({client.package!r}))"
    return subprocess.run(
        [python_of(name), "-c", program], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


@contextmanager
def serve(line: str, *arguments: str) -> Generator[str, None, None]:
    """Run the server on one SDK line, and give its URL."""
    command = [str(suite_python(line)), str(HERE / "server.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for text in process.stderr:
                if found := re.search(r"running on (http://\S+)", text):
                    break
            else:
                raise RuntimeError(f"the server on {line} did not start")
            yield f"{found[1]}/mcp"
        finally:
            process.kill()


def drive(name: str, url: str) -> dict[str, str]:
    """Return the row of one client on one server."""
    client = CLIENTS[name]
    if client.npm:
        command = ["node", str(npm_environment(f"client-{name}", *client.install) / client.driver), url]
    else:
        command = [str(python_of(name)), "-W", "ignore", str(DRIVERS / client.driver), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return dict.fromkeys(CELLS, f"FAULT: {done.stderr[-300:]}")
    row: dict[str, str] = json.loads(lines[-1])
    return row


def row_of(name: str, line: str) -> dict[str, str]:
    """Return what works for one client on the server of one SDK line."""
    with serve(line, *(["--hide"] if CLIENTS[name].hidden else [])) as url:
        return drive(name, url)


def table(names: list[str], line: str) -> Generator[str, None, None]:
    """Yield the lines of one Markdown table, each as soon as it is known."""
    yield f"| {LINES[line]} | version | {' | '.join(CELLS)} |"
    yield "| --- " * (len(CELLS) + 2) + "|"
    for name in names:
        row = row_of(name, line)
        cells = " | ".join(row[cell] for cell in CELLS)
        yield f"| {CLIENTS[name].title} | {version_of(name)} | {cells} |"


def main() -> int:
    """Print the matrix."""
    names = sys.argv[1:] or [name for name, client in CLIENTS.items() if not client.npm or shutil.which("node")]
    faults = 0
    for line in LINES:
        for text in table(names, line):
            print(text, flush=True)
            faults += text.count("FAULT")
        print()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
