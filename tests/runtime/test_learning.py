"""What training does not reach is said: parameters that never move, losses without a say, answers that never change."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from torch import Tensor, nn
from torchmetrics import Metric

from expc_runtime import floors, losses
from expc_runtime.clocks import Epochs
from expc_runtime.data.feed import Feed
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.metrics import F1, Accuracy, BinaryAccuracy, ExactMatch, SampleF1
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.state import read_result
from expc_runtime.training.learning import faint, pulls

torch.set_num_threads(1)

ROWS = 120


class Games:
    """Positions x (120, 5), who won, and one of 4 moves."""

    def tensors(self) -> dict[str, Tensor]:
        x = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(3))
        move = x[:, :4].argmax(1)
        return {"x": x, "value": (x.sum(1) > 0).float(), "move": move}


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/learning/by_hand/tell"
    lr: float = 0.05
    weight: float = 1.0


class Play(Module):
    """x (B, 5) -> value (B,) logit, move (B, 4) class logits."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.trunk = nn.Linear(5, 8)
        self.value_head = nn.Linear(8, 1)
        self.move_head = nn.Linear(8, 4)
        self.right = BinaryAccuracy(threshold=0.0)
        self.accuracy = Accuracy()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x).tanh()
        return self.value_head(features)[:, 0], self.move_head(features)

    def losses(self, value: Tensor, move: Tensor, batch: Batch) -> Tensor:
        value_loss = losses.bce(value, batch[1])
        move_loss = losses.cross_entropy(move, batch[2])
        total_model = value_loss + self.cfg.weight * move_loss
        self.record(value=value_loss, move=move_loss, total_model=total_model)
        return total_model

    def update(self, batch: Batch) -> None:
        value, move = self(batch[0])
        self.step("model", self.losses(value, move, batch))

    def measure(self, batch: Batch) -> None:
        value, move = self(batch[0])
        self.losses(value, move, batch)
        self.right.update(value, batch[1])
        self.accuracy.update(move, batch[2])

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        return floors.logits(batch[1]), floors.class_logits(batch[2], classes=4)

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.AdamW(self.parameters(), lr=self.cfg.lr))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def warnings(root: Path, build: Callable[[Any], Module] = Play, epochs: int = 4, **cfg: Any) -> str:
    """What a run of a few epochs of 6 updates was warned of."""
    feed = Feed(Games(), columns=("x", "value", "move"), batch=20)
    file = str(root / "play.py")
    assert fit(build, Config(**cfg), feed, until=Until(Epochs(epochs)), file=file, program="p") == 0
    result = read_result(root / Config().out)
    assert result is not None
    return "\n".join(result.warnings)


def test_a_net_that_learns_is_not_accused(root: Path) -> None:
    assert warnings(root, epochs=8) == ""


# Parameters.


def test_a_parameter_that_no_step_changes_is_named(root: Path) -> None:
    """The optimizer holds it and it asks for a gradient: nothing else would tell."""

    class Deaf(Play):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            value, move = super().forward(x)
            return value.detach() + 0 * move.sum(1), move

    told = warnings(root, Deaf)
    assert "not changed by 6 steps of its optimizer: value_head.weight, value_head.bias" in told
    assert told.count("not changed") == 1
    assert "trunk" not in told


def test_a_parameter_that_is_changed_by_the_last_bit_has_moved(root: Path) -> None:
    assert "not changed" not in warnings(root, lr=1e-6)
    assert "not changed" in warnings(root, lr=1e-12, seed=1)


# Losses.


def test_pulls_are_the_norms_of_each_term_at_what_they_share() -> None:
    torch.manual_seed(0)
    net = Play(Config(weight=0.25))
    net.start("32", total_updates=10, updates_per_epoch=5)
    rows = Games().tensors()
    batch = (rows["x"], rows["value"], rows["move"])
    found = pulls(net, batch)
    value, move = net(batch[0])
    terms = {
        "value": losses.bce(value, batch[1]),
        "move": 0.25 * losses.cross_entropy(move, batch[2]),
    }
    shared = list(net.trunk.parameters())
    for name, term in terms.items():
        grads = torch.autograd.grad(term, shared, retain_graph=True)
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads))
        assert found[name] == pytest.approx(norm, rel=1e-5)
    assert set(found) == {"value", "move"}
    assert all(p.grad is None for p in net.parameters())


def test_a_loss_without_a_say_is_named_with_both_norms(root: Path) -> None:
    told = warnings(root, weight=1e-4)
    assert "loss `move` pulls on what it shares with `value` with a gradient of norm" in told
    assert told.count("pulls on") == 1


def test_a_term_that_is_logged_alone_has_no_say_to_lose() -> None:
    net = Play(Config(weight=0.0))
    net.start("32", total_updates=10, updates_per_epoch=5)
    rows = Games().tensors()
    assert pulls(net, (rows["x"], rows["value"], rows["move"])) == {}


def test_a_single_term_has_nobody_beside_it() -> None:
    class Alone(Play):
        def update(self, batch: Batch) -> None:
            value, _ = self(batch[0])
            total_model = losses.bce(value, batch[1])
            self.record(value=total_model, total_model=total_model)
            self.step("model", total_model)

    net = Alone(Config())
    net.start("32", total_updates=10, updates_per_epoch=5)
    rows = Games().tensors()
    assert pulls(net, (rows["x"], rows["value"], rows["move"])) == {}


def test_a_hundredth_is_faint() -> None:
    assert faint({"a": 1.0, "b": 0.011}) is None
    assert "`b`" in str(faint({"a": 1.0, "b": 0.009}))
    assert faint({"a": 1.0}) is None


# Answers.


def test_a_metric_that_reads_one_answer_is_named_with_the_constants_score(root: Path) -> None:
    """The value head gives a probability, and the metric was made for logits: every answer is yes."""

    class Misread(Play):
        def measure(self, batch: Batch) -> None:
            value, move = self(batch[0])
            self.losses(value, move, batch)
            self.right.update(value.sigmoid(), batch[1])
            self.accuracy.update(move, batch[2])

    told = warnings(root, Misread)
    share = float((Games().tensors()["value"] >= 0.5).double().mean())
    assert f"train/right {share:.6g} read one and the same answer in every row" in told
    assert "at the threshold of the metric" in told
    assert "train/accuracy" not in told


def test_a_class_that_is_always_said_is_told(root: Path) -> None:
    class Sure(Play):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            value, move = super().forward(x)
            return value, move + 50 * nn.functional.one_hot(torch.tensor(2), 4)

    assert "train/accuracy" in warnings(root, Sure)


def test_a_head_that_hardly_moves_at_the_loss_of_a_constant_has_collapsed(root: Path) -> None:
    class Flat(Play):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            value, move = super().forward(x)
            return 0.005 * value.tanh(), move

    told = warnings(root, Flat)
    assert "output 1 of Flat moves by 0.00" in told
    assert "it has collapsed to a constant. train/value is 0.69" in told
    assert "output 2" not in told


@pytest.mark.parametrize(
    ("build", "answers", "alike"),
    [
        (Accuracy, [[0.0, 1.0], [0.2, 0.9]], True),
        (Accuracy, [[0.0, 1.0], [0.9, 0.2]], False),
        (BinaryAccuracy, [[0.6, 0.7], [0.8, 0.5]], True),
        (BinaryAccuracy, [[0.6, 0.7], [0.8, 0.4]], False),
        (ExactMatch, [[0.1, 0.2], [0.3, 0.4]], True),
        (ExactMatch, [[0.1, 0.2], [0.3, 0.6]], False),
        (SampleF1, [[0.1, 0.2], [0.3, 0.4]], True),
        (SampleF1, [[0.1, 0.2], [0.3, 0.6]], False),
        (F1, [[0.1, 0.2], [0.3, 0.4]], True),
        (F1, [[0.9, 0.8], [0.7, 0.6]], True),
        (F1, [[0.1, 0.2], [0.3, 0.6]], False),
    ],
)
def test_metrics_know_whether_they_saw_one_answer(
    build: Callable[[], Metric], answers: list[list[float]], alike: bool
) -> None:
    metric: Any = build()
    for row in answers:  # over batches
        target = torch.tensor([1]) if build is Accuracy else torch.tensor([[1.0, 0.0]])
        metric.update(torch.tensor([row]), target)
    assert bool(metric.alike()) is alike
    metric.reset()
    assert not bool(metric.alike())
