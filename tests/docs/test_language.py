"""The stages that docs/language.md shows are stages: they have every key, and they lint."""

from pathlib import Path

import yaml

from expc.kinds import KINDS
from expc.lint.check import check
from expc.lint.core import Rule
from expc.spec import Ray, Run, Slurm

ROOT = Path(__file__).resolve().parents[2]
FIRST = """\
expc: 1
name: shown
about: Is the stage in the docs a stage?
stages:
  pretrain:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model: {backbone: {use: conv_net, channels: [32, 64]}}
    heads: {digit: {use: linear_head, out: 10}}
    loss: {digit: {use: cross_entropy}}
    metrics: {accuracy: {use: accuracy, of: digit}}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 12}
    monitor: {accuracy: val/accuracy}
"""


def test_the_stage_shown_has_every_key_and_lints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```yaml\n") if block.startswith("main:"))
    stage = shown.split("```")[0]
    assert set(yaml.safe_load(stage)["main"]) == set(KINDS["supervised"].shape.model_fields)
    spec = tmp_path / "shown.yaml"
    spec.write_text(FIRST + "".join(f"  {line}\n" if line else "\n" for line in stage.splitlines()))
    assert [f.message for f in check(spec, tmp_path).findings] == []


def test_the_world_shown_has_every_key_and_lints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in page.split("```yaml\n")]
    shown = [block for block in blocks if block.startswith(("world:", "boundaries:"))]
    for stage, kind in zip(shown, ("world_model", "evaluate"), strict=True):
        (keys,) = yaml.safe_load(stage).values()
        assert set(keys) == set(KINDS[kind].shape.model_fields)
    spec = tmp_path / "shown.yaml"
    head = "expc: 1\nname: shown\nabout: Are the stages in the docs stages?\nstages:\n"
    lines = [line for stage in shown for line in stage.splitlines()]
    spec.write_text(head + "".join(f"  {line}\n" if line else "\n" for line in lines))
    errors = [
        f for f in check(spec, tmp_path).findings if Rule.registry[f.code].severity == "error"
    ]
    assert [f.message for f in errors] == []


def test_the_run_shown_has_every_key_and_lints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```yaml\n") if block.startswith("run:"))
    run = shown.split("```")[0]
    held = yaml.safe_load(run)["run"]
    assert set(held) == set(Run.model_fields)
    assert set(held["slurm"]) == set(Slurm.model_fields)
    assert set(held["ray"]) == set(Ray.model_fields)
    spec = tmp_path / "shown.yaml"
    stage = FIRST.replace("[32, 64]", "[32, 64], norm: false")  # `devices` would be a finding
    spec.write_text(stage + "    precision: bf16-mixed\n" + run)
    assert [f.message for f in check(spec, tmp_path).findings] == []


BOARDS = """\
expc: 1
name: shown
about: Is the data in the docs data?
stages:
  main:
    kind: supervised
    model: {backbone: {use: resnet}}
    heads: {legal: {use: linear_head, out: 1496}}
    loss: {legal: {use: bce, target: legalMovesLabel}}
    optim: {use: adamw}
    until: {epochs: 2}
"""


def test_the_data_shown_lints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    shown = next(block for block in page.split("```yaml\n") if block.startswith("data:"))
    data = shown.split("```")[0]
    (file := tmp_path / "data/positions/a.feather").parent.mkdir(parents=True)
    file.touch()
    spec = tmp_path / "shown.yaml"
    spec.write_text(BOARDS + "".join(f"    {line}\n" for line in data.splitlines()))
    assert [f.message for f in check(spec, tmp_path).findings] == []
