"""The losses against float64 references written from their papers, and what they share."""

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from expc_runtime import losses

Array = NDArray[np.float64]
Params = dict[str, Any]

torch.set_num_threads(1)

# ------------------------------------------------------------------------------------------------
# References: one value for each element or row.


def log_sigmoid(z: Array) -> Array:
    return -np.logaddexp(0.0, -z)


def log_softmax(z: Array) -> Array:
    z = z - z.max(-1, keepdims=True)
    total: Array = np.exp(z).sum(-1, keepdims=True)
    return z - np.log(total)


def one_hot(ids: NDArray[np.int64], classes: int) -> Array:
    return np.asarray(np.eye(classes)[ids])


def ref_bce(z: Array, t: Array, pos_weight: float | None = None) -> Array:
    w = 1.0 if pos_weight is None else pos_weight
    return -(w * t * log_sigmoid(z) + (1 - t) * log_sigmoid(-z))


def ref_mse(y: Array, t: Array) -> Array:
    return np.square(y - t)


def ref_smooth_l1(y: Array, t: Array, beta: float = 1.0) -> Array:
    d = np.abs(y - t)
    return np.asarray(np.where(d < beta, d**2 / (2 * max(beta, 1e-300)), d - beta / 2))


def ref_focal(z: Array, t: Array, gamma: float = 2.0, alpha: float | None = None) -> Array:
    """Lin et al. 2017, eq. 5: FL(p_t) = -a_t (1 - p_t)^gamma log p_t, in expectation over t."""

    def fl(log_p_t: Array) -> Array:
        loss: Array = -((1 - np.exp(log_p_t)) ** gamma) * log_p_t
        return loss

    a_yes, a_no = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    loss: Array = t * a_yes * fl(log_sigmoid(z)) + (1 - t) * a_no * fl(log_sigmoid(-z))
    return loss


def ref_asymmetric(
    z: Array, t: Array, gamma_pos: float = 0.0, gamma_neg: float = 0.0, clip: float = 0.0
) -> Array:
    """Ridnik et al. 2021, eq. 5 to 7: p_m = max(p - m, 0)."""
    p = 1 / (1 + np.exp(-z))
    p_m = np.maximum(p - clip, 0.0)
    loss_yes = (1 - p) ** gamma_pos * np.log(p)
    loss_no = p_m**gamma_neg * np.log(1 - p_m)
    loss: Array = -(t * loss_yes + (1 - t) * loss_no)
    return loss


def ref_cross_entropy(z: Array, t: Array, label_smoothing: float = 0.0) -> Array:
    t = (1 - label_smoothing) * t + label_smoothing / z.shape[-1]
    return np.asarray(-(t * log_softmax(z)).sum(-1))


def ref_kl_div(z: Array, t: Array) -> Array:
    log_t = np.log(np.where(t > 0, t, 1.0))
    return np.asarray((t * (log_t - log_softmax(z))).sum(-1))


def ref_gce(z: Array, t: Array, q: float = 0.7, negative: float = 0.0) -> Array:
    """Zhang & Sabuncu 2018, eq. 6, with the penalty on what is given to other classes."""
    p = np.exp(log_softmax(np.clip(z, -100, 100))).clip(1e-7, 1.0)
    return np.asarray((t * (1 - p**q) / q + negative * p * (1 - t)).sum(-1))


REFERENCES: dict[str, Callable[..., Array]] = {
    "bce": ref_bce,
    "mse": ref_mse,
    "smooth_l1": ref_smooth_l1,
    "focal": ref_focal,
    "asymmetric": ref_asymmetric,
    "cross_entropy": ref_cross_entropy,
    "kl_div": ref_kl_div,
    "gce": ref_gce,
}
OF_IMAGES_AND_NUMBERS = {"mse_sum", "twohot_symlog"}  # other shapes: test_world_losses.py
ROWS = ("cross_entropy", "kl_div", "gce")
IDS = ("cross_entropy", "gce")
PARAMS: list[tuple[str, Params]] = [
    ("bce", {}),
    ("bce", {"pos_weight": 4.0}),
    ("mse", {}),
    ("smooth_l1", {}),
    ("smooth_l1", {"beta": 0.25}),
    ("smooth_l1", {"beta": 0.0}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "alpha": 0.25}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_pos": 1.0, "gamma_neg": 4.0}),
    ("asymmetric", {"gamma_neg": 2.0, "clip": 0.02}),
    ("asymmetric", {"gamma_pos": 0.5, "gamma_neg": 0.5, "clip": 0.2}),
    ("asymmetric", {"clip": 0.05}),
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("kl_div", {}),
    ("gce", {}),
    ("gce", {"q": 0.1, "negative": 0.01}),
    ("gce", {"q": 1.0}),
]
EACH = pytest.mark.parametrize(("name", "params"), PARAMS, ids=str)


def loss_of(name: str) -> Callable[..., Tensor]:
    loss: Callable[..., Tensor] = getattr(losses, name)
    return loss


def slope(loss: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, at)
    return gradient


def problem(name: str, seed: int, rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits and soft targets in float64; rows of a row loss sum to one."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0.0, 3.0, (rows, classes))
    t = rng.dirichlet(np.ones(classes), rows) if name in ROWS else rng.random((rows, classes))
    return torch.from_numpy(z), torch.from_numpy(t)


# ------------------------------------------------------------------------------------------------
# Values


def test_every_loss_has_a_reference_and_a_parameter_set() -> None:
    assert set(losses.__all__) - OF_IMAGES_AND_NUMBERS == set(REFERENCES)
    assert set(REFERENCES) == {name for name, _ in PARAMS}


@EACH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_the_formula_of_its_paper(name: str, params: Params, seed: int) -> None:
    z, t = problem(name, seed)
    expected = torch.from_numpy(REFERENCES[name](z.numpy(), t.numpy(), **params))
    got = loss_of(name)(z, t, reduction="none", **params)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    single = loss_of(name)(z.float(), t.float(), reduction="none", **params)
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)


@EACH
def test_equals_the_formula_at_hard_targets(name: str, params: Params) -> None:
    z, _ = problem(name, 7)
    hard = one_hot(np.arange(6) % 5, 5)
    expected = torch.from_numpy(REFERENCES[name](z.numpy(), hard, **params))
    got = loss_of(name)(z, torch.from_numpy(hard), reduction="none", **params)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@EACH
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_gradient_equals_finite_differences(name: str, params: Params, seed: int) -> None:
    z, t = problem(name, seed, rows=3, classes=4)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss_of(name)(z, t, **params), (z,))


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_class_ids_mean_the_same_as_one_hot_rows(name: str, dtype: torch.dtype) -> None:
    z, _ = problem(name, 3)
    ids = torch.tensor([0, 4, 2, 2, 1, 3])
    rows = torch.nn.functional.one_hot(ids, 5)
    for params in (p for n, p in PARAMS if n == name):
        by_id = loss_of(name)(z, ids.to(dtype), reduction="none", **params)
        torch.testing.assert_close(by_id, loss_of(name)(z, rows, reduction="none", **params))


@pytest.mark.parametrize("name", ROWS)
def test_the_class_dimension_is_the_last_one(name: str) -> None:
    z, t = problem(name, 4)
    flat = loss_of(name)(z, t, reduction="none")
    folded = loss_of(name)(z.reshape(2, 3, 5), t.reshape(2, 3, 5), reduction="none")
    torch.testing.assert_close(folded, flat.reshape(2, 3))
    one = loss_of(name)(z[0], t[0], reduction="none")
    torch.testing.assert_close(one, flat[0])


# ------------------------------------------------------------------------------------------------
# Identities


def test_asymmetric_with_zeros_is_binary_cross_entropy() -> None:
    z = torch.linspace(-30, 30, 241)
    for t in (torch.zeros_like(z), torch.ones_like(z), torch.full_like(z, 0.3)):
        got = losses.asymmetric(z, t, reduction="none")
        torch.testing.assert_close(got, losses.bce(z, t, reduction="none"), rtol=1e-6, atol=1e-6)


def test_focal_without_focus_is_binary_cross_entropy() -> None:
    z, t = problem("focal", 0)
    torch.testing.assert_close(losses.focal(z, t, gamma=0.0), losses.bce(z, t))


def test_focal_is_asymmetric_with_equal_gammas() -> None:
    z, t = problem("focal", 1)
    both = losses.asymmetric(z, t, gamma_pos=1.5, gamma_neg=1.5)
    torch.testing.assert_close(losses.focal(z, t, gamma=1.5), both)


def test_asymmetric_forgives_a_no_below_the_clip() -> None:
    z = torch.tensor([-5.0, -4.0], requires_grad=True)
    loss = losses.asymmetric(z, torch.zeros(2), gamma_neg=2.0, clip=0.05)
    assert loss.item() == 0.0
    assert slope(loss, z).count_nonzero() == 0


def test_asymmetric_has_a_slope_exactly_at_the_clip() -> None:
    """There u = 0, where the slope of u^0.5 alone is infinite."""
    z = torch.zeros(1, requires_grad=True)
    loss = losses.asymmetric(z, torch.zeros(1), gamma_neg=0.5, clip=0.5)
    assert slope(loss, z).item() == pytest.approx(0.0, abs=1e-4)


def test_kl_of_one_hot_rows_is_cross_entropy() -> None:
    z, _ = problem("kl_div", 2)
    t = torch.from_numpy(one_hot(np.array([0, 1, 2, 3, 4, 0]), 5))
    torch.testing.assert_close(losses.kl_div(z, t), losses.cross_entropy(z, t))


def test_kl_is_zero_where_the_answer_is_the_target() -> None:
    z, _ = problem("kl_div", 2)
    rows = losses.kl_div(z, z.softmax(-1), reduction="none")
    torch.testing.assert_close(rows, torch.zeros(6, dtype=torch.float64), atol=1e-14, rtol=0)


def test_kl_divides_by_the_rows_that_have_a_target() -> None:
    z, t = problem("kl_div", 5)
    t[[1, 4]] = 0.0
    live = [0, 2, 3, 5]
    torch.testing.assert_close(losses.kl_div(z, t), losses.kl_div(z[live], t[live]))
    rows = losses.kl_div(z, t, reduction="none")
    assert rows[1] == rows[4] == 0
    torch.testing.assert_close(losses.kl_div(z, t, reduction="sum"), rows.sum())


def test_kl_without_any_target_is_zero_and_so_is_its_gradient() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    loss = losses.kl_div(z, torch.zeros(3, 4))
    assert loss.item() == 0.0
    assert slope(loss, z).count_nonzero() == 0


def test_gce_goes_to_cross_entropy_with_small_q() -> None:
    z, t = problem("gce", 6)
    torch.testing.assert_close(
        losses.gce(z, t, q=1e-9), losses.cross_entropy(z, t), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("q", "initial", "ratio"),
    [(0.1, 5.19, 0.48), (0.3, 2.96, 0.11), (0.5, 1.95, 0.026), (0.7, 1.42, 0.006)],
)
def test_gce_over_1496_classes_starts_where_it_should(
    q: float, initial: float, ratio: float
) -> None:
    """The policy of a shogi net: value at the start, and how little gradient is left."""
    classes = 1496
    z = torch.zeros(2, classes, requires_grad=True)
    target = torch.tensor([0, 700])
    loss = losses.gce(z, target, q=q)
    left = slope(loss, z).norm() / slope(losses.cross_entropy(z, target), z).norm()

    assert loss.item() == pytest.approx((1 - classes**-q) / q, rel=1e-5)
    assert round(loss.item(), 2) == initial
    assert left.item() == pytest.approx(classes**-q, rel=1e-5)
    assert round(left.item(), len(str(ratio)) - 2) == ratio


def test_gce_clamps_what_it_reads() -> None:
    """Beyond +-100 nothing changes; p below 1e-7 counts as 1e-7."""
    t = torch.tensor([1])
    far, farther = torch.tensor([[100.0, -100.0]]), torch.tensor([[1e4, -1e4]])
    assert losses.gce(far, t) == losses.gce(farther, t)
    above = torch.tensor([[1e4, 200.0]])
    assert losses.gce(above, t) == losses.gce(torch.zeros(1, 2), t)
    assert losses.gce(far, t).item() == pytest.approx((1 - 1e-7**0.7) / 0.7, rel=1e-6)


def test_uniform_policy_with_the_negative_penalty_matches_the_stuck_run() -> None:
    """q = 0.7 over 1496 classes, uniform: 1.42 for the right class, 0.01 for the others."""
    value = losses.gce(torch.zeros(1, 1496), torch.tensor([3]), q=0.7, negative=0.01).item()
    assert value == pytest.approx((1 - 1496**-0.7) / 0.7 + 0.01 * 1495 / 1496, rel=1e-5)


def test_pos_weight_one_is_none() -> None:
    z, t = problem("bce", 8)
    assert torch.equal(losses.bce(z, t, pos_weight=1.0), losses.bce(z, t))


# ------------------------------------------------------------------------------------------------
# What all of them promise


@EACH
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 7), classes=st.integers(1, 6))
def test_reductions_agree(name: str, params: Params, seed: int, rows: int, classes: int) -> None:
    z, t = problem(name, seed, rows, classes)
    loss = loss_of(name)
    each = loss(z, t, reduction="none", **params)
    assert each.shape == ((rows,) if name in ROWS else (rows, classes))
    torch.testing.assert_close(loss(z, t, reduction="mean", **params), each.mean())
    torch.testing.assert_close(loss(z, t, reduction="sum", **params), each.sum())
    assert torch.equal(loss(z, t, **params), loss(z, t, reduction="mean", **params))


@EACH
def test_gradient_is_finite_at_extreme_logits(name: str, params: Params) -> None:
    extremes = [-1e4, -104.0, -20.0, 0.0, 1e-30, 20.0, 104.0, 1e4]
    if name in ROWS:
        z = torch.tensor([[a, b, 0.0] for a in extremes for b in extremes])
        targets = [torch.eye(3)[k].expand_as(z) for k in range(3)] + [torch.full_like(z, 1 / 3)]
    else:
        z = torch.tensor(extremes)
        targets = [torch.full_like(z, t) for t in (0.0, 0.5, 1.0)]
    for t in targets:
        leaf = z.clone().requires_grad_()
        each = loss_of(name)(leaf, t, reduction="none", **params)
        assert each.isfinite().all()
        assert slope(each.sum(), leaf).isfinite().all()


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_16_bit_inputs_are_computed_in_32(
    name: str, params: Params, dtype: torch.dtype, autocast: bool
) -> None:
    z, t = (x.to(dtype) for x in problem(name, 9))
    z = (z * 500).requires_grad_()  # up to some thousands: squares overflow float16
    with torch.autocast("cpu", dtype, enabled=autocast):
        got = loss_of(name)(z, t, **params)
    assert got.dtype == torch.float32 and got.isfinite()
    torch.testing.assert_close(got, loss_of(name)(z.float(), t.float(), **params))
    gradient = slope(got, z)
    assert gradient.dtype == dtype and gradient.isfinite().all()


@EACH
def test_a_call_reads_no_value(name: str, params: Params) -> None:
    """Meta tensors have no values: a host sync or a data-dependent check would raise."""
    z = torch.empty(4, 3, device="meta", requires_grad=True)
    targets = [torch.empty(4, 3, device="meta")]
    if name in IDS:
        targets.append(torch.empty(4, device="meta", dtype=torch.int64))
    for t in targets:
        loss = loss_of(name)(z, t, **params)
        assert loss.shape == ()
        assert slope(loss, z).shape == z.shape


@pytest.mark.parametrize("name", sorted(REFERENCES))
@pytest.mark.parametrize(
    ("pred", "target"),
    [((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (4, 1)), ((4, 3), (1, 3)), ((4, 3), (3,)),
     ((4, 3), ()), ((4, 3), (3, 4)), ((2, 4, 3), (4, 3))],
)  # fmt: skip
def test_shapes_are_never_broadcast(
    name: str, pred: tuple[int, ...], target: tuple[int, ...]
) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        loss_of(name)(torch.zeros(pred), torch.zeros(target))


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_the_refusal_names_both_shapes(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(4, 1\).*\(5,\)"):
        loss_of(name)(torch.zeros(4, 1), torch.zeros(5))


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_pred_must_be_floating_point(name: str) -> None:
    with pytest.raises(TypeError, match="floating point"):
        loss_of(name)(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3))


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_an_unknown_reduction_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="batchmean"):
        loss_of(name)(torch.zeros(4, 3), torch.zeros(4, 3), reduction="batchmean")


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool], ids=str)
def test_class_ids_must_be_integers(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="integers"):
        loss_of(name)(torch.zeros(4, 3), torch.zeros(4, dtype=dtype))


def test_kl_takes_no_class_ids() -> None:
    with pytest.raises(ValueError, match="rows of probabilities"):
        losses.kl_div(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("missing", [-100, -1, 3])
def test_no_class_id_is_dropped_in_silence(missing: int) -> None:
    with pytest.raises(IndexError):
        losses.cross_entropy(torch.zeros(2, 3), torch.tensor([0, missing]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8], ids=str)
def test_binary_targets_may_be_flags(dtype: torch.dtype) -> None:
    z, flags = torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.equal(losses.bce(z, flags.to(dtype)), losses.bce(z, flags.float()))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("smooth_l1", {"beta": -1.0}),
        ("focal", {"gamma": -0.5}),
        ("focal", {"alpha": 1.5}),
        ("asymmetric", {"gamma_pos": -1.0}),
        ("asymmetric", {"gamma_neg": -1.0}),
        ("asymmetric", {"clip": 1.0}),
        ("asymmetric", {"clip": -0.1}),
        ("gce", {"q": 0.0}),
        ("gce", {"q": 1.5}),
        ("gce", {"q": math.nan}),
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_refused(name: str, params: Params) -> None:
    (param,) = params
    with pytest.raises(ValueError, match=f"{name}: {param}"):
        loss_of(name)(torch.zeros(2, 3), torch.zeros(2, 3), **params)


def test_signatures_can_be_read_from_the_source() -> None:
    """The compiler compares names and defaults with its declarations, without importing torch."""
    tree = ast.parse(inspect.getsource(losses))
    functions = {f.name: f.args for f in tree.body if isinstance(f, ast.FunctionDef)}
    for name in losses.__all__:
        args = functions[name]
        assert [a.arg for a in args.args] == ["pred", "target"]
        assert args.vararg is None and args.kwarg is None and not args.defaults
        assert args.kwonlyargs[0].arg == "reduction"
        for default in args.kw_defaults:
            assert default is not None
            ast.literal_eval(default)
