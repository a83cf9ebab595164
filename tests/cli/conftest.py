"""A small project in a folder of its own, and the command line on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from expc.cli import main

SPEC = """\
expc: 1
name: small
about: Does a wider net read digits better?

stages:
  read:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model:
      trunk: {use: conv_net, channels: [8, 16]}
    heads:
      digit: {use: linear_head, out: 10}
    loss:
      digit: {use: cross_entropy}
    metrics:
      accuracy: {use: accuracy, of: digit}
    optim: {use: adamw, lr: 3.0e-3, weight_decay: 0.01}
    until: {epochs: 2}

sweep:
  seeds: [0, 1]
  grid:
    read.optim.lr: [1.0e-3, 3.0e-3]
"""


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project root with one spec; the current folder."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'small'\n")
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "small.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`expc("lint", "specs")` runs the command line in this process."""

    def run(*argv: str) -> Said:
        capsys.readouterr()
        code = main(list(argv))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def edit(project: Path) -> Callable[[str, str], None]:
    """`edit(old, new)` changes the spec; the old text must be there once."""

    def change(old: str, new: str) -> None:
        path = project / "specs" / "small.yaml"
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the spec"
        path.write_text(text.replace(old, new))

    return change
