"""What is called two-peaked, on distributions whose shape is known; columns in stretches; rows by their inputs."""

import math

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime.data.packed import Bits, Rows
from expc_runtime.profile import columns
from expc_runtime.profile.columns import about, bimodality, rounded
from expc_runtime.profile.rows import content, fingerprints, splits


def shares(values: np.ndarray) -> dict:  # type: ignore[type-arg]
    column = torch.from_numpy(values.astype(np.float32))
    told = about(column, torch.arange(len(column)), "prob", lambda rows: None)
    return dict(told["shares"])


def drawn(shape: str) -> np.ndarray:
    draw, n = np.random.default_rng(3), 40_000
    return {
        "yes and no": lambda: draw.random(n) < 0.5,
        "one yes in fifty": lambda: draw.random(n) < 0.02,
        "win, draw and loss": lambda: draw.choice([0, 0.5, 1], size=n, p=[0.486, 0.024, 0.49]),
        "a U": lambda: draw.beta(0.3, 0.3, size=n),
        "two humps": lambda: np.where(
            draw.random(n) < 0.5, draw.beta(3, 20, n), draw.beta(20, 3, n)
        ),
        "uniform": lambda: draw.random(n),
        "one hump": lambda: draw.beta(8, 8, size=n),
        "a hump at one side": lambda: draw.beta(2, 8, size=n),
        "one long tail": lambda: np.minimum(1, draw.exponential(0.08, size=n)),
    }[shape]().astype(np.float64)


@pytest.mark.parametrize(
    ("shape", "two"),
    [
        ("yes and no", True),
        ("one yes in fifty", True),
        ("win, draw and loss", True),
        ("a U", True),
        ("two humps", True),
        ("uniform", False),
        ("one hump", False),
        ("a hump at one side", False),
        ("one long tail", False),
    ],
)
def test_two_peaks(shape: str, two: bool) -> None:
    assert shares(drawn(shape))["two_peaked"] is two


def test_sarle_s_coefficient_of_distributions_that_have_names() -> None:
    """1 for two values whatever their shares, 5/9 for uniform and exponential numbers, 1/3 for normal ones."""
    for p in (0.5, 0.1, 0.02):
        yes = (np.arange(1000) < 1000 * p).astype(np.float64)
        assert shares(yes)["bimodality"] == pytest.approx(1, rel=1e-5)
    assert bimodality(1 / 2, 1 / 3, 1 / 4, 1 / 5) == pytest.approx(
        5 / 9
    )  # moments of uniform(0, 1)
    assert bimodality(1, 2, 6, 24) == pytest.approx(5 / 9)  # of exponential(1)
    assert bimodality(0, 1, 0, 3) == pytest.approx(1 / 3)  # of normal(0, 1)
    assert bimodality(0.5, 0.25, 0.125, 0.0625) is None
    assert shares(np.full(10, 0.25))["bimodality"] is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 0.7, 0.9, 0.95, 1.0]), min_size=2, max_size=60
    ),
    st.integers(1, 6),
)
def test_a_column_in_stretches_is_the_column(values: list[float], wide: int) -> None:
    """However many numbers are looked at in one go; float64 numpy is the reference."""
    column = torch.tensor(values).repeat(3)[: 3 * len(values) // wide * wide].view(-1, wide)
    rows = torch.arange(len(column))
    whole = about(column, rows, "prob", lambda rows: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "ELEMENTS", 5)
        assert about(column, rows, "prob", lambda rows: None) == whole
    held = column.double().numpy()
    told = whole["shares"]
    assert told["mean"] == pytest.approx(held.mean(), rel=1e-5, abs=1e-7)
    assert told["variance"] == pytest.approx(held.var(), rel=1e-4, abs=1e-7)
    assert sum(told["histogram"]) == pytest.approx(1, rel=1e-5)
    assert told["below"] == pytest.approx((column < 0.1).double().mean().item(), rel=1e-5)
    assert whole["constant"] == int((held == held[0]).all(0).sum())


def test_packed_columns_are_as_dense_ones() -> None:
    dense = (torch.rand(500, 37, generator=torch.Generator().manual_seed(0)) < 0.1).float()
    dense[3] = 0
    rows = torch.arange(0, 500, 2)
    quiet: list[int] = []
    bits = about(Bits.pack(dense), rows, "prob", quiet.append)
    assert bits == about(dense, rows, "prob", quiet.append) and sum(quiet) == 500
    ids = torch.arange(500) % 37
    hot = torch.nn.functional.one_hot(ids, 37).float()
    sparse = Rows(ids, None, None, 37)
    assert about(sparse, rows, "class_probs", quiet.append) == about(
        hot, rows, "class_probs", quiet.append
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.5])
def test_numbers_that_can_not_be(value: float) -> None:
    column = torch.tensor([0.0, 1.0, value, 1.0])
    told = about(column, torch.arange(4), "prob", lambda rows: None)
    assert told["unfit"] == 1
    assert told["shares"]["mean"] == pytest.approx(2 / 3, rel=1e-5)
    assert (
        about(column.nan_to_num(posinf=9), torch.arange(4), "real", lambda rows: None)["unfit"] == 0
    )


def quietly(columns: list[Tensor]) -> np.ndarray:
    return fingerprints(columns, torch.arange(len(columns[0])), lambda rows: None)


def test_rows_are_equal_when_their_bytes_are() -> None:
    board = torch.randint(
        0, 3, (4000, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    hand = torch.zeros(4000, 14, dtype=torch.uint8)
    board[2000:3000] = board[:1000]
    hand[2500:2600, 13] = 1  # the last byte of the last column tells a hundred of them apart
    hashes = quietly([board, hand])
    keys = {b.tobytes() + h.tobytes() for b, h in zip(board.numpy(), hand.numpy(), strict=True)}
    assert len(np.unique(hashes)) == len(keys) == 3100
    assert (hashes[2000:2500] == hashes[:500]).all() and (
        hashes[2500:2600] != hashes[500:600]
    ).all()


def test_rows_with_the_same_numbers_in_other_places_differ() -> None:
    swapped = torch.tensor([[1, 2], [2, 1], [0, 3], [3, 0]])
    assert len(set(quietly([swapped]).tolist())) == 4
    one, other = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert len(set(quietly([one, other]).tolist())) == 2


def test_groups_on_both_sides_are_counted_once() -> None:
    rows = {"train": torch.tensor([0, 1, 2]), "val": torch.tensor([3, 4, 5])}
    hashes = {"train": np.array([1, 1, 2], np.uint64), "val": np.array([2, 2, 3], np.uint64)}
    told = splits(rows, hashes, {"game": torch.tensor([7, 7, 8, 8, 8, 9])})
    assert told["train"] == {"rows": 3, "repeated": 1, "groups": {"game": 2}, "shared": {"game": 0}}
    assert told["val"] == {"rows": 3, "repeated": 2, "groups": {"game": 2}, "shared": {"game": 1}}


def test_content_names_every_number_and_its_column() -> None:
    held = {"a": torch.arange(6.0).view(3, 2), "b": torch.arange(3)}
    names = {
        content(each)
        for each in (
            held,
            {**held, "a": held["a"].view(3, 2, 1)},
            {**held, "b": held["b"].float()},
            {**held, "a": held["a"] + torch.tensor([0.0, 1e-6])},
            {"a": held["a"], "c": held["b"]},
        )
    }
    assert len(names) == 5
    assert content(dict(reversed(held.items()))) == content(held)


@pytest.mark.parametrize(
    ("value", "digits", "told"), [(0.123456789, 6, 0.123457), (12345678.0, 5, 12346000.0)]
)
def test_rounding_keeps_significant_digits(value: float, digits: int, told: float) -> None:
    assert rounded(value, digits) == told
