"""Parts of a batch, gathered: the step of the whole batch, with less of it in memory at once."""

import math
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from expc_runtime.errors import BadValue, Diverged
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive, constant, parameters

torch.set_num_threads(1)


class Net(Module):
    """Two heads on one body; rows it was given at once are counted."""

    def __init__(self, accumulate: int = 1, clip: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.rows: list[int] = []
        self._accumulate, self._clip = accumulate, clip

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        y: Tensor = self.head(self.body(x))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        x, target = batch
        loss = mse_loss(self(x), target)
        self.record(loss=loss)
        self.step("model", loss)

    def drives(self) -> dict[str, Drive]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        drive = Drive(optimizer, constant(), clip=self._clip, accumulate=self._accumulate)
        return {"model": drive}


def batches(rows: int, count: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(rows)
    return [
        (torch.randn(rows, 3, generator=draw), torch.randn(rows, generator=draw))
        for _ in range(count)
    ]


def trained(
    rows: int,
    microbatch: float,
    *,
    precision: str = "32",
    updates: int = 3,
    build: Callable[[], Net] = Net,
) -> Net:
    net = build()
    net.start(precision, total_updates=10, updates_per_epoch=10, microbatch=microbatch)
    net.training_step(batches(rows, updates), 0)
    return net


def assert_alike(parts: Net, whole: Net, tolerance: float = 1e-6) -> None:
    for (name, p), q in zip(parts.named_parameters(), whole.parameters(), strict=True):
        assert torch.allclose(p, q, atol=tolerance, rtol=1e-4), name
    assert parts.drive("model").steps == whole.drive("model").steps
    assert parts.records.means() == pytest.approx(whole.records.means(), rel=10 * tolerance)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 13),
    share=st.sampled_from([1.0, 0.5, 0.3, 0.25, 0.1]),
    accumulate=st.integers(1, 3),
    clip=st.sampled_from([None, 0.01]),
)
def test_the_step_of_parts_is_that_of_the_whole_batch(
    rows: int, share: float, accumulate: int, clip: float | None
) -> None:
    def build() -> Net:
        return Net(accumulate, clip)

    assert_alike(trained(rows, share, build=build), trained(rows, 1.0, build=build))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_in_half_precision_too(precision: str) -> None:
    parts, whole = trained(8, 0.5, precision=precision), trained(8, 1.0, precision=precision)
    assert_alike(parts, whole, tolerance=2e-3)
    assert parts.drive("model").scale == whole.drive("model").scale


def test_no_more_than_the_share_goes_through_the_net_at_once() -> None:
    assert trained(10, 0.3, updates=1).rows == [3, 3, 2, 2]  # 1 / 0.3, rounded up, nearly equal
    assert trained(10, 0.1, updates=1).rows == [1] * 10
    assert trained(2, 0.1, updates=1).rows == [1, 1]
    assert trained(10, 1.0, updates=1).rows == [10]


def test_an_update_is_counted_once() -> None:
    net = trained(8, 0.25, updates=5)
    assert (net.updates, net.drive("model").steps) == (5, 5)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="it is a share of a batch"):
        Net().start("32", total_updates=1, updates_per_epoch=1, microbatch=share)


def test_a_part_that_is_not_finite_reaches_no_weight() -> None:
    net = Net()
    net.start("32", total_updates=10, updates_per_epoch=10, microbatch=0.5)
    before = [p.clone() for p in net.parameters()]
    [(x, target)] = batches(8, 1)
    x[6, 1] = math.nan
    with pytest.raises(Diverged, match=r"not finite in 1 rows \(6\)"):
        net.training_step([(x, target)], 0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in net.parameters())


class Two(Net):
    """Two optimizers; both losses are known before either steps."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.other = nn.Linear(3, 1)
        self._again = again

    def update(self, batch: Batch) -> None:
        x, target = batch
        first, second = mse_loss(self(x), target), mse_loss(self.other(x)[:, 0], target)
        self.record(loss=first, second=second)
        self.step("model", first)
        if self._again:
            second = mse_loss(self.other(self.body(x)[:, :3])[:, 0], target)
        self.step("other", second)

    def drives(self) -> dict[str, Drive]:
        return {
            "model": Drive(torch.optim.SGD(parameters(self.body, self.head), lr=0.1)),
            "other": Drive(torch.optim.SGD(parameters(self.other), lr=0.1)),
        }


def test_each_of_several_optimizers_steps_once() -> None:
    parts, whole = trained(8, 0.5, build=Two), trained(8, 1.0, build=Two)
    assert_alike(parts, whole)
    assert parts.drive("other").steps == 3


def test_an_update_that_reads_what_an_earlier_step_wrote_cannot_be_cut() -> None:
    assert trained(8, 1.0, build=lambda: Two(again=True)).updates == 3
    with pytest.raises(BadValue, match="called after optimizer `model` has stepped"):
        trained(8, 0.5, build=lambda: Two(again=True))
