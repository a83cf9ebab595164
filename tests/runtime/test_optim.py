"""Learning rates at each step, weight decay by parameter, and what a drive refuses."""

import math
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch")

from torch import nn

from expc_runtime.clocks import Epochs, Updates
from expc_runtime.optim import (
    Drive,
    Schedule,
    constant,
    decay_groups,
    linear,
    parameters,
    warmup_cosine,
)

torch.set_num_threads(1)


def lrs(
    schedule: Schedule, *, updates: int, per_epoch: int, accumulate: int = 1, lr: float = 0.01
) -> list[float]:
    """The learning rate of each optimizer step of a whole run."""
    p = nn.Parameter(torch.zeros(1))
    drive = Drive(torch.optim.SGD([p], lr=lr), schedule=schedule, accumulate=accumulate)
    drive.start("model", total_updates=updates, updates_per_epoch=per_epoch)
    told = []
    for _ in range(updates):
        before = drive.steps
        drive.step(p.sum())
        if drive.steps > before:
            told.append(drive.lr)
    return told


def test_warmup_and_cosine_at_steps_0_W_and_T() -> None:
    """W = 20, T = 100: lr (s + 1) / W, then lr (1 + cos(pi (s - W) / (T - W))) / 2."""
    told = lrs(warmup_cosine(warmup=Epochs(1)), updates=100, per_epoch=20)
    assert len(told) == 100
    assert told[0] == pytest.approx(0.01 / 20)
    assert told[19] == pytest.approx(0.01)
    assert told[20] == pytest.approx(0.01)
    assert told[60] == pytest.approx(0.005)
    assert told[99] == pytest.approx(0.01 * (1 + math.cos(math.pi * 79 / 80)) / 2)
    assert told[99] < 0.01 * 0.0005


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_counts_in_the_length_of_the_schedule(accumulate: int) -> None:
    """Counted in batches, the cosine would end half way and warm-up would take k times as long."""
    told = lrs(warmup_cosine(Epochs(1)), updates=400, per_epoch=40, accumulate=accumulate)
    w, t = 40 // accumulate, 400 // accumulate
    assert len(told) == t
    assert told[0] == pytest.approx(0.01 / w)
    assert told[w - 1] == told[w] == pytest.approx(0.01)
    assert told[-1] == pytest.approx(0.01 * (1 + math.cos(math.pi * (t - 1 - w) / (t - w))) / 2)


def test_a_warmup_longer_than_the_run_is_cut_to_it() -> None:
    told = lrs(warmup_cosine(Updates(1000)), updates=10, per_epoch=10)
    assert told == pytest.approx([0.001 * (s + 1) for s in range(10)])


def test_floor_is_a_share_of_the_learning_rate() -> None:
    assert lrs(linear(floor=0.5), updates=10, per_epoch=5)[-1] == pytest.approx(0.01 * 0.55)
    assert Schedule("cosine", floor=0.1).factor(100, 100, 0) == pytest.approx(0.1)
    assert Schedule("linear").factor(25, 100, 0) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="floor"):
        linear(floor=2.0)


def test_constant_stays_and_needs_no_total() -> None:
    assert lrs(constant(), updates=3, per_epoch=3) == [0.01] * 3
    p = nn.Parameter(torch.zeros(1))
    drive = Drive(torch.optim.SGD([p], lr=0.5), constant(warmup=Updates(2)))
    drive.start("model", total_updates=None, updates_per_epoch=5)
    drive.step(p.sum())
    assert drive.lr == 0.25


def test_a_decaying_schedule_refuses_a_budget_in_minutes() -> None:
    drive = Drive(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5), warmup_cosine())
    with pytest.raises(ValueError, match="`model`: a cosine schedule needs a budget in epochs"):
        drive.start("model", total_updates=None, updates_per_epoch=10)


def test_every_parameter_group_keeps_its_own_learning_rate() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}]
    drive = Drive(torch.optim.SGD(groups, lr=9.0), warmup_cosine(Updates(4)))
    drive.start("model", total_updates=8, updates_per_epoch=4)
    drive.step(a.sum() + b.sum())
    assert [group["lr"] for group in drive.optimizer.param_groups] == pytest.approx([0.25, 0.025])


def test_norms_and_biases_do_not_decay() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, spared = decay_groups(net, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in spared["params"]} == {1}
    assert sum(len(g["params"]) for g in (decayed, spared)) == len(list(net.parameters()))


def test_an_empty_group_is_left_out() -> None:
    assert [g["weight_decay"] for g in decay_groups(nn.Linear(2, 2, bias=False), 0.1)] == [0.1]
    assert [g["weight_decay"] for g in decay_groups(nn.LayerNorm(2), 0.1)] == [0.0]
    assert [g["weight_decay"] for g in decay_groups(nn.Linear(2, 2), 0.1, no_decay=False)] == [0.1]


def test_frozen_parameters_are_in_no_group() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    with pytest.raises(ValueError, match="Sequential has no parameter to train"):
        decay_groups(net, 0.1)
    net[1].requires_grad_(True)
    held = {id(p) for group in decay_groups(net, 0.1) for p in group["params"]}
    assert held == {id(p) for p in net[1].parameters()}


@pytest.mark.parametrize("how", [{"clip": 0.0}, {"clip": -1.0}, {"accumulate": 0}])
def test_settings_without_a_meaning_are_refused(how: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(how))):
        Drive(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), **how)  # type: ignore[arg-type]


def test_a_drive_goes_on_bit_for_bit_from_its_state() -> None:
    """In the middle of an accumulation, with momenta and a schedule."""

    def made() -> tuple[nn.Linear, Drive]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        drive = Drive(
            torch.optim.AdamW(net.parameters(), lr=0.1, fused=True),
            warmup_cosine(Updates(3)),
            clip=0.5,
            accumulate=3,
        )
        drive.start("model", total_updates=20, updates_per_epoch=20)
        return net, drive

    torch.manual_seed(1)
    data = torch.randn(20, 4, 3)
    net, drive = made()
    for x in data[:7]:
        drive.step(net(x).square().mean())
    other, resumed = made()
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(deepcopy(drive.state_dict()))
    for x in data[7:]:
        drive.step(net(x).square().mean())
        resumed.step(other(x).square().mean())
    assert resumed.steps == drive.steps == 6
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_parameters_of_several_nets_are_each_there_once() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    third = nn.Linear(2, 2).requires_grad_(False)
    assert {id(p) for p in parameters(first, second, third)} == {id(p) for p in first.parameters()}
    assert len(parameters(first, second, third)) == 2
    with pytest.raises(ValueError, match="Linear: nothing to train"):
        parameters(third)
