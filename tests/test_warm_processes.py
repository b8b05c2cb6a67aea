"""Processes that the tests start warm are as those that Python starts itself."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.patience import PATIENCE
from tests.support.warm_processes import WarmProcess

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PROGRAM = """
import atexit, os, random, signal, sys
atexit.register(print, "ended")
print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("WARM"), "mcp.server" in sys.modules)
print(int(signal.getsignal(signal.SIGCHLD)), random.random())
for line in sys.stdin:
    print("read", line, end="", flush=True)
print("an error", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def ended(process: WarmProcess, said: bytes = b"") -> tuple[int, str, str]:
    """Say something, and wait for the end; return the exit code and what was printed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout, process.stderr:
        process.stdin.write(said)
        process.stdin.close()
        out, err = process.stdout.read().decode(), process.stderr.read().decode()
        return process.wait(PATIENCE), out, err


def test_a_program_runs_as_a_main_program(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARM", "yes")
    code, out, err = ended(WarmProcess([str(program), "a", "b c"], speaks=True), b"x\ny\n")
    first, second, *others = out.splitlines()
    arguments = [str(program), "a", "b c"]
    assert first == f"__main__ {program} {arguments} {tmp_path} {os.getcwd()} yes True"
    assert second.startswith(f"{int(signal.SIG_DFL)} ")
    assert (code, others, err) == (3, ["read x", "read y", "ended"], "an error\n")


def test_each_process_has_random_numbers_of_its_own(program: Path) -> None:
    numbers = {ended(WarmProcess([str(program)], speaks=True))[1].splitlines()[1] for _ in range(3)}
    assert len(numbers) == 3


def test_an_exception_ends_it_with_a_traceback(program: Path) -> None:
    program.write_text("raise RuntimeError('no')")
    code, out, err = ended(WarmProcess([str(program)], speaks=True))
    assert (code, out) == (1, "")
    assert err.endswith("RuntimeError: no\n")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_signal_ends_it(program: Path, name: str) -> None:
    sent = signal.Signals[name]
    process = WarmProcess([str(program)], speaks=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0)
    process.send_signal(sent)
    assert process.wait(PATIENCE) == -sent
    process.send_signal(sent)  # it has ended, and nothing gets it
    assert ended(process)[0] == -sent


def test_processes_start_while_others_run(program: Path) -> None:
    processes = [WarmProcess([str(program)], speaks=True) for _ in range(3)]
    assert len({process.pid for process in processes}) == 3
    for process in reversed(processes):
        assert ended(process)[0] == 3
