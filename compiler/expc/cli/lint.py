"""`expc lint`: what is wrong with specs, before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.lint.engine import FileReport


@click.command(short_help="say what is wrong with specs")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("--fix", is_flag=True, help="Make the edits that keep what the author meant.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "github"]),
    default="text",
    show_default=True,
)
@click.option("--no-cache", is_flag=True, help="Look anew, whatever was found before.")
def command(paths: tuple[Path, ...], fix: bool, form: str, no_cache: bool) -> int:
    """Check PATHS: specs, and folders of specs. Without PATHS: those in specs/.

    Exits with 1 if there is anything to say. `# expc: allow NAME -- reason` allows a finding on
    its line; `expc rule NAME` explains it.
    """
    from expc.lint.engine import exit_code, lint_files

    files = list(dict.fromkeys(_files(paths)))
    if not files:
        raise click.UsageError("There is no spec here: name a file, or a folder that holds some.")
    if fix:
        _fix(files)
    reports = lint_files(files, cache=not no_cache)
    _print(reports, form)
    return exit_code(reports)


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    from expc.project import project_root

    for path in paths or (project_root(Path.cwd()) / "specs",):
        if path.is_dir():
            yield from sorted(
                file
                for file in path.rglob("*")
                if file.suffix in (".yaml", ".yml") and file.is_file()
            )
        elif path.exists() or paths:
            yield path


def _fix(files: Sequence[Path]) -> None:
    """Mend what can be mended; what was done goes to stderr, the rest is found after."""
    from expc.lint.engine import fix_file

    for file in files:
        for line in fix_file(file):
            click.echo(line, err=True)


def _print(reports: Sequence[FileReport], form: str) -> None:
    from expc.cli.told import show

    if form == "text":
        show(reports)
        _say_unprofiled([report.file for report in reports if report.unprofiled])
        return
    from expc.lint.engine import render_github, render_json

    sys.stdout.write(render_json(reports) if form == "json" else render_github(reports))


def _say_unprofiled(files: Sequence[str]) -> None:
    """What was not looked at, in a line that is no finding."""
    if len(files) == 1:
        click.echo(
            f"{files[0]}: there are no facts about its data; `expc profile {files[0]}` reads it once, "
            "and lint then looks at that too",
            err=True,
        )
    elif files:
        shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        click.echo(
            f"there are no facts about the data of {len(files)} specs ({shown}): "
            "`expc profile SPEC` reads it once, and lint then looks at that too",
            err=True,
        )
