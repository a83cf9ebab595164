"""A sweep of small worlds, run for real: one of them breaks, and takes nothing with it but its own evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "worlds" / "spec.yaml"

OWN = '''
from expc_runtime.envs.pinpad import PinPad


class Breaking(PinPad):
    """Pin Pad on a simulator that dies at its fortieth step."""

    actions = 5

    def __init__(self, layout: str, *, batch: int, time_limit: int = 30) -> None:
        super().__init__(layout, batch=batch, time_limit=time_limit)
        self.left = 40

    def advance(self, action, u):
        self.left -= 1
        if self.left < 0 and self.batch == 2:
            raise RuntimeError("the simulator has died")
        return super().advance(action, u)
'''

SWEEP = """
sweep:
  seeds: [0]
  conditions:
    judged: {}
    broken: {train.env: {use: "own:Breaking", layout: three, time_limit: 30, batch: 2}}
    plain:
      boundaries: skip
      train.model.dynamics: {use: rssm, deter: 8, stoch: 2, classes: 4, hidden: 8}
      train.loss:
        image: {use: mse_sum}
        reward: {use: twohot_symlog, bins: 41}
        cont: {use: bce}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled spec whose condition `broken` has an environment that dies."""
    root = tmp_path_factory.mktemp("worlds")
    (root / "pyproject.toml").touch()
    (root / "own.py").write_text(OWN)
    spec = GOLDEN.read_text(encoding="utf-8").partition("\nsweep:")[0] + SWEEP
    (root / "specs").mkdir()
    (root / "specs" / "worlds.yaml").write_text(spec.replace("seeds: 2", "seeds: 1"))
    made = _expc(root, "compile", "specs/worlds.yaml")
    assert made.returncode == 0, made.stdout + made.stderr
    return root


def _expc(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    env["PYTHON"] = sys.executable
    return subprocess.run(
        [sys.executable, "-m", "expc", *words],
        cwd=root, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def _state(root: Path, run: str, stage: str) -> dict[str, object]:
    path = root / "runs" / "worlds" / f"{run},seed=0" / stage / "status.json"
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_what_breaks_leaves_the_others_unharmed_and_a_second_run_does_what_is_missing(
    project: Path,
) -> None:
    first = _expc(project, "run", "generated/worlds", "--jobs", "2", "--no-smoke")
    told = first.stdout + first.stderr
    assert first.returncode == 1, told
    assert _state(project, "judged", "train")["state"] == "done"
    assert _state(project, "judged", "boundaries")["state"] == "done"
    assert _state(project, "plain", "train")["state"] == "done"
    assert _state(project, "broken", "train")["failure"] == "crash"
    blocked = _state(project, "broken", "boundaries")
    assert (blocked["state"], blocked["by"]) == ("blocked", "train")
    assert "the simulator has died" in told and "blocked" in told
    folder = project / "runs" / "worlds" / "judged,seed=0" / "boundaries"
    judged = json.loads((folder / "boundary_eval.json").read_text(encoding="utf-8"))
    assert len(judged["episodes"]) == 2
    assert (folder / "boundary_grid.png").read_bytes().startswith(b"\x89PNG")

    done = {path: path.stat().st_mtime_ns for path in project.glob("runs/*/*/*/result.json")}
    mended = OWN.replace("self.left < 0", "self.left < -(10**9)")
    (project / "own.py").write_text(mended)
    assert _expc(project, "compile", "specs/worlds.yaml").returncode == 0
    second = _expc(project, "run", "generated/worlds", "--jobs", "2", "--no-smoke")
    assert second.returncode == 0, second.stdout + second.stderr
    assert _state(project, "broken", "boundaries")["state"] == "done"
    assert {path: path.stat().st_mtime_ns for path in done} == done
