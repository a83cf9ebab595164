"""The recurrent block and the Gaussian draw: one node of the graph each, with gradients by hand."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor

from expc_runtime.worlds.rssm import RSSM
from expc_runtime.worlds.sampling import normal
from expc_runtime.worlds.unroll import Cell, Joined
from expc_runtime.worlds.vta import VTA


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def by_the_formula(cell: Cell, gates: Tensor, state: Tensor) -> Tensor:
    """r, c, u = LN(gates); h' = u tanh(r c) + (1 - u) h with r = sigmoid(r), u = sigmoid(u - 1)."""
    mean, var = gates.mean(-1, keepdim=True), gates.var(-1, correction=0, keepdim=True)
    normed = (gates - mean) / (var + 1e-3).sqrt() * cell.norm.weight + cell.norm.bias
    r, c, u = normed.chunk(3, -1)
    u = (u - 1).sigmoid()
    return u * (r.sigmoid() * c).tanh() + (1 - u) * state


@pytest.fixture
def cell() -> Cell:
    torch.manual_seed(0)
    cell = Cell(4, 3).double()
    for p in cell.parameters():
        torch.nn.init.normal_(p)
    return cell


def test_a_cell_renews_its_state_by_the_formula(cell: Cell) -> None:
    gates, state = doubles(5, 9), doubles(5, 3)
    torch.testing.assert_close(
        cell.renew(gates, state, cell.bias()), by_the_formula(cell, gates, state)
    )


def test_the_gradients_of_a_cell_are_those_of_its_values(cell: Cell) -> None:
    gates, state = doubles(2, 9), doubles(2, 3)
    assert torch.autograd.gradcheck(lambda g, h: cell.renew(g, h, cell.bias()), (gates, state))
    grads = torch.autograd.grad(
        cell.renew(gates, state, cell.bias()).square().sum(), [*cell.norm.parameters(), state]
    )
    expected = torch.autograd.grad(
        by_the_formula(cell, gates, state).square().sum(), [*cell.norm.parameters(), state]
    )
    torch.testing.assert_close(grads, expected)


def test_a_cell_can_be_given_a_state_that_is_used_again(cell: Cell) -> None:
    """Nothing that the graph keeps is written to: a second backward gives the same."""
    gates, state = doubles(2, 9), doubles(2, 3)
    loss = cell.renew(gates, state, cell.bias()).square().sum()
    once = torch.autograd.grad(loss, (gates, state), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, (gates, state)), once)


def test_a_draw_has_the_gradients_of_mean_plus_std_noise() -> None:
    torch.manual_seed(0)
    mean, std = doubles(4, 3), (0.2 + torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    noise = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: normal(m, s, noise), (mean, std))


def test_what_a_draw_replaces_takes_no_gradient() -> None:
    nan, inf = float("nan"), float("inf")
    mean = torch.tensor([nan, 1.0, 1.0, 1.0, 1.0, 1.0], requires_grad=True)
    std = torch.tensor([1.0, nan, inf, 0.05, 200.0, 1.0], requires_grad=True)
    drawn = normal(mean, std, torch.full((6,), 2.0))
    assert drawn.tolist() == pytest.approx([2.0, 1.2, 3.0, 1.2, 201.0, 3.0])
    drawn.sum().backward()
    assert mean.grad is not None and mean.grad.tolist() == [0, 1, 1, 1, 1, 1]
    assert std.grad is not None and std.grad.tolist() == [2, 0, 0, 0, 0, 2]


def test_parts_multiplied_apart_make_the_whole() -> None:
    """Two and three axes: the products are added up in different ways."""
    torch.manual_seed(0)
    joined = Joined(6, left=3, right=4, last=2)
    left, right, last = (torch.randn(5, 7, size) for size in (3, 4, 2))
    weight = torch.cat(list(joined.weight.values()), 1)
    whole = torch.cat([left, right, last], -1) @ weight.t()
    torch.testing.assert_close(joined.project(left=left, right=right, last=last), whole)
    flat = joined.project(left=left[0], right=right[0], last=last[0])
    torch.testing.assert_close(flat, whole[0])


@pytest.mark.parametrize("kind", [RSSM, VTA])
def test_an_episode_that_begins_forgets_even_a_nan(kind: type) -> None:
    dynamics = kind(6, 3, hidden=8)
    broken = {name: value.clone() for name, value in dynamics.initial(2).items()}
    for value in broken.values():
        if value.is_floating_point():
            value[0] = math.nan
    action = torch.zeros(2, 3)
    state = dynamics.filter(broken, torch.randn(2, 6), action, torch.tensor([True, False]))
    assert dynamics.features(state).isfinite().all()
