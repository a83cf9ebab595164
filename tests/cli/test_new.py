"""`expc new demo`: what a person has after it works, from lint to a finished sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("cookiecutter")


def shell(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command in the new project, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new project, read by the tests here and changed by none."""
    folder = tmp_path_factory.mktemp("new")
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-m", "expc", "new", "demo"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    assert not any(home.iterdir()), "nothing is left in a person's home"
    assert [path.name for path in folder.iterdir()] == ["demo"]
    return folder / "demo"


def test_it_holds_a_spec_its_own_parts_tests_and_what_they_compile_to(demo: Path) -> None:
    for name in (
        "pyproject.toml",
        "README.md",
        ".gitignore",
        ".pre-commit-config.yaml",
        "specs/demo.yaml",
        "demo/data.py",
        "demo/models.py",
        "demo/metrics.py",
        "tests/test_snapshot.py",
        "generated/demo/sweep.sh",
        "generated/demo/expc.lock.json",
    ):
        assert (demo / name).is_file(), name


def test_nothing_of_the_template_shows(demo: Path) -> None:
    for path in demo.rglob("*"):
        assert not path.name.endswith(".j2")
        if path.is_file():
            text = path.read_text()
            assert "cookiecutter" not in text and "{{" not in text, path


def test_lint_has_nothing_to_say_but_that_nobody_looked_at_the_data(demo: Path) -> None:
    done = shell(demo, "expc", "lint", "--no-cache")
    assert (done.returncode, done.stdout) == (0, "")
    assert "`expc profile specs/demo.yaml` reads it once" in done.stderr


def test_it_is_compiled_already(demo: Path) -> None:
    done = shell(demo, "expc", "check")
    assert done.returncode == 0, done.stdout
    done = shell(demo, "expc", "compile", "specs/demo.yaml")
    assert done.returncode == 0 and done.stdout.endswith("; unchanged\n")


def test_its_code_is_formatted_and_without_faults(demo: Path) -> None:
    for words in (("check",), ("format", "--check")):
        done = shell(demo, "ruff", *words, "--no-cache", ".")
        assert done.returncode == 0, done.stdout


def test_its_own_tests_pass(demo: Path) -> None:
    installed = any(entry.name == "expc" for entry in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "expc.testing.plugin"]
    done = shell(demo, "pytest", "-q", "-p", "no:cacheprovider", *plugin)
    assert done.returncode == 0, done.stdout
    expected = 4 if find_spec("torch") else 1
    assert f"{expected} passed" in done.stdout


def test_every_command_of_its_readme_is_one(demo: Path) -> None:
    from expc.cli import COMMANDS

    lines = (demo / "README.md").read_text().splitlines()
    commands = [line.split("#")[0].split() for line in lines if line.startswith("    expc ")]
    assert {"lint", "plan", "compile", "run", "status"} <= {words[1] for words in commands}
    for words in commands:
        assert words[1] in COMMANDS.list_commands(None)
        assert all((demo / path).exists() for path in words[2:])


def test_the_sweep_runs_to_its_end(demo: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("pytorch_lightning")
    done = shell(demo, "expc", "run", "generated/demo", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tell: 4 done" in done.stdout
    status = shell(demo, "expc", "status")
    assert "test/balanced" in status.stdout and "tell: 4 done" in status.stdout
    plan = shell(demo, "expc", "plan", "specs/demo.yaml")
    assert "nothing to run: 4 done" in plan.stdout
    weights = demo.parent / "tell.safetensors"
    stage = next((demo / "runs/demo").glob("*/tell"))
    exported = shell(demo, "expc", "export", str(stage), "-o", str(weights))
    assert exported.returncode == 0, exported.stderr
    assert weights.stat().st_size > 0
    missing = shell(demo, "expc", "export", "runs/demo/nowhere", "-o", str(weights))
    assert missing.returncode == 1 and "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Demo", "not a name"),
        ("1demo", "not a name"),
        ("json", "name of another package"),
        ("expc", "name of another package"),
        ("nowhere/demo", "no folder `nowhere`"),
        ("pyproject.toml", "not a name"),
    ],
)
def test_a_name_that_can_not_be_is_refused(project: Path, expc, name: str, says: str) -> None:
    before = set(project.rglob("*"))
    said = expc("new", name)
    assert said.code == 2 and says in said.err
    assert set(project.rglob("*")) == before


def test_what_is_there_is_not_touched(project: Path, expc) -> None:
    (project / "demo").mkdir()
    said = expc("new", "demo")
    assert said.code == 2 and "is there already" in said.err


def test_a_name_with_a_dash_makes_a_package_with_an_underscore(project: Path, expc) -> None:
    said = expc("new", "two-rings")
    assert said.code == 0, said.err
    assert (project / "two-rings/two_rings/data.py").is_file()
    assert (project / "two-rings/generated/two_rings/sweep.sh").is_file()
