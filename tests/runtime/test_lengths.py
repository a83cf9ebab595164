"""How long an epoch and a schedule are, whatever feeds them: a cosine ends where it should."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from expc_runtime import floors, losses
from expc_runtime.clocks import Epochs, Updates
from expc_runtime.data.feed import Feed, RowFeed
from expc_runtime.data.packed import Bits, Column
from expc_runtime.data.stream import Stream
from expc_runtime.fit import fit
from expc_runtime.flags import Run
from expc_runtime.gates import Until
from expc_runtime.metrics import SampleF1
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, warmup_cosine
from expc_runtime.state import read_result

torch.set_num_threads(1)

BLOCKS = [40, 33, 27]


class Rows:
    """100 rows of 25 groups: noise, labels that are many at once, a number."""

    def names(self) -> Sequence[str]:
        return ["x", "many", "one", "group"]

    def lengths(self) -> Sequence[int]:
        return BLOCKS

    def block(self, number: int, columns: Sequence[str]) -> Mapping[str, Column]:
        start = sum(BLOCKS[:number])
        whole = self.tensors()
        rows = torch.arange(start, start + BLOCKS[number])
        bits = Bits.pack(whole["many"][start : start + BLOCKS[number]])
        return {name: bits if name == "many" else whole[name].index_select(0, rows)
                for name in columns}  # fmt: skip

    def tensors(self) -> Mapping[str, Column]:
        draws = torch.Generator().manual_seed(0)
        odds = torch.linspace(0, 0.8, 30)
        return {
            "x": torch.randn(100, 3, generator=draws),
            "many": Bits.pack(torch.rand(100, 30, generator=draws) < odds),
            "one": torch.rand(100, generator=draws),
            "group": torch.arange(100) // 4,
        }


@dataclass(frozen=True)
class Config(Run):
    out: str = "runs/it/by_hand/tell"
    accumulate: int = 1


class Tell(Module):
    """x (B, 3) -> many (B, 30) logits, one (B,) a number."""

    LR, FLOOR, WARMUP = 0.1, 0.25, 3

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.many_head = nn.Linear(3, 30)
        self.one_head = nn.Linear(3, 1)
        self.f1 = SampleF1()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.many_head(x), self.one_head(x)[:, 0]

    def losses(self, many: Tensor, one: Tensor, many_target: Tensor, one_target: Tensor) -> Tensor:
        many_loss, one_loss = losses.bce(many, many_target), losses.mse(one, one_target)
        self.record(many=many_loss, one=one_loss)
        return many_loss + one_loss

    def update(self, batch: Batch) -> None:
        x, many_target, one_target = batch
        many, one = self(x)
        self.step("model", self.losses(many, one, many_target, one_target))

    def measure(self, batch: Batch) -> None:
        x, many_target, one_target = batch
        many, one = self(x)
        self.losses(many, one, many_target, one_target)
        self.f1.update(many.sigmoid(), many_target)

    def constants(self, batch: Batch) -> tuple[Tensor, ...]:
        _, many, one = batch
        return floors.logits(many), floors.real(one)

    def drives(self) -> dict[str, Drive]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.LR)
        schedule = warmup_cosine(
            warmup=Updates(self.WARMUP * self.cfg.accumulate), floor=self.FLOOR
        )
        return {"model": Drive(optimizer, schedule, accumulate=self.cfg.accumulate)}


def trained(root: Path, feed: RowFeed, cfg: Config, epochs: int) -> tuple[Module, Any]:
    (root / "pyproject.toml").touch()
    made: list[Module] = []

    def build(cfg: Config) -> Module:
        made.append(Tell(cfg))
        return made[-1]

    file = str(root / "generated" / "tell.py")
    assert fit(build, cfg, feed, until=Until(Epochs(epochs)), file=file, program="p") == 0
    return made[-1], read_result(root / cfg.out)


STREAMED = [{"threads": 0}, {"threads": 1}, {"threads": 2}]
CASES = [
    # of 100 rows 80 are trained on; batches of 7: 12, the last one of 3
    ({}, 1, 12),
    ({"drop_last": True}, 1, 11),
    ({}, 5, 12),  # 36 updates in 7 steps, and one that is left
    ({"drop_last": True}, 2, 11),
    ({"limit_rows": 50}, 1, 6),  # 40 rows
    ({"by": "group", "limit_groups": 10, "drop_last": True}, 2, 4),  # 8 groups, 32 rows
]


@pytest.mark.parametrize(("how", "accumulate", "each"), CASES)
@pytest.mark.parametrize("streamed", [None, *STREAMED], ids=["held", "read-0", "read-1", "read-2"])
def test_the_schedule_ends_at_its_minimum(
    tmp_path: Path, how: dict[str, Any], accumulate: int, each: int, streamed: dict[str, int] | None
) -> None:
    if streamed is not None and streamed["threads"] != 1 and len(how) < 3 and accumulate < 5:
        pytest.skip("what reads the rows is told apart by the longer cases")
    settings: dict[str, Any] = {
        "columns": ("x", "many", "one"), "batch": 7, "val": 0.2, **how, **(streamed or {})
    }  # fmt: skip
    feed: RowFeed = (
        Feed(Rows(), **settings) if streamed is None else Stream(Rows(), window=50, **settings)
    )
    module, result = trained(tmp_path, feed, Config(accumulate=accumulate), epochs=3)
    assert feed.updates_per_epoch == each
    assert module.updates == result.step == 3 * each
    drive, steps = module.drive("model"), 3 * each // accumulate
    assert drive.steps == steps
    lr, least, warmup = Tell.LR, Tell.LR * Tell.FLOOR, Tell.WARMUP
    last = (
        least + (lr - least) * (1 + math.cos(math.pi * (steps - 1 - warmup) / (steps - warmup))) / 2
    )
    assert drive.lr == pytest.approx(last, rel=1e-6)
    # One step more would be at the minimum, and the last is as near to it as a cosine of that length.
    assert drive.lr - least <= (lr - least) * (math.pi / (steps - warmup)) ** 2 / 4 + 1e-9


def test_threads_train_the_same_net(tmp_path: Path) -> None:
    nets = []
    for threads in (0, 1, 2):
        root = tmp_path / str(threads)
        root.mkdir()
        feed = Stream(Rows(), window=50, threads=threads, columns=("x", "many", "one"), batch=7)
        nets.append(trained(root, feed, Config(), epochs=2)[0].state_dict())
    for net in nets[1:]:
        assert all(torch.equal(net[name], value) for name, value in nets[0].items())


@pytest.mark.parametrize("streamed", [False, True])
def test_a_head_with_fewer_answers_repeats_its_last(tmp_path: Path, streamed: bool) -> None:
    """The set that is best for F1 is a later candidate than a number has."""
    settings: dict[str, Any] = {"columns": ("x", "many", "one"), "batch": 7, "val": 0.2}
    feed = Stream(Rows(), window=50, **settings) if streamed else Feed(Rows(), **settings)
    _, result = trained(tmp_path, feed, Config(), epochs=1)
    many = Rows().tensors()["many"][:]
    held, train = many[feed.rows("val")], many[feed.rows("train")]
    order = train.mean(0).argsort(descending=True, stable=True)
    best = 0.0
    for k in range(1, 31):
        chosen = torch.zeros(30)
        chosen[order[:k]] = 1
        f1 = 2 * (held * chosen).sum(1) / (held.sum(1) + k)
        best = max(best, float(f1.mean()))
    usual = (train.mean(0) > 0.5).float()  # what the candidates that every head has come to, or all
    of_usual = (2 * (held * usual).sum(1) / (held.sum(1) + usual.sum())).mean()
    assert max(float(of_usual), best - 0.03) < result.floors["val/f1"] <= best + 1e-6
    one = Rows().tensors()["one"][:]
    mean = one[feed.rows("train")].mean()
    assert result.floors["val/one"] <= float((one[feed.rows("val")] - mean).square().mean()) + 1e-6
