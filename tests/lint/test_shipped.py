"""The specs we ship: clean where they are meant to be, found out where they are not, and mutated one fault at a time."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from expc.findings import Finding
from expc.lint.check import check
from expc.lint.core import DryRule, Rule, ToldRule, rules
from expc.lint.engine import fix_file

ROOT = Path(__file__).parents[2]
DIGITS = (ROOT / "specs" / "digits.yaml").read_text()
THREE_STAGES = (ROOT / "specs" / "maou_three_stage.yaml").read_text()
STUDY = (ROOT / "specs" / "pinpad_vta.yaml").read_text()
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
CLEAN = [spec for spec in SPECS if not spec.stem.endswith(("_as_feared", "_as_reported"))]
FAULTY = [spec for spec in SPECS if spec not in CLEAN]


def found(spec: Path, root: Path) -> list[Finding]:
    """Findings, but for those about the generated folder: whether that is fresh is another test's business."""
    return [finding for finding in check(spec, root).findings if finding.code[:3] != "XC9"]


def lines(findings: list[Finding]) -> list[str]:
    return [f"{f.span.line}:{f.span.col} {f.code} {f.message}" for f in findings]


@pytest.mark.parametrize("spec", CLEAN, ids=lambda spec: spec.stem)
def test_clean(spec: Path) -> None:
    assert lines(found(spec, ROOT)) == []


@pytest.mark.parametrize("spec", FAULTY, ids=lambda spec: spec.stem)
def test_faulty_says_what_the_file_beside_it_says(spec: Path) -> None:
    """Every fault of the spec is told in one run: none of them hides another."""
    expected = spec.with_name(f"{spec.stem}.findings.txt").read_text().splitlines()
    assert lines(found(spec, ROOT)) == expected


def test_fix_mends_what_is_safe(tmp_path: Path) -> None:
    shutil.copy(ROOT / "specs" / "digits_as_feared.yaml", tmp_path / "feared.yaml")
    (tmp_path / "pyproject.toml").write_text("")
    spec = tmp_path / "feared.yaml"
    before = spec.read_text().splitlines()
    done = fix_file(spec)
    after = spec.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        (
            "    optim: {use: adamw, lr: 3e-3, eps: 1.0e-8}",
            "    optim: {use: adamw, lr: 3.0e-3, eps: 1.0e-8}",
        ),
        ("    compile: no", "    compile: false"),
        ("    monitor: {best: val/acuracy}", "    monitor: {best: val/accuracy}"),
        ("      digit: {use: linear_head, out: 9}", "      digit: {use: linear_head, out: 10}"),
        ("  seeds: [0, 1, 2, 2]", "  seeds: [0, 1, 2]"),
    ]
    assert len(done) == len(changed)
    mended = {"XC001", "XC002", "XC203", "XC309", "XC505"}
    left = {finding.code for finding in found(spec, tmp_path)}
    assert left == {"XC208", "XC224", "XC301", "XC306", "XC401", "XC402", "XC502"}
    assert not mended & left
    assert fix_file(spec) == ()


MUTATIONS = [
    ("lr: 3.0e-3,", "lr: 3e-3,", "XC001"),
    ("at_least: 0.97", "at_least: 97.0", "XC225"),
    ("at_least: 0.97", "below: 1.5", "XC225"),
    ("use: adamw, lr: 3.0e-3,", "use: adam, lr: 3.0e-3,", "XC408"),
    ("clip: 1.0", "compile: off", "XC002"),
    ("clip: 1.0", "clip: 1:30", "XC003"),
    ("clip: 1.0", "clip: 1.0\n    clip: 2.0", "XC004"),
    ("optim: {use: adamw,", "optim: {<<: {use: adamw},", "XC005"),
    ("clip: 1.0", "clip: [1.0", "XC006"),
    ("clip: 1.0", "clip: 1.0  # expc: allow rate-too-high", "XC008"),
    ("clip: 1.0", "clip: 1.0  # expc: allow rate-too-high -- tried", "XC009"),
    ("clip: 1.0", "clip: 1.0  # expc: allow rate-to-high -- tried", "XC010"),
    ("weight: 1.0}", "wieght: 1.0}", "XC101"),
    ("batch: 64, ", "", "XC102"),
    ("batch: 64, ", "batch: 64.5, ", "XC103"),
    ("{use: conv_net,", "{use: conv_nett,", "XC104"),
    ("  read:", "  class:", "XC105"),
    ("{use: brier, of: loop}", "{use: ownlab:Nothing, of: loop}", "XC106"),
    ("about: ", "about: ghp_0123456789abcdefghijklmnop ", "XC107"),
    ("name: digits", "name: digits\nextends: nowhere.yaml", "XC201"),
    ("clip: 1.0", "init: {backbone: {from: read}}", "XC202"),
    ("best: val/accuracy", "best: val/acuracy", "XC203"),
    ("metric: accuracy, at", "metric: acuracy, at", "XC203"),
    ("clip: 1.0", "init: {backbone: {from: raed}}", "XC204"),
    ("clip: 1.0", "init: {backbone: {file: no.safetensors}}", "XC205"),
    ("metric: accuracy, at", "metric: accuracy, on: train, at", "XC206"),
    ("val: 0.2, ", "", "XC207"),
    ("metric: accuracy, at_least: 0.97", "metric: loop_brier, at_most: 0.25", "XC208"),
    ("budget: {epochs: 12}, ", "", "XC209"),
    ("at_least: 0.97, ", "", "XC209"),
    ("budget: {epochs: 12}", "budget: {epochs: 12, minutes: 5}", "XC209"),
    ("at_least: 0.97", "at_least: 0.97, patience: 12", "XC210"),
    ("clip: 1.0", "checkpoint: {every: {epochs: 13}}", "XC211"),
    ("clip: 1.0", "checkpoint: {every: {updates: 10000}}", "XC211"),
    ("    monitor: {best: val/accuracy}\n", "", "XC212"),
    ("clip: 1.0", "init: {bakbone: {file: pyproject.toml}}", "XC213"),
    ("clip: 1.0", "frozen: {bakbone: {file: pyproject.toml}}", "XC213"),
    ("weight_decay: 0.01}", "weight_decay: 0.01, trains: [bakbone]}", "XC213"),
    ("clip: 1.0", "frozen: {backbone: {from: raed}}", "XC204"),
    ("clip: 1.0", "frozen: {backbone: {from: read}}", "XC202"),
    ("clip: 1.0", "frozen: {backbone: {file: no.safetensors}}", "XC205"),
    ("until: {metric: accuracy, at",
     "model: {backbone: {use: conv_net, norm: false}}\n    until: {metric: accuracy, mode: train, at", "XC215"),
    ("metric: accuracy, at", "metric: accuracy, mode: train, at", "XC216"),
    ("clip: 1.0", "norm_statistics: reestimated", ""),
    ("clip: 1.0", "norm_statistics: reestimated\n    frozen: {backbone: {file: pyproject.toml}}", "XC217"),
    ("weight_decay: 0.01}", "weight_decay: 0.01, trains: [backbone, heads.digit]}", "XC218"),
    ("weight_decay: 0.01}", "weight_decay: 0.01, trains: [backbone, heads.digit, heads.loop]}", ""),
    ("weight_decay: 0.01}", "weight_decay: 0.01, trains: [backbone, heads.digit, heads.lop]}", "XC213"),
    ("clip: 1.0", "frozen: {backbone: {file: pyproject.toml, missing: [mask]}}", "XC222"),
    ("weight_decay: 0.01}",
     "weight_decay: 0.01, trains: [heads.digit, heads.loop]}\n    frozen: {backbone: {file: pyproject.toml}}", ""),
    ("weight_decay: 0.01}",
     "weight_decay: 0.01, trains: [backbone]}\n    frozen: {backbone: {file: pyproject.toml}}", "XC219"),
    ("clip: 1.0",
     "init: {backbone: {file: pyproject.toml}}\n    frozen: {backbone: {file: pyproject.toml}}", "XC222"),
    ("weight_decay: 0.01}",
     "weight_decay: 0.01, trains: [backbone, heads.digit, heads.loop]}\n    frozen: {backbone: {file: pyproject.toml}}",
     "XC222"),
    ("{use: linear_head, out: 1}", "{use: linear_head, out: 1, gives: prob}", "XC301"),
    ("{use: brier, of: loop}", "{use: brier, of: loop, reads: logits}", "XC301"),
    ("      loop: {use: bce, weight: 1.0}\n", "", "XC302"),
    ("of: loop}", "of: lop}", "XC303"),
    ("weight: 1.0}", "weight: 1.0, target: loops}", "XC304"),
    ("weight: 1.0}", "weight: 0.0}", "XC305"),
    ("{use: brier, of: loop}", "{use: f1, of: loop, threshold: 0.0}", "XC306"),
    ("{use: brier, of: loop}", "{use: f1, of: loop, threshold: 1.5}", "XC306"),
    ("{use: brier, of: loop}", "{use: f1, of: loop, reads: logits}", "XC306"),
    ("weight: 1.0}", "weight: 1.0}\n      square: {use: mse, of: loop, target: loop}", "XC307"),
    ("{use: cross_entropy}", "{use: cross_entropy, target: even}", "XC308"),
    ("{use: digits,",
     "{use: arrays, file: a.npz, columns: {image: features, digit: class, loop: prob, writer: group},", "XC601"),
    ("batch: 64,", "batch: 64, stream: {window: 1000},", "XC611"),
    ("batch: 64,", "batch: 64, limit: {rows: 1000},", ""),
    ("out: 10}", "out: 11}", "XC309"),
    ("linear_head, out: 1}", "linear_head, out: 2}", "XC309"),
    ("loop_brier: {use", "loop: {use", "XC310"),
    ("    read.loss.loop.use: [bce, mse]", "    read.optim.eps: [1.0e-8]", ""),
    ("use: bce, weight: 1.0", "use: mse", ""),
    ("{use: adamw,", "{use: adamw, eps: 1.0e-8,", ""),
    ("[32, bf16-mixed]", "[32, 16-mixed]", ""),
    ("[32, bf16-mixed]", "[32, 16-mixed]\n    read.optim.eps: [1.0e-8, 1.0e-4]", "XC401"),
    ("lr: [1.0e-3, 3.0e-3]", "lr: [1.0e-3, 0.3]", "XC402"),
    ("    clip: 1.0", "    precision: 16-mixed", "XC403"),
    ("warmup: {epochs: 1}", "warmup: {epochs: 12}", "XC404"),
    ("warmup: {epochs: 1}", "warmup: {updates: 1000}", "XC404"),
    ("clip: 1.0", "accumulate: 100", "XC405"),
    ("weight_decay: 0.01}", "weight_decay: 0.01, decay: all}", "XC406"),
    ("until: {metric: accuracy, at_least: 0.97, budget: {epochs: 12}, otherwise: warn}",
     "until: {epochs: 12, otherwise: warn}", "XC407"),
    ("{use: accuracy, of: digit}", "{use: accuracy, of: digit, threshold: 0.5}", "XC407"),
    ("split: {val", "inputs: {pixels: image}, split: {val", "XC407"),
    ("read.optim.lr:", "read.optim.rate:", "XC501"),
    ("read.optim.lr:", "raed.optim.lr:", "XC501"),
    ("read.optim.lr: [1.0e-3, 3.0e-3]", "read.until.on: [val, train]", "XC206"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n    read.until.budget.minutes: [1, 2]", "XC209"),
    ("seeds: [0, 1, 2]", "seeds: [0, 1, 1]", "XC505"),
    ("lr: [1.0e-3, 3.0e-3]", "lr: [1.0e-3, 1.0e-3]", "XC505"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n  exclude: [{read.optim.lr: 5.0e-3}]", "XC506"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n  exclude: [{condition: slow}]", "XC506"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n  zip: {read.clip: [1.0, 2.0], read.data.batch: [32]}",
     "XC507"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n  conditions: {slow: {read.optim.lr: 1.0e-4}}", "XC508"),
    ("[1.0e-3, 3.0e-3]", "[1.0e-3, 3.0e-3]\n  conditions: {all: {}, none: {read: skip}}", "XC502"),
    ("sweep:\n", "run: {retry: {gate: {times: 2}}}\nsweep:\n", "XC509"),
    ("sweep:\n", "run: {retry: {killed: {times: 2, delay: {seconds: 30}}, crash: {}}}\nsweep:\n", ""),
    ("sweep:\n", "run: {retry: {diverged: {optim.weight_dacay: half}}}\nsweep:\n", "XC510"),
    ("sweep:\n", "run: {retry: {diverged: {schedule: half}}}\nsweep:\n", "XC510"),
    ("sweep:\n", "run: {retry: {diverged: {clip: 1.0}}}\nsweep:\n", "XC511"),
    ("sweep:\n", "run: {retry: {diverged: {clip: 1}}}\nsweep:\n", "XC511"),
    ("sweep:\n", "run: {retry: {diverged: {heads.loop.out: half}}}\nsweep:\n", "XC510"),
    ("sweep:\n", "run: {retry: {oom: {data.batch: half}}}\nsweep:\n", "XC510"),
    ("sweep:\n", "run: {retry: {diverged: {clip: half, times: 3}}}\nsweep:\n", ""),
    ("sweep:\n", "run: {retry: {killed: {times: 0}}}\nsweep:\n", "XC511"),
    ("sweep:\n", "run: {retry: {oom: {times: 2}}}\nsweep:\n", "XC512"),
    ("sweep:\n", "run: {retry: {leak: {}}}\nsweep:\n", "XC512"),
    ("sweep:\n", "run: {retry: {oom: {microbatch: half, times: 2}}}\nsweep:\n", ""),
    ("sweep:\n", "run: {retry: {diverged: {precision: 32}}}\nsweep:\n", "XC513"),
    ("sweep:\n", "run: {retry: {diverged: {optim.lr: half}}}\nsweep:\n", "XC513"),
    ("clip: 1.0", "precision: 32\n    run: {retry: {oom: {precision: bf16-mixed}}}", "XC514"),
    ("budget: {epochs: 12}, otherwise: warn}",
     "budget: {minutes: 30}, otherwise: warn}\n    run: {timeout: {minutes: 20}}", "XC515"),
    ("budget: {epochs: 12}, otherwise: warn}",
     "budget: {minutes: 30}, otherwise: warn}\n    run: {timeout: {minutes: 20}, retry: {timed_out: {}}}", ""),
    ("clip: 1.0", "checkpoint: {every: {minutes: 30}}\n    run: {timeout: {minutes: 20}}", "XC516"),
    ("clip: 1.0", "checkpoint: {every: {minutes: 5}}\n    run: {timeout: {minutes: 20}}", ""),
    ("clip: 1.0", "run: {devices: 3}", "XC518"),
    ("clip: 1.0", "microbatch: 0.5", "XC518"),
    ("clip: 1.0", "microbatch: 0.5\n    model: {backbone: {norm: false}}", ""),
    ("clip: 1.0", "run: {devices: 3}\n    model: {backbone: {norm: false}}", ""),
    ("sweep:\n", "run: {notify: {webhook: 'https://chat.example/hook'}}\nsweep:\n", "XC107"),
    ("sweep:\n", "run: {timeout: {hours: 1}}\nsweep:\n", ""),
    ("  grid:\n", "  conditions: {a: {}, b: {read.run: {timeout: {hours: 1}}}}\n  grid:\n", "XC501"),
    ("lr: [1.0e-3, 3.0e-3]", "lr: [1.0e-3, -3.0e-3]", "XC103"),
    ("lr: [1.0e-3, 3.0e-3]", "lr: [1.0e-3, 3e-3]", "XC001"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code"), MUTATIONS, ids=[f"{c or 'clean'}-{n}" for _, n, c in MUTATIONS]
)
def test_a_fault_in_a_shipped_spec_is_found(old: str, new: str, code: str, tmp_path: Path) -> None:
    text = re.sub(r"(read\.optim\.lr:) \[.*\]", r"\1 [1.0e-3, 3.0e-3]", DIGITS)
    assert old in text
    spec = tmp_path / "specs" / "digits.yaml"
    spec.parent.mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    spec.write_text(text.replace(old, new, 1))
    codes = {finding.code for finding in check(spec, tmp_path).findings}
    assert code in codes if code else not codes


WORLDS = [
    ("layout: three,", "layout: three, variant: port,", "XC701"),
    ("layout: three,", "layout: three, variant: port, targets: ['1', '123'],", ""),
    ("layout: three,", "layout: three, targets: ['123'],", "XC407"),
    ("layout: three,", "layout: four,", "XC702"),
    ("env_steps: 43200", "env_steps: 2300", "XC702"),
    ("layout: three,", "layout: three, variant: port,", "XC703"),
    ("permutations: 1000", "permutations: 100", "XC704"),
    ("perm_p_value, below: 0.05", "perm_p_value, below: 0.001", "XC704"),
    ("expc: allow rate-below-argmax", "no comment", "XC705"),
    ("max_seg_len: 30", "max_seg_len: 5", "XC706"),
    ("max_seg_len: 30", "rate: 0.3", "XC706"),
    ("        - {metric: forced_ratio, below: 0.5}\n", "", "XC707"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.until.env_steps: 36000}", "XC708"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.until.env_steps: 43000}", ""),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.precision: 16-mixed}", "XC708"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.optim.world.lr: 3.0e-4}", "XC708"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.replay.batch: 24}", "XC708"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.evaluate.every.env_steps: 2000}", "XC708"),
    ("vta_force0_t1: {}", "vta_force0_t1: {train.checkpoint.every.minutes: 5}", ""),
    ("expc: allow unequal-sizes", "no comment", "XC709"),
    ("minutes: 10", "minutes: 90", "XC710"),
    ("minutes: 10", "updates: 5000", "XC710"),
    ("minutes: 10", "updates: 2000", ""),
    ("minutes: 10", "updates: 30000", "XC211"),
    ("boundaries: skip", "boundaries.measure.episodes: 3", "XC711"),
    ("[pad_enter, frame_delta, reward]", "[frame_delta, reward]", "XC712"),
    ("expc: allow action-unseen", "no comment", "XC713"),
    ("      episodes: 4\n", "      episodes: 8\n", "XC714"),
    ("      seeds: 2", "      seeds: 4", "XC715"),
    ("every: {env_steps: 6000}", "every: {env_steps: 1}", "XC716"),
    ("\nrun:\n", "\n  again: {kind: evaluate, of: boundaries, measure: {use: boundary_alignment}}\nrun:\n", "XC717"),
    ("eval/return", "train/image", "XC203"),
    ("temp: 1.0", "temp: 1.0, max_seg_num: 100", ""),
    ("dynamics.temp: 2.0", "dynamics.max_seg_num: 100", "XC407"),
    ("dynamics.temp: 2.0", "dynamics.imag_boundary: none", ""),
    ("entropy: 3.0e-4", "entropy: 0.0, entropy_through: actor", "XC407"),
    ("[pad_enter, frame_delta, reward]", "[pad_enter, reward]\n      percentile: 80.0", "XC407"),
    ("      episodes: 4\n", "      length: 30\n      pictures: [fired]\n", "XC407"),
    ("world: {use: adam, lr: 1.0e-4", "world: {use: sgd, lr: 1.0e-4, nesterov: true", "XC407"),
    ("monitor: {best: eval/return}", "precision: 16-mixed", ""),
    ("eps: 1.0e-5, clip: 100.0}\n    until", "eps: 1.0e-5}\n    precision: 16-mixed\n    until", "XC403"),
    ("eps: 1.0e-5, clip: 100.0}\n    until", "eps: 1.0e-8, clip: 1.0}\n    precision: 16-mixed\n    until",
     "XC401"),
    ("eval/return", "eval/image", "XC203"),
    ("timeout: {hours: 8}", "timeout: {hours: 8}\n  devices: 2", "XC517"),
    ("timeout: {hours: 8}", "timeout: {minutes: 8}", "XC516"),
    ("monitor: {best: eval/return}", "run: {retry: {oom: {microbatch: half}}}", "XC510"),
    ("monitor: {best: eval/return}", "run: {retry: {oom: {replay.batch: half}}}", "XC510"),
    ("monitor: {best: eval/return}", "run: {retry: {diverged: {optim.world.lr: half}}}", ""),
    ("monitor: {best: eval/return}", "run: {retry: {diverged: {model.dynamics.temp: half}}}", "XC510"),
    ("loss.rate.weight", "loss.rate.wieght", "XC101"),
    ("train.model.dynamics.rate: 0.1", "train.model.dynamics.free: 0.1", "XC102"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code"), WORLDS, ids=[f"{c or 'clean'}-{n}" for _, n, c in WORLDS]
)
def test_a_fault_in_the_study_is_found(old: str, new: str, code: str, tmp_path: Path) -> None:
    assert old in STUDY
    (tmp_path / "pyproject.toml").write_text("")
    spec = tmp_path / "study.yaml"
    spec.write_text(STUDY.replace(old, new, 1))
    codes = {finding.code for finding in check(spec, tmp_path).findings}
    assert code in codes if code else not codes


FACTS = [
    ("", "", "", "", ""),
    ("at_least: 0.97", "at_least: 0.15", "", "", "XC602"),
    ("at_least: 0.97", "at_least: 0.3", "", "", ""),
    ("    read.loss.loop.use: [bce, mse]", "    read.data.batch: [32, 64]", "", "", ""),
    ("use: bce, weight: 1.0", "use: mse", "", "", ""),
    ("val: 0.2, ", "val: 0.3, ", "", "", "XC609"),
    ("batch: 64", "batch: 32", "", "", ""),
    ("loop_brier: {use: brier, of: loop}", "f1: {use: f1, of: loop}", "", "", "XC609"),
    ("", "", '"constant": 0', '"constant": 1', "XC606"),
    ("", "", '"repeated": 0', '"repeated": 90', "XC607"),
    ("", "", '"repeated": 0', '"repeated": 9', ""),
    ("", "", '"unfit": 0', '"unfit": 1', "XC608"),
    ("", "", '"highest": 9,', '"highest": 10,', "XC608"),
    ("", "", '"use": "digits"', '"use": "arrays"', "XC609"),
    ("", "", '"stage": "read"', '"stage": "write"', "XC609"),
    ("", "", '"facts": 1', '"facts": 2', "XC610"),
    ("", "", '"variance"', '"varience"', "XC610"),
    ("", "", "[0.603228", "[true", "XC610"),
    ("", "", "{", "", "XC610"),
    ("", "", '"rows": 359', '"rows": 0', "XC610"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "known", "mutated", "code"),
    FACTS,
    ids=[f"{each[4] or 'clean'}-{each[1] or each[3]}" for each in FACTS],
)
def test_a_fault_in_the_data_of_a_shipped_spec_is_found(
    old: str, new: str, known: str, mutated: str, code: str, tmp_path: Path
) -> None:
    """Of the shipped facts, or of a spec that is held against them."""
    facts = (ROOT / "specs" / "digits.facts.json").read_text()
    assert old in DIGITS and known in facts
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "digits.yaml").write_text(DIGITS.replace(old, new, 1))
    (tmp_path / "digits.facts.json").write_text(facts.replace(known, mutated, 1))
    found = check(tmp_path / "digits.yaml", tmp_path).findings
    assert [finding.code for finding in found] == ([code] if code else [])


@pytest.mark.parametrize(
    ("swept", "data", "code"),
    [
        ("split.val: [0.1, 0.3]", "", ""),
        ("split.val: [0.1, 0.3]", "val: 0.3, test: 0.2", ""),
        ("split.val: [0.1, 0.3]", "val: 0.2, test: 0.3", "XC609"),
        ("batch: [32, 64]", "", ""),
        ("batch: [32, 64]", "val: 0.3, test: 0.2", "XC609"),
    ],
)
def test_facts_of_one_point_of_a_sweep_say_nothing_of_other_data(
    swept: str, data: str, code: str, tmp_path: Path
) -> None:
    """Points that were not profiled are no finding; what the sweep leaves alone must still be as it was."""
    shutil.copy(ROOT / "specs" / "digits.facts.json", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    text = DIGITS.replace("    read.loss.loop.use: [bce, mse]", f"    read.data.{swept}")
    (tmp_path / "digits.yaml").write_text(
        text.replace("val: 0.2, test: 0.2", data or "val: 0.2, test: 0.2")
    )
    found = check(tmp_path / "digits.yaml", tmp_path).findings
    assert {finding.code for finding in found} == ({code} if code else set())


def test_a_squared_error_on_the_shipped_labels_is_told_with_its_floor(tmp_path: Path) -> None:
    shutil.copy(ROOT / "specs" / "digits.facts.json", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    alone = DIGITS.replace("    read.loss.loop.use: [bce, mse]\n", "")
    (tmp_path / "digits.yaml").write_text(alone.replace("use: bce, weight: 1.0", "use: mse"))
    (told,) = check(tmp_path / "digits.yaml", tmp_path).findings
    assert told.code == "XC603"
    assert "100 % of column `loop` lie below .1 or above .9" in told.message
    assert told.why.startswith("a constant answer reaches 0.2461;")
    (tmp_path / "digits.facts.json").unlink()
    (told,) = check(tmp_path / "digits.yaml", tmp_path).findings
    assert told.code == "XC312"  # the same loss, judged without the data


HANDED_ON = [
    ("clip: 1.0", "clip: 2.0", ""),
    ("on: train,", "on: train, mode: train,", "XC216"),
    ("{from: reachable}", "{from: reachable, best: f1}", "XC214"),
    ("{from: reachable}", "{file: pyproject.toml}", "XC224"),
    ("{use: shogi.reachable_squares, batch: 32}",
     "{use: arrays, file: pyproject.toml, columns: {board: features, reachable: prob}, batch: 32}", "XC223"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "code"), HANDED_ON, ids=[f"{c or 'clean'}-{n}" for _, n, c in HANDED_ON]
)
def test_a_fault_between_stages_of_a_shipped_spec_is_found(
    old: str, new: str, code: str, tmp_path: Path
) -> None:
    text = THREE_STAGES.replace("specs/data/selfplay.tsv.xz", "pyproject.toml")
    assert old in text
    spec = tmp_path / "study.yaml"
    (tmp_path / "pyproject.toml").write_text("")
    spec.write_text(text.replace(old, new, 1))
    codes = {finding.code for finding in check(spec, tmp_path).findings}
    assert code in codes if code else not codes & {c for _, _, c in HANDED_ON}


def test_an_allow_is_not_idle_while_its_stage_can_not_be_found(tmp_path: Path) -> None:
    """Rules that compare stages have not run then; and no stage is told to measure itself."""
    spec = tmp_path / "study.yaml"
    spec.write_text(STUDY.replace("of: train", "of: boundaries2"))
    (told,) = check(spec, tmp_path).findings
    assert (told.code, told.help) == ("XC204", "stages: `train`")


def test_a_study_of_training_alone_is_no_unequal_training(tmp_path: Path) -> None:
    """Conditions may differ in their budget when that is all they differ in."""
    (tmp_path / "pyproject.toml").write_text("")
    spec = tmp_path / "study.yaml"
    conditions = "  conditions: {short: {train.until.env_steps: 20000}, long: {}}\n"
    spec.write_text(STUDY.partition("  conditions:\n")[0] + conditions)
    assert "XC708" not in {finding.code for finding in check(spec, tmp_path).findings}


def test_what_a_condition_sets_is_told_where_it_stands() -> None:
    """Both places of a comparison: an allow at either covers it."""
    spec = ROOT / "specs" / "pinpad_as_reported.yaml"
    text = spec.read_text().splitlines()
    (budget,) = [f for f in found(spec, ROOT) if "until.env_steps" in f.message]
    (note,) = budget.notes
    assert text[budget.span.line - 1].strip() == "train.until.env_steps: 43200"
    assert text[note.span.line - 1].strip().startswith("until: {env_steps: 51200}")
    assert note.span in budget.spans


def test_every_rule_fires_on_a_shipped_spec() -> None:
    """All but those that need another file, a wide head, two stages, class probabilities, a sweep of many modules, or a dry run."""
    elsewhere = {"XC007", "XC214", "XC311", "XC312", "XC503", "XC603", "XC604", "XC605"}
    fired = {each[-1] for each in (*MUTATIONS, *WORLDS, *FACTS, *HANDED_ON)} | elsewhere
    tried = [rule for rule in rules() if not issubclass(rule, DryRule) and rule.code[:3] != "XC9"]
    missing = [rule.code for rule in tried if rule.code not in fired]
    assert missing == []


def test_told_rules_can_not_be_allowed(tmp_path: Path) -> None:
    """An allow over a fault that stops the compile would only hide it."""
    told = [rule for rule in rules() if issubclass(rule, ToldRule)]
    assert Rule.registry["XC301"] in told
    faulty = DIGITS.replace("out: 1}", "out: 1, gives: prob}").replace(
        "weight: 1.0}", "weight: 1.0}  # expc: allow bce-on-probabilities -- to see what happens"
    )
    spec = tmp_path / "digits.yaml"
    spec.write_text(faulty)
    assert {finding.code for finding in check(spec, tmp_path).findings} == {"XC301", "XC009"}


def test_an_allow_with_a_reason_silences_its_line_alone(tmp_path: Path) -> None:
    spec = tmp_path / "digits.yaml"
    faulty = DIGITS.replace("weight: 1.0}", "weight: 0.0}  # expc: allow weight-zero -- a control")
    spec.write_text(faulty)
    assert check(spec, tmp_path).findings == ()
    spec.write_text(faulty.replace("clip: 1.0", "accumulate: 100"))
    assert [finding.code for finding in check(spec, tmp_path).findings] == ["XC405"]
