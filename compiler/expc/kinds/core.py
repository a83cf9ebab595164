"""What a kind declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from expc.experiment import Stage
from expc.ir import Program
from expc.kinds.builder import Builder
from expc.spec import Shape


@dataclass(frozen=True)
class Kind:
    """A kind of stage: the shape of its spec, the stages it takes something from, what it logs, how it is lowered.

    `measured` is where a key without a split is measured, and whose figures a monitor may watch. `keeps_episodes` says
    that held-out episodes are left for an evaluation.
    """

    name: str
    about: str
    shape: type[Shape]
    parents: Callable[[Any], Iterable[str]]
    logged: Callable[[Stage], dict[str, str]]
    lower: Callable[[Stage, Builder], Program]
    measured: str = "val"
    keeps_episodes: bool = False
