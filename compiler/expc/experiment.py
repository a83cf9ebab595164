"""An experiment as resolved: every component bound, every default filled in, every leaf located."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expc.components.core import Use
from expc.findings import Span
from expc.source import KeyPath, Source
from expc.spec import Run, StageRun, Sweep
from expc.tree import Tree, Where


@dataclass(frozen=True)
class Stage:
    """One stage. `shape` holds its checked scalars, `uses` its components by slot (and name)."""

    name: str
    kind: Any
    shape: Any
    uses: Mapping[str, Use]
    maps: Mapping[str, Mapping[str, Use]]
    experiment: str
    parents: tuple[str, ...] = ()

    @property
    def path(self) -> KeyPath:
        """Where the stage stands in the spec."""
        return ("stages", self.name)

    @property
    def parts(self) -> list[str]:
        """The parts of its net as a spec names them: `backbone`, `heads.policy`."""
        return [
            *self.maps.get("model", {}),
            *(f"heads.{name}" for name in self.maps.get("heads", {})),
        ]

    def every_use(self) -> Iterator[Use]:
        """All components of the stage."""
        yield from self.uses.values()
        for many in self.maps.values():
            yield from many.values()


@dataclass(frozen=True)
class Experiment:
    """A resolved spec. `tree` holds written values and defaults alike, with their origins."""

    name: str
    about: str
    file: str
    root: Path
    tree: Tree
    stages: Mapping[str, Stage]
    sweep: Sweep
    sources: tuple[Source, ...]
    run: Run | None = None

    def run_of(self, stage: Stage) -> StageRun:
        """How runs of a stage are carried out: as it says itself, else as is said for all."""
        own, whole = stage.shape.run or StageRun(), self.run or StageRun()
        return own.over(whole)

    def where(self, *path: str | int) -> Where:
        """Where a path of the spec stands."""
        return self.tree.at(path)

    def key(self, *path: str | int) -> Span:
        """The place of a key."""
        return self.tree.at(path).key

    def value(self, *path: str | int) -> Span:
        """The place of a value."""
        return self.tree.at(path).value

    def is_written(self, path: KeyPath) -> bool:
        """Whether somebody set this path: the spec, the one it extends, or a sweep."""
        place = self.tree.where.get(path)
        return place is not None and place.origin != "default"

    @property
    def source(self) -> Source:
        """The spec's own file."""
        return self.sources[0]
