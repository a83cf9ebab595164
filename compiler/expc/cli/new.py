"""`expc new`: a project to start from, compiled already."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import click

_NAME = re.compile(r"[a-z][a-z0-9_-]*$")
_FOLDERS = ("generated", "runs", "specs", "tests")


@click.command(short_help="make a project that lints, compiles, tests and runs")
@click.argument("name", type=click.Path(path_type=Path))
def command(name: Path) -> int:
    """Make the folder NAME: a spec with a model, a data set and a metric of its own, compiled and tested.

    It is yours to change; nothing in it is special.
    """
    from expc.cli.needs import scaffold

    package = _package(name)
    scaffold()
    with tempfile.TemporaryDirectory(
        prefix=f".{name.name}.", dir=name.absolute().parent
    ) as scratch:
        made = _rendered(Path(scratch), name.name, package)
        _write_schema(made / "specs" / "spec.schema.json")
        _compiled(made / "specs" / f"{package}.yaml")
        made.rename(name)
    click.echo(f"made {name}\n\n  cd {name}\n  expc lint\n  expc run generated/{package}\n  pytest")
    return 0


def _package(name: Path) -> str:
    """The package's name. Raises `click.UsageError` for a name that Python, or this folder, has no room for."""
    package = name.name.replace("-", "_")
    if not _NAME.match(name.name):
        raise click.UsageError(
            f"`{name.name}` is not a name: use lower-case letters, digits, `-` and `_`, starting with a letter."
        )
    if name.exists():
        raise click.UsageError(f"`{name}` is there already.")
    if not name.absolute().parent.is_dir():
        raise click.UsageError(f"There is no folder `{name.parent}`.")
    if package in sys.stdlib_module_names or package in _FOLDERS or find_spec(package):
        raise click.UsageError(f"`{package}` is the name of another package: choose another.")
    return package


def _rendered(scratch: Path, name: str, package: str) -> Path:
    """The scaffold with its names filled in. Its files end in `.j2`, so that tools leave them alone until then."""
    from cookiecutter.generate import generate_files

    with as_file(files("expc_templates") / "project") as template:
        made = Path(
            generate_files(
                repo_dir=template,
                context={"cookiecutter": {"name": name, "package": package}},
                output_dir=scratch,
                accept_hooks=False,
            )
        )
    for file in [*made.rglob("*.j2")]:
        file.rename(file.with_suffix(""))
    for cache in [*made.rglob("__pycache__")]:
        shutil.rmtree(cache)
    return made


def _write_schema(path: Path) -> None:
    """What the first line of a spec leads editors to."""
    from expc import schema

    path.write_text(schema.text(schema.spec()), encoding="utf-8")


def _compiled(spec: Path) -> None:
    from expc.build import compiled, folder_of, shown
    from expc.emit.render import render
    from expc.emit.write import write

    made = compiled(spec)
    folder = folder_of(made.experiment)
    name = shown(folder, made.experiment.root)
    write(render(made.experiment, made.plan, name), folder, name)
