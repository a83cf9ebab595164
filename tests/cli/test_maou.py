"""The three gated stages on few games: all pass, in minutes, and twice the same to the last digit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("cshogi")

ROOT = Path(__file__).parents[2]
GAMES = ROOT / "specs" / "data" / "selfplay.tsv.xz"
SMALL = f"""\
expc: 1
name: NAME
about: The study on 94 games, about 10,000 positions.
extends: {ROOT / "specs" / "maou_three_stage.yaml"}
stages:
  legal:
    data: {{limit: {{groups: 94}}}}
    until: {{at_least: 0.45, budget: {{epochs: 12}}}}
  policy_value:
    data: {{limit: {{groups: 94}}}}
    until: {{epochs: 2}}
sweep:
  seeds: [0]
"""


def _expc(root: Path, *words: str) -> None:
    path = os.pathsep.join(str(ROOT / part) for part in ("compiler", "runtime", "templates"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHON": sys.executable}
    subprocess.run([sys.executable, "-m", "expc", *words], cwd=root, env=env, check=True)


def _metrics(root: Path, name: str) -> dict[str, Any]:
    stages = ("reachable", "legal", "policy_value")
    folder = root / "runs" / name / "rules,seed=0"
    results = {s: json.loads((folder / s / "result.json").read_text()) for s in stages}
    assert all(result["state"] == "done" for result in results.values())
    return {stage: result["metrics"] for stage, result in results.items()}


@pytest.mark.slow
def test_all_three_stages_pass_and_a_seed_means_the_same_figures(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "specs" / "data").mkdir(parents=True)
    (tmp_path / "specs" / "data" / GAMES.name).symlink_to(GAMES)
    for name in ("one", "other"):
        spec = tmp_path / "specs" / f"{name}.yaml"
        spec.write_text(SMALL.replace("NAME", name), encoding="utf-8")
        _expc(tmp_path, "run", str(spec), "--only", "rules,seed=0")
    one, other = (_metrics(tmp_path, name) for name in ("one", "other"))
    assert one == other
    assert one["reachable"]["train/f1"] >= 0.99
    assert one["legal"]["val/f1"] >= 0.45
