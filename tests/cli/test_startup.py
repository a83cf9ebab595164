"""What a command imports is what it costs to start: proved in child processes, by name, not by time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from expc.cli import COMMANDS

HEAVY = {"torch", "pytorch_lightning", "torchmetrics", "numpy"}
COMPILER = {"yaml", "pydantic", "jinja2", "ruff"}
DISPLAY = {"rich", "cookiecutter", "pytest"}


def loaded(project: Path, *argv: str) -> tuple[int, set[str]]:
    """The exit code of a command in a child, and the top-level modules it left loaded."""
    code = (
        "import json, sys\n"
        "from expc.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "print()\n"
        "print(json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=project, capture_output=True, text=True, check=True
    )
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    return exit_code, set(modules)


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("mistyped",)])
def test_help_and_mistakes_load_click_alone(project: Path, argv: tuple[str, ...]) -> None:
    _, modules = loaded(project, *argv)
    assert not modules & (HEAVY | COMPILER | DISPLAY)
    assert "expc_runtime" not in modules


@pytest.mark.parametrize("name", COMMANDS.list_commands(None))
def test_the_help_of_a_command_loads_none_of_what_it_will_need(project: Path, name: str) -> None:
    code, modules = loaded(project, name, "--help")
    assert code == 0
    assert not modules & (HEAVY | COMPILER | DISPLAY)


def test_lint_loads_no_torch_no_templates_no_display(project: Path) -> None:
    code, modules = loaded(project, "lint", "--no-cache", "specs/small.yaml")
    assert code == 0
    assert not modules & (HEAVY | {"jinja2", "ruff"} | DISPLAY)


def test_lint_that_remembers_its_answer_does_not_load_pydantic(project: Path) -> None:
    assert loaded(project, "lint", "specs/small.yaml")[0] == 0
    code, modules = loaded(project, "lint", "specs/small.yaml")
    assert code == 0
    assert not modules & (HEAVY | COMPILER | DISPLAY)


@pytest.mark.parametrize(
    "argv",
    [
        ("compile", "specs/small.yaml"),
        ("check",),
        ("plan", "specs/small.yaml"),
        ("show", "specs/small.yaml"),
        ("schema",),
        ("status",),
        ("clean",),
    ],
)
def test_no_command_of_the_compiler_loads_torch(project: Path, argv: tuple[str, ...]) -> None:
    code, modules = loaded(project, *argv)
    assert code == 0
    assert not modules & (HEAVY | DISPLAY)
