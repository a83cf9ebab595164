"""The op that a NaN began in, forward and back, its line, its rows; and seeing it again."""

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn
from torch.nn import functional as F

from expc_runtime import losses
from expc_runtime.checkpoint import Store
from expc_runtime.errors import Diverged
from expc_runtime.module import Batch, Module
from expc_runtime.optim import Drive
from expc_runtime.rerun import main as rerun
from expc_runtime.state import read_status

torch.set_num_threads(1)

MODULES = Path(__file__).parent / "modules"
Loss = Callable[[Tensor], Tensor]


class Net(Module):
    def __init__(self, loss: Loss, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(2, 3)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(3, 1)
        self._loss = loss

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.drop(self.body(x)))
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        loss = self._loss(self(batch[0]))
        self.record(loss=loss)
        self.step("model", loss)

    def drives(self) -> dict[str, Drive]:
        return {"model": Drive(torch.optim.SGD(self.parameters(), lr=0.1))}


def rows() -> Tensor:
    drawn: Tensor = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    return drawn


def diverges(net: Net, batch: Batch, precision: str = "32", microbatch: float = 1.0) -> str:
    net.start(precision, total_updates=10, updates_per_epoch=10, microbatch=microbatch)
    net.batches_from(lambda update, rows: f"rows {list(rows)} of update {update}")
    with pytest.raises(Diverged) as hit:
        net.training_step([batch], 0)
    return str(hit.value)


def line_of(text: str) -> int:
    """The line of this file that holds ``text`` first."""
    lines = Path(__file__).read_text().splitlines()
    return next(k for k, line in enumerate(lines, 1) if text in line)


def zeroed(y: Tensor) -> Tensor:
    keep = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])[: len(y)]
    inverse: Tensor = 1 / (y * keep)  # a division by zero
    return inverse.mean()


def test_the_op_its_line_its_input_and_its_rows_are_named() -> None:
    told = diverges(Net(zeroed), (rows(),))
    assert "the op: `reciprocal` (aten.reciprocal.default) gave 2 infinite of 6 values" in told
    assert f"called at tests/runtime/test_blame.py:{line_of('# a division by zero')}" in told
    assert "of self is float32, -" in told
    assert "bad rows of the batch: 2, 4\n" in told
    assert "rows [2, 4] of update 0" in told


def logarithm(y: Tensor) -> Tensor:
    above: Tensor = torch.where(y > y.min(), y - y.min(), y - y)
    return above.log().mul(0.0).mean()


def test_an_infinity_that_turns_into_nan_later_is_traced_to_its_beginning() -> None:
    told = diverges(Net(logarithm), (rows(),))
    assert "the op: `log` (aten.log.default) gave 1 infinite" in told
    assert "of self is float32, 0 to" in told
    assert "of its infinity `mul` made NaN" in told


def test_a_mask_is_no_cause_and_what_it_leaves_empty_is() -> None:
    closed = torch.ones(6, dtype=torch.bool)

    def masked(y: Tensor) -> Tensor:
        return y.masked_fill(closed, -math.inf).softmax(0).sum()

    told = diverges(Net(masked), (rows(),))
    assert "the op: `softmax` (aten._softmax.default) gave 6 NaN of 6 values" in told
    assert "of self is float32, -inf to -inf" in told


def test_of_a_bad_gradient_the_op_that_it_is_the_backward_pass_of_is_named() -> None:
    told = diverges(Net(lambda y: (y - y).sqrt().mean()), (rows(),))  # a root of zero
    assert "the gradient that reaches the output of `head` (Linear) is 6 NaN" in told
    assert "the op: in the backward pass of `sqrt` (SqrtBackward0), `div`" in told
    assert f"called at tests/runtime/test_blame.py:{line_of('# a root of zero')}" in told


def test_a_component_of_ours_is_followed_by_the_line_that_called_it() -> None:
    told = diverges(Net(lambda y: losses.mse(y, y.detach() * 1e30)), (rows(),))
    assert "called at expc_runtime/losses.py:" in told
    assert ", by tests/runtime/test_blame.py:" in told


def test_half_precision_names_the_cast() -> None:
    told = diverges(
        Net(lambda y: F.mse_loss(y.float() * 1e5, y.half() * 0).half()), (rows(),), "16-mixed"
    )
    assert "the op: `cast` (aten._to_copy.default) gave 1 infinite" in told
    assert "dtype is float16" in told
    assert "in float32 too" in told  # the cast is in the code, whatever the precision


def test_rows_of_a_part_are_rows_of_its_batch() -> None:
    x = rows()
    known = Net(zeroed)(x[3:])[1].detach()
    told = diverges(Net(lambda y: (y - known).abs().log().mean()), (x,), microbatch=0.5)
    assert "the op: `log` (aten.log.default) gave 1 infinite of 3 values" in told
    assert "bad rows of the batch: 4\n" in told


@pytest.mark.parametrize("seed", range(4))
def test_what_was_drawn_is_drawn_again(seed: int) -> None:
    """A dropout mask that leaves nothing of the row: one of eight, and the re-run meets it."""
    net = Net(lambda y: y.abs().log().mean() * 1e-6, dropout=0.5)
    with torch.no_grad():
        net.head.bias.zero_()
    net.head.bias.requires_grad_(False)
    net.start("32", total_updates=100, updates_per_epoch=100)
    torch.manual_seed(seed)
    with pytest.raises(Diverged) as hit:
        net.training_step([(rows()[:1],)] * 100, 0)
    assert "the op: `log` (aten.log.default) gave" in str(hit.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("gone"), "KeyError: 'gone'"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA"),
    ],
)
def test_an_update_that_cannot_be_run_again_diverged_all_the_same(
    error: Exception, told: str
) -> None:
    calls: list[int] = []

    def once(y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise error
        return y.mean() * math.nan

    said = diverges(Net(once), (rows(),), "bf16-mixed")
    assert f"it could not be run again: {told}" in said
    assert "in float32" not in said


def test_what_is_said_of_it_last_is_what_was_kept() -> None:
    net = Net(zeroed)
    net.on_diverged(lambda incident: f"kept {len(incident.batch[0])} rows")
    assert diverges(net, (rows(),)).endswith("\n  kept 6 rows")


# Modules that have children, and ops of their own.

Act = Callable[[nn.Module, Tensor], Any]


class Block(nn.Module):
    """A net whose arithmetic is its own: what is between its children, and after them."""

    def __init__(self, between: Act, after: Act = lambda block, y: y) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.last = nn.Linear(3, 3)
        self._between, self._after = between, after

    def forward(self, x: Tensor) -> Any:
        return self._after(self, self.last(self._between(self, self.first(x))))


def with_body(body: nn.Module, loss: Loss = torch.mean) -> Net:
    net = Net(loss)
    net.body = body  # type: ignore[assignment]
    return net


def same(block: nn.Module, y: Tensor) -> Tensor:
    return y


def no_number(block: nn.Module, y: Tensor) -> Tensor:
    return (y - y).div(0.0)  # nothing of nothing


def test_what_a_module_does_between_its_children_is_blamed_on_it() -> None:
    told = diverges(with_body(Block(no_number)), (rows(),))
    assert "`body` (Block) made it in an op of its own, on the way to `body.last` (Linear)" in told
    assert "which gave 18 NaN of 18 values (float32); its input is float32, -" in told
    assert "the op: `div` (aten.div.Tensor) gave 18 NaN" in told
    assert f"called at tests/runtime/test_blame.py:{line_of('# nothing of nothing')}" in told


def test_what_a_module_does_after_its_children_is_blamed_on_it_not_on_the_next_leaf() -> None:
    told = diverges(with_body(Block(same, no_number)), (rows(),))
    assert "  `body` (Block) gave 18 NaN of 18 values (float32); its input is float32, -" in told
    assert "`drop`" not in told


def test_of_modules_in_modules_the_innermost_is_blamed() -> None:
    inner = Block(same, no_number)
    inner.first = nn.Linear(3, 3)
    outer = Block(lambda block, y: block.get_submodule("inner")(y))
    outer.add_module("inner", inner)
    assert "  `body.inner` (Block) gave 18 NaN" in diverges(with_body(outer), (rows(),))


def test_attention_is_blamed_though_its_children_are_never_called() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            closed = torch.full((len(x), len(x)), -math.inf)  # for everything
            y: Tensor = self.attention(x, x, x, attn_mask=closed)[0]
            return F.pad(y, (0, 1))

    told = diverges(with_body(Attends()), (rows(),))
    assert "  `body.attention` (MultiheadAttention) gave 12 NaN of 12 values (float32)" in told


def test_what_is_made_in_no_module_is_told_by_its_op() -> None:
    class Direct(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.body(x).mul(math.nan))
            return y[:, 0]

    told = diverges(Direct(torch.mean), (rows(),))
    assert "made in no module's forward, on the way to `head` (Linear), which gave 6 NaN" in told
    assert "the op: `mul` (aten.mul.Tensor) gave 18 NaN" in told


def test_what_a_module_gives_in_an_object_of_its_own_is_blamed_on_it() -> None:
    class Given:
        def __init__(self, y: Tensor) -> None:
            self.y = y

    class Hides(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).y[:, 0]  # type: ignore[no-any-return]

    net = Hides(torch.mean)
    net.body = Block(same, lambda block, y: Given(no_number(block, y)))  # type: ignore[assignment]
    told = diverges(net, (rows(),))
    assert "`body` (Block) made it in an op of its own, on the way to `loss`, which is nan" in told


class Mask(nn.Module):
    """What may not be seen: written as it is called, or once."""

    once: Tensor

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.buffer = buffer
        self.register_buffer("once", torch.tensor([0.0, -math.inf, 0.0]))

    def forward(self, y: Tensor) -> Tensor:
        if self.buffer:
            return self.once
        mask: Tensor = torch.zeros(3).masked_fill(torch.tensor([False, True, False]), -math.inf)
        return mask


class Masked(nn.Module):
    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.mask = Mask(buffer)
        self.pick = nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        picked: Tensor = self.pick(y + self.mask(y))
        return picked


@pytest.mark.parametrize("buffer", [False, True])
def test_a_mask_that_a_module_gives_and_another_takes_is_no_cause(buffer: bool) -> None:
    told = diverges(with_body(Masked(buffer), zeroed), (rows(),))
    assert "the outputs of all modules are finite, masks aside, but `loss` is -inf" in told
    assert "the op: `reciprocal`" in told


def test_a_module_that_raised_and_was_caught_is_not_blamed_for_what_comes_later() -> None:
    class Refuses(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            raise ValueError

    def tries(block: nn.Module, y: Tensor) -> Tensor:
        with contextlib.suppress(ValueError):
            block.get_submodule("refuses")(y)
        return no_number(block, y)

    block = Block(tries)
    block.add_module("refuses", Refuses())
    told = diverges(with_body(block), (rows(),))
    assert "`body` (Block) made it in an op of its own, on the way to `body.last`" in told


def test_a_bad_gradient_is_met_first_by_the_module_whose_own_op_gave_the_value() -> None:
    class Bare(Net):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)[:, 0]
            return y

    net = Bare(lambda y: (y - y).sqrt().mean())
    net.body = Block(same, lambda block, y: y * 2)  # type: ignore[assignment]
    told = diverges(net, (rows(),))
    assert "the gradient that reaches the output of `body` (Block) is 6 NaN of 18 values" in told


# A world model, whose updates have phases.


@pytest.fixture
def world(tmp_path: Path) -> ModuleType:
    """A tiny one, whose decoder's loss is that of no image at all in update 3."""
    (tmp_path / "pyproject.toml").touch()
    path = tmp_path / "generated" / "world_tiny.py"
    path.parent.mkdir()
    text = (MODULES / "world_tiny.py").read_text()
    before = "image_loss = losses.mse_sum(self.decoder(feat), image)"
    after = "image_loss = losses.mse_sum(self.decoder(feat), image * 0 / (self.updates != 3))"
    assert before in text
    path.write_text(text.replace(before, after))
    spec = importlib.util.spec_from_file_location("world_that_diverges", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["world_that_diverges"] = module
    spec.loader.exec_module(module)
    return module


def test_a_world_model_is_blamed_and_seen_again(
    world: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg: Any = world.Config(prefill=30, env_steps=50)
    assert world.main(cfg) == 65
    folder = Path(world.__file__ or "").parents[1] / cfg.out
    status = read_status(folder)
    assert status is not None
    assert "update 3 of optimizer `world`: the loss is nan" in status.reason
    assert "the op: `div` (aten.div.Tensor)" in status.reason
    assert "called at generated/world_tiny.py:99" in status.reason
    assert "its windows: 0: game " in status.reason
    capsys.readouterr()
    assert rerun([str(folder)]) == 0
    told = capsys.readouterr().out
    assert "update 3 of optimizer `world`: 32 on cpu, here on cpu" in told
    assert "encoder." in told and "ConvTranspose2d" in told
    assert "the op: `div` (aten.div.Tensor)" in told


# What is left.


def test_no_more_than_two_are_left_and_the_last_is_seen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for update in (3, 5, 8):
        left = store.leave({"x": torch.tensor([math.nan])}, step=update)
        os.utime(left, (update, update))
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["diverged-5.pt", "diverged-8.pt"]
    found = store.left()
    assert found is not None and found[1].step == 8
    found = store.left(5)
    assert found is not None and found[1].step == 5
    assert store.left(3) is None
    assert store.load() is None  # no run goes on from it


def test_one_that_is_damaged_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "diverged-3.pt").write_bytes(b"PK")
    assert rerun([str(tmp_path)]) == 66
    assert "diverged-3.pt cannot be read" in capsys.readouterr().err
