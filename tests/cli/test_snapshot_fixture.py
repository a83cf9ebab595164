"""The fixture that ships to users, in a pytest of its own: missing, extra and changed files, and `--expc-update`."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

TEST = """\
def test_mine(expc_snapshot):
    expc_snapshot("specs/small.yaml", "generated/small")
"""


@pytest.fixture
def tested(project: Path, expc) -> Path:
    """A project with a compiled spec and the one test that its users write."""
    expc("compile", "specs/small.yaml")
    (project / "tests").mkdir()
    (project / "tests/test_mine.py").write_text(TEST)
    return project


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """pytest in a child; the plugin is installed with the package, or named where the package only lies on the path."""
    installed = any(entry.name == "expc" for entry in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "expc.testing.plugin"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *words]
    return subprocess.run(
        command, cwd=project, check=False, capture_output=True, text=True, timeout=120
    )


def test_a_fresh_folder_passes(tested: Path) -> None:
    done = run(tested)
    assert done.returncode == 0, done.stdout


def test_a_changed_file_fails_with_a_diff(tested: Path, edit) -> None:
    edit("batch: 64", "batch: 32")
    done = run(tested)
    assert done.returncode == 1
    assert "generated/small is not what specs/small.yaml compiles to" in done.stdout
    assert "changed: generated/small/read.py" in done.stdout
    assert "-    batch: int = 64" in done.stdout and "+    batch: int = 32" in done.stdout
    assert "pytest --expc-update" in done.stdout


def test_missing_and_extra_files_fail(tested: Path) -> None:
    folder = tested / "generated/small"
    (folder / "README.md").rename(folder / "READ.md")
    done = run(tested)
    assert done.returncode == 1
    assert "missing: generated/small/README.md" in done.stdout
    assert "extra: generated/small/READ.md" in done.stdout


def test_update_writes_and_passes(tested: Path, edit) -> None:
    edit("batch: 64", "batch: 32")
    module = tested / "generated/small/read.py"
    module.write_text(module.read_text() + "# by hand\n")
    assert run(tested, "--expc-update").returncode == 0
    assert "batch: int = 32" in module.read_text() and "by hand" not in module.read_text()
    assert run(tested).returncode == 0


def test_update_does_not_delete_what_it_did_not_write(tested: Path) -> None:
    notes = tested / "generated/small/notes.txt"
    notes.write_text("mine")
    assert run(tested, "--expc-update").returncode == 1
    assert notes.read_text() == "mine"


def test_a_spec_that_does_not_compile_fails_with_its_findings(tested: Path, edit) -> None:
    edit("use: adamw", "use: adamv")
    done = run(tested)
    assert done.returncode == 1
    assert "specs/small.yaml:17:" in done.stdout and "`adamv`" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plugin_costs_nothing_until_a_test_asks_for_it(tested: Path) -> None:
    code = "import sys, expc.testing.plugin; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pytest" in done.stdout.split()
    assert not {"yaml", "pydantic", "jinja2", "click", "torch"} & set(done.stdout.split())
