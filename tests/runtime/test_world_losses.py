"""Losses of images and of two-hot numbers, against float64 references and the published values."""

import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from expc_runtime import losses, twohot

Array = NDArray[np.float64]

torch.set_num_threads(1)

BUCKETS: Array = np.linspace(-20.0, 20.0, 255)


def ref_twohot(x: Array, bins: int = 255) -> Array:
    """Hafner et al. 2023, eq. 9, from the definition: rows of weights over the buckets."""
    buckets = np.linspace(-20.0, 20.0, bins)
    rows = np.zeros((*x.shape, bins))
    for place in np.ndindex(x.shape):
        y = np.clip(np.sign(x[place]) * np.log1p(abs(x[place])), -20.0, 20.0)
        above = max(1, int(np.searchsorted(buckets, y)))
        share = (y - buckets[above - 1]) / (buckets[above] - buckets[above - 1])
        rows[place][above - 1], rows[place][above] = 1.0 - share, share
    return rows


def ref_twohot_loss(z: Array, x: Array) -> Array:
    log_p = z - np.logaddexp.reduce(z, axis=-1, keepdims=True)
    return np.asarray(-(ref_twohot(x, z.shape[-1]) * log_p).sum(-1))


def peaked() -> Tensor:
    """All logits 0, but bucket 142 is 3 and bucket 143 is 1."""
    logits: Tensor = torch.zeros(255)
    logits[142], logits[143] = 3.0, 1.0
    return logits


# ------------------------------------------------------------------------------------------------
# Two-hot


def test_symlog_of_ten_lies_between_buckets_142_and_143() -> None:
    assert twohot.symlog(torch.tensor(10.0)).item() == pytest.approx(2.397895, abs=1e-6)
    table = twohot.buckets(255)
    assert table[142].item() == pytest.approx(2.362205, abs=1e-6)
    assert table[143].item() == pytest.approx(2.519685, abs=1e-6)
    np.testing.assert_allclose(table.numpy(), BUCKETS, rtol=1e-6, atol=1e-6)


def test_symexp_undoes_symlog() -> None:
    x = torch.tensor([-1e5, -10.0, -0.3, 0.0, 1e-6, 2.0, 1e8], dtype=torch.float64)
    torch.testing.assert_close(twohot.symexp(twohot.symlog(x)), x)


@pytest.mark.parametrize("x", [-1e9, -3.0, 0.0, 0.1, 10.0, 1e12])
def test_uniform_logits_cost_the_logarithm_of_the_bins(x: float) -> None:
    loss = losses.twohot_symlog(torch.zeros(255), torch.tensor(x))
    assert loss.item() == pytest.approx(math.log(255), abs=1e-6)
    assert loss.item() == pytest.approx(5.541264, abs=1e-6)


def test_peaked_logits_have_the_published_loss_and_mean() -> None:
    loss = losses.twohot_symlog(peaked(), torch.tensor(10.0))
    assert loss.item() == pytest.approx(3.072960, abs=2e-6)
    mean = twohot.mean(peaked(), twohot.buckets(255))
    assert mean.item() == pytest.approx(0.196214, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    bins=st.sampled_from([2, 3, 8, 41, 254, 255]),
    x=st.lists(st.floats(-1e10, 1e10), min_size=1, max_size=6),
)
def test_twohot_equals_its_definition(seed: int, bins: int, x: list[float]) -> None:
    z = np.random.default_rng(seed).normal(0.0, 2.0, (len(x), bins))
    numbers = np.array(x)
    got = losses.twohot_symlog(torch.from_numpy(z), torch.from_numpy(numbers), reduction="none")
    np.testing.assert_allclose(got.numpy(), ref_twohot_loss(z, numbers), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("place", [0, 1, 126, 127, 128, 142, 253, 254])
def test_a_number_on_a_bucket_costs_that_bucket_alone(place: int) -> None:
    z = torch.linspace(-2, 3, 255, dtype=torch.float64).sin() * 3
    x = twohot.symexp(torch.tensor(BUCKETS[place]))
    expected = -z.log_softmax(-1)[place]
    torch.testing.assert_close(losses.twohot_symlog(z, x), expected)


def test_beyond_the_last_bucket_the_last_bucket_counts() -> None:
    z = torch.linspace(-3, 3, 255)
    far = losses.twohot_symlog(
        z.expand(3, -1), torch.tensor([5e8, 1e30, math.inf]), reduction="none"
    )
    torch.testing.assert_close(far, -z.log_softmax(-1)[254].expand(3))


def test_a_nan_target_is_a_nan_loss_and_not_a_crash() -> None:
    assert losses.twohot_symlog(torch.zeros(255), torch.tensor(math.nan)).isnan()


@given(x=st.floats(-1e8, 1e8))
@settings(max_examples=25, deadline=None)
def test_the_mean_of_the_code_of_a_number_is_that_number(x: float) -> None:
    weights = torch.from_numpy(ref_twohot(np.array([x])))
    back = twohot.mean(weights.log(), torch.from_numpy(BUCKETS))
    assert back.item() == pytest.approx(x, rel=1e-9, abs=1e-9)


def test_one_bucket_is_no_code() -> None:
    with pytest.raises(ValueError, match="2 bins"):
        twohot.buckets(1)
    with pytest.raises(ValueError, match="2 bins"):
        losses.twohot_symlog(torch.zeros(4, 1), torch.zeros(4))


# ------------------------------------------------------------------------------------------------
# Images


@pytest.mark.parametrize("shape", [(4, 4, 3), (5, 4, 4, 3), (2, 3, 8, 4, 1)], ids=str)
def test_mse_sum_is_the_sum_over_an_image_without_a_half(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=shape), rng.random(shape)
    expected = np.square(pred - target).sum((-3, -2, -1))
    a, b = torch.from_numpy(pred), torch.from_numpy(target)
    np.testing.assert_allclose(losses.mse_sum(a, b, reduction="none").numpy(), expected)
    assert losses.mse_sum(a, b).item() == pytest.approx(expected.mean())
    assert losses.mse_sum(a, b, reduction="sum").item() == pytest.approx(expected.sum())


def test_half_grey_against_black_and_white() -> None:
    """64 x 64 x 3 values, each a half away."""
    image = torch.zeros(2, 64, 64, 3)
    image[1] = 1.0
    assert losses.mse_sum(torch.full_like(image, 0.5), image).item() == 64 * 64 * 3 * 0.25


def test_an_image_has_three_axes() -> None:
    with pytest.raises(ValueError, match="H, W, C"):
        losses.mse_sum(torch.zeros(4, 3), torch.zeros(4, 3))


# ------------------------------------------------------------------------------------------------
# What all losses promise

IMAGE = (losses.mse_sum, (3, 4, 4, 2), (3, 4, 4, 2))
NUMBER = (losses.twohot_symlog, (3, 5, 9), (3, 5))
EACH = pytest.mark.parametrize(("loss", "pred", "target"), [IMAGE, NUMBER], ids=["image", "number"])
Loss = Callable[..., Tensor]
Shape = tuple[int, ...]


@EACH
def test_reductions_agree(loss: Loss, pred: Shape, target: Shape) -> None:
    z, t = torch.randn(pred), torch.randn(target)
    each = loss(z, t, reduction="none")
    torch.testing.assert_close(loss(z, t), each.mean())
    torch.testing.assert_close(loss(z, t, reduction="sum"), each.sum())
    with pytest.raises(ValueError, match="batchmean"):
        loss(z, t, reduction="batchmean")


@EACH
def test_gradient_equals_finite_differences(loss: Loss, pred: Shape, target: Shape) -> None:
    z = torch.randn(pred, dtype=torch.float64, requires_grad=True)
    t = torch.randn(target, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, t), (z,))


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_16_bit_inputs_are_computed_in_32(
    loss: Loss, pred: Shape, target: Shape, dtype: Any, autocast: bool
) -> None:
    z, t = (torch.randn(pred) * 400).to(dtype), torch.randn(target)
    z.requires_grad_()
    with torch.autocast("cpu", dtype, enabled=autocast):
        got = loss(z, t)
    assert got.dtype == torch.float32 and got.isfinite()
    torch.testing.assert_close(got, loss(z.float(), t))
    (gradient,) = torch.autograd.grad(got, z)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@EACH
def test_a_call_reads_no_value(loss: Loss, pred: Shape, target: Shape) -> None:
    z = torch.empty(pred, device="meta", requires_grad=True)
    got = loss(z, torch.empty(target, device="meta"))
    assert got.shape == ()
    assert torch.autograd.grad(got, z)[0].shape == z.shape


@EACH
def test_shapes_are_never_broadcast(loss: Loss, pred: Shape, target: Shape) -> None:
    name = loss.__name__
    for other in ((1, *target[1:]), target[:-1], (*target, 1), ()):
        with pytest.raises(ValueError, match=name):
            loss(torch.zeros(pred), torch.zeros(other))
    with pytest.raises(TypeError, match="floating point"):
        loss(torch.zeros(pred, dtype=torch.int64), torch.zeros(target))
