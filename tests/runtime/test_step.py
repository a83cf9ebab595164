"""One step: what it does to the weights, in every precision, with clipping and accumulation.

The oracle is a plain loop in float64: mean gradient over the batches gathered, clipped by its global
norm, plain SGD.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from expc_runtime import optim
from expc_runtime.clocks import Updates
from expc_runtime.errors import Diverged
from expc_runtime.module import Batch, Module, detach_tree
from expc_runtime.optim import Drive, warmup_cosine
from expc_runtime.records import Records

torch.set_num_threads(1)


M = TypeVar("M", bound=Module)


class Net(Module):
    """A small net with one drive, its loss given by the test."""

    def __init__(
        self,
        drive: Callable[[list[nn.Parameter]], Drive],
        loss: Callable[[Tensor, Tensor], Tensor] = lambda y, t: (y - t).square().mean(),
        width: int = 8,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 1)
        self._drive, self._loss = drive, loss
        self.seen: list[object] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.seen.append(hidden.dtype)
        y: Tensor = self.second(hidden.tanh())
        return y[:, 0]

    def update(self, batch: Batch) -> None:
        x, target = batch
        loss = self._loss(self(x).float(), target)
        self.record(loss=loss)
        self.step("model", loss)

    def drives(self) -> dict[str, Drive]:
        return {"model": self._drive(list(self.parameters()))}


def sgd(lr: float = 0.1, **how: Any) -> Callable[[list[nn.Parameter]], Drive]:
    return lambda params: Drive(torch.optim.SGD(params, lr=lr), **how)


def started(module: M, precision: str = "32", scale: float | None = None) -> M:
    """Ready to train; with ``scale`` float16 starts at one that these small nets do not overflow."""
    module.start(precision, total_updates=100, updates_per_epoch=10)
    for name in module.drive_names():
        if scale is not None and module.drive(name).scale is not None:
            module.drive(name).scale = scale
    return module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def batches(count: int, rows: int = 6, size: float = 1.0) -> list[Batch]:
    return [(torch.randn(rows, 3) * size, torch.randn(rows)) for _ in range(count)]


def reference(net: Net, data: list[Batch], lr: float, clip: float | None, k: int) -> nn.Module:
    """The oracle; an unfinished accumulation at the end moves nothing."""
    model = nn.Sequential(nn.Linear(3, net.first.out_features), nn.Tanh(), nn.Linear(8, 1)).double()
    model[0].load_state_dict(net.first.state_dict())
    model[2].load_state_dict(net.second.state_dict())
    for start in range(0, len(data) - k + 1, k):
        losses = [
            (model(x.double())[:, 0] - t.double()).square().mean()
            for x, t in data[start : start + k]
        ]
        grads = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        shrink = 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(lr * shrink * g)
    return model


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    precision=st.sampled_from(["32", "bf16-mixed", "16-mixed"]),
    clip=st.sampled_from([None, 0.05, 1.0, 100.0]),
    accumulate=st.integers(1, 4),
    count=st.integers(1, 9),
)
def test_every_precision_makes_the_step_of_the_plain_loop(
    seed: int, precision: str, clip: float | None, accumulate: int, count: int
) -> None:
    torch.manual_seed(seed)
    net = Net(sgd(0.1, clip=clip, accumulate=accumulate))
    data = batches(count)
    before = weights(net)
    expected = [p.detach() for p in reference(net, data, 0.1, clip, accumulate).parameters()]
    started(net, precision, scale=256.0).training_step(data, 0)

    assert net.drive("model").steps == count // accumulate
    assert net.drive("model").skipped == 0
    moved = torch.cat([(p - b).flatten() for p, b in zip(expected, before.values(), strict=True)])
    off = torch.cat(
        [(p.detach() - e).flatten() for p, e in zip(net.parameters(), expected, strict=True)]
    )
    tolerance = {"32": 1e-5, "16-mixed": 0.01, "bf16-mixed": 0.06}[precision]
    assert float(off.norm()) <= tolerance * float(moved.norm()) + 1e-7


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_the_precision_asked_for_is_the_one_computed_in(precision: str, dtype: object) -> None:
    net = Net(sgd())
    started(net, precision).training_step(batches(2), 0)
    assert net.seen == [dtype, dtype]
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 32, bf16-mixed, 16-mixed"):
        started(Net(sgd()), "fp16")


def test_scaled_gradients_are_not_what_is_clipped() -> None:
    """Were they, a gradient of norm below 1000 under a scale of 4096 would be cut to almost none."""
    torch.manual_seed(0)
    plain, clipped = Net(sgd()), Net(sgd(clip=1e3))
    clipped.load_state_dict(plain.state_dict())
    data = batches(1)
    started(plain, "16-mixed", scale=4096.0).training_step(data, 0)
    started(clipped, "16-mixed", scale=4096.0).training_step(data, 0)
    for p, q in zip(plain.parameters(), clipped.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9)
    norm = clipped.drive("model").norm
    assert norm is not None
    assert 1e3 / 4096 < norm < 1e3


def overflowing(y: Tensor, t: Tensor) -> Tensor:
    """Its gradient at y is 1e3: times a scale above 65, too much for float16."""
    return (y * 1e3).sum()


def test_a_skipped_float16_step_moves_neither_weights_nor_schedule_nor_moments() -> None:
    torch.manual_seed(0)

    def adam(params: list[nn.Parameter]) -> Drive:
        optimizer = torch.optim.Adam(params, lr=1.0, fused=True)
        return Drive(optimizer, schedule=warmup_cosine(warmup=Updates(10)))

    net = started(Net(adam, overflowing), "16-mixed")
    drive = net.drive("model")
    data = batches(1, rows=1)
    before = weights(net)
    scales = []
    while drive.steps == 0:
        assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
        scales.append(drive.scale)
        net.training_step(data, 0)
    assert scales == [65536 / 2**i for i in range(len(scales))]
    assert drive.skipped == len(scales) - 1 > 5
    assert drive.lr == pytest.approx(0.1)  # the first of ten steps of warm-up, not a later one
    net.training_step(data, 0)
    assert drive.lr == pytest.approx(0.2)
    moments = drive.optimizer.state_dict()["state"].values()
    assert {float(state["step"]) for state in moments} == {2.0}


def test_the_scale_grows_after_a_calm_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drive, "GROWTH_INTERVAL", 3)
    net = started(Net(sgd(1e-3)), "16-mixed", scale=16.0)
    net.training_step(batches(7), 0)
    assert net.drive("model").scale == 16.0 * 4


def test_gradients_that_overflow_at_every_scale_are_a_divergence() -> None:
    net = started(Net(sgd(), lambda y, t: (y * 1e30).sum()), "16-mixed")
    with pytest.raises(Diverged):
        net.training_step(batches(40, rows=1), 0)
    assert net.drive("model").skipped == 16


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    precision: str, clip: float | None, bad: float
) -> None:
    net = started(
        Net(sgd(clip=clip), lambda y, t: (y - t).square().mean() * t.sum()), precision, 64.0
    )
    net.training_step([(torch.randn(4, 3), torch.ones(4))], 0)
    before = weights(net)
    with pytest.raises(Diverged):
        net.training_step([(torch.randn(4, 3), torch.full((4,), bad))], 0)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert net.drive("model").steps == 1


def test_a_constant_nan_in_the_loss_counts_even_where_its_gradient_is_finite() -> None:
    net = started(Net(sgd(), lambda y, t: y.mean() + torch.tensor(math.nan)))
    with pytest.raises(Diverged):
        net.training_step(batches(1), 0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_counts_even_where_the_loss_is(clip: float | None) -> None:
    net = started(Net(sgd(clip=clip), lambda y, t: (y - y).sqrt().mean()))
    before = weights(net)
    with pytest.raises(Diverged):
        net.training_step(batches(1), 0)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_nan_early_in_an_accumulation_is_found_at_once() -> None:
    net = started(Net(sgd(accumulate=4), lambda y, t: (y - t).square().mean()))
    with pytest.raises(Diverged):
        net.training_step([(torch.full((2, 3), math.nan), torch.zeros(2))], 0)
    assert net.drive("model").waiting == 0


def test_an_unfinished_accumulation_is_carried_over() -> None:
    torch.manual_seed(1)
    net = Net(sgd(accumulate=3))
    data = batches(6)
    expected = reference(net, data, 0.1, None, 3)
    started(net)
    net.training_step(data[:4], 0)  # the epoch ends here
    assert net.drive("model").waiting == 1
    net.training_step(data[4:], 0)
    for p, e in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.double(), e, rtol=1e-5, atol=1e-6)


class TwoHeads(Module):
    """Two drives in one update, as in an actor and a critic."""

    actor: nn.Linear
    critic: nn.Linear

    def __init__(self, trains: tuple[str, ...] = ("actor", "critic")) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.actor = nn.Linear(3, 3)
        self.critic = nn.Linear(3, 1)
        self.trains = trains

    def update(self, batch: Batch) -> None:
        (x,) = batch
        if "actor" in self.trains:
            with self.only(self.actor):
                total_actor = -self.critic(self.actor(x)).mean()
                self.step("actor", total_actor)
        if "critic" in self.trains:
            with self.only(self.critic):
                total_critic = (self.critic(x) - 1).square().mean()
                self.step("critic", total_critic)

    def drives(self) -> dict[str, Drive]:
        return {
            "actor": Drive(torch.optim.SGD(self.actor.parameters(), lr=0.1), clip=0.01),
            "critic": Drive(torch.optim.SGD(self.critic.parameters(), lr=0.2), accumulate=2),
        }


def test_two_drives_in_one_update_keep_apart() -> None:
    torch.manual_seed(0)
    data = [(torch.randn(4, 3),) for _ in range(5)]
    both, critic = started(TwoHeads()), started(TwoHeads(("critic",)))
    start = weights(both)
    both.training_step(data, 0)
    critic.training_step(data, 0)

    assert (both.drive("actor").steps, both.drive("critic").steps) == (5, 2)
    assert both.drive("critic").waiting == 1
    for p, q in zip(both.critic.parameters(), critic.critic.parameters(), strict=True):
        assert torch.equal(p, q)  # the actor's loss runs through the critic and leaves no gradient
    moved = torch.cat(
        [(p.detach() - start[f"actor.{n}"]).flatten() for n, p in both.actor.named_parameters()]
    )
    assert 0 < float(moved.norm()) <= 5 * 0.1 * 0.01 * (1 + 1e-5)
    assert all(p.requires_grad for p in both.parameters())


def test_only_can_be_nested_and_survives_an_exception() -> None:
    net = TwoHeads()
    net.actor.bias.requires_grad = False  # frozen by its owner: it stays so
    with pytest.raises(KeyError), net.only(net.actor, net.critic), net.only(net.critic):
        assert [n for n, p in net.named_parameters() if p.requires_grad] == [
            "critic.weight",
            "critic.bias",
        ]
        raise KeyError
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["actor.bias"]


class Again(Module):
    """Uses a net again after its own step in the same update."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1, bias=False)
        self.answers: list[float] = []

    def update(self, batch: Batch) -> None:
        (x,) = batch
        self.step("net", self.net(x).float().mean())
        with torch.no_grad():
            self.answers.append(float(self.net(x)))

    def drives(self) -> dict[str, Drive]:
        return {"net": Drive(torch.optim.SGD(self.net.parameters(), lr=1.0))}


def test_autocast_does_not_answer_with_the_weights_from_before_the_step() -> None:
    net = Again()
    nn.init.ones_(net.net.weight)
    started(net, "bf16-mixed").training_step([(torch.ones(1, 2),)], 0)
    assert net.answers == [0.0]  # 1 - lr * 1 for both weights


def test_a_loss_that_reaches_nothing_of_its_drive_says_so() -> None:
    net = TwoHeads()
    started(net)
    with pytest.raises(ValueError, match=r"`actor`.*none of its parameters"):
        net.step("actor", net.critic(torch.ones(1, 3)).mean())


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-100, 100, width=32)), min_size=1, max_size=40)
)
@settings(deadline=None, max_examples=30)
def test_a_recorded_mean_is_over_rows_not_over_batches(entries: list[tuple[int, float]]) -> None:
    records = Records()
    records.FOLD = 7
    for rows, value in entries:
        records.add(rows, {"x": torch.tensor(value)})
    mean = math.fsum(rows * value for rows, value in entries) / sum(rows for rows, _ in entries)
    assert records.means()["x"] == pytest.approx(mean, rel=1e-6, abs=1e-9)


def test_measuring_leaves_each_part_in_its_mode() -> None:
    net = Net(sgd())
    net.first.eval()  # as a frozen batch norm is kept
    net.measure = lambda batch: net.record(loss=net(batch[0]).mean())  # type: ignore[method-assign]
    net.measured(batches(2))
    assert (net.training, net.first.training, net.second.training) == (True, False, True)


def test_a_report_is_recorded_beside_scalars_and_no_name_twice() -> None:
    net = started(Net(sgd()))
    net.record({"kl": torch.tensor(2.0)}, {"rate": torch.tensor(3.0)}, loss=torch.tensor(4.0))
    assert net.records.means() == {"kl": 2.0, "rate": 3.0, "loss": 4.0}
    with pytest.raises(ValueError, match="kl is given twice"):
        net.record({"kl": torch.tensor(2.0)}, kl=torch.tensor(2.0))


def test_a_record_keeps_no_graph_and_refuses_what_is_no_scalar() -> None:
    records = Records()
    records.add(1, {"x": torch.ones((), requires_grad=True) * 2})
    assert not records.kept()[0][1].requires_grad
    records.add(1, {"y": torch.ones(2)})
    with pytest.raises(ValueError, match=r"record\(y=...\): a scalar, not a \(2,\) tensor"):
        records.means()


@pytest.mark.parametrize(("was", "now"), [("16-mixed", "32"), ("32", "16-mixed")])
def test_a_retry_in_another_precision_has_the_loss_scale_of_its_own(was: str, now: str) -> None:
    """Half of an accumulation is in the checkpoint, its gradients under the other's scale."""
    torch.manual_seed(0)
    data = batches(4)
    whole = Net(sgd(accumulate=2))
    first, then = Net(sgd(accumulate=2)), Net(sgd(accumulate=2))
    for net in (first, then):
        net.load_state_dict(whole.state_dict())
    started(whole).training_step(data, 0)
    started(first, was, scale=1024.0).training_step(data[:1], 0)
    started(then, now, scale=1024.0).resume(first.progress())
    assert then.drive("model").scale == (1024.0 if now == "16-mixed" else None)
    then.training_step(data[1:], 0)
    assert then.drive("model").steps == 2
    for p, q in zip(then.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3)


# On a GPU nothing waits: whether a step may be is a tensor that the fused kernel reads, and the host
# reads it one step late. The same path runs on the CPU if told so; the flag alone is another.


class Mail:
    """A flag on its way to the host."""

    def __init__(self, bad: Tensor, loss: Tensor, called: Tensor | None) -> None:
        self._content = bad.clone(), loss.clone(), None if called is None else called.clone()

    def read(self) -> tuple[bool, float, Tensor | None]:
        bad, loss, called = self._content
        return not bool(bad), float(loss), called


def late(module: M, monkeypatch: pytest.MonkeyPatch) -> M:
    """Have the drives of ``module`` behave as on a GPU."""
    monkeypatch.setattr(optim, "_LateFlag", Mail)
    for name in module.drive_names():
        drive: Any = module.drive(name)
        drive._on_cpu, drive._reads_late = False, True
    return module


def adamw(clip: float | None, accumulate: int = 1) -> Callable[[list[nn.Parameter]], Drive]:
    return lambda params: Drive(
        torch.optim.AdamW(params, lr=0.05, fused=True),
        warmup_cosine(warmup=Updates(4)),
        clip=clip,
        accumulate=accumulate,
    )


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_reading_late_changes_nothing(
    precision: str, clip: float | None, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    here, there = Net(adamw(clip, accumulate)), Net(adamw(clip, accumulate))
    there.load_state_dict(here.state_dict())
    data = batches(9)
    started(here, precision).training_step(data, 0)  # float16 starts at a scale that overflows
    late(started(there, precision), monkeypatch).training_step(data, 0)
    there.settle()
    one, two = here.drive("model"), there.drive("model")
    assert (one.steps, one.skipped, one.scale) == (two.steps, two.skipped, two.scale)
    assert one.lr == two.lr
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_bad_batch_is_found_one_step_late_and_is_the_one_accused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    data = batches(4)
    data[1][0][2, 0] = math.nan
    other = Net(adamw(1.0))
    net = late(started(Net(adamw(1.0))), monkeypatch)
    other.load_state_dict(net.state_dict())
    with pytest.raises(
        Diverged, match=r"update 1 of(.|\n)*input 1 of the batch is not finite in 1 rows \(2\)"
    ):
        net.training_step(data, 0)
    started(other).training_step(data[:1], 0)
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_of_gathered_batches_the_step_is_read_one_update_late_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    data = batches(8)
    data[3][0][2, 0] = math.nan  # the last of the first step
    net = late(started(Net(adamw(1.0, accumulate=4))), monkeypatch)
    with pytest.raises(
        Diverged, match=r"update 3 of(.|\n)*input 1 of the batch is not finite in 1 rows \(2\)"
    ):
        net.training_step(data, 0)


def test_a_gradient_that_an_earlier_batch_spoiled_is_no_race_for_sure() -> None:
    torch.manual_seed(0)
    net = started(Net(sgd(accumulate=2)))
    data = batches(2)
    net.training_step(data[:1], 0)
    assert net.first.weight.grad is not None
    net.first.weight.grad[0, 0] = math.nan
    with pytest.raises(Diverged, match="gathers 2 batches: an earlier one may have been bad"):
        net.training_step(data[1:], 0)


def test_a_bad_last_batch_is_found_when_all_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    net = late(started(Net(adamw(None))), monkeypatch)
    before = weights(net)
    net.training_step([(torch.full((2, 3), math.inf), torch.zeros(2))], 0)
    with pytest.raises(Diverged, match=r"update 0 of(.|\n)*input 1 of the batch"):
        net.settle()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_an_optimizer_that_cannot_skip_by_itself_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = late(started(Net(sgd(clip=1.0))), monkeypatch)
    waited: Any = net.drive("model")
    waited._reads_late = False
    before = weights(net)
    with pytest.raises(Diverged):
        net.training_step([(torch.full((2, 3), math.inf), torch.zeros(2))], 0)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_loss_that_is_not_finite_is_no_overflow_of_the_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = late(started(Net(sgd()), "16-mixed"), monkeypatch)
    waited: Any = net.drive("model")
    waited._reads_late = False
    with pytest.raises(Diverged, match="update 0 of"):
        net.training_step([(torch.full((2, 3), math.inf), torch.zeros(2))], 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_gpu_takes_the_steps_of_the_cpu(precision: str, clip: float | None) -> None:
    torch.manual_seed(0)
    here, there = Net(adamw(clip)), Net(adamw(clip)).cuda()
    there.load_state_dict(here.state_dict())
    data = batches(12)
    started(here).training_step(data, 0)
    started(there, precision, scale=256.0).training_step([(x.cuda(), t.cuda()) for x, t in data], 0)
    there.settle()
    assert there.drive("model").steps == 12
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(p, q.cpu(), rtol=0.05, atol=0.03)
    bad = (torch.full((2, 3), math.inf).cuda(), torch.zeros(2).cuda())
    before = weights(there)
    with pytest.raises(Diverged):
        there.training_step([bad], 0)
        there.settle()
    assert all(torch.equal(p, before[name]) for name, p in there.named_parameters())


def test_a_tree_is_detached_leaf_by_leaf() -> None:
    leaf = torch.ones(2, requires_grad=True) * 2
    tree = {"post": (leaf, [leaf + 1]), "steps": 3}
    cut = detach_tree(tree)
    assert not cut["post"][0].requires_grad and not cut["post"][1][0].requires_grad
    assert torch.equal(cut["post"][1][0], leaf + 1) and cut["steps"] == 3
    assert leaf.requires_grad
