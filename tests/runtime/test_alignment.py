"""Figures of boundaries against events, to the digits of an independent run."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

np = pytest.importorskip("numpy")

from expc_runtime.evals.alignment import (
    alignment,
    auc,
    delta_summary,
    periodic,
    permutation_p,
)

N = 20


def flags(frames: Iterable[int], n: int = N) -> Any:
    marked = np.zeros(n, dtype=bool)
    marked[list(frames)] = True
    return marked


RAMP = np.linspace(0, 1, N)
STEP = np.array([0.5] * 10 + [0.1] * 10)
EVERY = range(N)

# boundaries, events, score -> rate, at, off, lift, auc, p, periodic
GOLDENS = {
    "A": ([3, 7, 11, 15], [3, 7, 11, 15], RAMP, 0.2, 1, 0, 5, 0.4688, 0.0196, 0.25),
    "B": ([3, 7, 11, 15], [3, 8, 11, 16], RAMP, 0.2, 0.5, 0.125, 2.5, 0.5, 0.1569, 0),
    "C": ([], [3, 8], RAMP, 0.1, None, 0.1, None, 0.2778, None, None),
    "D": ([3, 7], [], RAMP, 0, 0, 0, None, None, 1, 0),
    "E": (EVERY, [3, 8], RAMP, 0.1, 0.1, None, 1, 0.2778, 1, 0.1),
    "F": ([3, 7], [3, 8, 9], STEP, 0.15, 0.5, 0.1111, 3.3333, 0.7941, 0.2549, 0),
}


@pytest.mark.parametrize("case", GOLDENS)
def test_figures_of_six_small_episodes(case: str) -> None:
    boundaries, events, score, *expected = GOLDENS[case]
    found = alignment(flags(boundaries), flags(events), score, permutations=50)
    names = (
        "event_rate",
        "event_at_boundary",
        "event_at_nonboundary",
        "lift_over_event_rate",
        "auc_read_prob",
        "perm_p_value",
        "periodic_baseline",
    )
    assert {name: found[name] and round(found[name], 4) for name in names} == dict(
        zip(names, expected, strict=True)
    )
    assert found["perm_observed"] == found["event_at_boundary"]
    assert found["boundary_rate"] == len(boundaries) / N
    assert found["perm_p_floor"] == 1 / 51


def test_a_figure_without_a_value_has_a_reason_and_no_other_has() -> None:
    without = {
        "C": {
            "event_at_boundary": "no frame is a boundary",
            "lift_over_event_rate": "no frame is a boundary",
            "perm_observed": "no frame is a boundary",
            "perm_p_value": "no frame is a boundary",
            "periodic_baseline": "no frame is a boundary",
        },
        "D": {
            "lift_over_event_rate": "no frame is an event",
            "auc_read_prob": "no frame is an event",
        },
        "E": {"event_at_nonboundary": "every frame is a boundary"},
        "F": {},
    }
    for case, reasons in without.items():
        boundaries, events, score, *_ = GOLDENS[case]
        found = alignment(flags(boundaries), flags(events), score, permutations=50)
        assert found["reasons"] == reasons
        assert {name for name, value in found.items() if value is None} == set(reasons)


def test_cohens_d_of_two_groups() -> None:
    values = np.array([3.0, 5, 7, 1, 1, 2, 4])
    found = delta_summary(values, flags([0, 1, 2], 7))
    assert found["cohens_d"] == pytest.approx(1.732051, abs=5e-7)
    assert (found["at_boundary"], found["at_nonboundary"]) == (5, 2)


@pytest.mark.parametrize(
    ("values", "boundaries", "reasons"),
    [
        ([1.0, 2, 3], [], {"at_boundary": "no frame is a boundary"}),
        ([1.0, 2, 3], [0, 1, 2], {"at_nonboundary": "every frame is a boundary"}),
        ([1.0, 4, 4], [0], {}),
    ],
)
def test_cohens_d_that_is_not_defined_says_why(
    values: Sequence[float], boundaries: list[int], reasons: dict[str, str]
) -> None:
    found = delta_summary(np.array(values), flags(boundaries, 3))
    assert found["cohens_d"] is None
    assert found["reasons"].pop("cohens_d") == next(iter(reasons.values()), "neither group varies")
    assert found["reasons"] == reasons


@pytest.mark.parametrize(
    ("n", "k", "frames"),
    [
        (20, 4, [0, 5, 10, 15]),
        (5, 2, [0, 2]),  # 2.5 rounds to 2
        (7, 2, [0, 4]),  # 3.5 rounds to 4
        (20, 3, [0, 7, 14]),
        (20, 20, list(range(20))),
        (20, 19, list(range(19))),  # period 1, and no more than k
        (8, 1, [0]),
    ],
)
def test_a_clock_with_as_many_ticks(n: int, k: int, frames: list[int]) -> None:
    assert periodic(n, k).tolist() == frames


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=2, max_size=25))
def test_auc_is_the_share_of_pairs_in_order(frames: list[tuple[bool, int]]) -> None:
    events = np.array([event for event, _ in frames])
    score = np.array([score / 4 for _, score in frames])
    pairs = [(a, b) for a in score[events] for b in score[~events]]
    found, reason = auc(events, score)
    if pairs:
        wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
        assert found == pytest.approx(wins / len(pairs))
    else:
        assert found is None
        assert reason in ("no frame is an event", "every frame is an event")


def test_auc_of_a_score_that_diverged_is_none() -> None:
    assert auc(flags([1], 3), np.array([0.1, math.nan, 0.2])) == (
        None,
        "the score is not finite in every frame",
    )


@given(st.data())
def test_p_is_near_the_exact_tail_of_the_hypergeometric(data: st.DataObject) -> None:
    n = data.draw(st.integers(5, 40))
    events = flags(data.draw(st.sets(st.integers(0, n - 1), min_size=1)), n)
    boundaries = flags(data.draw(st.sets(st.integers(0, n - 1), min_size=1)), n)
    k, m, observed = int(boundaries.sum()), int(events.sum()), int((events & boundaries).sum())
    ways = sum(math.comb(m, h) * math.comb(n - m, k - h) for h in range(observed, min(k, m) + 1))
    exact = ways / math.comb(n, k)
    found = permutation_p([(boundaries, events)], 400)
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 400) + 2 / 401)


def test_episodes_are_permuted_within_themselves() -> None:
    # All of one episode is boundary and event, nothing of the other is: that they go together
    # across episodes says nothing, and no permutation within them can do otherwise.
    whole, none = flags(range(10), 10), flags([], 10)
    assert permutation_p([(whole, whole), (none, none)], 50) == 1
    assert permutation_p([(none, whole)], 50) is None
    # Two episodes of weak evidence are stronger together than each alone.
    boundaries, events = flags([3, 7, 11, 15]), flags([3, 8, 11, 16])
    alone = permutation_p([(boundaries, events)], 1000)
    both = permutation_p([(boundaries, events)] * 2, 1000)
    assert alone is not None and both is not None
    assert both < alone


@pytest.mark.parametrize(
    ("boundaries", "events", "score", "permutations"),
    [
        (flags([1]), flags([1], 5), RAMP, 50),
        (flags([1]), flags([1]), RAMP[:, None], 50),
        (flags([], 0), flags([], 0), RAMP[:0], 50),
        (flags([1]), flags([1]), RAMP, 0),
    ],
)
def test_what_is_no_episode_is_refused(
    boundaries: Any, events: Any, score: Any, permutations: int
) -> None:
    with pytest.raises(ValueError, match=r"episode|permutations"):
        alignment(boundaries, events, score, permutations)
