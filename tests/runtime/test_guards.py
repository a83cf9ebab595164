"""Who made the NaN; does the model answer the same to everything."""

import math
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn

from expc_runtime.errors import Diverged
from expc_runtime.metrics import MeanAbsoluteError
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.training.guards import Spread, untrained

torch.set_num_threads(1)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


class Net(Module):
    def __init__(self, middle: nn.Module, loss: Callable[[Tensor], Tensor] = Tensor.mean) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4))
        self.middle = middle
        self.head = nn.Linear(4, 1)
        self.error = MeanAbsoluteError()
        self._loss = loss
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.encoder(x)))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        loss = self._loss(self(batch[0]))
        self.record(spread=loss)
        self.step("model", loss)

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.1))}


def diverges(net: Net, batch: Batch, precision: str = "32") -> str:
    net.start(precision, total_updates=10, updates_per_epoch=10)
    net.train()
    with pytest.raises(Diverged) as hit:
        net.training_step([batch], 0)
    return str(hit.value)


def test_the_module_that_made_it_is_named_with_what_entered() -> None:
    torch.manual_seed(0)
    message = diverges(Net(Root()), (torch.randn(8, 2),))
    assert "update 0 of optimizer `model`" in message
    assert "`middle` (Root) gave" in message
    assert "NaN of 32 values (float32)" in message
    assert "its input is float32, -" in message


def test_a_bad_column_comes_before_any_module() -> None:
    x = torch.randn(8, 2)
    x[3, 1], x[6, 0] = math.nan, math.inf
    message = diverges(Net(nn.Identity()), (x,))
    assert "input 1 of the batch is not finite in 2 rows (3, 6)" in message


def test_a_bad_weight_is_named() -> None:
    net = Net(nn.Identity())
    with torch.no_grad():
        net.head.weight[0, 0] = math.inf
    assert "`head.weight` itself is not finite" in diverges(net, (torch.randn(8, 2),))


def test_a_bad_loss_over_finite_outputs_is_named() -> None:
    net = Net(nn.Identity(), lambda y: (y.mean() - y.mean()) / torch.zeros(()))
    message = diverges(net, (torch.randn(8, 2),))
    assert "outputs of all modules are finite, but `spread` is nan" in message


def test_a_bad_gradient_is_traced_to_where_it_came_from() -> None:
    net = Net(nn.Identity(), lambda y: (y - y).sqrt().mean())
    message = diverges(net, (torch.randn(8, 2),))
    assert "a gradient is not finite" in message
    assert "the gradient that reaches the output of `head` (Linear)" in message


class Large(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1e6


class HalfNet(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.middle(self.encoder[0](x)))
        return y[:, 0]


def test_an_overflow_of_float16_is_told_from_a_true_one() -> None:
    torch.manual_seed(0)
    over = diverges(HalfNet(Large()), (torch.randn(8, 2),), "16-mixed")
    assert "`middle` (Large) gave" in over
    assert "in float32 the same batch is finite: float16 is the cause" in over
    true = diverges(HalfNet(Root()), (torch.randn(8, 2),), "16-mixed")
    assert "in float32 too: it is not float16" in true


def test_looking_for_it_leaves_the_module_as_it_was() -> None:
    net = Net(nn.Identity(), lambda y: (y - y).sqrt().mean())
    net.start("32", total_updates=10, updates_per_epoch=10)
    with pytest.raises(Diverged):
        net.training_step([(torch.randn(8, 2),)], 0)
    assert (
        int(net.state_dict()["encoder.1.num_batches_tracked"]) == 1
    )  # the training's own forward, no re-run
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())


def watch(answers: list[Tensor]) -> list[int]:
    class Given(nn.Module):
        def forward(self, i: int) -> Tensor:
            return answers[i]

    given = Given()
    spread = Spread(given)
    for i in range(len(answers)):
        given(i)
    spread.close()
    return spread.constant()


def test_a_head_that_says_the_same_to_every_row_is_found() -> None:
    assert watch([torch.full((5, 3), 0.7), torch.full((2, 3), 0.7)]) == [0]
    assert watch([torch.full((5,), -1000.0)]) == [0]


def test_a_head_that_tells_rows_apart_is_left_alone() -> None:
    torch.manual_seed(0)
    assert watch([torch.randn(5, 3)]) == []
    assert watch([torch.full((5,), 0.7), torch.full((5,), 0.8)]) == []
    assert watch([1000 + torch.randn(50)]) == []
    assert watch([torch.tensor([0.3])]) == []  # one row says nothing


def test_parameters_without_an_optimizer_are_named() -> None:
    net = Net(nn.Identity())
    net.drives = lambda: {  # type: ignore[method-assign]
        "model": Drive(torch.optim.SGD(net.encoder.parameters(), lr=0.1))
    }
    net.start("32", total_updates=10, updates_per_epoch=10)
    assert untrained(net) == ["head.weight", "head.bias"]
    net.head.requires_grad_(False)
    assert untrained(net) == []
