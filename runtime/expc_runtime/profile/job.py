"""The data of one stage, read once: columns, splits, repeated rows, and the floors of every variant of its program."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expc_runtime.data.packed import Column
from expc_runtime.errors import MissingInput
from expc_runtime.feeds import Work
from expc_runtime.profile.columns import about, rounded
from expc_runtime.profile.program import Meant, meant
from expc_runtime.profile.rows import content, fingerprints, splits
from expc_runtime.progress import Progress

__all__ = ["Sources", "answer"]

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
    columns = sources.columns(job["source"], programs[0].feed.source)
    for program in programs:
        program.feed.source = _named(columns, program.feed.source)
        program.feed.setup(torch.device("cpu"), 0)
    feed = programs[0].feed
    rows = {name: own for name in ("train", "val", "test") if len(own := feed.rows(name))}
    used = torch.cat(list(rows.values())).sort().values
    lacking = [name for name in job["columns"] if name not in columns]
    if lacking:
        raise MissingInput(f"the data has no column {', '.join(lacking)}")
    every = len(used) * (len(job["columns"]) + len(job["inputs"]))
    tick = _ticks(progress, every, f"{job['stage']}: {len(used):,} rows")
    facts = {
        name: about(columns[name], used, meaning, tick) for name, meaning in job["columns"].items()
    }
    hashes = fingerprints([columns[name] for name in job["inputs"]], used, tick)
    at = {name: torch.searchsorted(used, own).numpy() for name, own in rows.items()}
    groups = {name: _key(columns[name]) for name in job["groups"] if name in columns}
    return {
        "content": "" if job["files"] else content({n: columns[n] for n in job["columns"]}),
        "rows": len(used),
        "distinct": len(set(hashes.tolist())),
        "splits": splits(rows, {name: hashes[own] for name, own in at.items()}, groups),
        "columns": facts,
        "floors": [_floors(program, progress) for program in programs],
    }


def _named(columns: Mapping[str, Column], source: Any) -> Held:
    """What was read, under the name of its source: messages about it name that."""
    named: type[Held] = type(type(source).__name__, (Held,), {})
    return named(columns)


def _key(column: Column) -> Tensor:
    assert isinstance(column, Tensor)
    return column


def _ticks(progress: Progress, total: int, words: str) -> Callable[[int], None]:
    done = 0

    def tick(rows: int) -> None:
        nonlocal done
        done += rows
        progress.tick(done, max(total, 1), words)

    return tick


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
