"""The value head that seemed not to learn: what its accuracy measured, and what a right one does."""

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from expc_runtime.metrics import BinaryAccuracy, Brier

results = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=64)


@given(results=results, seed=st.integers(0, 2**31))
def test_a_threshold_of_0_on_a_probability_is_the_share_of_labels_from_half_up(
    results: list[float], seed: int
) -> None:
    """Exactly, whatever the net says: a sigmoid is never below 0."""
    target = torch.tensor(results)
    logits = 5 * torch.randn(len(results), generator=torch.Generator().manual_seed(seed))
    metric = BinaryAccuracy(threshold=0.0)
    metric.update(logits.sigmoid(), target)
    assert metric.compute() == (target >= 0.5).double().mean()


def test_the_right_ones_tell_a_net_that_knows_from_one_that_does_not() -> None:
    target = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    knows = torch.where(target >= 0.5, 0.9, 0.1)
    for metric, right, wrong in (
        (BinaryAccuracy(), 1.0, 0.0),
        (Brier(), (5 * 0.01 + 0.16) / 6, (5 * 0.81 + 0.16) / 6),
    ):
        for answer, figure in ((knows, right), (1 - knows, wrong)):
            metric.reset()
            metric.update(answer, target)
            assert float(metric.compute()) == pytest.approx(figure, abs=1e-6)
