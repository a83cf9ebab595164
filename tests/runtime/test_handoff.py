"""What a stage leaves is declared and proved; what a stage takes is that file and no other."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from torch import Tensor, nn

from expc_runtime import losses
from expc_runtime.checkpoint import Store
from expc_runtime.clocks import Epochs, Updates
from expc_runtime.data.feed import Feed
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, decay_groups, parameters
from expc_runtime.parts import From, fingerprint
from expc_runtime.state import Result, read_result, read_status

torch.set_num_threads(1)


class Rows:
    def tensors(self) -> dict[str, Tensor]:
        x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
        return {"x": x, "label": (x.sum(1) > 0).float()}


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/study/seed=0/second"
    wide: int = 8
    hand: bool = False


class Net(Module):
    """x (B, 6) -> label (B,) logit, by a body that can be handed on."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, cfg.wide), nn.BatchNorm1d(cfg.wide), nn.Dropout(0.5))
        if cfg.hand:
            self.body.add_module("hand", nn.Linear(cfg.wide, cfg.wide))
        self.label_head = nn.Linear(cfg.wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.label_head(self.body(x))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        x, target = batch
        loss = losses.bce(self(x), target)
        self.record(label=loss)
        self.step("model", loss)

    def measure(self, batch: Batch) -> None:
        self.record(label=losses.bce(self(batch[0]), batch[1]))

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.AdamW(decay_groups(self, 0.1), lr=0.05))}


FIRST = Config(out="runs/study/seed=0/first")
SECOND = Config()
MONITOR = {"least": "train/label"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def train(
    root: Path,
    cfg: Config,
    until: Until | None = None,
    build: Callable[[Any], Module] = Net,
    **how: Any,
) -> int:
    feed = Feed(Rows(), columns=("x", "label"), batch=16)
    how = {"program": cfg.out, **how}
    return fit(build, cfg, feed, until=until or Until(Epochs(2)), file=str(root / "net.py"), **how)


def result_of(root: Path, cfg: Config) -> Result:
    result = read_result(root / cfg.out)
    assert result is not None
    return result


def reason(root: Path, cfg: Config = SECOND) -> str:
    status = read_status(root / cfg.out)
    assert status is not None
    return status.reason


def held(root: Path, cfg: Config, tag: str | None = None) -> dict[str, Any]:
    loaded = Store(root / cfg.out / "checkpoints").load(tag)
    assert loaded is not None
    model: dict[str, Any] = loaded[0]["model"]
    return model


def of(model: dict[str, Any], part: str) -> dict[str, Any]:
    return {k.removeprefix(f"{part}."): v for k, v in model.items() if k.startswith(f"{part}.")}


# What a stage leaves.


def test_a_result_declares_what_the_stage_leaves(root: Path) -> None:
    assert train(root, FIRST, monitor=MONITOR) == 0
    extra = result_of(root, FIRST).extra
    assert set(extra["artifacts"]) == {"last", "least"}
    for series, told in extra["artifacts"].items():
        path = root / FIRST.out / "checkpoints" / told["file"]
        assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        pointer = json.loads((path.parent / f"{series}.json").read_text())
        assert (pointer["file"], pointer["sha256"]) == (told["file"], told["sha256"])
    body = of(held(root, FIRST), "body")
    assert extra["parts"]["body"] == {"fingerprint": fingerprint(body), "tensors": 7}


def test_a_fingerprint_is_of_names_shapes_and_types_alone() -> None:
    one = {"a": torch.zeros(2, 3), "b": torch.zeros(1)}
    assert fingerprint(one) == fingerprint({"b": torch.ones(1), "a": torch.ones(2, 3)})
    others = (
        {"a": torch.zeros(3, 2), "b": torch.zeros(1)},
        {"a": torch.zeros(2, 3), "c": torch.zeros(1)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1, dtype=torch.float64)},
        {"a": torch.zeros(2, 3)},
    )
    assert len({fingerprint(one), *map(fingerprint, others)}) == 5
    golden = hashlib.sha256(b"a (2, 3) float32\nb (1,) float32").hexdigest()
    assert fingerprint(one) == golden[:16]


def test_a_stage_that_ends_without_what_it_declared_has_failed(root: Path) -> None:
    class Silent(Net):
        def measure(self, batch: Batch) -> None:
            self.record(label=torch.tensor(float("nan")))

    assert train(root, FIRST, build=Silent, monitor=MONITOR) == 67
    status = read_status(root / FIRST.out)
    assert status is not None
    assert status.label == "failed(missing_output)"
    assert "no least checkpoint" in status.reason
    assert "train/label was never a number" in status.reason
    assert read_result(root / FIRST.out) is None


@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_a_best_that_is_lost_before_the_end_fails_the_stage(root: Path, damage: str) -> None:
    assert train(root, FIRST, monitor=MONITOR) == 0
    (root / FIRST.out / "result.json").unlink()
    for path in (root / FIRST.out / "checkpoints").glob("least-*"):
        path.unlink() if damage == "removed" else path.write_bytes(path.read_bytes()[:-100])
    assert train(root, FIRST, monitor=MONITOR) == (67 if damage == "removed" else 66)
    said = "to train again, remove that folder" if damage == "removed" else "can be read"
    assert said in reason(root, FIRST)


# What a stage takes.


def test_a_stage_starts_from_the_very_tensors_of_the_one_before(root: Path) -> None:
    assert train(root, FIRST, monitor=MONITOR) == 0
    began: list[dict[str, Tensor]] = []

    class Watched(Net):
        def start(self, *args: Any, **kwargs: Any) -> None:
            began.append({k: v.clone() for k, v in self.state_dict().items()})
            super().start(*args, **kwargs)

    init = {"body": "stage:first/best_least"}
    assert train(root, SECOND, build=Watched, init=init) == 0
    declared = result_of(root, FIRST).extra["artifacts"]["least"]
    path = root / FIRST.out / "checkpoints" / declared["file"]
    file = torch.load(path, weights_only=True)["state"]["model"]
    for key, value in of(began[0], "body").items():
        assert torch.equal(value, file[f"body.{key}"]), key
    assert not torch.equal(began[0]["label_head.weight"], file["label_head.weight"])
    assert result_of(root, SECOND).extra["handoff"] == {
        "body": {
            "stage": "first",
            "series": "least",
            "step": declared["step"],
            "key": result_of(root, FIRST).key,
            "file": declared["file"],
            "sha256": declared["sha256"],
            "fingerprint": fingerprint(of(file, "body")),
            "tensors": 7,
            "missing": [],
            "extra": [],
        }
    }


def test_a_smoke_run_starts_from_the_last_where_nothing_was_best(root: Path) -> None:
    class Silent(Net):
        def measure(self, batch: Batch) -> None:
            self.record(label=torch.tensor(float("nan")))

    first = Config(out="runs/study.smoke/seed=0/first", smoke=True)
    second = Config(out="runs/study.smoke/seed=0/second", smoke=True)
    assert train(root, first, build=Silent, monitor=MONITOR) == 0
    assert train(root, second, init={"body": "stage:first/best_least"}) == 0
    assert result_of(root, second).extra["handoff"]["body"]["series"] == "last"


def test_a_file_that_was_put_in_its_place_is_refused(root: Path) -> None:
    """A whole checkpoint of the same architecture, from another run: nothing but its hash tells."""
    other = Config(out="runs/study/seed=1/first", seed=1)
    assert train(root, FIRST) == 0 and train(root, other) == 0
    there, here = ((root / cfg.out / "checkpoints") for cfg in (other, FIRST))
    (theirs,) = there.glob("last-0002-*.pt")
    (ours,) = here.glob("last-0002-*.pt")
    shutil.copy(theirs, ours)
    assert train(root, SECOND, init={"body": "stage:first"}) == 66
    assert "is not the file that stage first ended with" in reason(root)
    assert ours.name in reason(root)


def test_an_older_generation_is_not_taken_for_the_end(root: Path) -> None:
    assert train(root, FIRST) == 0
    (newest,) = (root / FIRST.out / "checkpoints").glob("last-0002-*.pt")
    newest.unlink()
    assert train(root, SECOND, init={"body": "stage:first"}) == 66
    assert "is not the file that stage first ended with" in reason(root)


def test_tensors_that_are_missing_or_left_over_are_refused_unless_named(root: Path) -> None:
    small, large = FIRST, Config(hand=True)
    assert train(root, small) == 0
    assert train(root, large, init={"body": "stage:first"}) == 66
    said = reason(root)
    assert "2 not there: hand.bias, hand.weight" in said
    assert "stage:first: last at step 8" in said and "last-0002-step8.pt" in said
    named = From("stage:first", missing=("hand.weight", "hand.bias"))
    assert train(root, large, init={"body": named}) == 0
    assert result_of(root, large).extra["handoff"]["body"]["missing"] == [
        "hand.bias",
        "hand.weight",
    ]

    back = Config(out="runs/study/seed=0/third")
    assert train(root, back, init={"body": "stage:second"}) == 66
    assert "2 left over: hand.bias, hand.weight" in reason(root, back)
    named = From("stage:second", extra=("hand.weight", "hand.bias"))
    assert train(root, back, init={"body": named}) == 0
    assert result_of(root, back).extra["handoff"]["body"]["extra"] == ["hand.bias", "hand.weight"]
    misspelt = From("stage:second", missing=("hand.weigth",), extra=("hand.weight", "hand.bias"))
    assert train(root, back, init={"body": misspelt}, program="again") == 66
    assert "no tensor of this part: hand.weigth" in reason(root, back)


def test_a_tensor_of_another_shape_is_named_with_both(root: Path) -> None:
    assert train(root, FIRST) == 0
    assert train(root, Config(wide=9), init={"body": "stage:first"}) == 66
    assert "0.weight is (8, 6) float32 there and (9, 6) float32 here" in reason(root)
    assert "and 2 more" in reason(root)


def test_a_part_that_the_other_stage_has_not_is_refused(root: Path) -> None:
    assert train(root, FIRST) == 0
    assert train(root, SECOND, init={"body": "stage:first#trunk"}) == 66
    assert "7 not there" in reason(root)


def test_a_file_holds_the_part_that_is_named_and_nothing_but_tensors(root: Path) -> None:
    head = Net(FIRST).label_head.state_dict()
    compiled = {f"_orig_mod.legal_head.{key}": value for key, value in head.items()}
    torch.save(compiled, root / "whole.pt")
    torch.save(head, root / "bare.pt")
    torch.save({"state": head, "step": 3}, root / "more.pt")
    torch.save(torch.zeros(3), root / "one.pt")
    third = Config(out="runs/study/seed=0/third")
    assert train(root, third, init={"label_head": "whole.pt#legal_head"}) == 0
    for program, file, said in (
        ("p2", "bare.pt#legal_head", "not there: bias, weight"),
        ("p3", "more.pt", "it holds no tensors by name, but state, step"),
        ("p4", "one.pt", "it holds no tensors by name"),
    ):
        assert train(root, third, init={"label_head": file}, program=program) == 66
        assert said in reason(root, third)


# Frozen parts.


@pytest.mark.parametrize("drives", ["decay_groups", "parameters", "everything"])
def test_a_frozen_part_never_moves(root: Path, drives: str) -> None:
    """Weights, statistics, dropout; under every way in which an optimizer is given its parameters."""
    assert train(root, FIRST) == 0
    modes: set[bool] = set()
    driven: list[int] = []

    class Watched(Net):
        def update(self, batch: Batch) -> None:
            modes.update(part.training for part in self.body.modules())
            super().update(batch)

        def drives(self) -> dict[str, Drive]:
            ways: dict[str, Callable[[], Any]] = {
                "decay_groups": lambda: decay_groups(self, 0.1),
                "parameters": lambda: parameters(self),
                "everything": self.parameters,
            }
            given = ways[drives]()
            optimizer = torch.optim.AdamW(given, lr=0.05, weight_decay=0.1)
            driven.append(sum(len(group["params"]) for group in optimizer.param_groups))
            return {"model": Drive(optimizer, clip=1.0)}

    frozen = {"body": "stage:first"}
    how: dict[str, Any] = {"frozen": frozen, "norm_statistics": "reestimated"}
    assert train(root, SECOND, build=Watched, **how) == 0
    before, after = held(root, FIRST), held(root, SECOND)
    for key in before:
        assert torch.equal(before[key], after[key]) is key.startswith("body."), key
    assert modes == {False}
    assert driven == [6 if drives == "everything" else 2]
    result = result_of(root, SECOND)
    assert dict(result.parents) == {"first": result_of(root, FIRST).key}
    assert result.extra["handoff"]["body"]["stage"] == "first"
    assert not any("no optimizer trains" in text for text in result.warnings)


def test_a_part_is_either_started_or_frozen(root: Path) -> None:
    assert train(root, FIRST) == 0
    both = {"body": "stage:first"}
    assert train(root, SECOND, init=both, frozen=both) == 2
    assert "body: either trained on from there, or frozen" in reason(root)


def test_nothing_left_to_train_is_said(root: Path) -> None:
    assert train(root, FIRST) == 0
    frozen = {"body": "stage:first", "label_head": "stage:first"}
    assert train(root, SECOND, frozen=frozen) == 2
    assert "has no parameter to train" in reason(root)


def test_a_frozen_part_needs_its_stage(root: Path) -> None:
    assert train(root, SECOND, Until(Updates(1)), frozen={"body": "stage:first"}) == 66
