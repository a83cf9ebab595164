"""Rows are split once, by a seed of their own, and each is visited once an epoch."""

from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime.data.arrays import Arrays
from expc_runtime.data.digits import Digits
from expc_runtime.data.feed import CHUNK, Feed, Split
from expc_runtime.errors import MissingInput

CPU = torch.device("cpu")


class Rows:
    """Row i holds i, and i squared in a second column."""

    def __init__(self, n: int) -> None:
        self.n = n

    def tensors(self) -> dict[str, Tensor]:
        row = torch.arange(self.n)
        return {"row": row, "square": row * row}


def feed(n: int = 100, *, seed: int = 0, **how: Any) -> Feed:
    settings: dict[str, Any] = {"columns": ("row", "square"), "batch": 7, **how}
    made = Feed(Rows(n), **settings)
    made.setup(CPU, seed)
    return made


def visited(made: Feed, epoch: int, start: int = 0, stop: int | None = None) -> list[list[int]]:
    return [b[0].tolist() for chunk in made.chunks(epoch, start, stop) for b in chunk]


@settings(deadline=None, max_examples=50)
@given(
    n=st.integers(3, 500),
    batch=st.integers(1, 60),
    val=st.floats(0, 0.5),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_visits_each_row_of_train_once_and_no_other(
    n: int, batch: int, val: float, test: float, seed: int, epoch: int
) -> None:
    val, test = (share if round(share * n) else 0.0 for share in (val, test))
    if n - round(val * n) - round(test * n) < 1:
        return
    made = feed(n, batch=batch, val=val, test=test, seed=seed)
    splits = [made.rows(split).tolist() for split in ("train", "val", "test")]
    assert sorted(chain.from_iterable(splits)) == list(range(n))
    batches = visited(made, epoch)
    assert sorted(chain.from_iterable(batches)) == splits[0]
    assert len(batches) == made.updates_per_epoch
    assert all(len(b) == batch for b in batches[:-1])


def test_the_split_is_that_of_the_split_seed_whatever_the_run() -> None:
    a, b = feed(val=0.2, seed=0), feed(val=0.2, seed=1)
    assert torch.equal(a.rows("val"), b.rows("val"))
    assert not torch.equal(a.rows("val"), feed(val=0.2, split_seed=1).rows("val"))
    assert visited(a, 0) != visited(b, 0)


def test_epochs_differ_and_repeat() -> None:
    made = feed()
    assert visited(made, 0) != visited(made, 1)
    assert visited(made, 1) == visited(feed(), 1)


def test_an_epoch_goes_on_in_the_middle() -> None:
    made = feed(1000)
    whole = visited(made, 3)
    assert len(whole) > 2 * CHUNK
    for start in (0, 1, CHUNK, CHUNK + 3, len(whole) - 1, len(whole)):
        assert visited(made, 3, start) == whole[start:]
        assert visited(made, 3, 1, start) == whole[1:start]
    assert made.batch_rows(3, 5).tolist() == whole[5]


def test_columns_of_a_batch_belong_together() -> None:
    made = feed(val=0.3)
    for chunk in made.chunks(0):
        for row, square in chunk:
            assert torch.equal(row * row, square)
    row, square = made.columns("val")
    assert torch.equal(row * row, square)
    assert torch.equal(row, made.rows("val"))


def test_val_keeps_its_short_last_batch_and_its_order() -> None:
    made = feed(val=0.3)
    batches = [b[0] for b in made.batches("val")]
    assert [len(b) for b in batches] == [7, 7, 7, 7, 2]
    assert torch.equal(torch.cat(batches), made.rows("val"))
    assert [len(b[0]) for b in made.batches("val").first(1)] == [7]
    assert list(made.batches("test")) == []


def test_rows_know_no_env_steps() -> None:
    made = feed(100)
    assert made.updates_after(3) == 3 * made.updates_per_epoch == 45
    with pytest.raises(ValueError, match="a budget of 40 env steps, but rows are read here"):
        made.updates_at(40)


def test_drop_last() -> None:
    made = feed(100, drop_last=True)
    assert made.updates_per_epoch == 14
    assert {len(b) for b in visited(made, 0)} == {7}
    with pytest.raises(ValueError, match="fewer than a batch"):
        feed(5, drop_last=True)


@pytest.mark.parametrize(
    "how", [{"batch": 0}, {"val": 1.0}, {"val": 0.6, "test": 0.4}, {"val": -0.1}]
)
def test_impossible_shares_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(how))):
        feed(**how)


def test_a_share_that_is_no_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"val=0.01 of 10 rows is none"):
        feed(10, val=0.01)


def test_a_column_that_is_not_there_is_a_missing_input() -> None:
    with pytest.raises(MissingInput, match="Rows has no column cube; it has row, square"):
        feed(columns=("row", "cube"))


def test_unequal_columns_are_a_missing_input() -> None:
    class Torn:
        def tensors(self) -> dict[str, Tensor]:
            return {"a": torch.zeros(3), "b": torch.zeros(4)}

    with pytest.raises(MissingInput, match="unequal length"):
        Feed(Torn(), columns=("a", "b"), batch=1).setup(CPU, 0)


def test_digits_are_those_of_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_digits

    oracle = load_digits()
    made = Digits().tensors()
    assert made.keys() == Digits.columns.keys()
    assert made["image"].shape == (1797, 1, 8, 8)
    assert (float(made["image"].min()), float(made["image"].max())) == (0, 1)
    np.testing.assert_array_equal(made["image"][:, 0].numpy() * 16, oracle.images)
    np.testing.assert_array_equal(made["digit"].numpy(), oracle.target)
    np.testing.assert_array_equal(made["even"].numpy(), oracle.target % 2 == 0)
    np.testing.assert_array_equal(made["loop"].numpy(), np.isin(oracle.target, [0, 6, 8, 9]))
    np.testing.assert_array_equal(made["zero"].numpy(), oracle.target == 0)


def test_arrays_read_what_was_written(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float64).reshape(3, 2)
    label = np.array([1, 0, 2], dtype=np.int32)
    np.savez(tmp_path / "a.npz", x=x, label=label)
    (tmp_path / "a.csv").write_text("label,score\n1,0.5\n0,1\n2,2e-3\n")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"x": torch.from_numpy(x)}, tmp_path / "a.safetensors")

    npz = Arrays(str(tmp_path / "a.npz")).tensors()
    assert npz["x"].dtype == torch.float32
    assert npz["label"].dtype == torch.int64
    np.testing.assert_array_equal(npz["x"], x)
    csv = Arrays(str(tmp_path / "a.csv")).tensors()
    assert csv["label"].tolist() == [1, 0, 2]
    assert csv["score"].tolist() == pytest.approx([0.5, 1, 0.002])
    assert torch.equal(Arrays(str(tmp_path / "a.safetensors")).tensors()["x"], npz["x"])


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", b"x,y\n1\n", "line 2 has 1 fields, the header 2"),
        ("a.csv", b"x\nblue\n", "column x"),
        ("a.npz", b"no zip", "a.npz"),
        ("a.npz", b"PK\x03\x04 torn", "not a zip file"),
        ("a.npz", b"", "a.npz"),
        ("a.safetensors", b"none", "a.safetensors"),
        ("a.parquet", b"", "columns are read from .csv, .npz, .safetensors"),
        ("gone.csv", None, "no such file"),
    ],
)
def test_an_unreadable_file_is_a_missing_input(
    tmp_path: Path, name: str, content: bytes | None, match: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingInput, match=match):
        Arrays(str(tmp_path / name)).tensors()


def test_pickles_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(MissingInput, match="allow_pickle"):
        Arrays(str(tmp_path / "a.npz")).tensors()


class Games:
    """Row i is of game i // 3 (ids far apart), and of a column that nobody asks for."""

    def __init__(self, games: int) -> None:
        self.games = games
        self.asked: list[str] = []

    def tensors(self) -> Mapping[str, Tensor]:
        row = torch.arange(3 * self.games)
        return OnAccess({"row": row, "game": row // 3 * 1000 - 7, "heavy": row}, self.asked)


class OnAccess(Mapping[str, Tensor]):
    def __init__(self, held: dict[str, Tensor], asked: list[str]) -> None:
        self.held, self.asked = held, asked

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def games(count: int, **how: Any) -> Feed:
    made = Feed(Games(count), columns=("row",), batch=4, **{"by": "game", **how})
    made.setup(CPU, 0)
    return made


SPLITS: tuple[Split, ...] = ("train", "val", "test")


def of_games(made: Feed, split: Split) -> set[int]:
    return {row // 3 for row in made.rows(split).tolist()}


@settings(deadline=None, max_examples=50)
@given(
    count=st.integers(4, 200),
    val=st.floats(0, 0.5),
    test=st.floats(0, 0.4),
    seed=st.integers(0, 9),
    limit=st.none() | st.integers(1, 250),
)
def test_no_group_is_on_two_sides_and_shares_are_of_the_groups(
    count: int, val: float, test: float, seed: int, limit: int | None
) -> None:
    used = min(count, limit or count)
    val, test = (share if round(share * used) else 0.0 for share in (val, test))
    if used - round(val * used) - round(test * used) < 1:
        return
    made = games(count, val=val, test=test, split_seed=seed, limit_groups=limit)
    sides = {split: of_games(made, split) for split in SPLITS}
    assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == used
    assert len(sides["val"]) == round(val * used) and len(sides["test"]) == round(test * used)
    for split, side in sides.items():
        assert made.rows(split).tolist() == [
            3 * game + k for game in sorted(side) for k in range(3)
        ]


def used_rows(made: Feed) -> set[int]:
    return {row for split in SPLITS for row in made.rows(split).tolist()}


@pytest.mark.parametrize("limit", ["limit_groups", "limit_rows"])
def test_a_smaller_limit_is_part_of_a_larger_one(limit: str) -> None:
    sizes = [20, 50, 99, 100, 300]
    found = [used_rows(games(100, val=0.2, **{limit: size})) for size in sizes]
    for smaller, larger in pairwise(found):
        assert smaller <= larger
    of_one = 3 if limit == "limit_groups" else 1
    assert [len(rows) for rows in found] == [of_one * min(s, 300 // of_one) for s in sizes]
    assert found[0] != set(range(of_one * 20))
    assert found[0] != used_rows(games(100, val=0.2, split_seed=1, **{limit: 20}))


def test_a_limit_beyond_what_there_is_changes_nothing() -> None:
    plain, limited = games(50, val=0.2), games(50, val=0.2, limit_groups=50)
    for split in SPLITS:
        assert torch.equal(plain.rows(split), limited.rows(split))


def test_a_limit_of_rows_needs_no_groups() -> None:
    made = feed(100, val=0.2, limit_rows=10)
    assert (len(made.rows("train")), len(made.rows("val"))) == (8, 2)


def test_only_what_is_needed_is_made() -> None:
    made = games(10)
    assert isinstance(made.source, Games)
    assert sorted(made.source.asked) == ["game", "row"]


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"val": 0.01}, r"val=0.01 of 10 groups is none"),
        ({"val": 0.5, "test": 0.46}, r"0 groups are left to train on"),
        ({"limit_groups": 0}, "limit_groups=0: must be at least 1"),
        ({"limit_groups": 2, "limit_rows": 2}, "one of them"),
        ({"limit_groups": 2, "by": None}, "rows have no groups"),
    ],
)
def test_impossible_groups_are_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        games(10, **how)


def test_groups_are_a_column_of_integers() -> None:
    with pytest.raises(MissingInput, match="Games has no column match; it has game, heavy, row"):
        games(10, by="match")

    class Loose(Rows):
        def tensors(self) -> dict[str, Tensor]:
            return {**super().tensors(), "half": torch.arange(self.n) / 2}

    with pytest.raises(MissingInput, match=r"column half is float32 \(9,\): rows are split by"):
        Feed(Loose(9), columns=("row",), batch=1, by="half").setup(CPU, 0)
