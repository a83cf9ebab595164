"""The data of one stage, read once: columns, splits, repeated rows, and the floors of every variant of its program."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expc_runtime.data.feed import Feed, RowFeed, group_ids
from expc_runtime.data.packed import Column, joined
from expc_runtime.data.splits import Split
from expc_runtime.data.stream import Stream
from expc_runtime.feeds import Work
from expc_runtime.profile.columns import Watched, rounded
from expc_runtime.profile.program import Meant, meant
from expc_runtime.profile.rows import Hashes, content, fingerprints, splits
from expc_runtime.progress import Progress

__all__ = ["Sources", "answer", "seen"]

CPU = torch.device("cpu")
ROWS = 4096
"""Read in one go, dense."""

_SPLITS: tuple[Split, ...] = ("train", "val", "test")

DIGITS = 5
"""Significant digits of a floor: it is computed in float32, as training does."""


class Once(Mapping[str, Column]):
    """The columns of a source, each made once: a source may make one anew at every access."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns
        self._made: dict[str, Column] = {}

    def __getitem__(self, name: str) -> Column:
        if name not in self._made:
            self._made[name] = self._columns[name]
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in set(self._columns)  # asking a mapping itself would make the column

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Held:
    """A source whose columns are there already."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self._columns = columns

    def tensors(self) -> Mapping[str, Column]:
        return self._columns


class Sources:
    """What was read, by what it was read from: stages on the same data share it."""

    def __init__(self) -> None:
        self._key = ""
        self._columns: Mapping[str, Column] = {}

    def columns(self, key: str, source: Any) -> Mapping[str, Column]:
        """The columns of ``source``, read unless those of ``key`` were the last that were."""
        if key != self._key:
            self._columns = {}  # let go of the old ones first
            self._columns = Once(source.tensors())
            self._key = key
        return self._columns


def answer(job: Mapping[str, Any], sources: Sources, progress: Progress) -> dict[str, Any]:
    """Facts of a stage's data as JSON; ``job`` is what `expc profile` asks.

    Raises MissingInput for data, or a package, that is not there; ValueError for values that do not fit the data.
    """
    programs = [meant(p["file"], p["text"], p["values"]) for p in job["programs"]]
    for program in programs:
        if isinstance(program.feed, Feed):
            _read_once(program.feed, sources, job["source"])
    feed = programs[0].feed
    own, feed.names = feed.names, tuple(job["columns"])
    feed.setup(CPU, 0)
    facts = seen(feed, job, progress)
    feed.names = own
    for program in programs:
        program.feed.setup(CPU, 0)
    return facts | {"floors": [_floors(program, progress) for program in programs]}


def _read_once(feed: Feed, sources: Sources, key: str) -> None:
    """Let a feed have what was read; messages about its source name that."""
    source = feed.source
    named: type[Held] = type(type(source).__name__, (Held,), {})
    feed.source = named(sources.columns(key, source))


def seen(feed: RowFeed, job: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Every row of every split, once."""
    parts = {name: rows for name in _SPLITS if len(rows := feed.rows(name))}
    used = sum(map(len, parts.values()))
    watched = {name: Watched(meaning) for name, meaning in job["columns"].items()}
    hashes: dict[str, list[Hashes]] = {name: [] for name in parts}
    inputs = [feed.names.index(name) for name in job["inputs"]]
    done = 0
    batch, feed.batch = feed.batch, ROWS
    for split in parts:
        for columns in feed.batches(split):
            for each, column in zip(watched.values(), columns, strict=True):
                each.see(column)
            hashes[split].append(fingerprints([columns[place] for place in inputs]))
            done += len(columns[0])
            progress.tick(done, used, f"{job['stage']}: {used:,} rows")
    feed.batch = batch
    whole = {name: np.concatenate(found) for name, found in hashes.items()}
    groups = {key: held for key in job["groups"] if (held := _group(feed, key)) is not None}
    return {
        "content": "" if job["files"] else _content(feed),
        "rows": used,
        "distinct": len(np.unique(np.concatenate(list(whole.values())))),
        "splits": splits({str(name): rows for name, rows in parts.items()}, whole, groups),
        "columns": {name: each.told() for name, each in watched.items()},
    }


def _group(feed: RowFeed, name: str) -> Tensor | None:
    """The groups of all rows of the source, in its order, if it says them."""
    if isinstance(feed, Stream):
        if name not in feed.source.names():
            return None
        numbers = range(len(feed.source.lengths()))
        parts = [feed.source.block(number, [name])[name] for number in numbers]
        return group_ids(name, joined(parts))
    assert isinstance(feed, Feed)
    held = feed.source.tensors()
    return group_ids(name, held[name]) if name in sorted(held) else None


def _content(feed: RowFeed) -> str:
    assert isinstance(feed, Feed)  # a stream is of files
    held = feed.source.tensors()
    return content({name: held[name] for name in feed.names})


def _floors(program: Meant, progress: Progress) -> dict[str, float]:
    """The floors of every figure, as a training that begins now would log them."""
    feed = program.feed
    module = program.build(program.cfg)
    feed.attach(
        Work(
            module=module,
            folder=Path(),
            until=program.until,
            keep=2,
            smoke=False,
            warn=progress.line,
            alive=lambda doing: None,
        )
    )
    found: Mapping[str, float] = feed.floors()
    return {key: rounded(value, DIGITS) for key, value in found.items() if math.isfinite(value)}
