"""Constant answers: best of their kind, finite in every loss, and of one count."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch
from torch import Tensor

from expc_runtime import floors, losses, metrics
from expc_runtime.data.packed import Bits, Rows

torch.set_num_threads(1)


def floor_of(candidates: Tensor, loss: str, target: Tensor) -> float:
    """The lowest mean loss over the candidates."""
    return min(
        float(getattr(losses, loss)(c.expand(len(target), *c.shape), target)) for c in candidates
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), classes=st.integers(2, 6))
def test_no_constant_beats_the_floor_of_cross_entropy(seed: int, rows: int, classes: int) -> None:
    """The best constant gives the entropy of the labels; any other gives more."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, classes, rows)
    share = np.bincount(ids, minlength=classes) / rows
    entropy = -sum(p * math.log(p) for p in share if p)
    target = torch.from_numpy(ids)
    floor = floor_of(floors.class_logits(target, classes=classes), "cross_entropy", target)
    assert floor == pytest.approx(entropy, abs=1e-5)
    other = torch.from_numpy(rng.normal(0, 1, classes)).expand(rows, classes)
    assert floor <= float(losses.cross_entropy(other, target)) + 1e-5


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40))
def test_no_constant_beats_the_floor_of_binary_losses(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.choice([0.0, 0.5, 1.0], rows))
    grid = torch.linspace(0.001, 0.999, 199, dtype=torch.float64)
    best_bce = min(float(losses.bce(p.logit().expand(rows), target)) for p in grid)
    best_mse = min(float(losses.mse(p.expand(rows), target)) for p in grid)
    assert floor_of(floors.logits(target), "bce", target) <= best_bce + 1e-5
    assert floor_of(floors.probs(target), "mse", target) <= best_mse + 1e-5
    assert floor_of(floors.probs(target), "mse", target) == pytest.approx(
        float(target.var(unbiased=False)), abs=1e-6
    )


def test_the_value_labels_of_the_shogi_study() -> None:
    """48.59 % losses, 2.36 % draws, 49.04 % wins: MSE .2441, BCE .6931, accuracy .5141."""
    counts = {0.0: 14748, 0.5: 717, 1.0: 14888}
    target = torch.cat([torch.full((n,), t) for t, n in counts.items()])
    assert floor_of(floors.probs(target), "mse", target) == pytest.approx(0.2441, abs=5e-5)
    assert floor_of(floors.logits(target), "bce", target) == pytest.approx(0.6931, abs=5e-5)
    shares = []
    for candidate in floors.logits(target):
        accuracy = metrics.BinaryAccuracy(threshold=0.0)
        accuracy.update(candidate.expand_as(target), target)
        shares.append(float(accuracy.compute()))
    assert max(shares) == pytest.approx(0.5141, abs=5e-5)


def test_class_answers_are_prior_smoothed_and_uniform() -> None:
    target = torch.tensor([0, 0, 0, 2])
    prior, smoothed, uniform = floors.class_probs(target, classes=3)
    torch.testing.assert_close(prior, torch.tensor([0.75, 0.0, 0.25]))
    torch.testing.assert_close(smoothed, torch.tensor([4 / 7, 1 / 7, 2 / 7]))
    torch.testing.assert_close(uniform, torch.full((3,), 1 / 3))
    logits = floors.class_logits(target, classes=3)
    torch.testing.assert_close(logits.softmax(-1), floors.class_probs(target, classes=3))


def test_an_unseen_class_is_answered_with_a_finite_loss() -> None:
    logits = floors.class_logits(torch.tensor([0, 0, 2]), classes=4)
    assert logits[0, [1, 3]].tolist() == [-20.0, -20.0]
    for loss in (losses.cross_entropy, losses.gce):
        for candidate in logits:
            assert loss(candidate.expand(1, 4), torch.tensor([3])).isfinite()


def test_prior_and_smoothed_answer_the_most_frequent_class() -> None:
    target = torch.tensor([1, 1, 0, 2, 2, 2, 3])
    assert floors.class_logits(target, classes=5)[:2].argmax(-1).tolist() == [2, 2]


def test_rows_count_as_the_ids_they_stand_for() -> None:
    ids = torch.tensor([3, 1, 1, 0, 3, 3])
    rows = torch.nn.functional.one_hot(ids, 5)
    for target in (rows, rows.float(), rows.bool()):
        by_row = floors.class_logits(target, classes=5)
        torch.testing.assert_close(by_row, floors.class_logits(ids, classes=5))


def test_rows_without_a_target_do_not_move_the_prior() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    prior = floors.class_probs(rows, classes=3)[0]
    torch.testing.assert_close(prior, torch.tensor([0.25, 0.75, 0.0]))
    assert floor_of(floors.class_logits(rows, classes=3), "kl_div", rows) < math.log(2)


def test_binary_answers_are_the_mean_no_and_yes() -> None:
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    mean, no, yes, *_ = floors.logits(target)
    torch.testing.assert_close(mean, torch.tensor([math.log(1 / 3), -20.0, 20.0]))
    assert no.tolist() == [-20.0] * 3 and yes.tolist() == [20.0] * 3
    mean, no, yes, *_ = floors.probs(target)
    torch.testing.assert_close(mean, torch.tensor([0.25, 0.0, 1.0]))
    assert no.tolist() == [0.0] * 3 and yes.tolist() == [1.0] * 3


def test_real_answers_are_mean_median_and_zero() -> None:
    target = torch.tensor([1.0, 2.0, 9.0])
    assert floors.real(target).tolist() == [4.0, 2.0, 0.0]
    assert floors.real(torch.tensor([1, 2, 9])).tolist() == [4.0, 2.0, 0.0]


@pytest.mark.parametrize("shape", [(), (4,), (9, 9)])
def test_candidates_have_the_shape_of_one_sample(shape: tuple[int, ...]) -> None:
    target = torch.rand(10, *shape)
    for build in (floors.logits, floors.probs, floors.real):
        answers = build(target)
        assert answers.shape[1:] == shape and answers.dtype == torch.float32
        assert len(answers) == 3 or (len(answers) > 3 and shape and build is not floors.real)
    for rows in (torch.zeros(10, dtype=torch.int64), torch.rand(10, 4)):
        assert floors.class_logits(rows, classes=4).shape == (3, 4)
        assert floors.class_probs(rows, classes=4).shape == (3, 4)


def test_flags_and_16_bit_columns_are_counted_exactly() -> None:
    """More rows than a float16 can count, and than are summed at a time."""
    target = torch.arange(200_001) % 3 == 0
    expected = 66_667 / 200_001
    for column in (target, target.half(), target.to(torch.uint8)):
        assert floors.probs(column)[0].item() == pytest.approx(expected, rel=1e-6)


def test_an_empty_column_has_no_floor() -> None:
    for build in (floors.logits, floors.probs, floors.real):
        with pytest.raises(ValueError, match="no rows"):
            build(torch.zeros(0))
    with pytest.raises(ValueError, match="no rows"):
        floors.class_logits(torch.zeros(0, dtype=torch.int64), classes=3)
    with pytest.raises(ValueError, match="no class"):
        floors.class_logits(torch.zeros(4, 3), classes=3)


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_that_is_no_class_is_refused(bad: int) -> None:
    with pytest.raises(ValueError, match=f"{bad}.*3 classes|3 classes.*{bad}"):
        floors.class_logits(torch.tensor([1, bad]), classes=3)


@pytest.mark.parametrize(
    "target", [torch.zeros(4), torch.zeros(4).bool(), torch.zeros(4, 2), torch.zeros(4, 3, 3)]
)
def test_a_column_that_is_neither_ids_nor_rows_is_refused(target: Tensor) -> None:
    with pytest.raises(ValueError, match=r"ids \(N,\) or rows \(N, 3\)"):
        floors.class_logits(target, classes=3)


def labels(seed: int, rows: int, classes: int, density: float) -> Tensor:
    """Labels that are many at once, some frequent, most rare; the number in a row varies much."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 2, classes) + np.log(density)
    busy = rng.normal(0, 0.7, (rows, 1))
    drawn = rng.random((rows, classes)) < 1 / (1 + np.exp(-(odds + busy)))
    return torch.from_numpy(drawn).float()


def sample_f1(chosen: "np.ndarray[Any, Any]", target: Tensor) -> float:
    """The mean over rows of 2 TP / (labels of the set + labels of the row)."""
    rows = target.numpy().astype(bool)
    hits = (rows & chosen).sum(1)
    return float(np.mean(2 * hits / np.maximum(1, chosen.sum() + rows.sum(1))))


def best_set(target: Tensor) -> float:
    """Of the k most frequent labels for every k there is."""
    order = np.argsort(-target.numpy().mean(0), kind="stable")
    found = []
    for k in range(1, target.shape[1] + 1):
        chosen = np.zeros(target.shape[1], dtype=bool)
        chosen[order[:k]] = True
        found.append(sample_f1(chosen, target))
    return max(found)


def f1_of(answer: Tensor, target: Tensor, threshold: float) -> float:
    metric = metrics.SampleF1(threshold=threshold)
    metric.update(answer.expand_as(target), target)
    return float(metric.compute())


@pytest.mark.parametrize("density", [0.005, 0.03, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_floor_of_sample_f1_is_the_best_constant_set(seed: int, density: float) -> None:
    target = labels(seed, rows=400, classes=150, density=density)
    best = best_set(target)
    for column in (target, Bits.pack(target)):
        from_logits = max(f1_of(c.sigmoid(), target, 0.5) for c in floors.logits(column))
        from_probs = max(f1_of(c, target, 0.5) for c in floors.probs(column))
        assert best - 0.005 <= from_logits <= best + 1e-6
        assert from_probs == pytest.approx(from_logits, abs=1e-6)


@pytest.mark.parametrize("density", [0.005, 0.1, 0.4])
def test_the_floor_of_f1_over_all_rows_is_the_best_constant_set(density: float) -> None:
    target = labels(3, rows=400, classes=150, density=density)
    true = target.numpy().astype(bool)
    order = np.argsort(-true.mean(0), kind="stable")
    hits, k = true[:, order].sum(0).cumsum(), np.arange(1, 151)
    best = float((2 * hits / (true.sum() + 400 * k)).max())
    found = []
    for answer in floors.logits(Bits.pack(target)):
        metric = metrics.F1(threshold=0.0)
        metric.update(answer.expand_as(target), target)
        found.append(float(metric.compute()))
    assert best - 0.005 <= max(found) <= best + 1e-6


def test_each_answer_costs_a_pass_so_there_are_at_most_two_sets() -> None:
    target = labels(0, rows=200, classes=1496, density=0.05)
    for build in (floors.logits, floors.probs):
        assert 3 + 1 <= len(build(target)) <= 3 + 2
        assert len(build(target[:, :1])) == len(build(target[:, 0])) == 3


def test_packed_columns_have_the_floors_of_dense_ones() -> None:
    target = labels(0, rows=300, classes=40, density=0.1)
    ids = torch.arange(300) ** 2 % 12
    pairs = [(target, Bits.pack(target)), (torch.eye(12)[ids], Rows(ids, None, None, 12))]
    for dense, packed in pairs:
        for made in (floors.logits, floors.probs, floors.real):
            torch.testing.assert_close(made(packed), made(dense))
    torch.testing.assert_close(
        floors.class_logits(Rows(ids, None, None, 12), classes=12),
        floors.class_logits(ids, classes=12),
    )


def test_a_column_is_read_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    target = labels(0, rows=300, classes=40, density=0.1)
    ids = torch.arange(300) % 7
    whole = floors.logits(target), floors.class_logits(ids, classes=7)
    monkeypatch.setattr(floors, "_NUMBERS", 130)
    torch.testing.assert_close((floors.logits(target), floors.class_logits(ids, classes=7)), whole)
