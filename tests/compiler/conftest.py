"""A project in a scratch folder, and what its specs compile to."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from expc.build import Compiled, compiled
from expc.emit.render import Rendered, render
from expc.experiment import Experiment
from expc.findings import Finding, SpecError

DIGITS = """\
expc: 1
name: reader
about: Which digits have a loop?
model:
  backbone: {use: conv_net, channels: [4, 8]}
stages:
  read:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce, weight: 0.5}
    metrics:
      accuracy: {use: accuracy, of: digit}
      brier: {use: brier, of: loop}
    optim: {use: adamw, lr: 1.0e-3}
    until: {epochs: 2}
"""


@dataclass
class Project:
    """A folder with a `pyproject.toml`; `text` is its spec."""

    root: Path
    text: str = DIGITS
    spec: str = "specs/it.yaml"

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def compile(self, text: str | None = None) -> Compiled:
        return compiled(self.write(self.spec, self.text if text is None else text))

    def resolve(self, text: str | None = None) -> Experiment:
        return self.compile(text).experiment

    def render(self, text: str | None = None, folder: str = "generated/it") -> Rendered:
        made = self.compile(text)
        return render(made.experiment, made.plan, folder)

    def findings(self, text: str | None = None) -> list[Finding]:
        """What is wrong with a spec that does not compile."""
        with pytest.raises(SpecError) as caught:
            self.compile(text)
        return list(caught.value.findings)

    def changed(self, old: str, new: str) -> str:
        """The spec with one stretch of it replaced."""
        assert self.text.count(old) == 1, f"{old!r} stands there {self.text.count(old)} times"
        return self.text.replace(old, new)

    def swept(self, sweep: str) -> str:
        """The spec with a sweep below it."""
        return f"{self.text}\nsweep:\n" + "".join(f"  {line}\n" for line in sweep.splitlines())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "pyproject.toml").touch()
    return Project(tmp_path)


GOLDEN = Path(__file__).parent.parent / "golden"


class Golden:
    """Runs generated modules in this process, each as if it stood alone."""

    def load(self, module: str) -> Any:
        """The module at `CASE/expected/FILE`."""
        path = GOLDEN / module
        name = f"golden_{path.parent.parent.name}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
        return loaded


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch) -> Iterator[Golden]:
    """Own code of one case is not seen by the next, and torch keeps to one thread."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Golden()
    sys.modules.pop("lab", None)
    torch.set_num_threads(threads)
