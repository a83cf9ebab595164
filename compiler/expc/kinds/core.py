"""What a kind declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expc.experiment import Stage
from expc.ir import Flag, Program
from expc.kinds.builder import Builder
from expc.spec import Shape


@dataclass(frozen=True)
class Sample:
    """One row of a column as a batch holds it. `shape` is None where only the data says it."""

    shape: tuple[int | Flag, ...] | None
    dtype: str = "float32"


@dataclass(frozen=True)
class Kind:
    """A kind of stage: the shape of its spec, the stages it takes something from, what it logs, how it is lowered.

    `measured` is where a key without a split is measured, and whose figures a monitor may watch. `keeps_episodes` says
    that held-out episodes are left for an evaluation. `samples` are the columns of a batch, by name; None: nothing is built. `frame` is what
    a kind that acts in an environment sees of it at a time. `undivided`: why a batch can't go through in parts, nor be shared out
    among devices, and what to do instead of the first; none where it can.
    """

    name: str
    about: str
    shape: type[Shape]
    parents: Callable[[Any], Iterable[str]]
    logged: Callable[[Stage], dict[str, str]]
    lower: Callable[[Stage, Builder], Program]
    measured: str = "val"
    keeps_episodes: bool = False
    samples: Callable[[Stage, Program], Mapping[str, Sample]] | None = None
    frame: tuple[int, ...] | None = None
    undivided: tuple[str, str] | None = None
