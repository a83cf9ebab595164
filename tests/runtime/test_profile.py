"""What is called two-peaked, on distributions whose shape is known; columns in stretches; rows by their inputs."""

import math
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime.data.feather import Feather
from expc_runtime.data.feed import Feed
from expc_runtime.data.stream import Stream
from expc_runtime.profile.columns import Watched, bimodality, rounded
from expc_runtime.profile.job import seen
from expc_runtime.profile.rows import content, fingerprints, splits
from expc_runtime.progress import progress


def about(column: Tensor, meaning: str, rows: int = 1000) -> dict[str, Any]:
    """Facts of a column that is seen so many rows at a time."""
    watched = Watched(meaning)
    for stretch in torch.split(column, rows):
        watched.see(stretch)
    return watched.told()


def shares(values: np.ndarray) -> dict[str, Any]:
    return dict(about(torch.from_numpy(values.astype(np.float32)), "prob")["shares"])


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
    whole = about(column, "prob")
    assert about(column, "prob", rows=1) == about(column, "prob", rows=4) == whole
    held = column.double().numpy()
    told = whole["shares"]
    assert told["mean"] == pytest.approx(held.mean(), rel=1e-5, abs=1e-7)
    assert told["variance"] == pytest.approx(held.var(), rel=1e-4, abs=1e-7)
    assert sum(told["histogram"]) == pytest.approx(1, rel=1e-5)
    assert told["below"] == pytest.approx((column < 0.1).double().mean().item(), rel=1e-5)
    assert whole["constant"] == int((held == held[0]).all(0).sum())


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.5])
def test_numbers_that_can_not_be(value: float) -> None:
    column = torch.tensor([0.0, 1.0, value, 1.0])
    told = about(column, "prob")
    assert told["unfit"] == 1
    assert told["shares"]["mean"] == pytest.approx(2 / 3, rel=1e-5)
    assert about(column.nan_to_num(posinf=9), "real")["unfit"] == 0


def test_rows_are_equal_when_their_bytes_are() -> None:
    board = torch.randint(
        0, 3, (4000, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    hand = torch.zeros(4000, 14, dtype=torch.uint8)
    board[2000:3000] = board[:1000]
    hand[2500:2600, 13] = 1  # the last byte of the last column tells a hundred of them apart
    hashes = fingerprints([board, hand])
    keys = {b.tobytes() + h.tobytes() for b, h in zip(board.numpy(), hand.numpy(), strict=True)}
    assert len(np.unique(hashes)) == len(keys) == 3100
    assert (hashes[2000:2500] == hashes[:500]).all() and (
        hashes[2500:2600] != hashes[500:600]
    ).all()


def test_rows_with_the_same_numbers_in_other_places_differ() -> None:
    swapped = torch.tensor([[1, 2], [2, 1], [0, 3], [3, 0]])
    assert len(set(fingerprints([swapped]).tolist())) == 4
    one, other = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert len(set(fingerprints([one, other]).tolist())) == 2


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


def test_a_stream_says_what_whole_columns_say(tmp_path: Path) -> None:
    """Read in blocks, each once, no more than two windows of them at a time."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import feather

    draw = np.random.default_rng(5)
    won, game = draw.random(900).astype(np.float32), np.repeat(np.arange(30), 30)
    board = draw.integers(0, 3, (900, 4)).astype(np.uint8)
    for part in range(3):
        rows = slice(300 * part, 300 * part + 300)
        cells = arrow.FixedSizeListArray.from_arrays(arrow.array(board[rows].reshape(-1)), 4)
        table = arrow.table({"board": cells, "won": won[rows], "game": game[rows]})
        feather.write_feather(table, tmp_path / f"{part}.feather", chunksize=70)
    columns = {"board": "features", "won": "prob", "game": "group"}
    source = Feather(str(tmp_path / "*.feather"), columns)
    job = {
        "stage": "value",
        "columns": {"board": "features", "won": "prob"},
        "inputs": ["board"],
        "groups": ["game"],
        "files": True,
    }
    held = {"columns": ("board", "won"), "batch": 64, "val": 0.2, "test": 0.1, "by": "game"}
    whole, stream = Feed(source, **held), Stream(source, **held, window=128)
    for feed in (whole, stream):
        feed.setup(torch.device("cpu"), 0)
    told = seen(whole, job, progress("whole"))
    assert told == seen(stream, job, progress("stream"))
    assert whole.batch == stream.batch == 64
    assert told["rows"] == 900 and told["distinct"] == len(np.unique(board, axis=0))
    assert told["splits"]["val"]["groups"] == {"game": 6}
