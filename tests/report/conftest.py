"""A project whose runs were written by hand, through the very functions that stages use."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from expc.cli import main
from expc_runtime.state import Result, Status, append_line, claim, read_status, write_status
from expc_runtime.state.plan import Layout, Task, tasks

SPEC = """\
expc: 1
name: small
about: Does a larger rate read digits better, and does <b>it</b> last?

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
    until: {metric: accuracy, at_least: 0.9, budget: {epochs: 2}, otherwise: warn}
  again:
    kind: supervised
    init: {trunk: {from: read}}
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model:
      trunk: {use: conv_net, channels: [8, 16]}
    heads:
      even: {use: linear_head, out: 1}
    loss:
      even: {use: bce}
    optim: {use: adamw, lr: 1.0e-3, weight_decay: 0.01}
    until: {epochs: 1}

sweep:
  seeds: [0, 1, 2]
  grid:
    read.optim.lr: [0.001, 0.003, 0.01, 0.03]
"""

FLOORS = {"val/accuracy": 0.117, "val/digit": 2.303}

PROVENANCE = {
    "git": {"commit": "0123456789abcdef", "clean": False},
    "spec": {"path": "specs/small.yaml", "sha256": "not of this text"},
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "packages": {"torch": "2.13.0"},
    "device": {"type": "cuda", "name": "NVIDIA H100"},
}


@dataclass
class Project:
    """Where fabricated runs lie. A task is named by learning rate, seed and stage."""

    root: Path
    every: list[Task] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        return self.root / "runs" / "small"

    def task(self, lr: str, seed: int, stage: str = "read") -> Task:
        named = f"lr={lr},seed={seed}"
        return next(t for t in self.every if t.run == named and t.stage == stage)

    def folder(self, task: Task) -> Path:
        return self.runs / task.name

    def begin(self, task: Task, **more: Any) -> Any:
        module = task.argv[1]
        return claim(self.folder(task), task.key, program=task.program, module=module, **more)

    def done(
        self,
        task: Task,
        accuracy: float = 0.95,
        *,
        lines: Sequence[Mapping[str, Any]] | None = None,
        changed: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
        **more: Any,
    ) -> None:
        """A result, its curves and its pictures."""
        with self.begin(task, changed=changed) as stage:
            for name, data in (files or {}).items():
                (stage.folder / name).write_bytes(data)
            for line in curve(accuracy) if lines is None else lines:
                append_line(stage.folder / "metrics.jsonl", line)
            stage.beat(step=100, steps_target=100, epoch=2, force=True)
            result: dict[str, Any] = {
                "metrics": {"val/accuracy": accuracy, "val/digit": 3.0 * (1.0 - accuracy)},
                "floors": FLOORS,
                "step": 100,
                "memory": {"device": 2_000_000_000},
                "extra": {"provenance": PROVENANCE, "files": list(files or {})},
            }
            stage.finish(Result(**{**result, **more}))

    def fail(self, task: Task, reason: str, *, log: str = "", **more: Any) -> None:
        """An attempt that ended in a failure, with what its console said."""
        with self.begin(task) as stage:
            (stage.folder / "attempt-1.log").write_text(log)
            stage.beat(step=40, steps_target=100, epoch=0, force=True)
            stage.fail("diverged", reason, code=65, source="specs/small.yaml:19:12 (read.optim)")
        self.note(task, **more)

    def note(self, task: Task, **changes: Any) -> None:
        """What the sweep writes of a stage that does not run."""
        folder = self.folder(task)
        folder.mkdir(parents=True, exist_ok=True)
        old = read_status(folder) or Status()
        write_status(folder, Status(**{**vars(old), "key": task.key, **changes}))


def curve(last: float, points: int = 10, steps: int = 100) -> list[dict[str, Any]]:
    """A course that ends at ``last``, in the lines that a training logs."""
    floor = {f"floor/{name}": value for name, value in FLOORS.items()}
    lines: list[dict[str, Any]] = [{"step": 0, "epoch": 0, "split": "floor", **floor}]
    for i in range(1, points + 1):
        step, value = steps * i // points, last * i / points
        loss = {"train/digit": 1000.0 ** (1 - i / points)}
        lines.append({"step": step, "epoch": 0, "split": "train", **loss, "lr/model": 0.003})
        lines.append(
            {"step": step, "epoch": 0, "split": "val", "mode": "eval", "val/accuracy": value}
        )
    return lines


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Task]]:
    """A project of four rates, three seeds and two stages, as it is before anything ran, and its plan."""
    root = tmp_path_factory.mktemp("small")
    (root / "pyproject.toml").write_text("[project]\nname = 'small'\n")
    (root / "specs").mkdir()
    (root / "specs" / "small.yaml").write_text(SPEC)
    with contextlib.chdir(root):
        assert main(["compile", "specs/small.yaml"]) == 0
        told = subprocess.run(
            ["bash", "generated/small/sweep.sh", "--plan"],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHON": sys.executable},
        )
        layout = Layout("small", "generated/small")
        return root, list(tasks(io.BytesIO(told.stdout), layout))


@pytest.fixture(scope="session")
def fabricate(compiled: tuple[Path, list[Task]]) -> Callable[[Path], Project]:
    """`fabricate(folder)` is that project, in a folder of its own."""

    def copy(folder: Path) -> Project:
        shutil.copytree(compiled[0], folder)
        return Project(folder, compiled[1])

    return copy


@pytest.fixture
def project(
    fabricate: Callable[[Path], Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A project without a run; its folder is the current one."""
    made = fabricate(tmp_path / "small")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture
def report(project: Project, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`report()` writes the report of `small` and gives its text."""

    def write(*words: str) -> str:
        file = project.root / "out" / "report.html"
        assert main(["report", "small", "-o", str(file), *words]) == 0
        capsys.readouterr()
        return file.read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def hostile() -> str:
    """What somebody could name a metric, or print, to have it run in the report's reader."""
    return "<script>pwned=1</script>\"'><img src=x onerror=pwned=1>&amp;{{7*7}}</style></pre>"


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """`png(width, height)` is a picture: black, or of noise, which nothing makes smaller."""
    return _png


def _png(width: int = 4, height: int = 4, noise: bool = False) -> bytes:
    """A picture: black, or of noise, which nothing makes smaller."""
    row = os.urandom(3 * width) if noise else b"\0" * (3 * width)
    raw = b"".join(b"\0" + (os.urandom(3 * width) if noise else row) for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
