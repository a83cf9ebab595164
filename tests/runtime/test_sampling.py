"""Random choices: finite noise, exact values, straight-through gradients, counted repairs."""

import math

import pytest

torch = pytest.importorskip("torch")

from torch.distributions import Normal, kl_divergence

from expc_runtime.worlds.sampling import (
    LARGEST_UNIFORM,
    SMALLEST_UNIFORM,
    choose,
    gumbel,
    log_mixed,
    mixed,
    normal,
    normal_entropy,
    normal_kl,
    sanitised,
    straight_through,
    uniform,
)

torch.set_num_threads(1)

NAN, INF = float("nan"), float("inf")


def test_both_ends_of_the_uniform_exist_in_float32_and_only_there() -> None:
    assert torch.tensor(SMALLEST_UNIFORM, dtype=torch.float32).item() > 0.0
    assert torch.tensor(LARGEST_UNIFORM, dtype=torch.float32).item() == LARGEST_UNIFORM < 1.0
    # Why nothing here may run in 16 bits: the ends round to 0 and 1, and 1 - 1e-8 is 1 already
    # in float32.
    assert torch.tensor(SMALLEST_UNIFORM, dtype=torch.float16).item() == 0.0
    assert torch.tensor(LARGEST_UNIFORM, dtype=torch.float16).item() == 1.0
    assert torch.tensor(1.0 - 1e-8, dtype=torch.float32).item() == 1.0


@pytest.mark.parametrize("drawn", [torch.zeros, torch.ones])
def test_gumbel_noise_is_finite_whatever_is_drawn(
    monkeypatch: pytest.MonkeyPatch, drawn: object
) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **like: drawn(shape, **like))
    noise = gumbel(4, 2)
    assert noise.shape == (4, 2) and noise.isfinite().all()


@pytest.mark.parametrize("default", [torch.float32, torch.float16, torch.bfloat16])
def test_noise_is_float32_whatever_the_default_dtype_is(default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert uniform(3).dtype is gumbel(3).dtype is torch.float32
    finally:
        torch.set_default_dtype(before)


def test_gumbel_noise_has_the_mean_and_variance_of_the_distribution() -> None:
    torch.manual_seed(0)
    noise = gumbel(100_000).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_mixed_is_softmax_and_a_share_of_the_uniform() -> None:
    probs = mixed(torch.tensor([2.0, 0, 0, 0, 0]), 0.01)
    torch.testing.assert_close(probs, torch.tensor([0.644298] + 4 * [0.088926]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        log_mixed(torch.tensor([2.0, 0, 0, 0, 0]), 0.01).exp(), probs, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_sixteen_bit_logits_are_computed_in_float32(half: torch.dtype) -> None:
    logits = torch.randn(5, 4).to(half)
    for share in (0.0, 0.01):
        assert mixed(logits, share).dtype is log_mixed(logits, share).dtype is torch.float32
    torch.testing.assert_close(mixed(logits, 0.0), logits.float().softmax(-1))


@pytest.mark.parametrize(
    ("noise", "index"),
    [(SMALLEST_UNIFORM, 0), (0.24, 0), (0.26, 1), (0.74, 1), (0.76, 3), (LARGEST_UNIFORM, 3)],
)
def test_choose_takes_the_class_whose_interval_holds_the_noise(noise: float, index: int) -> None:
    hard = choose(torch.tensor([0.25, 0.5, 0.0, 0.25]), torch.tensor(noise))
    assert hard.tolist() == [float(i == index) for i in range(4)]


def test_choose_gives_each_class_its_share_of_evenly_spread_noise() -> None:
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3])
    noise = (torch.arange(1000) + 0.5) / 1000
    assert choose(probs.expand(1000, 4), noise).sum(0).tolist() == [100, 0, 600, 300]


def test_choose_is_one_hot_even_where_partial_sums_round() -> None:
    torch.manual_seed(0)
    probs = torch.randn(2000, 32).mul(8).softmax(-1)
    hard = choose(probs, torch.full((2000,), LARGEST_UNIFORM))
    assert (hard.sum(-1) == 1).all() and ((hard == 0) | (hard == 1)).all()


def test_straight_through_is_the_hard_value_exactly_and_the_gradient_of_the_soft_one() -> None:
    soft = torch.tensor([0.1, 0.3, 0.6], requires_grad=True)
    hard = torch.tensor([0.0, 1.0, 0.0])
    value = straight_through(hard, soft)
    assert value.tolist() == [0.0, 1.0, 0.0]
    (value * torch.tensor([1.0, 2.0, 5.0])).sum().backward()
    assert soft.grad is not None and soft.grad.tolist() == [1.0, 2.0, 5.0]


def test_a_draw_is_mean_plus_std_times_noise() -> None:
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([0.2, 3.0])
    noise = torch.tensor([2.0, -1.0])
    torch.testing.assert_close(normal(mean, std, noise), torch.tensor([0.9, -4.0]))


def test_a_draw_replaces_what_is_not_a_number_and_the_count_says_so() -> None:
    mean = torch.tensor([NAN, 0.0, 0.0, 0.0, 0.0, 0.0])
    std = torch.tensor([0.5, NAN, -INF, INF, 200.0, 0.05])
    drawn = normal(mean, std, torch.ones(6))
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0.1, 0.1, 1.0, 100.0, 0.1]))
    assert sanitised(mean, std).item() == 6
    assert sanitised(torch.zeros(6), torch.full((6,), 0.1)).item() == 0


def test_the_lower_limit_of_a_deviation_is_the_models_own() -> None:
    std = torch.tensor([0.01, 0.005])
    torch.testing.assert_close(
        normal(torch.zeros(2), std, torch.ones(2), min_std=0.01), torch.tensor([0.01, 0.01])
    )
    assert sanitised(torch.zeros(2), std, min_std=0.01).item() == 1


def test_normal_kl_and_entropy_are_those_of_the_distribution() -> None:
    torch.manual_seed(0)
    mean, other_mean = torch.randn(2, 5, 3).unbind(0)
    std, other_std = torch.rand(2, 5, 3).add(0.1).unbind(0)
    torch.testing.assert_close(
        normal_kl(mean, std, other_mean, other_std),
        kl_divergence(Normal(mean, std), Normal(other_mean, other_std)).sum(-1),
    )
    torch.testing.assert_close(normal_entropy(std), Normal(mean, std).entropy().sum(-1))
