"""A packed column is the dense one, smaller: whatever is asked of it, the answer is the same."""

import pytest

torch = pytest.importorskip("torch")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime.data.feed import Feed
from expc_runtime.data.packed import Bits, Column, Packed, Rows, joined
from expc_runtime.export import columns_of

CPU = torch.device("cpu")


def zeros_and_ones(n: int, length: int, seed: int) -> Tensor:
    drawn = torch.rand(n, length, generator=torch.Generator().manual_seed(seed))
    made: Tensor = torch.where(drawn < 0.2, 1.0, 0.0)
    return made


def sparse(dense: Tensor) -> Rows:
    """The same numbers, row after row."""
    row, ids = dense.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(dense))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return Rows(ids.to(torch.int16), dense[row, ids], offsets, dense.shape[1])


def one_hot(ids: Tensor, length: int) -> Tensor:
    made: Tensor = torch.eye(length)[ids]
    return made


def stands_for(packed: Packed, dense: Tensor, rows: Tensor) -> None:
    """Everything that a feed asks of a column."""
    assert len(packed) == len(dense)
    assert (packed.shape, packed.dim(), packed.dtype) == (dense.shape, 2, torch.float32)
    assert packed.device == CPU and packed.to(CPU).contiguous().shape == dense.shape
    for column in (packed, packed.to("cpu").contiguous()):
        got = column.index_select(0, rows)
        assert got.dtype == torch.float32 and got.is_contiguous()
        assert torch.equal(got, dense.index_select(0, rows))
    assert torch.equal(packed[1:4], dense[1:4])
    assert torch.equal(packed[:], dense)
    assert torch.equal(packed.take(rows).dense(), dense[rows])
    assert torch.equal(packed.take(rows)[::2], dense[rows][::2])


columns = given(
    n=st.integers(1, 40), length=st.integers(1, 40), seed=st.integers(0, 99), data=st.data()
)


@settings(deadline=None, max_examples=40)
@columns
def test_bits_stand_for_the_dense_column(
    n: int, length: int, seed: int, data: st.DataObject
) -> None:
    dense = zeros_and_ones(n, length, seed)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1))), dtype=torch.int64)
    for dtype in (torch.float32, torch.uint8, torch.bool, torch.int64):
        stands_for(Bits.pack(dense.to(dtype)), dense, rows)


@settings(deadline=None, max_examples=40)
@columns
def test_sparse_rows_stand_for_the_dense_column(
    n: int, length: int, seed: int, data: st.DataObject
) -> None:
    shares = torch.rand(n, length, generator=torch.Generator().manual_seed(seed))
    dense = zeros_and_ones(n, length, seed) * shares  # a row without any number among them
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1))), dtype=torch.int64)
    stands_for(sparse(dense), dense, rows)
    ids = torch.randint(length, (n,), generator=torch.Generator().manual_seed(seed))
    stands_for(Rows(ids, None, None, length), one_hot(ids, length), rows)
    given = shares[:, 0].contiguous()
    stands_for(Rows(ids, given, None, length), one_hot(ids, length) * given[:, None], rows)


def test_columns_of_a_kind_are_joined() -> None:
    dense = zeros_and_ones(30, 21, 0) * torch.rand(30, 21)
    ids = torch.arange(30) % 21
    ones, weighed = Rows(ids, None, None, 21), Rows(ids, torch.full((30,), 0.5), None, 21)
    for parts in (
        [Bits.pack(dense > 0), Bits.pack(dense[:3] > 0)],
        [sparse(dense), sparse(dense[4:9])],
        [ones, ones.take(ids[:4])],
        [weighed, ones],
        [sparse(dense), ones, weighed],
        [dense, dense[:1]],
    ):
        whole = joined(parts)
        assert type(whole) is type(parts[0])
        assert torch.equal(whole[:], torch.cat([part[:] for part in parts]))
        assert torch.equal(whole.index_select(0, ids[:9]), whole[:9])
    with pytest.raises(ValueError, match=r"different kinds: Bits \(30, 21\), Rows \(30, 21\)"):
        joined([Bits.pack(dense > 0), ones])
    with pytest.raises(ValueError, match="different kinds"):
        joined([Bits.pack(dense > 0), Bits.pack(dense[:, :20] > 0)])


def test_the_lowest_bit_comes_first() -> None:
    dense = zeros_and_ones(10_000, 1496, 0)  # more rows than are packed at a time
    bits = Bits.pack(dense)
    expected = np.packbits(dense.numpy().astype(bool), axis=1, bitorder="little")
    np.testing.assert_array_equal(bits.packed.numpy(), expected)
    assert bits.nbytes == 10_000 * 187
    assert torch.equal(Bits(torch.from_numpy(expected), 1496).dense(), dense)


def test_an_id_named_twice_gets_the_sum() -> None:
    twice = Rows(
        torch.tensor([3, 3, 1]), torch.tensor([0.25, 0.5, 1.0]), torch.tensor([0, 2, 3]), 4
    )
    assert twice[:].tolist() == [[0, 0, 0, 0.75], [0, 1, 0, 0]]


@pytest.mark.parametrize("dense", [[[0.5]], [[2]], [[-1]], [[256]], [[float("nan")]]])
def test_other_numbers_are_no_bits(dense: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="0 and 1 alone"):
        Bits.pack(torch.tensor(dense))


def test_what_does_not_fit_is_refused() -> None:
    ids, ones = torch.tensor([0, 5]), torch.ones(2)
    with pytest.raises(
        ValueError, match=r"9 bits a row are uint8 \(N, 2\), not torch.uint8 \(4, 1\)"
    ):
        Bits(torch.zeros(4, 1, dtype=torch.uint8), 9)
    with pytest.raises(ValueError, match="ids run from 0 to 5, but a row has 5 numbers"):
        Rows(ids, ones, None, 5)
    with pytest.raises(ValueError, match="shares"):
        Rows(ids, torch.ones(3), None, 6)
    for offsets in ([0, 1], [1, 2], [0, 3, 2], []):
        with pytest.raises(ValueError, match="offsets rise from 0 to 2"):
            Rows(ids, ones, torch.tensor(offsets, dtype=torch.int64), 6)
    with pytest.raises(ValueError, match="dim=1"):
        Rows(ids, ones, None, 6).index_select(1, ids)


class Positions:
    """Row i holds i, its bits, and its remainder as one of 12 classes."""

    def __init__(self, *, packed: bool) -> None:
        self.packed = packed

    def tensors(self) -> dict[str, Column]:
        row = torch.arange(100)
        bits = (row[:, None] >> torch.arange(7) & 1).float()
        if not self.packed:
            return {"row": row, "bits": bits, "kind": one_hot(row % 12, 12)}
        return {"row": row, "bits": Bits.pack(bits), "kind": Rows(row % 12, None, None, 12)}


def test_a_feed_gives_the_same_batches_of_packed_columns_as_of_dense_ones() -> None:
    small, dense = (
        Feed(Positions(packed=p), columns=("row", "bits", "kind"), batch=9, val=0.2)
        for p in (True, False)
    )
    for made in (small, dense):
        made.setup(CPU, 3)
    pairs = zip(small.chunks(0), dense.chunks(0), strict=True)
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(small.batches("val"), dense.batches("val"), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for split in ("train", "val"):
        for x, y in zip(small.columns(split), dense.columns(split), strict=True):
            assert torch.equal(x[:], y)
    assert small.facts() == dense.facts()
    assert columns_of({"bits": Bits.pack(torch.zeros(2, 81))}) == {
        "bits": {"shape": [81], "dtype": "float32"}
    }
