"""`expc check`: generated files are what their specs compile to."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.cli.project import Folder


@click.command(short_help="fail if generated files are not what their specs compile to")
@click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
def command(specs: tuple[Path, ...]) -> int:
    """Compile SPECS in memory and compare with their generated folders; nothing is written.

    Prints a unified diff, from what is there to what should be, and exits with 1 where they
    differ. Without SPECS: every spec that has a generated folder, and every generated folder
    whose spec is gone.
    """
    from expc.cli.project import project

    root = project()
    chosen = list(specs) or _compiled(root)
    orphans = [] if specs else _orphans(root)
    differing = sum(not _fresh(spec) for spec in chosen)
    for folder in orphans:
        click.echo(
            f"generated/{folder.path.name} has no spec any more: {folder.spec.relative_to(root)} is gone. "
            "`expc clean --yes` deletes it."
        )
    total = len(chosen) + len(orphans)
    if differing or orphans:
        one = differing + len(orphans) == 1
        click.echo(
            f"{differing + len(orphans)} of {total} generated folder{'s' if total > 1 else ''} "
            f"{'is' if one else 'are'} out of date"
        )
        return 1
    folders = "1 generated folder is" if total == 1 else f"{total} generated folders are"
    click.echo(f"{folders} up to date" if total else "there are no generated folders")
    return 0


def _compiled(root: Path) -> list[Path]:
    """Specs that have a generated folder: those it names, then those in specs/ that lost their lock."""
    from expc.cli.project import folders, specs

    locked = [folder.spec for folder in folders(root) if not folder.orphaned]
    others = [spec for spec in specs(root) if spec not in locked and _name(spec, root)]
    return sorted([*locked, *others])


def _name(spec: Path, root: Path) -> bool:
    from expc.source import read

    name = read(spec, root).data.get("name")
    return isinstance(name, str) and bool(name) and (root / "generated" / name).is_dir()


def _orphans(root: Path) -> list[Folder]:
    from expc.cli.project import folders

    return [folder for folder in folders(root) if folder.orphaned]


def _fresh(spec: Path) -> bool:
    from expc.build import compiled, folder_of, shown
    from expc.cli.project import seen
    from expc.emit.render import render
    from expc.emit.write import stale

    made = compiled(spec)
    folder = folder_of(made.experiment)
    name = shown(folder, made.experiment.root)
    differing = stale(render(made.experiment, made.plan, name), folder)
    for file, (there, wanted) in differing.items():
        click.echo("".join(_diff(f"{name}/{file}", there, wanted)), nl=False)
    if differing:
        mend = f"expc compile {shlex.quote(seen(spec))}"
        click.echo(f"{name} is not what {made.experiment.file} compiles to: {mend}\n")
    return not differing


def _diff(name: str, there: str | None, wanted: str | None) -> Iterator[str]:
    before = f"{name} (on disk)" if there is not None else "/dev/null"
    after = f"{name} (compiled)" if wanted is not None else "/dev/null"
    lines = difflib.unified_diff(_lines(there), _lines(wanted), before, after)
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines(keepends=True)
