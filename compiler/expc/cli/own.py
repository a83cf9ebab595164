"""`expc own`: a generated file becomes the user's."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="take a generated file over")
@click.argument("file", type=click.Path(path_type=Path))
def command(file: Path) -> int:
    """Make the generated FILE yours.

    Its header says so from now on, `expc compile` leaves it as it is and `expc check` does not
    compare it. Delete the file and compile again to go back.
    """
    from expc.cli.project import LOCK, generated, near, seen
    from expc.emit.write import own, read_lock

    if not file.parent.is_dir():
        raise click.UsageError(f"There is no file `{file}`.")
    folder = generated(file.parent)
    lock = read_lock(folder.path)
    names = list(lock.get("files", {}))
    if file.name == LOCK:
        raise click.UsageError(f"`{LOCK}` is how expc knows its own files; it can't be yours.")
    if file.name not in names or not file.is_file():
        raise click.UsageError(f"`{file}` was not written by expc.{near(file.name, names)}")
    if file.name in lock.get("owned", []):
        click.echo(f"{seen(file)} is yours already")
        return 0
    own(folder.path, file.name)
    click.echo(f"{seen(file)} is yours; expc will not touch it again")
    if file.suffix == ".py":
        click.echo(
            "results are told apart by its PROGRAM line: change that when what it trains changes"
        )
    return 0
