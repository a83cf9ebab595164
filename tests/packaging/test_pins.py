"""`make` installs what constraints.txt pins: public versions of everything that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from expc.project import project_root

ROOT = project_root(Path(__file__))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> set[str]:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [
        *PROJECT["project"]["dependencies"],
        *extras["runtime"],
        *extras["new"],
        *extras["onnx"],
        *extras["ray"],
        *PROJECT["dependency-groups"]["dev"],
    ]
    return {canonical(re.split(r"[<>=!~\[; ]", requirement)[0]) for requirement in asked}


def test_every_line_is_a_plain_public_pin() -> None:
    assert PINS
    for line in PINS:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==\d[A-Za-z0-9.]*", line), line


def test_everything_that_make_installs_is_pinned() -> None:
    assert wanted() <= {canonical(line.split("==")[0]) for line in PINS}


@pytest.mark.parametrize("hook", ["expc-lint", "expc-check"])
def test_pre_commit_hooks_call_commands_that_exist(hook: str) -> None:
    import yaml

    from expc.cli import COMMANDS

    hooks = {
        each["id"]: each for each in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    }
    program, name = hooks[hook]["entry"].split()
    assert program == "expc" and name in COMMANDS.list_commands(None)
