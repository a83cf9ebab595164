"""`expc clean`: leftovers of compiling, or an experiment's results. Nothing goes without `--yes`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.cli.project import Folder


@click.command(short_help="delete leftovers of compiling, or an experiment's results")
@click.option("--runs", metavar="EXPERIMENT", help="Delete the results of this experiment instead.")
@click.option("--yes", is_flag=True, help="Delete; without it, only list what would be deleted.")
def command(runs: str | None, yes: bool) -> int:
    """List generated files whose spec is gone, and temporary files; with --yes, delete them.

    Files that are yours (`expc own`) or were edited by hand stay. Results are deleted only by
    --runs EXPERIMENT --yes, and not while anything runs there.
    """
    from expc.cli.project import project

    root = project()
    doomed = _results(root, runs) if runs else [*_orphans(root), *_temporary(root)]
    if not doomed:
        click.echo("nothing to delete")
        return 0
    for path in doomed:
        shown = path.relative_to(root).as_posix()
        click.echo(f"{'deleted' if yes else 'would delete'} {shown}{_size(path)}")
        if yes:
            _delete(path)
    if not yes:
        click.echo("nothing was deleted; --yes deletes this")
    return 0


def _size(path: Path) -> str:
    if not path.is_dir():
        return ""
    files = [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    size = sum(file.stat().st_size for file in files) / 2**20
    return f"/ ({len(files):,} files, {size:,.1f} MiB)"


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
        return
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()


def _orphans(root: Path) -> Iterator[Path]:
    from expc.cli.project import folders

    for folder in folders(root):
        if folder.orphaned:
            yield from _ours(folder)


def _ours(folder: Folder) -> Iterator[Path]:
    """What expc wrote there and nobody changed; the lock last, and only when nothing else of it stays."""
    from expc import digest
    from expc.cli.project import LOCK
    from expc.emit.write import read_lock

    lock = read_lock(folder.path)
    kept = False
    for name, entry in lock.get("files", {}).items():
        path = folder.path / name
        if not path.is_file():
            continue
        ours = digest.text(path.read_text(encoding="utf-8", errors="replace")) == entry["sha256"]
        if ours and name not in lock.get("owned", []):
            yield path
        else:
            kept = True
    if not kept:
        yield folder.path / LOCK


def _temporary(root: Path) -> Iterator[Path]:
    """What a killed compile left behind."""
    yield from sorted((root / "generated").glob("*/.*.tmp"))


def _results(root: Path, name: str) -> list[Path]:
    from expc.cli.project import near

    runs = root / "runs"
    known = [path.name for path in sorted(runs.glob("*")) if path.is_dir()]
    if name not in known:
        raise click.UsageError(f"There is no experiment `{name}` under runs/.{near(name, known)}")
    folder = runs / name
    if folder.is_symlink():
        raise click.UsageError(f"runs/{name} is a link to {folder.resolve()}: delete that by hand.")
    busy = next(_working(folder), None)
    if busy is not None:
        raise click.UsageError(f"A process works in {busy.relative_to(root)}: stop it first.")
    return [folder]


def _working(folder: Path) -> Iterator[Path]:
    """Folders whose lock a process holds: the sweep's own, and each stage's."""
    import fcntl

    for lock in (folder / ".lock", *folder.glob("*/*/.lock")):
        if not lock.is_file():
            continue
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield lock.parent
