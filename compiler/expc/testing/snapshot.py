"""Compare a folder on disk, file by file, with what a spec compiles to in memory."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from expc.build import compiled, shown
from expc.emit.render import LOCK, Rendered, render
from expc.emit.write import read_lock, stale, write
from expc.findings import SpecError


@dataclass(frozen=True)
class Snapshot:
    """Compares, or with `update` writes. `root` is what paths are relative to."""

    root: Path
    update: bool = False

    def __call__(self, spec: str | Path, folder: str | Path) -> None:
        """Fail the test, with a unified diff, unless `folder` holds exactly what `spec` compiles to."""
        __tracebackhide__ = True
        there = self.root / folder
        try:
            rendered, name = self._rendered(self.root / spec, there)
        except SpecError as error:
            said = "\n".join(f"{f.span}: {f.code}: {f.message}" for f in error.findings)
            pytest.fail(f"{spec} does not compile\n{said}", pytrace=False)
        if self.update:
            write(rendered, there, name, force=True)
        differing = "".join(_differences(rendered, there, name))
        if differing:
            pytest.fail(
                f"{folder} is not what {spec} compiles to; `pytest --expc-update` writes it anew\n\n{differing}",
                pytrace=False,
            )

    def _rendered(self, spec: Path, folder: Path) -> tuple[Rendered, str]:
        made = compiled(spec)
        name = shown(folder, made.experiment.root)
        return render(made.experiment, made.plan, name), name


def _differences(rendered: Rendered, folder: Path, name: str) -> Iterator[str]:
    for file, (there, wanted) in stale(rendered, folder).items():
        if there is None:
            yield f"missing: {name}/{file}\n"
        elif wanted is None:
            yield f"extra: {name}/{file}\n"
        else:
            yield f"changed: {name}/{file}\n"
            yield from _diff(there, wanted, f"{name}/{file}")
    for file in _unknown(rendered, folder):
        yield f"extra: {name}/{file}\n"


def _unknown(rendered: Rendered, folder: Path) -> list[str]:
    """Files that no compile wrote."""
    lock = read_lock(folder)
    known = {LOCK, *rendered.files, *lock.get("files", {}), *lock.get("owned", [])}
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.name not in known | {"__pycache__"})


def _diff(there: str, wanted: str, name: str) -> Iterator[str]:
    lines = difflib.unified_diff(
        there.splitlines(keepends=True),
        wanted.splitlines(keepends=True),
        name,
        f"{name} (compiled)",
    )
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n"
