"""`expc plan --check`: what would fail after hours is told at its line, and nothing is read or trained for it.

All specs here are looked at by one child, as torch takes seconds to load.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
pytest.importorskip("torch")

from expc.build import compiled
from expc.cli import main
from expc.dry import Dry, dry
from expc.findings import Finding
from expc.lint.core import DryRule, Rule, rules
from expc.lint.engine import lint_files
from expc.lint.pages import cases

REPOSITORY = Path(__file__).parents[2]

DIGITS = """\
expc: 1
name: it
about: Does it fit together?
stages:
  read:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model:
      backbone: {use: conv_net, channels: [8, 16]}
    heads:
      digit: {use: linear_head, out: 10}
      loop: {use: linear_head, out: 1}
    loss:
      digit: {use: cross_entropy}
      loop: {use: bce}
    metrics:
      accuracy: {use: accuracy, of: digit}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 2}
"""

FILE = """\
expc: 1
name: it
about: Does it fit together?
stages:
  read:
    kind: supervised
    data: {use: arrays, file: data.npz, batch: 8, columns: {board: features, squares: prob}}
    model:
      backbone: {use: mlp, in_features: 12, hidden: [16]}
    heads:
      squares: {use: linear_head, out: 5}
    loss:
      squares: {use: bce}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 2}
"""

TWO = """\
expc: 1
name: it
about: Does it fit together?
stages:
  first:
    kind: supervised
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model:
      backbone: {use: conv_net, channels: [8, 16]}
    heads:
      digit: {use: linear_head, out: 10}
    loss:
      digit: {use: cross_entropy}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 2}
  second:
    kind: supervised
    init:
      backbone: {from: first}
      heads.loop: {from: first, part: heads.digit}
    data: {use: digits, batch: 64, split: {val: 0.2}}
    model:
      backbone: {use: conv_net, channels: [8, 16]}
    heads:
      loop: {use: linear_head, out: 10}
    loss:
      loop: {use: cross_entropy, target: digit}
    optim: {use: adamw, lr: 3.0e-3}
    until: {epochs: 2}
"""

WORLD = """\
expc: 1
name: it
about: Does a small world fit together?
stages:
  train:
    kind: world_model
    env: {use: pinpad, layout: three, time_limit: 100, batch: 2}
    model:
      encoder: {use: conv_encoder, depth: 2}
      dynamics: {use: rssm, deter: 8, stoch: 2, classes: 3, hidden: 8}
      decoder: {use: conv_decoder, depth: 2}
    loss:
      image: {use: mse_sum}
      reward: {use: twohot_symlog}
      cont: {use: bce}
    behaviour: {use: actor_critic, horizon: 2}
    replay: {batch: 2, length: 3, train_ratio: 8.0, prefill: {env_steps: 200}}
    optim:
      world: {use: adam, lr: 1.0e-3}
      actor: {use: adam, lr: 1.0e-4}
      critic: {use: adam, lr: 1.0e-4}
    until: {env_steps: 2000}
    evaluate: {every: {env_steps: 500}, episodes: 2}
"""

LAB = """\
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torchmetrics import Metric

from expc_runtime.ports import ClassId, ClassLogits, Prob


class Net(nn.Module):
    def __init__(self, width: int = 8, gives: int = 8, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.GroupNorm(groups, width)
        self.out_features = gives

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image)).mean((2, 3))


class Peeking(Net):
    def forward(self, image: Tensor) -> Tensor:
        features = super().forward(image)
        return features if features.sum().item() > 0 else -features


class Vectors(SGD):
    def __init__(self, params: list[Tensor], lr: float) -> None:
        super().__init__([p for p in params if p.ndim < 2], lr=lr)


def three(pred: Prob, target: Prob, weight: Tensor, *, reduction: str = "mean") -> Tensor:
    return (weight * (pred - target) ** 2).mean()


def rows(pred: Prob, target: Prob, *, reduction: str = "mean") -> Tensor:
    return (pred - target) ** 2


class PerClass(Metric):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.zeros(10), dist_reduce_fx="sum")

    def update(self, pred: ClassLogits, target: ClassId) -> None:
        self.hits += pred.softmax(1).sum(0)

    def compute(self) -> Tensor:
        return self.hits
"""

BROKEN = """\
import torch_that_is_not_there


class Net(torch_that_is_not_there.Module):
    def __init__(self) -> None:
        self.out_features = 8

    def forward(self, image):
        return image
"""


@dataclass(frozen=True)
class Wrong:
    """A spec made wrong in one place: what stands there, what it is made, what is found and where."""

    spec: str
    old: str
    new: str
    code: str
    says: str
    at: str = ""  # the line that is named; the one that was made wrong if empty

    @property
    def text(self) -> str:
        assert self.spec.count(self.old) == 1, self.old
        return self.spec.replace(self.old, self.new)


NET = 'backbone: {use: "lab:Net"'
WRONG: Mapping[str, Wrong] = {
    "a model that gives another width than it says": Wrong(
        DIGITS, "backbone: {use: conv_net, channels: [8, 16]}", f"{NET}, gives: 12}}",
        "XC320", "`backbone`: it gives (64, 8), but its out_features is 12",
    ),
    "a column of whole numbers where a net multiplies": Wrong(
        FILE, "board: features", "counts: features",
        "XC320", "a Linear multiplies float32, and is given int64", at="backbone: {use: mlp",
    ),
    "a column of another rank than the net reads": Wrong(
        FILE, "backbone: {use: mlp, in_features: 12, hidden: [16]}",
        "backbone: {use: conv_net, channels: [8]}",
        "XC320", "`backbone` fails on a batch of this shape",
    ),
    "a value out of the range that a class takes": Wrong(
        DIGITS, "backbone: {use: conv_net, channels: [8, 16]}", f"{NET}, groups: 3}}",
        "XC120", "`backbone` can't be made from these values: num_channels (8) must be divisible by num_groups (3) (lab.py:13)",
    ),
    "a key that is missing": Wrong(
        DIGITS, "loop: {use: linear_head, out: 1}", "loop: {use: linear_head}", "XC102", "`out`",
    ),
    "a head that is wider than there are classes": Wrong(
        DIGITS, "digit: {use: linear_head, out: 10}", "digit: {use: linear_head, out: 9}",
        "XC309", "9",
    ),
    "a head that is narrower than the rows of its target": Wrong(
        FILE, "squares: {use: linear_head, out: 5}", "squares: {use: linear_head, out: 4}",
        "XC321", "(8, 4)", at="squares: {use: bce}",
    ),
    "a backbone of another width than the stage it is taken from": Wrong(
        TWO, "    init:\n      backbone: {from: first}\n      heads.loop: {from: first, part: heads.digit}\n"
        "    data: {use: digits, batch: 64, split: {val: 0.2}}\n    model:\n      backbone: {use: conv_net, channels: [8, 16]}\n",
        "    init:\n      backbone: {from: first}\n    data: {use: digits, batch: 64, split: {val: 0.2}}\n"
        "    model:\n      backbone: {use: conv_net, channels: [8, 24]}\n",
        "XC220", "`backbone` can't start from `first`", at="backbone: {from: first}",
    ),
    "a part that is taken from one of another shape": Wrong(
        TWO, "loop: {use: linear_head, out: 10}", "loop: {use: linear_head, out: 10, hidden: 32}",
        "XC220", "`heads.loop` can't start from `first`", at="heads.loop: {from: first",
    ),
    "an optimizer that leaves out the matrices": Wrong(
        DIGITS, "optim: {use: adamw, lr: 3.0e-3}", 'optim: {use: "lab:Vectors", lr: 0.1}',
        "XC221", "no optimizer trains `backbone.",
    ),
    "all parts frozen": Wrong(TWO, "    init:\n", "    frozen:\n", "XC219", "trains nothing"),
    "a loss that takes three": Wrong(
        DIGITS, "loop: {use: bce}", 'loop: {use: "lab:three"}', "XC102", "`lab:three` needs `weight`",
    ),
    "a loss that gives a number for each row": Wrong(
        DIGITS, "loop: {use: bce}", 'loop: {use: "lab:rows"}',
        "XC321", "loss `loop`: it gives a (64,) tensor, where one number is wanted",
    ),
    "a metric that gives a number for each class": Wrong(
        DIGITS, "accuracy: {use: accuracy, of: digit}", 'accuracy: {use: "lab:PerClass", of: digit}',
        "XC321", "metric `accuracy`",
    ),
    "batch norm over the one row that an epoch ends with": Wrong(
        DIGITS.replace("channels: [8, 16]", "channels: [8, 8, 8, 8]"), "batch: 64", "batch: 479",
        "XC320", "an epoch's last batch has 1 row", at="data: {use: digits",
    ),
    "a file without the column": Wrong(
        FILE, "squares: prob}", "squares: prob, value: prob}",
        "XC120", "the data: data.npz has no column value", at="data: {use: arrays",
    ),
    "own code that imports what is not installed": Wrong(
        DIGITS, "backbone: {use: conv_net, channels: [8, 16]}", 'backbone: {use: "broken:Net"}',
        "XC120", "No module named 'torch_that_is_not_there'",
    ),
    "a value of a sweep": Wrong(
        DIGITS + "sweep:\n  grid:\n    read.model.backbone.groups: [1, 3]\n",
        "backbone: {use: conv_net, channels: [8, 16]}", f"{NET}, groups: 1}}",
        "XC120", "must be divisible by num_groups",
    ),
}  # fmt: skip

RIGHT: Mapping[str, str] = {
    "digits": DIGITS,
    "a file": FILE,
    "two stages": TWO,
    "a small world": WORLD,
    "own code": DIGITS.replace(
        "backbone: {use: conv_net, channels: [8, 16]}", f"{NET}, width: 8}}"
    ),
    "own code that looks at a value": DIGITS.replace(
        "backbone: {use: conv_net, channels: [8, 16]}", 'backbone: {use: "lab:Peeking"}'
    ),
}

PAGES = [rule for rule in rules() if issubclass(rule, DryRule)]
SHIPPED = [
    path for path in sorted((REPOSITORY / "specs").glob("*.yaml")) if "_as_" not in path.name
]
LARGE = [  # a minute each
    path
    for path in SHIPPED
    if any(word in path.read_text() for word in ("kind: world_model", "use: resnet", "use: vit"))
]
ROWS = [path for path in SHIPPED if path not in LARGE]


def put(root: Path, text: str, files: Mapping[str, str] | None = None) -> Path:
    """A project with a spec, the lab's code and a file of rows; the spec's path."""
    (root / "specs").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "lab.py").write_text(LAB)
    (root / "broken.py").write_text(BROKEN)
    rng = np.random.default_rng(0)
    np.savez(
        root / "data.npz",
        board=rng.random((40, 12)),
        counts=rng.integers(0, 9, (40, 12)),
        squares=rng.integers(0, 2, (40, 5)),
    )
    for name, held in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(held)
    (root / "specs" / "it.yaml").write_text(text)
    return root / "specs" / "it.yaml"


@dataclass
class Looked:
    """What lint says of specs, and what a dry run says of those that lint lets pass."""

    linted: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    dry: dict[str, Dry] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)

    def found(self, name: str) -> tuple[Finding, ...]:
        return self.linted[name] or self.dry[name].findings


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """Every spec of this file, by one child."""
    folder, all_ = tmp_path_factory.mktemp("specs"), Looked()
    specs: dict[str, Path] = {f"shipped {path.stem}": path for path in ROWS}
    texts: dict[str, tuple[str, Mapping[str, str]]] = {
        **{name: (wrong.text, {}) for name, wrong in WRONG.items()},
        **{name: (text, {}) for name, text in RIGHT.items()},
    }
    for rule in PAGES:
        for which, case in zip(("bad", "good"), cases(rule), strict=True):
            texts[f"{rule.code} {which}"] = (case.spec, case.files)
    for number, (name, (text, files)) in enumerate(texts.items()):
        specs[name] = put(folder / str(number), text, files)
    for name, path in specs.items():
        (report,) = lint_files([path], cache=False)
        all_.linted[name] = report.blocking
        all_.text[name] = path.read_text()
    clean = [name for name in specs if not all_.linted[name]]
    all_.dry = dict(zip(clean, dry([compiled(specs[name]) for name in clean]), strict=True))
    return all_


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_is_told_at_its_line(name: str, looked: Looked) -> None:
    wrong = WRONG[name]
    (found,) = looked.found(name)
    line = looked.text[name].splitlines()[found.span.line - 1]
    assert found.code.startswith(wrong.code)
    assert wrong.says in found.message
    assert (wrong.at or wrong.new.splitlines()[-1]) in line
    assert found.why or found.help
    assert "Traceback" not in found.message and "\n" not in found.message


def test_most_of_them_lint_can_not_see(looked: Looked) -> None:
    assert sum(bool(looked.linted[name]) for name in WRONG) < 5


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_is_clean(name: str, looked: Looked) -> None:
    assert looked.found(name) == ()


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_shipped_specs_are_clean(path: Path, looked: Looked) -> None:
    name = f"shipped {path.stem}"
    assert looked.found(name) == ()
    assert looked.dry[name].tried


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_large_shipped_specs_are_clean(path: Path) -> None:
    (found,) = dry([compiled(path)])
    assert found.findings == () == found.unchecked
    assert set(found.idle) <= {"boundaries"}  # an evaluation builds nothing
    assert all(tried.sizes and tried.sizes["kept"]["32"] > 0 for tried in found.tried)


@pytest.mark.parametrize("rule", PAGES, ids=lambda rule: rule.code)
def test_page(rule: type[Rule], looked: Looked) -> None:
    """As for lint: Bad yields the rule's code and no other, Good yields nothing."""
    assert [f.code for f in looked.found(f"{rule.code} bad")] == [rule.code]
    assert looked.found(f"{rule.code} good") == ()


def test_a_swept_value_is_pointed_at(looked: Looked) -> None:
    (found,) = looked.found("a value of a sweep")
    (note,) = found.notes
    text = looked.text["a value of a sweep"].splitlines()[note.span.line - 1]
    assert text[note.span.col - 1 :] == "3]"


def test_a_loss_that_does_not_fit_points_at_its_head(looked: Looked) -> None:
    (found,) = looked.found("a head that is narrower than the rows of its target")
    (note,) = found.notes
    text = looked.text["a head that is narrower than the rows of its target"].splitlines()
    assert "squares: {use: linear_head" in text[note.span.line - 1]
    assert note.text == "the head gives (8, 4)"


def test_what_can_not_be_seen_is_said_in_a_line(looked: Looked) -> None:
    (blind,) = looked.dry["own code that looks at a value"].unchecked
    assert blind == "read: update: lab.py:23 reads a value, and here tensors have shapes alone"


def test_a_world_is_driven_through_its_phases(looked: Looked) -> None:
    (tried,) = looked.dry["a small world"].tried
    assert tried.sizes is not None and tried.sizes["kept"]["32"] > tried.sizes["batch"]
    assert looked.dry["a small world"].unchecked == ()


def test_the_command_shows_lint_s_errors_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And starts no child before they are gone."""
    monkeypatch.setattr("expc.child.subprocess.run", None)
    spec = put(tmp_path, WRONG["a key that is missing"].text)
    assert main(["plan", "--check", str(spec)]) == 1
    assert "XC102" in capsys.readouterr().out


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, looked: Looked) -> Callable[[str], None]:
    """`answered(name)`: the child's answer is the one it has given already."""

    def set_to(name: str) -> None:
        monkeypatch.setattr("expc.dry.dry", lambda specs: [looked.dry[name]])

    return set_to


def test_a_fault_is_printed_as_lint_prints_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answered: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a loss that gives a number for each row"
    spec = put(tmp_path, WRONG[name].text)
    monkeypatch.chdir(tmp_path)
    answered(name)
    assert main(["plan", "--check", str(spec)]) == 1
    assert capsys.readouterr().out == (
        "XC321: loss `loop`: it gives a (64,) tensor, where one number is wanted\n"
        "  --> specs/it.yaml:15:7\n"
        "   |\n"
        '15 |       loop: {use: "lab:rows"}\n'
        "   |       ^^^^\n"
        "   = note: the head gives (64,) (12:7)\n"
        "   = note: the stage would fail at its first batch\n"
        "   = help: make answer and target of one shape, and the result one number\n"
        "\n1 error. `expc rule XC321` explains.\n"
    )


def test_a_clean_spec_gets_a_table_by_the_command_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a child of its own, from a folder that is not the project's, and nothing is left behind."""
    spec = put(tmp_path / "lab", RIGHT["own code"])
    before = sorted(path for path in (tmp_path / "lab").rglob("*") if ".expc" not in path.parts)
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--check", str(spec)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 module in 1 variant, one batch of each: nothing fails"
    assert lines[2].split() == [
        "parameters", "optimizer", "batch", "kept", "for", "backward", "peak:", "32", "bf16-mixed", "16-mixed",
    ]  # fmt: skip
    name, parameters, *_ = lines[3].split()
    assert (name, parameters) == ("read", str(8 * 9 + 8 + 8 + 8 + 8 * 10 + 10 + 8 + 1))
    assert len({len(line) for line in lines[2:4]}) == 1
    after = sorted(path for path in (tmp_path / "lab").rglob("*") if ".expc" not in path.parts)
    assert [path for path in after if "__pycache__" not in path.parts] == before


def test_a_child_that_dies_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = put(tmp_path, DIGITS)
    monkeypatch.setattr("expc.child.sys.executable", shutil.which("true"))
    assert main(["plan", "--check", str(spec)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("expc: the dry run gave no answer: `python -m expc_runtime.dry` ended")
