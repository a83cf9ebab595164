"""The stage that docs/language.md shows is one: it has every key, and it lints."""

from pathlib import Path

import yaml

from expc.kinds import KINDS
from expc.lint.check import check

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
