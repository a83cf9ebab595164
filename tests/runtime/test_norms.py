"""Running statistics: both modes are measured, a gap is said aloud, and one averaging pass closes it."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")

from torch import Tensor, nn

from expc_runtime import losses
from expc_runtime.checkpoint import Checkpoint, Store
from expc_runtime.clocks import Epochs, Updates
from expc_runtime.data.feed import Feed
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Gate, Until
from expc_runtime.metrics import BinaryAccuracy
from expc_runtime.module import Batch, Module
from expc_runtime.norms import aside, reestimate, running
from expc_runtime.optim import Drive
from expc_runtime.state import Result, read_result

torch.set_num_threads(1)

ROWS = 256


class Shifting:
    """Two classes, far from the origin: statistics that still say 0 are off by a lot."""

    def tensors(self) -> dict[str, Tensor]:
        draws = torch.Generator().manual_seed(7)
        label = torch.arange(ROWS) % 2
        x = torch.randn(ROWS, 6, generator=draws) + 10 + (2 * label[:, None] - 1)
        return {"x": x, "label": label.float()}


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/norms/by_hand/tell"
    momentum: float = 0.1
    dropout: float = 0.0


class Tell(Module):
    """x (B, 6) -> label (B,) logit."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8),
            nn.BatchNorm1d(8, momentum=cfg.momentum),
            nn.ReLU(),
            nn.Dropout(cfg.dropout),
        )
        self.label_head = nn.Linear(8, 1)
        self.right = BinaryAccuracy(threshold=0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.label_head(self.body(x))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        x, target = batch
        loss = losses.bce(self(x), target)
        self.record(label=loss)
        self.step("model", loss)

    def measure(self, batch: Batch) -> None:
        x, target = batch
        label = self(x)
        self.record(label=losses.bce(label, target))
        self.right.update(label, target)

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.AdamW(self.parameters(), lr=0.02))}


def norm(net: Tell) -> nn.BatchNorm1d:
    layer = net.body[1]
    assert isinstance(layer, nn.BatchNorm1d)
    return layer


def statistics(net: Tell) -> Tensor:
    mean = norm(net).running_mean
    assert mean is not None
    return mean


def feed(val: float = 0.0) -> Feed:
    return Feed(Shifting(), columns=("x", "label"), batch=30, val=val)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def train(
    root: Path,
    cfg: Config,
    until: Until,
    build: Callable[[Any], Module] = Tell,
    val: float = 0.0,
    **how: Any,
) -> int:
    file = str(root / "tell.py")
    return fit(build, cfg, feed(val), until=until, file=file, program="p", **how)


def result_of(root: Path, cfg: Config) -> Result:
    result = read_result(root / cfg.out)
    assert result is not None
    return result


def lines(root: Path, cfg: Config, mode: str) -> list[dict[str, Any]]:
    text = (root / cfg.out / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, text) if line.get("mode") == mode]


# Statistics that hardly move: eval mode reads what the net began with.
LAGGING = Config(momentum=0.002)


def test_a_gate_in_train_mode_opens_on_a_net_that_fails_in_eval_mode_and_both_are_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = Gate("train/right", at_least=0.97, mode="train")
    assert train(root, LAGGING, Until(Epochs(40), gate)) == 0
    result = result_of(root, LAGGING)
    in_train = lines(root, LAGGING, "train")[-1]["train/right"]
    in_eval = lines(root, LAGGING, "eval")[-1]["train/right"]
    assert in_train >= 0.97 > in_eval + 0.02
    assert result.gate["met"] is True
    assert result.gate["eval_mode"] == in_eval == result.metrics["train/right"]
    told = f"train/right {in_train:.4f} >= 0.9700 in train mode; in eval mode it is {in_eval:.4f}"
    assert told in result.gate["message"]
    assert any(told in warning for warning in result.warnings)
    gap = f"{in_train:.4f} in train mode and {in_eval:.4f} in eval mode"
    assert any(gap in w and "norm_statistics: reestimated" in w for w in result.warnings)
    assert told in capsys.readouterr().out


def test_the_same_gate_in_eval_mode_does_not_open(root: Path) -> None:
    gate = Gate("train/right", at_least=0.97)
    assert train(root, LAGGING, Until(Epochs(4), gate)) == 3


def test_averaging_anew_closes_the_gap_and_is_what_is_saved(root: Path) -> None:
    gate = Gate("train/right", at_least=0.97)
    how: dict[str, Any] = {"norm_statistics": "reestimated", "monitor": {"best": "train/right"}}
    assert train(root, LAGGING, Until(Epochs(40), gate), **how) == 0
    result = result_of(root, LAGGING)
    assert result.warnings == ()
    assert (result.metrics["train/right"] or 0.0) >= 0.97
    for tag in (None, "best"):
        held = Store(root / LAGGING.out / "checkpoints").load(tag)
        assert held is not None
        net = Tell(LAGGING)
        net.load_state_dict(held[0]["model"])
        made = feed()
        made.setup(torch.device("cpu"), 0)
        figures = net.measured(made.batches("train"))
        assert figures["right"] == result.metrics["train/right"]


def test_the_gap_is_said_once_in_a_stage(root: Path) -> None:
    assert train(root, replace(LAGGING, momentum=0.05), Until(Epochs(30))) == 0
    warned = result_of(root, LAGGING).warnings
    assert len([text for text in warned if "in train mode and" in text]) <= 1


def test_statistics_that_have_just_begun_are_not_accused(root: Path) -> None:
    """0.9 ** 44 is below 1 %: until then what they began with is still in them. At the end it counts."""
    until = Until(Epochs(4))  # 36 updates
    assert train(root, Config(), until) == 0
    (warned,) = [w for w in result_of(root, Config()).warnings if "in train mode and" in w]
    assert "at update 36" in warned
    text = (root / Config().out / "log").read_text()
    assert text.index("epoch 4 ") < text.index(f"warning: {warned[:30]}")


def test_measuring_in_train_mode_leaves_no_trace(root: Path) -> None:
    """With dropout and statistics: weights, buffers and draws are those of a run that never did."""

    class Unmeasured(Tell):
        def measured(self, batches: Any, mode: Any = "eval") -> dict[str, float]:
            return super().measured(batches) if mode == "eval" else {}

    one, other = (Config(out=f"runs/n/x/{n}", dropout=0.3) for n in ("one", "other"))
    assert train(root, one, Until(Epochs(3)), val=0.2) == 0
    assert train(root, other, Until(Epochs(3)), Unmeasured, val=0.2) == 0
    assert len(lines(root, one, "train")) == 3
    states = [Store(root / cfg.out / "checkpoints").load() for cfg in (one, other)]
    (a, _), (b, _) = (state for state in states if state is not None)
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key
    assert torch.equal(a["random"]["torch"], b["random"]["torch"])


def test_train_mode_is_of_the_split_that_the_gate_reads(root: Path) -> None:
    gate = Gate("val/right", at_least=2.0, otherwise="warn")
    assert train(root, Config(), Until(Epochs(1), gate), val=0.2) == 0
    (line,) = lines(root, Config(), "train")
    assert line["split"] == "val"


def test_dropout_alone_is_no_gap_of_the_statistics(root: Path) -> None:
    cfg = Config(dropout=0.9)
    assert train(root, cfg, Until(Epochs(25)), norm_statistics="reestimated") == 0
    in_train, in_eval = (lines(root, cfg, mode)[-1]["train/right"] for mode in ("train", "eval"))
    assert in_eval > in_train + 0.02
    assert result_of(root, cfg).warnings == ()


def test_a_net_without_statistics_is_measured_once(root: Path) -> None:
    class Plain(Tell):
        def __init__(self, cfg: Config) -> None:
            super().__init__(cfg)
            self.body[1] = nn.LayerNorm(8)

    assert train(root, Config(), Until(Epochs(1)), Plain) == 0
    assert lines(root, Config(), "train") == []
    again = Config(seed=1)
    assert train(root, again, Until(Epochs(1)), Plain, norm_statistics="reestimated") == 0
    (warned,) = result_of(root, again).warnings
    assert "nothing that is trained here keeps running statistics" in warned


@pytest.mark.parametrize("at", [4, 8, 13])
def test_a_run_with_statistics_averaged_anew_goes_on_bit_for_bit(root: Path, at: int) -> None:
    how: dict[str, Any] = {
        "until": Until(Epochs(3), Gate("train/right", at_least=2, mode="train", otherwise="warn")),
        "norm_statistics": "reestimated",
        "checkpoint": Checkpoint(every=Updates(5)),
    }
    whole, broken = (Config(out=f"runs/{n}/x/tell", dropout=0.2) for n in ("whole", "broken"))

    def struck(cfg: Config) -> Module:
        module = Tell(cfg)
        update = module.update

        def hit(batch: Batch) -> None:
            if module.updates == at and module.training:
                signal.raise_signal(signal.SIGTERM)
            update(batch)

        module.update = hit  # type: ignore[method-assign]
        return module

    assert train(root, whole, **how) == 0
    assert train(root, broken, build=struck, **how) == 75
    assert train(root, broken, **how) == 0
    states = [Store(root / cfg.out / "checkpoints").load() for cfg in (whole, broken)]
    (a, _), (b, _) = (state for state in states if state is not None)
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key
    for mode in ("eval", "train"):
        assert lines(root, whole, mode) == lines(root, broken, mode)


def test_the_statistics_are_the_plain_mean_over_the_batches() -> None:
    """Of the first layer, whose input nothing else changes: the mean of the batches' means."""
    net = Tell(Config(dropout=0.5))
    statistics(net).fill_(99.0)
    batches = list(feed_of(net, 100))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    draws = torch.get_rng_state()
    reestimate(net, batches)
    with torch.no_grad():
        seen = [net.body[:1](x) for x, _ in batches]
    mean = torch.stack([each.mean(0) for each in seen]).mean(0)
    variance = torch.stack([each.var(0) for each in seen]).mean(0)
    torch.testing.assert_close(statistics(net), mean)
    torch.testing.assert_close(norm(net).running_var, variance)
    assert norm(net).momentum == 0.1
    assert net.training and norm(net).training
    assert torch.equal(torch.get_rng_state(), draws)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) is not ("running" in key or "tracked" in key), key


def feed_of(net: Module, rows: int) -> Any:
    from expc_runtime.feeds import Work

    made = feed()
    made.setup(torch.device("cpu"), 0)
    made.attach(
        Work(net, Path(), Until(Epochs(1)), 2, False, warn=lambda text: None, alive=lambda _: None)
    )
    return made.sample("train", rows)


def test_a_sample_is_of_equal_batches_in_mixed_order() -> None:
    net = Tell(Config())
    sizes = [len(label) for _, label in feed_of(net, 100)]
    assert sizes == [25, 25, 25, 25]
    assert sum(len(label) for _, label in feed_of(net, 10**9)) == ROWS
    label = torch.cat([label for _, label in feed_of(net, 100)])
    assert torch.equal(label, torch.cat([label for _, label in feed_of(net, 100)]))
    assert not torch.equal(label, label.sort().values)


def test_frozen_parts_keep_their_statistics_and_their_mode() -> None:
    net = Tell(Config())
    net.hold(net.body)
    net.train()
    assert net.training and not any(part.training for part in net.body.modules())
    assert running(net) == []
    before = statistics(net).clone()
    reestimate(net, feed_of(net, 100))
    net.measured(feed_of(net, 100), mode="train")
    assert torch.equal(statistics(net), before)


def test_aside_makes_no_copy_of_a_frozen_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large frozen net it would be the memory of another one."""
    net = Tell(Config())
    copied: list[tuple[int, ...]] = []
    clone = Tensor.clone

    def counted(tensor: Tensor) -> Tensor:
        copied.append(tuple(tensor.shape))
        return clone(tensor)

    monkeypatch.setattr(Tensor, "clone", counted)
    with aside(net):
        pass
    assert copied
    net.hold(*net.children())
    copied.clear()
    with aside(net):
        pass
    assert not copied


def test_aside_gives_back_buffers_draws_and_slow_copies() -> None:
    net = Tell(Config())
    net.label_head.requires_grad_(False)
    was = {k: v.clone() for k, v in net.state_dict().items()}
    draws = torch.get_rng_state()
    with aside(net), torch.no_grad():
        net.forward(torch.randn(9, 6))
        net.label_head.weight.add_(1.0)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(v, was[k]) for k, v in net.state_dict().items())
