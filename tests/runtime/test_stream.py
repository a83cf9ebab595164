"""A stream is a feed whose rows are not all held: the same rows, the same lengths, once each."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expc_runtime import floors
from expc_runtime.data.feed import CHUNK, Feed, Split
from expc_runtime.data.packed import Bits, Column
from expc_runtime.data.stream import Stream
from expc_runtime.data.transfer import on_device
from expc_runtime.errors import MissingInput
from expc_runtime.ranks import ALONE

torch.set_num_threads(1)
CPU = torch.device("cpu")
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Rows:
    """Row i holds i, its bits, and its group i % 17, in blocks of given lengths; tells what was read."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = list(lengths)
        self.read: list[int] = []
        self.gate = threading.Event()  # readers wait here
        self.gate.set()
        self.torn: set[int] = set()

    def names(self) -> Sequence[str]:
        return ["row", "bits", "group"]

    def lengths(self) -> Sequence[int]:
        return self._lengths

    def block(self, number: int, columns: Sequence[str]) -> Mapping[str, Column]:
        self.gate.wait(30)
        self.read.append(number)
        if number in self.torn:
            raise MissingInput(f"block {number} is torn")
        start = sum(self._lengths[:number])
        row = torch.arange(start, start + self._lengths[number])
        return {name: value for name, value in self._made(row).items() if name in columns}

    @staticmethod
    def _made(row: Tensor) -> dict[str, Column]:
        return {"row": row, "bits": Bits.pack(row[:, None] >> torch.arange(13) & 1),
                "group": row % 17}  # fmt: skip

    def tensors(self) -> dict[str, Column]:
        return self._made(torch.arange(sum(self._lengths)))


def stream(source: Rows, **how: Any) -> Stream:
    settings: dict[str, Any] = {"columns": ("row", "bits"), "batch": 7, "window": 40, **how}
    seed = settings.pop("run_seed", 0)
    made = Stream(source, **settings)
    made.setup(CPU, seed)
    return made


def rows(batches: Any) -> list[list[int]]:
    """Row numbers of batches; bits and rows of a batch belong together."""
    found = []
    for row, bits in batches:
        assert torch.equal(bits, (row[:, None] >> torch.arange(13) & 1).float())
        found.append(row.tolist())
    return found


def visited(made: Stream, epoch: int, start: int = 0, stop: int | None = None) -> list[list[int]]:
    return rows(batch for chunk in made.chunks(epoch, start, stop) for batch in chunk)


lengths = st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(lambda each: sum(each) > 2)


@settings(deadline=None, max_examples=30)
@given(
    lengths=lengths,
    batch=st.integers(1, 50),
    window=st.integers(1, 150),
    val=st.sampled_from([0.0, 0.3]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 9),
    limit=st.none() | st.integers(1, 200),
)
def test_an_epoch_visits_each_row_of_train_once_with_any_number_of_threads(
    lengths: list[int], batch: int, window: int, val: float, drop_last: bool, epoch: int,
    limit: int | None,
) -> None:  # fmt: skip
    n = min(sum(lengths), limit or sum(lengths))
    train = n - round(val * n)
    if (val and not round(val * n)) or train < (batch if drop_last else 1):
        return
    how = {"batch": batch, "val": val, "drop_last": drop_last, "limit_rows": limit}
    orders = []
    for threads in (0, 1, 2):
        made = stream(Rows(lengths), window=window, threads=threads, **how)
        assert made.updates_per_epoch == (train // batch if drop_last else -(-train // batch))
        batches = visited(made, epoch)
        assert len(batches) == made.updates_per_epoch
        assert all(len(rows) == batch for rows in batches[:-1])
        flat = list(chain.from_iterable(batches))
        assert len(set(flat)) == len(flat) == (train // batch * batch if drop_last else train)
        assert set(flat) <= set(made.rows("train").tolist())
        assert flat == made.order(epoch)[: len(flat)].tolist()
        orders.append(batches)
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize(
    "how",
    [
        {"val": 0.2, "test": 0.1},
        {"val": 0.2, "split_seed": 4},
        {"val": 0.3, "by": "group"},
        {"val": 0.2, "test": 0.2, "by": "group", "limit_groups": 11},
        {"val": 0.2, "limit_rows": 50},
    ],
)
def test_it_holds_out_the_rows_that_a_feed_holds_out(how: dict[str, Any]) -> None:
    source = Rows([50, 0, 31, 77, 9])
    held = Feed(source, columns=("row", "bits"), batch=7, **how)
    held.setup(CPU, 0)
    made = stream(source, **how)
    for split in SPLITS:
        assert torch.equal(made.rows(split), held.rows(split))
        assert rows(made.batches(split)) == rows(held.batches(split))
        assert rows(made.batches(split).first(1)) == rows(held.batches(split).first(1))
    assert made.updates_per_epoch == held.updates_per_epoch
    assert made.facts() == held.facts()
    assert made.facts()["rows"] == {s: len(held.rows(s)) for s in SPLITS if len(held.rows(s))}


def test_epochs_and_seeds_differ_and_repeat() -> None:
    made = stream(Rows([50, 31, 77]))
    assert visited(made, 0) == visited(stream(Rows([50, 31, 77])), 0) == visited(made, 0)
    assert visited(made, 0) != visited(made, 1)
    assert visited(made, 0) != visited(stream(Rows([50, 31, 77]), run_seed=1), 0)


def test_chunks_may_be_asked_for_before_they_are_used() -> None:
    """As Lightning does, one ahead."""
    made = stream(Rows([50, 31, 77, 80] * 2))
    chunks = list(made.chunks(0))
    assert len(chunks) > 2
    assert rows(chain.from_iterable(chunks)) == visited(made, 0)


def test_rows_are_shuffled_in_windows_of_blocks() -> None:
    """A window holds whole blocks, no more rows than it may, and its rows are out of order."""
    made = stream(Rows([10] * 12), window=30, batch=30)
    seen = set()
    for batch in visited(made, 0):
        blocks = {row // 10 for row in batch}
        assert len(blocks) == 3 and batch != sorted(batch)
        seen |= blocks
    assert seen == set(range(12))


def test_an_epoch_goes_on_in_the_middle() -> None:
    source = Rows([50, 31, 77, 80] * 4)
    made = stream(source, val=0.2, threads=1)
    whole = visited(made, 3)
    assert len(whole) > 2 * CHUNK
    for start in (0, 1, CHUNK, CHUNK + 3, len(whole) - 1, len(whole)):
        assert visited(made, 3, start) == whole[start:]
        assert visited(made, 3, 1, start) == whole[1:start]
    source.read.clear()
    visited(made, 3, len(whole) - 1)
    assert len(source.read) <= 2  # the windows before are not read


def test_no_more_than_two_windows_are_read_before_they_are_needed() -> None:
    source = Rows([10] * 30)
    for threads in (0, 1, 2):
        made = stream(source, window=20, batch=10, threads=threads)
        source.read.clear()
        for count, _ in enumerate(chain.from_iterable(made.chunks(0)), 1):
            window = -(-count // 2)
            assert len(source.read) <= 2 * (window + (1 if threads else 0))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_what_a_reader_raises_is_raised_in_the_training(threads: int) -> None:
    source = Rows([10] * 8)
    made = stream(source, window=20, batch=10, threads=threads)
    source.torn = {int(made.order(0)[-1]) // 10}
    batches = chain.from_iterable(made.chunks(0))
    assert len([next(batches) for _ in range(6)]) == 6  # all that came before
    with pytest.raises(MissingInput, match="is torn"):
        next(batches)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_stop_waits_for_no_reader_and_leaves_none() -> None:
    source = Rows([10] * 8)
    made = stream(source, window=10, batch=10, threads=2)
    source.read.clear()
    chunks = made.chunks(0)
    batches = iter(next(chunks))
    next(batches)
    wait_until(lambda: len(source.read) == 2)
    source.gate.clear()
    next(batches)  # was read ahead; its successor is being read, and held up
    began = time.monotonic()
    del batches, chunks
    assert time.monotonic() - began < 20  # the gate would stay shut for 30 s
    source.gate.set()
    wait_until(lambda: not readers())
    assert len(source.read) <= 3


def wait_until(done: Callable[[], bool]) -> None:
    for _ in range(400):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen in 8 s")


def test_a_sample_is_the_same_each_time_and_of_even_batches() -> None:
    from types import SimpleNamespace

    made = stream(Rows([50, 31, 77]), val=0.2, batch=16)
    made.attach(SimpleNamespace(smoke=False, ranks=ALONE))  # type: ignore[arg-type]
    taken = rows(made.sample("train", 50))
    assert rows(made.sample("train", 50)) == taken
    assert sorted(map(len, taken)) == [12, 12, 13, 13]
    flat = list(chain.from_iterable(taken))
    assert len(set(flat)) == 50 and flat != sorted(flat)
    every = chain.from_iterable(rows(made.sample("val", 10**9)))
    assert sorted(every) == made.rows("val").tolist()


def test_floors_are_read_from_columns_that_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Rows([50, 31, 77])
    held = Feed(source, columns=("group", "bits"), batch=7, val=0.2)
    held.setup(CPU, 0)
    made = stream(source, columns=("group", "bits"), val=0.2)
    monkeypatch.setattr(floors, "_NUMBERS", 13 * 20)
    (group, bits), (whole_group, whole_bits) = made.columns("train"), held.columns("train")
    assert group.shape == whole_group.shape and len(bits) == len(whole_bits)
    torch.testing.assert_close(floors.logits(bits), floors.logits(whole_bits))
    ids = floors.class_logits(group, classes=17)
    torch.testing.assert_close(ids, floors.class_logits(whole_group, classes=17))
    torch.testing.assert_close(floors.real(bits), floors.real(whole_bits))


def test_slices_of_a_column_read_each_block_once() -> None:
    made = stream(source := Rows([50, 0, 31, 77]), columns=("row", "bits"), val=0.2)
    held = Feed(source, columns=("row", "bits"), batch=7, val=0.2)
    held.setup(CPU, 0)
    for column, whole in zip(made.columns("train"), held.columns("train"), strict=True):
        source.read.clear()
        starts = range(0, len(column) + 9, 9)
        assert all(torch.equal(column[at : at + 9], whole[at : at + 9]) for at in starts)
        assert source.read == [0, 2, 3]
        assert torch.equal(column[40:120], whole[40:120])
        assert column[5:5].shape == whole[5:5].shape and column[5:5].dtype == whole.dtype


def test_columns_are_on_the_device_of_the_training() -> None:
    """Floors are answers that are held against batches there."""
    made = stream(Rows([50, 31]))
    made.setup(torch.device("meta"), 0)
    assert [column[0:60].device.type for column in made.columns("train")] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("how", "match"), [({"window": 0}, "window=0"), ({"threads": -1}, "threads=-1")]
)
def test_impossible_streams_are_refused(how: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        stream(Rows([9]), **how)


def test_what_can_not_be_streamed_is_told() -> None:
    from expc_runtime.data.digits import Digits

    with pytest.raises(ValueError, match="Digits gives whole columns: there is nothing to stream"):
        Stream(Digits(), columns=("image",), batch=1, window=1).setup(CPU, 0)  # type: ignore[arg-type]
    with pytest.raises(MissingInput, match="Rows has no column cube; it has bits, group, row"):
        stream(Rows([9]), columns=("row", "cube"))
    with pytest.raises(MissingInput, match="Rows has no rows"):
        stream(Rows([0, 0]))


def batches() -> list[tuple[Tensor, ...]]:
    return [(torch.arange(k, k + 9), torch.full((9, 4), float(k))) for k in range(20)]


def same(batch: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a.cpu(), b) for a, b in zip(batch, other, strict=True))


def test_batches_arrive_as_they_were_on_the_host() -> None:
    for batch, other in zip(on_device(batches(), CPU), batches(), strict=True):
        assert same(batch, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies beside the training need a GPU")
def test_batches_arrive_as_they_were_on_the_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    busy = torch.randn(2000, 2000, device=device)
    for batch, other in zip(on_device(batches(), device), batches(), strict=True):
        busy = busy @ busy / 2000  # the copy of the next runs beside this
        assert batch[0].device == device and same(batch, other)


def test_the_next_batch_is_asked_for_no_sooner_than_one_ahead() -> None:
    asked: list[int] = []

    def counted() -> Iterator[tuple[Tensor, ...]]:
        for number, batch in enumerate(batches()):
            asked.append(number)
            yield batch

    for number, _ in enumerate(on_device(counted(), CPU)):
        assert len(asked) <= number + 2
