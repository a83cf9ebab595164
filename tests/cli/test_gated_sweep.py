"""Three stages handed on in a real sweep: what a gate stops, what equal stages share, which tensors arrive."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

SPEC = """\
expc: 1
name: handed
about: Does a net that knows zeros read digits better?
model: {backbone: {use: conv_net, channels: [4, 8]}}
stages:
  zeros:
    kind: supervised
    data: {use: digits, batch: 128, split: {val: 0.2}}
    heads: {zero: {use: linear_head, out: 1}}
    loss: {zero: {use: bce}}
    metrics: {f1: {use: f1, of: zero}}
    optim: {use: adamw, lr: 1.0e-2}
    norm_statistics: reestimated
    until: {metric: f1, at_least: 0.5, budget: {epochs: 4}}
    monitor: {best: f1}
  loops:
    kind: supervised
    init: {backbone: {from: zeros, best: best}}
    data: {use: digits, batch: 128, split: {val: 0.2}}
    heads: {loop: {use: linear_head, out: 1}}
    loss: {loop: {use: bce}}
    optim: {use: adamw, lr: 1.0e-2}
    until: {epochs: 1}
  digits:
    kind: supervised
    frozen: {backbone: {from: loops}}
    data: {use: digits, batch: 128, split: {val: 0.2}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    optim: {use: adamw, lr: 1.0e-2}
    until: {epochs: 1}
sweep:
  seeds: [0]
  conditions:
    open: {}
    shut: {zeros.until: {metric: f1, at_least: 0.9999, budget: {epochs: 1}}}
  grid: {digits.optim.lr: [1.0e-2, 1.0e-3]}
"""

RUNS = ("lr=0.01", "lr=0.001")


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The project, and what running its sweep said."""
    root = tmp_path_factory.mktemp("handed")
    (root / "pyproject.toml").touch()
    (root / "specs").mkdir()
    (root / "specs" / "handed.yaml").write_text(SPEC, encoding="utf-8")
    made = _expc(root, "compile", "specs/handed.yaml")
    assert made.returncode == 0, made.stdout + made.stderr
    return root, _expc(root, "run", "generated/handed", "--jobs", "2")


def _expc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    env["PYTHON"] = sys.executable
    return subprocess.run(
        [sys.executable, "-m", "expc", *words],
        cwd=root, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def _stage(root: Path, condition: str, lr: str, stage: str) -> Path:
    (run,) = (
        p for p in (root / "runs" / "handed").glob(f"*{condition}*") if f"{lr},seed" in p.name
    )
    return run / stage


def _status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return found


def _home(root: Path, condition: str, lr: str, stage: str) -> Path:
    """Where the instance ran that a run's stage is."""
    folder = _stage(root, condition, lr, stage)
    same = _shared_with(folder)
    return root / "runs" / "handed" / same if same else folder


def _shared_with(folder: Path) -> str:
    return str(_status(folder).get("same_as") or "")


def _result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def _model(path: Path) -> dict[str, Any]:
    model: dict[str, Any] = torch.load(path, weights_only=True)["state"]["model"]
    return {key: value for key, value in model.items() if key.startswith("backbone.")}


def _declared(folder: Path, series: str) -> Path:
    """The file that a stage ended with, by its hash."""
    told = _result(folder)["extra"]["artifacts"][series]
    path: Path = folder / "checkpoints" / told["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]
    return path


def _begun(folder: Path) -> Path:
    """What a stage saved before its first update."""
    (path,) = (folder / "checkpoints").glob("last-0001-step0.pt")
    return path


def test_a_stage_begins_with_the_tensors_of_the_one_before_in_the_same_run(swept: Any) -> None:
    root, said = swept
    zeros, loops, digits = (_home(root, "open", RUNS[0], s) for s in ("zeros", "loops", "digits"))
    given, taken = _model(_declared(zeros, "best")), _model(_begun(loops))
    assert given.keys() == taken.keys() and given
    assert all(torch.equal(given[key], taken[key]) for key in given), said.stdout
    assert not all(
        torch.equal(given[key], v) for key, v in _model(_declared(loops, "last")).items()
    )
    given, taken = _model(_declared(loops, "last")), _model(_begun(digits))
    kept = _model(_declared(digits, "last"))
    for key in given:  # frozen: from the first to the last update
        assert torch.equal(given[key], taken[key]) and torch.equal(given[key], kept[key]), key
    handoff = _result(digits)["extra"]["handoff"]["backbone"]
    assert (handoff["stage"], handoff["series"]) == ("loops", "last")
    assert handoff["key"] == _result(loops)["key"] == _result(digits)["parents"]["loops"]


def test_equal_stages_of_a_sweep_run_once(swept: Any) -> None:
    root, _ = swept
    for stage in ("zeros", "loops"):
        homes = {_home(root, "open", lr, stage) for lr in RUNS}
        assert len(homes) == 1
        shared = [bool(_shared_with(_stage(root, "open", lr, stage))) for lr in RUNS]
        assert sum(shared) == 1
    assert len({_home(root, "open", lr, "digits") for lr in RUNS}) == 2


def test_a_gate_that_is_not_met_ends_the_run_before_the_next_stage(swept: Any) -> None:
    root, said = swept
    assert said.returncode == 1
    for lr in RUNS:
        failed = _status(_stage(root, "shut", lr, "zeros"))
        assert (failed["state"], failed["failure"], failed["code"]) == ("failed", "gate", 3)
        for part in ("gate not met: val/f1 after 1 epoch", "achieved: ", "required: >= 0.9999"):
            assert part in failed["reason"]
        for stage, by in (("loops", "zeros"), ("digits", "loops")):
            folder = _stage(root, "shut", lr, stage)
            assert (_status(folder)["state"], _status(folder)["by"]) == ("blocked", by)
            assert not (folder / "metrics.jsonl").exists()
            assert not (folder / "checkpoints").exists()
    home = _home(root, "shut", RUNS[0], "zeros")
    assert not (home / "result.json").exists()
    assert list((home / "checkpoints").glob("last-*.pt"))  # kept, though the gate is shut
    assert "reached " in said.stdout + said.stderr
