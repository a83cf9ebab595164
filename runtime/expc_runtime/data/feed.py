"""Columns of rows, split once, kept on the training device, handed out in seeded order.

A sample is never assembled by Python: a batch is one `index_select` per column. The order of an
epoch is a function of (seed, epoch), so a resumed run recomputes it and goes on in the middle.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, cast

import torch
from torch import Tensor

from expc_runtime.data.packed import Column, Packed
from expc_runtime.data.splits import Holdout, Split, generator
from expc_runtime.errors import BadValue, MissingInput
from expc_runtime.export import columns_of
from expc_runtime.feeds import Work
from expc_runtime.module import Batch
from expc_runtime.ranks import ALONE

__all__ = ["Chunk", "Feed", "Read", "RowFeed", "Source", "Split"]

CHUNK = 20  # updates in one training_step of Lightning, whose cost they share


class Source(Protocol):
    """Anything that can give whole columns."""

    def tensors(self) -> Mapping[str, Column]:
        """Columns by name, each (N, ...), row i of all of them one sample.

        A mapping may make a column when it is asked for: no more is asked for than is needed.
        """
        ...


class Chunk:
    """A few batches in a row, each gathered when it is its turn."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Tensor]) -> None:
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def first(self, count: int) -> "Chunk":
        return Chunk(self._columns, self._rows[:count])

    def __iter__(self) -> Iterator[Batch]:
        columns = self._columns
        for rows in self._rows:
            yield tuple([column.index_select(0, rows) for column in columns])


class Read(Protocol):
    """Batches that are made when they are asked for, as often as they are."""

    def __iter__(self) -> Iterator[Batch]: ...

    def first(self, count: int) -> Self:
        """No more than ``count`` of them."""
        ...


class RowFeed(ABC):
    """What every feed of rows says to `fit`, wherever the rows are."""

    mode: Literal["eval", "train"] = "eval"
    nothing = "constant"
    chance = "one answer for every row"
    part = "epoch"

    def __init__(
        self,
        *,
        columns: Sequence[str],
        batch: int,
        drop_last: bool,
        by: str | None,
        holdout: Holdout,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1")
        self.names = tuple(columns)
        self.batch = batch
        self.drop_last = drop_last
        self.by = by
        self.holdout = holdout
        self._rows: dict[Split, Tensor] = {}
        self._ranks = ALONE

    @abstractmethod
    def setup(self, device: torch.device, seed: int) -> None:
        """Read what is to be read; ``seed`` orders the epochs."""

    @abstractmethod
    def order(self, epoch: int) -> Tensor:
        """The rows of the train split in the order in which ``epoch`` visits them, (n,) int64."""

    @abstractmethod
    def chunks(
        self, epoch: int, start: int = 0, stop: int | None = None
    ) -> Iterator[Iterable[Batch]]:
        """Batches ``start`` to ``stop`` of an epoch, a chunk at a time."""

    @abstractmethod
    def batches(self, split: Split) -> Read:
        """A split in order, once, the short last batch included."""

    @abstractmethod
    def columns(self, split: Split) -> Batch:
        """Whole columns of a split, or what answers slices of rows as they do."""

    @abstractmethod
    def sample(self, split: str, rows: int) -> Iterable[Batch]:
        """Rows of a split, drawn once for all, in batches of equal size but for one row."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Shapes and dtypes of the columns, which an export needs; rows of each split."""

    def _split(self, rows: int, groups: Tensor | None) -> dict[Split, Tensor]:
        """Row numbers of each split. Raises ValueError for shares that leave one empty."""
        parts = self.holdout.rows(rows, groups)
        train = len(parts["train"])
        if train < (self.batch if self.drop_last else 1):
            raise ValueError(f"{train} rows are left to train on, fewer than a batch takes")
        return parts

    def _require(self, known: Iterable[str], source: object) -> tuple[str, ...]:
        """The columns to ask ``source`` for, each once. Raises MissingInput if it has not all."""
        held = sorted(known)
        wanted = tuple(dict.fromkeys((*self.names, *((self.by,) if self.by else ()))))
        missing = [name for name in wanted if name not in held]
        if missing:
            raise MissingInput(
                f"{type(source).__name__} has no column {', '.join(missing)}; "
                f"it has {', '.join(held)}"
            )
        return wanted

    @property
    def updates_per_epoch(self) -> int:
        n = len(self._rows["train"])
        return n // self.batch if self.drop_last else -(-n // self.batch)

    def rows(self, split: Split) -> Tensor:
        """Row numbers of a split in the source, ascending, (n,) int64."""
        return self._rows[split]

    def counted(self) -> dict[str, int]:
        """Rows of each split that has any."""
        return {name: len(rows) for name, rows in self._rows.items() if len(rows)}

    def batch_rows(self, epoch: int, position: int) -> Tensor:
        """Row numbers of batch ``position`` of ``epoch``."""
        return self.order(epoch)[position * self.batch : (position + 1) * self.batch]

    def rows_at(self, update: int) -> int:
        """Rows in the batch of an update, those of all ranks together."""
        position = update % self.updates_per_epoch
        return min(self.batch, len(self._rows["train"]) - position * self.batch)

    # The rest of what `fit` asks.

    def attach(self, work: Work) -> None:
        """Of several ranks, each is given its stretch of the batches that one would be given."""
        self._work, self._ranks = work, work.ranks
        if work.ranks.size > 1:
            work.module.among(work.ranks, self.rows_at)

    def updates_after(self, epochs: int) -> int:
        return epochs * self.updates_per_epoch

    def updates_at(self, env_steps: int) -> int:
        raise ValueError(
            f"a budget of {env_steps} env steps, but rows are read here and no environment is "
            "stepped: a budget is in epochs, updates or minutes"
        )

    def complete(self, updates: int) -> None:  # noqa: B027
        """Nothing: an epoch ends with its last update."""

    def splits(self) -> list[str]:
        """What is measured: the train split only if a gate reads it or there is no other."""
        gate = self._work.until.gate
        gated = gate is not None and gate.split == "train"
        held: list[str] = [name for name, rows in self._rows.items() if len(rows)]
        if not gated and "val" in held:
            held.remove("train")
        if self._work.smoke and "test" in held:
            held.remove("test")
        return held

    def measured(self, split: str) -> dict[str, float]:
        batches = self.batches(cast(Split, split))
        figures = self._work.module.measured(batches.first(1) if self._work.smoke else batches)
        return {f"{split}/{name}": value for name, value in figures.items()}

    def floors(self) -> dict[str, float]:
        """The best that constant answers reach, by figure, for every split that is measured."""
        constants = self._work.module.constants(self.columns("train"))
        found: dict[str, float] = {}
        if not constants:
            return found
        for split in self.splits():
            for k in range(max(map(len, constants))):
                answers = tuple(head[min(k, len(head) - 1)] for head in constants)
                with self._work.module.answering(answers):
                    for key, value in self.measured(split).items():
                        found[key] = self._better(key, found.get(key), value)
        return found

    def _better(self, key: str, before: float | None, value: float) -> float:
        if before is None or math.isnan(before):
            return value
        return max(before, value) if self.rises(key) else min(before, value)

    def rises(self, figure: str) -> bool:
        return self._work.module.rises(figure.partition("/")[2])

    def told(self) -> dict[str, float]:
        return {}

    def counts(self) -> dict[str, int]:
        return {}

    def origin(self, update: int, rows: Sequence[int] = ()) -> str:
        epoch, position = divmod(update, self.updates_per_epoch)
        batch = self.batch_rows(epoch, position)
        whole: list[int] = batch[self._stretch(len(batch))].tolist()
        shown = [whole[row] for row in rows] or whole
        named = ", ".join(map(str, shown[:8])) + (", ..." if len(shown) > 8 else "")
        return f"batch {position} of epoch {epoch + 1}, rows {named} of the source"

    def _stretch(self, rows: int) -> slice:
        """Of a batch, the rows of this rank."""
        return self._ranks.part(rows)[0]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the order of an epoch follows from the seed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Nothing to go on from."""


class Feed(RowFeed):
    """Batches of ``columns`` of a source; a `TrainingFeed`.

    Args:
        source: gives the columns.
        columns: names, in the order in which a batch holds them.
        batch: rows of one batch; the last of an epoch may be shorter unless ``drop_last``.
        val, test: shares of all rows, rounded to whole rows; with ``by``, of all groups. The split is
            drawn by ``split_seed``, not by the seed of the run, so that runs of one sweep are
            measured on the same rows.
        by: the column of the source, (N,) integers, that says which group a row is of. All rows of a
            group are in one split.
        limit_groups, limit_rows: how many are used at most, a sample that ``split_seed`` draws before
            the split; that of a smaller limit is part of that of a larger one.

    `setup` reads the source; before it nothing is touched. It raises MissingInput for a column that
    is not there or columns of unequal length, ValueError for shares that leave a split empty.
    """

    def __init__(
        self,
        source: Source,
        *,
        columns: Sequence[str],
        batch: int,
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
        self.source = source
        self._seed = 0
        self._columns: list[Column] = []

    def setup(self, device: torch.device, seed: int) -> None:
        """Read and split the columns, move them to ``device``; ``seed`` orders the epochs."""
        held = self.source.tensors()
        # No `in`: where a mapping makes columns on access, that makes one.
        columns = {name: held[name] for name in self._require(list(held), self.source)}
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise MissingInput(f"columns of unequal length: {lengths}")
        groups = group_ids(self.by, columns[self.by]) if self.by else None
        parts = self._split(lengths[self.names[0]], groups)
        self._rows = {name: rows.to(device) for name, rows in parts.items()}
        self._columns = [columns[name].to(device).contiguous() for name in self.names]
        self._seed = seed

    def order(self, epoch: int) -> Tensor:
        """The rows of the train split in the order in which ``epoch`` visits them, (n,) int64."""
        rows = self._rows["train"]
        order = torch.randperm(len(rows), generator=generator(f"epoch {self._seed} {epoch}"))
        return rows[order.to(rows.device)]

    def chunks(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Batches ``start`` to ``stop`` of an epoch, a chunk at a time."""
        whole = self.updates_per_epoch
        batches = torch.split(self.order(epoch), self.batch)[
            : whole if stop is None else min(whole, stop)
        ]
        for first in range(start, len(batches), CHUNK):
            chunk = batches[first : first + CHUNK]
            yield Chunk(self._columns, [rows[self._stretch(len(rows))] for rows in chunk])

    def batches(self, split: Split) -> Chunk:
        """A split in order, once, the short last batch included."""
        rows = self._rows[split]
        return Chunk(self._columns, torch.split(rows, self.batch) if len(rows) else ())

    def columns(self, split: Split) -> Batch:
        """Whole columns of a split; packed ones stay so."""
        rows = self._rows[split]
        return tuple(
            cast(Tensor, column.take(rows))  # it answers as a tensor does
            if isinstance(column, Packed)
            else column.index_select(0, rows)
            for column in self._columns
        )

    def sample(self, split: str, rows: int) -> Chunk:
        """Rows of a split, drawn once for all, in batches of equal size but for one row."""
        held = self._rows[cast(Split, split)]
        if not len(held):
            raise BadValue(f"no rows of {split} are held")
        order = torch.randperm(len(held), generator=generator(f"sample {split}"))[:rows]
        batches = torch.tensor_split(held[order.to(held.device)], -(-len(order) // self.batch))
        chunk = Chunk(self._columns, batches)
        return chunk.first(1) if self._work.smoke else chunk

    def facts(self) -> dict[str, Any]:
        """Shapes and dtypes of the columns, which an export needs; rows of each split."""
        return {
            "columns": columns_of(dict(zip(self.names, self._columns, strict=True))),
            "rows": self.counted(),
        }


def group_ids(by: str, column: Column) -> Tensor:
    """The column as ids of groups, (N,). Raises MissingInput if that is not what it is."""
    if isinstance(column, Packed) or column.dim() != 1 or column.is_floating_point():
        raise MissingInput(
            f"column {by} is {str(column.dtype).removeprefix('torch.')} {tuple(column.shape)}: rows "
            "are split by a column of integers, one for each row"
        )
    return column
