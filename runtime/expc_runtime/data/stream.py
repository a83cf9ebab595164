"""Rows that are read again for each epoch: no more than two windows of them are held.

A source gives blocks: stretches of rows whose lengths are known before they are read. An epoch
permutes the blocks, gathers them to windows, and shuffles the rows of each window. All of that follows
from (seed, epoch) and the lengths alone, so the number of threads that read changes nothing, and a
resumed run goes on in the middle.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from expc_runtime.data.feed import CHUNK, RowFeed, group_ids
from expc_runtime.data.packed import Column, joined, taken
from expc_runtime.data.splits import Holdout, Split, generator
from expc_runtime.data.transfer import on_device
from expc_runtime.errors import BadValue, MissingInput
from expc_runtime.export import columns_of
from expc_runtime.module import Batch

__all__ = ["Blocks", "Stream"]


class Blocks(Protocol):
    """A source that is read in blocks, one after the other or several at once."""

    def names(self) -> Sequence[str]:
        """The columns there are."""
        ...

    def lengths(self) -> Sequence[int]:
        """Rows of each block. Row i of the source is the i-th of all blocks in their order."""
        ...

    def block(self, number: int, columns: Sequence[str]) -> Mapping[str, Column]:
        """These columns of one block. Called from several threads at once."""
        ...


@dataclass(frozen=True)
class _Window:
    """Blocks that are read together, and how many rows of a split they have."""

    blocks: tuple[int, ...]
    size: int
    shuffle: str | None
    """What the order of the rows is drawn from; None for the order of the source."""

    def order(self) -> Tensor | None:
        if self.shuffle is None:
            return None
        return torch.randperm(self.size, generator=generator(self.shuffle))


class Stream(RowFeed):
    """Batches of ``columns`` of a source that is read in blocks; a `TrainingFeed`.

    Args:
        source: gives the blocks.
        window: rows that are shuffled among each other; a block that is larger is a window of its
            own. One window is trained on while the next is read.
        threads: how many read ahead of the training; with 0 the training reads for itself.

    The others are those of `Feed`, and the rows that are held out are those that it would hold out.
    Of every row 8 bytes are kept, its number.

    `setup` raises MissingInput for a column that is not there, ValueError for shares that leave a
    split empty. What a reading thread raises is raised where its rows are asked for.
    """

    def __init__(
        self,
        source: Blocks,
        *,
        columns: Sequence[str],
        batch: int,
        window: int,
        threads: int = 1,
        val: float = 0.0,
        test: float = 0.0,
        split_seed: int = 0,
        drop_last: bool = False,
        by: str | None = None,
        limit_groups: int | None = None,
        limit_rows: int | None = None,
    ) -> None:
        holdout = Holdout(val, test, split_seed, limit_groups, limit_rows)
        super().__init__(columns=columns, batch=batch, drop_last=drop_last, by=by, holdout=holdout)
        if window < 1 or threads < 0:
            raise ValueError(f"window={window}, threads={threads}: at least 1, and no less than 0")
        self.source = source
        self.window = window
        self.threads = threads
        self._seed = 0
        self._device = torch.device("cpu")
        self._starts: list[int] = []
        self._bounds: dict[Split, list[int]] = {}
        self._facts: dict[str, Any] = {}

    def setup(self, device: torch.device, seed: int) -> None:
        """Ask for the lengths of the blocks and split the rows; ``seed`` orders the epochs."""
        if not hasattr(self.source, "block"):
            name = type(self.source).__name__
            raise ValueError(f"{name} gives whole columns: there is nothing to stream")
        self._require(self.source.names(), self.source)
        lengths = self.source.lengths()
        self._starts = [0, *accumulate(lengths)]
        if not self._starts[-1]:
            raise MissingInput(f"{type(self.source).__name__} has no rows")
        self._rows = self._split(self._starts[-1], self._groups())
        self._bounds = {name: self._cut(rows) for name, rows in self._rows.items()}
        self._seed, self._device = seed, device
        some = next(number for number, length in enumerate(lengths) if length)
        first = self.source.block(some, self.names)
        columns = columns_of({name: first[name] for name in self.names})
        self._facts = {"columns": columns, "rows": self.counted()}

    def _groups(self) -> Tensor | None:
        if self.by is None:
            return None
        numbers = range(len(self._starts) - 1)
        parts = (self.source.block(number, [self.by])[self.by] for number in numbers)
        return torch.cat([group_ids(self.by, part) for part in parts])

    def _cut(self, rows: Tensor) -> list[int]:
        """Where in ``rows`` each block begins, and the last ends."""
        cut: list[int] = torch.searchsorted(rows, torch.tensor(self._starts)).tolist()
        return cut

    # Order.

    def order(self, epoch: int) -> Tensor:
        """The rows of the train split in the order in which ``epoch`` visits them, (n,) int64."""
        parts = []
        for window in self._epoch(epoch):
            rows = torch.cat([self._of("train", block) for block in window.blocks])
            order = window.order()
            parts.append(rows if order is None else rows[order])
        return torch.cat(parts)

    def _of(self, split: Split, block: int) -> Tensor:
        """The rows of a split that a block has."""
        bounds = self._bounds[split]
        return self._rows[split][bounds[block] : bounds[block + 1]]

    def _epoch(self, epoch: int) -> list[_Window]:
        return self._windows("train", f"{self._seed} {epoch}")

    def _windows(self, split: Split, shuffle: str | None) -> list[_Window]:
        """The blocks that have rows of a split, in order or permuted, gathered to windows."""
        sizes = [end - start for start, end in pairwise(self._bounds[split])]
        blocks: Iterable[int] = range(len(sizes))
        if shuffle is not None:
            blocks = torch.randperm(len(sizes), generator=generator(f"blocks {shuffle}")).tolist()
        windows: list[_Window] = []
        gathered: list[int] = []
        held = 0
        for block in (*(block for block in blocks if sizes[block]), -1):
            if gathered and (block < 0 or held + sizes[block] > self.window):
                text = None if shuffle is None else f"window {shuffle} {len(windows)}"
                windows.append(_Window(tuple(gathered), held, text))
                gathered, held = [], 0
            if block >= 0:
                gathered.append(block)
                held += sizes[block]
        return windows

    # Batches.

    def chunks(
        self, epoch: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Iterable[Batch]]:
        """Batches ``start`` to ``stop`` of an epoch, a chunk at a time."""
        stop = self.updates_per_epoch if stop is None else min(stop, self.updates_per_epoch)
        rows = min(stop * self.batch, len(self._rows["train"])) - start * self.batch
        if rows <= 0:
            return
        sizes = _sizes(rows, self.batch)
        made = self._made("train", self._epoch(epoch), start * self.batch, sizes)
        batches = on_device(self._parts(made), self._device)
        # Chunks may be asked for before they are used: reading ends with the last that is held.
        for first in range(0, len(sizes), CHUNK):
            yield islice(batches, min(CHUNK, len(sizes) - first))

    def _parts(self, made: Iterator[Batch]) -> Iterator[Batch]:
        """The rows of this rank; each of several reads all that there is."""
        try:
            for batch in made:
                rows = self._stretch(len(batch[0]))
                yield tuple(column[rows] for column in batch)
        finally:
            _close(made)

    def batches(self, split: Split) -> "_Read":
        """A split in order, once, the short last batch included."""
        return _Read(self, split, _sizes(len(self._rows[split]), self.batch), None)

    def sample(self, split: str, rows: int) -> "_Read":
        """Rows of a split, drawn once for all by blocks, in batches of equal size but for one row."""
        held = len(self._rows[cast(Split, split)])
        if not held:
            raise BadValue(f"no rows of {split} are held")
        count = min(rows, held)
        parts = -(-count // self.batch)
        sizes = [count // parts + (part < count % parts) for part in range(parts)]
        read = _Read(self, cast(Split, split), sizes, f"sample {split}")
        return read.first(1) if self._work.smoke else read

    def _read(self, split: Split, sizes: Sequence[int], shuffle: str | None) -> Iterator[Batch]:
        made = self._made(split, self._windows(split, shuffle), 0, sizes)
        try:
            yield from on_device(made, self._device)
        finally:
            _close(made)

    def _made(
        self, split: Split, windows: Sequence[_Window], skip: int, sizes: Sequence[int]
    ) -> Iterator[Batch]:
        """Batches of these sizes, on the host, from the rows of the windows after the first ``skip``."""
        while windows and windows[0].size <= skip:
            skip, windows = skip - windows[0].size, windows[1:]
        ends = list(accumulate(window.size for window in windows))
        wanted = skip + sum(sizes)
        windows = windows[: next((n for n, end in enumerate(ends, 1) if end >= wanted), len(ends))]
        waiting = deque(sizes)
        pieces: list[list[Tensor]] = []  # of the batch that is begun, one for each window it is in
        missing = waiting.popleft() if waiting else 0
        read = self._held(split, windows, self.names)
        try:
            for window in windows:
                columns, order = next(read), window.order()
                at, skip = skip, 0
                while at < window.size and missing:
                    rows = torch.arange(at, min(at + missing, window.size))
                    at, missing = at + len(rows), missing - len(rows)
                    rows = rows if order is None else order[rows]
                    pieces.append([column.index_select(0, rows) for column in columns])
                    if not missing:
                        yield _whole(pieces)
                        pieces = []
                        missing = waiting.popleft() if waiting else 0
                del columns
        finally:
            _close(read)

    def _held(
        self, split: Split, windows: Sequence[_Window], names: Sequence[str]
    ) -> Iterator[list[Column]]:
        """The columns of each window's rows, in the order of its blocks; the next is read meanwhile."""

        def block(number: int) -> list[Column]:
            return self._block(split, number, names)

        def gathered(parts: Sequence[list[Column]]) -> list[Column]:
            return [joined(column) for column in zip(*parts, strict=True)]

        if not self.threads:
            for window in windows:
                yield gathered([block(number) for number in window.blocks])
            return
        readers = ThreadPoolExecutor(self.threads, thread_name_prefix="read")
        try:
            ahead: list[Future[list[Column]]] = []
            for number, window in enumerate(windows):
                if not number:
                    ahead = [readers.submit(block, n) for n in window.blocks]
                columns = gathered([part.result() for part in ahead])
                after = windows[number + 1].blocks if number + 1 < len(windows) else ()
                ahead = [readers.submit(block, n) for n in after]
                yield columns
                del columns  # two windows are held, not three
        finally:
            readers.shutdown(wait=False, cancel_futures=True)

    def columns(self, split: Split) -> Batch:
        """Columns that are read where a slice of them is asked for."""
        return tuple(cast(Tensor, _Whole(self, split, name)) for name in self.names)

    def _block(self, split: Split, number: int, names: Sequence[str]) -> list[Column]:
        """Columns of the rows of a split that a block has."""
        found = self.source.block(number, names)
        rows = self._of(split, number) - self._starts[number]
        return [taken(found[name], rows) for name in names]

    def facts(self) -> dict[str, Any]:
        """Shapes and dtypes of the columns, which an export needs; rows of each split."""
        return self._facts


@dataclass(frozen=True)
class _Read:
    """Batches of a split that are read when they are asked for, as often as they are."""

    stream: Stream
    split: Split
    sizes: Sequence[int]
    shuffle: str | None

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        return self.stream._read(self.split, self.sizes, self.shuffle)

    def first(self, count: int) -> "_Read":
        return _Read(self.stream, self.split, self.sizes[:count], self.shuffle)


class _Whole:
    """A column of a split as `expc_runtime.floors` reads one: its shape, and slices of rows.

    The block that was read last is kept: slices in a row, smaller than blocks, read each once.
    """

    def __init__(self, stream: Stream, split: Split, name: str) -> None:
        self._stream, self._split, self._name = stream, split, name
        self._bounds = stream._bounds[split]
        self._held: tuple[int, Column] | None = None
        known = stream.facts()["columns"][name]
        self.shape = torch.Size((len(stream.rows(split)), *known["shape"]))
        self.dtype: torch.dtype = getattr(torch, known["dtype"])

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, rows: slice) -> Tensor:
        """Dense rows of a slice, on the device of the training."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("rows are read in their order, one after the other")
        # With no row in it: the first row's block, for dtype and shape.
        block = bisect_right(self._bounds, min(start, len(self) - 1)) - 1
        parts: list[Tensor] = []
        while not parts or self._bounds[block] < stop:
            first, end = self._bounds[block], self._bounds[block + 1]
            if first < end:
                inside = slice(max(start - first, 0), max(min(stop, end) - first, 0))
                parts.append(self._rows_of(block)[inside])
            block += 1
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._stream._device)

    def _rows_of(self, block: int) -> Column:
        if self._held is None or self._held[0] != block:
            self._held = None  # one block is held, not two
            (column,) = self._stream._block(self._split, block, [self._name])
            self._held = block, column
        return self._held[1]


def _sizes(rows: int, batch: int) -> list[int]:
    return [min(batch, rows - start) for start in range(0, rows, batch)]


def _whole(pieces: Sequence[Sequence[Tensor]]) -> Batch:
    """A batch from what each window had of it."""
    return tuple(
        torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*pieces, strict=True)
    )


def _close(made: object) -> None:
    """End a generator now: what it reads ahead is not read on."""
    close = getattr(made, "close", None)
    if close is not None:
        close()
