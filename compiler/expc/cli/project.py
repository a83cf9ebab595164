"""Where a project keeps what the commands act on: specs, generated folders, runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from expc.findings import suggest

LOCK = "expc.lock.json"


@dataclass(frozen=True)
class Folder:
    """A generated folder, and the spec that its lock says it came from."""

    path: Path
    spec: Path
    experiment: str

    @property
    def orphaned(self) -> bool:
        """Whether the spec is gone."""
        return not self.spec.is_file()


def project() -> Path:
    """The project root above the current folder."""
    from expc.project import project_root

    return project_root(Path.cwd())


def specs(root: Path) -> list[Path]:
    """Every spec of the project, in the order of their names."""
    return sorted([*(root / "specs").glob("*.yaml"), *(root / "specs").glob("*.yml")])


def folder(path: Path, root: Path) -> Folder | None:
    """A generated folder by its lock; None if it has none."""
    from expc.emit.write import read_lock

    if not (path / LOCK).is_file():
        return None
    lock = read_lock(path)
    return Folder(path, root / str(lock.get("spec", "")), str(lock.get("experiment", path.name)))


def folders(root: Path) -> Iterator[Folder]:
    """The generated folders of a project."""
    for lock in sorted((root / "generated").glob(f"*/{LOCK}")):
        found = folder(lock.parent, root)
        if found is not None:
            yield found


def generated(given: Path) -> Folder:
    """The folder a person named. Raises `click.UsageError` when nothing was compiled there."""
    from expc.project import project_root

    if not given.exists():
        raise click.UsageError(f"There is no folder `{given}`.")
    found = folder(given, project_root(given))
    if found is None:
        raise click.UsageError(
            f"`{given}` was not written by expc: it holds no {LOCK}. Name a folder such as "
            "generated/digits; `expc compile` makes it from a spec."
        )
    return found


def near(name: str, choices: list[str]) -> str:
    """A hint for a name that is not there: the nearest one, or all of them."""
    hint = suggest(name, choices)
    if hint:
        return f" {hint[0].upper()}{hint[1:]}"
    return f" There are: {', '.join(choices)}." if choices else ""


def seen(path: Path) -> str:
    """A path as a person in the current folder would write it."""
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix() or "."
    except ValueError:
        return path.as_posix()
