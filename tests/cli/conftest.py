"""A small project in a folder of its own, and the command line on it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from expc.cli import main
from expc.monitor.planned import Source
from expc_runtime.state import (
    Result,
    Status,
    process_start,
    write_env,
    write_json,
    write_status,
)
from expc_runtime.state.plan import Task

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


MODULE = """
from dataclasses import dataclass
from expc_runtime.flags import Run

PROGRAM = "0123456789ab"


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/study/by_hand/read"
    lr: float = 0.001
"""

SCRIPT = """#!/usr/bin/env bash
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." || exit 2
experiment=study
folder=generated/study
runs() {
  local lr seed
  for lr in 0.1 1; do
    for seed in 0 1; do
      run "lr=$lr" "$seed"
      stage read read.py -- --lr "$lr" --seed "$seed"
      stage eval read.py --after read -- --lr "$lr" --seed "$seed"
    done
  done
}
runner=$("${PYTHON:-python}" -m expc_runtime.sweep) || exit 2
source "$runner" && sweep "$@"
"""


class Study:
    """A sweep of four runs of two stages, of which nothing runs: a test writes what its files say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "generated/study"
        self.runs = root / "runs/study"
        self.folder.mkdir(parents=True)
        (self.folder / "read.py").write_text(MODULE)
        (self.folder / "sweep.sh").write_text(SCRIPT)

    def source(self) -> Source:
        return Source(self.root, "study", self.folder / "sweep.sh")

    def tasks(self) -> dict[str, Task]:
        return {task.name: task for task in self.source().tasks()}

    _keys: ClassVar[dict[str, str]] = {}  # the same for every test, and a plan costs a process

    def key(self, name: str) -> str:
        if not self._keys:
            self._keys.update({task.name: task.key for task in self.tasks().values()})
        return self._keys[name]

    def put(self, name: str, state: str, **facts: Any) -> Path:
        """Have the stage ``name`` say ``state`` of itself, as the one planned; gives its folder."""
        folder = self.runs / name
        folder.mkdir(parents=True, exist_ok=True)
        told = {"key": self.key(name), "attempt": 1, "heartbeat": time.time(), **facts}
        write_status(folder, Status(state=state, **told))  # type: ignore[arg-type]
        return folder

    def works(self, name: str, **facts: Any) -> Path:
        """Have this process work on it."""
        me = {"pid": os.getpid(), "process": process_start(os.getpid())}
        return self.put(name, "running", **{"host": socket.gethostname(), **me, **facts})

    def finish(self, name: str, seconds: float = 10.0, **facts: Any) -> Path:
        folder = self.put(name, "done", seconds=seconds)
        told = {"key": self.key(name), "metrics": {"test/accuracy": 0.9}, **facts}
        write_json(folder / "result.json", asdict(Result(seconds=seconds, **told)))
        return folder

    def runner(self, state: str = "running", **facts: Any) -> None:
        """Have status.env say ``state``, with this process for the runner."""
        self.runs.mkdir(parents=True, exist_ok=True)
        here = {"host": socket.gethostname(), "jobs": 1}
        me = {"runner_pid": os.getpid(), "runner_start": process_start(os.getpid())}
        seven = {"run_name": "lr=0.1,seed=0", "run_index": 1, "total_runs": 4, "step": 1}
        write_env(self.runs / "status.env", {**seven, "state": state, **here, **me, **facts})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The files of a sweep; the current folder is its project root."""
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'study'\n")
    monkeypatch.chdir(tmp_path)
    return Study(tmp_path)


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
