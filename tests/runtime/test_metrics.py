"""The metrics against plain counting over the whole column, whatever the batches."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("torch")

import torch
from torch import Tensor
from torchmetrics import Metric

from expc_runtime import metrics

Array = NDArray[Any]

torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------
# References, one loop over rows or elements each


def ref_accuracy(pred: Array, target: Array) -> float:
    rows = [(z, t) for z, t in zip(pred, target, strict=True) if t.any()]
    return float(np.mean([z.argmax() == t.argmax() for z, t in rows]))


def ref_top_k(pred: Array, target: Array, k: int) -> float:
    shares = []
    for z, t in zip(pred, target, strict=True):
        positive = set(np.flatnonzero(t))
        if positive:
            best = set(np.argsort(-z)[:k])
            shares.append(len(best & positive) / min(k, len(positive)))
    return float(np.mean(shares))


def ref_binary_accuracy(pred: Array, target: Array, threshold: float) -> float:
    return float(np.mean((pred >= threshold) == (target >= 0.5)))


def ref_exact_match(pred: Array, target: Array, threshold: float) -> float:
    rows = zip(pred >= threshold, target >= 0.5, strict=True)
    return float(np.mean([(said == true).all() for said, true in rows]))


def ref_sample_f1(pred: Array, target: Array, threshold: float) -> float:
    scores = []
    for said, true in zip(pred >= threshold, target >= 0.5, strict=True):
        tp, fp, fn = (said & true).sum(), (said & ~true).sum(), (~said & true).sum()
        precision, recall = tp / (tp + fp + 1e-8), tp / (tp + fn + 1e-8)
        f1 = 2 * precision * recall / (precision + recall + 1e-8)
        scores.append(1.0 if tp + fp + fn == 0 else f1)
    return float(np.mean(scores))


def ref_f1(pred: Array, target: Array, threshold: float) -> float:
    said, true = pred >= threshold, target >= 0.5
    tp, wrong = (said & true).sum(), (said ^ true).sum()
    return float(2 * tp / (2 * tp + wrong)) if tp + wrong else 1.0


def ref_brier(pred: Array, target: Array) -> float:
    return float(np.mean((pred - target) ** 2))


def ref_mean_absolute_error(pred: Array, target: Array) -> float:
    return float(np.mean(np.abs(pred - target)))


CASES: list[tuple[Callable[[], Metric], Callable[[Array, Array], float]]] = [
    (metrics.Accuracy, ref_accuracy),
    (lambda: metrics.TopK(k=1), lambda p, t: ref_top_k(p, t, 1)),
    (lambda: metrics.TopK(k=3), lambda p, t: ref_top_k(p, t, 3)),
    (metrics.BinaryAccuracy, lambda p, t: ref_binary_accuracy(p, t, 0.5)),
    (lambda: metrics.BinaryAccuracy(threshold=0.3), lambda p, t: ref_binary_accuracy(p, t, 0.3)),
    (metrics.ExactMatch, lambda p, t: ref_exact_match(p, t, 0.5)),
    (metrics.SampleF1, lambda p, t: ref_sample_f1(p, t, 0.5)),
    (lambda: metrics.SampleF1(threshold=0.8), lambda p, t: ref_sample_f1(p, t, 0.8)),
    (metrics.F1, lambda p, t: ref_f1(p, t, 0.5)),
    (lambda: metrics.F1(threshold=0.2), lambda p, t: ref_f1(p, t, 0.2)),
    (metrics.Brier, ref_brier),
    (metrics.MeanAbsoluteError, ref_mean_absolute_error),
]
ALL = [build for build, _ in CASES]
BINARY = [metrics.BinaryAccuracy, metrics.ExactMatch, metrics.SampleF1, metrics.F1]
ELEMENTWISE = [*BINARY, metrics.Brier, metrics.MeanAbsoluteError]


def name_of(build: Callable[[], Metric]) -> str:
    return type(build()).__name__


def measured(metric: Metric, pred: Tensor, target: Tensor, sizes: list[int] | None = None) -> float:
    cuts = np.cumsum([0, *(sizes or [len(pred)])])
    for start, end in pairwise(cuts):
        metric.update(pred[start:end], target[start:end])
    value = metric.compute()
    assert value.shape == () and value.dtype == torch.float64
    return float(value)


def test_every_metric_has_a_reference() -> None:
    assert {name_of(build) for build in ALL} == set(metrics.__all__)


@pytest.mark.parametrize(("build", "reference"), CASES, ids=[name_of(b) for b in ALL])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    density=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_equals_counting_over_the_whole_column(
    build: Callable[[], Metric],
    reference: Callable[[Array, Array], float],
    seed: int,
    sizes: list[int],
    density: float,
) -> None:
    rng = np.random.default_rng(seed)
    pred = rng.random((sum(sizes), 4), dtype=np.float32)
    target = (rng.random(pred.shape) < density).astype(np.float32)
    target[0, 0] = 1.0  # at least one row has a class
    got = measured(build(), torch.from_numpy(pred), torch.from_numpy(target), sizes)
    assert got == pytest.approx(reference(pred, target), rel=1e-6, abs=1e-7)


# ------------------------------------------------------------------------------------------------
# The figures of the shogi study


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 50))
def test_threshold_zero_on_a_probability_reads_the_share_of_wins(seed: int, rows: int) -> None:
    """The metric that never moved: a sigmoid is never below 0, so the net has no say in it."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 5, rows))
    result = torch.from_numpy(rng.choice([0.0, 0.5, 1.0], rows))
    wins = int((result >= 0.5).sum()) / rows
    right = int(((logits >= 0) == (result >= 0.5)).sum()) / rows

    assert measured(metrics.BinaryAccuracy(threshold=0.0), logits.sigmoid(), result) == wins
    assert measured(metrics.BinaryAccuracy(threshold=0.5), logits.sigmoid(), result) == right
    assert measured(metrics.BinaryAccuracy(threshold=0.0), logits, result) == right


def test_saying_no_flatters_element_accuracy_and_not_the_others() -> None:
    """5 % of the bits set: a constant no scores 95 %, F1 says 0."""
    target = torch.zeros(10, 100)
    target[:, :5] = 1.0
    no = torch.zeros_like(target)
    assert measured(metrics.BinaryAccuracy(), no, target) == 0.95
    assert measured(metrics.ExactMatch(), no, target) == 0.0
    assert measured(metrics.SampleF1(), no, target) == 0.0
    assert measured(metrics.F1(), no, target) == 0.0


def test_a_row_with_nothing_to_find_and_nothing_found_is_right() -> None:
    pred = torch.tensor([[0.1, 0.2], [0.9, 0.1]])
    target = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert measured(metrics.SampleF1(), pred, target) == 0.5
    assert measured(metrics.F1(), pred[:1], target[:1]) == 1.0


@pytest.mark.parametrize("build", ALL, ids=name_of)
def test_a_perfect_answer_is_exactly_perfect(build: Callable[[], Metric]) -> None:
    """A gate of 1.0 must be able to open."""
    target = torch.eye(7)
    perfect = 1.0 if build().higher_is_better else 0.0
    assert measured(build(), target, target) == perfect


@pytest.mark.parametrize("percent", [1, 29, 57, 85, 95, 99])
def test_a_gate_at_the_exact_share_opens(percent: int) -> None:
    """In float32, 95 of 100 is below 0.95."""
    pred = torch.zeros(100)
    pred[:percent] = 1.0
    assert measured(metrics.BinaryAccuracy(), pred, torch.ones(100)) >= percent / 100


# ------------------------------------------------------------------------------------------------
# Classes


def test_accuracy_and_top_k_read_ids_and_rows_alike() -> None:
    pred = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    ids = torch.tensor([0, 1, 0])
    rows = torch.nn.functional.one_hot(ids, 3)
    for target in (ids, ids.to(torch.uint8), rows, rows.float()):
        assert measured(metrics.Accuracy(), pred, target) == 1 / 3
        assert measured(metrics.TopK(k=2), pred, target) == 2 / 3
        assert measured(metrics.TopK(k=3), pred, target) == 1.0


def test_a_row_without_a_class_is_not_counted() -> None:
    pred = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
    target = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    assert measured(metrics.Accuracy(), pred, target) == 0.0
    assert measured(metrics.TopK(k=2), pred, target) == 1.0


def test_top_k_cannot_ask_for_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="k = 5, but there are 3 classes"):
        metrics.TopK(k=5).update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 or more"):
        metrics.TopK(k=0)


@pytest.mark.parametrize("build", [metrics.Accuracy, lambda: metrics.TopK(k=1)], ids=name_of)
def test_class_metrics_refuse_other_targets(build: Callable[[], Metric]) -> None:
    for target in (torch.zeros(4), torch.zeros(3).long(), torch.zeros(4, 2), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=name_of(build)):
            build().update(torch.zeros(4, 3), target)


# ------------------------------------------------------------------------------------------------
# What all of them promise


@pytest.mark.parametrize("build", ALL, ids=name_of)
@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_nothing_seen_is_nan(build: Callable[[], Metric]) -> None:
    metric = build()
    assert metric.compute().isnan()
    metric.update(torch.eye(4), torch.eye(4))
    assert not metric.compute().isnan()
    metric.reset()
    assert metric.compute().isnan()


@pytest.mark.parametrize("build", ALL, ids=name_of)
def test_update_reads_no_value(build: Callable[[], Metric]) -> None:
    """Meta tensors have no values: a host sync would raise."""
    metric = build().to("meta")
    metric.update(torch.empty(4, 3, device="meta"), torch.empty(4, 3, device="meta"))
    assert metric.compute().device.type == "meta"


@pytest.mark.parametrize("build", ELEMENTWISE, ids=name_of)
def test_shapes_are_never_broadcast(build: Callable[[], Metric]) -> None:
    for pred, target in [((4, 1), (4,)), ((4,), (4, 1)), ((4, 3), (1, 3)), ((4, 3), (3,))]:
        with pytest.raises(ValueError, match=name_of(build)):
            build().update(torch.zeros(pred), torch.zeros(target))


@pytest.mark.parametrize("build", ELEMENTWISE, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_answers_are_measured_in_32(build: Callable[[], Metric], dtype: torch.dtype) -> None:
    pred = torch.rand(200, 30, generator=torch.Generator().manual_seed(0)).to(dtype)
    target = torch.rand(200, 30, generator=torch.Generator().manual_seed(1)).round()
    assert measured(build(), pred, target) == measured(build(), pred.float(), target)


@pytest.mark.parametrize("build", BINARY, ids=name_of)
def test_a_threshold_is_not_rounded_to_16_bits(build: Callable[..., Metric]) -> None:
    """0.7 is 0.69921875 in bfloat16, which is below the threshold."""
    pred = torch.tensor([[0.7]], dtype=torch.bfloat16)
    assert measured(build(threshold=0.7), pred, torch.ones(1, 1)) == 0.0


@pytest.mark.parametrize("build", ELEMENTWISE, ids=name_of)
def test_targets_may_be_flags(build: Callable[[], Metric]) -> None:
    pred, target = torch.rand(20, 3), torch.rand(20, 3).round()
    assert measured(build(), pred, target.bool()) == measured(build(), pred, target)
    assert measured(build(), pred, target.long()) == measured(build(), pred, target)


def test_rows_may_be_planes() -> None:
    """Reachable squares are (B, 9, 9)."""
    pred, target = torch.rand(20, 2, 2), torch.rand(20, 2, 2).round()
    for build in (metrics.ExactMatch, metrics.SampleF1):
        flat = measured(build(), pred.flatten(1), target.flatten(1))
        assert measured(build(), pred, target) == flat


@pytest.mark.parametrize("sizes", [[10], [1] * 10], ids=["one batch", "ten batches"])
def test_a_large_sum_does_not_lose_small_terms(sizes: list[int]) -> None:
    """In a float32 sum 2^24 + 1 is 2^24: the last samples would not count."""
    pred = torch.ones(10)
    pred[0] = 2.0**12
    assert measured(metrics.Brier(), pred, torch.zeros(10), sizes) == (2.0**24 + 9) / 10


@pytest.mark.parametrize("build", BINARY, ids=name_of)
def test_an_answer_at_the_threshold_is_yes(build: Callable[..., Metric]) -> None:
    at = torch.full((2, 3), 0.25)
    assert measured(build(threshold=0.25), at, torch.ones(2, 3)) == 1.0


@pytest.mark.parametrize(
    ("build", "higher"),
    [(b, name_of(b) not in ("Brier", "MeanAbsoluteError")) for b in ALL],
)
def test_says_which_way_is_better(build: Callable[[], Metric], higher: bool) -> None:
    assert build().higher_is_better is higher
