"""`expc where`: from a generated line to its place in the spec, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True)
class Link:
    """Lines of a generated file, and the place in a spec that is behind them."""

    file: str
    first: int
    last: int
    spec: str
    line: int
    col: int
    path: str


@click.command(short_help="find the place in the spec behind a generated line, or the reverse")
@click.argument("place", metavar="FILE:LINE")
def command(place: str) -> int:
    """Find what is behind line LINE of FILE.

    A line of a generated module is answered with the place in the spec that it came from; a line
    of a spec with the generated lines that came from it.
    """
    from expc.project import project_root
    from expc.source import name_of

    file, line = _split(place)
    root = project_root(file)
    if file.suffix in (".yaml", ".yml"):
        return _of_spec(name_of(file, root), line, root, place)
    return _of_generated(file, line, root, place)


def _split(place: str) -> tuple[Path, int]:
    name, _, rest = place.partition(":")
    number = rest.split(":")[0]
    if not number.isdigit() or int(number) < 1:
        raise click.UsageError(f"`{place}` is not FILE:LINE, such as generated/digits/read.py:57")
    if not Path(name).is_file():
        raise click.UsageError(f"There is no file `{name}`.")
    return Path(name), int(number)


def _of_generated(file: Path, line: int, root: Path, place: str) -> int:
    from expc.cli.project import generated

    folder = generated(file.parent)
    count = len(file.read_text(encoding="utf-8", errors="replace").splitlines())
    if line > count:
        raise click.UsageError(f"`{file}` has {count} lines.")
    behind = [link for link in _links(folder.path, root) if link.file.endswith(f"/{file.name}")]
    around = [link for link in behind if link.first <= line <= link.last]
    if not around:
        click.echo(f"{place}: no one value of the spec is behind this line")
        return 1
    link = min(around, key=lambda link: link.last - link.first)
    click.echo(f"{link.path}")
    click.echo(_frame(root / link.spec, link))
    return 0


def _of_spec(spec: str, line: int, root: Path, place: str) -> int:
    from expc.cli.project import folders

    links = [
        link
        for folder in folders(root)
        for link in _links(folder.path, root)
        if link.spec == spec and link.line == line
    ]
    if not links:
        click.echo(f"no generated line came from {place}")
        return 1
    for link in sorted(links, key=lambda link: (link.file, link.first)):
        text = _text(root / link.file, link.first).strip()
        click.echo(f"{link.file}:{link.first}: {text}  ({link.path})")
    return 0


def _links(folder: Path, root: Path) -> Iterator[Link]:
    from expc.emit.write import read_lock
    from expc.source import name_of

    for name, entry in read_lock(folder).get("files", {}).items():
        for first, last, at, path in entry.get("map", []):
            spec, line, col = at.rsplit(":", 2)
            yield Link(
                f"{name_of(folder, root)}/{name}", first, last, spec, int(line), int(col), path
            )


def _frame(spec: Path, link: Link) -> str:
    """The line of the spec with carets under the key."""
    line = _text(spec, link.line)
    key = line[link.col - 1 :].split(":")[0].split(",")[0].rstrip(" }]")
    gutter = " " * len(str(link.line))
    return "\n".join(
        (
            f"{gutter}--> {link.spec}:{link.line}:{link.col}",
            f"{gutter} |",
            f"{link.line} | {line}",
            f"{gutter} | {' ' * (link.col - 1)}{'^' * max(1, len(key))}",
        )
    )


def _text(file: Path, number: int) -> str:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    return lines[number - 1] if number <= len(lines) else ""
