"""`expc compile`: a spec becomes a folder of modules and scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from expc.build import Compiled
    from expc.emit.render import Rendered
    from expc.emit.write import Written

_STEPS = ("spec", "ir", "program", "plan")


@click.command(short_help="write the modules and scripts of a spec")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder to write; generated/NAME if not given.",
)
@click.option("--force", is_flag=True, help="Overwrite generated files that were edited by hand.")
@click.option(
    "--emit", type=click.Choice(_STEPS), help="Print a step of the compiler as YAML; write nothing."
)
@click.option("--stdout", is_flag=True, help="Print the files; write nothing.")
def command(spec: Path, output: Path | None, force: bool, emit: str | None, stdout: bool) -> int:
    """Compile SPEC to generated/NAME.

    Errors that lint finds, and no comment allows, are printed instead, and nothing is written. A
    folder that would not change is not touched.
    """
    from expc.cli.told import refuse

    if refuse(spec):
        return 1
    from expc.build import compiled, folder_of, shown

    made = compiled(spec)
    if emit:
        from expc.emit.stages import emit as printed

        click.echo(printed(emit, made), nl=False)
        return 0
    from expc.emit.render import render
    from expc.emit.write import write

    folder = folder_of(made.experiment, output)
    name = shown(folder, made.experiment.root)
    rendered = render(made.experiment, made.plan, name)
    if stdout:
        _print(rendered, name)
        return 0
    click.echo(f"{name}: {_done(made, write(rendered, folder, name, force=force))}")
    return 0


def _print(rendered: Rendered, folder: str) -> None:
    for name, text in rendered.files.items():
        click.echo(f"==> {folder}/{name} <==")
        click.echo(text)


def _done(made: Compiled, written: Written) -> str:
    modules, runs = len(made.plan.modules), made.plan.runs
    what = f"{modules} module{'s' if modules != 1 else ''}, {runs:,} run{'s' if runs != 1 else ''}"
    did = [f"wrote {', '.join(written.written)}"] if written.written else []
    did += [f"removed {', '.join(written.removed)}"] if written.removed else []
    did += [f"left {', '.join(written.owned)} as yours"] if written.owned else []
    if not written.written and not written.removed:
        did.insert(0, "unchanged")
    return f"{what}; {'; '.join(did)}"
