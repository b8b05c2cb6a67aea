"""What we ship, and what else the repository holds."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest

import mcp_task_runtime
from tests.run import OLDEST_DRIVERS, OLDEST_V1

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "mcp_task_runtime"


def test_the_top_level_holds_nothing_but_the_agreed_files() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to tell the repository's files from others")
    listing = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {path.partition("/")[0] for path in listing.split("\0") if path}
    allowed = {"CHANGELOG.md", "LICENSE", "README.md", "examples", "pyproject.toml", "src", "tests"}
    assert {name for name in names if not name.startswith(".")} <= allowed


PAGES = ["README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md", "examples/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_no_extra_that_is_not_there(page: str) -> None:
    text = (ROOT / page).read_text()
    lists = re.findall(r"(?:mcp-task-runtime|['\"]\.)\[([\w,]+)\]", text)
    named = {name for names in lists for name in names.split(",")} | set(re.findall(r"extras? `(\w+)`", text))
    assert named
    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert named <= set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def test_the_pages_name_the_oldest_python_that_is_allowed() -> None:
    oldest = metadata.metadata("mcp-task-runtime")["Requires-Python"].removeprefix(">=")
    for page in ("README.md", ".ci/run", "tests/run.py"):
        (named,) = re.findall(r"Python (3\.\d+) or newer", (ROOT / page).read_text())
        assert named == oldest


def test_the_newest_version_of_the_changelog_is_that_of_the_package() -> None:
    dated = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert dated[0] == version


def test_the_runtime_dependencies_are_exactly_three() -> None:
    requirements = metadata.requires("mcp-task-runtime") or []
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements if "extra ==" not in requirement}
    assert names == {"anyio", "pydantic", "typing-extensions"}


def test_the_oldest_versions_that_are_allowed_are_those_that_are_tested() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for name, version in (pin.split("==") for pin in (*OLDEST_V1, *OLDEST_DRIVERS)):
        assert re.search(rf'"{name}(\[\w+\])?>={re.escape(version)}[,"]', project), name


def test_the_wheel_holds_the_whole_package_its_types_and_its_licence(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    modules = {path.relative_to(PACKAGE.parent).as_posix() for path in _sources()}
    assert {name for name in names if ".dist-info/" not in name} == modules | {"mcp_task_runtime/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_the_whole_package(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in _sources()} <= names


def _sources() -> list[Path]:
    """Return the modules of the package, the scripts that run inside Redis, and the files of the web page."""
    kinds = ("py", "lua", "html", "css", "js", "svg")
    return [path for kind in kinds for path in PACKAGE.rglob(f"*.{kind}")]


def test_every_public_name_can_be_imported() -> None:
    missing = [name for name in mcp_task_runtime.__all__ if not hasattr(mcp_task_runtime, name)]
    assert missing == []


def test_the_public_names_are_sorted_and_named_once() -> None:
    # Constants first, as ruff sorts them.
    names = mcp_task_runtime.__all__
    assert list(names) == sorted(set(names), key=lambda name: (not name.isupper(), name))


def test_every_module_that_needs_no_extra_can_be_imported() -> None:
    for path in sorted(PACKAGE.glob("core/*.py")) + sorted(PACKAGE.glob("wire/*.py")):
        importlib.import_module(f"mcp_task_runtime.{path.parent.name}.{path.stem}".removesuffix(".__init__"))
